"""The export command: its mistakes are one line, and an interrupted export leaves nothing that looks whole."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests import served
from vgrout_jax import export
from vgrout_jax.common.command_line import UsageError

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return served.base_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def run(tmp_path_factory, base) -> Path:
    return served.finished_run(tmp_path_factory.mktemp("run") / "run", served.smoke(model={"path": str(base)}))


WRONG = {
    "--out must not exist": {"out": "run"},
    "--format": {"format": "gguf"},
    "--policy": {"policy": "ablated"},
    "--rank must be >= 1": {"rank": "0"},
    "--rank must be <= 8": {"rank": "9"},
    "--rank must be <= 16": {"rank": "17", "policy": "as_trained"},
    "--rank compresses a LoRA": {"rank": "2", "format": "merged"},
    "argument --rank: invalid int": {"rank": "half"},
    "--dtype": {"dtype": "int8"},
    "config.json is not in it": {"workdir": "nowhere"},
    "has no summary.json": {"workdir": "unfinished"},
    "is damaged": {"workdir": "damaged"},
    "metadata.json is missing": {"workdir": "no_adapter"},
    "unrecognized arguments: --ranks=3": {"ranks": "3"},
    "required: --format": {"format": None},
}


@pytest.fixture(scope="module")
def workdirs(run, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("workdirs")
    for name in ("run", "unfinished", "damaged", "no_adapter"):
        shutil.copytree(run, root / name)
    (root / "unfinished" / "summary.json").unlink()
    (root / "damaged" / "config.json").write_text("{")
    shutil.rmtree(root / "no_adapter" / "adapter")
    return root


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(workdirs, monkeypatch, message):
    monkeypatch.chdir(workdirs)
    flags = {"workdir": "run", "out": "new/out", "format": "peft", **WRONG[message]}
    with pytest.raises((UsageError, ValueError)) as caught:
        export.main([f"--{name}={value}" for name, value in flags.items() if value is not None])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not any((workdirs / "new").glob("*")) and len(list(workdirs.iterdir())) in (4, 5)


def test_another_tokenizer_than_the_run_s_is_refused(base, tmp_path):
    config = served.smoke(model={"path": str(base)})
    run = served.finished_run(tmp_path / "run", config)
    fields = json.loads((run / "config.json").read_text())
    fields["provenance"]["tokenizer_sha256"] = "f" * 64
    (run / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="another tokenizer"):
        served.export_run(run, tmp_path / "out", "merged")
    assert not (tmp_path / "out").exists()


def run_command(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    start = ["-m", "vgrout_jax.export"] if code is None else ["-c", textwrap.dedent(code)]
    return subprocess.run(
        [sys.executable, *start, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


def test_a_wrong_flag_ends_with_status_1_before_jax_is_imported(run):
    program = """
        import sys
        from vgrout_jax import export
        from vgrout_jax.common.command_line import end_with_one_line
        try:
            end_with_one_line(lambda: export.main(sys.argv[1:]))
        finally:
            print({"jax", "torch", "transformers"} & set(sys.modules))
    """
    done = run_command(f"--workdir={run}", "--out=/", "--format=peft", code=program)
    assert (done.returncode, done.stdout) == (1, "set()\n")
    assert done.stderr == "error: --out must not exist, got /; choose another folder or delete it\n"


@pytest.mark.parametrize(
    "format,number",
    [
        ("peft", signal.SIGTERM),
        ("peft", signal.SIGKILL),
        ("merged", signal.SIGINT),
        ("merged", signal.SIGKILL),
    ],
)
def test_an_interrupted_export_leaves_nothing_that_looks_whole(run, tmp_path, format, number):
    """The signal comes at the last file but one; only SIGKILL leaves a hidden folder, which no library takes."""
    program = f"""
        import os, signal, sys, time
        from vgrout_jax import export
        from vgrout_jax.common.command_line import end_with_one_line
        from vgrout_jax.weights import store
        whole = store.write_tensors
        def interrupted(*arguments):
            whole(*arguments)
            os.kill(os.getpid(), {int(number)})
            time.sleep(60)
        store.write_tensors = interrupted
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        end_with_one_line(lambda: export.main(sys.argv[1:]))
    """
    done = run_command(f"--workdir={run}", f"--out={tmp_path}/out", f"--format={format}", code=program)
    expected = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}
    assert done.returncode == expected[number], done.stderr
    assert "Traceback" not in done.stderr
    left = list(tmp_path.iterdir())
    assert len(left) == (number == signal.SIGKILL)
    for folder in left:
        assert folder.name.startswith(".") and any(folder.glob("*.safetensors"))
        with pytest.raises((OSError, ValueError)):
            served.LOADERS[format](folder)
