"""Warms the cache: `python -m vgrout_jax.download [MODEL]` fetches a model, by default that of the configuration.

Configuration, tokenizer and the files of the weights are checked as a run checks them; no weights are loaded.
"""

import os
import sys
from collections.abc import Sequence

from vgrout_jax.common.command_line import Parser, end_with_one_line
from vgrout_jax.config import ModelConfig


def main(arguments: Sequence[str]) -> None:
    """Downloads a model, checks it and prints where it is.

    Raises:
        UsageError, ValueError: a wrong flag, or a model that cannot be had or that no run could use.
    """
    parser = Parser(prog="python -m vgrout_jax.download", description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=ModelConfig.path, help="hub name or folder")
    name = parser.parse_args(arguments).model
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from vgrout_jax.common.tokenizer import load_tokenizer
    from vgrout_jax.weights import hub, safetensors

    folder = hub.model_folder(name)
    hub.load_config(folder)
    safetensors.list_tensors(folder)
    load_tokenizer(str(folder))
    print(folder)


if __name__ == "__main__":
    end_with_one_line(lambda: main(sys.argv[1:]))
