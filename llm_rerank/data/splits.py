"""Cutting events into past and future: time cuts, last-out, targets, hashing of users.

Everything rests on ``Timeline``: events grouped by user (or item), oldest first, so that "strictly before t" is one
binary search for any number of users at once. Events at the same time are never each other's past.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from llm_rerank.types import BoolArray, DataError, IntArray, Interactions, Ragged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_rerank.types import BoolArray, ObjectArray

VISIT_SECONDS = 86_400
"""Looks at an item this long before it was taken belong to the visit that ended in taking it; older ones are past."""


@dataclass(frozen=True)
class Timeline:
    """Events sorted by group (a user's or an item's code), then time; ties keep the order given.

    order: int64, shape (n_events,), positions of the events in the arrays given.
    keys: int64, shape (n_events,), ascending; group * (n_distinct_times + 1) + rank of the time.
    distinct_times: int64, ascending. Ranks stand for times, so keys cannot overflow whatever the unit of time.
    """

    order: IntArray
    keys: IntArray
    distinct_times: IntArray

    @classmethod
    def of(cls, groups: IntArray, times: IntArray) -> Self:
        """Sort events by group and time (both int64, shape (n_events,), in any order; groups ≥ 0)."""
        distinct_times, ranks = np.unique(times, return_inverse=True)
        keys = groups * (len(distinct_times) + 1) + ranks
        order = np.argsort(keys, kind="stable")
        return cls(order, keys[order], distinct_times)

    def starts(self, groups: IntArray) -> IntArray:
        """First place in ``order`` of each group; a group without events, -1 included, starts where it ends."""
        return np.searchsorted(self.keys, groups * (len(self.distinct_times) + 1))

    def ends(self, groups: IntArray, times: IntArray) -> IntArray:
        """Place in ``order`` after the last event of each group strictly before its time (both shape (n_queries,))."""
        ranks = np.searchsorted(self.distinct_times, times)
        return np.searchsorted(self.keys, groups * (len(self.distinct_times) + 1) + ranks)

    def before(self, groups: IntArray, times: IntArray, *, newest: int | None = None) -> Ragged:
        """Positions of the events of each group strictly before its time, oldest first; at most the newest ones."""
        starts, ends = self.starts(groups), self.ends(groups, times)
        if newest is not None:
            starts = np.maximum(starts, ends - newest)
        lengths = ends - starts
        row_starts = np.cumsum(lengths) - lengths
        places = np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(starts - row_starts, lengths)
        return Ragged.from_lengths(self.order[places], lengths)


@dataclass(frozen=True)
class HeldOut:
    """What is to be found again: one row a user.

    users: int64 codes, ascending, distinct. times: int64, the moment of the decision; history ends strictly before.
    targets: item codes, distinct within a row, in order of appearance; no row is empty.
    """

    users: IntArray
    times: IntArray
    targets: Ragged

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: IntArray | BoolArray) -> HeldOut:
        """Keep these rows (positions in ascending order, or a mask)."""
        rows = np.arange(len(self), dtype=np.int64)[rows]
        return HeldOut(self.users[rows], self.times[rows], self.targets.take(rows))

    @classmethod
    def from_events(cls, held_out: Interactions, events: Interactions) -> HeldOut:
        """Read the second half of ``last_out(events)``: each user's items, decided before the earliest visit."""
        decisions = visit_starts(events, held_out.users, held_out.items, held_out.times)
        return _group_targets(held_out.users, held_out.items, decisions)


def quantile_time(events: Interactions, q: float) -> int:
    """Time T such that the share q of the events, or fewer where times tie, lies strictly before T.

    Raises DataError where there are no events or q is not strictly between 0 and 1.
    """
    if not 0 < q < 1:
        raise DataError(f"q is {q}; a quantile of times must lie strictly between 0 and 1, for example 0.9")
    if not len(events):
        raise DataError("there are 0 events; a time quantile needs at least one, check what the data report dropped")
    # Not np.quantile: interpolation goes through float64 and may give a time at which nothing happened.
    return int(np.sort(events.times)[int(q * len(events))])


def before(events: Interactions, time: int) -> Interactions:
    """Events strictly before the time."""
    return events.take(events.times < time)


def last_out(
    events: Interactions, n_last: int = 1, *, users: IntArray | None = None
) -> tuple[Interactions, Interactions]:
    """Split into (past, held out): each user's last ``n_last`` positive events are held out.

    Other events of the same user from the earliest visit of a held-out item on (``visit_starts``) leave the past too
    and are in neither half. A user without a positive event strictly before that visit keeps everything in the past.
    Of events at one time the last in input order counts as the later one.

    users: int64 codes whose events may be held out; None: all.
    """
    if n_last < 1:
        raise DataError(f"n_last is {n_last}; at least 1 event must be held out of each user")
    targets = events.take(events.positive & (events.items >= 0))
    rows = np.flatnonzero(events.positive & (events.items >= 0))
    timeline = Timeline.of(targets.users, targets.times)
    candidates = np.arange(events.n_users, dtype=np.int64) if users is None else np.unique(users)
    starts, ends = timeline.starts(candidates), timeline.starts(candidates + 1)
    enough = ends - starts > n_last
    candidates, starts, ends = candidates[enough], starts[enough], ends[enough]
    last = timeline.order[ends[:, np.newaxis] + np.arange(-n_last, 0)]
    decisions = visit_starts(events, *(part[last.ravel()] for part in (targets.users, targets.items, targets.times)))
    first_held = decisions.reshape(last.shape).min(axis=1)
    has_past = targets.times[timeline.order[starts]] < first_held
    candidates, last, first_held = candidates[has_past], last[has_past], first_held[has_past]

    held_rows = np.sort(rows[last.ravel()])
    # A user who is not held out has a cut that no event reaches.
    cuts = np.full(events.n_users, np.iinfo(np.int64).max, dtype=np.int64)
    cuts[candidates] = first_held
    return events.take(events.times < cuts[events.users]), events.take(held_rows)


def hash_users(user_ids: ObjectArray | Sequence[Any], n_buckets: int, salt: str = "") -> IntArray:
    """Bucket of each user: int64 in [0, n_buckets), shape (n_users,); the same in every run and on every machine.

    BLAKE2b of the salt and of the id as text (so 7 and "7" share a bucket); Python's own ``hash`` differs by process.
    """
    if n_buckets < 1:
        raise DataError(f"n_buckets is {n_buckets}; users need at least 1 bucket")
    key = hashlib.blake2b(salt.encode(), digest_size=32).digest()
    texts = (str(user_id).encode("utf-8", "surrogatepass") for user_id in user_ids)
    digests = b"".join(hashlib.blake2b(text, digest_size=8, key=key).digest() for text in texts)
    return (np.frombuffer(digests, dtype="<u8") % np.uint64(n_buckets)).astype(np.int64)


def first_unseen_targets(events: Interactions, since: int) -> HeldOut:
    """Each user's first target at or after ``since``; the decision is taken at ``since``.

    The targets are the positive items of the first time at or after ``since`` at which the user, who has a past,
    takes an item not taken before ``since``; all such items of that time, for there is no order among them.
    """
    users, items, times = _targets_after(events, since, unseen_only=True)
    first = times == _extreme_times(np.minimum, users, times, events.n_users)[users]
    held_out = _group_targets(users[first], items[first], times[first])
    return HeldOut(held_out.users, np.full(len(held_out), since, dtype=np.int64), held_out.targets)


def last_targets(events: Interactions, before: int | None = None) -> HeldOut:
    """Each user's last target, strictly before a time if one is given; decided before its visit (``visit_starts``).

    The targets are the items that the user takes for the first time at the last such time whose visit has a past.
    """
    rows = np.flatnonzero(had(events))
    if before is not None:
        rows = rows[events.times[rows] < before]
    pairs = events.users[rows] * events.n_items + events.items[rows]
    _, first, pair = np.unique(pairs, return_index=True, return_inverse=True)
    rows = rows[events.positive[rows] & (events.times[rows] == events.times[rows[first]][pair])]
    users, items, times = events.users[rows], events.items[rows], events.times[rows]
    decisions = visit_starts(events, users, items, times)
    with_past = decisions > _first_time(events)[users]
    users, items, times, decisions = (part[with_past] for part in (users, items, times, decisions))
    last = times == _extreme_times(np.maximum, users, times, events.n_users)[users]
    return _group_targets(users[last], items[last], decisions[last])


def visit_starts(events: Interactions, users: IntArray, items: IntArray, times: IntArray) -> IntArray:
    """When a decision must be taken so that it does not know the visit in which an item was taken: int64, (n_taken,).

    users, items, times: int64, shape (n_taken,), of events in which an item was taken. The visit starts with the
    user's first look at the item (an event for it that is no target: a view, a cart) in the ``VISIT_SECONDS`` before,
    or with the taking itself where there is none; positions know no seconds, so every look before counts. What a user
    takes at one time was decided at one time, the earliest. Without looks these are the times given.
    """
    looks = np.flatnonzero(~events.positive & (events.items >= 0) & (events.weights > 0))
    starts = times.copy()
    if len(looks):
        # one code for each (user, item), so that Timeline's keys cannot overflow
        pairs = np.concatenate([events.users[looks], users]) * events.n_items + np.concatenate(
            [events.items[looks], items]
        )
        codes = np.unique(pairs, return_inverse=True)[1]
        timeline = Timeline.of(codes[: len(looks)], events.times[looks])
        since = times - VISIT_SECONDS if events.time_kind == "time" else np.full_like(times, np.iinfo(np.int64).min)
        first, end = timeline.ends(codes[len(looks) :], since), timeline.ends(codes[len(looks) :], times)
        looked = first < end
        starts[looked] = events.times[looks][timeline.order[first[looked]]]
    distinct_times, ranks = np.unique(times, return_inverse=True)  # keys as of Timeline: rows of two are slow to sort
    visits = np.unique(users * (len(distinct_times) + 1) + ranks, return_inverse=True)[1]
    earliest = np.full(len(times), np.iinfo(np.int64).max, dtype=np.int64)
    np.minimum.at(earliest, visits, starts)
    return earliest[visits]


def all_targets_after(events: Interactions, cut: int, *, unseen_only: bool = True) -> HeldOut:
    """All distinct positive items at or after the cut, of users with a past; the decision is taken at the cut.

    unseen_only: leave out what the user took before the cut.
    """
    users, items, times = _targets_after(events, cut, unseen_only=unseen_only)
    held_out = _group_targets(users, items, times)
    return HeldOut(held_out.users, np.full(len(held_out), cut, dtype=np.int64), held_out.targets)


def _targets_after(events: Interactions, cut: int, *, unseen_only: bool) -> tuple[IntArray, IntArray, IntArray]:
    """Users, items and times of positive events at or after the cut, of users with an item before it."""
    target = events.positive & (events.items >= 0)
    after = target & (events.times >= cut) & (_first_time(events) < cut)[events.users]
    if unseen_only:
        keys = events.users * events.n_items + events.items
        after &= ~np.isin(keys, keys[had(events) & (events.times < cut)])
    return events.users[after], events.items[after], events.times[after]


def had(events: Interactions) -> BoolArray:
    """Tell the events in which a user took an item, liked or disliked: it is not new to them afterwards."""
    return (events.positive | (events.weights < 0)) & (events.items >= 0)


def _first_time(events: Interactions) -> IntArray:
    """Time of each user's first event with an item: int64, shape (n_users,); the greatest int64 where none."""
    known = events.items >= 0
    return _extreme_times(np.minimum, events.users[known], events.times[known], events.n_users)


def _extreme_times(extreme: np.ufunc, users: IntArray, times: IntArray, n_users: int) -> IntArray:
    """Least or greatest time of each user: int64, shape (n_users,); the other end of int64 for users without."""
    limits = np.iinfo(np.int64)
    result = np.full(n_users, limits.max if extreme is np.minimum else limits.min, dtype=np.int64)
    extreme.at(result, users, times)
    return result


def first_of_pair(users: IntArray, items: IntArray, n_items: int) -> IntArray:
    """Positions, ascending, of the first event of each (user, item): int64."""
    return np.sort(np.unique(users * n_items + items, return_index=True)[1])


def _group_targets(users: IntArray, items: IntArray, times: IntArray) -> HeldOut:
    """One row a user: the earliest time, the distinct items in order of appearance."""
    n_items = int(items.max(initial=0)) + 1
    first = first_of_pair(users, items, n_items)
    users, items, times = users[first], items[first], times[first]
    order = np.argsort(users, kind="stable")
    distinct, starts, lengths = np.unique(users[order], return_index=True, return_counts=True)
    earliest = np.minimum.reduceat(times[order], starts) if len(starts) else times[:0]
    return HeldOut(distinct, earliest, Ragged.from_lengths(items[order], lengths.astype(np.int64)))
