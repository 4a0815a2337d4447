"""Before the fit: tables read by the settings, reviews newest first, the encoder with its memory, and the plan."""

import json
import re
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.data.schema import validate_interactions, validate_items
from llm_rerank.models.semantic.cache import CachedEncoder
from llm_rerank.models.semantic.encoder import SentenceEncoder
from llm_rerank.recommendation import planning
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.planning import make_encoder, read_shop, say_plan, sentiment_of
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.specs import default_specs
from llm_rerank.types import DataError, DataReport
from tests.planted import events_of
from tests.shops import make_shop
from tests.tiny_encoder import save_tiny_encoder

ITEMS = pd.DataFrame({"item_id": ["a", "b", "c"], "title": ["ant", "bee", "cat"]})
EVENTS = pd.DataFrame(
    {
        "customer": ["u", "u", "v", "v"],
        "item_id": ["a", "b", "a", "c"],
        "timestamp": [1_600_000_000_000 + step for step in range(4)],
        "event": ["view", "purchase", "view", "purchase"],
        "rating": [5.0, 5.0, 5.0, 1.0],
    }
)
USERS = pd.DataFrame({"customer": ["v", "w"], "age": [30, 40]})
IMPRESSIONS = pd.DataFrame({"customer": ["u"], "item_id": ["c"], "timestamp": [1_600_000_000_002]})
COLUMNS = {"customer": "user_id"}


def read(config=None, time_unit="auto", users=USERS, impressions=IMPRESSIONS):
    config = config or RerankerConfig(encoder=None)
    return read_shop(config, EVENTS, ITEMS, users, impressions, COLUMNS, time_unit, DataReport())


def test_one_mapping_of_columns_serves_all_tables():
    events, items, users, shown = read()
    assert list(events.user_ids) == ["u", "v"]
    assert events.user_rows.tolist() == [-1, 0]  # the first row of users is v
    assert list(users.ids) == ["v", "w"]
    assert (shown["user_id"].tolist(), shown["item"].tolist()) == (["u"], [2])
    assert read(users=None, impressions=None)[2:] == (None, None)
    with pytest.raises(DataError, match="kunde"):
        read_shop(RerankerConfig(), EVENTS, ITEMS, None, None, {"kunde": "user_id"}, "auto", DataReport())


def test_targets_and_dislikes_are_those_of_the_settings():
    assert read()[0].positive.tolist() == [False, True, False, True]
    views = read(RerankerConfig(encoder=None, target_events=("view",)))[0]
    assert views.positive.tolist() == [True, False, True, False]
    disliked = read(RerankerConfig(encoder=None, min_rating=3.0))[0]
    assert disliked.positive.tolist() == [False, True, False, False]
    assert (disliked.weights < 0).tolist() == [False, False, False, True]


def test_the_unit_of_time_is_that_of_events_and_lists():
    events, _, _, shown = read()
    assert (events.time_kind, events.times[0], shown["time"][0]) == ("time", 1_600_000_000, 1_600_000_000)
    events, _, _, shown = read(time_unit="position")
    assert (events.time_kind, events.times[0]) == ("position", 1_600_000_000_000)
    assert shown["time"][0] == 1_600_000_000_002


class Moods:
    """An encoder of one word: liking lies at (1, 0), all else at (0, 1)."""

    embedding_size, fingerprint = 2, "moods"

    def encode(self, inputs):
        words = ("good", "great", "well", "exactly", "happy", "glad", "every")
        likes = np.array([any(word in text.lower() for word in words) for text in inputs])
        return np.stack([likes, ~likes], axis=1).astype(np.float32)


def reviewed():
    events = events_of([(0, 0, step) for step in range(6)], 1)
    reviews = np.array(["good", "", "bad", "", "good", "bad"], dtype=object)
    return replace(events, reviews=reviews)


def test_the_newest_reviews_are_read_and_each_keeps_its_place(monkeypatch):
    read_all = sentiment_of(reviewed(), Moods())
    np.testing.assert_array_equal(np.sign(read_all), [1, np.nan, -1, np.nan, 1, -1])
    assert read_all.dtype == np.float32
    monkeypatch.setattr(planning, "MOST_REVIEWS_READ", 2)
    np.testing.assert_array_equal(np.sign(sentiment_of(reviewed(), Moods())), [np.nan] * 4 + [1, -1])
    assert np.isnan(sentiment_of(reviewed(), None)).all()


def said(n_items=3, refit=True):
    frame = pd.DataFrame({"item_id": range(n_items), "title": "thing"})
    events = events_of([(0, 0, 0), (0, 1, 1), (1, 2, 2)], n_items, n_users=9)
    log = FitLog(verbose=False)
    items = validate_items(frame, report=DataReport())
    say_plan(log, events, items, default_specs(n_items, encoder=None), None, refit=refit)
    return log.lines


def test_the_plan_says_what_is_going_to_be_done():
    lines = said()
    assert lines[0].startswith("plan: 3 events of 2 users on 3 items; components text_ease, als, item_knn, lexical, ")
    # 4 + 3 + 3 + 1 settings with two decays each, and one of recent popularity
    assert "(23 settings tried), sequence where it pays, then a refit on all rows; about 10 seconds" in lines[0]
    assert "refit" not in said(refit=False)[0]
    assert any("no encoder: reviews count through their ratings" in line for line in lines)
    assert not any("EASE, whose inverse is dense" in line for line in lines)
    assert any("20,001 items are more than 20,000, so EASE" in line for line in said(n_items=20_001))


@pytest.fixture(scope="module")
def shop():
    return make_shop(n_users=150)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vectors")


@pytest.fixture(scope="module")
def first(shop, folder) -> Reranker:
    config = RerankerConfig(
        cache_folder=str(folder), candidates_per_source=20, sequence="off", semantic="always", cross_encoder="off"
    )
    return Reranker(config, verbose=False).fit(*shop)


def semantic(reranker):
    return next(component.scorer for component in reranker.components if component.name == "semantic")


def on_disk(folder) -> CachedEncoder:
    return CachedEncoder(SentenceEncoder(), folder)


def test_a_fit_leaves_the_vectors_of_every_text_it_read(first, folder, shop):
    kept = on_disk(folder)
    before = len(kept)
    reviews = [review for review in shop[0]["review"].unique() if review]
    kept.encode(reviews)
    assert len(kept) == before  # every review was there
    assert before == len(semantic(first).encoder) > len(shop[1])  # and the texts of the last items read


def test_the_next_fit_encodes_nothing_again_and_decides_the_same(first, folder, shop):
    (path,) = folder.glob("*.safetensors")
    before = path.read_bytes()
    n_vectors = len(on_disk(folder))
    again = Reranker(first.config, verbose=False).fit(*shop)
    assert path.read_bytes() == before
    assert len(semantic(again).encoder) == n_vectors
    users = ["u0", "u1", "u2"]
    np.testing.assert_array_equal(again.recommend(users)["score"], first.recommend(users)["score"])
    said = again.report().values["lines"]
    assert f"plan: {n_vectors:,} vectors of earlier fits are in the cache folder; the same texts take no time" in said


def test_vectors_are_taken_from_the_folder(folder, first, shop, tmp_path):
    """Vectors of another's making, under this encoder's fingerprint, decide what the reviews seem to say."""

    class Constant:
        embedding_size, fingerprint = 384, SentenceEncoder().fingerprint

        def encode(self, inputs):
            return np.full((len(inputs), 384), 384**-0.5, dtype=np.float32)

    events, items = shop
    reviews = [review for review in events["review"].unique() if review]
    CachedEncoder(Constant(), tmp_path).encode(reviews)
    told = Reranker(
        RerankerConfig(cache_folder=str(tmp_path), refit=False, sequence="off", cross_encoder="off"), verbose=False
    ).fit(events, items)
    # all reviews are one vector, so one sentiment; with the encoder's own vectors they differ
    assert len(np.unique(sentiments(told))) == 1
    assert len(np.unique(sentiments(first))) > 1


def sentiments(reranker):
    values = reranker._data().sentiment
    return values[~np.isnan(values)].round(4)


def test_nothing_is_kept_on_disk_unless_asked():
    assert make_encoder(RerankerConfig()).path is None
    assert make_encoder(RerankerConfig(encoder=None)) is None


def test_the_plan_names_the_encoder_in_one_line(first):
    said = [line for line in first.report().values["lines"] if line.startswith("plan: encoder")]
    assert len(said) == 1
    assert re.fullmatch(r"plan: encoder 'default': 384 numbers a text of at most 128 tokens, \w+ on \w+.*", said[0])


class SlowEncoder:
    """Two milliseconds a character."""

    embedding_size, fingerprint, description = 2, "slow", "slow encoder"

    def encode(self, inputs):
        time.sleep(2e-3 * sum(map(len, inputs)))
        return np.ones((len(inputs), 2), dtype=np.float32)


def test_the_plan_counts_reviews_where_items_have_no_text_of_their_own(shop):
    items = validate_items(shop[1].assign(title="", description=""))
    events = validate_interactions(shop[0], items)
    reviews = [review for review in events.reviews if review]
    log = FitLog(verbose=False)
    say_plan(log, events, items, [], CachedEncoder(SlowEncoder()), refit=False)
    # every review, and an item's text as long as a review: the rest of the fit is 10 seconds
    mean_s = 5e-3 * np.mean([len(review) for review in reviews])
    expected = (len(reviews) + len(items)) * mean_s
    assert expected > 15
    said = int(re.search(r"about (\d+) seconds", log.lines[0]).group(1))
    assert expected < said < expected * 1.5 + 15


def test_a_saved_model_does_not_name_the_folder(first, folder, tmp_path):
    first.save(tmp_path / "model")
    content = next(path for path in (tmp_path / "model").iterdir() if path.is_dir())
    assert json.loads((content / "config.json").read_text())["config"]["cache_folder"] is None
    for path in content.rglob("*.json"):
        assert str(folder) not in path.read_text()
    assert Reranker.load(tmp_path / "model", verbose=False).config.cache_folder is None


@pytest.mark.parametrize("value", ["", "  ", 3])
def test_a_folder_that_is_no_name_is_refused(value):
    with pytest.raises(DataError, match="cache_folder is .* folder's name"):
        RerankerConfig(cache_folder=value)


def test_a_shop_whose_items_say_nothing_is_fitted_by_behaviour_alone(tmp_path):
    events, items = make_shop(n_users=200)
    bare = items[["item_id"]].assign(title="")
    config = RerankerConfig(encoder=save_tiny_encoder(tmp_path), refit=False, device="cpu")
    fitted = Reranker(config, verbose=False).fit(events.drop(columns="review"), bare)
    assert any("the fit is by behaviour alone" in line for line in fitted.report().values["lines"])
    assert {component.name for component in fitted.components} >= {"ease", "als", "item_knn"}
    assert not {"text_ease", "semantic", "cross_encoder"} & {component.name for component in fitted.components}
    fitted.save(tmp_path / "shop")
    loaded = Reranker.load(tmp_path / "shop", verbose=False)
    found = loaded.recommend(["u0"], k=5)
    pd.testing.assert_frame_equal(found, fitted.recommend(["u0"], k=5))
    assert np.isfinite(found["score"]).all()
    loaded.update(items=[{"item_id": "new-one", "title": "a lamp at last"}])
    asked = pd.DataFrame({"user_id": ["u0", "u0"], "item_id": ["new-one", items["item_id"][0]]})
    assert np.isfinite(loaded.rerank(asked)["score"]).all()
    loaded.refit()  # now there is something to read
    assert "text_ease" in {component.name for component in loaded.components}
