"""What a pair audit shows: rivals of the direction, pair by pair, tokens, and names that training uses."""

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure as Plot

from vgrout_jax.analysis import pair_checks, plotting, wording
from vgrout_jax.analysis.document import Block, Figure, Heading, Items, Paragraph, Table
from vgrout_jax.analysis.pair_checks import PairAudit, difference

TELLING = 20  # tokens shown


def audit_blocks(source: str, audit: PairAudit, decode: Callable[[int], str], low: float, high: float) -> list[Block]:
    """The whole document.

    Args:
        source: where the pairs come from.
        audit: their measurements.
        decode: token id -> text.
        low, high: the gate's thresholds.
    """
    caption = (
        "Each pair's margin (mean cosine of the hack side minus that of the clean side, with the direction of the "
        "other pairs) over the differences of length and of log-probability. A slope means that the margin goes "
        "with the confound."
    )
    return [
        Heading(f"Audit of {len(audit.names)} pairs: {source}", 1),
        Heading("What tells the sides apart"),
        Paragraph(
            "Each row tries to name a pair's hack side after having seen the other pairs alone. The direction should "
            "be near 100%. A confound that is as good is not necessarily what the direction reads, but pairs on "
            "which it fails would show the difference."
        ),
        _rivals(audit),
        Items(tuple(_statements(audit, low, high))),
        Figure("confounds", *plotting.render(confound_figure(audit)), caption),
        Heading("Pair by pair"),
        _pair_table(audit),
        Heading("Tokens"),
        _token_table(audit, decode),
        Heading("Names"),
        *_name_blocks(audit),
    ]


def rivals(audit: PairAudit) -> dict[str, float]:
    """Leave-one-out accuracy of the direction and of each confound."""
    return {
        "the direction": pair_checks.margin_accuracy(difference(audit.cosines)),
        "length in tokens": pair_checks.learnt_accuracy(difference(audit.tokens)),
        "mean log-probability": pair_checks.learnt_accuracy(difference(audit.logprobs)),
        "length of the gradient": pair_checks.learnt_accuracy(difference(audit.norms)),
        "which tokens occur": pair_checks.token_accuracy(audit.vocabulary),
    }


def _rivals(audit: PairAudit) -> Table:
    measured = {
        "length in tokens": audit.tokens,
        "mean log-probability": audit.logprobs,
        "length of the gradient": audit.norms,
        "the direction": audit.cosines,
    }
    margin = difference(audit.cosines)
    rows = []
    for name, accuracy in rivals(audit).items():
        values = measured.get(name)
        means = ["-", "-"] if values is None else [f"{values[side].mean():.3g}" for side in ("hack", "clean")]
        slope = None if values is None else pair_checks.correlation(difference(values), margin)
        rows.append((name, wording.percent(accuracy), *means, "-" if slope is None else f"{slope:+.2f}"))
    header = ("by", "accuracy", "mean of hack sides", "mean of clean sides", "correlation with the margin")
    return Table(header, tuple(rows), "Leave-one-out over pairs; ties count one half")


def _statements(audit: PairAudit, low: float, high: float) -> list[str]:
    hack, clean = audit.scores["hack"], audit.scores["clean"]
    named = sum(any("(training)" in text for text in found) for found in audit.mentions)
    return [
        f"Of the hack sides {wording.percent(float(np.mean(hack >= high)))} lie in the gate's zone hack "
        f"(z >= {high:g}), of the clean sides {wording.percent(float(np.mean(clean <= low)))} in its zone clean "
        f"(z <= {low:g}), each against the direction of the other pairs.",
        f"{audit.modules} modules are in the pool.",
        f"{named} of {len(audit.names)} pairs hold a name that training discloses.",
    ]


def confound_figure(audit: PairAudit) -> Plot:
    """Margins over the two confounds that are numbers, and all accuracies as bars."""
    figure, axes = plotting.grid(1, 3, width=3.4, height=2.9)
    margin = difference(audit.cosines)
    panels = (
        (audit.tokens, "length, hack minus clean (tokens)"),
        (audit.logprobs, "log-probability, hack minus clean"),
    )
    for axis, (values, label) in zip(axes[0, :2], panels, strict=True):
        axis.axhline(0, color="black", lw=0.8)
        axis.axvline(0, color="black", lw=0.8)
        axis.plot(difference(values), margin, "o", color="#0072B2", mec="white", mew=0.5)
        axis.set(xlabel=label, ylabel="margin")
    found = rivals(audit)
    axis = axes[0, 2]
    axis.barh(range(len(found)), list(found.values())[::-1], color="#bbbbbb", edgecolor="black", hatch="//")
    axis.set_yticks(range(len(found)), list(found)[::-1])
    axis.axvline(0.5, color="black", ls="--", lw=1)
    axis.set(xlim=(0, 1), xlabel="leave-one-out accuracy")
    return figure


def _pair_table(audit: PairAudit) -> Table:
    margin = difference(audit.cosines)
    rows = []
    for row in np.argsort(margin):
        cells = [f"{audit.tokens[side][row]:.0f}" for side in ("hack", "clean")]
        cells += [f"{audit.logprobs[side][row]:.2f}" for side in ("hack", "clean")]
        cells += [f"{audit.scores[side][row]:+.2f}" for side in ("hack", "clean")]
        rows.append((audit.names[row], f"{margin[row]:+.3f}", *cells))
    header = ("pair", "margin", "tokens hack", "clean", "logp hack", "clean", "z hack", "clean")
    return Table(header, tuple(rows), "The least margin first; a pair below zero points the other way than the rest")


def _token_table(audit: PairAudit, decode: Callable[[int], str]) -> Table:
    found = pair_checks.telling_tokens(audit.vocabulary, TELLING)
    rows = tuple((repr(decode(token)), str(hack), str(clean)) for token, hack, clean in found)
    return Table(("token", "hack sides", "clean sides"), rows, "Tokens whose numbers differ most between the sides")


def _name_blocks(audit: PairAudit) -> list[Block]:
    found = tuple(
        f"{name}: {'; '.join(texts)}" for name, texts in zip(audit.names, audit.mentions, strict=True) if texts
    )
    if not found:
        return [Paragraph("No pair holds a name that a disclosure of training or of the evaluation uses.")]
    text = "Pairs that hold a name which a disclosure of training or of the evaluation uses, and where:"
    return [Paragraph(text), Items(found)]
