"""Text-aware EASE and its kernel: definition, removal of one user, items nobody took, languages without spaces."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from llm_rerank.models.collaborative import text_ease
from llm_rerank.models.collaborative.ease import EASE
from llm_rerank.models.collaborative.item_inverse import gram_matrix
from llm_rerank.models.collaborative.text_ease import TextAwareEASE
from llm_rerank.models.collaborative.text_kernel import TextKernel
from llm_rerank.models.semantic.encoder import SentenceEncoder
from llm_rerank.models.semantic.text_features import TextFeatures, add_similarities
from llm_rerank.models.semantic.whitening import Whitening
from llm_rerank.types import DataError, NotFittedError, StorageError
from tests.models.test_item_item import random_events
from tests.planted import THEMES, cases_of, events_of, items_of, planted_shop
from tests.scorer_suite import check_scorer, first_rate, longer_items
from tests.tiny_encoder import save_tiny_encoder


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
    check_scorer(TextAwareEASE, tmp_path, quality_floor=0.9, new_items="related")


def test_suite_with_an_encoder(tmp_path):
    check_scorer(lambda: TextAwareEASE(encoder=ThemeEncoder()), tmp_path, quality_floor=0.9, new_items="related")


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
    vectors = TextFeatures.fit(["a1 b1", "a1 c1"], ["", ""], None).words
    product = (vectors @ vectors.T).toarray()
    assert product[0, 1] == pytest.approx(shared**2 / (shared**2 + 2 * own**2), rel=1e-5)


def test_characters_see_inside_words():
    vectors = TextFeatures.fit(["tool", "tool", "seat"], ["drill-1234", "drill-1235", "sofa"], None).characters
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
    with pytest.raises(DataError, match="no item has text .*map the column"):
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


class FrozenMeasure:
    """The slow twin: the kernel by scikit-learn, its dictionary and whitening learned from the first texts alone."""

    def __init__(self, texts, titles, encoder=None):
        self.texts, self.titles, self.encoder = texts, titles, encoder

    def kernel(self, texts, titles):
        total, n_kernels = 0, 2
        for learned, given, analyzer, ngrams in (
            (self.texts, texts, "word", (1, 2)),
            (self.titles, titles, "char_wb", (2, 5)),
        ):
            hashing = HashingVectorizer(analyzer=analyzer, ngram_range=ngrams, alternate_sign=False, norm=None)
            weights = TfidfTransformer(sublinear_tf=True).fit(hashing.transform(learned))
            vectors = weights.transform(hashing.transform(given))
            total = total + (vectors @ vectors.T).toarray()
        if self.encoder is not None:
            vectors = Whitening.fit(self.encoder.encode(self.texts)).apply(self.encoder.encode(texts)).astype(float)
            total, n_kernels = total + vectors @ vectors.T, 3
        known = np.array([bool(text.strip()) for text in texts])
        return np.where(known[:, None] & known, total / n_kernels, 0)


@pytest.mark.parametrize("texts_at_once", [1, 2, 256])
@pytest.mark.parametrize("with_encoder", [False, True])
def test_new_and_changed_texts_equal_a_full_inverse(with_encoder, texts_at_once, monkeypatch):
    monkeypatch.setattr(text_ease, "_TEXTS_AT_ONCE", texts_at_once)
    shop = planted_shop(n_users=60, items_a_theme=6, events_a_user=4, n_candidates=8, n_cold=2)
    encoder = ThemeEncoder() if with_encoder else None
    old, titles = list(shop.items.texts), list(shop.items.frame["title"])
    n = len(old)
    new_texts = [*old, "a brand new espresso machine. coffee", "", "moka pot in red. coffee", "zzz qqq"]
    new_titles = [*titles, "brand new espresso machine", "", "moka pot in red", "zzz"]
    new_texts[3], new_titles[3] = "bike pump. cycling", "bike pump"  # another text altogether
    new_texts[5], new_titles[5] = "", ""  # none any more
    new_texts[17] += " with a review: unheard-of quality"  # the title stays
    settings = {"regularization": 3, "text_weight": 4, "decay": 0.3, "pair_decay": 0.2, "support_exponent": 0.4}
    scorer = TextAwareEASE(**settings, encoder=encoder).fit(shop.past, shop.items)
    before = scorer._model.inverse.copy()
    grown = scorer.grown(items_of(new_texts, titles=new_titles), np.array([n + 2, 3, n, n + 1, 17, n + 3, 5]))

    gram, support = gram_matrix(shop.past, 0.2)
    gram = np.pad(gram.astype(float), (0, 4))
    kernel = FrozenMeasure(old, titles, encoder).kernel(new_texts, new_titles)
    inverse = np.linalg.inv(gram + 4 * kernel + 3 * np.eye(n + 4))
    np.testing.assert_allclose(grown._model.inverse, inverse, atol=1e-6)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    expected = (np.exp(-0.3) * weights[3] + weights[n]) * (np.pad(support, (0, 4)) + 3) ** 0.4
    scores = grown.score_catalogue(cases_of([[3, n]], [[]]))[0]
    unknown = (np.pad(support, (0, 4)) == 0) & np.array([not text for text in new_texts])
    assert unknown[n + 1]
    np.testing.assert_array_equal(np.isnan(scores), unknown)
    np.testing.assert_allclose(scores[~unknown], expected[~unknown], atol=1e-5)
    np.testing.assert_array_equal(scorer._model.inverse, before)
    assert len(scorer._features) == n


def test_many_small_growths_stay_near_one_fit():
    """Each rounds to float32 once more: 40 new items one by one, and 80 changes of text."""
    shop = planted_shop(n_users=150)
    scorer = TextAwareEASE(support_exponent=0).fit(shop.past, shop.items)
    texts = list(shop.items.texts)
    rng = np.random.default_rng(0)
    for step in range(40):
        code = int(rng.integers(len(texts)))
        texts[code] += f" {THEMES['music'].split(', ')[step % 9]}"
        texts.append(f"new {THEMES['fishing'].split(', ')[step % 9]} {step}")
        scorer = scorer.grown(items_of(texts), np.array([code, len(texts) - 1]))
    gram = np.pad(gram_matrix(shop.past, scorer.pair_decay)[0].astype(float), (0, 40))
    measure = FrozenMeasure(list(shop.items.texts), list(shop.items.frame["title"]))
    titles = [*shop.items.frame["title"], *texts[160:]]
    for code, text in enumerate(texts[:160]):
        if text != shop.items.texts[code]:
            titles[code] = text
    inverse = np.linalg.inv(gram + 7 * measure.kernel(texts, titles) + 80 * np.eye(200))
    scale = np.abs(inverse).max()
    assert np.abs(scorer._model.inverse - inverse).max() < 1e-6 * scale


def test_users_exchanged_equal_a_fit():
    past, items = random_events(14, n_users=25, n_items=30, n_events=400), items_of(texts(30))
    kernel = TextKernel()

    def fitted(events):
        return TextAwareEASE(regularization=3, pair_decay=0.2, kernel=kernel).fit(events, items)

    changed, kept = np.isin(past.users, [1, 6, 11, 20]), past.times > 3
    revised = fitted(past).revised(past.take(changed), past.take(changed & kept))
    refitted = fitted(past.take(~changed | kept))
    cases = cases_of([[1, 2, 3], [25]], [np.arange(30)] * 2)
    np.testing.assert_allclose(revised.score(cases), refitted.score(cases), atol=1e-6)
    assert revised._kernel is not kernel, "the fit's matrix is not held by what came after"


def test_a_loaded_scorer_grows_with_the_encoder_of_its_fit(tmp_path):
    folder = save_tiny_encoder(tmp_path / "tiny")
    shop = planted_shop(n_users=40)
    scorer = TextAwareEASE(encoder=SentenceEncoder(folder, device="cpu")).fit(shop.past, shop.items)
    (tmp_path / "saved").mkdir()
    scorer.save(tmp_path / "saved")
    loaded = TextAwareEASE.load(tmp_path / "saved")
    assert loaded.encoder is None
    items = longer_items(shop.items, ["a moka pot. coffee", "waders. fishing"])
    new = np.array([160, 161])
    cases = cases_of([shop.cases.history[0], [160]], [np.arange(162)] * 2)
    expected = scorer.grown(items, new).score(cases)
    np.testing.assert_allclose(loaded.grown(items, new).score(cases), expected, atol=1e-6)
    assert loaded.encoder is not None, "read once, for the next growth too"
    other = TextAwareEASE.load(tmp_path / "saved")
    other.encoder = ThemeEncoder()
    with pytest.raises(StorageError, match="its vectors would not match"):
        other.grown(items, new)


def test_a_loaded_scorer_whose_encoder_has_no_name_asks_for_it(tmp_path):
    shop = planted_shop(n_users=40)
    scorer = TextAwareEASE(encoder=ThemeEncoder()).fit(shop.past, shop.items)
    scorer.save(tmp_path)
    loaded = TextAwareEASE.load(tmp_path)
    items, new = longer_items(shop.items, ["a moka pot. coffee"]), np.array([160])
    with pytest.raises(StorageError, match="hand it over as the loaded model's 'encoder'"):
        loaded.grown(items, new)
    loaded.encoder = ThemeEncoder()
    np.testing.assert_array_equal(
        loaded.grown(items, new).score(shop.cases), scorer.grown(items, new).score(shop.cases)
    )


def test_what_is_saved_holds_no_word_of_the_texts(tmp_path):
    shop = planted_shop(n_users=40)
    items = shop.items.with_texts([f"{text} quoted: splendiferous" for text in shop.items.texts])
    TextAwareEASE().fit(shop.past, items).save(tmp_path)
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"splendiferous" not in content
    assert b"espresso" not in content


def test_terms_that_no_text_had_weigh_as_the_rarest():
    items = items_of(["red cup", "red lamp", "!!!"])
    features = TextKernel().features(items)
    later = features.with_texts(np.array([3, 4]), ["violin bow", "red violin"], ["violin bow", "red violin"], None)
    columns = later.columns(np.arange(5))
    np.testing.assert_allclose(columns[:3, :3], TextKernel().matrix(items), atol=1e-6)
    np.testing.assert_allclose(
        columns,
        FrozenMeasure(list(items.texts), list(items.texts)).kernel(
            [*items.texts, "violin bow", "red violin"], [*items.texts, "violin bow", "red violin"]
        ),
        atol=1e-6,
    )
