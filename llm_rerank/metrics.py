"""What a ranked list or a kept set is worth: pure functions over arrays, one value a case.

Probabilities are judged in ``reliability.py``; means, intervals and tests are in ``statistics.py``; which lists are
compared with what is in ``evaluation/``.
Ranking metrics read a *hit matrix*: is the item at this rank of this case's list one of its targets? A target that is
not on the list scores 0; a case without targets scores NaN, because nothing can be said of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_rerank.types import BoolArray, DataError, IntArray, Ragged

Float64Array = npt.NDArray[np.float64]


def hit_matrix(ranked: Ragged, targets: Ragged, k: int) -> BoolArray:
    """Tell which of the first k ranks hold a target: bool, shape (n_cases, k); ranks after a list's end are False.

    ranked: item codes, best first, one row a case; an item listed twice can hit at its first rank only, and a code
    below 0 never. targets: item codes, distinct within a row.

    Raises DataError where the numbers of rows differ or k is below 1.
    """
    if len(ranked) != len(targets):
        raise DataError(f"ranked has {len(ranked)} rows and targets {len(targets)}; give one row a case in both")
    if k < 1:
        raise DataError(f"k is {k}; it must be at least 1")
    rows = ranked.row_of_value
    ranks = np.arange(len(ranked.values), dtype=np.int64) - ranked.offsets[:-1][rows]
    first_k = (ranks < k) & (ranked.values >= 0)
    rows, ranks, codes = rows[first_k], ranks[first_k], ranked.values[first_k]
    stride = np.int64(max(codes.max(initial=0), targets.values.max(initial=0)) + 1)
    keys = rows * stride + codes
    wanted = targets.values >= 0
    hit = np.isin(keys, targets.row_of_value[wanted] * stride + targets.values[wanted])
    keys, rows, ranks = keys[hit], rows[hit], ranks[hit]
    # np.unique reports the first place of each (case, item), which is its best rank
    first = np.unique(keys, return_index=True)[1]
    hits = np.zeros((len(ranked), k), dtype=np.bool_)
    hits[rows[first], ranks[first]] = True
    return hits


def ndcg_at_k(hits: BoolArray, n_targets: IntArray, k: int) -> Float64Array:
    """Normalised discounted cumulative gain of binary targets: float64, shape (n_cases,).

    DCG = Σ hit_r / log2(r + 1) over ranks r = 1..k; divided by the DCG of min(k, n_targets) hits at the top.
    Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002.
    hits: shape (n_cases, at least k). n_targets: shape (n_cases,).
    """
    top = _top(hits, k)
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    return _divide(top @ discounts, best_dcg(n_targets, k))


def best_dcg(n_targets: IntArray, k: int) -> Float64Array:
    """DCG@k of a list that opens with all its targets: float64, shape (n_cases,)."""
    totals = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])
    return totals[np.minimum(n_targets, k)]


def hit_rate_at_k(hits: BoolArray, n_targets: IntArray, k: int) -> Float64Array:
    """1 where any target is among the first k, else 0: float64, shape (n_cases,)."""
    return np.where(n_targets > 0, _top(hits, k).any(axis=1).astype(np.float64), np.nan)


def precision_at_k(hits: BoolArray, n_targets: IntArray, k: int) -> Float64Array:
    """Hits among the first k, divided by k also where the list is shorter: float64, shape (n_cases,)."""
    return np.where(n_targets > 0, _top(hits, k).sum(axis=1) / k, np.nan)


def recall_at_k(hits: BoolArray, n_targets: IntArray, k: int) -> Float64Array:
    """Hits among the first k, divided by the number of targets: float64, shape (n_cases,)."""
    return _divide(_top(hits, k).sum(axis=1), n_targets)


def average_precision_at_k(hits: BoolArray, n_targets: IntArray, k: int) -> Float64Array:
    """Average precision, whose mean over cases is MAP@k: float64, shape (n_cases,).

    Σ precision@r · hit_r over ranks r = 1..k, divided by min(k, n_targets), so that a list full of targets scores 1.
    (trec_eval divides by n_targets, which keeps a perfect list of k below 1 where there are more than k targets; the
    two agree where n_targets ≤ k.)
    """
    top = _top(hits, k)
    precisions = np.cumsum(top, axis=1) / np.arange(1, k + 1)
    return _divide((precisions * top).sum(axis=1), np.minimum(n_targets, k))


def reciprocal_rank(hits: BoolArray, n_targets: IntArray) -> Float64Array:
    """One over the rank of the first hit in the whole matrix, 0 without a hit; its mean is MRR.

    Returns float64, shape (n_cases,).
    """
    if hits.shape[1] == 0:
        return np.where(n_targets > 0, 0.0, np.nan)
    found = np.where(hits.any(axis=1), 1.0 / (hits.argmax(axis=1) + 1.0), 0.0)
    return np.where(n_targets > 0, found, np.nan)


def coverage_at_k(ranked: Ragged, n_items: int, k: int) -> float:
    """Share of the catalogue that is among the first k of at least one list."""
    ranks = np.arange(len(ranked.values), dtype=np.int64) - np.repeat(ranked.offsets[:-1], ranked.lengths)
    shown = ranked.values[(ranks < k) & (ranked.values >= 0)]
    return len(np.unique(shown)) / n_items if n_items else float("nan")


def _top(hits: BoolArray, k: int) -> BoolArray:
    if not 1 <= k <= hits.shape[1]:
        raise DataError(f"k is {k} and hits has {hits.shape[1]} ranks; build it with hit_matrix(ranked, targets, {k})")
    return hits[:, :k]


def _divide(numerator: npt.NDArray[np.generic], denominator: npt.NDArray[np.generic]) -> Float64Array:
    """Quotient; NaN where the denominator is 0."""
    out = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=out, where=np.asarray(denominator) > 0)


@dataclass(frozen=True)
class Classification:
    """How well a kept set separates targets from the rest, pooled over candidates.

    accuracy: share of candidates rightly kept or rightly rejected. base_rate: the accuracy of giving every candidate
    the commoner label; with one target in 100 candidates "reject all" is right in 99 %, so accuracy is read beside it.
    precision: NaN where nothing is kept. recall: NaN where there is no target.
    """

    accuracy: float
    base_rate: float
    precision: float
    recall: float
    n: int


def classification(kept: BoolArray, positive: BoolArray) -> Classification:
    """Compare what was kept with what was a target; both bool, shape (n_candidates,), not empty."""
    if kept.shape != positive.shape or kept.size == 0:
        raise DataError(f"kept has shape {kept.shape} and positive {positive.shape}; give equal, non-empty shapes")
    n_kept, n_positive, n_right = int(kept.sum()), int(positive.sum()), int((kept & positive).sum())
    rate = n_positive / positive.size
    return Classification(
        accuracy=float((kept == positive).mean()),
        base_rate=max(rate, 1.0 - rate),
        precision=n_right / n_kept if n_kept else float("nan"),
        recall=n_right / n_positive if n_positive else float("nan"),
        n=int(positive.size),
    )
