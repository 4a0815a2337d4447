"""Features of a (case, candidate) pair as of the case's time: sales, support, affinities, price gap, opinions.

``ItemStatistics`` keeps each item's events in order of time, and no user ids. A feature counts only what lies strictly
before both the statistics' ``as_of`` and the time of the case. Unknown is NaN, never 0. Filling and scaling of these
columns is in ``missing.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from llm_rerank.data.missing import MissingValues as MissingValues
from llm_rerank.data.missing import Standardizer as Standardizer
from llm_rerank.data.splits import Timeline, first_of_pair
from llm_rerank.data.values import CATEGORY_SEPARATOR
from llm_rerank.types import Cases, DataError, FloatArray, IntArray, Interactions, Items, Ragged, TimeKind

PAIR_FEATURES: tuple[str, ...] = (
    "sales_7d",
    "sales_28d",
    "sales_90d",
    "recency",
    "item_support",
    "item_age",
    "user_support",
    "brand_affinity",
    "category_affinity",
    "price_gap",
    "sentiment",
    "mean_rating",
)
"""Columns of ``pair_features``, in order."""

SALES_DAYS = (7, 28, 90)
PRIOR_OPINIONS = 5.0
"""Opinions that the mean over all items counts for in an item's own mean: one rating is not yet a verdict."""

_DAY_S = 86_400
_BLOCK_CANDIDATES = 250_000
_LAST_TIME = np.iinfo(np.int64).max
# Opinions are summed as integers: sums of floats would depend, in the last bit, on events that come later.
_FIXED_POINT = float(1 << 20)

DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Series:
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
        days[known] = (times[known] - self.times[self.timeline.order[ends[known] - 1]]) / _DAY_S
        return days

    def mean(self, items: IntArray, times: IntArray) -> DoubleArray:
        """Mean value before each time, drawn to the mean over all items by ``PRIOR_OPINIONS``; NaN where none."""
        n_before = np.searchsorted(self.sorted_times, times)
        prior = self.sorted_sums[n_before] / (np.maximum(n_before, 1) * _FIXED_POINT)
        counts = self.count(items, times)
        means = (self.total(items, times) + PRIOR_OPINIONS * prior) / (counts + PRIOR_OPINIONS)
        return np.where(counts > 0, means, np.nan)


@dataclass(frozen=True)
class _Labels:
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
    series: Mapping[str, _Series]
    brands: _Labels
    categories: _Labels
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
        buyers = taken.take(first_of_pair(taken.users, taken.items, taken.n_items))
        firsts = past.take(np.sort(np.unique(past.items, return_index=True)[1]))
        series = {
            "sales": _Series.of(taken.items, taken.times),
            "buyers": _Series.of(buyers.items, buyers.times),
            "firsts": _Series.of(firsts.items, firsts.times),
            "ratings": _known_values(past, past.ratings),
            "opinions": _known_values(past, sentiment),
        }
        return cls(as_of, events.time_kind, len(items), series, *_attributes(items))

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
            name: _Series.of(arrays[f"{name}.items"], arrays[f"{name}.times"], arrays[f"{name}.values"])
            for name in ("sales", "buyers", "firsts", "ratings", "opinions")
        }
        time_kind: TimeKind = "position" if arrays["is_position"][0] else "time"
        return cls(int(arrays["as_of"][0]), time_kind, len(items), series, *_attributes(items))


def pair_features(cases: Cases, statistics: ItemStatistics, items: Items) -> FloatArray:
    """Features of each candidate: float32, shape (n_candidates, len(PAIR_FEATURES)); NaN where unknown.

    With t the case's time, but no later than the statistics' ``as_of`` (a window is only read where it was observed):

    sales_7d, sales_28d, sales_90d: log(1 + positive events of the item in [t - days, t)).
    recency: log(1 + days since the item's last positive event). item_age: log(1 + days since its first event).
    item_support: log(1 + users with a positive event). user_support: log(1 + length of the case's history), so build
    the cases with their whole histories.
    brand_affinity: share of the liked history (weights above 0, brand known) that has the candidate's brand.
    category_affinity: the same by label, averaged over the candidate's labels with their rarity, log(n_items / n_with).
    price_gap: |log price - weighted mean log price of the liked history|.
    sentiment, mean_rating: mean over the item's reviews and ratings, drawn to the mean over all items.

    On position-timed data the five features that need a clock are NaN: sales, recency, item_age.

    Raises DataError where the statistics are of another catalogue.
    """
    if statistics.n_items != len(items):
        raise DataError(
            f"statistics are of {statistics.n_items} items, the catalogue has {len(items)}; "
            "build them again with ItemStatistics.from_events"
        )
    features = np.empty((len(cases.candidates.values), len(PAIR_FEATURES)), dtype=np.float32)
    offsets = cases.candidates.offsets
    start = 0
    while start < len(cases):  # blocks of cases bound the memory
        stop = int(np.searchsorted(offsets, offsets[start] + _BLOCK_CANDIDATES, side="right")) - 1
        stop = min(max(stop, start + 1), len(cases))
        block = cases.take(np.arange(start, stop))
        features[offsets[start] : offsets[stop]] = _block_features(block, statistics)
        start = stop
    return features


def _block_features(cases: Cases, statistics: ItemStatistics) -> DoubleArray:
    """Compute ``pair_features`` of a block of cases."""
    candidates, rows = cases.candidates.values, cases.candidates.row_of_value
    known = (candidates >= 0) & (candidates < statistics.n_items)
    columns = dict.fromkeys(PAIR_FEATURES, np.full(len(candidates), np.nan))
    times = np.minimum(cases.times, statistics.as_of)
    of_items = _item_features(statistics, candidates[known], times[rows[known]])
    liking = np.maximum(cases.history_weights.astype(np.float64), 0)
    of_pairs = {
        "brand_affinity": _affinity(cases, liking, statistics.brands, known),
        "category_affinity": _affinity(cases, liking, statistics.categories, known),
        "price_gap": _price_gap(cases, liking, statistics.log_prices, known),
    }
    for name, values in (of_items | of_pairs).items():
        columns[name] = np.full(len(candidates), np.nan)
        columns[name][known] = values
    columns["user_support"] = np.log1p(cases.history.lengths)[rows]
    return np.column_stack([columns[name] for name in PAIR_FEATURES])


def _item_features(statistics: ItemStatistics, items: IntArray, times: IntArray) -> dict[str, DoubleArray]:
    """Features that depend on the item and the time only: float64, shape (n_pairs,) each."""
    distinct_times, time_codes = np.unique(times, return_inverse=True)
    if len(distinct_times) * statistics.n_items < len(items):  # cheaper to look up each (time, item) once
        grid_items = np.tile(np.arange(statistics.n_items, dtype=np.int64), len(distinct_times))
        grid = _item_features(statistics, grid_items, np.repeat(distinct_times, statistics.n_items))
        return {name: values[time_codes * statistics.n_items + items] for name, values in grid.items()}
    series = statistics.series
    features: dict[str, DoubleArray] = {}
    if statistics.time_kind == "position":
        # Positions have no common clock: nothing is "in the last week", and all events given are the past.
        times = np.full(len(items), _LAST_TIME, dtype=np.int64)
    else:
        sold = series["sales"].count(items, times)
        for days in SALES_DAYS:
            in_window = sold - series["sales"].count(items, times - days * _DAY_S)
            features[f"sales_{days}d"] = np.log1p(in_window)
        features["recency"] = np.log1p(series["sales"].days_since_last(items, times))
        features["item_age"] = np.log1p(series["firsts"].days_since_last(items, times))
    features["item_support"] = np.log1p(series["buyers"].count(items, times))
    features["sentiment"] = series["opinions"].mean(items, times)
    features["mean_rating"] = series["ratings"].mean(items, times)
    return features


def _affinity(cases: Cases, liking: DoubleArray, labels: _Labels, known: npt.NDArray[np.bool_]) -> DoubleArray:
    """Share of the liking of each case that shares a known candidate's labels, averaged over them by label weight."""
    n_labels = len(labels.weights)
    case_of_event, tagged = cases.history.row_of_value, labels.of_item.lengths > 0
    liked = np.bincount(case_of_event, weights=liking * tagged[cases.history.values], minlength=len(cases))
    positions = labels.of_item.value_positions(cases.history.values)
    repeats = labels.of_item.lengths[cases.history.values]
    # Sparse (case, label) sums as sorted integer keys: a dense table would grow with the number of labels.
    keys, inverse = np.unique(
        np.repeat(case_of_event, repeats) * n_labels + labels.of_item.values[positions], return_inverse=True
    )
    liked_with_label = np.bincount(inverse, weights=np.repeat(liking, repeats), minlength=len(keys))

    candidates, rows = cases.candidates.values[known], cases.candidates.row_of_value[known]
    wanted_labels = labels.of_item.values[labels.of_item.value_positions(candidates)]
    pair = np.repeat(np.arange(len(candidates)), labels.of_item.lengths[candidates])
    shared = _lookup(keys, liked_with_label, rows[pair] * n_labels + wanted_labels)
    weights = labels.weights[wanted_labels]
    matched = np.bincount(pair, weights=weights * shared, minlength=len(candidates))
    possible = np.bincount(pair, weights=weights, minlength=len(candidates)) * liked[rows]
    return np.divide(matched, possible, out=np.full(len(candidates), np.nan), where=possible > 0)


def _lookup(keys: IntArray, values: npt.NDArray[Any], wanted: IntArray) -> DoubleArray:
    """Value of each wanted key among ascending distinct keys; 0 where absent."""
    if not len(keys):
        return np.zeros(len(wanted))
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0.0)


def _price_gap(cases: Cases, liking: DoubleArray, log_prices: DoubleArray, known: npt.NDArray[np.bool_]) -> DoubleArray:
    """Distance of each known candidate's log price from the weighted mean log price of the liked history."""
    rows, prices = cases.history.row_of_value, log_prices[cases.history.values]
    priced = np.isfinite(prices) & (liking > 0)
    weights = np.bincount(rows[priced], weights=liking[priced], minlength=len(cases))
    sums = np.bincount(rows[priced], weights=liking[priced] * prices[priced], minlength=len(cases))
    usual = np.divide(sums, weights, out=np.full(len(cases), np.nan), where=weights > 0)
    return np.abs(log_prices[cases.candidates.values[known]] - usual[cases.candidates.row_of_value[known]])


def _known_values(past: Interactions, values: FloatArray) -> _Series:
    """Series of the events whose value is known."""
    known = np.isfinite(values)
    fixed = np.rint(values[known].astype(np.float64) * _FIXED_POINT).astype(np.int64)
    return _Series.of(past.items[known], past.times[known], fixed)


def _labels(names_of_items: Iterable[Sequence[str]], *, by_rarity: bool = False) -> _Labels:
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
    return _Labels(of_item, weights)


def _attributes(items: Items) -> tuple[_Labels, _Labels, DoubleArray]:
    """Brands, categories and log prices of the catalogue."""
    brands = _labels([[brand] for brand in items.frame["brand"]])
    categories = _labels([text.split(CATEGORY_SEPARATOR) for text in items.frame["categories"]], by_rarity=True)
    prices = items.frame["price"].to_numpy(dtype=np.float64)
    log_prices = np.log(prices, out=np.full(len(items), np.nan), where=prices > 0)
    return brands, categories, log_prices
