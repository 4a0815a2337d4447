"""Lists of known law: what a cut risks is a closed form, so that no estimate stands in for the truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm

from llm_rerank.recommendation.risk_control import Float64Array
from llm_rerank.types import BoolArray, FloatArray, IntArray, Ragged

NODES = 80


@dataclass(frozen=True)
class DrawnLists:
    """Lists with what a cut is chosen from. history_lengths: shape (n_lists,); the others (n_candidates,)."""

    scores: Float64Array
    probabilities: FloatArray
    positive: BoolArray
    rows: Ragged
    history_lengths: IntArray


@dataclass(frozen=True)
class World:
    """A law of lists with one target each; scores are normal, and the probability is the logistic of the score.

    Other candidates score N(intercept + u, 1) and the target N(intercept + u + separation, 1), where u ~ N(0, spread²)
    is the list's own: losses are then as unequal as those of users are. newcomers: share of lists of users with one
    past event, whose targets stand out less than those of regulars (eight events).
    """

    newcomers: float = 0.3
    separation_newcomers: float = 1.5
    separation_regulars: float = 3.0
    spread: float = 0.7
    length: int = 50
    intercept: float = -4.5

    def draw(self, n_lists: int, rng: np.random.Generator) -> DrawnLists:
        """Draw independent lists."""
        new = rng.random(n_lists) < self.newcomers
        scores = self.intercept + rng.normal(size=(n_lists, self.length)) + self.spread * rng.normal(size=(n_lists, 1))
        scores[:, 0] += np.where(new, self.separation_newcomers, self.separation_regulars)
        positive = np.zeros(scores.shape, dtype=np.bool_)
        positive[:, 0] = True
        rows = Ragged.from_lengths(
            np.arange(scores.size, dtype=np.int64), np.full(n_lists, self.length, dtype=np.int64)
        )
        history = np.where(new, 1, 8).astype(np.int64)
        return DrawnLists(scores.ravel(), expit(scores).ravel().astype(np.float32), positive.ravel(), rows, history)

    def _parts(self, levels: Float64Array) -> Iterator[tuple[float, Float64Array, float]]:
        """Weight, least standard score kept, and separation, for each kind of user and each u.

        u is integrated out by Gauss–Hermite quadrature. The least scores have shape (n_levels,).
        """
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        least = logit(levels) - self.intercept
        kinds = ((self.newcomers, self.separation_newcomers), (1 - self.newcomers, self.separation_regulars))
        for share, separation in kinds:
            for node, weight in zip(nodes, weights / weights.sum(), strict=True):
                yield share * weight, least - self.spread * node, separation

    def risk(self, risk: str, levels: Float64Array) -> Float64Array:
        """Give the expected loss of a list that counts at each level: float64, shape (n_levels,).

        Given u each of the m − 1 others is kept with chance q on its own, so that with F of them kept P(F > 0) =
        1 − (1 − q)^(m − 1) and E[F / (F + 1)] = 1 − (1 − (1 − q)^m) / (m q).
        """
        total, counted, m = np.zeros(len(levels)), np.zeros(len(levels)), self.length
        for weight, least, separation in self._parts(levels):
            target = norm.sf(least - separation)
            if risk == "missed_target":
                total += weight * (1 - target)
            elif risk == "false_positives":
                total += weight * norm.sf(least) * (m - 1) / m
            else:
                log_cut = norm.logcdf(least)  # log(1 − q), exact where q is near 0 or 1
                some = -np.expm1((m - 1) * log_cut)
                beside_target = 1 + np.expm1(m * log_cut) / (m * norm.sf(least))
                total += weight * (target * beside_target + (1 - target) * some)
                counted += weight * (target + (1 - target) * some)
        return total / counted if risk == "false_discovery" else total

    def mean_kept(self, levels: Float64Array) -> Float64Array:
        """Give the expected number kept of a list at each level: float64, shape (n_levels,)."""
        total = np.zeros(len(levels))
        for weight, least, separation in self._parts(levels):
            total += weight * ((self.length - 1) * norm.sf(least) + norm.sf(least - separation))
        return total


SHIFTED_WORLDS = {
    "more newcomers": World(newcomers=0.8),
    "higher scores": World(intercept=-3.5),
    "silent: targets stand out less": World(separation_newcomers=1.0, separation_regulars=2.0),
}
"""The last one changes what scores mean and hardly their distribution: what no watch of the inputs can see."""
