"""Vectors that the items bring, from the tables to the answers and back from disk."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from llm_rerank.cli import app
from llm_rerank.config import RerankerConfig, ThresholdConfig
from llm_rerank.models.semantic.media import VectorScorer
from llm_rerank.recommendation.checking import check_shop
from llm_rerank.recommendation.live import LiveShop
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.types import DataError
from tests.shops import make_vector_shop

CONFIG = RerankerConfig(encoder=None, sequence="off", refit=False, threshold=ThresholdConfig("recall", 0.9))


def fit(tables, **settings):
    values = {**vars(CONFIG), **settings}
    return Reranker(RerankerConfig(**values), verbose=False).fit(*tables)


@pytest.fixture(scope="module")
def tables():
    return make_vector_shop()


@pytest.fixture(scope="module")
def shop(tables):
    return fit(tables)


@pytest.fixture(scope="module")
def without(tables):
    events, items = tables
    return fit((events, items.drop(columns="image_vector")))


def component(reranker, name="image_vector"):
    return next((c for c in reranker.saved.fitted.components if c.name == name), None)


def verdict(reranker):
    return next(v for v in reranker.saved.fitted.report["parts"] if v["part"] == "vectors")


def fold_g(reranker):
    return reranker.saved.fitted.report["ranking"]["fused"]


def again(reranker):
    """The same state, to be changed."""
    return Reranker.from_saved(reranker.saved)


def vector_of(tables, item_id):
    return tables[1].set_index("item_id")["image_vector"][item_id]


# --- the fit ---------------------------------------------------------------------------------------------------------


def test_what_only_vectors_tell_a_fit_finds_with_them(shop, without):
    assert verdict(shop)["kept"]
    assert verdict(shop)["difference"]["low"] > 0.03
    assert fold_g(shop) > 1.5 * fold_g(without)  # on users that nothing was fitted on
    assert isinstance(component(shop).scorer, VectorScorer)
    assert component(shop).group == "semantic"
    assert any(line.startswith("vectors: +") and "vectors='off'" in line for line in shop.saved.fitted.report["lines"])


def test_vectors_that_know_nothing_are_found_to_bring_nothing_and_harm_nothing(tables, without):
    events, items = tables
    order = np.random.default_rng(0).permutation(len(items))
    shuffled = fit((events, items.assign(image_vector=items["image_vector"].to_numpy()[order])))
    assert verdict(shuffled)["difference"]["low"] < 0 < verdict(shuffled)["difference"]["high"]
    assert fold_g(shuffled) == pytest.approx(fold_g(without), rel=0.15)


def test_off_is_as_if_there_were_no_column(tables, without):
    off = fit(tables, vectors="off")
    assert component(off) is None
    assert off.saved.fitted.stage.to_dict() == without.saved.fitted.stage.to_dict()
    pd.testing.assert_frame_equal(off.recommend(["u1", "u7"]), without.recommend(["u1", "u7"]))
    assert list(off.saved.fitted.items.texts) == list(without.saved.fitted.items.texts)


def test_a_column_without_any_vector_is_as_none(tables, without):
    events, items = tables
    empty = fit((events, items.assign(image_vector=None)))
    pd.testing.assert_frame_equal(empty.recommend(["u1", "u7"]), without.recommend(["u1", "u7"]))
    zeros = fit((events, items.assign(image_vector=[[0.0, 0.0]] * len(items))))
    assert component(zeros) is None
    assert any("vectors: left out, for it cannot be fitted here" in line for line in zeros.saved.fitted.report["lines"])


def test_several_columns_are_components_of_their_own(tables):
    events, items = tables
    rng = np.random.default_rng(1)
    both = fit((events, items.assign(sound_vector=list(rng.normal(size=(len(items), 3))))))
    assert component(both) is not None and component(both, "sound_vector") is not None
    assert len([v for v in both.saved.fitted.report["parts"] if v["part"] == "vectors"]) == 1


def test_a_refit_on_all_rows_keeps_the_settings(tables):
    refitted = fit(tables, refit=True)
    assert component(refitted).scorer.whiten is component(refitted).settings.get("whiten", True)
    assert component(refitted).scorer.decay == component(refitted).settings["decay"]


# --- answers ---------------------------------------------------------------------------------------------------------


def test_answers_and_reasons_name_them(shop):
    answer = shop.recommend(["u3"], k=5)
    assert np.isfinite(answer["score_semantic"]).all() and (answer["score_semantic"] != 0).any()
    first = answer["item_id"].iloc[0]
    reasons = shop.explain("u3", first)
    parts = {part.name: part for part in reasons.contributions}
    assert "image_vector" in parts and parts["image_vector"].group == "semantic"
    assert sum(part.value for part in reasons.contributions) == pytest.approx(reasons.score, abs=1e-9)


def test_an_item_without_a_vector_is_ranked_by_the_rest(tables, without):
    events, items = tables
    some = items.assign(image_vector=[None if row % 5 == 0 else v for row, v in enumerate(items["image_vector"])])
    partly = fit((events, some))
    assert verdict(partly)["kept"] and fold_g(partly) > fold_g(without)
    codes = np.arange(len(items))
    assert (~component(partly).scorer.item_vectors(codes).any(axis=1)).tolist() == [row % 5 == 0 for row in codes]
    candidates = pd.DataFrame({"user_id": "u3", "item_id": items["item_id"]})
    answer = partly.rerank(candidates)
    assert len(answer) == len(items) and np.isfinite(answer["score"]).all()


def test_histories_of_strangers_are_read(shop, tables):
    near = np.argsort(-np.stack(tables[1]["image_vector"]) @ vector_of(tables, "i9"))[1:4]
    history = pd.DataFrame({"user_id": "stranger", "item_id": ["i9"], "timestamp": [1_700_000_000]})
    top = shop.recommend(["stranger"], histories=history, k=30)["item_id"].tolist()
    directions = np.stack([vector_of(tables, item) / np.linalg.norm(vector_of(tables, item)) for item in top])
    own = vector_of(tables, "i9") / np.linalg.norm(vector_of(tables, "i9"))
    assert (directions @ own).mean() > 0.6  # of random directions 0
    assert len(near) == 3


# --- changes ---------------------------------------------------------------------------------------------------------


def test_a_new_item_with_a_vector_is_known_at_once(shop, tables):
    model = again(shop)
    taken = tables[0][tables[0]["user_id"] == "u3"]["item_id"].tolist()
    twin = np.sum([v / np.linalg.norm(v) for v in (vector_of(tables, item) for item in taken)], axis=0)
    new = [
        {"item_id": "near", "title": "item 900", "image_vector": twin.tolist()},
        {"item_id": "far", "title": "item 901", "image_vector": (-twin).tolist()},
        {"item_id": "mute", "title": "item 902"},
    ]
    report = model.update(items=new)
    assert report.new_items == ["near", "far", "mute"] and "image_vector" in report.refreshed
    answer = model.rerank(pd.DataFrame({"user_id": "u3", "item_id": ["far", "mute", "near"]})).set_index("item_id")
    assert answer["rank"]["near"] == 1
    assert answer["score_semantic"]["near"] > answer["score_semantic"]["far"]
    assert "near" in model.recommend(["u3"], k=20)["item_id"].tolist()
    scores = component(model).scorer.item_vectors(np.arange(400, 403))
    np.testing.assert_allclose(scores[0], twin / np.linalg.norm(twin), atol=1e-5)
    assert not scores[2].any()
    assert len(component(shop).scorer.item_vectors(np.arange(400))) == 400 and "near" not in shop.saved.fitted.items.ids


def test_a_changed_vector_is_read_and_a_missing_one_keeps_what_was(shop, tables):
    model = again(shop)
    assert model.update(items=tables[1]).changed_items == []
    assert model.saved is shop.saved, "the same again changes nothing"
    longer = [{"item_id": "i5", "image_vector": (2 * vector_of(tables, "i5")).tolist()}]
    assert model.update(items=longer).changed_items == [], "a direction is the same at any length"
    cells, titles = [[1, 0, 0, 0, 0], None, [], None], [None, None, None, "another"]
    table = pd.DataFrame({"item_id": ["i5", "i6", "i7", "i8"], "title": titles, "image_vector": cells})
    assert model.update(items=table).changed_items == ["i5", "i8"]
    held = model.saved.fitted.items.vectors["image_vector"]
    np.testing.assert_array_equal(held[5], [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(held[6:9], shop.saved.fitted.items.vectors["image_vector"][6:9])
    np.testing.assert_allclose(component(model).scorer.item_vectors(np.arange(400)), held, atol=1e-5)
    model.update(items=[{"item_id": "i5", "image_vector": [0, 0, 0, 0, 0]}])
    assert not component(model).scorer.item_vectors(np.array([5])).any()


def test_a_wrong_vector_changes_nothing(shop):
    model = again(shop)
    for wrong, said in (([1.0, 2.0], "has vectors of 2 numbers, those known have 5"), ("red", "holds 'red' for item")):
        with pytest.raises(DataError, match=said):
            model.update(items=[{"item_id": "i5", "image_vector": wrong}])
    assert model.saved is shop.saved


def test_a_refit_reads_what_came_by_update(tables):
    events, items = tables
    model = fit((events, items.drop(columns="image_vector")))
    model.update(items=items[["item_id", "image_vector"]])
    assert component(model) is None
    model.refit()
    assert verdict(model)["kept"] and component(model) is not None


def test_forgetting_leaves_vectors_alone(shop):
    model = again(shop)
    report = model.forget(["u3"])
    assert report.n_events == 4
    assert "image_vector" not in str(report)
    assert component(model).scorer is component(shop).scorer


# --- on disk and from files ------------------------------------------------------------------------------------------


def test_saved_and_loaded(shop, tables, tmp_path):
    shop.save(tmp_path / "shop")
    assert not list((tmp_path / "shop").rglob("*.pkl"))
    loaded = Reranker.load(tmp_path / "shop")
    candidates = pd.DataFrame({"user_id": ["u3"] * 400, "item_id": tables[1]["item_id"]})
    pd.testing.assert_frame_equal(loaded.rerank(candidates), shop.rerank(candidates))
    np.testing.assert_array_equal(
        loaded.saved.fitted.items.vectors["image_vector"], shop.saved.fitted.items.vectors["image_vector"]
    )
    new = [{"item_id": "x", "title": "x", "image_vector": [1, 0, 0, 0, 0]}]
    loaded.update(items=new)
    assert component(loaded).scorer.item_vectors(np.array([400]))[0] == pytest.approx([1, 0, 0, 0, 0], abs=1e-5)
    started = Reranker(CONFIG, verbose=False).fit(*tables, start_from=tmp_path / "shop")
    assert component(started).settings == component(shop).settings


def test_a_live_shop_takes_them_and_knows_them_after_a_restart(shop, tmp_path):
    shop.save(tmp_path / "shop")
    new = {"item_id": "x", "title": "x", "image_vector": np.array([2, 0, 0, 0, 0], dtype=np.float32)}
    with LiveShop(tmp_path / "shop") as live:
        assert live.add_items([new]).new_items == ["x"]
    with LiveShop(tmp_path / "shop") as live:
        held = live.reranker().saved.fitted.items.vectors["image_vector"]
    np.testing.assert_array_equal(held[400], [1, 0, 0, 0, 0])


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_the_command_line_reads_files_of_them(kind, shop, tables, tmp_path):
    events, items = tables
    events.to_csv(tmp_path / "events.csv", index=False)
    path = tmp_path / f"items.{kind}"
    if kind == "parquet":
        items.rename(columns={"image_vector": "clip"}).to_parquet(path)
    else:
        rows = [{**row, "image_vector": row["image_vector"].tolist()} for row in items.to_dict("records")]
        path.write_text("".join(json.dumps(row).replace("image_vector", "clip") + "\n" for row in rows))
    words = ["fit", str(tmp_path / "events.csv"), str(path), "--out", str(tmp_path / "shop"), "--column"]
    words += ["clip=image_vector", "--encoder", "none", "--sequence", "off", "--threshold", "recall=0.9", "--no-refit"]
    assert CliRunner().invoke(app, words).exit_code == 0
    loaded = Reranker.load(tmp_path / "shop")
    pd.testing.assert_frame_equal(loaded.recommend(["u1", "u7"]), shop.recommend(["u1", "u7"]))


def test_a_text_column_is_refused_with_its_remedy(tables):
    events, items = tables
    with pytest.raises(DataError, match=r"'image_vector' holds '\[1, 2\]' for item 'i0'; .* or rename the column"):
        fit((events, items.assign(image_vector="[1, 2]")))


def test_check_says_that_they_are_read(tables):
    found = check_shop(*tables, config=CONFIG)
    assert any("read: item_id, title, image_vector" in line for line in found.tables)
    assert any("image_vector: 400 of 400 have one, of 5 numbers" in line for line in found.understood)
