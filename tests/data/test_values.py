from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_rerank.data.values import (
    category_column,
    clean_text,
    image_column,
    is_missing,
    parse_prices,
    plain,
    plain_column,
    specs_column,
    text_column,
    without_categories,
)


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("12.5", 12.5),
        ("$1,299.00", 1299.0),
        ("12,50 €", 12.5),
        ("1.299,00 EUR", 1299.0),
        ("CHF 1'299.50", 1299.5),
        ("1 299,00 zł", 1299.0),
        ("1\u202f299,00\u00a0€", 1299.0),
        ("1.299.000", 1299000.0),
        ("1,299,000.5", 1299000.5),
        ("US$ 9.99", 9.99),
        ("R$ 1.234,56", 1234.56),
        ("￥129", 129.0),
        ("129元", 129.0),
        ("Rs. 499", 499.0),
        ("49.-", 49.0),
        ("£.99", 0.99),
        ("0.125", 0.125),
        ("0,125", 0.125),
        ("from $5.99", 5.99),
        ("$5.99 - $12.00", 5.99),
    ],
)
def test_prices_as_shops_write_them(text, price):
    prices, refused = parse_prices(pd.Series([text]))
    assert prices.tolist() == [price] and not refused[0]


def test_a_lone_mark_before_three_digits_follows_the_column():
    assert parse_prices(pd.Series(["1,299"]))[0].tolist() == [1299.0]
    assert parse_prices(pd.Series(["1,299", "2,5", "3,75"]))[0].tolist() == [1.299, 2.5, 3.75]
    assert parse_prices(pd.Series(["1.299"]))[0].tolist() == [1.299]
    assert parse_prices(pd.Series(["1.299", "12,50"]))[0].tolist() == [1299.0, 12.5]
    assert parse_prices(pd.Series(["1,299", "12.50"]))[0].tolist() == [1299.0, 12.5]


def test_what_is_no_price_is_refused_and_what_is_empty_is_only_unknown():
    values = pd.Series(["free", ".a-box-inner{background-color:#fff}", "-5", "0", "12k", "1万", "", None, "7"])
    prices, refused = parse_prices(values)
    assert refused.tolist() == [True] * 6 + [False] * 3
    assert np.isnan(prices[:8]).all() and prices[8] == 7.0


def test_numeric_prices_and_no_change_of_the_input():
    values = pd.Series([1.5, np.nan, -2.0, np.inf, 0.0])
    prices, refused = parse_prices(values)
    assert prices[0] == 1.5 and np.isnan(prices[1:]).all()
    assert refused.tolist() == [False, False, True, True, True]
    assert values.tolist()[2:] == [-2.0, np.inf, 0.0]


@given(st.integers(1, 99_999_999))
def test_cents_come_back_from_both_conventions(cents):
    whole, rest = divmod(cents, 100)
    english = f"${whole:,}.{rest:02d}"
    german = english[1:].translate(str.maketrans(",.", ".,")) + " €"
    for text in (english, german):
        assert parse_prices(pd.Series([text]))[0][0] == pytest.approx(cents / 100, rel=1e-12)


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("<b>Bold</b> &amp; <i>brave</i>", "Bold & brave"),
        ("one<br/>two", "one two"),
        ("H<sub>2</sub>O <a href='x'>here</a>.", "H2O here."),
        ("<script>var x = '<p>';</script>Lamp", "Lamp"),
        ("<!-- note -->Lamp", "Lamp"),
        ("&lt;p&gt;Lamp&lt;/p&gt;", "Lamp"),
        ("size < 5 cm and > 2 cm", "size < 5 cm and > 2 cm"),
        ("I <3 it", "I <3 it"),
        ("  many \n\t blanks ", "many blanks"),
    ],
)
def test_html_goes_and_text_stays(dirty, clean):
    assert clean_text(dirty) == clean


def test_text_columns_join_lists_and_never_hold_nan():
    values = pd.Series([["First.", None, "Second."], np.nan, None, "plain", 7])
    assert text_column(values).tolist() == ["First. Second.", "", "", "plain", "7"]
    assert text_column(pd.Series(["a", None, "a"])).tolist() == ["a", "", "a"]


def test_categories_of_pandas_are_the_values_that_they_stand_for():
    for values, kind in (([2, None], "Int64"), ([True, None], "boolean"), ([2, 3], "int64"), ([2.5, None], "float64")):
        plain = without_categories(pd.Series(pd.Categorical(values)))
        assert plain.dtype == kind and [None if pd.isna(value) else value for value in plain] == values
    assert plain_column(pd.Series(pd.Categorical([4, None]))).dtype == "Int64"


def test_prices_in_lists_and_mappings():
    prices, refused = parse_prices(pd.Series([["$12"], {"amount": 12.5, "currency": "EUR"}, [1, 2], None, "3.50"]))
    np.testing.assert_array_equal(prices, [12, np.nan, np.nan, np.nan, 3.5])
    assert refused.tolist() == [False, True, True, False, False]


def test_categories_of_any_form_become_one_path():
    values = pd.Series([["Home", "Lamps &amp; Light"], [["Toys", "Dolls"], ["Gifts"]], "A|B", "A > B", None, []])
    expected = ["Home > Lamps & Light", "Toys > Dolls", "A > B", "A > B", "", ""]
    assert category_column(values).tolist() == expected


@pytest.mark.parametrize("kind", [set, frozenset])
def test_sets_read_the_same_in_every_process(kind):
    words = [f"word {number}" for number in range(10)]
    values = pd.Series([kind(reversed(words))], dtype=object)
    assert text_column(values).tolist() == [" ".join(words)]
    assert category_column(values).tolist() == [" > ".join(words)]
    assert specs_column(values).tolist() == plain_column(values).tolist() == [", ".join(words)]
    assert image_column(values).tolist() == words[:1] and plain(values[0]) == words


def test_specs_that_are_no_mapping_become_plain_text():
    values = pd.Series([["cotton", "red"], '["cotton", 2]', 5, "5", 2.5, "{'a': 1", "9" * 5_000, "[" * 100_000])
    expected = ["cotton, red", "cotton, 2", "5", "5", "2.5", "{'a': 1", "9" * 5_000, "[" * 100_000]
    assert specs_column(values).tolist() == expected
    assert specs_column(specs_column(values)).tolist() == expected  # a saved catalogue is read again


def test_specs_become_json_text():
    values = pd.Series(
        [{"\n Weight: ": "3 oz (", "empty": "", "n": 2}, '{"a": ["x", "y"]}', "loose <b>text</b>", None, {}]
    )
    result = specs_column(values).tolist()
    assert json.loads(result[0]) == {"Weight": "3 oz", "n": "2"}
    assert json.loads(result[1]) == {"a": "x, y"}
    assert result[2:] == ["loose text", "", ""]


def test_the_first_image_counts():
    values = pd.Series([["", "a.jpg", "b.jpg"], [{"thumb": "t.jpg", "hi_res": None, "large": "l.jpg"}], "c.jpg", None])
    assert image_column(values).tolist() == ["a.jpg", "l.jpg", "c.jpg", ""]


def test_missing_is_missing_and_containers_are_not():
    assert all(map(is_missing, [None, np.nan, float("nan"), pd.NA, pd.NaT]))
    assert not any(map(is_missing, [0, "", [], {}, np.array([np.nan]), "nan"]))
