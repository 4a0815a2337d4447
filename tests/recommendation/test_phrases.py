"""The words of an item: a text cut and put together again, and effects that are those of a catalogue with the rest."""

import shutil
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_rerank.config import RerankerConfig
from llm_rerank.models.semantic.similarity import SemanticScorer
from llm_rerank.recommendation.phrases import cut_phrases, without_phrase
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.types import StorageError
from tests.shops import make_shop
from tests.tiny_encoder import save_tiny_encoder

SCRIPT = "<script src=//x trowel"  # whole tags are taken out with the data; this one comes through
HOSTILE, TWINS, BLANK = 2, (30, 31), 143  # the last is never taken, so that it has no reviews

# --- the text --------------------------------------------------------------------------------------------------------


def test_a_title_is_cut_into_words_and_the_rest_into_sentences_and_attributes():
    text = "Red 3.5 mm drill & bit. Bosch. Garden > Tools. Price: 3.50. color: red. It drills! Reviews: good | bad one"
    pieces = cut_phrases(text, "Red 3.5 mm drill & bit.")
    assert [phrase for phrase, _ in pieces] == [
        *("Red", "3.5", "mm", "drill", "bit", "Bosch", "Garden", "Tools"),
        *("Price: 3.50", "color: red", "It drills", "Reviews: good", "bad one"),
    ]
    # of the gaps beside what goes the greater break stays: a full stop before a bar, either before a blank
    assert without_phrase(pieces, 4).startswith("Red 3.5 mm drill. Bosch")
    assert "Garden. Price" in without_phrase(pieces, 7)
    assert without_phrase(pieces, 0).startswith("3.5 mm drill & bit. Bosch")
    assert without_phrase(pieces, 12).endswith("It drills! Reviews: good")


def test_scripts_without_spaces_are_cut_in_pairs():
    assert [phrase for phrase, _ in cut_phrases("温度计电子。很好", "温度计电子")] == ["温度", "计电", "子", "很好"]


def test_many_words_and_sentences_are_joined_evenly():
    words, sentences = [f"w{n}" for n in range(30)], [f"s{n}" for n in range(40)]
    pieces = cut_phrases(". ".join([" ".join(words), *sentences]), " ".join(words))
    title, rest = [phrase for phrase, _ in pieces[:12]], [phrase for phrase, _ in pieces[12:]]
    assert len(pieces) == 24
    assert " ".join(title).split() == words
    assert ". ".join(rest).split(". ") == sentences
    assert {len(phrase.split()) for phrase in pieces[0]} <= {0, 2, 3}
    assert {phrase.count("s") for phrase in rest} == {3, 4}


def test_a_title_that_only_begins_the_first_word_is_none():
    assert cut_phrases("redder than red. blue", "red") == [("redder than red", ". "), ("blue", "")]
    assert cut_phrases(" . ", ".") == []


@given(
    st.lists(st.text("ab9 .!|>;温度\n&-", max_size=12), max_size=12).map("".join),
    st.integers(0, 30),
    st.integers(1, 9),
)
def test_the_phrases_are_the_text_and_leaving_one_out_takes_its_letters_only(text, title_length, most):
    pieces = cut_phrases(text, text.strip()[:title_length], most=most)
    assert len(pieces) <= most

    def letters(of):
        return "".join(letter for letter in of if letter.isalnum())

    assert letters("".join(phrase for phrase, _ in pieces)) == letters(text)
    for place in range(len(pieces)):
        rest = "".join(phrase for phrase, _ in pieces[:place] + pieces[place + 1 :])
        assert letters(without_phrase(pieces, place)) == letters(rest)
        assert pieces[place][0]


# --- the effects -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts():
    events, items = make_shop(n_users=250)
    items.loc[HOSTILE, "title"] = SCRIPT
    items.loc[TWINS[1], "title"] = items["title"][TWINS[0]]
    items.loc[BLANK, ["title", "brand", "description", "theme"]] = ""
    items.loc[BLANK, "price"] = np.nan
    return events, items


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def reader(texts, tiny):
    """With the semantic scorer and a cross-encoder."""
    config = RerankerConfig(
        encoder=tiny,
        candidates_per_source=30,
        sequence="off",
        semantic="always",
        cross_encoder="always",
        fine_tune_steps=20,
        device="cpu",
        dtype="float32",
    )
    return Reranker(config, verbose=False).fit(*texts)


def standing_apart(reranker, items, codes):
    """The reranker with the parts that read texts fitted on ``items``, unwhitened, and ``codes`` no reference items.

    Every column of its blend weighs one half, so that no part can be wrong unseen.
    """
    saved = reranker._data()
    blend = saved.fitted.stage.blend
    stage = replace(saved.fitted.stage, blend=replace(blend, weights=np.full_like(blend.weights, 0.5)))
    components = []
    for component in saved.fitted.components:
        scorer = component.scorer
        if component.name == "semantic":
            scorer = SemanticScorer(scorer.encoder, decay=scorer.decay, whiten=False).fit(None, items, seed=0)
        if component.name == "cross_encoder":
            scorer = copy(scorer).fit(None, items, seed=0)
        components.append(replace(component, scorer=scorer))
    reference = np.setdiff1d(saved.fitted.reference, codes)
    fitted = replace(saved.fitted, stage=stage, components=tuple(components), items=items, reference=reference)
    apart = Reranker(reranker.config, verbose=False)
    apart._adopt(replace(saved, fitted=fitted))
    return apart


@pytest.mark.parametrize("code", [3, 40, HOSTILE])
def test_an_effect_is_the_score_lost_in_a_catalogue_whose_item_lacks_the_phrase(reader, texts, code):
    items, user = reader._data().fitted.items, texts[0]["user_id"][5]
    item, text = items.ids[code], str(items.texts[code])
    apart = standing_apart(reader, items, [code])
    explanation = apart.explain(user, item, phrases=True)
    effects = explanation.phrases.effects
    pieces = cut_phrases(text, str(items.frame["title"].iloc[code]))
    assert sorted(effect.phrase for effect in effects) == sorted(phrase for phrase, _ in pieces)
    assert np.all(np.diff([abs(effect.effect) for effect in effects]) <= 0)
    assert len({round(effect.effect, 4) for effect in effects}) > 3
    said = {effect.phrase: effect.effect for effect in effects}
    for place, (phrase, _) in enumerate(pieces):
        shortened = items.texts.copy()
        shortened[code] = without_phrase(pieces, place)
        score = standing_apart(reader, items.with_texts(shortened), [code]).explain(user, item).score
        assert said[phrase] == pytest.approx(explanation.score - score, abs=5e-5), phrase


def test_the_note_says_what_was_read_again_and_what_was_not(reader, fitted, texts):
    explanation = reader.explain("u5", texts[1]["item_id"][3], phrases=True)
    assert explanation.phrases.note == (
        "read again without the phrase by semantic and cross_encoder; text_ease read texts at the fit only, and "
        "that stays in the score"
    )
    assert f"words, by what the score loses without them ({explanation.phrases.note})" in str(explanation)
    assert f"{explanation.phrases.effects[0].effect:+.3f}  {explanation.phrases.effects[0].phrase}" in str(explanation)
    without_encoder = fitted.explain("u5", texts[1]["item_id"][3], phrases=True).phrases
    assert without_encoder.effects == ()
    assert without_encoder.note.startswith("no part of this score reads texts anew; text_ease read texts at the fit")
    assert reader.explain("u5", texts[1]["item_id"][3]).phrases is None


def test_an_item_without_text_and_a_user_without_history(reader, texts):
    blank = reader.explain("u5", texts[1]["item_id"][BLANK], phrases=True).phrases
    assert blank.effects == ()
    assert blank.note.startswith("the item has no text; ")
    newcomer = reader.explain("nobody knows", texts[1]["item_id"][3], phrases=True)
    assert [effect.effect for effect in newcomer.phrases.effects] == [0.0] * len(newcomer.phrases.effects)
    assert newcomer.history == []


def test_a_saved_model_finds_the_same_words_and_says_where_its_encoder_is_missing(reader, texts, tiny, tmp_path):
    item = texts[1]["item_id"][3]
    reader.save(tmp_path / "model")
    expected = {effect.phrase: effect.effect for effect in reader.explain("u5", item, phrases=True).phrases.effects}
    loaded = Reranker.load(tmp_path / "model", device="cpu", verbose=False)
    again = {effect.phrase: effect.effect for effect in loaded.explain("u5", item, phrases=True).phrases.effects}
    assert again == pytest.approx(expected, abs=1e-4)
    shutil.move(tiny, tmp_path / "elsewhere")
    try:
        loaded = Reranker.load(tmp_path / "model", device="cpu", verbose=False)
        assert loaded.explain("u5", item).score == pytest.approx(reader.explain("u5", item).score, abs=1e-5)
        with pytest.raises(StorageError, match="read again by 'semantic', with the encoder of the fit: .*phrases=True"):
            loaded.explain("u5", item, phrases=True)
    finally:
        shutil.move(tmp_path / "elsewhere", tiny)


# --- on a page -------------------------------------------------------------------------------------------------------


def test_a_script_in_a_title_is_text_in_the_page(reader, texts):
    events, items = texts
    user = events.loc[events["item_id"] == items["item_id"][HOSTILE], "user_id"].iloc[0]  # in the history, too
    there = reader.explain(user, items["item_id"][HOSTILE], versus=items["item_id"][3], phrases=True)
    back = reader.explain(user, items["item_id"][3], versus=items["item_id"][HOSTILE], phrases=True)
    assert SCRIPT in str(there)
    for page in (there.to_html(), back.to_html(), there._repr_html_()):
        assert "<script" not in page
        assert "&lt;script src=//x trowel" in page


def test_items_of_one_title_are_told_apart(reader, texts):
    one, two = (texts[1]["item_id"][code] for code in TWINS)
    title = texts[1]["title"][TWINS[0]]
    versus = reader.explain("u5", one, versus=two).versus
    assert (versus.title, versus.other_title) == (f"{title} ({one})", f"{title} ({two})")
