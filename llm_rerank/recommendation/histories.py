"""Users as cases: histories from what is known, or given with the question, and the items they have had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llm_rerank.data.cases import build_cases, seen_items
from llm_rerank.types import UNKNOWN, Cases, IntArray, Interactions, Ragged


def code_map(events: Interactions) -> dict[Any, int]:
    """Code of each user id."""
    return {user: code for code, user in enumerate(events.user_ids)}


def cases_of_users(
    user_ids: Sequence[Any],
    events: Interactions,
    codes: Mapping[Any, int],
    at: int,
    *,
    given: Interactions | None = None,
) -> tuple[Cases, Ragged]:
    """Build one case a user at time ``at``, candidates empty, and the distinct items each has had before.

    given: histories that come with the question; a user with any event there is read from there alone. A user
    known to neither has an empty history.
    """
    times = np.full(len(user_ids), at, dtype=np.int64)
    known = np.array([codes.get(user, UNKNOWN) for user in user_ids], dtype=np.int64)
    if given is None:
        return build_cases(events, known, times), seen_items(events, known, times)
    given_codes = code_map(given)
    fresh = np.array([given_codes.get(user, UNKNOWN) for user in user_ids], dtype=np.int64)
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
