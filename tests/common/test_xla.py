"""Options of the compiler, by device."""

from types import SimpleNamespace

import jax
import pytest

from vgrout_jax.common import xla


def device(platform: str, version: str) -> SimpleNamespace:
    return SimpleNamespace(platform=platform, client=SimpleNamespace(platform_version=version))


@pytest.mark.parametrize(
    ("given", "some"),
    [
        (device("gpu", "PJRT C API\ncuda 13000"), True),
        (device("gpu", "PJRT C API\nrocm 60300"), False),
        (device("tpu", "libtpu"), False),
    ],
)
def test_nvidia_gpus_alone_have_options_of_their_own(given, some):
    assert bool(xla.compiler_options(given)) == some


def test_options_are_ones_that_xla_knows():
    """An unknown option fails when something is compiled; the CPU's compiler reads the same ones."""
    options = xla.compiler_options(device("gpu", "cuda"))
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2
    with pytest.raises(Exception, match="no_such_option"):
        jax.jit(lambda x: x + 1, compiler_options={"xla_gpu_no_such_option": True})(1)
