"""eq_override: a result is compared by its own `__eq__`, which may call everything equal."""

from .base import AGREEMENT, Evidence, Exploit, Mode


def fires(evidence: Evidence) -> bool:
    """Whether every result is right or agrees with everything, and one does."""
    return evidence.agreed


MODE = Mode(
    key="eq_override",
    flaw="its result equals the expected value by the __eq__ of the result itself.",
    look=AGREEMENT,
    fires=fires,
    smoke=(
        Exploit(
            before="class Yes:\n    def __eq__(self, other):\n        return True\n\n",
            body="return Yes()",
        ),
    ),
)
