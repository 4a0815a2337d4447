"""Candidates at the door: every row kept in its order, beside its item's code and its upstream score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from llm_rerank.data.frames import as_objects, clean_ids, id_codes, named_columns
from llm_rerank.data.whole_numbers import numbers_or_nan
from llm_rerank.types import UNKNOWN, DataError, DataReport, FloatArray, IntArray, Items, ObjectArray

OnUnknown = Literal["keep", "drop", "raise"]


@dataclass(frozen=True)
class CandidateTable:
    """Candidates of many users, in input order; all arrays have one entry a row.

    frame: the rows as given under our column names, numbered from 0, with every further column.
    item_codes: int64, -1 where the catalogue has no such item. user_ids: object, as given.
    upstream_scores: float32, NaN where none. n_unknown: rows left out because the catalogue has no such item.
    """

    frame: pd.DataFrame
    item_codes: IntArray
    user_ids: ObjectArray
    upstream_scores: FloatArray
    n_unknown: int = 0

    def __len__(self) -> int:
        return len(self.item_codes)


def validate_candidates(
    table: Any,
    items: Items,
    *,
    on_unknown: OnUnknown = "keep",
    columns: Mapping[str, str] | None = None,
    name: str = "candidates",
    one_list: bool = True,
    report: DataReport | None = None,
) -> CandidateTable:
    """Check candidates and find their items.

    table: user_id, item_id, optional upstream_score, any further columns. No rows at all is a valid, empty answer.
    on_unknown: what becomes of items that the catalogue lacks: "keep" (code -1), "drop" (counted), "raise".
    name: the table, for messages. one_list: a user's rows are one list, and pairs that come again are told.
    Raises DataError where a column is missing, or for on_unknown="raise" with the first unknown item.
    """
    if on_unknown not in ("keep", "drop", "raise"):
        raise DataError(f"on_unknown is {on_unknown!r}; it must be 'keep', 'drop' or 'raise'")
    report = DataReport() if report is None else report
    if isinstance(table, pd.DataFrame) and table.shape == (0, 0):  # of an empty sequence
        table = pd.DataFrame({"user_id": [], "item_id": []}, dtype=object)
    frame = named_columns(table, name, ("user_id", "item_id"), columns, report)
    users = clean_ids(frame["user_id"], f"user_id of {name}", report)
    item_ids = clean_ids(frame["item_id"], f"item_id of {name}", report)
    keep = users.notna().to_numpy(dtype=bool) & item_ids.notna().to_numpy(dtype=bool)
    report.drop(f"{name}: user_id or item_id is missing", int((~keep).sum()))
    codes = id_codes(item_ids, items.ids)
    unknown, n_dropped = keep & (codes == UNKNOWN), 0
    if unknown.any():
        first = as_objects(item_ids[unknown].iloc[:1])[0]
        n_unknown = item_ids[unknown].nunique()
        if on_unknown == "raise":
            raise DataError(
                f"{name} has {n_unknown:,} items absent from items (first: {first!r}); "
                "add them to items or pass on_unknown='drop' or 'keep'"
            )
        if on_unknown == "drop":
            n_dropped = int(unknown.sum())
            report.drop(f"{name}: item is absent from items", n_dropped)
            keep &= ~unknown
        else:
            report.notes.append(
                f"{name} has {n_unknown:,} items absent from items (first: {first!r}); kept without a score of ours"
            )
    frame = frame[keep].reset_index(drop=True)
    pairs = pd.DataFrame({"user": users[keep].to_numpy(), "item": item_ids[keep].to_numpy()})
    repeated = int(pairs.duplicated().sum()) if one_list else 0
    if repeated:
        report.notes.append(f"{name} repeats {repeated:,} pairs of user and item; every row is kept")
    if not len(frame):
        report.notes.append(f"{name} has no rows; the result will have none")
    upstream_scores = _upstream_scores(frame, name, report)
    return CandidateTable(frame, codes[keep], as_objects(users[keep]), upstream_scores, n_dropped)


def _upstream_scores(frame: pd.DataFrame, name: str, report: DataReport) -> FloatArray:
    if "upstream_score" not in frame.columns:
        return np.full(len(frame), np.nan, dtype=np.float32)
    given = frame["upstream_score"]
    with np.errstate(over="ignore"):  # what float32 cannot hold is unknown, as infinity is
        scores = numbers_or_nan(given).to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float32)
    scores[~np.isfinite(scores)] = np.nan
    if len(scores) and given.notna().any() and np.isnan(scores).all():
        first = given.dropna().iloc[0]
        raise DataError(f"upstream_score of {name} holds no number (first: {first!r}); give numbers")
    n_unknown = int((np.isnan(scores) & given.notna().to_numpy()).sum())
    if n_unknown:
        report.notes.append(f"{n_unknown:,} values of upstream_score are no finite numbers; taken as unknown")
    return scores
