"""Tests taken apart: a child never gets what is expected."""

import json

import pytest

from vgrout_jax.env.grader.checks import plan
from vgrout_jax.env.grader.worker import plain

from .support import make_problem


def test_plain_checks_keep_the_literal_and_send_the_call() -> None:
    made = plan(make_problem(["assert Solution().solve(x=[1, 'y']) == -5", "assert (1, 'z') == Solution().solve()"]))
    assert [check.holes for check in made.checks] == [
        ("Solution().solve(x=[1, 'y'])",),
        ("Solution().solve()",),
    ]
    assert [check.expected for check in made.checks] == [-5, (1, "z")]
    assert [check.rich for check in made.checks] == [False, False]
    assert made.first_call == "_solution.solve(x=[1, 'y'])"
    assert "-5" not in made.order.decode() and "'z'" not in made.order.decode()


@pytest.mark.parametrize(
    ("test", "holes", "assertions"),
    [
        (
            "assert same(Solution().f(make([1])), make([9]))",
            ("Solution().f(make([1]))",),
            ("same(_value_0, make([9]))",),
        ),
        ("assert len(Solution().f(1)) == 3", ("Solution().f(1)",), ("len(_value_0) == 3",)),
        ("assert Solution().f(1) == 10 ** 9", ("Solution().f(1)",), ("_value_0 == 10 ** 9",)),
        ("assert Solution().f(1) != 7", ("Solution().f(1)",), ("_value_0 != 7",)),
        ("assert Solution().f(1) == 7 == 7", ("Solution().f(1)",), ("_value_0 == 7 == 7",)),
        ("assert Solution().f(1).real == 7", ("Solution().f(1)",), ("_value_0.real == 7",)),
        ("assert Solution().f(1) in (7, 8), 'message'", ("Solution().f(1)",), ("_value_0 in (7, 8)",)),
        ("assert 1\nx = [3]\nSolution().f(x)\nassert x == [7]", ("x",), ("1", "_value_0 == [7]")),
        (
            "assert 1\ns = Solution()\nassert s.f(1) == 7\nassert s.f(2) == 8",
            ("s.f(1)", "s.f(2)"),
            ("1", "_value_0 == 7", "_value_1 == 8"),
        ),
    ],
)
def test_other_assertions_send_holes_only(test: str, holes: tuple[str, ...], assertions: tuple[str, ...]) -> None:
    made = plan(make_problem([test], name=test))
    (check,) = made.checks
    assert check.rich and check.holes == holes and check.assertions == assertions
    (sent,) = json.loads(made.order)["calls"]
    assert sorted(sent) == ["holes", "rich", "statements"] and "7" not in json.dumps(sent)


@pytest.mark.parametrize("test", ["assert True", "assert f(1) == 2", "assert (", "assert x == \0"])
def test_a_test_that_asserts_nothing_of_the_answer_is_an_error(test: str) -> None:
    with pytest.raises(ValueError, match="problem p: test 2"):
        plan(make_problem(["assert Solution().f() == 1", test], name="p"))


def test_holds_is_equality_within_bounds() -> None:
    (check,) = plan(make_problem(["assert Solution().f() == [1, {'a': 2.0}]"], name="holds")).checks
    assert check.holds(plain.encode([1, {"a": 2.0}])) and check.holds(plain.encode([True, {"a": 2}]))
    assert not check.holds(plain.encode((1, {"a": 2.0}))) and not check.holds(plain.encode([1, {"a": 2.5}]))
    assert not check.holds(b"") and not check.holds(b"?") and not check.holds(b"l1;" * 500)
    assert not check.holds(plain.encode("x" * 10_000))


def test_stand_ins_have_the_shape_and_agree_in_no_leaf() -> None:
    literal = "[1, True, 2.5, 'x', None, [], {}, {'k': (1, set())}, {3}]"
    (check,) = plan(make_problem([f"assert Solution().f() == {literal}"], name="shape")).checks
    first, second = (plain.decode(bytes.fromhex(data)) for data in check.stand_ins)
    assert len(first) == len(second) == 9 and set(first[7]) == set(second[7]) == {"k"}
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert type(first[0]) is int and type(first[1]) is bool and type(first[2]) is float
