from __future__ import annotations

import pandas as pd
import pytest

from llm_rerank.data.retail import clean_completejourney, clean_online_retail, grocery_titles
from llm_rerank.types import DataError, DataReport

LINE = {
    "invoice": "1",
    "stock_code": "10001",
    "description": "RED LAMP",
    "quantity": 2,
    "invoice_date": pd.Timestamp("2011-01-02 10:00"),
    "unit_price": 3.5,
    "customer_id": 7,
    "country": "France",
}


def lines(*changes):
    return pd.DataFrame([{**LINE, **change} for change in changes])


def test_every_dropped_line_is_counted_by_its_first_reason():
    raw = lines(
        {},
        {},  # an exact duplicate
        {"customer_id": None, "quantity": -1},
        {"invoice": "C2"},
        {"quantity": 0},
        {"unit_price": 0.0},
        {"stock_code": "POST"},
        {"stock_code": "m"},
        {"stock_code": "gift_0001_20"},
        {"stock_code": "85123A", "customer_id": 8},
    )
    before = raw.copy(deep=True)
    report = DataReport()
    interactions, items, users = clean_online_retail(raw, report)
    assert interactions["item_id"].tolist() == ["10001", "85123A"] and interactions["user_id"].tolist() == [7, 8]
    assert items["item_id"].tolist() == ["10001", "85123A"]
    assert users.to_dict("list") == {"user_id": [7, 8], "country": ["France", "France"]}
    assert report.dropped == {
        "customer unknown": 1,
        "cancellation (invoice C…)": 1,
        "quantity not above 0": 1,
        "price not above 0": 1,
        "exact duplicate of an earlier line": 1,
        "code is no good (postage, fees, discounts, vouchers)": 3,
    }
    pd.testing.assert_frame_equal(raw, before)


def test_title_and_price_are_the_first_seen_in_time_whatever_comes_later():
    early = {"invoice_date": pd.Timestamp("2011-01-01"), "description": None, "unit_price": 1.0}
    middle = {"invoice_date": pd.Timestamp("2011-02-01"), "description": " BLUE LAMP ", "unit_price": 2.0}
    late = [{"invoice": str(n), "invoice_date": pd.Timestamp("2011-03-01"), "unit_price": 9.0} for n in range(5)]
    interactions, items, _ = clean_online_retail(lines(*late, middle, early), DataReport())
    assert items.to_dict("records") == [{"item_id": "10001", "title": "BLUE LAMP", "price": 1.0}]
    assert interactions["price"].tolist() == [1.0, 2.0] + [9.0] * 5


def test_the_names_of_the_published_file_are_known_and_missing_ones_named():
    published = {
        "invoice": "InvoiceNo",
        "stock_code": "StockCode",
        "description": "Description",
        "quantity": "Quantity",
        "invoice_date": "InvoiceDate",
        "unit_price": "UnitPrice",
        "customer_id": "CustomerID",
        "country": "Country",
    }
    raw = lines({"invoice_date": "12/1/2010 8:26"}, {"invoice_date": "12/13/2010 8:26"}).rename(columns=published)
    interactions, items, _ = clean_online_retail(raw, DataReport())
    assert len(interactions) == 2 and items["title"].tolist() == ["RED LAMP"]
    with pytest.raises(DataError, match="the invoice lines have no column 'quantity'; use the file as published"):
        clean_online_retail(raw.drop(columns="Quantity"), DataReport())


PRODUCTS = pd.DataFrame(
    {
        "product_id": [1, 2, 3],
        "manufacturer_id": [69, 2, 2],
        "department": ["PASTRY", "GROCERY", "MISC"],
        "brand": ["Private", "National", "National"],
        "product_category": ["BREAD", "FRZN ICE", None],
        "product_type": ["BREAD:ITALIAN/FRENCH", "FRZN ICE", None],
        "package_size": ["16 OZ", None, None],
    }
)


def test_grocery_titles_say_what_is_known_and_nothing_twice():
    assert grocery_titles(PRODUCTS).tolist() == [
        "Bread, Bread: Italian/French, 16 OZ (Private)",
        "Frzn Ice (National)",
        "Misc (National)",
    ]


def test_baskets_become_purchases_at_shelf_prices():
    baskets = pd.DataFrame(
        {
            "household_id": [5, 5, 5, 6],
            "product_id": [2, 1, 99, 1],
            "quantity": [2, 0, 1, 1],
            "sales_value": [4.0, 0.0, 1.0, 3.0],
            "retail_disc": [1.0, 0.0, 0.0, 0.0],
            "coupon_disc": [0.5, 0.0, 0.0, 0.0],
            "coupon_match_disc": [0.2, 0.0, 0.0, 0.0],
            "transaction_timestamp": pd.to_datetime(["2017-01-02", "2017-01-01", "2017-01-01", "2017-01-01"]),
        }
    )
    report = DataReport()
    interactions, items = clean_completejourney(baskets, PRODUCTS, report)
    # (4.00 received + 1.00 card discount + 0.20 matched coupon) / 2 pieces = 2.60
    assert interactions["price"].tolist() == [3.0, pytest.approx(2.6)]
    assert interactions["user_id"].tolist() == [6, 5] and interactions["event"].tolist() == ["purchase", "purchase"]
    assert items["item_id"].tolist() == [1, 2] and items["price"].tolist() == [3.0, pytest.approx(2.6)]
    assert items["categories"].tolist() == [["PASTRY", "BREAD", "BREAD:ITALIAN/FRENCH"], ["GROCERY", "FRZN ICE"]]
    assert report.dropped == {"product not in the product table": 1, "quantity is 0 (a coupon or a correction)": 1}
