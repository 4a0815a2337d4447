"""Users as cases: histories from what is known, or given with the question, and the items they have had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from llm_rerank.config import RerankerConfig
from llm_rerank.data.cases import build_cases, seen_items
from llm_rerank.data.frames import applicable, id_codes, to_pandas
from llm_rerank.data.schema import validate_interactions
from llm_rerank.data.times import TimeUnit
from llm_rerank.types import UNKNOWN, Cases, DataError, DataReport, IntArray, Interactions, Items, ObjectArray, Ragged


def read_histories(
    histories: Any,
    events: Interactions,
    items: Items,
    config: RerankerConfig,
    time_unit: TimeUnit = "auto",
    *,
    columns: Mapping[str, str] | None = None,
    report: DataReport,
) -> Interactions:
    """Validate histories that come with a question by the rules of the fit.

    events: of the fit. columns: from the shop's names to ours; those that the table lacks are another's. report: counts
    what is dropped. Raises DataError where a rule is broken, or the times are of another kind than at the fit.
    """
    frame = to_pandas(histories, columns=columns, report=report)
    given = validate_interactions(
        frame,
        items,
        columns=applicable(columns, frame),
        name="histories",
        time_unit="position" if events.time_kind == "position" else time_unit,
        target_events=config.target_events,
        min_rating=config.min_rating,
        require_targets=False,
        report=report,
    )
    if given.time_kind != events.time_kind:
        raise DataError(
            f"histories have times of kind {given.time_kind!r} and the fit had {events.time_kind!r}; "
            "give timestamps of the same kind"
        )
    return given


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
    times = np.full(len(user_ids), at, dtype=np.int64)
    known = id_codes(user_ids, events.user_ids)
    if given is None:
        return build_cases(events, known, times), seen_items(events, known, times)
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
