"""Explanations: order, sums and signs of the parts, history effects recomputed, and text that cannot break a page."""

import re

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from llm_rerank.cli import app
from llm_rerank.recommendation import explanation as explanation_module
from llm_rerank.recommendation.explanation import Contribution, Explanation, HistoryEffect, Versus
from llm_rerank.recommendation.phrases import PhraseEffect, Phrases
from llm_rerank.types import DataError
from tests.recommendation.explaining import error_of_leave_one_out, errors_of_sums, random_pairs

PARTS = [
    Contribution("ease", "collaborative", 0.5),
    Contribution("als", "collaborative", -2.0),
    Contribution("price_gap", "context", 1.0),
    Contribution("sales_7d", "context", 0.0),
    Contribution("<b>&", "context", 0.25),
]


def explained(**changes):
    values = {
        "user_id": "<u>",
        "item_id": "<i>",
        "title": "Nuts & <Bolts>",
        "score": -0.25,
        "probability": 0.125,
        "contributions": PARTS,
        "history": [HistoryEffect("h", "Wrench <small>", -0.75)],
    }
    return Explanation(**{**values, **changes})


def test_parts_are_summed_by_group_and_ordered_by_size():
    assert explained().by_group() == {"collaborative": -1.5, "context": 1.25}
    assert [part.name for part in explained().strongest()] == ["als", "price_gap", "ease", "<b>&"]  # no zero
    assert [part.name for part in explained().strongest(2)] == ["als", "price_gap"]


def test_text_says_score_probability_groups_and_history():
    lines = str(explained()).splitlines()
    assert lines[0] == "Nuts & <Bolts> for <u>: score -0.250, probability 0.1250"
    assert "  collaborative  -1.500" in lines
    assert lines[-2:] == ["  history items, by what the score loses without them", "    -0.750  Wrench <small>"]
    bare = str(explained(history=[], probability=float("nan"), title=""))
    assert bare.splitlines()[0] == "<i> for <u>: score -0.250"
    assert "no history of this user is known: scored as a newcomer" in bare and "history items" not in bare


def test_what_items_and_users_are_called_cannot_break_a_page():
    page = explained()._repr_html_()
    for raw, escaped in (
        ("Nuts & <Bolts>", "Nuts &amp; &lt;Bolts&gt;"),
        ("for <u>", "for &lt;u&gt;"),
        ("Wrench <small>", "Wrench &lt;small&gt;"),
        ("<b>&<", "&lt;b&gt;&amp;"),
    ):
        assert raw not in page
        assert escaped in page


def test_the_parts_on_a_page_add_up_to_the_score_on_it():
    parts = [Contribution(f"part {n}", "context", 0.1 * (n + 1)) for n in range(14)]
    page = explained(contributions=parts, score=sum(part.value for part in parts))._repr_html_()
    shown = [float(cell) for cell in re.findall(r"<td>([+-]\d+\.\d{3})</td>", page)]
    assert len(shown) == 12  # ten parts, all others, the score
    assert sum(shown[:-1]) == pytest.approx(shown[-1], abs=1e-2)
    assert shown[-2] == pytest.approx(0.1 + 0.2 + 0.3 + 0.4)


def test_each_effect_is_the_score_lost_without_the_item_strongest_first(fitted, shop):
    events, items = shop
    item, moment = items["item_id"][4], int(events["timestamp"].max()) + 1
    history = list(items["item_id"][[0, 20, 2, 40, 7]])
    explanation = fitted.explain("anyone", item, history=history, at=moment)
    pair = pd.DataFrame({"user_id": ["anyone"], "item_id": [item]})

    def score(taken):
        rows = {"user_id": "anyone", "item_id": taken, "timestamp": range(moment - len(taken), moment)}
        return fitted.rerank(pair, histories=pd.DataFrame(rows), at=moment).iloc[0]

    assert explanation.score == pytest.approx(score(history)["score"], abs=1e-6)
    assert explanation.probability == pytest.approx(score(history)["probability"], abs=1e-6)
    effects = [effect.effect for effect in explanation.history]
    assert len(effects) == 5
    assert np.all(np.diff(np.abs(effects)) <= 0)
    assert min(effects) < 0 < max(effects)  # another theme's item counts against
    titles = items.set_index("item_id")["title"]
    for effect in explanation.history:
        assert effect.title == titles[effect.item_id]
        rest = history.copy()
        rest.remove(effect.item_id)
        # times move by one second; a position in the history is not a day
        assert effect.effect == pytest.approx(explanation.score - score(rest)["score"], abs=2e-3)


def test_of_a_long_history_the_newest_distinct_items_are_explained(fitted, shop, monkeypatch):
    ids = list(shop[1]["item_id"])
    long = [*ids[:60], ids[59], ids[3]]  # item 3 is the newest, though it came early too
    explanation = fitted.explain("anyone", ids[4], history=long)
    assert {effect.item_id for effect in explanation.history} == {ids[3], *ids[11:60]}
    monkeypatch.setattr(explanation_module, "MOST_HISTORY_ITEMS", 2)
    assert {effect.item_id for effect in fitted.explain("anyone", ids[4], history=long).history} == {ids[3], ids[59]}


# --- against the public rerank ---------------------------------------------------------------------------------------


def test_parts_of_a_thousand_random_pairs_add_up_to_what_one_rerank_gives(fitted, shop):
    pairs = random_pairs(shop[0]["user_id"].unique(), shop[1]["item_id"], 1_000)
    errors = errors_of_sums(fitted, pairs)
    assert errors["sum"] < 1e-9
    assert max(errors.values()) < 1e-5, errors


def test_effects_agree_with_a_rerank_whose_histories_lack_the_item(fitted, shop):
    events, items = shop
    pairs = random_pairs(events["user_id"].unique(), items["item_id"], 40, seed=1)
    error, n_effects = error_of_leave_one_out(fitted, events, pairs, at=int(events["timestamp"].max()) + 1)
    assert n_effects > 200
    assert error < 2e-5


# --- against another item --------------------------------------------------------------------------------------------


def compared(values, **changes):
    parts = [Contribution(name, group, value) for name, group, value in values]
    settings = {
        "title": "A",
        "other_id": "b",
        "other_title": "B",
        "other_score": 0.0,
        "difference": sum(part.value for part in parts),
        "contributions": parts,
        "history": [],
    }
    return Versus(**{**settings, **changes})


def test_the_sentence_names_two_or_three_parts_and_what_speaks_against():
    # ease with its support: 1.0 + .2; sales .5, price .3, brand .2 for it: 2.2 in all, of which 80 % = 1.76 are in
    # ease + sales + price = 2.0; als −.6 is more than a quarter of the difference 1.6
    values = [
        ("ease", "collaborative", 1.0),
        ("ease × item_support", "collaborative", 0.2),
        ("als", "collaborative", -0.6),
        ("sales_7d", "context", 0.5),
        ("price_gap", "context", 0.3),
        ("brand_affinity", "context", 0.2),
    ]
    versus = compared(values)
    assert versus.by_part()["ease"] == pytest.approx(1.2)
    assert versus.by_group() == pytest.approx({"collaborative": 0.6, "context": 1.0})
    assert versus.sentence() == (
        "A stands above B by 1.600: ease (+1.200), sales_7d (+0.500) and price_gap (+0.300) decide; "
        "als (-0.600) speaks against it"
    )
    turned = compared([(name, group, -value) for name, group, value in values])
    assert turned.sentence().startswith("A stands below B by 1.600: ease (-1.200), sales_7d (-0.500) and price_gap")
    assert "als (+0.600) speaks against it" in turned.sentence()


def test_one_part_may_decide_and_equal_items_have_no_reason():
    assert (
        compared([("ease", "c", 2.0), ("als", "c", -0.1)]).sentence()
        == "A stands above B by 1.900: ease (+2.000) decides"
    )
    # 90 % are in one part, yet two are named where two speak
    assert "ease (+0.900) and als (+0.100) decide" in compared([("als", "c", 0.1), ("ease", "c", 0.9)]).sentence()
    assert compared([("ease", "c", 0.0)]).sentence() == "A and B have the same score"


def test_why_above_and_why_below_are_opposite(fitted, shop):
    items, user = shop[1], shop[0]["user_id"][0]
    one, two = items["item_id"][3], items["item_id"][40]
    there, back = fitted.explain(user, one, versus=two), fitted.explain(user, two, versus=one)
    assert abs(there.versus.difference) > 0.01
    assert there.versus.difference == pytest.approx(-back.versus.difference, abs=1e-6)
    assert there.versus.other_score == pytest.approx(back.score, abs=1e-6)
    values, opposite = ([part.value for part in e.versus.contributions] for e in (there, back))
    np.testing.assert_allclose(values, np.negative(opposite), atol=1e-6)
    effects, turned = ({e.item_id: e.effect for e in v.versus.history} for v in (there, back))
    assert effects.keys() == turned.keys()
    np.testing.assert_allclose(list(effects.values()), [-turned[item] for item in effects], atol=1e-5)
    words = there.versus.sentence(), back.versus.sentence()
    assert {" above " in sentence for sentence in words} == {True, False}
    # what each history item did to the difference is what it did to the one minus what it did to the other
    alone = [{e.item_id: e.effect for e in fitted.explain(user, item).history} for item in (one, two)]
    for item, effect in effects.items():
        assert effect == pytest.approx(alone[0][item] - alone[1][item], abs=1e-5)


def test_an_explanation_in_many_steps_is_the_same(fitted, shop, monkeypatch):
    items, user = list(shop[1]["item_id"]), shop[0]["user_id"][0]
    explanations = []
    for n_cases in (1_000, 3):
        monkeypatch.setattr(explanation_module, "CASES_A_STEP", n_cases)
        explanations.append(fitted.explain(user, items[3], versus=items[40]))
    whole, in_steps = explanations
    assert in_steps.score == pytest.approx(whole.score, abs=1e-6)
    assert in_steps.versus.difference == pytest.approx(whole.versus.difference, abs=1e-6)
    for one, other in ((whole, in_steps), (whole.versus, in_steps.versus)):
        values, others = ([part.value for part in e.contributions] for e in (one, other))
        np.testing.assert_allclose(values, others, atol=1e-6)
        effects, others = ({e.item_id: e.effect for e in v.history} for v in (one, other))
        assert effects == pytest.approx(others, abs=1e-5)
        assert len(effects) > 4  # so that there were several steps


def test_an_empty_history_is_asked_for_in_another_way(fitted, shop):
    with pytest.raises(DataError, match="history is empty; leave it out .* or ask for a user id that is not known"):
        fitted.explain("u0", shop[1]["item_id"][3], history=[])
    with pytest.raises(DataError, match="history names no item of the catalogue .first: 'nope'"):
        fitted.explain("u0", shop[1]["item_id"][3], history=["nope", "neither"])


def test_another_item_must_be_another_and_known(fitted, shop):
    item = shop[1]["item_id"][3]
    with pytest.raises(DataError, match="versus is .* the item itself; name another"):
        fitted.explain("anyone", item, versus=item)
    with pytest.raises(DataError, match="versus 'zzz' is absent from items"):
        fitted.explain("anyone", item, versus="zzz")
    with pytest.raises(DataError, match="item_id 'zzz' is absent from items"):
        fitted.explain("anyone", "zzz", versus=item)


# --- as a page -------------------------------------------------------------------------------------------------------


SCRIPT = "<script>alert(1)</script>"


def test_no_title_phrase_note_or_name_can_run_in_the_page():
    hostile = explained(
        title=SCRIPT,
        user_id=SCRIPT,
        contributions=[Contribution(SCRIPT, SCRIPT, 1.0)],
        history=[HistoryEffect("h", SCRIPT, 1.0)],
        versus=compared(
            [(SCRIPT, SCRIPT, 1.0)], title=SCRIPT, other_title=SCRIPT, history=[HistoryEffect("h", SCRIPT, 1)]
        ),
        phrases=Phrases([PhraseEffect(SCRIPT, 1.0)], SCRIPT),
    )
    page = hostile.to_html()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 11
    assert page.startswith("<!doctype html>")
    assert "http" not in page  # nothing to load


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    fitted.save(folder / "model")
    return folder


def run(*words):
    return CliRunner().invoke(app, ["explain", *map(str, words)])


def test_the_command_shows_and_writes_what_the_library_says(fitted, shop, saved):
    items, user = shop[1], shop[0]["user_id"][0]
    one, two = items["item_id"][3], items["item_id"][40]
    expected = fitted.explain(user, one, versus=two, phrases=True)
    page = saved / "page.html"
    result = run(saved / "model", user, one, "--versus", two, "--phrases", "--html", page)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(expected)
    assert page.read_text(encoding="utf-8") == expected.to_html()
    assert f"page written to {page}" in result.stderr


def test_a_page_is_replaced_whole(shop, saved):
    page = saved / "twice.html"
    page.write_text("as it was")
    with page.open() as held:
        assert run(saved / "model", "u0", shop[1]["item_id"][3], "--html", page).exit_code == 0
        assert held.read() == "as it was"  # who reads the old page is not handed half of the new one
    assert page.read_text(encoding="utf-8").endswith("</html>\n")


def test_an_explanation_that_fails_leaves_an_earlier_page(shop, saved):
    item, page = shop[1]["item_id"][3], saved / "earlier.html"
    page.write_text("as it was")
    for words, message in (
        (("u0", item, "--versus", item, "--html", page), "the item itself"),
        (("u0", item, "--html", saved / "nowhere" / "page.html"), "does not exist; make"),
        (("u0", item, "--html", saved), "is a folder"),
    ):
        result = run(saved / "model", *words)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
    assert page.read_text() == "as it was"
    assert {path.name for path in saved.iterdir()} <= {"model", "earlier.html", "page.html", "twice.html"}
