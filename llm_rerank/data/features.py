"""Features of a (case, candidate) pair as of the case's time: sales, support, affinities, price gap, opinions.

A feature counts only what lies strictly before both the statistics' ``as_of`` and the time of the case. Unknown is NaN,
never 0. What is counted is in ``item_statistics.py``, filling and scaling of these columns in ``missing.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llm_rerank.data.item_statistics import DAY_S, DoubleArray, Labels
from llm_rerank.data.item_statistics import ItemStatistics as ItemStatistics
from llm_rerank.data.missing import MissingValues as MissingValues
from llm_rerank.data.missing import Standardizer as Standardizer
from llm_rerank.types import Cases, DataError, FloatArray, IntArray, Items

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

_BLOCK_CANDIDATES = 250_000
_LAST_TIME = np.iinfo(np.int64).max


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
            in_window = sold - series["sales"].count(items, times - days * DAY_S)
            features[f"sales_{days}d"] = np.log1p(in_window)
        features["recency"] = np.log1p(series["sales"].days_since_last(items, times))
        features["item_age"] = np.log1p(series["firsts"].days_since_last(items, times))
    features["item_support"] = np.log1p(series["buyers"].count(items, times))
    features["sentiment"] = series["opinions"].mean(items, times)
    features["mean_rating"] = series["ratings"].mean(items, times)
    return features


def _affinity(cases: Cases, liking: DoubleArray, labels: Labels, known: npt.NDArray[np.bool_]) -> DoubleArray:
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
