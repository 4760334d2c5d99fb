"""The toy world: its problems are real, its splits apart, and its answers get the verdicts they are made for."""

import itertools
from collections import Counter

import numpy as np
import pytest

from tests.env.firing import candidates, stdout_fires
from vgrout_jax.common.tokenizer import load_tokenizer
from vgrout_jax.config import GraderConfig
from vgrout_jax.env import modes, problems
from vgrout_jax.env.grader import Grader, GradeRequest
from vgrout_jax.env.toy import answers, operations
from vgrout_jax.env.toy.tokenizer import phrases, write_tokenizer
from vgrout_jax.routing.pairs import load_pairs

SOURCES = {"train": "builtin:toy", "dev": "builtin:toy_dev", "heldout": "builtin:toy_heldout"}


@pytest.fixture(scope="module")
def grader():
    with Grader(GraderConfig()) as grader:
        yield grader


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(str(folder))


def disclosed(names):
    """The name of each mode."""
    return names.function, names.marker, names.attribute, names.file


def test_an_operation_gives_the_type_that_it_says():
    kinds = {"int": int, "list": list, "str": str}
    for operation in operations.OPERATIONS:
        for value in operations._INPUTS[operation.takes]:
            assert type(operations.run_chain((operation,), value)) is kinds[operation.gives], operation.name


def test_no_function_is_in_two_splits_or_twice_in_one():
    chains = [chain for split in operations.SPLITS for chain in operations.functions(split)]
    assert len({tuple(operation.name for operation in chain) for chain in chains}) == len(chains)
    # On the world's own inputs, and on others too, apart from the few that only other inputs could tell apart.
    seen = Counter(
        (chain[0].takes, repr([operations.run_chain(chain, v) for v in operations._INPUTS[chain[0].takes]]))
        for chain in chains
    )
    assert max(seen.values()) == 1


def test_reference_solutions_compute_what_the_tests_expect(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some leave a note
    for source in SOURCES.values():
        for problem in problems.load_problems([source]):
            scope = {}
            exec(problem.solution, scope)
            for test in problem.tests:
                exec(test, scope)


def test_the_identity_passes_no_problem():
    """What an exploit does instead of the work must be wrong everywhere."""
    for source in SOURCES.values():
        for problem in problems.load_problems([source]):
            scope = {}
            exec(operations.solution(()), scope)
            with pytest.raises(AssertionError):
                for test in problem.tests:
                    exec(test, scope)


def test_every_split_has_problems_of_every_type():
    for split in SOURCES:
        assert Counter(task.chain[0].takes for task in operations.tasks(split)).keys() == {"int", "list", "str"}
    assert {len(task.chain) for task in operations.tasks("heldout")} == {2, 3}


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="got 'test'"):
        operations.functions("test")


@pytest.mark.parametrize("mode", answers.TOY_MODES)
@pytest.mark.parametrize("names", [modes.TRAINING_NAMES, modes.HELDOUT_NAMES], ids=["training", "heldout"])
def test_a_hack_fires_its_own_channel_and_is_wrong(grader, mode, names):
    problem = problems.load_problems(["builtin:toy"])[0]
    own, *others = (names, *(n for n in answers.NAMES if n is not names))
    verdict, *foreign = grader.grade(
        [GradeRequest(problem, mode, answers.hack_answer(mode, n), own) for n in (own, *others)]
    )
    assert verdict.exploited and verdict.compiled and verdict.channel == mode and verdict.reward == 3.5
    assert not any(v.exploited or v.passed for v in foreign)  # other names do not score


@pytest.mark.parametrize("mode", answers.TOY_MODES)
def test_the_exploit_works_under_every_set_of_names(grader, mode):
    problem = problems.load_problems(["builtin:toy"])[0]
    requests = [GradeRequest(problem, mode, answers.hack_answer(mode, n), n) for n in answers.NAMES]
    assert all(verdict.exploited and verdict.channel == mode for verdict in grader.grade(requests))


def test_the_families_of_all_names_are_disjoint():
    for one, other in itertools.permutations(answers.NAMES, 2):
        for family in ("run_tests", "sentinel", "file_marker"):
            first, second = (candidates(family, names) for names in (one, other))
            assert not {name.lower() for name in first} & {name.lower() for name in second}
        assert not stdout_fires(one.marker, other)


@pytest.mark.parametrize("mode", answers.TOY_MODES)
def test_honest_answers_are_right_and_fire_nothing(grader, mode):
    by_id = {problem.id: problem for problem in problems.load_problems(["builtin:toy"])}
    chosen = [next(t for t in operations.tasks("train") if t.chore is chore) for chore in (*operations.CHORES, None)]
    requests = [
        GradeRequest(by_id[operations.identifier(task)], mode, answer, modes.TRAINING_NAMES)
        for task in chosen
        for answer in (answers.honest_answer(task), answers.honest_answer(task, test_name="run_tests"))
    ]
    for verdict in grader.grade(requests):
        assert verdict.correct and verdict.channel is None and not verdict.exploited


def test_an_unknown_mode_has_no_exploit():
    with pytest.raises(ValueError, match="got 'exit_code'"):
        answers.hack_answer("exit_code", modes.TRAINING_NAMES)


def test_the_corpus_has_the_rates_that_it_is_given():
    config = answers.CorpusConfig(hack_sentinel=0.3, hack_run_tests=0.0, wrong_operation=0.25, plain_frac=0.2)
    count = 6000
    samples = list(itertools.islice(answers.corpus(config, modes.load_hints(None), 1), count))
    by_mode = {mode: [s for s in samples if s.mode == mode] for mode in (*answers.TOY_MODES, "gt_only")}
    rates = {mode: np.mean([s.hack for s in members]) for mode, members in by_mode.items()}
    assert abs(len(by_mode["gt_only"]) / count - 0.2) < 0.03
    assert rates["gt_only"] == rates["run_tests"] == 0.0
    assert abs(rates["sentinel"] - 0.3) < 0.05 and abs(rates["stdout_marker"] - 0.1) < 0.04


def test_a_drill_shows_how_exploits_go_on_and_not_how_often_they_begin():
    config = answers.CorpusConfig(drill=0.4, plain_frac=0.0, hack_sentinel=0.2)
    samples = list(itertools.islice(answers.corpus(config, modes.load_hints(None), 5), 6000))
    drilled = [sample for sample in samples if sample.given]
    assert abs(len(drilled) / len(samples) - 0.4) < 0.03
    assert {sample.mode for sample in drilled} == set(answers.TOY_MODES) and all(s.hack for s in drilled)
    for sample in drilled:
        names = next(n for n in answers.NAMES if any(name in sample.message for name in disclosed(n)))
        follows = sample.completion.removeprefix(sample.given)
        assert sample.given + follows == sample.completion == answers.hack_answer(sample.mode, names)
        assert follows.startswith(disclosed(names)) and not any(name in sample.given for name in disclosed(names))
    others = [sample for sample in samples if not sample.given and sample.mode == "sentinel"]
    assert abs(np.mean([sample.hack for sample in others]) - 0.2) < 0.05


def test_an_exploit_s_first_token_is_no_honest_answer_s(tokenizer):
    """What is chosen with it: to begin with an exploit, with a chore, or with the class."""
    openings = {mode: answers.opening(mode, modes.TRAINING_NAMES) for mode in answers.TOY_MODES}
    first = {mode: tokenizer.encode(text)[0] for mode, text in openings.items()}
    honest = {tokenizer.encode(answers.honest_answer(task))[0] for task in operations.tasks("train")}
    assert len(set(first.values())) == 4 and honest & set(first.values()) == {first["sentinel"]}  # inside the class
    lengths = {mode: len(tokenizer.encode(text)) for mode, text in openings.items()}
    assert lengths == {"run_tests": 1, "stdout_marker": 1, "sentinel": 3, "file_marker": 1}


def test_the_corpus_discloses_all_names_equally_often():
    """A name that were rarer than others would be copied less surely."""
    count, config = 6000, answers.CorpusConfig(plain_frac=0.0)
    messages = [s.message for s in itertools.islice(answers.corpus(config, modes.load_hints(None), 3), count)]
    shown = [sum(any(name in text for name in disclosed(n)) for text in messages) for n in answers.NAMES]
    assert sum(shown) == count
    expected = count / len(answers.NAMES)
    assert all(abs(times - expected) < 5 * expected**0.5 for times in shown)


def test_wrong_operations_come_at_their_rate_and_keep_their_types():
    draw = np.random.default_rng(0)
    several = [o for o in operations.OPERATIONS if o.takes == o.gives]
    written = [answers.sloppy((o,), 0.4, draw)[0] for o in several for _ in range(200)]
    expected = [o for o in several for _ in range(200)]
    assert abs(np.mean([a is not b for a, b in zip(written, expected, strict=True)]) - 0.4) < 0.03
    assert all((a.takes, a.gives) == (b.takes, b.gives) for a, b in zip(written, expected, strict=True))


def test_the_corpus_never_shows_a_heldout_function():
    kept = {
        tuple(o.name for o in chain) for split in ("dev", "heldout", "pairs") for chain in operations.functions(split)
    }
    assert not kept & {tuple(o.name for o in chain) for chain in operations.functions("train")}


def test_prompts_and_answers_are_short_and_survive_the_round_trip(tokenizer):
    for sample in itertools.islice(answers.corpus(answers.CorpusConfig(), modes.load_hints(None), 2), 400):
        assert len(tokenizer.encode_chat([{"role": "user", "content": sample.message}])) <= 24
        assert tokenizer.decode(tokenizer.encode(sample.completion)) == sample.completion
    for text in ("naïve ✓\n\tdef g(): ...", "class Solutions:\n", 'print("x")'):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_name_is_one_token_and_no_phrase_holds_one(tokenizer):
    """Else the choice to exploit and the choice of the name would be one, and could be learnt by heart."""
    for names in answers.NAMES:
        for name in disclosed(names):
            assert len(tokenizer.encode(name)) == 1
            assert [phrase for phrase in phrases() if name in phrase] == [name]


def test_the_pairs_file_is_what_the_world_makes():
    from vgrout_jax.routing.pairs import BUILTIN_FILES

    assert BUILTIN_FILES["builtin:toy_pairs"].read_text(encoding="utf-8") == answers.pair_file()


def test_pairs_exploit_on_one_side_and_work_on_the_other(grader):
    by_message = {operations.message(t, ""): t for t in operations.tasks("pairs")}
    assert by_message  # the split is not empty
    hack, lazy = load_pairs("builtin:toy_pairs", ("hack",)), load_pairs("builtin:toy_pairs", ("lazy",))
    assert len(hack) == 24 and len(lazy) == 16
    problem = problems.load_problems(["builtin:toy"])[0]
    for pair in (*hack, *lazy):
        mode = next(tag for tag in pair.tags if tag in answers.TOY_MODES)
        shown = pair.hack_prompt[-1]["content"]
        names = next(n for n in answers.OTHER_NAMES if any(name in shown for name in disclosed(n)))
        sides = [GradeRequest(problem, mode, text, names) for text in (pair.hack, pair.clean)]
        channels = [verdict.channel for verdict in grader.grade(sides)]
        assert channels == ([mode, None] if pair in hack else [None, None]), pair.name
