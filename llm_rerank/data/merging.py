"""Events added to events and taken out again: pure functions whose cost is a copy of the arrays, not a sort.

Added events stand where a sort by time would put them, after those of the same time that were there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from llm_rerank.data.id_index import code_of
from llm_rerank.data.splits import Timeline
from llm_rerank.types import EVENT_ARRAYS, UNKNOWN, BoolArray, DataError, IntArray, Interactions, ObjectArray


def places_of(times: IntArray, new_times: IntArray) -> IntArray:
    """Where ``np.insert`` must put new events: int64, shape (n_new,). Both arrays rise; int64, one entry an event."""
    return np.searchsorted(times, new_times, side="right").astype(np.int64)


def rows_of(places: IntArray) -> IntArray:
    """Give the rows that events have after ``np.insert`` at these rising places: int64, same shape."""
    return places + np.arange(len(places), dtype=np.int64)


def match_users(new: Interactions, codes: Mapping[Any, int], n_users: int) -> Interactions:
    """Give the users of new events the codes that they have, and those without one the next from ``n_users`` on.

    Returns the events; ``user_ids`` and ``user_rows`` are of the users without a code alone. Users without an event are
    left out.
    """
    present, users = np.unique(new.users, return_inverse=True)
    known = np.array([code_of(new.user_ids[user], codes) for user in present], dtype=np.int64)
    unknown = known == UNKNOWN
    of_present = np.where(unknown, n_users + np.cumsum(unknown) - 1, known)
    return replace(
        new,
        users=of_present[users].astype(np.int64),
        user_ids=new.user_ids[present[unknown]],
        user_rows=new.user_rows[present[unknown]],
    )


def with_events(events: Interactions, new: Interactions) -> tuple[Interactions, IntArray]:
    """Add events that ``match_users`` has numbered.

    Returns all events, sorted by time, and the rows of the new ones in them: int64, rising, shape (n_new,).
    Raises DataError where the new ones are of another catalogue or another kind of time.
    """
    if new.n_items != events.n_items or new.time_kind != events.time_kind:
        raise DataError(
            f"new events are of {new.n_items} items and times of kind {new.time_kind!r}, the others of "
            f"{events.n_items} items and kind {events.time_kind!r}; validate them against the same catalogue and time"
        )
    places = places_of(events.times, new.times)
    arrays: dict[str, Any] = {
        name: np.insert(getattr(events, name), places, getattr(new, name)) for name in EVENT_ARRAYS
    }
    if len(new.user_ids):  # else the very same array, which codes are remembered by
        arrays["user_ids"] = np.concatenate([events.user_ids, new.user_ids])
        arrays["user_rows"] = np.concatenate([events.user_rows, new.user_rows])
    return replace(events, **arrays), rows_of(places)


def without_events(events: Interactions, gone: BoolArray) -> tuple[Interactions, ObjectArray]:
    """Take events out, and the ids of users who had events and have none left; other users get new codes.

    gone: bool, shape (n_events,). Returns the events and the ids that went, object, shape (n_gone_users,).
    """
    kept = events.take(~gone)
    emptied = np.zeros(events.n_users, dtype=np.bool_)
    emptied[events.users[gone]] = True
    emptied[kept.users] = False
    if not emptied.any():
        return kept, events.user_ids[:0]
    code = np.cumsum(~emptied) - 1
    left = replace(
        kept, user_ids=events.user_ids[~emptied], user_rows=events.user_rows[~emptied], users=code[kept.users]
    )
    return left, events.user_ids[emptied]


def with_items(events: Interactions, n_items: int) -> Interactions:
    """Return the events over a catalogue that is as long or longer; raises DataError for a shorter one."""
    if n_items < events.n_items:
        raise DataError(f"n_items is {n_items} and was {events.n_items}; items keep their codes, none can go")
    return replace(events, n_items=n_items)


def longer_timeline(
    timeline: Timeline, groups: IntArray, places: IntArray, new_groups: IntArray, new_times: IntArray
) -> Timeline:
    """Return ``Timeline.of`` of the groups and times after ``np.insert`` of the new ones at ``places_of`` the times.

    groups: of the events before, shape (n_events,). The others: shape (n_new,), new_times rising.
    """
    wanted = np.unique(new_times)
    spots = np.searchsorted(timeline.distinct_times, wanted)
    fresh = np.ones(len(wanted), dtype=np.bool_)
    inside = spots < len(timeline.distinct_times)
    fresh[inside] = timeline.distinct_times[spots[inside]] != wanted[inside]
    distinct_times = np.insert(timeline.distinct_times, spots[fresh], wanted[fresh])
    keys, n_fresh = timeline.keys, int(fresh.sum())
    if n_fresh:  # a key is group × (n_distinct_times + 1) + rank of the time
        sorted_groups = groups[timeline.order]
        ranks = keys - sorted_groups * (len(timeline.distinct_times) + 1)
        keys = keys + sorted_groups * n_fresh + _n_up_to(spots[fresh], ranks)
    new_keys = new_groups * (len(distinct_times) + 1) + np.searchsorted(distinct_times, new_times)
    by_key = np.argsort(new_keys, kind="stable")
    at = np.searchsorted(keys, new_keys[by_key], side="right")
    order = timeline.order + _n_up_to(places, timeline.order)
    return Timeline(
        np.insert(order, at, rows_of(places)[by_key]), np.insert(keys, at, new_keys[by_key]), distinct_times
    )


def _n_up_to(rising: IntArray, values: IntArray) -> IntArray:
    """How many of the rising numbers are at most each value: int64, shape of the values."""
    if len(rising) == 1:  # the usual case, several times as fast
        return (values >= rising[0]).astype(np.int64)
    return np.searchsorted(rising, values, side="right").astype(np.int64)
