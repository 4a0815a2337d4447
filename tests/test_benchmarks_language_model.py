"""What a reader's score is worth, by hand, and a run on the sample with a small trained model."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import language_model
from benchmarks._fine_tuning_judging import Judge
from tests.planted_language_model import written_model
from tests.test_fine_tuning_ablation import lists_of


def rest_of(candidates, taken, offsets):
    lists = lists_of(candidates, taken, offsets, [[0]] * len(candidates))
    n_items = 1 + max(map(max, candidates))
    support = np.ones(len(candidates), dtype=np.int64)
    return SimpleNamespace(
        judged=lists, user_support=support, item_support=np.ones(n_items, dtype=np.int64), n_users=len(candidates)
    )


def test_the_share_of_others_below_the_target_counts_ties_half_and_unscored_as_below():
    rest = rest_of([[0, 1, 2], [3, 4], [5]], [1, 3, 5], [[0, 0, 0], [0, 0], [0]])
    scores = np.array([0.5, 0.5, np.nan, -1.0, 2.0, 7.0], dtype=np.float32)
    # above one of two and level with the other: (1 + 1/2) / 2; below its only other; no others at all
    assert language_model.shares_above(scores, rest).tolist() == [0.75, 0.0, 0.0]


def test_a_score_that_knows_the_target_gains_and_stands_above():
    rng = np.random.default_rng(0)
    n, length = 400, 10
    taken = rng.integers(0, length, n)
    rest = rest_of([np.arange(length)] * n, taken, list(rng.normal(size=(n, length))))
    knows = rest.judged.positive * 1.0 + rng.normal(0, 1, n * length)
    entry = language_model.entry_of(knows.astype(np.float32), rest, Judge(rest, 0), 1.0)
    assert entry["gain"]["ci95"][0] > 0.1 and entry["ndcg@10 of all users"]["ci95"][0] > 0
    # the target's score is one deviation above the others': Φ(1 / √2)
    assert entry["share above"]["mean"] == pytest.approx(0.760, abs=0.03)
    noise = language_model.entry_of(rng.normal(size=n * length).astype(np.float32), rest, Judge(rest, 0), 1.0)
    assert noise["gain"]["mean"] < 0.01


@pytest.mark.slow
def test_a_run_on_the_sample(tmp_path):
    model = written_model(tmp_path / "model", steps=20)
    arguments = ["--dataset", "sample", "--judged", "20", "--language-model", str(model), "--history-length", "5"]
    report = language_model.main([*arguments, "--fraction", "0.5", "--out", str(tmp_path / "report.json")])
    assert set(report["readers"]) == {"language model", "encoder's similarity", "TF-IDF"}
    assert report["n_judged"] == 20 and report["cost"]["max_abs_difference"] < 0.5
    assert all(entry["scored"] > 0.5 for entry in report["readers"].values())
