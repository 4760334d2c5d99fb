"""Results that are not literally what is expected, and tests that are more than a call and a literal."""

import collections
import fractions
import math

import pytest

from vgrout_jax.env.grader import Grader

from .support import ask, make_problem

# returned expression, expected literal; Python's own == decides whether it holds
RESULTS = [
    ("2", "2.0"),
    ("2.0", "2"),
    ("True", "1"),
    ("1", "True"),
    ("0", "False"),
    ("None", "None"),
    ("None", "0"),
    ("[1, 2]", "[1, 2]"),
    ("(1, 2)", "[1, 2]"),
    ("[1, 2]", "(1, 2)"),
    ("collections.deque([1, 2])", "[1, 2]"),
    ("{1, 2}", "[1, 2]"),
    ("{2, 1}", "{1, 2}"),
    ("frozenset({1, 2})", "{1, 2}"),
    ("range(3)", "[0, 1, 2]"),
    ("(x for x in [1, 2])", "[1, 2]"),
    ("map(int, '12')", "[1, 2]"),
    ("iter([1, 2])", "[1, 2]"),
    ("collections.defaultdict(int, {'a': 1})", "{'a': 1}"),
    ("collections.Counter('aab')", "{'a': 2, 'b': 1}"),
    ("collections.OrderedDict([('b', 1), ('a', 2)])", "{'a': 2, 'b': 1}"),
    ("{'a': 1}.keys()", "{'a'}"),
    ("{'a': 1}.keys()", "['a']"),
    ("{'a': 1}.values()", "[1]"),
    ("{'a': 1}.items()", "{('a', 1)}"),
    ("collections.namedtuple('P', 'x y')(1, 2)", "(1, 2)"),
    ("enum.IntEnum('E', 'A').A", "1"),
    ("fractions.Fraction(2)", "2"),
    ("decimal.Decimal('2.50')", "2.5"),
    ("decimal.Decimal('Infinity')", "1"),
    ("type('Sub', (list,), {})([1])", "[1]"),
    ("type('Sub', (str,), {})('a')", "'a'"),
    ("'a'", "'a'"),
    ("b'a'", "'a'"),
    ("bytearray(b'a')", "b'a'"),
    ("'\\ud800'", "'\\ud800'"),
    ("'\\u00e9'", "'e\\u0301'"),
    ("'x' * 10", "'xxxxxxxxxx'"),
    ("2 ** 5000", str(2**5000) if 2**5000 < 10**4300 else "0"),
    ("float(2 ** 53 + 1)", str(2**53 + 1)),
    ("0.1 + 0.2", "0.3"),
    ("-0.0", "0"),
    ("float('inf')", "1e999"),
    ("float('nan')", "0"),
    ("1 + 0j", "1"),
    ("[[1, [2, (3,)]], {'a': {4}}]", "[[1, [2, (3,)]], {'a': {4}}]"),
    ("[True, None, 'x', 1.0]", "[1, None, 'x', 1]"),
    ("[1, 2, 3]", "[1, 2]"),
    ("[]", "[]"),
    ("()", "[]"),
    ("{}", "{}"),
    ("set()", "{}"),
    ("[float('nan')]", "[0]"),
    ("object()", "0"),
    ("...", "0"),
    ("NotImplemented", "True"),
]


@pytest.mark.slow
def test_results_are_as_lenient_as_equality_and_no_more(grader: Grader) -> None:
    imports = "import collections, decimal, enum, fractions, math\n"
    requests, wanted = [], []
    for result, expected in RESULTS:
        problem = make_problem([f"assert Solution().solve() == {expected}"], name=f"{result} == {expected}")
        requests.append(
            ask(f"{imports}class Solution:\n    def solve(self):\n        return {result}", problem=problem)
        )
        space: dict[str, object] = {}
        exec(imports, space)
        wanted.append(bool(eval(result, space) == eval(expected)))
    verdicts = grader.grade(requests)
    wrong = [
        (case, want, verdict)
        for case, want, verdict in zip(RESULTS, wanted, verdicts, strict=True)
        if verdict.correct != want
    ]
    assert not wrong and True in wanted and False in wanted


HELPER_PROBLEM = make_problem(
    [
        "assert is_same_list(Solution().solve(list_node([1, 2, 3])), list_node([3, 2, 1]))",
        "assert is_same_list(Solution().solve(list_node(list(range(5000)))), list_node(list(range(5000))[::-1]))",
        "assert Solution().solve(None) is None",
    ],
    name="reverse",
)
REVERSE = """
class Solution:
    def solve(self, head):
        previous = None
        while head:
            head.next, previous, head = previous, head, head.next
        return previous
"""
RICH = {
    "reverse": (HELPER_PROBLEM, REVERSE, True),
    "reverse_own_class": (
        HELPER_PROBLEM,
        "class ListNode:\n    def __init__(self, val=0, next=None):\n        self.val, self.next = val, next\n"
        + REVERSE,
        True,
    ),
    "not_reversed": (
        HELPER_PROBLEM,
        "class Solution:\n    def solve(self, head):\n        return head",
        False,
    ),
    "patched_helper": (
        HELPER_PROBLEM,
        "is_same_list = lambda *a: True\nclass Solution:\n    def solve(self, head):\n        return head",
        False,
    ),
    "agreeing_node": (
        HELPER_PROBLEM,
        "class Solution:\n    def solve(self, head):\n        class Yes:\n            __eq__ = lambda *a: True\n"
        "            __bool__ = lambda self: False\n        return Yes()",
        False,
    ),
    "approximate": (
        make_problem(["assert abs(Solution().solve() - 0.3) < 1e-9"], name="approximate"),
        "class Solution:\n    def solve(self):\n        return 0.1 + 0.2",
        True,
    ),
    "approximate_wrong": (
        make_problem(["assert abs(Solution().solve() - 0.3) < 1e-9"], name="approximate"),
        "class Solution:\n    def solve(self):\n        return 0.31",
        False,
    ),
    "sorted_generator": (
        make_problem(["assert sorted(Solution().solve()) == [1, 2]"], name="sorted"),
        "class Solution:\n    def solve(self):\n        yield 2\n        yield 1",
        True,
    ),
    "computed_expectation": (
        make_problem(["assert Solution().solve() == [0] * 3 + [10 ** 9]"], name="computed"),
        "class Solution:\n    def solve(self):\n        return [0, 0, 0, 1000000000]",
        True,
    ),
    "in_place": (
        make_problem(["assert True; nums = [3, 1, 2]; Solution().solve(nums); assert nums == [1, 2, 3]"], name="in"),
        "class Solution:\n    def solve(self, nums):\n        nums.sort()",
        True,
    ),
    "in_place_wrong": (
        make_problem(["assert True; nums = [3, 1, 2]; Solution().solve(nums); assert nums == [1, 2, 3]"], name="in"),
        "class Solution:\n    def solve(self, nums):\n        nums.reverse()",
        False,
    ),
    "expected_first": (
        make_problem(["assert [1] == Solution().solve()"], name="first"),
        "class Solution:\n    def solve(self):\n        return [1]",
        True,
    ),
    "mutated_arguments": (
        make_problem(
            ["assert Solution().solve([1, 2]) == 2", "assert Solution().solve([1, 2]) == 2"], name="mutated"
        ),
        "class Solution:\n    def solve(self, nums):\n        return nums.pop()",
        True,
    ),
    "state_over_calls": (
        make_problem(["assert Solution().solve(1) == 1", "assert Solution().solve(1) == 1"], name="state"),
        "seen = []\nclass Solution:\n    def solve(self, n):\n        seen.append(n)\n        return len(seen)",
        False,
    ),
}


@pytest.mark.slow
def test_tests_that_are_more_than_a_call_and_a_literal(grader: Grader) -> None:
    verdicts = grader.grade([ask(code, problem=problem) for problem, code, _ in RICH.values()])
    correct = {name: verdict.correct for name, verdict in zip(RICH, verdicts, strict=True)}
    assert correct == {name: right for name, (_, _, right) in RICH.items()}


def test_the_oracle_of_the_result_table_is_python_itself() -> None:
    """A few rows by hand, so that the table's own expectation is known to be what is meant."""
    assert collections.Counter("aab") == {"a": 2, "b": 1} and collections.deque([1]) != [1]
    assert fractions.Fraction(2) == 2 and range(3) != [0, 1, 2] and math.nan != math.nan
