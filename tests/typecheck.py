"""The run-time type checker of the tests."""

from collections.abc import Callable

from beartype import beartype


def check(function: Callable) -> Callable:
    """beartype for functions; initialisers are left alone.

    Fields of pytree dataclasses hold arrays in normal use, but tracers, shapes, shardings and None while jax
    maps over the tree, so checking them at run time would break `vmap`, `scan` and `eval_shape`.
    """
    return function if function.__name__ == "__init__" else beartype(function)
