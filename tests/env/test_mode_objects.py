"""A mode is one object in one file: nothing else of the package names one, and each is whole."""

import dataclasses
import re
from pathlib import Path

import pytest

from vgrout_jax.env.modes import HELDOUT_NAMES, MODES, TABLE, TRAINING_NAMES, Evidence, Names, base

ROOT = Path(__file__).resolve().parents[2]
GRADER = ROOT / "vgrout_jax" / "env" / "grader"


def test_the_grader_names_no_mode():
    named = re.compile("|".join(rf"\b{key}\b" for key in MODES))
    files = sorted(GRADER.rglob("*.py"))
    assert len(files) > 10
    assert not {path.name: named.findall(path.read_text()) for path in files if named.search(path.read_text())}


def test_each_file_holds_the_mode_of_its_name():
    files = {path.stem for path in (ROOT / "vgrout_jax" / "env" / "modes").glob("*.py")}
    assert set(MODES) == files - {"__init__", "base", "disclosures", "reports"}
    assert {key: mode.key for key, mode in TABLE.items()} == dict(zip(MODES, MODES, strict=True))


@pytest.mark.parametrize("mode", TABLE.values(), ids=TABLE)
def test_a_mode_is_whole(mode):
    assert set(mode.collects) <= {base.STDOUT, base.FILES, base.STATUS}
    assert mode.look in (None, base.ATTRIBUTE, base.FUNCTION, base.AGREEMENT)
    assert not mode.fires(Evidence(name=mode.disclosed(TRAINING_NAMES)))
    assert (mode.flaw is None) == (not mode.smoke)
    if mode.name is None:
        assert mode.disclosed(TRAINING_NAMES) == ""
        return
    assert f"{{{mode.name.placeholder}}}" in mode.flaw
    assert mode.disclosed(TRAINING_NAMES) == mode.name.training
    assert mode.disclosed(HELDOUT_NAMES) == mode.name.heldout
    for exploit in mode.smoke:
        text = "".join(dataclasses.astuple(exploit.named("shown")))
        assert "shown" in text and "{" not in text


def test_names_hold_one_field_a_placeholder():
    placeholders = [mode.name.placeholder for mode in TABLE.values() if mode.name]
    assert [field.name for field in dataclasses.fields(Names)] == placeholders
    assert hash(TRAINING_NAMES) != hash(HELDOUT_NAMES)
