"""Operations of a program's matrix products, and bytes that it writes: counted from its jaxpr, loops multiplied out.

XLA's own cost analysis counts the body of a loop once, and layers, micro-batches and tokens are loops here.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def matmul_flops(function: Any, *arguments: Any, trips: int = 1) -> int:
    """2 m n k summed over every matrix product that a call runs.

    Args:
        function: jitted or not; it is traced, and nothing is compiled or run.
        arguments: arrays or `jax.ShapeDtypeStruct`s.
        trips: how often the body of a `while` loop runs, which its jaxpr does not say.

    Of a `cond`'s branches the most costly one counts.
    """
    return traced_flops(_trace(function, *arguments), trips=trips)


def traced_flops(traced: jax.stages.Traced, *, trips: int = 1) -> int:
    """`matmul_flops` of what `jax.jit(...).trace` gives."""
    return _of(_live(traced), trips, _product)


def written_bytes(function: Any, *arguments: Any, trips: int = 1) -> int:
    """Bytes of every intermediate array that a call computes, as if nothing were fused; otherwise as `matmul_flops`.

    XLA's own count of bytes depends on its version and on what it fuses; this one changes only with the program.
    """
    return _of(_live(_trace(function, *arguments)), trips, _written)


def _trace(function: Any, *arguments: Any) -> jax.stages.Traced:
    # Not by `jax.make_jaxpr`, in which a function with options of the compiler may not stand.
    return (function if hasattr(function, "trace") else jax.jit(function)).trace(*arguments)


def _live(traced: jax.stages.Traced) -> core.Jaxpr:
    """The program without what nothing depends on, which a compiler leaves out, too."""
    jaxpr = traced.jaxpr.jaxpr
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0]


def _of(jaxpr: core.Jaxpr, trips: int, cost: Callable[[Any], int]) -> int:
    return sum(_of_equation(equation, trips, cost) for equation in jaxpr.eqns)


def _of_equation(equation: Any, trips: int, cost: Callable[[Any], int]) -> int:
    name = equation.primitive.name
    inner = [_of(jaxpr, trips, cost) for jaxpr in _jaxprs(equation.params)]
    if not inner:
        return cost(equation)
    if name == "cond":
        return max(inner)
    return sum(inner) * {"scan": equation.params.get("length", 1), "while": trips}.get(name, 1)


def _product(equation: Any) -> int:
    if equation.primitive.name != "dot_general":
        return 0
    (contracted, _), _ = equation.params["dimension_numbers"]
    depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 2 * depth * math.prod(equation.outvars[0].aval.shape)


def _written(equation: Any) -> int:
    avals = [variable.aval for variable in equation.outvars]
    return sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in avals if hasattr(aval, "shape"))


def _jaxprs(parameters: dict[str, Any]) -> list[core.Jaxpr]:
    found = []
    for value in parameters.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found
