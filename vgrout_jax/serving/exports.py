"""A finished run as files that others serve: a plain LoRA, or a whole model."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgrout_jax.common.tokenizer import SMOKE_PATH, ChatTokenizer, load_tokenizer
from vgrout_jax.config import Config, MeshConfig
from vgrout_jax.model import lora2r, sharding
from vgrout_jax.run.build import load_base, model_config
from vgrout_jax.run.reader import Workdir
from vgrout_jax.serving import model_card
from vgrout_jax.weights import as_lora, checkpoint, hub, peft, store

# Fields of a base model's config.json that an export states itself.
_OWN_FIELDS = ("rope_parameters", "rope_scaling", "rope_theta", "dtype", "torch_dtype", "transformers_version")
_MERGED_USAGE = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")',
    'tokenizer = AutoTokenizer.from_pretrained(".")',
)
_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt")


def export_peft(
    run: Workdir, out: Path, *, policy: str = "deployed", rank: int | None = None, dtype: str | None = None
) -> list[str]:
    """Writes the run's adapter as a plain LoRA, for PEFT and vLLM.

    Args:
        run: finished.
        out: folder to make.
        policy: `deployed` or `as_trained`.
        rank: None: 2r or 4r, exactly the policy; else compressed to it.
        dtype: of the file; None: `model.dtype` of the run, in which the run itself computed with these factors.

    Returns:
        Lines that say what was written.

    Raises:
        ValueError: the adapter or the base cannot be read, or the folder cannot be written.
    """
    config, dtype = run.config, dtype or run.config.model.dtype
    record = checkpoint.read_record(run.path / "adapter")
    init = checkpoint.regenerate_init(record)
    deltas, record = checkpoint.load_adapter(run.path / "adapter", init=init)
    factors = _lora(init, deltas, policy)
    facts = {"scaling": "1"}
    if rank is not None:
        factors, loss = peft.compress(factors, rank)
        facts["compression"] = (
            f"truncated SVD, relative error {loss.error:.2e} over all maps, "
            f"{loss.worst:.2e} at most ({loss.worst_map})"
        )
    rank = peft.rank_of(factors)
    facts = {"export": f"LoRA of rank {rank}, {dtype}, policy {policy}", **facts}
    named = base_name(config)
    base = named or str(out.absolute() / "base")
    usage = _peft_usage("base" if named is None else model_card.shown(named))
    card = render_card(run, record, policy=policy, title="A LoRA adapter", library="peft", usage=usage, facts=facts)
    with store.staged_folder(out) as staged:
        if named is None:
            write_base(staged / "base", config)
        size = peft.write_adapter(staged, factors, base=base, dtype=dtype, files={"README.md": card})
    lines = [f"{out}: LoRA of rank {rank}, {policy} policy, {size:,} parameters in {dtype}, scaling 1"]
    if "compression" in facts:
        lines.append(facts["compression"])
    return [*lines, _vllm_line(base, out, rank)]


def export_merged(run: Workdir, out: Path, *, policy: str = "deployed", dtype: str | None = None) -> list[str]:
    """Writes the base model with the run's adapter added to its weights, in float32, tensor by tensor.

    Args:
        run: finished.
        out: folder to make.
        policy: `deployed` or `as_trained`.
        dtype: of the file, to which the sums are rounded; None: `model.dtype` of the run.

    Returns:
        Lines that say what was written, and what rounding did to the adapter's part.

    Raises:
        ValueError: adapter, base or tokenizer cannot be read or is not the run's, or the folder cannot be written.
    """
    config, dtype = run.config, dtype or run.config.model.dtype
    folder = model_source(config)
    tokenizer = load_tokenizer(None if folder is None else str(folder))
    _check_tokenizer(run, tokenizer)
    model = model_config(config, None if folder is None else str(folder), tokenizer)
    init = lora2r.init_factors(model.module_shapes(), model.num_layers, config.adapter.rank, seed=config.adapter.seed)
    deltas, record = checkpoint.load_adapter(run.path / "adapter", init=init)
    merge = Merge(_lora(init, deltas, policy), dtype)
    facts = {"export": f"adapter added to the base's weights in float32, stored in {dtype}, policy {policy}"}
    card = render_card(
        run, record, policy=policy, title="A merged model", library="transformers", usage=_MERGED_USAGE, facts=facts
    )
    files, fields = {"README.md": card}, {}
    if folder is not None:
        fields = _kept_fields(folder)
        files["generation_config.json"] = _generation(folder, tokenizer)
    store.save_checkpoint(
        out,
        load_base(config, None if folder is None else str(folder), model, all_devices()),
        model,
        dtype=dtype,
        tokenizer_files=_files_to_copy(folder or SMOKE_PATH),
        eos_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
        extra_files=files,
        config_fields=fields,
        change=merge.add,
    )
    return [
        f"{out}: {policy} policy, weights in {dtype}",
        f"rounding to {dtype} moved the weights by {merge.rounding():.1%} of the adapter's change",
        f"serve it: vllm serve {out}",
    ]


class Merge:
    """Adds a LoRA to a model's weights, tensor by tensor, and keeps count of what rounding the sums costs."""

    def __init__(self, factors: lora2r.Factors, dtype: str):
        self._factors = factors
        self._dtype = jnp.dtype(dtype)
        self._rounded = self._changed = 0.0

    def add(self, piece: store.Piece, value: np.ndarray) -> np.ndarray:
        """The tensor as it is stored; one without an adapter is returned as it came."""
        module = piece.path[-1]
        if module not in self._factors.a:
            return value
        down = np.asarray(self._factors.a[module][piece.layer], np.float32)
        change = as_lora.weight_change(down, np.asarray(self._factors.b[module][piece.layer], np.float32))
        total = value.astype(np.float32) + change
        stored = total.astype(self._dtype)
        self._rounded += float(np.linalg.norm(stored.astype(np.float32) - total)) ** 2
        self._changed += float(np.linalg.norm(change)) ** 2
        return stored

    def rounding(self) -> float:
        """Norm of the rounding errors so far, relative to that of the adapter's own change; 0 without any."""
        return (self._rounded / self._changed) ** 0.5 if self._changed else 0.0


def base_name(config: Config) -> str | None:
    """How others find the base model: a hub name or a folder's full path; None for a random or built-in one."""
    path = config.model.path
    if path is None or path.startswith("builtin:"):
        return None
    folder = Path(path).expanduser()
    return str(folder.absolute()) if folder.is_dir() else path


def model_source(config: Config) -> Path | None:
    """The base model's folder, downloaded where needed; None: random weights."""
    return None if config.model.path is None else hub.model_folder(config.model.path)


def all_devices() -> jax.sharding.Mesh:
    """A mesh of all devices, which share the weights; the run's own mesh may not fit this machine."""
    return sharding.make_mesh(MeshConfig(fsdp=jax.device_count()))


def write_base(out: Path, config: Config) -> None:
    """Writes a base model that has no name outside of this package."""
    folder = model_source(config)
    if folder is not None:
        shutil.copytree(folder, out)
        return
    tokenizer = load_tokenizer(None)
    model = model_config(config, None, tokenizer)
    store.save_checkpoint(
        out,
        load_base(config, None, model, all_devices()),
        model,
        dtype=config.model.dtype,
        tokenizer_files=_files_to_copy(SMOKE_PATH),
        eos_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
    )


def render_card(
    run: Workdir, record: Mapping[str, Any], *, policy: str, title: str, library: str, **parts: Any
) -> str:
    """The model card of an export.

    Raises:
        ValueError: the run has no final evaluation of the policy.
    """
    evaluation = run.final_evaluation(policy)
    if evaluation is None:
        raise ValueError(f"{run.path / 'eval.jsonl'} must hold the run's last evaluation of the {policy} policy")
    named = base_name(run.config)
    card = model_card.Card(
        config=run.config,
        provenance=run.provenance,
        evaluation=evaluation,
        code_version=record["code_version"],
        step=record["metadata"]["step"],
        policy=policy,
        base=named if named and not Path(named).is_absolute() else None,
        **parts,
    )
    return model_card.render(card, title=f"{title} ({run.config.arm}, {policy.replace('_', ' ')})", library=library)


def _lora(init: lora2r.Factors, deltas: lora2r.Factors, policy: str) -> lora2r.Factors:
    adapter = lora2r.Adapter(jax.tree.map(jnp.asarray, init), deltas)
    return as_lora.lora_factors(adapter, quarantine=policy == "as_trained")


def _check_tokenizer(run: Workdir, tokenizer: ChatTokenizer) -> None:
    then = run.provenance.get("tokenizer_sha256")
    if then not in (None, tokenizer.sha256):
        raise ValueError(
            f"model.path {run.config.model.path} has another tokenizer than when the run was made "
            f"(SHA-256 {tokenizer.sha256[:12]}, then {then[:12]}); restore that model"
        )


def _files_to_copy(folder: Path) -> list[Path]:
    licences = [folder / name for name in _LICENCES if (folder / name).is_file()]
    return [*store.find_tokenizer_files(folder), *licences]


def _kept_fields(folder: Path) -> dict[str, Any]:
    """What the base's config.json says beyond its shape, such as its number of positions."""
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {name: value for name, value in fields.items() if name not in (*_OWN_FIELDS, *store.SIZE_FIELDS)}


def _generation(folder: Path, tokenizer: ChatTokenizer) -> str:
    """The base's generation settings, with every id that ended a completion in training."""
    file = folder / "generation_config.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    ours = store.generation_fields(tokenizer.eos_ids, tokenizer.pad_id)
    return json.dumps({**ours, **kept, "eos_token_id": ours["eos_token_id"]}, indent=2) + "\n"


def _peft_usage(base: str) -> list[str]:
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'base = "{base}"',
        'model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")',
        'model = PeftModel.from_pretrained(model, ".")',
        "tokenizer = AutoTokenizer.from_pretrained(base)",
    ]


def _vllm_line(base: str, out: Path, rank: int) -> str:
    limit = peft.vllm_rank(rank)
    if limit is None:
        most = peft.VLLM_RANKS[-1]
        return f"vLLM serves ranks up to {most}; use --rank={most} or --format=merged there"
    return f"serve it: vllm serve {base} --enable-lora --max-lora-rank {limit} --lora-modules vgrout={out}"
