"""Sampling from Qwen3 with a key-value cache: one prefill a prompt and policy, then a token a pass for all rows.

Prompts are left-padded to a bucket B, completions right-padded to T. Prefill runs on Q sources, each a prompt
under one policy; N rollouts then continue the sources' caches. A completion grows through the few lengths of
`padding.completion_lengths`, each a program of its own shape: attention reads the slots of the present length and not
all T, and between two of them the rows that have ended are dropped, where that halves the batch. Within a part the
host is asked nothing.

Reference: docs/method.md sections 7, 8, 13 and 15.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

from vgrout_jax.common import xla
from vgrout_jax.model import lora2r, padding, qwen3, sharding
from vgrout_jax.sampling import decode

_LEAST_ROWS = 8  # of a batch after rows were dropped


@struct.dataclass
class Samples:
    """Completions and their log-probabilities, on the host; 0 and `pad_id` where the mask is False.

    Attributes:
        tokens: [N, T] int32.
        mask: [N, T] bool, True up to and including the first EOS.
        logprobs: [N, T] float32, of the sampler's own distribution: at its temperature, after top-k and
            top-p. Greedy decoding has one outcome, of log-probability 0.
        policy_logprobs: [N, T] float32, of the untruncated policy at temperature 1.
        ended: [N] bool, rows that grow no further.
        steps: decode passes that ran: the length of the longest completion.
    """

    tokens: np.ndarray
    mask: np.ndarray
    logprobs: np.ndarray
    policy_logprobs: np.ndarray
    ended: np.ndarray
    steps: int


class Sampler:
    """Compiled programs that sample; a program compiles once for every shape of its arguments.

    Called, it samples to the end; `stream` lets the caller see completions grow. Both take

        (base, adapter, prompts, prompt_valid, *, source_policy, source_of_row, active, keys, temperature)

    where
        base: parameters;
        adapter: `lora2r.Adapter`, or None: the base model alone;
        prompts, prompt_valid: [Q, B] int32 and bool, left-padded, as from `padding.pad_prompts`;
        source_policy: [Q] bool, m of docs/method.md section 3: True as trained, False ablated;
        source_of_row: [N] int32, the source that each rollout continues;
        active: [N] bool, False: the row is not sampled and its mask is empty;
        keys: [N] PRNG keys; token t of a row is drawn with fold_in(its key, t);
        temperature: 0 is greedy.
    """

    def __init__(self, settings: decode.Settings, max_new_tokens: int):
        """Use `build_sampler`."""
        self.settings, self.max_new_tokens = settings, max_new_tokens

        def compiled(function: Callable, **options: Any) -> Any:
            device = jax.devices()[0] if settings.mesh is None else settings.mesh.devices.flat[0]
            how = xla.compiler_options(device)
            return jax.jit(functools.partial(function, settings), compiler_options=how, **options)

        self.prefill = compiled(decode.prefill)
        self.take_layer = compiled(decode.take_layer)
        self.start = compiled(decode.start, static_argnames="slots")
        self.advance = compiled(decode.advance, donate_argnums=3)
        self.empty = compiled(decode.empty_part, static_argnums=(0, 1))
        self._regrow = compiled(decode.regrow, static_argnums=2)
        self._choose = compiled(decode.choose)

    def __call__(self, *arguments: Any, **named: Any) -> Samples:
        """Samples one completion a row; `Samples` of NumPy arrays."""
        *_, last = self.stream(*arguments, **named)
        return last

    def begin(
        self,
        base: dict,
        adapter: lora2r.Adapter | None,
        prompts: Int[Array | np.ndarray, "Q B"],
        prompt_valid: Bool[Array | np.ndarray, "Q B"],
        *,
        source_policy: Bool[Array | np.ndarray, " Q"],
        seats: int,
        slots: int,
        **rows: Any,
    ) -> tuple[decode.DecodeWeights, decode.Prompts, decode.Rows, decode.State]:
        """Reads the prompts and makes everything that `advance` needs; `rows` as `decode.start` takes them."""
        read = self.prefill(base, adapter, prompts, prompt_valid, source_policy)
        given = (base["layers"], adapter, read)
        taken = [self.take_layer(*given, np.int32(index)) for index in range(self.settings.config.num_layers)]
        lengths, fixed, state = self.start(prompts, prompt_valid, source_policy, slots=slots, **rows)
        head = {name: leaf for name, leaf in base.items() if name != "layers"}
        layers, caches = (tuple(part) for part in zip(*taken, strict=True))
        return decode.DecodeWeights(head, layers), decode.Prompts(lengths, caches, seats), fixed, state

    def stream(
        self,
        base: dict,
        adapter: lora2r.Adapter | None,
        prompts: Int[np.ndarray, "Q B"],
        prompt_valid: Bool[np.ndarray, "Q B"],
        *,
        source_of_row: Int[np.ndarray, " N"],
        active: Bool[np.ndarray, " N"],
        temperature: float,
        stride: int | None = None,
        **given: Any,
    ) -> Iterator[Samples]:
        """Yields what there is of all completions after every `stride` tokens, at least after every part.

        The arrays are the same from one time to the next, and grow in place. A caller that has enough asks no more.
        """
        bounds, active = [0, *padding.completion_lengths(self.max_new_tokens)], np.asarray(active)
        samples = _nothing(active, self.max_new_tokens, self.settings.pad_id)
        seat, seats = take_seats(np.asarray(source_of_row), active, len(prompts))
        given |= {"source_of_row": source_of_row, "active": active, "seat": seat, "seats": seats}
        policy, shared, fixed, state = self.begin(base, adapter, prompts, prompt_valid, slots=bounds[1], **given)
        temperature = np.float32(temperature)
        place = np.arange(samples.ended.size)  # the row that each of the batch's is
        for first, end in zip(bounds, bounds[1:], strict=False):
            if first:
                caches, state = list(state.caches), state.replace(caches=())
                place, fixed, state = self._continue(place, fixed, state, caches, more=end - first)
            part = self.empty(place.size, end - first)
            for until in _stops(first, end, stride):
                state, part = self.advance(policy, shared, fixed, (state, part), _span(first, until, temperature))
                samples = _noted(samples, place, slice(first, end), jax.device_get((state.step, state.ended, part)))
                yield samples
                if samples.ended.all():
                    return

    def _continue(
        self, place: np.ndarray, rows: decode.Rows, state: decode.State, caches: list, *, more: int
    ) -> tuple[np.ndarray, decode.Rows, decode.State]:
        """The batch with `more` slots, and of half the rows, or a quarter, ..., where no more are live.

        `caches` is emptied on the way: old and new ones do not exist side by side but for one layer.
        """
        ended = jax.device_get(state.ended)
        live = np.flatnonzero(~ended)
        size = batch_size(live.size, place.size, divisor=_divisor(self.settings.mesh))
        # Filled up with rows that have ended, each at most once.
        chosen = np.sort(np.concatenate([live, np.flatnonzero(ended)[: size - live.size]]))
        grown = []
        while caches:
            grown.append(tuple(self._regrow(leaf, chosen, more) for leaf in caches.pop(0)))
        rows, ended, token = self._choose((rows, state.ended, state.token), chosen)
        return place[chosen], rows, decode.State(state.step, ended, token, tuple(grown))


def build_sampler(
    config: qwen3.Qwen3Config,
    *,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    top_k: int = 0,
    top_p: float = 1.0,
    mesh: jax.sharding.Mesh | None = None,
) -> Sampler:
    """A sampler of one model.

    Args:
        config: shape and dtype of the model.
        max_new_tokens: T.
        eos_ids: ids that end a completion; may hold `pad_id`.
        pad_id: stands after the end of a completion.
        top_k: 0, or the vocabulary's size and more: off. See `drawing.truncate`.
        top_p: 1: off.
        mesh: splits rows over (data, fsdp) and key-value heads over tensor; None: one device.

    Raises:
        ValueError: on a setting out of range.
    """
    if max_new_tokens < 1:
        raise ValueError(f"rollout.max_new_tokens must be >= 1, got {max_new_tokens}")
    if top_k < 0:
        raise ValueError(f"rollout.top_k must be >= 0 (0: off), got {top_k}")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"rollout.top_p must be in (0, 1] (1: off), got {top_p}")
    return Sampler(decode.Settings(config, tuple(eos_ids), pad_id, top_k, top_p, mesh), max_new_tokens)


def batch_size(live: int, rows: int, *, divisor: int) -> int:
    """The smallest of rows, rows / 2, rows / 4, ... that holds the live rows and splits over `divisor` devices."""
    while rows % (2 * divisor) == 0 and rows // 2 >= max(live, _LEAST_ROWS):
        rows //= 2
    return rows


def take_seats(
    source_of_row: Int[np.ndarray, " N"], active: Bool[np.ndarray, " N"], sources: int
) -> tuple[Int[np.ndarray, " N"], int]:
    """A seat for every active row among the R of its source, and R.

    R is N / Q or a power of two times that, so that few programs serve whatever the rows are.

    Returns:
        [N] int32, source times R plus a place below R, and Q R for a row that is not sampled; R.
    """
    place = np.zeros(source_of_row.size, np.int32)
    for source in range(sources):
        rows = np.flatnonzero(active & (source_of_row == source))
        place[rows] = np.arange(rows.size)
    seats = max(1, source_of_row.size // sources)
    while seats <= place.max():
        seats *= 2
    return np.where(active, source_of_row * seats + place, sources * seats).astype(np.int32), seats


def _divisor(mesh: jax.sharding.Mesh | None) -> int:
    """Devices that the rows are split over."""
    return 1 if mesh is None else sharding.batch_devices(mesh)


def _stops(first: int, end: int, stride: int | None) -> Iterator[int]:
    yield from range(first + stride, end, stride) if stride else ()
    yield end


def _span(first: int, until: int, temperature: np.float32) -> decode.Span:
    return decode.Span(jnp.int32(first), jnp.int32(until), temperature)


def _nothing(active: np.ndarray, length: int, pad_id: int) -> Samples:
    shape = (active.size, length)
    tokens, mask = np.full(shape, pad_id, np.int32), np.zeros(shape, bool)
    return Samples(tokens, mask, np.zeros(shape, np.float32), np.zeros(shape, np.float32), ~active, 0)


def _noted(samples: Samples, place: np.ndarray, columns: slice, drawn: tuple) -> Samples:
    """The samples with what (step, ended, part) hold in their places and columns, in place."""
    step, ended, part = drawn
    for name in ("tokens", "mask", "logprobs", "policy_logprobs"):
        getattr(samples, name)[place, columns] = getattr(part, name)
    samples.ended[place] = ended
    return samples.replace(steps=int(step))
