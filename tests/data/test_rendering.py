import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_rerank.data.rendering import Renderer, approximate_tokens, cut_to_budget, packaged_templates
from llm_rerank.data.schema import validate_items
from llm_rerank.types import DataError, StorageError
from tests.data.making import make_events, make_items

FULL = {
    "title": "Desk lamp  No. 5.",
    "brand": "Ari",
    "categories": "Home > Lamps",
    "price": 12.5,
    "specs": {"colour": "red", "parts": ["base", "shade"]},
    "description": "Bright.\nAnd warm.",
}


def words(texts):
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def one_text(item, **arguments):
    return Renderer().render_items(make_items([item]), **arguments).texts[0]


def reviewed(reviews, n_items=1):
    rows = [{"user": 0, "item": item, "time": time, "review": text} for item, time, text in reviews]
    return make_events(rows, n_users=1, n_items=n_items)


def test_an_item_says_the_most_telling_first():
    assert one_text(FULL) == (
        "Desk lamp No. 5. Ari. Home > Lamps. Price: 12.50. colour: red. parts: base, shade. Bright. And warm"
    )
    assert one_text({"title": "Chair"}) == "Chair"  # nothing is said of what is unknown
    assert one_text({"title": "", "brand": "Bo"}) == "Bo"
    assert one_text({"title": ""}) == ""


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ("Material: cotton; colour: red.", "Material: cotton; colour: red"),
        (["cotton", "red"], "cotton, red"),
        ('["cotton", "red"]', "cotton, red"),
        (5, "5"),
        ("5", "5"),
        ("{'Material': 'cotton'}", "{'Material': 'cotton'}"),
        ({"material": "cotton"}, "material: cotton"),
    ],
)
def test_specs_of_any_form_are_read(specs, said):
    items = validate_items([{"item_id": "a", "title": "Shirt", "specs": specs}])
    assert Renderer().render_items(items).texts.tolist() == [f"Shirt. {said}"]


def test_further_text_columns_are_read_and_others_are_not():
    items = make_items([{"title": "Chair"}, {"title": "Sofa"}])
    items.frame["material"] = ["oak ", None]
    items.frame["stock"] = [3, 4]
    items.frame["image"] = ["https://example.org/a.png", ""]
    assert Renderer().render_items(items).texts.tolist() == ["Chair. material: oak", "Sofa"]


def test_what_an_item_says_is_data_and_never_a_template():
    hostile = "{{ 7 * 7 }} {% for i in range(9) %}x{% endfor %} {# gone #} {{ ''.__class__.__mro__ }} <b>&amp;"
    item = {"title": hostile, "specs": {hostile: hostile}}
    assert one_text(item, max_tokens=1_000) == f"{hostile}. {hostile}: {hostile}"
    review = one_text({"title": "a"}, events=reviewed([(0, 1, hostile)]), max_tokens=1_000)
    assert review == f"a. Reviews: {hostile}"


def test_reviews_before_the_time_newest_first():
    events = reviewed([(0, 1, "old"), (0, 2, "newer"), (0, 3, "at the time"), (0, 4, "later"), (1, 1, "other")], 2)
    items = make_items([{"title": "a"}, {"title": "b"}])
    render = Renderer().render_items
    assert render(items, events, 3).texts.tolist() == ["a. Reviews: newer | old", "b. Reviews: other"]
    assert render(items, events, None).texts[0] == "a. Reviews: later | at the time | newer | old"
    assert render(items, events, 1).texts.tolist() == ["a", "b"]


def test_the_budget_drops_the_oldest_reviews_and_never_the_newest():
    events = reviewed([(0, 1, "old old old"), (0, 2, "mid mid mid"), (0, 3, "new new new")])
    # "a." is 1 word and "Reviews:" 1; each review 3 and each bar between 1
    wanted = {30: "a. Reviews: new new new | mid mid mid | old old old", 9: "a. Reviews: new new new | mid mid mid"}
    wanted |= {5: "a. Reviews: new new new", 4: "a. Reviews: new new", 1: "a"}
    for max_tokens, text in wanted.items():
        assert one_text({"title": "a"}, events=events, max_tokens=max_tokens, count_tokens=words) == text


def test_a_long_review_does_not_fill_the_digest():
    events = reviewed([(0, 1, "short"), (0, 2, "word " * 1_000)])
    assert one_text({"title": "a"}, events=events, max_tokens=500).endswith("word | short")


alphabet = st.sampled_from(["lamp", "a", ",", "日", "本語", " ", "  ", "\n", "supercalifragilistic", "é", "🙂"])


@given(st.lists(st.lists(alphabet, max_size=60).map("".join), max_size=5), st.integers(1, 20), st.booleans())
def test_a_cut_text_is_a_beginning_within_the_budget(texts, max_tokens, with_counter):
    def pieces(some):  # like a word piece tokenizer: long words are several tokens, and two marks are added
        return np.array([2 + sum(1 + len(word) // 6 for word in text.split()) for text in some], dtype=np.int64)

    count = pieces if with_counter else approximate_tokens
    cut = cut_to_budget(texts, max_tokens, pieces if with_counter else None)
    for text, short, tokens in zip(texts, cut, count(texts), strict=True):
        assert text.startswith(short)
        assert short == "" or count([short])[0] <= max_tokens
        assert short == text or tokens > max_tokens or len(text) > 8 * max_tokens


def test_a_cut_text_uses_its_budget_and_few_counts():
    calls = []

    def count(texts):
        calls.append(len(texts))
        return words(texts)

    rng = np.random.default_rng(0)
    texts = [" ".join("w" * length for length in rng.integers(1, 12, size)) for size in rng.integers(1, 900, 300)]
    cut = words(cut_to_budget(texts, 100, count))
    long = words(texts) > 100
    assert cut.max() <= 100
    assert cut[long].min() >= 90
    assert np.array_equal(cut[~long], words(texts)[~long])
    assert sum(calls) < 4 * len(texts)


def test_tokens_without_a_tokenizer():
    # 5 words and 2 marks; 3 characters and 2 words; nothing
    assert approximate_tokens(["Red lamp, No 5 b.", "日本語 lamp用x", " "]).tolist() == [7, 6, 0]


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(DataError, match="max_tokens is 0"):
        cut_to_budget(["a"], 0, words)


def test_templates_travel_with_a_model(tmp_path):
    Renderer().save(tmp_path / "templates")
    (tmp_path / "templates" / "history.jinja").write_text("", encoding="utf-8")  # models saved before have one more
    again = Renderer(tmp_path / "templates")
    (tmp_path / "templates" / "item.jinja").write_text("{{ item.brand }}: {{ item.title }}", encoding="utf-8")
    other = Renderer(tmp_path / "templates")
    assert other.render_items(make_items([FULL])).texts[0] == "Ari: Desk lamp No. 5"
    assert again.render_items(make_items([FULL])).texts[0].startswith("Desk lamp")


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("item", "{{ item.title", r"item.jinja, line 1: .*; correct the template"),
        ("item", "{{ item.titel }}", "item.jinja cannot be rendered .*titel"),
        ("item", "{{ 'Price %.2f' | format(item.price) }}", "item.jinja cannot be rendered"),  # price may be none
        (
            "review_digest",
            "{{ texts | join }}",
            "review_digest.jinja cannot be .*'texts' is undefined.*use reviews",
        ),
        ("review_digest", "{{ reviews.__class__.__mro__ }}", "review_digest.jinja cannot be rendered .*unsafe"),
        ("review_digest", "{{ reviews | nosuchfilter }}", "review_digest.jinja, line 1: .*nosuchfilter"),
    ],
)
def test_a_broken_template_is_refused_when_it_is_loaded(tmp_path, name, source, message):
    Renderer().save(tmp_path)
    (tmp_path / f"{name}.jinja").write_text(source, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        Renderer(tmp_path)


def test_a_missing_template_is_named(tmp_path):
    Renderer().save(tmp_path)
    (tmp_path / "review_digest.jinja").unlink()
    with pytest.raises(StorageError, match=r"digest\.jinja is missing; a folder of templates needs item, review_dig"):
        Renderer(tmp_path)


def test_the_packaged_templates_are_all_there():
    names = {path.name for path in packaged_templates().glob("*.jinja")}
    assert {"item.jinja", "review_digest.jinja"} <= names


def test_four_thousand_items_take_less_than_a_second():
    items = make_items([FULL | {"title": f"Lamp {code}", "description": "word " * 200} for code in range(4_000)])
    events = reviewed([(code % 4_000, code, f"good {code}") for code in range(12_000)], 4_000)
    seconds = []
    for _ in range(2):  # the better: who shares the processor's caches costs processor time too
        start = time.process_time()
        texts = Renderer().render_items(items, events, 9_000).texts
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1.0
    assert all(approximate_tokens(texts) == 128)
