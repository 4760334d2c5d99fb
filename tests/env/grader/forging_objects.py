# ruff: noqa: E501
"""More wrong answers that try to be called correct: objects, early exits, forged messages, exhaustion."""

from .forging import ATTACKS, FRAMES, attack, method, module, returning

__all__ = ["ATTACKS"]

# --- objects that agree --------------------------------------------------------------------------------------
_EQ = "class Yes:\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"
attack("eq_object", returning("Yes()", _EQ), "eq_override")
attack("eq_reflected", returning("Yes()", _EQ + "    def __ne__(self, other): return False\n"), "eq_override")
attack("eq_int", returning("Yes(5)", _EQ.replace("Yes:", "Yes(int):")), "eq_override")
attack("eq_str", returning("Yes('5')", _EQ.replace("Yes:", "Yes(str):")), "eq_override")
attack("eq_list", returning("Yes([5])", _EQ.replace("Yes:", "Yes(list):")), "eq_override")
attack("eq_float", returning("Yes(5.0)", _EQ.replace("Yes:", "Yes(float):")), "eq_override")
attack(
    "eq_class",
    returning(
        "Yes",
        "class Meta(type):\n    def __eq__(cls, other): return True\n    def __hash__(cls): return 0\nclass Yes(metaclass=Meta): pass\n",
    ),
    "eq_override",
)
attack("eq_class_lie", returning("Yes()", _EQ + "    __class__ = property(lambda self: int)\n"), "eq_override")
attack(
    "eq_truthy_object",
    returning("Yes()", "class Yes:\n    def __eq__(self, other): return [1]\n"),
    "eq_override",
)
attack(
    "eq_first_call_only",
    method("self.calls.append(n)\nreturn Yes() if len(self.calls) < 3 else 0", _EQ).replace(
        "class Solution:", "class Solution:\n    calls = []"
    ),
)
attack("mock_any", returning("unittest.mock.ANY", "import unittest.mock\n"), "eq_override")
attack(
    "getattribute",
    returning("Yes()", "class Yes:\n    def __getattribute__(self, name): return lambda *a: True\n"),
)
attack(
    "reduce",
    returning(
        "Bomb()",
        "class Bomb:\n    def __reduce__(self): return (eval, ('expected',))\n    __reduce_ex__ = lambda self, version: self.__reduce__()\n",
    ),
)
attack(
    "pickle",
    returning(
        "pickle.dumps(Bomb())",
        "import pickle\nclass Bomb:\n    def __reduce__(self): return (print, ('x',))\n",
    ),
)
attack("hash_game", returning("{Yes()}", "class Yes:\n    def __hash__(self): return 7919\n"))
attack(
    "repr_game",
    returning("Yes()", "class Yes:\n    def __repr__(self): return '1'\n    __str__ = __format__ = lambda *a: '1'\n"),
)
attack(
    "number_protocol",
    returning("Yes()", "class Yes:\n    __int__ = __index__ = lambda self: 1\n    __float__ = lambda self: 1.0\n"),
)
attack(
    "int_with_format",
    returning(
        "Yes(1)",
        "class Yes(int):\n    def __format__(self, spec): return '2a'\n    def __str__(self): return '42'\n",
    ),
)
attack(
    "list_that_lies",
    returning(
        "Yes()",
        "class Yes(list):\n    def __iter__(self): return iter([1])\n    def __len__(self): return 1\n",
    ),
)
attack(
    "dict_that_lies",
    returning(
        "Yes()",
        "class Yes(dict):\n    def items(self): return [(1, 1)]\n    __iter__ = lambda self: iter([1])\n",
    ),
)
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
attack(
    "late_thread",
    module("import threading, time, os\nthreading.Thread(target=lambda: (time.sleep(0.2), os._exit(0))).start()"),
    "exit_code",
)
attack(
    "signal_handler",
    module(
        "import signal, os\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\nsignal.setitimer(signal.ITIMER_REAL, 0.001)\nsignal.pause()"
    ),
    "exit_code",
)
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
attack("forge_done", module(FRAMES + _WRITE + "tell(b'D\\0\\0\\0\\0')\nos._exit(1)"))
attack(
    "forge_results",
    module(FRAMES + _WRITE + "for n in range(12):\n    tell(result(n))\ntell(b'D\\0\\0\\0\\0')\nos._exit(1)"),
)
attack(
    "forge_true",
    module(FRAMES + _WRITE + "tell((b'R' + frame_body(1) + b'T') * 12 + b'D\\0\\0\\0\\0')\nos._exit(1)"),
)
attack(
    "forge_opaque",
    module(FRAMES + _WRITE + "tell((b'R' + frame_body(1) + b'?') * 12 + b'D\\0\\0\\0\\0')\nos._exit(1)"),
)
attack(
    "forge_empty",
    module(FRAMES + _WRITE + "tell((b'R' + frame_body(0)) * 12 + b'D\\0\\0\\0\\0')\nos._exit(1)"),
)
attack(
    "forge_judge",
    module(FRAMES + _WRITE + "tell((b'J' + frame_body(1) + b'1') * 12 + b'D\\0\\0\\0\\0')\nos._exit(1)"),
)
attack("forge_huge_length", module(FRAMES + _WRITE + "tell(b'R\\xff\\xff\\xff\\xff')\nos._exit(1)"))
attack("forge_half", module(FRAMES + _WRITE + "tell(b'R\\x04\\0\\0\\0i1')\nos._exit(1)"))
attack("forge_unknown", module(FRAMES + _WRITE + "tell(b'Z\\0\\0\\0\\0')\nos._exit(1)"))
attack(
    "every_descriptor",
    module(
        "import os\nfor fd in range(64):\n    try:\n        os.write(fd, b'PASS\\nOK\\n{\"correct\": true}\\n' * 3)\n    except OSError:\n        pass"
    ),
    "stdout_marker",
)
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
