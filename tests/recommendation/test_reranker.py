"""The façade, black box: frames in, better lists out, on a shop whose tastes are planted."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from llm_rerank.config import RerankerConfig, ThresholdConfig
from llm_rerank.recommendation.blend_columns import LINEAR
from llm_rerank.recommendation.newcomers import POPULARITY
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.types import DataError, NotFittedError, StorageError


@pytest.fixture(scope="module")
def candidates(shop):
    """Every item for three known users, one newcomer, and one user with a single candidate."""
    items = shop[1]["item_id"]
    full = [pd.DataFrame({"user_id": user, "item_id": items}) for user in ("u0", "u1", "u2", "newcomer")]
    return pd.concat([*full, pd.DataFrame({"user_id": ["u3"], "item_id": [items[5]]})], ignore_index=True)


def theme_share(result, items, k=10):
    """Share of the first k items of each known user that are of the user's theme."""
    themes = result["item_id"].map(items.set_index("item_id")["theme"])
    wanted = result["user_id"].str[1:].astype(int).mod(8).map(dict(enumerate(items["theme"].unique())))
    return (themes == wanted)[result["rank"] <= k].mean()


def test_the_result_is_laid_out_as_the_contract_says(fitted, candidates):
    given = candidates.assign(colour="red", upstream_score=1.5)
    before = given.copy()
    result = fitted.rerank(given)
    assert list(result.columns) == [
        "user_id", "item_id", "rank", "score", "probability", "kept",
        "score_collaborative", "score_context", "upstream_score", "colour",
    ]  # fmt: skip
    pd.testing.assert_frame_equal(given, before)
    assert len(result) == len(candidates)
    assert list(result["user_id"].unique()) == ["u0", "u1", "u2", "newcomer", "u3"]
    for _, rows in result.groupby("user_id"):
        assert list(rows["rank"]) == list(range(1, len(rows) + 1))
        assert rows["score"].is_monotonic_decreasing
    parts = result["score_collaborative"] + result["score_context"]
    np.testing.assert_allclose(parts, result["score"], atol=1e-9)
    assert result["probability"].between(0, 1).all()


def test_k_cuts_each_user_and_the_rest_keeps_its_place(fitted, candidates):
    full, cut = fitted.rerank(candidates), fitted.rerank(candidates, k=3)
    expected = full[full["rank"] <= 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(cut, expected)
    with pytest.raises(DataError, match="k is 0"):
        fitted.rerank(candidates, k=0)


def test_tastes_are_found_again(fitted, shop):
    result = fitted.recommend([f"u{i}" for i in range(100)], k=5)
    assert theme_share(result, shop[1], k=5) > 0.8  # 1/8 by chance


def test_a_pair_scores_alone_as_among_all(fitted, candidates):
    full = fitted.rerank(candidates).set_index(["user_id", "item_id"])
    sample = candidates.iloc[[0, 17, 60, 200, 400, -1]]
    for row in sample.itertuples():
        alone = fitted.rerank(pd.DataFrame({"user_id": [row.user_id], "item_id": [row.item_id]})).iloc[0]
        among = full.loc[(row.user_id, row.item_id)]
        assert alone["score"] == pytest.approx(among["score"], abs=1e-6)
        assert alone["probability"] == pytest.approx(among["probability"], abs=1e-6)


def test_ties_and_repeats_keep_the_input_order(fitted, shop):
    item = shop[1]["item_id"][3]
    twice = pd.DataFrame({"user_id": ["u0"] * 3, "item_id": [item] * 3, "place": [0, 1, 2]})
    assert list(fitted.rerank(twice)["place"]) == [0, 1, 2]


def test_unknown_items_are_kept_last_dropped_or_refused(fitted, shop):
    frame = pd.DataFrame({"user_id": ["u0", "u0", "u0"], "item_id": ["nowhere", shop[1]["item_id"][0], "gone"]})
    kept = fitted.rerank(frame)
    assert list(kept["item_id"]) == [shop[1]["item_id"][0], "nowhere", "gone"]
    assert np.isnan(kept["score"][1:]).all()
    assert np.isnan(kept["probability"][1:]).all()
    assert not kept["kept"][1:].any()
    assert list(fitted.rerank(frame, on_unknown="drop")["item_id"]) == [shop[1]["item_id"][0]]
    with pytest.raises(DataError, match="nowhere"):
        fitted.rerank(frame, on_unknown="raise")


def test_no_candidates_give_an_empty_result(fitted):
    empty = pd.DataFrame({"user_id": [], "item_id": []})
    result = fitted.rerank(empty)
    assert len(result) == 0
    assert "probability" in result


def test_polars_and_arrow_come_back_as_they_went_in(fitted, candidates):
    expected = fitted.rerank(candidates)
    frame = fitted.rerank(pl.from_pandas(candidates))
    assert isinstance(frame, pl.DataFrame)
    np.testing.assert_allclose(frame["score"].to_numpy(), expected["score"])
    table = fitted.rerank(pa.Table.from_pandas(candidates))
    assert isinstance(table, pa.Table)
    assert table["item_id"].to_pylist() == expected["item_id"].tolist()


def test_files_go_in(fitted, candidates, tmp_path):
    path = tmp_path / "candidates.csv"
    candidates.to_csv(path, index=False)
    pd.testing.assert_series_equal(fitted.rerank(path)["score"], fitted.rerank(str(path))["score"])
    np.testing.assert_allclose(fitted.rerank(path)["score"], fitted.rerank(candidates)["score"])


def test_recommend_leaves_out_what_the_user_has_bought_unless_asked(fitted, shop):
    events = shop[0]
    bought = set(events[(events["user_id"] == "u0") & (events["event"] == "purchase")]["item_id"])
    assert bought
    new = fitted.recommend(["u0"], k=144)
    assert not bought & set(new["item_id"])
    assert bought <= set(fitted.recommend(["u0"], k=144, exclude_seen=False)["item_id"])


def test_what_the_user_has_had_and_disliked_is_left_out(fitted, shop):
    user = "u5"
    best = fitted.recommend([user], k=1)["item_id"].iloc[0]
    rated = {"user_id": user, "item_id": best, "timestamp": int(shop[0]["timestamp"].max()) + 60, "event": "purchase"}
    disliking = Reranker.from_saved(fitted.saved)
    disliking.update([{**rated, "weight": -1.0}])
    assert best not in set(disliking.recommend([user], k=None)["item_id"])
    assert best in set(disliking.recommend([user], k=None, exclude_seen=False)["item_id"])


def test_recommend_for_everyone_and_for_a_stranger(fitted, shop):
    everyone = fitted.recommend(k=2)
    assert everyone["user_id"].nunique() == shop[0]["user_id"].nunique()
    stranger = fitted.recommend(["nobody"], k=5)
    assert len(stranger) == 5
    assert stranger["score"].notna().all()


def test_given_histories_stand_for_the_known_ones(fitted, shop):
    items = shop[1]
    baking = items.index[items["theme"] == "baking"][:4]
    now = shop[0]["timestamp"].max()
    history = pd.DataFrame(
        {"user_id": "u0", "item_id": items["item_id"][baking], "timestamp": now, "event": "purchase"}
    )
    changed = fitted.recommend(["u0", "u1"], histories=history, k=10)
    themes = changed["item_id"].map(items.set_index("item_id")["theme"])
    assert (themes[changed["user_id"] == "u0"] == "baking").mean() > 0.8  # u0's own theme is garden
    pd.testing.assert_frame_equal(
        changed[changed["user_id"] == "u1"].reset_index(drop=True),
        fitted.recommend(["u1"], at=now + 1, k=10),
        rtol=1e-5,
    )


def test_a_history_of_views_alone_is_a_history(fitted, shop):
    viewed = pd.DataFrame(
        {"user_id": ["v"], "item_id": [shop[1]["item_id"][0]], "timestamp": [1_620_000_000], "event": ["view"]}
    )
    result = fitted.recommend(["v"], histories=viewed, k=8)
    assert (result["item_id"].str[:3] == "gar").mean() > 0.8


def test_at_an_earlier_moment_later_events_are_not_known(fitted, shop):
    first = shop[0]["timestamp"].min()
    before = fitted.recommend(["u0"], at=int(first), k=5)
    stranger = fitted.recommend(["nobody"], at=int(first), k=5)
    assert list(before["item_id"]) == list(stranger["item_id"])
    known = shop[0][shop[0]["user_id"] == "u0"].assign(user_id=7)
    by_text = fitted.recommend([7], histories=known, at={"7": int(first)}, k=5)
    assert list(by_text["item_id"]) == list(before["item_id"])
    at_a_date = fitted.recommend(["u0"], at=pd.Timestamp(int(first), unit="s"), k=5)
    assert list(at_a_date["item_id"]) == list(before["item_id"])


def test_explanation_adds_up_and_effects_are_recomputed(fitted, shop):
    explanation = fitted.explain("u0", shop[1]["item_id"][4])
    pair = pd.DataFrame({"user_id": ["u0"], "item_id": [shop[1]["item_id"][4]]})
    assert explanation.score == pytest.approx(fitted.rerank(pair)["score"][0], abs=1e-6)
    assert sum(part.value for part in explanation.contributions) == pytest.approx(explanation.score, abs=1e-9)
    assert sum(explanation.by_group().values()) == pytest.approx(explanation.score, abs=1e-9)
    strongest = explanation.history[0]
    events = shop[0][(shop[0]["user_id"] == "u0") & (shop[0]["item_id"] != strongest.item_id)]
    moment = int(shop[0]["timestamp"].max()) + 1
    without = fitted.rerank(pair, histories=events, at=moment)["score"][0]
    assert strongest.effect == pytest.approx(explanation.score - without, abs=1e-6)
    assert strongest.title in str(explanation)
    assert "contribution" in explanation._repr_html_()
    with pytest.raises(DataError, match="absent"):
        fitted.explain("u0", "nowhere")


def test_explanation_from_a_list_of_items(fitted, shop):
    items = list(shop[1]["item_id"][:3])
    explanation = fitted.explain("anyone", shop[1]["item_id"][4], history=items)
    assert {effect.item_id for effect in explanation.history} == set(items)


def test_kept_follows_the_cut_and_the_bounds(shop, fitted, candidates):
    result = fitted.rerank(candidates)
    cut = fitted.report().values["cut"]
    assert cut["rule"] == "recall"
    expected = result["probability"] >= cut["least_probability"]
    pd.testing.assert_series_equal(result["kept"], expected, check_names=False)
    assert 0 < result["kept"].mean() < 1


def test_report_says_what_was_decided(fitted):
    text = str(fitted.report())
    for words in (
        "protocol time",
        "guard:",
        "n = ",
        "calibration on fold G",
        "cut: rule recall",
        "refit",
        "targets are",
    ):
        assert words in text
    assert "<li>" in fitted.report()._repr_html_()


def test_saved_and_loaded_in_another_process_it_answers_alike(fitted, candidates, shop, tmp_path):
    folder = tmp_path / "shop"
    fitted.save(folder)
    extra = pd.DataFrame({"user_id": ["u5", "u5"], "item_id": [shop[1]["item_id"].iloc[-1], "nowhere"]})
    asked = pd.concat([candidates, extra], ignore_index=True)
    asked.to_parquet(tmp_path / "asked.parquet")
    code = (
        "import sys; from llm_rerank.recommendation.reranker import Reranker\n"
        "folder, asked, out = sys.argv[1:]\n"
        "loaded = Reranker.load(folder)\n"
        "loaded.rerank(asked).to_parquet(out + '/reranked.parquet')\n"
        "loaded.recommend(['u1', 'nobody'], k=7).to_parquet(out + '/recommended.parquet')\n"
    )
    arguments = [str(folder), str(tmp_path / "asked.parquet"), str(tmp_path)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=300)
    for name, here in (("reranked", fitted.rerank(asked)), ("recommended", fitted.recommend(["u1", "nobody"], k=7))):
        there = pd.read_parquet(tmp_path / f"{name}.parquet")
        assert list(there["item_id"]) == list(here["item_id"])
        for column in ("score", "probability", "score_collaborative", "score_context"):
            np.testing.assert_allclose(there[column], here[column], atol=1e-6, equal_nan=True)


def test_without_histories_no_event_is_on_disk(fitted, shop, tmp_path):
    fitted.save(tmp_path / "shop", histories=False)
    loaded = Reranker.load(tmp_path / "shop")
    assert len(loaded._data().events) == 0
    assert len(loaded._data().events.user_ids) == 0
    known = shop[0][shop[0]["user_id"] == "u0"]
    moment = int(shop[0]["timestamp"].max()) + 1
    pair = pd.DataFrame({"user_id": ["u0"], "item_id": [shop[1]["item_id"][4]]})
    given = loaded.rerank(pair, histories=known, at=moment)
    np.testing.assert_allclose(given["score"], fitted.rerank(pair)["score"], atol=1e-6)


def test_settings_of_after_the_fit_are_saved_but_for_what_it_learned_by(fitted, tmp_path):
    reranker = Reranker.from_saved(fitted.saved)
    cut = ThresholdConfig("probability", 0.02)
    reranker.config = replace(reranker.config, threshold=cut, max_items=3, encoder="another", min_rating=4.0)
    asked = reranker.recommend(["u1", "u2"], k=None)
    reranker.save(tmp_path / "shop")
    loaded = Reranker.load(tmp_path / "shop", verbose=False)
    assert (loaded.config.threshold, loaded.config.max_items) == (cut, 3)
    assert (loaded.config.encoder, loaded.config.min_rating) == (None, None)
    assert loaded.saved.origin != fitted.saved.origin
    pd.testing.assert_frame_equal(loaded.recommend(["u1", "u2"], k=None), asked)
    assert 0 < asked["kept"].sum() <= 6
    assert fitted.saved.config.max_items is None
    loaded.config = fitted.config  # whose cut is there still
    pd.testing.assert_frame_equal(loaded.recommend(["u1", "u2"]), fitted.recommend(["u1", "u2"]))


def test_a_damaged_model_is_refused_by_name(fitted, tmp_path):
    fitted.save(tmp_path / "shop")
    content = next(path for path in (tmp_path / "shop").iterdir() if path.is_dir())
    victim = content / "config.json"
    victim.write_bytes(victim.read_bytes().replace(b"0", b"1", 1))
    with pytest.raises(StorageError, match=r"config\.json"):
        Reranker.load(tmp_path / "shop")
    with pytest.raises(StorageError, match="not a folder"):
        Reranker.load(tmp_path / "elsewhere")


def test_before_fit_there_is_a_clear_error(candidates):
    with pytest.raises(NotFittedError, match="call fit"):
        Reranker().rerank(candidates)


def test_columns_map_a_shops_own_names(shop):
    events, items = shop
    config = RerankerConfig(encoder=None, sequence="off", refit=False, candidates_per_source=20)
    renamed = events.rename(columns={"user_id": "customer", "item_id": "sku"})
    mapping = {"customer": "user_id", "sku": "item_id"}
    reranker = Reranker(config, verbose=False).fit(renamed, items, columns=mapping)
    assert len(reranker.recommend(["u0"], k=3)) == 3
    with pytest.raises(DataError, match="kunde"):
        Reranker(config, verbose=False).fit(events, items, columns={"kunde": "user_id"})


def test_a_start_from_another_shop_lends_its_blend_and_not_its_settings(fitted, shop, tmp_path):
    fitted.save(tmp_path / "old")
    events, items = shop
    young = events[events["user_id"].isin([f"u{i}" for i in range(40)])]
    config = RerankerConfig(encoder=None, sequence="off", candidates_per_source=20)
    lent = Reranker(config, verbose=False).fit(young, items, start_from=tmp_path / "old")
    alone = Reranker(config, verbose=False).fit(young, items)
    assert lent._fit_result().report["settings"] == alone._fit_result().report["settings"]
    old, new = fitted._fit_result().stage.blend, lent._fit_result().stage.blend
    lends = {name for name, weight in zip(old.names, old.weights, strict=True) if weight}
    lends -= set(alone._fit_result().stage.blend.names) - set(new.names)
    weighted = {name for name, weight in zip(new.names, new.weights, strict=True) if weight}
    assert {name for name in new.names if name in lends} <= weighted
    # alone, 40 users are too few for a blend: one component ranks, a little of the sum of all, and popularity in ties
    blend = alone._fit_result().stage.blend
    weighted = {name for name, weight in zip(blend.names, blend.weights, strict=True) if weight}
    assert weighted == {blend.default, *(f"{name}{LINEAR}" for name in ("text_ease", "als", "item_knn")), *POPULARITY}


def test_users_of_another_kind_of_id_are_the_same_users(shop):
    events, items = shop
    config = RerankerConfig(encoder=None, sequence="off", refit=False, candidates_per_source=20)
    numbered = events.assign(user_id=events["user_id"].str[1:].astype(int))
    reranker = Reranker(config, verbose=False).fit(numbered, items)
    pair = {"item_id": [items["item_id"][4]]}
    as_number = reranker.rerank(pd.DataFrame({"user_id": [17], **pair}))
    as_text = reranker.rerank(pd.DataFrame({"user_id": ["17"], **pair}))
    stranger = reranker.rerank(pd.DataFrame({"user_id": ["nobody"], **pair}))
    assert as_text["score"][0] == as_number["score"][0] != stranger["score"][0]


def test_features_must_be_known():
    with pytest.raises(DataError, match="colour"):
        Reranker(features=("colour",))
