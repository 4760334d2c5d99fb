"""The pair audit's measurements, against counts by hand, scikit-free rivals and the extraction itself."""

import dataclasses
import math
import re

import numpy as np
import pytest

from tests.analysis.test_document import check_page
from vgrout_jax import pair_audit
from vgrout_jax.analysis import document, pair_checks, pair_pages
from vgrout_jax.analysis.pair_checks import PairAudit
from vgrout_jax.config.scales import make_config
from vgrout_jax.routing.pair_file import Pair
from vgrout_jax.routing.pairs import load_pairs


def test_a_learnt_number_is_judged_by_the_other_pairs():
    assert pair_checks.learnt_accuracy(np.array([3.0, 5.0, 1.0])) == 1.0
    assert pair_checks.learnt_accuracy(np.array([-3.0, -5.0, -1.0])) == 1.0  # the sign is learnt
    assert pair_checks.learnt_accuracy(np.array([3.0, -1.0, 1.0, 0.0])) == (0.5 + 0 + 1 + 0.5) / 4
    assert pair_checks.learnt_accuracy(np.array([1.0, -1.0])) == 0.0  # each other says the opposite
    assert pair_checks.learnt_accuracy(np.zeros(3)) == 0.5


def test_a_number_that_says_nothing_is_near_one_half():
    generator = np.random.default_rng(0)
    means = [pair_checks.learnt_accuracy(generator.standard_normal(25)) for _ in range(300)]
    assert abs(np.mean(means) - 0.5) < 0.05


def test_the_direction_s_accuracy_has_a_sign_of_its_own():
    assert pair_checks.margin_accuracy(np.array([1.0, -1.0, 0.0, 2.0])) == 2.5 / 4


def token_accuracy_by_hand(hack, clean):
    results = []
    for left in range(len(hack)):
        others = [row for row in range(len(hack)) if row != left]

        def weight(token, others=others):
            return math.log(
                (1 + sum(token in hack[row] for row in others)) / (1 + sum(token in clean[row] for row in others))
            )

        gap = sum(map(weight, hack[left])) - sum(map(weight, clean[left]))
        results.append(0.5 if abs(gap) < 1e-9 else float(gap > 0))
    return np.mean(results)


def test_tokens_are_weighed_by_the_other_pairs():
    generator = np.random.default_rng(1)
    sides = [[set(generator.integers(0, 12, 5).tolist()) for _ in range(9)] for _ in range(2)]
    found = pair_checks.token_accuracy({"hack": sides[0], "clean": sides[1]})
    assert found == pytest.approx(token_accuracy_by_hand(*sides))
    telling = {"hack": [{1, 2}, {1, 3}, {1, 4}], "clean": [{2}, {3}, {4}]}
    assert pair_checks.token_accuracy(telling) == 1.0
    assert pair_checks.token_accuracy({"hack": [{1}, {2}], "clean": [{3}, {4}]}) == 0.5  # nothing is shared
    assert pair_checks.telling_tokens(telling, 5) == [(1, 3, 0)]


def test_names_that_training_discloses_are_found_where_they_stand():
    pair = Pair("p", ("hack",), "call run_tests()", "fine", "self.Valid = True; prerun_tests()", "x = 'outcome.log'")
    assert pair_checks.mentions(pair) == (
        "prompt: run_tests (training)",
        "hack: valid (training)",
        "clean: outcome.log (held-out)",
    )
    honest = Pair("p", ("hack",), "validate the invalid", "a", "resultXtxt", "b")
    assert pair_checks.mentions(honest) == ()


def made_up_audit(pairs=6):
    generator = np.random.default_rng(0)

    def sides(gap, size=1.0):
        clean = generator.normal(0, size, pairs)
        return {"hack": clean + gap, "clean": clean}

    rows = [{1, 2}, {1, 3}, {1, 4}, {2, 5}, {3, 1}, {6}]
    return PairAudit(
        names=tuple(f"pair {row}" for row in range(pairs)),
        tokens=sides(np.array([3, -2, 4, 1, 0, 2])),
        logprobs=sides(np.array([0.2, -0.3, 0.1, -0.4, 0.5, -0.1])),
        cosines=sides(np.array([0.3, 0.2, -0.1, 0.4, 0.25, 0.35])),
        scores=sides(1.0),
        norms=sides(-0.5),
        vocabulary={"hack": rows, "clean": [{2}, {3}, {4}, {5}, {3}, {6}]},
        mentions=((), ("hack: valid (training)",), (), ("prompt: self_check (held-out)",), (), ()),
        modules=14,
    )


def test_the_page_says_what_was_measured():
    audit = made_up_audit()
    blocks = pair_pages.audit_blocks("my pairs", audit, lambda token: f"<{token}>", 0.0, 0.3)
    check_page(document.to_html(blocks))
    text = document.to_text(blocks)
    found = pair_pages.rivals(audit)
    assert found["the direction"] == 5 / 6 and f"{100 * 5 / 6:.1f}%" in text
    assert found["length of the gradient"] == 1.0
    rows = [line for line in text.splitlines() if line.startswith("pair ") and line[5].isdigit()]
    assert rows[0].startswith("pair 2  ") and "-0.100" in rows[0]  # the pair that points the other way comes first
    assert re.search(r"^'<1>' +4 +0$", text, re.MULTILINE)
    assert "1 of 6 pairs hold a name that training discloses" in text
    assert "* pair 1: hack: valid (training)" in text and "* pair 3: prompt: self_check (held-out)" in text
    slope = np.corrcoef(pair_checks.difference(audit.tokens), pair_checks.difference(audit.cosines))[0, 1]
    assert f"{slope:+.2f}" in text


@pytest.fixture(scope="module")
def smoke_audit(tmp_path_factory):
    """The command's own path at the scale smoke, with a few pairs."""
    from vgrout_jax.model.lora2r import zero_deltas
    from vgrout_jax.routing.pairs import encode_pairs
    from vgrout_jax.run.build import build_run

    config = make_config("routeV", "smoke")
    config.resolve()
    run = build_run(config)
    pairs = load_pairs(config.direction.pairs, config.direction.tags)
    batch = encode_pairs(pairs, run.world.tokenizer, max_prompt=config.data.max_prompt_tokens)
    deltas = zero_deltas(run.frozen.init)
    return run, pairs, batch, deltas, pair_checks.measure(run, pairs, batch, deltas, lambda text: None)


@pytest.mark.slow
def test_lengths_and_log_probabilities_are_the_pairs_own(smoke_audit):
    run, pairs, batch, _, audit = smoke_audit
    tokenizer = run.world.tokenizer
    for side in ("hack", "clean"):
        expected = [len(tokenizer.encode(getattr(pair, side))) + 1 for pair in pairs]
        np.testing.assert_array_equal(audit.tokens[side], expected)
    assert set(audit.vocabulary["hack"][0]) == {*tokenizer.encode(pairs[0].hack), tokenizer.eos_ids[0]}
    uniform = -math.log(run.model.vocab_size)  # what a random policy gives, nearly
    assert all(abs(audit.logprobs[side].mean() - uniform) < 0.5 for side in ("hack", "clean"))
    assert audit.names == tuple(pair.name for pair in pairs)


@pytest.mark.slow
def test_margins_are_those_of_the_direction_made_of_the_other_pairs(smoke_audit):
    run, pairs, _, deltas, audit = smoke_audit
    _, gradients = run.programs.extract(deltas, run.frozen)
    hack, clean = np.split(np.asarray(gradients, np.float64), 2)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    for row in (0, 5, len(pairs) - 1):
        v = unit(np.delete(unit(hack) - unit(clean), row, axis=0).mean(axis=0))
        for side, gradient in (("hack", hack), ("clean", clean)):
            cosine = np.sum(unit(gradient[row]) * v, axis=-1).mean()
            assert audit.cosines[side][row] == pytest.approx(cosine, abs=1e-5)
            assert audit.norms[side][row] == pytest.approx(np.linalg.norm(gradient[row], axis=-1).mean(), rel=1e-4)
    band = np.percentile(audit.cosines["clean"], 75), np.percentile(audit.cosines["hack"], 75)
    width = max(band[1] - band[0], run.config.gate.band_floor)
    np.testing.assert_allclose(audit.scores["hack"], (audit.cosines["hack"] - band[0]) / width, atol=1e-3)


@pytest.mark.slow
def test_the_command_writes_a_page(tmp_path):
    config = make_config("routeV", "smoke")
    config.resolve()
    text = pair_audit.audit(config, tmp_path, None)
    check_page((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "by which tokens" not in text and "which tokens occur" in text
    assert (tmp_path / "confounds.svg").stat().st_size > 5000 and (tmp_path / "pairs.md").exists()


def test_one_pair_cannot_be_audited(tmp_path):
    config = make_config("routeV", "smoke")
    config.resolve()
    source = tmp_path / "one.md"
    source.write_text(
        "### only\nTags: hack\n#### User\n```\na\n```\n#### Hack\n```\nb\n```\n#### Clean\n```\nc\n```\n"
    )
    config.direction.pairs = str(source)
    with pytest.raises(ValueError, match="must select at least 2 pairs to leave one out, got 1"):
        pair_audit.audit(config, tmp_path, None)


def test_every_array_of_an_audit_speaks_of_the_same_pairs():
    audit = made_up_audit()
    for field in dataclasses.fields(audit):
        value = getattr(audit, field.name)
        if isinstance(value, dict):
            assert {len(part) for part in value.values()} == {len(audit.names)}, field.name
