"""How sure a figure is: intervals, paired tests, several comparisons at once, non-inferiority.

All functions read one value a case (a user); cases are taken as independent, which users are and their items are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from llm_rerank.types import DataError

Float64Array = npt.NDArray[np.float64]
Values = npt.NDArray[np.floating] | Sequence[float]

BLOCK_CELLS = 2**22  # 32 MiB of float64 resamples at a time

LEAST_FOR_INTERVAL = 30
"""Cases under which a percentile bootstrap interval is too narrow to be claimed."""


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval over n cases."""

    mean: float
    low: float
    high: float
    n: int

    def claimed(self) -> Interval:
        """Give the interval without its bounds (NaN) where ``LEAST_FOR_INTERVAL`` says that it has too few cases."""
        return self if self.n >= LEAST_FOR_INTERVAL else replace(self, low=math.nan, high=math.nan)


@dataclass(frozen=True)
class Difference:
    """Mean of a − b over n paired cases, its 95 % interval, and the p value of "a and b are exchangeable"."""

    mean: float
    low: float
    high: float
    p: float
    n: int = 0

    def relative_to(self, base: float) -> str:
        """Write it as a share of what it is added to, "+0.2 % [-0.4, +0.9]"; as it is where that is 0."""
        if base <= 0:
            return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"
        mean, low, high = (100 * value / base for value in (self.mean, self.low, self.high))
        return f"{mean:+.1f} % [{low:+.1f}, {high:+.1f}]"


def bootstrap_interval(
    values: Values, *, confidence: float = 0.95, n_resamples: int = 2_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a mean (Efron, 1979): cases are drawn with replacement.

    values: shape (n_cases,), at least one, without NaN. Known limit: too narrow under about 30 cases (``claimed``).
    """
    numbers = _finite(values, "values")
    _check_confidence(confidence)
    means = _resampled_means(numbers, n_resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Interval(mean=float(numbers.mean()), low=float(low), high=float(high), n=len(numbers))


def _resampled_means(numbers: Float64Array, n_resamples: int, rng: np.random.Generator) -> Float64Array:
    n = len(numbers)
    levels, counts = np.unique(numbers, return_counts=True)
    if len(levels) < n // 8:  # few distinct values (ranks of one target): how often each is drawn is multinomial
        return rng.multinomial(n, counts / n, size=n_resamples) @ levels / n
    means = np.empty(n_resamples)
    block = max(1, BLOCK_CELLS // n)
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        means[start : start + size] = numbers[rng.integers(0, n, size=(size, n), dtype=np.int32)].mean(axis=1)
    return means


def paired_randomization_test(a: Values, b: Values, *, n_resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p value of a paired randomisation (sign-flip) test of the mean of a − b.

    Under the null a and b of a case can be swapped. All 2^n swaps are counted where that is no more than
    ``n_resamples``, with n the cases that differ; else swaps are drawn and p = (1 + as extreme) / (1 + drawn), which
    is never 0 and valid at any number of draws (Phipson and Smyth, 2010). Fisher, 1935.
    a, b: shape (n_cases,), the same cases in the same order.
    """
    differences = _paired(a, b)
    differences = differences[differences != 0.0]  # a swap of two equal values changes nothing
    n = len(differences)
    if n == 0:
        return 1.0
    # sums that are equal on paper may differ in the last bits
    observed = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    if n < 63 and 2**n <= n_resamples:
        every_swap = ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(np.uint8)
        return float(np.mean(np.abs(_signed_sums(every_swap, differences)) >= observed))
    rng = np.random.default_rng(seed)
    n_extreme, block = 0, max(1, BLOCK_CELLS // n)
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        bits = np.unpackbits(np.frombuffer(rng.bytes((size * n + 7) // 8), dtype=np.uint8), count=size * n)
        n_extreme += int((np.abs(_signed_sums(bits.reshape(size, n), differences)) >= observed).sum())
    return (1 + n_extreme) / (1 + n_resamples)


def _signed_sums(bits: npt.NDArray[np.uint8], differences: Float64Array) -> Float64Array:
    """Σ ± difference, plus where the bit is 1: shape (n_draws,)."""
    return 2.0 * (bits.astype(np.float64) @ differences) - differences.sum()


def paired_difference(
    a: Values, b: Values, *, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Mean of a − b with its bootstrap interval and the p value of the paired randomisation test."""
    interval = bootstrap_interval(_paired(a, b), confidence=confidence, n_resamples=n_resamples, seed=seed)
    p = paired_randomization_test(a, b, n_resamples=n_resamples, seed=seed)
    return Difference(mean=interval.mean, low=interval.low, high=interval.high, p=p, n=interval.n)


def holm(p_values: Values) -> Float64Array:
    """Adjust p values for their number (Holm, 1979); rejecting where the result ≤ α errs anywhere with chance ≤ α.

    The i-th smallest of m, from 0, is multiplied by m − i, kept from falling and cut at 1. Returns float64 in the
    order given.
    """
    p = _finite(p_values, "p_values", least=0)
    if ((p < 0.0) | (p > 1.0)).any():
        raise DataError(f"p_values reach from {p.min()} to {p.max()}; they must lie in [0, 1]")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def lower_bound(values: Values, *, confidence: float = 0.95) -> float:
    """One-sided lower confidence bound of a mean of values within [−1, 1], by Student's t.

    A loss that n cases never showed may still have a rate of up to 1 − (1 − confidence)^(1/n), about 3 / n at 95 %,
    and cost 1; the bound is never nearer to the mean than that, so that a few equal values prove nothing.
    Known limit: approximate for few cases with rare, great losses.
    """
    from scipy.stats import t  # here: importing the package must not load scipy

    numbers = _finite(values, "values")
    _check_confidence(confidence)
    n, mean = len(numbers), float(numbers.mean())
    unseen = 1.0 - (1.0 - confidence) ** (1.0 / n)
    if n == 1:
        return mean - unseen
    half_width = float(t.ppf(confidence, n - 1)) * float(numbers.std(ddof=1)) / n**0.5
    return mean - max(half_width, unseen)


def non_inferior(difference_per_case: Values, *, margin: float, confidence: float = 0.95) -> bool:
    """Tell whether "new − old" is shown to lie above −margin: its lower bound at this confidence does.

    difference_per_case: shape (n_cases,), within [−1, 1]. margin: the loss that counts as harmless, at least 0.
    False does not mean inferior; it may mean that n is too small to tell.
    """
    if margin < 0:
        raise DataError(f"margin is {margin}; it must be at least 0, the loss that counts as harmless")
    return lower_bound(difference_per_case, confidence=confidence) > -margin


def first_unless_beaten(values: Float64Array) -> int:
    """Choose the first of several, unless another beats it by more than a standard error: then the best of those.

    values: a metric, shape (n_choices, n_cases). The first is what does best elsewhere; among several on a few dozen
    cases the best mean is a matter of luck.
    """
    gains = values - values[0]
    n_cases = values.shape[1]
    if n_cases < 2:
        return 0
    errors = gains.std(axis=1, ddof=1) / np.sqrt(n_cases)
    means = gains.mean(axis=1)
    return int(np.where(means > errors, means, 0.0).argmax())


def _finite(values: Values, name: str, least: int = 1) -> Float64Array:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) < least:
        raise DataError(f"{name} has shape {numbers.shape}; give one value a case, at least {least}")
    if not np.isfinite(numbers).all():
        n_bad = int((~np.isfinite(numbers)).sum())
        raise DataError(f"{name} holds {n_bad} values that are NaN or infinite; leave cases without targets out")
    return numbers


def _paired(a: Values, b: Values) -> Float64Array:
    first, second = _finite(a, "a"), _finite(b, "b")
    if len(first) != len(second):
        raise DataError(f"a has {len(first)} cases and b {len(second)}; give the same cases in the same order")
    return first - second


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise DataError(f"confidence is {confidence}; it must lie strictly between 0 and 1, for example 0.95")
