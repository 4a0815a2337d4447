"""Drift watch: does a batch look like the cases that probabilities and cut were judged on.

Four things are compared by the population stability index: score quantiles, history lengths, the share of users
without a history, the share of items that the catalogue does not have. Lists that come one by one are watched together.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_rerank.strata import USER_STRATA
from llm_rerank.types import IntArray, Ragged

Float64Array = npt.NDArray[np.float64]

MOST_DRIFT = 0.25
"""Index from which a population counts as shifted (Siddiqi, "Credit risk scorecards", 2006)."""

SURE = 0.999
"""A batch is called drifted only where its index also exceeds what so few cases show by chance so often."""

WATCHED_LISTS = 1_000
"""Of the last so many lists, asked for one by one, a service says whether they drifted."""

HISTORIES = "history lengths"
N_SCORE_BINS = 10
HISTORY_EDGES = tuple(low for low, _ in USER_STRATA[1:])
"""First history length of each bin but the first; users without a history are counted apart."""


@dataclass(frozen=True)
class DriftProfile:
    """What batches are compared with. Shares sum to 1 and weigh every list alike.

    score_edges: inner edges of the score bins, rising. score_shares: share of each bin. history_shares: of the users
    with a history, the share of each bin of its length. no_history: share of lists of users without one.
    unknown_items: mean share of candidates absent from the catalogue; None: not known, and not compared.
    n_cases: lists that it was taken from. by_now: history lengths of populations that a batch may well be, which were
    not judged: users in each length bin, one row a population.
    """

    score_edges: Sequence[float]
    score_shares: Sequence[float]
    history_shares: Sequence[float]
    no_history: float
    unknown_items: float | None
    n_cases: int
    by_now: Sequence[Sequence[int]] = ()

    def knowing(self, *populations: IntArray) -> DriftProfile:
        """Know these populations (``by_now``) by the history lengths of their users: each int64, shape (n_users,)."""
        return replace(self, by_now=[_history_counts(lengths).tolist() for lengths in populations])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DriftProfile:
        """Rebuild from ``to_dict``'s values."""
        return cls(**values)


@dataclass(frozen=True)
class Drift:
    """Stability index of each thing compared, the index that counts as drift, and n, the lists of the batch.

    uncovered: share of the users with a history whose length no held-out list had, nor one near it: no fit on later
    events covers them. as_by_now: the history lengths are those of one of the populations ``by_now``.
    """

    indices: Mapping[str, float]
    limits: Mapping[str, float]
    n_cases: int
    uncovered: float = 0.0
    as_by_now: bool = False

    @property
    def shifted(self) -> list[str]:
        """Names of what differs from the held-out lists by more than its limit: a guarantee holds where none does."""
        return [name for name, value in self.indices.items() if value > self.limits[name]]

    @property
    def is_news(self) -> bool:
        """Whether something differs that is no mere choice of users.

        Held-out users are the active ones, as they were before the hold-out: a batch of all users, or of the same ones
        today, has other histories without any change in the shop.
        """
        return any(name != HISTORIES or not self.as_by_now for name in self.shifted)

    def sentence(self) -> str:
        """Say what has shifted, "" where nothing has."""
        parts = [f"{name} (index {self.indices[name]:.2f}, limit {self.limits[name]:.2f})" for name in self.shifted]
        if not parts:
            return ""
        if HISTORIES in self.shifted and self.uncovered:
            parts.append(f"{self.uncovered:.0%} have histories of a length that none of those had")
        return f"these {self.n_cases:,} lists differ from the held-out ones in {', '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "shifted": self.shifted}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Drift:
        """Rebuild from ``to_dict``'s values."""
        return cls(**{name: value for name, value in values.items() if name != "shifted"})


def profile_of(scores: Float64Array, rows: Ragged, history_lengths: IntArray) -> DriftProfile | None:
    """Describe held-out lists; None where there are none with a score.

    scores: shape (n_candidates,), laid out as ``rows``, NaN for an unknown item. history_lengths: shape (n_cases,).
    """
    known = ~np.isnan(scores)
    if not known.any():
        return None
    weights = _weights(rows)[known]
    order = np.argsort(scores[known], kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    wanted = np.arange(1, N_SCORE_BINS) / N_SCORE_BINS
    edges = np.unique(scores[known][order][np.minimum(np.searchsorted(reached, wanted), len(order) - 1)])
    return DriftProfile(
        score_edges=edges.tolist(),
        score_shares=_score_shares(scores, rows, edges).tolist(),
        history_shares=_history_shares(history_lengths).tolist(),
        no_history=float((history_lengths == 0).mean()),
        unknown_items=float(1.0 - _weights(rows)[known].sum() / _weights(rows).sum()),
        n_cases=len(rows),
    )


@dataclass(frozen=True)
class Shares:
    """What lists are compared by: float64 means over lists, all parts of one; n_cases, how many lists they are.

    scores: candidates in each score bin of a profile. histories: shape (n_history_bins,), lists of users with a history
    so long. no_history: lists of users without one. unknown_items: candidates that the catalogue lacks.
    """

    scores: Float64Array
    histories: Float64Array
    no_history: float
    unknown_items: float
    n_cases: int


def shares_of(profile: DriftProfile, scores: Float64Array, rows: Ragged, history_lengths: IntArray) -> Shares:
    """Measure lists, at least one with a candidate, as the profile was; arguments as in ``profile_of``."""
    weights = _weights(rows)
    known = float(weights[~np.isnan(scores)].sum() / weights.sum())
    return Shares(
        scores=_score_shares(scores, rows, np.asarray(profile.score_edges)) * known,
        histories=_history_shares(history_lengths) * (history_lengths > 0).mean(),
        no_history=float((history_lengths == 0).mean()),
        unknown_items=1.0 - known,
        n_cases=len(rows),
    )


def drift_from(profile: DriftProfile, scores: Float64Array, rows: Ragged, history_lengths: IntArray) -> Drift:
    """Compare a batch with the profile; arguments as in ``profile_of``. An empty batch has not drifted."""
    if not len(rows.values):
        return Drift({}, {}, len(rows))
    return drift_of(profile, shares_of(profile, scores, rows, history_lengths))


def drift_of(profile: DriftProfile, shares: Shares) -> Drift:
    """Compare measured lists with the profile."""
    # what is compared, and of how many lists: a history has a length where there is one
    n, n_now = profile.n_cases, shares.n_cases
    pairs = {
        "score quantiles": (profile.score_shares, shares.scores / max(shares.scores.sum(), 1e-12), n, n_now),
        "users without history": (*_two(profile.no_history, shares.no_history), n, n_now),
    }
    uncovered, as_by_now = 0.0, False
    n_long, n_long_now = round(n * (1.0 - profile.no_history)), round(n_now * (1.0 - shares.no_history))
    if n_long and n_long_now:
        observed = shares.histories / shares.histories.sum()
        pairs[HISTORIES] = (profile.history_shares, observed, n_long, n_long_now)
        uncovered = float(observed[np.asarray(profile.history_shares) == 0].sum())
        as_by_now = any(_alike(counts, observed, n_long_now) for counts in profile.by_now)
    if profile.unknown_items is not None:
        pairs["unknown items"] = (*_two(profile.unknown_items, shares.unknown_items), n, n_now)
    indices, limits = {}, {}
    for name, (expected, observed, n_expected, n_observed) in pairs.items():
        indices[name] = stability_index(np.asarray(expected), observed, n_expected, n_observed)
        limits[name] = max(MOST_DRIFT, chance_limit(len(expected), n_expected, n_observed))
    return Drift(indices, limits, shares.n_cases, uncovered, as_by_now)


class DriftWatch:
    """The last lists that were asked for one by one, compared together: a single one tells nothing.

    profile: what they are compared with. n_lists: how many of the last ones count. Safe to use from several threads.
    """

    def __init__(self, profile: DriftProfile, n_lists: int = WATCHED_LISTS) -> None:
        self.profile = profile
        self._lists: deque[Float64Array] = deque()
        self._n_lists = n_lists
        self._total: Float64Array | float = 0.0  # of the lists: an answer must not wait for a sum over a thousand
        self._n_scores = len(profile.score_shares)
        self._lock = threading.Lock()

    def after(self, shares: Shares) -> Drift:
        """Take in one list's shares and compare the last ones, this among them."""
        row = np.concatenate([shares.scores, [shares.no_history, shares.unknown_items], shares.histories])
        with self._lock:
            self._lists.append(row)
            self._total = self._total + row
            if len(self._lists) > self._n_lists:
                self._total = self._total - self._lists.popleft()
            n = len(self._lists)
            means = np.maximum(self._total / n, 0.0)  # differences of sums may end below 0 by rounding
        scores, (no_history, unknown), histories = np.split(means, [self._n_scores, self._n_scores + 2])
        return drift_of(self.profile, Shares(scores, histories, float(no_history), float(unknown), n))


def stability_index(expected: npt.ArrayLike, observed: npt.ArrayLike, n_expected: int, n_observed: int) -> float:
    """Compute Σ (o − e) ln(o / e), the population stability index, of two distributions over bins: shape (n_bins,).

    Each share is taken as a count with half a case added, so that an empty bin does not make it infinite.
    """
    shares = []
    for share, n in ((expected, n_expected), (observed, n_observed)):
        counts = np.asarray(share, dtype=np.float64) * n + 0.5
        shares.append(counts / counts.sum())
    e, o = shares
    return float(((o - e) * np.log(o / e)).sum())


def chance_limit(n_bins: int, n_expected: int, n_observed: int) -> float:
    """Index that two samples of one population exceed in .1 % of draws: (1/n + 1/m) times a χ² of n_bins − 1.

    Yurdakul and Naranjo, "Statistical properties of the population stability index", 2020. Lists are counted, not
    candidates, which hang together within a list: the limit errs on the quiet side.
    """
    return float((1.0 / max(n_expected, 1) + 1.0 / max(n_observed, 1)) * _sure_chi2(max(n_bins - 1, 1)))


@cache
def _sure_chi2(degrees: int) -> float:
    from scipy.stats import chi2

    return float(chi2.ppf(SURE, degrees))


def _weights(rows: Ragged) -> Float64Array:
    """Weight of each candidate: every list weighs 1."""
    return 1.0 / rows.lengths[rows.row_of_value]


def _score_shares(scores: Float64Array, rows: Ragged, edges: Float64Array) -> Float64Array:
    known = ~np.isnan(scores)
    bins = np.searchsorted(edges, scores[known], side="right")
    shares = np.bincount(bins, _weights(rows)[known], len(edges) + 1)
    return shares / max(shares.sum(), 1e-12)


def _history_counts(lengths: IntArray) -> IntArray:
    bins = np.searchsorted(HISTORY_EDGES, lengths[lengths > 0], side="right")
    return np.bincount(bins, minlength=len(HISTORY_EDGES) + 1)


def _history_shares(lengths: IntArray) -> Float64Array:
    counts = _history_counts(lengths)
    return counts / max(counts.sum(), 1)


def _alike(counts: Sequence[int], observed: Float64Array, n_observed: int) -> bool:
    """Tell whether lists have history lengths as a population has. observed: shares, shape (n_history_bins,)."""
    n_users = sum(counts)
    index = stability_index(np.asarray(counts) / max(n_users, 1), observed, n_users, n_observed)
    return index <= max(MOST_DRIFT, chance_limit(len(counts), n_users, n_observed))


def _two(expected: float, observed: float) -> tuple[Float64Array, Float64Array]:
    return np.array([1.0 - expected, expected]), np.array([1.0 - observed, observed])
