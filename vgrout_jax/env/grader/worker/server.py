"""The warm process of one worker: takes orders on descriptor 3 and forks a child for each.

Started by the grader as `python -s -S -B -P server.py SETTINGS`, inside the namespaces where there are any. It
never reads what a child writes and never sees an answer's text: both go between the child and the grader over a
socket that only passes through here. So nothing of one answer is left in the memory that the next one inherits.
"""

import _ast
import ctypes
import functools
import gc
import json
import os
import select
import signal
import site
import socket
import struct
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any

CONTROL = 3
_POLL = (0.02, 0.05)  # seconds between looks at a child's clock: soon first, then seldom
_CLOSE = 0.001  # seconds between looks when its limit is near, so that when it is looked at decides nothing
_MAX_THREADS = 128
_THREAD_STACK = 8 << 20  # as usual; else it were that of the main thread, of which ten fill the address space
_SWEEP_SECONDS = 10  # for removing what an answer has left
_DESCRIPTORS = 256  # more than this process ever opens
_IDLE_NOTICE = 0.5  # seconds without computing after which the grader may give this core to another worker
# What nearly every answer imports. More would make every fork dearer than it saves.
_PRELOAD = (
    "bisect collections copy datetime functools heapq itertools json math operator random re string threading time"
    " typing unicodedata"
)
# The C library's own. What the interpreter's does besides is for threads, of which this process has no other, and for
# `random`, which it would seed from the system's entropy; and it touches, and so copies, pages in every child.
_FORK = ctypes.PyDLL(None, use_errno=True).fork


class Server:
    """State of the worker: the control socket, the confinement and the compiled problems."""

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings
        self.control = socket.socket(fileno=CONTROL)
        self.problems: dict[str, dict[str, Any]] = {}
        self.folder = folder.Folder(settings["folder"], settings["uid"])
        self.confinement = confine.prepare(settings)

    def serve(self) -> None:
        while True:
            order, descriptors = self.receive()
            name = order["op"]
            if name == "problem":
                self.problems[order["key"]] = compile_problem(order)
            elif name == "forget":
                self.problems.pop(order["key"], None)
            elif name == "run":
                self.reply(self.run(order, descriptors))

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        header, descriptors, _, _ = socket.recv_fds(self.control, 4, 4)
        data = b""
        size = struct.unpack("<I", header)[0] if len(header) == 4 else 0
        while len(data) < size:
            data += self.control.recv(size - len(data))
        if not data:
            sys.exit(0)  # the grader has gone
        return json.loads(data), descriptors

    def reply(self, report: dict[str, Any]) -> None:
        data = json.dumps(report).encode()
        self.control.sendall(struct.pack("<I", len(data)) + data)

    def run(self, order: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """Fork a child for one stage in a fresh folder, watch it to its end, and remove the folder.

        The report's `retire` says that something of the answer is left, so that this worker must not go on.
        """
        problem = self.problems[order["problem"]]
        self.folder.make()
        started = time.monotonic()
        output = descriptors[1] if order["stdout"] else -1
        process = self.fork(lambda: self.answer(order, problem), descriptors[0], output, script=order["script"])
        if output >= 0:
            os.close(output)
        report = self.watch(process, order, started)
        collect = descriptors[-1] if order["collect"] else -1
        report |= {"op": "done", "retire": not self.tidy(collect, order["collect"])}
        for descriptor in {descriptors[0], *descriptors[1 + order["stdout"] :]}:
            os.close(descriptor)
        return report

    def fork(self, work: Callable[[], int], job: int, output: int, *, script: bool = False) -> int:
        """Start a child; one that is a script ends as the interpreter does, with all that this runs and writes."""
        gc.freeze()  # else a child's first collection touches, and so copies, all that is compiled here
        process = _FORK()
        if process > 0:
            return process
        if process < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"fork: {os.strerror(number)}")
        try:
            self.arrange(job, output)
            status = work()
        except BaseException:
            os._exit(1)
        if script and not ending.finish():
            raise SystemExit(status)
        os._exit(status)

    def arrange(self, job: int, output: int) -> None:
        """Descriptors: nothing to read, the output or nowhere to write, the socket; no other is left open."""
        signal.set_wakeup_fd(-1)
        null = os.open("/dev/null", os.O_RDWR)
        job, output = os.dup(job), os.dup(output if output >= 0 else null)
        for target, source in ((0, null), (1, output), (2, null), (child.SOCKET, job)):
            os.dup2(source, target, inheritable=False)
        kept = max(self.confinement.ruleset, 4)  # closed by `confine.enter`, which needs it
        os.closerange(4, kept)
        os.closerange(kept + (self.confinement.ruleset >= 0), _DESCRIPTORS)

    def answer(self, order: dict[str, Any], problem: dict[str, Any]) -> int:
        confine.enter(self.confinement, {"memory": order["memory"], "cpu": int(order["cpu"]) + 2})
        return child.run(order["stage"], problem, script=order["script"])

    def watch(self, process: int, order: dict[str, Any], started: float) -> dict[str, Any]:
        """Wait for a child's end, and end it at its limits."""
        handle = os.pidfd_open(process)
        clock = (~process << 3) | 2  # the process's CPU clock
        idleness = watching.Idleness(process, started)
        why, noticed, looks, used = None, False, 0, 0.0
        while True:
            # When it looks is nobody's guess: an answer that knew could wake up just then.
            wait = _POLL[min(looks, len(_POLL) - 1)] * (0.5 + os.urandom(1)[0] / 255)
            looks += 1
            ready = select.select([handle, self.control], [], [], min(wait, max(order["cpu"] - used, _CLOSE)))[0]
            if handle in ready:
                break
            if self.control in ready and not self.control.recv(1, socket.MSG_PEEK):
                os.kill(process, signal.SIGKILL)
                sys.exit(0)
            try:
                used = time.clock_gettime(clock)
            except OSError:
                continue  # it has just ended
            idleness.look(used)
            why = why or self.exceeded(process, order, used, idleness.seconds)
            if why:
                os.kill(process, signal.SIGKILL)
            elif idleness.seconds > _IDLE_NOTICE and not noticed:
                noticed = True
                self.reply({"op": "idle"})
        _, status, usage = os.wait4(process, 0)
        os.close(handle)
        cpu, wall = usage.ru_utime + usage.ru_stime, time.monotonic() - started
        why = why or ("cpu" if cpu > order["cpu"] else None)
        return {"status": status, "why": why, "cpu": cpu, "wall": wall}

    def exceeded(self, process: int, order: dict[str, Any], used: float, idle: float) -> str | None:
        if used > order["cpu"]:
            return "cpu"
        if idle > order["idle"]:
            return "idle"
        if watching.threads(process) > _MAX_THREADS:
            return "threads"
        return "files" if self.folder.size() + folder.nameless_size(process) > order["folder"] else None

    def tidy(self, collect: int, names: list[str]) -> bool:
        """Hand over candidate files and remove the folder; returns whether nothing of the answer is left."""
        if not self.folder.is_empty():
            process = self.fork(lambda: self.sweep(names, collect >= 0), max(collect, 0), -1)
            handle = os.pidfd_open(process)
            if not select.select([handle], [], [], _SWEEP_SECONDS)[0]:
                os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            os.close(handle)
        return self.folder.remove()

    def sweep(self, names: list[str], send: bool) -> int:
        """In a confined child of the answer's identity, which alone reads its files."""
        confine.enter(self.confinement, {"memory": 1 << 30, "cpu": _SWEEP_SECONDS})
        folder.sweep(names, child.SOCKET if send else -1)
        return 0


def compile_problem(order: dict[str, Any]) -> dict[str, Any]:
    """Code of the setup code and of every test's calls; nothing of it but imports runs in this process."""
    calls = [
        {
            "statements": compile(call["statements"], "<test>", "exec") if call["statements"] else None,
            "holes": [compile(source, "<test>", "eval") for source in call["holes"]],
            "rich": call["rich"],
        }
        for call in order["calls"]
    ]
    main, setup = split_setup(order["setup"])
    return {"main": main, "setup": setup, "calls": child.packed(calls), "classes": order["classes"]}


@functools.lru_cache(maxsize=256)
def split_setup(source: str) -> tuple[types.ModuleType, types.CodeType]:
    """A main module with what the leading imports of the setup code bind, and the code of all the rest.

    Only the standard library can be imported here, so this runs nothing of the problem's own.
    """
    tree = compile(source, "<setup>", "exec", _ast.PyCF_ONLY_AST)
    kinds = [isinstance(node, (_ast.Import, _ast.ImportFrom)) for node in tree.body]
    count = kinds.index(False) if False in kinds else len(kinds)
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        exec(compile(_ast.Module(tree.body[:count], []), "<setup>", "exec"), names)
    except ImportError:
        # Then the answer's process fails as well, and says so.
        return child.main_module({}), compile(source, "<setup>", "exec")
    rest = compile(_ast.Module(tree.body[count:], []), "<setup>", "exec")
    return child.main_module({name: value for name, value in names.items() if not name.startswith("__")}), rest


def report_layers(settings: dict[str, Any]) -> dict[str, Any]:
    """What this machine can do, asked before the confinement is chosen (`settings["probe"]`)."""
    return {"landlock": confine.landlock_version(), "seccomp": confine.seccomp_known(), "python": sys.version}


def preload() -> None:
    for name in _PRELOAD.split():
        try:
            __import__(name)
        except ImportError:
            continue
    # An answer that draws is graded alike in every child.
    sys.modules["random"].seed(0)


def use_library(library: str) -> None:
    """Import from this standard library from now on, also into packages that are already there."""
    original = os.path.dirname(os.__file__)
    for module in list(sys.modules.values()):
        if hasattr(module, "__path__"):
            module.__path__ = [path.replace(original, library) for path in module.__path__]
    sys.path[:] = [library, library + "/lib-dynload"]
    sys.path_importer_cache.clear()


def main() -> None:
    settings = json.loads(sys.argv[1])
    sys.argv = [""]
    os.environ.clear()
    os.environ.update({"HOME": settings["folder"], "TMPDIR": settings["folder"], "PATH": "/usr/bin:/bin"})
    confine.undumpable()
    confine.die_with_parent()
    if settings["probe"]:
        print(json.dumps(report_layers(settings)))
        return
    if settings["control"] != CONTROL:
        os.dup2(settings["control"], CONTROL, inheritable=False)
        os.close(settings["control"])
    preload()
    server = Server(settings)
    # Opened once: a child finds other files behind the same descriptors.
    sys.stdin, sys.stdout, sys.stderr = child.standard_streams()
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    # What an interpreter that reads a script has, and one that was started without `site` lacks.
    for names in (site.setquit, site.setcopyright, site.sethelper):
        names()
    for name in [name for name in sys.modules if name.startswith("worker")]:
        del sys.modules[name]
    use_library(settings["library"])
    child.recursion_room()
    threading.stack_size(_THREAD_STACK)
    gc.collect()
    gc.disable()
    server.reply({"op": "ready"})
    server.serve()


if __name__ == "__main__":
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from worker import child, confine, ending, folder, watching

    main()
