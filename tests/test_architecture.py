"""The directions of imports, read from the source and held against the table of docs/architecture.md."""

import ast
import graphlib
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vgrout_jax"
TABLE_HEAD = "| package | may import | kind |"
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex", "torch"}
HOST = {
    "os",
    "io",
    "pathlib",
    "shutil",
    "tempfile",
    "glob",
    "gzip",
    "subprocess",
    "multiprocessing",
    "threading",
}
HOST |= {
    "socket",
    "time",
    "datetime",
    "logging",
    "random",
    "tqdm",
    "urllib",
    "transformers",
    "huggingface_hub",
}


class Rule(NamedTuple):
    """A row of the table: what a package may import, the kind of its modules, and of those that are others."""

    targets: list[str]
    kind: str
    others: dict[str, str]


class Import(NamedTuple):
    """One name that a module imports; `deferred` inside of a function."""

    name: str
    deferred: bool


def read_rules() -> dict[str, Rule]:
    lines = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines()
    rules = {}
    for row in lines[lines.index(TABLE_HEAD) + 2 :]:
        if not row.startswith("|"):
            break
        name, targets, kinds = (cell.strip().replace("`", "").replace("\\", "") for cell in row.strip("|").split("|"))
        kind, *exceptions = kinds.split(";")
        pairs = (exception.split(":") for exception in exceptions)
        others = {module: other.strip() for other, modules in pairs for module in modules.split()}
        rules[name] = Rule(targets.split(), kind.strip(), others)
    return rules


def modules() -> dict[str, Path]:
    """Name below the package -> file; a package stands for its `__init__`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


MODULES = modules()
RULES = read_rules()


def package_of(name: str) -> str:
    """The package that a module is of; of the root's own modules, nothing."""
    top = name.partition(".")[0]
    return top if (PACKAGE / top).is_dir() else ""


def kind_of(name: str) -> str:
    rule = RULES[package_of(name)]
    return rule.others.get(name.rpartition(".")[2], rule.kind)


def imports(path: Path) -> list[Import]:
    """Everything that a file imports, in full names; from a package, the module rather than the name in it."""
    package = ("vgrout_jax", *path.relative_to(PACKAGE).parts[:-1])
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    deferred = {id(inner) for function in functions for inner in ast.walk(function)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, id(node) in deferred) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module or "") if part)
            found += [Import(f"{base}.{alias.name}", id(node) in deferred) for alias in node.names]
    return found


def internal(name: str, *, deferred: bool = True) -> set[str]:
    """The project's modules that a module imports."""
    found = set()
    for imported in imports(MODULES[name]):
        top, _, rest = imported.name.partition(".")
        if top != "vgrout_jax" or (imported.deferred and not deferred):
            continue
        while rest and rest not in MODULES:
            rest = rest.rpartition(".")[0]
        if rest:
            found.add(rest)
    return found


def external(name: str) -> set[str]:
    return {imported.name.partition(".")[0] for imported in imports(MODULES[name])} - {"vgrout_jax"}


def test_a_package_imports_only_what_its_row_allows():
    packages = {package_of(name) for name in MODULES} - {""}
    assert packages == set(RULES), "every package has a row in the table of docs/architecture.md, and no other has"
    wrong = [
        f"{name} imports {target}"
        for name in MODULES
        if package_of(name)
        for target in internal(name)
        if package_of(target) not in (package_of(name), *RULES[package_of(name)].targets)
    ]
    assert not wrong


def test_rows_name_what_exists():
    for package, rule in RULES.items():
        assert set(rule.targets) <= set(RULES) and {rule.kind, *rule.others.values()} <= {"host", "pure", "both"}
        known = {name.rpartition(".")[2] for name in MODULES if package_of(name) == package} | {"__main__"}
        assert set(rule.others) <= known, package


def test_host_modules_know_no_jax_even_through_others():
    for name in MODULES:
        if package_of(name) and kind_of(name) == "host":
            reached, waiting = set(), {name}
            while waiting:
                current = waiting.pop()
                reached.add(current)
                assert not external(current) & JAX, f"{name} reaches {external(current) & JAX} through {current}"
                waiting |= internal(current) - reached


def test_pure_modules_touch_nothing_of_the_host():
    for name, path in MODULES.items():
        if package_of(name) and kind_of(name) == "pure":
            assert not external(name) & HOST, f"{name} is pure and imports {external(name) & HOST}"
            calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            named = {call.id for call in calls if isinstance(call, ast.Name)}
            assert not named & {"open", "print", "input"}, f"{name} is pure and calls {named & {'open', 'print'}}"


def test_the_root_holds_commands_and_the_loop_alone():
    root = {name for name in MODULES if not package_of(name)}
    for name in root - {"train"}:
        assert "__main__" in MODULES[name].read_text(), f"{name} is no command: it belongs into a package"
    assert [name for name in MODULES if "train" in internal(name)] == ["main"]
    commands = {name: internal(name) & (root - {"train"}) for name in MODULES}
    assert not {name: found for name, found in commands.items() if found}, "a command is imported by nobody"


def test_a_package_s_docstring_names_its_files():
    """In reading order, a line each."""
    missing = []
    for init in PACKAGE.rglob("*/__init__.py"):
        lines = (ast.get_docstring(ast.parse(init.read_text())) or "").splitlines()
        named = [line.split()[0] for line in lines if line.strip()]
        here = [path.stem for path in init.parent.glob("*.py") if path.stem != "__init__"]
        here += [path.parent.name for path in init.parent.glob("*/__init__.py")]
        missing += [f"{init.parent.name}: {name}" for name in here if name not in named]
    assert not missing


def test_no_cycles():
    graph = {name: internal(name, deferred=False) - {name} for name in MODULES}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_the_sandboxed_side_of_the_grader_imports_the_standard_library_alone():
    inside = [name for name in MODULES if name.startswith("env.grader.worker.")]
    assert inside
    for name in inside:
        own = {"worker", *(path.stem for path in MODULES[name].parent.glob("*.py"))}  # started as a script
        assert external(name) <= set(sys.stdlib_module_names) | own, name
        assert all(target.startswith("env.grader.worker") for target in internal(name)), name


def test_torch_is_for_tests_alone():
    assert not [name for name in MODULES if "torch" in external(name)]


def test_the_reader_of_imports_sees_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    path = tmp_path / "rl" / "thing.py"
    path.parent.mkdir()
    path.write_text(
        "import a.b as c\nfrom d import e\nfrom . import f\nfrom .g import h\nfrom ..i import j\n"
        "def later():\n    from vgrout_jax.k import l\n"
    )
    names = {imported.name: imported.deferred for imported in imports(path)}
    expected = ["a.b", "d.e", "vgrout_jax.rl.f", "vgrout_jax.rl.g.h", "vgrout_jax.i.j", "vgrout_jax.k.l"]
    assert list(names) == expected or set(names) == set(expected)
    assert [name for name, deferred in names.items() if deferred] == ["vgrout_jax.k.l"]
