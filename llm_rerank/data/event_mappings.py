"""A few events that come as mappings, read without a frame: what ``validate_interactions`` gives, many times as fast.

Only plain cases: texts and whole numbers as ids, times in seconds, columns with our names. Anything else is left to the
frame's door, so that there is one place where odd data are understood.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_rerank.data.event_doubts import advise_on_events
from llm_rerank.data.events import event_kind, implied_kinds, judge_events
from llm_rerank.data.id_index import code_of, codes_by_id
from llm_rerank.data.times import LATEST, SIZE_BANDS
from llm_rerank.data.values import GREATEST_ID, GREATEST_WHOLE, clean_text, object_array, without_halves
from llm_rerank.types import (
    UNKNOWN,
    DataReport,
    FloatArray,
    Interactions,
    Items,
    TimeKind,
)

MOST_MAPPINGS = 256
"""More events than this are read as a frame: then its fixed cost is nothing."""

_LEAST_SECONDS = next(least for unit, least, _ in SIZE_BANDS if unit == "s")
_GREATEST_NUMBER = 1e30  # beyond it float32 ends
EVENT_FIELDS = ("user_id", "item_id", "timestamp", "event", "rating", "quantity", "weight", "review", "query")
_LAYOUT_FIELDS = ("reviewerID", "parent_asin", "movieId")  # of published data, which the frame's door recognises


def read_mappings(
    rows: Any,
    items: Items,
    *,
    time_kind: TimeKind,
    target_events: Sequence[str],
    min_rating: float | None,
    report: DataReport,
) -> Interactions | None:
    """Check events and turn ids to codes, as ``validate_interactions`` with ``require_targets`` False does.

    rows: a sequence of mappings with the columns of interactions; others are left out. time_kind: of the shop.
    Returns None where anything is not plain: the frame's door must read it, and nothing was counted in ``report``.
    """
    if not isinstance(rows, list | tuple) or not 0 < len(rows) <= MOST_MAPPINGS:
        return None
    columns = _columns(rows)
    if columns is None:
        return None
    user_ids, item_ids = _ids(columns["user_id"]), _ids(columns["item_id"])
    times = _times(columns["timestamp"], time_kind)
    kinds, numbers, texts = (
        _texts(columns["event"]),
        _numbers(columns),
        (_texts(columns["review"]), _texts(columns["query"])),
    )
    if None in (user_ids, item_ids, times, kinds, numbers, *texts):
        return None
    assert user_ids is not None and item_ids is not None and times is not None  # noqa: PT018  # for mypy
    assert kinds is not None and numbers is not None  # noqa: PT018
    reviews, queries = ([clean_text(text) for text in of_rows or ()] for of_rows in texts)
    if any(value is None for value in user_ids):
        return None
    codes_of = codes_by_id(items.ids)
    codes = np.array([UNKNOWN if value is None else code_of(value, codes_of) for value in item_ids], dtype=np.int64)
    has_item = np.array([value is not None for value in item_ids], dtype=np.bool_)
    searched = np.array([bool(query) for query in queries], dtype=np.bool_)
    absent, empty = has_item & (codes == UNKNOWN), ~has_item & ~searched
    report.drop("interactions: item_id is missing, and there is no query", int(empty.sum()))
    report.drop("interactions: item is absent from items", int(absent.sum()))
    kept = np.flatnonzero(~absent & ~empty)
    kept = kept[np.argsort(np.array(times, dtype=np.int64)[kept], kind="stable")]
    has_item = has_item[kept]
    ratings, quantities, weights = (numbers[name][kept] for name in ("rating", "quantity", "weight"))
    implied = implied_kinds(has_item, ratings).tolist()
    names = [event_kind(kinds[row]) or kind for row, kind in zip(kept.tolist(), implied, strict=True)]
    report.event_kinds = tuple(dict.fromkeys(names))
    targets = [event_kind(name) for name in target_events]
    values = judge_events(
        names,
        np.arange(len(kept)),
        has_item=has_item,
        ratings=ratings,
        weights_given=weights,
        quantities=quantities,
        targets=targets,
        min_rating=min_rating,
    )
    user_codes: dict[Any, int] = {}
    users = [user_codes.setdefault(user_ids[row], len(user_codes)) for row in kept.tolist()]
    events = Interactions(
        user_ids=object_array(list(user_codes)),
        user_rows=np.full(len(user_codes), UNKNOWN, dtype=np.int64),
        n_items=len(items),
        time_kind=time_kind,
        users=np.array(users, dtype=np.int64),
        items=codes[kept],
        times=np.array(times, dtype=np.int64)[kept],
        weights=values.weights,
        positive=values.positive,
        ratings=values.ratings,
        quantities=values.quantities,
        reviews=object_array(reviews)[kept],
        queries=object_array(queries)[kept],
    )
    advise_on_events(events, values.kinds, "interactions", report)
    report.drop("interactions: purchase of a quantity of 0 or less (a return)", int(values.returned.sum()))
    return events.take(~values.returned) if values.returned.any() else events


def _columns(rows: Sequence[Any]) -> dict[str, list[Any]] | None:
    """Values of each field, None where missing; None as a whole where a required field is nowhere."""
    if not all(isinstance(row, Mapping) for row in rows):
        return None
    present = {name for row in rows for name in row}
    if not {"user_id", "item_id", "timestamp"} <= present or present.intersection(_LAYOUT_FIELDS):
        return None
    return {name: [row.get(name) for row in rows] for name in EVENT_FIELDS}


def _ids(values: list[Any]) -> list[Any] | None:
    """Ids of one kind, text or whole numbers, with None where missing; None as a whole where there is another."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {str}:
        is_plain = all(value is None or value.strip() and without_halves(value) is value for value in values)
        return values if is_plain else None
    if kinds == {int}:
        return values if all(value is None or abs(value) <= GREATEST_ID for value in values) else None
    return None if kinds else values


def _times(values: list[Any], time_kind: TimeKind) -> list[int] | None:
    """Whole seconds since 1970, or positions; None as a whole where one is anything else."""
    if not all(type(value) in (int, float) for value in values):
        return None
    if time_kind == "position":
        return values if all(type(value) is int and abs(value) < GREATEST_WHOLE for value in values) else None
    return [math.floor(value) for value in values] if all(_LEAST_SECONDS <= v <= LATEST for v in values) else None


def _texts(values: list[Any]) -> list[str] | None:
    """Texts, "" where missing; None as a whole where one is no text."""
    if not all(value is None or type(value) is str for value in values):
        return None
    return [value or "" for value in values]


def _numbers(columns: Mapping[str, list[Any]]) -> dict[str, FloatArray] | None:
    """Numeric fields as float32, NaN where missing or not finite; None as a whole where one is no number."""
    numbers = {}
    for name in ("rating", "quantity", "weight"):
        values = columns[name]
        if not all(value is None or type(value) in (int, float) for value in values):
            return None
        floats = [math.nan if value is None or not abs(value) < math.inf else value for value in values]
        if any(abs(value) > _GREATEST_NUMBER for value in floats):
            return None
        numbers[name] = np.array(floats, dtype=np.float64).astype(np.float32)
    return numbers
