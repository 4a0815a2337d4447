import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from llm_rerank.models.cross_encoder import pairwise_training
from llm_rerank.models.cross_encoder.lists import TrainingLists
from llm_rerank.models.cross_encoder.pairwise import PairwiseCrossEncoder
from llm_rerank.models.semantic.weights import default_folder
from llm_rerank.types import DataError, NotFittedError, StorageError
from tests.planted import THEMES, cases_of, items_of, planted_shop
from tests.scorer_suite import check_scorer

WORDS = ("tent", "piano", "coffee", "bicycle", "fishing", "garden", "bread", "paint")
TEXTS = np.array(WORDS, dtype=object)
LIST_LENGTH = 5
BASE_LOSS = float(np.log(LIST_LENGTH))  # of a score that knows nothing


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(default_folder()))


@pytest.fixture(scope="module")
def tiny_folder(tokenizer, tmp_path_factory):
    """A BERT of one small layer, random weights wide enough to learn from, the default tokenizer."""
    return save_bert(BertModel, tokenizer, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def learned(tiny_folder):
    """Tuned where the positive is the item of the history; with it what the tuning said."""
    model = tiny(tiny_folder)
    return model, model.fine_tune(word_lists(160, 1), TEXTS, validation=word_lists(40, 2), **QUICK)


QUICK = {"steps": 60, "learning_rate": 1e-2, "head_learning_rate": 1e-2, "evaluate_every": 20}


def save_bert(kind, tokenizer, folder, *, dropout=0.0, **settings):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **settings,
    )
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny(folder, *, head=False, **settings):
    model = PairwiseCrossEncoder.from_encoder(
        folder, **({"history_tokens": 24, "item_tokens": 8, "device": "cpu", "dtype": "float32"} | settings)
    )
    return with_head(model) if head else model


def with_head(model):
    """Give the head weights, as if trained: an untrained one could not tell right from wrong."""
    head = model._network.model.classifier
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(3)))
    return model


def word_lists(n_lists, seed, *, offset=0.0, positive="same"):
    """Lists of five words; the history says one of them twice.

    offset: of that one. positive: "same": that one is taken; "other": another; "drawn": as the offsets say.
    """
    rng = np.random.default_rng(seed)
    histories, candidates, taken, offsets = [], [], [], []
    for _ in range(n_lists):
        words = rng.permutation(len(WORDS))[:LIST_LENGTH]
        order = rng.permutation(LIST_LENGTH)
        is_same = order == 0
        row = np.where(is_same, offset, 0.0)
        if positive == "drawn":
            chosen = rng.choice(LIST_LENGTH, p=np.exp(row) / np.exp(row).sum())
        else:
            chosen = np.flatnonzero(order == (0 if positive == "same" else 1))[0]
        histories.append([words[0]] * 2)
        candidates.append(words[order])
        taken.append(np.arange(LIST_LENGTH) == chosen)
        offsets.append(row)
    return TrainingLists(
        cases_of(histories, candidates), np.concatenate(taken), np.concatenate(offsets).astype(np.float32)
    )


def same_word_gap(model, lists):
    """How much higher the history's word scores than the others do, on the mean."""
    cases = lists.cases
    scores = np.concatenate(
        model.predict(
            [TEXTS[cases.history[row]].tolist() for row in range(len(cases))],
            [TEXTS[cases.candidates[row]].tolist() for row in range(len(cases))],
        )
    )
    same = cases.candidates.values == cases.history.values[::2][cases.candidates.row_of_value]
    return float(scores[same].mean() - scores[~same].mean())


def weights_of(model):
    return {name: value.clone() for name, value in model._network.state_dict().items()}


# --- what is read ----------------------------------------------------------------------------------------------------


def test_minilm_one_pair_at_a_time(tokenizer):
    model = with_head(PairwiseCrossEncoder.from_encoder(device="cpu", dtype="float32"))
    histories = [["garden hose", "steel trowel 30 cm"], [], ["咖啡 磨豆机", "espresso cups, set of 6"], ["tent"]]
    candidates = [["watering can", "drum sticks"], ["headlamp"], [], ["sleeping bag " * 3, "Ünïcode ½", "tent"]]
    scores = model.predict(histories, candidates, batch_size=4)
    assert [len(row) for row in scores] == [2, 1, 0, 3]
    assert all(row.dtype == np.float32 for row in scores)
    network = model._network.model
    for history, row, values in zip(histories, candidates, scores, strict=True):
        for text, value in zip(row, values, strict=True):
            features = tokenizer(" | ".join(reversed(history)), text, return_tensors="pt")
            with torch.no_grad():
                np.testing.assert_allclose(value, network(**features).logits[0, 0].numpy(), atol=1e-5)
    flat = np.concatenate(scores)
    assert len(set(np.round(flat, 3))) == len(flat), "scores that are all alike would agree with anything"


def test_a_new_head_scores_zero_and_a_trained_one_is_kept(tiny_folder, tokenizer, tmp_path):
    histories, candidates = [["tent"], []], [["piano", "tent"], ["bread"]]
    assert np.concatenate(tiny(tiny_folder).predict(histories, candidates)).tolist() == [0, 0, 0]
    trained = tiny(save_bert(BertForSequenceClassification, tokenizer, tmp_path, num_labels=1))
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(trained._network.model.classifier.weight, stored["classifier.weight"])
    scores = np.concatenate(trained.predict(histories, candidates))
    assert len(set(scores.tolist())) == 3
    assert np.any((scores < 0) | (scores > 1)), "logits, not what a sigmoid makes of them"


def test_weights_that_a_file_does_not_hold_are_the_same_each_time(tokenizer, tmp_path):
    class WithoutPooler(BertModel):
        def __init__(self, config):
            super().__init__(config, add_pooling_layer=False)

    WithoutPooler.__name__ = "BertModel"
    folder = save_bert(WithoutPooler, tokenizer, tmp_path)
    torch.manual_seed(1)
    one = weights_of(tiny(folder))
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    other = weights_of(tiny(folder))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_truncation_drops_the_oldest_and_keeps_the_newest(tiny_folder):
    # 40 words and 39 bars are far over 24 tokens: the twelve newest words fit
    model = tiny(tiny_folder, head=True)
    history = [WORDS[place % 8] for place in range(40)]
    candidates = [["piano", "garden"]]

    def moved(place):
        changed = [*history[:place], "violin", *history[place + 1 :]]
        return np.abs(model.predict([changed], candidates)[0] - model.predict([history], candidates)[0]).max()

    assert moved(39) > 1e-3
    assert moved(28) > 1e-3, "the twelfth newest is within the budget"
    assert [moved(place) for place in (27, 20, 0)] == [0, 0, 0]
    np.testing.assert_array_equal(
        model.predict([history[-12:]], candidates)[0], model.predict([history], candidates)[0]
    )


def test_a_long_candidate_does_not_push_the_history_out(tiny_folder):
    model = tiny(tiny_folder, head=True)
    long = "garden " * 15_000
    histories = [[WORDS[place % 8] for place in range(12)]] * 2
    short, same = model.predict(histories, [["garden " * 8], [long]])
    np.testing.assert_allclose(same, short, atol=1e-6)
    other = model.predict([[*histories[0][:-1], "violin"]], [[long]])[0]
    oldest = model.predict([["violin", *histories[0][1:]]], [[long]])[0]
    assert abs(other - same)[0] > 1e-3
    assert abs(oldest - same)[0] > 1e-3, "all twelve words keep their place"


def test_a_long_item_leaves_room_for_the_next_of_the_history(tiny_folder):
    # each item of a history is cut to 8 tokens: 8 + bar + 8 + bar + 6 of 24
    model = tiny(tiny_folder, head=True)
    history = ["piano " * 8, "tent " * 100, "bread " * 15_000]
    cut = ["piano " * 6, "tent " * 8, "bread " * 8]
    np.testing.assert_array_equal(model.predict([history], [["tent"]])[0], model.predict([cut], [["tent"]])[0])
    assert model.predict([history], [["tent"]])[0] != model.predict([cut[1:]], [["tent"]])[0]


def test_huge_history_and_broken_text(tiny_folder):
    model = tiny(tiny_folder, head=True)
    history = ["", " ", *(WORDS[place % 8] for place in range(10_000)), *[""] * 100]
    expected = model.predict([history[-112:-100]], [["tent ?"]])[0]
    np.testing.assert_array_equal(model.predict([history], [["  tent \n\ud83d"]])[0], expected)


def test_bfloat16_is_near_and_never_ties(learned):
    model, _ = learned
    histories, candidates = [["tent", "piano", "violin"]], [[f"{a} {b}" for a in WORDS for b in WORDS]]
    exact = model.predict(histories, candidates)[0]
    fast = PairwiseCrossEncoder(
        model._network, history_tokens=24, item_tokens=8, dtype="bfloat16", new_weights=[]
    ).predict(histories, candidates)[0]
    assert np.any(fast != exact)
    assert np.abs(fast - exact).max() < 0.05 * exact.std()
    # a score of three digits would have at most some twenty values here
    assert len(set(fast.tolist())) > 55
    np.testing.assert_array_equal(model.predict(histories, candidates)[0], exact)


def test_bfloat16_is_tuned_and_reads_the_tuned_weights(tiny_folder):
    model = tiny(tiny_folder, dtype="bfloat16")
    histories, candidates = [["tent", "piano"]], [list(WORDS)]
    assert not model.predict(histories, candidates)[0].any()
    model.fine_tune(word_lists(20, 1), TEXTS, **(QUICK | {"steps": 4}))
    assert {value.dtype for value in weights_of(model).values() if value.is_floating_point()} == {torch.float32}
    fast = model.predict(histories, candidates)[0]
    exact = PairwiseCrossEncoder(
        model._network, history_tokens=24, item_tokens=8, dtype="float32", new_weights=[]
    ).predict(histories, candidates)[0]
    assert exact.std() > 1e-3
    assert np.abs(fast - exact).max() < 0.1 * exact.std()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("failure", [float("nan"), KeyboardInterrupt()])
def test_after_a_fine_tuning_that_failed_the_model_is_as_it_was(tiny_folder, monkeypatch, dtype, failure):
    """It fails after a scoring of the validation lists that was better than the untrained model's."""
    model = tiny(tiny_folder, head=True, dtype=dtype)
    histories, candidates = [["tent", "piano"]], [list(WORDS)]
    before, weights = model.predict(histories, candidates)[0], weights_of(model)
    losses, n_steps = pairwise_training._losses, []

    def failing(network, *more):
        n_steps.extend([1] * network.training)
        if len(n_steps) == 8 and isinstance(failure, KeyboardInterrupt):
            raise failure
        return losses(network, *more) * (failure if len(n_steps) == 8 else 1.0)

    monkeypatch.setattr(pairwise_training, "_losses", failing)
    settings = QUICK | {"steps": 20, "evaluate_every": 2, "lists_per_step": 2}
    with pytest.raises((DataError, KeyboardInterrupt)):
        model.fine_tune(word_lists(20, 1), TEXTS, validation=word_lists(20, 2), **settings)
    assert len(n_steps) == 8
    assert not model._network.training
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(model).items())
    np.testing.assert_array_equal(model.predict(histories, candidates)[0], before)


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def test_fine_tuning_learns_what_the_lists_say(learned):
    model, record = learned
    assert record.training_losses[:5].mean() == pytest.approx(BASE_LOSS, abs=0.1)
    assert record.training_losses[-5:].mean() < 0.2 * BASE_LOSS
    assert record.validation_losses[0] == pytest.approx(BASE_LOSS, abs=1e-5)
    assert record.validation_losses.min() < 0.2 * BASE_LOSS
    assert record.kept_step == 60
    assert "step 60 of 60 is kept" in record.description
    # fresh lists, through predict: accuracy of the first place against its base rate of 1/5
    fresh = word_lists(60, 3)
    cases = fresh.cases
    scores = model.predict(
        [TEXTS[cases.history[row]].tolist() for row in range(60)],
        [TEXTS[cases.candidates[row]].tolist() for row in range(60)],
    )
    hits = [
        fresh.positive[slice(*cases.candidates.offsets[row : row + 2])][np.argmax(scores[row])] for row in range(60)
    ]
    assert np.mean(hits) > 0.9
    # the kept weights are those of the loss that was said: −log softmax by hand, offsets 0
    losses = [
        np.log(np.exp(row).sum()) - row[values]
        for row, values in zip(scores, fresh.positive.reshape(60, LIST_LENGTH), strict=True)
    ]
    assert np.mean(losses) == pytest.approx(record.validation_losses.min(), abs=0.15)


def test_what_the_offset_explains_is_not_learned(tiny_folder):
    # The target is drawn as the offset says: nothing is left for the text, though the two go together.
    explained = word_lists(240, 4, offset=3.0, positive="drawn")
    ignored = replace(explained, offsets=np.zeros_like(explained.offsets))
    with_offset, without = tiny(tiny_folder), tiny(tiny_folder)
    settings = QUICK | {"steps": 40, "lists_per_step": 6}
    record = with_offset.fine_tune(explained, TEXTS, **settings)
    without.fine_tune(ignored, TEXTS, **settings)
    assert same_word_gap(without, explained) > 0.5  # on its way to 3, what the offset would have said
    # λ and the score share what is left to share: their sum is the 3 of the truth
    total = same_word_gap(with_offset, explained) + 3 * record.offset_weight
    assert total == pytest.approx(3, abs=0.6)
    assert abs(same_word_gap(with_offset, explained)) < 0.2
    assert record.offset_weight == pytest.approx(1, abs=0.2)
    assert with_offset.offset_weight == record.offset_weight


def test_offset_weight_is_learned(tiny_folder):
    # offsets of 6 where the truth is 3, and no text to lean on: λ falls toward 1/2 as fast as its learning rate lets it
    lists = word_lists(240, 5, offset=3.0, positive="drawn")
    blank = np.full(len(WORDS), "piano", dtype=object)
    record = tiny(tiny_folder).fine_tune(
        replace(lists, offsets=lists.offsets * 2), blank, **(QUICK | {"steps": 40, "lists_per_step": 4})
    )
    assert 0.4 < record.offset_weight < 0.9


def test_untrained_model_is_kept_where_no_step_beats_it(tiny_folder):
    model = tiny(tiny_folder, head=False)
    before = weights_of(model)
    wrong = word_lists(40, 2, positive="other")
    record = model.fine_tune(
        word_lists(160, 1), TEXTS, validation=wrong, **(QUICK | {"steps": 500, "patience": 2, "lists_per_step": 4})
    )
    assert record.kept_step == 0
    assert record.validation_steps.tolist() == [0, 20, 40], "two evaluations without a new least, then it stops"
    assert len(record.training_losses) == 40
    assert record.offset_weight == model.offset_weight == 1
    assert "none of 40 steps beat the untrained model" in record.description
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())


def test_best_weights_are_kept_not_the_last(tiny_folder):
    # the two halves of validation disagree: after a first gain every further step loses
    same, other = word_lists(15, 6), word_lists(5, 7, positive="other")
    cases = cases_of(
        [*(same.cases.history[row] for row in range(15)), *(other.cases.history[row] for row in range(5))],
        [*(same.cases.candidates[row] for row in range(15)), *(other.cases.candidates[row] for row in range(5))],
    )
    mixed = TrainingLists(cases, np.append(same.positive, other.positive), np.append(same.offsets, other.offsets))
    model = tiny(tiny_folder)
    record = model.fine_tune(
        word_lists(160, 1), TEXTS, validation=mixed, **(QUICK | {"evaluate_every": 10, "patience": 20})
    )
    assert 0 < record.kept_step < 60
    assert record.validation_losses[-1] > record.validation_losses.min() + 0.1
    again = model.fine_tune(word_lists(160, 1), TEXTS, validation=mixed, **(QUICK | {"steps": 1}))
    assert again.validation_losses[0] == pytest.approx(record.validation_losses.min(), abs=1e-5)


def test_same_seed_same_weights_and_the_callers_random_state_stays(tokenizer, tmp_path):
    tiny_folder = save_bert(BertModel, tokenizer, tmp_path, dropout=0.1)
    settings = QUICK | {"steps": 3}
    state = torch.random.get_rng_state()
    one, other, third = tiny(tiny_folder), tiny(tiny_folder), tiny(tiny_folder)
    first = one.fine_tune(word_lists(40, 1), TEXTS, **settings, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(7)
    assert other.fine_tune(word_lists(40, 1), TEXTS, **settings, seed=5).training_losses.tolist() == (
        first.training_losses.tolist()
    )
    assert all(torch.equal(value, weights_of(other)[name]) for name, value in weights_of(one).items())
    third.fine_tune(word_lists(40, 1), TEXTS, **settings, seed=6)
    assert any(not torch.equal(value, weights_of(third)[name]) for name, value in weights_of(one).items())
    assert "without validation" in first.description


def test_validation_losses_by_hand_and_without_dropout(tokenizer, tmp_path):
    model = tiny(save_bert(BertModel, tokenizer, tmp_path, dropout=0.3), head=True)
    lists = word_lists(12, 9, offset=1.5)
    offsets, positive = (values.reshape(12, LIST_LENGTH) for values in (lists.offsets, lists.positive))

    def loss(offset_weight):
        scores = model.predict(
            [TEXTS[lists.cases.history[row]].tolist() for row in range(12)],
            [TEXTS[lists.cases.candidates[row]].tolist() for row in range(12)],
        )
        logits = np.stack(scores).astype(np.float64) + offset_weight * offsets
        return np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[positive])

    untrained = loss(1)
    record = model.fine_tune(lists, TEXTS, validation=lists, **(QUICK | {"steps": 8, "evaluate_every": 4}))
    assert record.kept_step > 0
    assert record.validation_losses[0] == pytest.approx(untrained, abs=1e-5)
    assert record.validation_losses.min() == pytest.approx(loss(record.offset_weight), abs=1e-5)


# --- as a scorer -----------------------------------------------------------------------------------------------------


def test_suite(tiny_folder, tmp_path):
    def with_themes(shop):  # one word an item: so small a network learns in seconds which theme goes with which
        return shop.items.with_texts([list(THEMES)[theme] for theme in shop.item_themes])

    training = planted_shop(seed=1, n_users=160, n_candidates=6)
    own = training.cases.candidates.values == training.cases.targets.values[training.cases.candidates.row_of_value]
    lists = TrainingLists(training.cases, own, np.zeros(len(own), dtype=np.float32))
    tuned = tiny(tiny_folder, item_tokens=4)
    tuned.fine_tune(lists, with_themes(training).texts, **(QUICK | {"steps": 80}))
    shop = planted_shop(n_users=24, n_candidates=6)
    shop = replace(shop, items=with_themes(shop))
    check_scorer(lambda: tuned, tmp_path, quality_floor=0.7, needs_history=False, new_items="known", shop=shop)


def test_grown_items_are_cut_and_read_as_at_the_fit(tiny_folder):
    model = tiny(tiny_folder, head=True).fit(None, items_of(["tent", "piano", " "]), seed=0)
    texts = ["tent", "a violin " * 40, " ", "bread", ""]
    grown = model.grown(items_of(texts), np.array([1, 3, 4]))
    fitted = tiny(tiny_folder, head=True).fit(None, items_of(texts), seed=0)
    cases = cases_of([[1, 3], [0]], [np.arange(6)] * 2)
    np.testing.assert_allclose(grown.score(cases), fitted.score(cases), atol=1e-6)
    assert list(model._texts) == ["tent", "piano", ""]


def test_what_cannot_be_scored_and_what_is_left_out(tiny_folder):
    model = tiny(tiny_folder, head=True).fit(None, items_of(["tent", "piano", " ", "bread"]), seed=0)
    cases = cases_of([[0, 1], [0], [0], [2], []], [[3, 2, -1, 4, 0]] * 5)
    scores = model.score(cases).reshape(5, 5)
    assert np.isnan(scores).tolist() == [[False, True, True, True, False]] * 5
    np.testing.assert_allclose(scores[3], scores[4], atol=1e-6)  # a history without text is none
    np.testing.assert_allclose(scores[1, [0, 4]], model.predict([["tent"]], [["bread", "tent"]])[0], atol=1e-6)
    assert abs(scores[0, 0] - scores[1, 0]) > 1e-3
    cases.history_weights[1] = -1  # the piano of the first case was disliked
    np.testing.assert_allclose(model.score(cases)[0], scores[1, 0], atol=1e-6)


def test_saved_and_loaded_elsewhere(learned, tmp_path):
    model, record = learned
    model.fit(None, items_of(WORDS), seed=0)
    cases = word_lists(10, 8).cases
    first = tmp_path / "first"
    first.mkdir()
    model.save(first)
    assert not [path for path in first.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pickle")]
    assert len({path.stat().st_mode for path in first.rglob("*") if path.is_file()}) == 1  # whoever reads one reads all
    second = shutil.move(first, tmp_path / "second")
    loaded = PairwiseCrossEncoder.load(second)
    np.testing.assert_allclose(loaded.score(cases), model.score(cases), atol=1e-6)
    assert loaded.offset_weight == pytest.approx(record.offset_weight)
    assert (loaded.history_tokens, loaded.item_tokens, loaded.dtype) == (24, 8, "float32")


def test_the_number_format_is_chosen_anew_where_a_model_is_loaded(tiny_folder, tmp_path):
    elsewhere = tiny(tiny_folder, dtype="auto")
    elsewhere.dtype = "float16"  # as on another machine
    elsewhere.save(tmp_path / "auto")
    assert PairwiseCrossEncoder.load(tmp_path / "auto", device="cpu").dtype in ("float32", "bfloat16")
    tiny(tiny_folder, dtype="float16").save(tmp_path / "asked")
    assert PairwiseCrossEncoder.load(tmp_path / "asked", device="cpu").dtype == "float16"


def test_an_untrained_head_is_still_new_after_loading(tiny_folder, tmp_path):
    model = tiny(tiny_folder)
    model.save(str(tmp_path / "new"))
    loaded = PairwiseCrossEncoder.load(str(tmp_path / "new"), device="cpu")
    with pytest.raises(NotFittedError, match="call fit or load first"):
        loaded.score(word_lists(1, 0).cases)
    settings = QUICK | {"steps": 3, "learning_rate": 1e-9}  # only what counts as new can move
    assert loaded.fine_tune(word_lists(20, 0), TEXTS, **settings).training_losses.tolist() == (
        model.fine_tune(word_lists(20, 0), TEXTS, **settings).training_losses.tolist()
    )
    assert loaded._network.model.classifier.weight.abs().max() > 1e-3


def test_damage_is_found_at_load(tiny_folder, tmp_path):
    tiny(tiny_folder, head=True).save(tmp_path)
    path = tmp_path / "network" / "model.safetensors"
    sound = load_file(path)
    save_file(sound | {"classifier.bias": sound["classifier.bias"] + 1}, path, metadata={"format": "pt"})
    with pytest.raises(StorageError, match="not the network that was saved"):
        PairwiseCrossEncoder.load(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StorageError, match="could not be read"):
        PairwiseCrossEncoder.load(tmp_path)
    shutil.rmtree(tmp_path / "network")
    with pytest.raises(StorageError, match="network is missing; save the model again"):
        PairwiseCrossEncoder.load(tmp_path)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"history_tokens": 0}, "history_tokens is 0; it must be at least 1"),
        ({"item_tokens": -2}, "item_tokens is -2; it must be at least 1"),
        ({"dtype": "float8"}, "dtype is 'float8'; it must be"),
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"history_tokens": 54}, "54 and item_tokens 8 make pairs of 65 tokens, .* at most 64; lower history_tokens"),
    ],
)
def test_impossible_settings(tiny_folder, settings, message):
    with pytest.raises(DataError, match=message):
        tiny(tiny_folder, **settings)


def test_models_that_do_not_score_pairs(tiny_folder, tokenizer, tmp_path):
    three = save_bert(BertForSequenceClassification, tokenizer, tmp_path / "three", num_labels=3)
    with pytest.raises(StorageError, match="of 3 outputs; only a cross-encoder of one output"):
        tiny(three)
    with pytest.raises(StorageError, match="does not exist; give an existing folder"):
        tiny(str(tmp_path / "nowhere"))
    shutil.copytree(tiny_folder, tmp_path / "lost")
    path = tmp_path / "lost" / "model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if "intermediate" not in name}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(StorageError, match="lacks 2 weights of its body .first: bert.encoder.layer.0.intermediate"):
        tiny(str(tmp_path / "lost"))
    torch.save(load_file(path), tmp_path / "lost" / "pytorch_model.bin")
    path.unlink()
    with pytest.raises(StorageError, match="could not be read"):
        tiny(str(tmp_path / "lost"))


def test_wrong_input(tiny_folder):
    model = tiny(tiny_folder)
    with pytest.raises(DataError, match="histories has 1 rows, candidates 2; give one row a user"):
        model.predict([["tent"]], [["piano"], ["bread"]])
    with pytest.raises(DataError, match="texts hold 3 of type int; give strings"):
        model.predict([["tent"]], [[3]])
    with pytest.raises(DataError, match="none of the 2 items has a text; render them first"):
        model.fit(None, items_of(["", " "]), seed=0)
    with pytest.raises(DataError, match="lists hold item 7, texts has 7 rows; give the texts of all items"):
        model.fine_tune(word_lists(20, 0), TEXTS[:7])
    with pytest.raises(DataError, match="0 lists were given"):
        model.fine_tune(word_lists(5, 0).take(np.empty(0, dtype=np.int64)), TEXTS)
    with pytest.raises(DataError, match="steps is 0; it must be greater than 0"):
        model.fine_tune(word_lists(5, 0), TEXTS, steps=0)
    before = weights_of(model)
    with pytest.raises(DataError, match="not finite in step [0-9]+; lower learning_rate 1e.20"):
        model.fine_tune(word_lists(5, 0), TEXTS, **(QUICK | {"learning_rate": 1e20}))
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())
