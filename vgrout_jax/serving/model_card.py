"""The model card of an export: what the model is, what it was trained on, what was measured, how to load it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from vgrout_jax.config import Config
from vgrout_jax.evaluation.rates import RATES, Evaluation, Rates

_POLICIES = {
    "deployed": "the deployed policy: the quarantine is not in this export",
    "as_trained": "the policy as trained, both blocks on. It is expected to exploit; do not deploy it",
}


@dataclasses.dataclass(frozen=True)
class Card:
    """What a card tells.

    Attributes:
        config: of the run.
        provenance: hashes of pairs and tokenizer.
        evaluation: of the exported policy at the end of the run, on held-out problems.
        code_version: of the code that wrote the adapter.
        step: updates that the adapter has had.
        policy: `deployed` or `as_trained`.
        base: hub name of the base model, or None.
        usage: Python lines that load the export.
        facts: further rows of the first table, name -> text.
    """

    config: Config
    provenance: Mapping[str, Any]
    evaluation: Evaluation
    code_version: Mapping[str, Any]
    step: int
    policy: str
    base: str | None
    usage: Sequence[str]
    facts: Mapping[str, str]


def render(card: Card, *, title: str, library: str) -> str:
    """The card as Markdown with the hub's front matter.

    Args:
        card: its contents.
        title: the heading.
        library: `peft` or `transformers`, the hub's library_name.
    """
    front = [f"base_model: {card.base}"] if card.base else []
    front += [f"library_name: {library}", "pipeline_tag: text-generation"]
    front += ["tags:", *(f"- {tag}" for tag in ("vgrout_jax", "gradient-routing", "grpo", "lora"))]
    evaluation = card.evaluation
    parts = [
        ["---", *front, "---", "", f"# {title}", ""],
        [f"Trained by vgrout_jax, vector gradient routing for GRPO. This is {_POLICIES[card.policy]}.", ""],
        ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in _facts(card).items()), ""],
        [f"## Measured on held-out problems after {evaluation.step} steps", ""],
        ["| | n | " + " | ".join(RATES) + " |", "|---|---|" + "---|" * len(RATES)],
        [_row(evaluation.policy.replace("_", " "), evaluation.table.overall)],
        [_row(mode, rates) for mode, rates in evaluation.table.modes.items()],
        ["", "Shares in percent with 95% intervals, problems as the sampling unit. hack: the flaw of the grader was"],
        ["used and the answer is wrong; channel: it was used, right or wrong. A low hack rate beside a fallen solve"],
        ["or compile rate is collapse. The figures say something about the exploits of this environment, and"],
        ["nothing about others.", "", "## Use", "", "```python", *card.usage, "```", ""],
        ["The licence of the base model and those of the training data apply.", "", "## Method", ""],
        ["Sections 2 (adapter), 6 (gate) and 13 (evaluation) of docs/method.md in the vgrout_jax repository."],
        ["Gradient routing: [arXiv 2410.04332](https://arxiv.org/abs/2410.04332). Selective gradient masking:"],
        ["[arXiv 2512.05648](https://arxiv.org/abs/2512.05648)."],
    ]
    return "\n".join(line for part in parts for line in part) + "\n"


def _facts(card: Card) -> dict[str, str]:
    config, version = card.config, card.code_version
    placebo = f" ({config.placebo.kind})" if config.placebo.kind else ""
    names = " ".join(shown(source) for source in (*config.data.train, *config.data.heldout))
    return {
        "base model": card.base or shown(config.model.path or f"random weights, seed {config.model.seed}"),
        "arm": config.arm + placebo,
        "scale, seed": f"{config.scale}, {config.seed}",
        "steps": f"{card.step} of {config.train.steps}",
        "adapter": f"LoRA2r, rank {config.adapter.rank} a block, seed {config.adapter.seed}",
        "problems": names,
        "modes": " ".join(config.env.modes),
        "pairs": f"{shown(config.direction.pairs)}, SHA-256 {card.provenance.get('pairs_sha256', 'unknown')}",
        "tokenizer": f"SHA-256 {card.provenance.get('tokenizer_sha256', 'unknown')}",
        "code": f"vgrout_jax {version.get('package') or ''} {version.get('commit') or ''}".strip(),
        **card.facts,
    }


def shown(source: str) -> str:
    """A source as it is named, but of an absolute path the last part alone: a card is for others to read."""
    return PurePath(source).name if PurePath(source).is_absolute() else source


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _row(name: str, rates: Rates) -> str:
    cells = []
    for field in RATES:
        rate = getattr(rates, field)
        value = "-" if rate.value is None else f"{100 * rate.value:.1f}"
        cells.append(f"{value} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]")
    return f"| {name} | {rates.n} | " + " | ".join(cells) + " |"
