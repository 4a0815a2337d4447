"""Decayed co-occurrence: items that the same users took within few visits of each other. Sparse, for any catalogue.

Also here, because EASE's Gram matrix is built of the same pairs: ``distinct_events`` and ``decayed_pairs``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from llm_rerank.models.changes import (
    check_same_catalogue,
    codes_to_read,
    longer,
    longer_sparse,
    not_counted,
    of_few_users,
)
from llm_rerank.models.scoring import histories_of, history_matrix, score_candidates, visit_numbers
from llm_rerank.storage import read_arrays, sparse_arrays, sparse_from, write_arrays
from llm_rerank.types import Cases, DataError, FloatArray, IntArray, Interactions, Items, NotFittedError, Ragged

Float64Array = npt.NDArray[np.float64]

PAIRS_A_BLOCK = 2**22  # 4M pairs: about 120 MB of indices and values at once
ENTRIES_A_BLOCK = 2**20
GRAIN = 2.0**-30
"""Pairs are counted in whole multiples of this, which float64 adds without rounding up to a sum of 2²³: what is taken
out again leaves exactly nothing, in whatever order. A pair that weighs less than half of it is none."""
_FILE = "item_knn.safetensors"


def distinct_events(
    history: Ragged, weights: FloatArray, times: IntArray, n_items: int
) -> tuple[Ragged, FloatArray, IntArray]:
    """Merge each row's events on one item: greatest weight, newest visit. Dislikes and unknown items go.

    Returns items (oldest visit first, then by code), weights float32 and visit numbers int64, both (n_distinct,).
    """
    visits = visit_numbers(history, times)
    kept = (weights > 0) & (history.values >= 0) & (history.values < n_items)
    rows, items = history.row_of_value[kept], history.values[kept]
    weights, visits = weights[kept], visits[kept]
    cells = rows * n_items + items
    order = np.argsort(cells, kind="stable")
    starts = np.flatnonzero(np.diff(cells[order], prepend=-1))
    if len(starts):
        weights = np.maximum.reduceat(weights[order], starts)
        visits = np.maximum.reduceat(visits[order], starts)
    rows, items = rows[order][starts], items[order][starts]
    order = np.lexsort((items, visits, rows))
    lengths = np.bincount(rows, minlength=len(history))
    return Ragged.from_lengths(items[order], lengths), weights[order].astype(np.float32), visits[order]


def decayed_pairs(
    events: Ragged, weights: FloatArray, visits: IntArray, n_items: int, decay: float
) -> Iterator[csr_matrix]:
    """Yield parts of U, whose sum U + Uᵀ holds, for items i ≠ j, Σ over users of w_i w_j exp(−decay × visits apart).

    Arguments as ``distinct_events`` returns them. U is float64, in multiples of ``GRAIN``, shape (n_items, n_items),
    and has an entry for the later of two items (row) with the earlier (column). Cost: the number of pairs, Σ n_u² / 2;
    memory: one block.
    """
    fading = np.exp(-decay * np.arange(visits.max(initial=0) + 1)) / GRAIN
    strengths = weights.astype(np.float64)
    items, visits = events.values.astype(np.int32), visits.astype(np.int32)  # int32: this loop is bound by memory
    row_starts = np.repeat(events.offsets[:-1], events.lengths)
    earlier = np.arange(len(items)) - row_starts  # partners of each event: the events of its row before it
    ends = np.cumsum(earlier)
    start = 0
    while start < len(items):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + PAIRS_A_BLOCK, side="right")))
        n_events, n_partners = stop - start, earlier[start:stop]
        indptr = np.concatenate([[0], np.cumsum(n_partners)])
        partner = np.arange(indptr[-1], dtype=np.int32)
        partner += np.repeat((row_starts[start:stop] - indptr[:-1]).astype(np.int32), n_partners)
        gap = np.repeat(visits[start:stop], n_partners) - visits[partner]
        worth = fading[gap] * strengths[partner]
        worth *= np.repeat(strengths[start:stop], n_partners)
        np.rint(worth, out=worth)
        worth *= GRAIN
        partners = csr_matrix((worth, items[partner], indptr), shape=(n_events, n_items))
        places = np.arange(n_events + 1)
        taken = csr_matrix((np.ones(n_events), items[start:stop], places), shape=(n_events, n_items))
        yield csr_matrix(taken.T.tocsr() @ partners)
        start = stop


def co_occurrence(past: Interactions, decay: float) -> tuple[csr_matrix, Float64Array]:
    """Symmetric decayed co-occurrence without its diagonal, and each item's support.

    Returns float64 CSR, shape (n_items, n_items), sorted, no explicit zeros, and the sum of users' weights float64,
    shape (n_items,).
    """
    events, weights, visits = distinct_events(*histories_of(past), past.n_items)
    shape = (past.n_items, past.n_items)
    parts: tuple[csr_matrix, ...] = (csr_matrix(shape, dtype=np.float64),)
    for part in decayed_pairs(events, weights, visits, past.n_items, decay):
        parts = summed_by_size((*parts, part), FEWEST_COPIES)
    total = sum(parts[:-1], parts[-1])
    counts = (total + total.T).tocsr()
    counts.eliminate_zeros()
    counts.sort_indices()
    # float32 weights add up in float64 without rounding: what is taken out again leaves 0 here too
    return counts, np.bincount(events.values, weights=weights, minlength=past.n_items).astype(np.float64)


def keep_largest(matrix: csr_matrix, n_kept: int, *, worth: npt.NDArray[Any] | None = None) -> csr_matrix:
    """Keep the n_kept largest entries of each row, by ``worth`` if given; of equal ones the first columns.

    worth: shape (n_entries,), laid out as ``matrix.data``.
    """
    lengths = np.diff(matrix.indptr)
    if not len(matrix.data) or lengths.max() <= n_kept:
        return matrix
    worth = matrix.data if worth is None else worth
    parts, start = [], 0
    while start < matrix.shape[0]:  # in blocks of rows: sorting takes several times what the matrix does
        first = int(matrix.indptr[start])
        end = np.searchsorted(matrix.indptr, first + ENTRIES_A_BLOCK, side="right") - 1
        stop = int(np.clip(end, start + 1, matrix.shape[0]))
        entries = slice(first, int(matrix.indptr[stop]))
        rows = np.repeat(np.arange(stop - start), lengths[start:stop])
        # rows stay in place, best first within each
        order = np.lexsort((matrix.indices[entries], -worth[entries], rows))
        rank = np.arange(len(rows)) - np.repeat(matrix.indptr[start:stop] - first, lengths[start:stop])
        parts.append(first + np.sort(order[rank < n_kept]))
        start = stop
    kept = np.concatenate(parts)
    indptr = np.concatenate([[0], np.cumsum(np.minimum(lengths, n_kept))])
    return csr_matrix((matrix.data[kept], matrix.indices[kept], indptr), shape=matrix.shape)


class ItemKNN:
    """Score of item j = Σ_i h_i C_ij / ((n_i + 3)^a (n_j + 3)^b) over the history, h_i faded by ``decay`` a visit.

    C_ij = Σ over users who took both of w_i w_j exp(−pair_decay × visits apart), w the weights of their events; n =
    support, Σ over users of their weight.

    decay: fading of the history a visit. pair_decay: fading of a pair a visit between its two items.
    history_exponent, candidate_exponent: a and b; larger says less of popular items.
    n_neighbours: strongest neighbours kept of each item; None: all up to 20,000 items, 200 above.
    Scores: 0 where nothing co-occurred; NaN for items without any event in the fit, and for histories without a known
    item.

    ``revised`` counts the events of single users anew. Where all neighbours are kept it equals a recount. Where only
    some are, n and the pairs that are kept are exact, and a pair that was left out starts at 0 with its next event.
    """

    name = "item_knn"
    depends_on_list = False
    revises_cheaply = True

    def __init__(
        self,
        *,
        decay: float = 0.15,
        pair_decay: float = 0.1,
        history_exponent: float = 0.6,
        candidate_exponent: float = 0.1,
        n_neighbours: int | None = None,
    ) -> None:
        if decay < 0 or pair_decay < 0:
            raise DataError(f"decay is {decay}, pair_decay {pair_decay}; both must be 0 or more")
        if n_neighbours is not None and n_neighbours < 1:
            raise DataError(f"n_neighbours is {n_neighbours}; it must be at least 1, or None")
        self.decay = decay
        self.pair_decay = pair_decay
        self.history_exponent = history_exponent
        self.candidate_exponent = candidate_exponent
        self.n_neighbours = n_neighbours
        # C is the sum of these, the largest first; a revision adds a small one at the end
        self._parts: tuple[csr_matrix, ...] = ()
        self._support: Float64Array | None = None
        self._n_kept: int | None = None  # neighbours kept an item, as the fit decided; None: all

    def fit(self, past: Interactions, items: Items, *, seed: int = 0) -> Self:
        """Count pairs; nothing is drawn at random."""
        counts, self._support = co_occurrence(past, self.pair_decay)
        self._n_kept = self.n_neighbours
        if self._n_kept is None and past.n_items > ALL_NEIGHBOURS:
            self._n_kept = LARGE_NEIGHBOURS
        self._parts = (self._strongest(counts),)
        return self

    def revised(self, before: Interactions, after: Interactions) -> Self:
        """Return a scorer that has counted ``after`` in place of ``before``, all events of the same users.

        Costs the pairs of these users, and now and then one pass over all counts.
        Raises DataError for another catalogue, or where counts fall below 0: ``before`` had not been counted.
        """
        support = self._fitted()
        check_same_catalogue(self.name, before, after, len(support))
        old_counts, old_support = co_occurrence(of_few_users(before), self.pair_decay)
        new_counts, new_support = co_occurrence(of_few_users(after), self.pair_decay)
        support = support - old_support + new_support
        if support.min(initial=0.0) < -LEAST_WEIGHT:
            raise not_counted(self.name)
        change = csr_matrix(new_counts - old_counts)
        change.eliminate_zeros()
        revised = copy.copy(self)
        revised._support = support
        if self._n_kept is not None:
            change = no_less_than_nothing(change, self._parts)
        revised._parts = summed_by_size((*self._parts, change), SIZE_RATIO) if change.nnz else self._parts
        if revised._parts[0] is not self._parts[0]:
            revised._parts = (revised._strongest(revised._parts[0]), *revised._parts[1:])
        return revised

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue; new items have no events, so their scores are NaN."""
        support = self._fitted()
        codes_to_read(len(support), items, changed)
        grown = copy.copy(self)
        grown._support = longer(support, len(items), 0.0)
        grown._parts = tuple(longer_sparse(part, len(items), len(items)) for part in self._parts)
        return grown

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items)."""
        support = self._fitted()
        history = history_matrix(cases, len(support), decay=self.decay)
        scaled = history.astype(np.float64)
        scaled.data *= scale(support, self.history_exponent)[scaled.indices]
        products = sum((scaled @ part for part in self._parts[1:]), scaled @ self._parts[0])
        scores = products.astype(np.float32).toarray()
        scores *= scale(support, self.candidate_exponent).astype(np.float32)
        seen = support > 0
        scores[:, ~seen] = np.nan
        scores[history @ seen.astype(np.float32) == 0] = np.nan
        return scores

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,)."""
        return score_candidates(self, cases)

    def save(self, folder: Path) -> None:
        """Write one file."""
        support = self._fitted()
        settings = {
            "decay": self.decay,
            "pair_decay": self.pair_decay,
            "history_exponent": self.history_exponent,
            "candidate_exponent": self.candidate_exponent,
            "n_neighbours": self.n_neighbours,
        }
        whole = self._parts[0]
        for part in self._parts[1:]:
            whole = whole + part
        arrays = {"support": support, **sparse_arrays(csr_matrix(whole), "counts")}
        write_arrays(folder / _FILE, arrays, {"settings": settings, "n_kept": self._n_kept})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote."""
        arrays, metadata = read_arrays(folder / _FILE)
        scorer = cls(**metadata["settings"])
        scorer._n_kept = metadata["n_kept"]
        scorer._support, scorer._parts = arrays["support"], (sparse_from(arrays, "counts"),)
        return scorer

    def _strongest(self, counts: csr_matrix) -> csr_matrix:
        """Leave of each item's neighbours those that are kept, by what they add to a score."""
        if self._n_kept is None:
            return counts
        worth = counts.data * scale(self._fitted(), self.candidate_exponent)[counts.indices]
        return keep_largest(counts, self._n_kept, worth=worth)

    def _fitted(self) -> Float64Array:
        if self._support is None:
            raise NotFittedError("item_knn has no neighbours yet; call fit or load first")
        return self._support


def scale(support: Float64Array, exponent: float) -> Float64Array:
    """Return (support + 3)^−exponent: float64, same shape."""
    return (support + SUPPORT_OFFSET) ** -exponent


def summed_by_size(parts: Sequence[csr_matrix], ratio: float) -> tuple[csr_matrix, ...]:
    """Add the last parts up until each has ``ratio`` times fewer entries than the one before; those of 0 go.

    So that a small change costs little, and what it is added to is copied only once in many changes.
    """
    kept = list(parts)
    while len(kept) > 1 and kept[-1].nnz * ratio > kept[-2].nnz:
        last = kept.pop()
        kept[-1] = csr_matrix(kept[-1] + last)
    return tuple(kept)


def no_less_than_nothing(change: csr_matrix, parts: Sequence[csr_matrix]) -> csr_matrix:
    """Bound a change from below, so that no entry of the parts' sum falls under 0: pairs that were left out stay so."""
    change = change.tocsr()
    falling = np.flatnonzero(change.data < 0)
    rows = np.repeat(np.arange(change.shape[0]), np.diff(change.indptr))[falling]
    columns = change.indices[falling]
    held = np.zeros(len(falling))
    for part in parts:
        held += np.asarray(part[rows, columns]).ravel() if len(falling) else 0
    change.data[falling] = np.maximum(change.data[falling], -held)
    change.eliminate_zeros()
    return change


SUPPORT_OFFSET = 3.0
ALL_NEIGHBOURS = 20_000
LARGE_NEIGHBOURS = 200
LEAST_WEIGHT = 1e-6
"""A support below minus this was not rounded: something was taken out that had not been counted."""
SIZE_RATIO = 16
"""Few parts, for every score adds them up; a revision is far smaller than what it changes."""
FEWEST_COPIES = 2
"""Of many parts of one size each entry is copied as often as a binary counter carries: log2 of their number."""
