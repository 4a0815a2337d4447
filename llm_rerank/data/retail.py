"""Two years of real shopping made ready: UCI Online Retail, and the Complete Journey of a grocer's households.

An item's title and price are the first seen in time: the catalogue of any cut-off date then holds nothing that only
later sales could tell, and a code that changes its description later does not carry the new one into the past.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from llm_rerank.data.times import parse_times
from llm_rerank.types import DataError, DataReport

ONLINE_RETAIL_COLUMNS = (
    "invoice",
    "stock_code",
    "description",
    "quantity",
    "invoice_date",
    "unit_price",
    "customer_id",
)
ONLINE_RETAIL_NAMES = {
    "InvoiceNo": "invoice",
    "Invoice": "invoice",
    "StockCode": "stock_code",
    "Description": "description",
    "Quantity": "quantity",
    "InvoiceDate": "invoice_date",
    "UnitPrice": "unit_price",
    "Price": "unit_price",
    "CustomerID": "customer_id",
    "Customer ID": "customer_id",
    "Country": "country",
}
"""Names in the published files of Online Retail and Online Retail II."""

NO_GOODS = ("POST", "DOT", "M", "C2", "D", "S", "B", "CRUK", "BANK CHARGES", "AMAZONFEE")
"""Stock codes of postage, carriage, manual entries, discounts, samples, debts and fees; vouchers start with GIFT_."""


def clean_online_retail(raw: pd.DataFrame, report: DataReport) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Turn invoice lines to interactions, items and users; every dropped line is counted by its first reason.

    Kept are lines with a known customer, no cancellation, quantity and price above 0, no exact duplicate of an
    earlier line, and a code that is goods.
    Raises DataError where a column is missing.
    """
    raw = raw.rename(columns=ONLINE_RETAIL_NAMES)
    absent = [column for column in ONLINE_RETAIL_COLUMNS if column not in raw.columns]
    if absent:
        raise DataError(f"the invoice lines have no column {absent[0]!r}; use the file as published")
    codes = raw["stock_code"].astype(str).str.strip()
    upper = codes.str.upper()
    keep = np.ones(len(raw), dtype=bool)
    for reason, broken in (
        ("customer unknown", raw["customer_id"].isna()),
        ("cancellation (invoice C…)", raw["invoice"].astype(str).str.startswith("C")),
        ("quantity not above 0", ~(raw["quantity"] > 0)),
        ("price not above 0", ~(raw["unit_price"] > 0)),
        ("exact duplicate of an earlier line", raw.duplicated()),
        ("code is no good (postage, fees, discounts, vouchers)", upper.isin(NO_GOODS) | upper.str.startswith("GIFT_")),
    ):
        breaks = broken.to_numpy(dtype=bool)
        report.drop(reason, int((keep & breaks).sum()))
        keep &= ~breaks
    rows = raw[keep].assign(stock_code=codes[keep])
    times, _, _ = parse_times(rows["invoice_date"], name="invoices", report=report)
    rows = rows.iloc[np.argsort(times, kind="stable")]
    interactions = pd.DataFrame(
        {
            "user_id": rows["customer_id"].astype("int64"),
            "item_id": rows["stock_code"],
            "timestamp": rows["invoice_date"],
            "event": "purchase",
            "quantity": rows["quantity"],
            "price": rows["unit_price"],
        }
    ).reset_index(drop=True)
    by_code = rows.groupby("stock_code", sort=False)[["description", "unit_price"]].first()  # first that is not missing
    items = pd.DataFrame(
        {
            "item_id": by_code.index.to_numpy(),
            "title": by_code["description"].fillna("").str.strip().to_numpy(),
            "price": by_code["unit_price"].to_numpy(),
        }
    )
    users = pd.DataFrame({"user_id": interactions["user_id"]})
    if "country" in rows:
        users["country"] = rows["country"].to_numpy()
    users = users.drop_duplicates("user_id", ignore_index=True)
    report.notes.append("an item's title and price are the first seen in time; no later sale leaks into them")
    return interactions, items, users


def clean_completejourney(
    transactions: pd.DataFrame, products: pd.DataFrame, report: DataReport
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Turn basket lines and the product table to interactions and items.

    Items are the products bought at least once; lines of quantity 0 (coupons) and of unlisted products are dropped.
    """
    listed = transactions["product_id"].isin(products["product_id"])
    nothing = transactions["quantity"] <= 0
    report.drop("product not in the product table", int((~listed).sum()))
    report.drop("quantity is 0 (a coupon or a correction)", int((listed & nothing).sum()))
    rows = transactions[listed & ~nothing].sort_values("transaction_timestamp", kind="stable")
    # The shelf price: the household's own discounts are added back to what the shop received.
    shelf = rows["sales_value"] + rows["retail_disc"] + rows["coupon_match_disc"]
    interactions = pd.DataFrame(
        {
            "user_id": rows["household_id"],
            "item_id": rows["product_id"],
            "timestamp": rows["transaction_timestamp"],
            "event": "purchase",
            "quantity": rows["quantity"],
            "price": shelf / rows["quantity"],
        }
    ).reset_index(drop=True)
    first_price = interactions[interactions["price"] > 0].groupby("item_id")["price"].first()
    bought = products[products["product_id"].isin(interactions["item_id"])].reset_index(drop=True)
    paths = bought[["department", "product_category", "product_type"]].fillna("").itertuples(index=False)
    items = pd.DataFrame(
        {
            "item_id": bought["product_id"],
            "title": grocery_titles(bought),
            "brand": bought["brand"],
            "categories": [[part for part in dict.fromkeys(path) if part] for path in paths],
            "price": bought["product_id"].map(first_price),
            "manufacturer_id": bought["manufacturer_id"],
        }
    )
    report.notes.append(
        f"items are the {len(bought):,} of {len(products):,} products bought at least once; an item's price is the "
        "first shelf price seen, no later sale leaks into it"
    )
    return interactions, items


def grocery_titles(products: pd.DataFrame) -> pd.Series:
    """Give each product a title from what is known: "Bread, Bread: Italian/French, 16 OZ (Private)"."""
    columns = {name: products[name].fillna("").str.strip() for name in ("product_category", "product_type")}
    category, kind = (text.str.title().str.replace(r":(?=\S)", ": ", regex=True) for text in columns.values())
    department = products["department"].fillna("").str.strip().str.title()
    repeats = (category == kind) | (kind == "")
    title = category.where(category != "", department)
    title += np.where(repeats, "", ", ") + kind.mask(repeats, "")
    for column, before, after in (("package_size", ", ", ""), ("brand", " (", ")")):
        text = products[column].fillna("").str.strip()
        title += (before + text + after).mask(text == "", "")
    return title
