"""The tests of a problem, taken apart: what a child evaluates, and what only the grader knows.

Most tests read `assert Solution().method(arguments) == literal`: the child gets the call, the grader keeps the
literal. In any other assertion every call that is rooted in the answer becomes a hole; the child gets the holes,
and the assertion is evaluated later, in a process without an answer, on plain data in their places.
"""

import ast
import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from vgrout_jax.env.problems import Problem

from .worker import plain

_ROOT = "Solution"
_SLACK = 1024  # bytes of a result beyond four times the expected one
_RICH_BYTES = 1 << 20


@dataclass(frozen=True)
class Check:
    """One test.

    Attributes:
        statements: source that the child runs before the holes, or None.
        holes: expressions that the child evaluates; exactly one in a plain check.
        rich: whether the assertion is more than `call == literal`.
        expected: the literal (plain checks).
        canonical: the expected value as bytes, where equal bytes mean an equal value; else None.
        largest: most entries that a set or mapping in the result may have.
        limit: most bytes that a result may take before it cannot be right.
        assertions: expressions over `_value_0`, `_value_1`, ... (rich checks).
        stand_ins: two values in the expected one's shape that agree in no leaf, as hexadecimal bytes.
    """

    statements: str | None
    holes: tuple[str, ...]
    rich: bool
    expected: Any
    canonical: bytes | None
    largest: int
    limit: int
    assertions: tuple[str, ...]
    stand_ins: tuple[str, str]

    def holds(self, data: bytes) -> bool:
        """Whether a result equals the expected value, by Python's own `==` on exact builtin types."""
        if len(data) > self.limit:
            return False
        if data == self.canonical:
            return True
        try:
            return bool(self.expected == plain.decode(data, self.largest))
        except (ValueError, RecursionError, OverflowError):
            return False


@dataclass(frozen=True)
class Plan:
    """All tests of a problem.

    Attributes:
        key: names the problem's setup code and calls.
        order: what a worker must know to evaluate the calls, as JSON; holds nothing expected.
        checks: in the problem's order.
        classes: names of the classes that the setup code defines.
        first_call: the first test's call with `_solution` for the object, or None.
    """

    key: str
    order: bytes
    checks: tuple[Check, ...]
    classes: tuple[str, ...]
    first_call: str | None


@functools.lru_cache(maxsize=1024)
def _plan(identifier: str, setup: str, tests: tuple[str, ...]) -> Plan:
    checks = tuple(_check(identifier, place, test) for place, test in enumerate(tests))
    classes = _class_names(identifier, setup)
    content = {
        "op": "problem",
        "setup": setup,
        "classes": classes,
        "calls": [{"statements": c.statements, "holes": c.holes, "rich": c.rich} for c in checks],
    }
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
    order = json.dumps({**content, "key": key}).encode()
    return Plan(key, order, checks, classes, _first_call(checks[0]))


def plan(problem: Problem) -> Plan:
    """Take a problem's tests apart, once.

    Raises:
        ValueError: a test that does not parse, or asserts nothing about the answer.
    """
    return _plan(problem.id, problem.setup_code, problem.tests)


def _check(identifier: str, place: int, test: str) -> Check:
    where = f"problem {identifier}: test {place + 1}"
    try:
        body = ast.parse(test.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{where} must be Python, got {error}") from error
    if len(body) == 1 and isinstance(body[0], ast.Assert):
        plain_check = _plain_check(body[0].test)
        if plain_check is not None:
            return plain_check
    return _rich_check(where, body)


def _plain_check(test: ast.expr) -> Check | None:
    if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq)):
        return None
    for call, other in ((test.left, test.comparators[0]), (test.comparators[0], test.left)):
        if not _is_call(call, frozenset()):
            continue
        try:
            expected = ast.literal_eval(other)
            canonical = plain.encode(expected)
            largest = _largest(expected)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, plain.Unencodable):
            continue
        limit = 4 * len(canonical) + _SLACK
        # NaN equals nothing, so equal bytes would say more than `==` does.
        exact = canonical if plain.decode(canonical) == expected else None
        stand_ins = tuple(plain.encode(_stand_in(expected, second)).hex() for second in (False, True))
        return Check(None, (ast.unparse(call),), False, expected, exact, largest, limit, (), stand_ins)
    return None


def _rich_check(where: str, body: list[ast.stmt]) -> Check:
    statements = [node for node in body if not isinstance(node, ast.Assert)]
    assertions = [node.test for node in body if isinstance(node, ast.Assert)]
    assigned = frozenset(
        node.id
        for statement in statements
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )
    holes = _Holes(assigned)
    sources = tuple(ast.unparse(holes.visit(node)) for node in assertions)
    if not holes.sources:
        raise ValueError(f"{where} must assert something about {_ROOT}(), got {ast.unparse(body[-1])[:80]}")
    stand_ins = tuple(plain.encode(_stand_in(1, second)).hex() for second in (False, True))
    return Check(
        "\n".join(map(ast.unparse, statements)) or None,
        tuple(holes.sources),
        True,
        None,
        None,
        0,
        _RICH_BYTES,
        sources,
        stand_ins,
    )


class _Holes(ast.NodeTransformer):
    """Replaces what depends on the answer by names of plain values."""

    def __init__(self, assigned: frozenset[str]):
        self.assigned = assigned
        self.sources: list[str] = []

    def visit(self, node: ast.AST) -> ast.AST:
        named = isinstance(node, ast.Name) and node.id in self.assigned
        if named or _is_call(node, self.assigned):
            self.sources.append(ast.unparse(node))
            return ast.Name(f"_value_{len(self.sources) - 1}", ast.Load())
        return self.generic_visit(node)


def _is_call(node: ast.AST, assigned: frozenset[str]) -> bool:
    """Whether a node is a call whose chain of attributes and calls starts at the answer."""
    if not isinstance(node, ast.Call):
        return False
    while isinstance(node, (ast.Call, ast.Attribute)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return isinstance(node, ast.Name) and (node.id == _ROOT or node.id in assigned)


def _first_call(check: Check) -> str | None:
    if check.statements is not None:
        return None
    tree = ast.parse(check.holes[0], mode="eval")

    class _Object(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            if isinstance(node.func, ast.Name) and node.func.id == _ROOT:
                return ast.Name("_solution", ast.Load())
            return self.generic_visit(node)

    return ast.unparse(_Object().visit(tree))


def _class_names(identifier: str, setup: str) -> tuple[str, ...]:
    try:
        body = ast.parse(setup).body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"problem {identifier}: setup_code must be Python, got {error}") from error
    return tuple(node.name for node in body if isinstance(node, ast.ClassDef))


def _largest(value: Any) -> int:
    """Entries of the largest container anywhere in a value, with room for keys and values."""
    if isinstance(value, dict):
        inner = [*value, *value.values()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = list(value)
    else:
        return 0
    return max([2 * len(inner), *map(_largest, inner)])


def _stand_in(value: Any, second: bool) -> Any:
    """A value in the same shape whose leaves are all of the first or all of the second kind.

    A plain value equals at most one of the two; only an object that agrees with everything equals both.
    """
    if isinstance(value, dict) and value:
        return {key: _stand_in(item, second) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and value:
        return type(value)(_stand_in(item, second) for item in value)
    number = -(2**107) - 3 if second else 2**89 + 7
    leaves = {bool: second, int: number, float: number * 1.5, str: f"stand-in {number}"}
    if type(value) in leaves:
        return leaves[type(value)]
    empty_or_set = {list: [number], tuple: (number,), dict: {number: number}, set: {number}}
    return empty_or_set.get(type(value), f"stand-in {number}")
