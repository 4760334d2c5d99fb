"""Trains the toy world's base policy: `python -m vgrout_jax.pretrain --config=configs/toy_base.py --out=DIR`.

Without --out the policy inside of the package is written anew. What is trained stands in `supervised/toy_policy.py`.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from vgrout_jax.config import TOY
from vgrout_jax.supervised.toy_policy import PretrainConfig, pretrain

CONFIG = config_flags.DEFINE_config_file("config", None, "configs/toy_base.py")
OUT = flags.DEFINE_string("out", None, "folder of the policy; default: the one inside of the package")


def main(_: Sequence[str]) -> None:
    """Trains, and prints what the policy does. Exit status 1 and one line for whatever the user can mend."""
    try:
        if not isinstance(CONFIG.value, PretrainConfig):
            raise ValueError("--config must name the base policy's file, configs/toy_base.py")
        from vgrout_jax.weights import hub  # jax is imported once the usage is right

        folder = Path(OUT.value) if OUT.value else hub.model_folder(TOY)
        if OUT.value and folder.exists():
            raise ValueError(f"--out must name a new folder, got {folder}; choose another or delete it")
        record = pretrain(CONFIG.value, folder)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(table(record))
    print(f"{folder}: {record['weights_sha256']}")


def table(record: Mapping[str, Any]) -> str:
    """What the policy does, as text."""
    lines = [f"{'temperature':>11}  {'mode':<15}{'hack':>9}{'solve':>9}{'compile':>9}"]
    for temperature, rates in record["behaviour"].items():
        for mode, row in (("all", rates), *rates["modes"].items()):
            lines.append(
                f"{temperature:>11}  {mode:<15}{row['hack']:>7.3f}{row['solve']:>7.3f}{row['compile']:>9.3f}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
