import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch

from llm_rerank.models.cross_encoder import reference
from llm_rerank.models.cross_encoder import scorer as scorer_module
from llm_rerank.models.cross_encoder.item_table import build_table
from llm_rerank.models.cross_encoder.reference import reference_score
from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder
from llm_rerank.models.semantic.cache import CachedEncoder
from llm_rerank.models.semantic.encoder import SentenceEncoder
from llm_rerank.models.semantic.similarity import SemanticScorer
from llm_rerank.types import DataError, NotFittedError, Ragged, StorageError
from tests.planted import cases_of, items_of, planted_shop
from tests.scorer_suite import check_scorer
from tests.tiny_encoder import save_tiny_encoder

HISTORIES = [
    ["a red bicycle", "stainless steel water bottle for hiking"],
    [],
    ["温度计 电子", "digital thermometer probe", "", "infrared thermometer gun", "bike helmet"],
    [f"spare part number {n}" for n in range(30)],
]
CANDIDATES = [
    ["mountain bike", "bottle of water", "", "thermometer"],
    ["mountain bike", "自行车"],
    ["thermometer " * 50, "probe", "bike", "a red bicycle"],
    [],
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp("tiny"))


def model_of(folder, *, trained=False, **settings):
    model = HistoryCrossEncoder.from_encoder(
        folder, **{"device": "cpu", "dtype": "float32", "item_tokens": 16, "history_length": 8, **settings}
    )
    return as_if_trained(model) if trained else model


def as_if_trained(model):
    """Open the gates and give every part weight: an untrained head could not tell a right mask from a wrong one."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            scale = 0.02 if name.startswith("layers") else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device) * scale)
        model.network.decay.clamp_(0.1, 1.0)
    model.network = model.network
    return model


@pytest.fixture
def float32_states(monkeypatch):
    monkeypatch.setattr(scorer_module, "build_table", partial(build_table, state_dtype=torch.float32))


def predict(model, histories=HISTORIES, candidates=CANDIDATES):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.predict(histories, candidates)


def by_reference(model, histories, candidates):
    """Every pair alone through the slow twin, from the same lower states and vectors."""
    texts = list(dict.fromkeys(text for row in [*histories, *candidates] for text in row))
    states = {}
    for taken, packing, block in model.reader.batches(texts):
        for place, row in enumerate(taken):
            states[texts[row]] = block[packing.offsets[place] : packing.offsets[place + 1]]
    vectors = dict(zip(texts, torch.from_numpy(model.encoder.encode(texts)), strict=True))
    shape = model.network.shape
    scores = []
    for history, candidate_texts in zip(histories, candidates, strict=True):
        newest = history[-model.history_length :]
        # a text of blanks is no part of a history, but its visit counts
        past = [(text, len(newest) - 1 - place) for place, text in enumerate(newest) if text.strip()]
        scores.append(
            [
                reference_score(
                    model.network.state_dict(),
                    shape.n_heads,
                    shape.n_upper,
                    shape.norm_epsilon,
                    states[text],
                    [states[item] for item, _ in past],
                    [age for _, age in past],
                    [1.0] * len(past),
                    vectors[text],
                    [vectors[item] for item, _ in past],
                    cross_attention=model.cross_attention,
                )
                for text in candidate_texts
            ]
        )
    return scores


def greatest_difference(model):
    fast, slow = predict(model), by_reference(model, HISTORIES, CANDIDATES)
    assert [len(row) for row in fast] == [len(row) for row in slow]
    return max(abs(a - b) for f, s in zip(fast, slow, strict=True) for a, b in zip(f, s, strict=True))


@pytest.mark.parametrize("cross_attention", [False, True])
def test_fast_agrees_with_the_slow_twin(tiny, float32_states, cross_attention):
    model = model_of(tiny, trained=True, cross_attention=cross_attention)
    assert np.concatenate(predict(model)).std() > 0.1  # there is something to agree on
    assert greatest_difference(model) < 1e-4


@pytest.mark.parametrize("mask", ["own_mask", "history_mask"])
def test_a_broken_mask_is_noticed(tiny, float32_states, monkeypatch, mask):
    model = model_of(tiny, trained=True, cross_attention=True)
    right = getattr(reference, mask)

    def broken(lengths):
        wrong = right(lengths).clone()
        if mask == "own_mask":
            wrong[0, lengths[0] :] = True  # the candidate's first token looks into the history, ungated
        else:
            wrong[-1, 0] = True  # the reader's history has one token of its own text in it
        return wrong

    monkeypatch.setattr(reference, mask, broken)
    assert greatest_difference(model) > 1e-3


def test_lower_states_are_those_of_the_pretrained_network(tiny):
    """Packed and cut reading against transformers' own forward, one text at a time."""
    from transformers import AutoModel, AutoTokenizer

    model = model_of(tiny, n_upper=2)
    bert, tokenizer = AutoModel.from_pretrained(tiny).eval(), AutoTokenizer.from_pretrained(tiny)
    texts = ["a bike", "温度计 probe " * 30, "x", ""]
    for taken, packing, states in model.reader.batches(texts):
        for place, row in enumerate(taken):
            tokens = tokenizer(texts[row], truncation=True, max_length=16, return_tensors="pt")
            with torch.no_grad():
                own = bert(**tokens, output_hidden_states=True).hidden_states[2][0]
            found = states[packing.offsets[place] : packing.offsets[place + 1]]
            torch.testing.assert_close(found, own, atol=1e-4, rtol=0)


@pytest.mark.parametrize("cross_attention", [False, True])
def test_untrained_it_ranks_as_the_sentence_encoders_similarity(tiny, cross_attention):
    shop = planted_shop(n_users=60)
    encoder = SentenceEncoder(tiny, device="cpu", max_tokens=16)
    model = model_of(tiny, cross_attention=cross_attention, history_length=20).fit(shop.past, shop.items, seed=0)
    similarity = SemanticScorer(encoder, decay=0.3, whiten=False).fit(shop.past, shop.items, seed=0)
    theirs, ours = similarity.score(shop.cases), model.score(shop.cases)
    for row in range(len(shop.cases)):
        part = slice(*shop.cases.candidates.offsets[row : row + 2])
        np.testing.assert_array_equal(np.argsort(-ours[part]), np.argsort(-theirs[part]))


def test_the_similarity_is_the_formula(tiny):
    """Σ w exp(−.3 age) cos / Σ w exp(−.3 age), by hand, with weights."""
    model = model_of(tiny)
    vectors = SentenceEncoder(tiny, device="cpu", max_tokens=16).encode(["tent", "lamp", "camp stove"])
    recency = np.array([2.0 * np.exp(-0.3), 0.5])
    expected = (recency @ (vectors[:2] @ vectors[2])) / recency.sum()
    (scores,) = model.predict([["tent", "lamp"]], [["camp stove"]], weights=[[2.0, 0.5]])
    assert scores[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("cross_attention", [False, True])
def test_scorer_suite(tmp_path, cross_attention):
    encoder = CachedEncoder(SentenceEncoder(device="cpu", max_tokens=16))
    settings = {"device": "cpu", "dtype": "float32", "item_tokens": 16, "cross_attention": cross_attention}
    check_scorer(lambda: HistoryCrossEncoder(encoder, **settings), tmp_path, quality_floor=0.5)


def test_trained_weights_pass_the_suite_too(tiny, tmp_path):
    shop = planted_shop(n_users=40)
    model = model_of(tiny, trained=True, cross_attention=True).fit(shop.past, shop.items, seed=0)
    whole = model.score(shop.cases)
    alone = [
        model.score(shop.cases.take(np.array([3])).with_candidates(Ragged.from_lists([[code]])))[0]
        for code in shop.cases.candidates[3]
    ]
    part = slice(*shop.cases.candidates.offsets[3:5])
    np.testing.assert_allclose(alone, whole[part], atol=1e-5)
    (tmp_path / "m").mkdir()
    model.save(tmp_path / "m")
    script = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder\n"
        "from tests.planted import planted_shop\n"
        "model = HistoryCrossEncoder.load(Path(sys.argv[1]), device='cpu')\n"
        "np.save(sys.argv[2], model.score(planted_shop(n_users=40).cases))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "m"), str(tmp_path / "out.npy")], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), whole, atol=1e-6)


def test_float16_states_keep_the_top(tiny, monkeypatch):
    rng = np.random.default_rng(0)
    shop = planted_shop(n_users=100)
    exact = model_of(tiny, trained=True, cross_attention=True)
    titles = list(shop.items.texts)
    histories = [[titles[c] for c in row] for row in (shop.cases.history[u] for u in range(50))]
    lists = [[titles[c] for c in rng.choice(len(titles), 60, replace=False)] for _ in range(50)]
    with monkeypatch.context() as patch:
        patch.setattr(scorer_module, "build_table", partial(build_table, state_dtype=torch.float32))
        right = predict(exact, histories, lists)
    half = HistoryCrossEncoder.from_encoder(
        tiny, device="cpu", dtype="float32", item_tokens=16, history_length=8, cross_attention=True
    )
    half.network = exact.network
    near = predict(half, histories, lists)
    same = [np.argsort(-a)[:10] == np.argsort(-b)[:10] for a, b in zip(right, near, strict=True)]
    assert np.mean(same) >= 0.99


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("cross_attention", [False, True])
def test_the_gpu_gives_the_cpus_scores(tiny, cross_attention):
    scores = {}
    for device in ("cpu", "cuda"):
        model = model_of(tiny, device=device, cross_attention=cross_attention)
        scores[device] = np.concatenate(predict(as_if_trained(model)))
    np.testing.assert_allclose(scores["cuda"], scores["cpu"], atol=1e-3)


# ------------------------------------------------------------------- bad input


def test_lists_that_do_not_match(tiny):
    model = model_of(tiny)
    with pytest.raises(DataError, match="histories has 1 rows and candidates 2"):
        model.predict([["a"]], [["b"], ["c"]])
    with pytest.raises(DataError, match="weights do not match"):
        model.predict([["a"]], [["b"]], weights=[[1.0, 2.0]])
    with pytest.raises(DataError, match="a text is None"):
        model.predict([["a"]], [[None]])
    assert model.predict([], []) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"history_length": 0}, "history_length is 0"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"n_upper": 4}, "n_upper is 4"),
        ({"item_tokens": 65}, "item_tokens is 65"),
        ({"device": "abacus"}, "device is 'abacus'"),
    ],
)
def test_impossible_settings(tiny, settings, message):
    with pytest.raises(DataError, match=message):
        model_of(tiny, **settings).predict([["a"]], [["b"]])


def test_not_fitted_and_nothing_to_read(tiny):
    with pytest.raises(NotFittedError, match="call fit or load"):
        model_of(tiny).score(cases_of([[0]], [[1]]))
    with pytest.raises(DataError, match="none of the 2 items has a text"):
        model_of(tiny).fit(None, items_of(["", " "]), seed=0)


def test_what_is_too_long_is_cut_with_one_warning_that_counts(tiny):
    model = model_of(tiny)
    history = [f"item {n}" for n in range(10_000)]
    with pytest.warns(UserWarning) as caught:
        (scores,) = model.predict([history], [["long text " * 10_000, "item 9999", ""]])
    said = [str(warning.message) for warning in caught]
    assert len(said) == 2
    assert any("1 of 1 histories are longer than 8 items" in line for line in said)
    assert any("1 of 10 texts are longer than 16 tokens" in line for line in said)
    (newest,) = predict(model, [history[-8:]], [["long text " * 10_000, "item 9999", ""]])
    np.testing.assert_allclose(scores, newest, atol=1e-6)
    assert scores[2] == 0.0


def test_a_hundred_thousand_candidates_are_read_in_pieces(tiny):
    shop = planted_shop(n_users=4)
    model = model_of(tiny, trained=True).fit(shop.past, shop.items, seed=0)
    many = np.random.default_rng(0).integers(0, len(shop.items), 100_000)
    scores = model.score(shop.cases.take(np.array([0])).with_candidates(Ragged.from_lists([many])))
    once = model.score(shop.cases.take(np.array([0])).with_candidates(Ragged.from_lists([np.arange(len(shop.items))])))
    np.testing.assert_allclose(scores, once[many], atol=1e-5)


def test_another_encoder_than_then_is_an_error(tiny, tmp_path):
    shop = planted_shop(n_users=4)
    model = model_of(tiny).fit(shop.past, shop.items, seed=0)
    (tmp_path / "m").mkdir()
    model.save(tmp_path / "m")
    (tmp_path / "o").mkdir()
    other = SentenceEncoder(save_tiny_encoder(tmp_path / "o", seed=1), device="cpu", max_tokens=16)
    with pytest.raises(StorageError, match="fingerprint"):
        HistoryCrossEncoder.load(tmp_path / "m", encoder=other, device="cpu")


# ------------------------------------------------------------------- states on disk


def test_states_come_from_the_cache_and_nothing_is_read_again(tiny, tmp_path):
    texts = ["tent", "lamp", "camp stove"]
    first = model_of(tiny, trained=True, cache_folder=tmp_path)
    with_cache = predict(first, [texts[:2]], [texts])
    again = model_of(tiny, trained=True, cache_folder=tmp_path)
    again.reader._read = None  # reading would raise
    np.testing.assert_array_equal(predict(again, [texts[:2]], [texts])[0], with_cache[0])
    without = predict(model_of(tiny, trained=True), [texts[:2]], [texts])
    np.testing.assert_allclose(with_cache[0], without[0], atol=2e-3)  # float16
    assert "3 texts of about" in first.reader.size_in_words(texts)


def test_a_cache_of_other_weights_is_not_used(tiny, tmp_path):
    (tmp_path / "o").mkdir()
    other = save_tiny_encoder(tmp_path / "o", seed=1)
    predict(model_of(other, cache_folder=tmp_path / "c"), [["tent"]], [["lamp"]])
    model = model_of(tiny, trained=True, cache_folder=tmp_path / "c")
    assert len(model.reader.cache) == 0
    with_cache = predict(model, [["tent"]], [["lamp"]])[0]
    np.testing.assert_allclose(with_cache, predict(model_of(tiny, trained=True), [["tent"]], [["lamp"]])[0], atol=2e-3)
