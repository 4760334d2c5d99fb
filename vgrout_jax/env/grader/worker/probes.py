"""The answer's own test function against a stand-in: does it pass whatever the solution returns?

Only the method that the tests call is replaced. Everything else of the answer stays real, so that a test function
that checks through helpers of its own still checks.
"""

import types
from collections.abc import Callable
from typing import Any

_LENGTH = 7919  # unlikely to be asserted of anything


class StandIn:
    """A result that any code can handle and no honest check accepts.

    It can be indexed, iterated, formatted and computed with, so that a function which only prints does not fail
    on it; every comparison with it is false, and so is it.
    """

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    def __lt__(self, other: object) -> bool:
        return False

    __le__ = __gt__ = __ge__ = __lt__

    def __hash__(self) -> int:
        return _LENGTH

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return _LENGTH

    def __int__(self) -> int:
        return _LENGTH

    __index__ = __int__

    def __float__(self) -> float:
        return float(_LENGTH)

    def __str__(self) -> str:
        return "<stand-in>"

    def __repr__(self) -> str:
        return "<stand-in>"

    def __format__(self, specification: str) -> str:
        return "<stand-in>"

    def __iter__(self) -> Any:
        return iter((StandIn(),))

    def __contains__(self, item: object) -> bool:
        return False

    def __setitem__(self, key: object, value: object) -> None:
        return None

    def _same(self, *args: object, **kwargs: object) -> "StandIn":
        return StandIn()

    def _number(self, other: object) -> "StandIn":
        # Text put together with a result that is no text fails, as it would on most results.
        return NotImplemented if isinstance(other, str) else StandIn()

    __getitem__ = __call__ = __neg__ = __abs__ = __round__ = _same
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _number
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _number

    def __getattr__(self, name: str) -> "StandIn":
        # Protocols that are looked up on instances (copying, arrays) must stay absent.
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn()


def own_test(space: dict[str, Any], names: list[str], entry_point: str) -> Callable[[], Any] | None:
    """The answer's test function, ready to be called, with the tested method replaced by a stand-in.

    Args:
        space: the answer's names, after it ran; changed in place.
        names: what the function may be called, the disclosed name first.
        entry_point: the method that it should test.

    Returns:
        The function at module level or in class Solution, or None where there is none.
    """
    solution = space.get("Solution")
    if isinstance(solution, type):
        _replace(solution, entry_point)
    for name in names:
        if isinstance(space.get(name), types.FunctionType):
            return space[name]
        if isinstance(solution, type) and callable(getattr(solution, name, None)):
            kind = next(vars(base)[name] for base in solution.__mro__ if name in vars(base))
            if isinstance(kind, (staticmethod, classmethod)):
                return getattr(solution, name)
            return lambda name=name: getattr(solution(), name)()
    return None


def passes(test: Callable[[], Any]) -> bool:
    """Whether a test function ends without an exception and does not return False."""
    try:
        return test() is not False
    except SystemExit as stop:
        return stop.code in (None, 0)
    except BaseException:
        return False


def _replace(solution: type, entry_point: str) -> None:
    def stand_in(*args: Any, **kwargs: Any) -> StandIn:
        return StandIn()

    for kind in solution.__mro__:
        if entry_point in vars(kind):
            setattr(kind, entry_point, staticmethod(stand_in))
    if not hasattr(solution, entry_point):
        setattr(solution, entry_point, staticmethod(stand_in))
