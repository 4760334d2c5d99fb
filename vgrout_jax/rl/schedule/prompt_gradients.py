"""The probe's backward pass through prompts that rollouts share: one pass a rollout, some at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax.model.lora2r import MODULES
from vgrout_jax.routing.probe import deployed_half

_MOST_AT_A_TIME = 4  # gradients that go back through a prompt side by side: more of them outgrow a CPU's cache


def backward_through_prompts(
    grad_caches: Any, pull: Callable[[Any], tuple[dict[str, Float[Array, "L Q TwoR"]]]], rows: int
) -> dict[str, Float[Array, "L N TwoR"]]:
    """What the tokens of shared prompts add to `probe_gradients` of N = Q rows rollouts, those of a prompt together.

    A prompt is read once, forward; backward every rollout needs a pass of its own through it, since what comes back
    to the prompt's keys and values differs. A rollout's gradient is the sum over its completion and its prompt.
    As many of a prompt's rollouts go back at a time as divide them and are at most four.

    Args:
        grad_caches: gradients with respect to what each rollout reads of its prompt, leaves [L, N, ...].
        pull: from gradients of the prompts' caches, leaves [L, 1, Q, ...], to those with respect to their c.
        rows: rollouts of a prompt.
    """

    def by_place(leaf: Array) -> Array:
        """[L, Q rows, ...] -> [rows, L, 1, Q, ...]."""
        return jnp.moveaxis(leaf.reshape(leaf.shape[0], 1, -1, rows, *leaf.shape[2:]), 3, 0)

    at_a_time = max(count for count in range(1, _MOST_AT_A_TIME + 1) if rows % count == 0)
    [grad_prompts] = jax.lax.map(pull, jax.tree.map(by_place, grad_caches), batch_size=at_a_time)
    gathered = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), grad_prompts)  # [L, Q, rows, 2r]
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], -1, leaf.shape[-1]), gathered)


@struct.dataclass
class PromptGradients:
    """Gradients of rollouts with respect to their prompts' caches, until some of every prompt are pulled back.

    Attributes:
        leaves: with respect to what each rollout reads of its prompt, [L, Q size + 1, ...], those of a prompt
            together; the last place is nobody's.
        size: rollouts of a prompt.
    """

    leaves: tuple[jax.Array, ...]
    size: int = struct.field(pytree_node=False)

    @classmethod
    def zeros(cls, caches: Sequence[Float[Array, "L 1 Q B heads E"]], size: int) -> "PromptGradients":
        """Zeros for every rollout of the prompts whose keys and values these are."""

        def zeros(leaf: Array) -> Array:
            layers, _, prompts, *rest = leaf.shape
            return jnp.zeros((layers, prompts * size + 1, *rest), leaf.dtype)

        return cls(tuple(map(zeros, caches)), size)

    def with_rows(
        self, numbers: Int[Array, " n"], gradients: Sequence[Float[Array, "L n B heads E"]]
    ) -> "PromptGradients":
        """With the gradients of some rollouts in their places."""

        def put(leaf: Array, gradient: Array) -> Array:
            for row in range(numbers.size):  # one slice each, written in place; a scatter would copy all of the leaf
                leaf = jax.lax.dynamic_update_slice_in_dim(leaf, gradient[:, row : row + 1], numbers[row], 1)
            return leaf

        return self.replace(leaves=tuple(map(put, self.leaves, gradients)))

    def pull_back(self, pull: Callable, needed: Bool[Array, "Q size"], together: int) -> Float[Array, "Q size M r"]:
        """`probe.deployed_half` of `backward_through_prompts`, `together` rollouts of every prompt at a time.

        Where none of these is needed, nothing is run; with those that are needed first, that is as often as can be.
        """
        prompts = needed.shape[0]

        def find(first: Array) -> Float[Array, "Q together M r"]:
            def taken(leaf: Array) -> Array:
                starts = [prompt * self.size + first for prompt in range(prompts)]
                return jnp.concatenate([jax.lax.dynamic_slice_in_dim(leaf, s, together, 1) for s in starts], axis=1)

            found = deployed_half(backward_through_prompts(tuple(map(taken, self.leaves)), pull, together), MODULES)
            return found.reshape(prompts, together, *found.shape[1:])

        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(find, jnp.int32(0)))

        def visit(first: Array) -> Array:
            someone = jnp.any(jax.lax.dynamic_slice_in_dim(needed, first, together, 1))
            return jax.lax.cond(someone, find, lambda _: nothing, first)

        rounds = jax.lax.map(visit, jnp.arange(0, self.size, together))  # [rounds, Q, together, M, r]
        return jnp.moveaxis(rounds, 0, 1).reshape(prompts, self.size, *rounds.shape[3:])
