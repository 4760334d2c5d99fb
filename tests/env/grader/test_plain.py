"""Plain data: what is sent is what arrives, nothing else can arrive, and reading it is cheap."""

import collections
import decimal
import fractions
import random
import time

import pytest

from vgrout_jax.env.grader.worker import plain

VALUES = [
    None,
    True,
    0,
    -1,
    1 << 5000,
    -(1 << 64),
    0.1,
    -0.0,
    float("inf"),
    1 + 2j,
    "",
    "a;b",
    "\ud800\0é",
    b"\x00;",
    bytearray(b"x"),
    [],
    [1, [2, (3, "x")]],
    (),
    {1, 2},
    frozenset({1}),
    {"a": [1], 2: None},
    collections.deque([1]),
    collections.Counter("aab"),
    collections.OrderedDict(a=1),
    range(1, 10, 3),
    fractions.Fraction(-1, 3),
    decimal.Decimal("-1.50"),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_is_sent_arrives_with_its_type(value: object) -> None:
    arrived = plain.decode(plain.encode(value), largest=100)
    assert type(arrived) is type(value) and arrived == value and repr(arrived) == repr(value)


def test_not_a_number_arrives_as_such() -> None:
    assert repr(plain.decode(plain.encode(float("nan")))) == "nan"


def test_subclasses_arrive_as_their_content() -> None:
    class Lying(list):
        def __iter__(self):
            return iter("lie")

        def __len__(self) -> int:
            return 3

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None

    class Number(int):
        def __format__(self, specification: str) -> str:
            return "2a"

        def __index__(self) -> int:
            return 42

    arrived = plain.decode(plain.encode([Lying([5]), Number(7)]))
    assert arrived == [[5], 7] and [type(item) for item in arrived] == [list, int]


@pytest.mark.parametrize(
    "value",
    [object(), lambda: 0, type, iter([1]), ..., NotImplemented],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_plain_equals_nothing(value: object) -> None:
    arrived = plain.decode(plain.encode(value))
    again = plain.decode(plain.encode(value))
    for other in (arrived, again, value):
        assert (arrived == other) is False and ([arrived, 1] == [again, 1]) is False


def test_rich_form_carries_objects_and_cycles() -> None:
    class Node:
        pass

    first, second = Node(), Node()
    first.next, second.next, first.value = second, first, 5
    arrived = plain.decode(plain.encode((first, [second]), {"Node": Node}), classes={"Node": Node})
    assert type(arrived[0]) is Node and arrived[0].next is arrived[1][0] and arrived[1][0].next is arrived[0]
    assert arrived[0].value == 5


def test_any_bytes_are_a_value_or_a_value_error() -> None:
    rng = random.Random(0)
    seeds = [plain.encode(value) for value in VALUES]
    for _ in range(20_000):
        data = bytearray(rng.choice(seeds) + rng.choice(seeds)[: rng.randrange(4)])
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.choice(b"lStdifNO;0f9?RIqeckm" + bytes([rng.randrange(256)]))
        try:
            plain.decode(bytes(data), largest=50)
        except ValueError:
            continue


@pytest.mark.parametrize(
    "data",
    [
        b"l7fffffff;",
        b"i" + b"f" * 100,
        b"l1;" * 5000 + b"N",
        b"q1;0;",
        b"r3;i0;i1;i0;",
        b"S1;l0;",
        b"d1;N",
        b"R5;",
        b"Rfffff;",
        b"NO",
        b"NOs1;xd0;",
        b"",
        b"s5;ab",
        b"e3;abc",
        b"e9;1E+999999",
        b"i-;",
    ],
)
def test_malformed_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        plain.decode(data)


def test_colliding_hashes_cost_the_reader_nothing() -> None:
    # All of these have the hash 0.
    data = plain.encode([k * ((1 << 61) - 1) for k in range(50_000)])
    started = time.process_time()
    with pytest.raises(ValueError):
        plain.decode(b"S" + data[1:], largest=12)
    assert time.process_time() - started < 1.0


def test_too_much_is_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "MAX_BYTES", 10_000)
    nested: list = []
    for _ in range(10_000):
        nested = [nested]
    shared: list = [1]
    for _ in range(40):
        shared = [shared, shared]
    for value in (nested, shared, "x" * (plain.MAX_BYTES + 1)):
        with pytest.raises(plain.Unencodable):
            plain.encode(value)
