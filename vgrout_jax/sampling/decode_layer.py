"""One layer of the decode loop: its weights as they are read there, and a new token's way through it.

Where weights are not split over devices, the maps of one input and their adapters stand side by side
(`fused_linear`): 8 products a layer instead of 21. Else the layer is `qwen3.Block` with its own attention.

Reference: docs/method.md sections 2 and 3.
"""

import functools
from collections.abc import Callable

import jax
from flax import struct
from jaxtyping import Array, Bool, Float

from vgrout_jax.model import lora2r, qwen3
from vgrout_jax.model.norms import rms_norm
from vgrout_jax.sampling import cache_attention, fused_linear
from vgrout_jax.sampling.heads import Cache, take_in


@struct.dataclass
class Layer:
    """One layer's weights.

    Attributes:
        parameters: what `qwen3.Block` reads; the norms alone where `wide` holds the maps.
        adapter: the layer's slice of the fused adapter, or None.
        wide: for each of `qwen3.GROUPS`, its maps and their adapters; None where weights are split over devices.
    """

    parameters: dict[str, jax.Array]
    adapter: qwen3.AdapterLayer | None
    wide: tuple[fused_linear.Wide, ...] | None


def arrange(parameters: dict[str, Array], factors: lora2r.Factors | None, *, split: bool, by_kernel: bool) -> Layer:
    """A layer of its parameters and its fused factors.

    Args:
        parameters: of `qwen3.Block`.
        factors: of `lora2r.fuse`, for one layer; None: no adapter.
        split: weights are split over devices, and parts of maps side by side would have to move.
        by_kernel: the device has the kernels of this loop.
    """
    if split:
        return Layer(parameters, None if factors is None else qwen3.AdapterLayer(factors, None), None)

    def widened(names: tuple[str, ...]) -> fused_linear.Wide:
        downs, ups = ([], []) if factors is None else ([f[n] for n in names] for f in (factors.a, factors.b))
        return fused_linear.widen([parameters[name] for name in names], downs, ups, by_kernel=by_kernel)

    norms = {name: leaf for name, leaf in parameters.items() if name not in lora2r.MODULES}
    return Layer(norms, None, tuple(map(widened, qwen3.GROUPS)))


def read(
    config: qwen3.Qwen3Config,
    place: Callable[..., Array],
    layer: Layer,
    prompt: tuple[Array, Array],
    cache: Cache,
    x: Float[Array, "N 1 D"],
    attention: qwen3.Attention,
    reach: cache_attention.Reach,
    quarantine_on: Bool[Array, " N"],
) -> tuple[Float[Array, "N 1 D"], Cache]:
    """A new token of every row through the layer, and the layer's caches with it in.

    Args:
        config: shape and dtype of the model.
        place: puts an array on the mesh by the names of its first axes.
        layer: of `arrange`.
        prompt: keys and values of the sources, [Q, K, B, E].
        cache: those of the rows.
        x: the layer's input.
        attention: rotary cosines and sines of the token.
        reach: what it attends to.
        quarantine_on: m of every row.
    """
    attend = functools.partial(cache_attention.attend, place, reach, prompt)
    if layer.wide is None:

        def attend_with(queries: Array, *new: Array) -> tuple[Array, Cache]:
            written = cache_attention.write(place, reach, cache, *new)
            return attend(written, queries), written

        block, route = qwen3.Block(config), lora2r.Route(quarantine_on)
        return block.apply({"params": layer.parameters}, x, attention, layer.adapter, route, attend=attend_with)
    epsilon, weights = config.norm_epsilon, layer.parameters
    inputs, outputs, gate_up, down = layer.wide

    def mix(heads: Array) -> tuple[Array, Cache]:
        norms = (weights["q_norm"], weights["k_norm"])
        queries, written = take_in(place, reach, attention, norms, cache, heads, epsilon=epsilon)
        return attend(written, queries).reshape(*x.shape[:2], -1), written

    maps = qwen3.Maps(
        heads=lambda hidden: fused_linear.apply(hidden, inputs, quarantine_on),
        out=lambda mixed: fused_linear.apply(mixed, outputs, quarantine_on),
        gated=lambda hidden: fused_linear.apply(hidden, gate_up, quarantine_on, gated=True),
        down=lambda inner: fused_linear.apply(inner, down, quarantine_on),
    )
    return qwen3.apply_layer(x, lambda name, hidden: rms_norm(hidden, weights[name], epsilon), maps, mix)
