"""The head: logits of hidden states, and log-probabilities of tokens without ever all of their logits."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def unembed(parameters: dict, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Logits in float32 from hidden states after the final norm, with the tied or the separate head."""
    return _logits(*_head(parameters), hidden)


def _head(parameters: dict) -> tuple[str, Array]:
    """The order of the head's axes, and the head: a separate one, or the embedding as it lies in memory."""
    return ("DV", parameters["lm_head"]) if "lm_head" in parameters else ("VD", parameters["embed"])


def _logits(axes: str, head: Array, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    return jnp.einsum(f"...D,{axes}->...V", hidden, head, preferred_element_type=jnp.float32)


@functools.partial(jax.jit, static_argnames="chunk")
def token_logprobs(
    base: dict, hidden: Float[Array, "N T D"], targets: Int[Array, "N T"], *, chunk: int
) -> Float[Array, "N T"]:
    """log softmax(unembed(hidden))[targets] in float32, `chunk` tokens at a time (at least one of every row).

    [N, T, V] never exists, on the way back neither: the gradient of a token's own value with respect to its hidden
    state is found on the way forward, while its logits are there, and costs two products of the head instead of
    three. A gradient of the head, where one is asked for, computes the logits once more.
    """
    rows, length, _ = hidden.shape
    positions = min(max(1, chunk // rows), length)

    def split(leaf: Array) -> Array:
        """[N, T, ...] -> [chunks, N, positions, ...]: every chunk holds all rows, so all devices share its work."""
        padded = jnp.pad(leaf, ((0, 0), (0, -length % positions)) + ((0, 0),) * (leaf.ndim - 2))
        return padded.reshape(rows, -1, positions, *leaf.shape[2:]).swapaxes(0, 1)

    values = _of_chunks(*_head(base), split(hidden), split(targets))
    return values.swapaxes(0, 1).reshape(rows, -1)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _of_chunks(
    axes: str, head: Array, hidden: Float[Array, "C N P D"], targets: Int[Array, "C N P"]
) -> Float[Array, "C N P"]:
    """Log-probabilities of the targets, one chunk after the other."""
    return jax.lax.map(lambda one: _of_chunk(axes, head, *one)[0], (hidden, targets))


def _of_chunk(
    axes: str, head: Array, hidden: Float[Array, "N P D"], targets: Int[Array, "N P"]
) -> tuple[Float[Array, "N P"], Float[Array, "N P V"]]:
    """Log-probabilities of the targets, and their gradients with respect to the logits: 1 at the target, less p."""
    logits = _logits(axes, head, hidden)
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    at_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    return (chosen - total)[..., 0], at_target - jnp.exp(logits - total)


def _of_chunks_forward(axes: str, head: Array, hidden: Array, targets: Array) -> tuple[Array, tuple[Array, ...]]:
    def of_chunk(one: tuple[Array, Array]) -> tuple[Array, Float[Array, "N P D"]]:
        logprobs, of_logits = _of_chunk(axes, head, *one)
        narrow = of_logits.astype(hidden.dtype)
        return logprobs, jnp.einsum(f"...V,{axes}->...D", narrow, head, preferred_element_type=jnp.float32)

    logprobs, slopes = jax.lax.map(of_chunk, (hidden, targets))
    return logprobs, (head, hidden, targets, slopes)


def _of_chunks_backward(axes: str, kept: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, None]:
    head, hidden, targets, slopes = kept

    def add(total: Array, one: tuple[Array, Array, Array]) -> tuple[Array, None]:
        hidden, targets, gradient = one
        of_logits = (gradient[..., None] * _of_chunk(axes, head, hidden, targets)[1]).astype(hidden.dtype)
        return total + jnp.einsum(f"...V,...D->{axes}", of_logits, hidden, preferred_element_type=jnp.float32), None

    of_head, _ = jax.lax.scan(add, jnp.zeros(head.shape, jnp.float32), (hidden, targets, gradient))
    return of_head.astype(head.dtype), (gradient[..., None] * slopes).astype(hidden.dtype), None


_of_chunks.defvjp(_of_chunks_forward, _of_chunks_backward)
