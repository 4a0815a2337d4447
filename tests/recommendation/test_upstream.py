"""Lists of an upstream recommender: its score joins the blend, with a stage of its own."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from llm_rerank.cli import app
from llm_rerank.config import RerankerConfig, ThresholdConfig
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.data.impressions import list_numbers
from llm_rerank.data.rendering import Renderer
from llm_rerank.data.splits import HeldOut, hash_users
from llm_rerank.recommendation import thresholds
from llm_rerank.recommendation.checking import check_shop
from llm_rerank.recommendation.holdout import Holdout, plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.planning import read_shop
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.risk_control import Guarantee
from llm_rerank.recommendation.specs import default_specs
from llm_rerank.recommendation.stage import Start
from llm_rerank.recommendation.thresholds import Cut
from llm_rerank.recommendation.upstream import fit_upstream_stage, shown_lists
from llm_rerank.types import DataError, DataReport, DriftWarning, Ragged
from tests.planted import events_of

CONFIG = RerankerConfig(encoder=None, sequence="off", candidates_per_source=30, refit=False)


def shown(shop, seed=0):
    """Lists of 20 items, shown late; the upstream score knows a little of what is taken from them afterwards."""
    events, items = shop
    rng = np.random.default_rng(seed)
    late = events[events["event"] == "purchase"].sort_values("timestamp").groupby("user_id").tail(1)
    rows = []
    for row in late.itertuples():
        codes = rng.choice(items["item_id"][:-2], 20, replace=False)
        codes[rng.integers(20)] = row.item_id
        for item in dict.fromkeys(codes):
            rows.append((row.user_id, item, row.timestamp - 30, (item == row.item_id) + rng.normal(0, 0.7)))
    return pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "upstream_score"])


@pytest.fixture(scope="module")
def fitted_with_lists(shop):
    return Reranker(CONFIG, verbose=False).fit(*shop, impressions=shown(shop))


def test_targets_are_what_was_taken_from_the_list_after_it_was_shown(shop):
    impressions = shown(shop)
    events, items, _, lists = read_shop(CONFIG, *shop, None, impressions, None, "auto", DataReport())
    holdout = plan_holdout(events, 0, FitLog(verbose=False))
    found = shown_lists(lists, events, holdout.past, holdout.as_of)
    cases, seen, scores = found.cases, found.seen, found.scores
    users = np.unique(lists["user_id"][lists["time"] >= holdout.as_of])
    assert len(cases) == len(users)
    assert len(scores) == len(cases.candidates.values)
    bought = shop[0][shop[0]["event"] == "purchase"]
    for place, user in enumerate(sorted(users, key=list(events.user_ids).index)):
        rows = impressions[impressions["user_id"] == user]
        later = bought[(bought["user_id"] == user) & (bought["timestamp"] >= rows["timestamp"].iloc[0])]
        wanted = set(later["item_id"]) & set(rows["item_id"])
        had = set(items.ids[seen[place]])
        assert set(items.ids[cases.targets[place]]) == wanted - had
        assert (cases.history_times[cases.history.offsets[place] : cases.history.offsets[place + 1]]
                < holdout.as_of).all()  # fmt: skip


def test_the_upstream_score_is_blended_and_is_the_default(fitted_with_lists, shop):
    stage = fitted_with_lists._fit_result().upstream_stage
    assert stage.verdict.default == "upstream"
    assert stage.blend.weights[stage.blend.names.index("upstream")] > 0
    candidates = shown(shop)[["user_id", "item_id", "upstream_score"]].iloc[:200]
    result = fitted_with_lists.rerank(candidates)
    parts = result.filter(like="score_").sum(axis=1)
    np.testing.assert_allclose(parts, result["score"], atol=1e-9)
    assert result["score_upstream"].abs().sum() > 0
    # the same list with another upstream opinion is another list
    turned = fitted_with_lists.rerank(candidates.assign(upstream_score=-candidates["upstream_score"]))
    assert list(turned["item_id"]) != list(result["item_id"])


def test_candidates_without_an_upstream_score_are_judged_as_retrieved(fitted_with_lists, shop):
    candidates = shown(shop)[["user_id", "item_id"]].iloc[:50]
    assert "score_upstream" not in fitted_with_lists.rerank(candidates)


def test_an_explanation_adds_up_to_the_score_that_the_list_shows(fitted_with_lists, shop, tmp_path):
    candidates = shown(shop)[["user_id", "item_id", "upstream_score"]].iloc[:60]
    candidates.loc[candidates.index[::7], "upstream_score"] = np.nan  # some that the upstream list said nothing of
    listed = fitted_with_lists.rerank(candidates)
    rows = list(listed.itertuples())
    for one, other in zip(rows, rows[1:], strict=False):
        if one.user_id != other.user_id:
            continue
        explanation = fitted_with_lists.explain(
            one.user_id,
            one.item_id,
            versus=other.item_id,
            upstream_score=one.upstream_score,
            versus_upstream_score=other.upstream_score,
        )
        assert explanation.score == pytest.approx(one.score, abs=1e-5)
        assert explanation.probability == pytest.approx(one.probability, abs=1e-5)
        assert sum(part.value for part in explanation.contributions) == pytest.approx(one.score, abs=1e-5)
        assert explanation.versus.other_score == pytest.approx(other.score, abs=1e-5)
        parts = sum(part.value for part in explanation.versus.contributions)
        assert parts == pytest.approx(one.score - other.score, abs=1e-5)
    # without it the score is the one of the library's own lists
    user, item = listed[["user_id", "item_id"]].iloc[0]
    alone = fitted_with_lists.rerank(listed[["user_id", "item_id"]].iloc[:1])["score"].iloc[0]
    assert fitted_with_lists.explain(user, item).score == pytest.approx(alone, abs=1e-5)
    assert abs(alone - listed["score"].iloc[0]) > 0.01
    fitted_with_lists.save(tmp_path / "shop")
    said = listed["upstream_score"].iloc[0]
    words = ["explain", str(tmp_path / "shop"), str(user), str(item), "--upstream-score", str(said)]
    shown_by_command = CliRunner().invoke(app, words)
    assert shown_by_command.stdout.strip() == str(fitted_with_lists.explain(user, item, upstream_score=said))


def test_upstream_scores_of_an_explanation_must_be_numbers_and_belong_to_an_item(fitted_with_lists, shop):
    one, two = shop[1]["item_id"][3], shop[1]["item_id"][40]
    for arguments, message in (
        ({"upstream_score": "high"}, "upstream_score is 'high'; give a number"),
        ({"upstream_score": 1.0, "versus_upstream_score": 1.0}, "without versus"),
        ({"versus": two, "versus_upstream_score": 1.0}, "without upstream_score"),
    ):
        with pytest.raises(DataError, match=message):
            fitted_with_lists.explain("u0", one, **arguments)


def test_the_stage_survives_the_disk(fitted_with_lists, shop, tmp_path):
    fitted_with_lists.save(tmp_path / "shop")
    candidates = shown(shop)[["user_id", "item_id", "upstream_score"]].iloc[:200]
    here, there = fitted_with_lists.rerank(candidates), Reranker.load(tmp_path / "shop").rerank(candidates)
    np.testing.assert_allclose(here["score"], there["score"], atol=1e-6)


def test_without_real_time_impressions_are_not_used_and_it_is_said(shop):
    events, items = shop
    positions = events.assign(timestamp=events.groupby("user_id").cumcount())
    lists = shown(shop).assign(timestamp=10**6)
    reranker = Reranker(CONFIG, verbose=False).fit(positions, items, impressions=lists)
    assert reranker._fit_result().upstream_stage is None
    assert "impressions need the time protocol" in str(reranker.report())
    check = check_shop(positions, items, impressions=lists, config=CONFIG)
    assert any(line.startswith("impressions need the time protocol") for line in check.advice)
    assert not any("impressions" in line for line in check_shop(*shop, impressions=shown(shop), config=CONFIG).advice)


def test_lists_by_hand():
    rows = [
        (0, 0, 10), (1, 1, 20), (2, 2, 30),
        (0, 5, 105), (1, 3, 110), (0, 6, 150), (0, 7, 155, -1.0), (0, 0, 160), (0, 8, 170), (0, 6, 180),
    ]  # fmt: skip
    events = events_of(rows, 9, time_kind="time")
    past = np.flatnonzero(events.times < 100)
    nothing = HeldOut(np.empty(0, np.int64), np.empty(0, np.int64), Ragged.empty(0))
    holdout = Holdout("time", events.take(past), past, 100, nothing, "")
    impressions = pd.DataFrame(
        [
            ("u1", 8, 90, 0.1),  # before the cut
            ("u2", 4, 95, 0.2),  # u2 has no list after it
            ("u1", 2, 100, 0.3), ("u0", 5, 105, 0.4), ("u1", 3, 100, 0.5), ("u0", 7, 105, 0.6),
            ("someone", 4, 104, 0.2), ("someone", 2, 104, 0.3), ("nobody", 1, 105, 0.8),
            ("u0", 6, 105, 0.7), ("u0", 0, 105, 0.9), ("nobody", 2, 105, 0.9),
            ("u1", 4, 130, 1.0), ("u0", 8, 140, 1.1), ("someone", 8, 140, 1.1),  # not their first
        ],
        columns=["user_id", "item", "time", "upstream_score"],
    )  # fmt: skip
    impressions["list"] = list_numbers(pd.factorize(impressions["user_id"])[0], impressions["time"].to_numpy())
    found = shown_lists(impressions, events, holdout.past, holdout.as_of)
    cases, seen, scores = found.cases, found.seen, found.scores
    # users without an event come last, in the order in which they came
    assert [cases.candidates[row].tolist() for row in range(len(cases))] == [[5, 7, 6, 0], [2, 3], [4, 2], [1, 2]]
    np.testing.assert_allclose(scores, [0.4, 0.6, 0.7, 0.9, 0.3, 0.5, 0.2, 0.3, 0.8, 0.9])
    # 5 was taken at the very moment; 7 was disliked, 0 had been taken before, 8 was not on the first list
    assert [sorted(cases.targets[row].tolist()) for row in range(len(cases))] == [[5, 6], [3], [], []]
    assert [seen[row].tolist() for row in range(len(cases))] == [[0], [1], [], []]
    assert [cases.history[row].tolist() for row in range(len(cases))] == [[0], [1], [], []]
    assert cases.times.tolist() == [100] * 4  # as old as the components
    assert found.users.tolist() == [0, 1, -1, -1]
    assert found.user_ids.tolist() == ["u0", "u1", "someone", "nobody"]
    assert found.n_later == 3
    again = shown_lists(
        pd.concat([impressions, impressions.assign(upstream_score=9.0)]), events, holdout.past, holdout.as_of
    )
    assert (found.n_repeated, again.n_repeated) == (0, 10)
    np.testing.assert_array_equal(again.cases.candidates.values, cases.candidates.values)
    np.testing.assert_array_equal(again.scores, scores)
    assert again.cases.targets.lengths.tolist() == [2, 1, 0, 0]


@pytest.fixture(scope="module")
def parts(shop, fitted_with_lists):
    """What a fit has at hand when it comes to the upstream stage."""
    events, items, _, lists = read_shop(CONFIG, *shop, None, shown(shop), None, "auto", DataReport())
    holdout = plan_holdout(events, 0, FitLog(verbose=False))
    fitted = fitted_with_lists._fit_result()
    data = FitData(events, items, None, lists, np.full(len(events), np.nan, np.float32))
    tools = FitTools(CONFIG, None, (), PAIR_FEATURES, Renderer())
    return data, tools, holdout, fitted


def fit_stage_of(parts, data=None, start=None, refit=False):
    given, tools, holdout, fitted = parts
    log = FitLog(verbose=False)
    data = given if data is None else data
    stage, _ = fit_upstream_stage(
        data, tools, holdout, fitted.items, fitted.components, fitted.reference, log, start, refit=refit
    )
    return stage, log.lines


def test_half_of_the_users_fit_the_stage_and_the_others_judge_it(parts):
    data, _, holdout, _ = parts
    cases = shown_lists(data.impressions, data.events, holdout.past, holdout.as_of).cases
    late = data.impressions["user_id"][data.impressions["time"] >= holdout.as_of].unique()
    n_judging = int((hash_users(late, 2, salt="fold-0") == 1).sum())
    assert 0.4 * len(cases) < n_judging < 0.6 * len(cases)
    _, lines = fit_stage_of(parts)
    assert any(line.startswith(f"fold G ({n_judging:,} cases") for line in lines)
    _, said = fit_stage_of(parts, replace(data, impressions=pd.concat([data.impressions, data.impressions])))
    n_rows = len(cases.candidates.values)
    assert said == [f"upstream lists: {n_rows:,} rows repeat an item of their list (the first row is kept)", *lines]


def lists_of_newcomers(items, time, prefix, n=600, n_taking=60):
    """Lists of 20 shown to users who were not there before; the first ones take an item a minute later, and no more.

    Returns the lists, and the purchases.
    """
    rng = np.random.default_rng(len(prefix))
    rows, taken = [], []
    for user in range(n):
        codes = rng.choice(items["item_id"][:-2], 20, replace=False)
        scores = rng.normal(0, 0.7, 20)
        scores[0] += user < n_taking
        rows += [(f"{prefix}{user}", code, time, score) for code, score in zip(codes, scores, strict=True)]
        taken += [(f"{prefix}{user}", codes[0], time + 60, "purchase")][: user < n_taking]
    columns = ["user_id", "item_id", "timestamp"]
    return pd.DataFrame(rows, columns=[*columns, "upstream_score"]), pd.DataFrame(taken, columns=[*columns, "event"])


def test_newcomers_who_took_nothing_count(shop, monkeypatch):
    monkeypatch.setattr(thresholds, "LEAST_CASES_FOR_GUARANTEE", 100)
    events, items = shop
    late = int(events["timestamp"].max()) - 1_000
    lists, taken = lists_of_newcomers(items, late, "new")
    rule = ThresholdConfig("risk", risk="false_positives", alpha=0.2, delta=0.1)
    specs = [spec for spec in default_specs(len(items), encoder=None) if spec.name == "item_knn"]
    model = Reranker(replace(CONFIG, threshold=rule), components=specs, verbose=False)
    model.fit(pd.concat([events, taken]), items, impressions=pd.concat([shown(shop), lists]))
    again, wanted = lists_of_newcomers(items, late, "later")
    asked = again.drop(columns="timestamp")
    with pytest.warns(DriftWarning, match="users without history"):
        result = model.rerank(asked)
    assert result["probability"].sum() == pytest.approx(len(wanted), rel=0.5)
    # a batch like those that the fit saw, with newcomers as many: no drift, and the guarantee holds
    profile = model.saved.fitted.upstream_stage.profile
    assert 0.5 < profile.no_history < 0.8
    known = pd.concat([shown(shop), lists[lists["user_id"].isin(taken["user_id"])]])
    then = known.groupby("user_id")["timestamp"].min().to_dict()  # with histories as they were judged
    known = known.drop(columns="timestamp")
    users = np.random.default_rng(0).permutation(known["user_id"].unique())
    known = known[known["user_id"].isin(users[: int(600 / profile.no_history - 600)])]
    facts = model.rerank(pd.concat([known, asked]), at=then).attrs["decision"]
    assert facts["drift"]["shifted"] == []
    assert facts["guarantee"] is not None


def test_with_a_refit_all_users_teach_the_stage_that_half_of_them_have_judged(parts):
    data, _, holdout, _ = parts
    n_cases = len(shown_lists(data.impressions, data.events, holdout.past, holdout.as_of).cases)
    (judged, judging), (stage, lines) = fit_stage_of(parts), fit_stage_of(parts, refit=True)
    assert lines[: len(judging)] == judging
    assert lines[-1].startswith(f"refit: blend, guard and calibrator on all {n_cases:,} held-out cases")
    assert judged.verdict.n_cases < stage.verdict.n_cases <= n_cases
    assert stage.profile.unknown_items == 0.0


def test_the_stage_of_another_shop_is_where_the_fit_starts(parts):
    alone, _ = fit_stage_of(parts)
    blend = replace(alone.blend, weights=alone.blend.weights + 3.0)
    start = Start(None, replace(alone, blend=blend))
    started, _ = fit_stage_of(parts, start=start)
    assert not np.allclose(started.blend.weights, alone.blend.weights, atol=0.05)


def test_without_late_lists_the_stage_of_another_shop_serves(parts):
    data = parts[0]
    early = replace(data, impressions=data.impressions.assign(time=0))
    stage, lines = fit_stage_of(parts, data=early)
    assert stage is None
    assert "no impressions of known users at or after the cut" in lines[-1]
    guarantee = Guarantee("missed_target", 0.1, 0.1, 500, 0.05, "lists of another shop")
    cut = Cut("risk", 0.1, 0.05, 0.3, 0.9, 2.5, 600, 500, guarantee, "")
    borrowed = replace(parts[3].upstream_stage, cut=cut)
    assert borrowed.profile is not None
    served = fit_stage_of(parts, data=early, start=Start(None, borrowed))[0]
    # neither its cut, of another shop's probabilities, nor the lists seen there say anything here
    assert (served.cut, served.profile) == (None, None)
    assert served.blend is borrowed.blend
    assert fit_stage_of(parts, data=replace(data, impressions=None))[0] is None


def test_lists_without_scores_are_not_used_and_it_is_said(parts):
    data = parts[0]
    unscored = data.impressions.assign(upstream_score=np.float32("nan"))
    stage, lines = fit_stage_of(parts, data=replace(data, impressions=unscored))
    assert stage is None
    assert "impressions have no upstream_score" in lines[-1]


@pytest.mark.parametrize("refit", [False, True])
def test_without_a_score_in_fold_f_lists_are_not_used_and_it_is_said(parts, refit):
    data, _, holdout, fitted = parts
    users = data.impressions["user_id"]
    late = users[data.impressions["time"] >= holdout.as_of].unique()
    judging = late[hash_users(late, 2, salt="fold-0") == 1]
    alone = data.impressions[users.isin(judging[:3])]
    unscored = data.impressions.assign(
        upstream_score=data.impressions["upstream_score"].where(users.isin(judging)).astype(np.float32)
    )
    for impressions, n_lists in ((alone, 0), (unscored, len(late) - len(judging))):
        some = replace(data, impressions=impressions)
        stage, lines = fit_stage_of(parts, data=some, refit=refit)
        assert stage is None
        assert lines[-1].startswith(f"warning: none of the {n_lists} first lists of fold F")
        lent = fit_stage_of(parts, data=some, start=Start(None, fitted.upstream_stage), refit=refit)[0]
        assert lent.blend is fitted.upstream_stage.blend


def test_some_unknown_scores_are_filled_and_every_candidate_is_decided(parts):
    data = parts[0]
    scores = data.impressions["upstream_score"].to_numpy().copy()
    scores[::3] = np.nan
    stage, _ = fit_stage_of(parts, data=replace(data, impressions=data.impressions.assign(upstream_score=scores)))
    assert np.isfinite(stage.upstream_scale).all()
    assert np.isfinite(stage.blend.weights).all()
    assert stage.profile.unknown_items == 0.0  # the table named no other items
    values = np.zeros((3, len(PAIR_FEATURES)), dtype=np.float32)
    upstream = np.array([0.5, np.nan, -0.5], dtype=np.float32)
    n = len([name for name in stage.component_names if name != "upstream"])
    decided = stage.blend.score(stage.design(np.zeros((3, n), dtype=np.float32), values, upstream))
    assert np.isfinite(decided).all()
    assert np.isfinite(stage.probability(decided, values)).all()
