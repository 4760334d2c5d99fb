"""gt_only: no flaw; the hidden tests alone decide, as the plain sentence says."""

from .base import Evidence, Mode


def fires(evidence: Evidence) -> bool:
    """Never."""
    return False


MODE = Mode(key="gt_only", fires=fires)
