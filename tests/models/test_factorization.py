from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime, minimize
from scipy.sparse import csr_matrix
from scipy.special import expit

from llm_rerank.models.collaborative.attributes import AttributeMap, feature_scale
from llm_rerank.models.collaborative.descent import (
    Cells,
    DescentSettings,
    descend,
    initial_vectors,
    logistic_residuals,
    subtract_rows,
)
from llm_rerank.models.collaborative.factorization import SGDMatrixFactorization, default_negative_weight
from llm_rerank.models.collaborative.fold_in import logistic_fold_in, ridge_fold_in
from llm_rerank.types import DataError, NotFittedError, Ragged
from tests.planted import cases_of, events_of, items_of, planted_shop
from tests.scorer_suite import check_scorer, first_rate


def rated_shop(n_users=60, n_items=40, rank=3, share=0.5, noise=0.1, seed=0):
    """Ratings 3 + UᵀV of planted rank; U linear in two attributes and one hidden number. Item 39 is never rated."""
    rng = np.random.default_rng(seed)
    attributes = rng.normal(size=(n_users, 2))
    users = np.column_stack([attributes, rng.normal(size=n_users)])
    truth = 3 + users @ rng.normal(size=(rank, n_items)) / np.sqrt(rank)
    known = rng.random(truth.shape) < share
    known[:, n_items - 1] = False
    rows = [(int(u), int(i), int(i)) for u, i in np.argwhere(known)]
    events = events_of(rows, n_items)
    ratings = truth[events.users, events.items] + noise * rng.normal(size=len(events))
    events = replace(events, ratings=ratings.astype(np.float32), user_rows=np.arange(n_users))
    return events, items_of("x" * n_items), truth, known, attributes.astype(np.float32)


def attribute_cases(user_rows):
    cases = cases_of([[]] * len(user_rows), [[]] * len(user_rows))
    return replace(cases, user_rows=np.asarray(user_rows, dtype=np.int64))


# ---- the arithmetic


def test_one_step_of_squared_error_by_hand():
    # r = 2, u = (1, 2), v = (3, −1): u·v = 1, error −1.
    # u ← u − .1 × (−1·v + .5·u) = (1, 2) − .1 × (−2.5, 2) = (1.25, 1.8)
    # v ← v − .1 × (−1·u + .5·v) = (3, −1) − .1 × (.5, −2.5) = (2.95, −.75)
    users, items = np.array([[1, 2]], dtype=np.float32), np.array([[3, -1]], dtype=np.float32)
    zero, one = np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.float32)
    free = np.ones(2, dtype=np.float32)
    how = DescentSettings(learning_rate=0.1, epochs=1, regularization=0.5, negative_weight=None)
    curve = descend(
        Cells(zero, zero, 2 * one, one), users, items, free_user=free, free_item=free, settings=how,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    np.testing.assert_allclose(curve, [1.0])
    np.testing.assert_allclose(users, [[1.25, 1.8]], rtol=1e-6)
    np.testing.assert_allclose(items, [[2.95, -0.75]], rtol=1e-6)


def test_columns_that_are_not_free_stay_as_they_are():
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(5, 4)).astype(np.float32), rng.normal(size=(6, 4)).astype(np.float32)
    users_before, items_before = users.copy(), items.copy()
    cells = Cells(np.arange(5), np.arange(1, 6), np.zeros(5, np.float32), np.ones(5, np.float32))
    free_user, free_item = np.array([1, 1, 1, 0], np.float32), np.array([1, 1, 0, 1], np.float32)
    for weight in (None, 3.0):
        descend(
            cells, users, items, free_user=free_user, free_item=free_item,
            settings=DescentSettings(0.1, 2, 0.1, weight), rng=rng,
        )  # fmt: skip
    np.testing.assert_array_equal(users[:, 3], users_before[:, 3])
    np.testing.assert_array_equal(items[:, 2], items_before[:, 2])
    assert np.abs(users[:, :3] - users_before[:, :3]).min() > 1e-4
    assert np.abs(items[1:, [0, 1, 3]] - items_before[1:, [0, 1, 3]]).min() > 1e-4


def test_logistic_residuals_are_the_derivatives_of_the_loss():
    rng = np.random.default_rng(1)
    point = rng.normal(size=1 + 4) * 3

    def loss(at):
        return logistic_residuals(at[:1], at[None, 1:], 5.0)[0][0]

    expected = np.log1p(np.exp(-point[0])) + 5.0 * np.log1p(np.exp(point[1:])).mean()
    assert loss(point) == pytest.approx(expected)
    _, own, opposed = logistic_residuals(point[:1], point[None, 1:], 5.0)
    np.testing.assert_allclose(np.r_[own, opposed[0]], approx_fprime(point, loss, 1e-6), atol=1e-4)


def test_far_scores_do_not_overflow():
    losses, own, opposed = logistic_residuals(
        np.array([-200, 200], np.float32), np.array([[300], [-300]], np.float32), 1.0
    )
    np.testing.assert_allclose(losses, [500, 0])
    np.testing.assert_allclose(own, [-1, 0])
    np.testing.assert_allclose(opposed, [[1], [0]])


def test_rows_named_twice_get_both_steps():
    matrix = np.zeros((4, 2), dtype=np.float32)
    subtract_rows(matrix, np.array([2, 0, 2]), np.array([[1, 10], [2, 20], [4, 40]], dtype=np.float32))
    np.testing.assert_array_equal(matrix, [[-2, -20], [0, 0], [-5, -50], [0, 0]])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=12), st.integers(0, 10**6))
def test_ridge_fold_in_is_least_squares_row_by_row(lengths, seed):
    rng = np.random.default_rng(seed)
    n_events = sum(lengths)
    vectors = rng.normal(size=(n_events, 3)).astype(np.float32)
    targets = rng.normal(size=n_events).astype(np.float32)
    found = ridge_fold_in(vectors, targets, np.array(lengths), 0.3)
    for row, (start, length) in enumerate(zip(np.cumsum([0, *lengths]), lengths, strict=False)):
        v, t = vectors[start : start + length], targets[start : start + length]
        # the penalty as further rows of the least-squares problem: sqrt(λ n)·x ≈ 0
        whole = np.vstack([v, np.sqrt(0.3 * max(length, 1)) * np.eye(3)])
        np.testing.assert_allclose(found[row], np.linalg.lstsq(whole, np.r_[t, 0, 0, 0])[0], atol=1e-4)


def test_ridge_fold_in_over_many_blocks_equals_row_by_row():
    rng = np.random.default_rng(2)
    lengths = rng.integers(0, 5, 1200)
    lengths[600] = 3000  # 2²² / 64² = 1,024 events a chunk: one row alone fills several
    vectors = rng.normal(size=(lengths.sum(), 64)).astype(np.float32)
    targets = rng.normal(size=lengths.sum()).astype(np.float32)
    found = ridge_fold_in(vectors, targets, lengths, 0.2)
    starts = np.cumsum(np.r_[0, lengths])
    for row in [0, 1, 511, 512, 599, 600, 601, 1023, 1024, 1199]:
        own = slice(starts[row], starts[row + 1])
        alone = ridge_fold_in(vectors[own], targets[own], lengths[row : row + 1], 0.2)
        np.testing.assert_allclose(found[row], alone[0], atol=1e-5)


def test_logistic_fold_in_finds_the_minimum_and_no_row_depends_on_another():
    rng = np.random.default_rng(3)
    vectors, opposed = (rng.normal(size=(n, 4)).astype(np.float32) for n in (15, 9))
    prior = (0.3 * rng.normal(size=(6, 4))).astype(np.float32)
    prior[:, 3] = 1.0
    free = np.array([1, 1, 1, 0], dtype=np.float32)
    weights = rng.random((6, 15)) * (rng.random((6, 15)) < 0.3) + np.eye(6, 15)
    histories = csr_matrix(weights.astype(np.float32))
    how = {"free": free, "negative_weight": 4.0, "regularization": 0.2}
    found = logistic_fold_in(histories, vectors, opposed, prior, **how)
    for row in range(6):
        share = weights[row] / weights[row].sum()

        def loss(x, row=row, share=share):
            x = np.r_[x, 1.0]
            return (
                share @ np.logaddexp(0, -vectors @ x)
                + 4.0 * np.logaddexp(0, opposed @ x).mean()
                + 0.1 * np.sum((x - prior[row]) ** 2)
            )

        best = minimize(loss, np.zeros(3), tol=1e-12)
        np.testing.assert_allclose(found[row, :3], best.x, atol=2e-3)
        assert found[row, 3] == 1.0
        alone = logistic_fold_in(histories[[row]], vectors, opposed, prior[[row]], **how)
        np.testing.assert_allclose(found[row], alone[0], atol=1e-6)


# ---- explicit ratings


@pytest.fixture(scope="module")
def rated():
    past, items, truth, known, attributes = rated_shop()
    scorer = SGDMatrixFactorization(form="explicit", embedding_size=3, user_features=attributes)
    return scorer.fit(past, items, seed=0), past, items, truth, known, attributes


def test_explicit_defaults_are_the_article_s():
    scorer = SGDMatrixFactorization(form="explicit")
    assert (scorer.learning_rate, scorer.epochs) == (0.01, 100)


def test_explicit_recovers_ratings_that_were_never_seen(rated):
    scorer, past, _, truth, known, _ = rated
    assert len(scorer.loss_curve) == 100
    assert scorer.loss_curve[99] < 0.1 * scorer.loss_curve[0]
    histories = [past.items[past.users == user] for user in range(past.n_users)]
    order = np.argsort(past.users, kind="stable")
    scores = scorer.predict(scorer.fold_in_ratings(Ragged.from_lists(histories), past.ratings[order]))
    assert np.isnan(scores[:, 39]).all()
    unseen = ~known[:, :39]
    error = np.sqrt(np.mean((scores[:, :39] - truth[:, :39])[unseen] ** 2))
    assert error < 0.3 * np.std(truth)


def test_a_new_user_from_ratings_from_attributes_and_from_both(rated):
    scorer, _, _, _, _, attributes = rated
    rng = np.random.default_rng(9)
    # new users of the same planted world: tastes (attribute, attribute, hidden number)
    _, _, truth, _, _ = rated_shop()
    item_side = np.linalg.lstsq(np.column_stack([attributes, _hidden_number()]), truth - 3)[0]
    new_attributes = rng.normal(size=(25, 2)).astype(np.float32)
    new_truth = 3 + np.column_stack([new_attributes, rng.normal(size=25)]) @ item_side
    rows = np.arange(60, 85)
    scorer.user_features = np.vstack([attributes, new_attributes])
    rated_items = Ragged.from_lists([rng.choice(39, 4, replace=False) for _ in rows])
    ratings = new_truth[rated_items.row_of_value, rated_items.values].astype(np.float32)

    def error(scores):
        return np.sqrt(np.mean((scores[:, :39] - new_truth[:, :39]) ** 2))

    from_ratings = error(scorer.predict(scorer.fold_in_ratings(rated_items, ratings)))
    from_attributes = error(scorer.score_catalogue(attribute_cases(rows)))
    from_both = error(scorer.predict(scorer.fold_in_ratings(rated_items, ratings, user_rows=rows)))
    spread = np.std(new_truth)
    # attributes carry two of three equal directions: sqrt(1/3) = .58 of the spread is the best they can do
    assert 0.45 * spread < from_attributes < 0.75 * spread
    assert from_both < 0.75 * min(from_ratings, from_attributes)
    scorer.user_features = attributes


def _hidden_number():
    rng = np.random.default_rng(0)
    rng.normal(size=(60, 2))
    return rng.normal(size=60)


def test_squared_error_over_ones_fits_a_constant_and_ranks_nothing():
    """Why the implicit form draws negatives: with ones alone every score is 1 and the order is noise."""
    shop = planted_shop()
    ones = replace(shop.past, ratings=np.ones(len(shop.past), dtype=np.float32))
    constant = SGDMatrixFactorization(form="explicit", embedding_size=8, epochs=50).fit(ones, shop.items, seed=0)
    scores = constant.score(shop.cases)
    np.testing.assert_allclose(scores[~np.isnan(scores)], 1.0, atol=0.02)
    drawn = SGDMatrixFactorization(embedding_size=8).fit(ones, shop.items, seed=0)
    assert first_rate(drawn.score(shop.cases), shop.cases) > 0.9
    assert first_rate(scores, shop.cases) < 0.5


def test_histories_without_ratings_stand_for_the_mean_of_their_sign(rated):
    _, past, items, _, _, _ = rated
    liked = past.ratings >= 3
    signed = replace(past, weights=np.where(liked, 1, -1).astype(np.float32))
    scorer = SGDMatrixFactorization(form="explicit", embedding_size=3, epochs=10).fit(signed, items, seed=0)
    cases = cases_of([[1, 5, 7]], [[]])
    cases = replace(cases, history_weights=np.array([1, -1, 1], dtype=np.float32))
    high, low = past.ratings[liked].mean(), past.ratings[~liked].mean()
    np.testing.assert_allclose(
        scorer.fold_in(cases),
        scorer.fold_in_ratings(cases.history, np.array([high, low, high], dtype=np.float32)),
        atol=1e-6,
    )


def test_the_newest_of_two_ratings_counts():
    past = events_of([(0, 0, 1), (0, 0, 2), (1, 1, 1), (1, 0, 5)], 2)
    past = replace(past, ratings=np.array([1, 3, 5, 5], dtype=np.float32))  # sorted by time: (0,0,1) (1,1,1) (0,0,2)
    scorer = SGDMatrixFactorization(form="explicit", embedding_size=1).fit(past, items_of("ab"), seed=0)
    assert scorer._fitted().mean_rating == pytest.approx(np.mean([3, 5, 5]))


def test_without_biases_the_score_is_the_product_alone(rated):
    _, past, items, _, _, _ = rated
    scorer = SGDMatrixFactorization(form="explicit", embedding_size=4, epochs=10, biases=False).fit(past, items, seed=0)
    vectors = scorer.fold_in_ratings(Ragged.from_lists([[1, 2, 3]]), np.array([1, 5, 2], dtype=np.float32))
    assert vectors[0, -2] == 0.0
    assert np.nanmax(np.abs(scorer._fitted().vectors[:, -1])) == 0.0
    products = vectors[:, :4] @ scorer._fitted().vectors[:, :4].T
    np.testing.assert_allclose(scorer.predict(vectors)[:, :39], products[:, :39], atol=1e-5)


def test_explicit_passes_the_suite(tmp_path):
    """Users rate items of any theme, 5 in their own and 1 elsewhere; low ratings weigh −1, also in histories."""
    shop = planted_shop(loyalty=0.3, events_a_user=16)
    matches = shop.item_themes[shop.past.items] == shop.user_themes[shop.past.users]
    past = replace(
        shop.past,
        ratings=np.where(matches, 5, 1).astype(np.float32),
        weights=np.where(matches, 1, -1).astype(np.float32),
        positive=matches,
    )
    users_of_history = np.repeat(shop.user_themes, shop.cases.history.lengths)
    own = shop.item_themes[shop.cases.history.values] == users_of_history
    cases = replace(shop.cases, history_weights=np.where(own, 1, -1).astype(np.float32))
    check_scorer(
        lambda: SGDMatrixFactorization(form="explicit", embedding_size=8),
        tmp_path,
        quality_floor=0.7,
        shop=replace(shop, past=past, cases=cases),
    )


# ---- implicit events


def test_implicit_passes_the_suite(tmp_path):
    check_scorer(SGDMatrixFactorization, tmp_path, quality_floor=0.9)


def test_scores_are_log_odds_of_the_next_event_against_chance():
    """Item biases alone: −n_i σ(−s) + N·ω/n·σ(s) = 0 at the minimum, so s = log(p_i·n / ω), p_i = n_i / N."""
    counts = np.array([400, 200, 100, 100])
    columns = np.repeat(np.arange(4), counts)
    ones = np.ones(800, dtype=np.float32)
    users, items = (initial_vectors(np.random.default_rng(0), n, 1, fixed_column=c) for n, c in ((800, -1), (4, -2)))
    users[:, 0] = items[:, 0] = 0.0
    descend(
        Cells(np.arange(800), columns, ones, ones), users, items,
        free_user=np.zeros(3, np.float32), free_item=np.array([0, 0, 1], np.float32),
        settings=DescentSettings(0.005, 40, 1e-6, 2.0), rng=np.random.default_rng(0),
    )  # fmt: skip
    np.testing.assert_allclose(items[:, -1], np.log(counts / 800 * 4 / 2.0), atol=0.05)


def test_the_default_negative_weight_grows_with_the_root_of_the_catalogue():
    assert default_negative_weight(900, 1.0) == pytest.approx(5.0)  # √900 / 6
    assert default_negative_weight(900, 9.0) == pytest.approx(5.0 / 3)


def test_implicit_cold_user_from_attributes():
    shop = planted_shop()
    n_themes = shop.user_themes.max() + 1
    attributes = np.eye(n_themes, dtype=np.float32)[shop.user_themes]
    past = replace(shop.past, user_rows=np.arange(shop.past.n_users))
    scorer = SGDMatrixFactorization(embedding_size=16, user_features=attributes).fit(past, shop.items, seed=0)
    cases = attribute_cases(np.arange(len(shop.cases))).with_candidates(shop.cases.candidates)
    cases = replace(cases, targets=shop.cases.targets)
    assert first_rate(scorer.score(cases), cases) > 0.9
    stranger = attribute_cases([-1, len(attributes)]).with_candidates(Ragged.from_lists([[0, 1], [0, 1]]))
    assert np.isnan(scorer.score(stranger)).all()


def test_attributes_survive_saving(tmp_path):
    past, items, _, _, attributes = rated_shop()
    scorer = SGDMatrixFactorization(embedding_size=4, epochs=3, user_features=attributes).fit(past, items, seed=0)
    scorer.save(tmp_path)
    loaded = SGDMatrixFactorization.load(tmp_path)
    cases = attribute_cases([0, 7, -1])
    np.testing.assert_array_equal(loaded.score_catalogue(cases), scorer.score_catalogue(cases))
    assert np.isfinite(loaded.score_catalogue(cases)[:2, :39]).all()
    np.testing.assert_array_equal(loaded.loss_curve, scorer.loss_curve)


# ---- attributes


def test_attribute_map_recovers_a_linear_rule():
    rng = np.random.default_rng(4)
    features = (rng.normal(size=(2000, 3)) * [1, 50, 0.01] + [0, 1000, 5]).astype(np.float32)
    features = np.column_stack([features, np.full(2000, 7, dtype=np.float32)])  # a constant column is harmless
    rule = rng.normal(size=(3, 2)) / np.array([[1], [50], [0.01]])
    outputs = ((features[:, :3] - [0, 1000, 5]) @ rule + [2, -1]).astype(np.float32)
    fitted = AttributeMap.fit(features, np.r_[np.arange(1500), -1, 5000], np.vstack([outputs[:1500], np.ones((2, 2))]))
    np.testing.assert_allclose(fitted.predict(features[1500:]), outputs[1500:], atol=0.03)


def test_no_user_with_attributes_means_no_map():
    assert AttributeMap.fit(np.ones((3, 1), np.float32), np.array([-1, 3]), np.ones((2, 2), np.float32)) is None


@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, 37.3, -123456.789, 1.7e9])
@pytest.mark.parametrize("n_users", [1, 100, 320, 5000])
def test_what_float32_does_not_tell_apart_is_constant(value, n_users):
    features = np.full((n_users, 2), value, dtype=np.float32)
    features[: n_users // 2, 1] = np.nextafter(features[0, 1], np.float32(np.inf))  # the same, computed otherwise
    mean, deviation = feature_scale(features)
    np.testing.assert_allclose(mean, value, rtol=1e-6, atol=1e-6)
    assert deviation.tolist() == [1, 1]
    days = 1.7e9 + 86_400 * np.arange(5)  # seconds since 1970 of five days in a row still differ
    np.testing.assert_allclose(feature_scale(days[:, None].astype(np.float32))[1], 86_400 * 2**0.5, rtol=1e-3)


# ---- errors


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"form": "logistic"}, "form is 'logistic'; it must be one of implicit, explicit"),
        ({"embedding_size": 0}, "embedding_size is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"decay": -1.0}, "decay is -1.0"),
        ({"user_features": np.array([[1.0], [np.nan]])}, "nan in row 1, column 0"),
        ({"user_features": np.ones(3)}, r"shape \(3,\)"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(DataError, match=named):
        SGDMatrixFactorization(**settings)


def test_divergence_is_an_error_and_says_what_to_lower():
    past, items, *_ = rated_shop()
    with pytest.raises(DataError, match="diverged in epoch .* with learning_rate 5.0; lower it"):
        with np.errstate(all="ignore"):
            SGDMatrixFactorization(form="explicit", learning_rate=5.0).fit(past, items)


def test_nothing_to_learn_from():
    disliked = events_of([(0, 1, 0, -1.0)], 3)
    with pytest.raises(DataError, match="no event of positive weight"):
        SGDMatrixFactorization().fit(disliked, items_of("abc"))
    with pytest.raises(DataError, match="found no rating"):
        SGDMatrixFactorization(form="explicit").fit(disliked, items_of("abc"))


def test_ratings_need_the_explicit_form():
    past, items, *_ = rated_shop()
    scorer = SGDMatrixFactorization(embedding_size=2, epochs=1).fit(past, items)
    with pytest.raises(DataError, match="needs form='explicit'"):
        scorer.fold_in_ratings(Ragged.from_lists([[1]]), np.ones(1, dtype=np.float32))


def test_not_fitted():
    with pytest.raises(NotFittedError, match="call fit or load first"):
        SGDMatrixFactorization().score(cases_of([[0]], [[0]]))


def test_first_vectors_are_small_and_only_the_fixed_column_is_one():
    vectors = initial_vectors(np.random.default_rng(0), 2000, 25, fixed_column=-2)
    np.testing.assert_array_equal(vectors[:, -2:], np.tile([1.0, 0.0], (2000, 1)))
    assert np.linalg.norm(vectors[:, :25], axis=1).mean() == pytest.approx(0.1, rel=0.05)
    assert expit(vectors[:, :25] @ vectors[0, :25]).std() < 0.01
