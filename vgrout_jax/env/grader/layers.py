"""Which layers of containment a machine offers, and the command line of a worker inside them."""

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vgrout_jax.config import GraderConfig

LOGGER = logging.getLogger("vgrout_jax.env.grader")
MINIMA = ("bubblewrap", "landlock")
INSTALL = "apt-get install bubblewrap (or: dnf install bubblewrap)"
_WORKER = Path(__file__).parent / "worker"
_INSIDE_CODE = "/grader"
_INSIDE_PREFIX = Path("/python")
_SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_PACKAGES = ("site-packages", "dist-packages")
_INSIDE_FOLDER = "/tmp/answer"
_NOBODY = 65534
# Unprivileged identities that own nothing anywhere, one a worker, so that limits count each worker alone.
_FIRST_IDENTITY = 0x7FFE0000
# Symbols are bound once, at a worker's start: bound when first used, every child would look up all of its own.
# One arena for memory: each thread's own would take 64 MiB of the address space.
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "LD_BIND_NOW": "1", "MALLOC_ARENA_MAX": "1"}
_CAPABILITIES = ("CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_CHOWN")
_START_SECONDS = 60


@dataclass(frozen=True)
class Layers:
    """What contains an answer on this machine.

    Attributes:
        bubblewrap: path of the program, or None where it is absent, not permitted or switched off.
        landlock: version of the kernel's interface, 0 for none.
        seccomp: the filter of system calls works.
        root: this process may change identities, so that answers run as nobody.
        reasons: why a layer is missing.
    """

    bubblewrap: str | None
    landlock: int
    seccomp: bool
    root: bool
    reasons: tuple[str, ...] = field(default=())

    def line(self) -> str:
        """The layers in one line."""
        names = "user, " if not self.root else ""
        active = {
            f"bubblewrap ({names}pid, net, ipc, uts, cgroup and mount namespaces)": self.bubblewrap,
            f"Landlock {self.landlock}": self.landlock,
            "seccomp": self.seccomp,
            "resource limits": True,
            "answers run as nobody": self.root or self.bubblewrap,
        }
        text = "grader containment: " + ", ".join(name for name, on in active.items() if on)
        return text + (f"; missing: {'; '.join(self.reasons)}" if self.reasons else "")

    def shortfalls(self, minimum: str) -> list[str]:
        """What the machine lacks of a configured minimum."""
        lacking = []
        if not self.seccomp:
            lacking.append("seccomp")
        if not self.bubblewrap and (minimum == "bubblewrap" or not self.landlock):
            lacking.append(minimum)
        return lacking


def detect(config: GraderConfig) -> Layers:
    """Find out what this machine offers, by trying.

    Raises:
        RuntimeError: the operating system is not Linux, or the worker does not even start.
    """
    if platform.system() != "Linux":
        raise RuntimeError("the grader needs Linux: it confines answers with Linux's own means")
    root = os.geteuid() == 0
    plain = _ask([*_python(str(_WORKER)), json.dumps(_settings_for_probe())])
    if isinstance(plain, str):
        raise RuntimeError(f"a worker of the grader does not start: {plain}")
    reasons = []
    program = shutil.which("bwrap") if config.bubblewrap else None
    if program is None:
        reasons.append("bubblewrap is " + ("not installed" if config.bubblewrap else "switched off"))
    else:
        command = _wrapped(program, root, config)
        program_inside = _python(f"{_INSIDE_CODE}/worker", inside=True)
        answer = _ask([*command, *program_inside, json.dumps(_settings_for_probe())])
        if isinstance(answer, str):
            reasons.append(f"bubblewrap is not permitted here: {answer}")
            program = None
    if not plain["landlock"]:
        reasons.append("the kernel has no Landlock")
    if not plain["seccomp"]:
        reasons.append("seccomp is not available")
    return Layers(program, plain["landlock"], plain["seccomp"], root, tuple(reasons))


def require(layers: Layers, config: GraderConfig) -> None:
    """Refuse to run below the configured minimum, unless that is allowed explicitly.

    Raises:
        RuntimeError: what is missing, and the command that mends it.
    """
    lacking = layers.shortfalls(config.minimum)
    if lacking and not config.allow_unsandboxed:
        raise RuntimeError(
            f"grader.minimum = {config.minimum!r} is not met: no {' and no '.join(lacking)}. {layers.line()}. "
            f"Install it with: {INSTALL}; or, at your own risk, set grader.allow_unsandboxed "
            "(a run's --config.grader.allow_unsandboxed, --allow_unsandboxed of vgrout_jax.grade)"
        )
    if lacking:
        LOGGER.warning(
            "RUNNING MODEL-WRITTEN CODE BELOW THE CONFIGURED CONTAINMENT (no %s), as grader.allow_unsandboxed "
            "demands. %s",
            " and no ".join(lacking),
            layers.line(),
        )
    else:
        LOGGER.info("%s", layers.line())


def open_library(layers: Layers, folder: Path) -> Path:
    """A standard library that answers can read.

    Outside of bubblewrap an answer that runs as nobody cannot enter a home directory, which is where many an
    interpreter lies; its library is then copied.

    Args:
        layers: as detected.
        folder: empty, for the copy.
    """
    library = _standard_library()
    closed = any(not parent.stat().st_mode & 0o001 for parent in (library, *library.parents))
    if layers.bubblewrap or not layers.root or not closed:
        return library
    folder.chmod(0o711)
    copy = folder / "library"
    ignored = shutil.ignore_patterns(*_PACKAGES, "test", "tests", "idlelib", "tkinter", "ensurepip", "config-*")
    shutil.copytree(library, copy, ignore=ignored)
    return copy


def command_line(
    layers: Layers, config: GraderConfig, *, index: int, folder: Path, control: int, library: Path
) -> list[str]:
    """The command that starts a worker.

    Args:
        layers: as detected.
        config: of the grader.
        index: of the worker, for its identity.
        folder: below which its files lie, outside of bubblewrap.
        control: descriptor that it takes its orders on.
        library: from `open_library`.
    """
    if layers.bubblewrap:
        library = _INSIDE_PREFIX / library.relative_to(sys.base_prefix)
    settings: dict[str, Any] = {
        "probe": False,
        "control": control,
        "folder": _INSIDE_FOLDER if layers.bubblewrap else str(folder / "answer"),
        "uid": _identity(index) if layers.root else None,
        "library": str(library),
        "readable": [str(path) for path in _readable(library)],
        "listable": [str(library)],  # to find modules in
        "landlock": bool(layers.landlock),
        "seccomp": layers.seccomp,
        # Without namespaces and without an identity of its own, the limit would count the user's processes.
        "processes": layers.root or bool(layers.bubblewrap),
    }
    if layers.bubblewrap:
        wrapped = _wrapped(layers.bubblewrap, layers.root, config)
        return [*wrapped, *_python(f"{_INSIDE_CODE}/worker", inside=True), json.dumps(settings)]
    return [*_python(str(_WORKER)), json.dumps(settings)]


def environment() -> dict[str, str]:
    """All that a worker inherits: the fixed seed of string hashes, so that set orders repeat, and the locale."""
    return dict(_ENVIRONMENT)


def _python(worker: str, *, inside: bool = False) -> list[str]:
    interpreter = _INSIDE_PREFIX / "bin" / _interpreter().name if inside else _interpreter()
    return [str(interpreter), "-s", "-S", "-B", "-P", "-X", "utf8", f"{worker}/server.py"]


def _interpreter() -> Path:
    # Not the virtual environment's own: what lies there is not the answers' business.
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def _settings_for_probe() -> dict[str, Any]:
    return {"probe": True, "folder": "/nonexistent"}


def _ask(command: list[str]) -> dict[str, Any] | str:
    """What a worker reports about the machine, or the reason why it does not start."""
    try:
        done = subprocess.run(
            command, env=environment(), capture_output=True, stdin=subprocess.DEVNULL, timeout=_START_SECONDS
        )
        return json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    except ValueError:
        return " ".join(done.stderr.decode(errors="replace").split())[-300:] or f"status {done.returncode}"


def _standard_library() -> Path:
    path = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
    if not path.is_relative_to(sys.base_prefix):
        raise RuntimeError(f"the standard library must lie below {sys.base_prefix}, found it at {path}")
    return path


def _readable(library: Path) -> list[Path]:
    """What Landlock lets an answer read: the standard library without installed packages, and libraries."""
    # Where the packages are not there anyway one rule will do; each costs every child a little.
    entries = [library]
    if library == _standard_library():
        names = sorted(path.name for path in library.iterdir() if path.name not in _PACKAGES)
        entries = [library / name for name in names]
    own = [*Path(sys.base_prefix, "lib").glob("libpython*.so*"), _INSIDE_PREFIX / "lib"]
    return [*entries, *own, *map(Path, _SYSTEM_LIBRARIES)]


def _identity(index: int) -> int:
    wanted = _FIRST_IDENTITY + (os.getpid() % 512) * 64 + index % 64
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= wanted < first + count:
            return wanted
    return _NOBODY


def _wrapped(program: str, root: bool, config: GraderConfig) -> list[str]:
    """bubblewrap's part: its own namespaces, and a root that holds an interpreter and nothing else."""
    arguments = [program, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    arguments += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--clearenv"]
    for name, value in {**_ENVIRONMENT, "LD_LIBRARY_PATH": str(_INSIDE_PREFIX / "lib")}.items():
        arguments += ["--setenv", name, value]
    if root:
        arguments += ["--cap-drop", "ALL"]
        for capability in _CAPABILITIES:
            arguments += ["--cap-add", capability]
    else:
        arguments += ["--unshare-user", "--uid", str(_NOBODY), "--gid", str(_NOBODY)]
    for path in _SYSTEM_LIBRARIES:
        arguments += _mount(Path(path))
    # At a place of its own: a home directory on the way would be closed to nobody.
    library = _standard_library()
    inside = _INSIDE_PREFIX / library.relative_to(sys.base_prefix)
    for path in (_INSIDE_PREFIX, inside.parent, _INSIDE_PREFIX / "lib", _INSIDE_PREFIX / "bin"):
        arguments += ["--perms", "0755", "--dir", str(path)]
    arguments += ["--ro-bind", str(library), str(inside)]
    for name in _PACKAGES:
        if (library / name).is_dir():
            arguments += ["--tmpfs", str(inside / name)]
    arguments += ["--ro-bind", str(_interpreter()), str(_INSIDE_PREFIX / "bin" / _interpreter().name)]
    for path in Path(sys.base_prefix, "lib").glob("libpython*.so*"):
        arguments += ["--ro-bind", str(path.resolve()), str(_INSIDE_PREFIX / "lib" / path.name)]
    arguments += ["--ro-bind", str(_WORKER), f"{_INSIDE_CODE}/worker"]
    arguments += ["--proc", "/proc", "--dev-bind", "/dev/null", "/dev/null"]
    arguments += ["--perms", "0711", "--size", str((config.folder_mb + 32) << 20), "--tmpfs", "/tmp"]
    return [*arguments, "--remount-ro", "/", "--chdir", "/tmp"]


def _mount(path: Path) -> list[str]:
    if path.is_symlink():
        return ["--symlink", os.readlink(path), str(path)]
    return ["--ro-bind", str(path), str(path)] if path.is_dir() else []
