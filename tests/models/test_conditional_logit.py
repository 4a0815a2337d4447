"""The conditional logit: what its penalty is, what says nothing to it, and numbers that would overflow."""

import numpy as np
import pytest

from llm_rerank.models.conditional_logit import (
    conditional_log_likelihood,
    fit_conditional_logit,
    informative,
    log_likelihood_of,
)
from llm_rerank.types import Ragged


def drawn(n_cases=60, n_candidates=6, scales=(1.0, 20.0), seed=0):
    """Lists with one positive each, drawn from the logit with weights (1, 0.05)."""
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(n_cases * n_candidates, len(scales))) * scales
    logits = (design @ [1.0, 0.05]).reshape(n_cases, n_candidates)
    chosen = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    positive = (np.arange(n_candidates) == chosen[:, None]).ravel()
    rows = Ragged.from_lengths(np.arange(len(design)), np.full(n_cases, n_candidates))
    return design.astype(np.float32), rows, positive


def test_scores_in_the_thousands_neither_overflow_nor_vanish():
    # softmax of (0, ln 3) is (1/4, 3/4) whatever is added to both: 2 ln .75 for the two cases
    design = np.array([[0.0], [np.log(3.0)], [5_000.0], [5_000.0 + np.log(3.0)], [-5_000.0], [-5_000.0 + np.log(3.0)]])
    rows = Ragged.from_lengths(np.arange(6), np.array([2, 2, 2]))
    value, gradient, _ = conditional_log_likelihood(np.ones(1), design, rows, np.array([0, 1, 0, 1, 0, 1], dtype=bool))
    assert value == pytest.approx(3 * np.log(0.75))
    assert gradient[0] == pytest.approx(3 * 0.25 * np.log(3.0))


@pytest.mark.parametrize("penalty", [0.5, 30.0])
def test_at_the_fitted_weights_likelihood_and_penalty_balance(penalty):
    design, rows, positive = drawn()
    prior = np.array([0.3, -0.2])
    weights = fit_conditional_logit(design, rows, positive, prior=prior, penalty=penalty)
    _, gradient, _ = conditional_log_likelihood(weights, design.astype(np.float64), rows, positive)
    # d/dw of penalty / 2 × (sd (w − prior))² is penalty × sd² × (w − prior)
    pull = penalty * design.astype(np.float64).std(axis=0) ** 2 * (weights - prior)
    assert np.abs(pull).max() > 1  # there is something to balance
    np.testing.assert_allclose(gradient, pull, atol=2e-3 * np.abs(pull).max())


def test_likelihood_alone_is_that_of_the_derivatives_and_a_good_start_changes_nothing_but_time():
    design, rows, positive = drawn()
    design = design.astype(np.float64)
    for weights in (np.zeros(2), np.array([1.0, 0.05]), np.array([-300.0, 2.0])):
        expected = conditional_log_likelihood(weights, design, rows, positive)[0]
        assert log_likelihood_of(design @ weights, rows, positive) == pytest.approx(expected, rel=1e-12)
    settings = {"prior": np.array([0.3, -0.2]), "penalty": 3.0}
    found = fit_conditional_logit(design, rows, positive, **settings)
    for first in (found, found + 0.5, np.array([-2.0, 2.0])):
        again = fit_conditional_logit(design, rows, positive, first=first, **settings)
        np.testing.assert_allclose(again, found, atol=1e-5)


def test_cases_without_a_choice_say_nothing():
    design, rows, positive = drawn(n_cases=20)
    weights = fit_conditional_logit(design, rows, positive, prior=np.zeros(2), penalty=1.0)
    # one more case with nothing but positives, one without any
    extra = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32) * 3
    more = np.concatenate([design, extra])
    longer = Ragged.from_lengths(np.arange(len(more)), np.append(rows.lengths, [3, 3]))
    flags = np.concatenate([positive, [True] * 3, [False] * 3])
    kept, kept_rows, kept_positive = informative(more, longer, flags)
    np.testing.assert_array_equal(kept, design)
    np.testing.assert_array_equal(kept_rows.lengths, rows.lengths)
    np.testing.assert_array_equal(kept_positive, positive)
    again = fit_conditional_logit(more, longer, flags, prior=np.zeros(2), penalty=1.0)
    np.testing.assert_allclose(again, weights, atol=1e-6)


def test_without_any_choice_the_prior_stays():
    design, rows, _ = drawn(n_cases=2)
    prior = np.array([0.7, -1.5])
    weights = fit_conditional_logit(design, rows, np.zeros(len(design), dtype=bool), prior=prior, penalty=1.0)
    np.testing.assert_array_equal(weights, prior)
    assert weights is not prior


def test_a_constant_column_keeps_its_prior():
    design, rows, positive = drawn(n_cases=30)
    design[:, 1] = 4.0
    weights = fit_conditional_logit(design, rows, positive, prior=np.array([0.0, 0.6]), penalty=1.0)
    assert weights[1] == pytest.approx(0.6, abs=1e-6)
    assert weights[0] > 0.3


def test_a_fit_that_does_not_converge_is_an_error_and_no_silent_answer():
    design, rows, positive = drawn(n_cases=20)
    with pytest.raises(RuntimeError, match="did not converge"):
        fit_conditional_logit(design * np.float32(1e12), rows, positive, prior=np.zeros(2), penalty=1.0)
