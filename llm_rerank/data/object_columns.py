"""What object columns hold and pandas' texts, Arrow, polars and files refuse: half emoji, very great whole numbers."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any

import pandas as pd
from pandas.api import types as dtypes

from llm_rerank.data.values import without_halves


def texts_without_halves(frame: pd.DataFrame) -> pd.DataFrame:
    """Put the mark for an unreadable character where a text of a frame holds half an emoji (a lone surrogate).

    Returns the very frame where none does.
    """
    return _with_objects(frame, _without_halves)


def with_typed_whole_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Give object columns of whole numbers as Int64 or UInt64, or as texts where neither holds them.

    Returns the very frame where there are none.
    """
    return _with_objects(frame, _typed)


def whole_numbers(values: pd.Series) -> pd.Series:
    """Give objects that are whole numbers, or missing, as Int64 or, from 2^63 on, as UInt64.

    Raises OverflowError where neither holds all.
    """
    try:
        return values.astype("Int64")
    except OverflowError:
        return values.astype("UInt64")


def _with_objects(frame: pd.DataFrame, change: Callable[[pd.Series], pd.Series]) -> pd.DataFrame:
    changed = {}
    for place in [place for place, dtype in enumerate(frame.dtypes) if _holds_objects(dtype)]:
        values = frame.iloc[:, place]
        if (new := change(values)) is not values:
            changed[place] = new
    if changed:
        frame = frame.copy(deep=False)
        for place, new in changed.items():  # by place: names may repeat
            frame.isetitem(place, new.array)
    return frame


def _holds_objects(dtype: Any) -> bool:
    if isinstance(dtype, pd.CategoricalDtype):
        dtype = dtype.categories.dtype
    return dtypes.is_object_dtype(dtype) or isinstance(dtype, pd.StringDtype) and dtype.storage == "python"


def _without_halves(values: pd.Series) -> pd.Series:
    cells = values.tolist()
    marked = [without_halves(cell) for cell in cells]
    return values if all(map(is_, cells, marked)) else pd.Series(marked, index=values.index, dtype=object)


def _typed(values: pd.Series) -> pd.Series:
    if not dtypes.is_object_dtype(values.dtype) or dtypes.infer_dtype(values, skipna=True) != "integer":
        return values
    try:
        return whole_numbers(values)
    except OverflowError:
        return values.map(str, na_action="ignore")
