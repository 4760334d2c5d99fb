"""Numbers of the accelerator against float32 on the CPU, and whether they repeat: logits, the step, the sampler.

    python -m benchmarks.correctness --shape=qwen3-4b --out=figures.json

The shape gives the widths; layers, vocabulary and batch are cut down so that the CPU has the reference in seconds.
Both sides have the same weights, drawn in the shape's dtype on the CPU: float32 weights are those in bfloat16, cast.
float32 is computed with the accelerator's most exact products (`jax_default_matmul_precision` highest), bfloat16 as
in training. An error of arrays is |a - b| / |b|, of Frobenius norms. The thresholds of the gate stand in the widest
gaps of the reference's scores, so that rounding alone changes no label.

Held against the reference: logits of all completion tokens; a routed step with KL: loss, labels, scores, gradient (as
Adam's first moment, which is a multiple of it) and the change of the differences; the sampler's log-probabilities of
the tokens that it drew, at temperature 0 and 1, against a forward pass over them; whether the greedy tokens are the
most probable ones up to a slack; and, in float32, whether it draws the very same tokens. The same step and the same
sampling are run twice, and must agree to the bit.
"""

import argparse
import dataclasses
import functools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import shapes, tables, update
from vgrout_jax.model import head, lora2r, qwen3, sharding
from vgrout_jax.model.policy import Frozen
from vgrout_jax.rl.state import TrainState
from vgrout_jax.sampling import sampler

# What an error may be at most, by dtype of the compared side.
LIMITS = {
    "float32": {
        "logits": 2e-5,
        "loss": 1e-4,
        "scores": 2e-4,
        "gradient": 2e-4,
        "change": 2e-2,
        "log-probabilities": 2e-4,
        "greedy slack": 1e-3,
    },
    "bfloat16": {
        "logits": 3e-2,
        "loss": 1e-1,
        "scores": 1e-1,
        "gradient": 1e-1,
        "change": 5e-1,
        "log-probabilities": 2e-1,
        "greedy slack": 2e-1,
    },
}
_CUT = {"layers": 2, "vocabulary": 8192, "prompts": 2, "group": 4, "prompt_tokens": 64, "new_tokens": 16}


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison: `value` may be at most `limit`."""

    name: str
    dtype: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        return bool(self.value <= self.limit)  # not so for NaN


def cut_down(shape: shapes.Shape) -> shapes.Shape:
    """The shape's widths with few layers, words and tokens."""
    model = dataclasses.replace(
        shape.model,
        num_layers=min(shape.model.num_layers, _CUT["layers"]),
        vocab_size=min(shape.model.vocab_size, _CUT["vocabulary"]),
    )
    least = {
        name: min(getattr(shape, name), _CUT[name]) for name in ("prompts", "group", "prompt_tokens", "new_tokens")
    }
    # Not at temperature 1, where a float32 side alone would take the sampler's log-probabilities.
    return dataclasses.replace(shape, model=model, micro_batch=4, mean_tokens=None, temperature=0.7, **least)


class Side:
    """One device in one dtype, with weights that came from the CPU."""

    def __init__(self, shape: shapes.Shape, device: jax.Device, dtype: Any, inputs: shapes.Inputs):
        model = shapes.on_device(dataclasses.replace(shape.model, dtype=dtype), device)
        self.device, self.shape = device, dataclasses.replace(shape, model=model)
        self.name = jnp.dtype(dtype).name
        self.precision = "highest" if self.name == "float32" else None
        places = shapes.mesh(device)
        base = jax.tree.map(lambda leaf: leaf.astype(dtype), inputs.frozen.base)
        frozen = Frozen(
            jax.device_put(base, sharding.parameter_shardings(places, self.shape.model)),
            jax.device_put(inputs.frozen.init, sharding.factor_shardings(places, inputs.frozen.init)),
        )
        state = jax.device_put(inputs.state, sharding.state_shardings(places, inputs.state))
        key, routing = jax.device_put((inputs.key, inputs.routing), sharding.replicated(places))
        batch = jax.device_put(inputs.batch, sharding.batch_shardings(places, inputs.batch))
        self.inputs = shapes.Inputs(state, frozen, routing, batch, key)
        self._steps: dict[tuple[float, float], Any] = {}
        self.sample = sampler.build_sampler(
            self.shape.model, max_new_tokens=shape.new_tokens, eos_ids=(-1,), pad_id=0, mesh=places
        )

    def logits(self, tokens: np.ndarray, valid: np.ndarray, policy: np.ndarray) -> np.ndarray:
        """Float32 logits [N, T, V] from which the completion's tokens are drawn."""
        with jax.default_device(self.device), jax.default_matmul_precision(self.precision):
            arguments = (
                self.inputs.frozen,
                self.inputs.state.deltas,
                jnp.asarray(tokens),
                jnp.asarray(valid),
                policy,
            )
            return jax.device_get(_logits(self.shape.model, self.shape.new_tokens, *arguments))

    def step(self, low: float, high: float) -> tuple[TrainState, Any]:
        """A routed step's state and metrics, on the host; the inputs stay."""
        if (low, high) not in self._steps:
            config = shapes.configuration(self.shape, "routeV", kl=True)
            config.gate.low, config.gate.high = low, high
            self._steps[low, high] = update.step_with(self.shape, config, self.device)
        with jax.default_device(self.device), jax.default_matmul_precision(self.precision):
            state, *rest = self.inputs.arguments()
            return jax.device_get(self._steps[low, high](jax.tree.map(jnp.copy, state), *rest))

    def draw(self, prompts: shapes.Sources, temperature: float) -> sampler.Samples:
        """Completions of all rows, on the host."""
        with jax.default_device(self.device), jax.default_matmul_precision(self.precision):
            return jax.device_get(
                self.sample(
                    self.inputs.frozen.base,
                    lora2r.Adapter(self.inputs.frozen.init, self.inputs.state.deltas),
                    prompts.tokens,
                    prompts.valid,
                    source_policy=prompts.policy,
                    source_of_row=prompts.of_row,
                    active=np.ones(self.shape.rows, bool),
                    keys=jax.device_put(prompts.keys, self.device),
                    temperature=float(temperature),
                )
            )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(
    model: qwen3.Qwen3Config,
    length: int,
    frozen: Frozen,
    deltas: lora2r.Factors,
    tokens: jax.Array,
    valid: jax.Array,
    policy: jax.Array,
) -> jax.Array:
    fused = qwen3.AdapterLayer(lora2r.fuse(lora2r.Adapter(frozen.init, deltas), model.dtype), None)
    attention = qwen3.causal_attention(valid, model)
    hidden = qwen3.Qwen3(model).apply({"params": frozen.base}, tokens, attention, fused, lora2r.Route(policy))
    return head.unembed(frozen.base, hidden[:, -length - 1 : -1])


def error(found: Any, reference: Any) -> float:
    """|a - b| / |b| of all arrays of two trees together, in float64."""
    flat = [
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (found, reference)
    ]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))


def thresholds(scores: np.ndarray) -> tuple[float, float]:
    """Two thresholds in the widest gaps between consecutive scores, so that all three labels are given."""
    ordered = np.sort(np.asarray(scores, np.float64))
    first, second = sorted(np.argsort(-np.diff(ordered), kind="stable")[:2])
    middles = (ordered[1:] + ordered[:-1]) / 2
    return float(middles[first]), float(middles[second])


def compared_steps(side: Side, reference: tuple[Any, Any], started: Any, found: tuple[Any, Any]) -> list[Check]:
    """A step's loss, labels, scores, gradient and change of the differences."""
    (expected, expected_metrics), (state, metrics) = reference, found
    limits = LIMITS[side.name]

    def change(after: Any) -> Any:
        return jax.tree.map(np.subtract, after.deltas, started)

    def gradient(after: Any) -> Any:
        return optax.tree.get(after.optimizer, "mu")

    values = {
        "loss": error(metrics.loss, expected_metrics.loss),
        "scores": error(metrics.decision.record["score"], expected_metrics.decision.record["score"]),
        "gradient": error(gradient(state), gradient(expected)),
        "change": error(change(state), change(expected)),
    }
    wrong = int(np.sum(metrics.decision.labels != expected_metrics.decision.labels))
    checks = [Check(f"step: {name}", side.name, value, limits[name]) for name, value in values.items()]
    return [*checks, Check("step: labels that differ", side.name, wrong, 0)]


def sampler_checks(side: Side, reference: Side, prompts: shapes.Sources, temperature: float) -> list[Check]:
    """The sampler's tokens and log-probabilities against a forward pass on the reference's side over them."""
    limits, kind = LIMITS[side.name], f"sampler at {temperature:g}"
    samples = side.draw(prompts, temperature)
    before, valid = prompts.rows()
    tokens, mask = np.asarray(samples.tokens), np.asarray(samples.mask)
    logits = reference.logits(
        np.concatenate([before, tokens], 1), np.concatenate([valid, mask], 1), prompts.policy[prompts.of_row]
    ).astype(np.float64)
    chosen = np.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    expected = chosen - _logsumexp(logits)
    difference = np.abs(np.asarray(samples.policy_logprobs) - expected)[mask]
    checks = [
        Check(f"{kind}: tokens missing", side.name, int(np.sum(~mask)), 0),
        Check(
            f"{kind}: log-probabilities, largest error",
            side.name,
            float(difference.max()),
            limits["log-probabilities"],
        ),
    ]
    if temperature == 0:
        slack = float((logits.max(-1) - chosen)[mask].max())
        checks.append(Check(f"{kind}: short of the most probable", side.name, slack, limits["greedy slack"]))
    if side.name == "float32":
        differing = int(np.sum(tokens != np.asarray(reference.draw(prompts, temperature).tokens)))
        checks.append(Check(f"{kind}: tokens that differ", side.name, differing, 0))
    again = side.draw(prompts, temperature)
    return [*checks, Check(f"{kind}: twice", side.name, bits_that_differ(samples, again), 0)]


def _logsumexp(logits: np.ndarray) -> np.ndarray:
    top = logits.max(-1, keepdims=True)
    return (np.log(np.exp(logits - top).sum(-1, keepdims=True)) + top)[..., 0]


def bits_that_differ(first: Any, second: Any) -> int:
    """How many bytes of two trees of arrays are not the same."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return sum(
        int(
            np.sum(
                np.frombuffer(np.asarray(a).tobytes(), np.uint8) != np.frombuffer(np.asarray(b).tobytes(), np.uint8)
            )
        )
        for a, b in pairs
    )


def checks_of(side: Side, reference: Side, prompts: shapes.Sources) -> list[Check]:
    """All checks of one device and dtype."""
    began = time.monotonic()

    def done(what: str) -> None:
        print(f"{side.name}: {what} compared, {time.monotonic() - began:.0f} s", flush=True)

    batch = jax.device_get(side.inputs.batch)
    sequences = (np.asarray(batch.tokens), np.asarray(batch.valid), np.asarray(batch.quarantine_sampled))
    mask = np.asarray(batch.completion_mask)
    compared = error(side.logits(*sequences)[mask], reference.logits(*sequences)[mask])
    checks = [Check("logits", side.name, compared, LIMITS[side.name]["logits"])]
    done("logits")
    low, high = thresholds(reference.step(-1.0, 1.0)[1].decision.record["score"])
    started = jax.device_get(side.inputs.state.deltas)
    found = side.step(low, high)
    checks += compared_steps(side, reference.step(low, high), started, found)
    checks.append(Check("step: twice", side.name, bits_that_differ(found, side.step(low, high)), 0))
    done("step")
    for temperature in (0.0, 1.0):
        checks += sampler_checks(side, reference, prompts, temperature)
        done(f"sampler at {temperature:g}")
    return checks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=shapes.SHAPES, default="tiny")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="separated by commas")
    options = parser.parse_args()
    for name in options.dtypes.split(","):
        if name not in LIMITS:
            parser.error(f"--dtypes must be of {', '.join(LIMITS)}, got {name!r}")
    shape, host, device = cut_down(shapes.SHAPES[options.shape]), jax.devices("cpu")[0], jax.devices()[0]
    inputs = shapes.step_inputs(shape, shapes.configuration(shape, "routeV", kl=True), device=host)
    reference, prompts = Side(shape, host, jnp.float32, inputs), shapes.sources(shape)
    checks: list[Check] = []
    for name in options.dtypes.split(","):
        checks += checks_of(Side(shape, device, jnp.dtype(name), inputs), reference, prompts)
    rows = [[c.name, c.dtype, c.value, c.limit, "holds" if c.holds else "FAILS"] for c in checks]
    title = f"{device.device_kind} against float32 on the CPU, widths of {options.shape}"
    tables.show(title, ("check", "dtype", "found", "at most", ""), rows)
    failed = [f"{check.name} ({check.dtype})" for check in checks if not check.holds]
    listed = [dataclasses.asdict(check) | {"holds": check.holds} for check in checks]
    tables.write(options.json, {"shape": options.shape, "sizes": shapes.sizes(shape), "checks": listed})
    if failed:
        sys.exit(f"error: {len(failed)} of {len(checks)} checks fail: {', '.join(failed)}")
    print(f"all {len(checks)} checks hold")


if __name__ == "__main__":
    main()
