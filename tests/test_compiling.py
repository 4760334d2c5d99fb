"""Options of the compiler, by device, and programs that are compiled ahead of their use."""

import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from vgrout_jax import compiling


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
    assert bool(compiling.compiler_options(given)) == some


def test_options_are_ones_that_xla_knows():
    """An unknown option fails when something is compiled; the CPU's compiler reads the same ones."""
    options = compiling.compiler_options(device("gpu", "cuda"))
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2
    with pytest.raises(Exception, match="no_such_option"):
        jax.jit(lambda x: x + 1, compiler_options={"xla_gpu_no_such_option": True})(1)


class Traced:
    """A jitted function with a donated argument, and the threads that have traced it, once for each time."""

    def __init__(self):
        self.threads: list[str] = []

        def function(state, x):
            self.threads.append(threading.current_thread().name)
            return state + x.sum()

        self.ahead = compiling.Ahead(jax.jit(function, donate_argnums=0))


def test_a_program_that_was_begun_is_traced_once_and_not_by_the_caller():
    traced, x = Traced(), jnp.ones(4)
    for _ in range(2):
        traced.ahead.begin(jnp.float32(1), jax.typeof(x))
    results = [traced.ahead(jnp.float32(start), x) for start in (0, 1)]
    assert results == [4, 5]
    assert len(traced.threads) == 1 and traced.threads[0].startswith("compile")


def test_every_shape_has_a_program_of_its_own():
    traced = Traced()
    for size in (4, 5):
        traced.ahead.begin(jnp.float32(1), jax.ShapeDtypeStruct((size,), jnp.float32))
    assert [traced.ahead(jnp.float32(0), jnp.ones(size)) for size in (4, 5)] == [4, 5]
    assert len(traced.threads) == 2


def test_what_was_not_begun_is_compiled_by_the_caller():
    traced = Traced()
    traced.ahead.begin(jnp.float32(1), jnp.ones(5))
    assert traced.ahead(jnp.float32(0), jnp.ones(4)) == 4
    assert threading.current_thread().name in traced.threads


def test_a_mistake_in_the_function_is_raised_where_it_is_called():
    ahead = compiling.Ahead(jax.jit(lambda x, y: x @ y))
    ahead.begin(jnp.ones((2, 3)), jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="dot_general"):
        ahead(jnp.ones((2, 3)), jnp.ones((2, 3)))
