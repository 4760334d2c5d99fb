"""The GRPO loss against PyTorch, one rollout at a time, and what must hold whatever the numbers are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vgrout_jax.arms.advantages import group_advantages
from vgrout_jax.rl import grpo

EOS = 0  # shares its id with padding, as it may in Qwen3
PROMPTS, GROUP, WIDTH, MAX_NEW_TOKENS = 4, 4, 6, 8
ROLLOUTS = PROMPTS * GROUP
REWARDS = np.array(
    [
        [0.0, 0.5, 3.5, 0.5],
        [3.5, 3.5, 3.5, 3.5],  # equal rewards: dead
        [0.5, 3.5, 2.0, 2.0],  # two rows of advantage 0 in a live group
        [0.5, 0.50005, 0.5, 0.5],  # spread 5e-5: dead
    ],
    np.float32,
)
LENGTHS = [6, 1, 3, 5, 2, 6, 4, 1, 6, 2, 5, 3, 4, 6, 1, 2]


@dataclasses.dataclass
class Batch:
    logprobs: np.ndarray
    old: np.ndarray
    reference: np.ndarray
    tokens: np.ndarray  # [N, T], EOS = pad
    mask: np.ndarray


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Log-probabilities of three policies up to several clip widths apart; some completions never end."""
    generator = np.random.default_rng(0)
    shape = (ROLLOUTS, WIDTH)
    tokens = generator.integers(1, 50, shape)
    for row, length in enumerate(LENGTHS):
        if length < WIDTH or row % 2:  # full rows of even index are cut off by the length limit
            tokens[row, length - 1 :] = EOS
    ended_before = np.cumsum(tokens == EOS, axis=1) - (tokens == EOS) > 0
    logprobs = -generator.exponential(1.5, shape)
    old = np.minimum(logprobs + generator.normal(0, 0.4, shape), -1e-3)
    reference = np.minimum(logprobs + generator.normal(0, 0.6, shape), -1e-3)
    arrays = [array.astype(np.float32) for array in (logprobs, old, reference)]
    return Batch(*arrays, tokens=tokens, mask=~ended_before)


def make_settings(*, unbiased=True, ratio="clip", clip_epsilon=0.2, kl_coefficient=0.0):
    return grpo.LossSettings(ratio, clip_epsilon, kl_coefficient, unbiased, ROLLOUTS, MAX_NEW_TOKENS)


def ours(batch, *, rows=slice(None), **changes):
    """Row losses and stats of some rows of the batch, with the normalisers of the whole."""
    settings = dict(unbiased=True, ratio="clip", clip_epsilon=0.2, kl_coefficient=0.0)
    settings |= {name: changes.pop(name) for name in settings if name in changes}
    advantages, live = group_advantages(jnp.asarray(REWARDS), unbiased=settings["unbiased"])
    values = dict(logprobs=batch.logprobs, old=batch.old, reference=batch.reference, mask=batch.mask)
    values |= dict(advantages=advantages.reshape(-1), live=jnp.repeat(live, GROUP)) | changes
    live, *arrays = (
        jnp.asarray(values[name])[rows] for name in ("live", "logprobs", "old", "reference", "mask", "advantages")
    )
    return grpo.row_losses(*arrays, live=live, settings=make_settings(**settings))


def ours_with_gradient(batch, **options):
    def loss(logprobs):
        return jnp.sum(ours(batch, logprobs=logprobs, **options)[0])

    return jax.value_and_grad(loss)(jnp.asarray(batch.logprobs))


def torch_advantages(unbiased):
    """[P][G] float64 tensors, and whether each group is live."""
    groups = []
    for rewards in torch.tensor(REWARDS, dtype=torch.float64):
        live = bool(rewards.max() - rewards.min() >= 1e-4)
        advantage = rewards - rewards.mean()
        if not unbiased:
            advantage = advantage / (torch.std(rewards, correction=1) + 1e-4)
        groups.append((advantage, live))
    return groups


def torch_loss(batch, *, unbiased=True, ratio="clip", clip_epsilon=0.2, kl_coefficient=0.0):
    """Value and gradient of the same loss in float64, a rollout at a time, lengths read off the tokens."""
    logprobs = torch.tensor(batch.logprobs, dtype=torch.float64, requires_grad=True)
    old = torch.tensor(batch.old, dtype=torch.float64)
    reference = torch.tensor(batch.reference, dtype=torch.float64)
    groups = torch_advantages(unbiased)
    total = torch.zeros((), dtype=torch.float64)
    for row in range(ROLLOUTS):
        advantage, live = groups[row // GROUP][0][row % GROUP], groups[row // GROUP][1]
        if not live:
            continue
        ids = batch.tokens[row].tolist()
        length = ids.index(EOS) + 1 if EOS in ids else WIDTH
        current = logprobs[row, :length]
        rho = torch.exp(current - old[row, :length])
        if ratio == "clip":
            bounded = torch.clamp(rho, 1 - clip_epsilon, 1 + clip_epsilon)
            tokens = torch.maximum(-rho * advantage, -bounded * advantage)
        else:
            tokens = -torch.clamp(rho.detach(), max=1.0) * advantage * current
        delta = reference[row, :length] - current
        tokens = tokens + kl_coefficient * (torch.exp(delta) - delta - 1)
        total = total + tokens.sum() / (MAX_NEW_TOKENS if unbiased else length)
    total = total / ROLLOUTS
    total.backward()
    return total.item(), logprobs.grad.numpy()


@pytest.mark.parametrize("kl_coefficient", [0.0, 0.05])
@pytest.mark.parametrize("ratio", grpo.RATIOS)
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("on_policy", [False, True])
def test_loss_and_gradient_equal_pytorch(batch, unbiased, ratio, kl_coefficient, on_policy):
    if on_policy:
        batch = dataclasses.replace(batch, old=batch.logprobs)
    options = dict(unbiased=unbiased, ratio=ratio, kl_coefficient=kl_coefficient)
    value, gradient = ours_with_gradient(batch, **options)
    expected, expected_gradient = torch_loss(batch, **options)
    np.testing.assert_allclose(value, expected, atol=1e-5, rtol=1e-5)
    # Gradients are of order 1 / (N T): held to 1e-5 of that.
    tolerance = 1e-5 / (ROLLOUTS * MAX_NEW_TOKENS)
    np.testing.assert_allclose(gradient, expected_gradient, atol=tolerance, rtol=1e-5)


def test_the_batch_exercises_every_branch(batch):
    """The parity above means nothing if no ratio is clipped on either side, for either sign of advantage."""
    rho = np.exp(batch.logprobs - batch.old)
    groups = torch_advantages(True)
    signs = np.sign(np.stack([group[0].numpy() for group in groups])).reshape(-1, 1)
    live = np.repeat([group[1] for group in groups], GROUP)[:, None] & batch.mask
    for sign in (1, -1):
        chosen = live & (signs == sign)
        assert (rho[chosen] > 1.2).any() and (rho[chosen] < 0.8).any() and (abs(rho[chosen] - 1) < 0.2).any()
    assert [group[1] for group in groups] == [True, False, True, False]
    truncated = ~(batch.tokens == EOS).any(axis=1)
    assert truncated.any() and (batch.mask.sum(axis=1) == LENGTHS).all()


@pytest.mark.parametrize("unbiased", [True, False])
def test_dead_groups_contribute_nothing(batch, unbiased):
    options = dict(unbiased=unbiased, kl_coefficient=0.1)
    losses, stats = ours(batch, **options)
    _, gradient = ours_with_gradient(batch, **options)
    dead = np.repeat([False, True, False, True], GROUP)
    assert (np.asarray(losses)[dead] == 0.0).all() and (np.asarray(gradient)[dead] == 0.0).all()
    for values in jax.tree.leaves(stats):
        assert (np.asarray(values)[dead] == 0.0).all()
    assert (np.asarray(losses)[~dead] != 0.0).all() and (np.asarray(stats.kl)[~dead] > 0.0).all()


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
@pytest.mark.parametrize("unbiased", [True, False])
def test_micro_batches_add_up_to_the_whole(batch, unbiased, micro_batch):
    options = dict(unbiased=unbiased, kl_coefficient=0.05)
    whole, whole_gradient = ours_with_gradient(batch, **options)
    whole_stats = ours(batch, **options)[1]

    def loss(logprobs, rows):
        losses, stats = ours(batch, rows=rows, logprobs=logprobs, **options)
        return jnp.sum(losses), stats

    def body(totals, rows):
        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(batch.logprobs), rows)
        return (totals[0] + value, totals[1] + gradient), stats

    start = (0.0, jnp.zeros((ROLLOUTS, WIDTH)))
    chunks = jnp.arange(ROLLOUTS).reshape(-1, micro_batch)
    (total, gradient), stats = jax.jit(lambda chunks: jax.lax.scan(body, start, chunks))(chunks)
    np.testing.assert_allclose(total, whole, rtol=1e-5)
    np.testing.assert_allclose(gradient, whole_gradient, rtol=1e-5, atol=1e-9)
    for part, expected in zip(jax.tree.leaves(stats), jax.tree.leaves(whole_stats), strict=True):
        np.testing.assert_allclose(part.reshape(expected.shape), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rubbish", [np.nan, -np.inf, np.inf, -1e30, 1e30])
@pytest.mark.parametrize("ratio", grpo.RATIOS)
def test_masked_positions_touch_neither_value_nor_gradient(batch, ratio, rubbish):
    options = dict(ratio=ratio, kl_coefficient=0.05)
    expected, expected_gradient = ours_with_gradient(batch, **options)
    for names in (("logprobs",), ("old",), ("reference",), ("logprobs", "old", "reference")):
        spoilt = {name: np.where(batch.mask, getattr(batch, name), np.float32(rubbish)) for name in names}
        value, gradient = ours_with_gradient(dataclasses.replace(batch, **spoilt), **options)
        assert value == expected
        np.testing.assert_array_equal(gradient, expected_gradient)
    assert (np.asarray(expected_gradient)[~batch.mask] == 0.0).all()
    probe = jax.value_and_grad(grpo.probe_loss)
    for logprobs in (batch.logprobs, np.where(batch.mask, batch.logprobs, np.float32(rubbish))):
        value, gradient = probe(jnp.asarray(logprobs), jnp.ones(ROLLOUTS), jnp.asarray(batch.mask))
        np.testing.assert_array_equal(gradient, np.where(batch.mask, -1.0, 0.0))
        np.testing.assert_allclose(value, -np.sum(batch.logprobs, where=batch.mask), rtol=1e-5)


@pytest.mark.parametrize("unbiased", [True, False])
def test_empty_rows_are_zero(batch, unbiased):
    empty = batch.mask.copy()
    empty[2] = False  # the best rollout of a live group
    batch = dataclasses.replace(batch, mask=empty)
    losses, stats = ours(batch, unbiased=unbiased, kl_coefficient=0.05)
    _, gradient = ours_with_gradient(batch, unbiased=unbiased, kl_coefficient=0.05)
    assert losses[2] == 0.0 and (np.asarray(gradient)[2] == 0.0).all()
    assert np.isfinite(np.asarray(gradient)).all()
    assert not any(np.asarray(leaf[2]).any() for leaf in jax.tree.leaves(stats))
    assert losses[1] != 0.0


def test_a_zero_advantage_row_of_a_live_group_learns_through_kl_alone(batch):
    _, without = ours_with_gradient(batch)
    _, gradient = ours_with_gradient(batch, kl_coefficient=0.05)
    for row in (10, 11):
        mask = batch.mask[row]
        delta = batch.reference[row] - batch.logprobs[row]
        expected = np.where(mask, 0.05 * (1 - np.exp(delta)), 0.0) / (ROLLOUTS * MAX_NEW_TOKENS)
        np.testing.assert_allclose(gradient[row], expected, rtol=1e-4, atol=1e-8)
        assert (np.asarray(without)[row] == 0.0).all()


@pytest.mark.parametrize("ratio", grpo.RATIOS)
def test_stats_equal_numpy(batch, ratio):
    _, stats = ours(batch, ratio=ratio)
    live = {row for row in range(ROLLOUTS) if torch_advantages(True)[row // GROUP][1]}
    for row in live:
        advantage = float(torch_advantages(True)[row // GROUP][0][row % GROUP])
        kept = slice(0, LENGTHS[row])
        current, old, reference = (
            array[row, kept].astype(np.float64) for array in (batch.logprobs, batch.old, batch.reference)
        )
        rho, delta = np.exp(current - old), reference - current
        cut = rho > 1
        if ratio == "clip":
            cut = (rho > 1.2) & (advantage > 0) | (rho < 0.8) & (advantage < 0)
        np.testing.assert_allclose(stats.ratio[row], rho.mean(), rtol=1e-5)
        np.testing.assert_allclose(stats.clip_fraction[row], cut.mean(), rtol=1e-5)
        np.testing.assert_allclose(stats.kl[row], (np.exp(delta) - delta - 1).mean(), rtol=1e-4)
        assert stats.tokens[row] == LENGTHS[row]
        np.testing.assert_array_equal(stats.logprobs[row], np.where(batch.mask[row], batch.logprobs[row], 0))


def one_token(logprob, old, advantage, *, ratio="clip"):
    """Loss and gradient of a single token."""

    def loss(logprobs):
        arrays = (logprobs, jnp.full((1, 1), old), jnp.array([advantage]))
        return grpo.policy_token_losses(*arrays, ratio=ratio, clip_epsilon=0.2)[0][0, 0]

    value, gradient = jax.value_and_grad(loss)(jnp.full((1, 1), logprob))
    return float(value), float(gradient[0, 0])


def test_clip_worked_numbers():
    """Inside the interval the gradient is -rho A; beyond it, on A's side, it is exactly 0."""
    for rho, advantage, value, gradient in (
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),
        (0.5, 2.0, -1.0, -1.0),
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
    ):
        got = one_token(-1.0, -1.0 - float(np.log(rho)), advantage)
        np.testing.assert_allclose(got, (value, gradient), rtol=1e-5, err_msg=f"rho {rho}, A {advantage}")


def test_truncated_bounds_what_clip_does_not():
    """A ratio of e^5 on a row that is pushed down: clip lets it through, truncated holds it at 1."""
    assert one_token(-1.0, -6.0, -1.0)[1] == pytest.approx(np.exp(5.0), rel=1e-5)
    assert one_token(-1.0, -6.0, -1.0, ratio="truncated") == (-1.0, 1.0)
    assert one_token(-1.0, -0.5, 2.0, ratio="truncated")[1] == pytest.approx(-2 * np.exp(-0.5), rel=1e-5)


@pytest.mark.parametrize("advantage", [0.0, 1.0])
def test_a_ratio_that_overflows_is_clipped_and_not_nan(advantage):
    value, gradient = one_token(-1.0, -200.0, advantage)
    assert gradient == 0.0 and value == pytest.approx(-1.2 * advantage)


@pytest.mark.parametrize("ratio", grpo.RATIOS)
def test_logprobs_as_their_own_old_policy_give_the_plain_policy_gradient(batch, ratio):
    """d loss / d logpi = -A / (N T): the gradient through the old policy must be cut."""
    advantages = group_advantages(jnp.asarray(REWARDS), unbiased=True)[0]

    def loss(logprobs):
        losses, stats = ours(batch, logprobs=logprobs, old=logprobs, ratio=ratio)
        return jnp.sum(losses), stats

    gradient, stats = jax.grad(loss, has_aux=True)(jnp.asarray(batch.logprobs))
    expected = np.where(batch.mask, -np.asarray(advantages).reshape(-1, 1), 0.0) / (ROLLOUTS * MAX_NEW_TOKENS)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    assert set(np.asarray(stats.ratio)) == {0.0, 1.0} and not np.asarray(stats.clip_fraction).any()


@pytest.mark.parametrize("name", ["old", "reference", "advantages"])
@pytest.mark.parametrize("ratio", grpo.RATIOS)
def test_nothing_but_logprobs_gets_a_gradient(batch, ratio, name):
    def loss(values):
        return jnp.sum(ours(batch, ratio=ratio, kl_coefficient=0.05, **{name: values})[0])

    values = jnp.ones(ROLLOUTS) if name == "advantages" else jnp.asarray(getattr(batch, name))
    assert not np.asarray(jax.grad(loss)(values)).any()


def test_kl_of_close_policies_keeps_its_leading_digits():
    """exp(delta) - 1 - delta is about delta^2 / 2, below the rounding error of exp(delta) itself."""
    delta = np.array([[1e-3, -1e-3, 3e-4]])
    current = jnp.zeros((1, 3))
    terms = grpo.kl_terms(current, jnp.asarray(delta, jnp.float32))
    np.testing.assert_allclose(terms, np.expm1(delta) - delta, rtol=2e-2)


def test_probe_loss_equals_pytorch(batch):
    advantages = group_advantages(jnp.asarray(REWARDS), unbiased=True)[0].reshape(-1)
    value, gradient = jax.value_and_grad(grpo.probe_loss)(
        jnp.asarray(batch.logprobs), advantages, jnp.asarray(batch.mask)
    )
    logprobs = torch.tensor(batch.logprobs, dtype=torch.float64, requires_grad=True)
    expected = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        group, live = torch_advantages(True)[row // GROUP]
        expected = expected - live * group[row % GROUP] * logprobs[row, :length].sum()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, logprobs.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_the_reference_is_needed_only_for_kl(batch):
    logprobs, old, reference, mask = map(jnp.asarray, (batch.logprobs, batch.old, batch.reference, batch.mask))
    arrays = [logprobs, old, None, mask, jnp.ones(ROLLOUTS)]
    live, settings = jnp.ones(ROLLOUTS, bool), make_settings()
    without, stats = grpo.row_losses(*arrays, live=live, settings=settings)
    assert stats.kl is None
    with pytest.raises(ValueError, match="kl_coefficient must be 0 where no reference is given, got 0.001"):
        grpo.row_losses(*arrays, live=live, settings=make_settings(kl_coefficient=1e-3))
    arrays[2] = reference + 200.0  # overflows the estimate, and 0 times that would be NaN
    ignored, stats = grpo.row_losses(*arrays, live=live, settings=settings)
    np.testing.assert_array_equal(ignored, without)
    assert (np.asarray(stats.kl) > 0.0).all()  # measured all the same


def test_an_unknown_ratio_is_an_error():
    with pytest.raises(ValueError, match="loss.ratio must be one of"):
        one_token(-1.0, -1.0, 1.0, ratio="none")
