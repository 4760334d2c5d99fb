"""The house in figures: rooms, imports, functions, what an arm touches, lengths of pages. It runs nothing.

    python -m benchmarks.house                     this checkout
    python -m benchmarks.house --before=OTHER      beside another one, such as an older revision's, as a table

A room is a module of the package's root or a package below it. Lengths of functions are lines of code: without
docstring, comments and blank lines, nested functions included. docs/log/2026-12-01-house.md holds the figures of a
rebuilding, before and after.
"""

import argparse
import ast
import collections
import io
import re
import statistics
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parents[1]
PACKAGE = "vgrout_jax"
LONG_FILE, MANY = 350, 5  # lines, parameters
PAGES = ("README.md", "docs/performance.md", "docs/decisions.md", "docs/architecture.md")
# What asks which arm a run is: the settings that make it, or one arm's name.
ASKS = re.compile(r"gate\.kind|placebo\.kind|label\.(?:source|action)|\babsorb\b")


class Function(NamedTuple):
    """A function: where, its lines of code, its parameters, and those that may be given by position."""

    place: str
    lines: int
    parameters: int
    positional: int


def modules(root: Path) -> dict[str, Path]:
    """Name below the package -> file; a package is its `__init__`, the package itself the empty name."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(name: str, files: dict[str, Path]) -> str:
    """The package that a module stands in, or the module itself where that is the root."""
    return name if files[name].name == "__init__.py" else name.rpartition(".")[0] or name


def imported(name: str, files: dict[str, Path]) -> Iterator[str]:
    """The project's modules that a module imports, deferred imports too."""
    folder = files[name].relative_to(files[""].parent).parts[:-1]
    for node in ast.walk(ast.parse(files[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join((PACKAGE, *folder)[: len(folder) + 2 - node.level]) if node.level else ""
            base = ".".join(part for part in (base, node.module or "") if part)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in names:
            top, _, rest = full.partition(".")
            while rest and rest not in files:
                rest = rest.rpartition(".")[0]
            if top == PACKAGE and rest and rest != name:
                yield rest


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that import each other, directly or through others."""
    reached = {name: _reach(name, graph) for name in graph}
    found = {frozenset({name, *(other for other in reached[name] if name in reached[other])}) for name in graph}
    return [set(group) for group in found if len(group) > 1]


def _reach(name: str, graph: dict[str, set[str]]) -> set[str]:
    reached, waiting = set(), [name]
    while waiting:
        for target in graph[waiting.pop()] - reached:
            reached.add(target)
            waiting.append(target)
    return reached


def is_command(path: Path) -> bool:
    """Whether a module is run by itself."""
    return '__name__ == "__main__"' in path.read_text(encoding="utf-8")


def functions(root: Path) -> Iterator[Function]:
    """Every function and method of the package."""
    for path in sorted((root / PACKAGE).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        code = _lines_of_code(text)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given, place = node.args, f"{path.relative_to(root)}:{node.lineno} {node.name}"
                positional = [a for a in (*given.posonlyargs, *given.args) if a.arg not in ("self", "cls")]
                lines = len(code & set(range(node.lineno, node.end_lineno + 1)))
                yield Function(place, lines, len(positional) + len(given.kwonlyargs), len(positional))


def _lines_of_code(text: str) -> set[int]:
    """Numbers of the lines that hold code: not blank, not a comment, not of a docstring."""
    ignored = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in ignored:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(
            node
        ):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def arm_files(root: Path) -> dict[str, int]:
    """How many files of a kind ask in their code which arm a run is, or name the arm absorb."""
    kinds = {"package": PACKAGE, "scripts": "launch", "configurations": "configs", "tests": "tests"}
    found = {}
    for kind, folder in kinds.items():
        files = [path for path in (root / folder).rglob("*") if path.suffix in (".py", ".sh")]
        found[kind] = sum(bool(ASKS.search(_code(path))) for path in files)
    pages = [path for path in (root / "docs").rglob("*.md") if not {"log", "results"} & set(path.parts)]
    found["pages"] = sum("absorb" in path.read_text(encoding="utf-8") for path in (*pages, root / "README.md"))
    return found


def _code(path: Path) -> str:
    """A file's lines of code."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix != ".py":
        return "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    return "\n".join(lines[number - 1] for number in sorted(_lines_of_code(path.read_text(encoding="utf-8"))))


def arm_edits(root: Path) -> int | None:
    """Files that docs/howto/new-arm.md adds or edits, None where there is no such page."""
    page = root / "docs" / "howto" / "new-arm.md"
    if not page.exists():
        return None
    return len(set(re.findall(r"^```diff (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)))


def measure(root: Path) -> dict[str, Any]:
    """All figures of the checkout at `root`, by name."""
    root = root.resolve()
    files = modules(root)
    graph = {name: set(imported(name, files)) for name in files}
    between = {(room_of(a, files), room_of(b, files)) for a in graph for b in graph[a]}
    commands = {name for name, path in files.items() if name and "." not in name and is_command(path)}
    loop = {"train"} & set(files)
    upward = [(a, b) for a in graph for b in graph[a] if b in commands | loop and (a, b) != ("main", "train")]
    every = list(functions(root))
    lengths = sorted(function.lines for function in every)
    longest = max(every, key=lambda function: function.lines)
    sizes = collections.Counter({str(path.relative_to(root)): _count(path) for path in files.values()})
    asks = arm_files(root)
    return {
        "modules in the root": sum("." not in name and path.name != "__init__.py" for name, path in files.items()),
        "rooms": len({room_of(name, files) for name in files} - {""}),
        "imports between rooms": sum(a != b for a, b in between),
        "imports of a command or of the loop": len(upward),
        "circles": len(circles(graph)),
        **{f"files that ask which arm it is: {kind}": number for kind, number in asks.items()},
        "files that a new arm adds or edits": arm_edits(root),
        "functions": len(every),
        "their lines of code: median": statistics.median_low(lengths),
        "nine of ten have at most": lengths[int(0.9 * (len(lengths) - 1))],
        "the longest": f"{longest.lines} ({longest.place.rpartition(' ')[2]})",
        "over 40": sum(length > 40 for length in lengths),
        f"more than {MANY} parameters by position": sum(function.positional > MANY for function in every),
        f"more than {MANY + 3} parameters": sum(function.parameters > MANY + 3 for function in every),
        "most parameters": max(function.parameters for function in every),
        "functions that take the whole Config": _takes_config(files),
        "lines of the package": sum(sizes.values()),
        f"files over {LONG_FILE} lines": sum(size > LONG_FILE for size in sizes.values()),
        **{f"lines of {page}": _count(root / page) for page in PAGES if (root / page).exists()},
    }


def _count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _takes_config(files: dict[str, Path]) -> int:
    found = 0
    for path in files.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                found += any(ast.unparse(a.annotation) == "Config" for a in given if a.annotation is not None)
    return found


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.house", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=HERE, help="the checkout that is measured")
    parser.add_argument("--before", type=Path, help="another checkout, for a column before")
    options = parser.parse_args()
    rows = {name: [value] for name, value in measure(options.root).items()}
    if options.before:
        before = measure(options.before)
        rows = {name: [before.get(name), *rows.get(name, [None])] for name in {**before, **rows}}
    heads = ["before", "after"] if options.before else ["now"]
    print(f"| | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join('-' if value is None else str(value) for value in values)} |")


if __name__ == "__main__":
    main()
