import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_rerank.models.cross_encoder.list_metrics import judge_lists, log_likelihoods
from llm_rerank.models.cross_encoder.lists import TrainingLists, sample_negatives
from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder
from llm_rerank.models.cross_encoder.training import fine_tune
from llm_rerank.models.cross_encoder.training_plot import training_plot
from llm_rerank.models.cross_encoder.training_settings import TrainingSettings, learning_rate_at, rows_of_step
from llm_rerank.types import DataError
from tests.planted import cases_of, items_of
from tests.tiny_encoder import save_tiny_encoder

WORDS = ("tent", "piano", "coffee", "bicycle", "fishing", "garden", "bread", "paint", "window", "river")
OPPOSITE = np.roll(np.arange(10), 5)
"""The planted rule: who had a thing takes its opposite, which no similarity of words can tell."""

QUICK = TrainingSettings(
    steps=60, lists_per_step=16, n_negatives=4, learning_rate=1e-2, layer_learning_rate=1e-3, evaluate_every=20
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


def test_the_warm_start_is_kept_where_no_step_beats_it(tiny):
    model = tiny_model(tiny)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    settings = replace(QUICK, learning_rate=0.3, layer_learning_rate=0.1, patience=1)  # sure to overfit noise
    result = fine_tune(model, planted_lists(60, 1, noise=True), planted_lists(200, 2, noise=True), ITEMS, settings)
    assert result.best_step == 0
    assert "no step beats the warm start" in result.sentence()
    for name, tensor in model.network.state_dict().items():
        if name != "temperature":  # the warm start itself fits it
            torch.testing.assert_close(tensor, before[name])


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


def test_a_killed_run_ends_where_it_would_have_ended(tiny, tmp_path):
    """SIGKILL in a step after the first checkpoint; the same call then gives the uninterrupted run's weights."""
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from llm_rerank.models.cross_encoder import training\n"
        "from tests.models.test_cross_encoder_training import *\n"
        "step = training._Run._step\n"
        "def dying(self, number):\n"
        "    if number == 47:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    step(self, number)\n"
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


def test_a_checkpoint_of_another_run_is_not_taken(tiny, tmp_path):
    fine_tune(tiny_model(tiny), planted_lists(100, 1), planted_lists(30, 2), ITEMS, QUICK, checkpoint=tmp_path)
    said: list[str] = []
    other = replace(QUICK, seed=1, steps=20)
    fine_tune(
        tiny_model(tiny),
        planted_lists(100, 1),
        planted_lists(30, 2),
        ITEMS,
        other,
        checkpoint=tmp_path,
        say=said.append,
    )
    assert said[0].startswith("step 0:")


def test_ctrl_c_keeps_the_best_so_far(tiny, monkeypatch):
    from llm_rerank.models.cross_encoder import training

    step = training._Run._step

    def interrupted(self, number):
        if number == 45:
            raise KeyboardInterrupt
        step(self, number)

    monkeypatch.setattr(training._Run, "_step", interrupted)
    model = tiny_model(tiny)
    result = fine_tune(model, planted_lists(200, 1), planted_lists(60, 2), ITEMS, QUICK)
    assert result.interrupted
    assert result.best_step == 40
    assert "interrupted after step 40" in result.sentence()
    fresh = planted_lists(100, 3)
    model.fit(None, ITEMS, seed=0)
    assert judge_lists(model.score(fresh.cases), fresh)["accuracy"] > 0.5


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
    drawn = np.bincount(
        np.concatenate([np.flatnonzero(sample_negatives(lists.take(np.array([0])), 2, s).positive) for s in range(99)]),
        minlength=3,
    )
    assert (drawn > 0).sum() >= 1
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
    assert ElementTree.fromstring(training_plot(log[:1])) is not None
