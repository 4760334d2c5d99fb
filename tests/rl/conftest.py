"""The tiny model and differences that have moved, for the tests of the step and its parts."""

import pytest

from tests import tiny


@pytest.fixture(scope="module")
def frozen():
    return tiny.frozen(tiny.model())


@pytest.fixture(scope="module")
def deltas(frozen):
    return tiny.moved(frozen.init, 0.05)
