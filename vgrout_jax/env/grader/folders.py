"""Temporary folders of a grader, and the removal of those whose owner was killed.

    vgrout-grader-TOKEN/        the grader's own; its file `.owner` is locked for as long as the owner lives
    vgrout-grader-TOKEN-NAME/   one a worker

The lock ends with the process however that ends, and holds across containers that share the folder: a process id
would mean another process there.
"""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path

PREFIX = "vgrout-grader-"
_OWNER = ".owner"
_OWN_NAME = re.compile(re.escape(PREFIX) + r"[^-]+")


class Folders:
    """The folders of one grader.

    Attributes:
        root: the grader's own.
    """

    def __init__(self) -> None:
        """Removes what dead graders of this user have left, then makes the grader's own."""
        remove_orphans()
        self.root = Path(tempfile.mkdtemp(prefix=PREFIX))
        # Locked under another name first: nobody ever sees an owner's file without its lock.
        fresh = self.root / f"{_OWNER}.new"
        self._owner = os.open(fresh, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fresh.rename(self.root / _OWNER)

    def new(self) -> Path:
        """A worker's folder."""
        folder = Path(tempfile.mkdtemp(prefix=f"{self.root.name}-", dir=self.root.parent))
        folder.chmod(0o711)
        return folder

    def close(self) -> None:
        """Removes the grader's own folder; workers remove theirs."""
        shutil.rmtree(self.root, ignore_errors=True)
        os.close(self._owner)


def remove(folder: Path) -> None:
    """Removes a folder and what is in it; a worker may have closed it to its answers."""
    with contextlib.suppress(OSError):
        folder.chmod(0o711)
    shutil.rmtree(folder, ignore_errors=True)


def remove_orphans() -> None:
    """Removes the folders of every grader of this user whose process is gone."""
    base = Path(tempfile.gettempdir())
    for root in base.glob(f"{PREFIX}*"):
        if _OWN_NAME.fullmatch(root.name) and _is_orphan(root):
            # The workers' first: what still has its root is found again, should this process be killed here.
            for folder in [*base.glob(f"{root.name}-*"), root]:
                remove(folder)


def _is_orphan(root: Path) -> bool:
    try:
        if root.is_symlink() or root.stat().st_uid != os.geteuid():
            return False
        descriptor = os.open(root / _OWNER, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False  # it is about to be made, or is gone
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
