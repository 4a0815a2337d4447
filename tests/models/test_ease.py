"""EASE against its definition, and users taken out or put in against a fit without or with them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_rerank.models.collaborative import inverse_updates
from llm_rerank.models.collaborative.ease import EASE
from llm_rerank.models.collaborative.inverse_updates import add_rows, change_rows, longer_inverse, put_in
from llm_rerank.models.collaborative.item_inverse import gram_matrix, invert_in_place
from llm_rerank.models.scoring import interaction_matrix
from llm_rerank.types import DataError, InexactError, NotFittedError
from tests.models.test_item_item import random_events, slow_pairs
from tests.planted import cases_of, events_of, items_of, planted_shop
from tests.scorer_suite import check_scorer, joined


def test_suite(tmp_path):
    check_scorer(EASE, tmp_path, quality_floor=0.85)


def test_weights_solve_the_constrained_least_squares():
    past = random_events(2)
    liked = interaction_matrix(past).toarray().astype(float)
    n_items, regularization = past.n_items, 3.0
    expected = np.zeros((n_items, n_items))
    for item in range(n_items):  # each column alone: ridge regression of the item on all others
        others = np.arange(n_items) != item
        gram = liked[:, others].T @ liked[:, others] + regularization * np.eye(n_items - 1)
        expected[others, item] = np.linalg.solve(gram, liked[:, others].T @ liked[:, item])
    histories = [[5, 2], [0], [7, 7, 1]]
    scores = (
        EASE(regularization=regularization, decay=0.25)
        .fit(past, items_of("x" * 12))
        .score_catalogue(cases_of(histories, [[], [], []]))
    )
    fade = np.exp(-0.25)
    np.testing.assert_allclose(scores[0], fade * expected[5] + expected[2], atol=2e-6)
    np.testing.assert_allclose(scores[1], expected[0], atol=2e-6)
    np.testing.assert_allclose(scores[2], fade * expected[7] + expected[1], atol=2e-6)


@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_gram_matrix_equals_its_slow_twin(decay):
    past = random_events(5)
    gram, support = gram_matrix(past, decay)
    counts, slow_support = slow_pairs(past, decay)
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), counts, rtol=1e-5)
    np.testing.assert_allclose(support, slow_support, rtol=1e-6)
    liked = interaction_matrix(past).toarray().astype(float)
    np.testing.assert_allclose(np.diag(gram), (liked**2).sum(axis=0), rtol=1e-6)
    if decay == 0:
        np.testing.assert_allclose(gram, liked.T @ liked, rtol=1e-5)
    assert np.linalg.eigvalsh(gram.astype(float)).min() > -1e-4


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 700))
def test_inverse_in_place(seed, n):
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(n, 5))
    matrix = (factors @ factors.T + 10 * np.eye(n)).astype(np.float32)
    given_matrix = matrix.copy()
    inverse = invert_in_place(matrix, least_eigenvalue=10)
    assert inverse.dtype == np.float32
    np.testing.assert_array_equal(inverse, inverse.T)
    np.testing.assert_allclose(given_matrix.astype(float) @ inverse, np.eye(n), atol=2e-4)


def test_badly_conditioned_matrices_are_inverted_in_float64():
    # a direction of size 1e7 beside one of size 1: float32 alone would lose all digits of the small one
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    sizes = np.r_[np.full(5, 1e6), np.full(55, 5.0)]
    matrix = ((directions * sizes) @ directions.T).astype(np.float32)
    matrix = (matrix + matrix.T) / 2
    exact = np.linalg.inv(matrix.astype(float))
    np.testing.assert_allclose(invert_in_place(matrix.copy(), least_eigenvalue=1.0), exact, atol=1e-6)


def test_not_positive_definite_is_an_error():
    with pytest.raises(DataError, match="not positive definite"):
        invert_in_place(np.array([[1, 2], [2, 1]], dtype=np.float32), least_eigenvalue=1)


def test_decay_is_read_when_scoring():
    past, items = random_events(7), items_of("x" * 12)
    changed = EASE(decay=0.0).fit(past, items)
    changed.decay = 0.7
    cases = cases_of([[1, 2, 3]], [np.arange(12)])
    np.testing.assert_array_equal(changed.score(cases), EASE(decay=0.7).fit(past, items).score(cases))


def test_settings_survive_saving(tmp_path):
    past, cases = random_events(7), cases_of([[1, 2, 3]], [np.arange(12)])
    scorer = EASE(regularization=3.0, decay=0.7).fit(past, items_of("x" * 12))
    scorer.save(tmp_path)
    loaded = EASE.load(tmp_path)
    assert (loaded.regularization, loaded.decay) == (3.0, 0.7)
    np.testing.assert_array_equal(loaded.score(cases), scorer.score(cases))


def test_errors():
    with pytest.raises(DataError, match="ease was given 20,001 items.*ItemKNN"):
        EASE().fit(events_of([(0, 0, 0)], 20_001), items_of(["x"] * 20_001))
    with pytest.raises(DataError, match="regularization is 0"):
        EASE(regularization=0)
    with pytest.raises(DataError, match="decay is nan"):
        EASE(decay=float("nan"))
    with pytest.raises(NotFittedError):
        EASE().score(cases_of([[0]], [[0]]))


def positive_definite(rng, n):
    factors = rng.normal(size=(n, 6))
    return factors @ factors.T + 5 * np.eye(n)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 600))
def test_inverse_updates_equal_a_new_inverse(seed, n):
    """Each identity alone, against numpy's inverse of the changed matrix in float64."""
    rng = np.random.default_rng(seed)
    matrix = positive_definite(rng, n)
    codes = rng.choice(n, rng.integers(1, min(n, 12) + 1), replace=False)
    old = np.linalg.inv(matrix).astype(np.float32)

    factors = rng.normal(size=(len(codes), 3))
    changed, inverse = matrix.copy(), old.copy()
    changed[np.ix_(codes, codes)] += factors @ factors.T
    put_in(inverse, codes, factors @ factors.T)
    np.testing.assert_allclose(inverse, np.linalg.inv(changed), atol=1e-6)
    np.testing.assert_array_equal(inverse, inverse.T)
    put_in(inverse, codes, -factors @ factors.T)  # and out again
    np.testing.assert_allclose(inverse, old, atol=1e-6)

    change = rng.normal(size=(n, len(codes))) * 0.1 / np.sqrt(n)
    change[codes] = (change[codes] + change[codes].T) / 2
    changed, inverse = matrix.copy(), old.copy()
    changed[:, codes] += change
    changed[codes] = changed[:, codes].T
    change_rows(inverse, codes, change)
    np.testing.assert_allclose(inverse, np.linalg.inv(changed), atol=1e-6)
    np.testing.assert_array_equal(inverse, inverse.T)

    first = rng.integers(1, n)
    inverse = longer_inverse(np.linalg.inv(matrix[:first, :first]).astype(np.float32), n)
    add_rows(inverse, int(first), matrix[:first, first:], matrix[first:, first:])
    np.testing.assert_allclose(inverse, np.linalg.inv(matrix), atol=1e-6)
    np.testing.assert_array_equal(inverse, inverse.T)


@pytest.mark.parametrize("most_rank", [0.01, 0.5, 1.0])
def test_users_exchanged_equal_a_fit(most_rank, monkeypatch):
    monkeypatch.setattr(inverse_updates, "MOST_RANK", most_rank)  # users one by one; some at once; all at once
    past, items = random_events(12, n_users=25, n_items=40, n_events=500), items_of("x" * 40)
    scorer = EASE(regularization=3).fit(past, items)
    kept = (past.users % 3 > 0) | (past.times > 4)
    changed = past.users % 3 == 0
    revised = scorer.revised(past.take(changed), past.take(changed & kept))
    fitted = EASE(regularization=3).fit(past.take(kept), items)
    np.testing.assert_allclose(revised._model.inverse, fitted._model.inverse, atol=1e-7)
    np.testing.assert_array_equal(revised._model.support, fitted._model.support)
    cases = cases_of([[1, 2, 3], [30]], [np.arange(40)] * 2)
    np.testing.assert_allclose(revised.score(cases), fitted.score(cases), atol=1e-6)


@pytest.mark.parametrize(("weight", "is_exact"), [(1, True), (10, True), (100, False), (1000, False), (10_000, False)])
def test_a_user_who_outweighs_all_others_is_not_said_to_be_out(weight, is_exact):
    """Weight 100 leaves scores wrong by 2 % of the greatest, 1000 by more than all of it: float32 has lost the rest."""
    shop = planted_shop()
    weights = shop.past.weights.copy()
    weights[shop.past.users == 5] = weight
    past = replace(shop.past, weights=weights)
    scorer = EASE(regularization=50).fit(past, shop.items)
    before, nothing = past.take(past.users == 5), past.take(past.users < 0)
    if not is_exact:
        with pytest.raises(InexactError, match="ease cannot be changed exactly.*fit again"):
            scorer.revised(before, nothing)
        return
    fitted = EASE(regularization=50).fit(past.take(past.users != 5), shop.items)
    ours, expected = (made.score_catalogue(shop.cases) for made in (scorer.revised(before, nothing), fitted))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.nanmax(np.abs(expected)))


def test_an_item_whose_only_user_goes_is_unknown():
    """Weights whose sum float32 would round: nothing may be left of them."""
    past = events_of([(0, 0, 0, 0.2), (1, 0, 0, 0.1), (2, 0, 0, 0.7), (2, 1, 1, 0.3), (3, 1, 0), (3, 2, 0)], 3)
    scorer = EASE().fit(past, items_of("abc"))
    for user in (1, 2, 0):
        scorer = scorer.revised(past.take(past.users == user), past.take(past.users < 0))
    assert scorer._model.support.tolist() == [0, 1, 1]
    assert np.isnan(scorer.score(cases_of([[1]], [[0, 1, 2]]))).tolist() == [True, False, False]


def test_new_items_equal_a_fit_with_them():
    past, cases = random_events(13), cases_of([[1, 4]], [np.arange(15)])
    grown = EASE(regularization=2).fit(past, items_of("x" * 12)).grown(items_of("x" * 15), np.arange(12, 15))
    longer = replace(past, n_items=15)
    fitted = EASE(regularization=2).fit(longer, items_of("x" * 15))
    np.testing.assert_allclose(grown._model.inverse, fitted._model.inverse, atol=1e-7)
    np.testing.assert_allclose(grown.score(cases), fitted.score(cases), atol=1e-6)
    added = events_of([(0, 13, 99), (0, 2, 99)], 15)
    both = joined(longer.take(longer.users == 0), replace(added, user_ids=longer.user_ids))
    fitted = EASE(regularization=2).fit(joined(longer, replace(added, user_ids=longer.user_ids)), items_of("x" * 15))
    np.testing.assert_allclose(
        grown.revised(longer.take(longer.users == 0), both).score(cases), fitted.score(cases), atol=1e-6
    )
