"""Problems and graders that the grader's tests share."""

from collections.abc import Mapping

from vgrout_jax.env.grader import GradeRequest
from vgrout_jax.env.modes import TRAINING_NAMES
from vgrout_jax.env.problems import Problem

SETUP = """
import collections, functools, itertools, math
from typing import *

class ListNode:
    def __init__(self, val=0, next=None):
        self.val = val
        self.next = next

def list_node(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head

def is_same_list(p, q):
    while p and q:
        if p.val != q.val:
            return False
        p, q = p.next, q.next
    return p is None and q is None
"""


def secret(n: int) -> int:
    """What the tests expect; no answer can guess it."""
    return (n * 7919 + 104729) * (n + 31337) % 1_000_003


def make_problem(tests: list[str], *, setup: str = SETUP, entry_point: str = "solve", name: str = "test") -> Problem:
    return Problem(
        id=name,
        messages=({"role": "user", "content": "Your solution should pass all tests."},),
        entry_point=entry_point,
        starter_code="",
        setup_code=setup,
        tests=tuple(tests),
        solution="",
        difficulty="",
    )


SECRET_PROBLEM = make_problem([f"assert Solution().solve({n}) == {secret(n)}" for n in range(1, 13)], name="secret")


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def ask(code: str, *, problem: Problem = SECRET_PROBLEM, mode: str = "gt_only") -> GradeRequest:
    return GradeRequest(problem, mode, fenced(code), TRAINING_NAMES)


def check_verdict(verdict: object, expected: Mapping[str, object]) -> None:
    actual = {name: getattr(verdict, name) for name in expected}
    assert actual == dict(expected), verdict
