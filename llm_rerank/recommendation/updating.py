"""Fresh events and items in a fitted reranker, without training: what the next answer knows of them, and what not.

At once: histories, what was seen, sales and opinions by item, scorers that count, and new items in every scorer. Until
a refit: what other scorers learned, the fusion, the calibrator, and the sentiment of new reviews (ratings count at
once; a review enters an item's text when that is rendered next).

A cut's guarantee goes with the first event that a component counts, and where texts change that components had read:
it was proved for components that score as they did then. It stays where only histories grow, or new items come.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from llm_rerank.data.event_doubts import n_known
from llm_rerank.data.event_mappings import EVENT_FIELDS, read_mappings
from llm_rerank.data.frames import open_tables
from llm_rerank.data.id_index import code_of, codes_by_id
from llm_rerank.data.merging import match_users, with_events
from llm_rerank.data.times import TimeUnit
from llm_rerank.recommendation.components import Component
from llm_rerank.recommendation.histories import event_names, read_later_events
from llm_rerank.recommendation.item_changes import with_item_table, without_guarantees
from llm_rerank.recommendation.state import MARKS, Saved, target_kinds
from llm_rerank.types import DataError, DataReport, IntArray, Interactions, RevisableScorer

COUNTED = "components counted new events after the cut was chosen, so they score otherwise than they did then"


@dataclass(frozen=True)
class UpdateReport:
    """What an update took in and what follows it.

    new_items, changed_items: ids. dropped: events by reason. refreshed: scorers that know it already. stale: scorers
    that know the new events only as histories; what they learned is of the fit. n_known: events that were there exactly
    as they came; they are taken in again. advice: what looks odd about the events (``event_doubts.py``).
    """

    n_events: int = 0
    n_new_users: int = 0
    new_items: list[Any] = field(default_factory=list)
    changed_items: list[Any] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    refreshed: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    n_known: int = 0
    advice: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.n_events:,} events taken in, {self.n_new_users:,} users are new"]
        if self.new_items or self.changed_items:
            lines.append(f"{len(self.new_items):,} items are new, {len(self.changed_items):,} changed")
        if self.n_known:
            lines.append(
                f"warning: {self.n_known:,} of these events were known already, exactly as they came, and count again; "
                "give new events alone"
            )
        lines += [f"warning: {line}" for line in self.advice]
        lines += [f"dropped {count:,} rows: {reason}" for reason, count in self.dropped.items()]
        if self.refreshed:
            lines.append(f"up to date: {', '.join(self.refreshed)}")
        if self.stale:
            lines.append(f"learned before these events, until a refit: {', '.join(self.stale)}")
        return "\n".join(lines)


def updated(
    saved: Saved,
    interactions: Any | None = None,
    items: Any | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    time_unit: TimeUnit = "auto",
    encoding: str | None = None,
) -> tuple[Saved, UpdateReport]:
    """Return the state with events and items taken in; the one given stays as it is.

    interactions, items: frames, paths or sequences of mappings, columns as for a fit; items first, so that events may
    name new ones. Events are judged by the rules of the fit. Time: a copy of the event arrays, and the validation.
    columns: the mapping of the fit will do; what it says of a table that is not given is passed over.
    Raises DataError where a table breaks a rule, or events come to a state that was saved without histories.
    """
    if interactions is None and items is None:
        raise DataError("update was given neither interactions nor items; give at least one of them")
    report = DataReport()
    if columns or encoding:  # one mapping serves both tables, also where only one of them is given this time
        given = {"interactions": interactions, "items": items}
        tables = open_tables(given, columns, encoding, report, elsewhere=partial(_is_of_absent_table, given))
        interactions, items = tables.get("interactions"), tables.get("items")
    new_items: list[Any] = []
    changed_items: list[Any] = []
    refreshed: dict[str, None] = {}
    if items is not None:
        saved, changes = with_item_table(saved, items, columns, report)
        ids = saved.fitted.items.ids
        new_items, changed_items = ids[changes.new].tolist(), ids[changes.changed].tolist()
        refreshed |= dict.fromkeys(changes.grown)
    n_events, n_new_users, n_again = 0, 0, 0
    counting: tuple[str, ...] = ()
    if interactions is not None:
        new = _read(saved, interactions, columns, time_unit, report)
        n_events, n_new_users, n_again = len(new), len(new.user_ids), n_known(saved.events, new)
        if n_events:
            saved, counting = _with_events(saved.with_kinds(report.event_kinds), new)
            if counting:
                saved = without_guarantees(saved, COUNTED)
            refreshed |= dict.fromkeys(counting)
    names = [component.name for component in saved.fitted.components]
    stale = tuple(name for name in names if name not in counting) if n_events else ()
    return saved, UpdateReport(
        n_events,
        n_new_users,
        new_items,
        changed_items,
        dict(report.dropped),
        tuple(refreshed),
        stale,
        n_again,
        tuple(report.advice),
    )


def _is_of_absent_table(given: Mapping[str, Any], ours: str) -> bool:
    """Tell whether one of our columns may be of a table that a fit reads and that is not given here.

    Items may have any column, so that of a table of events alone only the names of events' own columns are checked.
    """
    if ours in ("upstream_score", "list_id"):  # of impressions
        return True
    if given["items"] is None and (ours == "item_id" or ours not in EVENT_FIELDS):
        return True
    return given["interactions"] is None and ours in EVENT_FIELDS


def _read(
    saved: Saved, table: Any, columns: Mapping[str, str] | None, time_unit: TimeUnit, report: DataReport
) -> Interactions:
    """Validate events by the rules of the fit and number their users."""
    if not saved.has_histories:
        raise DataError(
            "this reranker was saved without histories, so no event can be added; give histories with each question, "
            "or save it with histories=True"
        )
    events = saved.events
    new = None
    if not columns and time_unit in ("auto", "s", events.time_kind):
        kinds = [row.get("event") for row in table if isinstance(row, Mapping)] if isinstance(table, list) else []
        new = read_mappings(
            table,
            saved.fitted.items,
            time_kind=events.time_kind,
            target_events=target_kinds(saved.target_events, event_names(kinds)),
            min_rating=saved.config.min_rating,
            report=report,
        )
    if new is None:
        new = read_later_events(table, saved, time_unit, name="interactions", columns=columns, report=report)
    new = match_users(new, codes_by_id(events.user_ids), events.n_users)
    if saved.users is not None and len(new.user_ids):
        attributed = codes_by_id(saved.users.ids)  # kept: a newcomer's event must not cost a pass over all users
        rows = [code_of(value, attributed) for value in new.user_ids]
        new = replace(new, user_rows=np.array(rows, dtype=np.int64))
    return new


def _with_events(saved: Saved, new: Interactions) -> tuple[Saved, tuple[str, ...]]:
    """Add events, and let the scorers that count know all events of their users; also the scorers' names."""
    events, rows = with_events(saved.events, new)
    places = rows - np.arange(len(rows))
    unknown = {"sentiment": np.nan, "in_fit": False, "counted": False, "torn": False}
    marks: dict[str, Any] = {name: np.insert(getattr(saved, name), places, unknown[name]) for name in MARKS}
    touched = np.zeros(events.n_users, dtype=np.bool_)
    touched[new.users] = True
    of_touched: IntArray = np.flatnonzero(touched[events.users])
    before, after = events.take(of_touched[marks["counted"][of_touched]]), events.take(of_touched)
    marks["counted"][of_touched] = True
    components, counting = _counted(saved.fitted.components, before, after)
    statistics = saved.known_statistics
    if statistics is not None:
        statistics = statistics.with_events(events, rows, marks["sentiment"][rows])
    fitted = replace(saved.fitted, components=components)
    return replace(saved, fitted=fitted, events=events, **marks).with_statistics(statistics), counting


def _counted(
    components: tuple[Component, ...], before: Interactions, after: Interactions
) -> tuple[tuple[Component, ...], tuple[str, ...]]:
    revised, names = [], []
    for component in components:
        scorer = component.scorer
        if isinstance(scorer, RevisableScorer) and scorer.revises_cheaply:
            component = replace(component, scorer=scorer.revised(before, after))
            names.append(component.name)
        revised.append(component)
    return tuple(revised), tuple(names)
