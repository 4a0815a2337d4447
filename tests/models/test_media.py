from dataclasses import replace

import numpy as np
import pytest

from llm_rerank.models.semantic.cache import CachedEncoder
from llm_rerank.models.semantic.encoder import SentenceEncoder
from llm_rerank.models.semantic.media import VectorScorer
from llm_rerank.models.semantic.similarity import SemanticScorer
from llm_rerank.types import CatalogueScorer, DataError, GrowingScorer, NotFittedError
from tests.planted import cases_of, items_of, planted_shop
from tests.scorer_suite import check_scorer, first_rate, longer_items

LN2 = float(np.log(2))
SIZE = 24


def items_with(rows, name="image_vector"):
    return replace(items_of([""] * len(rows)), vectors={name: np.array(rows, dtype=np.float32)})


def plane_scorer(**settings):
    """Items: 0 east, 1 north, 2 between, 3 without a vector, 4 west."""
    items = items_with([[1, 0], [0, 1], [0.6, 0.8], [0, 0], [-1, 0]])
    return VectorScorer("image_vector", **{"whiten": False, **settings}).fit(None, items, seed=0)


def themed_vectors(shop, *, noise=0.5, seed=1):
    """Vectors of unit length round the direction of the item's theme, one axis each."""
    rng = np.random.default_rng(seed)
    rows = np.eye(SIZE)[shop.item_themes] + noise * rng.normal(size=(len(shop.items), SIZE)) / np.sqrt(SIZE)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def silent_shop():
    """Items that all say the same in words; what theme they are of is in their vectors alone."""
    shop = planted_shop()
    texts = np.full(len(shop.items), "a thing", dtype=object)
    return replace(shop, items=replace(shop.items, texts=texts, vectors={"image_vector": themed_vectors(shop)}))


# --- arithmetic ------------------------------------------------------------------------------------------------------


def test_user_is_the_decayed_mean():
    # history east (age 1: 1/2), north (age 0: 1): user = (.5, 1) / √1.25 = (.4472, .8944)
    scores = plane_scorer(decay=LN2).score(cases_of([[0, 1]], [[0, 1, 2, 4]]))
    np.testing.assert_allclose(scores, [0.4472136, 0.8944272, 0.6 * 0.4472136 + 0.8 * 0.8944272, -0.4472136], atol=1e-6)


def test_greatest_similarity_joins_and_dislikes_are_subtracted():
    # as in test_similarity: (mean + 3 · greatest) / 4
    scores = plane_scorer(decay=LN2, greatest_weight=3.0).score(cases_of([[0, 1]], [[0, 1, 2, 4]]))
    mean = np.array([0.4472136, 0.8944272, 0.9838699, -0.4472136])
    np.testing.assert_allclose(scores, (mean + 3 * np.array([0.5, 1, 0.8, 0])) / 4, atol=1e-6)
    cases = cases_of([[0, 1]], [[0, 1, 2]])
    cases.history_weights[:] = [-1, 1]
    np.testing.assert_allclose(plane_scorer(decay=0).score(cases), [-0.7071068, 0.7071068, 0.1414214], atol=1e-6)


def test_without_a_vector_on_either_side_it_is_nan():
    scores = plane_scorer().score(cases_of([[0], [], [3], [3, 0]], [[0, 3, -1, 5, 99]] * 4)).reshape(4, 5)
    assert np.isnan(scores[:, 1:]).all(), "no vector, unknown"
    assert np.isnan(scores[[1, 2]]).all(), "no history, a history without a vector"
    np.testing.assert_allclose(scores[[0, 3], 0], 1, atol=1e-6)


def test_words_searched_for_say_nothing_here():
    cases = cases_of([[0], []], [[0, 1]] * 2)
    scores = plane_scorer().score(replace(cases, queries=["0 1", "0 1"]))
    np.testing.assert_allclose(scores, [1, 0, np.nan, np.nan], atol=1e-6)


# --- against its twin ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"whiten": False}, {"decay": 0.05, "greatest_weight": 0.7}])
def test_an_encoders_vectors_brought_by_the_shop_score_as_the_encoder_does(settings, tmp_path):
    encoder, shop = CachedEncoder(SentenceEncoder()), planted_shop(n_users=60)
    texts = shop.items.texts.copy()
    texts[5] = ""
    written = shop.items.with_texts(texts)
    brought = replace(written.with_texts([""] * len(written)), vectors={"text_vector": encoder.encode(list(texts))})
    semantic = SemanticScorer(encoder, **settings).fit(None, written, seed=0)
    vectors = VectorScorer("text_vector", **settings).fit(None, brought, seed=0)
    np.testing.assert_array_equal(vectors.score(shop.cases), semantic.score(shop.cases))
    np.testing.assert_array_equal(vectors.score_catalogue(shop.cases), semantic.score_catalogue(shop.cases))
    codes = np.array([0, 5, 77])
    np.testing.assert_array_equal(vectors.item_vectors(codes), semantic.item_vectors(codes))
    np.testing.assert_allclose(vectors.item_vectors(codes), brought.vectors["text_vector"][codes], atol=2e-4)


# --- planted ---------------------------------------------------------------------------------------------------------


def test_suite(silent_shop, tmp_path):
    scorer = check_scorer(
        lambda: VectorScorer("image_vector"), tmp_path, quality_floor=0.9, new_items="known", shop=silent_shop
    )
    assert isinstance(scorer, CatalogueScorer) and isinstance(scorer, GrowingScorer)


def test_vectors_that_know_nothing_find_nothing(silent_shop):
    shuffled = themed_vectors(silent_shop)[np.random.default_rng(0).permutation(len(silent_shop.items))]
    items = replace(silent_shop.items, vectors={"image_vector": shuffled})
    rate = first_rate(VectorScorer("image_vector").fit(None, items, seed=0).score(silent_shop.cases), silent_shop.cases)
    assert rate < 0.15  # chance .05


# --- growth, saving, errors ------------------------------------------------------------------------------------------


def test_a_changed_vector_is_read_anew_and_others_stay():
    scorer = plane_scorer(decay=0)
    items = items_with([[1, 0], [1, 0], [0.6, 0.8], [0, 1], [0, 0], [0, -1]])
    grown = scorer.grown(items, np.array([3, 4, 5]))
    scores = grown.score(cases_of([[1]], [[0, 1, 2, 3, 4, 5]]))  # item 1 is still north: it was not among the changed
    np.testing.assert_allclose(scores, [0, 1, 0.8, 1, np.nan, -1], atol=1e-6)
    np.testing.assert_allclose(scorer.score(cases_of([[1]], [[0, 3, 4]])), [0, np.nan, 0], atol=1e-6)


def test_new_items_without_the_column_have_none(silent_shop):
    scorer = VectorScorer("image_vector").fit(None, silent_shop.items, seed=0)
    longer = replace(longer_items(silent_shop.items, ["a", "b"]), vectors={})
    n = len(silent_shop.items)
    assert np.isnan(scorer.grown(longer, np.array([n, n + 1])).score(cases_of([[0]], [[n, n + 1]]))).all()


def test_a_new_vector_is_whitened_as_at_the_fit(silent_shop, tmp_path):
    scorer = VectorScorer("image_vector").fit(None, silent_shop.items, seed=0)
    scorer.save(tmp_path)
    n = len(silent_shop.items)
    longer = longer_items(silent_shop.items, ["the first again"])
    for one in (scorer, VectorScorer.load(tmp_path)):
        copy_of_first, first = one.grown(longer, np.array([n])).score(cases_of([[3, 7]], [[n, 0]]))
        assert copy_of_first == pytest.approx(first, abs=1e-6)


def test_errors(silent_shop):
    with pytest.raises(DataError, match="none of the 2 items has a vector in 'image_vector'; give the items a column"):
        VectorScorer("image_vector").fit(None, items_with([[0, 0], [0, 0]]), seed=0)
    with pytest.raises(DataError, match="none of the 2 items has a vector in 'image_vector'"):
        VectorScorer("image_vector").fit(None, items_with([[1, 0], [0, 1]], "sound_vector"), seed=0)
    with pytest.raises(DataError, match="has vectors of 3 numbers, the fit read 2; make them with the same model"):
        plane_scorer().grown(items_with(np.eye(6, 3)), np.array([5]))
    with pytest.raises(DataError, match="name is '../x'; it must be a column of vectors"):
        VectorScorer("../x")
    with pytest.raises(DataError, match="decay is -1"):
        VectorScorer("image_vector", decay=-1)
    with pytest.raises(NotFittedError, match="call fit or load first"):
        VectorScorer("image_vector").score(silent_shop.cases)
