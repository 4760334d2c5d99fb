"""Where the data lies that ships with the package."""

import importlib.resources
from pathlib import Path


def packaged(name: str) -> Path:
    """A file or folder of `vgrout_jax/data`, whatever module asks for it and wherever that stands."""
    return Path(str(importlib.resources.files("vgrout_jax"))) / "data" / name
