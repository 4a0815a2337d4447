from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_rerank.data.times import parse_times, read_moment
from llm_rerank.types import DataError, DataReport

# 2024-05-31 18:00:00 UTC, by hand: 19,874 days (54 years of 365, 13 leap days, 151 days) x 86,400 + 64,800
MOMENT = 19_874 * 86_400 + 18 * 3_600


def read(values, **settings):
    report = DataReport()
    series = values if isinstance(values, pd.Series) else pd.Series(values)
    times, known, kind = parse_times(series, report=report, **settings)
    assert times.dtype == np.int64 and known.dtype == np.bool_
    return times.tolist(), known.tolist(), kind, report.notes[-1]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (MOMENT, "seconds since 1970"),
        (MOMENT * 1_000 + 999, "milliseconds since 1970"),
        (MOMENT * 10**6, "microseconds since 1970"),
        (MOMENT * 10**9 + 1, "nanoseconds since 1970"),
        (MOMENT + 0.75, "seconds since 1970"),
        (str(MOMENT), "seconds since 1970"),
        ("2024-05-31 18:00:00", "dates"),
        ("2024-05-31T18:00:00Z", "dates"),
        ("2024-05-31T20:00:00+02:00", "dates"),
        ("31.05.2024 18:00", "dates"),
        ("31/05/2024 18:00", "dates"),
        ("31.05.24 18:00", "dates"),
        ("05/31/2024 18:00", "dates"),
        ("2024/5/31 18:00", "dates"),
        ("2024年5月31日 18:00", "dates"),
        ("May 31, 2024 6:00 PM", "dates"),
        ("05/31/2024 18:00:00.123", "dates"),
        ("5/31/2024 6:00:00.123 PM", "dates"),
        ("31.05.2024 18:00:00.123", "dates"),
        ("2024-05-31 18:00:00,123", "dates"),
        ("Fri, 31 May 2024 18:00:00.5 GMT", "dates"),
        ("202405311800", "dates written as numbers (YYYYMMDDHHMM)"),
        (202405311800, "dates written as numbers (YYYYMMDDHHMM)"),
        ("20240531180000", "dates written as numbers (YYYYMMDDHHMMSS)"),
        (20240531180000, "dates written as numbers (YYYYMMDDHHMMSS)"),
        (20240531180000.0, "dates written as numbers (YYYYMMDDHHMMSS)"),
        (pd.Timestamp("2024-05-31 18:00"), "dates"),
        (pd.Timestamp("2024-05-31 20:00", tz="Europe/Berlin"), "dates"),
        (datetime.datetime(2024, 5, 31, 18, 0), "dates"),
    ],
)
def test_one_moment_however_it_is_written(value, said):
    times, known, kind, note = read([value, value])
    assert times == [MOMENT, MOMENT] and known == [True, True] and kind == "time"
    assert note == f"timestamps of interactions: read as {said}, 2024-05-31 to 2024-05-31 (UTC)"


def test_dates_as_numbers_and_plain_dates():
    midnight = MOMENT - 18 * 3_600
    assert read([20240531, 20240531])[0] == [midnight, midnight]
    assert read(pd.Series([datetime.date(2024, 5, 31)]))[0] == [midnight]
    assert read(pd.Series(pd.PeriodIndex(["2024-05-31"], freq="D")))[0] == [midnight]


def test_a_few_numbers_that_are_no_date_are_dirt_beside_many_dates():
    times, known, kind, _ = read([202405311800] * 198 + [0, 202405319999])
    assert times[0] == MOMENT and known == [True] * 198 + [False] * 2 and kind == "time"
    # 220,000,000,000 ms are in 1976, and there is no month 0
    assert read([202405311800] * 9 + [220_000_000_000] * 9)[0][0] == 202_405_311


def test_small_whole_numbers_are_positions():
    times, known, kind, note = read([3, 0, 17])
    assert times == [3, 0, 17] and all(known) and kind == "position"
    assert "plain positions, 0 to 17" in note


def test_a_unit_that_is_given_is_taken():
    assert read([5_000_000_000], time_unit="s")[0] == [5_000_000_000]
    # 1e8 ms are 100,000 s, a day after 1970: under "auto" these are seconds of 1973, told "ms" they are refused
    with pytest.raises(DataError, match="read as milliseconds gives 100000 seconds.*pass another time_unit"):
        read([10**8], time_unit="ms")
    assert read([20240531, 20240601], time_unit="position")[2] == "position"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(10**8, 7 * 10**9), min_size=1, max_size=20), st.sampled_from([("s", 1), ("ms", 1_000)]))
def test_numbers_come_back_in_seconds(moments, unit):
    name, factor = unit
    assert read([moment * factor for moment in moments], time_unit=name)[0] == moments
    assert read(pd.to_datetime(pd.Series(moments), unit="s"))[0] == moments


def test_unreadable_values_are_unknown_not_zero():
    _, known, kind, _ = read(["2024-05-31", "soon", None, "", "2024-06-01"])
    assert known == [True, False, False, False, True] and kind == "time"
    assert read([MOMENT, np.nan, np.inf])[1] == [True, False, False]
    assert read([MOMENT, 10**400, -(10**400)])[1] == [True, False, False]
    assert read([str(MOMENT), "n/a", str(MOMENT + 5)])[1] == [True, False, True]
    assert read(["2024-05-31", "0024-05-31", "3024-05-31"])[1] == [True, False, False]


def test_a_few_values_of_another_size_are_dirt_many_are_an_error():
    _, known, _, _ = read([MOMENT] * 199 + [0])
    assert sum(known) == 199 and not known[-1]
    with pytest.raises(DataError, match=f"mixes units: {MOMENT} beside {MOMENT * 1_000}.*bring all to one unit"):
        read([MOMENT, MOMENT, MOMENT * 1_000])


def test_day_and_month_are_told_apart_by_any_value_that_can_tell():
    # 03/04 alone may be either; 25/04 beside it says that days come first
    april_third, april_25th = (datetime.date(2024, 4, day) for day in (3, 25))
    seconds = [int(np.datetime64(day, "s").astype(np.int64)) for day in (april_third, april_25th)]
    assert read(["03/04/2024", "25/04/2024"])[0] == seconds
    assert read(["03.04.2024"])[0] == seconds[:1]  # with dots the day always comes first
    with pytest.raises(DataError, match="'03/04/2024'.*day/month or month/day.*write dates as 2024-12-31"):
        read(["03/04/2024"])


@pytest.mark.parametrize(
    ("third_of_june", "last_of_may"),
    [
        ("Mon 03/06/2024", "Fri 31/05/2024"),
        ("00:00 03/06/2024", "00:00:00.5 31/05/2024"),
        ("3 / 6 / 2024", "31 / 5 / 2024"),
        ("03 06 2024", "31 05 2024"),
        ("Mon 06/03/2024", "Fri 05/31/2024"),
        ("06.03.2024", "05.31.2024"),
    ],
)
def test_day_and_month_keep_their_order_in_a_column_wherever_the_date_stands(third_of_june, last_of_may):
    midnight = MOMENT - 18 * 3_600
    assert read([third_of_june, last_of_may])[0] == [midnight + 3 * 86_400, midnight]
    with pytest.raises(DataError, match="may be day/month or month/day and no value decides"):
        read([third_of_june.replace(".", "/")])


@pytest.mark.parametrize("stray", ["99/99/2024", "Fri 2024/05/31", "2024-05-31 18-30-00", "31 May 2024 18 30 00"])
def test_numbers_that_are_no_day_and_month_do_not_speak_for_an_order(stray):
    assert read(["31/05/2024 18:00", stray])[0][0] == MOMENT


def test_dates_of_both_orders_in_one_column_are_refused():
    message = "in interactions mixes day/month .'13/05/2024'. and month/day .'Fri 05/31/2024'.; write dates as 2024-12"
    with pytest.raises(DataError, match=message):
        read(["13/05/2024", "14/05/2024", "Fri 05/31/2024", "06/03/2024"])


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        (["soon", "later"], {}, "no timestamp in interactions can be read .first: 'soon'.*give seconds"),
        ([None, None], {}, "no timestamp in interactions can be read"),
        ([0.5, 1.5], {}, "holds fractions.*positions must be whole"),
        ([True, False], {}, "kind boolean .first: True.; give times or positions"),
        ([[1], [2]], {}, "kind mixed"),
        ([1j, 2j], {}, "kind complex"),
        (pd.to_timedelta([1, 2], unit="D"), {}, "kind timedelta"),
        (["24-05-31"], {}, "'24-05-31' in interactions has a year of two digits.*write dates as 2024-12-31"),
        (["5/31/24 10:00"], {}, "'5/31/24 10:00' in interactions has a year of two digits"),
        (["Fri 5/31/24"], {}, "has a year of two digits"),
        (["10:00", "11:30 PM"], {}, "no timestamp in interactions can be read"),
        (["May", "Monday", "May 2024"], {}, "no timestamp in interactions can be read"),
        ([1, 2], {"time_unit": "hours"}, "time_unit is 'hours'; it must be one of auto, s, ms"),
        (["2024-05-31"], {"time_unit": "s"}, "'2024-05-31'.*time_unit is 's'; pass time_unit='datetime'"),
        ([MOMENT], {"time_unit": "datetime"}, "holds numbers.*pass time_unit='s'"),
    ],
)
def test_errors_name_value_rule_and_remedy(values, settings, message):
    with pytest.raises(DataError, match=message):
        read(values, **settings)


def test_a_moment_with_half_an_emoji_is_no_date():
    with pytest.raises(DataError, match="at is .* which is no date between 1900 and 2200"):
        read_moment("half \ud83d", "time")


def test_the_input_is_not_changed():
    values = pd.Series([MOMENT] * 199 + [0])
    before = values.copy()
    read(values)
    pd.testing.assert_series_equal(values, before)
