"""Lists that an upstream recommender showed, at the door: which rows are one list, and when it was shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from llm_rerank.data.candidates import validate_candidates
from llm_rerank.data.columns import require_rows
from llm_rerank.data.frames import clean_ids, named_columns
from llm_rerank.data.times import TimeUnit, parse_times
from llm_rerank.types import DataError, DataReport, IntArray, Items

UNKNOWN_ITEMS = "unknown_items"
"""Key of ``attrs`` of validated impressions: the share of their rows that named no item of the catalogue."""

MOSTLY = 0.5
"""Share of lists of a single item from which on a log is taken for one that parts its lists."""


def validate_impressions(
    table: Any,
    items: Items,
    *,
    columns: Mapping[str, str] | None = None,
    time_unit: TimeUnit = "auto",
    report: DataReport | None = None,
) -> pd.DataFrame:
    """Check the lists that an upstream recommender showed.

    table: user_id, item_id, timestamp, optional upstream_score and list_id. A list is the rows of one user with one
    list_id; it was shown at the earliest of their times. Where there is no list_id, it is the rows of one user at one
    time: a log that stamps each row needs the column.
    Raises DataError where no row names a user and a known item.
    Returns user_id (as given), item (int64 code), time (int64, of the list), list (int64, a number for each list),
    upstream_score (float32, NaN where none), sorted by time, then by each row's own, with ties in input order; rows
    without user, time or known item are dropped and counted. Its ``attrs["unknown_items"]`` is the share of rows whose
    item the catalogue does not have.
    """
    report = DataReport() if report is None else report
    frame = named_columns(table, "impressions", ("user_id", "item_id", "timestamp"), columns, report)
    require_rows(frame, "impressions")
    shown = validate_candidates(frame, items, on_unknown="drop", name="impressions", one_list=False, report=report)
    if not len(shown):
        raise DataError(
            "no row of impressions has a user and an item of items (first item_id: "
            f"{frame['item_id'].tolist()[0]!r}, items has {items.ids[0]!r}); check that both tables use the same ids"
        )
    times, known, _ = parse_times(shown.frame["timestamp"], time_unit=time_unit, name="impressions", report=report)
    report.drop("impressions: timestamp is missing, unreadable or out of range", int((~known).sum()))
    rows = np.flatnonzero(known)
    own_times, named = times[rows], None
    if "list_id" in shown.frame:
        named = pd.factorize(clean_ids(shown.frame["list_id"], "list_id of impressions", report))[0][rows]
    lists = list_numbers(pd.factorize(shown.user_ids[rows])[0], own_times, named)
    list_times = pd.Series(own_times).groupby(lists).transform("min").to_numpy(dtype=np.int64)
    result = pd.DataFrame(
        {
            "user_id": shown.user_ids[rows],
            "item": shown.item_codes[rows],
            "time": list_times,
            "list": lists,
            "upstream_score": shown.upstream_scores[rows],
        }
    )
    _tell_of_lists(result, named is not None, report)
    result = result.iloc[np.lexsort((own_times, list_times))].reset_index(drop=True)
    result.attrs[UNKNOWN_ITEMS] = shown.n_unknown / (shown.n_unknown + len(shown))
    return result


def list_numbers(users: IntArray, times: IntArray, named: IntArray | None = None) -> IntArray:
    """Give each list a number: int64, shape (n_rows,), equal where rows are of one list.

    users, times: int64, shape (n_rows,). named: a number for each list_id, -1 where there is none; None: for no row.
    """
    named = np.full(len(users), -1, dtype=np.int64) if named is None else named
    rows = pd.DataFrame({"user": users, "named": named, "time": np.where(named < 0, times, 0)})
    return rows.groupby(["user", "named", "time"], sort=False).ngroup().to_numpy().astype(np.int64)


def single_items_in_words(n_single: int, n_lists: int, *, named: bool = False) -> str:
    """Say that most lists have a single item, and the remedy; "" where they have more. named: they have a list_id."""
    if n_single <= MOSTLY * n_lists:
        return ""
    rule, remedy = "at one time", "give all rows of a list that, or a list_id"
    if named:
        rule, remedy = "with one list_id", "give all rows of a list the same"
    return (
        f"{n_single:,} of {n_lists:,} lists of impressions have a single item: a list is the rows of one user {rule}; "
        f"{remedy}"
    )


def _tell_of_lists(shown: pd.DataFrame, named: bool, report: DataReport) -> None:
    n_repeated = int(shown.duplicated(["list", "item"]).sum())
    if n_repeated:
        report.notes.append(
            f"{n_repeated:,} rows of impressions repeat an item of their list (one user "
            f"{'with one list_id' if named else 'at one time'}); the first of them counts"
        )
    lengths = np.bincount(shown["list"])
    said = single_items_in_words(int((lengths == 1).sum()), len(lengths), named=named)
    if said:
        report.advice.append(said)
