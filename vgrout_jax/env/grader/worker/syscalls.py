"""The seccomp filter: which system calls an answer may make, on x86-64 and on 64-bit ARM.

An allowlist: what is not named returns EPERM, so a call that a later kernel adds is refused as well. Allowed is
what the interpreter needs for computing, for files of the private folder, for threads and for pipes of its own.
Refused are, among others: every socket but a private pair, new processes and programs, signals to others,
tracing, namespaces and mounts, keyrings, shared memory and message queues, io_uring, bpf, folders and links.
"""

import errno
import functools
import os
import struct

# number on x86-64, number on 64-bit ARM (None: absent there)
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "open": (2, None),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "pipe": (22, None),
    "select": (23, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "dup2": (33, None),
    "pause": (34, None),
    "nanosleep": (35, 101),
    "getitimer": (36, 102),
    "alarm": (37, None),
    "setitimer": (38, 103),
    "getpid": (39, 172),
    "recvfrom": (45, 207),
    "shutdown": (48, 210),
    "getsockname": (51, 204),
    "getsockopt": (55, 209),
    "exit": (60, 93),
    "wait4": (61, 260),
    "uname": (63, 160),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "getdents": (78, None),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "rename": (82, None),
    "unlink": (87, None),
    "readlink": (89, None),
    "umask": (95, 166),
    "gettimeofday": (96, 169),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "getpgrp": (111, None),
    "getgroups": (115, 158),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "capget": (125, 90),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "time": (201, None),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "getdents64": (217, 61),
    "set_tid_address": (218, 96),
    "restart_syscall": (219, 128),
    "fadvise64": (221, 223),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "epoll_wait": (232, None),
    "epoll_ctl": (233, 21),
    "waitid": (247, 95),
    "openat": (257, 56),
    "newfstatat": (262, 79),
    "unlinkat": (263, 35),
    "renameat": (264, 38),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "set_robust_list": (273, 99),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    "epoll_create1": (291, 20),
    "dup3": (292, 24),
    "pipe2": (293, 59),
    "preadv": (295, 69),
    "pwritev": (296, 70),
    "renameat2": (316, 276),
    "getrandom": (318, 278),
    "statx": (332, 291),
    "rseq": (334, 293),
    "faccessat2": (439, 439),
}
# Only ever about this process: the first argument must be its id.
_SELF_ONLY = {"kill": (62, 129), "tgkill": (234, 131)}
# Allowed for some values of one argument: numbers, index of the argument, values.
_RESTRICTED: dict[str, tuple[tuple[int, int], int, tuple[int, ...]]] = {
    "ioctl": (
        (16, 29),
        1,
        (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451),
    ),  # terminal? and descriptor flags
    "fcntl": ((72, 25), 1, (*range(8), 1030, 1031, 1032)),  # no F_SETOWN: it sends signals
    "prctl": ((157, 167), 0, (15,)),  # a thread's name
    "prlimit64": ((302, 261), 0, (0,)),  # its own
    "sendto": ((44, 206), 4, (0,)),  # no address: only to the other end of its own pair
    "socketpair": ((53, 199), 0, (1,)),
}
_SOME_PROCESS = 0x2B1D5EED  # larger than any process id, and in the filter for nothing else
_CLONE = (56, 220)
_MISSING = {"clone3": (435, 435), "openat2": (437, 437)}  # ENOSYS: the C library falls back to older calls
_OTHER = {
    "capset": (126, 91),
    "seccomp": (317, 277),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CLONE_THREAD = 0x00010000

_LOAD, _JUMP_ALWAYS, _JUMP_EQUAL, _JUMP_ABOVE, _JUMP_BITS, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_ERRNO = 0x00050000


def supported() -> bool:
    return os.uname().sysname == "Linux" and os.uname().machine in _ARCHITECTURES


def number(name: str) -> int | None:
    """Number of one of the calls that confine a process, or None on an unknown machine."""
    return _OTHER[name][_column()] if supported() else None


def program(process: int) -> bytes:
    """The filter for one process as packed instructions.

    Args:
        process: its id, the only one it may signal.
    """
    return _template().replace(struct.pack("=I", _SOME_PROCESS), struct.pack("=I", process))


@functools.cache
def _template() -> bytes:
    """The filter with `_SOME_PROCESS` in the place of the process's id."""
    column = _column()
    plain = sorted(numbers[column] for numbers in _ALLOWED.values() if numbers[column] is not None)
    code = [
        _statement(_LOAD, 4),  # the architecture: 32-bit calls have other numbers
        _jump(_JUMP_EQUAL, _ARCHITECTURES[os.uname().machine][1], 1, 0),
        _statement(_RETURN, _KILL),
        _statement(_LOAD, 0),
        _jump(_JUMP_ABOVE, 0x40000000, 0, 1),  # the x32 interface
        _statement(_RETURN, _KILL),
        *_search(_ranges(plain)),
    ]
    for numbers in _MISSING.values():
        code += [_jump(_JUMP_EQUAL, numbers[column], 0, 1), _statement(_RETURN, _ERRNO | errno.ENOSYS)]
    for numbers in _SELF_ONLY.values():
        code += _when(numbers[column], 0, (_SOME_PROCESS,))
    for numbers, argument, values in _RESTRICTED.values():
        code += _when(numbers[column], argument, values)
    code += [
        _jump(_JUMP_EQUAL, _CLONE[column], 0, 3),
        _statement(_LOAD, 16),
        _jump(_JUMP_BITS, _CLONE_THREAD, 0, 1),
        _statement(_RETURN, _ALLOW),
        _statement(_RETURN, _ERRNO | errno.EPERM),
    ]
    return b"".join(code)


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Sorted numbers as half-open ranges."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found


def _search(ranges: list[tuple[int, int]]) -> list[bytes]:
    """Allow a number in one of the ranges, else go on after the last instruction.

    A binary search: the kernel runs the filter for every call's number when it is installed, once a child.
    """
    if len(ranges) == 1:
        ((low, high),) = ranges
        return [_jump(_JUMP_ABOVE, low, 0, 2), _jump(_JUMP_ABOVE, high, 1, 0), _statement(_RETURN, _ALLOW)]
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    # Unconditional jump over the upper half; a jump's conditional offsets hold 255 at most.
    below = [*below, _statement(_JUMP_ALWAYS, len(above))]
    return [_jump(_JUMP_ABOVE, ranges[middle][0], len(below), 0), *below, *above]


def _when(call: int, argument: int, values: tuple[int, ...]) -> list[bytes]:
    """Allow a call where its argument, as 64 bits, is one of some small values; else EPERM."""
    allow, deny = 3 + len(values), 4 + len(values)  # places in the body
    jumps = [(_JUMP_EQUAL, value, allow - (4 + place), 0) for place, value in enumerate(values[:-1])]
    body = [
        _statement(_LOAD, 20 + 8 * argument),  # the high half
        _jump(_JUMP_EQUAL, 0, 0, deny - 2),
        _statement(_LOAD, 16 + 8 * argument),
        *(_jump(*jump) for jump in jumps),
        _jump(_JUMP_EQUAL, values[-1], 0, 1),
        _statement(_RETURN, _ALLOW),
        _statement(_RETURN, _ERRNO | errno.EPERM),
    ]
    return [_jump(_JUMP_EQUAL, call, 0, len(body)), *body]


def _statement(code: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, 0, 0, value)


def _jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _column() -> int:
    return _ARCHITECTURES[os.uname().machine][0]
