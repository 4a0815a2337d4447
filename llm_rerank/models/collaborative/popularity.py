"""How many users took an item: over all time, or lately. The baselines that any recommender must beat.

Both score every item of the catalogue; an item that nobody took has a known score, 0.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from llm_rerank.models.changes import check_same_catalogue, codes_to_read, longer, not_counted
from llm_rerank.models.scoring import score_candidates
from llm_rerank.storage import read_arrays, write_arrays
from llm_rerank.types import Cases, DataError, FloatArray, IntArray, Interactions, Items, NotFittedError

logger = logging.getLogger(__name__)

Float64Array = npt.NDArray[np.float64]

Kept = TypeVar("Kept", bound=np.ndarray[Any, Any])

SECONDS_A_DAY = 86_400
ITEM_BITS = 24
ITEM_MASK = 2**ITEM_BITS - 1
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
    revises_cheaply = True

    def __init__(self) -> None:
        self._counts: IntArray | None = None

    def fit(self, past: Interactions, items: Items, *, seed: int = 0) -> Self:
        """Count users by item; nothing is drawn at random."""
        self._counts = users_by_item(past)
        return self

    def revised(self, before: Interactions, after: Interactions) -> Self:
        """Return a scorer that has counted ``after`` in place of ``before``, all events of the same users.

        Raises DataError for another catalogue, or where counts fall below 0: ``before`` had not been counted.
        """
        counts = _fitted(self._counts)
        check_same_catalogue(self.name, before, after, len(counts))
        revised = copy.copy(self)
        revised._counts = counts - users_by_item(before) + users_by_item(after)
        if revised._counts.min(initial=0) < 0:
            raise not_counted(self.name)
        return revised

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue; nobody has taken the new items, so their score is 0."""
        counts = _fitted(self._counts)
        codes_to_read(len(counts), items, changed)
        grown = copy.copy(self)
        grown._counts = longer(counts, len(items), 0)
        return grown

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items); equal rows, never NaN."""
        return np.tile(np.log1p(_fitted(self._counts)).astype(np.float32), (len(cases), 1))

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,); NaN only for codes outside the catalogue."""
        return score_candidates(self, cases)

    def save(self, folder: Path) -> None:
        """Write one file."""
        write_arrays(folder / _FILE, {"counts": _fitted(self._counts)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote."""
        scorer = cls()
        scorer._counts = read_arrays(folder / _FILE)[0]["counts"]
        return scorer


class RecentPopularity:
    """Score = log(1 + Σ over users of a fading one), as of the newest event of the fit.

    With ``half_life_days`` a user counts 2^(−age / half-life), age in days of their newest positive event on the item;
    with ``window_days`` (instead) 1 within that many days and 0 before. Positions are no clock: where the data has
    only those, the score is all-time popularity, ``uses_time`` is False, and the log says so.

    The newest time of each user and item is kept, and each user's newest of all, sorted and without user ids: so
    ``revised`` can take an event out again and turn the clock back. It costs a copy of these (8 bytes a pair).
    """

    name = "recent_popularity"
    depends_on_list = False
    revises_cheaply = True

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
        self._totals: Float64Array | None = None  # Σ of fading ones
        self._pairs: IntArray = np.empty(0, dtype=np.int64)  # newest time of each user and item, as keys, rising
        self._newest: IntArray = np.empty(0, dtype=np.int64)  # each user's newest event of any kind, rising

    def fit(self, past: Interactions, items: Items, *, seed: int = 0) -> Self:
        """Count fading users by item; nothing is drawn at random."""
        self.uses_time = past.time_kind == "time"
        self._pairs, self._newest = self._pairs[:0], self._newest[:0]
        if self.uses_time:
            self._pairs, self._newest = np.sort(pair_keys(past)), np.sort(newest_of_users(past))
            self._totals = self._recount(past.n_items)
        else:
            logger.warning("recent_popularity: times are positions, no clock; it equals popularity here")
            self._totals = users_by_item(past).astype(np.float64)
        return self

    def revised(self, before: Interactions, after: Interactions) -> Self:
        """Return a scorer that has counted ``after`` in place of ``before``, all events of the same users.

        Raises DataError for another catalogue, or where counts fall below 0: ``before`` had not been counted.
        """
        totals = _fitted(self._totals)
        check_same_catalogue(self.name, before, after, len(totals))
        revised = copy.copy(self)
        if not self.uses_time:
            revised._totals = totals - users_by_item(before) + users_by_item(after)
            if revised._totals.min(initial=0) < 0:
                raise not_counted(self.name)
            return revised
        gone, new = differences(pair_keys(before), pair_keys(after))
        revised._pairs = exchanged(self._pairs, gone, new, self.name)
        revised._newest = exchanged(
            self._newest, *differences(newest_of_users(before), newest_of_users(after)), self.name
        )
        old_now, now = _last(self._newest), _last(revised._newest)
        if self.half_life_days is None or now < old_now or not len(self._newest):
            revised._totals = revised._recount(len(totals))
        else:  # forward: what was counted fades alike, and its rounding with it
            totals = totals * self._worth(old_now, now)
            totals -= self._sums(gone, now, len(totals))
            totals += self._sums(new, now, len(totals))
            revised._totals = np.maximum(totals, 0.0)
        return revised

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue; nobody has taken the new items, so their score is 0."""
        totals = _fitted(self._totals)
        codes_to_read(len(totals), items, changed)
        grown = copy.copy(self)
        grown._totals = longer(totals, len(items), 0.0)
        return grown

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items); equal rows, never NaN."""
        return np.tile(np.log1p(_fitted(self._totals)).astype(np.float32), (len(cases), 1))

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,); NaN only for codes outside the catalogue."""
        return score_candidates(self, cases)

    def save(self, folder: Path) -> None:
        """Write one file; it holds when items were taken, not by whom."""
        settings = {
            "half_life_days": self.half_life_days,
            "window_days": self.window_days,
            "uses_time": self.uses_time,
        }
        arrays = {"totals": _fitted(self._totals), "pairs": self._pairs, "newest": self._newest}
        write_arrays(folder / _FILE, arrays, settings)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote."""
        arrays, settings = read_arrays(folder / _FILE)
        scorer = cls(half_life_days=settings["half_life_days"], window_days=settings["window_days"])
        scorer.uses_time = settings["uses_time"]
        scorer._totals, scorer._pairs, scorer._newest = arrays["totals"], arrays["pairs"], arrays["newest"]
        return scorer

    def _recount(self, n_items: int) -> Float64Array:
        """Sum the worth of all pairs as of the newest event: float64, shape (n_items,)."""
        now = _last(self._newest)
        pairs = self._pairs
        if self.window_days is not None:  # only those within it are looked at
            oldest = int(now - self.window_days * SECONDS_A_DAY)
            pairs = pairs[np.searchsorted(pairs, oldest << ITEM_BITS) :]
        return self._sums(pairs, now, n_items)

    def _sums(self, pairs: IntArray, now: int, n_items: int) -> Float64Array:
        """Worth of pairs by item: float64, shape (n_items,)."""
        worth = self._worth(pairs >> ITEM_BITS, now)
        return np.bincount(pairs & ITEM_MASK, weights=worth, minlength=n_items).astype(np.float64)

    def _worth(self, times: IntArray | int, now: int) -> Float64Array:
        """Say what a user counts whose newest event on the item was then: float64, same shape."""
        age_days = (now - np.asarray(times)) / SECONDS_A_DAY
        if self.window_days is not None:
            return (age_days < self.window_days).astype(np.float64)
        assert self.half_life_days is not None
        return np.exp2(-age_days / self.half_life_days)


DEFAULT_HALF_LIFE_DAYS = 28.0


def users_by_item(past: Interactions) -> IntArray:
    """Count users with a positive event by item: int64, shape (n_items,)."""
    return np.bincount(newest_pairs(past)[1], minlength=past.n_items)


def pair_keys(past: Interactions) -> IntArray:
    """Newest time of each user and item with a positive event, and the item, in one number that sorts by time.

    Returns int64, shape (n_pairs,): time × 2^24 + item. Raises DataError above 2^24 items.
    """
    if past.n_items > ITEM_MASK:
        raise DataError(f"recent_popularity was given {past.n_items:,} items; it takes at most {ITEM_MASK:,}")
    _, items, times = newest_pairs(past)
    return (times << ITEM_BITS) | items


def newest_of_users(past: Interactions) -> IntArray:
    """Time of each user's newest event of any kind, in no order: int64, shape (n_users with events,)."""
    order = np.lexsort((past.times, past.users))
    last = np.ones(len(order), dtype=np.bool_)
    last[:-1] = np.diff(past.users[order]) != 0
    return past.times[order][last]


def differences(before: IntArray, after: IntArray) -> tuple[IntArray, IntArray]:
    """Values that are more often in ``before`` and in ``after``, as often as they are more, both rising."""
    values, place = np.unique(np.concatenate([before, after]), return_inverse=True)
    surplus = np.bincount(place[len(before) :], minlength=len(values))
    surplus -= np.bincount(place[: len(before)], minlength=len(values))
    return np.repeat(values, np.maximum(-surplus, 0)), np.repeat(values, np.maximum(surplus, 0))


def exchanged(held: IntArray, gone: IntArray, new: IntArray, scorer: str) -> IntArray:
    """Take some values out of a rising array and put others in; all rise, a value may be there more than once.

    scorer: for the message. Raises DataError where a value is not held (as often).
    """
    repeat = np.arange(len(gone)) - np.searchsorted(gone, gone)
    places = np.searchsorted(held, gone) + repeat
    if len(gone) and (places[-1] >= len(held) or (held[places] != gone).any()):
        raise not_counted(scorer)
    kept = np.delete(held, places)
    return np.insert(kept, np.searchsorted(kept, new), new)


def _last(times: IntArray) -> int:
    return int(times[-1]) if len(times) else 0


def _fitted(kept: Kept | None) -> Kept:
    if kept is None:
        raise NotFittedError("popularity has no counts yet; call fit or load first")
    return kept
