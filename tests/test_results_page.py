"""The page of results: as the committed reports have it, and its arithmetic on reports made up by hand."""

import copy
import json
import math
import re
from xml.etree import ElementTree

import pytest

from benchmarks import results_advice, results_page, results_plots, results_sections
from benchmarks.results_reports import (
    COSTS,
    LEVEL,
    LITTLE,
    PAYS,
    WHOLE_TEST,
    Gain,
    Results,
    best_single,
    choice_on_test,
    difference_of,
    figure,
    gains_on_test,
    in_order,
    joined_maps,
    percent,
    regime_choice,
    regime_words,
    share_of,
    signed,
)

INFORMATION = {"hardware": {"processor": "P", "cores": 2, "memory_gb": 8.0, "threads": "1"}}
STRATUM = "user 1-2"


def system(ndcg, in_stratum=0.02, seconds=3.0, **more):
    strata = {STRATUM: {"ndcg@10": in_stratum, "ci95": [0.01, 0.03], "n_cases": 200}, "item 0": None}
    rates = {"ndcg@10": ndcg, "hr@10": 0.2, "recall@100": 0.3, "coverage@10": 0.4}
    return {**rates, "ci95": {"ndcg@10": [ndcg - 0.01, ndcg + 0.01]}, "strata": strata, "seconds_fit": seconds, **more}


def compared(difference, low, high, p=0.01):
    return {"difference": difference, "ci95": [low, high], "p_holm": p}


def ranking():
    """Words gain over behaviour; the encoder loses to words; fused ranks as the encoder does, below ease."""
    return {
        "dataset": "made_up",
        "split": "test",
        "protocol": "made_up, test, leave-last-out",
        "complete": True,
        "systems": {
            "ease": system(0.14, in_stratum=0.03),
            "z_sum": system(0.2),
            "fused_behaviour": system(0.10),
            "fused_without_language_model": system(0.13),
            "fused_without_cross_encoder": system(0.12),
            "fused": system(0.12, in_stratum=0.02),
        },
        "tests": {
            "fused vs ease": compared(-0.02, -0.03, -0.01),
            "fused vs fused_without_cross_encoder": compared(0.0, 0, 0, 1.0),
            "fused vs fused_without_language_model": compared(-0.01, -0.0296, 0.0096, 0.4),
            "fused_without_language_model vs fused_behaviour": compared(0.03, 0.02, 0.04, 0.002),
        },
        **INFORMATION,
    }


def paired(mean, low, high):
    return {"mean": mean, "low": low, "high": high, "p": 0.03, "n": 50, "relative": 0.0}


def regime(behaviour, words, encoder, words_gain, encoder_gain, **more):
    means = {"behaviour": behaviour, "words": words, "encoder": encoder}
    steps = {"words over behaviour": paired(*words_gain), "encoder over words": paired(*encoder_gain)}
    return {"metric": "ndcg@10", "n": 50, "means": means, "steps": steps, **more}


def shop_map():
    young = regime(0.10, 0.15, 0.152, (0.05, 0.03, 0.07), (0.002, -0.001, 0.005))
    whole = regime(0.20, 0.19, 0.195, (-0.01, -0.02, -0.005), (0.005, 0.001, 0.009))
    new = regime(0.10, 0.30, 0.34, (0.20, 0.15, 0.25), (0.04, 0.01, 0.07), at_random=0.2)
    young["auto"] = {"choice": "words", "best": "encoder", "loss": 0.002, "standard_error": 0.0015}
    regimes = {"100% of users": whole, "new items": {**new, "metric": "hr@10"}, "3% of users": young}
    return {"dataset": "made_up", "split": "validation", "regimes": regimes, "fits": {}, **INFORMATION}


def stored(folder, **reports):
    for name, report in reports.items():
        (folder / name).mkdir()
        (folder / name / "made_up.json").write_text(json.dumps(report), encoding="utf-8")
    return Results.read(folder)


@pytest.fixture
def results(tmp_path):
    (tmp_path / "results").mkdir()
    return stored(tmp_path / "results", ranking=ranking(), regimes=shop_map())


def test_the_page_and_its_plots_are_what_the_committed_reports_say():
    found = results_page.complaints(results_page.PROJECT, Results.read(results_page.RESULTS))
    assert [complaint for complaint in found if not complaint.startswith("README")] == []


def test_the_table_of_the_readme_is_what_the_committed_reports_say():
    found = results_page.complaints(results_page.PROJECT, Results.read(results_page.RESULTS))
    assert [complaint for complaint in found if complaint.startswith("README")] == []


def test_a_later_run_adds_the_regimes_that_a_map_lacks_and_changes_none():
    first, more = {"dataset": "a", "regimes": {"x": 1}}, {"dataset": "a", "regimes": {"x": 2, "new items": 3}}
    other = {"regimes": {"x": 4}}
    joined = joined_maps({"a": first, "a_new_items": more, "b": other})
    assert joined == {"a": {"dataset": "a", "regimes": {"x": 1, "new items": 3}}, "b": other}


def test_numbers_are_written_short():
    assert [figure(value) for value in (0.01234, 0, 1.5, -0.0007)] == [".0123", ".0000", "1.5000", "−.0007"]
    assert [signed(value) for value in (0.0123, -0.0, -0.25)] == ["+.0123", "+.0000", "−.2500"]
    assert [percent(share) for share in (0.124, -0.07, math.inf)] == ["+12 %", "−7 %", "from 0"]


def test_regimes_by_name():
    assert share_of("3% of users") == pytest.approx(0.03)
    assert share_of("100% of users, newest 1 of each history") is None and share_of("new items") is None
    assert regime_words("3% of users") == "events of 3 % of users"
    assert regime_words("100% of users, newest 1 of each history") == "newest 1 of each history"
    assert regime_words("10% of users, cut") == "10 % of users, cut"
    names = ["new items", "100% of users", "search phrase only", "3% of users", WHOLE_TEST]
    assert in_order(names) == [WHOLE_TEST, "3% of users", "100% of users", "search phrase only", "new items"]


def test_paired_differences_are_found_from_either_side_and_by_a_stand_in():
    report = ranking()
    assert difference_of(report, "fused", "ease") == {"mean": -0.02, "low": -0.03, "high": -0.01, "p": 0.01}
    assert difference_of(report, "ease", "fused") == {"mean": 0.02, "low": 0.01, "high": 0.03, "p": 0.01}
    # never tested itself, but it ranks as fused does
    stood_for = difference_of(report, "fused_without_cross_encoder", "fused_without_language_model")
    assert stood_for == {"mean": -0.01, "low": -0.0296, "high": 0.0096, "p": 0.4}
    assert difference_of(report, "z_sum", "ease") is None


def test_gains_and_losses_on_the_test_split():
    report = ranking()
    words, encoder = gains_on_test("made_up", report)
    assert (words.step, words.below, words.mean, words.verdict) == ("words", "behaviour", 0.03, PAYS)
    assert words.relative == pytest.approx(0.3)
    assert (encoder.step, encoder.mean, encoder.verdict) == ("encoder", -0.01, LEVEL)
    assert best_single(report) == "ease"
    assert results_sections.losses(report) == [
        "- `fused` lies below `ease`: −.0200 [−.0300, −.0100], a loss",
        "- `fused` lies below `fused_without_language_model`: −.0100 [−.0296, +.0096], not told apart from none",
    ]
    report["tests"] = {}
    assert len(results_sections.losses(report)) == 1 and "none" in results_sections.losses(report)[0]


def test_verdicts_follow_thresholds():
    def verdict(below, mean, low, high, floor=0.0):
        return Gain("d", "r", "words", "behaviour", below, mean, low, high, 0.1, floor=floor).verdict

    assert verdict(0.10, 0.0101, 0.001, 0.02) == PAYS
    assert verdict(0.10, 0.0099, 0.001, 0.02) == LITTLE
    assert verdict(0.10, 0.05, -0.001, 0.1) == LEVEL
    assert verdict(0.10, -0.05, -0.1, -0.001) == COSTS
    assert verdict(0.0, 0.01, 0.001, 0.02) == PAYS
    # thrice a step that does worse than chance is still no more than 5 % above chance
    assert verdict(0.10, 0.215, 0.2, 0.23, floor=0.30) == LITTLE


def test_the_own_choice_is_judged_by_one_standard_error_of_the_paired_difference():
    report = ranking()
    choice = choice_on_test("made_up", report)
    assert (choice.best, choice.own_mean, choice.difference) == ("words", 0.12, -0.01)
    assert choice.error == pytest.approx(0.0392 / 3.92) and choice.within
    report["tests"]["fused vs fused_without_language_model"] = compared(-0.0101, -0.0297, 0.0095)
    assert not choice_on_test("made_up", report).within

    found = regime(0.1, 0.2, 0.15, (0.1, 0.05, 0.15), (-0.05, -0.1, -0.01))
    assert regime_choice("made_up", "new items", found) is None
    found["auto"] = {"choice": "encoder", "best": "words", "loss": 0.05, "standard_error": 0.04}
    choice = regime_choice("made_up", "new items", found)
    assert (choice.own, choice.best, choice.own_mean, choice.difference) == ("encoder", "words", 0.15, -0.05)
    assert not choice.within
    found["auto"]["standard_error"] = 0.06
    assert regime_choice("made_up", "new items", found).within


def gain(step, below, below_mean, mean, low, **more):
    return Gain("d", "r", step, below, below_mean, mean, low, mean + 0.01, 0.1, **more)


def test_the_step_to_take():
    take = results_advice.step_to_take
    assert take([gain("words", "behaviour", 0.1, 0.02, 0.01)]) == "words"
    assert take([gain("words", "behaviour", 0.1, 0.02, -0.01)]) == "behaviour"
    # a step that only makes good what the one below it lost
    lost = [gain("words", "behaviour", 0.1, -0.03, -0.04), gain("encoder", "words", 0.07, 0.02, 0.01)]
    assert take(lost) == "behaviour"
    # two small gains that add up
    small = [gain("words", "behaviour", 0.1, 0.006, 0.001), gain("encoder", "words", 0.106, 0.006, 0.001)]
    assert take(small) == "encoder" and take(small[:1]) == "behaviour"
    assert take([gain("words", "behaviour", 0.1, 0.15, 0.1, floor=0.24)]) == "behaviour"


def test_advice_follows_the_numbers(results, tmp_path):
    text = results_advice.when_you_need_what(results)
    assert "| events of 3 % of users | `words` |" in text
    assert "| events of all users | `behaviour` (`encoder` over `words` +3 %) |" in text
    assert "| new items | `encoder` |" in text
    # over chance, .2, where behaviour does worse: .3 is +50 %, not +200 %
    assert (
        "**`words`** pays with all users, test (made_up +30 %); events of 3 % of users (made_up +50 %); new items "
        "(made_up +50 %)." in text
    )
    assert "It costs with events of all users (made_up −5 %)." in text
    assert "Nothing is worth more than the lowest step measured: events of all users (made_up)." in text
    assert "Of 8 different intervals about 0.2 would lie above 0 by chance alone; 5 do." in text

    changed = copy.deepcopy(shop_map())
    changed["regimes"]["new items"]["steps"]["encoder over words"] |= {"low": -0.01}
    (tmp_path / "changed").mkdir()
    text = results_advice.when_you_need_what(stored(tmp_path / "changed", regimes=changed))
    assert "| new items | `words` |" in text
    assert "**`encoder`** pays in none of the 3 regimes where it was measured." in text


def test_a_page_has_the_sections_whose_reports_are_there(results, tmp_path):
    text = results_page.page(results)
    heads = re.findall("^## (.*)$", text, re.MULTILINE)
    assert heads[:2] == ["What was measured", "On the test split"] and heads[-1] == "When you need what"
    assert "Single questions" not in heads
    assert "Strata of 100 users or more where `fused` lies below `ease`: user 1-2 (.0200 against .0300)." in text
    assert "| .1500<br>**+.0500 [+.0300, +.0700]** | .1520<br>+.0020 [−.0010, +.0050] | `words` |" in text
    assert "paired difference: 1 of 2." in text
    assert "| made_up | events of 3 % of users | `encoder` | `words` | .1500 | −.0020 | .0015 | **no** |" in text
    assert "- events of all users: `words` lies below `behaviour`: −.0100 [−.0200, −.0050]" in text
    assert "memory" not in text
    (tmp_path / "alone").mkdir()
    report = ranking()
    report["systems"]["fused"]["peak_memory_mb_fit"] = 1234.4
    alone = results_page.page(stored(tmp_path / "alone", ranking=report))
    assert "Map of regimes" not in alone and "| memory, MiB |" in alone and "| 3.0 | 1,234 |" in alone


def test_single_questions_give_the_figures_of_their_reports(tmp_path):
    calibrated = {
        "slope": 0.9, "slope_ci95": [0.8, 1.0], "mean_probability_top_10": 0.02, "rate_top_10": 0.025,
        "ece_top_10": 0.003, "ece_top_10_if_perfect": 0.001, "brier_skill": 0.01, "brier_skill_ci95": [0.005, 0.015],
    }  # fmt: skip
    way = {
        "gain": {"mean": 0.001, "ci95": [-0.002, 0.004]},
        "ndcg@10 of all users": {"mean": -0.002, "ci95": [-0.003, -0.001]},
    }
    held = {"dataset": "made_up", "calibration": {"retrieved": calibrated}}
    ways = {
        "pairwise": {**way, "p of gain, adjusted": 0.5, "fine_tunings": [{"best_step": 20}]},
        "idle": {**way, "p of gain, adjusted": None, "fine_tunings": [{"best_step": 0}]},
    }
    tuned = {"dataset": "made_up", "split": "validation", "n_judged": 50, "n_users": 90, "variants": ways}
    stored(
        tmp_path,
        ranking=ranking(),
        calibration={**held, "trial": "made_up, test, cut", "command": "c"},
        calibration_validation={**held, "trial": "made_up, validation, cut", "command": "c --no-refit"},
        fine_tuning_ablation=tuned,
        ablations={
            "split": "validation",
            "comparisons": [
                {"label": "gain of words: real less shuffled", "mean": 0.004, "low": 0.001, "high": 0.007},
                {"label": "whole over no als", "mean": 0.002, "low": -0.001, "high": 0.005},
                {"label": "whole over no sales_7d", "mean": 0.0, "low": -0.001, "high": 0.001},
            ],
        },
        language_model={
            "dataset": "made_up",
            "split": "validation",
            "fraction": 0.03,
            "n_judged": 50,
            "share above, blend": 0.75,
            "readers": {"language model": {**way, "share above": {"mean": 0.66}}},
            "cost": {"pairs_per_second": {"packed": 80.2}, "ratio": 4.04, "dtype": "bfloat16", "device": "cpu"},
        },  # fmt: skip
        tuned_encoder={
            "split": "validation",
            "settings": {"steps": 60},
            "log": [{"step": 0.0, "loss": 3.0}, {"step": 50.0, "loss": 2.0}, {"step": 60.0, "loss": 2.5}],
            "forms": {"similarity alone": {"untuned": 0.06, "mean": 0.004, "low": 0.002, "high": 0.006}},
        },
    )
    again = {**way, "p of gain, adjusted": 0.1, "fine_tunings": [{"best_step": 20}, {"best_step": 0}]}
    (tmp_path / "fine_tuning_ablation" / "made_up_seeds.json").write_text(
        json.dumps({**tuned, "variants": {"pairwise": again}}), encoding="utf-8"
    )
    text = results_page.page(Results.read(tmp_path))
    told = "retrieved: slope 0.90 [0.80, 1.00]; of the first ten the mean probability is 0.80 of the share taken, the "
    told += "calibration error 15.0% of it (5.0% if perfect); Brier skill +.0100 [+.0050, +.0150]"
    assert f"- made_up (test), {told}" in text and f"- made_up (validation, without a refit), {told}" in text
    told = (
        "- made_up (validation), pairwise: +.0010 [−.0020, +.0040] nats on 50 users whose target is among the first 100"
    )
    ndcg = "NDCG@10 of all 90 −.0020 [−.0030, −.0010]"
    assert f"{told}, p = 0.500 (Holm); {ndcg} (steps kept, one a seed: 20)" in text
    assert f"{told}, chosen from the report above; {ndcg} (steps kept, one a seed: 20, 0)" in text
    assert "- made_up (validation), idle: no step beat the untrained start, which is kept" in text
    assert "gain of words: real less shuffled: +.0040 [+.0010, +.0070]" in text
    lost = "als +.0020 [−.0010, +.0050]; sales_7d +.0000 [−.0010, +.0010]"
    assert f"- made_up (validation), NDCG@10 of the whole over that without: {lost}\n" in text
    told = "with the events of 3% of the users, 50 users whose target is among the first 100: the target stands above "
    told += "this share of the others by the blend 0.750, by language model 0.660. Beside the blend: language model "
    told += (
        "+.0010 [−.0020, +.0040] nats, NDCG@10 −.0020 [−.0030, −.0010]. 80 pairs a second (bfloat16, cpu), 4.0 × one"
    )
    assert told in text
    assert "NDCG@10 untuned .0600, tuned +.0040 [+.0020, +.0060] over it (step 50 of 60 is kept)" in text


def test_plots_are_pictures_in_words_too_and_to_scale(results):
    by_share, others = results_plots.plots_of("made_up", results.maps["made_up"])
    assert (by_share.name, others.name) == ("made_up_behaviour", "made_up_hr_10")
    assert "Words: +.0500 with events of 3 % of users, −.0100 with events of all users." in by_share.alternative
    for plot in (by_share, others):
        root = ElementTree.fromstring(plot.svg)
        assert root.get("width") == "900" and root.get("role") == "img"
        space = "{http://www.w3.org/2000/svg}"
        assert root.find(f"{space}desc").text == plot.alternative
    places = {text.text: float(text.get("x")) for text in root.iter(f"{space}text")}
    levels = sorted((float(circle.get("cy")), float(circle.get("cx"))) for circle in root.iter(f"{space}circle"))
    words = levels[-1][1]  # the first circle belongs to the key
    assert words == pytest.approx(places["0"] + 2 * (places["0.1"] - places["0"]), abs=0.2)


def test_the_table_goes_between_its_comments():
    text = "a\n<!-- results -->\nold\n<!-- /results -->\nb"
    assert results_page.with_table(text, "new") == "a\n<!-- results -->\nnew\n<!-- /results -->\nb"
    twice = "<!-- results --><!-- results --><!-- /results -->"
    for without in ("a", "<!-- results -->", "<!-- /results --><!-- results -->", text + text, twice):
        assert results_page.with_table(without, "new") is None


def test_what_was_written_is_up_to_date_and_what_was_changed_is_not(results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# shop\n", encoding="utf-8")
    results_page.write(tmp_path, results)
    (complaint,) = results_page.complaints(tmp_path, results)
    assert "put a line <!-- results -->" in complaint and readme.read_text() == "# shop\n"
    readme.write_text("# shop\n<!-- results -->\n<!-- /results -->\n", encoding="utf-8")
    assert results_page.complaints(tmp_path, results) == ["README.md: its table is not what the reports say"]
    results_page.write(tmp_path, results)
    assert results_page.complaints(tmp_path, results) == []
    assert "- made_up: `fused` 0.857 × `ease`, the best single model: −.0200" in readme.read_text(encoding="utf-8")

    (tmp_path / "docs" / "results.md").write_text("old", encoding="utf-8")
    (tmp_path / "docs" / "plots" / "made_up_hr_10.svg").unlink()
    (tmp_path / "docs" / "plots" / "other.svg").write_text("<svg/>", encoding="utf-8")
    assert results_page.complaints(tmp_path, results) == [
        "docs/results.md is not what the reports say",
        "docs/plots/made_up_hr_10.svg is not what the reports say",
        "docs/plots/other.svg is no plot of the page",
    ]
    results_page.write(tmp_path, results)
    assert results_page.complaints(tmp_path, results) == []


def test_the_published_table_of_a_gpu_is_the_reports():
    """Ratios against the best run of sentence-transformers' nine settings, which is more than the report's own base."""
    report = json.loads((results_page.RESULTS / "scoring_speed" / "gpu.json").read_text(encoding="utf-8"))
    systems = report["systems"]
    best = max(systems["sentence_transformers"]["tried_pairs_per_second"].values())
    text = (results_page.PROJECT / "docs" / "cross-encoder.md").read_text(encoding="utf-8")
    table = text[text.index("On one NVIDIA H100") :].split("\n\n")[1]
    rows = [[cell.strip(" *") for cell in line.split("|")[2:5]] for line in table.splitlines()[2:]]
    names = ("cached", "cached_bfloat16", "cached_float16", "cached_cheap")
    expected = [[best, 1.0, systems["sentence_transformers"]["p50_ms"]]]
    for name in names:
        pairs = systems[name]["pairs_per_second_many_users"]
        expected.append([pairs, pairs / best, systems[name]["p50_ms"]])
    assert rows == [[f"{pairs:,.0f}", f"{ratio:,.0f}", f"{p50:.1f}"] for pairs, ratio, p50 in expected]
