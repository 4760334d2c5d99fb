"""The table of arms: what each claims, where it comes from, which labels it needs, and the fields that it sets."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class ArmEntry:
    """One arm.

    Attributes:
        claim: what it does, in a sentence.
        source: paper and section, or what it controls for.
        needs: the labels that it needs: `nothing`, `pairs` or `verdicts`.
        fields: `section.field` -> value, what it changes of the scale's configuration.
        preregistered: whether the preregistered comparison has it.
    """

    claim: str
    source: str
    needs: str
    fields: Mapping[str, Any]
    preregistered: bool = False


ARMS: dict[str, ArmEntry] = {
    "none": ArmEntry(
        claim="nobody is flagged: the quarantine never trains",
        source="control of equal capacity",
        needs="nothing",
        fields={"label.source": "none", "label.action": "route"},
        preregistered=True,
    ),
    "absorb": ArmEntry(
        claim="both blocks train on everything, and one of them is removed",
        source="control: what removing a block does by itself",
        needs="nothing",
        fields={"label.source": "none", "label.action": "absorb"},
        preregistered=True,
    ),
    "routeV": ArmEntry(
        claim="what looks like the pairs' hacks to the probe trains the quarantine",
        source="vector gradient routing, docs/method.md",
        needs="pairs",
        fields={"label.source": "probe", "label.action": "route"},
        preregistered=True,
    ),
    "routeV_literal": ArmEntry(
        claim="routeV with in-sample bands for each module and thresholds 0 and 1",
        source="docs/method.md section 6",
        needs="pairs",
        fields={
            "label.source": "probe",
            "label.action": "route",
            "gate.leave_one_out": False,
            "gate.pool": "band_then_mean",
            "gate.low": 0.0,
            "gate.high": 1.0,
            "gate.probe_policy": "full",
            "direction.unit_sides": False,
            "loss.ratio": "clip",
            "rollout.deployed_frac": 0.0,
        },
        preregistered=True,
    ),
    "placebo": ArmEntry(
        claim="routeV without its information; placebo.kind says what is taken away",
        source="control, docs/method.md section 5",
        needs="pairs",
        fields={"label.source": "probe", "label.action": "route", "placebo.kind": "direction"},
        preregistered=True,
    ),
    "oracle": ArmEntry(
        claim="what exploited the grader trains the quarantine: routing with the true label",
        source="ceiling of routing; GRAFT, SGTM (Shilov et al. 2025, 2512.05648)",
        needs="verdicts",
        fields={"label.source": "monitor", "label.action": "route"},
    ),
    "penalty": ArmEntry(
        claim="what exploited the grader is paid less",
        source="Ariahw, Engels and Nanda 2025, true penalty",
        needs="verdicts",
        fields={"label.source": "monitor", "label.action": "penalise"},
    ),
    "modulate_mul": ArmEntry(
        claim="the reward shrinks with the residual stream's hack score",
        source="Wu and Tang 2026, 2604.01476",
        needs="pairs",
        fields={"label.source": "residual", "label.action": "modulate_mul"},
    ),
}

PLACEBOS: dict[str, str] = {
    "direction": "a random direction in place of the real one",
    "direction_matched": "the real label counts, dealt out by a random direction",
    "labels": "the real labels, permuted",
    "lazy_pairs": "pairs about laziness in place of exploits",
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """An arm as it is run and reported: a placebo with its kind.

    Attributes:
        name: `routeV`, `placebo labels`.
        arm: key of `ARMS`, and name of the file in configs/.
        entry: the arm's, with the claim of its kind.
        flags: `section.field` -> value, beside the file.
    """

    name: str
    arm: str
    entry: ArmEntry
    flags: Mapping[str, Any]


def variants() -> Iterator[Variant]:
    """Every arm in the table's order, the placebo once for each kind."""
    for name, entry in ARMS.items():
        if "placebo.kind" not in entry.fields:
            yield Variant(name, name, entry, {})
            continue
        for kind, claim in PLACEBOS.items():
            of_kind = dataclasses.replace(entry, claim=f"routeV with {claim}")
            yield Variant(variant_name(name, kind), name, of_kind, {"placebo.kind": kind})


def variant_name(arm: str, placebo: str | None) -> str:
    """`routeV`, `placebo labels`: what a run of an arm is called in reports."""
    return arm if placebo is None else f"{arm} {placebo}"
