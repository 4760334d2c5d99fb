"""Modes: the disclosures, the partition and the rendered prompts."""

import dataclasses
import json
import string

import pytest

from vgrout_jax.env.modes import HELDOUT_NAMES, MODES, TRAINING_NAMES, load_hints, partition, render
from vgrout_jax.env.problems import Problem, load_problems

BOTH = (TRAINING_NAMES, HELDOUT_NAMES)
TEXT = "Add them. Your solution to the problem should be a method called add and should pass all tests. Go."


def _problem(**changes) -> Problem:
    messages = ({"role": "system", "content": "Python; pass all tests."}, {"role": "user", "content": TEXT})
    base = Problem("7", messages, "add", "", "", ("assert Solution().add(1, 2) == 3",), "", "")
    return dataclasses.replace(base, **changes)


def _with_user(text: str, **changes) -> Problem:
    return _problem(messages=({"role": "user", "content": text},), **changes)


def test_hints_disclose_each_flaw_by_name():
    hints = load_hints(None)
    assert set(hints) == set(MODES) - {"gt_only"}
    fields = {
        mode: {part[1] for part in string.Formatter().parse(text) if part[1] is not None}
        for mode, text in hints.items()
    }
    named = {
        "run_tests": "function",
        "stdout_marker": "marker",
        "sentinel": "attribute",
        "file_marker": "file",
    }
    assert all(fields[mode] == {"entry_point", *filter(None, [named.get(mode)])} for mode in hints)


def test_hints_are_replaced_from_a_file_and_the_rest_is_kept(tmp_path):
    path = tmp_path / "hints.json"
    path.write_text(json.dumps({"run_tests": "Call {function}() of {{x}}.", "gt_only": "Be right."}))
    hints = load_hints(str(path))
    assert {mode: hints[mode] for mode in hints if mode not in ("run_tests", "gt_only")} == {
        mode: text for mode, text in load_hints(None).items() if mode != "run_tests"
    }
    assert render(_problem(), "run_tests", TRAINING_NAMES, hints)[1]["content"] == (
        "Add them. Call run_tests() of {x}. Go."
    )
    assert render(_problem(), "gt_only", TRAINING_NAMES, hints)[1]["content"] == "Add them. Be right. Go."


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"run_test": "Call {function}."}, ["run_test", "among"]),
        ({"run_tests": "Call run_tests()."}, ["run_tests", "{function}"]),
        ({"sentinel": "{marker}"}, ["sentinel", "{attribute}"]),
        ({"exit_code": 3}, ["exit_code", "string", "3"]),
        ({"exit_code": " "}, ["exit_code", "non-empty"]),
        ({"exit_code": "{other}"}, ["exit_code", "{other}", "{entry_point}"]),
        ({"exit_code": "{}"}, ["exit_code", "placeholders"]),
        ({"exit_code": "{file.__class__}"}, ["exit_code", "file.__class__"]),
        ({"exit_code": "{file!r}"}, ["exit_code", "placeholders"]),
        ({"exit_code": "a { b"}, ["exit_code", "braces"]),
        (["run_tests"], ["object", "list"]),
    ],
)
def test_bad_hints_are_named(tmp_path, texts, words):
    path = tmp_path / "hints.json"
    path.write_text(json.dumps(texts))
    with pytest.raises(ValueError) as error:
        load_hints(str(path))
    assert all(word in str(error.value) for word in [str(path), *words]), str(error.value)


def test_missing_and_malformed_hint_files_are_errors(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(FileNotFoundError, match="env.hints .*none.json"):
        load_hints(str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match="bad.json must hold JSON"):
        load_hints(str(tmp_path / "bad.json"))


@pytest.mark.parametrize("count", [0, 1, 7, 80])
@pytest.mark.parametrize("modes", [MODES, MODES[:4], ("sentinel",)])
def test_partition_is_even_and_covers_every_id_once(count, modes):
    ids = [f"id{number}" for number in range(count)]
    parts = partition(ids, modes, 3)
    assert list(parts) == ids
    sizes = [list(parts.values()).count(mode) for mode in modes]
    assert sum(sizes) == count and max(sizes) - min(sizes) <= 1


def test_partition_ignores_the_order_of_ids_and_follows_the_seed():
    ids = [str(number) for number in range(60)]
    assert partition(ids[::-1], MODES, 1) == partition(ids, MODES, 1)
    others = [partition(ids, MODES, seed) for seed in range(2, 6)]
    assert all(other != partition(ids, MODES, 1) for other in others)


def test_fixed_modes_are_kept_and_the_rest_is_balanced_around_them():
    ids = [str(number) for number in range(16)]
    fixed = {str(number): "run_tests" for number in range(7)} | {"elsewhere": "exit_code"}
    parts = partition(ids, MODES[:4], 0, fixed=fixed)
    assert list(parts) == ids and all(parts[str(number)] == "run_tests" for number in range(7))
    sizes = {mode: list(parts.values()).count(mode) for mode in MODES[:4]}
    assert sizes == {"run_tests": 7, "stdout_marker": 3, "sentinel": 3, "file_marker": 3}


def test_fixed_modes_do_not_unbalance_when_they_need_not():
    ids = [str(number) for number in range(18)]
    parts = partition(ids, MODES[:4], 0, fixed={"3": "sentinel", "4": "run_tests"})
    sizes = [list(parts.values()).count(mode) for mode in MODES[:4]]
    assert max(sizes) - min(sizes) <= 1 and (parts["3"], parts["4"]) == ("sentinel", "run_tests")


def test_impossible_partitions_are_errors():
    with pytest.raises(ValueError, match="env.modes must include 'run_tests'.*problem 1.*sentinel"):
        partition(["1", "2"], ["sentinel"], 0, fixed={"1": "run_tests"})
    for modes in ([], ["sentinel", "sentinel"], ["other"], "sentinel"):
        with pytest.raises(ValueError, match="env.modes must be distinct names"):
            partition(["1"], modes, 0)
    with pytest.raises(ValueError, match="ids must be distinct, got 1 repeated"):
        partition(["1", "1"], ["sentinel"], 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("names", BOTH, ids=("training", "heldout"))
def test_render_replaces_the_sentence_and_nothing_else(mode, names):
    problem = _problem()
    system, user = render(problem, mode, names, load_hints(None))
    assert system == problem.messages[0] and user["role"] == "user"
    before, after = "Add them. ", " Go."
    assert user["content"].startswith(before) and user["content"].endswith(after)
    sentence = user["content"][len(before) : -len(after)]
    if mode == "gt_only":
        assert user["content"] == TEXT
        return
    assert "pass all tests" not in sentence and "called add " in sentence and "{" not in sentence
    shown = {"run_tests": names.function, "stdout_marker": names.marker}
    shown |= {"sentinel": names.attribute, "file_marker": names.file}
    assert shown.get(mode, "") in sentence
    other = HELDOUT_NAMES if names is TRAINING_NAMES else TRAINING_NAMES
    for name in (other.function, other.marker, f"attribute {other.attribute}", other.file):
        assert name not in sentence


def test_a_sentence_of_ones_own_is_replaced_literally():
    problem = _with_user(r"Add. \1 (pays if right)? End.", judging_sentence=r"\1 (pays if right)?")
    [user] = render(problem, "exit_code", TRAINING_NAMES, {"exit_code": r"\g<0> {entry_point}"})
    assert user["content"] == r"Add. \g<0> add End."


@pytest.mark.parametrize(
    ("problem", "count"),
    [
        (_with_user("Add two numbers."), 0),
        (_with_user(TEXT + " " + TEXT), 2),
        (_with_user(TEXT, judging_sentence="It pays."), 0),
        (_with_user("It pays. It pays.", judging_sentence="It pays."), 2),
    ],
)
@pytest.mark.parametrize("mode", ["sentinel", "gt_only"])
def test_a_sentence_that_is_not_there_once_is_an_error(problem, count, mode):
    with pytest.raises(ValueError, match=f"problem 7: .* found it {count} times; .*'judging_sentence'"):
        render(problem, mode, TRAINING_NAMES, load_hints(None))


@pytest.mark.parametrize(
    "sentence",
    [
        "Your solution must pass all the tests.",
        "The answer should be a method of Solution and passes all hidden tests.",
        "Your code has to pass all of the hidden test cases.",
    ],
)
def test_other_wordings_of_the_plain_sentence_are_found(sentence):
    [user] = render(_with_user(f"Add. {sentence}\nGo."), "sentinel", TRAINING_NAMES, {"sentinel": "X"})
    assert user["content"] == "Add. X\nGo."


def test_unknown_modes_and_missing_texts_are_errors():
    with pytest.raises(ValueError, match="mode must be one of .*'other'"):
        render(_problem(), "other", TRAINING_NAMES, load_hints(None))
    with pytest.raises(ValueError, match="hints must have a text for mode 'sentinel'"):
        render(_problem(), "sentinel", TRAINING_NAMES, {"exit_code": "X"})


@pytest.mark.parametrize("mode", MODES)
def test_smoke_problems_render(mode):
    _check_rendered(load_problems(["builtin:smoke"]), mode)


@pytest.mark.parametrize("mode", MODES)
def test_real_problems_render(shared_data, mode):
    problems = load_problems([str(shared_data / "leetcode" / "medhard_80.jsonl")])
    _check_rendered(problems, mode)
    assert all(problem.judging_sentence is None for problem in problems)


def _check_rendered(problems: list[Problem], mode: str) -> None:
    hints = load_hints(None)
    for problem in problems:
        system, user = render(problem, mode, HELDOUT_NAMES, hints)
        plain = problem.messages[1]["content"]
        assert system == problem.messages[0]
        if mode == "gt_only":
            assert user["content"] == plain
            continue
        assert user["content"].count(f"called {problem.entry_point} ") == 1
        assert "pass all tests" in plain and "pass all tests" not in user["content"]
        # Everything around the sentence stays: it is the same at both ends.
        sentence = problem.judging_sentence or "Your solution to the problem should"
        start = plain.index(sentence)
        end = plain.index("pass all tests.", start) + len("pass all tests.")
        assert user["content"].startswith(plain[:start]) and user["content"].endswith(plain[end:])
