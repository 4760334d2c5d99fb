"""The end of a script: what an interpreter does after its last line, as cheaply as it can be had.

To clear every module, as an interpreter does, costs a forked process three times what an answer does: each page that
it touches is copied. What that is good for is nearly always to write out files that nobody has closed, which can be
done one by one. Where an answer has left anything that runs when it is destroyed, the interpreter ends itself.
"""

import atexit
import contextlib
import ctypes
import gc
import io
import sys
import threading
import types
import weakref

_WRITERS = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)  # text first: it is written to the others
_SUSPENDED = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)
_flush_c = ctypes.PyDLL(None).fflush


def finish() -> bool:
    """Wait for threads, run exit handlers, write out what is open.

    Returns:
        Whether that was all; if not, the interpreter must end in its own way.
    """
    for step in (threading._shutdown, atexit._run_exitfuncs):
        # What a handler raises is printed by an interpreter and changes nothing.
        with contextlib.suppress(BaseException):
            step()
    made = gc.get_objects()  # since the fork: what was there before is frozen
    if any(map(_runs_when_destroyed, made)):
        return False
    for kind in _WRITERS:
        for thing in (sys.stdout, *made):
            if isinstance(thing, kind):
                with contextlib.suppress(BaseException):
                    thing.flush()
    _flush_c(None)
    return True


def _runs_when_destroyed(thing: object) -> bool:
    """A class with a destructor, a weak reference that calls back, or a function that waits in the middle."""
    kind = type(thing)
    if issubclass(kind, type):
        return "__del__" in type.__dict__["__dict__"].__get__(thing)
    if kind is weakref.ref:
        return thing.__callback__ is not None
    return kind in _SUSPENDED
