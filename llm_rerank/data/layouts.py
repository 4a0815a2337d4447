"""Columns of published data, recognised by name and given ours: Amazon reviews 2014, 2018 and 2023, MovieLens.

What only the future could know stays out of items: average ratings, sales ranks, "also bought", "also viewed".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from llm_rerank.data.columns import map_columns
from llm_rerank.data.values import category_names, clean_text, join_texts, mapping_of_text, parts_of
from llm_rerank.types import DataReport

LONGEST_CATEGORY = 60  # characters; Amazon's category lists of 2018 hold whole sentences from the product page
FUTURE_SPECS = ("best sellers rank", "amazon best sellers rank", "customer reviews")
FUTURE_COLUMNS = (
    *("related", "salesRank", "rank", "also_buy", "also_view", "similar_item"),
    *("bought_together", "average_rating", "rating_number"),
)
UNREAD_2018 = ("date", "fit", "tech1", "tech2", "imageURL", "imageURLHighRes")
UNREAD_2023 = ("asin", "author", "subtitle", "videos")
EVENT_COLUMNS = ("event", "quantity", "weight", "query")


@dataclass(frozen=True)
class _Layout:
    """A published layout. names: columns that tell it, to ours; others: what else it makes of its columns.

    foreign: further names of ours, which its tables never have.
    """

    title: str
    names: Mapping[str, str]
    read: Callable[[pd.DataFrame, DataReport], pd.DataFrame]
    others: Mapping[str, str] = field(default_factory=dict)
    foreign: Sequence[str] = ()

    def is_of(self, frame: pd.DataFrame) -> bool:
        """Tell by the columns; a table with a name of ours that the layout would write over or lose is a shop's own."""
        read = {**self.names, **self.others}
        own = {*read.values(), *self.foreign} - read.keys()
        return self.names.keys() <= set(frame.columns) and own.isdisjoint(frame.columns)


def as_interactions(
    frame: pd.DataFrame, report: DataReport, columns: Mapping[str, str] | None = None, name: str = "interactions"
) -> pd.DataFrame:
    """Give events our columns: those of a published layout, or by the mapping.

    columns: from the shop's names to ours, of columns of the frame. Where it says another thing than a layout, the
    table is read by the mapping alone. name: the table, for messages.
    Raises DataError as ``map_columns`` does.
    """
    return _by_layout(frame, INTERACTION_LAYOUTS, name, columns, report)


def as_items(frame: pd.DataFrame, report: DataReport, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Give items our columns, as ``as_interactions`` does events."""
    return _by_layout(frame, ITEM_LAYOUTS, "items", columns, report)


def _by_layout(
    frame: pd.DataFrame,
    layouts: Sequence[_Layout],
    name: str,
    columns: Mapping[str, str] | None,
    report: DataReport,
) -> pd.DataFrame:
    told = {(given, ours) for given, ours in (columns or {}).items() if given != ours}
    layout = next((layout for layout in layouts if layout.is_of(frame)), None)
    if layout is None or not told <= {*layout.names.items(), *layout.others.items()}:
        return map_columns(frame, name, columns, report)
    report.notes.append(f"{name}: {layout.title}")
    return layout.read(frame, report)


def _reviews(
    frame: pd.DataFrame, report: DataReport, user: str, item: str, rating: str, time: str, headline: str, body: str
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
    report: DataReport,
    item: str,
    brand: str,
    categories: str,
    main: str,
    image: str,
    features: str,
    unread: Sequence[str],
) -> pd.DataFrame:
    """Give items our columns, and those beside them that no published file has: they are a shop's own."""

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
    read = {item, "title", "description", features, brand, categories, main, "price", "details", image}
    own = [name for name in frame.columns if name not in {*read, *FUTURE_COLUMNS, *unread}]
    return pd.concat([items, frame[own]], axis=1)


def _texts(value: Any) -> list[Any]:
    parts = parts_of(value)
    return [value] if parts is None else list(parts)


def _path(value: Any, fallback: str) -> list[str]:
    """Clean one category path: the main one of several, no sentences, no name twice."""
    kept = [name for name in dict.fromkeys(category_names(value)) if len(name) <= LONGEST_CATEGORY]
    main = clean_text(fallback)
    return kept or ([main] if main and len(main) <= LONGEST_CATEGORY else [])


def _past_specs(value: Any) -> Any:
    value = mapping_of_text(value) if isinstance(value, str) else value
    if not isinstance(value, dict):
        return ""
    return {name: text for name, text in value.items() if str(name).strip(" :\n").lower() not in FUTURE_SPECS}


def _metadata_of_2014_or_2018(frame: pd.DataFrame, report: DataReport) -> pd.DataFrame:
    categories = "categories" if "categories" in frame else "category"
    image = "image" if "image" in frame else "imUrl"
    return _metadata(frame, report, "asin", "brand", categories, "main_cat", image, "feature", UNREAD_2018)


def _ratings(frame: pd.DataFrame, report: DataReport) -> pd.DataFrame:
    return frame.rename(columns={"userId": "user_id", "movieId": "item_id"}).assign(event="rating")


def _movies(frame: pd.DataFrame, report: DataReport) -> pd.DataFrame:
    genres = frame["genres"].replace("(no genres listed)", "")
    return frame.drop(columns="genres").rename(columns={"movieId": "item_id"}).assign(categories=genres)


INTERACTION_LAYOUTS = (
    _Layout(
        "Amazon reviews of 2014 or 2018",
        {"reviewerID": "user_id", "asin": "item_id", "overall": "rating", "unixReviewTime": "timestamp"},
        lambda frame, report: _reviews(
            frame, report, "reviewerID", "asin", "overall", "unixReviewTime", "summary", "reviewText"
        ),
        foreign=(*EVENT_COLUMNS, "review"),
    ),
    # Metadata of 2023 are by parent_asin, the product; asin is one size or colour of it.
    _Layout(
        "Amazon reviews of 2023",
        {"parent_asin": "item_id", "user_id": "user_id", "rating": "rating", "timestamp": "timestamp"},
        lambda frame, report: _reviews(frame, report, "user_id", "parent_asin", "rating", "timestamp", "title", "text"),
        foreign=(*EVENT_COLUMNS, "review"),
    ),
    _Layout(
        "MovieLens ratings",
        {"userId": "user_id", "movieId": "item_id", "rating": "rating", "timestamp": "timestamp"},
        _ratings,
        foreign=EVENT_COLUMNS,
    ),
)
ITEM_LAYOUTS = (
    _Layout(
        "Amazon metadata of 2023",
        {"parent_asin": "item_id", "title": "title"},
        lambda frame, report: _metadata(
            frame, report, "parent_asin", "store", "categories", "main_category", "images", "features", UNREAD_2023
        ),
        {"store": "brand", "details": "specs", "images": "image"},
    ),
    _Layout(
        "Amazon metadata of 2014 or 2018",
        {"asin": "item_id", "title": "title"},
        _metadata_of_2014_or_2018,
        {
            **{"category": "categories", "categories": "categories"},
            **{"imUrl": "image", "image": "image", "details": "specs"},
        },
    ),
    _Layout("MovieLens movies", {"movieId": "item_id", "title": "title", "genres": "categories"}, _movies),
)
