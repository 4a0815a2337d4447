"""Random slots in a list, and the exact probability of every placement, so that later learning can correct for them.

The draw. Of a list's n known candidates, ``slots`` are drawn, all alike; of its first ``depth`` positions as many are
drawn, all alike; each drawn candidate goes to one of the drawn positions, all pairings alike. The others fill what is
free in their order. Every candidate can thus stand at every position of the head, at least with slots / (n · depth),
which is what estimates of *other* rankings need.

The propensity of a row of the result is the probability, over this draw, that this candidate stands at this position.
Its use: for any other ranking of the same candidates, Σ taken / propensity over the logged rows whose candidate that
ranking would put at the same position is, list by list, an unbiased estimate of what would be taken from its first
``depth`` (the item-position estimator of Li et al., "Offline evaluation of ranking policies with click models", 2018;
as weights of a loss: Joachims et al., "Unbiased learning-to-rank with biased feedback", 2017). It holds where being
taken depends on the item and its position, not on the neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_rerank.data.splits import hash_users
from llm_rerank.data.values import plain_id
from llm_rerank.types import BoolArray, Cases, IntArray, Ragged

Float64Array = npt.NDArray[np.float64]
SeedArray = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def explore(
    ranks: IntArray, rows: Ragged, known: BoolArray, depth: int, slots: int, seeds: SeedArray
) -> tuple[IntArray, Float64Array]:
    """Put random candidates at random places of the first ``depth``; returns new ranks and each row's propensity.

    ranks: from 1, shape (n_candidates,), laid out as ``rows``; those that are not ``known`` stand last, stay there
    (propensity 1) and are not drawn. slots: cut to the head of a short list. seeds: uint64, one a list; the draw of a
    list depends on its seed and its length alone.
    Returns int64 and float64, both of shape (n_candidates,).
    """
    row = rows.row_of_value
    n_known = np.bincount(row[known], minlength=len(rows)).astype(np.int64)
    heads = np.minimum(depth, n_known)
    n_drawn = np.minimum(slots, heads)
    in_head = known & (ranks <= heads[row])
    # the candidate at a rank stands for the position too: the same layout serves both draws
    drawn = _first_by_chance(known, rows, ranks, n_drawn, seeds, stream=0)
    opened = _first_by_chance(in_head, rows, ranks, n_drawn, seeds, stream=1)
    after = ranks.copy()
    after[drawn] = ranks[opened]
    others, free = known.copy(), known.copy()
    others[drawn], free[opened] = False, False
    by_rank = np.lexsort((ranks, row))
    after[by_rank[others[by_rank]]] = ranks[by_rank[free[by_rank]]]
    propensities = np.ones(len(ranks))
    propensities[known] = placement_probability(ranks[known], after[known], n_known[row][known], depth, slots)
    return after, propensities


def placement_probability(
    before: IntArray, after: IntArray, n_candidates: IntArray, depth: int, slots: int
) -> Float64Array:
    """Probability that the candidate of rank ``before`` stands at rank ``after``: float64, shape as given.

    With n candidates, D = min(depth, n) positions and S = min(slots, D) draws:

        S/n · 1/D                                        drawn, and put there (ranks up to D)
        + (1 − S/n) · Σ_b P(B = b) P(A = b + before − after)    pushed there

    A, of the better candidates drawn, is hypergeometric (S of n − 1); B, of the better positions opened, given that
    this one was not, too (S of D − 1; probability 1 − S/D), and is S behind the head. Sums to 1 over ``after`` and over
    ``before``; over ``after`` ≤ k it is the probability of being among the first k.
    All ranks from 1 and at most n; shapes alike.
    """
    n = n_candidates
    heads = np.minimum(depth, n)
    drawn = np.minimum(slots, heads)
    inside = after <= heads
    pushed = np.zeros(np.shape(before))
    for opened in range(slots + 1):
        chance = np.where(inside, _hypergeometric(opened, heads - 1, after - 1, drawn), opened == drawn)
        pushed += chance * _hypergeometric(opened + before - after, n - 1, before - 1, drawn)
    pushed *= (1 - drawn / n) * np.where(inside, 1 - drawn / heads, 1.0)
    return pushed + np.where(inside, drawn / (n * heads), 0.0)


def user_keys(user_ids: Sequence[Any]) -> IntArray:
    """Give numbers that tell users' draws apart: int64, shape (n_users,); the same one for all who have no id."""
    return hash_users([plain_id(value) for value in user_ids], 2**63, salt="exploration")


def list_seeds(cases: Cases, users: IntArray, seed: int) -> SeedArray:
    """Seed of each case's draw: uint64, shape (n_cases,); from what is asked, never from the batch it comes in.

    users: ``user_keys``, shape (n_cases,). The seed follows from ``seed``, the user, the moment, the history and the
    set of candidates, so a page that is loaded again shows the same list, and another moment or newcomer another.
    Known limits: a shop that never passes ``at`` asks at one moment until new events come; it changes ``seed``. Users
    without an id who agree in all else see the same list.
    """
    history, candidates = cases.history, cases.candidates
    place = np.arange(len(history.values), dtype=np.int64) - np.repeat(history.offsets[:-1], history.lengths)
    keys = _mixed(_mixed(np.full(len(cases), seed % 2**64, dtype=np.uint64)) + _unsigned(users))
    keys = _mixed(keys + _unsigned(cases.times))
    events = _mixed(_mixed(_unsigned(place)) + _unsigned(history.values))
    keys = _mixed(keys + _sum_of_rows(events, history))
    return _mixed(keys + _sum_of_rows(_mixed(_unsigned(candidates.values)), candidates))


def _first_by_chance(
    eligible: BoolArray, rows: Ragged, ranks: IntArray, n_drawn: IntArray, seeds: SeedArray, stream: int
) -> IntArray:
    """Draw ``n_drawn`` of each row's eligible values: their positions, row after row, in random order."""
    row = rows.row_of_value
    chance = _mixed(seeds[row] + _unsigned(2 * ranks + stream) * _GOLDEN)
    order = np.lexsort((chance, ~eligible, row))
    place = np.arange(len(order), dtype=np.int64) - np.repeat(rows.offsets[:-1], rows.lengths)
    return order[place < n_drawn[row]]


def _hypergeometric(hits: IntArray | int, population: IntArray, good: IntArray, draws: IntArray) -> Float64Array:
    """P(hits good ones among ``draws`` of ``population`` without replacement), 0 where that cannot be."""
    from scipy.special import gammaln

    def log_choose(n: IntArray, k: IntArray) -> Float64Array:
        return gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)

    hits, population, good, draws = np.broadcast_arrays(hits, population, good, draws)
    out = np.zeros(hits.shape)
    at = (hits >= 0) & (hits <= good) & (draws - hits >= 0) & (draws - hits <= population - good)
    hits, population, good, draws = hits[at], population[at], good[at], draws[at]
    out[at] = np.exp(
        log_choose(good, hits) + log_choose(population - good, draws - hits) - log_choose(population, draws)
    )
    return out


def _unsigned(values: IntArray) -> SeedArray:
    return values.astype(np.uint64)  # modulo 2**64, so negative ones too


def _mixed(values: SeedArray) -> SeedArray:
    """Scatter the bits (SplitMix64, Steele et al. 2014): uint64, shape as given; sums wrap around on purpose."""
    z = values + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _sum_of_rows(values: SeedArray, rows: Ragged) -> SeedArray:
    """Sum of each row, modulo 2**64."""
    totals = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(values, dtype=np.uint64)])
    return totals[rows.offsets[1:]] - totals[rows.offsets[:-1]]
