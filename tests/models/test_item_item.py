"""Decayed co-occurrence, by hand and against a slow twin."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from llm_rerank.models.collaborative import item_item
from llm_rerank.models.collaborative.item_item import (
    FEWEST_COPIES,
    ItemKNN,
    co_occurrence,
    distinct_events,
    keep_largest,
    summed_by_size,
)
from llm_rerank.types import DataError, NotFittedError, Ragged
from tests.planted import cases_of, events_of, items_of
from tests.scorer_suite import check_scorer, joined


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


def test_neither_blocks_nor_the_order_of_addition_change_a_bit(monkeypatch):
    past = random_events(3, n_users=60, n_items=40, n_events=2000)
    whole, _ = co_occurrence(past, decay=0.3)
    worth = np.random.default_rng(0).integers(0, 5, whole.nnz)  # few values: many ties
    rows = whole.toarray()
    kept = keep_largest(whole, 7, worth=worth)
    for row in range(40):  # by a stable sort of the row alone
        own = slice(*whole.indptr[row : row + 2])
        columns = np.sort(whole.indices[own][np.argsort(-worth[own], kind="stable")[:7]])
        assert kept.indices[slice(*kept.indptr[row : row + 2])].tolist() == columns.tolist()
        assert kept[row].toarray()[0][columns].tolist() == rows[row][columns].tolist()
    monkeypatch.setattr(item_item, "PAIRS_A_BLOCK", 20)  # some hundreds of parts
    monkeypatch.setattr(item_item, "ENTRIES_A_BLOCK", 90)  # two or three rows at a time
    parts, _ = co_occurrence(past, decay=0.3)
    again = keep_largest(parts, 7, worth=worth)
    for one, other in ((parts, whole), (again, kept)):
        np.testing.assert_array_equal(one.indptr, other.indptr)
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_array_equal(one.data, other.data)
    for cells in (1, 10**6):  # a row longer than a block is a block
        monkeypatch.setattr(item_item, "ENTRIES_A_BLOCK", cells)
        assert (keep_largest(whole, 7, worth=worth) != kept).nnz == 0


def test_each_entry_is_copied_as_often_as_a_binary_counter_carries():
    one = csr_matrix(np.eye(256))
    sums, n_copied = (csr_matrix((256, 256)),), 0
    for row in range(256):  # parts of one entry each, all in different places
        before, sums = sums, summed_by_size((*sums, one[row].T @ one[row]), FEWEST_COPIES)
        n_copied += sum(part.nnz for part in sums if all(part is not old for old in before))
    assert sum(part.nnz for part in sums) == 256
    assert n_copied <= 256 * 9  # log2(256) times, and once new; added to one sum: 256 × 257 / 2 = 32,896


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
    assert np.diff(scorer._parts[0].indptr).max() <= 200
    assert np.diff(scorer._parts[0].indptr)[0] == 200


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


event_rows = st.tuples(
    st.integers(0, 3),  # user
    st.integers(-1, 5),  # item, -1 a search
    st.integers(0, 4),  # time: baskets and ties
    st.sampled_from([1.0, 0.5, 0.2, 0.1, 3.7, -1.0]),
)


def whole_counts(scorer):
    return sum(part.toarray() for part in scorer._parts)


@settings(max_examples=40, deadline=None)
@given(st.lists(event_rows, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_one_event_at_a_time_equals_a_recount_bit_by_bit(rows, random):
    """Put in and taken out again one by one, in any order: the counts of a fit, without a rounding error."""
    items = items_of("x" * 6)
    stream = [events_of([row], 6, n_users=4) for row in rows]
    held: list = []
    scorer = ItemKNN(pair_decay=0.3).fit(events_of([], 6, n_users=4), items)
    steps = [(event, True) for event in stream] + [(event, False) for event in random.sample(stream, len(stream))]
    for event, comes in steps:
        user = event.users[0]
        before = [held_one for held_one in held if held_one.users[0] == user]
        held = [*held, event] if comes else [held_one for held_one in held if held_one is not event]
        after = [held_one for held_one in held if held_one.users[0] == user]
        nothing = event.take(np.empty(0, dtype=np.int64))
        scorer = scorer.revised(joined(nothing, *before), joined(nothing, *after))
        everything = joined(nothing, *held)
        fitted = ItemKNN(pair_decay=0.3).fit(everything, items)
        np.testing.assert_array_equal(whole_counts(scorer), fitted._parts[0].toarray())
        np.testing.assert_array_equal(scorer._support, fitted._support)
        slow_counts, slow_support = slow_pairs(everything.take(everything.items >= 0), 0.3)  # searches are no visits
        np.testing.assert_allclose(whole_counts(scorer), slow_counts, atol=1e-7)
        np.testing.assert_allclose(scorer._support, slow_support, atol=1e-7)


@pytest.mark.parametrize("ratio", [0, 3, 16, 10**9])
def test_counts_do_not_depend_on_when_they_are_added_up(ratio, monkeypatch):
    monkeypatch.setattr(item_item, "SIZE_RATIO", ratio)
    past, items = random_events(2, n_users=30, n_items=40, n_events=400), items_of("x" * 40)
    scorer = ItemKNN().fit(past.take(past.users >= 20), items)
    nobody = past.take(past.users < 0)
    for user in range(20):
        scorer = scorer.revised(nobody, past.take(past.users == user))
    fitted = ItemKNN().fit(past, items)
    np.testing.assert_array_equal(whole_counts(scorer), whole_counts(fitted))
    cases = cases_of([[1, 2, 3]], [np.arange(40)])
    np.testing.assert_allclose(scorer.score(cases), fitted.score(cases), rtol=1e-6)
    if ratio == 0:
        assert len(scorer._parts) == 21
    if ratio == 10**9:
        assert len(scorer._parts) == 1


def test_a_saved_file_after_forgetting_is_that_of_a_fit_without_the_user(tmp_path):
    past, items = random_events(3), items_of("x" * 12)
    forgotten = past.users == 4
    scorer = ItemKNN().fit(past, items).revised(past.take(forgotten), past.take(past.users < 0))
    content = []
    for number, one in enumerate((scorer, ItemKNN().fit(past.take(~forgotten), items))):
        (tmp_path / str(number)).mkdir()
        one.save(tmp_path / str(number))
        content.append((tmp_path / str(number) / "item_knn.safetensors").read_bytes())
    assert content[0] == content[1]


def test_other_threads_may_go_on_scoring_with_the_old_one():
    past, items = random_events(4), items_of("x" * 12)
    scorer, cases = ItemKNN().fit(past, items), cases_of([[1, 2]], [np.arange(12)])
    before, parts = scorer.score(cases), [part.copy() for part in scorer._parts]
    changed = scorer
    for user in range(25):
        changed = changed.revised(past.take(past.users == user), past.take(past.users < 0))
    assert whole_counts(changed).max() == 0
    assert np.isnan(changed.score(cases)).all()
    np.testing.assert_array_equal(scorer.score(cases), before)
    for part, old in zip(scorer._parts, parts, strict=True):
        np.testing.assert_array_equal(part.toarray(), old.toarray())


@pytest.mark.parametrize("ratio", [0, 16])
def test_where_only_some_neighbours_are_kept_the_kept_pairs_are_exact(ratio, monkeypatch):
    monkeypatch.setattr(item_item, "SIZE_RATIO", ratio)
    past, items = random_events(5, n_users=40, n_items=30, n_events=600), items_of("x" * 30)
    pruned = ItemKNN(n_neighbours=4).fit(past, items)
    kept = pruned._parts[0].toarray() > 0
    forgotten = np.isin(past.users, [3, 5, 8])
    revised = pruned.revised(past.take(forgotten), past.take(past.users < 0))
    exact = ItemKNN().fit(past.take(~forgotten), items)
    still_kept = kept & (whole_counts(revised) > 0)
    assert still_kept.sum() > 90
    np.testing.assert_array_equal(whole_counts(revised)[still_kept], whole_counts(exact)[still_kept])
    np.testing.assert_array_equal(revised._support, exact._support)
    assert whole_counts(revised).min() == 0
    assert not whole_counts(revised)[~kept].any()
    # a pair that was left out starts at nothing
    one, other = next((i, j) for i, j in np.argwhere(~kept) if i != j and not kept[j, i])
    came = events_of([(0, one, 50), (0, other, 50)], 30)
    added = pruned.revised(came.take(came.users < 0), came)
    assert whole_counts(added)[one, other] == 1
    assert np.diff(added._parts[0].indptr).max() <= 5


def test_revisions_that_change_no_pair_cost_nothing_later():
    past = random_events(6)
    scorer = ItemKNN().fit(past, items_of("x" * 12))
    for _ in range(5):
        scorer = scorer.revised(past.take(past.users == 1), past.take(past.users == 1))
    assert len(scorer._parts) == 1
