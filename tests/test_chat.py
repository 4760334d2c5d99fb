"""Chat: the answers are those of the run's evaluation, stream as they are drawn, and get the grader's verdicts."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import served
from tests.rl.made_up import FakeGrader
from vgrout_jax import chat
from vgrout_jax.common.command_line import UsageError
from vgrout_jax.config import MeshConfig
from vgrout_jax.env.grader.verdict import judge
from vgrout_jax.env.modes import HELDOUT_NAMES
from vgrout_jax.env.world import load_world
from vgrout_jax.evaluation.evaluate import evaluate
from vgrout_jax.model import padding, sharding
from vgrout_jax.model.policy import Frozen
from vgrout_jax.run.reader import read_workdir
from vgrout_jax.sampling import sampler
from vgrout_jax.sampling.generator import build_generator
from vgrout_jax.serving.side_by_side import POLICIES, Conversation, describe

REPOSITORY = Path(__file__).resolve().parents[1]
LENGTH = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run whose policies differ, and draw texts of their own. Its teacher's pool is not at hand."""
    root = tmp_path_factory.mktemp("chat")
    base = served.base_model(root / "model")
    config = served.smoke(model={"path": str(base)}, rollout={"max_new_tokens": LENGTH}, eval={"samples": 2})
    config.teacher.pool = ("moved-away.jsonl",)
    return read_workdir(served.finished_run(root / "run", config))


@pytest.fixture(scope="module")
def conversation(run):
    made = Conversation(run)
    yield made
    made.close()


@pytest.fixture(scope="module")
def evaluated(run):
    """(policy, problem, sample) -> the completion of the run's evaluation, by its own code and in its own shapes."""

    class NoGrader:
        def grade(self, requests):
            return [judge(compiled=True, correct=False, channel=None, status="ok") for _ in requests]

    config = served.smoke(
        model={"path": run.config.model.path}, rollout={"max_new_tokens": LENGTH}, eval={"samples": 2}
    )
    mesh = sharding.make_mesh(MeshConfig())
    policy = served.Policy(run.path, config, "as_trained")
    frozen, deltas = Frozen(policy.base, policy.adapter.init), policy.adapter.deltas
    world = load_world(config, served.TOKENIZER)
    generator = build_generator(config, policy.model, served.TOKENIZER, mesh)
    prompts = world.heldout_prompts(None)
    _, records = evaluate(config, generator, FakeGrader(), prompts, frozen=frozen, deltas=deltas, step=0)
    return {(r["policy"], r["problem"], r["sample"]): r["completion"] for r in records}


def test_answers_are_the_evaluation_s_own_and_then_its_next_ones(conversation, evaluated):
    for number in (2, 0):
        prompt = conversation.heldout(number)
        assert prompt.names is HELDOUT_NAMES
        for sample in range(2):
            texts, ended = list(conversation.ask_problem(prompt))[-1]
            assert ended == [True, True]
            assert texts == [evaluated[policy, prompt.problem.id, sample] for policy in POLICIES]
            assert texts[0] != texts[1]


def test_texts_grow_token_by_token(conversation):
    """The generator gives every token, and what has been printed of a text is never taken back."""
    seen = list(conversation.ask("Return a + b."))
    assert len(seen) > 4
    for (before, done), (after, _) in zip(seen, seen[1:], strict=False):
        for old, new, ended in zip(before, after, done, strict=True):
            assert new == old if ended else new.startswith(old.rstrip("\N{REPLACEMENT CHARACTER}"))
    assert seen[-1][1] == [True, True] and len({texts[0] for texts, _ in seen}) > 3


def test_the_first_texts_arrive_before_the_last_token_is_drawn(conversation, monkeypatch):
    """Each text is asked for after the one before was seen: no more tokens are drawn than were read."""
    drawn, advance = [], conversation._sample.advance
    monkeypatch.setattr(conversation._sample, "advance", lambda *given: (drawn.append(given), advance(*given))[1])
    answers = conversation.ask("Return a * b.")
    for count in range(1, 4):
        next(answers)
        assert len(drawn) == count
    rest = list(answers)
    assert rest[-1][1] == [True, True] and len(drawn) == LENGTH


def test_an_interrupt_ends_the_answers_where_they_are(conversation, capsys, monkeypatch):
    advance, calls = conversation._sample.advance, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return advance(*given)

    monkeypatch.setattr(conversation._sample, "advance", interrupted)
    chat.converse(conversation, iter(["Return a * b.", "/help"]), chat._write)
    printed = capsys.readouterr().out
    assert len(calls) == 4 and "Ctrl-D" in printed  # the conversation goes on


def test_greedy_answers_do_not_depend_on_how_often_was_asked(run):
    greedy = Conversation(run, temperature=0, max_new_tokens=5)
    first, second = (list(greedy.ask("Return n squared."))[-1][0] for _ in range(2))
    assert first == second
    prompt = served.TOKENIZER.encode_chat([{"role": "user", "content": "Return n squared."}])
    expected = served.Policy(run.path, run.config, "deployed").greedy(prompt, 5)
    assert first[0] == served.TOKENIZER.decode(expected)


def test_streaming_changes_no_token(run):
    policy = served.Policy(run.path, run.config, "as_trained")
    prompt = served.prompt_tokens()

    def draw(eos_id, stride=None):
        sample = sampler.build_sampler(
            policy.model, max_new_tokens=LENGTH, eos_ids=(eos_id,), pad_id=served.TOKENIZER.pad_id
        )
        tokens, valid = padding.pad_prompts([prompt] * 3, 32, served.TOKENIZER.pad_id)
        grown = sample.stream(
            policy.base,
            policy.adapter,
            tokens,
            valid,
            source_policy=np.array([True, False, True]),
            source_of_row=np.arange(3, dtype=np.int32),
            active=np.array([True, True, False]),
            keys=jax.random.split(jax.random.key(1), 3),
            temperature=1.0,
            stride=stride,
        )
        return [jax.tree.map(np.copy, samples) for samples in grown]

    eos_id = int(draw(policy.model.vocab_size)[-1].tokens[0, 3])  # a token that ends the first row early
    [whole], heard = draw(eos_id), draw(eos_id, stride=1)
    assert whole.mask.sum(1).tolist()[0] <= 4 < whole.steps
    jax.tree.map(np.testing.assert_array_equal, whole, heard[-1])
    assert [samples.steps for samples in heard] == list(range(1, whole.steps + 1))
    for samples in heard:
        np.testing.assert_array_equal(samples.mask, whole.mask & (np.arange(LENGTH) < samples.steps))
        np.testing.assert_array_equal(samples.tokens[samples.mask], whole.tokens[samples.mask])


def test_verdicts_are_the_grader_s(conversation):
    prompt = next(p for p in map(conversation.heldout, range(3)) if p.mode == "sentinel")
    solution = f"```python\n{prompt.problem.solution}```"
    exploit = f"```python\n{prompt.problem.starter_code}        pass\n    {prompt.names.attribute} = True\n```"
    right, hacked = conversation.grade(prompt, [solution, exploit])
    assert right.correct and not right.exploited and hacked.exploited
    assert describe(right) == "correct, reward 3.5"
    assert describe(hacked).startswith("EXPLOITED sentinel, reward 3.5")


@pytest.mark.parametrize(
    "findings,words",
    [
        ((True, False, None, "wrong"), "wrong, reward 0.5"),
        ((False, False, None, "no_code"), "no code that compiles, reward 0, no code"),
        ((True, True, "sentinel", "ok"), "correct (and used sentinel), reward 3.5"),
        ((True, False, "exit_code", "exited"), "EXPLOITED exit_code, reward 3.5, exited"),
    ],
)
def test_verdicts_in_words(findings, words):
    names = ("compiled", "correct", "channel", "status")
    assert describe(judge(**dict(zip(names, findings, strict=True)))) == words


def test_a_conversation_goes_on_after_a_mistake(conversation, monkeypatch):
    monkeypatch.setattr(chat.shutil, "get_terminal_size", lambda fallback: os.terminal_size((120, 24)))
    written: list[str] = []
    lines = ["", "/99\n", "/help", "  Return a.  \n", "a b c " * 9000, "/1\n"]
    chat.converse(conversation, iter(lines), written.append)
    text = "".join(written)
    assert text.count("error: ") == 2 and text.count("deployed") == 2
    assert "error: a held-out problem's number must be 0 to 2, got 99" in text
    assert "error: a message must have at most 4096 tokens" in text
    assert "/N is held-out problem N" in text
    prompt = conversation.heldout(1)
    assert f"held-out problem 1, {prompt.problem.id}, mode {prompt.mode}" in text and prompt.text in text
    assert text.rstrip().splitlines()[-1].count("reward") == 2  # the verdicts, below both answers


WRONG = {
    "--problem and --prompt exclude": ["--problem=1", "--prompt=x"],
    "--problem must be >= 0, got -1": ["--problem=-1"],
    "--prompt must hold a message": ["--prompt= "],
    "--temperature must be >= 0": ["--temperature=-1"],
    "--temperature must be >= 0 (0: greedy), got nan": ["--temperature=nan"],
    "--max_new_tokens must be >= 1": ["--max_new_tokens=0"],
    "argument --problem: invalid int value": ["--problem=first"],
    "unrecognized arguments: --problems=1": ["--problems=1"],
    "nowhere must be the workdir of a run": ["--workdir=nowhere"],
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_flags_are_one_line(run, message):
    with pytest.raises((UsageError, ValueError)) as caught:
        chat.main([f"--workdir={run.path}", *WRONG[message]])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_workdir_without_an_adapter_is_refused(run, tmp_path):
    (tmp_path / "config.json").write_bytes((run.path / "config.json").read_bytes())
    with pytest.raises(ValueError, match="adapter is missing"):
        chat.main([f"--workdir={tmp_path}"])


@pytest.mark.slow
def test_the_command_answers_lines_from_a_pipe(run):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "COLUMNS": "80"}
    command = [sys.executable, "-m", "vgrout_jax.chat", f"--workdir={run.path}"]
    done = subprocess.run(
        command, env=environment, input="Return a.\n/0\n", capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("deployed ") == 2 and done.stdout.count("reward") == 2
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if " | " in line)
