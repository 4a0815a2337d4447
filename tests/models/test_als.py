import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from implicit.cpu.als import AlternatingLeastSquares

from llm_rerank.models.collaborative.als import ALS, frequency_classes
from llm_rerank.models.scoring import interaction_matrix
from llm_rerank.types import DataError, NotFittedError
from tests.planted import cases_of, events_of, items_of
from tests.scorer_suite import check_scorer

N_ITEMS = 24


def random_shop(seed=0, n_users=40):
    """Two kinds of users on two halves of the catalogue, of very different activity; item 23 is never taken."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(n_users):
        half = (user % 2) * 12
        popularity = 1 / np.arange(1, 12)
        for time, item in enumerate(
            half + rng.choice(11, rng.integers(1, 10), replace=False, p=popularity / popularity.sum())
        ):
            rows.append((user, int(item), time))
    return events_of(rows, N_ITEMS), items_of("x" * N_ITEMS)


def histories_in(past):
    return [list(past.items[past.users == user]) for user in range(past.n_users)]


def test_passes_the_suite(tmp_path):
    check_scorer(ALS, tmp_path, quality_floor=0.9)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_the_fit_is_a_minimum_of_the_objective_in_the_docstring(exponent):
    """At a minimum the gradient in every item vector is 0, written out here densely with each item's own λ·s."""
    past, items = random_shop()
    scorer = ALS(
        embedding_size=4,
        confidence=5.0,
        regularization=2.0,
        frequency_exponent=exponent,
        epochs=300,
        decay=0.0,
        n_threads=1,
    ).fit(past, items, seed=0)
    histories = histories_in(past)
    users = scorer.fold_in(cases_of(histories, [[]] * len(histories))).astype(float)  # exact half-step: gradient 0
    liked = interaction_matrix(past).toarray()[:, :-1] > 0
    liked = liked[:, liked.any(axis=0)]
    vectors = scorer._item_factors[~np.isnan(scorer._item_factors[:, 0])].astype(float)
    confidence = np.where(liked, 5.0, 1.0)
    counts = liked.sum(axis=0)
    scale = (frequency_classes(counts) / counts.mean()) ** exponent
    pull = (confidence * (users @ vectors.T - liked)).T @ users
    penalty = 2.0 * scale[:, None] * vectors
    assert np.abs(vectors).max() > 0.1  # not the trivial minimum at 0
    np.testing.assert_allclose(pull, -penalty, atol=2e-3 * np.abs(penalty).max())


@pytest.mark.parametrize(("exponent", "stays"), [(0.0, True), (1.0, False)])
def test_without_scaling_the_fit_is_where_implicit_itself_comes_to_rest(exponent, stays):
    past, items = random_shop()
    scorer = ALS(
        embedding_size=3,
        confidence=5.0,
        regularization=2.0,
        frequency_exponent=exponent,
        epochs=300,
        decay=0.0,
        n_threads=1,
    ).fit(past, items, seed=0)
    histories = histories_in(past)
    cases = cases_of(histories, [[]] * len(histories))
    known = ~np.isnan(scorer._item_factors[:, 0])
    plain = AlternatingLeastSquares(factors=3, regularization=2.0, alpha=5.0, iterations=50, num_threads=1)
    plain.user_factors = scorer.fold_in(cases)
    plain.item_factors = scorer._item_factors[known].copy()
    plain.fit(interaction_matrix(past)[:, np.flatnonzero(known)], show_progress=False)
    moved = np.abs(plain.user_factors @ plain.item_factors.T - scorer.score_catalogue(cases)[:, known]).max()
    assert (moved < 5e-3) == stays


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_fold_in_is_the_closed_form(exponent):
    past, items = random_shop()
    scorer = ALS(
        embedding_size=5, confidence=7.0, regularization=3.0, frequency_exponent=exponent, epochs=5, decay=0.4
    ).fit(past, items, seed=1)
    vectors = np.nan_to_num(scorer._item_factors.astype(float))
    # item 2 one visit ago, item 5 two visits ago; 23 and 99 are unknown, but 23's visit counts for the ages
    x = scorer.fold_in(cases_of([[5, 2, 23, 99]], [[]], times=[[0, 1, 2, 2]]))[0]
    weights = np.ones(N_ITEMS)
    weights[2], weights[5] = 7.0 * np.exp(-0.4), 7.0 * np.exp(-0.8)
    liked = np.isin(np.arange(N_ITEMS), [2, 5])
    mean_frequency = len(past) / past.n_users
    ridge = 3.0 * (frequency_classes(np.array([2]))[0] / mean_frequency) ** exponent
    expected = np.linalg.solve((vectors.T * weights) @ vectors + ridge * np.eye(5), vectors.T @ (weights * liked))
    np.testing.assert_allclose(x, expected, rtol=2e-4, atol=1e-5)


def test_an_event_faded_away_counts_for_nothing():
    past, items = random_shop()
    scorer = ALS(embedding_size=4, frequency_exponent=0.0, epochs=5, decay=40.0).fit(past, items)
    faded, alone = scorer.score_catalogue(cases_of([[1, 14], [14]], [[], []]))[:, :12]
    scorer.decay = 0.0
    fresh = scorer.score_catalogue(cases_of([[1, 14]], [[]]))[0, :12]
    # not quite equal: the faded item is neither liked nor counted among the unobserved
    np.testing.assert_allclose(faded, alone, atol=0.02)
    assert fresh[1] > alone[1] + 0.1


def test_weights_are_confidence():
    past, items = random_shop()
    settings = {"embedding_size": 4, "epochs": 5}
    heavy = ALS(confidence=30.0, **settings).fit(replace(past, weights=past.weights * np.float32(0.5)), items)
    light = ALS(confidence=15.0, **settings).fit(past, items)
    cases = cases_of([[1, 2]], [[]])
    np.testing.assert_allclose(
        heavy.score_catalogue(replace(cases, history_weights=cases.history_weights * np.float32(0.5))),
        light.score_catalogue(cases),
        atol=1e-6,
    )


def test_dislikes_are_left_out():
    past, items = random_shop()
    extra = events_of([(user, 23, 50, -1.0) for user in range(5)], N_ITEMS, n_users=past.n_users)
    joined = replace(
        past,
        **{
            name: np.concatenate([getattr(past, name), getattr(extra, name)])
            for name in (
                "users",
                "items",
                "times",
                "weights",
                "positive",
                "ratings",
                "quantities",
                "reviews",
                "queries",
            )
        },
    )
    scorer = ALS(embedding_size=4).fit(joined, items)
    scores = scorer.score_catalogue(cases_of([[1, 2], [1, 2, 23]], [[], []], times=[[0, 1], [0, 1, 1]]))
    assert np.isnan(scores[:, 23]).all()
    np.testing.assert_array_equal(scores[0, :23], scores[1, :23])


def test_threads_do_not_change_the_result():
    past, items = random_shop()
    cases = cases_of([[1, 2], [3]], [[], []])
    one, two = (ALS(embedding_size=8, n_threads=n).fit(past, items, seed=2).score_catalogue(cases) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_frequency_classes_round_on_a_logarithmic_scale():
    counts = np.arange(0, 50_000)
    classes = frequency_classes(counts)
    assert classes[0] == 0
    assert len(np.unique(classes[:11])) == 11
    assert np.all(np.diff(classes) >= 0)
    assert np.all(np.abs(np.log(classes[1:] / counts[1:])) <= 0.05 + 1e-12)
    assert len(np.unique(classes)) < 110


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"embedding_size": 0}, "embedding_size is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"confidence": 0.0}, "confidence is 0.0"),
        ({"regularization": -1.0}, "regularization is -1.0"),
        ({"decay": -0.1}, "decay is -0.1"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(DataError, match=named):
        ALS(**settings)


def test_nothing_to_learn_from():
    with pytest.raises(DataError, match="no event of positive weight"):
        ALS().fit(events_of([(0, 1, 0, -1.0)], 3), items_of("abc"))


def test_not_fitted():
    with pytest.raises(NotFittedError, match="call fit or load first"):
        ALS().score(cases_of([[0]], [[0]]))


def test_what_is_kept_for_folding_in_follows_the_factors():
    past, items = random_shop()
    other, _ = random_shop(seed=5)
    cases = cases_of([[1, 2], [14]], [[], []])
    scorer = ALS(embedding_size=4, epochs=3).fit(past, items)
    scorer.fold_in(cases)
    scorer.fit(other, items)
    np.testing.assert_array_equal(
        scorer.fold_in(cases), ALS(embedding_size=4, epochs=3).fit(other, items).fold_in(cases)
    )
    grown = scorer.grown(items_of("x" * (N_ITEMS + 2)), np.array([N_ITEMS, N_ITEMS + 1]))
    np.testing.assert_array_equal(grown.fold_in(cases), scorer.fold_in(cases))
    assert grown.score_catalogue(cases).shape == (2, N_ITEMS + 2)


def test_few_cases_fold_in_as_many_do():
    past, items = random_shop()
    scorer = ALS(embedding_size=4, epochs=3).fit(past, items)
    histories = [[item % 23, (item * 5) % 23] for item in range(100)]
    many = scorer.fold_in(cases_of(histories, [[]] * 100))
    for number in (0, 50, 99):
        few = scorer.fold_in(cases_of(histories[number : number + 1], [[]]))
        np.testing.assert_array_equal(few[0], many[number])


def test_folding_in_does_not_warn_of_threads():
    script = (
        "import warnings; warnings.simplefilter('error')\n"
        "from llm_rerank.models.collaborative.als import ALS\n"
        "ALS()._model(1.0)\n"
    )
    many = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    many.pop("OMP_NUM_THREADS", None)
    done = subprocess.run([sys.executable, "-c", script], env=many, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
