"""Rows in the published layouts, written for this test."""

from __future__ import annotations

import json

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.data.layouts import as_interactions, as_items
from llm_rerank.data.readers import read_interactions, read_items
from llm_rerank.data.schema import ITEM_COLUMNS, validate_interactions, validate_items
from llm_rerank.recommendation.planning import read_shop
from llm_rerank.types import DataReport


def lines(tmp_path, name, rows, dump=json.dumps):
    path = tmp_path / name
    path.write_text("\n".join(dump(row) for row in rows), encoding="utf-8")
    return path


REVIEW_2018 = {
    "overall": 4.0,
    "verified": True,
    "reviewerID": "A1",
    "asin": "B1",
    "style": {"Size:": " L"},
    "reviewText": "Works <b>well</b>.",
    "summary": "Good",
    "unixReviewTime": 1529193600,
}


def test_reviews_of_2014_and_2018(tmp_path):
    again = {**REVIEW_2018, "style": {"Size:": " M"}, "summary": "Very good"}
    silent = {**REVIEW_2018, "reviewerID": "A2", "overall": 1.0}
    del silent["reviewText"], silent["summary"]
    report = DataReport()
    frame = read_interactions(lines(tmp_path, "r.json", [REVIEW_2018, again, silent]), report=report)
    assert frame.to_dict("list") == {
        "user_id": ["A1", "A2"],
        "item_id": ["B1", "B1"],
        "timestamp": [1529193600, 1529193600],
        "event": ["rating", "rating"],
        "rating": [4.0, 1.0],
        "review": ["Good. Works <b>well</b>.", ""],
    }
    assert report.notes == ["interactions: Amazon reviews of 2014 or 2018"]
    assert report.dropped == {"review repeated (same user, item and time; the first is kept)": 1}


def test_reviews_of_2023_are_by_product_and_in_milliseconds(tmp_path):
    row = {
        "rating": 5.0,
        "title": "Lovely!",
        "text": "Warm light.",
        "images": [],
        "asin": "B1RED",
        "parent_asin": "B1",
        "user_id": "A1",
        "timestamp": 1588687728923,
        "helpful_vote": 0,
        "verified_purchase": True,
    }
    frame = read_interactions(lines(tmp_path, "r.jsonl", [row]))
    items = validate_items(pd.DataFrame({"item_id": ["B1"], "title": ["Lamp"]}))
    events = validate_interactions(frame, items)
    assert events.times.tolist() == [1588687728] and events.reviews.tolist() == ["Lovely! Warm light."]
    assert events.items.tolist() == [0] and events.ratings.tolist() == [5.0]


def test_metadata_of_2014_are_python_literals(tmp_path):
    row = {
        "asin": "B1",
        "title": "Kid's lamp",
        "description": "A <b>lamp</b>.",
        "price": 7.5,
        "imUrl": "http://x/1.jpg",
        "brand": "Lumo",
        "categories": [["Home", "Lamps"], ["Gifts"]],
        "salesRank": {"Home": 12},
        "related": {"also_bought": ["B2"]},
    }
    items = validate_items(read_items(lines(tmp_path, "m.json", [row], dump=repr)))
    assert items.frame.to_dict("records") == [
        {
            "item_id": "B1",
            "title": "Kid's lamp",
            "description": "A lamp.",
            "brand": "Lumo",
            "categories": "Home > Lamps",
            "price": 7.5,
            "specs": "",
            "image": "http://x/1.jpg",
        }
    ]


def test_metadata_of_2018_are_dirty(tmp_path):
    row = {
        "asin": "B1",
        "title": "Lamp &amp; shade",
        "description": ["<p>One.</p>", "Two."],
        "feature": ["Three."],
        "category": ["Home", "Home", "Lamps", "Warm light for long evenings, up to 40 % less power than before"],
        "price": "$1,299.00",
        "brand": "Lumo",
        "image": ["a.jpg", "b.jpg"],
        "details": {"\n Weight: ": "3 ounces (", "Best Sellers Rank: ": "#3 in Lamps"},
        "main_cat": "Tools",
        "rank": ["#3"],
        "also_buy": ["B2"],
        "also_view": ["B3"],
        "similar_item": "",
        "date": "5 star",
        "fit": "",
        "tech1": "",
        "tech2": "",
        "imageURL": [],
        "imageURLHighRes": [],
    }
    script = {
        **row,
        "asin": "B2",
        "title": "var aPageStart = (new Date()).getTime();",
        "price": ".a-box{}",
        "category": [],
    }
    report = DataReport()
    items = validate_items(read_items(lines(tmp_path, "m.json", [row, script, row]), report=report), report=report)
    first, second = items.frame.to_dict("records")
    assert first == {
        "item_id": "B1",
        "title": "Lamp & shade",
        "description": "One. Two. Three.",
        "brand": "Lumo",
        "categories": "Home > Lamps",
        "price": 1299.0,
        "specs": '{"Weight": "3 ounces"}',
        "image": "a.jpg",
    }
    assert second["title"] == "" and second["categories"] == "Tools" and pd.isna(second["price"])
    assert report.dropped == {"items: item_id is repeated (the first row is kept)": 1}
    assert any("1 titles are scripts" in note for note in report.notes)
    assert any("1 prices are unreadable" in note for note in report.notes)


def test_metadata_of_2023_leave_out_what_the_future_knows(tmp_path):
    row = {
        "main_category": "Home",
        "title": "Lamp",
        "average_rating": 4.8,
        "rating_number": 1000,
        "features": ["Warm."],
        "description": ["A lamp."],
        "price": 12.0,
        "images": [{"thumb": "t.jpg", "large": "l.jpg", "hi_res": None}],
        "store": "Lumo",
        "categories": ["Home", "Lamps"],
        "details": {"Color": "Red", "Best Sellers Rank": {"Lamps": 3}},
        "parent_asin": "B1",
        "bought_together": None,
        "videos": [],
        "subtitle": None,
        "author": None,
    }
    frame = read_items(lines(tmp_path, "m.jsonl", [row]))
    record = validate_items(frame).frame.to_dict("records")[0]
    assert record["brand"] == "Lumo" and record["image"] == "l.jpg" and record["specs"] == '{"Color": "Red"}'
    assert record["description"] == "A lamp. Warm." and tuple(record) == ITEM_COLUMNS


@pytest.mark.parametrize("form", ["parquet", "polars"])
def test_metadata_of_2023_in_columns_as_parquet_and_polars_hold_them(tmp_path, form):
    row = {
        "parent_asin": "P",
        "title": "Doll",
        "main_category": "Toys",
        "store": "Lumo",
        "price": "12.99",
        "features": ["Soft.", "Red."],
        "description": ["A doll."],
        "categories": ["Toys", "Dolls", "Big"],
        "details": '{"Weight": "3 ounces", "Best Sellers Rank": "5"}',
        "images": {"hi_res": [None, "h2"], "large": ["l1", "l2"], "thumb": ["t1", "t2"], "variant": ["MAIN", "PT"]},
    }
    nested = {**row, "parent_asin": "Q", "images": {**row["images"], "hi_res": [], "large": ["l9"]}}
    table = pa.Table.from_pylist([row, nested])
    pq.write_table(table, tmp_path / "meta.parquet")
    items = validate_items(tmp_path / "meta.parquet" if form == "parquet" else pl.from_arrow(table))
    first, second = items.frame.to_dict("records")
    assert first["description"] == "A doll. Soft. Red." and first["categories"] == "Toys > Dolls > Big"
    assert first["specs"] == '{"Weight": "3 ounces"}' and first["price"] == 12.99
    assert (first["image"], second["image"]) == ("l1", "l9")  # in the largest size that the first image has


def test_movielens(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n", encoding="utf-8")
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n31,"Mind, The (1995)",Drama|Comedy\n32,Silence,(no genres listed)\n', encoding="utf-8"
    )
    items = validate_items(tmp_path / "movies.csv")
    assert items.frame["title"].tolist() == ["Mind, The (1995)", "Silence"]
    assert items.frame["categories"].tolist() == ["Drama > Comedy", ""]
    events = validate_interactions(tmp_path / "ratings.csv", items)
    assert events.ratings.tolist() == [2.5] and events.items.tolist() == [0] and events.user_ids.tolist() == [1]


RATINGS = pd.DataFrame({"userId": [1, 2], "movieId": [10, 10], "rating": [4.0, 5.0], "timestamp": [1_700_000_000] * 2})
MOVIES = pd.DataFrame({"movieId": [10], "title": ["Silence"], "genres": ["Drama"]})
REVIEWS_2023 = pd.DataFrame(
    {
        "user_id": ["u", "v"],
        "parent_asin": ["P", "P"],
        "asin": ["A1", "A2"],
        "rating": [4.0, 5.0],
        "timestamp": [1_700_000_000_000, 1_700_000_000_100],
        "text": ["Good", "Well"],
    }
)


def shop_of(events, items, columns=None):
    """Read as ``fit`` and ``check`` do: ids of users and items, the items of the events, reviews, notes."""
    report = DataReport()
    read, catalogue, _, _ = read_shop(RerankerConfig(encoder=None), events, items, None, None, columns, "auto", report)
    return read.user_ids.tolist(), catalogue.ids[read.items].tolist(), read.reviews.tolist(), report.notes


@pytest.mark.parametrize(
    "columns", [None, {"userId": "user_id"}, {"userId": "user_id", "movieId": "item_id", "genres": "categories"}]
)
def test_a_mapping_that_says_what_the_layout_says_changes_nothing(columns):
    users, taken, _, notes = shop_of(RATINGS, MOVIES, columns)
    assert (users, taken) == ([1, 2], [10, 10]) and "interactions: MovieLens ratings" in notes
    told = {given: ours for given, ours in (columns or {}).items() if given in RATINGS}
    assert as_interactions(RATINGS, DataReport(), told)["item_id"].tolist() == [10, 10]
    told = {given: ours for given, ours in (columns or {}).items() if given in MOVIES}
    assert as_items(MOVIES, DataReport(), told)["categories"].tolist() == ["Drama"]


def test_a_mapping_that_says_another_thing_than_the_layout_is_followed(tmp_path):
    items = pd.DataFrame({"asin": ["A1", "A2"], "title": ["red", "blue"]})
    columns = {"asin": "item_id", "text": "review"}
    assert shop_of(REVIEWS_2023, items, columns)[:3] == (["u", "v"], ["A1", "A2"], ["Good", "Well"])
    path = tmp_path / "reviews.csv"
    REVIEWS_2023.to_csv(path, index=False)
    assert read_interactions(path, columns=columns)["item_id"].tolist() == ["A1", "A2"]
    by_product = pd.DataFrame({"parent_asin": ["P"], "title": ["lamp"]})
    same = shop_of(REVIEWS_2023, by_product, {"parent_asin": "item_id"})
    assert same[:3] == (["u", "v"], ["P", "P"], ["Good", "Well"])


REVIEWS_2018 = pd.DataFrame([REVIEW_2018])
META_2018 = pd.DataFrame({"asin": ["B1"], "title": ["Lamp"]})
META_2023 = META_2018.rename(columns={"asin": "parent_asin"})


@pytest.mark.parametrize("column", ["event", "quantity", "weight", "query"])
def test_events_with_a_column_that_published_ones_have_not_are_a_shop_s_own(column):
    for table in (RATINGS, REVIEWS_2018, REVIEWS_2023):
        report = DataReport()
        own = table.assign(**{column: 2})
        pd.testing.assert_frame_equal(as_interactions(own, report), own)
        assert report.notes == []
    named = as_interactions(RATINGS.assign(event="view"), DataReport(), {"userId": "user_id", "movieId": "item_id"})
    assert named[["user_id", "item_id", "event"]].to_numpy().tolist() == [[1, 10, "view"], [2, 10, "view"]]


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (RATINGS, "user_id"),
        (REVIEWS_2018, "review"),
        (REVIEWS_2023, "review"),
        (MOVIES, "categories"),
        (META_2018, "specs"),
        (META_2023, "specs"),
        (META_2023, "brand"),
        (META_2023, "image"),
    ],
)
def test_a_column_of_ours_that_a_layout_would_lose_makes_a_table_a_shop_s_own(table, column):
    own = table.assign(**{column: "mine"})
    read = as_items if "title" in table else as_interactions
    pd.testing.assert_frame_equal(read(own, DataReport()), own)


@pytest.mark.parametrize("columns", [None, {"asin": "item_id"}])
def test_a_shop_s_own_columns_of_items_pass_through_beside_published_ones(columns):
    own = {"color": "red", "author": "Ann", 7: 1, "image_vector": [1.0, 2.0], "category": "c", "imUrl": "u.jpg"}
    published = {"categories": "Home", "image": "i.jpg", "rank": 3, "average_rating": 4.5, "date": "May", "tech1": "x"}
    row = {"asin": "B1", "title": "Lamp", "price": 2.0, **own, **published}
    (read,) = as_items(pd.DataFrame([row]), DataReport(), columns).to_dict("records")
    assert {name: read[name] for name in own} == own
    assert (read["item_id"], read["categories"], read["image"]) == ("B1", ["Home"], "i.jpg")
    assert len(read) == 8 + len(own)  # of the published ones that are not read, none


@pytest.mark.parametrize("mark", [" > ", "|"])
def test_a_long_path_of_categories_in_one_text_keeps_its_parts(mark):
    names = ["Home &amp; Garden", "Lamps", "Lamps", "Reading lamps and lights", "x" * 61, "Brass"]
    items = validate_items(META_2018.assign(categories=mark.join(names)))
    assert items.frame["categories"].tolist() == ["Home & Garden > Lamps > Reading lamps and lights > Brass"]


def test_a_shop_s_own_ids_and_kinds_of_event_stay():
    own = REVIEWS_2023.assign(item_id=["S1", "S2"], event="purchase")
    items = pd.DataFrame({"item_id": ["S1", "S2"], "parent_asin": ["P", "P"], "title": ["red", "blue"]})
    users, taken, _, notes = shop_of(own, items)
    assert (users, taken) == (["u", "v"], ["S1", "S2"])
    assert notes[-1] == "targets are events of kind purchase: 2 of 2"
    ratings, movies = RATINGS.assign(item_id=[7, 8]), MOVIES.assign(item_id=7)
    assert as_interactions(ratings, DataReport())["item_id"].tolist() == [7, 8]
    assert as_items(movies, DataReport())["item_id"].tolist() == [7]
