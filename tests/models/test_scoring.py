"""History matrices, the best k, retrieval: by hand arithmetic and against slow twins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_rerank.models import scoring
from llm_rerank.models.scoring import (
    histories_of,
    history_matrix,
    interaction_matrix,
    retrieve,
    score_candidates,
    top_k,
    visit_numbers,
)
from llm_rerank.types import DataError, Ragged
from tests.planted import cases_of, events_of


def test_age_counts_visits_back_from_the_newest():
    # visits at times 5, 8, 8, 30: ages 2, 1, 1, 0
    cases = cases_of([[0, 1, 2, 3]], [[]], times=[[5, 8, 8, 30]])
    entries = history_matrix(cases, 4, decay=0.5).toarray()[0]
    np.testing.assert_allclose(entries, np.exp([-1.0, -0.5, -0.5, 0.0]), rtol=1e-6)


def test_weights_multiply_and_the_strongest_repeat_stands():
    cases = cases_of([[0, 1, 0]], [[]])
    weighty = cases.__class__(**{**vars(cases), "history_weights": np.array([3.0, 1.0, 1.0], dtype=np.float32)})
    # item 0: max(3 e^-1, 1 e^0) = 1.104; with decay 2: max(3 e^-4, 1) = 1
    assert history_matrix(weighty, 2, decay=0.5)[0, 0] == pytest.approx(3 * np.exp(-1.0))
    assert history_matrix(weighty, 2, decay=2.0)[0, 0] == pytest.approx(1.0)


def test_dislikes_are_left_out_or_kept_but_their_visits_count():
    cases = cases_of([[0, 1, 0]], [[]])
    mixed = cases.__class__(**{**vars(cases), "history_weights": np.array([1.0, 1.0, -2.0], dtype=np.float32)})
    np.testing.assert_allclose(history_matrix(mixed, 2, decay=0.1).toarray(), np.exp([[-0.2, -0.1]]), rtol=1e-6)
    everything = history_matrix(mixed, 2, decay=0.1, positive_only=False).toarray()
    np.testing.assert_allclose(everything, [[-2.0, np.exp(-0.1)]], rtol=1e-6)


def test_items_outside_the_catalogue_are_left_out_but_their_visits_count():
    cases = cases_of([[0, 9, -1]], [[]])
    np.testing.assert_allclose(history_matrix(cases, 2, decay=0.1).toarray(), [[np.exp(-0.2), 0]], rtol=1e-6)


def test_negative_decay_is_refused():
    with pytest.raises(DataError, match="decay is -0.1"):
        history_matrix(cases_of([[0]], [[]]), 1, decay=-0.1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=8), min_size=1, max_size=6))
def test_history_matrix_equals_its_slow_twin(rows):
    rows = [sorted(row, key=lambda event: event[1]) for row in rows]
    items, times = ([[event[part] for event in row] for row in rows] for part in (0, 1))
    cases = cases_of(items, [[]] * len(rows), times=times)
    expected = np.zeros((len(rows), 6))
    for row, events in enumerate(rows):
        visits = sorted({time for _, time in events})
        for item, time in events:
            age = len(visits) - 1 - visits.index(time)
            expected[row, item] = max(expected[row, item], np.exp(-0.3 * age))
    matrix = history_matrix(cases, 6, decay=0.3)
    np.testing.assert_allclose(matrix.toarray(), expected, rtol=1e-6)
    assert matrix.has_canonical_format
    assert matrix.dtype == np.float32


def test_visit_numbers_skip_empty_rows():
    history = Ragged.from_lists([[], [4, 5, 6], [], [7], []])
    assert visit_numbers(history, np.array([3, 3, 9, 3])).tolist() == [0, 0, 1, 0]


def test_interaction_matrix_reads_users_as_histories():
    past = events_of([(1, 0, 4), (0, 2, 1), (1, 2, 7), (0, -1, 3), (1, 1, 9, -1.0)], 3)
    assert interaction_matrix(past).toarray().tolist() == [[0, 0, 1], [1, 0, 1]]
    history, weights, times = histories_of(past)
    assert [row.tolist() for row in (history[0], history[1])] == [[2], [0, 2, 1]]
    assert weights.tolist() == [1, 1, 1, -1]
    assert times.tolist() == [1, 4, 7, 9]


def test_top_k_by_hand():
    scores = np.array([[1, 3, 3, np.nan, 2], [np.nan] * 5, [-np.inf, 0, 0, 0, 0]], dtype=np.float32)
    best = top_k(scores, 2)
    assert [best[row].tolist() for row in range(3)] == [[1, 2], [], [1, 2]]
    best = top_k(scores, 9, exclude=Ragged.from_lists([[1, -1, 77], [0], [2]]))
    assert [best[row].tolist() for row in range(3)] == [[2, 4, 0], [], [1, 3, 4]]
    assert np.isnan(scores[0, 3]) and scores[0, 1] == 3, "the scores given must stay as they are"


def test_top_k_refuses_zero():
    with pytest.raises(DataError, match="k is 0"):
        top_k(np.zeros((1, 1), dtype=np.float32), 0)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_top_k_equals_a_stable_sort(seed, k):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (5, 9)).astype(np.float32)  # few values: many ties
    scores[rng.random((5, 9)) < 0.2] = np.nan
    best = top_k(scores, k)
    for row in range(5):
        expected = [code for code in np.argsort(-scores[row], kind="stable") if not np.isnan(scores[row, code])][:k]
        assert best[row].tolist() == expected


def test_what_can_be_read_does_not_fade_behind_what_cannot():
    # readable: 0 (age 402, weight .5), 1 (age 401, weight 1), 3 (disliked, age 400): e^-80.4, e^-80.2 and e^-80 alike
    history = [0, 1, 3, *[2] * 200, *[-1] * 200]
    cases = cases_of([history, [2, 4]], [[], []], times=[np.arange(403), np.arange(2)])
    cases.history_weights[:3] = [0.5, 1, -0.25]
    readable = np.array([True, True, False, True])
    rows = history_matrix(cases, 4, decay=0.2, positive_only=False, readable=readable).toarray()
    np.testing.assert_allclose(rows, [[0.5 * np.exp(-0.2), 1, 0, -0.25 * np.exp(0.2)], [0] * 4], rtol=1e-6)
    liked = history_matrix(cases, 4, decay=0.2, readable=readable).toarray()
    np.testing.assert_allclose(liked, [[0.5 * np.exp(-0.2), 1, 0, 0], [0] * 4], rtol=1e-6)
    far = history_matrix(cases, 4, decay=1, readable=readable)  # e^-401 is nothing in float32
    np.testing.assert_allclose(far.toarray()[0, :2], [0.5 * np.exp(-1), 1], rtol=1e-6)
    nothing = cases_of([[0]], [[]])
    nothing.history_weights[:] = 0
    assert history_matrix(nothing, 4, positive_only=False, readable=readable).toarray().tolist() == [[0] * 4]


class _Sums:
    """Score of an item = its code × the sum of the history."""

    def score_catalogue(self, cases):
        sums = history_matrix(cases, 7).toarray() @ np.arange(7, dtype=np.float32)
        return np.outer(sums, np.arange(7, dtype=np.float32)).astype(np.float32)


@pytest.mark.parametrize("cells", [1, 14, 2**25])
def test_blocks_change_nothing(cells, monkeypatch):
    monkeypatch.setattr(scoring, "FEW_CASES", 0)
    monkeypatch.setattr(scoring, "BLOCK_CELLS", cells)
    cases = cases_of([[1, 2], [], [6]], [[6, -1, 0, 7], [3], []])
    scores = score_candidates(_Sums(), cases)
    np.testing.assert_array_equal(scores, np.array([18, np.nan, 0, np.nan, 0], dtype=np.float32))
    best = retrieve(_Sums(), cases, 2, exclude=Ragged.from_lists([[6], [], [5, 4]]))
    assert [best[row].tolist() for row in range(3)] == [[5, 4], [0, 1], [6, 3]]


@pytest.mark.parametrize(("n_items", "most"), [(7, 1024), (40_000, 838), (2_000_000, 16)])
def test_no_table_is_larger_than_a_block(n_items, most):
    """838 = 2^25 // 40,000; of two million items 16 cases fill a block, but 32 are never cut."""
    seen = []

    class Wide:
        def score_catalogue(self, cases):
            seen.append(len(cases))
            return np.broadcast_to(np.float32(1), (len(cases), n_items))

    for n_cases, sizes in ((32, [32]), (33, None), (1100, None)):
        cases = cases_of([[0]] * n_cases, [[n_items - 1]] * n_cases)
        seen.clear()
        assert score_candidates(Wide(), cases).tolist() == [1] * n_cases
        if sizes is not None:
            assert seen == sizes
            continue
        assert (seen[0], sum(seen)) == (1, n_cases + 1)
        assert max(seen) == min(n_cases, most)


def test_no_case_at_all():
    nobody = cases_of([], [])
    assert history_matrix(nobody, 3).shape == (0, 3)
    assert score_candidates(_Sums(), nobody).shape == (0,)
    assert len(retrieve(_Sums(), nobody, 3)) == 0
