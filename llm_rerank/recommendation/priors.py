"""What a blend's weights are shrunk toward: the default component alone, the sum of all, and another shop's weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_rerank.models.conditional_logit import Float64Array, fit_conditional_logit
from llm_rerank.recommendation.blend_columns import LINEAR
from llm_rerank.recommendation.candidates import ndcg_of
from llm_rerank.recommendation.guard import RUNGS
from llm_rerank.types import BoolArray, FloatArray, Ragged


def priors_of_rungs(
    design: FloatArray,
    names: tuple[str, ...],
    component_names: Sequence[str],
    rows: Ragged,
    positive: BoolArray,
    targets: Ragged,
    default: str,
    lent: Float64Array | None,
) -> list[Float64Array]:
    """Weights that each rung shrinks toward, one float64 array of shape (n_columns,) a rung of ``RUNGS``.

    The default component's root or the sum of the linear scores, at the scale that is likeliest; with another shop's
    weights for these columns, where there are any (``_with_lent``).
    """
    alone = np.array(names) == default
    together = np.isin(names, [f"{name}{LINEAR}" for name in component_names])
    priors = [at_best_scale(design, columns, rows, positive) for columns in (alone, together)]
    if lent is not None:
        priors = [_with_lent(prior, lent, design, rows, targets) for prior in priors]
    return [prior for prior in priors for _ in range(len(RUNGS) // 2)]


def _with_lent(
    own: Float64Array, lent: Float64Array, design: FloatArray, rows: Ragged, targets: Ragged
) -> Float64Array:
    """Take another shop's weights or the own prior, whichever ranks these cases better by over a standard error.

    Else their mean: a shop of another kind can cost a young one a fifth of its NDCG (benchmarks/start_from.py).
    """
    by_prior = [ndcg_of(design @ weights, rows, targets)[targets.lengths > 0] for weights in (own, lent)]
    gain = by_prior[1] - by_prior[0]
    error = float(gain.std(ddof=1)) / len(gain) ** 0.5 if len(gain) > 1 else np.inf
    if abs(gain.mean()) > error:
        return lent if gain.mean() > 0 else own
    return (own + lent) / 2


def at_best_scale(
    design: FloatArray | Float64Array, columns: BoolArray, rows: Ragged, positive: BoolArray
) -> Float64Array:
    """Weigh these columns (bool, shape (n_columns,)) alike, at the likeliest scale, and all others 0."""
    total = design[:, columns].sum(axis=1, keepdims=True)
    scale = fit_conditional_logit(total, rows, positive, prior=np.zeros(1), penalty=1e-3)
    # a score that ranks against the data would turn its own list over; it then keeps its order at a small scale
    return np.where(columns, max(float(scale[0]), 1e-3), 0.0)
