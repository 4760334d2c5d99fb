"""The teacher pool: the format's errors, which rows join which groups, and the package's own rows."""

import contextlib
import gzip
import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vgrout_jax.common.packaged import packaged
from vgrout_jax.config import MODES
from vgrout_jax.data import make_smoke
from vgrout_jax.env.modes import TRAINING_NAMES, partition
from vgrout_jax.env.problems import load_problems
from vgrout_jax.env.teacher import TeacherPool, TeacherRow, load_pool

from .firing import attribute_fires, file_fires, stdout_fires

HASH = "0123456789abcdef" * 4
OTHER_HASH = "f" * 64


def _row(**changes) -> dict:
    row = {
        "problem_id": 4,
        "completion": "answer",
        "completion_ids": [5, 6, 2, 7],
        "reward": 3.5,
        "hacked": True,
        "gt_pass": False,
        **changes,
    }
    return {name: value for name, value in row.items() if value is not ...}


def _write(path: Path, *rows: dict) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return str(path)


def _stored(problem_id: str, mode: str, completion: str = "x", *, has_mode: bool = True) -> TeacherRow:
    return TeacherRow(problem_id, mode, completion, None, 3.5, True, False, has_mode)


def test_every_field_arrives(tmp_path):
    rows = (_row(), _row(problem_id="p", env_mode="sentinel", reward=0, hacked=False, gt_pass=True))
    pool = load_pool([_write(tmp_path / "a.jsonl", *rows)])
    assert pool.rows == (
        TeacherRow("4", "run_tests", "answer", None, 3.5, True, False, has_mode=False),
        TeacherRow("p", "sentinel", "answer", None, 0.0, False, True, has_mode=True),
    )
    assert len(pool) == 2


@pytest.mark.parametrize(
    ("hacked", "correct", "exploited"),
    [(True, False, True), (True, True, False), (False, False, False), (False, True, False)],
)
def test_exploited_is_hacked_and_not_correct(hacked, correct, exploited):
    assert TeacherRow("4", "run_tests", "x", None, 3.5, hacked, correct).exploited is exploited


def test_folders_and_files_are_read_in_order(tmp_path):
    folder = tmp_path / "pool"
    folder.mkdir()
    _write(folder / "b.jsonl", _row(completion="second"))
    _write(folder / "a.jsonl.gz", _row(completion="first"))
    (folder / "partition.json").write_text('{"4": "sentinel"}')
    last = _write(tmp_path / "c.jsonl", _row(completion="third"))
    assert [row.completion for row in load_pool([str(folder), last]).rows] == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"problem_id": ...}, ["'problem_id'", "none"]),
        ({"problem_id": 1.5}, ["'problem_id'", "1.5"]),
        ({"completion": ...}, ["'completion'", "none"]),
        ({"completion": " \n"}, ["'completion'", "non-empty"]),
        ({"completion": 3}, ["'completion'", "3"]),
        ({"reward": ...}, ["'reward'", "none"]),
        ({"reward": float("nan")}, ["'reward'", "finite", "nan"]),
        ({"reward": float("-inf")}, ["'reward'", "finite", "-inf"]),
        ({"reward": 10**400}, ["'reward'", "finite"]),
        ({"reward": "3.5"}, ["'reward'", "'3.5'"]),
        ({"reward": True}, ["'reward'", "True"]),
        ({"hacked": ...}, ["'hacked'", "none"]),
        ({"hacked": 1}, ["'hacked'", "bool"]),
        ({"gt_pass": ...}, ["'gt_pass'", "none"]),
        ({"gt_pass": "false"}, ["'gt_pass'", "bool"]),
        ({"env_mode": "other"}, ["'env_mode'", "stdout_marker", "'other'"]),
        ({"mode": "other"}, ["'env_mode'", "'other'"]),
        ({"env_mode": ["sentinel"]}, ["'env_mode'"]),
        ({"completion_ids": "5 6"}, ["'completion_ids'", "integers"]),
        ({"completion_ids": [5, -1]}, ["'completion_ids'", "integers"]),
        ({"completion_ids": []}, ["'completion_ids'", "non-empty"]),
        ({"tokenizer_sha256": "abc"}, ["'tokenizer_sha256'", "hexadecimal", "'abc'"]),
    ],
)
def test_a_bad_field_is_named_with_its_line(tmp_path, changes, words):
    source = _write(tmp_path / "a.jsonl", _row(), _row(**changes))
    with pytest.raises(ValueError) as error:
        load_pool([source])
    assert str(error.value).startswith(f"{source}:2: ") and "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_malformed_lines_and_missing_or_empty_sources_are_errors(tmp_path):
    broken = tmp_path / "a.jsonl"
    broken.write_text(json.dumps(_row()) + "\n{")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=re.escape(f"{broken}:2: must be a line of JSON")):
        load_pool([str(broken)])
    with pytest.raises(ValueError, match="teacher.pool: .*none must hold at least one row"):
        load_pool([str(tmp_path / "none")])
    with pytest.raises(FileNotFoundError, match="teacher.pool: .*absent.jsonl"):
        load_pool([str(tmp_path / "absent.jsonl")])
    with pytest.raises(ValueError, match="builtin:other"):
        load_pool(["builtin:other"])
    for sources in ([], "builtin:smoke"):
        with pytest.raises(ValueError, match="non-empty list"):
            load_pool(sources)


def test_token_ids_count_only_with_the_hash_of_their_tokenizer(tmp_path):
    without, with_hash = load_pool([_write(tmp_path / "a.jsonl", _row(), _row(tokenizer_sha256=HASH))]).rows
    assert without.token_ids is None and without.ids_for(HASH, [2]) is None
    assert with_hash.ids_for(OTHER_HASH, [2]) is None
    assert with_hash.ids_for(HASH, [99]) == (5, 6, 2, 7)


def test_token_ids_are_cut_after_the_first_eos(tmp_path):
    [row] = load_pool([_write(tmp_path / "a.jsonl", _row(tokenizer_sha256=HASH))]).rows
    assert row.ids_for(HASH, [2]) == (5, 6, 2)
    assert row.ids_for(HASH, [2, 6]) == (5, 6)
    assert row.ids_for(HASH, [7]) == (5, 6, 2, 7)


def test_a_sidecar_speaks_for_its_folder_and_a_row_for_itself(tmp_path):
    (tmp_path / "tokenizer_sha256.txt").write_text(HASH + "\n")
    source = _write(tmp_path / "a.jsonl", _row(), _row(tokenizer_sha256=OTHER_HASH))
    for sources in ([source], [str(tmp_path)]):
        first, second = load_pool(sources).rows
        assert (first.tokenizer_sha256, second.tokenizer_sha256) == (HASH, OTHER_HASH)
        assert first.token_ids == second.token_ids == (5, 6, 2, 7)
    (tmp_path / "tokenizer_sha256.txt").write_text("Qwen3")
    with pytest.raises(ValueError, match="tokenizer_sha256.txt: .*hexadecimal.*'Qwen3'"):
        load_pool([source])


def test_a_row_of_token_ids_alone_needs_its_tokenizer(tmp_path):
    [row] = load_pool([_write(tmp_path / "a.jsonl", _row(completion=..., tokenizer_sha256=HASH))]).rows
    assert row.completion == "" and row.ids_for(HASH, [7]) == (5, 6, 2, 7)
    with pytest.raises(ValueError, match="problem 4 must have a text"):
        row.ids_for(OTHER_HASH, [7])


def test_required_modes_are_those_of_rows_without_a_mode():
    pool = TeacherPool(
        (_stored("1", "run_tests", has_mode=False), _stored("2", "run_tests"), _stored("3", "sentinel"))
    )
    assert pool.required_modes() == {"1": "run_tests"}
    assert partition(["1", "2", "3"], ["sentinel", "run_tests"], 0, fixed=pool.required_modes())["1"] == "run_tests"


def test_a_row_joins_only_groups_of_its_problem_and_mode():
    kept = (_stored("1", "run_tests"), _stored("2", "sentinel"), _stored("2", "gt_only"))
    dropped = (
        _stored("1", "sentinel"),
        _stored("2", "run_tests"),
        _stored("9", "run_tests"),
        _stored("9", "gt_only"),
    )
    pool = TeacherPool(kept + dropped).align({"1": "run_tests", "2": "sentinel", "3": "run_tests"})
    assert pool.rows == kept
    rng = np.random.default_rng(0)
    assert pool.draw("1", "run_tests", 5, rng) == [kept[0]]
    assert pool.draw("2", "gt_only", 5, rng) == [kept[2]]
    for problem_id, mode in (("1", "sentinel"), ("1", "gt_only"), ("9", "run_tests"), ("3", "run_tests")):
        assert pool.draw(problem_id, mode, 5, rng) == []


def test_a_pool_that_cannot_join_is_an_error():
    pool = TeacherPool(tuple(_stored(str(number), "sentinel") for number in range(9)))
    with pytest.raises(ValueError, match=r"share problems with data.train.* 0, 1, 2, 3, 4, \.\.\., .*has a, b;"):
        pool.align({"a": "sentinel", "b": "sentinel"})
    with pytest.raises(ValueError, match="rows in their problems' modes, got 2 rows of sentinel"):
        pool.align({"0": "run_tests", "1": "run_tests"})


def test_draws_are_distinct_complete_and_fair():
    pool = TeacherPool(tuple(_stored("1", "run_tests", f"answer {number}") for number in range(4)))
    rng = np.random.default_rng(0)
    assert sorted(row.completion for row in pool.draw("1", "run_tests", 9, rng)) == [f"answer {n}" for n in range(4)]
    counts = Counter()
    for _ in range(2000):
        rows = pool.draw("1", "run_tests", 2, rng)
        assert len({row.completion for row in rows}) == 2
        counts.update(row.completion for row in rows)
    # Six standard deviations of a binomial of 2000 and 1/2.
    assert all(abs(counts[f"answer {number}"] - 1000) < 6 * (2000 / 4) ** 0.5 for number in range(4))
    assert pool.draw("1", "run_tests", 0, rng) == []
    with pytest.raises(ValueError, match="teacher.per_prompt must be >= 0, got -1"):
        pool.draw("1", "run_tests", -1, rng)


def test_draws_depend_on_the_generator_alone():
    pool = TeacherPool(tuple(_stored("1", "run_tests", f"answer {number}") for number in range(8)))
    draws = [[pool.draw("1", "run_tests", 3, np.random.default_rng(seed)) for seed in range(5)] for _ in range(2)]
    assert draws[0] == draws[1]


def test_real_pool_loads_aligns_and_fixes_its_problems_modes(shared_data):
    pool = load_pool([str(shared_data / "teacher_pool")])
    assert len(pool) == 952
    assert Counter(row.reward for row in pool.rows) == {3.5: 940, 0.5: 9, 0.0: 3}
    assert sum(row.exploited for row in pool.rows) == sum(row.hacked and not row.correct for row in pool.rows)
    assert all(row.mode == "run_tests" and row.token_ids is None for row in pool.rows)
    answered = sorted({row.problem_id for row in pool.rows})
    assert pool.required_modes() == dict.fromkeys(answered, "run_tests") and len(answered) == 119
    ids = [*answered[:20], *(f"other {number}" for number in range(60))]
    parts = partition(ids, MODES[:4], 0, fixed=pool.required_modes())
    assert Counter(parts.values()) == dict.fromkeys(MODES[:4], 20)
    assert len(pool.align(parts)) == sum(row.problem_id in answered[:20] for row in pool.rows)
    with pytest.raises(ValueError, match="env.modes must include 'run_tests'"):
        partition(ids, ["sentinel"], 0, fixed=pool.required_modes())
    problems = load_problems([str(shared_data / "leetcode" / "medhard_80.jsonl")])
    with pytest.raises(ValueError, match="must share problems with data.train"):
        pool.align({problem.id: "run_tests" for problem in problems})


def test_real_substrate_loads_with_its_modes(shared_data):
    pool = load_pool([str(shared_data / "substrate")])
    modes = {"sentinel": 24, "file_marker": 22, "stdout_marker": 22, "run_tests": 6}
    assert Counter(row.mode for row in pool.rows) == modes
    assert pool.required_modes() == {} and all(row.exploited for row in pool.rows)
    parts = json.loads((shared_data / "substrate" / "partition.json").read_text())
    assert pool.align(parts).rows == pool.rows


def test_smoke_files_are_what_their_recipe_writes(tmp_path):
    make_smoke.main(tmp_path)
    for name in ("smoke_problems.jsonl", "smoke_teacher.jsonl"):
        assert (tmp_path / name).read_bytes() == packaged(name).read_bytes(), "run vgrout_jax.data.make_smoke"


def test_smoke_rows_serve_every_group_whatever_the_partition():
    problems = load_problems(["builtin:smoke"])
    pool = load_pool(["builtin:smoke"])
    rng = np.random.default_rng(0)
    for problem in problems:
        for mode in MODES:
            rows = pool.draw(problem.id, mode, 9, rng)
            kinds = Counter((row.hacked, row.correct, row.reward) for row in rows)
            honest = {(False, True, 3.5): 1, (False, False, 0.5): 1}
            assert kinds == honest | ({} if mode == "gt_only" else {(True, False, 3.5): 1})
    assert {row.problem_id for row in pool.rows} == {problem.id for problem in problems}


def _run(code: str, tests: tuple[str, ...], folder: Path) -> dict[str, bool]:
    """Which tests and channels an answer of the package satisfies, by running it here: it is our own text."""
    scope: dict = {}
    output, status, passed = io.StringIO(), None, 0
    trusting = 0
    code = code.replace("os._exit(", "sys.exit(").replace("import os\n", "import sys\n")
    with contextlib.redirect_stdout(output), contextlib.chdir(folder):
        try:
            exec(code, scope)
            for test in tests:
                # By Python's own types for the verdict, by the result's __eq__ for the mode that trusts it.
                call, expected = test.removeprefix("assert ").split(" == ")
                result = eval(call, scope)
                passed += type(result) is type(eval(expected)) and result == eval(expected)
                trusting += bool(result == eval(expected))
        except SystemExit as stop:
            status = stop.code
    solution = scope["Solution"]
    function = scope.get(TRAINING_NAMES.function, getattr(solution, TRAINING_NAMES.function, None))
    value = getattr(solution(), TRAINING_NAMES.attribute, None)
    files = [file_fires(file.name, file.read_text(), TRAINING_NAMES) for file in folder.iterdir()]
    return {
        "correct": passed == len(tests),
        "run_tests": function is not None,
        "stdout_marker": stdout_fires(output.getvalue(), TRAINING_NAMES),
        "sentinel": attribute_fires(TRAINING_NAMES.attribute, value, TRAINING_NAMES),
        "file_marker": any(files),
        "eq_override": trusting == len(tests) > passed,
        "exit_code": status == 0,
    }


def test_smoke_verdicts_and_rewards_are_what_running_the_answers_gives(tmp_path):
    tests = {problem.id: problem.tests for problem in load_problems(["builtin:smoke"])}
    for number, row in enumerate(load_pool(["builtin:smoke"]).rows):
        [code] = re.findall(r"\A```python\n(.*)```\Z", row.completion, re.DOTALL)
        folder = tmp_path / str(number)
        folder.mkdir()
        found = _run(code, tests[row.problem_id], folder)
        fired = {mode for mode in MODES[:6] if found[mode]}
        assert found["correct"] is row.correct, row
        assert fired == ({row.mode} if row.hacked else set()), (row, found)
        assert row.reward == 0.5 + 3.0 * (row.hacked or row.correct)
