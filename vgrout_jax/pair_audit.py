"""Audit pairs before anything is trained on them: confounds of the two sides, and leave-one-out accuracy.

    python -m vgrout_jax.pair_audit --config=configs/routeV.py:toy --out=DIR
    python -m vgrout_jax.pair_audit --config=configs/routeV.py --config.direction.pairs=my_pairs.md --out=DIR

The pairs, the model and the gate are those of the configuration. --adapter=RUN/adapter measures on a trained
adapter, with its quarantine ablated, instead of the base policy. DIR gets index.html and pairs.md with a figure.
docs/howto/report.md says how to read them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging

from vgrout_jax.common.command_line import UsageError, one_line
from vgrout_jax.config import Config
from vgrout_jax.config.flags import CONFIG, is_given, parse_flags, resolve

OUT = flags.DEFINE_string("out", None, "folder for index.html, pairs.md and the figure")
ADAPTER = flags.DEFINE_string("adapter", None, "adapter/ of a run to measure on; default: the base policy")


def main(_: Sequence[str]) -> None:
    """Checks the configuration, measures, prints and writes."""
    try:
        config, _ = resolve(CONFIG.value, "")
        if config.label.source != "probe" or config.placebo.kind in ("direction", "direction_matched"):
            raise UsageError("--config must be an arm with a direction from pairs, such as configs/routeV.py")
        if OUT.value is None:
            raise UsageError("--out must name a folder, got None")
        if not is_given("verbosity"):
            absl_logging.set_verbosity(absl_logging.WARNING)
        try:
            print(audit(config, Path(OUT.value), ADAPTER.value))
        except (ValueError, FileNotFoundError) as error:
            raise UsageError(one_line(error)) from error
    except UsageError as error:
        sys.exit(f"error: {error}")


def audit(config: Config, out: Path, adapter: str | None) -> str:
    """Measures the configuration's pairs and writes the document; returns it for a terminal.

    Raises:
        ValueError, FileNotFoundError: a model, pair or adapter that cannot be used, or fewer than two pairs.
    """
    from tqdm import tqdm  # what follows imports jax, transformers and matplotlib

    from vgrout_jax.analysis import pair_checks
    from vgrout_jax.analysis.document import to_text
    from vgrout_jax.analysis.output import write_document
    from vgrout_jax.analysis.pair_pages import audit_blocks
    from vgrout_jax.model.lora2r import zero_deltas
    from vgrout_jax.routing.pairs import encode_pairs, load_pairs
    from vgrout_jax.run.build import build_run
    from vgrout_jax.weights.checkpoint import load_adapter

    pairs = load_pairs(config.direction.pairs, config.direction.tags or ())
    if len(pairs) < 2:
        raise ValueError(f"direction.pairs must select at least 2 pairs to leave one out, got {len(pairs)}")
    with tqdm(total=3, disable=None, leave=False) as bar:

        def visit(text: str) -> None:
            bar.update()
            bar.set_postfix_str(text)

        run = build_run(config)
        tokenizer = run.world.tokenizer
        batch = encode_pairs(pairs, tokenizer, max_prompt=config.data.max_prompt_tokens)
        init = run.frozen.init
        deltas = load_adapter(adapter, init=init, ablated=True)[0] if adapter else zero_deltas(init)
        found = pair_checks.measure(run, pairs, batch, deltas, visit)
    low, high = config.gate.low, config.gate.high
    blocks = audit_blocks(config.direction.pairs, found, lambda token: tokenizer.decode([token]), low, high)
    page = write_document(blocks, out, "pairs")
    return f"{to_text(blocks)}\n{page}"


def run() -> None:
    """Entry point of the command line."""
    try:
        app.run(main, flags_parser=parse_flags)
    except UsageError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run()
