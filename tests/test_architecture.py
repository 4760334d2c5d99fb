"""The directions of imports, read from the source and held against the table of docs/architecture.md."""

import ast
import graphlib
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vgrout_jax"
TABLE_HEAD = "| modules | may import | kind |"
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
    """A row of the table: `modules` may import `targets`, and are of one kind."""

    modules: list[str]
    targets: list[str]
    kind: str


class Import(NamedTuple):
    """One name that a module imports; `deferred` inside of a function."""

    name: str
    deferred: bool


def read_rules() -> list[Rule]:
    lines = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines()
    rows = lines[lines.index(TABLE_HEAD) + 2 :]
    cells = [
        [cell.split() for cell in row.replace("`", "").strip("|").split("|")] for row in rows if row.startswith("|")
    ]
    return [Rule(names, targets, kind) for names, targets, [kind] in cells]


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


def rule_of(name: str) -> Rule:
    found = [rule for rule in RULES if any(matches(name, pattern) for pattern in rule.modules)]
    assert len(found) == 1, f"{name} must have one row in the table of docs/architecture.md, found {len(found)}"
    return found[0]


def matches(name: str, pattern: str) -> bool:
    """`x.*` means the package x itself as well."""
    return fnmatchcase(name, pattern) or (pattern.endswith(".*") and name == pattern[:-2])


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


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_its_row_allows(name):
    if MODULES[name].stat().st_size == 0:
        return
    allowed = rule_of(name).targets
    wrong = {target for target in internal(name) if not any(matches(target, pattern) for pattern in allowed)}
    assert not wrong, f"{name} imports {sorted(wrong)}, which its row in docs/architecture.md does not name"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.modules[0])
def test_a_row_of_the_table_is_about_modules_that_exist(rule):
    for pattern in (*rule.modules, *rule.targets):
        assert any(matches(name, pattern) for name in MODULES), f"no module {pattern}"
    assert rule.kind in ("host", "pure", "both")


def test_host_modules_know_no_jax_even_through_others():
    for name in MODULES:
        if MODULES[name].stat().st_size and rule_of(name).kind == "host":
            reached, waiting = set(), {name}
            while waiting:
                current = waiting.pop()
                reached.add(current)
                assert not external(current) & JAX, f"{name} reaches {external(current) & JAX} through {current}"
                waiting |= internal(current) - reached


def test_pure_modules_touch_nothing_of_the_host():
    for name, path in MODULES.items():
        if path.stat().st_size and rule_of(name).kind == "pure":
            assert not external(name) & HOST, f"{name} is pure and imports {external(name) & HOST}"
            calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            named = {call.id for call in calls if isinstance(call, ast.Name)}
            assert not named & {"open", "print", "input"}, f"{name} is pure and calls {named & {'open', 'print'}}"


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
