"""Text-aware EASE and its kernel: definition, removal of one user, items nobody took, languages without spaces."""

import numpy as np
import pytest

from llm_rerank.models.collaborative.ease import EASE
from llm_rerank.models.collaborative.item_inverse import gram_matrix
from llm_rerank.models.collaborative.text_ease import TextAwareEASE
from llm_rerank.models.collaborative.text_kernel import (
    TextKernel,
    add_similarities,
    character_vectors,
    word_vectors,
)
from llm_rerank.models.scoring import histories_of
from llm_rerank.models.semantic.whitening import Whitening
from llm_rerank.types import DataError, NotFittedError
from tests.models.test_ease import check_without_user
from tests.models.test_item_item import random_events
from tests.planted import THEMES, cases_of, events_of, items_of, planted_shop
from tests.scorer_suite import check_scorer, first_rate


class ThemeEncoder:
    """A real, tiny encoder: a text's vector counts its words by theme, plus a share of noise fixed by the text."""

    embedding_size = 12
    fingerprint = "themes-1"

    def __init__(self):
        self.n_encoded = 0

    def encode(self, inputs):
        self.n_encoded += len(inputs)
        words = [set(goods.replace(",", "").split()) | {theme} for theme, goods in THEMES.items()]
        vectors = np.zeros((len(inputs), self.embedding_size), dtype=np.float32)
        for row, text in enumerate(inputs):
            vectors[row, :8] = [len(known & set(text.replace(".", "").split())) for known in words]
            vectors[row, 8:] = np.random.default_rng(list(text.encode())).normal(0, 0.3, 4)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def texts(n):
    rng = np.random.default_rng(0)
    words = np.array(["red", "blue", "steel", "soft", "large", "cup", "lamp", "chair", "rope", "glove"])
    return [" ".join(rng.choice(words, 3, replace=False)) for _ in range(n)]


def test_suite_without_an_encoder(tmp_path):
    check_scorer(TextAwareEASE, tmp_path, quality_floor=0.9)


def test_suite_with_an_encoder(tmp_path):
    check_scorer(lambda: TextAwareEASE(encoder=ThemeEncoder()), tmp_path, quality_floor=0.9)


def test_scores_equal_the_definition():
    past, items = random_events(8), items_of(texts(12))
    kernel = TextKernel()
    scorer = TextAwareEASE(
        regularization=4, text_weight=3, decay=0.3, pair_decay=0.2, support_exponent=0.5, kernel=kernel
    )
    scores = scorer.fit(past, items).score_catalogue(cases_of([[5, 2]], [[]]))[0]
    gram, support = gram_matrix(past, 0.2)
    inverse = np.linalg.inv(gram.astype(float) + 3 * kernel.matrix(items) + 4 * np.eye(12))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    expected = (np.exp(-0.3) * weights[5] + weights[2]) * (support + 3) ** 0.5
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_without_text_weight_it_is_ease():
    past, items, cases = random_events(9), items_of(texts(12)), cases_of([[1, 4]], [np.arange(12)])
    plain = TextAwareEASE(regularization=7, text_weight=0, decay=0.2, pair_decay=0, support_exponent=0)
    ours = plain.fit(past, items).score(cases)
    np.testing.assert_allclose(ours, EASE(regularization=7, decay=0.2).fit(past, items).score(cases), atol=1e-6)


def test_a_user_removed_equals_a_fit_without_them():
    past = random_events(10, n_users=12, n_events=90)
    past = events_of(
        [*zip(past.users, past.items % 11, past.times, past.weights, strict=True), (12, 11, 1), (12, 3, 2)], 12
    )
    kernel = TextKernel()
    check_without_user(
        lambda: TextAwareEASE(regularization=2, text_weight=2, pair_decay=0.3, support_exponent=0.4, kernel=kernel),
        past,
        items_of([*texts(11), ""]),  # item 11 has no text: without user 12 nothing is known of it
        list(range(13)),
        [*range(12), -1, 12],
        lambda history: history[: len(history) // 2 + 1],
    )


def test_a_user_removed_from_the_planted_shop():
    shop = planted_shop(n_users=120)
    kernel = TextKernel(ThemeEncoder())
    users = [0, 5, 17]
    check_without_user(
        lambda: TextAwareEASE(kernel=kernel),
        shop.past,
        shop.items,
        users,
        shop.cases.candidates[0],
        lambda history: history[:-1],
    )
    histories, weights, times = histories_of(shop.past)
    scorer = TextAwareEASE(kernel=kernel).fit(shop.past, shop.items)
    np.testing.assert_array_equal(  # one event a visit and of weight 1: what is assumed where neither is given
        scorer.score_without_user(shop.cases, histories),
        scorer.score_without_user(shop.cases, histories, weights=weights, times=times),
    )


def test_items_nobody_took_are_scored_by_their_text():
    shop = planted_shop(n_cold=24)
    theme_of_cold = shop.item_themes[shop.cold]
    users = [user for user in range(64) if shop.user_themes[user] in theme_of_cold]
    cases = shop.cases.take(np.array(users)).with_candidates(shop.cases.candidates.from_lists([shop.cold] * len(users)))
    table = TextAwareEASE().fit(shop.past, shop.items).score(cases).reshape(len(users), -1)
    best = theme_of_cold[table.argmax(axis=1)]
    assert (best == shop.user_themes[users]).mean() > 0.85  # one event in ten is of another theme
    assert np.isnan(EASE().fit(shop.past, shop.items).score(cases)).all()


def test_text_of_the_wrong_items_does_not_help():
    shop = planted_shop(n_users=40)  # thin: text matters
    ours = first_rate(TextAwareEASE().fit(shop.past, shop.items).score(shop.cases), shop.cases)
    order = np.random.default_rng(0).permutation(len(shop.items))
    shuffled = items_of(shop.items.texts[order], titles=shop.items.frame["title"].to_numpy()[order])
    wrong = first_rate(TextAwareEASE().fit(shop.past, shuffled).score(shop.cases), shop.cases)
    plain = first_rate(EASE().fit(shop.past, shop.items).score(shop.cases), shop.cases)
    assert ours > plain + 0.1
    assert wrong < plain


@pytest.mark.parametrize(
    ("titles", "alike", "unlike"),
    [
        (["手冲咖啡壶", "意式咖啡机", "儿童自行车", "山地自行车锁"], [(0, 1), (2, 3)], [(0, 2), (1, 3)]),
        (["コーヒーミル", "電動コーヒーメーカー", "釣り竿ケース", "釣り糸"], [(0, 1), (2, 3)], [(0, 2), (1, 3)]),
    ],
)
def test_languages_without_spaces(titles, alike, unlike):
    similarities = TextKernel().matrix(items_of(titles))
    assert min(similarities[pair] for pair in alike) > 0.01
    assert max(similarities[pair] for pair in unlike) < 1e-6


def test_kernel_is_the_mean_of_unit_kernels():
    items = items_of(["red steel cup", "red steel cup", "blue rope", "!!!", ""], titles=["cup", "cup", "rope", "!", ""])
    similarities = TextKernel().matrix(items)
    assert similarities.dtype == np.float32
    np.testing.assert_allclose(similarities, similarities.T, atol=1e-7)
    np.testing.assert_allclose(np.diag(similarities)[:3], 1, atol=1e-6)
    assert similarities[0, 1] == pytest.approx(1, abs=1e-6)
    assert similarities[0, 2] == 0
    assert not similarities[4].any()
    assert np.linalg.eigvalsh(similarities.astype(float)).min() > -1e-6


def test_an_item_without_text_is_unknown_whatever_its_title_and_its_vector():
    items = items_of(["red cup", "red cup", ""], titles=["red cup", "red cup", "red cup"])
    similarities = TextKernel(TalksOfNothing()).matrix(items)
    assert not similarities[2].any()
    assert not similarities[:, 2].any()
    assert similarities[0, 1] > 0.5


class TalksOfNothing:
    """An encoder that has a vector even for the empty text, as sentence encoders do."""

    embedding_size = 2
    fingerprint = "nothing-1"

    def encode(self, inputs):
        return np.array([[0.8, 0.6] if text else [1.0, 0.0] for text in inputs], dtype=np.float32)


def test_word_similarity_by_hand():
    # two documents, "a1 b1" and "a1 c1"; terms a1, b1, "a1 b1", c1, "a1 c1"; idf = ln(3 / (1 + df)) + 1
    shared, own = np.log(3 / 3) + 1, np.log(3 / 2) + 1
    vectors = word_vectors(["a1 b1", "a1 c1"])
    product = (vectors @ vectors.T).toarray()
    assert product[0, 1] == pytest.approx(shared**2 / (shared**2 + 2 * own**2), rel=1e-5)


def test_characters_see_inside_words():
    vectors = character_vectors(["drill-1234", "drill-1235", "sofa"])
    product = (vectors @ vectors.T).toarray()
    assert product[0, 1] > 0.5
    assert product[0, 2] == 0


def test_an_encoder_adds_a_kernel_of_whitened_vectors():
    items, encoder = items_of([f"{name} {goods.split(',')[0]}" for name, goods in THEMES.items()]), ThemeEncoder()
    vectors = encoder.encode(list(items.texts))
    turned = Whitening.fit(vectors).apply(vectors)
    without, with_encoder = TextKernel().matrix(items), TextKernel(encoder).matrix(items)
    np.testing.assert_allclose(3 * with_encoder - 2 * without, turned @ turned.T, atol=1e-5)


@pytest.mark.parametrize("n", [1, 511, 1100])
def test_similarities_are_added_block_by_block(n):
    vectors = np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32)
    total = np.ones((n, n), dtype=np.float32)
    add_similarities(total, vectors)
    np.testing.assert_allclose(total, vectors @ vectors.T + 1, atol=1e-5)


def test_the_kernel_is_computed_once_for_the_same_texts():
    encoder, items = ThemeEncoder(), items_of(texts(12))
    kernel = TextKernel(encoder)
    past = random_events(11)
    for regularization in (5.0, 50.0, 500.0):
        TextAwareEASE(regularization=regularization, kernel=kernel).fit(past, items)
    assert encoder.n_encoded == 12
    first = kernel.matrix(items)
    assert kernel.matrix(items_of(texts(12))) is first
    changed = kernel.matrix(items.with_texts([*texts(11), "a violin bow"]))
    assert encoder.n_encoded == 24
    assert not np.array_equal(changed, first)
    with pytest.raises(ValueError, match="read-only"):
        changed[0, 0] = 1


def test_a_loaded_scorer_needs_no_encoder(tmp_path):
    shop = planted_shop(n_users=40)
    scorer = TextAwareEASE(encoder=ThemeEncoder(), regularization=33, support_exponent=0.3).fit(shop.past, shop.items)
    scorer.save(tmp_path)
    loaded = TextAwareEASE.load(tmp_path)
    assert (loaded.regularization, loaded.support_exponent) == (33, 0.3)
    np.testing.assert_array_equal(loaded.score(shop.cases), scorer.score(shop.cases))


def test_errors():
    past = events_of([(0, 0, 0)], 2)
    with pytest.raises(DataError, match="no item has text; render"):
        TextAwareEASE().fit(past, items_of(["", " "]))
    with pytest.raises(DataError, match="text_ease was given 20,001 items.*ItemKNN"):
        TextAwareEASE().fit(events_of([(0, 0, 0)], 20_001), items_of(["x"] * 20_001))
    with pytest.raises(DataError, match="regularization is -1"):
        TextAwareEASE(regularization=-1)
    with pytest.raises(DataError, match="text_weight is -1"):
        TextAwareEASE(text_weight=-1)
    with pytest.raises(DataError, match="both given"):
        TextAwareEASE(encoder=ThemeEncoder(), kernel=TextKernel())
    with pytest.raises(NotFittedError):
        TextAwareEASE().score(cases_of([[0]], [[0]]))
