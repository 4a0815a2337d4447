"""Single values of a shop's tables: prices, texts with HTML, category paths, specifications. Pure functions.

Leaves out timestamps (``times.py``) and ids (``frames.py``).
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date
from decimal import Decimal
from itertools import zip_longest
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api import types as dtypes

from llm_rerank.types import ObjectArray

CATEGORY_SEPARATOR = " > "
GREATEST_WHOLE = 2**53
"""Beyond it JSON's numbers are not whole any more in most languages."""

GREATEST_ID = 2**63 - 1
"""Of ids that are whole numbers: what tables hold."""

LISTS = (list, tuple, np.ndarray)
"""What cells with several values are; Parquet and polars give arrays."""

NULLABLE = {"i": "Int64", "u": "UInt64", "b": "boolean"}
"""pandas' dtypes that hold a missing value, by the kind of numpy's that do not."""

_CURRENCY = (
    r"(?:[A-Za-z]{0,3}[$€£¥￥₹₽₩₪₺₫₴₦₱฿]|[A-Z]{3}(?![a-z])|Rs\.?|kr\.?|zł|Kč|Ft|lei|лв\.?|руб\.?|元|円|원|,-|\.-)"
)
_AMOUNT = r"-?(?:\d{1,3}(?:[.,'’ \u00a0\u202f]\d{3})+(?:[.,]\d{1,2})?|\d+(?:[.,]\d+)?|[.,]\d+)"
# One amount with a currency on either side; of a range ("$5.99 - $12.00") the lower end.
_PRICE = re.compile(
    rf"(?:from |ab )?{_CURRENCY}?\s*({_AMOUNT})\s*{_CURRENCY}?(?:\s*[-–]\s*{_CURRENCY}?\s*{_AMOUNT}\s*{_CURRENCY}?)?"
)
_BLOCK = re.compile(r"<(script|style)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_INLINE_TAG = re.compile(r"</?(?:a|b|i|u|em|strong|span|font|small|sub|sup|mark)(?:\s[^<>]*)?>", re.IGNORECASE)
_TAG = re.compile(r"<!--.*?-->|</?[a-zA-Z][^<>]*>", re.DOTALL)
_SPACES = re.compile(r"\s+")
_HALF_EMOJI = re.compile("[\ud800-\udfff]")


def parse_prices(values: pd.Series) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Read prices such as 12.5, "$1,299.00", "12,50 €", "1.299,00", "CHF 1'299.-".

    A lone mark before exactly three digits ("1,299") follows the rest of the column: a comma groups thousands unless
    other prices show it as the decimal mark, a point is the decimal mark unless others show the comma as such.
    Returns prices (float64, NaN where unknown) and refused (bool): a value was there, but is no price above 0.
    """
    if dtypes.is_numeric_dtype(values.dtype):
        prices = values.to_numpy(dtype=np.float64, na_value=np.nan).copy()
        given = ~np.isnan(prices)
    else:
        codes, distinct = factorized(values)
        texts = [str(value).strip() for value in distinct]
        amounts = [match.group(1) if (match := _PRICE.fullmatch(text)) else None for text in texts]
        comma_is_decimal = _comma_is_decimal([amount for amount in amounts if amount])
        numbers = [_amount_to_float(amount, comma_is_decimal) if amount else math.nan for amount in amounts]
        prices = np.array([*numbers, math.nan])[codes]  # code -1, a missing value, finds the last
        given = np.array([*(bool(text) for text in texts), False])[codes]
    refused = given & ~((prices > 0) & np.isfinite(prices))
    prices[refused] = np.nan
    return prices, refused


def _comma_is_decimal(amounts: list[str]) -> bool:
    """Vote over the amounts whose marks can be read one way only."""
    commas = sum(bool(re.search(r",\d{1,2}$|\.\d{3},", amount)) for amount in amounts)
    points = sum(bool(re.search(r"\.\d{1,2}$|,\d{3}\.", amount)) for amount in amounts)
    return commas > points


def _amount_to_float(amount: str, comma_is_decimal: bool) -> float:
    amount = re.sub(r"['’ \u00a0\u202f]", "", amount)
    marks = re.findall(r"[.,]", amount)
    if not marks:
        return float(amount)
    last = marks[-1]
    head, _, tail = amount.rpartition(last)
    if len(set(marks)) == 2:
        decimal = True  # 1,299.00 and 1.299,00: the later mark is the decimal one
    elif len(marks) > 1:
        decimal = False  # 1.299.000
    elif len(tail) == 3 and head.lstrip("-") not in ("", "0"):
        decimal = comma_is_decimal == (last == ",")
    else:
        decimal = True
    digits = re.sub(r"[.,]", "", head)
    return float(f"{digits}.{tail}" if decimal else f"{digits}{tail}")


def clean_text(text: str) -> str:
    """Remove HTML tags, resolve entities (&amp;), and bring white space to single blanks; "a < b" stays.

    Half an emoji, as broken exports hold it, becomes the mark for an unreadable character: no file keeps it.
    """
    if "<" in text or "&" in text:
        # Entities may hide tags (&lt;br&gt;), tags may hold entities: hence tags, entities, tags again.
        text = _without_tags(html.unescape(_without_tags(_BLOCK.sub(" ", text))))
    return _SPACES.sub(" ", without_halves(text)).strip()


def without_halves(value: Any) -> Any:
    """Put the mark for an unreadable character where a text holds half an emoji; all else comes back as it is."""
    if not isinstance(value, str) or value.isascii() or not _HALF_EMOJI.search(value):
        return value
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")  # two that belong together meet


def _without_tags(text: str) -> str:
    return _TAG.sub(" ", _INLINE_TAG.sub("", text))  # "H<sub>2</sub>O" is one word, "one<br>two" are two


def text_column(values: pd.Series, *, separator: str = " ") -> pd.Series:
    """Give a column as clean texts, "" where missing; lists are joined by the separator.

    Returns a Series of str objects with the index of ``values``.
    """
    return _map_distinct(values, lambda value: clean_text(join_texts(value, separator)))


def category_column(values: pd.Series) -> pd.Series:
    """Give categories as one path a row, "A > B"; lists, nested lists (their first path) and "A|B" are understood."""
    return _map_distinct(values, _category_path)


def specs_column(values: pd.Series) -> pd.Series:
    """Give mappings as JSON text with clean keys and values, lists, numbers and free text as text; "" where none."""
    return _map_distinct(values, _specs_text)


def image_column(values: pd.Series) -> pd.Series:
    """Give the first image address or path of each row, "" where there is none."""
    return _map_distinct(values, _first_image)


def plain_column(values: pd.Series) -> pd.Series:
    """Give a column that passes through as numbers, truth values or dates where it holds those alone, else as texts.

    A file keeps these as they are, so that a model that was saved and loaded reads what its fit read. Lists are joined
    by ", ", mappings are "name: value" parts; a missing cell is None among texts.
    """
    values = without_categories(values)
    if isinstance(values.dtype, pd.SparseDtype):
        values = pd.Series(np.asarray(values), index=values.index)
    if dtypes.is_datetime64_any_dtype(values.dtype):
        return values
    if dtypes.is_numeric_dtype(values.dtype) and not dtypes.is_complex_dtype(values.dtype):
        return values
    kind = pd.api.types.infer_dtype(values, skipna=True)
    try:
        if kind in ("boolean", "integer"):
            return values.astype("boolean" if kind == "boolean" else "Int64")
        if kind in ("floating", "mixed-integer-float"):
            return values.astype("Float64").astype(np.float64)
    except (OverflowError, TypeError, ValueError):
        pass  # whole numbers that no table holds
    return _map_distinct(values, _plain_text)


def _plain_text(value: Any) -> str | None:
    return None if is_missing(value) else without_halves(_parts_joined(value))


def _parts_joined(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {text}" for name, part in value.items() if (text := _parts_joined(part).strip()))
    if (parts := parts_of(value)) is not None:
        return ", ".join(text for part in parts if (text := _parts_joined(part).strip()))
    return join_texts(value)


def plain_id(value: Any) -> Any:
    """Give an id as a number or a text where it is a Decimal, a UUID or a date, a whole float as a whole number.

    pandas makes 7.0 of 7 beside a missing cell. Half an emoji is marked, as in tables (``without_halves``). Anything
    else comes back as it is.
    """
    if isinstance(value, float | np.floating):
        return int(value) if value.is_integer() else value
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return int(value)
    return str(value) if isinstance(value, (Decimal, UUID, date)) else without_halves(value)


def join_texts(value: Any, separator: str = " ") -> str:
    """Give any cell as text: "" for None and NaN, lists joined."""
    if isinstance(value, str):
        return value
    if (parts := parts_of(value)) is not None:
        return separator.join(text for part in parts if (text := join_texts(part, separator).strip()))
    return "" if is_missing(value) else str(value)


def parts_of(value: Any) -> list[Any] | tuple[Any, ...] | np.ndarray | None:
    """Give what a cell of several values holds, None for one value.

    Sets are sorted by their texts: their own order is another in every process.
    """
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return value if isinstance(value, LISTS) else None


def is_missing(value: Any) -> bool:
    """Tell None, NaN, NaT and pandas' NA from values; containers are never missing."""
    return value is None or value is pd.NA or value is pd.NaT or isinstance(value, float) and math.isnan(value)


def without_categories(values: pd.Series) -> pd.Series:
    """Give a categorical column as the plain values it stands for; any other as it is."""
    if not isinstance(values.dtype, pd.CategoricalDtype):
        return values
    kind = values.cat.categories.dtype
    if isinstance(kind, np.dtype) and kind.kind in NULLABLE and values.isna().any():
        return values.astype(object).astype(dtypes.pandas_dtype(NULLABLE[kind.kind]))
    return values.astype(kind)


def factorized(values: pd.Series) -> tuple[npt.NDArray[np.int64], Sequence[Any]]:
    """Codes of the values, -1 where missing, and the distinct ones; lists and mappings go by their text."""
    try:
        codes, distinct = pd.factorize(values)
    except TypeError:
        codes, distinct = pd.factorize(_map_distinct(values, _plain_text))
    return codes, distinct.tolist()


def _map_distinct(values: pd.Series, function: Callable[[Any], str | None]) -> pd.Series:
    """Apply a function once a distinct value where values are hashable, else once a row."""
    try:
        codes, distinct = pd.factorize(values)
    except TypeError:  # lists and mappings
        results = [function(value) for value in values]
        return pd.Series(results, index=values.index, dtype=object)
    results = [*(function(value) for value in distinct), function(None)]
    return pd.Series(np.array(results, dtype=object)[codes], index=values.index, dtype=object)


def _category_path(value: Any) -> str:
    return CATEGORY_SEPARATOR.join(category_names(value))


def category_names(value: Any) -> list[str]:
    """Give the clean names of one category path: a text "A > B" or "A|B", a list, or the first list of several."""
    parts = parts_of(value)
    if parts is None:
        parts = re.split(r"\s*[|>]\s*", html.unescape(join_texts(value)))
    elif len(parts) and (first := parts_of(parts[0])) is not None:
        parts = first  # Amazon 2014: several paths, the first is the main one
    return [name for part in parts if (name := clean_text(join_texts(part)))]


def _specs_text(value: Any) -> str:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):  # text, or a number of more digits than Python reads
            return clean_text(value)
    if not isinstance(value, Mapping):
        return clean_text(join_texts(value, ", "))
    pairs = {
        clean_text(str(key)).strip(" :"): clean_text(join_texts(part, ", ")).rstrip(" (") for key, part in value.items()
    }
    kept = {key: text for key, text in pairs.items() if key and text}
    return json.dumps(kept, ensure_ascii=False) if kept else ""


def mapping_of_text(text: str) -> dict[str, Any] | None:
    """Read a JSON mapping, as ``specs_column`` writes it; None for any other text."""
    if not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _first_image(value: Any) -> str:
    if (parts := parts_of(value)) is not None:
        return next((image for part in parts if (image := _first_image(part))), "")
    if isinstance(value, Mapping):  # Amazon 2023: sizes of one image, or, in Parquet, a list of all images by size
        sizes = [value.get(size) for size in ("hi_res", "large", "thumb")]
        lists = [part if isinstance(part, LISTS) else [part] for part in sizes]
        return _first_image([part for images in zip_longest(*lists) for part in images])
    return without_halves(join_texts(value).strip())


def object_array(values: Sequence[Any]) -> ObjectArray:
    """Put values of any kind, as they are, into an object array: shape (n_values,)."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def plain(value: Any) -> Any:
    """Give anything as JSON values: what is missing or no number becomes null, other objects text, arrays lists."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if (parts := parts_of(value)) is not None:
        return [plain(part) for part in parts]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return None if is_missing(value) else str(value)
