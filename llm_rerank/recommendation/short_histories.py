"""Users who have done little are blended by other weights, which fade out as their histories grow.

Held-out users have come twice at least, most of them often: what whole histories teach a blend ranks newcomers worse
than what sells (benchmarks/short_histories.py). So some held-out histories are asked once more cut short, and a second
blend learns from both. It ranks where there is no history, the first one from forty events on, and between them the
weights move from the one to the other: score = design · w + shortness · design · (w_short − w), linear in columns.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from llm_rerank.recommendation.candidates import ndcg_of
from llm_rerank.recommendation.fusion import SHORT_HISTORY, SUPPORT_CAP, Blend, FusionFit
from llm_rerank.recommendation.guard import judged_again
from llm_rerank.types import FloatArray, Ragged


def shortness(user_support: FloatArray) -> FloatArray:
    """How much the weights of short histories count: 1 without events, 0 from forty on; float32, shape as given."""
    return np.maximum(1 - user_support / SUPPORT_CAP, 0).astype(np.float32)


def with_short_columns(design: FloatArray, user_support: FloatArray) -> FloatArray:
    """Lay each column out once more, times ``shortness``: float32, shape (n_candidates, 2 × n_columns)."""
    return np.concatenate([design, design * shortness(user_support)[:, None]], axis=1)


def knows_short_histories(blend: Blend) -> bool:
    """Tell whether a blend has weights for ``with_short_columns``."""
    return any(name.endswith(SHORT_HISTORY) for name in blend.names)


def fading_into(
    whole: FusionFit,
    both: FusionFit,
    short_rows: Ragged,
    short_targets: Ragged,
    rows: Ragged,
    targets: Ragged,
    user_support: FloatArray,
    seed: int,
) -> FusionFit:
    """Give a blend taught by whole histories the weights that short ones too have taught, where these rank better.

    Both have out-of-fold scores of the lists of whole histories, then of the short ones, whose rows and targets follow;
    better is judged by NDCG@10 of the latter. rows, targets, user_support: of whole histories, whose scores change too
    as far as they are short. The result has the out-of-fold scores of these alone.
    """
    n = len(user_support)
    of_short = [np.nansum(ndcg_of(fit.out_of_fold[n:], short_rows, short_targets)) for fit in (whole, both)]
    whole = replace(whole, out_of_fold=whole.out_of_fold[:n])
    if both.default_ndcg is None or whole.default_ndcg is None or of_short[1] <= of_short[0]:
        return whole
    out_of_fold = whole.out_of_fold + shortness(user_support) * (both.out_of_fold[:n] - whole.out_of_fold)
    ndcg = ndcg_of(out_of_fold, rows, targets)[targets.lengths > 0]
    verdict = judged_again(whole.verdict, ndcg, whole.default_ndcg, seed)
    if not verdict.kept_blend:
        return whole
    names, weights = whole.blend.names, whole.blend.weights
    blend = replace(
        whole.blend,
        names=(*names, *(f"{name}{SHORT_HISTORY}" for name in names)),
        weights=np.concatenate([weights, both.blend.weights - weights]),
    )
    return replace(whole, blend=blend, verdict=verdict, out_of_fold=out_of_fold)
