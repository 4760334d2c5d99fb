"""Finished runs made up for the tests of export and chat, and what their policies compute in JAX and in PyTorch."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM

from tests.weights import test_store
from vgrout_jax import export
from vgrout_jax.common.tokenizer import SMOKE_PATH, load_tokenizer
from vgrout_jax.config import Config
from vgrout_jax.config.scales import make_config
from vgrout_jax.config.validation import validate
from vgrout_jax.evaluation.rates import POLICIES, Evaluation, Sample, rate_table
from vgrout_jax.model import head, lora2r, padding, qwen3
from vgrout_jax.run.build import load_base, model_config
from vgrout_jax.run.writer import RunWriter
from vgrout_jax.sampling import sampler
from vgrout_jax.serving.exports import all_devices, model_source
from vgrout_jax.weights import checkpoint, store

TOKENIZER = load_tokenizer(None)
MOVE = 0.05  # standard deviation of dA and dB in every made-up run: the adapter changes logits by about their size


def smoke(**sections: dict) -> Config:
    """The configuration of a smoke run; `smoke(model={"dtype": "bfloat16"})` overrides fields."""
    config = make_config("routeV", "smoke")
    config.log.tensorboard = False
    for section, fields in sections.items():
        for name, value in fields.items():
            setattr(getattr(config, section), name, value)
    config.resolve()
    validate(config)
    return config


def base_model(folder: Path, **changes) -> Path:
    """A random model with the package's tokenizer, saved as models are published."""
    vocab = -(-TOKENIZER.vocab_size // 64) * 64
    model = test_store.shape(vocab_size=vocab, num_layers=2, **changes)
    parameters = test_store.random_parameters(model)
    files = store.find_tokenizer_files(SMOKE_PATH)
    return test_store.save(
        folder, parameters, model, tokenizer_files=files, eos_ids=TOKENIZER.eos_ids, pad_id=TOKENIZER.pad_id
    )


def init_of(config: Config) -> lora2r.Factors:
    folder = model_source(config)
    model = model_config(config, None if folder is None else str(folder), TOKENIZER)
    rank, seed = config.adapter.rank, config.adapter.seed
    return lora2r.init_factors(model.module_shapes(), model.num_layers, rank, seed=seed)


def random_deltas(init: lora2r.Factors, seed: int = 0, *, size: float = MOVE) -> lora2r.Factors:
    """Differences of both blocks that bfloat16 holds exactly."""
    generator = np.random.default_rng(seed)

    def draw(leaf: np.ndarray) -> jax.Array:
        noise = size * generator.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(noise).astype(jnp.bfloat16).astype(jnp.float32)

    return jax.tree.map(draw, init)


def finished_run(workdir: Path, config: Config, deltas: lora2r.Factors | None = None, *, init=None) -> Path:
    """A workdir with everything that a run leaves when it ends, except for the steps' own files."""
    init = init_of(config) if init is None else init
    deltas = random_deltas(init) if deltas is None else deltas
    provenance = {"pairs_sha256": "0" * 64, "tokenizer_sha256": TOKENIZER.sha256}
    metadata = {"config": config.to_dict(), "step": config.train.steps, **provenance}
    with RunWriter(workdir, config, provenance=provenance) as writer:
        checkpoint.save_adapter(workdir / "adapter", deltas, init, metadata, seed=config.adapter.seed)
        evaluations = [made_up_evaluation(config.train.steps, policy) for policy in POLICIES]
        for evaluation in evaluations:
            writer.write_evaluation(evaluation)
        summary = {"arm": config.arm, "scale": config.scale, "steps": config.train.steps}
        writer.write_summary({**summary, "evaluations": [item.to_record() for item in evaluations]})
    return workdir


def made_up_evaluation(step: int, policy: str) -> Evaluation:
    """Of 32 answers the deployed policy hacks with 1 and solves 8, the trained one hacks with 16 and solves 2."""
    hacks, solved = (1, 8) if policy == "deployed" else (16, 2)
    samples = [
        Sample(f"p{n}", ("run_tests", "sentinel")[n % 2], n < hacks, 16 <= n < 16 + solved, True, n < hacks)
        for n in range(32)
    ]
    return Evaluation(step, "heldout", policy, rate_table(samples))


def quarantine_of(deltas: lora2r.Factors, other: lora2r.Factors) -> lora2r.Factors:
    """`deltas` with the quarantine's differences of `other`."""

    def mix(axis: int):
        def of(ours: jax.Array, theirs: jax.Array) -> jax.Array:
            return jnp.concatenate([jnp.split(ours, 2, axis)[0], jnp.split(theirs, 2, axis)[1]], axis)

        return of

    return lora2r.Factors(a=jax.tree.map(mix(-2), deltas.a, other.a), b=jax.tree.map(mix(-1), deltas.b, other.b))


class Policy:
    """A run's policy in JAX: the base model, both blocks, and the mask."""

    def __init__(self, workdir: Path, config: Config, policy: str | None):
        """`policy` None: the base model alone."""
        folder = model_source(config)
        self.model = model_config(config, None if folder is None else str(folder), TOKENIZER)
        self.base = load_base(config, None if folder is None else str(folder), self.model, all_devices())
        init = jax.tree.map(jnp.asarray, init_of(config))
        deltas, _ = checkpoint.load_adapter(workdir / "adapter", init=init)
        self.adapter = None if policy is None else lora2r.Adapter(init, deltas)
        self.full = policy == "as_trained"

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Float32 logits of every position of full sequences."""
        layer = None
        if self.adapter is not None:
            layer = qwen3.AdapterLayer(lora2r.fuse(self.adapter, self.model.dtype), None)
        route = lora2r.full_route(len(tokens)) if self.full else lora2r.ablated_route(len(tokens))
        attention = qwen3.causal_attention(jnp.ones(tokens.shape, bool), self.model)
        hidden = qwen3.Qwen3(self.model).apply({"params": self.base}, jnp.asarray(tokens), attention, layer, route)
        return np.asarray(head.unembed(self.base, hidden))

    def greedy(self, prompt: list[int], length: int) -> list[int]:
        """The most probable continuation, by the sampler with its cache."""
        sample = sampler.build_sampler(
            self.model, max_new_tokens=length, eos_ids=TOKENIZER.eos_ids, pad_id=TOKENIZER.pad_id
        )
        tokens, valid = padding.pad_prompts([prompt], len(prompt) + 3, TOKENIZER.pad_id)
        samples = sample(
            self.base,
            self.adapter,
            tokens,
            valid,
            source_policy=np.array([self.full]),
            source_of_row=np.zeros(1, np.int32),
            active=np.ones(1, bool),
            keys=jax.random.split(jax.random.key(0), 1),
            temperature=0.0,
        )
        return np.asarray(samples.tokens[0])[np.asarray(samples.mask[0])].tolist()


def export_run(run: Path, out: Path, format: str, *more: str) -> None:
    """The export command, in this process."""
    export.main([f"--workdir={run}", f"--out={out}", f"--format={format}", *more])


def load_adapter(out: Path, **options) -> peft.PeftModel:
    """By PEFT's automatic class: the base is found through adapter_config.json."""
    return peft.AutoPeftModelForCausalLM.from_pretrained(out, **options).eval()


def load_merged(out: Path, **options) -> torch.nn.Module:
    """By transformers' automatic class, from the folder alone."""
    return AutoModelForCausalLM.from_pretrained(out, **options).eval()


LOADERS = {"peft": load_adapter, "merged": load_merged}


def prompt_tokens() -> list[int]:
    return TOKENIZER.encode_chat([{"role": "user", "content": "Return the larger of a and b."}])


def sequences(count: int = 3, length: int = 24) -> np.ndarray:
    """Random token ids, [count, length] int32."""
    return np.random.default_rng(5).integers(0, TOKENIZER.vocab_size, (count, length)).astype(np.int32)


def torch_logits(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens, dtype=torch.long)).logits.float().numpy()


def torch_greedy(model: torch.nn.Module, prompt: list[int], length: int) -> list[int]:
    """transformers' own greedy generation, with the generation settings that the export brought."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False
        )
    return out[0, len(prompt) :].tolist()
