"""From a fused score to a probability: Platt scaling over score, log history length and log item support.

The probability answers: is this candidate the user's next new item, given that it was on the list?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llm_rerank.types import FloatArray

if TYPE_CHECKING:
    from llm_rerank.types import BoolArray

Float64Array = npt.NDArray[np.float64]

LEAST_POSITIVES = 10


@dataclass(frozen=True)
class PlattCalibrator:
    """P(target) = 1 / (1 + exp(−(intercept + coefficients · (score, user_support, item_support)))).

    coefficients: float64, shape (3,); supports are log1p counts. Platt, "Probabilistic outputs for support vector
    machines", 1999. The coefficient of the score is never negative: a higher score never means a lower probability
    for the same user and item support.
    """

    intercept: float
    coefficients: Float64Array
    n_positives: int

    def probability(self, scores: Float64Array, user_support: FloatArray, item_support: FloatArray) -> FloatArray:
        """Probabilities: float32, shape (n_candidates,); NaN where the score is NaN."""
        linear = self.intercept + _inputs(scores, user_support, item_support) @ self.coefficients
        with np.errstate(over="ignore"):
            return (1.0 / (1.0 + np.exp(-linear))).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "intercept": self.intercept,
            "coefficients": self.coefficients.tolist(),
            "n_positives": self.n_positives,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PlattCalibrator:
        """Rebuild from ``to_dict``'s values."""
        coefficients = np.asarray(values["coefficients"], dtype=np.float64)
        return cls(values["intercept"], coefficients, values["n_positives"])


def _inputs(scores: Float64Array, user_support: FloatArray, item_support: FloatArray) -> Float64Array:
    return np.stack([np.asarray(scores, dtype=np.float64), user_support, item_support], axis=1)


def fit_platt(
    scores: Float64Array,
    user_support: FloatArray,
    item_support: FloatArray,
    positive: BoolArray,
    *,
    penalty: float = 1e-3,
) -> PlattCalibrator | None:
    """Fit by penalised maximum likelihood; all arrays of shape (n_candidates,).

    Returns None with fewer than 10 positives, or without negatives: no probability is better than an invented one.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    n_positives = int(positive.sum())
    if n_positives < LEAST_POSITIVES or n_positives == len(positive):
        return None
    inputs = _inputs(scores, user_support, item_support)
    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0)
    deviation = np.where(deviation > 1e-12, deviation, 1.0)
    design = np.column_stack([np.ones(len(inputs)), (inputs - mean) / deviation])
    labels = positive.astype(np.float64)
    stiffness = np.array([0.0, penalty, penalty, penalty])

    def objective(weights: Float64Array) -> tuple[float, Float64Array]:
        linear = design @ weights
        loss = np.logaddexp(0.0, linear).sum() - labels @ linear + 0.5 * stiffness @ weights**2
        return float(loss), design.T @ (expit(linear) - labels) + stiffness * weights

    rate = labels.mean()
    first = np.array([np.log(rate / (1.0 - rate)), 0.5, 0.0, 0.0])
    bounds = [(None, None), (0.0, None), (None, None), (None, None)]
    found = minimize(objective, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
    coefficients = found.x[1:] / deviation
    return PlattCalibrator(float(found.x[0] - coefficients @ mean), coefficients, n_positives)
