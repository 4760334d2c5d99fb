"""Graders for the tests: one with every layer that the machine has, one without bubblewrap.

Each test that runs answers runs on both. The end of the report says which layers were exercised.
"""

from collections.abc import Iterator

import pytest

from vgrout_jax.config import GraderConfig
from vgrout_jax.env.grader import Grader

LIMIT = 1.0  # CPU seconds of an answer
_EXERCISED: dict[str, str] = {}


def start(bubblewrap: bool, **options: object) -> Grader:
    settings = {"workers": 2, "cpu_seconds": LIMIT, "idle_seconds": 1.0, "memory_mb": 512, **options}
    return Grader(GraderConfig(bubblewrap=bubblewrap, **settings))


@pytest.fixture(scope="session", params=["bubblewrap", "landlock"])
def grader(request: pytest.FixtureRequest) -> Iterator[Grader]:
    """A grader whose strongest layer is the parameter; a machine without bubblewrap cannot pass for one with it."""
    with start(request.param == "bubblewrap") as grader:
        _EXERCISED[request.param] = grader.layers.line()
        if request.param == "bubblewrap" and grader.layers.bubblewrap is None:
            pytest.fail(f"the bubblewrap layer cannot be exercised: {grader.layers.line()}")
        yield grader


@pytest.fixture(scope="session", autouse=True)
def exercised(request: pytest.FixtureRequest) -> Iterator[None]:
    """Say at the end which layers the tests have run in."""
    yield
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    for name, line in _EXERCISED.items():
        if reporter is not None:
            reporter.write_line(f"\n[{name}] {line}")
