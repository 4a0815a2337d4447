import numpy as np
import pytest
from scipy.sparse import csr_matrix

from llm_rerank.models.scoring import retrieve
from llm_rerank.models.semantic.cache import CachedEncoder
from llm_rerank.models.semantic.encoder import SentenceEncoder
from llm_rerank.models.semantic.index import ItemIndex
from llm_rerank.models.semantic.similarity import SemanticScorer
from llm_rerank.models.semantic.vector_scores import greatest_similarity
from llm_rerank.models.semantic.whitening import Whitening
from llm_rerank.storage import write_arrays
from llm_rerank.types import CatalogueScorer, DataError, NotFittedError, Ragged, StorageError
from tests.planted import cases_of, items_of, planted_shop
from tests.scorer_suite import check_scorer, longer_items

LN2 = float(np.log(2))


class Plane:
    """Texts that say where they lie: "0.6 0.8"; a blank one lies nowhere."""

    embedding_size = 2
    fingerprint = "plane"

    def encode(self, inputs):
        places = [[float(part) for part in text.split()] or [0, 0] for text in inputs]
        return np.array(places, dtype=np.float32).reshape(-1, 2)


@pytest.fixture(scope="module")
def encoder():
    return CachedEncoder(SentenceEncoder())


def plane_scorer(**settings):
    """Items: 0 east, 1 north, 2 between, 3 without text, 4 west."""
    items = items_of(["1 0", "0 1", "0.6 0.8", "", "-1 0"])
    return SemanticScorer(Plane(), whiten=False, **settings).fit(None, items, seed=0)


def with_queries(cases, queries):
    from dataclasses import replace

    return replace(cases, queries=queries)


# --- arithmetic ------------------------------------------------------------------------------------------------------


def test_user_is_the_decayed_mean():
    # history east (age 1: 1/2), north (age 0: 1): user = (.5, 1) / √1.25 = (.4472, .8944)
    scores = plane_scorer(decay=LN2).score(cases_of([[0, 1]], [[0, 1, 2, 4]]))
    np.testing.assert_allclose(scores, [0.4472136, 0.8944272, 0.6 * 0.4472136 + 0.8 * 0.8944272, -0.4472136], atol=1e-6)


def test_great_decay_is_similarity_to_the_last():
    scores = plane_scorer(decay=50).score(cases_of([[1, 0]], [[0, 1, 2]]))
    np.testing.assert_allclose(scores, [1, 0, 0.6], atol=1e-6)


def test_a_visit_is_one_age_however_many_items_it_has():
    # both at one time: user = (1, 1) / √2
    scores = plane_scorer(decay=LN2).score(cases_of([[0, 1]], [[0, 1]], times=[[5, 5]]))
    np.testing.assert_allclose(scores, [0.7071068, 0.7071068], atol=1e-6)


def test_greatest_similarity_joins():
    # shares: east 1/2, north 1. greatest: to east max(1/2 · 1, 0) = .5, to north 1, between max(.5 · .6, .8) = .8,
    # west max(−1/2, 0) = 0; then (mean + 3 · greatest) / 4
    scores = plane_scorer(decay=LN2, greatest_weight=3.0).score(cases_of([[0, 1]], [[0, 1, 2, 4]]))
    mean = np.array([0.4472136, 0.8944272, 0.9838699, -0.4472136])
    np.testing.assert_allclose(scores, (mean + 3 * np.array([0.5, 1, 0.8, 0])) / 4, atol=1e-6)


def test_dislikes_are_subtracted_and_are_never_the_greatest():
    cases = cases_of([[0, 1]], [[0, 1, 2]])
    cases.history_weights[:] = [-1, 1]
    # user = (−1, 1) / √2
    np.testing.assert_allclose(plane_scorer(decay=0).score(cases), [-0.7071068, 0.7071068, 0.2 * 0.7071068], atol=1e-6)
    both = plane_scorer(decay=0, greatest_weight=1.0).score(cases)
    np.testing.assert_allclose(both, np.array([-0.7071068 + 0, 0.7071068 + 1, 0.1414214 + 0.8]) / 2, atol=1e-6)
    cases.history_weights[:] = -1
    np.testing.assert_allclose(
        plane_scorer(decay=0, greatest_weight=1.0).score(cases)[:2], [-0.3535534, -0.3535534], atol=1e-6
    )


@pytest.mark.parametrize("whiten", [False, True])
def test_a_blank_text_says_nothing_whatever_the_encoder_makes_of_it(whiten):
    class Talkative(Plane):
        def encode(self, inputs):
            return super().encode([text if text.strip() else "0.8 -0.6" for text in inputs])

    texts = ["1 0", "0 1", "0.6 0.8", "", "  ", "-1 0"]
    ours, silent = (
        SemanticScorer(encoder, whiten=whiten, decay=0).fit(None, items_of(texts), seed=0)
        for encoder in (Talkative(), Plane())
    )
    cases = with_queries(cases_of([[0, 3, 4, 2], [3], []], [[0, 1, 2, 3, 4, 5]] * 3), ["", "", " "])
    scores = ours.score(cases)
    assert np.isnan(scores.reshape(3, 6)).tolist() == [[False] * 3 + [True] * 2 + [False], [True] * 6, [True] * 6]
    np.testing.assert_array_equal(scores, silent.score(cases))
    blank = ours.score_texts(cases_of([[0]], [[0, 0]]), [" ", "1 0"])
    assert np.isnan(blank).tolist() == [True, False]
    grown = ours.grown(items_of([*texts, " "]), np.array([6]))
    assert np.isnan(grown.score(cases_of([[0]], [[6]]))).all()


@pytest.mark.parametrize("n_between", [0, 80, 1500])
def test_a_history_does_not_fade_away_behind_visits_that_say_nothing(n_between):
    between = [3, -1] * n_between  # without text, and not in the catalogue
    scores = plane_scorer(decay=LN2 / 4, greatest_weight=1.0).score(cases_of([[0, 1, *between]], [[0, 1, 2, 4]]))
    np.testing.assert_allclose(
        scores, plane_scorer(decay=LN2 / 4, greatest_weight=1.0).score(cases_of([[0, 1]], [[0, 1, 2, 4]])), atol=1e-6
    )


def test_searches_join_the_history():
    cases = cases_of([[0], [0], []], [[0, 1]] * 3)
    # u((1, 0) + 1 · (0, 1)) = (.7071, .7071); without a search east; a search alone is the user
    scores = plane_scorer().score(with_queries(cases, ["0 1", "", "0 1"]))
    np.testing.assert_allclose(scores, [0.7071068, 0.7071068, 1, 0, 0, 1], atol=1e-6)
    heavy = plane_scorer(query_weight=3.0).score(with_queries(cases, ["0 1", "", ""]))
    np.testing.assert_allclose(heavy[:2], np.array([1, 3]) / np.sqrt(10), atol=1e-6)
    assert np.isnan(heavy[4:]).all()
    off = plane_scorer(query_weight=0).score(with_queries(cases, ["0 1", "", "0 1"]))
    np.testing.assert_allclose(off, [1, 0, 1, 0, np.nan, np.nan], atol=1e-6)


def test_the_newest_search_counts_most():
    # older north 1/2, newest east 1: (1, .5) / √1.25
    scores = plane_scorer(decay=LN2).score(with_queries(cases_of([[]], [[0, 1]]), ["0 1; 1 0"]))
    np.testing.assert_allclose(scores, [0.8944272, 0.4472136], atol=1e-6)


@pytest.mark.parametrize("greatest_weight", [0.0, 0.5])
def test_what_cannot_be_scored_is_nan(greatest_weight):
    scorer = plane_scorer(greatest_weight=greatest_weight)
    scores = scorer.score(cases_of([[0], [], [3], [3, 0]], [[0, 3, -1, 5, 99]] * 4)).reshape(4, 5)
    assert np.isnan(scores[:, 1:]).all(), "no text, unknown"
    assert np.isnan(scores[[1, 2]]).all(), "no history, a history without text"
    np.testing.assert_allclose(scores[[0, 3], 0], 1, atol=1e-6)
    table = scorer.score_catalogue(cases_of([[0], []], [[], []]))
    assert np.isnan(table).tolist() == [[False, False, False, True, False], [True] * 5]


def test_history_without_text_takes_no_part():
    # the newest item says nothing: east alone is the history and its greatest weight
    scores = plane_scorer(decay=LN2, greatest_weight=1.0).score(cases_of([[0, 3]], [[0, 2, 4]]))
    np.testing.assert_allclose(scores, [1, 0.6, -1], atol=1e-6)


@pytest.mark.parametrize("greatest_weight", [0.0, 0.7])
def test_given_texts_score_as_items_that_have_them(encoder, greatest_weight, tmp_path):
    shop = planted_shop(n_users=40, n_candidates=6)
    scorer = SemanticScorer(encoder, greatest_weight=greatest_weight).fit(None, shop.items, seed=0)
    cases = with_queries(shop.cases, ["", "a bike pump", *shop.cases.queries[2:]])
    own = [str(shop.items.texts[code]) for code in cases.candidates.values]
    expected = scorer.score(cases)
    np.testing.assert_allclose(scorer.score_texts(cases, own), expected, atol=2e-6)
    # whitened as at the fit, and in place of the codes, which are not read
    nobody = cases.with_candidates(Ragged(np.full_like(cases.candidates.values, -1), cases.candidates.offsets))
    np.testing.assert_allclose(scorer.score_texts(nobody, own), expected, atol=2e-6)
    scorer.save(tmp_path)
    np.testing.assert_allclose(SemanticScorer.load(tmp_path).score_texts(cases, own), expected, atol=2e-6)


def test_a_given_text_is_scored_as_it_says():
    scorer = plane_scorer(decay=LN2)
    cases = cases_of([[0, 1], []], [[0, 0, 0], [0]])
    # user = (.5, 1) / √1.25: east .4472, north .8944; blank, and no history: no opinion
    scores = scorer.score_texts(cases, ["1 0", "0 1", " ", "1 0"])
    np.testing.assert_allclose(scores, [0.4472136, 0.8944272, np.nan, np.nan], atol=1e-6)


def test_texts_cannot_be_scored_by_another_encoder(encoder, tmp_path):
    scorer = plane_scorer()
    scorer.save(tmp_path)
    loaded = SemanticScorer.load(tmp_path)
    case = cases_of([[0]], [[1]])
    with pytest.raises(StorageError, match="an encoder of your own"):
        loaded.score_texts(case, ["1 0"])
    loaded.encoder = encoder
    with pytest.raises(StorageError, match="vectors would not match"):
        loaded.score_texts(case, ["1 0"])
    loaded.encoder = Plane()
    np.testing.assert_allclose(loaded.score_texts(case, ["1 0"]), [1.0], atol=1e-6)


def test_greatest_similarity_by_brute_force():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 5)).astype(np.float32)
    dense = np.where(rng.random((12, 30)) < 0.2, rng.normal(size=(12, 30)), 0).astype(np.float32)
    dense[3] = 0
    columns = np.array([4, 4, 29, 0, 11])
    expected = np.zeros((12, 5))
    for row in range(12):
        liked = np.flatnonzero(dense[row] > 0)
        for place, column in enumerate(columns):
            values = [dense[row, j] / dense[row].max() * (vectors[j] @ vectors[column]) for j in liked]
            expected[row, place] = max(values, default=0)
    np.testing.assert_allclose(greatest_similarity(csr_matrix(dense), vectors, vectors[columns]), expected, atol=1e-5)


# --- whitening -------------------------------------------------------------------------------------------------------


def test_whitening_makes_directions_equal():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(20_000, 4)) * [3, 1, 0.5, 0.1] + [5, 0, 0, 0]).astype(np.float32)
    whitening = Whitening.fit(vectors)
    # with s = 4 / 20,004 the covariance of (v − mean) · matrix is λ / ((1 − s) λ + s mean λ), near 1 for each λ
    values = np.linalg.eigvalsh(np.cov(vectors.astype(float).T, bias=True))
    s = 4 / 20_004
    spread = np.cov(((vectors.astype(float) - whitening.mean) @ whitening.matrix).T, bias=True)
    np.testing.assert_allclose(spread, np.diag(values / ((1 - s) * values + s * values.mean())), atol=1e-5)
    assert np.diag(spread).min() > 0.95
    np.testing.assert_allclose(np.linalg.norm(whitening.apply(vectors), axis=1), 1, atol=1e-5)


def test_few_texts_are_whitened_little():
    # two vectors on one line: λ = (0, 1), s = 2 / 4: matrix scales by 1 / √(.5 λ + .5 · .5)
    whitening = Whitening.fit(np.array([[1, 1], [1, -1]], dtype=np.float32))
    np.testing.assert_allclose(whitening.mean, [1, 0])
    scales = np.linalg.norm(whitening.matrix, axis=0)
    np.testing.assert_allclose(sorted(scales), [1 / np.sqrt(0.75), 1 / np.sqrt(0.25)], rtol=1e-6)


def test_whitening_keeps_blank_texts_out():
    vectors = np.array([[0.6, 0.8], [0, 0], [0.8, 0.6], [0, 0]], dtype=np.float32)
    whitening = Whitening.fit(vectors)
    np.testing.assert_allclose(whitening.mean, [0.7, 0.7])
    np.testing.assert_array_equal(whitening.apply(vectors)[[1, 3]], 0)
    same = np.tile(np.array([[0.6, 0.8]], dtype=np.float32), (5, 1))
    np.testing.assert_allclose(Whitening.fit(same).apply(same), same, atol=1e-6)
    np.testing.assert_allclose(Whitening.fit(vectors[:1]).apply(vectors[:1]), vectors[:1], atol=1e-6)


# --- the scorer on real text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "floor"),
    [({}, 0.75), ({"whiten": False}, 0.95), ({"whiten": False, "greatest_weight": 1.0}, 0.85)],
)
def test_suite(encoder, tmp_path, settings, floor):
    scorer = check_scorer(lambda: SemanticScorer(encoder, **settings), tmp_path, quality_floor=floor, new_items="known")
    assert isinstance(scorer, CatalogueScorer)


def test_items_that_nobody_took_are_scored(encoder):
    shop = planted_shop()
    scorer = SemanticScorer(encoder).fit(shop.past, shop.items, seed=0)
    table = scorer.score_catalogue(shop.cases.take(np.arange(40)))
    own = shop.item_themes[shop.cold] == shop.user_themes[:40, None]
    cold = table[:, shop.cold]
    auc = (cold[own][:, None] > cold[~own]).mean()
    assert auc > 0.95, auc


def test_retrieval_through_the_index_is_the_catalogue_in_order(encoder):
    shop = planted_shop()
    exact = SemanticScorer(encoder).fit(shop.past, shop.items, seed=0)
    cases = shop.cases.take(np.arange(25))
    found = exact.retrieve(cases, 12)
    np.testing.assert_array_equal(found.lengths, 12)
    np.testing.assert_array_equal(found.values, retrieve(exact, cases, 12).values)
    joined = SemanticScorer(encoder, greatest_weight=0.5).fit(shop.past, shop.items, seed=0)
    near, truth = joined.retrieve(cases, 12), retrieve(joined, cases, 12)
    shared = [np.isin(truth[row], near[row]).mean() for row in range(25)]
    assert np.mean(shared) > 0.95


def test_retrieval_leaves_out_what_says_nothing():
    found = plane_scorer().retrieve(cases_of([[0], [], [1, 3]], [[]] * 3), 10)
    assert found.lengths.tolist() == [4, 0, 4]
    assert found[0].tolist() == [0, 2, 1, 4]
    assert set(found[2].tolist()) == {0, 1, 2, 4}
    with pytest.raises(DataError, match="k is 0"):
        plane_scorer().retrieve(cases_of([[0]], [[]]), 0)


def test_loaded_model_finds_its_encoder_when_a_search_comes(encoder, tmp_path):
    shop = planted_shop(n_users=16)
    scorer = SemanticScorer(encoder).fit(shop.past, shop.items, seed=0)
    scorer.save(tmp_path)
    loaded = SemanticScorer.load(tmp_path)
    np.testing.assert_allclose(loaded.score(shop.cases), scorer.score(shop.cases), atol=1e-6)
    assert loaded.encoder is None, "items' vectors are on disk: nothing to encode"
    searching = with_queries(shop.cases, ["a rod for trout; landing net"] * 16)
    np.testing.assert_allclose(loaded.score(searching), scorer.score(searching), atol=1e-6)
    best = loaded.retrieve(with_queries(cases_of([[]], [[]]), ["rod and line to catch trout"]), 3)
    assert (shop.item_themes[best[0]] == 7).all(), "fishing"


def test_loaded_model_refuses_another_encoder(tmp_path):
    plane_scorer().save(tmp_path)
    loaded = SemanticScorer.load(tmp_path)
    searching = with_queries(cases_of([[0]], [[0, 1]]), ["0 1"])
    with pytest.raises(StorageError, match="hand it over"):
        loaded.score(searching)
    loaded.encoder = SentenceEncoder(max_tokens=8)
    with pytest.raises(StorageError, match="its vectors would not match"):
        loaded.score(searching)
    loaded.encoder = Plane()
    np.testing.assert_allclose(loaded.score(searching), [0.7071068, 0.7071068], atol=1e-6)


def test_damaged_files_are_named(tmp_path):
    plane_scorer().save(tmp_path)
    for name in ("semantic.json", "whitening.safetensors", "vectors.safetensors"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        with pytest.raises(StorageError, match=name):
            SemanticScorer.load(tmp_path)
        (tmp_path / name).write_bytes(content)
    loaded = SemanticScorer.load(tmp_path).score(cases_of([[0]], [[0, 1, 2, 3, 4]]))
    np.testing.assert_allclose(loaded, [1, 0, 0.6, np.nan, -1], atol=1e-6)


@pytest.mark.parametrize("is_graph", [False, True])
def test_a_folder_of_before_with_the_vectors_in_an_index_is_read(tmp_path, is_graph):
    import faiss

    scorer = plane_scorer()
    scorer.save(tmp_path)
    (tmp_path / "vectors.safetensors").unlink()
    # the item without text (3) was not in the index, the ones after it keep their codes
    codes = np.array([0, 1, 2, 4])
    index = ItemIndex(2, flat_limit=0 if is_graph else 9).add(scorer._vectors[codes])
    arrays = {"codes": codes, "mean": np.zeros(2, np.float32), "matrix": np.eye(2, dtype=np.float32)}
    write_arrays(tmp_path / "whitening.safetensors", arrays, {"n_items": 5})
    with pytest.raises(StorageError, match="index.faiss is missing"):
        SemanticScorer.load(tmp_path)
    faiss.write_index(index._index, str(tmp_path / "index.faiss"))
    loaded = SemanticScorer.load(tmp_path).score(cases_of([[0]], [[0, 1, 2, 3, 4]]))
    np.testing.assert_allclose(loaded, [1, 0, 0.6, np.nan, -1], atol=1e-6)


def test_saving_growing_and_scoring_build_no_index(encoder, tmp_path, monkeypatch):
    """Above 200,000 items it is a graph that takes minutes, and only ``retrieve`` reads it."""

    def built(self, *arguments, **settings):
        raise AssertionError("an index was built")

    shop = planted_shop(n_users=16)
    scorer = SemanticScorer(encoder).fit(shop.past, shop.items, seed=0)
    found = scorer.retrieve(shop.cases, 5)
    with monkeypatch.context() as patched:
        patched.setattr(ItemIndex, "__init__", built)
        scorer.save(tmp_path)
        loaded = SemanticScorer.load(tmp_path)
        items = longer_items(shop.items, ["a rod to catch trout. fishing"])
        assert loaded.grown(items, np.array([160])).score_catalogue(shop.cases).shape == (16, 161)
        (tmp_path / "grown").mkdir()
        loaded.grown(items, np.array([160])).save(tmp_path / "grown")
    assert sorted(path.name for path in (tmp_path / "grown").iterdir()) == [
        "semantic.json", "vectors.safetensors", "whitening.safetensors"
    ]  # fmt: skip
    np.testing.assert_array_equal(loaded.retrieve(shop.cases, 5).values, found.values)


def test_misuse_is_named():
    with pytest.raises(DataError, match="decay is -1"):
        SemanticScorer(decay=-1)
    with pytest.raises(DataError, match="greatest_weight is nan"):
        SemanticScorer(greatest_weight=float("nan"))
    with pytest.raises(NotFittedError, match="call fit or load first"):
        SemanticScorer().score(cases_of([[0]], [[0]]))
    with pytest.raises(DataError, match="none of the 2 items has a text; render them first"):
        SemanticScorer(Plane()).fit(None, items_of(["", " "]), seed=0)
    empty = cases_of([[0]], [[0]]).with_candidates(Ragged.empty(1))
    assert plane_scorer().score(empty).shape == (0,)


def test_grown_items_are_whitened_as_the_others_and_found_by_the_index(encoder, tmp_path):
    shop = planted_shop(n_users=24)
    scorer = SemanticScorer(encoder).fit(shop.past, shop.items, seed=0)
    scorer.retrieve(shop.cases, 5)
    whitening = scorer._whitening
    items = longer_items(shop.items, ["a rod to catch trout. fishing", "", "espresso in a pot. coffee"])
    new = np.array([160, 161, 162])
    scorer.save(tmp_path)
    for one in (scorer, SemanticScorer.load(tmp_path)):
        grown = one.grown(items, new)
        expected = whitening.apply(encoder.encode(list(items.texts)))
        np.testing.assert_allclose(grown._vectors, expected, atol=1e-6)
        found = grown.retrieve(shop.cases, 20)
        np.testing.assert_array_equal(found.values, retrieve(grown, shop.cases, 20).values)
        assert 160 in found.values and 162 in found.values
    again = grown.grown(
        items.with_texts([*items.texts[:161], "waders for fishing. fishing", items.texts[162]]), new[1:2]
    )
    found = again.retrieve(shop.cases, 20)
    np.testing.assert_array_equal(found.values, retrieve(again, shop.cases, 20).values)
    assert 161 in found.values


def test_a_changed_text_replaces_its_vector_everywhere(encoder):
    shop = planted_shop(n_users=24)
    scorer = SemanticScorer(encoder, whiten=False).fit(shop.past, shop.items, seed=0)
    before = scorer.retrieve(shop.cases, 20)
    texts = list(shop.items.texts)
    texts[3], texts[7] = "a violin with a bow. music", ""
    changed = shop.items.with_texts(texts)
    grown = scorer.grown(changed, np.array([7, 3]))
    fitted = SemanticScorer(encoder, whiten=False).fit(shop.past, changed, seed=0)
    np.testing.assert_allclose(grown.score(shop.cases), fitted.score(shop.cases), atol=1e-6)
    np.testing.assert_array_equal(grown.retrieve(shop.cases, 20).values, fitted.retrieve(shop.cases, 20).values)
    np.testing.assert_array_equal(scorer.retrieve(shop.cases, 20).values, before.values)


def test_a_search_is_encoded_once_and_scores_as_if_anew(monkeypatch):
    class Counting(Plane):
        def __init__(self):
            self.asked = []

        def encode(self, inputs):
            self.asked += list(inputs)
            return super().encode(inputs)

    monkeypatch.setattr("llm_rerank.models.semantic.similarity.MOST_SEARCHES_KEPT", 3)
    cases = cases_of([[0], [1], [], []], [[0, 1, 4]] * 4)
    batches = [["0 1", "0.6 0.8; 0 1", "", "0 1; 0 1"], ["0 1; -1 0", "0.6 0.8", "1 0", "0 -1"], ["0 1", "1 0", "", ""]]
    scorer = plane_scorer(decay=0.5)
    scorer.encoder = counting = Counting()
    for queries in batches:
        fresh = plane_scorer(decay=0.5)
        np.testing.assert_array_equal(
            scorer.score(with_queries(cases, queries)), fresh.score(with_queries(cases, queries))
        )
    assert counting.asked[:2] == ["0 1", "0.6 0.8"]
    assert len(counting.asked) < 9  # 14 searches
    assert len(scorer._searched) <= 3
    assert not any(b"0.6" in key for key in scorer._searched)
    other = items_of(["0 1", "1 0", "0.6 0.8", "", "-1 0"])
    whitened = SemanticScorer(Plane(), decay=0.5).fit(None, other, seed=0)
    scorer.whiten = True
    scorer.fit(None, other, seed=0)
    np.testing.assert_array_equal(
        scorer.score(with_queries(cases, batches[2])), whitened.score(with_queries(cases, batches[2]))
    )
