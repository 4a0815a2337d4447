"""Whole numbers beyond 2^53 that a frame rounded, because a missing value beside them made its column floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from llm_rerank.data.values import GREATEST_WHOLE, object_array


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
    return with_whole_numbers(pd.DataFrame(rows), lambda name: [row.get(name) for row in rows])


def frame_of_columns(columns: Mapping[str, Any]) -> pd.DataFrame:
    """Give a mapping of columns as a frame, without a whole number of a list rounded."""
    frame = pd.DataFrame(columns)
    lists = {name: list(values) for name, values in columns.items() if isinstance(values, (list, tuple))}
    return with_whole_numbers(frame, lambda name: lists[name] if name in lists else frame[name].tolist())
