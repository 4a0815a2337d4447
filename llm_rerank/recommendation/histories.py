"""Users as cases: histories from what is known, or given with the question, and the items they have had."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from llm_rerank.data.cases import build_cases, next_cases, seen_items
from llm_rerank.data.columns import require_event_columns
from llm_rerank.data.events import event_kind
from llm_rerank.data.frames import applicable, id_codes, to_pandas
from llm_rerank.data.item_statistics import ItemStatistics
from llm_rerank.data.layouts import as_interactions
from llm_rerank.data.schema import validate_interactions
from llm_rerank.data.times import TimeUnit
from llm_rerank.data.values import factorized
from llm_rerank.recommendation.live_events import FUTURE_ALLOWED_S
from llm_rerank.recommendation.state import Saved, target_kinds
from llm_rerank.types import UNKNOWN, Cases, DataError, DataReport, IntArray, Interactions, ObjectArray, Ragged


def read_later_events(
    table: Any,
    saved: Saved,
    time_unit: TimeUnit = "auto",
    *,
    name: str,
    columns: Mapping[str, str] | None = None,
    report: DataReport,
) -> Interactions:
    """Validate events that come after the fit by its rules, above all by its choice of targets.

    name: of the table, for messages. columns: from the shop's names to ours; those that the table lacks are another's.
    report: counts what is dropped. Raises DataError where a rule is broken, or the times are of another kind than at
    the fit.
    """
    frame = to_pandas(table, columns=columns, report=report)
    frame = as_interactions(frame, report, applicable(columns, frame), name)
    frame = require_event_columns(frame, name)
    kinds = event_names(factorized(frame["event"])[1]) if "event" in frame else set()
    events = validate_interactions(
        frame,
        saved.fitted.items,
        name=name,
        time_unit="position" if saved.events.time_kind == "position" else time_unit,
        target_events=target_kinds(saved.target_events, kinds),
        min_rating=saved.config.min_rating,
        require_targets=False,
        report=report,
    )
    if events.time_kind != saved.events.time_kind:
        raise DataError(
            f"{name} have times of kind {events.time_kind!r} and the fit had {saved.events.time_kind!r}; give "
            "timestamps of the same kind"
        )
    return events


def event_names(kinds: Iterable[Any]) -> set[str]:
    """Give the kinds that are said, as they are compared (``event_kind``)."""
    return {event_kind(kind) for kind in kinds if kind is not None}


def last_time(*known: Interactions | None, statistics: ItemStatistics | None = None) -> int:
    """Time of the newest event that is known and not ahead of the clock; 0 where no event is known.

    An order that is dated 2099 until its day is known would else move every later question to 2099. known: the first of
    the fit. statistics: what was kept of events that a folder leaves out.
    """
    tables = [events.times for events in known if events is not None]
    tables += [] if statistics is None else [series.sorted_times for series in statistics.series.values()]
    rising = [times for times in tables if len(times)]
    newest = [int(times[-1]) for times in rising]
    if known[0] is not None and known[0].time_kind == "time":
        ends = [int(np.searchsorted(times, time.time() + FUTURE_ALLOWED_S, side="right")) for times in rising]
        past = [int(times[end - 1]) for times, end in zip(rising, ends, strict=True) if end]
        newest = past or newest  # a clock that is behind every event tells nothing
    return max(newest, default=0)


def history_frame(user_id: Any, item_ids: Sequence[Any], moment: int) -> pd.DataFrame:
    """Turn a list of item ids, oldest first, into interactions just before a moment.

    Raises DataError where the list is empty.
    """
    if not len(item_ids):
        raise DataError(
            "history is empty; leave it out to explain with what is known of the user, or ask for a user id that is "
            "not known to explain for a newcomer"
        )
    return pd.DataFrame(
        {
            "user_id": pd.Series([user_id] * len(item_ids), dtype=object),
            "item_id": pd.Series(list(item_ids), dtype=object),
            "timestamp": np.arange(moment - len(item_ids), moment, dtype=np.int64),
        }
    )


def cases_of_users(
    user_ids: ObjectArray,
    events: Interactions,
    at: int | IntArray,
    *,
    given: Interactions | None = None,
) -> tuple[Cases, Ragged]:
    """Build one case a user at time ``at`` (or each at their own), candidates empty, and the distinct items had before.

    given: histories that come with the question; a user with any event there is read from there alone. A user
    known to neither has an empty history. user_ids: object, shape (n_cases,). at: one moment, or int64, same shape.
    """
    if given is None:
        return next_cases(events, user_ids, at)
    times = np.full(len(user_ids), at, dtype=np.int64)
    known = id_codes(user_ids, events.user_ids)
    fresh = id_codes(user_ids, given.user_ids)
    from_events, from_given = np.flatnonzero(fresh == UNKNOWN), np.flatnonzero(fresh != UNKNOWN)
    parts = [
        (build_cases(source, users[rows], times[rows]), seen_items(source, users[rows], times[rows]))
        for source, users, rows in ((events, known, from_events), (given, fresh, from_given))
    ]
    back = np.argsort(np.concatenate([from_events, from_given]), kind="stable")
    cases = join_cases(parts[0][0], parts[1][0]).take(back)
    attributes = np.where(known >= 0, events.user_rows[np.maximum(known, 0)] if events.n_users else UNKNOWN, UNKNOWN)
    seen = join_ragged(parts[0][1], parts[1][1]).take(back)
    return replace(cases, user_rows=attributes.astype(np.int64)), seen


def join_ragged(first: Ragged, second: Ragged) -> Ragged:
    """Rows of the first, then rows of the second."""
    return Ragged.from_lengths(
        np.concatenate([first.values, second.values]), np.concatenate([first.lengths, second.lengths])
    )


def join_cases(first: Cases, second: Cases) -> Cases:
    """Cases of the first, then cases of the second."""
    return Cases(
        user_rows=np.concatenate([first.user_rows, second.user_rows]),
        times=np.concatenate([first.times, second.times]),
        history=join_ragged(first.history, second.history),
        history_weights=np.concatenate([first.history_weights, second.history_weights]),
        history_times=np.concatenate([first.history_times, second.history_times]),
        queries=[*first.queries, *second.queries],
        candidates=join_ragged(first.candidates, second.candidates),
        targets=join_ragged(first.targets, second.targets),
    )


def without_each_item(cases: Cases, dropped: IntArray) -> Cases:
    """Repeat a single case once for each dropped item code, its history without every event of that item."""
    n = len(dropped)
    repeated = cases.take(np.zeros(n, dtype=np.int64))
    kept = repeated.history.values != dropped[repeated.history.row_of_value]
    lengths = np.bincount(repeated.history.row_of_value[kept], minlength=n).astype(np.int64)
    return replace(
        repeated,
        history=Ragged.from_lengths(repeated.history.values[kept], lengths),
        history_weights=repeated.history_weights[kept],
        history_times=repeated.history_times[kept],
    )
