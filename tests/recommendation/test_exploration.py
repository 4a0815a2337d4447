"""Random slots: their probabilities by hand, by counting every outcome, by drawing, and in their use."""

import itertools

import numpy as np
import pytest

from llm_rerank.recommendation.exploration import explore, list_seeds, placement_probability, user_keys
from llm_rerank.types import Cases, Ragged


def table(n, depth, slots):
    """Probability of every placement: shape (n, n), rank before × rank after."""
    before, after = np.divmod(np.arange(n * n), n)
    found = placement_probability(before + 1, after + 1, np.full(n * n, n), depth, slots)
    return found.reshape(n, n)


def counted(n, depth, slots):
    """The same by carrying out every draw: candidates in every order × positions."""
    depth = min(depth, n)
    slots = min(slots, depth)
    counts = np.zeros((n, n))
    for drawn in itertools.permutations(range(n), slots):
        for opened in itertools.combinations(range(depth), slots):
            at = dict(zip(opened, drawn, strict=True))
            others = iter(item for item in range(n) if item not in drawn)
            for position in range(n):
                counts[at[position] if position in at else next(others), position] += 1
    return counts / counts[0].sum()


def test_probabilities_by_hand():
    # 3 candidates, 2 positions, 1 slot. The first at 1: drawn and put there 1/3 · 1/2, or not drawn and 1 not opened
    # 2/3 · 1/2. The last at 3: not drawn. The last at 1: drawn and put there.
    found = table(3, 2, 1)
    assert found[0] == pytest.approx([1 / 2, 1 / 2, 0])
    assert found[2, 2] == pytest.approx(2 / 3)
    assert found[2, 0] == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("n", "depth", "slots"), [(1, 5, 1), (2, 2, 1), (5, 3, 2), (5, 3, 3), (6, 6, 2), (4, 9, 4), (6, 2, 1), (7, 4, 0)]
)
def test_probabilities_equal_the_count_of_all_outcomes(n, depth, slots):
    np.testing.assert_allclose(table(n, depth, slots), counted(n, depth, slots), atol=1e-12)


def test_every_candidate_is_somewhere_and_every_position_taken():
    found = table(80, 50, 5)
    np.testing.assert_allclose(found.sum(axis=0), 1)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert found[:, :50].min() >= 5 / (80 * 50) - 1e-12  # support: any candidate, any position of the head


def many_lists(n_lists, n, n_unknown=0, seed=0):
    length = n + n_unknown
    rows = Ragged.from_lengths(np.tile(np.arange(length), n_lists), np.full(n_lists, length))
    ranks = np.tile(np.arange(1, length + 1), n_lists)
    seeds = np.random.default_rng(seed).integers(0, 2**63, n_lists).astype(np.uint64)
    return rows, ranks, ranks <= n, seeds


def test_draws_are_as_often_as_their_propensities_say():
    n_lists, n, depth, slots = 60_000, 7, 4, 2
    rows, ranks, known, seeds = many_lists(n_lists, n, n_unknown=2)
    after, propensities = explore(ranks, rows, known, depth, slots, seeds)
    placed = after.reshape(n_lists, n + 2)
    assert (np.sort(placed, axis=1) == np.arange(1, n + 3)).all()
    assert (placed[:, n:] == [n + 1, n + 2]).all()
    assert (propensities.reshape(n_lists, -1)[:, n:] == 1).all()
    shares = np.array([[(placed[:, item] == rank + 1).mean() for rank in range(n)] for item in range(n)])
    expected = table(n, depth, slots)
    error = np.sqrt(expected * (1 - expected) / n_lists)
    assert (np.abs(shares - expected) <= 4.5 * error + 1e-12).all()
    np.testing.assert_allclose(propensities.reshape(n_lists, -1)[:, :n], expected[np.arange(n), placed[:, :n] - 1])


def test_weighting_by_propensity_tells_what_another_ranking_would_earn():
    """The use: what was taken, logged under one ranking with random slots, gives the value of its reverse."""
    n_lists, n, depth, slots = 200_000, 6, 4, 2
    rng = np.random.default_rng(1)
    rows, ranks, known, seeds = many_lists(n_lists, n, seed=2)
    after, propensities = explore(ranks, rows, known, depth, slots, seeds)
    chance = rng.uniform(0.2, 0.9, n)[:, None] / np.arange(1, n + 1)  # of an item and its position
    item = rows.values
    taken = rng.random(len(item)) < chance[item, after - 1]
    other_rank = n - np.arange(n)  # the reverse ranking
    matches = (after == other_rank[item]) & (after <= depth)
    estimates = np.bincount(rows.row_of_value, np.where(matches, taken / propensities, 0.0), n_lists)
    truth = sum(chance[i, other_rank[i] - 1] for i in range(n) if other_rank[i] <= depth)
    error = estimates.std() / np.sqrt(n_lists)
    assert error < 0.02
    assert abs(estimates.mean() - truth) < 4 * error
    # without the weights it is far off: those placements are rare
    assert np.bincount(rows.row_of_value, matches & taken, n_lists).mean() < truth / 2


def cases(histories, candidates, times):
    n = len(times)
    history = Ragged.from_lists(histories)
    return Cases(
        user_rows=np.full(n, -1),
        times=np.array(times),
        history=history,
        history_weights=np.ones(len(history.values), dtype=np.float32),
        history_times=np.zeros(len(history.values), dtype=np.int64),
        queries=[""] * n,
        candidates=Ragged.from_lists(candidates),
        targets=Ragged.empty(n),
    )


def test_a_draw_follows_from_the_question_not_from_its_batch():
    asked = cases([[1, 2], [2, 1], [1, 2], [], [], [1, 2]], [[3, -1, 5]] * 5 + [[3, 5, 6]], [9, 9, 8, 9, 9, 9])
    users = user_keys(["a", "a", "a", "a", "b", "a"])
    seeds = list_seeds(asked, users, 4)
    assert len(set(seeds.tolist())) == 6  # order of the history, moment, two newcomers, candidates
    some = np.array([5, 2, 0])
    np.testing.assert_array_equal(list_seeds(asked.take(some), users[some], 4), seeds[some])
    assert not np.isin(list_seeds(asked, users, 5), seeds).any()
    same = cases([[1, 2]], [[5, 3, -1]], [9])  # the order in which candidates come does not matter
    assert list_seeds(same, users[:1], 4)[0] == seeds[0]
    assert len(list_seeds(asked.take(some[:0]), users[:0], 4)) == 0


def test_a_user_is_one_however_the_id_is_spelled():
    keys = user_keys([7, "7", 7.0, np.int64(7), 8, "seven"])
    assert len(set(keys[:4].tolist())) == 1 and len(set(keys.tolist())) == 3
