"""Decayed co-occurrence, by hand and against a slow twin."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from llm_rerank.models.collaborative import item_item
from llm_rerank.models.collaborative.item_item import ItemKNN, co_occurrence, distinct_events, keep_largest
from llm_rerank.types import DataError, NotFittedError, Ragged
from tests.planted import cases_of, events_of, items_of
from tests.scorer_suite import check_scorer


def test_suite(tmp_path):
    check_scorer(ItemKNN, tmp_path, quality_floor=0.9)


def random_events(seed=0, n_users=25, n_items=12, n_events=220):
    """Events with repeats, baskets (shared times), weights and a few dislikes."""
    rng = np.random.default_rng(seed)
    return events_of(
        [
            (rng.integers(n_users), rng.integers(n_items), rng.integers(8), rng.choice([1.0, 0.5, 0.2, -1.0]))
            for _ in range(n_events)
        ],
        n_items,
        n_users=n_users,
    )


def slow_pairs(past, decay):
    """C and support by three nested loops."""
    counts, support = np.zeros((past.n_items, past.n_items)), np.zeros(past.n_items)
    for user in range(past.n_users):
        mine = np.flatnonzero(past.users == user)
        visits = sorted(set(past.times[mine].tolist()))
        best = {}
        for row in mine:
            if past.weights[row] > 0:
                item, visit = past.items[row], visits.index(past.times[row])
                weight, newest = best.get(item, (0.0, -1))
                best[item] = (max(weight, past.weights[row]), max(newest, visit))
        for one, (weight, visit) in best.items():
            support[one] += weight
            for other, (other_weight, other_visit) in best.items():
                if one != other:
                    counts[one, other] += weight * other_weight * np.exp(-decay * abs(visit - other_visit))
    return counts, support


@pytest.mark.parametrize("pairs_a_block", [1, 7, 10**6])
def test_co_occurrence_equals_its_slow_twin(pairs_a_block, monkeypatch):
    monkeypatch.setattr(item_item, "PAIRS_A_BLOCK", pairs_a_block)
    past = random_events()
    counts, support = co_occurrence(past, decay=0.3)
    slow_counts, slow_support = slow_pairs(past, 0.3)
    np.testing.assert_allclose(counts.toarray(), slow_counts, rtol=1e-5)
    np.testing.assert_allclose(support, slow_support, rtol=1e-6)


def test_one_score_by_hand():
    # user 0: items 0, 1 in one basket, then 2 one visit later; user 1: items 0, 2 in one basket
    past = events_of([(0, 0, 5), (0, 1, 5), (0, 2, 9), (1, 0, 1), (1, 2, 1)], 4)
    scorer = ItemKNN(decay=0.2, pair_decay=0.5, history_exponent=0.6, candidate_exponent=0.1)
    scorer.fit(past, items_of("abcd"))
    scores = scorer.score(cases_of([[0, 1]], [[2, 3, 1]]))  # two visits: item 0 has age 1, item 1 age 0
    # C_02 = e^-.5 + 1, C_12 = e^-.5; n_0 = n_2 = 2, n_1 = 1; C_01 = 1
    to_2 = (np.exp(-0.2) * (np.exp(-0.5) + 1) / 5**0.6 + np.exp(-0.5) / 4**0.6) / 5**0.1
    to_1 = np.exp(-0.2) * 1 / 5**0.6 / 4**0.1
    np.testing.assert_allclose(scores, [to_2, np.nan, to_1], rtol=1e-6)


def test_distinct_events_keep_greatest_weight_and_newest_visit():
    history = Ragged.from_lists([[3, 1, 3], [], [2, 9, -1]])
    weights = np.array([1.0, 0.5, 0.2, -1.0, 1.0, 1.0], dtype=np.float32)
    items, merged, visits = distinct_events(history, weights, np.array([0, 4, 6, 0, 1, 2]), 5)
    assert [items[row].tolist() for row in range(3)] == [[1, 3], [], []]
    assert merged.tolist() == [0.5, 1.0]
    assert visits.tolist() == [1, 2]


def test_keep_largest_breaks_ties_by_column():
    matrix = csr_matrix(np.array([[5, 1, 5, 5], [0, 2, 0, 0], [0, 0, 0, 0]], dtype=np.float32))
    assert keep_largest(matrix, 2).toarray().tolist() == [[5, 0, 5, 0], [0, 2, 0, 0], [0, 0, 0, 0]]


def test_pruning_keeps_the_strongest_neighbours():
    past = random_events(1)
    whole = ItemKNN(decay=0.0).fit(past, items_of("x" * 12)).score_catalogue(cases_of([[4]], [[]]))[0]
    pruned = ItemKNN(decay=0.0, n_neighbours=3).fit(past, items_of("x" * 12)).score_catalogue(cases_of([[4]], [[]]))[0]
    strongest = np.argsort(-whole)[:3]
    np.testing.assert_allclose(pruned[strongest], whole[strongest])
    assert np.count_nonzero(pruned) == 3


def test_a_catalogue_too_large_for_dense_matrices():
    n_items, n_users = 60_000, 3_000
    rng = np.random.default_rng(0)
    rows = [(u, i, t) for u in range(n_users) for t, i in enumerate(rng.integers(0, n_items, 8))]
    # items 0 and 1 were bought together by everyone of the first 50 users
    rows += [(u, i, 9) for u in range(50) for i in (0, 1)]
    scorer = ItemKNN().fit(events_of(rows, n_items), items_of(["x"] * n_items))
    scores = scorer.score_catalogue(cases_of([[0]], [[]]))[0]
    assert np.nanargmax(scores) == 1
    assert np.diff(scorer._weights.indptr).max() <= 200
    assert np.diff(scorer._weights.indptr)[0] == 200


def test_only_unseen_items_in_the_history_is_like_no_history():
    past = events_of([(0, 0, 0), (0, 1, 1)], 3)
    assert np.isnan(ItemKNN().fit(past, items_of("abc")).score(cases_of([[2]], [[0, 1, 2]]))).all()


def test_errors():
    with pytest.raises(DataError, match="decay is -1"):
        ItemKNN(decay=-1)
    with pytest.raises(DataError, match="n_neighbours is 0"):
        ItemKNN(n_neighbours=0)
    with pytest.raises(NotFittedError):
        ItemKNN().score_catalogue(cases_of([[0]], [[]]))
