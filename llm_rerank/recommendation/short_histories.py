"""Users who have done little are blended by other weights, which fade out as their histories grow.

Held-out users have come twice at least, most of them often: what whole histories teach a blend ranks newcomers worse
than what sells (benchmarks/short_histories.py). So some held-out histories are asked once more cut short, and a second
blend learns from both, at the penalties of the first. It ranks where there is no history, the first one from forty
events on, and between them the weights move from the one to the other: score = design · w + shortness · design ·
(w_short − w), linear in columns.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from llm_rerank.models.conditional_logit import Float64Array
from llm_rerank.recommendation.blend_columns import SHORT_HISTORY, shortness
from llm_rerank.recommendation.cross_fitting import Lists, fit_across_folds, fit_shares, sum_of_shares
from llm_rerank.recommendation.fusion import SHARPNESS, Blend, FusionFit, fold_of_case, shares_of_rungs
from llm_rerank.recommendation.guard import judged_again
from llm_rerank.types import FloatArray


def knows_short_histories(blend: Blend) -> bool:
    """Tell whether a blend has weights for ``with_short_columns``."""
    return any(name.endswith(SHORT_HISTORY) for name in blend.names)


def taught_by_both(
    whole: FusionFit,
    lists: Lists,
    user_support: FloatArray,
    *,
    start: Blend | None,
    seed: int,
    sharpness: float = SHARPNESS,
) -> tuple[Float64Array, Float64Array]:
    """Fit the rungs of a fitted blend once more, at their penalties, on lists of whole and of short histories.

    Their shares are told by NDCG@10 of all lists as they would be served (``shares_of_rungs``): told by the short ones
    alone they cost the others where most histories are short (docs/lab-notebook.md). Returns the weights (float64,
    shape (n_columns,)) and scores of all lists out of fold (float64, shape (n_candidates,)), which no list of the same
    case has taught.
    """
    assert whole.chosen is not None
    rungs, defaults = whole.chosen.rungs, whole.chosen.defaults
    lent = None if start is None else start.on(lists.names)
    everything = np.ones(len(lists.rows), dtype=np.bool_)
    folds = fold_of_case(lists.n_cases, len(defaults), seed)[lists.case_of]
    fits = fit_across_folds(lists, everything, folds, defaults, lent, rungs)
    served = (_served(whole.out_of_fold, fits[pair].scores, user_support) for pair in rungs)
    by_rung = np.stack([lists.ndcg(scores)[lists.targets.lengths > 0] for scores in served])
    of_rungs = shares_of_rungs(by_rung, sharpness)
    shares = dict(zip(rungs, of_rungs.tolist(), strict=True))
    weights = fit_shares(lists, everything, whole.blend.default, lent, fits, shares)
    return weights, sum_of_shares({pair: fits[pair].scores for pair in rungs}, shares)


def _served(by_whole: Float64Array, by_both: Float64Array, user_support: FloatArray) -> Float64Array:
    return by_whole + shortness(user_support) * (by_both - by_whole)


def fading_into(
    whole: FusionFit,
    lists: Lists,
    user_support: FloatArray,
    *,
    start: Blend | None,
    seed: int,
    sharpness: float = SHARPNESS,
) -> FusionFit:
    """Give a blend taught by whole histories the weights that short ones too have taught, where these rank better.

    Better is judged by NDCG@10 of all lists out of fold, whole histories and short ones, as they are then served; the
    guard judges the former again. user_support: of the candidates of all lists, log1p counts. start, sharpness:
    see ``fit_fusion``. Where no blend was fitted or kept, nothing changes.
    """
    if whole.chosen is None or whole.default_ndcg is None or lists.whole.all():
        return whole
    weights, scores = taught_by_both(whole, lists, user_support, start=start, seed=seed, sharpness=sharpness)
    faded = _served(whole.out_of_fold, scores, user_support)
    before, after = (np.nanmean(lists.ndcg(values)) for values in (whole.out_of_fold, faded))
    if after <= before:
        return whole
    verdict = judged_again(whole.verdict, lists.ndcg(faded)[lists.judged], whole.default_ndcg, seed)
    if not verdict.kept_blend:
        return whole
    names, own = whole.blend.names, whole.blend.weights
    blend = replace(
        whole.blend,
        names=(*names, *(f"{name}{SHORT_HISTORY}" for name in names)),
        weights=np.concatenate([own, weights - own]),
    )
    return replace(whole, blend=blend, verdict=verdict, out_of_fold=faded)
