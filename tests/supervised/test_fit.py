"""Supervised fine-tuning: the loss is the mean over completion tokens, and the update is its gradient's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from vgrout_jax.config import OptimConfig
from vgrout_jax.model import head, qwen3
from vgrout_jax.model.parameters import init_parameters
from vgrout_jax.supervised import fit
from vgrout_jax.supervised.fit import FitConfig

ROWS = [([5, 6, 7], [8, 9, 2]), ([5], [10, 2]), ([6, 11, 12, 13], [14, 15, 16, 17, 2]), ([7, 7], [2])]
FIT = FitConfig(batch=4, micro_batch=4, logprob_chunk=16, optim=OptimConfig(lr=1e-2, weight_decay=0.0))


def parameters(model, scale=4.0):
    base = init_parameters(model, 0)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf * (scale if leaf.ndim == 3 else 1.0)), base)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, base, tokens):
    attention = qwen3.causal_attention(jnp.ones(tokens.shape, bool), model)
    hidden = qwen3.Qwen3(model).apply({"params": base}, tokens, attention, None, None)
    return head.unembed(base, hidden)


def one_by_one(model, base, rows):
    """Sum of -log pi, every row alone and unpadded, softmax in float64."""
    total = 0.0
    for prompt, completion in rows:
        logits = np.asarray(logits_of(model, base, jnp.array([[*prompt, *completion]])), np.float64)[0]
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total -= sum(logp[len(prompt) + i - 1, token] for i, token in enumerate(completion))
    return total


def test_layout_pads_prompts_left_and_completions_right():
    examples = fit.lay_out(ROWS, pad_id=0)
    assert examples.tokens.shape == (4, 4 + 5) and examples.completion_mask.shape == (4, 5)
    for row, (prompt, completion) in enumerate(ROWS):
        assert examples.tokens[row][examples.valid[row]].tolist() == [*prompt, *completion]
        assert examples.tokens[row, 4:][examples.completion_mask[row]].tolist() == completion
    with pytest.raises(ValueError, match="at least one example"):
        fit.lay_out([], pad_id=0)


def test_loss_is_that_of_each_row_alone():
    model = tiny.model()
    base = parameters(model)
    examples = jax.tree.map(jnp.asarray, fit.lay_out(ROWS, 0))
    loss = fit.token_loss(model, base, examples, chunk=16)
    np.testing.assert_allclose(loss, one_by_one(model, base, ROWS), rtol=1e-5)


def test_what_is_given_of_a_completion_is_read_and_not_learnt():
    """As if it were the prompt's end."""
    model, given = tiny.model(), [min(row, len(completion)) for row, (_, completion) in enumerate(ROWS)]
    base = parameters(model)
    examples = jax.tree.map(jnp.asarray, fit.lay_out(ROWS, 0, given))
    longer = [([*prompt, *c[:count]], c[count:]) for (prompt, c), count in zip(ROWS, given, strict=True)]
    assert max(given) > 1 and examples.completion_mask.sum() == sum(len(completion) for _, completion in longer)
    loss = fit.token_loss(model, base, examples, chunk=16)
    np.testing.assert_allclose(loss, one_by_one(model, base, longer), rtol=1e-5)


def test_update_follows_the_gradient_of_the_mean_over_tokens():
    """Plain descent, so that the step is the gradient; held against central differences of the oracle."""
    model = tiny.model(layers=1)
    base = parameters(model)
    update = fit.build_update(model, optax.sgd(1.0), FIT, tiny.mesh())
    tokens = sum(len(completion) for _, completion in ROWS)
    new, _, loss = update(jax.tree.map(jnp.copy, base), optax.sgd(1.0).init(base), fit.lay_out(ROWS, 0))
    np.testing.assert_allclose(loss, one_by_one(model, base, ROWS) / tokens, rtol=1e-5)
    for path in (("layers", "q_proj"), ("layers", "down_proj"), ("embed",)):
        leaf, moved = base, new
        for key in path:
            leaf, moved = leaf[key], moved[key]
        index = (0, 1, 2) if leaf.ndim == 3 else (9, 2)

        def at(value, path=path, index=index):
            changed = jax.tree.map(lambda x: x, base)
            node = changed
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = node[path[-1]].at[index].add(value)
            return one_by_one(model, changed, ROWS) / tokens

        slope = (at(4e-3) - at(-4e-3)) / 8e-3
        np.testing.assert_allclose(leaf[index] - moved[index], slope, rtol=2e-2, atol=2e-5)


def test_micro_batches_do_not_change_the_update():
    model = tiny.model()
    base = parameters(model)
    optimizer, examples = optax.sgd(0.1), fit.lay_out(ROWS, 0)
    whole, parts = (
        fit.build_update(model, optimizer, dataclasses.replace(FIT, micro_batch=size), tiny.mesh())(
            jax.tree.map(jnp.copy, base), optimizer.init(base), examples
        )[0]
        for size in (4, 2)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, parts)


def test_every_epoch_visits_every_example_once_in_another_order():
    config = dataclasses.replace(FIT, epochs=2, batch=4)
    rows = list(fit.batches(10, config))
    assert [len(set(np.concatenate(epoch).tolist())) for epoch in (rows[:2], rows[2:])] == [8, 8]
    assert rows[0].tolist() != rows[2].tolist()


def test_one_program_serves_all_steps(monkeypatch):
    """What the first step returns is placed as what it was given."""
    original, built = fit.build_update, []

    def build(*arguments):
        built.append(original(*arguments))
        return built[-1]

    monkeypatch.setattr(fit, "build_update", build)
    model, config = tiny.model(layers=1), dataclasses.replace(FIT, epochs=3)
    fit.fit(model, init_parameters(model, 0), fit.lay_out(ROWS, 0), config, tiny.mesh())
    [update] = built
    assert update._cache_size() == 1


def test_fit_learns_its_examples_and_repeats_bit_for_bit():
    model = tiny.model()
    examples = fit.lay_out(ROWS, 0)
    config = dataclasses.replace(FIT, epochs=120)
    (first, losses), (second, _) = (
        fit.fit(model, init_parameters(model, 0), examples, config, tiny.mesh()) for _ in range(2)
    )
    assert len(losses) == 120 and losses[-1] < 0.2 < 2.0 < losses[0]
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_masters_are_float32_whatever_the_model_computes_in():
    model = tiny.model(jnp.bfloat16)
    fitted, losses = fit.fit(model, init_parameters(model, 0), fit.lay_out(ROWS, 0), FIT, tiny.mesh())
    assert {leaf.dtype for leaf in jax.tree.leaves(fitted)} == {jnp.dtype(jnp.float32)}
    assert np.isfinite(losses).all()


def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match=r"fit\.batch must be a multiple of fit\.micro_batch, got 4 and 3"):
        fit.check(9, dataclasses.replace(FIT, micro_batch=3))
    with pytest.raises(ValueError, match=r"fit\.batch must be <= the number of examples, got 4 of 3"):
        fit.check(3, FIT)
