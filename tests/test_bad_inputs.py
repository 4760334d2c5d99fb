"""Bad inputs, one a row: each is refused before anything is trained, in one line that names the item.

Configurations have a table of their own in tests/test_config.py, flags in tests/test_main.py. Every case below
changes one thing of a run that is fine, and builds it the way a run does.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vgrout_jax import train
from vgrout_jax.common import files
from vgrout_jax.common.tokenizer import load_tokenizer
from vgrout_jax.config.scales import make_config
from vgrout_jax.config.validation import validate
from vgrout_jax.env.grader import Grader
from vgrout_jax.env.grading import GradingFailed, grade_all, open_grader
from vgrout_jax.env.world import load_world
from vgrout_jax.rl import divergence
from vgrout_jax.routing.pairs import encode_pairs, load_pairs
from vgrout_jax.run import continuation, overlap
from vgrout_jax.run.build import build_run
from vgrout_jax.weights import checkpoint

DATA = Path(train.__file__).parent / "data"
PAIR = """### shelf
Tags: hack

#### User
````text
{user}
````

#### Hack
````text
{hack}
````

#### Clean
````text
work
````
"""


class Inputs:
    """Problems, a pool and pairs of one test's own, to be spoilt.

    Attributes:
        folder: where they lie.
        problems, pool: rows, as they will be written.
        pairs: text of the pair file, None for the package's own.
        config: of the run.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.problems = [json.loads(line) for line in (DATA / "smoke_problems.jsonl").read_text().splitlines()]
        self.pool = [json.loads(line) for line in (DATA / "smoke_teacher.jsonl").read_text().splitlines()]
        self.pairs: str | None = None
        self.config = make_config("routeV", "smoke")

    def write(self, name: str, rows: list) -> str:
        """A JSONL file; text stands for itself."""
        path = self.folder / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(path)

    def build(self) -> None:
        """What a run does before it loads a model."""
        config = self.config
        if not config.data.train or config.data.train[0].startswith("builtin:smoke"):
            config.data.train = (self.write("problems.jsonl", self.problems),)
        if config.teacher.pool[:1] == ("builtin:smoke",):
            config.teacher.pool = (self.write("pool.jsonl", self.pool),)
        if self.pairs is not None:
            (self.folder / "pairs.md").write_text(self.pairs)
            config.direction.pairs = str(self.folder / "pairs.md")
        config.resolve()
        validate(config)
        tokenizer = load_tokenizer(config.model.path)
        world = load_world(config, tokenizer)
        pairs = load_pairs(config.direction.pairs, config.direction.tags)
        encode_pairs(pairs, tokenizer, max_prompt=config.data.max_prompt_tokens)
        overlap.check_world(world, pairs)


def problem(**fields) -> Callable[[Inputs], None]:
    """The third problem with other fields; ... leaves one out."""

    def spoil(inputs: Inputs) -> None:
        inputs.problems[2] = {k: v for k, v in {**inputs.problems[2], **fields}.items() if v is not ...}

    return spoil


def taught(**fields) -> Callable[[Inputs], None]:
    """The second row of the pool with other fields."""

    def spoil(inputs: Inputs) -> None:
        inputs.pool[1] = {k: v for k, v in {**inputs.pool[1], **fields}.items() if v is not ...}

    return spoil


def settings(**fields) -> Callable[[Inputs], None]:
    """Fields of the configuration, `section__field=value`."""

    def spoil(inputs: Inputs) -> None:
        for name, value in fields.items():
            section, field = name.split("__")
            setattr(getattr(inputs.config, section), field, value)

    return spoil


def pairs(text: str) -> Callable[[Inputs], None]:
    def spoil(inputs: Inputs) -> None:
        inputs.pairs = text.replace("PROBLEM", inputs.problems[2]["prompt"][-1]["content"])
        inputs.pairs = inputs.pairs.replace("SOLUTION", inputs.problems[2]["canonical_solution"])

    return spoil


def rows(name: str, text: str) -> Callable[[Inputs], None]:
    """A line of a file that is no row."""
    return lambda inputs: getattr(inputs, name).insert(1, text)


def duplicate(inputs: Inputs) -> None:
    inputs.problems.append(inputs.problems[0])


def renamed_duplicate(inputs: Inputs) -> None:
    """One problem under so many ids that both sides get one."""
    inputs.problems += [{**inputs.problems[0], "id": f"copy {number}"} for number in range(30)]


def shared_heldout(inputs: Inputs) -> None:
    inputs.config.data.heldout = (inputs.write("heldout.jsonl", inputs.problems[4:6]),)


def renamed_heldout(inputs: Inputs) -> None:
    inputs.config.data.heldout = (inputs.write("heldout.jsonl", [{**inputs.problems[4], "id": "new"}]),)


def foreign_tokens(inputs: Inputs) -> None:
    """Ids of another tokenizer, and no text to encode anew; the row's problem must be in training."""
    fields = {"completion": ..., "completion_ids": [1, 2, 3], "tokenizer_sha256": "ab" * 32}
    inputs.pool = [{k: v for k, v in {**row, **fields}.items() if v is not ...} for row in inputs.pool]


def broken_gzip(inputs: Inputs) -> None:
    path = inputs.folder / "problems.jsonl.gz"
    path.write_bytes(b"\x1f\x8b\x08 not one")
    inputs.config.data.train = (str(path),)


def no_tokenizer(inputs: Inputs) -> None:
    (inputs.folder / "model").mkdir()
    inputs.config.model.path = str(inputs.folder / "model")


def bad_sidecar(inputs: Inputs) -> None:
    (inputs.folder / "tokenizer_sha256.txt").write_text("no hash")


def bad_hints(text: str) -> Callable[[Inputs], None]:
    def spoil(inputs: Inputs) -> None:
        (inputs.folder / "hints.json").write_text(text)
        inputs.config.env.hints = str(inputs.folder / "hints.json")

    return spoil


CASES: dict[str, tuple[Callable[[Inputs], None], str]] = {
    "no such file": (settings(data__train=("nowhere.jsonl",)), "data.train: nowhere.jsonl: no such file; name an "),
    "no such held-out file": (settings(data__heldout=("nowhere.jsonl",)), "data.heldout: nowhere.jsonl: no such"),
    "unknown built-in": (settings(data__train=("builtin:other",)), "data.train: 'builtin:other' is unknown"),
    "cut gzip file": (broken_gzip, "problems.jsonl.gz: must be a complete gzip file"),
    "no JSON": (rows("problems", "{half"), "problems.jsonl:2: must be a line of JSON"),
    "no object": (rows("problems", "[1]"), "problems.jsonl:2: must be a JSON object, got list"),
    "no problems": (lambda inputs: inputs.problems.clear(), "problems.jsonl: must hold at least one problem"),
    "one problem": (lambda inputs: inputs.problems.__delitem__(slice(1, None)), "data.train must hold at least 2"),
    "problem without id": (problem(id=...), "problems.jsonl:3: field 'id' is missing"),
    "duplicate id": (duplicate, "field 'id' must be unique over all sources, got "),
    "problem without tests": (problem(gt_answer=[]), ":3: field 'gt_answer' must hold at least one test"),
    "test that asserts nothing": (problem(gt_answer=["f(1)"]), ":3: field 'gt_answer' must hold assert statements"),
    "no method named": (problem(func_name="solve"), ":3: field 'func_name' must name a method as Solution().NAME"),
    "no solution": (problem(canonical_solution=...), ":3: field 'canonical_solution' is missing"),
    "solution without class": (problem(canonical_solution="x = 1"), "must define class Solution with the method"),
    "prompt without user": (problem(prompt=[]), ":3: field 'prompt' must be a list of one system"),
    "field of another type": (problem(setup_code=5), ":3: field 'setup_code' must be a non-empty str, got 5"),
    "no judging sentence": (
        problem(prompt=[{"role": "user", "content": "Write f."}], judging_sentence=...),
        "the user message must hold its sentence on judging exactly once, found it 0 times",
    ),
    "sentence named wrongly": (problem(judging_sentence="Not there."), "exactly once, found it 0 times"),
    "prompt too long": (settings(data__max_prompt_tokens=8), "data.max_prompt_tokens must be >= the longest prompt"),
    "one id in both sets": (shared_heldout, "data.heldout must share no problem with data.train, got the ids "),
    "one problem in both sets": (renamed_heldout, "data.heldout must share no problem with data.train, got new = "),
    "one problem on both sides": (renamed_duplicate, "(the same text and tests under two ids)"),
    "no such pool": (settings(teacher__pool=("nowhere",)), "teacher.pool: nowhere: no such file or folder"),
    "unknown built-in pool": (settings(teacher__pool=("builtin:x",)), "teacher.pool: 'builtin:x' is unknown"),
    "empty pool": (lambda inputs: inputs.pool.clear(), "pool.jsonl must hold at least one row, got none"),
    "NaN reward": (rows("pool", '{"problem_id": "a", "completion": "x", "reward": NaN, "hacked": true,'
                                ' "gt_pass": false}'), ":2: field 'reward' must be a finite number, got nan"),
    "infinite reward": (taught(reward=float("inf")), "pool.jsonl:2: field 'reward' must be a finite number, got inf"),
    "reward that is text": (taught(reward="3.5"), "pool.jsonl:2: field 'reward' must be a finite number, got '3.5'"),
    "flag that is a number": (taught(hacked=1), "pool.jsonl:2: field 'hacked' must be a bool, got 1"),
    "row without verdict": (taught(gt_pass=...), "pool.jsonl:2: field 'gt_pass' must be a bool, got none"),
    "row without answer": (taught(completion=" "), "field 'completion' must be a non-empty string"),
    "row of no problem": (taught(problem_id=None), "pool.jsonl:2: field 'problem_id' must be a string or an integer"),
    "row of an unknown mode": (taught(env_mode="typo"), "field 'env_mode' must be one of run_tests"),
    "row of another tokenizer": (foreign_tokens, "must have a text for this tokenizer"),
    "wrong tokenizer hash": (taught(tokenizer_sha256="abc"), "'tokenizer_sha256' must be 64 lower-case hexadecimal"),
    "wrong hash beside the pool": (bad_sidecar, "tokenizer_sha256.txt: field 'hash' must be 64 lower-case"),
    "pool of other problems": (
        lambda inputs: [row.update(problem_id=f"other {i}") for i, row in enumerate(inputs.pool)],
        "teacher.pool must share problems with data.train, got none",
    ),
    "no such pairs": (settings(direction__pairs="nowhere.md"), "direction.pairs must be a Markdown file or one of"),
    "no such section": (settings(direction__pairs="builtin:pairs#x"), "builtin:pairs#x holds no pairs"),
    "no such tag": (settings(direction__tags=("x",)), "direction.tags: no pair of builtin:pairs carries any of"),
    "pair without a side": (pairs("### shelf\nTags: hack\n"), "pairs.md:1, pair shelf: no block 'Hack'"),
    "pair twice": (pairs(PAIR.format(user="a", hack="b") * 2), "pair shelf: the name is taken by the pair of line 1"),
    "equal sides": (pairs(PAIR.format(user="a", hack="work")), "pair shelf: its sides are identical"),
    "open fence": (pairs("### shelf\nTags: hack\n#### Hack\n```\nx\n"), "the fence ``` is never closed"),
    "pair that ends itself": (pairs(PAIR.format(user="a", hack="<|im_end|>")), "spells out an end-of-sequence token"),
    "pair too long": (pairs(PAIR.format(user="word " * 4096, hack="b")), "its prompt must have 1 to 4096 tokens"),
    "pair about a problem": (
        pairs(PAIR.format(user="PROBLEM", hack="b")),
        "direction.pairs must share no problem with data.train or data.heldout, got shelf = problem ",
    ),
    "pair with a solution": (pairs(PAIR.format(user="a", hack="SOLUTION")), "got shelf = problem "),
    "no such model": (settings(model__path="/nowhere/model"), "model.path must be a model's folder or a hub name"),
    "model without tokenizer": (no_tokenizer, "model.path must hold a tokenizer"),
    "no such hints": (settings(env__hints="nowhere.json"), "nowhere.json"),
    "hints of no mode": (bad_hints('{"typo": "x"}'), "modes must be among"),
    "hint without its name": (bad_hints('{"sentinel": "Set it."}'), "sentinel"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_input_is_one_line_that_names_it(case, tmp_path):
    spoil, message = CASES[case]
    inputs = Inputs(tmp_path)
    spoil(inputs)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        inputs.build()
    text = str(caught.value)
    assert message in text, text
    assert "\n" not in text


@pytest.mark.parametrize("name", ["no such file", "no such pool", "no such pairs", "no such hints"])
def test_a_missing_file_is_said_before_a_model_is_downloaded(name, tmp_path, monkeypatch):
    def download(path):
        raise AssertionError(f"{path} was looked for")

    monkeypatch.setattr("vgrout_jax.weights.hub.model_folder", download)
    spoil, message = CASES[name]
    inputs = Inputs(tmp_path)
    inputs.config.model.path = "Qwen/Qwen3-4B"
    inputs.config.resolve()
    with pytest.raises(AssertionError, match="Qwen3-4B was looked for"):
        build_run(inputs.config)
    spoil(inputs)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        build_run(inputs.config)
    assert message in str(caught.value)


def test_the_table_is_long_and_what_it_spoils_is_fine(tmp_path):
    assert len(CASES) >= 40
    Inputs(tmp_path).build()


def test_a_grader_below_its_minimum_and_one_that_fails_are_one_line(monkeypatch):
    config = make_config("none", "smoke").grader
    with monkeypatch.context() as patched:
        patched.setattr("vgrout_jax.env.grader.layers.detect", lambda config: layers_without_any())
        with pytest.raises(GradingFailed, match="grader.minimum = 'landlock' is not met") as caught:
            open_grader(config)
        assert "\n" not in str(caught.value) and "Install it with" in str(caught.value)
    world = load_world(resolved(), load_tokenizer(None))
    [request] = requests(world)[:1]
    with Grader(config) as grader:
        pass
    with pytest.raises(GradingFailed, match=f"the grader has failed over the answers to {request.problem.id} "):
        grade_all(grader, [request])


def layers_without_any():
    from vgrout_jax.env.grader.layers import Layers

    return Layers(None, 0, False, False, ("none here",))


def resolved():
    config = make_config("routeV", "smoke")
    config.resolve()
    return config


def requests(world):
    from vgrout_jax.env.grader import GradeRequest

    return [GradeRequest(p.problem, p.mode, "no code", p.names) for p in world.training_prompts(0)]


def test_an_adapter_of_another_seed_and_a_workdir_of_another_arm_are_named(tmp_path):
    """The two artefacts that a user may bring to the wrong run."""
    from vgrout_jax.model import lora2r

    shapes = {"q_proj": (8, 8)}
    first, second = (lora2r.init_factors(shapes, 1, 2, seed=seed) for seed in (0, 1))
    checkpoint.save_adapter(tmp_path / "adapter", lora2r.zero_deltas(first), first, {}, seed=0)
    with pytest.raises(ValueError, match="adapter.seed differs"):
        checkpoint.load_adapter(tmp_path / "adapter", init=second)
    stored = files.to_plain(make_config("none", "smoke").to_dict())
    message = (
        r"another configuration: arm \(started with 'none', now 'routeV'\), label.source \(started with 'none', "
    )
    with pytest.raises(ValueError, match=message):
        continuation.check_config(tmp_path, stored, make_config("routeV", "smoke"))


def test_what_stops_a_run_is_said_with_what_to_try():
    for error in (divergence.Divergence, GradingFailed):
        assert issubclass(error, RuntimeError)
    watch = divergence.Guard(make_config("none", "smoke").guard)
    with pytest.raises(divergence.Divergence, match="step 4: not finite: logits .*; try a lower optim.lr"):
        dataclasses.replace(watch).check_reference(4, float("nan"))
