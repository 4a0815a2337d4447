"""Metrics against hand arithmetic, against ir-measures on random runs, and their properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_rerank import metrics
from llm_rerank.types import DataError, Ragged

# three cases: hits at ranks 2 and 3 of 3 targets; no hit; the single target at rank 1
RANKED = Ragged.from_lists([[5, 1, 2, 9], [4, 6, 8, 7], [3]])
TARGETS = Ragged.from_lists([[1, 2, 3], [0], [3]])


def test_hit_matrix_by_hand() -> None:
    hits = metrics.hit_matrix(RANKED, TARGETS, 3)
    assert hits.tolist() == [[False, True, True], [False, False, False], [True, False, False]]


def test_hit_matrix_counts_a_repeated_item_once_and_an_unknown_code_never() -> None:
    ranked = Ragged.from_lists([[7, 7, -1], [-1, 2]])
    targets = Ragged.from_lists([[7], [-1, 2]])
    assert metrics.hit_matrix(ranked, targets, 3).tolist() == [[True, False, False], [False, True, False]]
    # an unknown code of the next row must not stand for the greatest code of this one
    assert not metrics.hit_matrix(Ragged.from_lists([[7], []]), Ragged.from_lists([[3], [-1]]), 1).any()
    assert not metrics.hit_matrix(Ragged.from_lists([[5], [-1]]), Ragged.from_lists([[7], [3]]), 1).any()


def test_hit_matrix_keeps_rows_apart() -> None:
    # the item of row 0 is the target of row 1 and the other way round: no hit
    assert not metrics.hit_matrix(Ragged.from_lists([[1], [2]]), Ragged.from_lists([[2], [1]]), 1).any()


def test_hit_matrix_of_nothing() -> None:
    assert metrics.hit_matrix(Ragged.empty(2), Ragged.empty(2), 4).tolist() == [[False] * 4] * 2
    assert metrics.hit_matrix(Ragged.empty(0), Ragged.empty(0), 4).shape == (0, 4)


def test_hit_matrix_names_the_rule_it_finds_broken() -> None:
    with pytest.raises(DataError, match="ranked has 3 rows and targets 2"):
        metrics.hit_matrix(RANKED, Ragged.from_lists([[1], [2]]), 3)
    with pytest.raises(DataError, match="k is 0; it must be at least 1"):
        metrics.hit_matrix(RANKED, TARGETS, 0)
    with pytest.raises(DataError, match="k is 5 and hits has 3 ranks"):
        metrics.ndcg_at_k(metrics.hit_matrix(RANKED, TARGETS, 3), TARGETS.lengths, 5)


def test_ranking_metrics_by_hand() -> None:
    hits, n = metrics.hit_matrix(RANKED, TARGETS, 3), TARGETS.lengths
    # case 0: DCG = 1/log2(3) + 1/log2(4) = 0.630930 + 0.5; ideal = 1 + 0.630930 + 0.5 = 2.130930; 1.130930 / 2.130930
    assert metrics.ndcg_at_k(hits, n, 3) == pytest.approx([0.530721, 0.0, 1.0], abs=1e-6)
    assert metrics.hit_rate_at_k(hits, n, 3).tolist() == [1.0, 0.0, 1.0]
    assert metrics.hit_rate_at_k(hits, n, 1).tolist() == [0.0, 0.0, 1.0]
    assert metrics.precision_at_k(hits, n, 3) == pytest.approx([2 / 3, 0.0, 1 / 3])
    assert metrics.recall_at_k(hits, n, 3) == pytest.approx([2 / 3, 0.0, 1.0])
    # case 0: (precision at rank 2 = 1/2, at rank 3 = 2/3) / min(3, 3 targets) = (7/6) / 3
    assert metrics.average_precision_at_k(hits, n, 3) == pytest.approx([7 / 18, 0.0, 1.0])
    # at k = 2 only rank 2 counts, and the divisor is min(2, 3) = 2: (1/2) / 2
    assert metrics.average_precision_at_k(hits, n, 2) == pytest.approx([1 / 4, 0.0, 1.0])
    assert metrics.reciprocal_rank(hits, n) == pytest.approx([1 / 2, 0.0, 1.0])


def test_a_case_without_targets_is_unknown_not_zero() -> None:
    hits, n = metrics.hit_matrix(Ragged.from_lists([[1, 2]]), Ragged.empty(1), 2), np.array([0])
    for metric in (
        metrics.ndcg_at_k,
        metrics.hit_rate_at_k,
        metrics.precision_at_k,
        metrics.recall_at_k,
        metrics.average_precision_at_k,
    ):
        assert np.isnan(metric(hits, n, 2)).all(), metric.__name__
    assert np.isnan(metrics.reciprocal_rank(hits, n)).all()


def test_coverage_by_hand() -> None:
    # first 2 of each list: {5, 1}, {4, 6}, {3}: 5 of 20 items; -1 is no item
    assert metrics.coverage_at_k(RANKED, 20, 2) == 5 / 20
    assert metrics.coverage_at_k(Ragged.from_lists([[-1, 3], [3]]), 4, 2) == 1 / 4


def random_run(seed: int, n_cases: int = 60, n_items: int = 50) -> tuple[Ragged, Ragged]:
    rng = np.random.default_rng(seed)
    ranked = [rng.permutation(n_items)[: rng.integers(0, 30)] for _ in range(n_cases)]
    targets = [rng.permutation(n_items)[: rng.integers(1, 20)] for _ in range(n_cases)]
    return Ragged.from_lists(ranked), Ragged.from_lists(targets)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 5, 10, 30])
def test_agrees_with_ir_measures_on_random_runs(seed: int, k: int) -> None:
    import ir_measures
    from ir_measures import AP, RR, P, R, Success, nDCG

    ranked, targets = random_run(seed)
    qrels = [ir_measures.Qrel(str(i), str(code), 1) for i in range(len(targets)) for code in targets[i]]
    run = [
        ir_measures.ScoredDoc(str(i), str(code), -float(rank))
        for i in range(len(ranked))
        for rank, code in enumerate(ranked[i])
    ]
    hits, n = metrics.hit_matrix(ranked, targets, k), targets.lengths
    # trec_eval's AP divides by n_targets, ours by min(k, n_targets)
    average_precision = metrics.average_precision_at_k(hits, n, k) * np.minimum(k, n) / n
    ours = {
        nDCG @ k: metrics.ndcg_at_k(hits, n, k),
        AP @ k: average_precision,
        P @ k: metrics.precision_at_k(hits, n, k),
        R @ k: metrics.recall_at_k(hits, n, k),
        Success @ k: metrics.hit_rate_at_k(hits, n, k),
        RR @ k: metrics.reciprocal_rank(hits, n),
    }
    for measure, values in ours.items():
        theirs = {result.query_id: result.value for result in ir_measures.iter_calc([measure], qrels, run)}
        expected = [theirs.get(str(i), 0.0) for i in range(len(targets))]
        np.testing.assert_allclose(values, expected, atol=1e-9, rtol=0, err_msg=str(measure))


@st.composite
def hits_and_counts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    k = draw(st.integers(1, 12))
    row = st.lists(st.booleans(), min_size=k, max_size=k)
    hits = np.array(draw(st.lists(row, min_size=1, max_size=6)), dtype=bool)
    extra = draw(st.lists(st.integers(0, 5), min_size=len(hits), max_size=len(hits)))
    return hits, np.maximum(hits.sum(axis=1) + np.array(extra), 1), k


@given(hits_and_counts())
@settings(max_examples=150, deadline=None)
def test_every_metric_lies_between_0_and_1_and_a_list_of_targets_scores_1(case) -> None:  # noqa: ANN001
    hits, n, k = case
    for metric in (metrics.ndcg_at_k, metrics.average_precision_at_k, metrics.recall_at_k, metrics.precision_at_k):
        values = metric(hits, n, k)
        assert ((values >= 0.0) & (values <= 1.0 + 1e-12)).all()
    full = np.arange(k)[None, :] < np.minimum(n, k)[:, None]
    assert metrics.ndcg_at_k(full, n, k) == pytest.approx(1.0)
    assert metrics.average_precision_at_k(full, n, k) == pytest.approx(1.0)


@given(hits_and_counts(), st.integers(0, 10))
@settings(max_examples=150, deadline=None)
def test_moving_a_hit_up_never_lowers_a_metric(case, place: int) -> None:  # noqa: ANN001
    hits, n, k = case
    if k == 1:
        return
    place %= k - 1
    better = hits.copy()
    swap = ~hits[:, place] & hits[:, place + 1]
    better[swap, place], better[swap, place + 1] = True, False
    for metric in (metrics.ndcg_at_k, metrics.average_precision_at_k):
        assert (metric(better, n, k)[swap] > metric(hits, n, k)[swap]).all()
    assert (metrics.reciprocal_rank(better, n) >= metrics.reciprocal_rank(hits, n)).all()
    np.testing.assert_array_equal(metrics.recall_at_k(better, n, k), metrics.recall_at_k(hits, n, k))


def test_accuracy_stands_beside_its_base_rate() -> None:
    # 1 target in 100, everything rejected: 99 % accurate, and no better than the base rate
    positive = np.zeros(100, dtype=bool)
    positive[3] = True
    nothing = metrics.classification(np.zeros(100, dtype=bool), positive)
    assert (nothing.accuracy, nothing.base_rate, nothing.recall) == (0.99, 0.99, 0.0)
    assert np.isnan(nothing.precision)
    # keeping the target and three others: 97 right, precision 1/4
    kept = np.zeros(100, dtype=bool)
    kept[:4] = True
    some = metrics.classification(kept, positive)
    assert (some.accuracy, some.precision, some.recall, some.n) == (0.97, 0.25, 1.0, 100)
    assert metrics.classification(kept, ~positive).base_rate == 0.99


def test_intra_list_distance_by_hand() -> None:
    vectors = np.array([[2, 0], [0, 3], [-1, 0], [0, 0], [np.nan, 1], [5, 0]], dtype=np.float32)
    lists = Ragged.from_lists([[0, 1, 2], [0, 5, 1], [0, 3, 4, 2, -1], [0, 3], [], [0, 5]])
    # right angles 1, opposite 2, parallel 0: (1 + 2 + 1)/3; (0 + 1 + 1)/3; 0 and 2 alone have a direction: 2
    expected = [4 / 3, 2 / 3, 2, np.nan, np.nan, 0]
    np.testing.assert_allclose(metrics.intra_list_distance(lists, vectors, 10), expected, atol=1e-6)
    # the first two only
    expected = [1, 0, np.nan, np.nan, np.nan, 0]
    np.testing.assert_allclose(metrics.intra_list_distance(lists, vectors, 2), expected, atol=1e-6)


def test_intra_list_distance_leaves_out_codes_that_have_no_vector() -> None:
    lists = Ragged.from_lists([[0, 9, 1], [2, -1, 0]])
    right_angle = np.array([[2, 0], [0, 3]], dtype=np.float32)
    np.testing.assert_allclose(metrics.intra_list_distance(lists, right_angle, 10), [1, np.nan])
    np.testing.assert_array_equal(metrics.intra_list_distance(lists, right_angle[:0], 10), [np.nan, np.nan])


def test_intra_list_distance_is_the_mean_over_pairs() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 6)).astype(np.float32)
    lists = Ragged.from_lists([rng.choice(50, 12, replace=False) for _ in range(20)])
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float64)
    expected = [
        np.mean([1 - unit[a] @ unit[b] for place, a in enumerate(row) for b in row[:place]])
        for row in (lists[i][:8] for i in range(20))
    ]
    np.testing.assert_allclose(metrics.intra_list_distance(lists, vectors, 8), expected, atol=1e-6)


def test_long_tail_share_by_hand() -> None:
    counts = np.array(
        [1, 9, 0, 7, 2, 2, 2, 1, 0, 1, 0]
    )  # 11 items: a head of ⌈2.2⌉ = 3: items 1, 3 and the first of the 2s
    lists = Ragged.from_lists([[1, 3, 4, 5], [0, 2], [], [5, 1]])
    np.testing.assert_allclose(metrics.long_tail_share_at_k(lists, counts, 4), [0.25, 1, np.nan, 0.5])
    np.testing.assert_allclose(metrics.long_tail_share_at_k(lists, counts, 1), [0, 1, np.nan, 1])
    np.testing.assert_allclose(metrics.long_tail_share_at_k(lists, counts, 4, head_share=0.05), [0.75, 1, np.nan, 0.5])
    with pytest.raises(DataError, match="head_share is 20; it must lie in"):
        metrics.long_tail_share_at_k(lists, counts, 4, head_share=20)
