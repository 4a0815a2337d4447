"""Columns of published data, recognised by name and given ours: Amazon reviews 2014, 2018 and 2023, MovieLens.

What only the future could know stays out of items: average ratings, sales ranks, "also bought", "also viewed".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from llm_rerank.data.values import clean_text, join_texts
from llm_rerank.types import DataReport

LONGEST_CATEGORY = 60  # characters; Amazon's category lists of 2018 hold whole sentences from the product page
FUTURE_SPECS = ("best sellers rank", "amazon best sellers rank", "customer reviews")


def as_interactions(frame: pd.DataFrame, report: DataReport) -> pd.DataFrame:
    """Give events of a published layout our columns; any other frame comes back as it is."""
    have = set(frame.columns)
    if {"reviewerID", "asin", "unixReviewTime"} <= have:
        report.notes.append("interactions: Amazon reviews of 2014 or 2018")
        return _reviews(frame, "reviewerID", "asin", "overall", "unixReviewTime", "summary", "reviewText", report)
    if {"user_id", "parent_asin", "rating", "timestamp"} <= have:
        # Metadata of 2023 are by parent_asin, the product; asin is one size or colour of it.
        report.notes.append("interactions: Amazon reviews of 2023")
        return _reviews(frame, "user_id", "parent_asin", "rating", "timestamp", "title", "text", report)
    if {"userId", "movieId", "rating", "timestamp"} <= have:
        report.notes.append("interactions: MovieLens ratings")
        names = {"userId": "user_id", "movieId": "item_id"}
        return frame.rename(columns=names).assign(event="rating")
    return frame


def as_items(frame: pd.DataFrame, report: DataReport) -> pd.DataFrame:
    """Give items of a published layout our columns; any other frame comes back as it is."""
    have = set(frame.columns)
    if {"parent_asin", "title"} <= have:
        report.notes.append("items: Amazon metadata of 2023")
        return _metadata(frame, "parent_asin", "store", "categories", "main_category", "images", "features", report)
    if {"asin", "title"} <= have and "item_id" not in have:
        report.notes.append("items: Amazon metadata of 2014 or 2018")
        newer = "category" in have
        categories, image = ("category", "image") if newer else ("categories", "imUrl")
        return _metadata(frame, "asin", "brand", categories, "main_cat", image, "feature", report)
    if {"movieId", "title", "genres"} <= have:
        report.notes.append("items: MovieLens movies")
        genres = frame["genres"].replace("(no genres listed)", "")
        return frame.drop(columns="genres").rename(columns={"movieId": "item_id"}).assign(categories=genres)
    return frame


def _reviews(
    frame: pd.DataFrame, user: str, item: str, rating: str, time: str, headline: str, body: str, report: DataReport
) -> pd.DataFrame:
    events = pd.DataFrame(
        {
            "user_id": frame[user],
            "item_id": frame[item],
            "timestamp": frame[time],
            "event": "rating",
            "rating": frame[rating],
            "review": list(_review_texts(frame, headline, body)),
        }
    )
    # Of one item in two sizes, or word for word: one purchase told twice.
    repeated = events.duplicated(["user_id", "item_id", "timestamp"])
    report.drop("review repeated (same user, item and time; the first is kept)", int(repeated.sum()))
    return events[~repeated].reset_index(drop=True)


def _review_texts(frame: pd.DataFrame, headline: str, body: str) -> Iterator[str]:
    heads = frame[headline] if headline in frame else [""] * len(frame)
    bodies = frame[body] if body in frame else [""] * len(frame)
    for head, text in zip(map(join_texts, heads), map(join_texts, bodies), strict=True):
        if head.rstrip() and text.strip() and head.rstrip()[-1] not in ".!?…。！？":
            head = head.rstrip() + "."
        yield f"{head} {text}".strip()


def _metadata(
    frame: pd.DataFrame,
    item: str,
    brand: str,
    categories: str,
    main: str,
    image: str,
    features: str,
    report: DataReport,
) -> pd.DataFrame:
    def column(name: str) -> pd.Series:
        return frame[name] if name in frame else pd.Series("", index=frame.index, dtype=object)

    titles = column("title").map(join_texts)
    scripts = titles.str.contains("getTime()", regex=False)
    if scripts.any():
        report.notes.append(f"{scripts.sum():,} titles are scripts of the product page; taken as unknown")
    items = pd.DataFrame(
        {
            "item_id": frame[item],
            "title": titles.mask(scripts, ""),
            "description": [
                join_texts([*_texts(text), *_texts(more)])
                for text, more in zip(column("description"), column(features), strict=True)
            ],
            "brand": column(brand),
            "categories": [
                _path(path, join_texts(fallback))
                for path, fallback in zip(column(categories), column(main), strict=True)
            ],
            "price": column("price"),
            "specs": column("details").map(_past_specs),
            "image": column(image),
        }
    )
    report.notes.append("items: average ratings, sales ranks and also-bought lists are left out; they know the future")
    return items


def _texts(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _path(value: Any, fallback: str) -> list[str]:
    """Clean one category path: the main one of several, no sentences, no name twice."""
    parts = _texts(value)
    if parts and isinstance(parts[0], (list, tuple)):
        parts = list(parts[0])
    names = (clean_text(join_texts(part)) for part in parts)
    kept = list(dict.fromkeys(name for name in names if name and len(name) <= LONGEST_CATEGORY))
    main = clean_text(fallback)
    return kept or ([main] if main and len(main) <= LONGEST_CATEGORY else [])


def _past_specs(value: Any) -> Any:
    if not isinstance(value, dict):
        return ""
    return {name: text for name, text in value.items() if str(name).strip(" :\n").lower() not in FUTURE_SPECS}
