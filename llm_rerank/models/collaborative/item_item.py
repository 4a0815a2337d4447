"""Decayed co-occurrence: items that the same users took within few visits of each other. Sparse, for any catalogue.

Also here, because EASE's Gram matrix is built of the same pairs: ``distinct_events`` and ``decayed_pairs``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
from scipy.sparse import csr_matrix, diags_array

from llm_rerank.models.scoring import histories_of, history_matrix, score_candidates, visit_numbers
from llm_rerank.storage import read_arrays, sparse_arrays, sparse_from, write_arrays
from llm_rerank.types import Cases, DataError, FloatArray, IntArray, Interactions, Items, NotFittedError, Ragged

PAIRS_A_BLOCK = 2**22  # 4M pairs: about 80 MB of indices and values at once
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

    Arguments as ``distinct_events`` returns them. U is float32, shape (n_items, n_items), and has an entry for the
    later of two items (row) with the earlier (column). Cost: the number of pairs, Σ n_u² / 2; memory: one block.
    """
    fading = np.exp(-decay * np.arange(visits.max(initial=0) + 1)).astype(np.float32)
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
        partners = csr_matrix((fading[gap] * weights[partner], items[partner], indptr), shape=(n_events, n_items))
        places = np.arange(n_events + 1)
        taken = csr_matrix((weights[start:stop], items[start:stop], places), shape=(n_events, n_items))
        yield csr_matrix(taken.T.tocsr() @ partners)
        start = stop


def co_occurrence(past: Interactions, decay: float) -> tuple[csr_matrix, FloatArray]:
    """Symmetric decayed co-occurrence without its diagonal, and each item's support.

    Returns float32 CSR, shape (n_items, n_items), and the sum of users' weights float32, shape (n_items,).
    """
    events, weights, visits = distinct_events(*histories_of(past), past.n_items)
    shape = (past.n_items, past.n_items)
    total = csr_matrix(([], ([], [])), shape=shape, dtype=np.float32)
    for part in decayed_pairs(events, weights, visits, past.n_items, decay):
        total = total + part
    support = np.bincount(events.values, weights=weights, minlength=past.n_items).astype(np.float32)
    return (total + total.T).tocsr(), support


def keep_largest(matrix: csr_matrix, n_kept: int) -> csr_matrix:
    """Keep the n_kept largest entries of each row; of equal ones the first columns."""
    lengths = np.diff(matrix.indptr)
    if not len(matrix.data) or lengths.max() <= n_kept:
        return matrix
    rows = np.repeat(np.arange(matrix.shape[0]), lengths)
    order = np.lexsort((matrix.indices, -matrix.data, rows))  # rows stay in place, best first within each
    rank = np.arange(len(rows)) - np.repeat(matrix.indptr[:-1], lengths)
    kept = np.sort(order[rank < n_kept])
    indptr = np.concatenate([[0], np.cumsum(np.minimum(lengths, n_kept))])
    return csr_matrix((matrix.data[kept], matrix.indices[kept], indptr), shape=matrix.shape)


class ItemKNN:
    """Score of item j = Σ_i h_i C_ij / ((n_i + 3)^a (n_j + 3)^b) over the history, h_i faded by ``decay`` a visit.

    C_ij = Σ over users who took both of exp(−pair_decay × visits apart); n = support. Above ``ALL_NEIGHBOURS`` items
    only each item's ``n_neighbours`` strongest neighbours are kept.

    decay: fading of the history a visit. pair_decay: fading of a pair a visit between its two items.
    history_exponent, candidate_exponent: a and b; larger says less of popular items.
    n_neighbours: neighbours kept an item; None: all up to 20,000 items, 200 above.
    Scores: 0 where nothing co-occurred; NaN for items without any event in the fit, and for histories without a known
    item. Known limit: an item's new neighbours need a refit.
    """

    name = "item_knn"
    depends_on_list = False

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
        self._weights: csr_matrix | None = None  # row: history item, column: candidate
        self._seen: FloatArray | None = None  # 1 where the item has an event in the fit

    def fit(self, past: Interactions, items: Items, *, seed: int = 0) -> Self:
        """Count pairs; nothing is drawn at random."""
        counts, support = co_occurrence(past, self.pair_decay)
        history_scale = (support + SUPPORT_OFFSET) ** -self.history_exponent
        candidate_scale = (support + SUPPORT_OFFSET) ** -self.candidate_exponent
        weights = (diags_array(history_scale) @ counts @ diags_array(candidate_scale)).tocsr().astype(np.float32)
        weights.sort_indices()
        n_kept = self.n_neighbours or (past.n_items if past.n_items <= ALL_NEIGHBOURS else LARGE_NEIGHBOURS)
        self._weights = keep_largest(csr_matrix(weights), n_kept)
        self._seen = (support > 0).astype(np.float32)
        return self

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items)."""
        if self._weights is None or self._seen is None:
            raise NotFittedError("item_knn has no neighbours yet; call fit or load first")
        history = history_matrix(cases, len(self._seen), decay=self.decay)
        scores = (history @ self._weights).toarray()
        scores[:, self._seen == 0] = np.nan
        scores[history @ self._seen == 0] = np.nan
        return scores

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,)."""
        return score_candidates(self, cases)

    def save(self, folder: Path) -> None:
        """Write one file."""
        if self._weights is None or self._seen is None:
            raise NotFittedError("item_knn has no neighbours yet; call fit or load first")
        settings = {
            "decay": self.decay,
            "pair_decay": self.pair_decay,
            "history_exponent": self.history_exponent,
            "candidate_exponent": self.candidate_exponent,
            "n_neighbours": self.n_neighbours,
        }
        write_arrays(folder / _FILE, {"seen": self._seen, **sparse_arrays(self._weights, "weights")}, settings)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote."""
        arrays, settings = read_arrays(folder / _FILE)
        scorer = cls(**settings)
        scorer._weights, scorer._seen = sparse_from(arrays, "weights"), arrays["seen"]
        return scorer


SUPPORT_OFFSET = 3.0
ALL_NEIGHBOURS = 20_000
LARGE_NEIGHBOURS = 200
