"""The answer's own test function with stand-ins for the solution: does it pass whatever that does?

Only the method that the tests call is replaced, wherever it is reached from. Everything else of the answer stays
real, so that a test function that checks through helpers of its own still checks.
"""

import opcode
import types
from collections.abc import Callable, Iterator
from typing import Any

from .stand_ins import ANY_CODE, OF_A_TYPE

ANSWER_FILE = "<answer>"
_RAISE = opcode.opmap["RAISE_VARARGS"]
PASSES, FAILS, STUMBLES = "passes", "fails", "stumbles"


class Substitute:
    """What the tested method does instead; a data descriptor, so that no instance's own attribute hides it.

    Attributes:
        behaviour: called for every result.
    """

    def __init__(self) -> None:
        self.behaviour: Callable[[], Any] = ANY_CODE[0]

    def result(self, *args: Any, **kwargs: Any) -> Any:
        return self.behaviour()

    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., Any]:
        return self.result

    def __set__(self, instance: object, value: object) -> None:
        return None


def is_vacuous(space: dict[str, Any], names: list[str], entry_point: str) -> bool:
    """Whether the answer has a test function that passes whatever the solution does.

    It must pass with every stand-in that any code can handle, and must find no fault with any of another type or
    with an exception: to stumble over one of those is no verdict of its own.

    Args:
        space: the answer's names, after it ran; changed in place.
        names: what the function may be called, the disclosed name first.
        entry_point: the method that it should test.
    """
    substitute = Substitute()
    solution = space.get("Solution")
    if isinstance(solution, type):
        _replace(solution, entry_point, substitute)
    test = own_test(space, names)
    if test is None:
        return False
    for behaviour in (*ANY_CODE, *OF_A_TYPE):
        substitute.behaviour = behaviour
        found = outcome(test)
        if found == FAILS or (found == STUMBLES and behaviour in ANY_CODE):
            return False
    return True


def own_test(space: dict[str, Any], names: list[str]) -> Callable[[], Any] | None:
    """The answer's test function at module level or in class Solution, ready to be called; None without one.

    Whatever can be called counts but a class: a partial, a cached function, a bound method, a builtin.
    """
    solution = space.get("Solution")
    for name in names:
        found = space.get(name)
        if callable(found) and not isinstance(found, type):
            return found
        if isinstance(solution, type) and callable(getattr(solution, name, None)):
            kind = next(vars(base)[name] for base in solution.__mro__ if name in vars(base))
            if isinstance(kind, (staticmethod, classmethod)):
                return getattr(solution, name)
            return lambda name=name: getattr(solution(), name)()
    return None


def outcome(test: Callable[[], Any]) -> str:
    """How a test function ends: it passes, it fails by a decision of its own, or it stumbles."""
    try:
        return FAILS if _finished(test()) is False else PASSES
    except SystemExit as stop:
        return PASSES if stop.code in (None, 0) else FAILS
    except AssertionError:
        return FAILS
    except BaseException as error:
        return FAILS if _raised_by_the_answer(error) else STUMBLES


def _finished(result: Any) -> Any:
    """What a test function returns once it has run: one with `async` or `yield` runs after its call."""
    if isinstance(result, types.GeneratorType):
        return [*result] and None
    if isinstance(result, types.CoroutineType):
        import asyncio  # costs what few answers need

        return asyncio.run(result)
    return result


def _raised_by_the_answer(error: BaseException) -> bool:
    """Whether a `raise` of the answer's own raised it, rather than an operation that failed."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return code.co_filename == ANSWER_FILE and code.co_code[trace.tb_lasti] == _RAISE


def _replace(solution: type, entry_point: str, substitute: Substitute) -> None:
    """Put the substitute in the method's place, and into its functions, which an alias may hold already."""
    for kind in solution.__mro__:
        if entry_point in vars(kind):
            for function in _functions(vars(kind)[entry_point]):
                _hollow(function, substitute)
            setattr(kind, entry_point, substitute)
    if not hasattr(solution, entry_point):
        setattr(solution, entry_point, substitute)


def _functions(thing: Any) -> Iterator[types.FunctionType]:
    """The functions that a class's attribute wraps, decorators undone; caches are emptied on the way."""
    for _ in range(20):
        if isinstance(thing, types.FunctionType):
            yield thing
        if hasattr(thing, "cache_clear"):
            thing.cache_clear()
        inner = [getattr(thing, name, None) for name in ("__func__", "func", "__wrapped__")]
        thing = next((wrapped for wrapped in inner if wrapped is not None), None)
        if thing is None:
            return


def _hollow(function: types.FunctionType, substitute: Substitute) -> None:
    """Let a function return what the substitute does, whoever holds it."""
    code = _template.__code__
    constants = tuple(substitute if constant == _PLACE else constant for constant in code.co_consts)
    function.__defaults__ = function.__kwdefaults__ = None
    function.__code__ = code.replace(co_consts=constants, co_freevars=function.__code__.co_freevars)


_PLACE = 7919.25


def _template(*args: Any, **kwargs: Any) -> Any:
    # The constant's place is taken by the substitute: the function's globals are the answer's.
    return (7919.25).result()  # type: ignore[attr-defined]
