"""Programs that are compiled ahead of their use: once, beside the caller, and with its mistakes."""

import threading

import jax
import jax.numpy as jnp
import pytest

from vgrout_jax.common import background_compile


class Traced:
    """A jitted function with a donated argument, and the threads that have traced it, once for each time."""

    def __init__(self):
        self.threads: list[str] = []

        def function(state, x):
            self.threads.append(threading.current_thread().name)
            return state + x.sum()

        self.program = background_compile.Ahead(jax.jit(function, donate_argnums=0))


def test_a_program_that_was_begun_is_traced_once_and_not_by_the_caller():
    traced, x = Traced(), jnp.ones(4)
    for _ in range(2):
        traced.program.begin(jnp.float32(1), jax.typeof(x))
    results = [traced.program(jnp.float32(start), x) for start in (0, 1)]
    assert results == [4, 5]
    assert len(traced.threads) == 1 and traced.threads[0].startswith("compile")


def test_every_shape_has_a_program_of_its_own():
    traced = Traced()
    for size in (4, 5):
        traced.program.begin(jnp.float32(1), jax.ShapeDtypeStruct((size,), jnp.float32))
    assert [traced.program(jnp.float32(0), jnp.ones(size)) for size in (4, 5)] == [4, 5]
    assert len(traced.threads) == 2


def test_what_was_not_begun_is_compiled_by_the_caller():
    traced = Traced()
    traced.program.begin(jnp.float32(1), jnp.ones(5))
    assert traced.program(jnp.float32(0), jnp.ones(4)) == 4
    assert threading.current_thread().name in traced.threads


def test_a_mistake_in_the_function_is_raised_where_it_is_called():
    program = background_compile.Ahead(jax.jit(lambda x, y: x @ y))
    program.begin(jnp.ones((2, 3)), jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="dot_general"):
        program(jnp.ones((2, 3)), jnp.ones((2, 3)))
