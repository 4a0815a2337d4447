"""The report: what it says follows from the figures, what is absent is said, and a browser shows it as it should be."""

import json
import os
import re
from dataclasses import replace
from html import unescape
from xml.etree import ElementTree

import numpy as np
import pytest

from llm_rerank.config import DiversityConfig, RerankerConfig, ThresholdConfig
from llm_rerank.evaluation import tested_lists
from llm_rerank.evaluation.demonstration import second_selection
from llm_rerank.evaluation.diversity_curve import diversity_curve
from llm_rerank.evaluation.page import Page, Section, Table, Tile, render_page, write_page
from llm_rerank.evaluation.report import changed_settings, lists_by_relevance, report_page, tiles, write_report
from llm_rerank.evaluation.report_examples import chosen_users
from llm_rerank.evaluation.report_probability import (
    cut_section,
    diversity_section,
    probability_section,
    wilson_interval,
)
from llm_rerank.evaluation.report_sections import guard_section, parts_section, systems_section, tuning_section
from llm_rerank.evaluation.systems import compare_systems, evaluate_shop
from llm_rerank.evaluation.timeline import time_line
from llm_rerank.recommendation.parts import PartVerdict
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.thresholds import Cut
from llm_rerank.statistics import Difference
from tests.browser import browser_of_the_system
from tests.evaluation.test_charts import SVG, marks, read_off, tick_places
from tests.shops import make_shop

HOSTILE = "<img src=x onerror=window.broken=1 "  # tags that are closed are taken out of titles when they are read
HOSTILE_ID = "<script>window.broken = 1</script>"
SECTIONS = (
    "fitted", "protocol", "systems", "guard", "parts", "probability", "cut",
    "diversity", "strata", "tuning", "examples",
)  # fmt: skip
CONFIG = RerankerConfig(
    encoder=None,
    sequence="off",
    candidates_per_source=40,
    threshold=ThresholdConfig("recall", 0.8),
    refit=False,
    seed=1,
)


@pytest.fixture(scope="module")
def evaluation():
    """A shop whose every title and user wants to be a script, evaluated without an encoder."""
    interactions, items = make_shop(n_users=600)
    items = items.assign(title=HOSTILE + items["title"])
    interactions = interactions.assign(user_id=interactions["user_id"] + HOSTILE_ID)
    return evaluate_shop(interactions, items, config=CONFIG, verbose=False)


@pytest.fixture(scope="module")
def parts(evaluation):
    """What ``report_page`` takes beside the report's values and the table."""
    reranker, trial = evaluation.reranker, evaluation.trial
    values = reranker.report().values
    return {
        "line": time_line(trial, values, seed=1, refit=False, last_time=evaluation.last_time),
        "second": second_selection(reranker, trial),
        "diversity": diversity_curve(evaluation.table.fused, trial, reranker.components),
        "data": ["A shop."],
    }


@pytest.fixture(scope="module")
def file(evaluation, tmp_path_factory):
    """The report as ``evaluate --report`` writes it."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, evaluation)
    return path


def section_of(page: Page, anchor: str) -> Section:
    return next(section for section in page.sections if section.anchor == anchor)


def said(section: Section) -> str:
    return "\n".join(section.paragraphs)


# ------------------------------------------------------------------ the whole page


def test_the_page_has_every_section_and_stands_alone(file):
    page = file.read_text()
    assert [anchor for anchor in re.findall(r'<section id="([\w-]+)"', page)] == list(SECTIONS)
    assert "http" not in re.sub(r'xmlns="http://www.w3.org/2000/svg"', "", page)
    assert not re.search(r"<script|<link(?! rel=\"icon\" href=\"data:,\")|@import|url\(|<img|<iframe", page)


def test_every_figure_of_the_page_is_drawn_and_named(file):
    figures = re.findall(r"<svg.*?</svg>", file.read_text(), re.DOTALL)
    assert len(figures) >= 10
    for svg in figures:
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert root.find(f"{SVG}title").text
        assert root.find(f"{SVG}desc").text
        drawn = [e for e in root.iter() if e.get("class") in ("mark", "bar", "span") or e.tag == f"{SVG}polyline"]
        assert drawn, root.find(f"{SVG}title").text
        assert "nan" not in svg.lower().replace("finance", "")


def test_a_title_that_is_a_script_is_shown_as_text(file):
    page = file.read_text()
    assert page.count("&lt;img src=x onerror=window.broken=1 ") >= 60  # three users, ten places, twice
    assert page.count("&lt;script&gt;window.broken = 1&lt;/script&gt;") >= 3
    assert "<script" not in page
    assert "<img" not in page


def test_the_page_shows_the_figures_that_were_measured(evaluation, file):
    page, values = unescape(file.read_text()), evaluation.reranker.report().values
    for name, result in evaluation.table.results.items():
        interval = result.intervals["ndcg@10"]
        assert f"{interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}]" in page, name
    for test in evaluation.table.tests.values():
        assert f"{test['difference']:.4f} [{test['ci95'][0]:.4f}, {test['ci95'][1]:.4f}]" in page
    assert f"{values['guard']['difference']['mean']:+.4f}" in page
    assert f"Calibration slope {values['calibration']['slope']:.2f}" in page
    assert all(line in page for line in values["lines"])
    found = evaluation.table.ceiling["candidate_recall"]  # a mean of users' shares
    assert f"{found:.1%} of a user's targets, on average, are among the first 100 of fused" in page
    assert f"{found:.3f} of a user's targets, on average, are among the first 100" in str(evaluation.table)


def test_probabilities_are_held_against_what_the_tested_users_took(evaluation, file):
    trial, tested = evaluation.trial, evaluation.table.probabilities
    lists = evaluation.reranker.recommend(list(trial.user_ids), k=None, at=trial.at)
    top, taken = lists[lists["rank"] <= 10], 0
    for case, user in enumerate(trial.user_ids):
        targets = set(trial.items.ids[trial.cases.targets[case]])
        taken += sum(item in targets for item in top["item_id"][top["user_id"] == user])
    assert tested["n_users"] == len(trial.user_ids)
    assert tested["rate_top_10"] == pytest.approx(taken / len(top))
    assert tested["mean_probability_top_10"] == pytest.approx(top["probability"].mean(), rel=1e-5)
    assert tested["slope_ci95"][0] < tested["slope"] < tested["slope_ci95"][1]
    page = unescape(file.read_text())
    assert f"probability is {tested['mean_probability_top_10']:.4f}, and {tested['rate_top_10']:.4f} of them" in page
    assert f"on the test {tested['rate_top_10']:.4f} were taken" in page
    assert "the test counts the new items of all visits from the cut on." in page


def test_what_the_cut_keeps_is_held_against_what_the_tested_users_took(evaluation, file):
    trial, tested = evaluation.trial, evaluation.table.cut
    lists = evaluation.reranker.recommend(list(trial.user_ids), k=None, at=trial.at)
    targets = {
        (user, item) for case, user in enumerate(trial.user_ids) for item in trial.items.ids[trial.cases.targets[case]]
    }
    shorter = lists[lists["rank"] <= 20]
    for part, values in ((lists, tested), (shorter, tested_lists.tested_cut(shorter, trial))):
        rows = list(zip(part["user_id"], part["item_id"], part["kept"].tolist(), strict=True))
        kept = [(user, item) for user, item, is_kept in rows if is_kept]
        found = [(user, item) for user, item, _ in rows if (user, item) in targets]
        right = len(set(kept) & targets)
        assert 0 < right < len(found) <= len(targets) and len(kept) < len(rows) == values["n"]
        assert values["precision"] == pytest.approx(right / len(kept))
        assert values["recall"] == pytest.approx(right / len(found))
        assert values["recall_of_all"] == pytest.approx(right / len(targets))
        assert values["accuracy"] == pytest.approx(1 - (len(kept) + len(found) - 2 * right) / len(rows))
        assert values["base_rate"] == pytest.approx(1 - len(found) / len(rows))
        assert values["mean_kept"] == pytest.approx(len(kept) / len(trial.user_ids))
    assert len(found) < len(targets)
    assert tested["least_probability"] == evaluation.reranker.report().values["cut"]["least_probability"]
    assert evaluation.table.to_dict()["cut"] == tested
    said = (
        f"precision {tested['precision']:.4f}, recall {tested['recall']:.3f} of the targets in the lists, "
        f"{tested['recall_of_all']:.3f} of all; accuracy {tested['accuracy']:.4f} beside the "
        f"{tested['base_rate']:.4f} of keeping nothing, which it is near by nature"
    )
    assert said in unescape(file.read_text()) and said in str(evaluation.table)


def test_where_nothing_is_cut_or_kept_no_precision_is_made_up(evaluation):
    trial = evaluation.trial
    lists = evaluation.reranker.recommend(list(trial.user_ids), k=100, at=trial.at)
    none_kept = tested_lists.tested_cut(lists.assign(kept=False), trial)
    assert np.isnan(none_kept["precision"]) and none_kept["accuracy"] == none_kept["base_rate"]
    as_json = replace(evaluation.table, cut=none_kept).to_dict()
    assert as_json["cut"]["precision"] is None and json.dumps(as_json, allow_nan=False)
    assert "0.0 of" in tested_lists.cut_in_words(none_kept) and "nan" not in tested_lists.cut_in_words(none_kept)
    lists.attrs["decision"] = {**lists.attrs["decision"], "least_probability": None}
    assert tested_lists.tested_cut(lists, trial) == {}
    assert "cut:" not in str(replace(evaluation.table, cut={}))


def test_the_fallback_protocol_is_named_where_its_calibration_is_shown(evaluation, parts):
    values = evaluation.reranker.report().values
    for protocol, named in (("positions", True), ("time", False)):
        page = report_page({**values, "protocol": protocol}, evaluation.table, CONFIG, **parts)
        [tile] = [tile for tile in page.tiles if tile.name == "calibration slope"]
        assert ("protocol positions" in tile.note) == named
        assert ("fallback protocol 'positions'" in said(section_of(page, "probability"))) == named


def test_an_older_model_knows_less_and_the_page_says_so(evaluation, parts):
    values = evaluation.reranker.report().values
    known = {key: values[key] for key in ("lines", "settings", "guard")}
    parts = {**parts, "line": None, "diversity": []}
    for report in (
        {},
        known,
        {**known, "calibration": {}, "cut": None, "cut_curve": {}, "seconds": {}, "upstream": {}},
    ):
        page = report_page(report, evaluation.table, CONFIG, **parts)
        assert [section.anchor for section in page.sections] == list(SECTIONS)
        for anchor in ("probability", "cut", "diversity", "tuning", "protocol"):
            section = section_of(page, anchor)
            assert not section.figures, anchor
            assert re.search(r"\b(no|not|nothing)\b", said(section), re.IGNORECASE), anchor
        assert "<svg" in render_page(page)
    assert "no verdict" in said(section_of(report_page({}, evaluation.table, CONFIG, **parts), "guard"))


def test_calibration_of_an_earlier_kind_is_shown_without_its_missing_keys(evaluation):
    section = probability_section({"slope": 0.8, "brier_skill": 0.02})
    assert "Calibration slope 0.80: too little to tell" in said(section)
    assert "no reliability diagram" in said(section)
    assert not section.figures


def test_lists_of_an_upstream_recommender_get_sections_of_their_own(evaluation, parts):
    values = evaluation.reranker.report().values
    upstream = {key: values[key] for key in ("calibration", "cut", "cut_curve", "n_cases")}
    page = report_page({**values, "upstream": upstream}, evaluation.table, CONFIG, **parts)
    anchors = [section.anchor for section in page.sections]
    assert anchors[anchors.index("cut") + 1 :][:3] == ["guard-upstream", "probability-upstream", "cut-upstream"]
    assert section_of(page, "probability-upstream").figures
    assert len(set(anchors)) == len(anchors)


# ------------------------------------------------------------------ written


def page_with(text: str) -> Page:
    return Page("t", "s", [], [Section("a", "b", [text])], [], "m")


def test_the_file_is_replaced_whole_and_a_failure_leaves_the_earlier_one(tmp_path):
    path, kept = tmp_path / "report.html", tmp_path / "link.html"
    write_page(path, page_with("the earlier text"))
    os.link(path, kept)
    write_page(path, page_with("the later text"))
    assert "the later text" in path.read_text()
    assert "the earlier text" in kept.read_text()  # the old file was put aside, not written over
    with pytest.raises(TypeError):
        write_page(path, Page("t", "s", [], None, [], "m"))
    assert "the later text" in path.read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link.html", "report.html"]


def test_half_an_emoji_does_not_stop_the_page(tmp_path):
    write_page(tmp_path / "report.html", page_with("a broken \ud83d title"))
    assert "a broken ? title" in (tmp_path / "report.html").read_text()


def test_cells_and_captions_are_escaped(tmp_path):
    table = Table("<b>caption</b>", ["<b>head</b>"], [["<b>cell</b>"]])
    page = Page("<b>t</b>", "<b>s</b>", [], [Section("a", "<b>h</b>", ["<b>p</b>"], tables=[table])], ["<b>l</b>"], "m")
    assert "<b>" not in render_page(page)


# ------------------------------------------------------------------ sections


def test_the_time_line_stands_where_the_times_are(evaluation, parts):
    trial, line = evaluation.trial, parts["line"]
    first, last = int(trial.past.times.min()), evaluation.last_time
    by_name = {span.name: span for span in line.spans}
    assert list(by_name) == ["1 Components", "2 Fold F", "3 Fold G", "4 Test"]
    at = (trial.at - first) / (last - first)
    assert by_name["4 Test"].start == pytest.approx(at)
    assert by_name["4 Test"].end == 1.0
    assert by_name["2 Fold F"].end == pytest.approx(at)
    n_f, n_g = (int(re.search(r"([\d,]+) users", by_name[name].what)[1]) for name in ("2 Fold F", "3 Fold G"))
    values = evaluation.reranker.report().values
    assert n_g == values["n_cases"]
    assert n_f + n_g == int(re.search(r"of ([\d,]+) of|; ([\d,]+) users", values["holdout"]).group(0).split()[1])
    assert f"{len(trial.cases):,} users with {len(trial.cases.targets.values):,} targets" in by_name["4 Test"].what
    spans = [e for e in ElementTree.fromstring(line.draw()).iter() if e.get("class") == "span"]
    widths = [float(span.get("width")) for span in spans]
    ratio = widths[3] / (widths[0] if by_name["1 Components"].end == at else 1)
    assert by_name["1 Components"].end != at or ratio == pytest.approx((1 - at) / at, rel=0.03)


def test_the_time_line_has_a_refit_and_no_dates_where_there_are_none(evaluation):
    trial, values = evaluation.trial, evaluation.reranker.report().values
    again = time_line(trial, values, seed=1, refit=True, last_time=evaluation.last_time)
    assert [span.name for span in again.spans][3:] == ["4 Refit", "5 Test"]
    words = [text.text for text in ElementTree.fromstring(again.draw()).iter(f"{SVG}text")]
    assert "…" not in "".join(words) and f"4 Refit: {again.spans[3].what}" in " ".join(words)
    by_order = time_line(replace(trial, at=None), values, seed=1, refit=True, last_time=evaluation.last_time)
    assert [text for _, text in by_order.moments] == ["older events", "last but one", "last"]
    assert time_line(trial, {**values, "holdout": "another"}, seed=1, refit=True, last_time=0) is None
    assert time_line(trial, {}, seed=1, refit=True, last_time=0) is None


def test_the_guards_tile_says_a_loss_and_not_too_few_cases(evaluation):
    report = evaluation.reranker.report().values
    losing = {**report["guard"], "kept_blend": False, "non_inferior": False}
    few = {**losing, "difference": None}
    for guard, figure, words in (
        (losing, "default ranks", "loses more than is harmless"),
        (few, "no blend fitted", "too few cases"),
        ({**few, "kept_blend": True}, "no blend fitted", "too few cases"),  # of a model that was saved with a start
    ):
        [tile] = [tile for tile in tiles({**report, "guard": guard}, evaluation.table) if tile.name == "guard"]
        assert tile.figure == figure
        assert words in tile.note


@pytest.mark.parametrize(
    ("interval", "p", "verdict"),
    [
        ([0.01, 0.03], 0.04, "better than"),
        ([-0.03, -0.01], 0.04, "worse than"),
        ([-0.01, 0.03], 0.04, "not told apart from"),
        # the interval knows nothing of the other systems, of which this one is the best
        ([0.01, 0.03], 0.06, "not told apart from"),
        ([-0.03, -0.01], 0.06, "not told apart from"),
    ],
)
def test_the_verdict_on_the_best_other_asks_the_interval_and_the_p_value(evaluation, interval, p, verdict):
    report, table = evaluation.reranker.report().values, evaluation.table
    others = [name for name in table.results if name != "fused"]
    best = max(others, key=lambda name: table.results[name].intervals["ndcg@10"].mean)
    test = {**table.tests[f"fused vs {best}"], "ci95": interval, "p_holm": p}
    table = replace(table, tests={**table.tests, f"fused vs {best}": test})
    assert f"Fused is {verdict} {best}" in said(systems_section(table))
    [tile] = [tile for tile in tiles(report, table) if tile.name == f"against {best}"]
    assert tile.note == f"{verdict.rsplit(' ', 1)[0]}; 95 %: {interval[0]:+.4f} to {interval[1]:+.4f}"


@pytest.mark.parametrize(("n", "told"), [(29, False), (30, True)])
def test_under_thirty_users_there_is_no_interval_and_no_verdict(evaluation, parts, n, told):
    trial = evaluation.trial.take(np.arange(n))
    table = compare_systems(evaluation.reranker, trial)
    page = report_page(evaluation.reranker.report().values, table, CONFIG, **parts)
    systems = section_of(page, "systems")
    assert ("Fused is" in said(systems)) == told
    assert ("29 are too few users to tell (30 at least are wanted)" in said(systems)) != told
    assert ("with 95 % intervals" in systems.figures[0].caption) == told
    interval = re.compile(r"\[.\d+\.\d+, .\d+\.\d+\]|\[\d+\.\d+, \d+\.\d+\]")
    shown = [str(table), *said(systems).splitlines(), *(cell for row in systems.tables[0].rows for cell in row)]
    assert any(interval.search(text) for text in shown) == told
    notes = [tile.note for tile in page.tiles[:2]]
    if told:
        assert all("95 %: " in note for note in notes)
    else:
        assert notes == ["too few users for an interval", "too few users to tell"]
    # strata are smaller than the whole: none of 30 users has an interval here, and their figures stand
    strata = [found for found in table.results["fused"].strata.values() if found is not None]
    assert all(np.isfinite(found.mean) and np.isnan(found.low) == (found.n < 30) for found in strata)
    as_json = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert (as_json["systems"]["fused"]["ci95"]["ndcg@10"] == [None, None]) != told
    assert (next(iter(as_json["tests"].values()))["ci95"] == [None, None]) != told
    assert not re.search(r"\bnan\b", str(table) + unescape(render_page(page)), re.IGNORECASE)


def test_the_guard_is_drawn_beside_its_margin(evaluation):
    verdict = evaluation.reranker.report().values["guard"]
    section = guard_section(verdict)
    assert f"n = {verdict['n_cases']:,} held-out cases" in said(section)
    svg = section.figures[0].svg
    across = tick_places(svg, "x")
    assert read_off(across, marks(svg)[0][0]) == pytest.approx(verdict["difference"]["mean"], abs=0.001)
    margin = next(e for e in ElementTree.fromstring(svg).iter(f"{SVG}line") if e.get("stroke-dasharray") == "4 3")
    assert read_off(across, float(margin.get("x1"))) == pytest.approx(-verdict["margin"], abs=0.001)
    texts = ElementTree.fromstring(section.figures[1].svg).iter(f"{SVG}text")
    written = " ".join(text.text for text in texts if text.get("text-anchor") == "end")
    assert f"{' '.join(verdict['rungs'])} blend" in written and "…" not in written
    other = guard_section(verdict, ", for lists of the upstream recommender")
    assert (other.anchor, section.anchor) == ("guard-upstream", "guard")
    assert "upstream" in other.title
    few = guard_section({**verdict, "difference": None})
    assert not few.figures
    assert "too few to fit a blend" in said(few)


def test_parts_are_drawn_with_what_they_gain_and_cost():
    gains = Difference(0.003, 0.001, 0.005, 0.01, 300)
    paying = PartVerdict("sequence", (0.1, 0.103), gains, 300, 50.0, pays=True, kept=True)
    unjudged = PartVerdict("semantic", None, None, 0, 9.0, pays=False, kept=False, reason="few")
    section = parts_section([paying.to_dict(), unjudged.to_dict()])
    assert f"{paying.sentence()}." in section.paragraphs
    assert f"{unjudged.sentence()}." in section.paragraphs
    svg = section.figures[0].svg
    across = tick_places(svg, "x")
    (mark,) = marks(svg)
    assert read_off(across, mark[0]) == pytest.approx(0.003, abs=0.0002)
    assert not parts_section([unjudged.to_dict()]).figures
    assert "No part was tried" in said(parts_section([]))


def test_wilson_by_hand():
    # 10 of 100: (0.1 + 1.96²/200 ± 1.96 √(0.09/100 + 1.96²/40000)) / (1 + 1.96²/100) = 0.0552, 0.1744
    assert wilson_interval(0.1, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)
    low, high = wilson_interval(0.0, 100)
    assert low == 0.0
    assert high == pytest.approx(0.0370, abs=1e-4)  # z² / (n + z²)


RELIABILITY = {"probability": [0.0005, 0.004, 0.03], "observed": [0.0, 0.005, 0.028], "counts": [1000, 1000, 1000]}
CALIBRATION = {
    "slope": 1.1, "slope_ci95": [1.02, 1.18], "ece_top_10": 0.002, "ece_top_10_if_perfect": 0.0011,
    "mean_probability_top_10": 0.02, "brier_skill": 0.01, "brier_skill_ci95": [-0.002, 0.02],
    "reliability": RELIABILITY,
    "strata": {
        "user 1-2": {"n": 10, "slope": 0.9, "slope_ci95": [0.5, 1.3]}, "item 0": {"n": 1, "slope": float("nan")},
    },
}  # fmt: skip


def test_calibration_in_words_follows_the_figures():
    section = probability_section(CALIBRATION)
    assert "slope 1.10 [1.02, 1.18] (95 %), which does not contain 1" in said(section)
    assert "0.0020, 10% of it; perfect probabilities would show 0.0011" in said(section)
    assert "not shown to be better than" in said(section)
    sound = {**CALIBRATION, "slope_ci95": [0.9, 1.3], "brier_skill_ci95": [0.001, 0.02]}
    assert "which contains 1" in said(probability_section(sound))
    bold = {**CALIBRATION, "slope_ci95": [0.7, 0.95]}
    assert "which does not contain 1" in said(probability_section(bold))
    assert ": better than giving" in said(probability_section(sound))


def test_the_reliability_diagram_holds_the_bins_and_strata_without_a_slope_are_no_rows():
    section = probability_section(CALIBRATION)
    svg = section.figures[0].svg
    across, up = tick_places(svg, "x"), tick_places(svg, "y")
    for (x, y), probability, observed in zip(marks(svg), *list(RELIABILITY.values())[:2], strict=True):
        assert read_off(across, x, log=True) == pytest.approx(probability, rel=0.03)
        if observed:
            assert read_off(up, y, log=True) == pytest.approx(observed, rel=0.03)
    assert len(marks(section.figures[1].svg)) == 1
    assert [row[0] for row in section.tables[0].rows] == ["users, 1–2 events", "items, 0 users"]
    assert section.tables[0].rows[1][4] == "unknown"
    empty = {**CALIBRATION, "reliability": {**RELIABILITY, "observed": [0.0, 0.0, 0.0]}, "strata": {}}
    assert not probability_section(empty).figures


CURVE = {
    "least_probability": [0.5, 0.1, 0.02, 0.001], "precision": [1.0, 0.4, 0.1, 0.01],
    "recall": [0.01, 0.2, 0.7, 1.0], "mean_kept": [0.01, 0.5, 7.0, 100.0],
}  # fmt: skip
GUARANTEE = {
    "risk": "missed_target", "alpha": 0.3, "delta": 0.1, "n_cases": 500, "observed_risk": 0.26,
    "conditional_on": "lists like these",
}  # fmt: skip
CUT = Cut("risk", 0.3, 0.02, 0.1, 0.7, 7.0, 400, 500)


def test_the_cut_is_marked_on_its_curves_and_the_guarantee_is_said():
    section = cut_section({**CUT.to_dict(), "guarantee": GUARANTEE, "no_guarantee": ""}, CURVE, 400)
    assert re.search(r"Guaranteed: with probability at least 0.9 .* is at most 0.3 in expectation", said(section))
    for figure, key in zip(section.figures, ("precision", "recall"), strict=True):
        (x, y), *more = marks(figure.svg)
        assert not more
        assert read_off(tick_places(figure.svg, "x"), x, log=True) == pytest.approx(7.0, rel=0.03)
        assert read_off(tick_places(figure.svg, "y"), y) == pytest.approx(getattr(CUT, key), abs=0.01)
        # the first point keeps 4 candidates of 400 lists together: it would say nothing
        line = ElementTree.fromstring(figure.svg).find(f"{SVG}polyline").get("points").split()
        assert len(line) == 3


def test_without_a_guarantee_the_reason_is_said():
    without = {**CUT.to_dict(), "guarantee": None, "no_guarantee": "the components were fitted again"}
    assert "No guarantee: the components were fitted again." in said(cut_section(without, CURVE, 400))
    nothing = cut_section({**CUT.to_dict(), "mean_kept": 0.0}, CURVE, 400)
    assert "keeps nothing" in said(nothing)
    assert not any(marks(figure.svg) for figure in nothing.figures)
    no_rule = cut_section(None, CURVE, 400)
    assert "No threshold rule was set" in said(no_rule)
    assert len(no_rule.figures) == 2
    assert "no cut-off curve" in said(cut_section(None, {name: [] for name in CURVE}, 400))


def test_variety_says_what_two_percent_buy():
    curve = [
        {"strength": 0.0, "ndcg": 0.2, "ild": 0.5, "coverage": 0.3, "long_tail": 0.2},
        {"strength": 0.2, "ndcg": 0.197, "ild": 0.6, "coverage": 0.4, "long_tail": 0.3},
        {"strength": 0.8, "ndcg": 0.1, "ild": 0.9, "coverage": 0.5, "long_tail": 0.4},
    ]
    section = diversity_section(curve, 0.2)
    assert "strength 0.2 is the furthest of those tried: distance 0.500 → 0.600 (+20%)" in said(section)
    assert "In use: strength 0.2." in said(section)
    svg = section.figures[0].svg
    places = [(read_off(tick_places(svg, "x"), x), read_off(tick_places(svg, "y"), y)) for x, y in marks(svg)]
    assert places == [(pytest.approx(p["ild"], abs=0.005), pytest.approx(p["ndcg"], abs=0.002)) for p in curve]


def test_the_price_of_variety_is_counted_from_relevance_alone_where_variety_is_in_use(evaluation):
    plain = evaluation.reranker
    varied = Reranker.from_saved(replace(plain.saved, config=replace(plain.config, diversity=0.6)))
    in_use = replace(evaluation, reranker=varied, table=compare_systems(varied, evaluation.trial))
    lists = lists_by_relevance(in_use)
    assert lists.values.tolist() == evaluation.table.fused.values.tolist() != in_use.table.fused.values.tolist()
    curve = diversity_curve(lists, evaluation.trial, plain.components, [0.0, 0.6])
    shown = [evaluation.table.results["fused"], in_use.table.results["fused"]]
    assert [point["ndcg"] for point in curve] == pytest.approx([found.intervals["ndcg@10"].mean for found in shown])


def test_the_diversity_curve_starts_at_the_lists_themselves_and_widens(evaluation, parts):
    first, *_, last = parts["diversity"]
    assert first["strength"] == 0.0
    assert first["ndcg"] == pytest.approx(evaluation.table.results["fused"].intervals["ndcg@10"].mean)
    assert first["coverage"] == pytest.approx(evaluation.table.results["fused"].coverage)
    assert last["strength"] == 1.0
    assert last["ild"] > 1.05 * first["ild"]
    assert last["ndcg"] < first["ndcg"]
    assert diversity_curve(evaluation.table.fused, evaluation.trial, []) == []


def test_loss_curves_are_drawn_where_there_are_any():
    log = [
        {"step": 0, "loss": 3.0, "ndcg@10": 0.2},
        {"step": 50, "loss": 2.0, "ndcg@10": 0.3, "training_loss": 2.5},
        {"step": 100, "loss": 2.4, "ndcg@10": 0.28, "training_loss": 2.0},
    ]
    log = [{**entry, "recall@10": 0.4, "accuracy": 0.1, "base_rate": 0.09} for entry in log]
    section = tuning_section({"log": log, "best_step": 50})
    assert "3.0000 at the warm start and least, 2.0000, at step 50" in said(section)
    assert [len(marks(figure.svg)) for figure in section.figures] == [3, 2, 6, 6]
    kept = next(e for e in ElementTree.fromstring(section.figures[0].svg).iter() if e.get("stroke-dasharray") == "4 3")
    assert read_off(tick_places(section.figures[0].svg, "x"), float(kept.get("x1"))) == pytest.approx(50, abs=1)
    assert "No cross-encoder was tried" in said(tuning_section(None))


def test_three_users_are_chosen_by_the_rule():
    gains = np.array([0.9, 0.1, 0.5, -0.3, -0.1, 0.0, 0.0, 0.0, 0.4])
    n_seen = np.array([5, 5, 5, 5, 5, 9, 5, 7, 4])
    # gainers 1 (.1) 2 (.5) 0 (.9); losers 4 (.1) 3 (.3): upper median; stayers 6 (5) 7 (7) 5 (9); 8 has too few items
    assert chosen_users(gains, n_seen) == [("gains", 2), ("loses", 3), ("stays", 7)]
    assert chosen_users(gains, np.full(9, 4)) == []
    assert chosen_users(np.array([0.5]), np.array([6])) == [("gains", 0)]


def test_examples_show_the_lists_as_they_were(evaluation, parts, file):
    second = parts["second"]
    page = report_page(evaluation.reranker.report().values, evaluation.table, CONFIG, **parts)
    section = section_of(page, "examples")
    assert "Both lists of a user hold the same candidates." in said(section)
    chosen = chosen_users(second.ndcg_after - second.ndcg_before, second.trial.seen.lengths)
    assert len(section.tables) == len(chosen) >= 2
    titles = second.trial.items.frame["title"].tolist()
    for table, (_, case) in zip(section.tables, chosen, strict=True):
        taken = set(second.trial.cases.targets[case].tolist())
        old = second.before[case].tolist()
        assert table.caption.startswith(str(second.trial.user_ids[case]))
        for place in range(10):
            item = int(second.after[case][place])
            assert table.rows[place][2] == f"{'★ ' if item in taken else ''}{titles[item]} ({old.index(item) + 1})"


def test_only_settings_that_differ_are_shown():
    assert changed_settings(RerankerConfig()) == {}
    config = RerankerConfig(threshold=ThresholdConfig("risk", alpha=0.3), diversity=DiversityConfig(0.2), seed=3)
    shown = {"threshold": {"rule": "risk", "alpha": 0.3}, "diversity": {"strength": 0.2}, "seed": 3}
    assert changed_settings(config) == shown


# ------------------------------------------------------------------ in a browser


LOOK = """least => {
  const width = document.documentElement.clientWidth, problems = [];
  const light = colour => {
    const part = value => { value /= 255; return value <= .03928 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4; };
    const [r, g, b] = colour.match(/\\d+/g).map(Number);
    return .2126 * part(r) + .7152 * part(g) + .0722 * part(b);
  };
  if (width >= 1200) for (const table of document.querySelectorAll(".table.wide"))
    if (table.scrollWidth > table.clientWidth)
      problems.push(`cut off at the right: ${table.getAttribute("aria-label")}`);
  if (width >= 1400) for (const cell of document.querySelectorAll(".wide td.number"))
    if (cell.offsetHeight > 40) problems.push(`broken over lines: ${cell.textContent}`);
  const wide = document.documentElement.scrollWidth;
  if (wide > width) problems.push(`page is ${wide} wide`);
  for (const element of document.querySelectorAll("body *")) {
    const box = element.getBoundingClientRect();
    const name = `${element.tagName} ${element.textContent.trim().slice(0, 40)}`;
    if (box.width && (box.right > width + 1 || box.left < -1) && !element.closest(".table"))
      problems.push(`outside the page: ${name}`);
    const says = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    const inSvg = element.tagName === "text";
    if (says && (inSvg || !element.closest("svg"))) {
      const style = getComputedStyle(element);
      const contrast = 1.05 / (light(inSvg ? style.fill : style.color) + .05);
      if (contrast < 4.5) problems.push(`contrast ${contrast.toFixed(1)}: ${name}`);
      const size = parseFloat(style.fontSize) * (inSvg ? element.getScreenCTM().a : 1);
      if (size < least) problems.push(`${size.toFixed(1)} px: ${name}`);
    }
  }
  const figures = [...document.querySelectorAll("svg")];
  for (const svg of figures) {
    const title = svg.querySelector("title").textContent, view = svg.viewBox.baseVal;
    const drawn = [...svg.querySelectorAll(".mark, .bar, .span, polyline")].map(mark => mark.getBoundingClientRect());
    if (!drawn.some(box => box.width > 0 && box.height > 0)) problems.push(`empty figure: ${title}`);
    if (svg.getAttribute("role") !== "img" || !title || !svg.querySelector("desc").textContent)
      problems.push(`figure without words: ${title}`);
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBBox();
      if (text.textContent.includes("…")) problems.push(`shortened in ${title}: ${text.textContent}`);
      if (text.hasAttribute("transform")) continue;
      if (box.x < -1 || box.y < -1 || box.x + box.width > view.width + 1 || box.y + box.height > view.height + 1)
        problems.push(`words cut off in ${title}: ${text.textContent}`);
    }
  }
  return {problems, figures: figures.length, visible: document.body.innerText.length, broken: window.broken ?? null};
}"""


@pytest.fixture(scope="module")
def browser():
    with browser_of_the_system() as started:
        yield started


def look(browser, path, width: int, media: str = "screen") -> tuple[dict, list[str]]:
    """Open a file; returns what the page says of itself, and what went wrong: errors, requests elsewhere."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}"))
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else wrong.append(request.url)
    )
    page.emulate_media(media=media)
    page.goto(path.as_uri())
    found = page.evaluate(LOOK, 10 if media == "print" else 11.5)  # least size of words in px
    page.close()
    return found, wrong


@pytest.mark.parametrize(
    ("width", "media"), [(400, "screen"), (1280, "screen"), (1400, "screen"), (1920, "screen"), (700, "print")]
)
def test_a_browser_shows_the_report_without_fault(browser, file, width, media):
    found, wrong = look(browser, file, width, media)
    assert wrong == []
    assert found["problems"] == []
    assert found["figures"] >= 10
    assert found["visible"] > 3_000
    assert found["broken"] is None  # the titles' scripts did not run


def test_a_browser_shows_loss_curves_and_words_without_end(browser, evaluation, parts, tmp_path):
    log = [
        {"step": step, "loss": 3 - step / 100, "training_loss": 4 - step / 90, "ndcg@10": 0.1 + step / 900,
         "recall@10": 0.2, "accuracy": 0.1 + step / 1000, "base_rate": 0.09}
        for step in range(0, 301, 50)
    ]  # fmt: skip
    tuned = {"fine_tuning": {"log": log, "best_step": 300}, "calibration": CALIBRATION}
    write_page(tmp_path / "tuned.html", report_page(tuned, evaluation.table, CONFIG, **{**parts, "diversity": []}))
    page = tmp_path / "long.html"
    long = "x" * 300
    table = Table(long, ["a", long], [[long, long]], 2)
    write_page(
        page, Page(long, long, [Tile(long, "1", long)], [Section("a", long, [long], tables=[table])], [long], "m")
    )
    found, wrong = look(browser, page, 400)
    assert (wrong, found["problems"]) == ([], [])
    found, wrong = look(browser, tmp_path / "tuned.html", 400)
    assert (wrong, found["problems"]) == ([], [])


def test_the_look_sees_faults(browser, tmp_path):
    """The check itself: a page with one of each fault."""
    (tmp_path / "bad.html").write_text(
        "<!DOCTYPE html><body style='margin:0'><script>window.broken = 1; console.error('oops')</script>"
        "<p style='width:900px'>wide</p><p style='color:#aaa'>pale</p><p style='font-size:6px'>small</p>"
        "<svg viewBox='0 0 100 20' width='100'><title>none</title><desc></desc><text x='90' y='10'>cut …</text></svg>"
        "<div class='table wide' aria-label='t' style='width:100px;overflow:auto'><table><td>a_word_too_wide_for_it"
        "</table></div>"
        "<img src='http://127.0.0.1:9/x.png'>"
    )
    found, wrong = look(browser, tmp_path / "bad.html", 400)
    told = "\n".join(found["problems"])
    for fault in (
        "page is", "outside the page", "contrast", "6.0 px", "empty figure", "without words", "words cut off in",
        "shortened in",
    ):  # fmt: skip
        assert fault in told
    assert "cut off at the right" in "\n".join(look(browser, tmp_path / "bad.html", 1400)[0]["problems"])
    assert found["broken"] == 1
    assert "oops" in wrong
    assert "http://127.0.0.1:9/x.png" in wrong
