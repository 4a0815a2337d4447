"""What is held out, what is left in the past, and what lists are worth: by hand, and on altered futures."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llm_rerank.data.cases import build_cases
from llm_rerank.data.datasets import Dataset, load_dataset
from llm_rerank.data.schema import validate_interactions, validate_items
from llm_rerank.evaluation.comparison import RankingResult, ceiling, compare, evaluate_ranking
from llm_rerank.evaluation.protocols import (
    LastOut,
    TimeCut,
    Trial,
    hold_out,
    rank_catalogue,
    ranking_from_frame,
)
from llm_rerank.models.collaborative.ease import EASE
from llm_rerank.models.collaborative.popularity import Popularity
from llm_rerank.statistics import holm, paired_difference
from llm_rerank.types import DataError, Ragged
from tests.shops import make_shop

DATA = Path(os.environ.get("LLM_RERANK_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
DAY = 86_400
START = 1_600_000_000


def at(day: float) -> int:
    return START + int(day * DAY)


def dataset(rows: list[tuple], n_items: int = 6, **columns: list) -> Dataset:
    """Rows of (user, item number, time)."""
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).assign(**columns)
    frame["item_id"] = [f"i{number}" for number in frame["item_id"]]
    items = pd.DataFrame({"item_id": [f"i{n}" for n in range(n_items)], "title": [f"item {n}" for n in range(n_items)]})
    return Dataset("shop", frame, items, None, [])


def rows_of(frame: pd.DataFrame) -> list[tuple]:
    return list(frame[["user_id", "item_id", "timestamp"]].itertuples(index=False, name=None))


def targets_of(trial: Trial) -> dict[str, list[str]]:
    lists = [trial.items.ids[trial.cases.targets[row]].tolist() for row in range(len(trial.cases))]
    return dict(zip(trial.user_ids.tolist(), lists, strict=True))


SEQUENCES = dataset(
    [
        ("a", 0, 0),
        ("a", 1, 1),
        ("a", 2, 2),
        ("a", 0, 3),  # a's last is an item had before: it stays the target, and is in seen
        ("b", 3, 0),
        ("b", 4, 1),
        ("c", 5, 0),  # c has one event: all past
        ("d", 1, 5),
        ("d", 2, 5),  # d took both at one time: no past strictly before, so nothing is held out
    ]
)


def test_last_out_by_hand() -> None:
    test = hold_out(SEQUENCES, LastOut(), "test")
    assert targets_of(test) == {"a": ["i0"], "b": ["i4"]}
    assert rows_of(test.interactions) == [
        ("a", "i0", 0),
        ("a", "i1", 1),
        ("a", "i2", 2),
        ("b", "i3", 0),
        ("c", "i5", 0),
        ("d", "i1", 5),
        ("d", "i2", 5),
    ]
    assert [test.items.ids[row].tolist() for row in map(test.cases.history.__getitem__, range(2))] == [
        ["i0", "i1", "i2"],
        ["i3"],
    ]
    assert [test.seen[row].tolist() for row in range(2)] == [[0, 1, 2], [3]]
    assert test.at is None
    assert test.item_support.tolist() == [1, 2, 2, 1, 0, 1]


BASKETS = dataset(
    [
        ("a", 0, at(1)),
        ("a", 1, at(10)),
        ("a", 2, at(10)),  # with 1 in one basket: validation targets of a
        ("a", 3, at(20)),
        ("a", 0, at(20)),  # had before: no target, whatever the order of rows
        ("a", 4, at(20)),  # test targets of a: 3 and 4
        ("b", 5, at(2)),
        ("b", 1, at(4) - 3600),  # b looks at 1 an hour before taking it: the decision comes before the look
        ("b", 1, at(4)),
        ("b", 1, at(5)),
        ("b", 1, at(9)),  # again: nothing new
        ("c", 2, at(3)),  # c only looked at 2 until then, at 5 within the visit
        ("c", 5, at(6) - 60),
        ("c", 5, at(6)),
    ],
    event=["purchase"] * 6 + ["view", "view", "purchase", "purchase", "purchase", "view", "view", "purchase"],
)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_the_last_visit_is_held_out_whole_and_before_its_looks(seed) -> None:  # noqa: ANN001
    shuffled = BASKETS.interactions if seed is None else BASKETS.interactions.sample(frac=1, random_state=seed)
    shop = replace(BASKETS, interactions=shuffled)
    test = hold_out(shop, LastOut(visits=True), "test", least_history=0)
    assert {user: set(found) for user, found in targets_of(test).items()} == {
        "a": {"i3", "i4"},
        "b": {"i1"},
        "c": {"i5"},
    }
    assert dict(zip(test.user_ids, test.cases.times.tolist(), strict=True)) == {
        "a": at(20),
        "b": at(4) - 3600,
        "c": at(6) - 60,
    }
    assert set(rows_of(test.interactions)) == {
        ("a", "i0", at(1)),
        ("a", "i1", at(10)),
        ("a", "i2", at(10)),
        ("b", "i5", at(2)),
        ("c", "i2", at(3)),
    }
    assert "all new items of each user's last visit" in test.protocol and test.counted == "all new items of one visit"
    # b and c had only looked until then: published trials leave such users out
    assert set(targets_of(hold_out(shop, LastOut(visits=True), "test"))) == {"a"}
    validation = hold_out(shop, LastOut(visits=True), "validation")
    assert {user: set(found) for user, found in targets_of(validation).items()} == {"a": {"i1", "i2"}}


def test_validation_of_last_out_is_the_event_before_and_holds_no_test_event() -> None:
    validation = hold_out(SEQUENCES, LastOut(), "validation")
    # b has two events: with the last gone, the first has no past before it
    assert targets_of(validation) == {"a": ["i2"]}
    assert rows_of(validation.interactions) == [
        ("a", "i0", 0),
        ("a", "i1", 1),
        ("b", "i3", 0),
        ("c", "i5", 0),
        ("d", "i1", 5),
        ("d", "i2", 5),
    ]


# ten days a unit; the data end at time 100 (exclusive end 101 · DAY is one second after the last event)
CLOCK = dataset(
    [
        ("a", 0, at(1)),
        ("a", 1, at(50)),  # validation target of a
        ("a", 2, at(75)),  # test targets of a: 2, 3 (4 times), not 0, which a had
        ("a", 3, at(80)),
        ("a", 3, at(81)),
        ("a", 0, at(90)),
        ("b", 1, at(60)),  # b has no past before the validation cut; b is tested only
        ("b", 0, at(99)),
        ("c", 5, at(80)),  # c is new: no past at all
        ("d", 0, at(5)),  # d comes back for what they had: no new target
        ("d", 0, at(85)),
    ]
)
CUT = pd.Timestamp(at(70), unit="s").isoformat()


def test_time_cut_by_hand() -> None:
    test = hold_out(CLOCK, TimeCut(CUT), "test")
    assert targets_of(test) == {"a": ["i2", "i3"], "b": ["i0"]}
    assert test.at == at(70)
    assert rows_of(test.interactions) == [
        ("a", "i0", at(1)),
        ("a", "i1", at(50)),
        ("b", "i1", at(60)),
        ("d", "i0", at(5)),
    ]
    assert (test.cases.times == at(70)).all()
    assert str(np.datetime64(at(70), "s")) in test.protocol


def test_with_repeats_what_a_user_had_before_is_a_target_too() -> None:
    test = hold_out(CLOCK, TimeCut(CUT, repeats=True), "test")
    assert targets_of(test) == {"a": ["i2", "i3", "i0"], "b": ["i0"], "d": ["i0"]}
    assert "had before or not" in test.protocol
    with pytest.raises(DataError, match="first_visit and repeats are both set"):
        TimeCut(CUT, first_visit=True, repeats=True)


def test_validation_cut_lies_as_long_before_the_cut_as_the_data_reach_beyond_it() -> None:
    validation = hold_out(CLOCK, TimeCut(CUT), "validation")
    # the data end one second after day 99: the horizon is 29 days and a second, so the cut is day 41 less a second
    assert validation.at == at(41) - 1
    assert targets_of(validation) == {"a": ["i1"]}
    assert rows_of(validation.interactions) == [("a", "i0", at(1)), ("d", "i0", at(5))]


def test_least_buyers_counts_buyers_before_the_cut_of_the_split_only() -> None:
    # before day 70: item 0 has buyers a, d; item 1 has a, b. Items 2, 3 get their buyers after
    test = hold_out(CLOCK, TimeCut(CUT, least_buyers=2), "test")
    assert test.items.ids.tolist() == ["i0", "i1"]
    assert test.item_frame["item_id"].tolist() == ["i0", "i1"]
    assert targets_of(test) == {"b": ["i0"]}
    # before the validation cut only item 0 has two buyers, and nobody finds it anew
    with pytest.raises(DataError, match="no user of 'shop' is left for the validation split"):
        hold_out(CLOCK, TimeCut(CUT, least_buyers=2), "validation")


def test_searches_stay_where_rare_items_are_left_out() -> None:
    searched = pd.concat(
        [CLOCK.interactions.assign(query=""), pd.DataFrame([{"user_id": "b", "timestamp": at(60), "query": "kettle"}])]
    )
    test = hold_out(replace(CLOCK, interactions=searched), TimeCut(CUT, least_buyers=2), "test")
    assert dict(zip(test.user_ids, test.cases.queries, strict=True)) == {"b": "kettle"}


def test_least_history_counts_distinct_items() -> None:
    assert targets_of(hold_out(CLOCK, TimeCut(CUT), "test", least_history=2)) == {"a": ["i2", "i3"]}


def test_item_support_counts_users_not_events() -> None:
    trial = hold_out(dataset([("a", 0, 0), ("a", 0, 1), ("a", 1, 2), ("b", 0, 0), ("b", 1, 1)]), LastOut(), "test")
    assert trial.item_support.tolist() == [2, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("protocol", [LastOut(), TimeCut()])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_both_forms_of_the_past_are_one_and_hold_nothing_of_the_future(protocol, split) -> None:  # noqa: ANN001
    interactions, items = make_shop(n_users=120, seed=3)
    trial = hold_out(Dataset("shop", interactions, items, None, []), protocol, split)
    again = validate_interactions(trial.interactions, validate_items(trial.item_frame))
    assert len(again) == len(trial.past) > 500
    # user codes may differ (numbered by first event), what they stand for may not
    assert (again.user_ids[again.users] == trial.past.user_ids[trial.past.users]).all()
    for name in ("items", "times", "weights", "positive", "reviews"):
        assert (getattr(again, name) == getattr(trial.past, name)).all(), name

    # every event of a tested user that is still there lies before the decision
    decision = dict(zip(trial.user_ids, trial.cases.times, strict=True))
    moments = trial.interactions["user_id"].map(decision)
    assert (trial.interactions["timestamp"] < moments).loc[moments.notna()].all()
    # a case built from the frame alone is the case of the trial
    codes = {user: code for code, user in enumerate(again.user_ids)}
    cases = build_cases(again, np.array([codes[user] for user in trial.user_ids]), trial.cases.times)
    assert (cases.history.values == trial.cases.history.values).all()
    assert (cases.history.offsets == trial.cases.history.offsets).all()


@pytest.mark.parametrize("protocol", [LastOut(), TimeCut()])
def test_a_changed_future_changes_targets_and_nothing_else(protocol) -> None:  # noqa: ANN001
    interactions, items = make_shop(n_users=120, seed=4)
    before = hold_out(Dataset("shop", interactions, items, None, []), protocol, "test")
    decision = pd.Series(dict(zip(before.user_ids, before.cases.times, strict=True)))
    cut = interactions["user_id"].map(decision).fillna(np.inf if before.at is None else before.at)
    future = (interactions["timestamp"] >= cut).to_numpy()
    assert 100 < future.sum() < len(interactions) / 2
    changed = interactions.copy()
    changed.loc[future, "review"] = "a text of the future"
    changed.loc[future, "rating"] = 1.0
    changed.loc[future, "item_id"] = items["item_id"].iloc[-1]  # an item that nobody took before
    after = hold_out(Dataset("shop", changed, items, None, []), protocol, "test")
    # who came back only for what they had has a new target now, and is not among those compared
    after = after.take(np.flatnonzero(np.isin(after.user_ids, before.user_ids)))

    assert (after.user_ids == before.user_ids).all()
    assert set(after.cases.targets.values) == {len(items) - 1}
    pd.testing.assert_frame_equal(after.interactions, before.interactions)
    assert (after.items.texts == before.items.texts).all()
    assert (after.item_support == before.item_support).all()
    for name in ("users", "items", "times", "weights", "reviews"):
        assert (getattr(after.past, name) == getattr(before.past, name)).all(), name
    for one, other in ((after.cases.history, before.cases.history), (after.seen, before.seen)):
        assert (one.values == other.values).all()
    rankings = [rank_catalogue(EASE().fit(trial.past, trial.items), trial) for trial in (before, after)]
    assert (rankings[0].values == rankings[1].values).all()


def test_reviews_of_the_past_are_in_the_texts_and_those_of_the_future_are_not() -> None:
    told = dataset([("a", 0, 0), ("a", 1, 1), ("b", 0, 0), ("b", 1, 1)], review=["sturdy", "flimsy", "", "brittle"])
    texts = hold_out(told, LastOut(), "test").items.texts
    assert "sturdy" in texts[0]
    assert not any(word in text for text in texts for word in ("flimsy", "brittle"))


@pytest.mark.parametrize(
    ("protocol", "split", "message"),
    [
        (None, "test", "data set 'shop' has no protocol; pass LastOut"),
        (LastOut(), "train", "split is 'train'; it must be 'validation' or 'test'"),
        (TimeCut("soon"), "test", "cut is 'soon'; give a date such as"),
        (TimeCut(""), "test", "cut is ''; give a date such as"),
        (TimeCut("nat"), "test", "cut is 'nat'; give a date such as"),
        (TimeCut("01/02/2024"), "test", "cut is '01/02/2024'; give a date such as"),
        (TimeCut("1999-01-01"), "test", "the test cut 1999-01-01T00:00:00 leaves no past or no future"),
        (TimeCut(pd.Timestamp(at(20), unit="s").isoformat()), "validation", "the validation cut .* leaves no past"),
    ],
)
def test_errors_name_value_rule_and_remedy(protocol, split: str, message: str) -> None:  # noqa: ANN001
    with pytest.raises(DataError, match=message):
        hold_out(CLOCK, protocol, split)


def test_a_cut_in_time_needs_time() -> None:
    with pytest.raises(DataError, match=r"a time cut needs real timestamps and these are positions; use LastOut\(\)"):
        hold_out(SEQUENCES, TimeCut("2020-01-01"), "test")


# ---------------------------------------------------------------- ranking


def test_rank_catalogue_ranks_all_items_but_the_seen() -> None:
    trial = hold_out(SEQUENCES, LastOut(), "test")
    ranked = rank_catalogue(Popularity().fit(trial.past, trial.items), trial)
    # support 1 2 2 1 0 1; ties by code. a has had 0 1 2, b has had 3
    assert [ranked[row].tolist() for row in range(2)] == [[3, 5, 4], [1, 2, 0, 5, 4]]
    assert rank_catalogue(Popularity().fit(trial.past, trial.items), trial, 2)[1].tolist() == [1, 2]


def test_ranking_from_frame_reads_ranks_and_leaves_the_unasked_out() -> None:
    trial = hold_out(SEQUENCES, LastOut(), "test")
    frame = pd.DataFrame(
        {
            "user_id": ["b", "z", "b", "b"],
            "item_id": ["i4", "i1", "i2", "strange"],
            "rank": [2, 1, 1, 3],
        }
    )
    ranked = ranking_from_frame(frame, trial)
    assert [ranked[row].tolist() for row in range(2)] == [[], [2, 4, -1]]


def hand_trial() -> Trial:
    """Four users; targets {1, 2}, {3}, {4}, {5} of support 5 and 0, 1, 0, 30."""
    base = hold_out(SEQUENCES, LastOut(), "test")
    targets = Ragged.from_lists([[1, 2], [3], [4], [5]])
    cases = replace(
        base.cases.take(np.zeros(4, dtype=np.int64)),
        targets=targets,
    )
    return replace(
        base,
        cases=cases,
        user_ids=np.array(["p", "q", "r", "s"], dtype=object),
        seen=Ragged.from_lists([[0], [0, 1, 2], [0, 1, 2, 3, 5, 6], []]),
        item_support=np.array([9, 5, 0, 1, 0, 30, 2]),
    )


def test_evaluation_by_hand() -> None:
    trial = hand_trial()
    # p finds 2 at rank 1 and misses 1; q finds 3 at rank 2; r has no list; s finds 5 at rank 11
    ranked = Ragged.from_lists([[2, 5, 6], [6, 3], [], [6, 0, 1, 2, 3, 4, -1, -1, -1, -1, 5]])
    result = evaluate_ranking(ranked, trial, depth=20)
    ndcg = [1 / (1 + 1 / np.log2(3)), 1 / np.log2(3), 0.0, 0.0]  # .613147, .630930
    assert result.per_case["ndcg@10"] == pytest.approx(ndcg)
    assert result.per_case["hr@10"].tolist() == [1, 1, 0, 0]
    assert result.per_case["map@10"] == pytest.approx([1 / 2, 1 / 2, 0, 0])
    assert result.per_case["mrr"] == pytest.approx([1, 1 / 2, 0, 1 / 11])
    assert result.per_case["recall@20"].tolist() == [0.5, 1, 0, 1]
    assert result.intervals["ndcg@10"].mean == pytest.approx(np.mean(ndcg))
    assert result.coverage == pytest.approx(
        7 / 6
    )  # 7 codes are shown, 6 are in this catalogue of 6 (a hand-made trial)

    # users by distinct seen items: p 1, q 3, r 6, s 0
    strata = {name: None if found is None else (found.mean, found.n) for name, found in result.strata.items()}
    assert strata["user 1-2"] == (pytest.approx(ndcg[0]), 1)
    assert strata["user 3-5"] == (pytest.approx(ndcg[1]), 1)
    assert strata["user 6-10"] == (0.0, 1)
    assert strata["user 11+"] is None
    assert strata["user 0"] == (0.0, 1)
    with_items = evaluate_ranking(ranked.take(np.arange(3)), trial.take(np.arange(3)), depth=20)
    assert "user 0" not in with_items.strata  # published trials ask for an item had
    # targets by support: 2 and 4 have 0, 3 has 1, 1 has 5, 5 has 30; only they count as targets there
    assert strata["item 0"] == (pytest.approx(1 / 2), 2)  # p: 2 at rank 1 of 1 target = 1; r: 0
    assert strata["item 1-4"] == (pytest.approx(1 / np.log2(3)), 1)
    assert strata["item 5-19"] == (0.0, 1)
    assert strata["item 20+"] == (0.0, 1)  # found at rank 11 only

    summary = result.summary()
    assert summary["ndcg@10"] == pytest.approx(np.mean(ndcg))
    assert summary["n_cases"] == 4
    low, high = summary["ci95"]["ndcg@10"]
    assert 0 <= low < summary["ndcg@10"] < high <= ndcg[1]


def test_lists_with_seen_items_are_refused() -> None:
    with pytest.raises(DataError, match="ranked holds 2 items that their users have seen"):
        evaluate_ranking(Ragged.from_lists([[0], [1], [4], []]), hand_trial())
    with pytest.raises(DataError, match="ranked has 1 rows for 4 cases"):
        evaluate_ranking(Ragged.from_lists([[2]]), hand_trial())


def test_the_ceiling_is_reached_by_the_best_order_and_by_no_other() -> None:
    trial = hand_trial()
    candidates = Ragged.from_lists([[5, 2, 6], [6, 3], [], [5]])
    most = ceiling(candidates, trial)
    # recall (1/2 + 1 + 0 + 1) / 4; NDCG (1 / (1 + .630930) + 1 + 0 + 1) / 4; HR 3/4; (3 + 2 + 0 + 1) / 4 candidates
    assert most == {
        "candidate_recall": pytest.approx(0.625),
        "oracle_ndcg@10": pytest.approx((0.613147 + 2) / 4, abs=1e-6),
        "oracle_hr@10": 0.75,
        "candidates_per_case": 1.5,
    }
    best = evaluate_ranking(Ragged.from_lists([[2, 5, 6], [3, 6], [], [5]]), trial)
    assert best.intervals["ndcg@10"].mean == pytest.approx(most["oracle_ndcg@10"])


def test_comparisons_are_paired_and_adjusted_for_their_number() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(300)
    values = {"a": base, "b": base + rng.normal(0.02, 0.1, 300), "c": base + rng.normal(0.0, 0.1, 300)}
    results = {name: RankingResult({"ndcg@10": v}, {}, 0.0, {}, 10, 100) for name, v in values.items()}
    found = compare(results, [("b", "a"), ("c", "a")], n_resamples=2_000)
    alone = [paired_difference(values[name], values["a"], n_resamples=2_000) for name in ("b", "c")]
    assert [found[name]["p"] for name in ("b vs a", "c vs a")] == [difference.p for difference in alone]
    assert [found[name]["p_holm"] for name in ("b vs a", "c vs a")] == holm([d.p for d in alone]).tolist()
    assert found["b vs a"]["difference"] == pytest.approx(np.mean(values["b"] - values["a"]))
    assert found["b vs a"]["ci95"][0] > 0 > found["c vs a"]["ci95"][0]
    with pytest.raises(DataError, match=r"pairs name \['d'\], which were not evaluated"):
        compare(results, [("d", "a")])


def test_cases_of_a_trial_can_be_sampled() -> None:
    trial = hold_out(SEQUENCES, LastOut(), "test")
    one = trial.take(np.array([1]))
    assert (one.user_ids.tolist(), one.seen[0].tolist(), len(one.cases), len(one.past)) == (["b"], [3], 1, 7)


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not beside the project")
def test_published_sets_are_held_out_as_they_were_measured_before() -> None:
    scientific = load_dataset("amazon_scientific", DATA)
    test = hold_out(scientific, split="test")
    assert (len(test.cases), len(test.past), len(test.items)) == (8_442, 59_384 - 8_442, 4_385)
    assert len(hold_out(scientific, split="validation").past) == 59_384 - 2 * 8_442
    # popularity on this split, measured apart from this code: NDCG@10 .018, HR@10 .032
    found = evaluate_ranking(rank_catalogue(Popularity().fit(test.past, test.items), test), test, n_resamples=50)
    assert found.intervals["ndcg@10"].mean == pytest.approx(0.018, abs=0.0005)
    assert found.intervals["hr@10"].mean == pytest.approx(0.032, abs=0.0006)
    retail = hold_out(load_dataset("online_retail", DATA), split="test")
    assert (retail.at, len(retail.cases)) == (1_319_068_800, 1_593)  # 2011-10-20T00:00:00Z
