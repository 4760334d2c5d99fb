"""Programs that are compiled ahead of their use, beside other work."""

import concurrent.futures
from collections.abc import Callable, Hashable
from typing import Any

import jax


class Ahead:
    """A jitted function whose programs can be compiled while other work runs.

    `begin` starts it in a thread; a call with arguments of those shapes waits for that, and other calls compile as
    they always do. The process ends when what was begun has ended, as it would if it had compiled by itself.
    """

    def __init__(self, function: Callable[..., Any]):
        """`function`: of `jax.jit`."""
        self._function = function
        self._begun: dict[Hashable, concurrent.futures.Future] = {}
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="compile")

    def begin(self, *arguments: Any) -> None:
        """Starts to compile for such arguments, arrays or `jax.ShapeDtypeStruct`s, unless it has before."""
        shapes = _shapes(arguments)
        if shapes not in self._begun:
            self._begun[shapes] = self._thread.submit(lambda: self._function.lower(*arguments).compile())

    def __call__(self, *arguments: Any) -> Any:
        """The function's result.

        Raises:
            Exception: what tracing or compiling for these arguments has raised.
        """
        begun = self._begun.get(_shapes(arguments))
        if begun is not None:
            begun.result()  # the compiled program is the function's own, which finds it by itself
        return self._function(*arguments)


def _shapes(arguments: tuple) -> Hashable:
    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
