"""The adapter in the forms in which models are served: a plain LoRA, a compressed one, a change of the weights.

With A = A0 + dA and B = B0 + dB, what the adapter adds to a linear map is

    B A x - B0 A0 x  =  (B - B0) A x + B0 (A - A0) x  =  dB (A x) + B0 (dA x)  =  [dB, B0] [A; dA] x,

for one block of rank r a LoRA of rank 2r with the factors [A; dA] and [dB, B0], for both blocks together one of
rank 4r. The deployed policy needs the deployed block alone: with dA[r:] = dB[:, r:] = 0 the quarantine adds zero,
so it can be left out, initial values and all.

Reference: docs/method.md section 2. LoRA: Hu et al. 2021, arXiv 2106.09685.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vgrout_jax.model import lora2r


def deployed_block(adapter: lora2r.Adapter) -> lora2r.Adapter:
    """The deployed block as an adapter of its own: rows [:r] of the As, columns [:r] of the Bs."""

    def of(factors: lora2r.Factors) -> lora2r.Factors:
        return lora2r.Factors(
            a=jax.tree.map(lambda leaf: leaf[..., : leaf.shape[-2] // 2, :], factors.a),
            b=jax.tree.map(lambda leaf: leaf[..., : leaf.shape[-1] // 2], factors.b),
        )

    return lora2r.Adapter(init=of(adapter.init), deltas=of(adapter.deltas))


def lora_factors(
    adapter: lora2r.Adapter, *, quarantine: bool, dtype: jax.typing.DTypeLike = jnp.float32
) -> lora2r.Factors:
    """The factors of the plain LoRA that computes the same, with scaling 1.

    Args:
        adapter: A0, B0, dA, dB, both blocks.
        quarantine: True: the policy as trained, both blocks; False: the deployed policy, whose factors hold
            nothing of the quarantine.
        dtype: of the result; the sums A0 + dA are formed in float32.

    Returns:
        a[module] [L, K, d_in] and b[module] [L, d_out, K], K = 4r with the quarantine and 2r without.
    """
    return lora2r.fuse(adapter if quarantine else deployed_block(adapter), dtype)


def weight_change(down: Float[np.ndarray, "K D"], up: Float[np.ndarray, "F K"]) -> Float[np.ndarray, "F D"]:
    """What a LoRA of scaling 1 adds to the weight of one map, [d_out, d_in], in float32."""
    return up.astype(np.float32) @ down.astype(np.float32)


def truncate(
    down: Float[np.ndarray, "K D"], up: Float[np.ndarray, "F K"], rank: int
) -> tuple[Float[np.ndarray, "R D"], Float[np.ndarray, "F R"], Float[np.ndarray, " S"]]:
    """The closest LoRA of a lower rank: the first `rank` singular triples of up @ down.

    Each factor takes the root of the singular values. The product is never formed: its singular values are those
    of the small matrix between the orthogonal parts of both factors. Where it has fewer than `rank` of them the
    factors end in zeros.

    Returns:
        down [rank, d_in] and up [d_out, rank] in float32, and all singular values of the product, descending, in
        float64. The squared Frobenius error is the sum of the squares of those beyond `rank`.

    Reference: Eckart and Young 1936, Psychometrika 1.
    """
    outer, upper = np.linalg.qr(up.astype(np.float64))
    inner, lower = np.linalg.qr(down.astype(np.float64).T)
    left, values, right = np.linalg.svd(upper @ lower.T, full_matrices=False)
    roots = np.sqrt(values[:rank])
    new_up = outer @ (left[:, :rank] * roots)
    new_down = (roots[:, None] * right[:rank]) @ inner.T
    missing = rank - len(roots)
    new_down = np.pad(new_down, ((0, missing), (0, 0)))
    return new_down.astype(np.float32), np.pad(new_up, ((0, 0), (0, missing))).astype(np.float32), values
