"""Decisions on a fitted shop: what is kept, bounds on it, groups of columns, and results that come in again."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from llm_rerank.models import scoring
from llm_rerank.recommendation import deciding
from llm_rerank.recommendation.deciding import groups_of_columns, scores_for


@pytest.fixture(scope="module")
def asked(shop):
    """Every item for u0 and u1, and two items that the catalogue lacks for each, in front."""
    items = ["nowhere", "gone", *shop[1]["item_id"]]
    return pd.concat([pd.DataFrame({"user_id": user, "item_id": items}) for user in ("u0", "u1")], ignore_index=True)


@pytest.fixture
def changed(fitted, monkeypatch):
    """Ask the fitted reranker as if its settings or its cut were others."""

    def change(*, cut="same", **settings):
        monkeypatch.setattr(fitted, "config", replace(fitted.config, **settings))
        if cut != "same":
            result = fitted._saved.fitted
            stage = replace(result.stage, cut=cut)
            monkeypatch.setattr(fitted, "_saved", replace(fitted._saved, fitted=replace(result, stage=stage)))
        return fitted

    return change


def test_bounds_hold_for_each_user_by_rank(changed, asked):
    least = changed().report().values["cut"]["least_probability"]
    few = changed(min_items=2, max_items=4).rerank(asked)
    above = few["probability"] >= least
    # rows are in order of rank: of those above the cut the first four, and where they are too few the first others
    wanted = above.groupby(few["user_id"]).transform("sum").clip(2, 4)
    places = few.assign(below=~above).sort_values("below", kind="stable").groupby("user_id").cumcount().sort_index()
    assert few["kept"].tolist() == (places < wanted).tolist()
    assert few.groupby("user_id")["kept"].sum().between(2, 4).all()
    many = changed(min_items=100, max_items=None).rerank(asked)
    assert (many.groupby("user_id")["kept"].sum() >= 100).all()


def test_each_user_has_their_rows_together_in_order_of_rank(fitted, asked):
    mixed = asked.iloc[np.random.default_rng(0).permutation(len(asked))].reset_index(drop=True)
    first = mixed["user_id"][0]
    other = {"u0": "u1", "u1": "u0"}[first]
    for k, n in ((None, len(asked) // 2), (3, 3)):
        result = fitted.rerank(mixed, k=k)
        assert result["user_id"].tolist() == [first] * n + [other] * n
        assert result["rank"].tolist() == [*range(1, n + 1)] * 2


def test_an_unknown_item_is_not_kept_even_to_fill_up(changed, shop):
    pair = pd.DataFrame({"user_id": "u0", "item_id": ["nowhere", shop[1]["item_id"][0]]})
    result = changed(min_items=2).rerank(pair)
    assert result["kept"].tolist() == [True, False]
    assert result["score"].isna().tolist() == [False, True]


def test_without_a_cut_all_known_items_are_kept(changed, asked):
    result = changed(cut=None).rerank(asked)
    assert result["kept"].tolist() == (~result["item_id"].isin(["nowhere", "gone"])).tolist()
    assert changed(cut=None).rerank(asked, k=5)["kept"].all()


def test_a_probability_at_the_cut_is_kept(changed, asked):
    plain = changed().rerank(asked)
    cut = changed().components and changed()._saved.fitted.stage.cut
    at = float(plain["probability"][7])
    result = changed(cut=replace(cut, least_probability=at)).rerank(asked)
    assert result["kept"][7]
    assert result["kept"].tolist() == (result["probability"] >= at).tolist()


def test_a_component_and_its_products_with_support_are_of_one_group(fitted):
    result = fitted._saved.fitted
    names = ("als", "als × user_support", "text_ease × item_support", "upstream", "upstream × user_support", "sales_7d")
    blend = replace(result.stage.blend, names=names, weights=np.zeros(6))
    assert groups_of_columns(result, replace(result.stage, blend=blend)) == [
        "collaborative", "collaborative", "collaborative", "upstream", "upstream", "context",
    ]  # fmt: skip


def test_a_result_that_comes_in_again_is_decided_anew(fitted, asked):
    fresh = fitted.rerank(asked)
    stale = asked.assign(score=-1.0, rank=99, probability=0.5, kept=True, score_context=7.0, colour="red")
    again = fitted.rerank(stale)
    pd.testing.assert_frame_equal(again.drop(columns="colour"), fresh)
    assert (again["colour"] == "red").all()
    # its own result in its own order keeps its order
    pd.testing.assert_frame_equal(fitted.rerank(fresh), fresh, check_exact=False, rtol=1e-5)


def test_a_stage_reads_components_by_name_not_by_place(fitted):
    stage = fitted._fit_result().stage
    own = list(stage.component_names)
    scores = np.arange(3 * len(own), dtype=np.float32).reshape(3, len(own))
    np.testing.assert_array_equal(scores_for(stage, own, scores), scores)
    # the shop that lent the stage had neither the first component nor the same order, and we have one it never saw
    names = [*reversed(own[1:]), "cross_encoder"]
    given = np.column_stack([scores[:, :0:-1], np.full(3, 99.0)]).astype(np.float32)
    found = scores_for(stage, names, given)
    np.testing.assert_array_equal(found[:, 1:], scores[:, 1:])
    assert np.isnan(found[:, 0]).all()


def test_parts_and_chances_of_another_result_do_not_pass_through(fitted):
    first = fitted.rerank(fitted.recommend(k=5)[["user_id", "item_id"]])
    stale = first.assign(score_semantic=5.0, propensity=0.5, score_of_theirs=7.0)
    again = fitted.rerank(stale)
    parts = [name for name in again if name.startswith("score_") and name != "score_of_theirs"]
    assert "score_semantic" not in again and "propensity" not in again and (again["score_of_theirs"] == 7.0).all()
    assert np.abs(again[parts].sum(axis=1) - again["score"]).max() < 1e-5


@pytest.mark.parametrize("k", [3, None])
def test_all_users_at_once_are_decided_in_batches_and_nothing_is_otherwise(fitted, monkeypatch, k):
    monkeypatch.setattr(scoring, "BLOCK_CELLS", 50 * len(fitted.saved.fitted.items))
    users = [*fitted.saved.events.user_ids, 7, "a newcomer"]  # 702: batches of 100, the last of 2
    whole = fitted.recommend(users, k=k)
    monkeypatch.setattr(deciding, "MOST_TOGETHER", 149)
    assert [len(rows) for rows in deciding.batches(len(users), len(fitted.saved.fitted.items))] == [100] * 7 + [2]
    in_batches = fitted.recommend(users, k=k)
    pd.testing.assert_frame_equal(in_batches, whole, check_exact=True)
    assert in_batches.attrs == whole.attrs
    assert whole.attrs["decision"]["drift"]["n_cases"] == 702
    assert len(fitted.recommend([], k=k)) == 0


def test_many_users_do_not_hold_their_candidates_together(fitted, monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK_CELLS", 50 * len(fitted.saved.fitted.items))
    peaks = []
    for together in (10_000, 50):
        monkeypatch.setattr(deciding, "MOST_TOGETHER", together)
        tracemalloc.start()
        fitted.recommend(k=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] / 3
