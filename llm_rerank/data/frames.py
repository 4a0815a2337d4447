"""Tables in any form in, the same form out; a shop's column names mapped to ours; ids cleaned and matched.

Leaves out what a column means (``schema.py``). Inputs are never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types as dtypes

from llm_rerank.data.columns import map_columns, require_columns
from llm_rerank.data.id_index import code_of, codes_by_id
from llm_rerank.data.object_columns import texts_without_halves, whole_numbers, with_typed_whole_numbers
from llm_rerank.data.readers import read_table
from llm_rerank.data.values import object_array, plain_id, without_categories
from llm_rerank.data.whole_numbers import frame_of_columns, frame_of_rows, with_whole_numbers
from llm_rerank.types import UNKNOWN, DataError, DataReport, IntArray, ObjectArray

PLAIN_KINDS = ("string", "integer", "floating", "boolean", "empty")
"""Kinds of columns, as pandas names them, whose values are ids as they are."""


def to_pandas(
    table: Any,
    *,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    report: DataReport | None = None,
) -> pd.DataFrame:
    """Give any table as a pandas frame with rows numbered from 0; the columns may be shared with the input.

    Half an emoji in a text, which neither pandas' texts nor files hold, becomes the mark for an unreadable character.

    table: a path (str or Path), a pandas, polars or Arrow table, a mapping of columns or a sequence of row mappings.
    columns, encoding: of a file; see ``read_table``.
    Raises DataError for anything else, and for columns that are no lists of one length.
    """
    if isinstance(table, (str, Path)):
        return texts_without_halves(read_table(table, columns=columns, encoding=encoding, report=report))
    exact: Callable[[Any], list[Any]] | None = None  # a column as it was given, for frames round some numbers
    if isinstance(table, pd.DataFrame):
        frame = table
    elif isinstance(table, Mapping):
        frame = frame_of_columns(table)
    elif isinstance(table, Sequence) and all(isinstance(row, Mapping) for row in table):
        frame = frame_of_rows(list(table))
    else:
        import narwhals

        try:
            native = narwhals.from_native(table)
        except TypeError as error:
            raise DataError(
                f"a table is of type {type(table).__name__}; pass a path, or a pandas, polars or Arrow table"
            ) from error
        whole = native.collect() if isinstance(native, narwhals.LazyFrame) else native
        frame, exact = whole.to_pandas(), lambda name: whole[name].to_list()
    repeated = frame.columns[frame.columns.duplicated()].unique().tolist()
    if repeated:
        raise DataError(f"a table has the columns {repeated} more than once; rename or remove one of each")
    frame = texts_without_halves(frame.reset_index(drop=True))
    plain = _without_arrow(frame)
    if plain is not frame:
        given = frame
        exact = lambda name: given[name].tolist()  # noqa: E731
    return plain if exact is None else with_whole_numbers(plain, exact)


def _without_arrow(frame: pd.DataFrame) -> pd.DataFrame:
    """Give columns that Arrow keeps in numpy's kinds, one path for what follows; the very frame where there are none.

    Other columns stay as they are: Arrow would refuse one of values of several kinds.
    """
    kept = [name for name in frame.columns if isinstance(frame[name].dtype, pd.ArrowDtype)]
    if not kept:
        return frame
    import pyarrow as pa

    numbered = frame[kept].set_axis([str(place) for place in range(len(kept))], axis=1)  # Arrow's names are texts
    plain = pa.Table.from_pandas(numbered, preserve_index=False).to_pandas(ignore_metadata=True).set_axis(kept, axis=1)
    return pd.DataFrame({name: plain[name] if name in plain else frame[name] for name in frame.columns})


def like_input(result: pd.DataFrame, original: Any) -> Any:
    """Give a result as the kind of table that ``original`` is: polars, Arrow, else pandas.

    Whole numbers that polars and Arrow have no column for become texts there.
    """
    module = type(original).__module__.partition(".")[0]
    if module not in ("polars", "pyarrow"):
        return result
    import narwhals

    frame = narwhals.from_native(with_typed_whole_numbers(result), eager_only=True)
    if module == "pyarrow":
        return frame.to_arrow()
    polars_frame = frame.to_polars()
    return polars_frame.lazy() if type(original).__name__ == "LazyFrame" else polars_frame


def named_columns(
    table: Any, name: str, required: Sequence[str], columns: Mapping[str, str] | None, report: DataReport
) -> pd.DataFrame:
    """Open a table, give its columns our names, and require some; see ``columns.py`` for rules and errors."""
    frame = to_pandas(table, columns=columns, report=report)
    return require_columns(map_columns(frame, name, columns, report), name, required)


def open_tables(
    given: Mapping[str, Any],
    columns: Mapping[str, str] | None,
    encoding: str | None,
    report: DataReport,
    *,
    required: Sequence[str] = (),
    elsewhere: Callable[[str], bool] = lambda _: False,
) -> dict[str, pd.DataFrame]:
    """Open tables that one mapping of columns serves, by name; None is left out.

    elsewhere: tells of one of our columns whether a table has it that the mapping serves too, and is not here.
    Raises DataError where a required one is None, or none of them has a column that is to be mapped to one of theirs.
    """
    for name in required:
        if given[name] is None:
            raise DataError(f"{name} is None; give a frame or the path of a file")
    tables = {
        name: to_pandas(table, columns=columns, encoding=encoding, report=report)
        for name, table in given.items()
        if table is not None
    }
    known = {column for table in tables.values() for column in table.columns}
    absent = [name for name, ours in (columns or {}).items() if name not in known and not elsewhere(ours)]
    if absent:
        raise DataError(f"columns maps {absent[0]!r}, which no table has; the tables have {sorted(map(str, known))}")
    return tables


def applicable(columns: Mapping[str, str] | None, table: pd.DataFrame) -> dict[str, str]:
    """Keep the mappings that name a column of this table: one mapping may serve several tables."""
    return {given: ours for given, ours in (columns or {}).items() if given in table.columns}


def clean_ids(values: pd.Series, name: str, report: DataReport) -> pd.Series:
    """Give ids as they came, with empty texts and NaN as missing.

    Whole numbers that pandas turned into floats beside a missing value (17850.0) are whole again. A column that mixes
    numbers and texts, as spreadsheets make them, becomes text throughout, which is noted; so do UUIDs and dates.
    Raises DataError where an id is neither number nor text, where floats have rounded ids (beyond 2^53, or 2^24 in
    float32), where no column holds such whole numbers, or where text would merge two ids (1 and "1").
    """
    values = _as_plain_ids(without_categories(values), name, report)
    if dtypes.is_float_dtype(values.dtype):
        known = values.dropna().to_numpy(dtype=np.float64)
        if not (np.isfinite(known) & (known == np.floor(known))).all():
            return values
        bits = _whole_bits(values.dtype)
        rounded = known[np.abs(known) >= 2**bits]
        if len(rounded):
            raise DataError(
                f"{name} holds {rounded[0]:.0f} as a float: ids beyond 2^{bits} came as floats, which rounds them; "
                "bring them as Int64 or text"
            )
        return values.astype("Int64")
    if dtypes.is_numeric_dtype(values.dtype):
        return values
    kind = pd.api.types.infer_dtype(values, skipna=True)
    try:
        if kind == "mixed-integer-float" or kind == "floating":
            return clean_ids(pd.to_numeric(values), name, report)
        if kind == "integer":
            return whole_numbers(values)
    except OverflowError:
        raise _too_great(values, name) from None
    if kind in ("mixed", "mixed-integer"):
        values = _mixed_ids(values, name, report)
        kind = pd.api.types.infer_dtype(values, skipna=True)
    if kind == "string":
        return values.mask(values.str.strip() == "")
    return values


def _whole_bits(dtype: Any) -> int:
    """Say up to which power of two a dtype of floats, read as float64, holds every whole number."""
    kind = np.finfo(getattr(dtype, "numpy_dtype", dtype))
    return min(kind.nmant, np.finfo(np.float64).nmant) + 1


def _too_great(values: pd.Series, name: str) -> DataError:
    whole = [int(value) for value in values.dropna() if isinstance(value, int | np.integer)]
    low, high = (f"{Decimal(value).normalize():.20g}" for value in (min(whole), max(whole)))
    return DataError(
        f"{name} holds whole numbers from {low} to {high}, but those of a table lie between -2^63 and 2^63, or 0 and "
        "2^64; bring them as text"
    )


def _as_plain_ids(values: pd.Series, name: str, report: DataReport) -> pd.Series:
    """Give ids as numbers and texts, which a saved model can keep; Decimals, UUIDs and dates become such."""
    kind = pd.api.types.infer_dtype(values, skipna=True)
    if kind == "boolean":
        raise DataError(f"{name} holds {bool(values.dropna().iloc[0])}; an id must be one number or text")
    if dtypes.is_numeric_dtype(values.dtype) or kind in PLAIN_KINDS:
        return values
    try:
        distinct = values.dropna().unique()
    except TypeError as error:
        raise DataError(f"{name} holds lists or mappings; an id must be one number or text") from error
    foreign = [value for value in distinct if not isinstance(value, str | int | float | np.number)]
    unfit = [value for value in foreign if not isinstance(plain_id(value), str | int)]
    if unfit:
        kind = type(unfit[0]).__name__
        raise DataError(f"{name} holds {unfit[0]!r} of type {kind}; an id must be one number or text")
    if not foreign:
        return values
    report.notes.append(
        f"{name} holds ids of type {type(foreign[0]).__name__}; they were taken as text or whole number"
    )
    return values.map(plain_id, na_action="ignore").infer_objects()


def _mixed_ids(values: pd.Series, name: str, report: DataReport) -> pd.Series:
    distinct = pd.Series(values.dropna().unique(), dtype=object)
    texts = distinct.map(_id_text)
    repeated = texts[texts.duplicated()]
    if len(repeated):
        one, other = distinct[texts == repeated.iloc[0]].tolist()[:2]
        raise DataError(
            f"{name} mixes numbers and texts, and {one!r} and {other!r} would be one id; "
            "write all ids as text, or all as numbers"
        )
    report.notes.append(f"{name} mixes numbers and texts; all its ids were taken as text")
    return values.map(_id_text, na_action="ignore")


def _id_text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def as_objects(ids: pd.Series) -> ObjectArray:
    """Give ids without missing ones as an object array of Python values."""
    return object_array(ids.tolist())


def id_codes(values: pd.Series | ObjectArray, known: ObjectArray) -> IntArray:
    """Give each id's position among the known, distinct ids, -1 where unknown or missing: int64, shape (n_values,).

    Each id is found for itself, whatever stands beside it: "17" from a CSV finds 17 from a database, and the other way
    round, by the rule of ``id_index.code_of``.
    """
    series = values if isinstance(values, pd.Series) else pd.Series(values, dtype=object)
    codes, distinct = pd.factorize(series)  # each distinct id is looked up once
    ids, by_id = distinct.tolist(), codes_by_id(known)
    as_spelled = map(by_id.get, ids)  # which finds most of them, in a third of the time
    found = [code_of(value, by_id) if code is None else code for value, code in zip(ids, as_spelled, strict=True)]
    return np.array([*found, UNKNOWN], dtype=np.int64)[codes]
