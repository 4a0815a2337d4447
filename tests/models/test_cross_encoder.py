import json
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_rerank.models.cross_encoder import reference, scoring, text_table
from llm_rerank.models.cross_encoder import scorer as scorer_module
from llm_rerank.models.cross_encoder.history_encoder import HistoryNetwork, NetworkShape
from llm_rerank.models.cross_encoder.item_table import COLUMNS, ItemTable, build_table
from llm_rerank.models.cross_encoder.reference import reference_score
from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder
from llm_rerank.models.semantic.cache import CachedEncoder
from llm_rerank.models.semantic.encoder import SentenceEncoder
from llm_rerank.models.semantic.similarity import SemanticScorer
from llm_rerank.types import DataError, NotFittedError, Ragged, StorageError
from tests.planted import cases_of, items_of, planted_shop
from tests.scorer_suite import check_scorer, longer_items
from tests.tiny_encoder import save_tiny_encoder

HISTORIES = [
    ["a red bicycle", "stainless steel water bottle for hiking", ""],
    [],
    ["温度计 电子", "digital thermometer probe", "", "infrared thermometer gun", "bike helmet"],
    [f"spare part number {n}" for n in range(30)],
    ["bike helmet"],
]
WEIGHTS = [[2.0, 0.5, 1.0], [], [0.3, 1.5, 1.0, 4.0, 0.7], [1 + 0.1 * n for n in range(30)], [1.0]]
CANDIDATES = [
    ["mountain bike", "bottle of water", "", "thermometer"],
    ["mountain bike", "自行车"],
    ["thermometer " * 50, "probe", "bike", "a red bicycle"],
    ["spare part number 25", "bike"],
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


def predict(model, histories=HISTORIES, candidates=CANDIDATES, weights=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.predict(histories, candidates, weights=weights)


def by_reference(model, histories, candidates, weights):
    """Every pair alone through the slow twin, from the same lower states and vectors."""
    texts = list(dict.fromkeys(text for row in [*histories, *candidates] for text in row))
    states = {}
    for taken, packing, block in model.reader.batches(texts):
        for place, row in enumerate(taken):
            states[texts[row]] = block[packing.offsets[place] : packing.offsets[place + 1]]
    vectors = dict(zip(texts, torch.from_numpy(model.encoder.encode(texts)), strict=True))
    shape = model.network.shape
    scores = []
    for history, candidate_texts, given in zip(histories, candidates, weights, strict=True):
        newest, given = history[-model.history_length :], given[-model.history_length :]
        # a text of blanks is no part of a history, but its visit counts
        past = [(text, len(newest) - 1 - place, given[place]) for place, text in enumerate(newest) if text.strip()]
        scores.append(
            [
                reference_score(
                    model.network.state_dict(),
                    shape.n_heads,
                    shape.n_upper,
                    shape.norm_epsilon,
                    states[text],
                    [states[item] for item, _, _ in past],
                    [age for _, age, _ in past],
                    [weight for _, _, weight in past],
                    vectors[text],
                    [vectors[item] for item, _, _ in past],
                    cross_attention=model.cross_attention,
                )
                for text in candidate_texts
            ]
        )
    return scores


def states_of(model, texts):
    """Lower states, texts in the order of length."""
    return torch.cat([states for _, _, states in model.reader.batches(texts)])


def greatest_difference(model):
    fast = predict(model, weights=WEIGHTS)
    slow = by_reference(model, HISTORIES, CANDIDATES, WEIGHTS)
    assert [len(row) for row in fast] == [len(row) for row in slow]
    return max(abs(a - b) for f, s in zip(fast, slow, strict=True) for a, b in zip(f, s, strict=True))


@pytest.mark.parametrize("cross_attention", [False, True])
def test_fast_agrees_with_the_slow_twin(tiny, float32_states, cross_attention):
    model = model_of(tiny, trained=True, cross_attention=cross_attention)
    assert np.concatenate(predict(model)).std() > 0.1  # there is something to agree on
    assert greatest_difference(model) < 1e-4


def test_laid_out_for_a_gpu_the_scores_are_the_same(tiny, float32_states, monkeypatch):
    """Texts of unlike lengths in one rectangle, the padding masked."""
    model = model_of(tiny, trained=True, cross_attention=True)
    monkeypatch.setattr(scoring, "READER_ON_CPU", scoring.READER_ON_GPU)
    assert greatest_difference(model) < 1e-4


@pytest.mark.parametrize(("dtype", "most"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_a_reader_in_sixteen_bits_scores_nearly_as_in_float32(tiny, dtype, most):
    exactly = model_of(tiny, trained=True, cross_attention=True)
    exact = np.concatenate(predict(exactly, weights=WEIGHTS))
    model = model_of(tiny, trained=True, cross_attention=True, dtype=dtype, encoder=exactly.encoder)
    difference = np.abs(np.concatenate(predict(model, weights=WEIGHTS)) - exact).max()
    assert 1e-6 < difference < most


def test_the_number_format_is_chosen_anew_where_a_model_is_loaded(tiny, tmp_path, monkeypatch):
    """A model saved on a GPU, whose reader worked in float16 there, must not crawl in float16 on a CPU."""
    on_gpu = model_of(tiny, dtype="auto")
    on_gpu.dtype = "float16"
    on_gpu.save(tmp_path / "auto")
    assert HistoryCrossEncoder.load(tmp_path / "auto", device="cpu").dtype in ("float32", "bfloat16")
    model_of(tiny, dtype="float16").save(tmp_path / "asked")
    assert HistoryCrossEncoder.load(tmp_path / "asked", device="cpu").dtype == "float16"


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


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_untrained_states_are_those_of_the_pretrained_network(tmp_path, kind):
    """Packed and cut reading, lower layers and upper, against transformers' own forward, one text at a time."""
    from transformers import AutoModel, AutoTokenizer

    folder = save_tiny_encoder(tmp_path, kind=kind)
    model = model_of(folder, n_upper=1)
    bert, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = ["a bike", "温度计 probe " * 30, "x", ""]
    for taken, packing, states in model.reader.batches(texts):
        with torch.no_grad():
            features = model.network.read_items(states.clone(), packing)
        for place, row in enumerate(taken):
            tokens = tokenizer(texts[row], truncation=True, max_length=16, return_tensors="pt")
            with torch.no_grad():
                *_, lower, last = (layer[0] for layer in bert(**tokens, output_hidden_states=True).hidden_states)
            found = states[packing.offsets[place] : packing.offsets[place + 1]]
            torch.testing.assert_close(found, lower, atol=1e-4, rtol=0)
            torch.testing.assert_close(features.first[place], last[0], atol=1e-4, rtol=0)
            torch.testing.assert_close(features.mean[place], last.mean(dim=0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("cross_attention", [False, True])
def test_untrained_it_ranks_as_the_sentence_encoders_similarity(tiny, cross_attention):
    shop = planted_shop(n_users=60)
    encoder = SentenceEncoder(tiny, device="cpu", max_tokens=16, dtype="float32")
    model = model_of(tiny, cross_attention=cross_attention, history_length=20).fit(shop.past, shop.items, seed=0)
    similarity = SemanticScorer(encoder, decay=0.3, whiten=False).fit(shop.past, shop.items, seed=0)
    theirs, ours = similarity.score(shop.cases), model.score(shop.cases)
    for row in range(len(shop.cases)):
        part = slice(*shop.cases.candidates.offsets[row : row + 2])
        np.testing.assert_array_equal(np.argsort(-ours[part]), np.argsort(-theirs[part]))


def test_the_similarity_is_the_formula(tiny):
    """Σ w exp(−.3 age) cos / Σ w exp(−.3 age), by hand, with weights."""
    model = model_of(tiny)
    encoder = SentenceEncoder(tiny, device="cpu", max_tokens=16, dtype="float32")
    vectors = encoder.encode(["tent", "lamp", "camp stove"])
    recency = np.array([2.0 * np.exp(-0.3), 0.5])
    expected = (recency @ (vectors[:2] @ vectors[2])) / recency.sum()
    (scores,) = model.predict([["tent", "lamp"]], [["camp stove"]], weights=[[2.0, 0.5]])
    assert scores[0] == pytest.approx(expected, abs=1e-5)


def test_a_history_of_long_ago_is_as_similar_as_a_new_one(tiny):
    """All ages greater by as many visits: the quotient is the same, where exp(−.3 age) is 0 in float32."""
    model = model_of(tiny)
    model.fit(None, items_of(["tent", "lamp", "camp stove", ""]), seed=0)
    scores = [model.score(cases_of([[0, 1, *[3] * n]], [[0, 1, 2]])) for n in (0, 60, 100, 400)]
    for later in scores[1:]:
        np.testing.assert_allclose(later, scores[0], atol=1e-6)
    vectors = model.encoder.encode(["tent", "lamp", "camp stove"])
    recency = np.exp(-np.float64(0.3) * np.array([401, 400]))
    np.testing.assert_allclose(scores[-1], recency @ (vectors[:2] @ vectors.T) / recency.sum(), atol=1e-5)


def test_a_history_of_long_ago_agrees_with_the_slow_twin(tiny, float32_states):
    histories = [["tent", "lamp", *[""] * 120], ["", "camp stove", *[""] * 150]]
    candidates = [["lamp", "tea pot"], ["tent", "camp stove"]]
    model = model_of(tiny, trained=True, history_length=200)
    with torch.no_grad():
        model.network.greatest.fill_(0.0)
        model.network.decay.fill_(0.9)
    model.network = model.network
    weights = [[1.0 + place % 3 for place in range(len(row))] for row in histories]
    slow = by_reference(model, histories, candidates, weights)
    for one, other in zip(predict(model, histories, candidates, weights), slow, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_the_greatest_cosine_is_of_a_real_item_also_where_all_are_below_zero():
    network = HistoryNetwork(NetworkShape(8, 2, 8, 1e-12, n_lower=1, n_upper=1))
    with torch.no_grad():
        network.temperature.fill_(0.0)
        network.greatest.fill_(2.0)
        cosines = torch.tensor([[[-0.5, -0.25, 0.9]], [[0.9, 0.9, 0.9]]])  # one list has one place of padding
        ages, weights = torch.tensor([[1, 0, -1], [-1, -1, -1]]), torch.ones(2, 3)
        assert network.similarity(cosines, ages, weights).tolist() == [[-0.5], [0.0]]


def test_in_bfloat16_only_the_reader_of_pairs_is_rounded(tiny):
    histories, candidates = [["tent", "lamp"]], [["camp stove", "tea pot", "lamp"]]
    encoder = SentenceEncoder(tiny, device="cpu", max_tokens=16, dtype="float32")
    for cross_attention in (False, True):
        models = [
            model_of(tiny, trained=True, cross_attention=cross_attention, dtype=d, encoder=encoder)
            for d in ("float32", "bfloat16")
        ]
        exact, rounded = (model.predict(histories, candidates)[0] for model in models)
        tables = [model._texts._parts[0] for model in models]
        assert all(torch.equal(getattr(tables[0], name), getattr(tables[1], name)) for name in COLUMNS)
        assert models[1]._for_scoring().head_mean.weight.dtype == torch.float32
        difference = np.abs(exact - rounded).max()
        assert 1e-6 < difference < 0.02 if cross_attention else difference == 0


@pytest.mark.parametrize("cross_attention", [False, True])
def test_visits_beyond_those_told_apart_count_as_the_oldest(tiny, cross_attention):
    """Items without text are not read, but their visits age what came before."""
    model = model_of(tiny, trained=True, cross_attention=cross_attention, history_length=3)
    with torch.no_grad():
        model.network.decay.fill_(0.0)  # what is left of age is learned, an entry an age
    model.network = model.network
    model.fit(None, items_of(["tent", "lamp", ""]), seed=0)
    ages_2_3_and_9 = [[0, *[2] * age, 1] for age in (1, 2, 8)]
    scores = model.score(cases_of(ages_2_3_and_9, [[0, 1]] * 3)).reshape(3, 2)
    np.testing.assert_allclose(scores[1:], scores[[0, 0]], atol=1e-6)
    younger = model.score(cases_of([[0, 1]], [[0, 1]]))
    assert np.abs(younger - scores[0]).max() > 1e-4


def test_what_was_disliked_is_not_read_but_its_visit_counts(tiny):
    model = model_of(tiny, trained=True).fit(None, items_of(["tent", "lamp", ""]), seed=0)
    disliked, blank = cases_of([[0, 1]], [[0, 1]]), cases_of([[2, 1]], [[0, 1]])
    disliked = replace(disliked, history_weights=np.array([-1.0, 1.0], dtype=np.float32))
    np.testing.assert_array_equal(model.score(disliked), model.score(blank))


def test_what_was_read_before_the_weights_changed_is_read_again(tiny):
    model = model_of(tiny)
    predict(model)
    np.testing.assert_allclose(
        np.concatenate(predict(as_if_trained(model))), np.concatenate(predict(model_of(tiny, trained=True))), atol=1e-6
    )


@pytest.mark.parametrize("cross_attention", [False, True])
def test_scorer_suite(tmp_path, cross_attention):
    encoder = CachedEncoder(SentenceEncoder(device="cpu", max_tokens=16))
    settings = {"device": "cpu", "dtype": "float32", "item_tokens": 16, "cross_attention": cross_attention}
    check_scorer(lambda: HistoryCrossEncoder(encoder, **settings), tmp_path, quality_floor=0.5, new_items="known")


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


def test_token_states_are_kept_in_two_bytes_a_value(tiny, tmp_path):
    """However the table came about: built, grown, saved and loaded, joined by a call of predict."""
    shop = planted_shop(n_users=4)
    model = model_of(tiny, trained=True, cross_attention=True).fit(shop.past, shop.items, seed=0)
    model.save(tmp_path)
    items = longer_items(shop.items, ["a rod to catch trout", "espresso in a pot"])
    texts = [*items.texts[:3], "a violin with a bow", *items.texts[4:]]
    loaded = HistoryCrossEncoder.load(tmp_path, device="cpu")
    grown = loaded.grown(items, np.array([160, 161])).grown(items.with_texts(texts), np.array([3]))
    predict(model, [["tent"]], [["a lamp", ""]])
    predict(model, [["tent"]], [["a chair"]])
    for table in (model._table, loaded._table, grown._table, *model._texts._parts):
        n_tokens, size = table.states.shape
        assert (n_tokens, size) == (table.offsets[-1], 2 * 32)  # the inputs of two upper layers
        assert table.states.dtype == torch.float16
        others = sum(getattr(table, name).numel() for name in COLUMNS if name != "states")
        assert table.n_bytes == 2 * n_tokens * size + 4 * others
    # what is kept in more than that is not rounded when the two are joined
    wide = build_table(model.network, model.reader, ["a lamp"], np.ones((1, 32), np.float32), state_dtype=torch.float32)
    both = ItemTable.joined([model._texts._parts[0], wide])
    torch.testing.assert_close(both.states[-len(wide.states) :], wide.states, atol=0, rtol=0)


@pytest.mark.parametrize("cross_attention", [False, True])
def test_grown_items_are_read_as_at_the_fit(tiny, tmp_path, cross_attention):
    shop = planted_shop(n_users=24)
    model = model_of(tiny, trained=True, cross_attention=cross_attention).fit(shop.past, shop.items, seed=0)
    before = model.score(shop.cases)
    items = longer_items(shop.items, ["a rod to catch trout", "", "espresso in a pot"])
    new = np.array([160, 161, 162])
    texts = list(items.texts)
    texts[3], texts[7] = "a violin with a bow", ""
    changed = items.with_texts(texts)
    cases = cases_of([shop.cases.history[row] for row in range(3)] + [[160, 3, 7]], [np.arange(164)] * 4)
    model.save(tmp_path)
    for one in (model, HistoryCrossEncoder.load(tmp_path, device="cpu")):
        for wanted, codes in ((items, new), (changed, np.array([3, 162, 7, 160, 161]))):
            fitted = model_of(tiny, trained=True, cross_attention=cross_attention).fit(shop.past, wanted, seed=0)
            np.testing.assert_allclose(one.grown(wanted, codes).score(cases), fitted.score(cases), atol=2e-6)
        np.testing.assert_allclose(one.score(shop.cases), before, atol=1e-6)
    in_two = model.grown(items, new).grown(changed, np.array([3, 7]))
    np.testing.assert_allclose(in_two.score(cases), fitted.score(cases), atol=2e-6)


@pytest.mark.parametrize("cross_attention", [False, True])
@pytest.mark.parametrize("codes", [[], [0], [2, 3], [1, 5, 6], [5, 6], [0, 1, 2, 3, 4]])
def test_rows_of_a_table_are_replaced_and_added(tiny, cross_attention, codes):
    model = model_of(tiny, trained=True, cross_attention=cross_attention)
    texts = ["tent", "a lamp of brass", "", "red bicycle pump", "rope"]
    fresh = [f"new {'thing ' * code}" for code in codes]
    table, rows = (
        build_table(model.network, model.reader, part, model.encoder.encode(part)) for part in (texts, fresh)
    )
    place = {**{code: code for code in range(5)}, **{code: 5 + number for number, code in enumerate(codes)}}
    expected = ItemTable.joined([table, rows]).take(np.array([place[code] for code in sorted(place)]))
    found = table.with_rows(np.array(codes, dtype=np.int64), rows)
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    for name in COLUMNS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=0, rtol=0)


def test_a_grown_copy_and_the_old_one_predict_apart(tiny):
    shop = planted_shop(n_users=24)
    model = model_of(tiny).fit(shop.past, shop.items, seed=0)
    predict(model)
    grown = model.grown(longer_items(shop.items, ["a rod"]), np.array([160]))
    expected = predict(model_of(tiny), [["tent"]], [["a lamp", "a chair"]])
    np.testing.assert_allclose(predict(grown, [["tent"]], [["a lamp", "a chair"]]), expected, atol=1e-6)
    np.testing.assert_allclose(predict(model, [["tent"]], [["a lamp", "a chair"]]), expected, atol=1e-6)


# ------------------------------------------------------------------- bad input


def test_lists_that_do_not_match(tiny):
    model = model_of(tiny)
    with pytest.raises(DataError, match="histories has 1 rows and candidates 2"):
        model.predict([["a"]], [["b"], ["c"]])
    with pytest.raises(DataError, match="weights do not match"):
        model.predict([["a"]], [["b"]], weights=[[1.0, 2.0]])
    with pytest.raises(DataError, match="a text is None"):
        model.predict([["a"]], [[None]])
    with pytest.raises(DataError, match="row 1 of histories is the text 'a lamp'"):
        model.predict([["a"], "a lamp"], [["b"], ["c"]])
    with pytest.raises(DataError, match="row 0 of candidates is the text 'b'"):
        model.predict([["a"]], ["b"])
    for weight in (float("inf"), float("nan")):
        with pytest.raises(DataError, match="row 0 of weights holds"):
            model.predict([["a"]], [["b"]], weights=[[weight]])
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
    (said,) = [str(warning.message) for warning in caught]
    assert "1 of 1 histories are longer than 8 items" in said
    assert "1 of 10 texts are longer than 16 tokens, of each the first 16 are read; raise item_tokens to read m" in said
    (newest,) = predict(model, [history[-8:]], [["long text " * 10_000, "item 9999", ""]])
    np.testing.assert_allclose(scores, newest, atol=1e-6)
    assert scores[2] == 0.0


@pytest.mark.parametrize("cross_attention", [False, True])
def test_many_distinct_texts_are_read_and_scored_in_pieces(tiny, monkeypatch, cross_attention):
    """A thousand texts of one user, and few more: never more than fifty read at once, nor kept beyond the bound."""
    model = model_of(tiny, trained=True, cross_attention=cross_attention)
    histories = [["a red bicycle", "bike helmet"], [], ["probe"]]
    candidates = [[f"thing {n} of {n % 7}" for n in range(1_000)], ["thing 3 of 3", "probe"], ["pipe " * 40]]
    weights = [[2.0, 0.5], [], [1.5]]
    whole = predict(model, histories, candidates, weights)
    per_text = model._texts.n_bytes / len(model._texts)
    monkeypatch.setattr(text_table, "TEXTS_AT_ONCE", 50)
    monkeypatch.setattr(text_table, "MOST_BYTES_KEPT", 100 * per_text)
    kept = []
    score_lists = scorer_module.score_lists

    def watched(network, table, *lists):
        kept.append(len(table))
        return score_lists(network, table, *lists)

    monkeypatch.setattr(scorer_module, "score_lists", watched)
    model.network = model.network  # forgets what was read
    with pytest.warns(UserWarning, match="1 of 1,0.. texts are longer than 16 tokens") as caught:
        in_pieces = model.predict(histories, candidates, weights=weights)
    assert len(caught) == 1
    for one, other in zip(whole, in_pieces, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert len(kept) > 20
    assert max(kept) < 250


def test_candidates_that_users_share_are_read_in_pieces_too(tiny, monkeypatch):
    """Three users with one list of a thousand: what was read for the first is forgotten by the third."""
    monkeypatch.setattr(text_table, "TEXTS_AT_ONCE", 100)
    shared = [f"thing {n}" for n in range(1_000)]
    histories = [["tent"], [], ["lamp", "tent"]]
    runs = list(text_table.pieces(histories, [shared] * 3))
    assert [first for first, _ in runs[1:]] == [last for _, last in runs[:-1]]
    assert (runs[0][0], runs[-1][1]) == (0, 3_000)
    for first, last in runs:
        users = range(first // 1_000, (last - 1) // 1_000 + 1)
        texts = {shared[place % 1_000] for place in range(first, last)}
        assert len(texts.union(*(histories[user] for user in users))) <= 100
    assert len(runs) == 31  # 3,000 by 98 or 100
    model = model_of(tiny, trained=True)
    per_text = 4 * sum(getattr(model.fit(None, items_of(["tent"]), seed=0)._table, name).shape[1] for name in COLUMNS)
    monkeypatch.setattr(text_table, "MOST_BYTES_KEPT", 600 * per_text)
    read = []

    def watched(network, reader, texts, *more, **settings):
        read.append(len(texts))
        return build_table(network, reader, texts, *more, **settings)

    monkeypatch.setattr(scorer_module, "build_table", watched)
    scores = predict(model, histories, [shared] * 3)
    assert sum(read) > 1_100  # some were read again
    assert max(read) <= 100
    monkeypatch.undo()
    for one, other in zip(scores, predict(model_of(tiny, trained=True), histories, [shared] * 3), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("known", [[], ["garden hose"]])
def test_after_a_reading_that_failed_no_text_is_taken_for_another(tiny, monkeypatch, known):
    model, fresh = model_of(tiny, trained=True), model_of(tiny, trained=True)
    history = [["red bicycle", "bicycle pump"]]
    predict(model, history, [known])

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(scorer_module, "build_table", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict(model, history, [["tea pot", "bicycle helmet"]])
    for candidates in (["lawn mower", "spade"], ["bicycle helmet", "tea pot"]):
        np.testing.assert_allclose(
            predict(model, history, [candidates])[0], predict(fresh, history, [candidates])[0], atol=1e-5
        )


@pytest.mark.parametrize("cross_attention", [False, True])
def test_a_hundred_thousand_candidates_are_read_in_pieces(tiny, monkeypatch, cross_attention):
    shop = planted_shop(n_users=4)
    model = model_of(tiny, trained=True, cross_attention=cross_attention).fit(shop.past, shop.items, seed=0)
    widths = []
    score_block = scoring.score_block

    def watched(network, table, histories, candidates, block, *more):
        widths.append(block.candidates.size)
        return score_block(network, table, histories, candidates, block, *more)

    monkeypatch.setattr(scoring, "score_block", watched)
    many = np.random.default_rng(0).integers(0, len(shop.items), 100_000)
    scores = model.score(shop.cases.take(np.array([0])).with_candidates(Ragged.from_lists([many])))
    assert len(widths) > 5
    assert max(widths) <= max(scoring.READER_ON_CPU.most_pairs, scoring.WITHOUT_READER.most_pairs)
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


def test_a_model_saved_before_it_read_anything_takes_an_encoder(tiny, tmp_path):
    model_of(tiny).save(tmp_path)
    encoder = SentenceEncoder(tiny, device="cpu", max_tokens=16, dtype="float32")
    again = HistoryCrossEncoder.load(tmp_path, encoder=encoder, device="cpu")
    for one, other in zip(predict(again), predict(model_of(tiny)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_loaded_model_reads_new_texts_with_the_settings_of_then(tiny, tmp_path):
    settings = {"item_tokens": 8, "history_length": 2, "n_upper": 1, "cross_attention": True}
    model = model_of(tiny, trained=True, **settings).fit(None, items_of(["tent", "", "lamp"]), seed=0)
    model.save(str(tmp_path / "m"))
    again = HistoryCrossEncoder.load(str(tmp_path / "m"), device="cpu")
    cases = cases_of([[0, 1]], [[0, 1, 2]])
    assert np.isnan(model.score(cases)).tolist() == [False, True, False]
    np.testing.assert_array_equal(again.score(cases), model.score(cases))
    histories = [["tent", "lamp", "a camp stove that burns gas and wood and oil"]]
    np.testing.assert_allclose(
        predict(again, histories, histories)[0], predict(model, histories, histories)[0], atol=1e-6
    )


@pytest.mark.parametrize("cross_attention", [False, True])
def test_given_texts_score_as_items_that_have_them(tiny, tmp_path, cross_attention):
    shop = planted_shop(n_users=30, n_candidates=6)
    texts = shop.items.texts.copy()
    texts[:3] = ["", "  ", "a spare part"]
    items = shop.items.with_texts(texts)
    model = model_of(tiny, trained=True, cross_attention=cross_attention).fit(None, items, seed=0)
    histories = [*(shop.cases.history[row] for row in range(28)), [], [0, 1]]  # the last two say nothing
    candidates = [*(shop.cases.candidates[row] for row in range(29)), [0, 5, 1]]
    cases = cases_of(histories, candidates)
    own = [str(texts[code]) for code in cases.candidates.values]
    expected = model.score(cases)
    assert np.isnan(expected).sum() >= len(candidates[-1]) + len(candidates[-2])
    np.testing.assert_allclose(model.score_texts(cases, own), expected, atol=2e-5)
    # another text is that of an item which has it
    changed = texts.copy()
    changed[candidates[4][0]] = "a plain lamp"
    other = model_of(tiny, cross_attention=cross_attention)
    other.network = model.network
    one = cases_of([histories[4]], [[candidates[4][0]]])
    np.testing.assert_allclose(
        model.score_texts(one, ["a plain lamp"]),
        other.fit(None, items.with_texts(changed), seed=0).score(one),
        atol=2e-5,
    )
    model.save(tmp_path)
    loaded = HistoryCrossEncoder.load(tmp_path, device="cpu")
    np.testing.assert_allclose(loaded.score_texts(cases, own), expected, atol=2e-5)


def test_other_layers_under_the_old_name_are_an_error(tmp_path):
    (tmp_path / "m").mkdir()
    model = model_of(save_tiny_encoder(tmp_path))
    assert model.reader.fingerprint  # read, so that the fingerprint is saved
    model.save(tmp_path / "m")
    save_tiny_encoder(tmp_path, seed=1)
    with pytest.raises(StorageError, match="frozen layers of .* use the encoder"):
        HistoryCrossEncoder.load(tmp_path / "m", device="cpu").predict([["tent"]], [["stove"]])


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
    said = first.reader.cost_in_words([*texts, "a kite", "a bell"])
    assert "2 texts of about" in said
    assert "MiB in float16" in said
    assert said.endswith("s to read; those of 3 more are kept")
    assert first.reader.cost_in_words(texts) == "states of 0 texts; those of 3 more are kept"


def test_a_cache_of_other_weights_is_not_used(tiny, tmp_path):
    (tmp_path / "o").mkdir()
    other = save_tiny_encoder(tmp_path / "o", seed=1)
    predict(model_of(other, cache_folder=tmp_path / "c"), [["tent"]], [["lamp"]])
    model = model_of(tiny, trained=True, cache_folder=tmp_path / "c")
    assert len(model.reader.cache) == 0
    with_cache = predict(model, [["tent"]], [["lamp"]])[0]
    np.testing.assert_allclose(with_cache, predict(model_of(tiny, trained=True), [["tent"]], [["lamp"]])[0], atol=2e-3)


def test_kept_states_of_two_types_do_not_remove_each_other(tiny, tmp_path):
    for cache_type in ("float16", "int8"):
        states_of(model_of(tiny, cache_folder=tmp_path, cache_type=cache_type), ["tent"])
    for cache_type in ("float16", "int8"):
        reader = model_of(tiny, cache_folder=tmp_path, cache_type=cache_type).reader
        assert len(reader.cache) == 1
        assert reader.notes() == []


def test_cached_and_new_texts_in_one_call_are_not_mixed_up(tiny, tmp_path):
    texts = ["a camp stove that burns gas", "tent", "a lamp", "rope", "mat of straw"]
    model = model_of(tiny, cache_folder=tmp_path)
    list(model.reader.batches(["tent", "rope"]))
    torch.testing.assert_close(states_of(model, texts), states_of(model_of(tiny), texts), atol=5e-3, rtol=0)


def test_a_cache_of_another_tokenizer_or_shorter_cut_is_not_used(tiny, tmp_path):
    long = "a camp stove that burns gas and wood and oil"
    (tmp_path / "o").mkdir()
    other = Path(save_tiny_encoder(tmp_path / "o"))
    tokenizer = next(path for path in other.rglob("tokenizer.json"))
    stored = json.loads(tokenizer.read_text(encoding="utf-8"))
    vocabulary = stored["model"]["vocab"]
    vocabulary["stove"], vocabulary["camp"] = vocabulary["camp"], vocabulary["stove"]
    tokenizer.write_text(json.dumps(stored), encoding="utf-8")
    makers = [partial(model_of, tiny, item_tokens=8), partial(model_of, tiny), partial(model_of, str(other))]
    for make in makers:
        model = make(cache_folder=tmp_path / "c")
        found = states_of(model, [long])
        model.reader.cache = None
        torch.testing.assert_close(found, states_of(model, [long]), atol=5e-3, rtol=0)


def test_a_save_without_items_leaves_no_table_that_other_weights_have_read(tiny, tmp_path):
    shop = planted_shop(n_users=4)
    model = model_of(tiny, trained=True).fit(shop.past, shop.items, seed=0)
    model.save(tmp_path)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.add_(0.1)
    model.network = model.network  # as a fine-tuning sets it
    model.save(tmp_path)
    with pytest.raises(NotFittedError):
        HistoryCrossEncoder.load(tmp_path, device="cpu").score(shop.cases)


@pytest.mark.parametrize("wrong", [[1.0] * 9, [1.0] * 12, [0.0, *[1.0] * 9], [-1.0, *[1.0] * 9], [float("nan")] * 10])
def test_weights_that_do_not_fit_a_long_history_are_refused(tiny, wrong):
    model = model_of(tiny, trained=True)  # reads the newest 8 of 10
    with pytest.raises(DataError, match="weights"):
        model.predict([[f"thing {n}" for n in range(10)]], [["tent"]], weights=[wrong])


def test_texts_are_remembered_in_parts_and_a_new_one_copies_few(tiny):
    model = model_of(tiny, trained=True, cross_attention=True)
    texts = [f"thing {n} of {n % 7}" for n in range(40)]
    parts = []
    for first in range(0, 40, 5):
        now = predict(model, [texts[:2]], [texts[first : first + 5]])[0]
        fresh = model_of(tiny, trained=True, cross_attention=True)
        np.testing.assert_allclose(now, predict(fresh, [texts[:2]], [texts[first : first + 5]])[0], atol=1e-5)
        parts.append([len(part) for part in model._texts._parts])
    assert max(map(len, parts)) > 1  # else each call would have copied all
    assert all(sizes == sorted(set(sizes), reverse=True) for sizes in parts)
    backwards = texts[::-1]
    np.testing.assert_allclose(
        predict(model, [texts[:2]], [backwards])[0], predict(fresh, [texts[:2]], [texts])[0][::-1], atol=1e-5
    )


def test_white_space_does_not_take_the_place_of_words(tiny):
    reader = model_of(tiny).reader
    spaced, n_cut = reader.token_ids([" " * 600 + "tent", "tent", "x" * 5_000])
    assert spaced[0].tolist() == spaced[1].tolist()
    assert n_cut == 1  # the last, of which most is not looked at


def test_an_encoder_that_computes_otherwise_between_its_layers_is_refused(tmp_path):
    folder = Path(save_tiny_encoder(tmp_path))
    (config,) = [path for path in folder.rglob("config.json") if "hidden_act" in path.read_text(encoding="utf-8")]
    config.write_text(json.dumps({**json.loads(config.read_text(encoding="utf-8")), "hidden_act": "relu"}))
    with pytest.raises(DataError, match="'relu' between its layers"):
        model_of(str(folder)).predict([["tent"]], [["lamp"]])
