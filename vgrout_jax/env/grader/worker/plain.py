"""Plain data as bytes: how results leave an answer's process.

Only exact builtin types are ever rebuilt, by a parser that calls no code of the sender, so that the reader may
compare what it gets with Python's own `==`. A value is a one-byte tag and a body; numbers in bodies are
hexadecimal and end in `;`. Subclasses of builtin types travel as the builtin content that they hold: content is
what is judged, and an overridden `__eq__` has no say. What is not plain travels as "opaque" and equals nothing.

In *rich* form (checks that are more than `call == literal`) iterators travel as their items, and instances of
classes that the problem's setup code defines travel as a table of (class name, attributes), cycles included.
"""

import collections
import decimal
import fractions
import itertools
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

MAX_BYTES = 8 << 20  # of one encoded value
MAX_DEPTH = 100  # of nested containers; no test's literal comes near, and reading takes frames of the stack
MAX_OBJECTS = 100_000
_MAX_EXPONENT = 5000  # of a Decimal: comparing larger ones with integers takes unbounded time


class Unencodable(Exception):
    """A value too large or too deep to be sent."""


class Opaque:
    """Stands for a value that is not plain data; equal to nothing, itself included."""

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


_SEQUENCES = {list: b"l", tuple: b"t", set: b"S", frozenset: b"Z", collections.deque: b"D"}
_ITERATE: dict[type, Callable[[Any], Iterator[Any]]] = {kind: kind.__iter__ for kind in _SEQUENCES}
_MAPPINGS = {dict: b"d", collections.Counter: b"C", collections.OrderedDict: b"o"}
_VIEWS = {type({}.keys()): b"k", type({}.items()): b"m"}
_ORDER = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    bytearray,
    list,
    tuple,
    set,
    frozenset,
    collections.deque,
    collections.Counter,
    collections.OrderedDict,
    dict,
    range,
    *_VIEWS,
    fractions.Fraction,
    decimal.Decimal,
)


class _Encoder:
    def __init__(self, classes: Mapping[str, type] | None):
        self.parts: list[bytes] = []
        self.size = 0
        self.rich = classes is not None
        self.names = {kind: name for name, kind in (classes or {}).items()}
        self.objects: list[Any] = []
        self.index: dict[int, int] = {}

    def emit(self, data: bytes) -> None:
        self.parts.append(data)
        self.size += len(data)
        if self.size > MAX_BYTES:
            raise Unencodable("too large")

    def value(self, value: Any, depth: int = 0) -> None:
        kind = type(value)
        if value is None:
            self.emit(b"N")
            return
        if depth > MAX_DEPTH:
            raise Unencodable("too deep")
        base = kind if kind in _SCALARS else next((base for base in _ORDER if base in kind.__mro__), None)
        if base in _SCALARS:
            self.emit(_SCALARS[base](value))
        elif base in _SEQUENCES:
            self.items(_SEQUENCES[base], list(_ITERATE[base](value)), depth)
        elif base in _MAPPINGS:
            pairs = list(dict.items(value))
            self.items(_MAPPINGS[base], list(itertools.chain.from_iterable(pairs)), depth)
        elif base in _VIEWS:
            self.items(_VIEWS[base], list(value), depth)
        elif base is range:
            self.items(b"r", [value.start, value.stop, value.step], depth)
        elif self.rich and kind in self.names:
            self.emit(b"R%x;" % self.reference(value))
        elif self.rich and hasattr(kind, "__iter__"):
            self.items(b"I", list(itertools.islice(value, MAX_OBJECTS)), depth)
        else:
            self.emit(b"?")

    def items(self, tag: bytes, items: list[Any], depth: int) -> None:
        self.emit(tag + b"%x;" % len(items))
        for item in items:
            self.value(item, depth + 1)

    def reference(self, value: Any) -> int:
        if id(value) not in self.index:
            if len(self.objects) == MAX_OBJECTS:
                raise Unencodable("too many objects")
            self.index[id(value)] = len(self.objects)
            self.objects.append(value)
        return self.index[id(value)]

    def table(self) -> None:
        """Objects are written one after the other, so a long linked list needs no recursion."""
        for value in self.objects:  # grows while it is walked
            attributes = getattr(value, "__dict__", {})
            self.emit(b"O")
            self.value(self.names[type(value)])
            self.items(b"d", list(itertools.chain.from_iterable(dict.items(attributes))), 0)


def _text(value: str) -> bytes:
    data = str.encode(value, "utf-8", "surrogatepass")
    return b"s%x;" % len(data) + data


def _raw(tag: bytes) -> Callable[[Any], bytes]:
    def encode_raw(value: Any) -> bytes:
        data = memoryview(value).tobytes()
        return tag + b"%x;" % len(data) + data

    return encode_raw


def _decimal(value: decimal.Decimal) -> bytes:
    if not decimal.Decimal.is_finite(value) or abs(decimal.Decimal.adjusted(value)) > _MAX_EXPONENT:
        return b"?"
    data = decimal.Decimal.__str__(value).encode()
    return b"e%x;" % len(data) + data


_SCALARS: dict[type, Callable[[Any], bytes]] = {
    bool: lambda value: b"T" if value else b"F",
    int: lambda value: b"i" + int.__format__(value, "x").encode() + b";",
    float: lambda value: b"f" + struct.pack("<d", value),
    complex: lambda value: b"c" + struct.pack("<dd", complex.real.__get__(value), complex.imag.__get__(value)),
    str: _text,
    bytes: _raw(b"b"),
    bytearray: _raw(b"y"),
    fractions.Fraction: lambda value: b"q%x;%x;" % (value.numerator, value.denominator),
    decimal.Decimal: _decimal,
}


def encode(value: Any, classes: Mapping[str, type] | None = None) -> bytes:
    """One value as bytes.

    Args:
        value: anything; what is not plain data becomes opaque.
        classes: rich form: the classes of the setup code by name. None: the plain form.

    Raises:
        Unencodable: more than `MAX_BYTES` or `MAX_DEPTH`.
    """
    kind = type(value)
    if kind in _SCALARS and len(data := _SCALARS[kind](value)) <= MAX_BYTES:
        return data  # most results are one number or text
    encoder = _Encoder(classes)
    encoder.value(value)
    encoder.table()
    return b"".join(encoder.parts)


class _Decoder:
    def __init__(self, data: bytes, largest: int, classes: Mapping[str, type]):
        self.data = data
        self.at = 0
        self.largest = largest
        self.classes = classes
        self.objects: list[Any] = []

    def take(self, size: int) -> bytes:
        piece = self.data[self.at : self.at + size]
        if len(piece) != size:
            raise ValueError("truncated")
        self.at += size
        return piece

    def number(self) -> int:
        end = self.data.index(b";", self.at)
        digits = self.data[self.at : end]
        self.at = end + 1
        return int(digits, 16)

    def length(self) -> int:
        length = self.number()
        if not 0 <= length <= len(self.data):
            raise ValueError("no length")
        return length

    def value(self, depth: int = 0) -> Any:
        tag = self.take(1)
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if depth > MAX_DEPTH:
            raise ValueError("too deep")
        if tag in b"ifcsbyqe":
            return self.scalar(tag)
        if tag == b"R":
            return self.reference(self.number())
        if tag == b"?":
            return Opaque()
        if tag not in _BUILD:
            raise ValueError("unknown tag")
        return self.container(tag, depth)

    def scalar(self, tag: bytes) -> Any:
        if tag == b"i":
            return self.number()
        if tag == b"f":
            return struct.unpack("<d", self.take(8))[0]
        if tag == b"c":
            return complex(*struct.unpack("<dd", self.take(16)))
        if tag == b"q":
            return fractions.Fraction(self.number(), self.number())
        data = self.take(self.length())
        if tag == b"s":
            return data.decode("utf-8", "surrogatepass")
        if tag == b"e":
            value = decimal.Decimal(data.decode("ascii"))
            if not value.is_finite() or abs(value.adjusted()) > _MAX_EXPONENT:
                raise ValueError("decimal out of range")
            return value
        return data if tag == b"b" else bytearray(data)

    def container(self, tag: bytes, depth: int) -> Any:
        length = self.length()
        # Hashed containers cost up to the square of their length when hashes are made to collide.
        if tag in b"SZdCokm" and length > self.largest:
            raise ValueError("larger than anything expected")
        return _BUILD[tag]([self.value(depth + 1) for _ in range(length)])

    def reference(self, index: int) -> Any:
        if not 0 <= index <= min(len(self.data), MAX_OBJECTS):
            raise ValueError("no reference")
        while len(self.objects) <= index:
            self.objects.append(_Blank())
        return self.objects[index]

    def table(self) -> None:
        index = 0
        while self.at < len(self.data):
            if self.take(1) != b"O":
                raise ValueError("trailing bytes")
            kind = self.classes[self.value()]
            attributes = self.value()
            instance = self.reference(index)
            index += 1
            object.__setattr__(instance, "__class__", kind)
            instance.__dict__.update(attributes)
        if index < len(self.objects):
            raise ValueError("dangling reference")


class _Blank:
    """An instance whose class is known only when its place in the table is read."""


def _pairs(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    if len(items) % 2:
        raise ValueError("odd mapping")
    return zip(items[::2], items[1::2], strict=True)


def _counter(items: list[Any]) -> collections.Counter:
    counter: collections.Counter = collections.Counter()
    dict.update(counter, _pairs(items))
    return counter


_CONSTANTS = {b"N": None, b"T": True, b"F": False}
_BUILD: dict[bytes, Callable[[list[Any]], Any]] = {
    b"l": list,
    b"t": tuple,
    b"S": set,
    b"Z": frozenset,
    b"D": collections.deque,
    b"d": lambda items: dict(_pairs(items)),
    b"C": _counter,
    b"o": lambda items: collections.OrderedDict(_pairs(items)),
    b"k": lambda items: dict.fromkeys(items).keys(),
    b"m": lambda items: dict(items).items(),
    b"r": lambda items: range(*items),
    b"I": iter,
}


def decode(data: bytes, largest: int = MAX_BYTES, classes: Mapping[str, type] | None = None) -> Any:
    """The value that `encode` wrote.

    Args:
        data: bytes from anywhere; nothing in them is trusted.
        largest: most entries (keys and values count apart) that a set or mapping may have.
        classes: setup classes by name, for the rich form.

    Raises:
        ValueError: malformed bytes, whatever is wrong with them.
    """
    decoder = _Decoder(data, largest, classes or {})
    try:
        value = decoder.value()
        decoder.table()
    except (TypeError, KeyError, ArithmeticError, RecursionError, MemoryError, AttributeError) as error:
        raise ValueError(f"not plain data: {type(error).__name__}") from error
    return value
