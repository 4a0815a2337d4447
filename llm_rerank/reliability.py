"""What a probability is worth: reliability by bins, calibration error, Brier skill, the calibration line.

Intervals take whole cases (lists) as the unit that is drawn: the candidates of one list are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_rerank.statistics import Interval
from llm_rerank.types import BoolArray, DataError, FloatArray, IntArray

Float64Array = npt.NDArray[np.float64]
RealArray = FloatArray | Float64Array

LEAST_CASES = 10
"""Fewer cases give no interval: neither resampling nor the sandwich estimator says anything on a handful."""


@dataclass(frozen=True)
class ReliabilityBins:
    """Mean probability and observed share of positives by bin; all of shape (n_bins,), empty bins left out."""

    probability: Float64Array
    observed: Float64Array
    counts: IntArray


def reliability_bins(probabilities: RealArray, positive: BoolArray, n_bins: int = 10) -> ReliabilityBins:
    """Cut cases into bins of equal mass by probability; equal probabilities always share a bin.

    Equal mass, not equal width: most candidates have a probability near 0, so equal widths would measure one bin.
    probabilities, positive: shape (n,), without NaN.
    """
    probabilities, labels = _checked(probabilities, positive)
    ordered = np.sort(probabilities)
    # the bin of the first of its ties, so that the cut does not depend on the order of the input
    bins = np.searchsorted(ordered, probabilities, side="left") * n_bins // len(ordered)
    counts = np.bincount(bins, minlength=n_bins)
    filled = counts > 0
    return ReliabilityBins(
        probability=np.bincount(bins, probabilities, n_bins)[filled] / counts[filled],
        observed=np.bincount(bins, labels, n_bins)[filled] / counts[filled],
        counts=counts[filled].astype(np.int64),
    )


def expected_calibration_error(probabilities: RealArray, positive: BoolArray, n_bins: int = 10) -> float:
    """Σ share of bin · |observed − mean probability| over bins of equal mass (``reliability_bins``).

    Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", 2015. Known limit: biased upward
    on few cases, since the observed share of a small bin is noisy.
    """
    bins = reliability_bins(probabilities, positive, n_bins)
    return float(bins.counts @ np.abs(bins.observed - bins.probability) / bins.counts.sum())


def calibration_error_of_noise(probabilities: RealArray, positive: BoolArray, n_bins: int = 10) -> float:
    """Give the calibration error that perfect probabilities would show on so many cases: the floor of the ECE.

    A bin of n outcomes with mean probability p misses it by √(2 p (1 − p) / (π n)) on average (normal approximation).
    positive: read for its shape alone, so that both functions take the same bins.
    """
    bins = reliability_bins(probabilities, positive, n_bins)
    misses = np.sqrt(2.0 * bins.probability * (1.0 - bins.probability) / (np.pi * bins.counts))
    return float(bins.counts @ misses / bins.counts.sum())


def brier_score(probabilities: RealArray, positive: BoolArray) -> float:
    """Mean squared difference of probability and outcome (Brier, 1950): 0 is perfect."""
    probabilities, labels = _checked(probabilities, positive)
    return float(np.mean((probabilities - labels) ** 2))


def brier_skill(probabilities: RealArray, positive: BoolArray, base_rate: float | None = None) -> float:
    """1 − Brier / Brier of giving everyone the base rate: 1 is perfect, 0 no better than the rate, below 0 worse.

    base_rate: None takes the rate of these very cases, the hardest reference; NaN where all outcomes are equal.
    """
    rate = float(np.mean(positive)) if base_rate is None else base_rate
    reference = brier_score(np.full(np.shape(positive), rate), positive)
    return 1.0 - brier_score(probabilities, positive) / reference if reference > 0 else float("nan")


def brier_skill_interval(
    probabilities: RealArray, positive: BoolArray, cases: IntArray, *, n_resamples: int = 2_000, seed: int = 0
) -> Interval:
    """Brier skill with its 95 % percentile interval over cases drawn with replacement.

    cases: int64, shape (n,), the case (list) of each candidate. The base rate is that of all candidates throughout.
    Returns NaN bounds where all outcomes are equal.
    """
    values, labels = _checked(probabilities, positive)
    _, rows = np.unique(cases, return_inverse=True)
    n = int(rows.max()) + 1
    errors = np.bincount(rows, (values - labels) ** 2, n)
    reference = np.bincount(rows, (labels.mean() - labels) ** 2, n)
    if not reference.sum() > 0:
        return Interval(float("nan"), float("nan"), float("nan"), n)
    if n < LEAST_CASES:
        return Interval(float(1.0 - errors.sum() / reference.sum()), float("nan"), float("nan"), n)
    rng, skills = np.random.default_rng(seed), np.empty(n_resamples)
    for draw in range(n_resamples):
        drawn = rng.multinomial(n, np.full(n, 1.0 / n))
        skills[draw] = 1.0 - (drawn @ errors) / (drawn @ reference)
    low, high = np.quantile(skills, [0.025, 0.975])
    return Interval(float(1.0 - errors.sum() / reference.sum()), float(low), float(high), n)


@dataclass(frozen=True)
class CalibrationLine:
    """logit P(positive) = intercept + slope · logit(probability): 0 and 1 are perfect; a slope < 1 is overconfident.

    slope_error, intercept_error: standard errors; 1.96 of them to either side are the 95 % interval.
    """

    slope: float
    intercept: float
    slope_error: float = float("nan")
    intercept_error: float = float("nan")

    @property
    def slope_interval(self) -> tuple[float, float]:
        """Give the 95 % interval of the slope."""
        return self.slope - 1.96 * self.slope_error, self.slope + 1.96 * self.slope_error


def calibration_line(probabilities: RealArray, positive: BoolArray, cases: IntArray | None = None) -> CalibrationLine:
    """Fit calibration slope and intercept jointly by maximum likelihood (Cox, 1958).

    cases: int64, shape (n,), the case (list) of each candidate: the standard errors are robust to whatever hangs
    together within a case (sandwich estimator; Liang and Zeger, 1986). None: every candidate for itself.
    Probabilities are clipped to [1e-7, 1 − 1e-7]. Both are NaN where no finite maximum exists: one outcome only, all
    probabilities equal, or outcomes that a cut on the probability separates.
    """
    probabilities, labels = _checked(probabilities, positive)
    clipped = np.clip(probabilities, 1e-7, 1.0 - 1e-7)
    logits = np.log(clipped) - np.log1p(-clipped)
    yes, no = logits[labels == 1.0], logits[labels == 0.0]
    if not len(yes) or not len(no) or no.max() <= yes.min() or yes.max() <= no.min():
        return CalibrationLine(float("nan"), float("nan"))
    design = np.column_stack([np.ones_like(logits), logits])
    weights = np.array([0.0, 1.0])
    loss = _logistic_loss(design, labels, weights)
    for _ in range(100):
        chance = 1.0 / (1.0 + np.exp(-np.clip(design @ weights, -500.0, 500.0)))
        gradient = design.T @ (labels - chance)
        hessian = (design * (chance * (1.0 - chance))[:, None]).T @ design
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        # a full Newton step may overshoot from a poor start: halve it until the loss falls
        while (new_loss := _logistic_loss(design, labels, weights + step)) > loss and np.abs(step).max() > 1e-12:
            step /= 2.0
        weights, loss = weights + step, new_loss
        if np.abs(step).max() < 1e-10:
            break
    chance = 1.0 / (1.0 + np.exp(-design @ weights))
    rows = np.arange(len(labels)) if cases is None else np.unique(cases, return_inverse=True)[1]
    influence = design * (labels - chance)[:, None]
    by_case = np.column_stack([np.bincount(rows, column) for column in influence.T])
    bread = np.linalg.pinv((design * (chance * (1.0 - chance))[:, None]).T @ design)
    n_cases = len(by_case)
    if n_cases < LEAST_CASES:  # the sandwich needs many cases: on one it is 0
        return CalibrationLine(float(weights[1]), float(weights[0]))
    errors = np.sqrt(np.diag(bread @ (by_case.T @ by_case) @ bread) * n_cases / (n_cases - 1))
    return CalibrationLine(float(weights[1]), float(weights[0]), float(errors[1]), float(errors[0]))


def _logistic_loss(design: Float64Array, labels: Float64Array, weights: Float64Array) -> float:
    linear = design @ weights
    return float(np.logaddexp(0.0, linear).sum() - labels @ linear)


def _checked(probabilities: RealArray, positive: BoolArray) -> tuple[Float64Array, Float64Array]:
    values, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(positive, dtype=np.float64)
    if values.shape != labels.shape or values.size == 0:
        raise DataError(f"probabilities have shape {values.shape}, positive {labels.shape}; give equal non-empty ones")
    outside = ~((values >= 0.0) & (values <= 1.0))
    if outside.any():
        first = values[outside][0]
        raise DataError(
            f"{int(outside.sum())} probabilities lie outside [0, 1] (first: {first}); leave unknown ones out"
        )
    return values, labels
