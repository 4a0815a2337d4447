"""The judge of the ways of fine-tuning on made lists, the ways' lists and texts by hand, and a run on the sample."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import fine_tuning_ablation
from benchmarks._fine_tuning_judging import Judge, cross_fitted, holm_of_gains, ndcg
from benchmarks._fine_tuning_rest import Rest
from benchmarks._fine_tuning_variants import (
    VARIANTS,
    dropped_history,
    hard_negatives,
    hard_targets,
    low_rank,
    purchase_lists,
    sales_first,
    two_targets_a_user,
)
from llm_rerank.models.cross_encoder.lists import TrainingLists
from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder
from llm_rerank.models.cross_encoder.scoring import cases_of_visits
from llm_rerank.models.cross_encoder.training_settings import TrainingSettings
from llm_rerank.types import Items, Ragged
from tests.planted import events_of


def lists_of(candidates, taken, offsets, history):
    rows, past = Ragged.from_lists(candidates), Ragged.from_lists(history)
    cases = cases_of_visits(past, np.ones(len(past.values), dtype=np.float32), rows)
    positive = np.concatenate([np.asarray(row) == item for row, item in zip(candidates, taken, strict=True)])
    return TrainingLists(cases, positive, np.concatenate(offsets).astype(np.float32))


@pytest.fixture(scope="module")
def made():
    """Lists whose items are taken by twice the offset plus a signal that the offset does not know."""
    rng = np.random.default_rng(0)
    n, length = 3_000, 20
    offsets, signal = rng.normal(0, 1, (n, length)), rng.normal(0, 0.5, (n, length))
    taken = np.argmax(2 * offsets + signal + rng.gumbel(size=(n, length)), axis=1)
    lists = lists_of([np.arange(length)] * n, taken, list(offsets), [[0]] * n)
    rest = SimpleNamespace(
        judged=lists,
        user_support=np.ones(n, dtype=np.int64),
        item_support=np.full(length, 3),
        n_users=2 * n,
    )
    return rest, Judge(rest, 0), offsets.ravel(), signal.ravel(), rng.normal(size=n * length)


def test_what_the_blend_does_not_know_is_a_gain_and_nothing_else_is(made):
    _, judge, offsets, signal, noise = made
    scores = {"signal": signal, "offset": offsets * 5, "noise": noise, "none": np.full_like(noise, np.nan)}
    gains = {name: judge.entry([judge.read(values)])["gain"] for name, values in scores.items()}
    logits = 2 * offsets + signal
    by_list, taken = logits.reshape(3_000, 20), judge.rest.judged.positive
    best = -(logits[taken] - np.log(np.exp(by_list).sum(axis=1))).mean()
    assert gains["signal"].mean == pytest.approx(judge.alone.loss.mean() - best, abs=0.005)
    assert gains["signal"].low > 0.02
    assert gains["noise"].mean < 0.002  # weights come from other folds: fitting noise pays nothing
    assert gains["offset"].mean == pytest.approx(0, abs=1e-4)  # the blend has a weight of its own
    assert gains["none"].mean == pytest.approx(0, abs=1e-9)


def test_no_list_has_a_say_in_the_weights_of_its_own_fold():
    rng = np.random.default_rng(2)
    offsets, taken = rng.normal(size=(40, 5)), rng.integers(0, 5, 40)
    logits = []
    for first in (taken[0], (taken[0] + 1) % 5):
        lists = lists_of([np.arange(5)] * 40, [first, *taken[1:]], list(offsets), [[0]] * 40)
        logits.append(cross_fitted(lists, [lists.offsets], 0).reshape(40, 5))
    changed = (logits[0] != logits[1]).any(axis=1)
    assert changed.sum() == 36 and not changed[0]


def test_ndcg_is_over_all_users(made):
    rest, judge, _, signal, _ = made
    entry = judge.entry([judge.read(signal)])
    of_lists = judge.read(signal)[0].ndcg - judge.alone.ndcg
    assert entry["ndcg@10 of all users"].mean == pytest.approx(of_lists.mean() / 2)
    assert entry["ndcg@10 of all users"].n == 6_000
    lists = lists_of([[4, 7, 9], np.arange(30)], [9, 0], [[0.0, 2.0, 1.0], np.arange(30)], [[], []])
    assert ndcg(lists.offsets, lists) == pytest.approx([1 / np.log2(3), 0.0])


def test_a_score_that_holds_for_rare_items_only_gains_by_support():
    rng = np.random.default_rng(1)
    n, length = 3_000, 20
    offsets, signal = rng.normal(0, 1, (n, length)), rng.normal(0, 1, (n, length))
    support = np.where(np.arange(length) < length // 2, 1, 200)
    right = np.where(support == 1, 1.0, -1.0) * signal
    taken = np.argmax(offsets + right + rng.gumbel(size=(n, length)), axis=1)
    lists = lists_of([np.arange(length)] * n, taken, list(offsets), [[0]] * n)
    judge = Judge(SimpleNamespace(judged=lists, user_support=np.ones(n), item_support=support, n_users=n), 0)
    readings = [judge.read(signal.ravel())]
    entry = judge.entry(readings)
    assert entry["gain by support"].mean > 0.1 > abs(entry["gain"].mean)
    strata = judge.gain_by_target_support(readings)
    assert set(strata) == {"0 to 4", "40 or more"} and sum(part.n for part in strata.values()) == n


def events(users, items):
    return events_of(list(zip(users, items, range(len(users)), strict=True)), 6, n_users=2)


def test_lists_of_all_purchases_by_hand():
    lists = purchase_lists(events([0, 1, 0, 0, 0], [1, 2, 3, 1, 4]), seed=0)
    # of user 0 the second and the fourth item; the first has no past, the third is no new item; user 1 has no past
    assert lists.cases.candidates.values[lists.positive].tolist() == [3, 4]
    assert [lists.cases.history[row].tolist() for row in range(2)] == [[1], [1, 3, 1]]
    assert not lists.offsets.any() and set(lists.cases.candidates.values) <= {1, 2, 3, 4}


def test_lists_of_the_variants_by_hand():
    ranks = np.arange(40)
    training = lists_of([ranks, ranks], [3, 35], [-ranks, -ranks], [[1, 2], [3]])
    earlier = lists_of([[5, 6]], [6], [[0.0, 1.0]], [[2, 2, 2]])
    rest = SimpleNamespace(lists=SimpleNamespace(training=training), earlier=SimpleNamespace(training=earlier))
    assert hard_targets(rest, 0).cases.candidates.values[hard_targets(rest, 0).positive].tolist() == [35]
    assert hard_negatives(rest, 0).cases.candidates.lengths.tolist() == [30, 31]
    joined = two_targets_a_user(rest, 0)
    assert len(joined) == 3 and joined.cases.history[2].tolist() == [2, 2, 2] and joined.offsets[-1] == 1.0
    big = lists_of([[0, 1]] * 500, [0] * 500, [[0.0, 0.0]] * 500, [[7, 8, 9, 10]] * 500)
    kept = dropped_history(SimpleNamespace(lists=SimpleNamespace(training=big)), 0).cases
    assert len(kept.history.values) == len(kept.history_weights) == pytest.approx(1_600, abs=60)


def test_sales_in_words_by_hand():
    items = Items(np.arange(6).astype(object), None, np.array(list("abcdef"), dtype=object))
    past = events([0] * 15, [1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5])
    said = sales_first(items, past).texts.tolist()
    assert said == [
        "never sold. a", "rarely sold. b", "rarely sold. c", "sold now and then. d", "often sold. e", "sold most. f"
    ]  # fmt: skip


def test_low_rank_leaves_the_pretrained_weights_as_they_are():
    model = HistoryCrossEncoder(seed=0)
    before = [layer.query.weight.detach().clone() for layer in model.network.upper_layers]
    low_rank(model, None, None, TrainingSettings())
    for layer, weight in zip(model.network.upper_layers, before, strict=True):
        assert torch.equal(layer.query.weight, weight)  # the product starts at 0
        nn.init.ones_(layer.query.parametrizations.weight[0].up)
        assert not torch.equal(layer.query.weight, weight)
    trained = {name for name, p in model.network.layers.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 6 * len(before) and all(name.endswith((".up", ".down")) for name in trained)


def test_drawn_lists_stay_beside_their_users(made):
    judged = made[0].judged
    n = len(judged)
    rest = Rest(None, None, None, None, None, judged, np.arange(n), made[0].item_support, 2 * n, ())
    drawn = rest.drawn(50, 0)
    assert len(drawn.judged) == len(drawn.user_support) == 50 and drawn.n_users == 100
    positions = judged.cases.candidates.value_positions(drawn.user_support)
    assert np.array_equal(drawn.judged.offsets, judged.offsets[positions])
    assert rest.drawn(n, 0) is rest and drawn.user_support.tolist() != list(range(50))


def test_ways_that_were_tried_before_count_too():
    entries = {"a": {"gain": {"p": 0.02}}, "b": {"gain": {"p": 0.5}}}
    assert holm_of_gains(entries) == pytest.approx({"a": 0.04, "b": 0.5})
    assert holm_of_gains(entries, 11) == pytest.approx({"a": 0.22, "b": 1.0})
    assert not fine_tuning_ablation.is_trained({"fine_tunings": [{"best_step": 0}, {"best_step": 0}]})
    assert fine_tuning_ablation.is_trained({"fine_tunings": [{"best_step": 0}, {"best_step": 20}]})


def test_no_name_of_a_way_is_parted_by_the_comma_that_joins_them():
    assert [name for name in VARIANTS if "," in name or name != name.strip()] == []


@pytest.mark.slow
def test_a_run_on_the_sample(tmp_path):
    names = ["frozen", "frozen + two targets a user", "pairwise short"]
    assert set(names) < set(VARIANTS)
    call = ["--dataset", "sample", "--steps", "2", "--judged", "30", "--variants", ",".join(names)]
    call += ["--keep", str(tmp_path), "--cache", str(tmp_path / "vectors")]
    report = fine_tuning_ablation.main(call)
    assert list(report["variants"]) == names
    for entry in report["variants"].values():
        assert entry["gain"]["n"] == report["n_judged"] == 30 < report["n_users"] == entry["ndcg@10 of all users"]["n"]
        p = entry["p of gain, adjusted"]
        assert p is None or p >= entry["gain"]["p"]
        assert [tuning["seed"] for tuning in entry["fine_tunings"]] == [0]
    assert "over frozen" in report["variants"][names[1]] and "over frozen" not in report["variants"]["frozen"]
    assert fine_tuning_ablation.main(call)["variants"] == report["variants"]  # from what was kept
