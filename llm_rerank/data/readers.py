"""Files to frames: CSV of any common dialect, JSON lines, Parquet, all of them gzipped or not.

Delimiter, encoding, byte order mark and decimal comma are found and said. Texts stay texts: an id "00123" or "1.10"
keeps its zeros. Leaves out what the columns mean (``schema.py``) and the published data sets (``datasets.py``).
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from llm_rerank.data.columns import holds_ids, require_columns, require_event_columns
from llm_rerank.data.layouts import as_interactions, as_items
from llm_rerank.data.text_encoding import decode
from llm_rerank.data.whole_numbers import frame_of_rows, with_whole_numbers
from llm_rerank.types import DataError, DataReport

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
SNIFFED_LINES = 50
ZIP, OLD_EXCEL = b"PK\x03\x04", bytes.fromhex("d0cf11e0a1b11ae1")
SNIFFED_CHARACTERS = 200_000
EMPTY_NUMBERS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
"""Words for "no value" in a column that otherwise holds numbers; in a column of texts they stay as they are."""

_WHOLE = r"-?(?:0|[1-9]\d{0,17})"  # no leading zeros: those mark ids, and a number would lose them
_POINT = r"-?(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?|-?\d[eE][+-]\d+"  # 1e-05, as programs write it; 12E4 is a code
_COMMA = r"-?\d{1,3}(?:\.\d{3})+,\d+|-?\d+,\d+"


def read_table(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    quoted: bool = True,
    report: DataReport | None = None,
) -> pd.DataFrame:
    """Read a CSV, TSV, JSON lines, JSON or Parquet file, gzipped or not; the content decides, not the suffix.

    columns: from the shop's names to ours: says which columns hold ids, where their names do not (``holds_ids``); none
    is renamed. encoding: None to find it: a byte order mark, UTF-8, or a guess.
    quoted: False for tables whose quotation marks are part of the values.
    report: takes notes on what was found.
    Raises DataError where the file is missing, empty, damaged, or has no header.
    """
    path = Path(path)
    report = DataReport() if report is None else report
    raw = read_bytes(path)
    if raw[:4] == b"PAR1":
        return _read_parquet(raw, path)
    _refuse_archives(raw, path)
    text, found = decode(raw, path, encoding)
    start = text[:1000].lstrip()
    if not start:
        raise DataError(f"{path} is empty; give a file with a header and at least one row")
    if start[0] in "{[":
        return _read_json(text, path)
    return _read_csv(text, found, path, quoted, columns, report)


def read_interactions(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    report: DataReport | None = None,
) -> pd.DataFrame:
    """Read a file of events and give its columns our names; Amazon reviews and MovieLens ratings are recognised.

    columns: from the shop's names to ours, for example {"customer": "user_id"}.
    Raises DataError as ``read_table`` does, and where user_id, item_id or timestamp is missing.
    """
    report = DataReport() if report is None else report
    table = read_table(path, columns=columns, encoding=encoding, report=report)
    frame = as_interactions(table, report, columns)
    return require_event_columns(frame, "interactions")


def read_items(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    report: DataReport | None = None,
) -> pd.DataFrame:
    """Read a file of items and give its columns our names; Amazon metadata and MovieLens movies are recognised.

    Raises DataError as ``read_table`` does, and where item_id or title is missing.
    """
    report = DataReport() if report is None else report
    table = read_table(path, columns=columns, encoding=encoding, report=report)
    return require_columns(as_items(table, report, columns), "items", ("item_id", "title"))


def read_bytes(path: Path) -> bytes:
    """Read a file, unpacked where it is gzipped.

    Raises DataError where it is missing, a folder, empty or damaged.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; check the path") from error
    except (IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give a readable file") from error
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path} is a damaged gzip file ({error}); copy or download it again") from error
    if not raw:
        raise DataError(f"{path} is empty; give a file with a header and at least one row")
    return raw


def _refuse_archives(raw: bytes, path: Path) -> None:
    """Raise DataError for a spreadsheet's own file, or another archive."""
    if raw.startswith(OLD_EXCEL) or raw.startswith(ZIP) and (b"xl/workbook" in raw or b"opendocument" in raw[:200]):
        raise DataError(
            f"{path} is a spreadsheet's own file, as Excel writes it; save the sheet as CSV (UTF-8), or read it with "
            "pandas.read_excel and pass the frame"
        )
    if raw.startswith(ZIP):
        raise DataError(f"{path} is a zip archive; unpack it and give the table in it")


def _read_parquet(raw: bytes, path: Path) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(raw))
        frame = table.to_pandas()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is a damaged Parquet file ({error}); copy or download it again") from error
    if not frame.columns.is_unique:  # refused, in other words, where the columns are asked for
        return frame
    return with_whole_numbers(frame, lambda name: table[str(name)].to_pylist())


def _read_csv(
    text: str, encoding: str, path: Path, quoted: bool, columns: Mapping[str, str] | None, report: DataReport
) -> pd.DataFrame:
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    text = re.sub(r"^\s*sep=[,;\t|]\n", "", text).lstrip(
        "\n"
    )  # spreadsheets may tell their delimiter; it is found anyway
    delimiter = _sniff_delimiter(text, quoting)
    try:
        header = next(csv.reader(io.StringIO(text), delimiter=delimiter, quoting=quoting))
    except csv.Error as error:  # a name of more than 131,072 characters
        raise DataError(f"{path} has no header that can be read ({error}); add a line of column names") from None
    names = [name.strip() for name in header]
    if all(_is_number(name) for name in names if name):
        first = ", ".join(names[:4])
        raise DataError(f"the first line of {path} ({first}) looks like data; add a line of column names")
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise DataError(f"{path} has the columns {repeated} more than once; rename or remove one of each")
    names = [name or f"column_{number}" for number, name in enumerate(names, start=1)]
    frame = _rows_of_text(text, delimiter, names, quoting, path)
    empty = frame.columns[frame.isna().all()]
    unnamed = [name for given, name in zip(header, names, strict=True) if not given.strip() and name in empty]
    frame = frame.drop(columns=unnamed)
    comma_columns: list[str] = []
    for column in frame.columns:
        frame[column] = _typed(frame[column], comma_columns, is_id=holds_ids(column, columns))
    said = f"{path.name}: {encoding}, delimiter {DELIMITERS[delimiter]}"
    said += f", decimal comma in {', '.join(comma_columns)}" if comma_columns else ""
    said += f", {len(unnamed)} empty columns without a name left out" if unnamed else ""
    report.notes.append(said)
    return frame


def _rows_of_text(text: str, delimiter: str, names: list[str], quoting: Literal[0, 3], path: Path) -> pd.DataFrame:
    """Cut a table into texts, None where a field is empty."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # more fields than names: pandas would cut them
            return pd.read_csv(
                io.StringIO(text),
                sep=delimiter,
                header=0,
                names=names,
                index_col=False,
                dtype=object,
                keep_default_na=False,
                na_values=[""],
                quoting=quoting,
                on_bad_lines="error",
            )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, pd.errors.ParserWarning) as error:
        why = " ".join(str(error).split())
        raise DataError(
            f"{path} is no well-formed table ({why}); give every column a name and quote values that hold delimiters"
        ) from error


def _sniff_delimiter(text: str, quoting: Literal[0, 3]) -> str:
    """Take the delimiter that cuts the first lines into the same number of fields, the greatest number first."""
    best, best_rank = ",", (0.0, 0)
    for delimiter in DELIMITERS:
        widths = _first_widths(text, delimiter, quoting)
        if not widths or widths[0] < 2:
            continue
        agreeing = sum(width == widths[0] for width in widths) / len(widths)
        if (agreeing, widths[0]) > best_rank:
            best, best_rank = delimiter, (agreeing, widths[0])
    return best


def _first_widths(text: str, delimiter: str, quoting: Literal[0, 3]) -> list[int]:
    """Count the fields of the first rows, however long their cells are (Python's reader ends at 131,072 characters)."""
    start = text[:SNIFFED_CHARACTERS]
    if quoting == csv.QUOTE_MINIMAL:
        # a quoted cell may hold delimiters and line ends, and is cut off where the start ends
        start = re.sub(rf'(^|{re.escape(delimiter)})"[^"]*(?:""[^"]*)*"?', r"\1.", start, flags=re.MULTILINE)
    lines = start.split("\n")
    if len(text) > SNIFFED_CHARACTERS and len(lines) > 1:
        lines.pop()  # which is cut off
    return [line.count(delimiter) + 1 for line in lines[:SNIFFED_LINES] if line]


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True


def _typed(values: pd.Series, comma_columns: list[str], *, is_id: bool) -> pd.Series:
    """Give a column of texts as whole numbers or floats where nothing is lost by it, else as texts.

    A measure loses nothing where 1.10 becomes 1.1; an id does.
    """
    codes, distinct = pd.factorize(values)  # each distinct text is looked at once
    known = pd.Series(distinct, dtype=object)
    known = known[~known.isin(EMPTY_NUMBERS)].str.strip()
    if known.empty or not known.iloc[0][-1:].isdigit() and not known.iloc[0].endswith("."):
        return values  # the common column of texts
    whole = known.str.fullmatch(_WHOLE)
    if whole.all():
        numbers = known.astype(np.int64)
        return _spread(
            numbers if len(known) == len(distinct) and (codes >= 0).all() else numbers.astype("Int64"), codes
        )
    if is_id and not known.map(_is_written_as_float).all():
        return values
    if (whole | known.str.fullmatch(_POINT)).all():
        return _spread(known.astype(np.float64), codes)
    if (whole | known.str.fullmatch(_COMMA)).all() and _commas_are_decimal(known):
        comma_columns.append(str(values.name))
        points = known.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
        return _spread(points.astype(np.float64), codes)
    return values


def _is_written_as_float(text: str) -> bool:
    """Tell whether a text is how Python writes a float with a point: "17850.0" and "1.5", not "1.10" or "1e-05"."""
    return "." in text and _is_number(text) and str(float(text.replace(",", "."))) == text


def _spread(numbers: pd.Series, codes: np.ndarray) -> pd.Series:
    """Give each row the number of its code; codes that ``numbers`` lacks are missing values."""
    if numbers.dtype == np.int64:
        return pd.Series(numbers.to_numpy()[codes])
    return numbers.reindex(codes).reset_index(drop=True)


def _commas_are_decimal(texts: pd.Series) -> bool:
    """1,299 alone may be one or a thousand: some other number of digits after a comma must show which."""
    return bool((~texts.str.contains(r"^-?\d{1,3},\d{3}$") & texts.str.contains(",", regex=False)).any())


def _read_json(text: str, path: Path) -> pd.DataFrame:
    if text.lstrip()[0] == "[":
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path} is no well-formed JSON ({error}); repair it or write one object a line") from error
        if not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path} holds a JSON list of other things than objects; write one object a row")
    else:
        rows = list(_json_lines(text, path))
    if not rows:
        raise DataError(f"{path} has no rows; give at least one")
    return frame_of_rows(rows)


def _json_lines(text: str, path: Path) -> Iterator[dict[str, Any]]:
    parse = json.loads
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse(line)
        except ValueError:
            row = _python_literal(line)
            if row is None:
                raise DataError(
                    f"line {number} of {path} is no JSON object ({line[:60]!r}); write one complete object a line"
                ) from None
        if not isinstance(row, dict):
            raise DataError(f"line {number} of {path} is no JSON object ({line[:60]!r}); write one object a line")
        yield row


def _python_literal(line: str) -> Any:
    """Amazon's metadata of 2014 are Python literals ({'asin': …}), read here without running anything."""
    try:
        return ast.literal_eval(line)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
