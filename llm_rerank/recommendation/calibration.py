"""From a fused score to a probability: logistic regression on score, log history length and log item support.

The score enters by a rising line with a bend or two, because the first ranks are hotter than a straight one says. The
probability answers: is this candidate the user's next new item, given that it was on the list?

Scores of a list know nothing of their level, and what a score means differs most for users who have done little. So
there is a second line for users without a history, fitted together with the first on histories cut short; between them
the log-odds move with ``shortness``, as the blend's weights do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llm_rerank.recommendation.blend_columns import shortness
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
    then those of the supports, log1p counts. newcomers: the line of users without a history, on the same knots, which
    fades out as ``shortness`` says; None: the one line is everybody's.
    """

    intercept: float
    coefficients: Float64Array
    n_positives: int
    knots: tuple[float, ...] = ()
    newcomers: LogisticCalibrator | None = None

    def probability(self, scores: Float64Array, user_support: FloatArray, item_support: FloatArray) -> FloatArray:
        """Probabilities: float32, shape (n_candidates,); NaN where the score is NaN."""
        inputs = _inputs(scores, user_support, item_support, self.knots)
        linear = self._log_odds(inputs)
        if self.newcomers is not None:
            linear += shortness(user_support) * (self.newcomers._log_odds(inputs) - linear)
        with np.errstate(over="ignore"):
            return (1.0 / (1.0 + np.exp(-linear))).astype(np.float32)

    def _log_odds(self, inputs: Float64Array) -> Float64Array:
        return self.intercept + inputs @ self.coefficients

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "intercept": self.intercept,
            "coefficients": self.coefficients.tolist(),
            "n_positives": self.n_positives,
            "knots": list(self.knots),
            "newcomers": None if self.newcomers is None else self.newcomers.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LogisticCalibrator:
        """Rebuild from ``to_dict``'s values."""
        coefficients = np.asarray(values["coefficients"], dtype=np.float64)
        newcomers = values.get("newcomers")
        return cls(
            values["intercept"],
            coefficients,
            values["n_positives"],
            tuple(values.get("knots", ())),
            None if newcomers is None else cls.from_dict(newcomers),
        )


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
    short: BoolArray | None = None,
    penalty: float = 1e-3,
    bends: Bends = KNOTS,
) -> LogisticCalibrator | None:
    """Fit by penalised maximum likelihood; all arrays of shape (n_candidates,). bends: as ``KNOTS``.

    short: which candidates are on lists of histories cut short. With ten positives or more among them they teach, and
    there is a line for newcomers; else they are left out. Returns None with fewer than 10 positives on the other lists,
    or without negatives there: no probability is better than an invented one.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    short = np.zeros(len(positive), dtype=np.bool_) if short is None else short
    n_positives, of_whole = int((positive & ~short).sum()), int((~short).sum())
    if n_positives < LEAST_POSITIVES or n_positives == of_whole:
        return None
    fades = int((positive & short).sum()) >= LEAST_POSITIVES
    if not fades and short.any():
        scores, positive = scores[~short], positive[~short]
        user_support, item_support = user_support[~short], item_support[~short]
    quantiles = next((quantiles for least, quantiles in bends if n_positives >= least), ())
    knots = tuple(np.unique(np.quantile(scores[positive], quantiles)).tolist()) if quantiles else ()
    inputs = _inputs(scores, user_support, item_support, knots)
    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0)
    varies = deviation > 1e-12
    deviation = np.where(varies, deviation, 1.0)
    line = np.column_stack([np.ones(len(inputs)), (inputs - mean) / deviation])
    short_part = shortness(user_support).astype(np.float64)[:, None]
    design = np.concatenate([(1 - short_part) * line, short_part * line], axis=1) if fades else line
    labels = positive.astype(np.float64)
    n_lines, n_segments = 1 + fades, len(knots) + 1
    stiffness = np.tile([0.0, *[penalty] * (n_segments + 2)], n_lines)

    def objective(weights: Float64Array) -> tuple[float, Float64Array]:
        linear = design @ weights
        loss = np.logaddexp(0.0, linear).sum() - labels @ linear + 0.5 * stiffness @ weights**2
        return float(loss), design.T @ (expit(linear) - labels) + stiffness * weights

    rate = labels.mean()
    # a column that never varies has no gradient, so whatever it starts from would stay as its slope
    slopes = np.where(varies[:n_segments] & (np.cumsum(varies[:n_segments]) == 1), 0.5, 0.0)
    first = np.tile([np.log(rate / (1.0 - rate)), *slopes, 0.0, 0.0], n_lines)
    bounds = [(None, None), *[(0.0, None)] * n_segments, (None, None), (None, None)] * n_lines
    found = minimize(objective, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})

    def calibrator(weights: Float64Array, newcomers: LogisticCalibrator | None) -> LogisticCalibrator:
        coefficients = weights[1:] / deviation
        return LogisticCalibrator(float(weights[0] - coefficients @ mean), coefficients, n_positives, knots, newcomers)

    lines = found.x.reshape(n_lines, -1)
    return calibrator(lines[0], calibrator(lines[1], None) if fades else None)
