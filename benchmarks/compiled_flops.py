"""Operations of a compiled program's matrix products, from its text: whether XLA computes a product more than once.

`flops.matmul_flops` counts what was asked for, before the compiler. It may drop a product that it finds twice; it may
also compute one again for a second reader, which no memory analysis shows.
"""

import dataclasses
import math
import re
from collections.abc import Callable

_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<type>.*?) (?P<opcode>[a-z][\w-]*)\((?P<rest>.*)")
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\) -> .*\{$")
_SHAPE = re.compile(r"\w+\[(?P<sizes>[\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONTRACTED = re.compile(r'lhs_contracting_(?:dims=\{|dimensions":\[)([^\]}]*)')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program: what it is called, what comes out, what it does, and all that stands behind that."""

    name: str
    type: str
    opcode: str
    rest: str

    @property
    def sizes(self) -> list[int]:
        """Of the result, or of a tuple's first element."""
        found = _SHAPE.search(self.type)
        return [int(size) for size in found["sizes"].split(",") if size] if found else []

    @property
    def is_product(self) -> bool:
        """Whether it is one of XLA's own or of the vendor's library; not of a kernel that XLA knows nothing of."""
        return self.opcode == "dot" or (self.opcode == "custom-call" and "cublas" in self.rest)


def compiled_flops(text: str, *, trips: int = 1) -> int:
    """2 m n k summed over every product that a call runs; loops multiplied out, of branches the most costly one.

    Args:
        text: `compiled.as_text()`, for a CPU or an NVIDIA GPU.
        trips: how often the body of a loop runs where the text does not say.

    Raises:
        ValueError: the text has no entry, so it is no program's.
    """
    computations, entry = _read(text)
    sizes = {one.name: one.sizes for body in computations.values() for one in body}
    counted: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in counted:
            counted[name] = sum(_cost(one, sizes, of, trips) for one in computations.get(name, ()))
        return counted[name]

    return of(entry)


def _cost(one: Instruction, sizes: dict[str, list[int]], of: Callable[[str], int], trips: int) -> int:
    if one.is_product:
        left, contracted = re.findall(r"%([\w.-]+)", one.rest)[0], _CONTRACTED.search(one.rest)
        axes = [int(axis) for axis in re.findall(r"\d+", contracted[1])]
        return 2 * math.prod(one.sizes) * math.prod(sizes[left][axis] for axis in axes)
    called = [of(name) for name in _CALLED.findall(one.rest)]
    if one.opcode == "conditional":
        listed = _BRANCHES.search(one.rest)
        return max(called + [of(name.strip(" %")) for name in (listed[1].split(",") if listed else ())])
    if one.opcode == "while":
        known = _TRIPS.search(one.rest)
        return sum(called) * (int(known[1]) if known else trips)
    return sum(called)


def _read(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The program's computations by name, and the name of the one that it begins with."""
    computations: dict[str, list[Instruction]] = {}
    entry, body = None, None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            body = computations.setdefault(head["name"], [])
            entry = head["name"] if head["entry"] else entry
        elif line.startswith("}"):
            body = None
        elif body is not None:
            found = _INSTRUCTION.match(line)
            if found:
                body.append(Instruction(**found.groupdict()))
    if entry is None:
        raise ValueError("the text has no ENTRY, so it is no compiled program's")
    return computations, entry
