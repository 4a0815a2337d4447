"""The few types that flow through all layers and the errors; nothing here computes a score or reads a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
ObjectArray = npt.NDArray[np.object_]

TimeKind = Literal["time", "position"]

UNKNOWN = -1
"""Code of an item (or row of a user) that the fitted catalogue does not have."""


class RerankError(Exception):
    """Base of every error that this library raises on purpose."""


class DataError(RerankError, ValueError):
    """The data given breaks a rule; the message names the value, the rule and the remedy."""


class NotFittedError(RerankError, RuntimeError):
    """A model was asked for scores before it was fitted or loaded."""


class InexactError(RerankError, ArithmeticError):
    """A change without a fit would leave rounding in place of a result; a fit is needed."""


class DriftWarning(UserWarning):
    """A batch does not look like the cases that probabilities and cut were judged on."""


class DroppedRowsWarning(UserWarning):
    """Rows of the tables that came with a question were left out; the message counts them by reason."""


class StorageError(RerankError):
    """A saved folder is missing, foreign, of another version, or damaged; the message names the file."""


class ServerError(RerankError):
    """A server of language models refuses every request, or is not there; the message names the remedy."""


class BudgetError(RerankError):
    """More requests would be needed than the caller allows; those over the budget were not sent."""


class ReplacedError(StorageError):
    """A saved folder holds another content than the one that was to be changed."""


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length in two flat arrays: row i is ``values[offsets[i]:offsets[i + 1]]``.

    values: int64, shape (n_values,). offsets: int64, shape (n_rows + 1,), starting at 0, never falling.
    """

    values: IntArray
    offsets: IntArray

    @classmethod
    def from_lists(cls, rows: Iterable[Sequence[int] | IntArray]) -> Self:
        """Pack lists of codes, one row a list."""
        arrays = [np.asarray(row, dtype=np.int64) for row in rows]
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)
        return cls.from_lengths(values, np.array([len(row) for row in arrays], dtype=np.int64))

    @classmethod
    def from_lengths(cls, values: IntArray, lengths: IntArray) -> Self:
        """Cut flat values into consecutive rows of the given lengths (int64, shape (n_rows,))."""
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(np.asarray(values, dtype=np.int64), offsets)

    @classmethod
    def empty(cls, n_rows: int) -> Self:
        """Build n_rows rows without values."""
        return cls(np.empty(0, dtype=np.int64), np.zeros(n_rows + 1, dtype=np.int64))

    def followed_by(self, other: Ragged) -> Ragged:
        """Return these rows, then the other's."""
        return Ragged.from_lengths(np.append(self.values, other.values), np.append(self.lengths, other.lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> IntArray:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> IntArray:
        """Length of each row: int64, shape (n_rows,)."""
        return np.diff(self.offsets)

    @property
    def row_of_value(self) -> IntArray:
        """Row that each value belongs to: int64, shape (n_values,)."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def value_positions(self, rows: IntArray) -> IntArray:
        """Positions in ``values`` of the values of the given rows, row after row: int64, shape (n_taken,)."""
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        starts_in_output = ends - lengths
        total = int(ends[-1]) if len(ends) else 0
        return np.arange(total, dtype=np.int64) + np.repeat(self.offsets[:-1][rows] - starts_in_output, lengths)

    def take(self, rows: IntArray) -> Ragged:
        """Rows in the order given (rows: int64, shape (n_taken,)); a row may be taken more than once."""
        return Ragged.from_lengths(self.values[self.value_positions(rows)], self.lengths[rows])


@dataclass(frozen=True)
class Items:
    """The catalogue. An item's code is its row here.

    ids: object, shape (n_items,), the shop's own ids, distinct.
    frame: the validated columns of ``data/schema.py``, row = code.
    texts: object, shape (n_items,), each item as text *as of one time* (``data/rendering.py``); "" before rendering.
    vectors: those that the shop brought, by name of their column (``data/vectors.py``): float32, shape (n_items, size),
    unit length, zero where there is none.
    """

    ids: ObjectArray
    frame: pd.DataFrame
    texts: ObjectArray
    vectors: Mapping[str, FloatArray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def with_texts(self, texts: Sequence[str] | ObjectArray) -> Items:
        """Return the same items with other texts."""
        rendered = np.empty(len(self.ids), dtype=object)
        rendered[:] = list(texts)
        return replace(self, texts=rendered)


@dataclass(frozen=True)
class Users:
    """Optional attributes of users. A user's row here is what ``Interactions.user_rows`` and ``Cases.user_rows`` name.

    ids: object, shape (n_rows,). frame: user_id and attributes, as given.
    """

    ids: ObjectArray
    frame: pd.DataFrame

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Interactions:
    """Events as flat arrays of equal length, sorted by time; ties keep the input order.

    user_ids: object, shape (n_users,), distinct; a user's code is the row here.
    user_rows: int64, shape (n_users,), row of the ``Users`` frame, -1 without attributes.
    n_items: size of the catalogue that ``items`` codes refer to.
    users, items: int64 codes, shape (n_events,); item -1 is a search without an item.
    times: int64, seconds since 1970 (``time_kind`` "time") or plain positions ("position").
    weights: float32, strength of evidence for a liking; negative for a dislike (a rating under ``min_rating``).
    positive: bool, the event counts as a target (``target_events``, ``min_rating``).
    ratings: float32, NaN where none. quantities: float32, 1 where none.
    reviews, queries: object arrays of str, "" where none.
    """

    user_ids: ObjectArray
    user_rows: IntArray
    n_items: int
    time_kind: TimeKind
    users: IntArray
    items: IntArray
    times: IntArray
    weights: FloatArray
    positive: BoolArray
    ratings: FloatArray
    quantities: FloatArray
    reviews: ObjectArray
    queries: ObjectArray

    def __len__(self) -> int:
        return len(self.users)

    @property
    def n_users(self) -> int:
        """Number of distinct users, with or without events in this selection."""
        return len(self.user_ids)

    def take(self, rows: IntArray | BoolArray) -> Interactions:
        """Keep the events at these positions (or where the mask is True); users and items keep their codes."""
        return replace(self, **{name: getattr(self, name)[rows] for name in EVENT_ARRAYS})


EVENT_ARRAYS = ("users", "items", "times", "weights", "positive", "ratings", "quantities", "reviews", "queries")
"""Fields of Interactions with one entry an event."""


@dataclass(frozen=True)
class Cases:
    """One row = one decision: a user, at a time, before some candidates. Models see nothing else of a user.

    user_rows: int64, shape (n_cases,), row of the ``Users`` frame, -1: no attributes known.
    times: int64, shape (n_cases,).
    history: item codes strictly before the time, oldest first; may hold an item more than once.
    history_weights: float32, shape (n_history,), as ``Interactions.weights``; negative: disliked.
    history_times: int64, shape (n_history,).
    queries: n_cases strings, the search words before the time, newest last; "" where none.
    candidates: item codes, -1 where the catalogue has no such item.
    targets: item codes; an empty row: none known.
    """

    user_rows: IntArray
    times: IntArray
    history: Ragged
    history_weights: FloatArray
    history_times: IntArray
    queries: Sequence[str]
    candidates: Ragged
    targets: Ragged

    def __len__(self) -> int:
        return len(self.times)

    def take(self, rows: IntArray) -> Cases:
        """Cases in the order given (rows: int64, shape (n_taken,))."""
        positions = self.history.value_positions(rows)
        return Cases(
            user_rows=self.user_rows[rows],
            times=self.times[rows],
            history=self.history.take(rows),
            history_weights=self.history_weights[positions],
            history_times=self.history_times[positions],
            queries=[self.queries[row] for row in rows],
            candidates=self.candidates.take(rows),
            targets=self.targets.take(rows),
        )

    def with_candidates(self, candidates: Ragged) -> Cases:
        """Return the same decisions before other candidates."""
        return replace(self, candidates=candidates)


@runtime_checkable
class Scorer(Protocol):
    """A model that gives each candidate a score from the history alone; it never sees a user id."""

    name: str
    depends_on_list: bool  # True only where a score needs the other candidates (a listwise language model)

    def fit(self, past: Interactions, items: Items, *, seed: int) -> Self:
        """Learn from past events and from what the items say; returns self."""

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,), aligned with ``cases.candidates.values``; NaN: cannot score."""

    def save(self, folder: Path) -> None:
        """Write everything that ``load`` needs into an existing empty folder."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote."""


@runtime_checkable
class CatalogueScorer(Scorer, Protocol):
    """A scorer that can score the whole catalogue for a block of cases at once."""

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items); NaN: cannot score. The caller cuts cases into blocks."""


@runtime_checkable
class RevisableScorer(Scorer, Protocol):
    """A scorer that can take events into its fit, or out of it, without a fit."""

    revises_cheaply: bool  # True: milliseconds, for every single event; False: for forgetting

    def revised(self, before: Interactions, after: Interactions) -> Self:
        """Return a scorer as if ``after`` had been in the fit in place of ``before``; this one stays as it is.

        before, after: all events of the users concerned; same catalogue, same user codes; either may be empty.
        Raises InexactError where what would be left is lost in rounding: only a fit is without these events.
        """


@runtime_checkable
class GrowingScorer(Scorer, Protocol):
    """A scorer that takes in new items, and new texts of old ones, without a fit."""

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue, in which items keep their codes; this one stays as it is.

        changed: int64, shape (n_changed,), codes whose texts are read (again), the new ones included.
        """


@runtime_checkable
class Encoder(Protocol):
    """Anything that turns inputs (texts, images) into vectors of unit length."""

    embedding_size: int
    fingerprint: str  # changes when the vectors would

    def encode(self, inputs: Sequence[Any]) -> FloatArray:
        """Vectors: float32, shape (n_inputs, embedding_size), unit length."""


@dataclass
class DataReport:
    """What was understood of the data: ``notes`` in words, ``dropped`` rows by reason, ``advice`` on what to change.

    target_events: kinds of event that were taken as targets, event_kinds: all that there were, once events were read.
    """

    notes: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    target_events: tuple[str, ...] = ()
    advice: list[str] = field(default_factory=list)
    event_kinds: tuple[str, ...] = ()

    def drop(self, reason: str, n_rows: int) -> None:
        """Count dropped rows under a reason; nothing is recorded for zero rows."""
        if n_rows:
            self.dropped[reason] = self.dropped.get(reason, 0) + int(n_rows)

    def lines(self) -> list[str]:
        """Give the notes, the advice as warnings, then one line a reason."""
        dropped = (f"dropped {count:,} rows: {reason}" for reason, count in self.dropped.items())
        return [*self.notes, *(f"warning: {line}" for line in self.advice), *dropped]
