"""Timestamps of any common kind to whole seconds since 1970, or to plain positions; what was understood is said.

Leaves out time zones of naive values: they are taken as UTC.
"""

from __future__ import annotations

import warnings
from datetime import UTC, date, datetime
from typing import Any, Literal

import numpy as np
import pandas as pd
from pandas.api import types as dtypes

from llm_rerank.data.values import without_categories, without_halves
from llm_rerank.data.whole_numbers import numbers_or_nan
from llm_rerank.types import BoolArray, DataError, DataReport, IntArray, TimeKind

TimeUnit = Literal["auto", "s", "ms", "us", "ns", "datetime", "position"]
TIME_UNITS: tuple[TimeUnit, ...] = ("auto", "s", "ms", "us", "ns", "datetime", "position")

UNITS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
UNIT_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}

# A number tells its unit by its size: seconds since 1970 lie between 1e8 (1973) and 1e11 (5138), milliseconds a
# thousand times higher, and so on; anything smaller is a position in a sequence.
SIZE_BANDS: tuple[tuple[TimeUnit, float, float], ...] = (
    ("position", -1e8, 1e8),
    ("s", 1e8, 1e11),
    ("ms", 1e11, 1e14),
    ("us", 1e14, 1e17),
    ("ns", 1e17, 1e20),
)
EARLIEST, LATEST = -2208988800, 7258118400  # 1900-01-01, 2200-01-01: dates outside are typing errors
STRAY_SHARE = 0.01  # up to this share of values in another band is dirt; above it, the column mixes units
FIRST_YEAR = 365 * 86400  # seconds of 1970: smaller numbers are positions, or dates such as 20240531
DATE_NUMBERS = {8: ("%Y%m%d", "YYYYMMDD"), 12: ("%Y%m%d%H%M", "YYYYMMDDHHMM"), 14: ("%Y%m%d%H%M%S", "YYYYMMDDHHMMSS")}
_CLOCK_TIME = r"(?<!\d)\d{1,2}:\d{2}\S*"
_DATE_OF_NUMBERS = (  # % the digits of its year
    r"(?<!\d)(?P<first>\d{1,2})\s*(?P<mark>[\s./-])\s*(?P<second>\d{1,2})\s*[\s./-]\s*(?P<year>\d{%d})(?!\d)"
)
SLOW_PARSER_LIMIT = 20_000  # distinct texts that pandas' free-form parser (about 50 microseconds each) may read


def parse_times(
    values: pd.Series, *, time_unit: TimeUnit = "auto", name: str = "interactions", report: DataReport
) -> tuple[IntArray, BoolArray, TimeKind]:
    """Read a column of timestamps and note in ``report`` how it was understood.

    values: numbers, datetimes or texts of either. name: the table, for messages.
    Returns times (int64, 0 where unknown), known (bool, same shape) and the kind of time.
    Raises DataError where no value can be read, units are mixed, or day and month cannot be told apart.
    """
    if time_unit not in TIME_UNITS:
        raise DataError(f"time_unit is {time_unit!r}; it must be one of {', '.join(TIME_UNITS)}")
    values = without_categories(values)
    if isinstance(values.dtype, pd.PeriodDtype):
        values = values.dt.to_timestamp()
    numbers = _as_numbers(values)
    if numbers is None:
        if time_unit in UNITS_PER_SECOND or time_unit == "position":
            raise DataError(
                f"timestamp in {name} is not a number (first: {_first(values)!r}), but time_unit is {time_unit!r}; "
                "pass time_unit='datetime' or 'auto'"
            )
        times, known = _seconds_of_dates(_as_dates(values, name), known=None)
        understood = "dates"
    else:
        times, known, understood = _read_numbers(numbers, time_unit, name)
    if not known.any():
        raise DataError(
            f"no timestamp in {name} can be read (first: {_first(values)!r}); give seconds or milliseconds since "
            "1970, dates like 2024-05-31 18:00, or positions 0, 1, 2, …"
        )
    kind: TimeKind = "position" if understood == "positions" else "time"
    report.notes.append(f"timestamps of {name}: {_describe(times[known], understood, kind)}")
    return times, known, kind


def read_moment(value: Any, kind: TimeKind, *, name: str = "at") -> int:
    """Read one moment: seconds since 1970 or a date; where times are positions, a position.

    name: of the argument, for messages. Raises DataError for anything else.
    """
    remedy = "give seconds since 1970, or a date such as 2024-05-31"
    if kind == "position":
        remedy = "this shop's times are positions: give a whole number"
    if isinstance(value, str) and value.strip().isdecimal():
        if kind == "position":
            return read_moment(int(value), kind, name=name)
        dates = _dates_as_numbers(np.array([int(value.strip()[:18])]), np.array([True]))
        if dates is not None:
            return int(_seconds_of_dates(dates[0], known=None)[0][0])
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        if kind == "time" and -FIRST_YEAR < value < FIRST_YEAR:
            raise DataError(f"{name} is {value!r}, which is too small for a time of a shop; {remedy} as text")
        low, high = (EARLIEST, LATEST) if kind == "time" else (-(2**62), 2**62)
        if not low <= value <= high:  # nor is NaN, and a whole number of 400 digits becomes no float
            rule = "which is no time between 1900 and 2200" if kind == "time" else "which is no position"
            raise DataError(f"{name} is {value!r}, {rule}; {remedy}")
        return int(value)
    if kind == "position" or not isinstance(value, str | date | np.datetime64):
        raise DataError(f"{name} is {value!r}; {remedy}")
    times, known = _seconds_of_dates(_as_dates(pd.Series([without_halves(value)]), name), known=None)
    if not known[0]:
        raise DataError(f"{name} is {value!r}, which is no date between 1900 and 2200; {remedy}")
    return int(times[0])


def seconds_of_date(text: str) -> float:
    """Seconds since 1970 of a date of ISO 8601, with or without a time of day; UTC where no zone is given.

    Raises ValueError for everything else: "now", "01:02" and "2020Q1" are no dates.
    """
    moment = datetime.fromisoformat(text.strip())
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _describe(times: IntArray, understood: str, kind: TimeKind) -> str:
    if kind == "position":
        return f"read as plain positions, {times.min()} to {times.max()}; no real time is known"
    first, last = (str(np.datetime64(int(edge), "s"))[:10] for edge in (times.min(), times.max()))
    return f"read as {understood}, {first} to {last} (UTC)"


def _first(values: pd.Series) -> object:
    return next(iter(values[values.notna()].iloc[:1].tolist()), None)  # a list: a plain value, not numpy's


def _as_numbers(values: pd.Series) -> pd.Series | None:
    """Give the column as Int64 or float64 where most of its known values are numbers, else None."""
    if dtypes.is_datetime64_any_dtype(values.dtype):
        return None
    kind = pd.api.types.infer_dtype(values, skipna=True)
    if kind in ("boolean", "complex", "timedelta", "timedelta64", "time") or kind == "mixed":
        raise DataError(f"timestamp holds values of kind {kind} (first: {_first(values)!r}); give times or positions")
    if dtypes.is_numeric_dtype(values.dtype):
        return values
    if kind in ("datetime", "datetime64", "date"):
        return None
    numbers = numbers_or_nan(values)
    n_texts = values.notna().sum()
    return numbers if n_texts and numbers.notna().sum() * 2 > n_texts else None


def _read_numbers(numbers: pd.Series, time_unit: TimeUnit, name: str) -> tuple[IntArray, BoolArray, str]:
    known = numbers.notna().to_numpy() & np.isfinite(numbers.to_numpy(dtype=np.float64, na_value=np.nan))
    whole = np.zeros(len(numbers), dtype=np.int64)
    if dtypes.is_integer_dtype(numbers.dtype):
        whole[known] = numbers[known].to_numpy(dtype=np.int64)  # no detour over float64: it would round nanoseconds
        broken = False
    else:
        floats = numbers[known].to_numpy(dtype=np.float64)
        inside = np.abs(floats) < 9e18
        known[np.flatnonzero(known)[~inside]] = False
        whole[known] = np.floor(floats[inside])
        broken = bool((floats[inside] != np.floor(floats[inside])).any())
    if not known.any():
        return whole, known, "seconds since 1970"
    if time_unit in ("auto", "datetime"):
        dates = _dates_as_numbers(whole, known)
        if dates is not None:
            return *_seconds_of_dates(dates[0], known), f"dates written as numbers ({dates[1]})"
        if time_unit == "datetime":
            raise DataError(
                f"timestamp in {name} holds numbers (first: {whole[known][0]}), but time_unit is 'datetime'; "
                "pass time_unit='s', 'ms' or 'position'"
            )
        time_unit = _unit_by_size(whole, known, name)
    if time_unit == "position":
        if broken:
            raise DataError(
                f"timestamp in {name} holds fractions, but is too small for seconds since 1970; positions must be "
                "whole numbers, and times must be seconds or milliseconds since 1970"
            )
        return whole, known, "positions"
    seconds = np.where(known, whole // UNITS_PER_SECOND[time_unit], 0)
    typical = float(np.median(seconds[known]))
    if not FIRST_YEAR <= abs(typical) <= LATEST:
        raise DataError(
            f"timestamp in {name} read as {UNIT_WORDS[time_unit]} gives {typical:.0f} seconds since 1970 as its middle "
            "value; times must lie between 1971 and 2200, so pass another time_unit, or 'position'"
        )
    known &= (seconds >= EARLIEST) & (seconds <= LATEST)
    return np.where(known, seconds, 0), known, f"{UNIT_WORDS[time_unit]} since 1970"


def _dates_as_numbers(whole: IntArray, known: BoolArray) -> tuple[pd.Series, str] | None:
    """Give dates and their form where the known numbers read as YYYYMMDD (20171201), also with a time, else None."""
    most_strays = STRAY_SHARE * known.sum()
    for n_digits, (form, said) in DATE_NUMBERS.items():
        inside = known & (whole >= 1900 * 10 ** (n_digits - 4)) & (whole < 2200 * 10 ** (n_digits - 4))
        if inside.any() and known.sum() - inside.sum() <= most_strays:
            dates = pd.to_datetime(pd.Series(whole.astype(str)).where(inside), format=form, errors="coerce", utc=True)
            if dates[known].isna().sum() <= most_strays:
                return dates, said
    return None


def _unit_by_size(whole: IntArray, known: BoolArray, name: str) -> TimeUnit:
    """Tell the unit by the size of the middle value; values of other sizes become unknown (``known`` is changed)."""
    middle = float(np.median(whole[known]))
    unit, low, high = next((band for band in SIZE_BANDS if band[1] <= middle < band[2]), (None, 0.0, 0.0))
    if unit is None:
        raise DataError(f"timestamp in {name} has {middle:.3g} as its middle value, which is no time since 1970")
    stray = known & ((whole < low) | (whole >= high))
    if stray.sum() > STRAY_SHARE * known.sum():
        raise DataError(
            f"timestamp in {name} mixes units: {whole[known & ~stray][0]} beside {whole[stray][0]} "
            f"({stray.sum():,} of {known.sum():,} values); bring all to one unit"
        )
    known &= ~stray
    return unit


def _as_dates(values: pd.Series, name: str) -> pd.Series:
    """Read datetimes and texts of dates; unreadable ones become NaT."""
    if dtypes.is_datetime64_any_dtype(values.dtype):
        return values
    if pd.api.types.infer_dtype(values, skipna=True) in ("datetime", "datetime64", "date"):
        return pd.to_datetime(values, utc=True, errors="coerce")
    codes, distinct = pd.factorize(values)  # each distinct text is read once
    texts = pd.Series(distinct, dtype=object).astype(str).str.strip()
    # 2024/5/31, 2024年5月31日: with hyphens, pandas' fast reader knows them.
    texts = texts.str.replace(r"^(\d{4})[/.年](\d{1,2})[/.月](\d{1,2})日?", r"\1-\2-\3", regex=True)
    dates = _read_date_texts(texts, name)
    return pd.concat([dates, pd.Series([pd.NaT], dtype=dates.dtype)], ignore_index=True).iloc[codes]


def _read_date_texts(texts: pd.Series, name: str) -> pd.Series:
    # microseconds: pandas' own unit, which follows the texts, would refuse the fractions of those that are read later
    dates = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce").dt.as_unit("us")
    missing = dates.isna()
    if not missing.any():
        return dates
    # A clock time or a lone month would be read as one of today's: a date has two numbers beside its clock time.
    without_clock = texts.str.replace(_CLOCK_TIME, "", regex=True)
    whole = without_clock.str.contains(r"\d+\D+\d+")
    texts = texts.where(whole, None)
    missing &= whole
    rest = texts[missing]
    day_first = _day_comes_first(rest, without_clock[missing], name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "could not infer format": unreadable texts are counted
        dates[missing] = pd.to_datetime(rest, dayfirst=day_first, utc=True, errors="coerce").dt.as_unit("us")
        missing = dates.isna() & whole
        if 0 < missing.sum() <= SLOW_PARSER_LIMIT:
            dates[missing] = pd.to_datetime(
                texts[missing], format="mixed", dayfirst=day_first, utc=True, errors="coerce"
            ).dt.as_unit("us")
    return dates


def _day_comes_first(texts: pd.Series, without_clock: pd.Series, name: str) -> bool:
    """Tell 31/12/2024 from 12/31/2024, wherever in a text it stands, by the numbers above 12."""
    parts = without_clock.str.extract(_DATE_OF_NUMBERS % 4)
    without_year = without_clock.mask(without_clock.str.contains(r"\d{4}"))
    parts = parts.fillna(without_year.str.extract(_DATE_OF_NUMBERS % 2)).dropna()
    if parts.empty:
        return False
    given = texts[parts.index]
    dotted = parts["mark"] == "."
    short = (parts["year"].str.len() == 2) & ~dotted
    if short.any():
        raise DataError(
            f"timestamp {given[short].iloc[0]!r} in {name} has a year of two digits, which may be a day as well; "
            "write dates as 2024-12-31"
        )
    first, second = (parts[side].astype(int) for side in ("first", "second"))
    day_first, month_first = (
        given[day.between(13, 31) & month.between(1, 12)] for day, month in ((first, second), (second, first))
    )
    if len(day_first) and len(month_first):
        raise DataError(
            f"timestamp in {name} mixes day/month ({day_first.iloc[0]!r}) and month/day ({month_first.iloc[0]!r}); "
            "write dates as 2024-12-31"
        )
    if not (len(day_first) or len(month_first) or dotted.all()):  # with dots the day comes first, in every country
        raise DataError(
            f"timestamp {given.iloc[0]!r} in {name} may be day/month or month/day and no value decides; "
            "write dates as 2024-12-31"
        )
    return not len(month_first)


def _seconds_of_dates(dates: pd.Series, known: BoolArray | None) -> tuple[IntArray, BoolArray]:
    if getattr(dates.dtype, "tz", None) is not None:
        dates = dates.dt.tz_convert("UTC").dt.tz_localize(None)
    seconds = dates.to_numpy().astype("datetime64[s]")
    readable = ~np.isnat(seconds) if known is None else known & ~np.isnat(seconds)
    times = np.where(readable, seconds.astype(np.int64), 0)
    readable &= (times >= EARLIEST) & (times <= LATEST)
    return np.where(readable, times, 0), readable
