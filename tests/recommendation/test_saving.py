"""What a saved folder keeps, part by part: ids and their types, users, events, statistics, settings, cut."""

import datetime
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from llm_rerank.config import ThresholdConfig
from llm_rerank.data.cases import build_cases
from llm_rerank.data.features import PAIR_FEATURES, pair_features
from llm_rerank.recommendation.component_classes import SCORERS
from llm_rerank.recommendation.components import Component
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.saving import read_reranker, read_start, write_reranker
from llm_rerank.recommendation.specs import ComponentSpec
from llm_rerank.storage import read_json, write_json
from llm_rerank.types import EVENT_ARRAYS, Ragged, StorageError, Users


def objects(values):
    values = list(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


@pytest.fixture(scope="module")
def saved(fitted):
    """The fitted shop with ids of every kind, attributes, sentiments, searches, and odd columns."""
    whole = fitted._saved
    events, items = whole.events, whole.fitted.items
    user_ids, item_ids = objects(events.user_ids), objects(items.ids)
    user_ids[:4] = [7, "7", 1.5, True]
    item_ids[:2] = [7, "7"]
    odd = [None, float("nan"), {"a": 1}, "text"]
    frame = items.frame.assign(item_id=item_ids, odd=objects(odd[place % 4] for place in range(len(items))))
    rng = np.random.default_rng(0)
    sentiment = np.where(rng.random(len(events)) < 0.5, rng.uniform(-1, 1, len(events)), np.nan).astype(np.float32)
    queries = objects("" if place % 3 else f"search {place}" for place in range(len(events)))
    users = Users(objects(["7", 7]), pd.DataFrame({"user_id": objects(["7", 7]), "age": [30.0, np.nan]}))
    user_rows = np.full(len(user_ids), -1)
    user_rows[:2] = [1, 0]
    return replace(
        whole,
        events=replace(events, user_ids=user_ids, queries=queries, user_rows=user_rows),
        sentiment=sentiment,
        users=users,
        in_fit=rng.random(len(events)) < 0.5,
        counted=rng.random(len(events)) < 0.5,
        torn=rng.random(len(events)) < 0.5,
        log_name="log of a shop",
        log_position=2**40,
        features=PAIR_FEATURES[:3],
        fitted=replace(whole.fitted, items=replace(items, ids=item_ids, frame=frame)),
    )


@pytest.fixture(scope="module")
def again(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    write_reranker(folder, saved)
    return read_reranker(folder)


def assert_same_ids(here, there):
    assert list(here) == list(there)
    assert [type(value) for value in here] == [type(value) for value in there]


def test_ids_come_back_as_what_they_were(saved, again):
    assert_same_ids(again.events.user_ids, saved.events.user_ids)
    assert_same_ids(again.fitted.items.ids, saved.fitted.items.ids)
    assert_same_ids(again.fitted.items.frame["item_id"], saved.fitted.items.ids)
    assert_same_ids(again.users.ids, saved.users.ids)
    assert_same_ids(again.users.frame["user_id"], saved.users.ids)


def test_allowed_features_come_back_and_a_folder_of_before_allows_all(saved, again, tmp_path):
    assert again.features == PAIR_FEATURES[:3] and Reranker.from_saved(again)._features == PAIR_FEATURES[:3]
    for name, features in (("all", PAIR_FEATURES), ("none", ())):
        (tmp_path / name).mkdir()
        write_reranker(tmp_path / name, replace(saved, features=features))
        assert read_reranker(tmp_path / name).features == features
    values = read_json(tmp_path / "none" / "config.json")
    del values["features"], values["fit_threshold"]
    write_json(tmp_path / "none" / "config.json", values)
    before = read_reranker(tmp_path / "none")
    assert before.features == PAIR_FEATURES
    assert before.fitted.threshold == before.config.threshold == ThresholdConfig("recall", 0.9)


def test_events_come_back_whole(saved, again):
    for name in EVENT_ARRAYS:
        np.testing.assert_array_equal(getattr(again.events, name), getattr(saved.events, name))
        assert getattr(again.events, name).dtype == getattr(saved.events, name).dtype
    np.testing.assert_array_equal(again.events.user_rows, saved.events.user_rows)
    np.testing.assert_array_equal(again.sentiment, saved.sentiment)
    for mark in ("in_fit", "counted", "torn"):
        np.testing.assert_array_equal(getattr(again, mark), getattr(saved, mark))
        assert getattr(again, mark).dtype == np.bool_
    assert (again.log_name, again.log_position) == (saved.log_name, saved.log_position)
    assert (again.events.n_items, again.events.time_kind) == (saved.events.n_items, saved.events.time_kind)
    assert np.isfinite(saved.sentiment).any()


def test_items_users_and_decisions_come_back(saved, again):
    np.testing.assert_array_equal(again.users.frame["age"], [30.0, np.nan])
    titles = [list(source.fitted.items.frame["title"]) for source in (again, saved)]
    assert titles[0] == titles[1]
    assert list(again.fitted.items.texts) == list(saved.fitted.items.texts)
    odd = again.fitted.items.frame["odd"]
    assert odd.isna().tolist()[:4] == [True, True, False, False]
    assert odd.tolist()[2:4] == ["{'a': 1}", "text"]  # what has no table type becomes text
    assert again.config == saved.config
    assert again.fitted.stage.to_dict() == saved.fitted.stage.to_dict()
    assert again.fitted.stage.cut == saved.fitted.stage.cut is not None
    assert again.fitted.report["lines"] == saved.fitted.report["lines"]
    np.testing.assert_array_equal(again.fitted.reference, saved.fitted.reference)
    described = [
        [(c.name, c.group, c.retrieves, c.blends, dict(c.settings)) for c in source.fitted.components]
        for source in (again, saved)
    ]
    assert described[0] == described[1]
    assert len({(retrieves, blends) for _, _, retrieves, blends, _ in described[0]}) == 2


def test_another_shop_borrows_the_stages(saved, tmp_path):
    upstream = replace(saved.fitted.stage, cut=None)
    write_reranker(tmp_path, replace(saved, fitted=replace(saved.fitted, upstream_stage=upstream)))
    start = read_start(tmp_path)
    assert start.stage.to_dict() == saved.fitted.stage.to_dict()
    assert start.upstream_stage.to_dict() == upstream.to_dict()
    assert read_reranker(tmp_path).fitted.upstream_stage.to_dict() == upstream.to_dict()


def test_statistics_count_every_event_and_outlive_the_histories(saved, tmp_path):
    events, items = saved.events, saved.fitted.items
    every_item = Ragged.from_lists([np.arange(len(items))])
    cases = build_cases(events, np.array([5]), np.array([events.times.max() + 1]), candidates=every_item)
    known = pair_features(cases, saved.item_statistics, items)
    bought = pd.DataFrame({"user": events.users, "item": events.items})[events.positive & (events.items >= 0)]
    buyers = bought.drop_duplicates()["item"].value_counts().reindex(range(len(items)), fill_value=0)
    np.testing.assert_allclose(known[:, PAIR_FEATURES.index("item_support")], np.log1p(buyers), rtol=1e-5)
    assert np.isfinite(known[:, PAIR_FEATURES.index("sentiment")]).sum() > 100
    write_reranker(tmp_path, saved.without_histories())
    again = read_reranker(tmp_path)
    assert (len(again.events), len(again.events.user_ids), len(again.sentiment)) == (0, 0, 0)
    np.testing.assert_array_equal(pair_features(cases, again.item_statistics, again.fitted.items), known)


def test_an_id_that_json_cannot_keep_is_refused(saved, tmp_path):
    ids = saved.events.user_ids.copy()
    ids[3] = datetime.date(2024, 5, 31)
    with pytest.raises(StorageError, match="of type date cannot be saved"):
        write_reranker(tmp_path, replace(saved, events=replace(saved.events, user_ids=ids)))


def test_another_models_folder_is_refused(saved, tmp_path):
    for read in (read_reranker, read_start):
        with pytest.raises(StorageError, match="config.json is missing: this is another model than a reranker"):
            read(tmp_path)
    write_json(tmp_path / "config.json", {"model": "mine"})
    for read in (read_reranker, read_start):
        with pytest.raises(StorageError, match="config.json has no 'config': that is no reranker's"):
            read(tmp_path)


@pytest.mark.parametrize("part", ["stage", "config"])
def test_a_folder_of_another_version_says_so(saved, tmp_path, part):
    write_reranker(tmp_path, saved)
    values = read_json(tmp_path / "config.json")
    known = values["stage"]["profile"] if part == "stage" else values["config"]
    known["invented_since"] = 1
    write_json(tmp_path / "config.json", values)
    for read in (read_reranker, read_start) if part == "stage" else (read_reranker,):
        with pytest.raises(StorageError, match=r"of another version .*invented_since.*fit and save again"):
            read(tmp_path)
    del values["stage"]["blend"], known["invented_since"]
    write_json(tmp_path / "config.json", values)
    with pytest.raises(StorageError, match=r"config.json is of another version .*'blend'"):
        read_reranker(tmp_path)


class Magic:
    """A scorer of one's own, as far as saving asks."""

    depends_on_list = False

    def __init__(self, *, strength, name="magic"):
        self.strength, self.name = strength, name

    def save(self, folder):
        write_json(folder / "magic.json", [self.strength, self.name])

    @classmethod
    def load(cls, folder):
        strength, name = read_json(folder / "magic.json")
        return cls(strength=strength, name=name)


def with_component(saved, scorer, settings):
    components = (*saved.fitted.components, Component(scorer, "collaborative", True, True, settings))
    return replace(saved, fitted=replace(saved.fitted, components=components))


def test_a_component_of_ones_own_is_loaded_by_its_spec(saved, tmp_path):
    write_reranker(tmp_path, with_component(saved, Magic(strength=3.0), {"strength": 3.0}))
    with pytest.raises(StorageError, match="'magic' is none of the library's"):
        read_reranker(tmp_path)
    with pytest.raises(StorageError, match="'magic' is none of the library's"):
        read_reranker(tmp_path, [ComponentSpec("magician", "collaborative", Magic)])
    *others, again = read_reranker(tmp_path, [ComponentSpec("magic", "collaborative", Magic)]).fitted.components
    assert [component.name for component in others] == [component.name for component in saved.fitted.components]
    assert type(again.scorer) is Magic and again.scorer.strength == 3.0 and again.settings == {"strength": 3.0}


def test_a_scorer_of_ones_own_under_a_librarys_name_is_not_taken_for_it(saved, tmp_path):
    write_reranker(tmp_path, with_component(saved, Magic(strength=1.0, name="popularity"), {"strength": 1.0}))
    with pytest.raises(StorageError, match="'popularity' is none of the library's"):
        read_reranker(tmp_path)
    again = read_reranker(tmp_path, [ComponentSpec("popularity", "collaborative", Magic)])
    assert type(again.fitted.components[-1].scorer) is Magic


def test_a_component_that_could_not_be_loaded_is_not_saved(saved, tmp_path):
    for lacking, scorer in (
        ("save", SimpleNamespace(name="magic")),
        ("load", SimpleNamespace(name="magic", save=print)),
    ):
        with pytest.raises(StorageError, match=rf"'magic' cannot be saved: SimpleNamespace has no {lacking}; give it"):
            write_reranker(tmp_path / lacking, with_component(saved, scorer, {}))
    with pytest.raises(StorageError, match=r"'../../magic' cannot be saved under its name"):
        write_reranker(tmp_path / "path", with_component(saved, Magic(strength=1.0, name="../../magic"), {}))


def test_each_name_leads_to_the_scorer_of_that_name():
    for name, (module, attribute) in SCORERS.items():
        assert getattr(import_module(module), attribute).name == name
