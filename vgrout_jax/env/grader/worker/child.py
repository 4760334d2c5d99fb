"""One stage of one answer, in a process of its own that ends with it.

The process reads a request from its socket, runs the answer, and writes frames: a kind, a length, a body. Whoever
controls the answer controls every frame after "compiled"; the reader's rules (`../answer.py`) therefore never ask
more of a frame than what it costs to produce it honestly.

| kind | body |
|---|---|
| B | the process is confined and the problem's own code ran; nothing of the answer has run |
| C | 1 or 0: the code compiled; sent before any of it runs |
| R | result of the next test, as `plain` data; with stand-ins, preceded by 1 or 0: does it equal both of them |
| E | type name of the exception that ended the tests |
| A | attributes of the Solution object, as `plain` data |
| P | the answer's own test function passed |
| J | 1 or 0: a test holds, judged from plain data alone (no answer runs in that stage) |
| D | the tests, or the judge, came to their end |
| Q | what was to be found out besides the tests has been |
"""

import contextlib
import gc
import io
import json
import marshal
import os
import struct
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from . import plain, probes

SOCKET = 3  # descriptor of the child's socket
# A script's own frames: what an answer may recurse is what it could in a script of its own.
_OWN_FRAMES = 12


class Channel:
    """Frames over the socket; bound at import, so that a patched `os` changes nothing but the answer's own view."""

    def __init__(self) -> None:
        self._write, self._read = os.write, os.read
        self._pending: list[bytes] = []

    def add(self, kind: bytes, body: bytes = b"") -> None:
        self._pending.append(kind + struct.pack("<I", len(body)) + body)

    def send(self, kind: bytes, body: bytes = b"") -> None:
        self.add(kind, body)
        self.flush()

    def flush(self) -> None:
        data = memoryview(b"".join(self._pending))
        self._pending.clear()
        while data:
            data = data[self._write(SOCKET, data) :]

    def read(self, size: int) -> bytes:
        pieces = []
        while size:
            piece = self._read(SOCKET, min(size, 1 << 20))
            if not piece:
                raise EOFError
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def body(self) -> bytes:
        return self.read(struct.unpack("<I", self.read(4))[0])


def run(stage: str, problem: dict[str, Any], *, script: bool) -> int:
    """Run one stage.

    Args:
        stage: "tests", "attribute", "function" or "judge".
        problem: its `main` module, compiled `setup` and marshalled `calls`, from the server.
        script: a hook of the answer's own is told of what ended the tests, as at a failing script's end.

    Returns:
        The exit status: of the script that the answer and its tests would have been, and 1 at that script's
        end, as if its last check had failed. Status 0 is thus always the answer's own doing.
    """
    channel = Channel()
    request = json.loads(channel.body())
    source = channel.body().decode("utf-8", "surrogatepass")
    main = sys.modules["__main__"] = problem["main"]
    _be_a_script(main)
    gc.enable()
    try:
        error = _stage(channel, stage, request, problem, source)
    except SystemExit as stop:
        channel.flush()  # a script that had found something wrong would not have come so far
        return _exit_status(stop.code)
    except BaseException as other:
        # The answer may have left anything broken; a report that cannot be sent is no report.
        _report(channel, other)
        error = other
    try:
        if script:
            _unhandled(error or AssertionError())
    except SystemExit as stop:
        return _exit_status(stop.code)
    return 1


def _be_a_script(main: types.ModuleType) -> None:
    """The names and the search path that a script in the private folder has."""
    folder = os.getcwd()
    main.__dict__["__file__"] = sys.argv[0] = f"{folder}/solution.py"
    sys.path.insert(0, folder)


def _stage(
    channel: Channel, stage: str, request: dict[str, Any], problem: dict[str, Any], source: str
) -> BaseException | None:
    """Run the setup code and the stage; returns the exception that ended an answer, if one did."""
    space = problem["main"].__dict__
    exec(problem["setup"], space)
    channel.send(b"B")
    if stage == "judge":
        _judge(channel, request, space)
        return None
    if request.get("stand_ins"):
        request["stand_ins"] = [_decoded(pair) for pair in request["stand_ins"]]
    code = _compile(channel, source)
    if code is None:
        return None
    return _answer(channel, stage, request, problem, space=space, code=code)


def _answer(
    channel: Channel,
    stage: str,
    request: dict[str, Any],
    problem: dict[str, Any],
    *,
    space: dict[str, Any],
    code: types.CodeType,
) -> Exception | None:
    """Run the answer, then the tests, then what else is asked for once their results are sent."""
    asked = request["probe"] if stage == "tests" else {"stage": stage, **request}
    loaded, ended = False, None
    try:
        exec(code, space)
        loaded = True
        if stage == "tests":
            _tests(channel, request, problem, space)
    except Exception as error:
        _report(channel, error)
        ended = error
    # The test function counts as far as it is defined: often the answer calls it itself, and fails there.
    if asked is not None and (loaded or asked["stage"] == "function"):
        with contextlib.suppress(Exception):
            _PROBES[asked["stage"]](channel, asked, space)
        channel.send(b"Q")
    return ended


def _unhandled(error: BaseException) -> None:
    """Tell a hook of the answer's own; the interpreter's only prints a traceback that nobody reads."""
    if sys.excepthook is not sys.__excepthook__:
        with contextlib.suppress(Exception):
            sys.excepthook(type(error), error, error.__traceback__)


def _report(channel: Channel, error: BaseException) -> None:
    channel.send(b"E", type(error).__name__.encode("utf-8", "replace")[:100])


def _compile(channel: Channel, source: str) -> types.CodeType | None:
    try:
        code = compile(source, probes.ANSWER_FILE, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        channel.add(b"C", b"0")
        channel.send(b"E", type(error).__name__.encode())
        return None
    channel.send(b"C", b"1")
    return code


def main_module(names: Mapping[str, Any]) -> types.ModuleType:
    """A script's `__main__`. The server fills it: names bound in a child would cost that a page for nearly each."""
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    main.__dict__.update(names)
    return main


def packed(calls: list[dict[str, Any]]) -> list[bytes]:
    """Calls as `_tests` takes them, in blocks that end where the reader is asked.

    Marshalled they are a fifth of their size as objects, which every fork would copy the page tables of.
    """
    blocks, start, end = [], 0, 1
    while start < len(calls):
        blocks.append(marshal.dumps(calls[start:end]))
        start, end = end, 4 * end
    return blocks


def _unpacked(blocks: list[bytes]) -> Iterator[dict[str, Any]]:
    for block in blocks:
        yield from marshal.loads(block)


def _tests(channel: Channel, request: dict[str, Any], problem: dict[str, Any], space: dict[str, Any]) -> None:
    """Evaluate the calls in order; after 1, 4, 16, ... of them the reader says whether to go on.

    A script would end at its first failing check. Asking at fixed places makes how far an answer gets a matter
    of its results alone, never of timing. Where the flaw trusts what a script leaves, the places are all.
    """
    stand_ins = request["stand_ins"]
    count, ask = request["count"], 1
    for place, call in zip(range(count), _unpacked(problem["calls"]), strict=False):
        values = _values(call, space)
        flag = b""
        if stand_ins is not None:
            flag = _agrees(values, stand_ins[place])
        classes = _classes(space, problem) if call["rich"] else None
        channel.add(b"R", flag + plain.encode(values if call["rich"] else values[0], classes))
        if place + 1 == ask and place + 1 < count:
            ask = ask + 1 if request["each"] else 4 * ask
            channel.flush()
            if channel.read(1) != b"g":
                return
    channel.send(b"D")


def _values(call: dict[str, Any], space: dict[str, Any]) -> tuple[Any, ...]:
    if call["statements"] is None:
        return tuple(eval(code, space) for code in call["holes"])
    local = dict(space)
    exec(call["statements"], local)
    return tuple(eval(code, local) for code in call["holes"])


def _decoded(pair: list[str]) -> tuple[Any, ...]:
    return tuple(plain.decode(bytes.fromhex(data)) for data in pair)


def _agrees(values: tuple[Any, ...], pair: tuple[Any, Any]) -> bytes:
    # Not a single builtin is called here: the answer may have replaced them.
    try:
        for value in values:
            for stand_in in pair:
                # `!=` would ask another method of the answer's object.
                if not value == stand_in:  # noqa: SIM201
                    return b"0"
    except Exception:
        return b"0"
    return b"1"


def _classes(space: dict[str, Any], problem: dict[str, Any]) -> dict[str, type]:
    found = {name: space.get(name) for name in problem["classes"]}
    return {name: kind for name, kind in found.items() if isinstance(kind, type)}


def _attribute(channel: Channel, request: dict[str, Any], space: dict[str, Any]) -> None:
    """Report the candidate attributes of a fresh Solution object, then once more after the first test's call."""
    solution = space["Solution"]()
    _send_attributes(channel, request, solution)
    space["_solution"] = solution
    if request["call"] is not None:
        with contextlib.suppress(Exception):
            eval(compile(request["call"], "<test>", "eval"), space)
    _send_attributes(channel, request, solution)


def _send_attributes(channel: Channel, request: dict[str, Any], solution: Any) -> None:
    found = []
    for name in request["names"]:
        value = getattr(solution, name, None)
        if type(value) in (bool, int, float, str):
            found.append((name, value))
    channel.send(b"A", plain.encode(found))


def _function(channel: Channel, request: dict[str, Any], space: dict[str, Any]) -> None:
    """Run the answer's own test function with the method that it should test replaced by stand-ins."""
    if probes.is_vacuous(space, request["names"], request["entry_point"]):
        channel.send(b"P")


def _judge(channel: Channel, request: dict[str, Any], space: dict[str, Any]) -> None:
    """Evaluate whole assertions with the answer's results as plain data in the places of its calls."""
    for check in request["checks"]:
        local = dict(space)
        names = {name: space.get(name) for name in request["classes"]}
        try:
            values = plain.decode(bytes.fromhex(check["values"]), classes=names)
            if type(values) is not tuple:
                raise ValueError("no tuple")
            local.update((f"_value_{place}", value) for place, value in enumerate(values))
            holds = all(eval(compile(source, "<test>", "eval"), local) for source in check["assertions"])
        except Exception:
            holds = False
        channel.add(b"J", b"1" if holds else b"0")
    channel.send(b"D")


def recursion_room() -> None:
    """Leave an answer the depth that it would have in a script."""
    sys.setrecursionlimit(1000 + _OWN_FRAMES)


def standard_streams() -> Iterator[io.TextIOWrapper]:
    """Text streams over descriptors 0 to 2 that take any string, as an interpreter would open them."""
    for descriptor, mode in ((0, "r"), (1, "w"), (2, "w")):
        binary = open(descriptor, mode + "b", closefd=False)  # noqa: SIM115
        yield io.TextIOWrapper(binary, encoding="utf-8", errors="backslashreplace")


def _exit_status(code: object) -> int:
    """What an interpreter makes of the code of a SystemExit: the low byte of a C number."""
    if code is None:
        return 0
    if not isinstance(code, int):
        return 1
    return code & 0xFF if -(2**63) <= code < 2**63 else 0xFF


_PROBES: dict[str, Callable[..., None]] = {"attribute": _attribute, "function": _function}
