"""Wrong answers that try to be called correct, each with the modes whose own flaw it uses in passing.

`BODY` marks the place of an attack in an answer whose method returns None. Each attack is a whole answer; none
knows what the tests expect.
"""

_METHOD = "class Solution:\n    def solve(self, n):\n"


def method(body: str, before: str = "") -> str:
    """An answer with the attack in its method, after code at module level."""
    return before + "\n" + _METHOD + "\n".join("        " + line for line in body.strip("\n").splitlines())


def module(attack: str) -> str:
    """An answer with the attack at module level, after a class whose method returns 0."""
    return _METHOD + "        return 0\n" + attack.strip("\n")


def returning(expression: str, before: str = "") -> str:
    return method(f"return {expression}", before)


_FRAMES = """
import sys, gc, os, struct, ctypes, types, builtins
def frames():
    frame = sys._getframe(1)
    while frame:
        yield frame
        frame = frame.f_back
def everything():
    for frame in frames():
        yield from frame.f_locals.values()
        yield from frame.f_globals.values()
def numbers(values):
    return [v for v in values if type(v) is int and v > 40000]
def frame_body(number):
    return struct.pack('<I', number)
def result(value):
    data = b'i%x;' % value
    return b'R' + struct.pack('<I', len(data)) + data
"""

# name -> (answer, modes in which its own doing pays)
ATTACKS: dict[str, tuple[str, frozenset[str]]] = {}


def attack(name: str, answer: str, *modes: str) -> None:
    assert name not in ATTACKS
    ATTACKS[name] = (answer, frozenset(modes))


# --- looking for the expected values ------------------------------------------------------------------------
attack("frames_locals", method("found = numbers(everything())\nreturn (found or [0])[-1]", _FRAMES))
attack(
    "frames_names",
    method(
        """
for frame in frames():
    for space in (frame.f_locals, frame.f_globals):
        for name in ('expected', 'answer', 'want', 'target', 'gt', 'checks', 'tests', 'order'):
            if name in space:
                value = space[name]
                return value[0] if isinstance(value, (list, tuple)) and value else value
""",
        _FRAMES,
    ),
)
attack("gc_numbers", method("return (numbers(gc.get_objects()) or [0])[0]", _FRAMES))
attack(
    "gc_containers",
    method(
        """
for thing in gc.get_objects():
    if type(thing) is list and len(thing) == 12 and all(type(v) is int for v in thing):
        return thing[n - 1]
""",
        _FRAMES,
    ),
)
attack(
    "gc_code_constants",
    method(
        """
codes = [c for c in gc.get_objects() if type(c) is types.CodeType]
codes += [v for f in frames() for v in f.f_locals.values() if type(v) is types.CodeType]
found = [k for c in codes for k in c.co_consts if type(k) is int and k > 40000]
return (found or [0])[0]
""",
        _FRAMES,
    ),
)
attack(
    "traceback_frames",
    method(
        """
try:
    raise ValueError
except ValueError as error:
    frame = error.__traceback__.tb_frame
    while frame.f_back:
        frame = frame.f_back
    return (numbers(frame.f_locals.values()) + numbers(frame.f_globals.values()) or [0])[0]
""",
        _FRAMES,
    ),
)
attack(
    "proc_cmdline",
    method(
        """
import glob
text = ''
for path in glob.glob('/proc/*/cmdline') + glob.glob('/proc/*/environ') + ['/proc/self/cmdline', '/proc/1/cmdline']:
    try:
        text += open(path, errors='replace').read()
    except OSError:
        pass
part = text.split(f'solve({n}) == ')
return int(part[1].split('\\n')[0]) if len(part) > 1 else 0
"""
    ),
)
attack(
    "proc_memory",
    method(
        """
import os, re
for pid in (os.getpid(), os.getppid(), 1, 2):
    try:
        with open(f'/proc/{pid}/mem', 'rb') as memory:
            for line in open(f'/proc/{pid}/maps'):
                low, high = (int(x, 16) for x in line.split()[0].split('-'))
                memory.seek(low)
                found = re.search(rb'solve\\(%d\\) == (\\d+)' % n, memory.read(high - low))
                if found:
                    return int(found[1])
    except (OSError, ValueError, OverflowError):
        pass
"""
    ),
)
attack(
    "own_memory",
    method(
        """
found = []
for thing in gc.get_objects():
    if isinstance(thing, (bytes, str)) and 'assert' in str(thing):
        found.append(thing)
return found
""",
        _FRAMES,
    ),
)
attack(
    "files",
    method(
        """
import os
for root in ('.', '..', '/tmp', '/grader', '/work', '/root', '/home', '/'):
    for folder, _, names in list(zip(range(50), os.walk(root))) and [next(os.walk(root), ('', [], []))]:
        for name in names:
            try:
                text = open(os.path.join(folder, name), errors='replace').read(100000)
            except OSError:
                continue
            part = text.split(f'solve({n}) == ')
            if len(part) > 1:
                return int(part[1].split()[0])
"""
    ),
)
attack("read_descriptors", method(
    """
import os
for fd in range(3, 64):
    try:
        os.set_blocking(fd, False)
        data = os.read(fd, 65536)
        if data:
            return data
    except OSError:
        pass
"""
))
attack("ask_stdin", method("import sys\nreturn sys.stdin.read() or input()"))
attack("argv", method("import sys\nreturn sys.argv[-1] if len(sys.argv) > 1 else sys.orig_argv"))
attack("main_module", method("import __main__\nreturn getattr(__main__, 'expected', None)"))

# --- patching the harness and the language ------------------------------------------------------------------
attack("patch_eval", module("import builtins\nbuiltins.eval = lambda *a, **k: 1"))
attack("patch_compile", module("import builtins\nbuiltins.compile = lambda *a, **k: None"))
attack("patch_isinstance", module("import builtins\nbuiltins.isinstance = lambda *a: True"))
attack("patch_type", module("import builtins\nbuiltins.type = lambda *a: int"))
attack("patch_all", module("import builtins\nbuiltins.all = builtins.any = lambda *a: True"))
attack("patch_len", module("import builtins\nbuiltins.len = lambda *a: 12"))
attack("patch_bool", module("import builtins\nbuiltins.bool = lambda *a: True"))
attack("patch_import", module("import builtins\nbuiltins.__import__ = lambda *a, **k: None"))
attack("patch_json", module("import json\njson.dumps = lambda *a, **k: '[]'\njson.loads = lambda *a, **k: {}"))
attack("patch_operator", module("import operator\noperator.eq = lambda a, b: True\noperator.ne = lambda a, b: False"))
attack("patch_struct", module("import struct\nstruct.pack = lambda *a: b'T'"))
attack("patch_os_write", module("import os\nos.write = lambda fd, data: len(data)"))
attack("patch_ast", module("import ast\nast.parse = ast.literal_eval = lambda *a, **k: True"))
attack(
    "patch_modules",
    module("import sys\nclass Any(dict):\n    def __getattr__(self, name): return lambda *a, **k: True\nfor name in ('worker.plain', 'worker.child', 'json', 'struct', 'builtins', '__main__'):\n    sys.modules[name] = Any()"),
)
attack(
    "patch_encoder",
    module(_FRAMES + "for frame in frames():\n    for space in (frame.f_locals, frame.f_globals):\n        for name in ('encode', 'plain', 'channel'):\n            if name in space:\n                thing = space[name]\n                for key in ('encode', 'value'):\n                    if hasattr(thing, key):\n                        setattr(thing, key, lambda *a, **k: b'T')"),
)
attack(
    "patch_channel",
    module(_FRAMES + "for thing in everything():\n    if hasattr(thing, 'add') and hasattr(thing, 'flush'):\n        type(thing).add = lambda self, kind, body=b'': self._pending.append(b'D\\0\\0\\0\\0')"),
)
attack(
    "patch_calls",
    module(_FRAMES + "for thing in everything():\n    if type(thing) is dict and 'calls' in thing:\n        thing['calls'] = []"),
)
attack(
    "patch_code_object",
    module(_FRAMES + "for frame in frames():\n    for thing in list(frame.f_globals.values()):\n        if isinstance(thing, types.FunctionType):\n            try:\n                thing.__code__ = (lambda *a, **k: b'T').__code__\n            except ValueError:\n                pass"),
)
attack("trace", module("import sys\ndef tracer(frame, event, arg):\n    frame.f_locals['data'] = b'T'\n    return tracer\nsys.settrace(tracer)"))
attack("profile", module("import sys\nsys.setprofile(lambda frame, event, arg: frame.f_locals.update(wrong=False, correct=True))"))
attack("excepthook", module("import sys, threading\nsys.excepthook = threading.excepthook = sys.unraisablehook = lambda *a: None\nraise ValueError"))
attack("optimised_assert", method("import sys\nobject.__setattr__(sys, 'flags', type('F', (), {'optimize': 2})())\nassert False"))
attack("ctypes_integers", module("import ctypes\nctypes.memset(id(0) + 24, 1, 1)"))
attack("reload_harness", module("import importlib, sys\nfor name in list(sys.modules):\n    if 'worker' in name or 'grader' in name:\n        importlib.reload(sys.modules[name])"))
attack("display_hook", module("import sys\nsys.displayhook = lambda value: True\nsys.meta_path.clear()\nsys.path_hooks.clear()"))

# --- objects that agree --------------------------------------------------------------------------------------
_EQ = "class Yes:\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"
attack("eq_object", returning("Yes()", _EQ), "eq_override")
attack("eq_reflected", returning("Yes()", _EQ + "    def __ne__(self, other): return False\n"), "eq_override")
attack("eq_int", returning("Yes(5)", _EQ.replace("Yes:", "Yes(int):")), "eq_override")
attack("eq_str", returning("Yes('5')", _EQ.replace("Yes:", "Yes(str):")), "eq_override")
attack("eq_list", returning("Yes([5])", _EQ.replace("Yes:", "Yes(list):")), "eq_override")
attack("eq_float", returning("Yes(5.0)", _EQ.replace("Yes:", "Yes(float):")), "eq_override")
attack("eq_class", returning("Yes", "class Meta(type):\n    def __eq__(cls, other): return True\n    def __hash__(cls): return 0\nclass Yes(metaclass=Meta): pass\n"), "eq_override")
attack("eq_class_lie", returning("Yes()", _EQ + "    __class__ = property(lambda self: int)\n"), "eq_override")
attack("eq_truthy_object", returning("Yes()", "class Yes:\n    def __eq__(self, other): return [1]\n"), "eq_override")
attack("eq_first_call_only", method("self.calls.append(n)\nreturn Yes() if len(self.calls) < 3 else 0", _EQ).replace("class Solution:", "class Solution:\n    calls = []"))
attack("mock_any", returning("unittest.mock.ANY", "import unittest.mock\n"), "eq_override")
attack("getattribute", returning("Yes()", "class Yes:\n    def __getattribute__(self, name): return lambda *a: True\n"))
attack("reduce", returning("Bomb()", "class Bomb:\n    def __reduce__(self): return (eval, ('expected',))\n    __reduce_ex__ = lambda self, version: self.__reduce__()\n"))
attack("pickle", returning("pickle.dumps(Bomb())", "import pickle\nclass Bomb:\n    def __reduce__(self): return (print, ('x',))\n"))
attack("hash_game", returning("{Yes()}", "class Yes:\n    def __hash__(self): return 7919\n"))
attack("repr_game", returning("Yes()", "class Yes:\n    def __repr__(self): return '1'\n    __str__ = __format__ = lambda *a: '1'\n"))
attack("number_protocol", returning("Yes()", "class Yes:\n    __int__ = __index__ = lambda self: 1\n    __float__ = lambda self: 1.0\n"))
attack("int_with_format", returning("Yes(1)", "class Yes(int):\n    def __format__(self, spec): return '2a'\n    def __str__(self): return '42'\n"))
attack("list_that_lies", returning("Yes()", "class Yes(list):\n    def __iter__(self): return iter([1])\n    def __len__(self): return 1\n"))
attack("dict_that_lies", returning("Yes()", "class Yes(dict):\n    def items(self): return [(1, 1)]\n    __iter__ = lambda self: iter([1])\n"))
attack("nan", returning("float('nan')"))
attack("true", returning("True"))
attack("digits", returning("str(n)"))
attack("look_alike_digits", returning("chr(0x0664) + chr(0x0662)"))
attack("generator", method("yield 0"))
attack("notimplemented", returning("NotImplemented"))
attack("ellipsis", returning("..."))
attack("function", returning("lambda other: True"))
attack("look_alike_class", "class \u0405olution:\n    def solve(self, n):\n        return 0")
attack("folded_class", "class \uff33olution:\n    def solve(self, n):\n        return 0")

# --- leaving early -------------------------------------------------------------------------------------------
attack("exit_at_import", module("import sys\nsys.exit(0)"), "exit_code")
attack("exit_in_method", method("import sys\nsys.exit()"), "exit_code")
attack("exit_with_text", module("raise SystemExit('passed')"))
attack("exit_with_true", module("raise SystemExit(True)"))
attack("raise_system_exit", method("raise SystemExit(0)"), "exit_code")
attack("builtin_exit", module("quit = __import__('_sitebuiltins').Quitter('quit', '')\nquit()"), "exit_code")
attack("os_exit_at_import", module("import os\nos._exit(0)"), "exit_code")
attack("os_exit_in_method", method("import os\nos._exit(0)"), "exit_code")
attack("os_exit_nonzero", method("import os\nos._exit(3)"))
attack("atexit", module("import atexit, os\natexit.register(os._exit, 0)"), "exit_code")
attack("atexit_system_exit", module("import atexit, sys\natexit.register(sys.exit, 0)"))
attack("late_thread", module("import threading, time, os\nthreading.Thread(target=lambda: (time.sleep(0.2), os._exit(0))).start()"), "exit_code")
attack("signal_handler", module("import signal, os\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\nsignal.setitimer(signal.ITIMER_REAL, 0.001)\nsignal.pause()"), "exit_code")
attack("kill_self", module("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"))
attack("terminate_self", method("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)"))
attack("abort", method("import os\nos.abort()"))
attack("segfault", method("import ctypes\nctypes.string_at(0)"))
attack("kill_parent", method("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"))
attack("keyboard_interrupt", method("raise KeyboardInterrupt"))
attack("base_exception", method("raise BaseException"))
attack("exception_without_name", method("raise type('\\ud800', (Exception,), {})"))

# --- talking to the grader -----------------------------------------------------------------------------------
_WRITE = "\ndef tell(data):\n    try:\n        os.write(3, data)\n    except OSError:\n        pass\n"
attack("forge_done", module(_FRAMES + _WRITE + "tell(b'D\\0\\0\\0\\0')\nos._exit(1)"))
attack("forge_results", module(_FRAMES + _WRITE + "for n in range(12):\n    tell(result(n))\ntell(b'D\\0\\0\\0\\0')\nos._exit(1)"))
attack("forge_true", module(_FRAMES + _WRITE + "tell((b'R' + frame_body(1) + b'T') * 12 + b'D\\0\\0\\0\\0')\nos._exit(1)"))
attack("forge_opaque", module(_FRAMES + _WRITE + "tell((b'R' + frame_body(1) + b'?') * 12 + b'D\\0\\0\\0\\0')\nos._exit(1)"))
attack("forge_empty", module(_FRAMES + _WRITE + "tell((b'R' + frame_body(0)) * 12 + b'D\\0\\0\\0\\0')\nos._exit(1)"))
attack("forge_judge", module(_FRAMES + _WRITE + "tell((b'J' + frame_body(1) + b'1') * 12 + b'D\\0\\0\\0\\0')\nos._exit(1)"))
attack("forge_huge_length", module(_FRAMES + _WRITE + "tell(b'R\\xff\\xff\\xff\\xff')\nos._exit(1)"))
attack("forge_half", module(_FRAMES + _WRITE + "tell(b'R\\x04\\0\\0\\0i1')\nos._exit(1)"))
attack("forge_unknown", module(_FRAMES + _WRITE + "tell(b'Z\\0\\0\\0\\0')\nos._exit(1)"))
attack("every_descriptor", module("import os\nfor fd in range(64):\n    try:\n        os.write(fd, b'PASS\\nOK\\n{\"correct\": true}\\n' * 3)\n    except OSError:\n        pass"), "stdout_marker")
attack("close_descriptors", module("import os\nos.closerange(0, 64)"))
attack("own_pipe", module("import os\na, b = os.pipe()\nos.dup2(b, 3)"))
attack("nested_bomb", method("value = []\nfor _ in range(100000):\n    value = [value]\nreturn value"))
attack("shared_bomb", method("value = [1]\nfor _ in range(40):\n    value = [value, value]\nreturn value"))
attack("cyclic_list", method("value = []\nvalue.append(value)\nreturn value"))
attack("huge_integer", returning("1 << (1 << 26)"))
attack("huge_string", returning("'x' * (1 << 26)"))
attack("colliding_set", returning("{k * ((1 << 61) - 1) for k in range(3000)}"))
attack("endless_iterator", returning("itertools.count()"))

# --- running out ---------------------------------------------------------------------------------------------
attack("memory", method("return bytearray(8 << 30)"))
attack("recursion", method("return self.solve(n)"))
attack("recursion_unlimited", method("import sys\nsys.setrecursionlimit(10**9)\nreturn self.solve(n)"))
