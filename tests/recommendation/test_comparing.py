"""Two lists compared: places, moves and reasons by hand, numbers of the summary, kinds of tables, and bad input."""

import numpy as np
import pandas as pd
import polars as pl
import pytest

from llm_rerank.recommendation.comparing import compare_results
from llm_rerank.types import DataError


def listed(user, items, ranks, **columns):
    return pd.DataFrame({"user_id": user, "item_id": list(items), "rank": ranks, **columns})


def by_item(comparison, column):
    return dict(zip(comparison.table["item_id"], comparison.table[column], strict=True))


# user 1: a, b, c become c, a, b. The parts: text +1 for all and +2 more for c; sales fall for b alone by .5
BEFORE = listed("u1", "abc", [1, 2, 3], kept=[True, True, False], score_text=[0.0, 0, 0], score_sales=[3.0, 2, 1])
AFTER = listed("u1", "cab", [1, 2, 3], kept=[True, False, False], score_text=[3.0, 1, 1], score_sales=[1.0, 3, 1.5])


def test_each_move_has_its_places_and_the_group_that_changed_most_against_the_list():
    # changes: text c +3, a +1, b +1, mean 5/3; sales c 0, a 0, b −.5, mean −1/6
    # c rose: text 3 − 5/3 = 4/3. a fell: text 1 − 5/3 = −2/3. b fell: text −2/3, sales −.5 + 1/6 = −1/3
    result = compare_results(BEFORE, AFTER)
    assert result.table["item_id"].tolist() == ["c", "a", "b"]
    assert by_item(result, "move") == {"c": 2, "a": -1, "b": -1}
    assert by_item(result, "change") == {"c": "rose", "a": "fell", "b": "fell"}
    assert by_item(result, "why") == {"c": "text", "a": "text", "b": "text"}
    assert by_item(result, "why_change") == pytest.approx({"c": 4 / 3, "a": -2 / 3, "b": -2 / 3})
    assert by_item(result, "kept_before") == {"c": False, "a": True, "b": True}
    assert by_item(result, "kept_after") == {"c": True, "a": False, "b": False}
    # a part that rises for all moves nobody
    shifted = compare_results(BEFORE, AFTER.assign(score_sales=AFTER["score_sales"] + 100))
    assert by_item(shifted, "why") == by_item(result, "why")
    np.testing.assert_allclose(shifted.table["why_change"], result.table["why_change"])


def test_a_group_that_one_list_lacks_had_no_part_in_it():
    result = compare_results(BEFORE.drop(columns="score_text"), AFTER)
    assert by_item(result, "why_change") == pytest.approx({"c": 4 / 3, "a": -2 / 3, "b": -2 / 3})
    result = compare_results(BEFORE, AFTER.drop(columns="score_text"))  # text fell by 0 for all
    assert by_item(result, "why") == {"c": "sales", "a": "", "b": "sales"}
    assert by_item(result, "why_change")["c"] == pytest.approx(1 / 6)


def test_after_a_bare_list_the_reason_is_what_stands_out_in_the_list():
    # text: 3, 1, 1, mean 5/3; sales: 1, 3, 1.5, mean 11/6
    # c rose: text +4/3. a fell: text −2/3 (sales +7/6 speaks for it). b fell: text −2/3, sales −1/3
    bare = pd.DataFrame({"user_id": "u1", "item_id": list("abc"), "upstream_score": [9.0, 5.0, 5.0]})
    result = compare_results(bare, AFTER)
    assert by_item(result, "rank_before") == {"a": 1, "b": 2, "c": 3}  # of equals the earlier row
    assert by_item(result, "why") == {"c": "text", "a": "text", "b": "text"}
    assert by_item(result, "why_change") == pytest.approx({"c": 4 / 3, "a": -2 / 3, "b": -2 / 3})
    assert result.table["kept_before"].isna().all()
    # a rank wins over a score, which is then only passed through
    ranked = compare_results(bare.assign(rank=[3, 2, 1]), AFTER)
    assert by_item(ranked, "rank_before") == {"a": 3, "b": 2, "c": 1}


def test_what_entered_left_or_has_no_score():
    before = listed("u1", "abx", [1, 2, 3], score_text=[1.0, 1, 1])
    after = listed("u1", "nab?", [1, 2, 3, 4], score_text=[2.0, 1, -3, np.nan])
    result = compare_results(before, after)
    assert result.table["item_id"].tolist() == ["n", "a", "b", "?", "x"]
    assert by_item(result, "change") == {"n": "entered", "a": "fell", "b": "fell", "?": "entered", "x": "left"}
    assert result.table["move"].isna().tolist() == [True, False, False, True, True]
    # n stands out by 2 − mean(2, 1, −3) = 2; a lost 0 and b 4, mean −2: nothing explains a but that another came
    assert by_item(result, "why") == {"n": "text", "a": "", "b": "text", "?": "", "x": ""}
    assert by_item(result, "why_change")["n"] == pytest.approx(2.0)
    assert by_item(result, "why_change")["b"] == pytest.approx(-2.0)


def test_the_mean_is_of_each_users_own_list():
    before = pd.concat([BEFORE, BEFORE.assign(user_id="u2")])
    after = pd.concat([AFTER, AFTER.assign(user_id="u2", score_text=AFTER["score_text"] * 100)])
    table = compare_results(before, after).table
    first = table[table["user_id"] == "u1"]
    pd.testing.assert_frame_equal(first, compare_results(BEFORE, AFTER).table)
    assert table["user_id"].tolist() == ["u1"] * 3 + ["u2"] * 3


def test_the_summary_counts_users_items_and_places():
    # u1: 12 items, the first two change places; u2: the same list; u3: 2 of 4 others; u4 and u5 are in one list only
    items = [f"i{n}" for n in range(12)]
    swapped = [items[1], items[0], *items[2:]]
    before = pd.concat(
        [
            listed("u1", items, range(1, 13), kept=True),
            listed("u2", items[:5], range(1, 6), kept=False),
            listed("u3", items[:4], range(1, 5), kept=False),
            listed("u4", items[:1], [1], kept=False),
        ]
    )
    after = pd.concat(
        [
            listed("u1", swapped, range(1, 13), kept=False),
            listed("u2", items[:5], range(1, 6), kept=False),
            listed("u3", [*items[:2], "x", "y"], range(1, 5), kept=True),
            listed("u5", items[:1], [1], kept=False),
        ]
    )
    summary = compare_results(before, after).summary()
    assert summary["n_users"] == 5
    assert summary["n_users_in_both"] == 3
    assert [summary[f"n_{name}"] for name in ("rose", "fell", "stayed", "entered", "left")] == [1, 1, 17, 3, 3]
    assert summary["n_pairs"] == 25
    assert summary["share_changed_top_10"] == pytest.approx(2 / 3)
    assert summary["mean_overlap_top_10"] == pytest.approx((1 + 1 + 2 / 4) / 3)
    assert summary["mean_absolute_move"] == pytest.approx(2 / 19)
    assert summary["kept_rate_before"] == pytest.approx(12 / 22)
    assert summary["kept_rate_after"] == pytest.approx(4 / 22)


def test_a_shorter_list_is_no_full_overlap():
    short = compare_results(BEFORE, AFTER[:1])
    assert short.summary()["mean_overlap_top_10"] == pytest.approx(1 / 3)
    assert compare_results(AFTER[:1], BEFORE).summary()["mean_overlap_top_10"] == pytest.approx(1 / 3)


def test_a_move_below_the_tenth_place_changes_no_first_ten():
    items = [f"i{n}" for n in range(12)]
    summary = compare_results(
        listed("u1", items, range(1, 13)), listed("u1", [*items[:10], items[11], items[10]], range(1, 13))
    ).summary()
    assert summary["share_changed_top_10"] == 0
    assert summary["n_rose"] == 1
    assert np.isnan(summary["kept_rate_after"])


def test_text_and_page_say_it_and_cannot_break(fitted, shop):
    hostile = "<script>alert(1)</script>"
    before, after = BEFORE.replace({"item_id": {"c": hostile}}), AFTER.replace({"item_id": {"c": hostile}})
    result = compare_results(before.assign(user_id=hostile), after.assign(user_id=hostile))
    lines = str(result).splitlines()
    assert lines[0] == "1 users, 3 items in their lists: 1 rose, 2 fell, 0 stayed, 0 entered, 0 left"
    assert lines[1].startswith("first 10: changed for 100.0% of users, 100.0% of the items the same; an item in both")
    assert lines[2] == "kept: 66.7% before, 33.3% after"
    assert lines[3:5] == ["why they rose: text 1", "why they fell: text 2"]
    assert f"  {hostile}: 3 → 1  {hostile} (text +1.333)" in lines
    page = result._repr_html_()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3


def test_through_the_reranker_with_titles_and_the_greatest_reason(fitted, shop):
    events, items = shop
    users = events["user_id"].unique()[:20]
    bare = pd.DataFrame(
        {
            "user_id": np.repeat(users, 30),
            "item_id": np.tile(items["item_id"][:30], len(users)),
            "upstream_score": np.random.default_rng(0).normal(size=600),
        }
    )
    result = fitted.rerank(bare)
    comparison = fitted.compare(bare, result)
    table = comparison.table.merge(result, on=["user_id", "item_id"])
    assert len(table) == 600
    assert (table["rank_after"] == table["rank"]).all()
    expected = bare.groupby("user_id")["upstream_score"].rank(ascending=False)
    found = table.set_index(["user_id", "item_id"])["rank_before"]
    assert found.loc[list(zip(bare["user_id"], bare["item_id"], strict=True))].tolist() == expected.tolist()
    assert (table["move"] == table["rank_before"] - table["rank_after"]).all()
    titles = items.set_index("item_id")["title"]
    assert (table["title"] == table["item_id"].map(titles)).all()
    # the reason points the way of the move, and is the greatest that does
    groups = [name for name in result.columns if name.startswith("score_")]
    parts = table[groups] - table.groupby("user_id")[groups].transform("mean")
    towards = parts.mul(np.sign(table["move"].astype(float)), axis=0)
    moved = table["move"] != 0
    assert (moved & (table["why"] != "")).sum() > 400
    best = towards.idxmax(axis=1).str.removeprefix("score_")
    assert (table["why"] == best.where(towards.max(axis=1) > 0, ""))[moved].all()
    # nothing moved against itself
    same = fitted.compare(result, result).summary()
    assert (same["n_stayed"], same["share_changed_top_10"], same["mean_overlap_top_10"]) == (600, 0, 1)


def test_numbers_in_one_list_and_texts_in_the_other_are_one_id():
    result = compare_results(
        listed(7, [1, 2], [1, 2]).astype({"user_id": int}), listed("7", ["2", "1"], [1, 2], score_text=[1.0, 0])
    )
    assert by_item(result, "move") == {"2": 1, "1": -1}
    assert result.table["user_id"].unique().tolist() == ["7"]


def test_polars_in_polars_out_and_inputs_stay():
    polars = pytest.importorskip("polars")
    before, after = BEFORE.copy(), AFTER.copy()
    result = compare_results(polars.from_pandas(BEFORE), polars.from_pandas(AFTER))
    assert isinstance(result.frame, polars.DataFrame)
    assert result.frame["move"].to_list() == [2, -1, -1]
    compare_results(BEFORE, AFTER)
    pd.testing.assert_frame_equal(BEFORE, before)
    pd.testing.assert_frame_equal(AFTER, after)


def test_a_pair_that_comes_twice_counts_at_its_better_place():
    twice = pd.concat([AFTER, listed("u1", "c", [9])])
    pd.testing.assert_frame_equal(compare_results(BEFORE, twice).table, compare_results(BEFORE, AFTER).table)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            BEFORE.drop(columns="rank"),
            AFTER,
            "before lacks a column 'rank' or 'upstream_score'.*it has user_id, item_id",
        ),
        (BEFORE, AFTER.drop(columns="rank"), "after lacks the column 'rank'.*give a result of rerank"),
        (BEFORE.drop(columns="user_id"), AFTER, "before.*user_id"),
        (BEFORE, AFTER.drop(columns="item_id"), "after.*item_id"),
        (BEFORE.assign(rank=[1, 0, 2]), AFTER, "rank of before is .*0.*whole numbers from 1"),
        (BEFORE, AFTER.assign(rank=[1, 2.5, 3]), "rank of after is .*2.5"),
        (BEFORE, AFTER.assign(rank=[1, 2, np.nan]), "rank of after is .*nan"),
        (BEFORE.drop(columns="rank").assign(upstream_score="x"), AFTER, "upstream_score of before holds no number"),
    ],
)
def test_bad_lists_are_named_with_the_remedy(before, after, message):
    with pytest.raises(DataError, match=message):
        compare_results(before, after)


def test_empty_lists_compare_to_nothing():
    result = compare_results(BEFORE[:0], AFTER[:0])
    assert len(result.table) == 0
    assert result.summary()["n_users"] == 0
    assert str(result).startswith("0 users")
    assert np.isnan(result.summary()["share_changed_top_10"])
    everything_left = compare_results(BEFORE, AFTER[:0]).table
    assert everything_left["change"].tolist() == ["left"] * 3


def test_results_from_files_are_compared_as_they_were(tmp_path):
    frames = [BEFORE, AFTER.assign(kept=pd.array([True, None, False], dtype="boolean"))]
    paths = [tmp_path / "before.csv", tmp_path / "after.csv"]
    for frame, path in zip(frames, paths, strict=True):
        frame.to_csv(path, index=False)
    pd.testing.assert_frame_equal(compare_results(*paths).frame, compare_results(*frames).frame)
    polars = [pl.from_pandas(frame).with_columns(pl.col("kept").cast(pl.String)) for frame in frames]
    assert compare_results(*polars).summary() == compare_results(*frames).summary()
    with pytest.raises(DataError, match="kept of after is 'perhaps'; give True, False, or nothing"):
        compare_results(BEFORE, AFTER.assign(kept=["True", "perhaps", ""]))
