"""A shop's column names mapped to ours, and the remedy where a required one is missing."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import pandas as pd

from llm_rerank.types import DataError, DataReport

USUAL_NAMES = {
    "user_id": ("user", "userid", "customer", "customer_id", "customerid", "visitorid", "reviewerid", "household_id"),
    "item_id": ("item", "itemid", "product", "product_id", "productid", "sku", "asin", "stock_code", "movieid"),
    "timestamp": ("time", "date", "datetime", "ts", "created_at", "event_time", "order_date", "invoice_date"),
    "title": ("name", "item_name", "product_name", "product_title", "titel"),
}
"""Names that shops give our required columns: only for the remedy in a message, never mapped in silence."""


ID_NAMES = ("user_id", "item_id", "parent_asin", *USUAL_NAMES["user_id"], *USUAL_NAMES["item_id"])


def holds_ids(name: str, columns: Mapping[str, str] | None = None) -> bool:
    """Tell whether a column holds ids: mapped to one of ours, or else by its usual name."""
    ours = (columns or {}).get(name)
    return name.lower() in ID_NAMES if ours is None else ours in ("user_id", "item_id")


def map_columns(frame: pd.DataFrame, name: str, columns: Mapping[str, str] | None, report: DataReport) -> pd.DataFrame:
    """Rename columns from the shop's names to ours; a mapped column replaces one that already has our name.

    name: the table, for messages. The input is not changed.
    Raises DataError where a column to map is absent or two are mapped to one name.
    """
    columns = dict(columns or {})
    absent = [given for given in columns if given not in frame.columns]
    if absent:
        raise DataError(f"{name} has no column {absent[0]!r} to map to {columns[absent[0]]!r}; it has {_listed(frame)}")
    twice = [ours for ours in columns.values() if list(columns.values()).count(ours) > 1]
    if twice:
        raise DataError(f"columns maps more than one column of {name} to {twice[0]!r}; map one")
    replaced = [ours for ours in columns.values() if ours in frame.columns and ours not in columns]
    if replaced:
        report.notes.append(f"{name}: column {replaced[0]!r} gives way to the column mapped to it")
    return frame.drop(columns=replaced).rename(columns=columns)


def require_columns(frame: pd.DataFrame, name: str, required: Sequence[str]) -> pd.DataFrame:
    """Return the frame as it is.

    Raises DataError where a required column is missing, with the likeliest column to map to it.
    """
    for column in required:
        if column not in frame.columns:
            raise DataError(f"{name} has no column {column!r}; {_remedy(column, frame)}")
    return frame


def require_rows(frame: pd.DataFrame, name: str) -> None:
    """Raise DataError where a table has no rows."""
    if not len(frame):
        raise DataError(f"{name} has no rows; give at least one")


def with_item_column(frame: pd.DataFrame) -> pd.DataFrame:
    """Give searches that come without a column item_id an empty one; every other table is returned as it is.

    Only where each row has a query, and no column bears a usual name of item ids: else the column is there under
    another name, and a remedy helps more than rows without their items.
    """
    named = {str(column).lower() for column in frame.columns}
    if "item_id" in frame.columns or "query" not in frame.columns or named & set(USUAL_NAMES["item_id"]):
        return frame
    searches = frame["query"].notna() & (frame["query"].astype(str).str.strip() != "")
    return frame.assign(item_id=None) if searches.all() else frame


def require_event_columns(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return events with user_id, item_id and timestamp; searches alone need no item_id (``with_item_column``).

    Raises DataError as ``require_columns`` does.
    """
    return require_columns(with_item_column(frame), name, ("user_id", "item_id", "timestamp"))


def _listed(frame: pd.DataFrame) -> str:
    names = [str(column) for column in frame.columns]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _remedy(column: str, frame: pd.DataFrame) -> str:
    if not len(frame.columns):
        return "it has none; ids in a frame's index are not read: call reset_index() first"
    lowered = {str(given).lower(): given for given in frame.columns}
    usual = [lowered[word] for word in USUAL_NAMES.get(column, ()) if word in lowered]
    close = [lowered[word] for word in difflib.get_close_matches(column, list(lowered), n=1)]
    guess = (usual or close or ["your_name"])[0]
    searches = "; only a table of searches, with a query in each row, may go without"
    alone = searches if column == "item_id" and "query" in frame.columns else ""
    return f"it has {_listed(frame)}; rename one or pass columns={{{str(guess)!r}: {column!r}}}{alone}"
