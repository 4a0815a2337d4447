"""The only builder of ``Cases``: what a user did strictly before a time, and the candidates before them.

Every history that reaches a model comes through here, so "nothing at or after the decision" is said in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from llm_rerank.data.frames import id_codes
from llm_rerank.data.splits import Timeline, had
from llm_rerank.types import UNKNOWN, Cases, DataError, IntArray, Interactions, ObjectArray, Ragged

QUERY_SEPARATOR = "; "


def build_cases(
    events: Interactions,
    users: IntArray,
    times: IntArray,
    *,
    candidates: Ragged | None = None,
    targets: Ragged | None = None,
    history_length: int | None = None,
) -> Cases:
    """Build one case for each (user, time): the user's events with an item strictly before the time, oldest first.

    users: int64 codes of ``events``, shape (n_cases,); -1 is a user without events and attributes.
    times: int64, shape (n_cases,).
    candidates, targets: one row a case; None: empty rows.
    history_length: newest events (and newest searches) to keep; None: all.

    Raises DataError where the arguments differ in length, a user code is out of range or history_length is below 1.
    """
    users, times = np.asarray(users, dtype=np.int64), np.asarray(times, dtype=np.int64)
    for name, length in (("times", times), ("candidates", candidates), ("targets", targets)):
        if length is not None and len(length) != len(users):
            raise DataError(f"{name} has {len(length)} rows for {len(users)} users; give one row a case")
    _check_users(users, events.n_users)
    if history_length is not None and history_length < 1:
        raise DataError(f"history_length is {history_length}; keep at least 1 event, or pass None to keep all")

    with_item = np.flatnonzero(events.items >= 0)
    timeline = Timeline.of(events.users[with_item], events.times[with_item])
    rows = timeline.before(users, times, newest=history_length)
    positions = with_item[rows.values]
    user_rows = np.full(len(users), UNKNOWN, dtype=np.int64)
    user_rows[users >= 0] = events.user_rows[users[users >= 0]]
    return Cases(
        user_rows=user_rows,
        times=times,
        history=Ragged(events.items[positions], rows.offsets),
        history_weights=events.weights[positions],
        history_times=events.times[positions],
        queries=_joined_queries(events, users, times, newest=history_length),
        candidates=Ragged.empty(len(users)) if candidates is None else candidates,
        targets=Ragged.empty(len(users)) if targets is None else targets,
    )


def next_cases(
    events: Interactions, user_ids: Sequence[Any] | ObjectArray, at: int | IntArray | None = None
) -> tuple[Cases, Ragged]:
    """Build what comes next for each user: one case a user, without candidates, and the distinct items had before.

    user_ids: as in the tables; one without events has an empty history. at: one moment, or int64, shape (n_users,);
    None: after the last event of all. ``seen_items`` says what counts as had.
    """
    users = id_codes(pd.Series(user_ids, dtype=object), events.user_ids)
    moment = int(events.times.max(initial=-1)) + 1 if at is None else at
    times = np.full(len(users), moment, dtype=np.int64)
    return build_cases(events, users, times), seen_items(events, users, times)


def with_newest(cases: Cases, n_events: IntArray) -> Cases:
    """Cut each history to so many of its newest events; all else, searches too, stays.

    n_events: int64, shape (n_cases,), 0 or more; what is longer than a history leaves it whole.
    """
    lengths = np.minimum(cases.history.lengths, n_events)
    last = np.repeat(cases.history.offsets[1:] - np.cumsum(lengths), lengths)
    kept = np.arange(lengths.sum(), dtype=np.int64) + last
    return replace(
        cases,
        history=Ragged.from_lengths(cases.history.values[kept], lengths),
        history_weights=cases.history_weights[kept],
        history_times=cases.history_times[kept],
    )


def seen_items(events: Interactions, users: IntArray, times: IntArray) -> Ragged:
    """Distinct items that each user had strictly before the time, by ascending code, one row a (user, time).

    Had are the positive ones and those disliked (a weight below 0, as a rating below ``min_rating`` gives).

    users: int64 codes, -1: no events. times: int64. Both shape (n_cases,).
    """
    users, times = np.asarray(users, dtype=np.int64), np.asarray(times, dtype=np.int64)
    _check_users(users, events.n_users)
    taken = np.flatnonzero(had(events))
    rows = Timeline.of(events.users[taken], events.times[taken]).before(users, times)
    # One integer for each (case, item): distinct integers, ascending, are distinct items by case, then code.
    pairs = np.unique(rows.row_of_value * events.n_items + events.items[taken[rows.values]])
    lengths = np.bincount(pairs // max(events.n_items, 1), minlength=len(users)).astype(np.int64)
    return Ragged.from_lengths(pairs % max(events.n_items, 1), lengths)


def _check_users(users: IntArray, n_users: int) -> None:
    """Raise DataError where a code is not a user of the events and not -1."""
    wrong = users[(users < UNKNOWN) | (users >= n_users)]
    if len(wrong):
        raise DataError(
            f"users has {len(wrong)} codes outside the {n_users} known users (first: {wrong[0]}); use codes of "
            f"events.user_ids, or {UNKNOWN} for a user without events"
        )


def _joined_queries(events: Interactions, users: IntArray, times: IntArray, *, newest: int | None) -> list[str]:
    """Search words of each case, newest last, joined."""
    joined = [""] * len(users)
    searched = np.flatnonzero(events.queries.astype(bool))
    if not len(searched):
        return joined
    rows = Timeline.of(events.users[searched], events.times[searched]).before(users, times, newest=newest)
    words: ObjectArray = events.queries[searched[rows.values]]
    for case in np.flatnonzero(rows.lengths):  # strings cannot be joined without a loop; only cases with a search
        joined[case] = QUERY_SEPARATOR.join(words[rows.offsets[case] : rows.offsets[case + 1]])
    return joined
