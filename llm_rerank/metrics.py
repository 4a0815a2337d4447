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

from llm_rerank.types import BoolArray, DataError, FloatArray, IntArray, Ragged

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


def intra_list_distance(ranked: Ragged, vectors: FloatArray, k: int) -> Float64Array:
    """Mean of 1 − cosine over all pairs of a list's first k items: float64, shape (n_lists,).

    Intra-list diversity of Smyth and McClave, "Similarity vs. diversity", 2001; Ziegler et al., "Improving
    recommendation lists through topic diversification", 2005. 0: all alike; about 1: unrelated.
    ranked: item codes, best first. vectors: float32, shape (n_items, size), of any length; an item without one (zeros,
    NaN, a code that is none) is left out of the pairs. NaN where fewer than two are left.
    """
    sums, counts = np.zeros(len(ranked)), np.zeros(len(ranked))
    width = int(min(k, ranked.lengths.max(initial=0)))
    step = max(1, 2**22 // max(width * vectors.shape[1], 1))
    for start in range(0, len(ranked), step):
        lists = np.arange(start, min(start + step, len(ranked)))
        inside = np.arange(width) < ranked.lengths[lists, None]
        codes = np.full(inside.shape, -1, dtype=np.int64)
        codes[inside] = ranked.values[(ranked.offsets[lists, None] + np.arange(width))[inside]]
        known = (codes >= 0) & (codes < len(vectors))
        found = np.zeros((*codes.shape, vectors.shape[1]))
        found[known] = vectors[codes[known]]
        norms = np.linalg.norm(found, axis=2, keepdims=True)
        says = norms > 1e-6
        unit = np.where(says, found / np.where(says, norms, 1.0), 0.0)
        n = says.sum(axis=(1, 2))
        # Σ over ordered pairs of the cosine = |Σ u|² − Σ |u|²
        sums[lists] = n * (n - 1) - ((unit.sum(axis=1) ** 2).sum(axis=1) - n)
        counts[lists] = n * (n - 1)
    return _divide(sums, counts)


def long_tail_share_at_k(ranked: Ragged, counts: IntArray, k: int, head_share: float = 0.2) -> Float64Array:
    """Share of a list's first k items that lie in the long tail: float64, shape (n_lists,); NaN for an empty list.

    The head is the ``head_share`` of the catalogue's items with the most interactions, rounded up, ties in order of
    code; the tail is all others. Its mean over lists is APLT of Abdollahpouri, Burke and Mobasher, "Managing
    popularity bias in recommender systems with personalized re-ranking", 2019.
    ranked: item codes, best first, all of the catalogue. counts: interactions of each item, shape (n_items,).

    Raises DataError where head_share is not in (0, 1).
    """
    if not 0 < head_share < 1:
        raise DataError(f"head_share is {head_share}; it must lie in (0, 1), for example 0.2")
    in_tail = np.ones(len(counts), dtype=np.bool_)
    in_tail[np.argsort(-counts, kind="stable")[: int(np.ceil(head_share * len(counts)))]] = False
    rows = ranked.row_of_value
    shown = np.arange(len(rows), dtype=np.int64) - ranked.offsets[:-1][rows] < k
    tail = in_tail[ranked.values[shown]]
    return _divide(np.bincount(rows[shown], tail, len(ranked)), np.bincount(rows[shown], minlength=len(ranked)))


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
