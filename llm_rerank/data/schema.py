"""The door for data: frames validated once, ids turned to codes, and a report of what was understood and dropped.

A rule that a table breaks as a whole is an error with its remedy; a rule that some rows break drops those rows and
counts them. Unknown columns pass through. Inner functions trust what this file returns. Candidates have their own
file, ``candidates.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from llm_rerank.data.candidates import CandidateTable, validate_candidates
from llm_rerank.data.columns import require_columns, require_event_columns, require_rows
from llm_rerank.data.event_doubts import advise_on_events
from llm_rerank.data.events import EVENT_WEIGHTS, read_events
from llm_rerank.data.frames import as_objects, clean_ids, id_codes, like_input, named_columns, to_pandas
from llm_rerank.data.impressions import validate_impressions
from llm_rerank.data.layouts import as_interactions, as_items
from llm_rerank.data.times import TimeUnit, parse_times
from llm_rerank.data.values import (
    category_column,
    image_column,
    parse_prices,
    plain_column,
    specs_column,
    text_column,
)
from llm_rerank.data.vectors import is_vector_column, read_vectors
from llm_rerank.types import UNKNOWN, BoolArray, DataError, DataReport, Interactions, Items, Users

__all__ = [
    "EVENT_WEIGHTS",
    "CandidateTable",
    "like_input",
    "to_pandas",
    "validate_candidates",
    "validate_impressions",
    "validate_interactions",
    "validate_items",
    "validate_users",
]

ITEM_COLUMNS = ("item_id", "title", "description", "brand", "categories", "price", "specs", "image")
"""Columns of ``Items.frame``, in this order, before the columns that pass through."""


def validate_items(table: Any, *, columns: Mapping[str, str] | None = None, report: DataReport | None = None) -> Items:
    """Check a catalogue.

    table: item_id and title, optional description, brand, categories, price, specs, image, columns of vectors whose
    names end in ``_vector`` (``read_vectors``), any further columns, which pass through as numbers, dates or texts
    (``plain_column``).
    columns: from the shop's names to ours. report: takes notes and counts.
    Returns items whose frame has every column of ITEM_COLUMNS: texts are clean and "" where missing, categories one
    path "A > B", price float64 with NaN where unknown, specs JSON text of a mapping, or plain text. ``texts`` are all
    "".
    Raises DataError where a column is missing, no row is left, or a vector is none.
    """
    report = DataReport() if report is None else report
    frame = as_items(to_pandas(table, columns=columns, report=report), report, columns)
    require_columns(frame, "items", ("item_id", "title"))
    ids = _required_ids(frame, "items", "item_id", report)
    keep = _first_of_each(ids, "items: item_id", report)
    ids, frame = ids[keep].reset_index(drop=True), frame[keep].reset_index(drop=True)
    checked = pd.DataFrame({"item_id": ids})
    for column in ("title", "description", "brand"):
        checked[column] = text_column(frame[column]) if column in frame else ""
    checked["categories"] = category_column(frame["categories"]) if "categories" in frame else ""
    checked["price"] = np.nan
    if "price" in frame:
        checked["price"], refused = parse_prices(frame["price"])
        if refused.any():
            first = frame["price"][refused].iloc[0]
            report.notes.append(
                f"{refused.sum():,} prices are unreadable or not above 0 (first: {str(first)[:40]!r}); taken as unknown"
            )
    checked["specs"] = specs_column(frame["specs"]) if "specs" in frame else ""
    checked["image"] = image_column(frame["image"]) if "image" in frame else ""
    n_untitled = int((checked["title"] == "").sum())
    if n_untitled:
        report.notes.append(f"{n_untitled:,} of {len(checked):,} items have no title")
    vectors = read_vectors(frame, report)
    if not vectors and (checked["image"] != "").any():
        report.notes.append("column image of items is kept but read by no scorer: give vectors (docs/media.md)")
    read = [column for column in frame.columns if column in ITEM_COLUMNS or is_vector_column(column)]
    passed = frame.drop(columns=read).apply(plain_column)
    object_ids = as_objects(ids)
    texts = np.full(len(ids), "", dtype=object)
    return Items(object_ids, pd.concat([checked, passed], axis=1), texts, vectors)


def validate_users(table: Any, *, columns: Mapping[str, str] | None = None, report: DataReport | None = None) -> Users:
    """Check users: user_id and any attributes, which pass through as numbers, dates or texts (``plain_column``).

    Raises DataError where user_id is missing or no row is left.
    """
    report = DataReport() if report is None else report
    frame = named_columns(table, "users", ("user_id",), columns, report)
    ids = _required_ids(frame, "users", "user_id", report)
    keep = _first_of_each(ids, "users: user_id", report)
    ids = ids[keep].reset_index(drop=True)
    checked = frame[keep].reset_index(drop=True).apply(plain_column).assign(user_id=ids)
    return Users(as_objects(ids), checked)


def validate_interactions(
    table: Any,
    items: Items,
    *,
    users: Users | None = None,
    columns: Mapping[str, str] | None = None,
    time_unit: TimeUnit = "auto",
    target_events: Sequence[str] | None = None,
    min_rating: float | None = None,
    require_targets: bool = True,
    name: str = "interactions",
    report: DataReport | None = None,
) -> Interactions:
    """Check events and turn ids to codes.

    table: user_id, item_id, timestamp, optional event, rating, quantity, weight, review, query; further columns are
    left out. An empty item_id is allowed beside a query: a search; a table of searches alone needs no such column.
    time_unit: "auto" decides by type and size and says so in the report; see ``times.py``.
    target_events, min_rating: what counts as a positive; see ``events.py``.
    require_targets: False for events that are only read as histories; then no target and no known item is no error.
    name: the table, for messages.
    Returns events sorted by time, ties in input order; users are numbered by their first event.
    Raises DataError where a column is missing, time cannot be read, or no event or no target is left.
    """
    report = DataReport() if report is None else report
    frame = as_interactions(to_pandas(table, columns=columns, report=report), report, columns, name)
    frame = require_event_columns(frame, name)
    require_rows(frame, name)
    user_ids = clean_ids(frame["user_id"], f"user_id of {name}", report)
    item_ids = clean_ids(frame["item_id"], f"item_id of {name}", report)
    times, known_time, time_kind = parse_times(frame["timestamp"], time_unit=time_unit, name=name, report=report)
    no_texts = np.full(len(frame), "", dtype=object)
    queries = text_column(frame["query"]).to_numpy() if "query" in frame else no_texts
    codes = id_codes(item_ids, items.ids)
    has_item = item_ids.notna().to_numpy(dtype=bool)
    keep = np.ones(len(frame), dtype=bool)
    for reason, broken in (
        (f"{name}: user_id is missing", user_ids.isna().to_numpy(dtype=bool)),
        (f"{name}: item_id is missing, and there is no query", ~has_item & (queries == "")),
        (f"{name}: timestamp is missing, unreadable or out of range", ~known_time),
        (f"{name}: item is absent from items", has_item & (codes == UNKNOWN)),
    ):
        report.drop(reason, int((keep & broken).sum()))
        keep &= ~broken
    if require_targets and not (keep & has_item).any():
        _raise_nothing_left(item_ids, items, has_item & (codes == UNKNOWN), report, any_search=bool(keep.any()))

    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(times[rows], kind="stable")]
    values = read_events(
        frame.iloc[rows],
        has_item=has_item[rows],
        target_events=target_events,
        min_rating=min_rating,
        require_targets=require_targets,
        report=report,
    )
    report.target_events = values.targets
    user_codes, distinct_users = pd.factorize(user_ids.iloc[rows])
    distinct = as_objects(pd.Series(distinct_users))
    user_rows = np.full(len(distinct), UNKNOWN, dtype=np.int64)
    if users is not None:
        user_rows = id_codes(distinct, users.ids)
        report.notes.append(
            f"{(user_rows >= 0).sum():,} of {len(distinct):,} users with events have attributes; "
            f"{len(users) - len(np.unique(user_rows[user_rows >= 0])):,} users with attributes have no events"
        )
        report.notes.append(
            "attributes of users are kept and exported; no scorer of a fit reads them (docs/scorers.md says which can)"
        )
    reviews = text_column(frame["review"].iloc[rows]).to_numpy() if "review" in frame else no_texts[rows]
    events = Interactions(
        user_ids=distinct,
        user_rows=user_rows,
        n_items=len(items),
        time_kind=time_kind,
        users=user_codes.astype(np.int64),
        items=codes[rows],
        times=times[rows],
        weights=values.weights,
        positive=values.positive,
        ratings=values.ratings,
        quantities=values.quantities,
        reviews=reviews,
        queries=queries[rows],
    )
    advise_on_events(events, values.kinds, name, report)
    report.drop(f"{name}: purchase of a quantity of 0 or less (a return)", int(values.returned.sum()))
    return events.take(~values.returned) if values.returned.any() else events


def _required_ids(frame: pd.DataFrame, name: str, column: str, report: DataReport) -> pd.Series:
    require_rows(frame, name)
    ids = clean_ids(frame[column], f"{column} of {name}", report)
    if not ids.notna().any():
        raise DataError(f"{name} has no {column} in any row; fill the column or map another")
    return ids


def _first_of_each(ids: pd.Series, name: str, report: DataReport) -> BoolArray:
    missing = ids.isna().to_numpy(dtype=bool)
    repeated = ids.duplicated().to_numpy() & ~missing
    report.drop(f"{name} is missing", int(missing.sum()))
    report.drop(f"{name} is repeated (the first row is kept)", int(repeated.sum()))
    keep: BoolArray = ~missing & ~repeated
    return keep


def _raise_nothing_left(
    item_ids: pd.Series, items: Items, absent: BoolArray, report: DataReport, *, any_search: bool
) -> None:
    if absent.any():
        raise DataError(
            f"no item_id of interactions is in items (first: {as_objects(item_ids[absent].iloc[:1])[0]!r}, items has "
            f"{items.ids[0]!r}); check that both tables use the same ids"
        )
    if any_search:
        raise DataError(
            "interactions holds searches alone; a fit needs events of items, such as purchases, beside them: add "
            "those, or give the searches to update or as histories"
        )
    reasons = "; ".join(f"{reason}: {count:,}" for reason, count in report.dropped.items())
    raise DataError(f"interactions has no usable row ({reasons}); correct the columns named")
