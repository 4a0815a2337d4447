import os
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_rerank.folders import save_folder
from llm_rerank.models.cross_encoder import training
from llm_rerank.models.cross_encoder.list_metrics import judge_lists, log_likelihoods
from llm_rerank.models.cross_encoder.list_scorer import ListScorer, list_loss
from llm_rerank.models.cross_encoder.lists import TrainingLists, sample_negatives
from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder
from llm_rerank.models.cross_encoder.scoring import readable_histories
from llm_rerank.models.cross_encoder.training import fine_tune
from llm_rerank.models.cross_encoder.training_plot import training_plot
from llm_rerank.models.cross_encoder.training_settings import TrainingSettings, learning_rate_at, rows_of_step
from llm_rerank.models.cross_encoder.training_texts import TrainingTexts
from llm_rerank.models.cross_encoder.warm_start import similarities
from llm_rerank.storage import write_json
from llm_rerank.types import DataError, Ragged, StorageError
from tests.planted import cases_of, items_of
from tests.tiny_encoder import save_tiny_encoder

WORDS = ("tent", "piano", "coffee", "bicycle", "fishing", "garden", "bread", "paint", "window", "river")
OPPOSITE = np.roll(np.arange(10), 5)
"""The planted rule: who had a thing takes its opposite, which no similarity of words can tell."""

QUICK = TrainingSettings(
    steps=60,
    lists_per_step=16,
    n_negatives=4,
    learning_rate=1e-2,
    layer_learning_rate=1e-3,
    evaluate_every=20,
    precision="float32",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp("tiny"))


def planted_lists(n_lists, seed, *, offset=0.0, noise=False):
    rng = np.random.default_rng(seed)
    histories, candidates, positives = [], [], []
    for _ in range(n_lists):
        had = int(rng.integers(10))
        taken = int(rng.integers(10)) if noise else int(OPPOSITE[had])
        others = rng.permutation(np.setdiff1d(np.arange(10), [taken]))[:5]
        row = rng.permutation([taken, *others])
        histories.append([had])
        candidates.append(row)
        positives.append(row == taken)
    cases = cases_of(histories, candidates)
    positive = np.concatenate(positives)
    return TrainingLists(cases, positive, (positive * offset).astype(np.float32))


def tiny_model(folder, **settings):
    return HistoryCrossEncoder.from_encoder(folder, device="cpu", dtype="float32", item_tokens=8, **settings)


ITEMS = items_of(list(WORDS))


@pytest.mark.parametrize("cross_attention", [False, True])
def test_it_learns_a_rule_that_similarity_cannot_tell(tiny, cross_attention):
    model = tiny_model(tiny, cross_attention=cross_attention)
    result = fine_tune(model, planted_lists(200, 1), planted_lists(60, 2), ITEMS, QUICK)
    assert result.best_step > 0
    assert result.log[0]["loss"] == pytest.approx(np.log(6), abs=0.1)  # six candidates, nothing known
    fresh = planted_lists(100, 3)
    model.fit(None, ITEMS, seed=0)
    judged = judge_lists(model.score(fresh.cases), fresh)
    assert judged["accuracy"] > 0.9
    assert judged["base_rate"] == pytest.approx(1 / 6)
    assert "loss" in result.sentence()
    if cross_attention:
        assert model.network.gates.abs().max() > 0  # the gates have opened


def test_what_stands_where_padding_is_reaches_no_gradient(tiny, monkeypatch):
    """Lists of two lengths side by side; memory that nothing has written may hold NaN, and 0 × NaN is NaN."""
    model = tiny_model(tiny, cross_attention=True)
    short, long = planted_lists(1, 1), planted_lists(1, 2)
    fewer = Ragged.from_lists([short.cases.candidates.values[:3], long.cases.candidates.values])
    positive = np.array([True, False, False, *long.positive])
    cases = replace(planted_lists(2, 1).cases, candidates=fewer)
    lists = TrainingLists(cases, positive, np.zeros(len(positive), dtype=np.float32))
    texts = TrainingTexts.read(model.reader, model.encoder, ITEMS, np.arange(len(WORDS)))
    scorer = ListScorer(model.network, texts, model.history_length)
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **_: torch.full_like(tensor, float("nan")))
    scorer(lists).backward()
    gradients = [p.grad for p in model.network.parameters() if p.grad is not None]
    assert len(gradients) > 20
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_what_the_offset_says_already_is_not_learned_again(tiny):
    """An offset that tells everything leaves no residual: scores stay flat beside a run without it."""
    spreads = {}
    for offset in (0.0, 8.0):
        model = tiny_model(tiny)
        fine_tune(model, planted_lists(200, 1, offset=offset), planted_lists(60, 2, offset=offset), ITEMS, QUICK)
        lists = planted_lists(50, 3)
        model.fit(None, ITEMS, seed=0)
        spreads[offset] = model.score(lists.cases).std()
    assert spreads[8.0] < 0.3 * spreads[0.0]


def test_the_warm_start_is_kept_where_no_step_beats_it(tiny, tmp_path):
    model = tiny_model(tiny)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    settings = replace(QUICK, learning_rate=0.3, layer_learning_rate=0.1, patience=1)  # sure to overfit noise
    arguments = (planted_lists(60, 1, noise=True), planted_lists(200, 2, noise=True), ITEMS, settings)
    result = fine_tune(model, *arguments, checkpoint=tmp_path)
    assert result.best_step == 0
    assert "no step beats the warm start" in result.sentence()
    assert [entry["step"] for entry in result.log] == [0, 20]  # a patience of one evaluation
    for name, tensor in model.network.state_dict().items():
        if name != "temperature":  # the warm start itself fits it
            torch.testing.assert_close(tensor, before[name])
    again = tiny_model(tiny)
    fine_tune(again, *arguments, checkpoint=tmp_path)  # finished already: the best step's weights, not the last one's
    for name, tensor in again.network.state_dict().items():
        torch.testing.assert_close(tensor, model.network.state_dict()[name], atol=0, rtol=0)


def test_the_warm_start_takes_from_the_similarity_what_the_lists_support(tiny):
    """Lists whose positive is the thing itself: similarity 1 against less; the temperature must rise far above 1."""
    lists = planted_lists(200, 1)
    rows, had = lists.cases.candidates, lists.cases.history.values
    same = rows.values == had[rows.row_of_value]
    has = np.bincount(rows.row_of_value[same], minlength=len(rows)) > 0
    kept = np.flatnonzero(has)
    positions = rows.value_positions(kept)
    similar = TrainingLists(lists.cases.take(kept), same[positions], np.zeros(len(positions), dtype=np.float32))
    model = tiny_model(tiny)
    result = fine_tune(model, similar, similar, ITEMS, replace(QUICK, steps=1, evaluate_every=1))
    assert model.network.temperature > 5
    assert result.log[0]["accuracy"] == 1.0


def test_a_trained_model_goes_on_from_where_it_is(tiny):
    lists = planted_lists(200, 1)
    model = tiny_model(tiny)
    trained = fine_tune(model, lists, planted_lists(60, 2), ITEMS, QUICK)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    still = replace(QUICK, steps=1, evaluate_every=1, learning_rate=0.0, layer_learning_rate=0.0)
    again = fine_tune(model, lists, planted_lists(60, 2), ITEMS, still)
    for name, tensor in model.network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], atol=0, rtol=0)
    # without offsets λ says nothing, so it begins with the loss that it ended with
    assert again.log[0]["loss"] == pytest.approx(min(entry["loss"] for entry in trained.log), rel=1e-5)
    assert again.log[0]["loss"] < trained.log[0]["loss"]


UNEVEN = items_of(
    ["tent", "a red piano of wood", "", "coffee", "bicycle with a bell and a lamp and a lock", "rope", "garden hose"]
)
"""Texts of every length, one item without any."""


def uneven_lists(n_lists, seed, *, textless=False):
    """Lists of 2 to 5 candidates, histories of 1 to 4 items with weights and baskets, offsets that are noise."""
    rng = np.random.default_rng(seed)
    told = np.array([0, 1, 3, 4, 5, 6])
    candidates = [rng.permutation(told)[: rng.integers(2, 6)] for _ in range(n_lists)]
    pool = np.arange(7) if textless else told
    histories = [rng.choice(pool, rng.integers(1, 5)) for _ in range(n_lists)]
    if textless:
        histories[0] = np.array([2, 2])
    cases = cases_of(histories, candidates, times=[np.arange(len(row)) // 2 for row in histories])
    weights = rng.uniform(0.2, 3.0, len(cases.history.values)).astype(np.float32)
    positive = np.concatenate([np.arange(len(row)) == rng.integers(len(row)) for row in candidates])
    offsets = rng.normal(size=len(positive)).astype(np.float32)
    return TrainingLists(replace(cases, history_weights=weights), positive, offsets)


@pytest.mark.parametrize("cross_attention", [False, True])
def test_training_reads_lists_as_scoring_does(tiny, cross_attention):
    """One loss, three ways: the step's, the evaluation's, and that of the scores the model gives at last."""
    model = tiny_model(tiny, cross_attention=cross_attention)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.network.decay.fill_(0.5)
    model.network = model.network
    lists = uneven_lists(30, 4, textless=True)
    texts = TrainingTexts.read(model.reader, model.encoder, UNEVEN, np.arange(len(UNEVEN)))
    training = ListScorer(model.network, texts, model.history_length).eval()
    with torch.no_grad():
        training.offset_weight.fill_(0.5)
    scores = model.fit(None, UNEVEN, seed=0).score(lists.cases)
    no_history = np.isnan(scores)  # nothing with text in it: training has the head alone, scoring no opinion
    expected = scores + 0.5 * lists.offsets
    assert 0 < no_history.sum() < 0.2 * len(scores)
    assert scores[~no_history].std() > 0.1
    np.testing.assert_allclose(training.logits(lists)[~no_history], expected[~no_history], atol=2e-3)
    whole = np.flatnonzero(~no_history[lists.cases.candidates.offsets[:-1]])
    loss = -log_likelihoods(training.logits(lists), lists)[whole].mean()
    with torch.no_grad():
        assert training(lists.take(whole)).item() == pytest.approx(loss, abs=1e-4)
        each = [training(lists.take(whole[[place]])).item() for place in range(len(whole))]  # few texts at a time
    assert np.mean(each) == pytest.approx(loss, abs=1e-4)


def test_the_log_says_what_the_model_then_does(tiny):
    model = tiny_model(tiny)
    lists = uneven_lists(120, 1)
    model.fit(None, UNEVEN, seed=0).score(lists.cases)  # of what was read before, nothing may stay
    result = fine_tune(model, lists, lists, UNEVEN, replace(QUICK, steps=6, evaluate_every=3))
    assert result.best_step > 0
    best = next(entry for entry in result.log if entry["step"] == result.best_step)
    scores = model.fit(None, UNEVEN, seed=0).score(lists.cases)
    judged = judge_lists(scores + np.float32(best["offset_weight"]) * lists.offsets, lists)
    for name, value in judged.items():
        assert best[name] == pytest.approx(value, abs=1e-4), name


def test_the_warm_starts_similarity_is_the_untrained_score(tiny):
    model = tiny_model(tiny)
    lists = uneven_lists(40, 2)
    texts = TrainingTexts.read(model.reader, model.encoder, UNEVEN, np.arange(len(UNEVEN)))
    histories = readable_histories(lists.cases, texts.has_text, model.history_length)
    with torch.no_grad():
        found = similarities(model.network, texts.vectors, texts.row_of_item, lists, histories)
    np.testing.assert_allclose(found, model.fit(None, UNEVEN, seed=0).score(lists.cases), atol=1e-5)


def test_the_warm_start_weighs_the_offset_as_the_lists_do(tiny):
    """Positives drawn from softmax(2 × offset): λ is 2, whatever the similarity."""
    rng = np.random.default_rng(0)
    lists = planted_lists(1_500, 1, noise=True)
    offsets = rng.normal(size=(1_500, 6)).astype(np.float32)
    taken = (2 * offsets + rng.gumbel(size=offsets.shape)).argmax(axis=1)
    positive = (np.arange(6) == taken[:, None]).ravel()
    lists = TrainingLists(lists.cases, positive, offsets.ravel())
    result = fine_tune(
        tiny_model(tiny), lists, lists.take(np.arange(50)), ITEMS, replace(QUICK, steps=1, evaluate_every=1)
    )
    assert result.log[0]["offset_weight"] == pytest.approx(2.0, abs=0.2)


def test_each_part_has_its_own_rate_and_the_first_step_is_small(tiny):
    model = tiny_model(tiny)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    lists = planted_lists(100, 1)
    settings = replace(QUICK, steps=1, evaluate_every=1, layer_learning_rate=0.0)
    assert fine_tune(model, lists, lists, ITEMS, settings).best_step == 1
    for name, tensor in model.network.state_dict().items():
        if name.startswith("layers."):
            torch.testing.assert_close(tensor, before[name], atol=0, rtol=0)
    # AdamW's first step is the rate itself in every weight, here one twentieth of the full rate
    moved = (model.network.output.weight.detach() - before["output.weight"]).abs()
    assert moved.max().item() == pytest.approx(settings.learning_rate / settings.warmup_steps, rel=0.05)


def test_gradients_are_clipped(tiny):
    settings = replace(QUICK, steps=2, evaluate_every=1, most_gradient=0.0, weight_decay=0.0)
    result = fine_tune(tiny_model(tiny), planted_lists(100, 1), planted_lists(30, 2), ITEMS, settings)
    assert [entry["loss"] for entry in result.log] == [result.log[0]["loss"]] * 3  # to nothing: no step moves


def test_a_killed_run_ends_where_it_would_have_ended(tiny, tmp_path):
    """SIGKILL in a step after the first checkpoint; the same call then gives the uninterrupted run's weights."""
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from llm_rerank.models.cross_encoder import training\n"
        "from tests.models.test_cross_encoder_training import *\n"
        "step = training._Run._step\n"
        "def dying(self, number):\n"
        "    if number == 47:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, number)\n"
        "training._Run._step = dying\n"
        "fine_tune(tiny_model(sys.argv[1]), planted_lists(100, 1), planted_lists(30, 2), ITEMS, QUICK,"
        " checkpoint=Path(sys.argv[2]))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    died = subprocess.run([sys.executable, "-c", script, tiny, str(tmp_path)], env=environment, check=False)
    assert died.returncode == -signal.SIGKILL
    said: list[str] = []
    resumed, whole = tiny_model(tiny), tiny_model(tiny)
    arguments = (planted_lists(100, 1), planted_lists(30, 2), ITEMS, QUICK)
    result = fine_tune(resumed, *arguments, checkpoint=tmp_path, say=said.append)
    assert said[0] == "going on from the checkpoint after step 40"
    unbroken = fine_tune(whole, *arguments)
    assert [entry["step"] for entry in result.log] == [entry["step"] for entry in unbroken.log]
    for (name, a), (_, b) in zip(resumed.network.named_parameters(), whole.network.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


SHORT = replace(QUICK, steps=12, evaluate_every=6)


class Killed(Exception):
    """As good as SIGKILL to a run: it comes in the middle of a step, and nothing is written after it."""


def killed_at(number, monkeypatch, *arguments, **settings):
    """Run a fine-tuning until a step that it does not survive."""
    step = training._Run._step

    def dying(self, place):
        if place == number:
            raise Killed
        return step(self, place)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training._Run, "_step", dying)
        fine_tune(*arguments, **settings)


def assert_same_outcome(first, second, a, b):
    """Same weights and same log within what the checkpoint promises."""
    for (name, one), (_, other) in zip(a.network.named_parameters(), b.network.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert len(first.log) == len(second.log)
    for one, other in zip(first.log, second.log, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def with_other_last_bits(lists):
    """The lists as another number of threads computes them: offsets and weights nearly the same, near ties swapped."""
    rng = np.random.default_rng(9)
    candidates, order = lists.cases.candidates, np.arange(len(lists.offsets))
    order[:2] = [1, 0]
    noise = rng.uniform(-1, 1, len(order)).astype(np.float32) * 1e-4
    weights = lists.cases.history_weights * np.float32(1 + 1e-6)
    cases = replace(
        lists.cases, history_weights=weights, candidates=replace(candidates, values=candidates.values[order])
    )
    return TrainingLists(cases, lists.positive[order], (lists.offsets + noise)[order])


def test_other_last_bits_of_the_fit_do_not_restart_a_killed_run(tiny, tmp_path, monkeypatch):
    lists, validation = uneven_lists(80, 1), uneven_lists(30, 2)
    killed_at(8, monkeypatch, tiny_model(tiny), lists, validation, UNEVEN, SHORT, checkpoint=tmp_path)
    said: list[str] = []
    resumed, whole = tiny_model(tiny), tiny_model(tiny)
    near = with_other_last_bits(lists), with_other_last_bits(validation)
    result = fine_tune(resumed, *near, UNEVEN, SHORT, checkpoint=tmp_path, say=said.append)
    assert said[0] == "going on from the checkpoint after step 6"
    assert_same_outcome(result, fine_tune(whole, lists, validation, UNEVEN, SHORT), resumed, whole)


def test_a_checkpoint_is_also_written_between_evaluations(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    arguments = (uneven_lists(80, 1), uneven_lists(30, 2), UNEVEN, SHORT)
    killed_at(4, monkeypatch, tiny_model(tiny), *arguments, checkpoint=tmp_path)
    said: list[str] = []
    resumed, whole = tiny_model(tiny), tiny_model(tiny)
    result = fine_tune(resumed, *arguments, checkpoint=tmp_path, say=said.append)
    assert said[0] == "going on from the checkpoint after step 4"
    assert_same_outcome(
        result, fine_tune(whole, *arguments), resumed, whole
    )  # the losses of steps 0 to 3 in the log too


def test_a_checkpoint_that_is_not_gone_on_from_says_why(tiny, tmp_path):
    lists, validation = uneven_lists(80, 1), uneven_lists(30, 2)
    quick = replace(QUICK, steps=1, evaluate_every=1)
    kept = tmp_path / "kept"
    fine_tune(tiny_model(tiny), lists, validation, UNEVEN, quick, checkpoint=kept)

    def said_of(lists=lists, items=UNEVEN, settings=quick, spoil=lambda folder: None, **of_model):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(kept, folder)
        spoil(folder)
        said: list[str] = []
        fine_tune(tiny_model(tiny, **of_model), lists, validation, items, settings, checkpoint=folder, say=said.append)
        assert said[1].startswith("step 0:")
        assert "is not gone on from, and will be written over: " in said[0]
        return said[0].split("written over: ")[1]

    def earlier(folder):
        stored = {"run": "a hash of all", "step": 20, "best_step": 20, "log": []}
        save_folder(folder, lambda target: write_json(target / "progress.json", stored))

    assert said_of(settings=replace(quick, seed=1)) == "it is of a run with other settings"
    assert said_of(seed=1) == "it is of a run with other first weights"
    texts = [*UNEVEN.texts[:-1], "garden rake"]
    assert said_of(items=UNEVEN.with_texts(texts)) == "it is of a run with other texts"
    assert said_of(lists=uneven_lists(80, 3)) == "it is of a run with other users, histories or targets"
    far = replace(lists, offsets=lists.offsets + np.float32(0.1) * lists.positive)
    assert said_of(lists=far) == "its offsets differ from those of now by up to 0.1"
    few = sample_negatives(lists, 1, seed=0)
    assert "of their candidates in common with those of now" in said_of(lists=few)
    assert said_of(spoil=earlier) == "an earlier version wrote it"
    assert "is damaged" in said_of(spoil=lambda f: next(f.rglob("best.safetensors")).write_bytes(b"gone"))


def test_a_checkpoint_that_cannot_be_written_is_refused_before_the_work(tiny, tmp_path):
    (tmp_path / "CURRENT").touch()
    said: list[str] = []
    with pytest.raises(StorageError, match="llm_rerank did not write it"):
        fine_tune(
            tiny_model(tiny),
            planted_lists(60, 1),
            planted_lists(20, 2),
            ITEMS,
            replace(QUICK, steps=1),
            checkpoint=tmp_path,
            say=said.append,
        )
    assert not said


def test_of_long_histories_only_what_is_read_is_held(tiny):
    """A hundred items a history, of which the newest three with a text are read: other texts do not fill memory."""
    lists, validation = planted_lists(60, 1), planted_lists(20, 2)
    items = items_of([*WORDS, *("" if n % 2 else f"thing {n}" for n in range(400))])
    rng = np.random.default_rng(0)

    def with_long_histories(lists):
        newest = lists.cases.history.values  # one a list, of the planted rule
        rows = [[*rng.integers(10, 410, 99), 11, code] for code in newest]
        return replace(lists, cases=replace(cases_of(rows, [[0]] * len(rows)), candidates=lists.cases.candidates))

    model = tiny_model(tiny, history_length=3)
    long, more = with_long_histories(lists), with_long_histories(validation)
    histories = [row[np.array([bool(items.texts[code]) for code in row])][-3:] for row in long_rows(long, more)]
    result = fine_tune(model, long, more, items, replace(QUICK, steps=2, evaluate_every=1))
    assert model.reader.n_read == len(np.unique(np.concatenate([np.arange(10), *histories])))
    assert model.reader.n_read < 150
    # and they are read as the model scores
    model.fit(None, items, seed=0)
    best = next(entry for entry in result.log if entry["step"] == result.best_step)
    judged = judge_lists(model.score(more.cases) + np.float32(best["offset_weight"]) * more.offsets, more)
    assert best["loss"] == pytest.approx(judged["loss"], abs=1e-4)


def long_rows(*parts):
    return [lists.cases.history[row] for lists in parts for row in range(len(lists))]


@pytest.mark.parametrize("evaluate_every", [1, 5])
def test_a_run_that_diverges_keeps_the_best_so_far(tiny, monkeypatch, evaluate_every):
    def rate(step, settings):
        return 1e-3 if step < 7 else float("inf")

    monkeypatch.setattr(training, "learning_rate_at", rate)
    said, model = [], tiny_model(tiny)
    settings = replace(QUICK, steps=40, evaluate_every=evaluate_every)
    result = fine_tune(model, planted_lists(200, 1), planted_lists(60, 2), ITEMS, settings, say=said.append)
    assert "the best so far is kept" in said[-1]
    assert all(np.isfinite(entry["loss"]) for entry in result.log)
    assert all(torch.isfinite(weight).all() for weight in model.network.parameters())


def test_ctrl_c_keeps_the_best_so_far(tiny, monkeypatch):
    step = training._Run._step

    def interrupted(self, number):
        if number == 45:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(training._Run, "_step", interrupted)
    model = tiny_model(tiny)
    result = fine_tune(model, planted_lists(200, 1), planted_lists(60, 2), ITEMS, QUICK)
    assert result.interrupted
    assert result.best_step == 40
    assert "interrupted after step 40" in result.sentence()
    fresh = planted_lists(100, 3)
    model.fit(None, ITEMS, seed=0)
    assert judge_lists(model.score(fresh.cases), fresh)["accuracy"] > 0.5


def test_ctrl_c_in_the_first_evaluation_keeps_the_warm_start(tiny, monkeypatch):
    def interrupted(self, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Run, "_evaluate", interrupted)
    model = tiny_model(tiny)
    result = fine_tune(model, planted_lists(200, 1), planted_lists(60, 2), ITEMS, QUICK)
    assert result.interrupted and result.best_step == 0 and not result.log
    assert "interrupted before the first evaluation: the warm start is kept" in result.sentence()
    assert np.isfinite(model.fit(None, ITEMS, seed=0).score(planted_lists(5, 3).cases)).all()
    assert training_plot(result.log).startswith("<svg")


def test_too_few_lists_is_an_error(tiny):
    with pytest.raises(DataError, match="there are 20 training and 5 validation lists"):
        fine_tune(tiny_model(tiny), planted_lists(20, 1), planted_lists(5, 2), ITEMS, QUICK)
    with pytest.raises(DataError, match="steps is 0"):
        TrainingSettings(steps=0)


# ------------------------------------------------------------------- small parts


def test_negatives_are_drawn_and_the_positive_stays():
    lists = planted_lists(50, 1)
    few = sample_negatives(lists, 2, seed=4)
    assert few.cases.candidates.lengths.tolist() == [3] * 50
    assert few.positive.sum() == 50
    np.testing.assert_array_equal(
        few.cases.candidates.values[few.positive], lists.cases.candidates.values[lists.positive]
    )
    first = lists.take(np.array([0]))
    drawn = np.concatenate([sample_negatives(first, 2, s).cases.candidates.values for s in range(500)])
    others = first.cases.candidates.values[~first.positive]
    shares = (drawn[:, None] == others).sum(axis=0) / 500
    np.testing.assert_allclose(shares, 2 / 5, atol=0.1)  # two of five, evenly
    assert sample_negatives(lists, 100, seed=4).cases.candidates.lengths.tolist() == [6] * 50


def test_lists_need_exactly_one_positive_and_finite_offsets():
    lists = planted_lists(3, 1)
    with pytest.raises(DataError, match="training list 0 has 0 positives"):
        TrainingLists(lists.cases, np.zeros_like(lists.positive), lists.offsets)
    with pytest.raises(DataError, match="NaN or infinity"):
        TrainingLists(lists.cases, lists.positive, np.full_like(lists.offsets, np.nan))


def test_every_epoch_reads_every_list_once():
    settings = TrainingSettings(lists_per_step=4)
    first = np.concatenate([rows_of_step(step, 10, settings) for step in range(5)])
    assert sorted(first[:10]) == sorted(first[10:]) == list(range(10))
    assert first[:10].tolist() != first[10:].tolist()
    np.testing.assert_array_equal(rows_of_step(3, 10, settings), first[12:16])
    assert rows_of_step(0, 10, replace(settings, seed=1)).tolist() != first[:4].tolist()


def test_learning_rate_rises_and_falls():
    settings = TrainingSettings(steps=120, warmup_steps=20)
    assert learning_rate_at(0, settings) == pytest.approx(1 / 20)
    assert learning_rate_at(19, settings) == 1.0
    assert learning_rate_at(70, settings) == pytest.approx(0.5)  # half way down the cosine
    assert learning_rate_at(120, settings) == pytest.approx(0.0)


def test_list_metrics_by_hand():
    # two lists: the positive comes first of three (logits 1, 0, 0) and third of four (0, 1, 2, −1)
    cases = cases_of([[0], [0]], [[0, 1, 2], [3, 4, 5, 6]])
    positive = np.array([True, False, False, True, False, False, False])
    logits = np.array([1, 0, 0, 0, 1, 2, -1], dtype=np.float32)
    lists = TrainingLists(cases, positive, np.zeros(7, dtype=np.float32))
    expected = [1 - np.log(np.e + 2), -np.log(1 + np.e + np.e**2 + np.exp(-1))]
    np.testing.assert_allclose(log_likelihoods(logits, lists), expected, rtol=1e-6)
    judged = judge_lists(logits, lists)
    assert judged["loss"] == pytest.approx(-np.mean(expected))
    assert judged["ndcg@10"] == pytest.approx((1 + 1 / np.log2(4)) / 2)
    assert judged["accuracy"] == 0.5
    assert judged["base_rate"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert judged["recall@10"] == 1.0
    # logits that tell nothing are no hit: equals stay in the order given, where the positive of case 0 comes first
    last = TrainingLists(cases, np.array([False, False, True, False, False, False, True]), lists.offsets)
    assert judge_lists(np.zeros(7, dtype=np.float32), last)["accuracy"] == 0.0


def test_the_loss_by_hand_leaves_padding_out():
    # softmax(1, 1 + ln 2) is 1/3, 2/3; the second list has one candidate, what stands in its padding counts for nothing
    scores, offsets = torch.tensor([[1.0, 1.0], [0.0, 9.0]]), torch.tensor([[0.0, np.log(2.0)], [0.0, 0.0]])
    positive, real = torch.tensor([[False, True], [True, False]]), torch.tensor([[True, True], [True, False]])
    assert list_loss(scores, offsets, positive, real).item() == pytest.approx(-np.log(2 / 3) / 2, abs=1e-6)


def test_the_plot_is_a_picture_with_its_figures(tmp_path):
    log = [
        {"step": 0, "loss": 4.9, "ndcg@10": 0.2, "recall@10": 0.3, "accuracy": 0.1, "base_rate": 0.005},
        {
            "step": 20,
            "loss": 4.8,
            "training_loss": 2.5,
            "ndcg@10": 0.21,
            "recall@10": 0.31,
            "accuracy": 0.12,
            "base_rate": 0.005,
        },
    ]
    root = ElementTree.fromstring(training_plot(log))
    name = "{http://www.w3.org/2000/svg}"
    lines = [line.get("points") for line in root.iter(f"{name}polyline")]
    assert len(lines) == 6
    assert "".join(root.itertext()).count("0.0050") == 1
    heights = [float(point.split(",")[1]) for point in lines[0].split()]
    assert heights[1] > heights[0]  # a falling loss falls
    # before the first step there is no loss of steps: three panels, five lines
    alone = ElementTree.fromstring(training_plot(log[:1]))
    assert len(list(alone.iter(f"{name}polyline"))) == 5
    assert "loss of the steps" not in "".join(alone.itertext())


def test_a_fine_tuning_on_a_cpu_after_one_on_another_device_in_the_same_process():
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    before = training.accelerator_for("cpu")
    assert before.device.type == "cpu"
    # what a fine-tuning on a GPU leaves behind; accelerate itself refuses a CPU then
    for state in (PartialState, AcceleratorState):
        state._shared_state["device"] = torch.device("meta")
    with pytest.raises(ValueError, match="already been initialized"):
        training.accelerator_for("meta").__class__(cpu=True)
    assert training.accelerator_for("cpu").device.type == "cpu"
    assert training.accelerator_for("cpu:0").device.type == "cpu"


def test_a_model_on_another_device_than_accelerates_own_stays_there():
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = training.accelerator_for("cpu")
    for state in (PartialState, AcceleratorState):  # as the first GPU is where the model is on the second
        state._shared_state["device"] = torch.device("meta")
    layer = torch.nn.Linear(2, 1)
    wrapped, optimizer = accelerator.prepare(layer, torch.optim.AdamW(layer.parameters()))
    wrapped(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert layer.weight.device.type == "cpu"
    AcceleratorState._reset_state(reset_partial_state=True)
