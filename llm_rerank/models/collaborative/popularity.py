"""How many users took an item: over all time, or lately. The baselines that any recommender must beat.

Both score every item of the catalogue; an item that nobody took has a known score, 0.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Self

import numpy as np

from llm_rerank.models.scoring import score_candidates
from llm_rerank.storage import read_arrays, write_arrays
from llm_rerank.types import Cases, DataError, FloatArray, IntArray, Interactions, Items, NotFittedError

logger = logging.getLogger(__name__)

SECONDS_A_DAY = 86_400
_FILE = "popularity.safetensors"


def newest_pairs(past: Interactions) -> tuple[IntArray, IntArray, IntArray]:
    """Users, items and newest times of the distinct (user, item) pairs among positive events: int64, equal length."""
    rows = np.flatnonzero(past.positive & (past.items >= 0))
    cells = past.users[rows] * past.n_items + past.items[rows]
    order = np.lexsort((past.times[rows], cells))
    cells, times = cells[order], past.times[rows][order]
    last = np.ones(len(cells), dtype=bool)
    last[:-1] = cells[1:] != cells[:-1]
    return cells[last] // past.n_items, cells[last] % past.n_items, times[last]


class Popularity:
    """Score = log(1 + number of users with a positive event on the item).

    The logarithm changes no order; it is the form in which a sum with other scores can use popularity.
    """

    name = "popularity"
    depends_on_list = False

    def __init__(self) -> None:
        self._scores: FloatArray | None = None

    def fit(self, past: Interactions, items: Items, *, seed: int = 0) -> Self:
        """Count users by item; nothing is drawn at random."""
        _, taken, _ = newest_pairs(past)
        self._scores = np.log1p(np.bincount(taken, minlength=past.n_items)).astype(np.float32)
        return self

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items); equal rows, never NaN."""
        return np.tile(_fitted(self._scores), (len(cases), 1))

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,); NaN only for codes outside the catalogue."""
        return score_candidates(self, cases)

    def save(self, folder: Path) -> None:
        """Write one file."""
        write_arrays(folder / _FILE, {"scores": _fitted(self._scores)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote."""
        scorer = cls()
        scorer._scores = read_arrays(folder / _FILE)[0]["scores"]
        return scorer


class RecentPopularity:
    """Score = log(1 + Σ over users of a fading one), as of the newest event of the fit.

    With ``half_life_days`` a user counts 2^(−age / half-life), age in days of their newest positive event on the item;
    with ``window_days`` (instead) 1 within that many days and 0 before. Positions are no clock: where the data has
    only those, the score is all-time popularity, ``uses_time`` is False, and the log says so.
    """

    name = "recent_popularity"
    depends_on_list = False

    def __init__(self, *, half_life_days: float | None = None, window_days: float | None = None) -> None:
        if half_life_days is not None and window_days is not None:
            raise DataError("half_life_days and window_days are both given; they are two ways to fade: give one")
        if half_life_days is None and window_days is None:
            half_life_days = DEFAULT_HALF_LIFE_DAYS
        for name, value in (("half_life_days", half_life_days), ("window_days", window_days)):
            if value is not None and not value > 0:
                raise DataError(f"{name} is {value}; it must be above 0 days")
        self.half_life_days = half_life_days
        self.window_days = window_days
        self.uses_time = True
        self._scores: FloatArray | None = None

    def fit(self, past: Interactions, items: Items, *, seed: int = 0) -> Self:
        """Count fading users by item; nothing is drawn at random."""
        _, taken, times = newest_pairs(past)
        self.uses_time = past.time_kind == "time"
        if not self.uses_time:
            logger.warning("recent_popularity: times are positions, no clock; it equals popularity here")
            worth = np.ones(len(taken))
        else:
            age_days = (past.times.max(initial=0) - times) / SECONDS_A_DAY
            if self.window_days is not None:
                worth = (age_days < self.window_days).astype(np.float64)
            else:
                worth = np.exp2(-age_days / self.half_life_days)
        self._scores = np.log1p(np.bincount(taken, weights=worth, minlength=past.n_items)).astype(np.float32)
        return self

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items); equal rows, never NaN."""
        return np.tile(_fitted(self._scores), (len(cases), 1))

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,); NaN only for codes outside the catalogue."""
        return score_candidates(self, cases)

    def save(self, folder: Path) -> None:
        """Write one file."""
        settings = {
            "half_life_days": self.half_life_days,
            "window_days": self.window_days,
            "uses_time": self.uses_time,
        }
        write_arrays(folder / _FILE, {"scores": _fitted(self._scores)}, settings)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote."""
        arrays, settings = read_arrays(folder / _FILE)
        scorer = cls(half_life_days=settings["half_life_days"], window_days=settings["window_days"])
        scorer.uses_time = settings["uses_time"]
        scorer._scores = arrays["scores"]
        return scorer


DEFAULT_HALF_LIFE_DAYS = 28.0


def _fitted(scores: FloatArray | None) -> FloatArray:
    if scores is None:
        raise NotFittedError("popularity has no counts yet; call fit or load first")
    return scores
