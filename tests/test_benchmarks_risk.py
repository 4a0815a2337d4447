"""Exceedances of the risk-controlled cut: the closed forms against draws, the arithmetic by hand, and a small run."""

import json

import numpy as np
import pandas as pd
import pytest

from benchmarks import risk_control
from benchmarks.calibration import JudgedLists
from benchmarks.risk_control import Population, at_positions, outcome, resampled_means, simulate, watch
from benchmarks.simulated_lists import SHIFTED_WORLDS, World
from llm_rerank.config import RISKS
from llm_rerank.recommendation.risk_control import case_losses


@pytest.mark.parametrize("risk", RISKS)
def test_the_closed_forms_are_what_draws_show(risk):
    world = World(length=8, newcomers=0.4, spread=1.0)
    levels = np.array([1e-3, 0.01, 0.03, 0.1, 0.4])
    lists = world.draw(20_000, np.random.default_rng(1))
    losses = case_losses(risk, lists.probabilities, lists.positive, lists.rows, levels)
    errors = np.nanstd(losses, axis=0) / np.sqrt((~np.isnan(losses)).sum(axis=0))
    assert (np.abs(np.nanmean(losses, axis=0) - world.risk(risk, levels)) < 4 * errors).all()
    kept = (lists.probabilities[:, None] >= levels).reshape(20_000, 8, 5).sum(axis=1)
    assert (np.abs(kept.mean(axis=0) - world.mean_kept(levels)) < 4 * kept.std(axis=0) / np.sqrt(20_000)).all()
    assert (lists.history_lengths == 1).mean() == pytest.approx(0.4, abs=0.02)


def test_closed_forms_hold_at_both_ends():
    levels = np.array([1e-6, 0.999])
    world = World()
    assert world.risk("missed_target", levels) == pytest.approx([0, 1], abs=2e-3)
    assert world.risk("false_positives", levels) == pytest.approx([49 / 50, 0], abs=2e-3)
    low, high = world.risk("false_discovery", levels)
    assert low == pytest.approx(49 / 50, abs=2e-3)
    assert 0 < high < 0.01  # of the few lists that keep anything there nearly all keep their target


def test_outcomes_by_hand():
    # n 50, alpha .1, delta .1: no miss and one pass (P(Bin(50, .1) ≤ 1) = .034), two do not (.112)
    mean_loss = np.array([[0.0, 0.02, 0.04, 0.2], [0.0, 0.06, 0.1, 0.2], [0.04, 0.06, 0.12, 0.2]])
    truth, kept = np.array([0.0, 0.11, 0.12, 0.2]), np.array([9.0, 4.0, 2.0, 1.0])
    found = outcome("missed_target", 0.1, 0.1, mean_loss, np.full(mean_loss.shape, 50), truth, kept)
    assert found["positions"].tolist() == [1, 0, -1]
    controlled = found["controlled"]
    assert (controlled["exceeded"], controlled["without_a_level"]) == (1, 1)
    assert controlled["mean_risk"] == pytest.approx(0.11 / 3)
    assert (controlled["mean_kept"], controlled["least_kept"], controlled["most_kept"]) == (pytest.approx(22 / 3), 4, 9)
    # the plug-in goes to the last level with a mean of at most .1: 2, 2, 1
    assert found["plug_in"]["exceeded"] == 3
    assert found["plug_in"]["mean_kept"] == pytest.approx(8 / 3)
    assert found["mean_kept_if_the_truth_were_known"] == 9
    assert found["allowed"] == 2  # P(Bin(3, .1) ≤ 1) = .972, ≤ 2: .999


def test_where_no_level_passes_nothing_is_kept_of_what_may_be_wrong():
    falling = np.array([[0.9, 0.8, 0.7]])
    many, truth = np.full((1, 3), 50), np.array([0.9, 0.8, 0.7])
    found = outcome("false_positives", 0.1, 0.1, falling, many, truth, np.array([9.0, 4.0, 2.0]))
    assert (found["controlled"]["mean_kept"], found["controlled"]["mean_risk"], found["controlled"]["exceeded"]) == (
        0,
        0,
        0,
    )
    assert found["mean_kept_if_the_truth_were_known"] == 0
    assert at_positions(np.array([5.0, 6.0]), np.array([1, -1, 0]), 7.0).tolist() == [6, 7, 5]


def test_draws_with_replacement_have_the_mean_and_spread_of_such_draws(monkeypatch):
    monkeypatch.setattr(risk_control, "BLOCK_DRAWS", 300)  # the last block is not full
    losses = np.random.default_rng(3).beta(1, 3, size=(60, 2))
    means, numbers = resampled_means(losses, 25, 4_000, np.random.default_rng(4))
    assert means.shape == (4_000, 2)
    assert (numbers == 25).all()
    spread = losses.std(axis=0) / np.sqrt(25)
    assert means.mean(axis=0) == pytest.approx(losses.mean(axis=0), abs=4 * spread.max() / np.sqrt(4_000))
    assert means.std(axis=0) == pytest.approx(spread, rel=0.05)
    one, _ = resampled_means(np.eye(4), 7, 5, np.random.default_rng(0))
    np.testing.assert_allclose(one.sum(axis=1), 1)
    np.testing.assert_allclose(one * 7, np.round(one * 7))
    # a case that does not count is in no mean
    partly, numbers = resampled_means(np.array([[1.0], [np.nan]]), 7, 50, np.random.default_rng(0))
    assert numbers.min() < 7
    assert (partly[numbers > 0] == 1).all()


def test_a_population_by_hand():
    frame = pd.DataFrame({"probability": [0.5, 0.2, 0.9, np.nan, 0.2]})
    lists = JudgedLists(frame, np.array([1, 0, 1, 2, 1]), np.array([False, True, True, True, False]))
    population = Population.of(lists, 4)  # the last user has no list
    assert population.rows.lengths.tolist() == [1, 3, 1, 0]
    assert population.probabilities[:4].tolist() == pytest.approx([0.2, 0.5, 0.9, 0.2])
    assert population.positive.tolist() == [True, False, True, False, True]
    kept, recall = population.kept_and_recall(np.array([0.1, 0.5, 0.95]))
    assert kept.tolist() == [4 / 4, 2 / 4, 0]
    assert recall.tolist() == [1, 1 / 2, 0]
    # half of the targets: .9 alone; more: down to .2, with which three more come
    assert (population.kept_at_recall(0.5), population.kept_at_recall(0.51)) == (1 / 4, 4 / 4)


@pytest.fixture(scope="module")
def found():
    return simulate(World(), 500, 60, seed=0)


def test_cuts_hold_where_the_truth_is_known_and_are_not_trivial(found):
    assert len(found) == 9
    for figures in found:
        assert figures["held"], figures
        assert 0.5 < figures["controlled"]["least_kept"]
        assert figures["controlled"]["most_kept"] < 0.6 * 50
        assert figures["controlled"]["without_a_level"] == 0
    # without a test the word is not kept
    missed = [figures for figures in found if figures["risk"] == "missed_target"]
    assert all(figures["plug_in"]["exceeded"] > figures["allowed"] for figures in missed)
    # the test of a share of lists is nearly exact: it uses a good part of its delta
    assert sum(figures["controlled"]["exceeded"] for figures in missed) >= 0.3 * 60 * (0.1 + 0.2 + 0.05)


def test_a_shifted_world_takes_the_guarantee_back_and_the_same_one_does_not(found):
    assert not watch(found, World(), "same", World(), 500, 1)["guarantee_is_none"]
    for name in ("more newcomers", "higher scores"):
        entry = watch(found, World(), name, SHIFTED_WORLDS[name], 500, 1)
        assert entry["guarantee_is_none"], name
        assert max(entry["exceeded"].values()) > 0.9
    silent = watch(found, World(), "silent", SHIFTED_WORLDS["silent: targets stand out less"], 500, 1)
    assert not silent["guarantee_is_none"]  # its limit, kept in view
    assert silent["exceeded"]["missed_target, alpha 0.1, delta 0.1"] == 1.0


def test_a_run_on_the_sample(tmp_path, capsys):
    out = tmp_path / "report.json"
    risk_control.main(["--dataset", "sample", "--encoder", "none", "--draws", "300", "--out", str(out)])
    report = json.loads(out.read_text())
    assert len(report["population"]) == 12
    for figures in report["population"]:
        assert figures["held"], figures
        assert "positions" not in figures
        assert figures["mean_kept_by_fixed_probability_at_that_recall"] == pytest.approx(
            figures["controlled"]["mean_kept"], rel=0.35, abs=0.2
        )
    own = report["own_cut"]
    assert own["cut"]["guarantee"]["n_cases"] >= 300
    assert own["risk_on_held_out_users"] < 0.2
    assert own["decision"]["guarantee"] is not None or own["decision"]["no_guarantee"]
    said = capsys.readouterr().out
    assert "missed_target" in said
    assert "fixed at it" in said
