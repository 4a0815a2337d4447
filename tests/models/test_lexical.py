"""Items and searches compared by words: a slow twin, searches, dislikes, what says nothing, texts that come later."""

import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from llm_rerank.models.semantic import lexical
from llm_rerank.models.semantic.lexical import LexicalScorer
from llm_rerank.types import CatalogueScorer, DataError, NotFittedError, StorageError
from tests.planted import cases_of, items_of, planted_shop
from tests.scorer_suite import check_scorer, longer_items

LN2 = math.log(2)


def scorer_of(texts, *, titles=None, **settings):
    return LexicalScorer(**settings).fit(None, items_of(texts, titles=titles), seed=0)


# --- the definition, slowly ------------------------------------------------------------------------------------------


def words_of(text):
    words = re.findall(r"\b\w\w+\b", text.lower())
    return words + [f"{one} {two}" for one, two in zip(words, words[1:], strict=False)]


def letters_of(title):
    found = []
    for word in title.lower().split():
        padded = f" {word} "
        for n in range(2, 6):
            grams = [padded[start : start + n] for start in range(max(1, len(padded) - n + 1))]
            found += grams
            if len(grams) == 1:
                break
    return found


def unit(vector):
    length = math.sqrt(sum(value**2 for value in vector.values()))
    return {term: value / length for term, value in vector.items()} if length > 1e-6 else {}


def plus(*weighted):
    total = Counter()
    for weight, vector in weighted:
        for term, value in vector.items():
            total[term] += weight * value
    return total


def weigher(documents):
    """TF-IDF of lists of terms by these documents."""
    n_with = Counter(term for terms in documents for term in set(terms))
    n = len(documents)

    def vector(terms):
        return unit(
            {
                term: (1 + math.log(count)) * (math.log((1 + n) / (1 + n_with[term])) + 1)
                for term, count in Counter(terms).items()
            }
        )

    return vector


def slow_scores(texts, titles, cases, decay, query_weight, letter_weight):
    """The formula of the class, a case, an item and a term at a time; terms are words, not hashes."""
    by_words, by_letters = (
        weigher([words_of(text) for text in texts]),
        weigher([letters_of(title) for title in titles]),
    )

    def vector(text, title):
        if not text.strip():
            return {}
        word_part = {("word", term): value for term, value in by_words(words_of(text)).items()}
        letters = by_letters(letters_of(title))
        return unit(word_part | {("letters", term): letter_weight**0.5 * value for term, value in letters.items()})

    items = [vector(text, title) for text, title in zip(texts, titles, strict=True)]
    scores = np.full((len(cases), len(items)), np.nan)
    for case in range(len(cases)):
        part = slice(*cases.history.offsets[case : case + 2])
        times = cases.history_times[part].tolist()
        ages = [len({later for later in times if later > time}) for time in times]
        strongest = {}
        for item, weight, age in zip(
            cases.history.values[part].tolist(), cases.history_weights[part].tolist(), ages, strict=True
        ):
            value = weight * math.exp(-decay * age)
            if abs(value) >= abs(strongest.get(item, 0)):
                strongest[item] = value
        past = unit(plus(*((value, items[item]) for item, value in strongest.items())))
        phrases = cases.queries[case].split("; ") if cases.queries[case] else []
        searched = unit(
            plus(*((math.exp(-decay * age), vector(text, text)) for age, text in enumerate(reversed(phrases))))
        )
        user = unit(plus((1, past), (query_weight, searched)))
        if user:
            for item, other in enumerate(items):
                if other:
                    scores[case, item] = sum(value * other.get(term, 0) for term, value in user.items())
    return scores


@pytest.fixture(scope="module")
def varied():
    """60 texts, a few of them blank, titles of their own, and 40 cases with dislikes, baskets and searches."""
    rng = np.random.default_rng(3)
    bag = np.array("red blue tent Drill-12 saw lamp lamps oak ash 电钻 oz XL the the the of for kids".split())
    texts = [" ".join(rng.choice(bag, rng.integers(0, 9))) for _ in range(60)]
    titles = [" ".join(rng.choice(bag, 2)) if text.strip() else text for text in texts]
    lengths = rng.integers(0, 6, 40)
    cases = cases_of(
        [rng.integers(0, 60, n).tolist() for n in lengths],
        [[]] * 40,
        times=[np.sort(rng.integers(0, 4, n)).tolist() for n in lengths],
    )
    weights = rng.choice(np.array([1.0, 2.5, 0.3, -1.0], dtype=np.float32), len(cases.history.values))
    phrases = ["", "", "red tent", "drill; oak lamp; saw", "电钻", "zeppelin red"]
    return texts, titles, replace(cases, history_weights=weights, queries=list(rng.choice(phrases, 40)))


@pytest.mark.parametrize(
    ("decay", "query_weight", "letter_weight"), [(0.2, 1.0, 0.25), (0.0, 0.5, 0.0), (1.0, 0.0, 2.0)]
)
def test_scores_agree_with_a_slow_twin(varied, decay, query_weight, letter_weight):
    texts, titles, cases = varied
    expected = slow_scores(texts, titles, cases, decay, query_weight, letter_weight)
    assert 0.05 < np.isnan(expected).mean() < 0.5 and np.nanmin(expected) < -0.1
    settings = {"decay": decay, "query_weight": query_weight, "letter_weight": letter_weight}
    scorer = scorer_of(texts, titles=titles, **settings)
    np.testing.assert_allclose(scorer.score_catalogue(cases), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_frequent", [1, 7, 10**6])
def test_how_many_terms_are_dense_changes_nothing(varied, n_frequent, monkeypatch):
    texts, titles, cases = varied
    expected = scorer_of(texts, titles=titles).score_catalogue(cases)
    monkeypatch.setattr(lexical, "FREQUENT_TERMS", n_frequent)
    np.testing.assert_allclose(scorer_of(texts, titles=titles).score_catalogue(cases), expected, rtol=0, atol=1e-6)


# --- searches and dislikes -------------------------------------------------------------------------------------------

GOODS = ["red tent", "oak lamp", "blue sofa", ""]  # no two share a word or two letters


def with_queries(cases, queries):
    return replace(cases, queries=queries)


def test_a_search_alone_finds_what_it_names_and_the_newest_counts_most():
    cases = with_queries(cases_of([[]] * 3, [[0, 1, 2, 3]] * 3), ["a lamp", "tent; lamp", ""])
    scores = scorer_of(GOODS, decay=LN2).score(cases).reshape(3, 4)
    assert np.nanargmax(scores[0]) == 1 and scores[0, 1] > 0.5
    assert scores[1, 1] > 1.5 * scores[1, 0] > 1.5 * scores[1, 2]
    assert np.isnan(scores[:, 3]).all() and np.isnan(scores[2]).all()


@pytest.mark.parametrize("n_between", [0, 70, 600])
def test_a_history_does_not_fade_away_behind_visits_that_say_nothing(n_between):
    scorer = LexicalScorer(decay=0.2).fit(None, items_of(["red bicycle", "bicycle pump", "tea pot", ""]), seed=0)
    near, far = scorer.score(cases_of([[2, 0], [2, 0, *[3, -1] * n_between]], [[0, 1, 2]] * 2)).reshape(2, 3)
    assert near[1] > near[2] * 0.1 > 0
    np.testing.assert_allclose(far, near, rtol=1e-5)


def test_a_search_joins_the_history_by_its_weight():
    cases = with_queries(cases_of([[0]] * 2, [[0, 1]] * 2), ["oak lamp", ""])
    # the two texts share no term: (1, w) / √(1 + w²) where the search says what item 1 says
    scores = scorer_of(GOODS, query_weight=3.0).score(cases).reshape(2, 2)
    np.testing.assert_allclose(scores, [[1 / np.sqrt(10), 3 / np.sqrt(10)], [1, 0]], atol=1e-6)
    np.testing.assert_allclose(scorer_of(GOODS, query_weight=0).score(cases), [1, 0, 1, 0], atol=1e-6)


def test_a_disliked_item_is_subtracted():
    cases = cases_of([[0, 1], [0]], [[0, 1, 2]] * 2)
    cases.history_weights[:] = [-1, 1, -1]
    scores = scorer_of(GOODS, decay=0).score(cases).reshape(2, 3)
    np.testing.assert_allclose(scores[:, :2], [[-1 / np.sqrt(2), 1 / np.sqrt(2)], [-1, 0]], atol=1e-6)


def test_without_any_text_there_is_no_opinion():
    cases = with_queries(cases_of([[0], []], [[0, 1]] * 2), ["", "tent"])
    assert np.isnan(scorer_of(["", " "]).score(cases)).all()


# --- the suite, files, texts that come later -------------------------------------------------------------------------


def test_suite(tmp_path):
    scorer = check_scorer(LexicalScorer, tmp_path, quality_floor=0.7, new_items="known")
    assert isinstance(scorer, CatalogueScorer)


def test_items_that_nobody_took_are_scored():
    shop = planted_shop()
    scorer = LexicalScorer().fit(shop.past, shop.items, seed=0)
    cold = scorer.score_catalogue(shop.cases.take(np.arange(40)))[:, shop.cold]
    own = shop.item_themes[shop.cold] == shop.user_themes[:40, None]
    assert (cold[own][:, None] > cold[~own]).mean() > 0.85


def test_files_hold_no_words_and_damage_is_named(tmp_path):
    scorer = scorer_of(GOODS, decay=0.7, query_weight=2.0, letter_weight=0.5)
    scorer.save(tmp_path)
    (path,) = tmp_path.iterdir()
    assert not any(word.encode() in path.read_bytes() for word in ("tent", "lamp", "sofa"))
    loaded = LexicalScorer.load(tmp_path)
    assert (loaded.decay, loaded.query_weight, loaded.letter_weight) == (0.7, 2.0, 0.5)
    cases = with_queries(cases_of([[0]], [[0, 1, 2, 3]]), ["blue zeppelin"])
    np.testing.assert_array_equal(loaded.score(cases), scorer.score(cases))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(StorageError, match="lexical.safetensors"):
        LexicalScorer.load(tmp_path)


def test_a_changed_text_is_read_by_the_measure_of_the_fit():
    scorer = scorer_of(GOODS)
    items = longer_items(items_of([*GOODS[:3], "red tent"]), ["oak lamp"])
    grown = scorer.grown(items, np.array([3, 4]))
    cases = with_queries(cases_of([[]], [[0, 1, 2, 3, 4]]), ["oak tent"])
    scores = grown.score(cases)
    # as rare as they were: the new texts score as the old ones that say the same
    np.testing.assert_allclose(scores[[3, 4]], scores[[0, 1]], atol=1e-6)
    np.testing.assert_array_equal(scores[:3], scorer.score(cases)[:3])


def test_misuse_is_named():
    with pytest.raises(DataError, match="decay is -1"):
        LexicalScorer(decay=-1)
    with pytest.raises(DataError, match="query_weight is nan"):
        LexicalScorer(query_weight=float("nan"))
    with pytest.raises(NotFittedError, match="call fit or load first"):
        LexicalScorer().score(cases_of([[0]], [[0]]))
