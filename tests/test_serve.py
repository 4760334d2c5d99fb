"""docs/howto/serve.md: its commands and examples, one after the other, and the figures that it states."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_docs import blocks, commands
from vgrout_jax.model import lora2r
from vgrout_jax.serving import exports
from vgrout_jax.weights import as_lora, peft, store

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "howto" / "serve.md"
WIDTH, RANK = 2560, 32


@pytest.mark.slow
def test_every_command_from_the_run_to_the_answer(tmp_path):
    """Those for other machines (the hub, vLLM) apart. Both served forms must give the same answer."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    outputs = {}
    ran = [line for line in commands(PAGE) if line.startswith(("./launch/run.sh", ".venv/bin/python"))]
    assert len(ran) == 6
    for line in ran:
        line = line.replace("./launch/run.sh", "python -m vgrout_jax.main").replace(".venv/bin/python", "python")
        line = f"{sys.executable} {line.removeprefix('python ')}"
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment, input="", capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, (line, done.stderr[-3000:])
        outputs[line.split("vgrout_jax.")[1]] = done.stdout
    assert any("reward" in text for line, text in outputs.items() if "--problem=0" in line)
    answers = []
    for example in blocks(PAGE, "python"):
        done = subprocess.run(
            [sys.executable, "-c", example.text],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        answers.append(done.stdout)
    assert len(answers) == 2 and answers[0] == answers[1] and len(answers[0]) > 20


def rounding(move: float) -> float:
    """The rounding error of merging one map of Qwen3-4B's width into bfloat16, by the exporter's own arithmetic."""
    generator = np.random.default_rng(0)
    init = jax.tree.map(jnp.asarray, lora2r.init_factors({"q_proj": (WIDTH, WIDTH)}, 1, RANK, seed=0))
    deltas = jax.tree.map(lambda leaf: jnp.asarray(move * generator.standard_normal(leaf.shape, np.float32)), init)
    merge = exports.Merge(as_lora.lora_factors(lora2r.Adapter(init, deltas), quarantine=False), "bfloat16")
    weight = (0.02 * generator.standard_normal((WIDTH, WIDTH), np.float32)).astype(jnp.bfloat16)
    merge.add(store.Piece("q_proj", weight.shape, ("layers", "q_proj"), 0, True), weight)
    return merge.rounding()


def test_the_table_of_rounding_errors_is_computed():
    text = PAGE.read_text(encoding="utf-8")
    for move in ("0.0001", "0.001", "0.01"):
        percent = 100 * rounding(float(move))
        shown = f"{percent:.0f}" if percent >= 1 else f"{percent:.1f}"
        assert f"| {move} | {shown}% |" in text


def test_the_stated_ranks_and_sizes_follow_from_the_shapes():
    text = PAGE.read_text(encoding="utf-8")
    *most, last = map(str, peft.VLLM_RANKS)
    assert f"must be {', '.join(most)} or {last} and" in text
    assert peft.vllm_rank(2 * RANK) == 64 and peft.vllm_rank(4 * RANK) == 128
    shapes = [(2560, 4096), (2560, 1024), (2560, 1024), (4096, 2560), (2560, 9728), (2560, 9728), (9728, 2560)]
    adapter = 36 * 2 * RANK * sum(map(sum, shapes))
    assert f"| {2 * adapter / 1e9:.2f} GB in bfloat16 | {2 * 4_022_468_096 / 1e9:.1f} GB in bfloat16 |" in text
