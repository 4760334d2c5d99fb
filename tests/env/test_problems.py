"""Problems: the schema's errors, the sources, and the split."""

import gzip
import http.server
import json
import re
import threading
from pathlib import Path

import pytest

from vgrout_jax.env.problems import Problem, check_disjoint, load_problems, split_heldout


def _row(identifier="p1", **changes) -> dict:
    row = {
        "id": identifier,
        "difficulty": "easy",
        "prompt": [
            {"role": "system", "content": "Write Python."},
            {"role": "user", "content": "Add. Your solution should pass all tests."},
        ],
        "func_name": "Solution().add",
        "setup_code": "import math",
        "prompt_metadata": {"starter_code": "class Solution:\n    def add(self, a, b):\n"},
        "gt_answer": ["assert Solution().add(1, 2) == 3"],
        "canonical_solution": "class Solution:\n    def add(self, a, b):\n        return a + b\n",
        **changes,
    }
    return {name: value for name, value in row.items() if value is not ...}


def _write(path: Path, *rows: dict) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return str(path)


def _problem(identifier: str) -> Problem:
    return Problem(identifier, ({"role": "user", "content": "Add."},), "add", "", "", ("assert 1",), "", "")


def _problems(count: int) -> list[Problem]:
    return [_problem(str(number)) for number in range(count)]


def test_every_field_arrives(tmp_path):
    row = _row(7, judging_sentence="Add.")
    [problem] = load_problems([_write(tmp_path / "a.jsonl", row)])
    assert problem == Problem(
        id="7",
        messages=tuple(row["prompt"]),
        entry_point="add",
        starter_code=row["prompt_metadata"]["starter_code"],
        setup_code="import math",
        tests=("assert Solution().add(1, 2) == 3",),
        solution=row["canonical_solution"],
        difficulty="easy",
        judging_sentence="Add.",
    )


def test_optional_fields_may_be_absent_or_null(tmp_path):
    row = _row(difficulty=..., setup_code=None, prompt_metadata=..., judging_sentence=None)
    [problem] = load_problems([_write(tmp_path / "a.jsonl", row)])
    assert (problem.difficulty, problem.setup_code, problem.starter_code) == ("", "", "")
    assert problem.judging_sentence is None


def test_sources_are_concatenated_in_order_plain_or_gzipped(tmp_path):
    second = _write(tmp_path / "b.jsonl.gz", _row("p3"))
    first = _write(tmp_path / "a.jsonl", _row("p2"), _row("p1"))
    assert [problem.id for problem in load_problems([first, second])] == ["p2", "p1", "p3"]


def test_unicode_line_separators_do_not_split_a_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(_row(setup_code="x = '\u2028'"), ensure_ascii=False) + "\r\n\n", "utf-8")
    assert load_problems([str(path)])[0].setup_code == "x = '\u2028'"


def test_smoke_problems_load_and_their_reference_solutions_pass():
    problems = load_problems(["builtin:smoke"])
    assert len(problems) == 16
    for problem in problems:
        assert 3 <= len(problem.tests) <= 5
        scope: dict = {}
        exec(problem.solution, scope)
        for test in problem.tests:
            exec(test, scope)


def test_real_problems_load(shared_data):
    problems = load_problems([str(shared_data / "leetcode" / "medhard_80.jsonl")])
    assert len(problems) == 80 and all(problem.id.isdigit() for problem in problems)
    assert all(f"def {problem.entry_point}" in problem.starter_code for problem in problems)
    assert all(f".{problem.entry_point}(" in test for problem in problems for test in problem.tests)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": ...}, ["'id' is missing"]),
        ({"id": True}, ["'id'", "str or int", "True"]),
        ({"id": ""}, ["'id'", "non-empty"]),
        ({"prompt": ...}, ["'prompt' is missing"]),
        ({"prompt": "Add."}, ["'prompt'", "list", "'Add.'"]),
        ({"prompt": []}, ["'prompt'", "user"]),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, ["'prompt'", "user", "assistant"]),
        ({"prompt": [{"role": "user"}]}, ["'prompt'", "user"]),
        ({"func_name": ...}, ["'func_name' is missing"]),
        ({"func_name": "add"}, ["'func_name'", "Solution().NAME", "'add'"]),
        ({"gt_answer": ...}, ["'gt_answer' is missing"]),
        ({"gt_answer": []}, ["'gt_answer'", "at least one test"]),
        ({"gt_answer": ["add(1, 2)"]}, ["'gt_answer'", "assert", "add(1, 2)"]),
        ({"gt_answer": [3]}, ["'gt_answer'", "assert", "3"]),
        ({"canonical_solution": ...}, ["'canonical_solution' is missing"]),
        ({"canonical_solution": "def add(a, b): ..."}, ["'canonical_solution'", "class Solution"]),
        ({"canonical_solution": "class Solution:\n    def sub(self): ..."}, ["method", "add"]),
        ({"prompt_metadata": "x"}, ["'prompt_metadata'", "dict"]),
        ({"setup_code": 3}, ["'setup_code'", "str", "3"]),
    ],
)
def test_a_bad_field_is_named_with_its_line(tmp_path, changes, words):
    source = _write(tmp_path / "a.jsonl", _row("good"), _row(**changes))
    with pytest.raises(ValueError) as error:
        load_problems([source])
    assert str(error.value).startswith(f"problems: {source}:2: ") and "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("line", ["{", "[1]", '"text"', "\xff", "[" * 100_000])
def test_a_malformed_line_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(_row()).encode() + b"\n\n" + line.encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(f"{path}:3: ") + "must be a"):
        load_problems([str(path)])


def test_a_cut_archive_is_named(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(_row()).encode())[:-9])
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*gzip"):
        load_problems([str(path)])


def test_missing_and_empty_sources_are_errors(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(FileNotFoundError, match="no/such.jsonl: no such file"):
        load_problems(["no/such.jsonl"])
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_problems([str(tmp_path)])
    with pytest.raises(ValueError, match="empty.jsonl: must hold at least one problem"):
        load_problems([str(tmp_path / "empty.jsonl")])
    with pytest.raises(ValueError, match="builtin:other"):
        load_problems(["builtin:other"])
    with pytest.raises(ValueError, match="non-empty list"):
        load_problems([])
    with pytest.raises(ValueError, match="non-empty list"):
        load_problems("builtin:smoke")


def test_duplicate_ids_within_and_across_sources_are_errors(tmp_path):
    twice = _write(tmp_path / "a.jsonl", _row("7"), _row(7))
    with pytest.raises(ValueError, match=r"a\.jsonl:2: field 'id' .*'7'.*a\.jsonl:1"):
        load_problems([twice])
    first, second = _write(tmp_path / "b.jsonl", _row("x")), _write(tmp_path / "c.jsonl", _row("x"))
    with pytest.raises(ValueError, match=r"c\.jsonl:1: .*b\.jsonl:1"):
        load_problems([first, second])


def test_dataset_names_go_to_datasets_with_their_split(monkeypatch):
    import datasets

    calls = []

    def load_dataset(*args, **options):
        calls.append((args, options))
        return datasets.Dataset.from_list([_row("p1"), _row("p2")])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [problem.id for problem in load_problems(["owner/name"])] == ["p1", "p2"]
    load_problems(["owner/name:test"])
    assert calls == [(("owner/name",), {"split": "train"}), (("owner/name",), {"split": "test"})]


def test_a_dataset_that_cannot_be_loaded_is_one_line(monkeypatch):
    import datasets

    def load_dataset(*args, **options):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match="'owner/name' .*ConnectionError: no route$"):
        load_problems(["owner/name"])


def test_a_bad_row_of_a_dataset_is_named(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: [_row(), _row("b", gt_answer=[])])
    with pytest.raises(ValueError, match="owner/name: row 2: field 'gt_answer'"):
        load_problems(["owner/name"])


def test_a_url_is_read_as_a_file_is(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    plain = _write(tmp_path / "a.jsonl", _row("p1"), _row("p2", difficulty=None))
    zipped = _write(tmp_path / "b.jsonl.gz", _row("p3"))
    _write(tmp_path / "c.jsonl", _row("p4"), _row("p5", gt_answer=[]))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        try:
            loaded = load_problems([f"{base}/a.jsonl", f"{base}/b.jsonl.gz"])
            with pytest.raises(ValueError, match=f"{base}/c.jsonl:2: field 'gt_answer'"):
                load_problems([f"{base}/c.jsonl"])
            with pytest.raises(ValueError, match=f"'{base}/none.jsonl' could not be downloaded: .*404"):
                load_problems([f"{base}/none.jsonl"])
        finally:
            server.shutdown()
    assert loaded == load_problems([plain, zipped])


def test_split_is_a_partition_of_about_the_fraction_in_order():
    problems = _problems(2000)
    train, heldout = split_heldout(problems, 0.2, 0)
    sides = {problem.id for problem in heldout}
    assert train == [problem for problem in problems if problem.id not in sides]
    assert heldout == [problem for problem in problems if problem.id in sides]
    # Six standard deviations of a binomial of 2000 and 0.2.
    assert abs(len(heldout) - 400) < 6 * (2000 * 0.2 * 0.8) ** 0.5


def test_a_side_depends_on_the_id_and_the_seed_alone():
    problems = _problems(60)
    heldout = {problem.id for problem in split_heldout(problems, 0.3, 5)[1]}
    fewer = problems[10:50][::-1]
    assert {problem.id for problem in split_heldout(fewer, 0.3, 5)[1]} == heldout & {p.id for p in fewer}
    assert {problem.id for problem in split_heldout(problems, 0.3, 6)[1]} != heldout


def test_a_larger_fraction_only_adds_to_the_heldout_side():
    problems = _problems(60)
    small = {problem.id for problem in split_heldout(problems, 0.2, 0)[1]}
    assert small < {problem.id for problem in split_heldout(problems, 0.6, 0)[1]}


@pytest.mark.parametrize("fraction", [1e-12, 0.5, 1 - 1e-12])
@pytest.mark.parametrize("count", [2, 5])
def test_neither_side_is_empty(fraction, count):
    for seed in range(20):
        assert all(split_heldout(_problems(count), fraction, seed))


def test_impossible_splits_are_errors():
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="data.heldout_frac"):
            split_heldout(_problems(3), fraction, 0)
    with pytest.raises(ValueError, match="at least 2 problems"):
        split_heldout(_problems(1), 0.5, 0)


def test_shared_problems_are_named():
    problems = _problems(40)
    check_disjoint(problems[:20], problems[20:])
    with pytest.raises(ValueError, match="data.heldout .*the ids 18, 19 in both"):
        check_disjoint(problems[:20], problems[18:])
    with pytest.raises(ValueError, match="and 10 more in both"):
        check_disjoint(problems[:20], problems)
