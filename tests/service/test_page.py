"""The page, end to end: a fitted shop, the real service, a real browser. What it shows is what the service says."""

import math
import re
import shutil
import time

import numpy as np
import pandas as pd
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.recommendation.comparing import compare_results
from llm_rerank.recommendation.live import LiveShop
from llm_rerank.recommendation.reranker import Reranker
from tests.service.looking import HOSTILE_USER, IMAGE, api, served, visit
from tests.shops import make_shop

TOP = 10


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("%", "").replace(",", "").strip())


def recommended(base: str, user, **more) -> dict:
    return api(base, "recommend", {"user_id": user, "k": None, **more})


def titles(items: list[dict]) -> list[str]:
    return [item["title"] for item in items[:TOP]]


def shown_titles(seen) -> list[str]:
    return [row["title"] for row in seen.rows()]


def cut_in_words(items: list[dict]) -> str:
    return f"{sum(item['kept'] for item in items)} of {len(items)} kept"


# ------------------------------------------------------------------ lists


def test_both_lists_show_the_numbers_of_the_service(seen, base):
    seen.show("u0")
    answer = recommended(base, "u0")
    items = answer["items"]
    assert len(items) > 40
    ours = seen.rows()
    assert [row["rank"] for row in ours] == list(range(1, TOP + 1))
    for row, item in zip(ours, items, strict=False):
        assert row["title"] == item["title"].strip()
        assert number(row["score"].removeprefix("score")) == pytest.approx(item["score"], abs=5.1e-4)
        assert number(row["probability"]) / 100 == pytest.approx(item["probability"], rel=0.05)
        assert row["state"] == ("kept" if item["kept"] else "cut")
        assert row["cut"] is not item["kept"]
        move = item["before_rank"] - item["rank"]
        sign = f"▲ {move}" if move > 0 else f"▼ {-move}" if move else "="
        assert row["move"].startswith(f"{item['before_rank']} → {item['rank']} {sign}")
    by_before = sorted(items, key=lambda item: item["before_rank"])[:TOP]
    for row, item in zip(seen.rows("#before"), by_before, strict=True):
        assert (row["rank"], row["title"]) == (item["before_rank"], item["title"].strip())
        assert re.match(rf"→ {item['rank']} ", row["move"])
    assert cut_in_words(items) in seen.text("#cut")
    assert "No guarantee: " + answer["cut"]["no_guarantee"] in seen.text("#cut")
    history = api(base, "users/u0/history?limit=200")["events"]
    assert [e.strip() for e in seen.page.locator("#history .title").all_inner_texts()] == [
        event["title"].strip() for event in history[:6]
    ]


def test_bars_and_reasons_are_against_the_mean_of_the_list(seen, base):
    """The reasons are those of ``compare``, which knows nothing of the page."""
    seen.show("u2")
    items = recommended(base, "u2")["items"]
    groups = list(items[0]["components"])
    parts = np.array([[item["components"][group] for group in groups] for item in items])
    standing = parts - parts.mean(axis=0)
    most = np.abs(standing).max()
    for place, row in enumerate(seen.rows()):
        assert [bar["group"].replace("-", "_") for bar in row["bars"]] == groups
        for bar, value in zip(row["bars"], standing[place], strict=True):
            assert number(bar["value"]) == pytest.approx(value, abs=5.1e-3)
            assert bar["side"] == ("below" if value < 0 else "above")
            assert bar["share"] == pytest.approx(abs(value) / most, abs=0.001)
            assert bar["width"] == pytest.approx(abs(value) / most / 2, abs=0.03)
    ids = pd.DataFrame({"user_id": "u2", "item_id": [item["item_id"] for item in items]})
    before = ids.assign(rank=[item["before_rank"] for item in items])
    after = ids.assign(rank=range(1, len(items) + 1), **{f"score_{g}": parts[:, i] for i, g in enumerate(groups)})
    told = compare_results(before, after).table.sort_values("rank_after").head(TOP)
    verbs = {"rose": "raised most by ", "fell": "lowered most by "}
    for row, change, why in zip(seen.rows(), told["change"], told["why"], strict=True):
        expected = None if change == "stayed" else verbs[change] + why if why else "others moved"
        assert row["reason"] == expected
    assert {"rose", "fell"} & set(told["change"])


def test_all_rows_can_be_asked_for_and_the_cut_stands_where_kept_ends(seen, base):
    seen.show("u3")
    items = recommended(base, "u3")["items"]
    last_kept = max(item["rank"] for item in items if item["kept"])
    seen.page.click("#more")
    assert len(seen.rows()) == len(seen.rows("#before")) == len(items)
    order = seen.page.evaluate(
        "[...document.querySelectorAll('#ours > li')].map(r => r.className.includes('cut-line'))"
    )
    assert order.index(True) == last_kept
    assert sum(order) == 1
    n_kept = sum(item["kept"] for item in items)
    assert 1 < n_kept < len(items)
    assert f"{n_kept} items kept" in seen.text(".cut-line")
    seen.page.click("#more")
    assert len(seen.rows()) == TOP


# ------------------------------------------------------------------ sliders

DRAG = """async ([id, steps]) => {
  const slider = document.getElementById(id);
  for (let step = 0; step < steps; step += 1) {
    slider.stepUp();
    slider.dispatchEvent(new Event("input", {bubbles: true}));
  }
  await new Promise(requestAnimationFrame);
}"""


def test_the_threshold_cuts_at_once_and_then_as_the_service_does(seen, base):
    seen.show("u4")
    items = recommended(base, "u4")["items"]
    seen.page.click("#more")
    held = []
    seen.page.route("**/recommend/recut", lambda route: held.append(route))
    decades = min(max(math.ceil(-math.log10(min(item["probability"] for item in items))), 2), 7)
    n_kept = []
    for _ in range(8):
        seen.page.evaluate(DRAG, ["threshold", 12])  # steps as fast as a drag makes them
        least = 10 ** (decades * (float(seen.page.input_value("#threshold")) / 400 - 1))
        states = [row["state"] for row in seen.rows()]
        assert states == ["kept" if item["probability"] >= least else "cut" for item in items]
        n_kept.append(states.count("kept"))
    assert len(set(n_kept)) > 2
    seen.page.wait_for_timeout(400)
    sent = held[-1].request.post_data_json
    assert len(held) <= 8  # of 96 steps
    assert sent["least_probability"] == pytest.approx(least)
    least = sent["least_probability"]
    for earlier in held[:-1]:
        earlier.abort()
    held[-1].continue_()
    seen.settle()
    recut = api(base, "recommend/recut", {"request_id": sent["request_id"], "least_probability": least})
    assert [row["state"] for row in seen.rows()] == ["kept" if item["kept"] else "cut" for item in recut["items"]]
    assert cut_in_words(recut["items"]) in seen.text("#cut")
    assert recut["cut"]["no_guarantee"] in seen.text("#cut")
    assert cut_in_words(recut["items"]) in seen.page.inner_text("#status")
    assert seen.page.get_attribute("#threshold", "aria-valuetext").endswith(cut_in_words(recut["items"]))
    assert seen.count("recommend") == 1
    seen.page.unroute("**/recommend/recut")
    seen.slide("#threshold", "Home")
    assert {row["state"] for row in seen.rows()} == {"kept"}
    assert "keep everything" in seen.text("#threshold-value")
    seen.slide("#threshold", "End")
    assert {row["state"] for row in seen.rows()} == {"cut"}
    assert "nothing is kept" in seen.text(".cut-line")
    seen.page.click("#threshold-reset")
    seen.settle()
    assert [row["state"] for row in seen.rows()] == ["kept" if item["kept"] else "cut" for item in items]


def test_diversity_changes_the_list_without_scoring_it_again(seen, base):
    seen.show("u5")
    before = shown_titles(seen)
    seen.slide("#diversity", "ArrowRight", times=14)
    sent = seen.last("recommend/recut")
    assert sent["diversity"] == pytest.approx(0.7)
    recut = api(base, "recommend/recut", sent)["items"]
    assert shown_titles(seen) == titles(recut) != before
    assert seen.count("recommend") == 1
    old = {item["item_id"]: item["rank"] for item in recommended(base, "u5")["items"]}
    for row, item in zip(seen.rows(), recut, strict=False):
        was = old[item["item_id"]]
        assert row["changed"] is (was != item["rank"])
        assert (row["just"] or "").endswith("" if was == item["rank"] else f"was {was}") or not row["changed"]
    assert any(row["changed"] for row in seen.rows())
    seen.page.click("#diversity-reset")
    seen.settle()
    assert shown_titles(seen) == before


def test_an_answer_that_the_service_let_go_is_asked_for_anew(browser, folder):
    with (
        LiveShop(folder) as shop,
        served(shop, answer_lifetime_s=0.05) as base,
        visit(browser, base) as seen,
    ):
        seen.show("u6")
        seen.slide("#diversity", "ArrowRight", times=12)
        assert seen.count("recommend") == 2
        assert shown_titles(seen) == titles(recommended(base, "u6", diversity=0.6)["items"])
        assert [text for text in seen.wrong if "404" not in text] == []
        assert seen.text("#alert") == ""


def test_an_answer_whose_model_was_replaced_is_asked_for_anew(browser, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "shop")
    with LiveShop(copy) as shop, served(shop) as base, visit(browser, base) as seen:
        seen.show("u6")
        other = Reranker.load(copy, verbose=False)
        other.update(items=[{"item_id": "one-more", "title": "One more"}])
        other.save(copy)
        while api(base, "readyz")["model_version"] != (copy / "CURRENT").read_text().strip():
            time.sleep(0.05)
        seen.slide("#diversity", "ArrowRight", times=12)
        assert seen.count("recommend") == 2
        assert shown_titles(seen) == titles(recommended(base, "u6", diversity=0.6)["items"])
        assert [text for text in seen.wrong if "410" not in text] == []
        assert seen.text("#alert") == ""


# ------------------------------------------------------------------ fresh events


def test_a_what_if_changes_the_list_and_nothing_else(seen, base):
    seen.show("u7")
    old = recommended(base, "u7")["items"]
    known = api(base, "users/u7/history?limit=200")
    seen.find("hiking tent")
    seen.page.click("#found button")
    seen.settle()
    sent = seen.last("recommend")
    assert sent["events"] == [{"item_id": sent["events"][0]["item_id"], "event": "view"}]
    new = recommended(base, "u7", events=sent["events"])["items"]
    assert shown_titles(seen) == titles(new) != titles(old)
    was = {item["item_id"]: item["rank"] for item in old}
    for row, item in zip(seen.rows(), new, strict=False):
        moved = was.get(item["item_id"]) != item["rank"]
        assert row["changed"] is moved
        if moved and item["item_id"] in was:
            by = was[item["item_id"]] - item["rank"]
            assert row["just"].startswith(f"{'▲' if by > 0 else '▼'} {abs(by)} just now, was {was[item['item_id']]}")
    came = [item for item in new[:TOP] if was.get(item["item_id"], TOP + 1) > TOP]
    assert all(item["title"].strip() in seen.text("#change") for item in came)
    assert "what if" in seen.text("#history .what-if")
    assert seen.count("events") == 0
    assert api(base, "users/u7/history?limit=200") == known
    seen.page.click("#history .what-if button")
    seen.settle()
    assert shown_titles(seen) == titles(old)
    assert "events" not in seen.last("recommend")


def test_the_kind_of_event_is_the_one_chosen(seen, base):
    seen.show("u8")
    seen.find("espresso machine")
    seen.page.focus("input[name=kind]:checked")
    seen.page.keyboard.press("ArrowRight")
    seen.page.keyboard.press("ArrowRight")
    button = seen.page.locator("#found button").first
    assert button.get_attribute("aria-label").startswith("Add purchase: ")
    button.click()
    seen.settle()
    (event,) = seen.last("recommend")["events"]
    assert event["event"] == "purchase"
    # what was bought is not shown again
    assert event["item_id"] not in [item["item_id"] for item in recommended(base, "u8", events=[event])["items"]]


def test_recording_posts_the_event_and_it_stays(seen, base):
    seen.show("u9")
    n_events = len(api(base, "users/u9/history?limit=500")["events"])
    seen.page.check("#record")
    seen.find("bike pump")
    button = seen.page.locator("#found button").first
    assert button.get_attribute("aria-label").startswith("Record view: ")
    button.click()
    seen.settle()
    sent = seen.last("events")
    assert (sent["user_id"], sent["event"]) == ("u9", "view")
    assert len(sent["event_id"]) > 16
    history = api(base, "users/u9/history?limit=500")["events"]
    assert len(history) == n_events + 1
    assert history[0]["item_id"] == sent["item_id"]
    assert seen.text("#history li:first-child .title") == history[0]["title"].strip()
    assert not seen.page.query_selector("#history .what-if")
    assert shown_titles(seen) == titles(recommended(base, "u9")["items"])
    assert "events" not in seen.last("recommend")
    assert seen.text("#found-note").startswith("Recorded: view of ")


def test_ids_beyond_what_javascript_holds_are_asked_for_as_they_are(browser, tmp_path):
    interactions, items = make_shop(n_users=120)
    large = {item: 2**60 + 1 + code for code, item in enumerate(items["item_id"])}
    users = 2**60 + 1 + interactions["user_id"].str[1:].astype(int)
    interactions = interactions.assign(user_id=users, item_id=interactions["item_id"].map(large))
    config = RerankerConfig(encoder=None, sequence="off", candidates_per_source=20, refit=False)
    fitted = Reranker(config, verbose=False).fit(interactions, items.assign(item_id=items["item_id"].map(large)))
    fitted.save(tmp_path / "shop")
    user = 2**60 + 1 + 9
    with LiveShop(tmp_path / "shop") as shop, served(shop) as base, visit(browser, base) as seen:
        seen.show(str(user))
        own = recommended(base, user)
        assert (seen.last("recommend")["user_id"], own["known_user"]) == (str(user), True)
        assert shown_titles(seen) == titles(own["items"])
        seen.page.check("#record")
        seen.find("bike pump")
        seen.page.locator("#found button").first.click()
        seen.settle()
        event = shop.export(user)["events"][-1]
        assert event["item_id"] == int(seen.last("events")["item_id"])
        seen.page.locator("#ours > li[data-item]").nth(1).locator("button[aria-expanded]").press("Enter")
        seen.page.wait_for_selector(".why table")
        assert seen.last("explain")["item_id"] == recommended(base, user)["items"][1]["item_id"]
        assert seen.wrong == []


# ------------------------------------------------------------------ reasons


def test_the_reasons_are_those_of_the_service_and_escape_closes_them(seen, base):
    seen.show("u10")
    items = recommended(base, "u10")["items"]
    why = seen.page.locator("#ours > li[data-item]").nth(1).locator("button[aria-expanded]")
    why.press("Enter")
    seen.page.wait_for_selector(".why table")
    sent = seen.last("explain")
    assert sent["item_id"] == items[1]["item_id"]
    told = api(base, "explain", sent)
    assert told["score"] == pytest.approx(items[1]["score"], abs=1e-6)  # of the list's own moment
    values = [number(text) for text in seen.page.locator(".why > .bars dd").all_inner_texts()]
    assert values == pytest.approx(list(told["groups"].values()), abs=5.1e-4)
    adds = [number(text) for text in seen.page.locator(".why tbody .number").all_inner_texts()]
    assert sum(adds[:-1]) == pytest.approx(adds[-1], abs=6e-3)  # as they are rounded
    assert adds[-1] == pytest.approx(told["score"], abs=5.1e-4)
    strongest = sorted(told["contributions"], key=lambda part: -abs(part["value"]))
    assert adds[0] == pytest.approx(strongest[0]["value"], abs=5.1e-4)
    effects = [effect for effect in told["history"] if abs(effect["effect"]) >= 5e-4]
    shown = seen.page.locator(".why .effects").first.locator("li").all_inner_texts()
    assert len(shown) == min(len(effects), 6)
    assert effects[0]["title"].strip() in shown[0]
    assert why.get_attribute("aria-expanded") == "true"
    seen.page.locator(".why .buttons button").nth(1).press("Enter")  # why above the next one
    seen.page.wait_for_selector(".versus .bars")
    sent = seen.last("explain")
    assert (sent["item_id"], sent["versus"]) == (items[1]["item_id"], items[2]["item_id"])
    versus = api(base, "explain", sent)["versus"]
    assert versus["sentence"] in " ".join(seen.text(".versus").split())
    values = [number(text) for text in seen.page.locator(".versus .bars dd").all_inner_texts()]
    assert values == pytest.approx(list(versus["groups"].values()), abs=5.1e-4)
    seen.page.keyboard.press("Escape")
    assert not seen.page.query_selector(".why")
    assert why.get_attribute("aria-expanded") == "false"
    assert why.evaluate("button => button === document.activeElement")


def test_open_reasons_stay_through_a_recut_and_go_with_a_new_question(seen):
    seen.show("u11")
    seen.page.locator("#ours button[aria-expanded]").first.click()
    seen.page.wait_for_selector(".why table")
    seen.slide("#threshold", "ArrowRight", times=5)
    assert seen.page.locator(".why table").count() == 1
    assert seen.page.locator("#ours button[aria-expanded=true]").count() == 1
    seen.find("cake pan")
    seen.page.click("#found button")
    seen.settle()
    assert seen.page.locator(".why").count() == 0
    assert seen.page.locator("#ours button[aria-expanded=true]").count() == 0


def test_the_keys_stay_where_they_are_while_a_list_is_drawn_anew(seen):
    seen.show("u19")
    active = "[document.activeElement.tagName, document.activeElement.closest('[data-item]')?.dataset.item]"
    for inside in ("button[aria-expanded]", ".why .buttons button"):
        if inside.startswith(".why"):
            seen.page.locator("#ours button[aria-expanded]").first.click()
            seen.page.wait_for_selector(".why table")
        seen.page.focus("#threshold")
        seen.page.keyboard.press("ArrowRight")
        seen.page.locator(f"#ours {inside}").first.focus()
        before = seen.page.evaluate(active)
        seen.settle()
        assert seen.page.evaluate(active) == before
        assert before[0] == "BUTTON"


# ------------------------------------------------------------------ files

DROP = """([name, text]) => {
  const data = new DataTransfer();
  data.items.add(new File([text], name, {type: "text/csv"}));
  const fire = kind => document.body.dispatchEvent(
    new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
  fire("dragenter");
  const shown = !document.getElementById("drop").hidden;
  fire("drop");
  return [shown, document.getElementById("drop").hidden];
}"""


def candidates_csv(base: str) -> str:
    rows = ["user_id,item_id,upstream_score"]
    for user in ("u12", "u13"):
        ids = [item["item_id"] for item in recommended(base, user)["items"]][:30][::-1]
        rows += [f"{user},{item_id},{1 - place / 100}" for place, item_id in enumerate(ids)]
    return "\n".join(rows) + "\n"


def test_a_file_that_is_dropped_gives_lists_and_can_be_opened(seen, base):
    text = candidates_csv(base)
    assert seen.page.evaluate(DROP, ["mine.csv", text]) == [True, True]
    seen.page.wait_for_selector("#preview .ours li")
    told = api(base, "preview", text.encode(), kind="text/csv")
    assert told["kind"] == "candidates"
    for note in told["notes"]:
        assert note in seen.text("#preview")
    for place, user in enumerate(("u12", "u13")):
        seen.page.select_option("#preview-user", str(user))
        items = told["lists"][place]["items"]
        assert [row["title"] for row in seen.rows("#preview .ours ol")] == titles(items)
        assert [row["move"].split()[0] for row in seen.rows("#preview .ours ol")] == [
            str(item["before_rank"]) for item in items[:TOP]
        ]
    seen.page.get_by_role("button", name="Open with sliders").click()
    seen.settle()
    sent = seen.last("recommend/rerank")
    assert sent["user_id"] == "u13"
    assert [c["item_id"] for c in sent["candidates"]] == [r.split(",")[1] for r in text.splitlines() if r[:3] == "u13"]
    assert sent["candidates"][3]["upstream_score"] == pytest.approx(0.97)
    assert shown_titles(seen) == titles(api(base, "recommend/rerank", sent)["items"])
    assert seen.text("#before-title") == "Before: the order given"
    seen.slide("#threshold", "End")
    assert {row["state"] for row in seen.rows()} == {"cut"}
    seen.page.click("#retrieved")
    seen.settle()
    assert shown_titles(seen) == titles(recommended(base, "u13")["items"])


def test_a_file_that_is_chosen_may_hold_events_and_what_is_wrong_is_said(seen, base, tmp_path):
    events = tmp_path / "events.csv"
    tents = api(base, "catalogue?q=hiking+tent&limit=2")["items"]
    events.write_text(
        "user_id,item_id,timestamp\n" + "".join(f"me,{t['item_id']},2024-05-0{i}\n" for i, t in enumerate(tents, 1))
    )
    seen.page.set_input_files("#file", events)
    seen.page.wait_for_selector("#preview .ours li")
    told = api(base, "preview", events.read_bytes(), kind="text/csv")
    assert told["kind"] == "events"
    assert [row["title"] for row in seen.rows("#preview .ours ol")] == titles(told["lists"][0]["items"])
    assert seen.page.get_by_role("button", name="Open with sliders").count() == 0
    assert api(base, "users/me/history")["error"]["code"]  # nothing was stored
    broken = tmp_path / "broken.csv"
    broken.write_text("colour,shape\nred,round\n")
    seen.page.set_input_files("#file", broken)
    seen.page.wait_for_selector("#preview .problem")
    refusal = api(base, "preview", broken.read_bytes(), kind="text/csv")["error"]["message"]
    assert seen.text("body").count(refusal.rstrip(".")) == 1  # beside the file, and nowhere else
    assert seen.text("#preview h3") == "broken.csv"
    assert seen.text("#preview .problem[role=alert]").rstrip(".") == refusal.rstrip(".")
    assert seen.page.evaluate("document.activeElement.id") == "preview"
    seen.page.set_input_files("#file", events)
    seen.page.wait_for_selector("#preview .ours li")
    assert seen.page.locator("#preview .problem").count() == 0
    assert seen.text("#alert") == ""
    # the browser itself notes a refusal
    assert [text for text in seen.wrong if "422" not in text] == []
    seen.wrong.clear()


# ------------------------------------------------------------------ text is text


def test_titles_and_users_that_are_scripts_are_shown_as_text(seen, base):
    for user, start in (("u0", "<img"), (HOSTILE_USER, "<script")):
        seen.show(user)
        items = recommended(base, user)["items"]
        hostile = [title for title in titles(items) if title.strip().startswith(start)]
        assert len(hostile) >= 3
        assert shown_titles(seen) == titles(items)
        seen.page.locator("#ours button[aria-expanded]").first.click()
        seen.page.wait_for_selector(".why table")
        seen.page.locator(".why .buttons button").first.click()
        seen.page.wait_for_selector(".versus .bars")
        seen.find(start.strip("<") + " espresso trowel")
        seen.page.click("#found button")
        seen.settle()
    assert HOSTILE_USER in seen.text("#lists-title")
    assert HOSTILE_USER in seen.text("#history-title")
    hostile_file = f'user_id,item_id\n"{HOSTILE_USER}","{IMAGE.replace(chr(34), chr(39))}"\n'
    seen.page.evaluate(DROP, ["<img src=x onerror='window.broken = 1'>.csv", hostile_file])
    seen.page.wait_for_selector("#preview h3")
    seen.page.wait_for_timeout(300)
    assert "<img src=x" in seen.text("#preview h3")
    made = seen.page.evaluate(
        "[document.images.length, document.scripts.length, document.querySelectorAll('main script').length]"
    )
    assert made == [0, 1, 0]


# ------------------------------------------------------------------ states


def test_unknown_users_and_newcomers_get_the_list_of_a_newcomer(seen, base):
    newcomer = titles(recommended(base, None)["items"])
    seen.show("nobody knows me")
    assert "nobody knows me is not known here" in seen.text("#flags")
    assert "Nothing is known" in seen.text("#history-note")
    assert shown_titles(seen) == newcomer
    assert [text for text in seen.wrong if "404" not in text] == []
    seen.wrong.clear()
    seen.page.click("h1 a")
    seen.page.get_by_role("button", name="a newcomer").click()
    seen.settle()
    assert seen.last("recommend")["user_id"] is None
    assert shown_titles(seen) == newcomer
    assert seen.page.is_disabled("#record")


def test_a_component_that_fails_and_a_scoring_that_fails_are_said(seen, base, monkeypatch):
    from llm_rerank.models.collaborative.text_ease import TextAwareEASE

    def fails(*_: object, **__: object) -> None:
        raise ValueError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(TextAwareEASE, "score_catalogue", fails)
        seen.show("u14")
        answer = recommended(base, "u14")
        assert "text_ease" in answer["degraded"]
        assert "Made without text EASE" in seen.text("#flags")
        assert shown_titles(seen) == titles(answer["items"])
    with monkeypatch.context() as patch:
        patch.setattr("llm_rerank.recommendation.stage.Stage.design", fails)
        seen.show("u15")
        answer = recommended(base, "u15")
        assert answer["fallback"]
        assert "Scoring failed altogether" in seen.text("#flags")
        assert shown_titles(seen) == titles(answer["items"])
        assert "no score" in seen.text("#ours")
    seen.show("u14")
    assert seen.text("#flags") == ""


def test_a_service_that_is_gone_is_said_in_words_and_the_list_stays(browser, folder):
    with LiveShop(folder) as shop:
        with served(shop) as base, visit(browser, base) as seen:
            seen.show("u16")
            before = shown_titles(seen)
            seen.page.context.set_offline(True)
            seen.slide("#diversity", "ArrowRight", times=8)
            assert "does not answer" in seen.text("#alert")
            assert shown_titles(seen) == before
            assert seen.page.input_value("#diversity") == "0"
            seen.page.fill("#user", "u17")
            seen.page.keyboard.press("Enter")
            seen.page.wait_for_timeout(300)
            assert shown_titles(seen) == before
            seen.page.context.set_offline(False)
            seen.page.get_by_role("button", name="Try again").click()
            seen.settle()
            assert seen.text("#alert") == ""
            assert shown_titles(seen) == titles(recommended(base, "u17")["items"]) != before
            seen.slide("#diversity", "ArrowRight", times=8)
            assert seen.text("#alert") == ""


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(browser, folder):
    key = "a-key-of-the-tests-alone"
    with LiveShop(folder) as shop, served(shop, api_key=key) as base, visit(browser, base) as seen:
        assert seen.page.is_visible("#key-form")
        assert "API key" in seen.text("#alert")
        assert seen.page.evaluate("document.activeElement.id") == "key"
        seen.page.fill("#key", "a-wrong-key-of-the-tests")
        seen.page.keyboard.press("Enter")
        seen.page.wait_for_timeout(300)
        assert seen.page.is_visible("#key-form")
        seen.page.fill("#key", key)
        seen.page.keyboard.press("Enter")
        seen.page.wait_for_selector("#some-users button")
        assert not seen.page.is_visible("#key-form")
        assert seen.text("#alert") == ""
        seen.show("u17")
        assert shown_titles(seen) == titles(api(base, "recommend", {"user_id": "u17", "k": None}, key=key)["items"])
        assert seen.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        assert seen.page.input_value("#key") == ""
        assert [text for text in seen.wrong if "401" not in text] == []


def test_the_address_names_the_user_where_no_log_sees_it(seen):
    seen.show(HOSTILE_USER)
    before = shown_titles(seen)
    assert not any("u1" in path or "script" in path for _, path, _ in seen.asked if "history" not in path)
    seen.show("u18")
    seen.page.go_back()
    seen.settle()
    assert seen.page.input_value("#user") == HOSTILE_USER
    assert shown_titles(seen) == before
    seen.page.reload()
    seen.page.wait_for_selector("#ours li")
    assert shown_titles(seen) == before
