"""Lists of candidates, one a source, and what is taken of them: for the benchmark of unions at equal length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from llm_rerank.evaluation.protocols import Trial
from llm_rerank.models.scoring import retrieve
from llm_rerank.recommendation.candidates import is_member, positions_in_row, union
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.types import BoolArray, Cases, CatalogueScorer, FloatArray, IntArray, Ragged

Float64Array = npt.NDArray[np.float64]
Sources = Mapping[str, Ragged]

DEPTH = 300
ABSENT = np.int16(np.iinfo(np.int16).max)
NEAREST, NEWEST = 100, 30
PADDED, THIN = "item_knn", "semantic for thin users"
UNPADDED = f"{PADDED} without padding"
MOST_THIN = 2


@dataclass(frozen=True)
class Pool:
    """Everything that any source lists, a case a row; arrays have shape (n_pairs,), laid out as ``items``.

    names: of the sources. ranks: int16 from 0, shape (n_pairs, n_sources), ABSENT where a source does not list it.
    hits: the item is a target of the case. dither: what each case is ahead of the others in [0, 1), so that a part of
    an item can be given: float64, shape (n_cases,).
    """

    names: tuple[str, ...]
    items: Ragged
    ranks: npt.NDArray[np.int16]
    hits: BoolArray
    dither: Float64Array

    def needed(self, quotas: Mapping[str, float]) -> Float64Array:
        """By how much quotas must be stretched to take in each pair: float64, infinite where they never do."""
        scale = np.full(len(self.hits), np.inf)
        dither = self.dither[self.items.row_of_value]
        for name, quota in quotas.items():
            ranks = self.ranks[:, self.names.index(name)]
            if quota > 0:
                scale = np.minimum(scale, np.where(ranks < ABSENT, (ranks + 1 - dither) / quota, np.inf))
        return scale


def pool_of(sources: Sources, targets: Ragged, n_items: int, seed: int) -> Pool:
    """Merge the sources' lists, best first, and remember where each stands in each."""
    items = union(list(sources.values()), n_items)
    keys = items.row_of_value * n_items + items.values
    order = np.argsort(keys)
    ranks = np.full((len(keys), len(sources)), ABSENT, dtype=np.int16)
    for column, source in enumerate(sources.values()):
        at = np.searchsorted(keys, source.row_of_value * n_items + source.values, sorter=order)
        ranks[order[at], column] = positions_in_row(source)
    dither = np.random.default_rng(seed).permutation(len(items)) / len(items)
    return Pool(tuple(sources), items, ranks, is_member(items, targets, n_items), dither)


def cheapest(needed: Float64Array, n_pairs: int) -> BoolArray:
    """Take the pairs that need least, so many in all; pairs that need as much as the last come in too."""
    n = min(n_pairs, int(np.isfinite(needed).sum()))
    return (needed <= np.partition(needed, n - 1)[n - 1]) & np.isfinite(needed)


def greedy_quotas(blocks: npt.NDArray[np.integer[Any]], worth: Float64Array, n_pairs: int) -> IntArray:
    """Blocks of each source that cover most worth with about n_pairs pairs: int64, shape (n_sources,).

    Takes, again and again, the source whose next block adds most worth per pair that no block taken before holds.
    blocks: number of the block from 0 in which each source lists a pair, negative where it does not, shape (n_pairs,
    n_sources). worth: of each pair, 0 where it is no target, shape (n_pairs,).
    """
    n_sources, n_blocks = blocks.shape[1], int(blocks.max()) + 1
    members = []
    for source in range(n_sources):
        order = np.argsort(blocks[:, source], kind="stable")
        members.append(np.split(order, np.searchsorted(blocks[order, source], np.arange(n_blocks)))[1:])
    covered = np.zeros(len(blocks), dtype=np.bool_)
    quotas = np.zeros(n_sources, dtype=np.int64)
    n_covered = 0
    while n_covered < n_pairs and (quotas < n_blocks).any():
        best, best_rate = -1, -1.0
        for source in np.flatnonzero(quotas < n_blocks).tolist():
            new = members[source][quotas[source]]
            new = new[~covered[new]]
            rate = float(worth[new].sum()) / len(new) if len(new) else np.inf  # what is held already costs nothing
            if rate > best_rate:
                best, best_rate = int(source), rate
        taken = members[best][quotas[best]]
        n_covered += int((~covered[taken]).sum())
        covered[taken] = True
        quotas[best] += 1
    return quotas


def round_robin(history: Ragged, neighbours: Ragged, seen: Ragged, n_items: int) -> Ragged:
    """First neighbour of each history item, newest first, then each one's second, and so on; without seen items.

    history: oldest first; its newest ``NEWEST`` items are read. neighbours: item codes, best first, a row an item.
    """
    age = history.lengths[history.row_of_value] - 1 - positions_in_row(history)
    read = np.flatnonzero(age < NEWEST)
    rows, codes, age = history.row_of_value[read], history.values[read], age[read]
    lengths = neighbours.lengths[codes]
    found, place = neighbours.take(codes), positions_in_row(neighbours.take(codes))
    rows, age = np.repeat(rows, lengths), np.repeat(age, lengths)
    order = np.lexsort((age, place, rows))
    merged = Ragged.from_lengths(found.values[order], np.bincount(rows, minlength=len(history)).astype(np.int64))
    kept = ~is_member(merged, seen, n_items)
    lengths = np.bincount(merged.row_of_value[kept], minlength=len(history)).astype(np.int64)
    return first(union([Ragged.from_lengths(merged.values[kept], lengths)], n_items), DEPTH)


def first(lists: Ragged, n: int) -> Ragged:
    """Cut each row to its first n values."""
    return Ragged.from_lengths(lists.values[positions_in_row(lists) < n], np.minimum(lists.lengths, n))


def nearest(scorer: CatalogueScorer, n_items: int) -> Ragged:
    """Items that the scorer puts first for whoever has had one item, that one left out; a row an item."""
    single = Ragged.from_lengths(np.arange(n_items), np.ones(n_items, dtype=np.int64))
    zeros = np.zeros(n_items, dtype=np.int64)
    ones = np.ones(n_items, dtype=np.float32)
    none = Ragged.empty(n_items)
    cases = Cases(zeros - 1, zeros + 1, single, ones, zeros, [""] * n_items, none, none)
    return Positive(scorer).retrieve(cases, NEAREST, exclude=single)


@dataclass(frozen=True)
class Positive:
    """A scorer that has no opinion of what it scores 0 or less; for ``retrieve``, which asks for the catalogue only."""

    scorer: CatalogueScorer

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items)."""
        scores = self.scorer.score_catalogue(cases)
        return np.where(scores > 0, scores, np.float32(np.nan))

    def retrieve(self, cases: Cases, k: int, exclude: Ragged) -> Ragged:
        """Items with the highest scores, best first."""
        return retrieve(cast("CatalogueScorer", self), cases, k, exclude=exclude)


def sources_of(trial: Trial, reranker: Reranker) -> tuple[Sources, Sources]:
    """Give the lists of the sources in use, and of those that might be."""
    n_items, cases, seen = len(trial.items), trial.cases, trial.seen
    scorers: dict[str, Any] = {c.name: c.scorer for c in reranker.components if c.retrieves}
    base = {name: retrieve(scorer, cases, DEPTH, exclude=seen) for name, scorer in scorers.items()}
    more: dict[str, Ragged] = {}
    if "semantic" in scorers:
        thin = np.where(seen.lengths <= MOST_THIN, base["semantic"].lengths, 0)
        rows = np.repeat(thin > 0, base["semantic"].lengths)
        more[THIN] = Ragged.from_lengths(base["semantic"].values[rows], thin)
        more["twins by text"] = round_robin(cases.history, nearest(scorers["semantic"], n_items), seen, n_items)
    more["twins by co-occurrence"] = round_robin(cases.history, nearest(scorers[PADDED], n_items), seen, n_items)
    brands = reranker.saved.item_statistics.brands.of_item
    if len(brands.values):
        sold = np.lexsort((-trial.item_support[brands.row_of_value], brands.values))
        by_brand = Ragged.from_lengths(brands.row_of_value[sold], np.bincount(brands.values))
        of_item = np.zeros(n_items, dtype=np.int64)
        of_item[brands.row_of_value] = by_brand.lengths[brands.values]
        siblings = Ragged.from_lengths(by_brand.take(brands.values).values, of_item)
        more["best sellers of its brands"] = round_robin(cases.history, first(siblings, NEAREST), seen, n_items)
    more[UNPADDED] = Positive(scorers[PADDED]).retrieve(cases, DEPTH, exclude=seen)
    return base, more


def with_thin_users_first(pool: Pool) -> Pool:
    """Let thin users' semantic list run at double speed: beside semantic itself that makes it two of each."""
    if THIN not in pool.names:
        return pool
    ranks, column = pool.ranks.copy(), pool.names.index(THIN)
    ranks[:, column] = np.where(ranks[:, column] < ABSENT, ranks[:, column] // 2, ABSENT)
    return replace(pool, ranks=ranks)
