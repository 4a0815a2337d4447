"""Rows in the published layouts, written for this test."""

from __future__ import annotations

import json

import pandas as pd

from llm_rerank.data.readers import read_interactions, read_items
from llm_rerank.data.schema import validate_interactions, validate_items
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
    }
    frame = read_items(lines(tmp_path, "m.jsonl", [row]))
    assert "average_rating" not in frame.columns and "rating_number" not in frame.columns
    record = validate_items(frame).frame.to_dict("records")[0]
    assert record["brand"] == "Lumo" and record["image"] == "l.jpg" and record["specs"] == '{"Color": "Red"}'
    assert record["description"] == "A lamp. Warm."


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
