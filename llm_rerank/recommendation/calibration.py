"""From a fused score to a probability: logistic regression on score, log history length and log item support.

The score enters by a rising line with a bend or two, because the first ranks are hotter than a straight one says. The
probability answers: is this candidate the user's next new item, given that it was on the list?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llm_rerank.types import FloatArray

if TYPE_CHECKING:
    from llm_rerank.types import BoolArray

Float64Array = npt.NDArray[np.float64]

LEAST_POSITIVES = 10

Bends = Sequence[tuple[int, Sequence[float]]]

KNOTS: Bends = ((100, (0.25, 0.5, 0.75)), (40, (0.5,)))
"""Where the line bends: from so many positives on, at these quantiles of their scores; below, nowhere.

Three bends lower the calibration error of the first ten on held-out users (``python -m benchmarks.calibrator_bends``).
"""


@dataclass(frozen=True)
class LogisticCalibrator:
    """P(target) = 1 / (1 + exp(−(intercept + coefficients · (segments of the score, user_support, item_support)))).

    knots: scores at which the line bends, rising; with none it is Platt scaling ("Probabilistic outputs for support
    vector machines", 1999) with two further inputs. coefficients: float64, shape (len(knots) + 3,): the slope of each
    segment, none negative, so that a higher score never means a lower probability for the same user and item support;
    then those of the supports, log1p counts.
    """

    intercept: float
    coefficients: Float64Array
    n_positives: int
    knots: tuple[float, ...] = ()

    def probability(self, scores: Float64Array, user_support: FloatArray, item_support: FloatArray) -> FloatArray:
        """Probabilities: float32, shape (n_candidates,); NaN where the score is NaN."""
        linear = self.intercept + _inputs(scores, user_support, item_support, self.knots) @ self.coefficients
        with np.errstate(over="ignore"):
            return (1.0 / (1.0 + np.exp(-linear))).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "intercept": self.intercept,
            "coefficients": self.coefficients.tolist(),
            "n_positives": self.n_positives,
            "knots": list(self.knots),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LogisticCalibrator:
        """Rebuild from ``to_dict``'s values."""
        coefficients = np.asarray(values["coefficients"], dtype=np.float64)
        return cls(values["intercept"], coefficients, values["n_positives"], tuple(values.get("knots", ())))


def _inputs(
    scores: Float64Array, user_support: FloatArray, item_support: FloatArray, knots: tuple[float, ...]
) -> Float64Array:
    """Lay out the inputs of the regression: the part of each score in each segment between knots, then the supports."""
    values = np.asarray(scores, dtype=np.float64)
    ends = (*knots, np.inf)
    segments = [np.minimum(values, ends[0])]
    segments += [np.clip(values - start, 0.0, end - start) for start, end in pairwise(ends)]
    return np.stack([*segments, user_support, item_support], axis=1)


def fit_calibrator(
    scores: Float64Array,
    user_support: FloatArray,
    item_support: FloatArray,
    positive: BoolArray,
    *,
    penalty: float = 1e-3,
    bends: Bends = KNOTS,
) -> LogisticCalibrator | None:
    """Fit by penalised maximum likelihood; all arrays of shape (n_candidates,). bends: as ``KNOTS``.

    Returns None with fewer than 10 positives, or without negatives: no probability is better than an invented one.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    n_positives = int(positive.sum())
    if n_positives < LEAST_POSITIVES or n_positives == len(positive):
        return None
    quantiles = next((quantiles for least, quantiles in bends if n_positives >= least), ())
    knots = tuple(np.unique(np.quantile(scores[positive], quantiles)).tolist()) if quantiles else ()
    inputs = _inputs(scores, user_support, item_support, knots)
    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0)
    varies = deviation > 1e-12
    deviation = np.where(varies, deviation, 1.0)
    design = np.column_stack([np.ones(len(inputs)), (inputs - mean) / deviation])
    labels = positive.astype(np.float64)
    n_segments = len(knots) + 1
    stiffness = np.array([0.0] + [penalty] * (n_segments + 2))

    def objective(weights: Float64Array) -> tuple[float, Float64Array]:
        linear = design @ weights
        loss = np.logaddexp(0.0, linear).sum() - labels @ linear + 0.5 * stiffness @ weights**2
        return float(loss), design.T @ (expit(linear) - labels) + stiffness * weights

    rate = labels.mean()
    first = np.zeros(n_segments + 3)
    first[0] = np.log(rate / (1.0 - rate))
    # a column that never varies has no gradient, so whatever it starts from would stay as its slope
    first[1 : n_segments + 1] = np.where(varies[:n_segments] & (np.cumsum(varies[:n_segments]) == 1), 0.5, 0.0)
    bounds = [(None, None), *[(0.0, None)] * n_segments, (None, None), (None, None)]
    found = minimize(objective, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
    coefficients = found.x[1:] / deviation
    return LogisticCalibrator(float(found.x[0] - coefficients @ mean), coefficients, n_positives, knots)
