"""What comes with a question, checked and counted: ids that are asked for, and rows that were left out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from llm_rerank.data.id_index import code_of, codes_by_id
from llm_rerank.data.values import plain_id
from llm_rerank.types import UNKNOWN, Cases, DataError, DataReport, DroppedRowsWarning, Interactions

DATA = "data"
"""Key of ``frame.attrs`` under which a result says how its tables were read."""


def asked_ids(ids: Any, name: str) -> list[Any]:
    """Give the distinct ids asked for, in their order.

    name: of the argument, for messages. Raises DataError where it is one id alone, or an id is a list or mapping.
    """
    if isinstance(ids, str | bytes | Mapping | pd.DataFrame) or not isinstance(ids, Iterable):
        shown = f"of type {type(ids).__name__}" if isinstance(ids, Mapping | pd.DataFrame) else repr(ids)
        raise DataError(f"{name} is {shown}; give a list of ids, such as ['u1', 'u2']")
    ids = list(ids)
    for value in ids:
        try:
            hash(value)
        except TypeError:
            raise DataError(f"{name} holds {value!r}; an id is one number or text") from None
    return list(dict.fromkeys(ids))


def listed_ids(given: Any) -> list[Any] | None:
    """Give ids that come as a list, a tuple, an array of one dimension, a Series or an Index; None: a table, or none.

    Numbers become Python's own, which are what a shop's ids are compared with.
    """
    if isinstance(given, list | tuple):
        return list(given)
    is_column = isinstance(given, pd.Series | pd.Index) or isinstance(given, np.ndarray) and given.ndim == 1
    return given.tolist() if is_column else None


def asked_moments(at: Mapping[Any, Any], user_ids: Sequence[Any]) -> list[Any]:
    """Give each user's moment of the decision, None where the mapping lacks them; ids are found as by ``code_of``.

    Raises DataError where it names none of the users.
    """
    moments, codes = list(at.values()), {plain_id(value): place for place, value in enumerate(at)}
    places = [code_of(value, codes) for value in user_ids]
    if moments and places and max(places) == UNKNOWN:
        raise DataError(
            f"at names {next(iter(at))!r} and none of the users asked for (first: {user_ids[0]!r}); give moments of "
            "these, or one moment for all"
        )
    return [None if place == UNKNOWN else moments[place] for place in places]


def note_unknown_users(
    user_ids: Sequence[Any], cases: Cases, known: Sequence[Interactions | None], report: DataReport
) -> None:
    """Note how many users have no event here, so that a wrong key does not read as a shop full of newcomers.

    user_ids: of the cases. known: the events of the model, and those that came with the question, if any.
    """
    maybe = [user_ids[row] for row in np.flatnonzero(cases.history.lengths == 0).tolist()]
    for events in known:
        if events is None:
            continue
        codes = codes_by_id(events.user_ids)
        maybe = [value for value in maybe if code_of(value, codes) == UNKNOWN]
    if maybe:
        report.notes.append(
            f"{len(maybe):,} of {len(user_ids):,} users have no history here (first: {maybe[0]!r}): ranked as newcomers"
        )


def data_facts(report: DataReport) -> dict[str, Any]:
    """Give what was understood of a question's tables, JSON-ready; warns where rows were left out.

    Keys: notes (how the tables were read), dropped (rows by reason).
    """
    if report.dropped:
        counts = "; ".join(f"{count:,} rows: {reason}" for reason, count in report.dropped.items())
        warnings.warn(f"dropped {counts}", DroppedRowsWarning, stacklevel=3)
    return {"notes": list(report.notes), "dropped": dict(report.dropped)}
