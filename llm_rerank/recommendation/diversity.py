"""Lists that are not ten of the same: caps by group, maximal marginal relevance, random slots; in this order.

Pure functions over a batch of lists. A *cap* chooses which candidates make a list's head (its first ``depth`` ranks),
*MMR* orders the head, *exploration* (``exploration.py``) puts random candidates into it. Nothing is lost from a list,
scores and what is kept stay as they are, candidates without a score stay last.

So that a strength means the same in every shop, MMR reads neither scores nor bare cosines. Relevance is the discount of
the rank, 1 / log2(rank + 1): what the place is worth in NDCG, so that the top, which costs most, moves last, and the
scale of the scores does not matter. Discounts and cosines are each centred and divided by their standard deviation
within the list: at strength .5 a deviation of the one weighs as much as one of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_rerank.config import DiversityConfig
from llm_rerank.recommendation.components import Component
from llm_rerank.recommendation.exploration import SeedArray, explore, list_seeds
from llm_rerank.recommendation.item_groups import item_groups, item_vectors
from llm_rerank.types import UNKNOWN, BoolArray, Cases, FloatArray, IntArray, Items, Ragged

Float64Array = npt.NDArray[np.float64]

BLOCK_CELLS = 2**23
"""Cells of the vectors, or of the similarities, held at once: 32 MB each."""


@dataclass(frozen=True)
class Diversified:
    """New places of the candidates, shape (n_candidates,).

    ranks: int64, from 1 in each list. propensities: float32, the probability of the place over the random slots
    (``exploration.py``); 1 where none are drawn.
    """

    ranks: IntArray
    propensities: FloatArray


def diversify(
    scores: Float64Array,
    ranks: IntArray,
    rows: Ragged,
    vectors: FloatArray | None,
    groups: IntArray | None,
    config: DiversityConfig,
    seeds: SeedArray | None = None,
) -> Diversified:
    """Give the candidates of each list new ranks.

    scores: shape (n_candidates,), laid out as ``rows`` (rows of vectors and groups); NaN: stays last, the others are
    read through their ranks alone. ranks: from 1. vectors: shape (n_items, size), of any length, needed where
    ``strength`` is above 0; zeros or NaN say nothing. groups: int64, shape (n_items,), needed for a cap; below 0: a
    group of its own. seeds: uint64, one a list, needed for random slots.
    """
    known = ~np.isnan(scores)
    over = np.zeros(len(ranks), dtype=np.bool_)
    if config.max_per_group is not None:
        assert groups is not None
        group = np.full(len(ranks), -1, dtype=np.int64)
        group[known] = groups[rows.values[known]]
        ranks, over = cap_groups(ranks, rows, known, group, config.max_per_group, config.depth)
    if config.strength > 0:
        assert vectors is not None
        ranks = _order_heads(ranks, rows, known, over, vectors, config)
    if not config.exploration_slots:
        return Diversified(ranks, np.ones(len(ranks), dtype=np.float32))
    assert seeds is not None
    ranks, propensities = explore(ranks, rows, known, config.depth, config.exploration_slots, seeds)
    return Diversified(ranks, propensities.astype(np.float32))


def diversify_cases(
    components: Sequence[Component],
    items: Items,
    cases: Cases,
    users: IntArray,
    scores: Float64Array,
    ranks: IntArray,
    config: DiversityConfig,
    seed: int,
) -> Diversified:
    """Diversify the candidates of cases with what the fitted components and the catalogue know of the items.

    users: ``user_keys`` of the cases. seed: of the clusters. Where the settings change nothing, or no case has two
    known candidates, nothing is looked up and ``ranks`` come back as they are.

    Raises DataError where vectors or the column of groups are needed and missing.
    """
    rows, known = cases.candidates, ~np.isnan(scores)
    if not config.changes_ranks or np.bincount(rows.row_of_value[known]).max(initial=0) < 2:
        return Diversified(ranks, np.ones(len(ranks), dtype=np.float32))
    # a request names few items of a catalogue: only they are looked up, each once
    codes, place = np.unique(rows.values[known], return_inverse=True)
    values = np.full(len(ranks), UNKNOWN, dtype=np.int64)
    values[known] = place
    return diversify(
        scores,
        ranks,
        Ragged(values, rows.offsets),
        item_vectors(components, codes) if config.strength > 0 else None,
        item_groups(components, items, config, codes, seed) if config.max_per_group is not None else None,
        config,
        list_seeds(cases, users, config.exploration_seed) if config.exploration_slots else None,
    )


def cap_groups(
    ranks: IntArray, rows: Ragged, known: BoolArray, groups: IntArray, most: int, depth: int
) -> tuple[IntArray, BoolArray]:
    """Let at most ``most`` of a group into a list's first ``depth``; returns new ranks, and what is over the cap.

    The head is filled, in order of rank, with candidates that have fewer than ``most`` of their group before them; all
    others follow in order of rank. Where a list has too few groups to fill the head, those over the cap fill it up.
    groups: int64, shape (n_candidates,); below 0: a group of its own. known: others stay last.
    """
    row = rows.row_of_value
    order = np.lexsort((ranks, groups, row))
    starts = np.flatnonzero(np.append(True, (np.diff(row[order]) != 0) | (np.diff(groups[order]) != 0)))
    place = np.empty(len(ranks), dtype=np.int64)
    place[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    over = known & (groups >= 0) & (place >= most)
    # places among the admitted of a row: the first ``depth`` of them are the head
    admitted = known & ~over
    by_admission = np.lexsort((ranks, ~admitted, row))
    place[by_admission] = np.arange(len(order)) - np.repeat(rows.offsets[:-1], rows.lengths)
    capped = np.empty_like(ranks)
    capped[np.lexsort((ranks, ~admitted | (place >= depth), row))] = (
        np.arange(len(order)) - np.repeat(rows.offsets[:-1], rows.lengths) + 1
    )
    return capped, over


def greedy_mmr(
    relevance: Float64Array,
    similarity: npt.NDArray[np.floating],
    available: BoolArray,
    strength: float,
    later: BoolArray | None = None,
) -> IntArray:
    """Order many short lists at once by maximal marginal relevance (Carbonell and Goldstein, 1998).

    Next is always the candidate with the greatest (1 − strength) · relevance − strength · max similarity to those
    before it; ties go to the one that stands first. One step a position, for all lists together.
    relevance, available: shape (n_lists, depth). similarity: shape (n_lists, depth, depth). later: such come only
    after all others. Returns columns in their new order: int64, shape (n_lists, depth), those not available last.
    """
    n_lists, depth = relevance.shape
    lists = np.arange(n_lists)
    tier = np.where(available, 0 if later is None else later.astype(np.int64), 2)
    nearest = np.full((n_lists, depth), -np.inf)
    order = np.empty((n_lists, depth), dtype=np.int64)
    for position in range(depth):
        value = (1 - strength) * relevance
        if position:
            value -= strength * nearest
        chosen = np.where(tier == tier.min(axis=1, keepdims=True), value, -np.inf).argmax(axis=1)
        order[:, position] = chosen
        tier[lists, chosen] = 3  # taken
        np.maximum(nearest, similarity[lists, chosen], out=nearest)
    return order


def scaled(values: npt.NDArray[np.floating], known: BoolArray) -> Float64Array:
    """Centre each list's values and divide them by their standard deviation: float64, shape as given.

    values, known: shape (n_lists, …); mean and deviation are over a list's known values; 0 where unknown, and where
    the known ones are equal.
    """
    flat, mask = values.reshape(len(values), -1).astype(np.float64), known.reshape(len(values), -1)
    counts = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    flat = np.where(mask, flat, 0.0)
    flat = np.where(mask, flat - flat.sum(axis=1, keepdims=True) / counts, 0.0)
    deviation = np.sqrt((flat**2).sum(axis=1, keepdims=True) / counts)
    return (flat / np.where(deviation > 1e-6, deviation, np.inf)).reshape(values.shape)


def similarities(vectors: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Cosines within each list, shape (n_lists, depth, depth), and which pairs have one (two vectors, two places).

    vectors: float32, shape (n_lists, depth, size); rows of zeros or NaN say nothing.
    """
    norms = np.linalg.norm(vectors, axis=2, keepdims=True)
    says = norms > 1e-6  # False for NaN
    unit = np.where(says, vectors / np.where(says, norms, 1.0), 0.0).astype(np.float32)
    pairs = says & says.transpose(0, 2, 1) & ~np.eye(vectors.shape[1], dtype=np.bool_)
    return unit @ unit.transpose(0, 2, 1), pairs


def _order_heads(
    ranks: IntArray, rows: Ragged, known: BoolArray, over: BoolArray, vectors: FloatArray, config: DiversityConfig
) -> IntArray:
    """Order each list's first ``depth`` known candidates by MMR; what is ``over`` the cap stays behind the rest."""
    depth = int(min(config.depth, rows.lengths.max(initial=0)))
    inside = np.flatnonzero(known & (ranks <= depth))
    heads = np.full((len(rows), depth), -1, dtype=np.int64)
    heads[rows.row_of_value[inside], ranks[inside] - 1] = inside
    discounts = 1 / np.log2(np.arange(2, depth + 2))
    ranks = ranks.copy()
    step = max(1, BLOCK_CELLS // max(depth * max(vectors.shape[1], depth), 1))
    for start in range(0, len(heads), step):
        head = heads[start : start + step]
        available = head >= 0
        relevance = scaled(np.broadcast_to(discounts, head.shape), available)
        cosines, pairs = similarities(vectors[np.where(available, rows.values[head], 0)])
        pairs &= available[:, :, None] & available[:, None, :]
        order = greedy_mmr(relevance, scaled(cosines, pairs), available, config.strength, over[head])
        moved = np.take_along_axis(head, order, axis=1)
        at, position = np.nonzero(moved >= 0)
        ranks[moved[at, position]] = position + 1
    return ranks
