"""What events say about items, kept so that a count or a sum before any moment is one binary search.

``ItemStatistics`` keeps each item's events in order of time, and no user ids. ``features.py`` reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from llm_rerank.data.merging import longer_timeline, places_of
from llm_rerank.data.splits import Timeline, first_of_pair
from llm_rerank.data.values import CATEGORY_SEPARATOR
from llm_rerank.types import DataError, FloatArray, IntArray, Interactions, Items, Ragged, TimeKind

PRIOR_OPINIONS = 5.0
"""Opinions that the mean over all items counts for in an item's own mean: one rating is not yet a verdict."""

DAY_S = 86_400
# Opinions are summed as integers: sums of floats would depend, in the last bit, on events that come later.
_FIXED_POINT = float(1 << 20)
_NEVER = np.iinfo(np.int64).max

DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EventSeries:
    """Events of items over time, each with a value in fixed point, for counts and sums before any moment."""

    items: IntArray
    times: IntArray
    values: IntArray
    timeline: Timeline
    sums: IntArray  # shape (n_events + 1,), cumulative in the order of the timeline
    sorted_times: IntArray  # of all items together
    sorted_sums: IntArray  # shape (n_events + 1,), cumulative in the order of time

    @classmethod
    def of(cls, items: IntArray, times: IntArray, values: IntArray | None = None) -> Self:
        """Order events; values: int64 in fixed point, None: zeros."""
        values = np.zeros(len(items), dtype=np.int64) if values is None else values
        timeline, by_time = Timeline.of(items, times), np.argsort(times, kind="stable")
        sums, sorted_sums = (np.concatenate([[0], np.cumsum(values[order])]) for order in (timeline.order, by_time))
        return cls(items, times, values, timeline, sums, times[by_time], sorted_sums)

    def with_events(self, items: IntArray, times: IntArray, values: IntArray | None = None) -> Self:
        """Add events, each after those of its time; arguments as for ``of``, but times must rise, here and before."""
        if not len(items):
            return self
        places = places_of(self.times, times)
        timeline = longer_timeline(self.timeline, self.items, places, items, times)
        items, times = np.insert(self.items, places, items), np.insert(self.times, places, times)
        if values is None:  # a series of counts alone
            zeros = np.zeros(len(items) + 1, dtype=np.int64)
            return type(self)(items, times, zeros[1:], timeline, zeros, times, zeros)
        values = np.insert(self.values, places, values)
        sums, sorted_sums = (np.concatenate([[0], np.cumsum(v)]) for v in (values[timeline.order], values))
        return type(self)(items, times, values, timeline, sums, times, sorted_sums)

    def count(self, items: IntArray, times: IntArray) -> IntArray:
        """Events of each item strictly before each time."""
        return self.timeline.ends(items, times) - self.timeline.starts(items)

    def total(self, items: IntArray, times: IntArray) -> DoubleArray:
        """Sum of the values of each item's events strictly before each time."""
        return (self.sums[self.timeline.ends(items, times)] - self.sums[self.timeline.starts(items)]) / _FIXED_POINT

    def days_since_last(self, items: IntArray, times: IntArray) -> DoubleArray:
        """Days from each item's last event strictly before each time to that time; NaN where none."""
        ends = self.timeline.ends(items, times)
        known = ends > self.timeline.starts(items)
        days = np.full(len(items), np.nan)
        days[known] = (times[known] - self.times[self.timeline.order[ends[known] - 1]]) / DAY_S
        return days

    def mean(self, items: IntArray, times: IntArray) -> DoubleArray:
        """Mean value before each time, drawn to the mean over all items by ``PRIOR_OPINIONS``; NaN where none."""
        n_before = np.searchsorted(self.sorted_times, times)
        prior = self.sorted_sums[n_before] / (np.maximum(n_before, 1) * _FIXED_POINT)
        counts = self.count(items, times)
        means = (self.total(items, times) + PRIOR_OPINIONS * prior) / (counts + PRIOR_OPINIONS)
        return np.where(counts > 0, means, np.nan)


@dataclass(frozen=True)
class Labels:
    """What items are tagged with: label codes of each item, and how much each label tells."""

    of_item: Ragged
    weights: DoubleArray  # shape (n_labels,)


@dataclass(frozen=True)
class ItemStatistics:
    """What events before ``as_of`` say about items, at any moment up to ``as_of``.

    sales: positive events. buyers: the first positive event of each (user, item). events: each item's first event.
    ratings: rated events. opinions: reviews with a sentiment. No series holds a user.
    On position-timed data one user's positions say nothing about another's: every event given counts, whatever the
    case's time, so the targets of the cases must not be among them (``splits.last_out`` takes them out).
    """

    as_of: int
    time_kind: TimeKind
    n_items: int
    series: Mapping[str, EventSeries]
    brands: Labels
    categories: Labels
    log_prices: DoubleArray

    @classmethod
    def from_events(cls, events: Interactions, items: Items, as_of: int, sentiment: FloatArray | None = None) -> Self:
        """Gather the events strictly before ``as_of``.

        sentiment: float32 in [-1, 1], shape (n_events,), of each event's review, NaN where there is none; None: no
        sentiment at all.

        Raises DataError where the events refer to another catalogue or sentiment has another length.
        """
        if events.n_items != len(items):
            raise DataError(
                f"events refer to {events.n_items} items, the catalogue has {len(items)}; validate both together"
            )
        if sentiment is None:
            sentiment = np.full(len(events), np.nan, dtype=np.float32)
        if len(sentiment) != len(events):
            raise DataError(f"sentiment has {len(sentiment)} values for {len(events)} events; give one an event")
        with_item = (events.items >= 0) & (events.times < as_of)
        past, sentiment = events.take(with_item), sentiment[with_item]
        taken = past.take(past.positive)
        firsts = past.take(_first_of_each(past.items))
        series = {
            "sales": EventSeries.of(taken.items, taken.times),
            "buyers": _buyers(taken),
            "firsts": EventSeries.of(firsts.items, firsts.times),
            "ratings": EventSeries.of(*_known_values(past, past.ratings)),
            "opinions": EventSeries.of(*_known_values(past, sentiment)),
        }
        return cls(as_of, events.time_kind, len(items), series, *_labels_of(items), _log_prices_of(items))

    def with_events(self, events: Interactions, rows: IntArray, sentiment: FloatArray) -> Self:
        """Return the statistics with events added, equal in every number to ``from_events`` of all of them.

        events: all events, the new ones at ``rows``, as ``merging.with_events`` returns them. sentiment: float32, shape
        (n_new,), NaN where there is none.
        Raises DataError where the events are of another catalogue (``with_items`` first) or sentiment of other length.
        """
        if events.n_items != self.n_items or len(sentiment) != len(rows):
            raise DataError(
                f"events are of {events.n_items} items and the statistics of {self.n_items}, sentiment has "
                f"{len(sentiment)} values for {len(rows)} events; give the same catalogue and one value an event"
            )
        known = (events.items[rows] >= 0) & (events.times[rows] < self.as_of)
        new, sentiment = events.take(rows[known]), sentiment[known]
        taken = new.take(new.positive)
        series = dict(self.series)
        series["sales"] = series["sales"].with_events(taken.items, taken.times)
        series["buyers"] = self._with_buyers(events, rows[known][new.positive])
        series["firsts"] = self._with_firsts(new)
        series["ratings"] = series["ratings"].with_events(*_known_values(new, new.ratings))
        series["opinions"] = series["opinions"].with_events(*_known_values(new, sentiment))
        return replace(self, series=series)

    def with_items(self, items: Items, *, labelled_anew: bool = True) -> Self:
        """Return the same events over a catalogue that grew or changed; items keep their codes.

        labelled_anew: False where neither an item, nor a brand, nor categories are other than before.
        """
        labels = _labels_of(items) if labelled_anew else (self.brands, self.categories)
        return replace(
            self, n_items=len(items), brands=labels[0], categories=labels[1], log_prices=_log_prices_of(items)
        )

    def _with_buyers(self, events: Interactions, rows: IntArray) -> EventSeries:
        """Add the first purchases among new positive events at ``rows``."""
        if not len(rows):
            return self.series["buyers"]
        touched = np.zeros(events.n_users, dtype=np.bool_)
        touched[events.users[rows]] = True
        past = np.flatnonzero(touched[events.users] & events.positive & (events.items >= 0))
        past = past[events.times[past] < self.as_of]
        is_new = np.isin(past, rows, assume_unique=True)
        pairs = events.users[past] * events.n_items + events.items[past]
        first = _first_of_each(pairs)
        first_before = np.flatnonzero(~is_new)[_first_of_each(pairs[~is_new])]
        if np.isin(first_before, first, assume_unique=True).all():
            added = past[first[is_new[first]]]
            return self.series["buyers"].with_events(events.items[added], events.times[added])
        # an event came so late that it takes the place of a first purchase: rare, and dearer to undo than to count
        known = events.positive & (events.items >= 0) & (events.times < self.as_of)
        return _buyers(events.take(known))

    def _with_firsts(self, new: Interactions) -> EventSeries:
        """Add the first events of items among new events, in place of later ones."""
        firsts = self.series["firsts"]
        new = new.take(_first_of_each(new.items))
        known = np.full(self.n_items, _NEVER)
        known[firsts.items] = firsts.times
        new = new.take(new.times < known[new.items])
        replaced = np.isin(firsts.items, new.items[known[new.items] < _NEVER])
        if replaced.any():
            firsts = EventSeries.of(firsts.items[~replaced], firsts.times[~replaced])
        return firsts.with_events(new.items, new.times)

    def to_arrays(self) -> dict[str, IntArray]:
        """Return everything that came from events as flat arrays, for ``storage.write_arrays``."""
        arrays = {"as_of": np.array([self.as_of]), "is_position": np.array([int(self.time_kind == "position")])}
        for name, series in self.series.items():
            arrays |= {
                f"{name}.items": series.items,
                f"{name}.times": series.times,
                f"{name}.values": series.values,
            }
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, IntArray], items: Items) -> Self:
        """Rebuild what ``to_arrays`` gave; brands, categories and prices come from the items."""
        series = {
            name: EventSeries.of(arrays[f"{name}.items"], arrays[f"{name}.times"], arrays[f"{name}.values"])
            for name in ("sales", "buyers", "firsts", "ratings", "opinions")
        }
        time_kind: TimeKind = "position" if arrays["is_position"][0] else "time"
        return cls(int(arrays["as_of"][0]), time_kind, len(items), series, *_labels_of(items), _log_prices_of(items))


def _known_values(past: Interactions, values: FloatArray) -> tuple[IntArray, IntArray, IntArray]:
    """Items, times and values in fixed point of the events whose value is known."""
    known = np.isfinite(values)
    fixed = np.rint(values[known].astype(np.float64) * _FIXED_POINT).astype(np.int64)
    return past.items[known], past.times[known], fixed


def _buyers(taken: Interactions) -> EventSeries:
    """Series of the first positive event of each (user, item)."""
    buyers = taken.take(first_of_pair(taken.users, taken.items, taken.n_items))
    return EventSeries.of(buyers.items, buyers.times)


def _first_of_each(values: IntArray) -> IntArray:
    """Positions, rising, of the first of each value: int64."""
    return np.sort(np.unique(values, return_index=True)[1])


def _labels(names_of_items: Iterable[Sequence[str]], *, by_rarity: bool = False) -> Labels:
    """Give each name a code (case and outer blanks ignored, "" left out); weights 1, or log(n_items / n_with_label)."""
    codes: dict[str, int] = {}
    rows = [
        [
            codes.setdefault(name, len(codes))
            for name in dict.fromkeys(part.strip().casefold() for part in names)
            if name
        ]
        for names in names_of_items
    ]
    of_item = Ragged.from_lists(rows)
    weights = np.ones(len(codes))
    if by_rarity:  # a label that every item has tells nothing
        n_tagged = np.count_nonzero(of_item.lengths)
        weights = np.log(n_tagged / np.bincount(of_item.values, minlength=len(codes)))
    return Labels(of_item, weights)


def _labels_of(items: Items) -> tuple[Labels, Labels]:
    """Brands and categories of the catalogue."""
    brands = _labels([[brand] for brand in items.frame["brand"]])
    categories = _labels([text.split(CATEGORY_SEPARATOR) for text in items.frame["categories"]], by_rarity=True)
    return brands, categories


def _log_prices_of(items: Items) -> DoubleArray:
    prices = items.frame["price"].to_numpy(dtype=np.float64)
    return np.log(prices, out=np.full(len(items), np.nan), where=prices > 0)
