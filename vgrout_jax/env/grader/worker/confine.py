"""The layers below the namespaces: identity, resource limits, Landlock and seccomp, as system calls.

`prepare` opens what a child needs before it may no longer open it; `enter` is the one-way door that every child
goes through before it reads a byte of an answer.
"""

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from . import syscalls

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38

# Landlock's rights over files, in the order of their bits, with the interface version that brought each.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE = (1 << bit for bit in (0, 1, 2, 3, 5))
_MAKE_REGULAR, _TRUNCATE = 1 << 8, 1 << 14
_READ_ONLY = _EXECUTE | _READ_FILE | _READ_DIR
_READ_WRITE = _WRITE_FILE | _READ_FILE | _READ_DIR | _REMOVE_FILE | _MAKE_REGULAR | _TRUNCATE
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # number of handled bits
_BIND_AND_CONNECT_TCP = 3
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 3

FILE_BYTES = 8 << 20  # of one file
OPEN_FILES = 64
STACK_BYTES = 96 << 20  # below the 128 MiB that the kernel always leaves free under a main thread's stack


class Confinement(NamedTuple):
    """What a child is put into.

    Attributes:
        uid: of nobody, or None where the server may not change its own.
        ruleset: descriptor of the Landlock ruleset, or -1.
        seccomp: whether the filter is installed.
        processes: whether the limit on processes and threads counts this child's uid alone.
    """

    uid: int | None
    ruleset: int
    seccomp: bool
    processes: bool


def prepare(settings: Mapping[str, Any]) -> Confinement:
    """Make the ruleset, and bind this process to what all its children share.

    Args:
        settings: `folder`, `uid`, `readable` and `listable` (paths), `landlock`, `seccomp`, `processes`.
    """
    os.umask(0o022)
    _common_limits()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if settings["seccomp"]:
        _buffer(syscalls.program(0))  # makes the filter and the buffer's type once, for all children
    ruleset = -1
    if settings["landlock"]:
        # The folder is another one for each child; the one above it is not theirs to write to.
        above = os.path.dirname(settings["folder"])
        ruleset = landlock_ruleset(settings["readable"], settings["listable"], above)
    return Confinement(settings["uid"], ruleset, settings["seccomp"], settings["processes"])


def enter(confinement: Confinement, limits: Mapping[str, int]) -> None:
    """Give up, in this process and for good, everything an answer has no use for.

    Args:
        confinement: from `prepare`.
        limits: `memory` (bytes of address space), `cpu` (seconds, a backstop: the server watches the clock).
    """
    os.setsid()
    _limit(limits, confinement.processes)
    if confinement.uid is not None:
        os.setgroups([])
        os.setresgid(confinement.uid, confinement.uid, confinement.uid)
        os.setresuid(confinement.uid, confinement.uid, confinement.uid)
    die_with_parent()  # a change of identity would clear it
    _drop_capabilities()
    if confinement.ruleset >= 0:
        _call(syscalls.number("landlock_restrict_self"), confinement.ruleset, 0)
        os.close(confinement.ruleset)
    if confinement.seccomp:
        _install(syscalls.program(os.getpid()))


def undumpable() -> None:
    """Close this process's memory, descriptors and environment to others of the same uid."""
    _prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def landlock_version() -> int:
    """Version of the kernel's Landlock interface, 0 where there is none."""
    number = syscalls.number("landlock_create_ruleset")
    if number is None:
        return 0
    return max(0, _LIBC.syscall(ctypes.c_long(number), None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def landlock_ruleset(readable: Iterable[str], listable: Iterable[str], folder: str) -> int:
    """Descriptor of a ruleset: `readable` may be read, `listable` listed, `folder` written, nothing else opened."""
    version = landlock_version()
    bits = _RIGHTS_BY_VERSION[min(version, 5)]
    handled = (1 << bits) - 1
    fields = [handled, _BIND_AND_CONNECT_TCP, _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS]
    fields = fields[: 1 + (version >= 4) + (version >= 6)]
    attribute = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = _call(syscalls.number("landlock_create_ruleset"), attribute, len(attribute), 0)
    for path in readable:
        _allow(ruleset, path, _READ_ONLY & handled)
    for path in listable:
        _allow(ruleset, path, _READ_DIR & handled)
    _allow(ruleset, "/dev/null", (_READ_FILE | _WRITE_FILE | _TRUNCATE) & handled)
    _allow(ruleset, folder, _READ_WRITE & handled)
    return ruleset


def seccomp_known() -> bool:
    """Whether the filter is written for this machine's instruction set and the kernel takes filters."""
    if not syscalls.supported():
        return False
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _prctl(_PR_SET_NO_NEW_PRIVS, 1)
            _install(syscalls.program(os.getpid()))
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            rights &= _FILE_RIGHTS
        rule = struct.pack("=Qi", rights, descriptor)
        _call(syscalls.number("landlock_add_rule"), ruleset, 1, rule, 0)
    finally:
        os.close(descriptor)


def _drop_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets, whatever was handed down."""
    number = syscalls.number("capset")
    if number is not None:
        _call(number, struct.pack("=II", 0x20080522, 0), bytes(24))


def _common_limits() -> None:
    """Those that hinder no more than an answer; children inherit them."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    wanted = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    # Threads take the soft limit as their stack's size: what an interpreter has by default, plus deep recursion.
    resource.setrlimit(resource.RLIMIT_STACK, (wanted, wanted))


def _limit(limits: Mapping[str, int], processes: bool) -> None:
    cpu = limits["cpu"]
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    if processes:
        resource.setrlimit(resource.RLIMIT_NPROC, (64, 64))
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory"], limits["memory"]))


def _install(program: bytes) -> None:
    """Install a seccomp filter (mode 2) of packed instructions on this process."""
    code = _buffer(program)
    header = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    _call(syscalls.number("seccomp"), 1, 0, header)


def _buffer(data: bytes) -> Any:
    return ctypes.create_string_buffer(data, len(data))


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def _call(number: int | None, *arguments: int | bytes) -> int:
    if number is None:
        raise OSError("this kernel lacks the system call")
    converted = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
    result = _LIBC.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"system call {number}: {os.strerror(error)}")
    return result
