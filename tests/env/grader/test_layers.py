"""Containment below the minimum is refused, and what there is is said in one line."""

import dataclasses
import logging

import pytest

from vgrout_jax.config import GraderConfig
from vgrout_jax.env.grader import Grader, layers

NOTHING = layers.Layers(None, 0, False, False, ("bubblewrap is not installed", "the kernel has no Landlock"))
KERNEL = layers.Layers(None, 5, True, True, ("bubblewrap is not installed",))
FULL = layers.Layers("/usr/bin/bwrap", 5, True, False)


@pytest.mark.parametrize(
    ("found", "minimum", "allowed"),
    [
        (NOTHING, "landlock", False),
        (KERNEL, "landlock", True),
        (KERNEL, "bubblewrap", False),
        (FULL, "bubblewrap", True),
        (dataclasses.replace(FULL, seccomp=False), "bubblewrap", False),
        (dataclasses.replace(FULL, landlock=0), "landlock", True),
    ],
)
def test_below_the_minimum_the_run_refuses_and_says_what_to_install(
    found: layers.Layers, minimum: str, allowed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = GraderConfig(minimum=minimum)
    with caplog.at_level(logging.INFO, layers.LOGGER.name):
        if allowed:
            layers.require(found, config)
            assert [record.levelname for record in caplog.records] == ["INFO"]
            return
        with pytest.raises(RuntimeError, match="apt-get install bubblewrap"):
            layers.require(found, config)
        layers.require(found, dataclasses.replace(config, allow_unsandboxed=True))
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "RUNNING MODEL-WRITTEN CODE" in record.getMessage()


def test_layers_are_one_line() -> None:
    for found in (NOTHING, KERNEL, FULL):
        assert "\n" not in found.line()
    assert "pid, net" in FULL.line() and "Landlock 5" in KERNEL.line() and "missing" in NOTHING.line()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("workers", 0),
        ("cpu_seconds", 0.0),
        ("idle_seconds", -1.0),
        ("memory_mb", 1),
        ("folder_mb", 0),
        ("minimum", "none"),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"grader.{field} must be"):
        Grader(GraderConfig(**{field: value}))
