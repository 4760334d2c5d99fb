"""The policy's weights as the rest of the project passes them around."""

import jax
from flax import struct

from vgrout_jax.model import lora2r


@struct.dataclass
class Policy:
    """Everything that a forward pass runs besides tokens: one argument for a policy.

    Attributes:
        base: parameters of the model.
        adapter: the adapter; None is the base model alone, the KL reference.
        route: the masks (m, d) of every row; needed with an adapter.
        scale: c of the probe, module -> [L, N, 2r], or None.
    """

    base: dict
    adapter: lora2r.Adapter | None = None
    route: lora2r.Route | None = None
    scale: dict[str, jax.Array] | None = None


@struct.dataclass
class Frozen:
    """What training never changes.

    Attributes:
        base: parameters of the model.
        init: A0 and B0.
    """

    base: dict
    init: lora2r.Factors

    def policy(
        self, deltas: lora2r.Factors | None, route: lora2r.Route, scale: dict[str, jax.Array] | None = None
    ) -> Policy:
        """The policy with these differences under these masks; `deltas` None: the base with the adapter off."""
        if deltas is None:
            return Policy(self.base)
        return Policy(self.base, lora2r.Adapter(self.init, deltas), route, scale)
