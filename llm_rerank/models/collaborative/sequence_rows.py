"""Training rows of the sequence nets: which events a net reads, and what it should find there. No padding anywhere.

A row names a stretch of a user's packed events; only a batch is ever written out, event after event.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from llm_rerank.data.splits import first_of_pair
from llm_rerank.models.scoring import histories_of, visit_numbers
from llm_rerank.types import BoolArray, Cases, FloatArray, IntArray, Interactions, Ragged


@dataclass(frozen=True)
class Context:
    """Events that stand for a user, row after row.

    items: int64, shape (n_events,). rows: int64, shape (n_events,), rising. ages: float32, visits between the event and
    the decision, 1 or more (0: of the same visit). log_weights: float32. n_rows: some may have no event.
    """

    items: IntArray
    rows: IntArray
    ages: FloatArray
    log_weights: FloatArray
    n_rows: int

    @cached_property
    def starts(self) -> IntArray:
        """Position of the first event of each row that has any: int64, rising."""
        return np.flatnonzero(np.diff(self.rows, prepend=-1))

    def with_codes(self, codes: IntArray) -> Context:
        """Rename items: code i becomes codes[i]."""
        return replace(self, items=codes[self.items])


def case_context(cases: Cases, readable: BoolArray, history_length: int) -> Context:
    """Lay out what scoring reads: each case's newest ``history_length`` liked events whose item is readable.

    readable: bool, shape (n_items,). Ages count back over all visits of the history, 1 for the newest.
    """
    history = cases.history
    visits = visit_numbers(history, cases.history_times)
    known = (history.values >= 0) & (history.values < len(readable)) & (cases.history_weights > 0)
    known[known] = readable[history.values[known]]
    positions = np.flatnonzero(known)
    rows = history.row_of_value[positions]
    ends = np.cumsum(np.bincount(rows, minlength=len(history)))
    kept = ends[rows] - np.arange(len(rows)) <= history_length
    positions, rows = positions[kept], rows[kept]
    newest = visits[history.offsets[1:][rows] - 1]
    ages = (newest - visits[positions] + 1).astype(np.float32)
    return Context(history.values[positions], rows, ages, np.log(cases.history_weights[positions]), len(history))


@dataclass(frozen=True)
class Events:
    """Liked events packed by user, oldest first: histories (row = user), weights float32, visits int64, is_new bool.

    is_new: the user's first event with the item; only such are targets, as seen items are not recommended.
    """

    histories: Ragged
    weights: FloatArray
    visits: IntArray
    is_new: BoolArray

    @classmethod
    def of(cls, past: Interactions) -> Self:
        """Pack events of weight above 0; visits are counted over all events with an item."""
        histories, weights, times = histories_of(past)
        visits = visit_numbers(histories, times)
        liked = np.flatnonzero(weights > 0)
        users = histories.row_of_value[liked]
        items = histories.values[liked]
        is_new = np.zeros(len(liked), dtype=np.bool_)
        is_new[first_of_pair(users, items, past.n_items)] = True
        lengths = np.bincount(users, minlength=past.n_users).astype(np.int64)
        return cls(Ragged.from_lengths(items, lengths), weights[liked], visits[liked], is_new)


@dataclass(frozen=True)
class Rows:
    """Rows to learn from: read the events in [starts, stops) but for the target's item, find the targets.

    starts, stops, visits, users: int64, shape (n_rows,); visits: of the decision. targets: item codes, one or more a
    row. Rows whose events are all of the target's item have been left out.
    """

    events: Events
    starts: IntArray
    stops: IntArray
    visits: IntArray
    users: IntArray
    targets: Ragged
    without_target: bool

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: IntArray | BoolArray) -> Rows:
        """Rows in the order given."""
        rows = np.arange(len(self), dtype=np.int64)[rows]
        return Rows(
            self.events,
            self.starts[rows],
            self.stops[rows],
            self.visits[rows],
            self.users[rows],
            self.targets.take(rows),
            self.without_target,
        )

    @property
    def target_weights(self) -> FloatArray:
        """Share of each target in its row, equal ones: float32, shape (n_targets,)."""
        lengths = self.targets.lengths
        return np.repeat(1 / lengths, lengths).astype(np.float32)

    def context(self) -> Context:
        """Write the events out."""
        lengths = self.stops - self.starts
        rows = np.repeat(np.arange(len(self)), lengths)
        positions = np.arange(lengths.sum()) + np.repeat(self.starts - (np.cumsum(lengths) - lengths), lengths)
        items = self.events.histories.values[positions]
        if self.without_target:
            other = items != self.targets.values[rows]  # one target a row
            rows, positions, items = rows[other], positions[other], items[other]
        ages = np.abs(self.visits[rows] - self.events.visits[positions]).astype(np.float32)
        return Context(items, rows, ages, np.log(self.events.weights[positions]), len(self))


def causal_rows(events: Events, history_length: int) -> Rows:
    """Make a row of each visit with something new: read the newest ``history_length`` events before it."""
    histories, n = events.histories, len(events.histories.values)
    users = histories.row_of_value
    opens = np.ones(n, dtype=np.bool_)
    opens[1:] = (users[1:] != users[:-1]) | (events.visits[1:] != events.visits[:-1])
    first_of_visit = np.maximum.accumulate(np.where(opens, np.arange(n), 0))
    is_target = np.flatnonzero(events.is_new & (first_of_visit > histories.offsets[users]))
    stops, counts = np.unique(first_of_visit[is_target], return_counts=True)
    return Rows(
        events,
        np.maximum(histories.offsets[users[stops]], stops - history_length),
        stops,
        events.visits[stops],
        users[stops],
        Ragged.from_lengths(histories.values[is_target], counts),
        without_target=False,
    )


def leave_one_out_rows(events: Events, history_length: int) -> Rows:
    """Make a row of each new item: read ``history_length`` events around it, half before and half after."""
    histories = events.histories
    targets = np.flatnonzero(events.is_new)
    users = histories.row_of_value[targets]
    begin, end = histories.offsets[users], histories.offsets[users + 1]
    starts = np.clip(targets - history_length // 2, begin, np.maximum(end - history_length - 1, begin))
    stops = np.minimum(starts + history_length + 1, end)
    items = histories.values
    # a stretch holds another item than the target's where any neighbours in it differ
    differs = np.concatenate([[0], np.cumsum(items[1:] != items[:-1])]) if len(items) else np.zeros(1, dtype=np.int64)
    useful = differs[np.maximum(stops - 1, 0)] > differs[starts]
    targets, starts, stops, users = targets[useful], starts[useful], stops[useful], users[useful]
    return Rows(
        events,
        starts,
        stops,
        events.visits[targets],
        users,
        Ragged.from_lengths(items[targets], np.ones(len(targets), dtype=np.int64)),
        without_target=True,
    )
