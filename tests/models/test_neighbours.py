"""User-kNN against a slow twin."""

import numpy as np
import pytest

from llm_rerank.models.collaborative.neighbours import UserKNN
from llm_rerank.types import DataError, NotFittedError
from tests.models.test_item_item import random_events
from tests.planted import cases_of, events_of, items_of
from tests.scorer_suite import check_scorer


def test_suite(tmp_path):
    check_scorer(UserKNN, tmp_path, quality_floor=0.85)


def slow_scores(past, history, n_neighbours, decay, exponent):
    """Scores of one history (one event a visit) by loops over users."""
    taken = np.zeros((past.n_users, past.n_items))
    for user, item, weight in zip(past.users, past.items, past.weights, strict=True):
        taken[user, item] = max(taken[user, item], weight)
    taken = taken[taken.any(axis=1)]
    n_takers = (taken > 0).sum(axis=0)
    rarity = np.where(n_takers > 0, np.log((1 + len(taken)) / np.maximum(n_takers, 1)), 0)
    own = np.zeros(past.n_items)
    for age, item in enumerate(reversed(history)):
        own[item] = max(own[item], np.exp(-decay * age))
    own = own * rarity
    cosines = [row * rarity @ own / np.linalg.norm(row * rarity) / np.linalg.norm(own) for row in taken]
    nearest = np.argsort(-np.array(cosines), kind="stable")[:n_neighbours]
    return sum(cosines[user] * taken[user] for user in nearest) * (n_takers + 3.0) ** -exponent


@pytest.mark.parametrize("n_neighbours", [1, 5, 100])
def test_scores_equal_a_slow_twin(n_neighbours):
    past = random_events(3, n_users=30, n_events=150)
    scorer = UserKNN(n_neighbours=n_neighbours, decay=0.3, candidate_exponent=0.2).fit(past, items_of("x" * 12))
    history = [4, 7, 1, 4]
    scores = scorer.score_catalogue(cases_of([history], [[]]))[0]
    np.testing.assert_allclose(scores, slow_scores(past, history, n_neighbours, 0.3, 0.2), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("n_between", [0, 50, 600])
def test_a_history_does_not_fade_away_behind_visits_of_unknown_items(n_between):
    past = random_events(3, n_users=30, n_events=150)
    scorer = UserKNN(n_neighbours=5, decay=0.3, candidate_exponent=0.2).fit(past, items_of("x" * 12))
    scores = scorer.score_catalogue(cases_of([[4, 7, 1, 4, *[-1] * n_between]], [[]]))[0]
    np.testing.assert_allclose(scores, slow_scores(past, [4, 7, 1, 4], 5, 0.3, 0.2), rtol=1e-5, atol=1e-7)


def test_an_item_that_all_users_took_is_still_known():
    past = events_of([(0, 0, 0), (1, 0, 0), (1, 1, 1)], 3)
    scores = UserKNN(candidate_exponent=0).fit(past, items_of("abc")).score(cases_of([[0]], [[1, 2]]))
    assert scores[0] > 0
    assert np.isnan(scores[1])


def test_saved_file_has_no_user_ids(tmp_path):
    past = random_events(4)
    UserKNN().fit(past, items_of("x" * 12)).save(tmp_path)
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not any(user.encode() in content for user in past.user_ids if len(user) > 2)


def test_errors():
    with pytest.raises(DataError, match="n_neighbours is 0"):
        UserKNN(n_neighbours=0)
    with pytest.raises(NotFittedError):
        UserKNN().score_catalogue(cases_of([[0]], [[]]))


def test_histories_exchanged_equal_a_fit():
    rng = np.random.default_rng(6)
    rows = [(rng.integers(30), rng.integers(12), time, rng.uniform(0.1, 2.0)) for time in range(200)]
    past = events_of(rows, 12, n_users=30)
    scorer = UserKNN(n_neighbours=5).fit(past, items_of("x" * 12))
    changed = np.isin(past.users, [2, 9, 17])
    kept = past.times > 60
    cases = cases_of([[4, 7], [1]], [np.arange(12)] * 2)
    for after in (past.take(past.users < 0), past.take(changed & kept)):
        revised = scorer.revised(past.take(changed), after)
        fitted = UserKNN(n_neighbours=5).fit(
            past.take(~changed | (kept if len(after) else changed & False)), items_of("x" * 12)
        )
        assert revised._histories.shape[0] == fitted._histories.shape[0]
        np.testing.assert_allclose(revised.score(cases), fitted.score(cases), rtol=1e-6)


def test_of_users_with_equal_histories_one_goes_at_a_time():
    past = events_of([(user, item, item) for user in range(3) for item in (0, 1)], 3)
    scorer = UserKNN().fit(past, items_of("abc"))
    nobody = past.take(past.users < 0)
    for left in (2, 1, 0):
        scorer = scorer.revised(past.take(past.users == left), nobody)
        assert scorer._histories.shape[0] == left
    with pytest.raises(DataError, match="user_knn has not counted"):
        scorer.revised(past.take(past.users == 0), nobody)
    with pytest.raises(DataError, match="user_knn has not counted"):  # two of one held
        UserKNN().fit(past.take(past.users == 0), items_of("abc")).revised(past.take(past.users < 2), nobody)
