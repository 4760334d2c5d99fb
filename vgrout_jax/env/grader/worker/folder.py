"""The private folder of an answer: made for it, measured, swept and removed after it.

Every child gets a folder that did not exist before, below one that it cannot write to. What an answer has left is
read and removed by a confined child of the answer's own identity; that nothing is left is seen by the folder's own
removal, which else fails.
"""

import os
import struct

_PART = 4096  # bytes read of a file
_MOST_READ = 32  # files that are read: a reader that is slow to come never holds the sweeper up
_MOST_FILES = 1000
_TOO_LARGE = 1 << 62
_OPEN, _CLOSED = 0o711, 0o111  # of the folder above


class Folder:
    """Where one child may write.

    Attributes:
        path: the same for all children.
        uid: who owns it, or None for this process's own user.
    """

    def __init__(self, path: str, uid: int | None):
        self.path = path
        self.uid = uid
        self._above = os.path.dirname(path)

    def make(self) -> None:
        """Make it anew, and enter it."""
        self._reach(_OPEN)
        os.mkdir(self.path, mode=0o755)
        if self.uid is not None:
            os.chown(self.path, self.uid, self.uid)
        os.chdir(self.path)
        self._reach(_CLOSED)

    def remove(self) -> bool:
        """Remove it, empty; returns whether that could be done."""
        try:
            self._reach(_OPEN)
            os.rmdir(self.path)
        except OSError:
            return False
        return True

    def is_empty(self) -> bool:
        try:
            return not os.listdir(self.path)
        except OSError:
            return False

    def size(self) -> int:
        """Bytes of the files in it; a folder of very many files counts as too large."""
        total = 0
        try:
            with os.scandir(self.path) as entries:
                for count, entry in enumerate(entries):
                    if count > _MOST_FILES:
                        return _TOO_LARGE
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            return total
        return total

    def _reach(self, mode: int) -> None:
        # An answer of this process's own user could else write above its folder, where nothing is removed.
        if self.uid is None:
            os.chmod(self._above, mode)


def nameless_size(process: int) -> int:
    """Bytes of the files that a process has open and removed; 0 where the kernel does not show them to this one."""
    total = 0
    try:
        for descriptor in os.listdir(f"/proc/{process}/fd"):
            state = os.stat(f"/proc/{process}/fd/{descriptor}")
            total += 0 if state.st_nlink else state.st_blocks * 512
    except OSError:
        return total
    return total


def sweep(names: list[str], output: int) -> None:
    """Write the beginning of files of these names (in any case) to a descriptor, then remove everything.

    Runs in the folder, as its owner. A file is its name's length and its content's, four bytes each, and the two.

    Args:
        names: in lower case, the most important first; none: nothing is written.
        output: descriptor, or -1.
    """
    found = os.listdir(".")
    wanted = [name for name in found if name.lower() in names] if output >= 0 else []
    for name in sorted(wanted, key=lambda name: (names.index(name.lower()), name != name.lower(), name))[:_MOST_READ]:
        label, content = os.fsencode(name), _beginning(name)
        os.write(output, struct.pack("<II", len(label), len(content)) + label + content)
    for name in found:
        _remove(name)


def _beginning(name: str) -> bytes:
    """The first bytes of a file; of what cannot be read, none."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _PART)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _remove(name: str) -> None:
    """Remove a file, or a folder where the layers let one be made."""
    if not os.path.isdir(name) or os.path.islink(name):
        os.unlink(name)
        return
    for above, folders, files in os.walk(name, topdown=False):
        for file in files:
            os.unlink(os.path.join(above, file))
        for inner in folders:
            path = os.path.join(above, inner)
            (os.unlink if os.path.islink(path) else os.rmdir)(path)
    os.rmdir(name)
