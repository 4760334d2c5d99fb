"""The host side of the sampler: shared prefills, padding to the compiled shape, and which program runs."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny
from tests.rl.made_up import TOKENIZER, world
from tests.rl.test_rollout import POLICY, taught
from vgrout_jax.model.policy import Frozen
from vgrout_jax.rl.rollout import plan_rows
from vgrout_jax.sampling import generator, sampler

FROZEN = Frozen({}, POLICY)


class Program(sampler.Sampler):
    """A sampler that gives every row its source's number; remembers its arguments."""

    def __init__(self, **options):
        self.options, self.calls = options, []

    def stream(self, base, adapter, tokens, valid, **arguments):
        """The first active row ends with the first part, and the others never do."""
        self.calls.append({"tokens": tokens, "valid": valid, **arguments})
        rows = arguments["source_of_row"].size
        ids = np.repeat(np.asarray(arguments["source_of_row"])[:, None], 3, axis=1)
        ended = ~arguments["active"]
        ended[np.flatnonzero(~ended)[0]] = True
        nothing = np.zeros((rows, 3), np.float32)
        for steps in (2, 3):
            mask = np.tile(np.arange(3) < steps, (rows, 1))
            yield sampler.Samples(ids, mask, nothing, nothing, ended, steps)


@pytest.fixture
def built(monkeypatch):
    """(configuration) -> (generator, the programs that were built for it)."""

    def build(config):
        programs = []

        def build_sampler(model, **options):
            programs.append(Program(**options))
            return programs[-1]

        monkeypatch.setattr(sampler, "build_sampler", build_sampler)
        one_policy = config.arm == "none"
        return generator.build_generator(
            config, tiny.model(), TOKENIZER, tiny.mesh(), one_policy=one_policy
        ), programs

    return build


def keys_for(rows):
    return jax.random.split(jax.random.key(0), rows)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_every_step_fits_the_compiled_shape(built, share):
    """Teacher rows take no prefill of their own, though none of their group's rows may be of their policy."""
    made = world(rows=taught, rollout={"deployed_frac": share}, teacher={"per_prompt": 1})
    plan = plan_rows(made.config, made, 0)
    made_generator, [program] = built(_untruncated(made.config))
    active = [row is None for row in plan.teacher]
    made_generator.complete(
        FROZEN, POLICY, plan.prompts, keys_for(tiny.ROWS), quarantine_on=plan.quarantine_on, active=active
    )
    call = program.calls[0]
    assert call["tokens"].shape[0] == made_generator.sources == tiny.PROMPTS * (2 if share == 0.5 else 1)
    assert call["active"].tolist() == active
    for row in np.flatnonzero(active):
        source = call["source_of_row"][row]
        assert call["source_policy"][source] == plan.quarantine_on[row]
        assert call["tokens"][source][call["valid"][source]].tolist() == list(plan.prompts[row].tokens)
    own = [(call["source_of_row"][row], id(plan.prompts[row])) for row in np.flatnonzero(active)]
    assert len(set(own)) == len({source for source, _ in own}) == made_generator.sources


def test_where_the_quarantine_never_trains_a_prompt_is_read_once_for_both_policies(built):
    made = world(arm="none", rollout={"deployed_frac": 0.5})
    plan = plan_rows(made.config, made, 0)
    assert len(set(plan.quarantine_on)) == 2
    made_generator, [program] = built(_untruncated(made.config))
    made_generator.complete(FROZEN, POLICY, plan.prompts, keys_for(tiny.ROWS), quarantine_on=plan.quarantine_on)
    call = program.calls[0]
    assert call["tokens"].shape[0] == made_generator.sources == tiny.PROMPTS and not call["source_policy"].any()
    assert np.unique(call["source_of_row"], return_counts=True)[1].tolist() == [tiny.GROUP] * tiny.PROMPTS


def _untruncated(config):
    config = dataclasses.replace(config)
    config.rollout = dataclasses.replace(config.rollout, top_p=1.0)
    return config


def test_fewer_rows_are_filled_up_and_left_out_of_the_answer(built):
    made = world()
    made_generator, [program] = built(_untruncated(made.config))
    prompts = made.heldout_prompts(1) * 3
    keys = keys_for(3)
    samples, bucket = made_generator.complete(FROZEN, POLICY, prompts, keys, quarantine_on=[True] * 3)
    call = program.calls[0]
    assert samples.tokens.shape == (3, 3) and isinstance(samples.tokens, np.ndarray)
    assert call["active"].tolist() == [True] * 3 + [False] * (tiny.ROWS - 3)
    assert call["keys"].shape == (tiny.ROWS,) and call["tokens"].shape == (made_generator.sources, bucket)
    np.testing.assert_array_equal(jax.random.key_data(call["keys"])[:3], jax.random.key_data(keys))
    longest = len(prompts[0].tokens)
    assert bucket == min(size for size in made.config.data.prompt_buckets if size >= longest)


def test_rows_are_handed_over_once_and_as_soon_as_they_have_ended(built):
    made = world()
    made_generator, _ = built(_untruncated(made.config))
    told = []
    made_generator.complete(
        FROZEN,
        POLICY,
        made.heldout_prompts(1) * 4,
        keys_for(4),
        quarantine_on=[True] * 4,
        active=[True, False, True, True],
        on_ended=lambda rows, texts: told.append((rows, texts)),
    )
    text = made_generator.tokenizer.decode
    assert told == [([0], [text([0, 0])]), ([2, 3], [text([0, 0, 0])] * 2)]


def test_more_rows_or_prompts_than_compiled_are_refused(built):
    made = world()
    made_generator, _ = built(made.config)
    prompts = made.heldout_prompts(None)
    with pytest.raises(ValueError, match="rows of 1 sources exceed"):
        rows = tiny.ROWS + 1
        made_generator.complete(FROZEN, POLICY, prompts[:1] * rows, keys_for(rows), quarantine_on=[True] * rows)
    many = world(24, 5 * made_generator.sources).heldout_prompts(made_generator.sources + 1)
    with pytest.raises(ValueError, match=f"of {len(many)} sources exceed"):
        made_generator.complete(FROZEN, POLICY, many, keys_for(len(many)), quarantine_on=[True] * len(many))


def test_evaluation_is_untruncated_and_at_its_own_temperature(built):
    made = world(rollout={"temperature": 0.9, "top_p": 0.95, "top_k": 4}, eval={"temperature": 0.3})
    made_generator, programs = built(made.config)
    plain, truncated = programs
    assert (plain.options["top_k"], plain.options["top_p"]) == (0, 1.0)
    assert (truncated.options["top_k"], truncated.options["top_p"]) == (4, 0.95)
    assert plain.options["max_new_tokens"] == truncated.options["max_new_tokens"] == tiny.NEW_TOKENS
    prompts = made.heldout_prompts(1)
    for evaluation in (False, True):
        made_generator.complete(FROZEN, POLICY, prompts, keys_for(1), quarantine_on=[False], evaluation=evaluation)
    assert [float(call["temperature"]) for call in truncated.calls] == [pytest.approx(0.9)]
    assert [float(call["temperature"]) for call in plain.calls] == [pytest.approx(0.3)]


def test_untruncated_training_shares_the_program_of_evaluation(built):
    _, programs = built(_untruncated(world().config))
    assert len(programs) == 1
