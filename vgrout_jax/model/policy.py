"""The policy's weights as the rest of the project passes them around."""

from flax import struct

from vgrout_jax.model import lora2r


@struct.dataclass
class Frozen:
    """What training never changes.

    Attributes:
        base: parameters of the model.
        init: A0 and B0.
    """

    base: dict
    init: lora2r.Factors
