"""What the documentation shows is run: how-to pages, commands, links, the file tree, computed tables."""

import ast
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from vgrout_jax.config import ARMS

ROOT = Path(__file__).resolve().parents[1]
HOWTO = ROOT / "docs" / "howto"
LOG = ROOT / "docs" / "log"  # dated records, which name files, commands and fields as they were called that day
ALL_PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PAGES = [page for page in ALL_PAGES if page.parent != LOG or page.name == "README.md"]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FILE = re.compile(r"\b(?:vgrout_jax|configs|launch|docs|tests|benchmarks)/[\w/.]*\w\.(?:py|md|sh|jsonl?)\b")
FENCE = re.compile(r"^(`{3,})([^\n]*)\n(.*?)^\1[ ]*$", re.MULTILINE | re.DOTALL)

# Reads command lines as `main` does, each in a process of its own, and says why one is refused.
PARSE = """
import json, os, sys
from vgrout_jax.common.command_line import UsageError
from vgrout_jax.config import flags

for command in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        try:
            sys.argv = ["main", *command]  # ml_collections looks for overrides here
            flags.parse_flags(sys.argv)
            flags.resolve(flags.CONFIG.value, None)
        except UsageError as error:
            print(" ".join(command), "->", error, flush=True)
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)
"""


class Block(NamedTuple):
    """A fenced block: language, what follows it on the fence's line, text."""

    language: str
    argument: str
    text: str


def blocks(page: Path, language: str | None = None) -> list[Block]:
    found = []
    for _, info, text in FENCE.findall(page.read_text(encoding="utf-8")):
        name, _, argument = info.strip().partition(" ")
        if language in (None, name):
            found.append(Block(name, argument, text))
    return found


def anchors(page: Path) -> set[str]:
    """A heading's anchor as GitHub makes it."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+\s+(.*?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[str]:
    """The command lines of a page's shell blocks, continuation lines joined, loops unrolled to one example."""
    for block in blocks(page, "bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            line = line.strip().replace("$arm", "routeV").replace("$seed", "1")
            if line and not line.startswith("#"):
                yield line


def run(script: str | list[str], folder: Path, **environment: str) -> str:
    """Standard output of a Python program that must end well."""
    arguments = ["-c", script] if isinstance(script, str) else script
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def apply(block: Block, folder: Path) -> None:
    """One edit: its context and removed lines occur once in the file, and its context and added ones replace them.

    A file of which only added lines are shown is a new one.
    """
    path = folder / block.argument
    lines = block.text.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    if not before:
        assert not path.exists(), f"{block.argument} exists: the edit must show where in it"
        path.touch()
    text = path.read_text(encoding="utf-8")
    assert not before or text.count(before) == 1, f"{block.argument} must hold once:\n{before}"
    path.write_text(text.replace(before, after) if before else after, encoding="utf-8")


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    """A copy of the package and its configurations, for edits."""
    for name in ("vgrout_jax", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def smoke(folder: Path, *flags: str, config: str = "configs/routeV.py:smoke") -> str:
    """A run of one step, without looking at the result."""
    short = ["--config.train.steps=1", "--config.eval.samples=1", "--config.eval.every_steps=0"]
    arguments = ["-m", "vgrout_jax.main", f"--config={config}", "--workdir=run", *short, *flags]
    return run(arguments, folder, PYTHONPATH=str(folder))


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(linked), f"{page.name}: no heading for {target}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    shown = {block.argument for block in blocks(page, "diff")}  # a how-to's new files
    for name in FILE.findall(text):
        assert (ROOT / name).exists() or name in shown, f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_sections_that_are_named_exist(page):
    check_sections(page)


@pytest.mark.parametrize("path", sorted((ROOT / "vgrout_jax").rglob("*.py")), ids=lambda path: path.stem)
def test_pages_that_docstrings_cite_exist(path):
    check_sections(path)


def check_sections(path: Path) -> None:
    text = " ".join(path.read_text(encoding="utf-8").split())
    for name, sections in re.findall(r"(docs/\w+\.md)(?: sections? ([\d, and]*\d))?", text):
        assert (ROOT / name).exists(), f"{path.name} cites {name}"
        headings = (ROOT / name).read_text(encoding="utf-8")
        for number in re.findall(r"\d+", sections):
            found = re.search(rf"^## {number}\. ", headings, re.MULTILINE)
            assert found, f"{path.name} cites {name} section {number}"


def test_readme_s_tree_is_the_tree():
    """Every folder of package and repository is shown, with a word about it, and none that is not there."""
    [tree] = [block.text for block in blocks(ROOT / "README.md", "text") if block.text.startswith("vgrout_jax/")]
    shown, folders = set(), []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        assert line == "vgrout_jax/" or len(line.split()) > 2, f"README's tree says nothing about {name}"
        if name.endswith("/"):
            folders = [*folders[:depth], name]
            assert (ROOT / "".join(folders)).is_dir(), f"README's tree shows {''.join(folders)}"
            shown.add("".join(folders))
    packages = {path.parent for path in (ROOT / "vgrout_jax").glob("*/__init__.py")}
    others = {ROOT / name for name in ("configs", "launch", "benchmarks", "docs", "tests")}
    missing = {f"{path.relative_to(ROOT)}/" for path in packages | others} - shown
    assert not missing, f"README's tree lacks {sorted(missing)}"


def test_pages_keep_their_length():
    longest = {"README.md": 150, "docs/performance.md": 80}
    for name, most in longest.items():
        lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        assert lines <= most, f"{name} has {lines} lines of at most {most}: move what is history to docs/log/"


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), {ROOT / "README.md"}
    while waiting:
        page = waiting.pop()
        reached.add(page)
        targets = re.findall(r"\]\(([^)\s#]+\.md)", FENCE.sub("", page.read_text(encoding="utf-8")))
        waiting |= {(page.parent / target).resolve() for target in targets if "://" not in target} - reached
    missing = set(ALL_PAGES) - reached
    assert not missing, f"no page links to {sorted(str(page.relative_to(ROOT)) for page in missing)}"


def test_the_run_that_readme_shows_has_today_s_table_and_is_one_run():
    from vgrout_jax.run import terminal

    shown = blocks(ROOT / "README.md", "text")[0].text.splitlines()
    assert shown[:3] == [line.rstrip("\n") for line in terminal.heading()]
    whole = blocks(ROOT / "docs" / "toy.md", "text")
    [whole] = [block.text.splitlines() for block in whole if "As trained, 57%" in block.text]
    assert set(shown) - {"..."} <= set(whole) and len([line for line in shown if line != "..."]) == 12
    assert [line for line in whole if line in terminal.legend()] == terminal.legend()


def test_the_log_lists_its_pages_and_they_begin_with_their_date():
    index = (LOG / "README.md").read_text(encoding="utf-8")
    pages = sorted(path for path in LOG.glob("*.md") if path.name != "README.md")
    assert pages
    for path in pages:
        date = re.match(r"\d{4}-\d\d-\d\d", path.name)
        assert date and path.read_text(encoding="utf-8").startswith(f"# {date[0]}: "), path.name
        assert f"| {date[0]} | [" in index and f"]({path.name}) |" in index, f"docs/log/README.md lacks {path.name}"


def test_the_picture_of_routing_is_what_its_script_draws(tmp_path):
    folder = ROOT / "docs" / "figures"
    shutil.copy(folder / "routing.py", tmp_path)
    run([str(tmp_path / "routing.py")], tmp_path, PYTHONPATH=str(ROOT))
    words = [re.findall(r"<text[^>]*>([^<]*)</text>", (at / "routing.svg").read_text()) for at in (folder, tmp_path)]
    assert "Deployment" in words[0] and words[0] == words[1]


def test_code_that_a_page_shows_of_a_file_is_in_that_file():
    """A block `python FILE` is lines of FILE that follow one another, indentation aside."""
    shown = [(page, block) for page in PAGES for block in blocks(page, "python") if block.argument]
    assert len(shown) >= 3
    for page, block in shown:
        source = [line.strip() for line in (ROOT / block.argument).read_text(encoding="utf-8").splitlines()]
        wanted = [line.strip() for line in block.text.splitlines()]
        places = [at for at in range(len(source)) if source[at : at + len(wanted)] == wanted]
        assert len(places) == 1, f"{page.name} shows lines of {block.argument} that are not there:\n{block.text}"


def test_names_in_code_of_the_method_s_symbols_exist():
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    names = [
        name
        for row in re.findall(r"^\|.*\|$", text[: text.index("## 2. ")], re.MULTILINE)
        for name in re.findall(r"`([\w.]+)`", row.rsplit("|", 2)[1])
    ]
    assert len(names) > 20
    known, fields = set(), set()  # what code calls something, and fields and methods with the class that has them
    for path in (ROOT / "vgrout_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            known |= {getattr(node, key, None) for key in ("name", "arg", "attr", "id")}
            if isinstance(node, ast.ClassDef):
                fields |= {(node.name, inner.target.id) for inner in node.body if isinstance(inner, ast.AnnAssign)}
    for name in names:
        owner, _, last = name.rpartition(".")
        assert last in known, f"docs/method.md names {name}"
        assert not owner[:1].isupper() or (owner, last) in fields, f"docs/method.md names {name}"


def test_a_decision_has_four_lines():
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    entries = [entry.splitlines() for entry in text.split("\n\n") if entry.startswith(("**", "* "))]
    assert len(entries) > 40
    starts = ("**", "* Instead of: ", "* Because: ", "* Costs: ")
    for entry in entries:
        assert len(entry) == 4 and all(map(str.startswith, entry, starts)), "\n".join(entry)


def test_every_command_is_one():
    for page in PAGES:
        for command in commands(page):
            for module in re.findall(r"python3? -m (vgrout_jax[\w.]*)", command):
                assert (ROOT / (module.replace(".", "/") + ".py")).exists(), f"{page.name}: {command}"
            for script in re.findall(r"(?:^|\s)(?:\./)?(launch/\w+\.sh|\.ci/run)", command):
                assert os.access(ROOT / script, os.X_OK), f"{page.name}: {command}"


@pytest.mark.slow
def test_every_benchmark_that_pages_call_starts():
    calls = {
        (found[1], found[2])
        for page in PAGES
        for found in re.finditer(r"\bpython3? (-m )?(benchmarks[/.]\w+(?:\.py)?)", page.read_text(encoding="utf-8"))
    }
    assert len(calls) >= 5
    for module, name in sorted(calls, key=str):
        assert "usage" in run([*(["-m"] if module else []), name, "--help"], ROOT), name


def test_every_training_command_is_accepted():
    """`main` reads each and finds no fault with it; what needs the edits of its page is left to that page's test."""
    found = []
    for page in PAGES:
        for command in commands(page):
            match = re.search(r"(?:vgrout_jax\.main|launch/run\.sh) (--config=.*?)(?: >.*| 2>.*|\"|$)", command)
            if match and "skip_test" not in command:
                found.append(re.sub(r"\$\{\w+\[\$?\w+\]\}", "absorb", match[1]).split())
    assert len(found) >= 10
    assert refusals(found) == ""
    assert "label.action" in refusals([["--config=configs/none.py:smoke", "--config.label.action=absorb"]])


def refusals(found: list[list[str]]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=json.dumps(found),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_field_that_is_named_exists():
    from vgrout_jax.config import Config

    sections = vars(Config())
    for page in PAGES:
        for section, field in re.findall(r"`(\w+)\.(\w+)`", page.read_text(encoding="utf-8")):
            if section in sections and field not in ("json", "jsonl"):
                module = ROOT / "vgrout_jax" / section / f"{field}.py"
                known = hasattr(sections[section], field) or module.exists()
                assert known, f"{page.name} names {section}.{field}"


def test_new_mode(edited):
    page = HOWTO / "new-mode.md"
    added, line = blocks(page, "diff")
    assert not (edited / added.argument).exists()
    assert [text[0] for text in line.text.splitlines()].count("+") == 1 and "-" not in line.text
    for block in (added, line):
        apply(block, edited)
    for command in commands(page):
        if "vgrout_jax.data" in command:
            run(command.split()[1:], edited, PYTHONPATH=str(edited))
    [example], [expected] = blocks(page, "python"), blocks(page, "text")
    (edited / "example.py").write_text(example.text)
    assert run(["example.py"], edited, PYTHONPATH=str(edited)) == expected.text


def check_edited_example(page: Path, folder: Path) -> None:
    """Applies a page's edits to a copy of the package, and runs its example there."""
    for block in blocks(page, "diff"):
        apply(block, folder)
    [example] = [block for block in blocks(page, "python") if not block.argument]
    [expected] = blocks(page, "text")
    assert run(example.text, folder, PYTHONPATH=str(folder)) == expected.text


def test_change_the_gate(edited):
    page = HOWTO / "change-the-gate.md"
    [example], [expected] = blocks(page, "python"), blocks(page, "text")
    before = run(example.text, edited, PYTHONPATH=str(edited)).strip()
    assert f"it was `{before}`" in page.read_text(encoding="utf-8") and before != expected.text.strip()
    check_edited_example(page, edited)


@pytest.mark.slow
def test_change_the_gate_trains_and_replays(edited):
    for block in blocks(HOWTO / "change-the-gate.md", "diff"):
        apply(block, edited)
    smoke(edited, "--config.log.gradients=true")
    said = run(["-m", "vgrout_jax.replay", "run"], edited, PYTHONPATH=str(edited))
    assert "replay" in said and list(edited.rglob("index.html"))


def test_new_metric_is_listed(edited):
    for block in blocks(HOWTO / "new-metric.md", "diff"):
        apply(block, edited)
    keys = "from vgrout_jax.run import terminal, writer; print(*writer.METRIC_KEYS, *terminal.heading())"
    shown = run(keys, edited, PYTHONPATH=str(edited)).split()
    assert {"length/correct", "grad_max", "right"} <= set(shown)


@pytest.mark.slow
def test_new_metric(edited):
    page = HOWTO / "new-metric.md"
    for block in blocks(page, "diff"):
        apply(block, edited)
    smoke(edited)
    [example], [expected] = blocks(page, "python"), blocks(page, "text")
    assert run(example.text, edited, PYTHONPATH=str(edited)) == expected.text


def test_new_model(tmp_path):
    [example], [expected] = blocks(HOWTO / "new-model.md", "python"), blocks(HOWTO / "new-model.md", "text")
    assert run(example.text, tmp_path, PYTHONPATH=str(ROOT)) == expected.text


@pytest.mark.slow
def test_new_model_trains(edited):
    run(blocks(HOWTO / "new-model.md", "python")[0].text, edited, PYTHONPATH=str(edited))
    smoke(edited, "--config.model.path=my_model", config="configs/none.py:smoke")
    assert '"num_layers"' in (edited / "run" / "config.json").read_text()
    assert "my_model" in (edited / "run" / "config.json").read_text()


@pytest.mark.slow
def test_read_the_code(tmp_path):
    page = HOWTO / "read-the-code.md"
    [example] = [block for block in blocks(page, "python") if not block.argument]
    [expected] = blocks(page, "text")
    (tmp_path / "example.py").write_text(example.text)
    assert run(["example.py"], tmp_path, PYTHONPATH=str(ROOT)) == expected.text


def write_pairs(folder: Path) -> None:
    [pairs] = blocks(HOWTO / "new-pairs.md", "markdown")
    (folder / "my_pairs.md").write_text(pairs.text)


def test_new_pairs(tmp_path):
    write_pairs(tmp_path)
    [example], [expected] = blocks(HOWTO / "new-pairs.md", "python"), blocks(HOWTO / "new-pairs.md", "text")
    assert run(example.text, tmp_path, PYTHONPATH=str(ROOT)) == expected.text


@pytest.mark.slow
def test_new_mode_and_new_pairs_train(edited):
    for block in blocks(HOWTO / "new-mode.md", "diff"):
        apply(block, edited)
    for module in ("make_smoke", "make_tokenizer"):
        run(["-m", f"vgrout_jax.data.{module}"], edited, PYTHONPATH=str(edited))
    write_pairs(edited)
    pairs = ["--config.direction.pairs=my_pairs.md#measurements", "--config.direction.tags=timing,sensors"]
    smoke(edited, "--config.env.modes=run_tests,skip_test", *pairs)
    assert '"skip_test"' in (edited / "run" / "eval.jsonl").read_text()
    shown = blocks(HOWTO / "new-pairs.md", "text")[0].text.split()[-1]
    assert shown in (edited / "run" / "config.json").read_text()


def test_new_arm(edited):
    page = HOWTO / "new-arm.md"
    for block in blocks(page, "diff"):
        apply(block, edited)
    [example], [expected] = blocks(page, "python"), blocks(page, "text")
    assert run(example.text, edited, PYTHONPATH=str(edited)) == expected.text
    assert "discount" in run(["-m", "vgrout_jax.arms", "--names"], edited, PYTHONPATH=str(edited)).splitlines()
    lines = (edited / "vgrout_jax" / "arms" / "discount.py").read_text().splitlines()
    assert len(lines) <= 60


@pytest.mark.slow
def test_new_arm_trains(edited):
    for block in blocks(HOWTO / "new-arm.md", "diff"):
        apply(block, edited)
    smoke(edited, config="configs/discount.py:smoke")
    assert '"arm": "discount"' in (edited / "run" / "summary.json").read_text()


def write_grader(folder: Path) -> None:
    (folder / "my_grader.py").write_text(blocks(HOWTO / "new-grader.md", "python")[0].text)


def test_new_grader(tmp_path):
    write_grader(tmp_path)
    [_, example], [expected] = (
        blocks(HOWTO / "new-grader.md", "python"),
        blocks(HOWTO / "new-grader.md", "text"),
    )
    assert run(example.text, tmp_path, PYTHONPATH=f"{ROOT}:{tmp_path}") == expected.text


@pytest.mark.slow
def test_new_grader_trains(edited):
    write_grader(edited)
    [edit] = blocks(HOWTO / "new-grader.md", "diff")
    apply(edit, edited)
    source = edited / "my_grader.py"
    source.write_text(source.read_text().replace('status="no_code"', 'status="asked"'))
    smoke(edited)
    rows = "".join(gzip.decompress(path.read_bytes()).decode() for path in (edited / "run" / "rollouts").iterdir())
    assert '"asked"' in rows


def test_new_size_builds_the_shape_that_it_shows():
    page = HOWTO / "new-size.md"
    [example], [expected] = blocks(page, "python"), blocks(page, "text")
    assert run(example.text, ROOT) == expected.text


# hidden, feed-forward, layers, heads, key-value heads, tied embeddings, of the published config.json files
SIZES = {
    "Qwen3-0.6B": (1024, 3072, 28, 16, 8, True),
    "Qwen3-1.7B": (2048, 6144, 28, 16, 8, True),
    "Qwen3-4B": (2560, 9728, 36, 32, 8, True),
    "Qwen3-8B": (4096, 12288, 36, 32, 8, False),
    "Qwen3-14B": (5120, 17408, 40, 40, 8, False),
    "Qwen3-32B": (5120, 25600, 64, 64, 8, False),
}


@pytest.mark.parametrize("name", SIZES)
def test_new_size_table_follows_from_the_shapes(name):
    import jax

    from vgrout_jax.model import parameters, qwen3

    hidden, feed_forward, layers, heads, kv_heads, tied = SIZES[name]
    model = qwen3.Qwen3Config(151936, hidden, feed_forward, layers, heads, kv_heads, 128, tie_embeddings=tied)
    base = sum(leaf.size for leaf in jax.tree.leaves(parameters.abstract_parameters(model)))
    adapter = layers * 2 * 32 * sum(sum(shape) for shape in model.module_shapes().values())
    memory = f"{2 * base / 1e9:.1f} | {5 * 4 * adapter / 1e9:.1f} | {2 * adapter / 1e9:.2f}"
    expected = f"| {name} | {7 * layers} | {base / 1e9:.2f} | {memory} |"
    assert expected in (HOWTO / "new-size.md").read_text(encoding="utf-8").splitlines()


def test_slurm_tasks_cover_the_grid_once(tmp_path):
    (tmp_path / "launch").mkdir()
    script = tmp_path / "launch" / "run.sh"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$*"\n')
    script.chmod(0o755)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    lines = []
    for task in range(16):
        done = subprocess.run(
            ["bash", ROOT / "launch" / "slurm.sh", "--config.teacher.pool=pool"],
            env={**os.environ, "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_ARRAY_TASK_ID": str(task)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == (task == 15), done.stderr
        lines += done.stdout.splitlines()
    grid = {re.match(r"--config=configs/(\w+)\.py:fast --config\.seed=(\d) ", line).groups() for line in lines}
    arms = {arm for arm, entry in ARMS.items() if entry.preregistered}
    assert grid == {(arm, str(seed)) for arm in arms for seed in range(3)} and len(arms) == 5
    assert len({line.split()[2] for line in lines}) == 15
    assert all(line.endswith(" --config.teacher.pool=pool") for line in lines)


def test_parity_table_names_tests_that_exist():
    text = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 30
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


def test_nothing_published_names_this_machine():
    scripts = [
        *(ROOT / "launch").glob("*"),
        ROOT / ".ci" / "run",
        ROOT / "pyproject.toml",
        *ROOT.glob("*.lock"),
    ]
    for path in (*ALL_PAGES, *scripts):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(?:work|root|home)/|file://|index-url http|find-links", text), path.name
