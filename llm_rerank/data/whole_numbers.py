"""Whole numbers too great for floats: put back where a frame rounded them, infinite where no float holds them.

A missing value beside them makes their column floats, which round from 2^53 on.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from llm_rerank.data.values import GREATEST_WHOLE, LISTS, object_array, without_halves
from llm_rerank.types import DataError


def with_whole_numbers(frame: pd.DataFrame, exact: Callable[[Any], list[Any]]) -> pd.DataFrame:
    """Put back what was rounded. frame: changed. exact: gives a column's values, by its name, as they came."""
    floats = frame.columns[frame.dtypes == np.float64]
    for name in [name for name in floats if frame[name].abs().max() >= GREATEST_WHOLE]:
        known = [None if pd.isna(value) else value for value in exact(name)]
        if all(value is None or isinstance(value, int) for value in known):
            frame[name] = object_array(known)
    return frame


def frame_of_rows(rows: list[Any]) -> pd.DataFrame:
    """Give row mappings as a frame, without a whole number rounded."""
    try:
        frame = pd.DataFrame(rows)
    except UnicodeEncodeError:  # half an emoji
        rows = [{without_halves(name): without_halves(cell) for name, cell in row.items()} for row in rows]
        frame = pd.DataFrame(rows)
    return with_whole_numbers(frame, lambda name: [row.get(name) for row in rows])


def frame_of_columns(columns: Mapping[str, Any]) -> pd.DataFrame:
    """Give a mapping of columns as a frame, without a whole number of a list rounded.

    Raises DataError where the columns are no lists, or not of one length.
    """
    try:
        try:
            frame = pd.DataFrame(columns)
        except UnicodeEncodeError:  # half an emoji
            columns = {without_halves(name): _cells(values) for name, values in columns.items()}
            frame = pd.DataFrame(columns)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"a mapping with the columns {list(columns)[:9]} is no table ({error}); give a list for each column, all "
            "of one length; one row is a list of one mapping"
        ) from error
    lists = {name: list(values) for name, values in columns.items() if isinstance(values, (list, tuple))}
    return with_whole_numbers(frame, lambda name: lists[name] if name in lists else frame[name].tolist())


def _cells(values: Any) -> Any:
    return [without_halves(cell) for cell in values] if isinstance(values, LISTS) else without_halves(values)


def numbers_or_nan(values: pd.Series) -> pd.Series:
    """Give a column as numbers, NaN where a value is none; a whole number that no float holds is infinite."""
    try:
        return pd.to_numeric(values, errors="coerce")
    except OverflowError:
        return pd.to_numeric(values.map(_within_floats), errors="coerce")


def _within_floats(value: Any) -> Any:
    if not isinstance(value, int) or abs(value) <= sys.float_info.max:
        return value
    return math.inf if value > 0 else -math.inf
