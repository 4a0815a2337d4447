"""How the page looks and is used: widths, contrast, names, keys alone, motion; and the arithmetic of its modules."""

import json
import math
import re
import urllib.request
from html.parser import HTMLParser

import pytest

from llm_rerank.service.app import PAGE
from tests.service.looking import FAULTS, HOSTILE_USER, api, visit
from tests.service.test_page import DROP, candidates_csv, recommended, shown_titles, titles

OUTLINE = """() => {
  const at = document.activeElement, mark = at.matches(".kinds input") ? at.nextElementSibling : at;
  return at === document.body || getComputedStyle(mark).outlineStyle !== "none" ? "" : at.outerHTML;
}"""
COUNT_GLIDES = """() => {
  window.glides = 0;
  const glide = Element.prototype.animate;
  Element.prototype.animate = function (...given) { window.glides += 1; return glide.apply(this, given); };
}"""
MODULE = "async name => { window.module = await import(`/page/${name}.js`); }"


def full(seen, base: str) -> None:
    """Bring as much as can be onto the page at once."""
    seen.show("u20")
    seen.find("tent")
    seen.page.click("#found button")
    seen.settle()
    seen.page.locator("#ours button[aria-expanded]").nth(1).click()
    seen.page.wait_for_selector(".why table")
    seen.page.locator(".why .buttons button").first.click()
    seen.page.wait_for_selector(".versus .bars")
    seen.slide("#threshold", "ArrowRight", times=40)
    seen.page.evaluate(DROP, ["mine.csv", candidates_csv(base)])
    seen.page.wait_for_selector("#preview .ours li")
    seen.page.evaluate("document.getElementById('record').click()")
    seen.page.evaluate("document.getElementById('key-form').hidden = false")
    seen.page.set_input_files("#file", {"name": "no.csv", "mimeType": "text/csv", "buffer": b"a,b\n1,2\n"})
    seen.page.wait_for_selector("#preview .problem")
    seen.page.evaluate(DROP, ["mine.csv", candidates_csv(base)])
    seen.page.wait_for_selector("#preview .ours li")


# ------------------------------------------------------------------ looks


@pytest.mark.parametrize(
    ("width", "scheme"),
    [(320, "light"), (400, "light"), (400, "dark"), (760, "light"), (1400, "light"), (1400, "dark")],
)
def test_nothing_overflows_is_pale_or_small(browser, base, width, scheme):
    with visit(browser, base, width=width, color_scheme=scheme) as seen:
        start = seen.page.evaluate(FAULTS)
        assert start["problems"] == []
        full(seen, base)
        found = seen.page.evaluate(FAULTS)
        assert found["problems"] == []
        assert found["looked"] > 250
        ground = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground))) > 382) is (scheme == "light")


def test_lists_stand_side_by_side_where_there_is_room(browser, base):
    places = "['#before', '#ours', '#history'].map(id => document.querySelector(id).getBoundingClientRect().toJSON())"
    for width, beside in ((1400, True), (400, False)):
        with visit(browser, base, width=width) as seen:
            seen.show("u21")
            before, ours, history = seen.page.evaluate(places)
            assert (ours["left"] >= before["right"]) is beside
            assert (ours["top"] >= before["bottom"]) is not beside
            assert (before["left"] >= history["right"]) is beside


def test_the_look_sees_faults(browser, base):
    """The check itself: one of each fault, planted into the page."""
    plant = """() => {
      const add = (css, text, tag = "p") => {
        const element = document.createElement(tag);
        for (const [name, value] of Object.entries(css)) element.style[name] = value;
        element.textContent = text;
        document.querySelector("main").append(element);
      };
      add({width: "1900px"}, "wide");
      add({color: "rgb(150,150,150)"}, "pale");
      add({fontSize: "9px"}, "tiny");
      add({width: "20px", minHeight: "0", height: "20px", padding: "0"}, "x", "button");
      add({width: "60px", overflow: "hidden", whiteSpace: "nowrap"}, "words that are cut off by their box");
    }"""
    with visit(browser, base, width=400) as seen:
        seen.page.evaluate(plant)
        told = "\n".join(seen.page.evaluate(FAULTS)["problems"])
    for fault in ("page is 19", "outside the page", "contrast", "9px", "small to hit", "cut off"):
        assert fault in told


@pytest.mark.parametrize(("motion", "moves"), [("reduce", False), ("no-preference", True)])
def test_rows_glide_only_where_motion_is_welcome(browser, base, motion, moves):
    with visit(browser, base, reduced_motion=motion) as seen:
        seen.show("u5")
        shown = shown_titles(seen)
        seen.page.evaluate(COUNT_GLIDES)
        seen.slide("#diversity", "ArrowRight", times=4)
        moved = [place for place, title in enumerate(shown_titles(seen)) if title in shown[:place] + shown[place + 1 :]]
        assert moved
        assert (seen.page.evaluate("window.glides") > 0) is moves


# ------------------------------------------------------------------ ears and keys


def test_everything_has_a_name_and_a_place(browser, base):
    with visit(browser, base) as seen:
        full(seen, base)
        tree = seen.page.context.new_cdp_session(seen.page).send("Accessibility.getFullAXTree")["nodes"]
        nodes = [
            (
                node["role"]["value"],
                node.get("name", {}).get("value", ""),
                {each["name"]: each["value"].get("value") for each in node.get("properties", [])},
            )
            for node in tree
            if not node["ignored"]
        ]
        used = (
            "button",
            "textbox",
            "searchbox",
            "combobox",
            "slider",
            "radio",
            "switch",
            "checkbox",
            "link",
            "listbox",
        )
        named = [(role, name) for role, name, _ in nodes if role in used]
        assert {role for role, _ in named} >= {"button", "searchbox", "combobox", "slider", "radio", "switch"}
        assert [role for role, name in named if not name.strip()] == []
        buttons = [name for role, name in named if role == "button" and name.startswith("Why is")]
        assert len(set(buttons)) == len(buttons) == 10
        regions = [role for role, *_ in nodes]
        assert regions.count("main") == regions.count("banner") == 1
        assert regions.count("alert") == 1
        assert regions.count("status") >= 2
        levels = [value["level"] for role, _, value in nodes if role == "heading"]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
        lists = [name for role, name, _ in nodes if role == "list"]
        assert {"Now", "What u20 did", "Items found"} <= set(lists)
        assert any(name.startswith("Before") for name in lists)
        rows = seen.page.locator("#ours > li[data-item] .move .unseen").all_inner_texts()
        assert all(re.fullmatch(r"(up|down) \d+, was \d+|where it was before", text) for text in rows)
        values = seen.page.locator("input[type=range]").evaluate_all("all => all.map(s => s.ariaValueText)")
        assert re.search(r"%; \d+ of \d+ kept$", values[0])
        assert values[1] == "0.00 of 1, as the model is set"


def test_keys_alone_are_enough(browser, base):
    """From the top of the page to a list, a what-if, reasons, both sliders, by Tab, Enter, Space, arrows and Escape."""
    with visit(browser, base) as seen:
        keyboard = seen.page.keyboard
        active = "document.activeElement.id || document.activeElement.className"

        def tab_to(wanted: str, most: int = 40, key: str = "Tab") -> None:
            for _ in range(most):
                keyboard.press(key)
                outline = seen.page.evaluate(OUTLINE)
                assert outline == ""  # where the keys are can be seen
                if wanted in seen.page.evaluate(active):
                    return
            raise AssertionError(f"no way to {wanted}")

        keyboard.press("Tab")
        assert seen.page.evaluate(active) == "skip"
        tab_to("user", most=2)
        keyboard.type("u7")
        keyboard.press("Enter")
        seen.settle()
        before = shown_titles(seen)
        tab_to("words")
        with seen.page.expect_response(lambda response: "/catalogue" in response.url):
            keyboard.type("hammock")
        seen.page.wait_for_selector("#found button")
        keyboard.press("ArrowDown")
        assert seen.page.evaluate(active) == "hit"
        keyboard.press("ArrowUp")
        assert seen.page.evaluate(active) == "words"
        keyboard.press("ArrowDown")
        keyboard.press("Enter")
        seen.settle()
        changed = shown_titles(seen)
        assert changed == titles(recommended(base, "u7", events=seen.last("recommend")["events"])["items"]) != before
        keyboard.press("Escape")
        assert seen.page.evaluate(active) == "words"
        assert seen.page.locator("#found button").count() == 0
        tab_to("record")
        keyboard.press("Space")
        assert seen.page.is_checked("#record")
        keyboard.press("Space")
        tab_to("threshold", most=3)
        kept = [row["state"] for row in seen.rows()].count("kept")
        for _ in range(60):
            keyboard.press("PageUp")
        seen.settle()
        assert [row["state"] for row in seen.rows()].count("kept") < kept
        tab_to("diversity", most=3)
        for _ in range(14):
            keyboard.press("ArrowRight")
        seen.settle()
        assert shown_titles(seen) != changed
        tab_to("quiet", most=4)
        keyboard.press("Enter")
        seen.page.wait_for_selector(".why table")
        keyboard.press("Tab")
        keyboard.press("Enter")
        seen.page.wait_for_selector(".versus .bars")
        keyboard.press("Escape")
        assert seen.page.locator(".why").count() == 0
        assert seen.page.evaluate(active) == "quiet"
        assert seen.count("events") == 0
        assert seen.wrong == []


def test_the_skip_link_goes_to_the_lists_and_keeps_the_address(browser, base):
    with visit(browser, base) as seen:
        seen.show("u24")
        seen.page.evaluate("document.getElementById('skip').focus()")
        seen.page.keyboard.press("Enter")
        assert seen.page.evaluate("document.activeElement.id") == "lists"
        assert seen.page.url.endswith("#user=u24")


# ------------------------------------------------------------------ what is sent


class Sources(HTMLParser):
    """Collects what a page loads and what it has inline."""

    def __init__(self):
        super().__init__()
        self.loads, self.inline, self.inside = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        for name, value in attrs:
            if name == "src" or (name == "href" and tag == "link"):
                self.loads.append(value)
            if name.startswith("on") or name == "style":
                self.inline.append(f"{tag} {name}")

    def handle_data(self, data):
        if self.inside in ("script", "style") and data.strip():
            self.inline.append(data)

    def handle_endtag(self, tag):
        self.inside = ""


def test_the_page_loads_its_own_files_alone_and_has_nothing_inline(base):
    with urllib.request.urlopen(base) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        sources = Sources()
        sources.feed(answer.read().decode())
    assert sources.inline == []
    assert len(sources.loads) == 3
    assert all(re.fullmatch(r"page/\w+\.(css|js|svg)", load) for load in sources.loads)
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            file
        )
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)[^\s\"']+", text), file
        assert "localStorage" not in text
        with urllib.request.urlopen(f"{base}/page/{file.name}") as answer:
            assert answer.read() == file.read_bytes()
            expected = {".js": "javascript", ".css": "css", ".html": "html", ".svg": "svg"}[file.suffix]
            assert expected in answer.headers["content-type"]


def test_ids_that_are_paths_reach_the_service_whole(browser, base):
    with visit(browser, base) as seen:
        seen.show(HOSTILE_USER)
        path = next(path for _, path, _ in seen.asked if path.startswith("users/"))
        told = json.load(urllib.request.urlopen(f"{base}/{path}"))
        assert len(told["events"]) == int(re.sub(r"\D", "", seen.text("#history-all")))


# ------------------------------------------------------------------ arithmetic of the modules


@pytest.fixture(scope="module")
def modules(browser, base):
    with visit(browser, base) as seen:
        yield seen.page


def test_the_sliders_scale_is_its_own_inverse(modules):
    modules.evaluate(MODULE, "moves")
    for decades in (2, 4, 7):
        for step in range(0, 401, 25):
            place = step / 400
            probability = modules.evaluate("([p, d]) => module.probabilityAt(p, d)", [place, decades])
            assert probability == pytest.approx(0 if step == 0 else 10 ** (-decades * (1 - place)))
            back = modules.evaluate("([p, d]) => module.placeOf(p, d)", [probability, decades])
            assert back == pytest.approx(place, abs=1e-9)
    decades = "list => module.decadesOf(list.map(probability => ({probability})))"
    # rounded up, so that the least one lies on the slider
    cases = [([0.5], 2), ([0.02, 0.0011], 3), ([0.0009], 4), ([1e-9], 7), ([None], 3), ([], 3)]
    assert [modules.evaluate(decades, list_) for list_, _ in cases] == [wanted for _, wanted in cases]


def test_what_failed_on_the_way_goes_again_under_the_same_id(modules):
    """An event whose answer a proxy lost may be stored: it must not come under another id."""
    modules.evaluate(MODULE, "events")
    ids = """async status => {
      const fetched = window.fetch, sent = [];
      window.fetch = async (url, {body}) => {
        sent.push(JSON.parse(body).event_id);
        return new Response("", {status});
      };
      for (const _ of [1, 2]) await module.recordEvent({user_id: "u1", item_id: `i${status}`}).catch(() => null);
      window.fetch = fetched;
      return sent;
    }"""
    same = {status: len(set(modules.evaluate(ids, status))) == 1 for status in (422, 500, 502, 503, 504)}
    assert same == {422: False, 500: False, 502: True, 503: True, 504: True}


def test_the_cut_line_by_hand(modules):
    modules.evaluate(MODULE, "moves")
    line = "kept => module.cutLine(kept.map((kept, place) => ({kept, rank: place + 1})))"
    assert modules.evaluate(line, [True, True, False]) == {"after": 2, "nKept": 2, "nCutAbove": 0}
    assert modules.evaluate(line, [True, False, True, False]) == {"after": 3, "nKept": 2, "nCutAbove": 1}
    assert modules.evaluate(line, [False, False]) == {"after": 0, "nKept": 0, "nCutAbove": 0}
    assert modules.evaluate(line, []) == {"after": 0, "nKept": 0, "nCutAbove": 0}


def test_changes_by_hand(modules):
    modules.evaluate(MODULE, "moves")
    changes = """([old, now]) => {
      const list = ids => [...ids].map((item_id, place) => ({item_id, rank: place + 1}));
      return module.changesBetween(list(old), list(now)).map(({item, from, to, by}) => [item.item_id, from, to, by]);
    }"""
    assert modules.evaluate(changes, ["abcd", "abcd"]) == []
    # d rises from 4 to 1 (3 places), a, b and c fall by one
    assert modules.evaluate(changes, ["abcd", "dabc"]) == [
        ["d", 4, 1, 3], ["a", 1, 2, -1], ["b", 2, 3, -1], ["c", 3, 4, -1]
    ]  # fmt: skip
    assert modules.evaluate(changes, ["abc", "xab"]) == [
        ["a", 1, 2, -1], ["b", 2, 3, -1], ["x", None, 1, None], ["c", 3, None, None]
    ]  # fmt: skip


def test_numbers_in_words(modules):
    modules.evaluate(MODULE, "words")
    cases = {0.123: "12.3 %", 0.0456: "4.6 %", 0.00044: "0.044 %", 0.0: "0 %", 1.0: "100.0 %", 1e-8: "under 0.0001 %"}
    assert {value: modules.evaluate("v => module.percent(v)", value) for value in cases} == cases
    assert modules.evaluate("module.percent(null)") == "–"
    signs = {1.234: "+1.23", -0.5: "−0.50", 0.001: "0.00", -0.001: "0.00"}
    assert {value: modules.evaluate("v => module.signed(v)", value) for value in signs} == signs
    assert modules.evaluate("module.moment(1700000000)") == "14 Nov 2023, 22:13"  # as `date -u -d @1700000000` has it
    assert modules.evaluate("module.moment(17)") == "position 17"
    kinds = [
        ({"event_weight": 0.2}, "view"),
        ({"event_weight": 0.30000001192092896}, "click"),
        ({"event_weight": 1, "rating": None}, "purchase"),
        ({"event_weight": 1, "rating": 4}, "rating"),
        ({"event_weight": -1}, "dislike"),
        ({"event_weight": 0.45}, "weight 0.45"),
    ]
    told = [modules.evaluate("event => module.kindOf(event)", event) for event, _ in kinds]
    assert told == [word for _, word in kinds]
    spoken = {"cross_encoder": "cross-encoder", "text_ease × item_support": "text EASE × item support", "als": "ALS"}
    spoken |= {"sales_28d": "sales 28 days", "item_knn": "item kNN", "context": "context"}
    assert {name: modules.evaluate("name => module.spoken(name)", name) for name in spoken} == spoken


def test_the_guarantee_in_words_is_the_librarys(modules):
    from llm_rerank.recommendation.risk_control import LOSSES_IN_WORDS, Guarantee

    modules.evaluate(MODULE, "words")
    for risk in LOSSES_IN_WORDS:
        promise = Guarantee(risk, 0.2, 0.1, 1234, 0.1567, "users like these")
        told = modules.evaluate("facts => module.guaranteeInWords(facts)", {"guarantee": promise.to_dict()})
        assert told["holds"] is True
        sentence = promise.sentence()
        for part in re.findall(
            r"at least 0\.9|1,234 held-out cases|at most 0\.2 in expectation|users like these", sentence
        ):
            assert part in told["text"]
        words = LOSSES_IN_WORDS[risk].replace("'", "’")
        # the page repeats the verb of a second clause
        assert words.split(" and ")[0] in told["text"]
    why = modules.evaluate("facts => module.guaranteeInWords(facts)", {"guarantee": None, "no_guarantee": "it drifted"})
    assert why == {"holds": False, "text": "No guarantee: it drifted."}


def test_numbers_of_the_service_never_make_the_page_say_nonsense(browser, base):
    with visit(browser, base) as seen:
        for user in ("u0", "u5", HOSTILE_USER, "nobody"):
            seen.show(user)
            seen.page.click("#more")
            assert not re.search(r"NaN|undefined|null|Infinity|\[object", seen.page.inner_text("body"))
        assert not math.isnan(float(seen.page.input_value("#threshold")))
        assert api(base, "healthz")["status"] == "ok"
