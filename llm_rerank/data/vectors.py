"""Vectors that a shop brings itself: items' columns whose names end in ``_vector``, cells of numbers, to arrays.

Whatever made them (a model of pictures, of sounds, of its own), they count by their direction alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from llm_rerank.data.values import LISTS, is_missing
from llm_rerank.types import BoolArray, DataError, DataReport, FloatArray, IntArray

SUFFIX = "_vector"
_NAME = re.compile(rf"\w{{1,60}}{SUFFIX}")
_REMEDY = (
    f"cells of a column whose name ends in {SUFFIX} are empty or lists of numbers, all of one length, as Parquet, JSON "
    "lines and frames hold them (CSV does not); give such, or rename the column"
)


def is_vector_column(name: Any) -> bool:
    """Tell whether a column of items is read as vectors."""
    return isinstance(name, str) and name.endswith(SUFFIX)


def is_vector_name(name: str) -> bool:
    """Tell a name that a component of vectors may have; it is a folder's name too."""
    return _NAME.fullmatch(name) is not None


def read_vectors(frame: pd.DataFrame, report: DataReport) -> dict[str, FloatArray]:
    """Read every column of vectors of items; ``item_id`` is there for messages.

    Returns by name float32, shape (n_rows, size), unit length; zero where there is none: the cell is missing, an empty
    list, or zeros, which have no direction. A column without any list is left out.
    Raises DataError for a cell of other things than numbers, numbers that are not finite, or another length.
    """
    vectors: dict[str, FloatArray] = {}
    for name in filter(is_vector_column, frame.columns):
        if not is_vector_name(name):
            raise DataError(
                f"items column {name!r} would name a component; letters, digits and _ (at most 60) before {SUFFIX} do: "
                "rename it, for example to image_vector"
            )
        rows = _read_column(frame[name].tolist(), frame["item_id"].tolist(), name)
        if rows is None:
            report.notes.append(f"items: {name} has no vector in any row; left out")
            continue
        n_given = int(rows.any(axis=1).sum())
        report.notes.append(f"items: {name}: {n_given:,} of {len(rows):,} have one, of {rows.shape[1]:,} numbers")
        vectors[name] = rows
    return vectors


def merged_vectors(
    old: Mapping[str, FloatArray],
    arrived: Mapping[str, FloatArray],
    given: Mapping[str, BoolArray],
    places: IntArray,
    n_items: int,
) -> tuple[dict[str, FloatArray], BoolArray]:
    """Put arrived vectors into those of a catalogue, which may have grown to ``n_items``.

    given: bool, shape (n_arrived,), by name, where a vector came; other cells keep what was known. places: int64, shape
    (n_arrived,), the row of each.
    Returns the vectors, and which items have another one now: bool, shape (n_items,).
    Raises DataError where the lengths of a column differ.
    """
    merged: dict[str, FloatArray] = {}
    changed = np.zeros(n_items, dtype=np.bool_)
    for name in [*old, *(name for name in arrived if name not in old)]:
        fresh, known = arrived.get(name), old.get(name)
        if fresh is not None and known is not None and fresh.shape[1] != known.shape[1]:
            raise DataError(
                f"items column {name!r} has vectors of {fresh.shape[1]:,} numbers, those known have "
                f"{known.shape[1]:,}; make them with the same model, or fit anew on all items"
            )
        some = fresh if known is None else known
        assert some is not None
        rows = np.zeros((n_items, some.shape[1]), dtype=np.float32)
        if known is not None:
            rows[: len(known)] = known
        if fresh is not None:
            came = places[given[name]]
            changed[came] |= (rows[came] != fresh[given[name]]).any(axis=1)
            rows[came] = fresh[given[name]]
        merged[name] = rows
    return merged, changed


def _read_column(cells: list[Any], ids: list[Any], name: str) -> FloatArray | None:
    rows: FloatArray | None = None
    first: Any = None
    for place, (cell, item) in enumerate(zip(cells, ids, strict=True)):
        if is_missing(cell):
            continue
        numbers = _numbers(cell, item, name)
        if not len(numbers):
            continue
        if rows is None:
            first = item
            rows = np.zeros((len(cells), len(numbers)), dtype=np.float32)
        if len(numbers) != rows.shape[1]:
            raise DataError(
                f"items column {name!r} has {len(numbers):,} numbers for item {item!r} and {rows.shape[1]:,} for item "
                f"{first!r}; {_REMEDY}"
            )
        rows[place] = _direction(numbers)
    return rows


def _numbers(cell: Any, item: Any, name: str) -> npt.NDArray[np.float64]:
    """Give a cell as float64, shape (size,); DataError names what is no finite number."""
    try:
        values = np.asarray(cell) if isinstance(cell, LISTS) or hasattr(cell, "__array__") else None
    except (TypeError, ValueError):  # lists of several lengths in one another
        values = None
    if values is None or values.ndim != 1:
        raise DataError(f"items column {name!r} holds {_shown(cell)} for item {item!r}; {_REMEDY}")
    if not len(values):
        return np.empty(0, dtype=np.float64)
    if values.dtype.kind not in "iuf":
        # numpy makes texts of all where one is: the cell itself tells which
        wrong = next((v for v in cell if isinstance(v, bool) or not isinstance(v, int | float | np.number)), cell[0])
        raise DataError(f"items column {name!r} holds {_shown(wrong)} in the vector of item {item!r}; {_REMEDY}")
    numbers = values.astype(np.float64)
    finite = np.isfinite(numbers)
    if not finite.all():
        raise DataError(
            f"items column {name!r} holds {numbers[~finite][0]} in the vector of item {item!r}; its numbers must be "
            "finite: leave the cell empty where there is no vector"
        )
    return numbers


def _direction(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scale to unit length; zeros stay. By the greatest number first, so that no square is 0 or infinite."""
    greatest = np.abs(numbers).max()
    if not greatest:
        return numbers
    scaled = numbers / greatest
    return scaled / np.linalg.norm(scaled)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
