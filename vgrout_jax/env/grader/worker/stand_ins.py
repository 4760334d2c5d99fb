"""Wrong solutions: what takes the place of the tested method when the answer's own test function is tried.

Some results let any code handle them: they can be indexed, iterated, formatted and computed with, so that a function
that only prints does not stumble over them, equal nothing, and differ in how they are ordered and whether they are
true. The others are plain values of wrong types, and an exception.
"""

from collections.abc import Callable
from typing import Any

_LENGTH = 7919  # unlikely to be asserted of anything
# What is computed from a result ends somewhere, so that loops over linked nodes and digits do.
_FALSE_FROM, _NONE_FROM, _FAILS_FROM = 16, 64, 4096


class StandIn:
    """A result that any code can handle and that equals nothing.

    Attributes:
        less, more, true: what `<`, `>` and `bool` say, for as long as not much has been computed from it.
        steps: operations since the method returned.
    """

    less = more = true = False

    def __init__(self, steps: int = 0):
        if steps > _FAILS_FROM:
            raise OverflowError("no more of this")
        self.steps = steps

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    def __lt__(self, other: object) -> bool:
        return self.less and self.steps < _FALSE_FROM

    def __gt__(self, other: object) -> bool:
        return self.more and self.steps < _FALSE_FROM

    __le__, __ge__ = __lt__, __gt__

    def __bool__(self) -> bool:
        return self.true and self.steps < _FALSE_FROM

    def __hash__(self) -> int:
        return _LENGTH

    def __len__(self) -> int:
        return _LENGTH

    def __int__(self) -> int:
        return -_LENGTH if self.less and not self.more else _LENGTH

    __index__ = __trunc__ = __int__

    def __float__(self) -> float:
        return float(int(self))

    def __str__(self) -> str:
        return "<stand-in>"

    __repr__ = __str__

    def __format__(self, specification: str) -> str:
        return "<stand-in>"

    def __iter__(self) -> Any:
        return iter((self._same(),))

    def __contains__(self, item: object) -> bool:
        return False

    def __setitem__(self, key: object, value: object) -> None:
        return None

    def _same(self, *args: object, **kwargs: object) -> "StandIn":
        return type(self)(self.steps + 1)

    def _swapped(self, *args: object) -> "StandIn":
        return _OPPOSITE.get(type(self), type(self))(self.steps + 1)

    def _number(self, other: object) -> "StandIn":
        # Text put together with a result that is no text fails, as it would on most results.
        return NotImplemented if isinstance(other, str) else self._same()

    def _subtracted(self, other: object) -> "StandIn":
        return NotImplemented if isinstance(other, str) else self._swapped()

    def __abs__(self) -> "StandIn":
        return (Large if type(self) is Small else type(self))(self.steps + 1)

    __getitem__ = __call__ = __pos__ = __invert__ = __round__ = __floor__ = __ceil__ = _same
    __neg__, __rsub__ = _swapped, _subtracted
    __add__ = __radd__ = __sub__ = __mul__ = __rmul__ = __pow__ = __rpow__ = __divmod__ = __rdivmod__ = _number
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _number
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __lshift__ = __rlshift__ = _number
    __rshift__ = __rrshift__ = _number

    def __getattr__(self, name: str) -> "StandIn | None":
        # Protocols that are looked up on instances (copying, arrays) must stay absent.
        if name.startswith("__"):
            raise AttributeError(name)
        return self._same() if self.steps < _NONE_FROM else None


class Everywhere(StandIn):
    """Less and greater than everything, and true."""

    less = more = true = True


class Large(StandIn):
    """Greater than everything."""

    more = true = True


class Small(StandIn):
    """Less than everything."""

    less = true = True


_OPPOSITE = {Large: Small, Small: Large}


def _raise() -> None:
    raise RuntimeError("a stand-in for the solution")


# A test function that is vacuous passes with each of the first, and finds fault with none of the second.
ANY_CODE: tuple[Callable[[], Any], ...] = (StandIn, Everywhere, Large, Small)
OF_A_TYPE: tuple[Callable[[], Any], ...] = (lambda: None, str, list, _raise)
