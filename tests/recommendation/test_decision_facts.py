"""What is said of a batch, through the public calls: the guarantee, and each reason to take it back."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pytest
from typer.testing import CliRunner

from llm_rerank import DriftWarning, Reranker, RerankerConfig, ThresholdConfig
from llm_rerank.cli import app
from llm_rerank.recommendation import holdout, thresholds
from llm_rerank.recommendation.answering import Question, answer_questions
from llm_rerank.recommendation.decision_facts import (
    NEWCOMERS,
    OTHER_LISTS,
    WITHOUT_UPSTREAM_SCORE,
    decision_sentence,
    not_retrieved_here,
)
from llm_rerank.recommendation.fitting import BY_POSITION, REFITTED
from llm_rerank.types import DataError, Ragged
from tests.shops import make_shop

RISK = ThresholdConfig("risk", alpha=0.4, delta=0.1)
CONFIG = RerankerConfig(encoder=None, sequence="off", threshold=RISK, refit=False)


@pytest.fixture(scope="module")
def shop():
    return make_shop(n_users=1_600, seed=2)


@pytest.fixture(scope="module")
def reranker(shop):
    return Reranker(CONFIG, verbose=False).fit(*shop)


def facts_of(reranker, users, **settings):
    other = Reranker(replace(reranker.config, **settings), verbose=False)
    other._adopt(reranker._data())
    return other.recommend(users, k=None).attrs["decision"]


@pytest.fixture(scope="module")
def users(shop):
    return sorted(shop[0]["user_id"].unique())[:400]


def test_the_guarantee_of_the_fit_holds_for_a_batch_of_its_kind(reranker, users, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", DriftWarning)
        result = reranker.recommend(users, k=None)
    facts = result.attrs["decision"]
    cut = reranker.report().values["cut"]
    assert facts["guarantee"] == cut["guarantee"] is not None
    assert facts["guarantee"]["alpha"] == 0.4
    assert (facts["no_guarantee"], facts["drift"]["shifted"]) == ("", [])
    assert facts["n_kept"] == result["kept"].sum() > 0
    assert not result["kept"].all()
    assert (result["kept"] == (result["probability"] >= facts["least_probability"])).all()
    reranker.save(tmp_path / "shop")
    assert Reranker.load(tmp_path / "shop", verbose=False).recommend(users, k=None).attrs["decision"] == facts


def test_bounds_that_change_the_kept_set_are_counted_and_end_the_guarantee(reranker, users):
    plain = reranker.recommend(users, k=None)
    kept = plain.groupby("user_id")["kept"].sum()
    most = int(kept.max()) - 1
    facts = facts_of(reranker, users, max_items=most)
    assert facts["n_removed_by_max_items"] == (kept - most).clip(lower=0).sum() > 0
    assert facts["n_added_by_min_items"] == 0
    assert facts["guarantee"] is None
    assert "max_items" in facts["no_guarantee"]
    least = int(kept.min()) + 1
    facts = facts_of(reranker, users, min_items=least)
    assert facts["n_added_by_min_items"] == (least - kept).clip(lower=0).sum() > 0
    assert facts["guarantee"] is not None  # more items never miss more targets
    loose = facts_of(reranker, users, max_items=10_000)  # a bound that changes nothing takes nothing back
    assert loose["guarantee"] is not None


def test_a_shorter_list_ends_the_guarantee_whether_or_not_it_drops_kept_items_of_this_batch(reranker, users):
    kept = reranker.recommend(users, k=None).groupby("user_id")["kept"].sum()
    for k in (int(kept.max()) - 1, int(kept.max())):
        short = reranker.recommend(users, k=k)
        assert short.attrs["decision"]["guarantee"] is None
        assert "only the first" in short.attrs["decision"]["no_guarantee"]
        assert short.attrs["decision"]["n_kept"] == short["kept"].sum()
    few = kept.index[kept <= 2][:40].tolist()
    assert few  # else nothing is seen of lists that the bound leaves alone
    facts = facts_of(reranker, few, max_items=2)
    assert (facts["n_removed_by_max_items"], facts["guarantee"]) == (0, None)


def test_what_bounds_do_to_a_guarantee_depends_on_its_risk(reranker, users):
    data = reranker._data()
    stage = data.fitted.stage
    for risk, shorter, longer in (
        ("missed_target", False, True),
        ("false_positives", True, False),
        ("false_discovery", False, False),
    ):
        cut = replace(stage.cut, guarantee=replace(stage.cut.guarantee, risk=risk))
        rule = replace(RISK, risk=risk)
        other = Reranker(replace(reranker.config, threshold=rule), verbose=False)
        other._adopt(replace(data, fitted=replace(data.fitted, stage=replace(stage, cut=cut), threshold=rule)))
        holds = [
            facts_of(other, users, **bound)["guarantee"] is not None for bound in ({"max_items": 1}, {"min_items": 1})
        ]
        assert holds == [shorter, longer], risk
        assert (other.recommend(users, k=5).attrs["decision"]["guarantee"] is not None) == shorter, risk


def test_a_threshold_set_after_the_fit_cuts_and_promises_nothing(reranker, users):
    def kept(threshold):
        other = Reranker(replace(reranker.config, threshold=threshold), verbose=False)
        other._adopt(reranker._data())
        result = other.recommend(users, k=None)
        return result, result.attrs["decision"]

    for rule in (ThresholdConfig("probability", 0.03), ThresholdConfig("expected_value", gain=100, cost=3)):
        result, facts = kept(rule)
        assert (result["kept"] == (result["probability"] >= 0.03)).all() and 0 < facts["n_kept"] < len(result)
        assert facts["least_probability"] == pytest.approx(0.03)
        assert facts["guarantee"] is None and "set after the fit" in facts["no_guarantee"]
    result, facts = kept(None)
    assert result["kept"].all() and facts["least_probability"] is facts["guarantee"] is None
    for rule in (replace(RISK, alpha=0.1), replace(RISK, delta=0.2), ThresholdConfig("recall", 0.9)):
        with pytest.raises(DataError, match=r"changed after the fit.*\(missed_target, alpha 0.4, delta 0.1\): fit"):
            kept(rule)
    assert kept(RISK)[1]["guarantee"] is not None


def test_a_threshold_for_a_model_that_was_fitted_without_one(reranker, users, tmp_path):
    bare = Reranker(replace(reranker.config, threshold=None), verbose=False)
    data = reranker._data()
    fitted = replace(data.fitted, stage=replace(data.fitted.stage, cut=None), threshold=None)
    bare._adopt(replace(data, config=bare.config, fitted=fitted))
    bare.save(tmp_path / "bare")
    words = ["recommend", str(tmp_path / "bare"), *users[:20], "--all", "--out", str(tmp_path / "lists.csv")]
    result = CliRunner().invoke(app, [*words, "--threshold", "probability=0.03"])
    assert result.exit_code == 0, result.output
    lists = pd.read_csv(tmp_path / "lists.csv")
    assert 0 < lists["kept"].sum() < len(lists)
    np.testing.assert_array_equal(lists["kept"], lists["probability"] >= 0.03)
    refused = CliRunner().invoke(app, [*words, "--threshold", "recall=0.9"])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "'recall' (0.9), which chooses on held-out users, and the fit chose no cut: fit again" in refused.stderr
    for rule in (RISK, ThresholdConfig("recall", 0.9)):
        with pytest.raises(DataError, match="changed after the fit.*the fit chose no cut: fit again"):
            facts_of(bare, users[:1], threshold=rule)


def test_where_the_fit_sought_a_cut_in_vain_nothing_is_cut(reranker, users, tmp_path):
    data = reranker._data()
    fitted = replace(data.fitted, stage=replace(data.fitted.stage, cut=None))
    vain = Reranker.from_saved(replace(data, fitted=fitted))
    vain.save(tmp_path / "vain")
    for one in (vain, Reranker.load(tmp_path / "vain", verbose=False)):
        result = one.recommend(users[:20], k=None)
        assert result["kept"].all()
        facts = result.attrs["decision"]
        said = "nothing is cut: the fit found no cut by rule 'risk', and its report says why"
        assert (facts["least_probability"], facts["no_guarantee"]) == (None, said)
        with pytest.raises(DataError, match="changed after the fit.*the fit chose no cut: fit again"):
            facts_of(one, users[:1], threshold=replace(RISK, alpha=0.3))


def test_lists_as_they_were_judged_have_not_drifted_and_histories_that_grew_since_are_no_news(shop):
    events, items = shop
    events = events[events["user_id"] < "u4"]
    fitted = Reranker(CONFIG, verbose=False).fit(events, items)
    profile = fitted._data().fitted.stage.profile
    moment = int(np.sort(events["timestamp"])[int(0.8 * len(events))])  # as the report says
    later = events[(events["timestamp"] >= moment) & (events["event"] == "purchase")]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DriftWarning)
        then = fitted.recommend(sorted(later["user_id"].unique()), k=None, at=moment).attrs["decision"]["drift"]
    with pytest.warns(DriftWarning, match="score quantiles"):  # the fashion has moved on
        now = fitted.recommend(k=10).attrs["decision"]["drift"]
    assert then["shifted"] == []
    assert then["indices"]["history lengths"] < now["indices"]["history lengths"]
    assert now["as_by_now"]
    assert [sum(counts) for counts in profile.by_now] == [profile.n_cases, events["user_id"].nunique()]
    assert profile.no_history == 0


def test_lists_for_everybody_right_after_a_fit_are_no_cause_for_alarm(shop):
    events, items = shop
    left = events["user_id"] < "u3"  # long ago, with less; the users held out are all of those who stayed
    seldom = events[left].groupby("user_id").head(6)
    fitted = Reranker(replace(CONFIG, refit=True), verbose=False).fit(
        pd.concat([seldom.assign(timestamp=seldom["timestamp"].min()), events[~left]]), items
    )
    everybody = sorted(events["user_id"].unique())
    with warnings.catch_warnings():
        warnings.simplefilter("error", DriftWarning)
        facts = fitted.recommend(everybody, k=10).attrs["decision"]
        fitted.recommend(sorted(events[~left]["user_id"].unique()), k=10)  # the held-out ones, as they are by now
    assert (facts["drift"]["shifted"], facts["drift"]["as_by_now"]) == (["history lengths"], True)
    assert "warning" not in decision_sentence(facts)
    with pytest.warns(DriftWarning, match="history lengths"):
        fitted.recommend(sorted(seldom["user_id"].unique()), k=10)


def test_lists_that_the_cut_was_not_chosen_on_have_no_guarantee(reranker, users):
    own = reranker.recommend(users, k=None)[["user_id", "item_id"]]
    facts = reranker.rerank(own).attrs["decision"]
    assert (facts["guarantee"], facts["no_guarantee"]) == (None, OTHER_LISTS)
    facts = reranker.recommend(users, k=None, exclude_seen=False).attrs["decision"]
    assert facts["guarantee"] is None
    assert "seen" in facts["no_guarantee"] or facts["drift"]["shifted"]
    longer = reranker.recommend(users, k=reranker.config.candidates_per_source + 1).attrs["decision"]
    assert longer["guarantee"] is None


def test_a_shifted_batch_warns_and_has_no_guarantee(reranker, users):
    popular = reranker.recommend(users, k=None).query("rank <= 5")[["user_id", "item_id"]]  # lists of the best alone
    with pytest.warns(DriftWarning, match=r"400 lists differ from the held-out ones in score quantiles \(index"):
        facts = reranker.rerank(popular).attrs["decision"]
    assert facts["guarantee"] is None
    assert "score quantiles" in facts["no_guarantee"]
    assert facts["drift"]["shifted"] == ["score quantiles"]


def test_newcomers_are_another_population(reranker):
    with pytest.warns(DriftWarning, match="users without history"):
        facts = reranker.recommend([f"new {n}" for n in range(200)], k=None).attrs["decision"]
    assert facts["guarantee"] is None


def test_explaining_does_not_watch(reranker, users):
    result = reranker.recommend(users[:1], k=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DriftWarning)
        reranker.explain(users[0], result["item_id"][0])


def test_a_refit_ends_the_guarantee_and_says_so(shop, users):
    refitted = Reranker(replace(CONFIG, refit=True), verbose=False).fit(*shop)
    cut = refitted.report().values["cut"]
    assert (cut["guarantee"], cut["no_guarantee"]) == (None, REFITTED)
    facts = refitted.recommend(users, k=None).attrs["decision"]
    assert (facts["guarantee"], facts["no_guarantee"]) == (None, REFITTED)
    said = str(refitted.report())
    assert "guaranteed" not in said  # a promise that the refit broke is not said at all
    assert said.count(REFITTED) == 1


def test_single_last_events_held_out_from_a_clock_carry_no_guarantee(shop, monkeypatch):
    monkeypatch.setattr(holdout, "LEAST_WINDOW_USERS", 10**9)  # as where too few users come after the cut
    monkeypatch.setattr(thresholds, "LEAST_CASES_FOR_GUARANTEE", 100)
    fitted = Reranker(CONFIG, verbose=False).fit(*shop)
    assert fitted.report().values["protocol"] == "positions"
    cut = fitted.report().values["cut"]
    assert (cut["guarantee"], cut["no_guarantee"]) == (None, BY_POSITION)


def test_without_a_cut_nothing_is_promised_and_drift_is_still_told(shop, users):
    plain = Reranker(RerankerConfig(encoder=None, sequence="off", refit=False), verbose=False).fit(*shop)
    with pytest.warns(DriftWarning, match="users without history"):
        facts = plain.recommend([f"new {n}" for n in range(200)], k=5).attrs["decision"]
    assert (facts["least_probability"], facts["guarantee"]) == (None, None)
    assert "no threshold" in facts["no_guarantee"]
    assert "users without history" in facts["drift"]["shifted"]
    frame = pl.DataFrame({"user_id": users[:2], "item_id": [plain.recommend(users[:1], k=1)["item_id"][0]] * 2})
    assert isinstance(plain.rerank(frame), pl.DataFrame)  # other frames have no place for facts


@pytest.mark.parametrize("bounds", [{"min_items": 3}, {"max_items": 3}, {"min_items": 2, "max_items": 4}])
def test_how_many_are_kept_does_not_depend_on_diversity(reranker, users, bounds):
    counts, pages = [], []
    for diversity in (0.0, 0.8):
        varied = Reranker(replace(reranker.config, **bounds, diversity=diversity), verbose=False)
        varied._adopt(replace(reranker._data(), config=varied.config))
        pages.append(varied.recommend(users, k=None))
        counts.append(pages[-1].groupby("user_id")["kept"].sum())
    assert counts[0].equals(counts[1])
    assert not pages[0]["item_id"].equals(pages[1]["item_id"])  # the setting moved something
    n_cut = reranker.recommend(users, k=None).groupby("user_id")["kept"].sum()
    assert counts[0].equals(n_cut.clip(bounds.get("min_items"), bounds.get("max_items")))


def test_a_precision_that_cannot_be_had_is_cut_at_the_highest_and_said(shop, users):
    rule = ThresholdConfig("precision", 0.999)
    fitted = Reranker(replace(CONFIG, threshold=rule), verbose=False).fit(*shop)
    [said] = [line for line in fitted.report().values["lines"] if "no cut reaches it" in line]
    assert said.startswith("warning: cut: rule precision (0.999) keeps")
    cut = fitted.report().values["cut"]
    assert cut["precision"] < 0.999
    assert cut["mean_kept"] * cut["n_cases"] >= 30
    result = fitted.recommend(users, k=None)
    assert (result["kept"] == (result["probability"] >= cut["least_probability"])).all()
    assert not result["kept"].all()
    assert "no cut reaches it" in result.attrs["decision"]["no_guarantee"]


def test_the_command_line_says_how_a_batch_was_cut(reranker, users, tmp_path):
    reranker.save(tmp_path / "shop")
    table = reranker.recommend(users, k=None)
    table.query("rank <= 5")[["user_id", "item_id"]].to_csv(tmp_path / "best.csv", index=False)
    said = {}
    calls = {"all": ["recommend", str(tmp_path / "shop"), *users, "--all"]}
    calls["best"] = ["rerank", str(tmp_path / "shop"), str(tmp_path / "best.csv")]
    for name, call in calls.items():
        asked = [*call, "--out", str(tmp_path / "out.csv")]
        with warnings.catch_warnings():
            warnings.simplefilter("error", DriftWarning)
            done = CliRunner().invoke(app, asked)
        assert done.exit_code == 0, done.output
        said[name] = done.stderr
    n_kept, least = int(table["kept"].sum()), table.attrs["decision"]["least_probability"]
    assert f"{n_kept:,} kept, of probability ≥ {least:.4g}; guaranteed: with probability at least 0.9" in said["all"]
    assert "no guarantee: these 400 lists differ from the held-out ones in score quantiles" in said["best"]


def test_a_drifted_batch_with_an_estimated_cut_is_said_too():
    facts = {
        "least_probability": 0.05,
        "n_kept": 1_200,
        "n_added_by_min_items": 7,
        "n_removed_by_max_items": 0,
        "guarantee": None,
        "no_guarantee": "an estimate",
        "drift": {"indices": {"unknown items": 0.5}, "limits": {"unknown items": 0.25}, "n_cases": 90},
    }
    assert decision_sentence(facts) == (
        "1,200 kept, of probability ≥ 0.05, 7 added by min_items; no guarantee: an estimate; warning: these 90 lists "
        "differ from the held-out ones in unknown items (index 0.50, limit 0.25)"
    )


def test_the_remedy_for_lists_of_others_is_what_the_fit_still_lacks(reranker):
    alone = reranker._data().fitted
    upstream = replace(alone.stage)
    with_lists = replace(alone, upstream_stage=upstream)
    rows, scores = Ragged.from_lists([[1, 2]]), np.ones(2, dtype=np.float32)
    assert not_retrieved_here(alone.stage, alone, scores, rows) == OTHER_LISTS
    assert not_retrieved_here(alone.stage, with_lists, None, rows) == WITHOUT_UPSTREAM_SCORE
    assert not_retrieved_here(upstream, with_lists, scores, rows) == ""
    unused = replace(alone, report={**alone.report, "impressions_unused": "they end too early"})
    assert not_retrieved_here(alone.stage, unused, scores, rows) == (
        "the cut was chosen on lists that this library retrieves; the fit was given impressions and could use none of "
        "them: they end too early"
    )


def test_lists_without_most_of_their_upstream_scores_are_no_lists_of_the_recommender(reranker):
    theirs = replace(reranker._data().fitted.stage)
    fitted, rows = replace(reranker._data().fitted, upstream_stage=theirs), Ragged.from_lists([[1, 2, 3], [4, 5], [6]])
    scores = np.array([1, 1, np.nan, 1, 1, 1], dtype=np.float32)
    assert not_retrieved_here(theirs, fitted, scores, rows) == ""
    scores[[0, 5]] = np.nan
    assert "in 2 of 3 lists most upstream scores are missing" in not_retrieved_here(theirs, fitted, scores, rows)


def test_newcomers_have_no_guarantee_where_none_was_held_out(reranker):
    assert reranker._data().fitted.stage.profile.no_history == 0
    for asked in (["a newcomer"], ["another newcomer"]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DriftWarning)
            facts = reranker.recommend(asked, k=None).attrs["decision"]
        assert (facts["guarantee"], facts["no_guarantee"]) == (None, NEWCOMERS)


def test_answers_without_frames_are_cut_as_set_too(reranker, users):
    other = Reranker(replace(reranker.config, threshold=ThresholdConfig("probability", 0.03)), verbose=False)
    other._adopt(reranker._data())
    (answer,) = answer_questions(other, [Question(users[0], k=None)])
    assert 0 < answer.kept.sum() < len(answer.kept)
    np.testing.assert_array_equal(answer.kept, answer.probabilities >= 0.03)


def test_without_probabilities_nothing_can_be_cut(reranker):
    stage = replace(reranker._data().fitted.stage, calibrator=None, cut=None)
    assert stage.cut_as(ThresholdConfig("probability", 0.03), None) is stage
    assert stage.cut_as(RISK, RISK) is stage
    with pytest.raises(DataError, match="fit again"):
        stage.cut_as(RISK, None)
    saved = reranker._data()
    young = Reranker.from_saved(replace(saved, fitted=replace(saved.fitted, stage=stage)))
    young.config = replace(young.config, threshold=ThresholdConfig("probability", 0.03))
    facts = young.recommend(["a newcomer"], k=5).attrs["decision"]
    assert facts["no_guarantee"] == "nothing is cut: the fit found no probabilities, and its report says why"
    young.config = replace(young.config, threshold=None)
    (answer,) = answer_questions(young, [Question("a newcomer", least_probability=0.5)])
    assert answer.kept.all() and answer.facts["least_probability"] is None
    assert answer.facts["no_guarantee"] == facts["no_guarantee"]


def test_upstream_scores_that_count_for_nothing_are_told(reranker, users):
    lists = reranker.recommend(users[:3], k=5)[["user_id", "item_id"]]
    given = lists.assign(upstream_score=np.arange(len(lists), dtype=float))
    with pytest.warns(UserWarning, match="counts for nothing.*fit with impressions"):
        scored = reranker.rerank(given)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", DriftWarning)
        plain = reranker.rerank(lists)
        reranker.rerank(given.assign(upstream_score=np.nan))
    assert scored["item_id"].tolist() == plain["item_id"].tolist()
    assert sorted(scored["upstream_score"]) == given["upstream_score"].tolist()
