"""What a live shop knows at one position of its log, never changed in place, and how the log's entries change it."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from llm_rerank.data.events import GREATEST_WEIGHT
from llm_rerank.data.id_index import code_of, codes_by_id
from llm_rerank.folders import current_name
from llm_rerank.recommendation.event_log import Entry, EventLog
from llm_rerank.recommendation.known_events import is_known
from llm_rerank.recommendation.privacy import forgotten
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.specs import ComponentSpec
from llm_rerank.recommendation.state import Saved
from llm_rerank.recommendation.updating import updated
from llm_rerank.types import DataError, StorageError

_TRIES = 5
_NOTES = ("event_id", "request_id", "shown_rank")  # kept beside an event, nothing that a model reads


@dataclass(frozen=True)
class LiveState:
    """A reranker's whole state after the log up to ``position``; version: name of the content that it started from.

    begun_at: position of the log when the model was first loaded beside it; what the log says of items up to there is
    older than the model, where that is not of this log.
    """

    saved: Saved
    version: str
    position: int
    begun_at: int = 0

    @property
    def items(self) -> Mapping[Any, int]:
        """Code of each item id."""
        return codes_by_id(self.saved.fitted.items.ids)

    @property
    def users(self) -> Mapping[Any, int]:
        """Ids of users, those too who have only attributes or lists shown, each with its code in its own table."""
        attributed = () if self.saved.users is None else (self.saved.users.ids,)
        shown = () if self.saved.impressions is None else (self.saved.impressions.user_ids,)
        tables = [codes_by_id(ids) for ids in (self.saved.events.user_ids, *attributed, *shown)]
        return ChainMap(*tables)  # type: ignore[arg-type]  # which nobody writes into

    @property
    def next_time(self) -> int:
        """Just after the newest event."""
        events = self.saved.events
        return int(events.times[-1]) + 1 if len(events) else 0


def loaded_state(
    folder: Path, log: EventLog, device: str, components: Sequence[ComponentSpec] | None = None
) -> LiveState:
    """Load the folder's current content, at its position of the log; components: as for ``Reranker.load``.

    Raises StorageError where it cannot be read, DataError where it was saved without histories.
    """
    for attempt in range(_TRIES):
        version = current_name(folder)
        try:
            saved = Reranker.load(folder, components=components, device=device, verbose=False).saved
        except StorageError:
            # another process may have replaced the content while it was being read
            if attempt == _TRIES - 1 or current_name(folder) == version:
                raise
            continue
        if current_name(folder) == version:
            break
    if not saved.has_histories:
        raise DataError(f"{folder} was saved without histories, so no event can be added; save it with histories=True")
    _ = saved.item_statistics  # made now, before the state is in use and somebody waits for them
    if saved.log_name == log.name:
        return LiveState(saved, version, saved.log_position)
    return LiveState(saved, version, 0, log.begun_at(saved.origin))


def caught_up(state: LiveState, log: EventLog) -> LiveState:
    """Play the entries that the state does not have, in their order; the same state comes back where there are none.

    Needs no lock: positions rise with the commits, so no entry up to the newest of now comes later, and one that is
    erased in between has its erasure after that. Inside ``log.writing()`` nothing is newer when this returns.
    """
    last = log.last_position()
    if last <= state.position and state.saved.log_name == log.name:
        return state
    entries = [_within_reason(entry) for entry in log.after(state.position, last)]
    if state.saved.log_name != log.name:
        # a model fitted from files may have been given what the log has as well: nothing counts twice
        back = _since_erasures(entries, log, last)
        entries = _without_older_items(_without_known(entries, state.saved, back), state)
        state = replace(state, saved=replace(state.saved, log_name=log.name))
    for kind, group in groupby(entries, key=lambda entry: entry.kind):
        run = list(group)
        if kind == "forget":
            digests = {digest for entry in run for digest in entry.body}
            users = [user for user in state.users if log.user_digest(user) in digests]
            saved = forgotten(state.saved, users)[0] if users else state.saved
            state = replace(state, saved=saved)
        elif kind == "items":
            for bodies in _tables([entry.body for entry in run]):
                state = replace(state, saved=_with_items(state.saved, bodies))
        else:
            state = replace(state, saved=with_events(state.saved, [entry.body for entry in run]))
    return replace(state, position=max(state.position, last))


def with_events(saved: Saved, bodies: Sequence[Mapping[str, Any]]) -> Saved:
    """Return the state with events as ``live_events.checked_events`` gives them."""
    events = [
        {"item_id": None, **{name: value for name, value in body.items() if name not in _NOTES}} for body in bodies
    ]
    # a table that holds 7 and "u7" is read as texts: together they would be other users than one after the other
    for _, run in groupby(events, key=lambda event: type(event["user_id"])):
        saved = updated(saved, list(run), None, time_unit="s")[0]  # whatever their size, they are seconds by now
    return saved


def _tables(runs: Sequence[list[Any]]) -> list[list[Any]]:
    """Join tables of items that follow one another where they read the same as one: a price each needs one pass.

    That is where all rows have the same columns with values of the same types, no item comes twice, and no price is a
    text, whose marks are read by the other prices of its table.
    """
    tables: list[list[Any]] = []
    kind, taken = None, set[Any]()
    for bodies in runs:
        kinds = {tuple(sorted((name, _kind_of(name, value)) for name, value in body.items())) for body in bodies}
        ids = {body.get("item_id") for body in bodies}
        joins = len(kinds) == 1 and len(ids) == len(bodies) and ("price", "str") not in next(iter(kinds))
        if joins and kinds == kind and not ids & taken:
            tables[-1] = [*tables[-1], *bodies]
            taken |= ids
        else:
            tables.append(bodies)
            kind, taken = (kinds, ids) if joins else (None, set())
    return tables


def _kind_of(column: str, value: Any) -> str:
    is_price = column == "price" and isinstance(value, int | float) and not isinstance(value, bool)
    return "float" if is_price else type(value).__name__  # prices are floats however they are written


def _with_items(saved: Saved, bodies: list[Any]) -> Saved:
    """Return the state with items that were taken once; one that this model refuses is left out.

    Such is a new price where the model was fitted again without the item.
    """
    try:
        return updated(saved, None, bodies)[0]
    except DataError:
        if len(bodies) == 1:
            return saved
    for body in bodies:
        saved = _with_items(saved, [body])
    return saved


def _within_reason(entry: Entry) -> Entry:
    """Bound the weight of an event that an earlier version let into the log."""
    weight = entry.body.get("weight") if entry.kind == "event" else None
    if weight is None or abs(weight) <= GREATEST_WEIGHT:
        return entry
    return replace(entry, body={**entry.body, "weight": math.copysign(GREATEST_WEIGHT, weight)})


def _since_erasures(entries: Sequence[Entry], log: EventLog, last: int) -> set[int]:
    """Positions of events of users who came back after they were erased."""
    erased = log.erasures(0, last)
    events = [entry for entry in entries if entry.kind == "event"] if erased else []
    return {one.position for one in events if one.position > erased.get(log.user_digest(one.body["user_id"]), last)}


def _without_known(entries: Sequence[Entry], saved: Saved, kept: Set[int]) -> list[Entry]:
    """Leave out events that the state has, but for those at the positions ``kept``: an erasure takes these from it."""
    events = [entry for entry in entries if entry.kind == "event" and entry.position not in kept]
    flags = is_known([entry.body for entry in events], saved)
    known = {entry.position for entry, is_held in zip(events, flags.tolist(), strict=True) if is_held}
    return [entry for entry in entries if entry.position not in known]


def _without_older_items(entries: Sequence[Entry], state: LiveState) -> list[Entry]:
    """Leave out what was said of the state's items before its model was put in place: its files are newer."""
    known, left = state.items, []
    for entry in entries:
        if entry.kind == "items" and entry.position <= state.begun_at:
            bodies = [body for body in entry.body if code_of(body.get("item_id"), known) < 0]
            entry = replace(entry, body=bodies)
        if entry.kind != "items" or entry.body:
            left.append(entry)
    return left
