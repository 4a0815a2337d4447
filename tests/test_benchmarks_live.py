"""Small parts of the benchmarks of regimes, serving and changes: by hand, and on the bundled shop."""

from math import comb
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from benchmarks import changes, regimes
from benchmarks._keeping import keep_arrays, kept_arrays
from benchmarks.serving import quantiles_ms, request_of
from llm_rerank.types import Ragged


def trial_of(targets, support, events=None):
    return SimpleNamespace(
        cases=SimpleNamespace(targets=Ragged.from_lists(targets)),
        item_support=np.array(support),
        interactions=events,
    )


def test_chance_by_hand():
    # six new items (codes 0 to 5), ten shown of them: certain; of forty, one and two wanted
    assert regimes.random_hits(trial_of([[0], [1, 2]], [0] * 6), np.arange(6)) == 1.0
    trial = trial_of([[0], [1, 2], [50]], [0] * 60)
    one, two = 10 / 40, 1 - comb(38, 10) / comb(40, 10)
    assert regimes.random_hits(trial, np.arange(40)) == pytest.approx((one + two + 0) / 3)


def test_a_young_shop_is_a_share_of_the_users_with_all_their_events():
    events = pd.DataFrame({"user_id": np.repeat(np.arange(200), 3), "item_id": 1, "timestamp": np.arange(600)})
    trial = trial_of([[0]], [1], events)
    young = regimes.young_shop(trial, 0.1, seed=0)
    assert young["user_id"].nunique() == 20 and (young.groupby("user_id").size() == 3).all()
    assert set(young["user_id"]) <= set(regimes.young_shop(trial, 0.1, seed=0)["user_id"])
    assert set(young["user_id"]) != set(regimes.young_shop(trial, 0.1, seed=1)["user_id"])
    assert regimes.young_shop(trial, 1.0, seed=0) is events


def test_newest_events_of_each_user():
    frame = pd.DataFrame({"user_id": ["a", "b", "a", "a"], "item_id": [1, 2, 3, 4], "timestamp": [9, 1, 5, 7]})
    assert regimes.newest_events(frame, 2)[["user_id", "item_id"]].values.tolist() == [["b", 2], ["a", 4], ["a", 1]]


def test_cases_by_the_support_of_all_their_targets():
    found = regimes.by_support(trial_of([[0], [1, 2], [2, 3], [0, 3]], [0, 1, 4, 5]))
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "targets nobody took": [True, False, False, False],
        "targets taken 1-4 times": [False, True, False, False],
        "targets taken 5 times or more": [False, False, False, False],
    }


def test_a_regime_says_means_and_each_step_over_the_one_below():
    values = {"behaviour": np.full(50, 0.2), "words": np.full(50, 0.3), "encoder": np.full(50, 0.27)}
    said = regimes.Measured("ndcg@10", [values], ["words"]).to_dict(seed=0)
    assert said["n"] == 50 and said["means"] == pytest.approx({"behaviour": 0.2, "words": 0.3, "encoder": 0.27})
    assert said["steps"]["words over behaviour"]["relative"] == pytest.approx(0.5)
    assert said["steps"]["encoder over words"]["mean"] == pytest.approx(-0.03)


def test_quantiles_and_a_request_by_hand():
    assert quantiles_ms([0.001, 0.002, 0.003]) == pytest.approx(
        {"p50_ms": 2.0, "p95_ms": 2.9, "p99_ms": 2.98, "max_ms": 3.0}
    )
    head, _, body = request_of("/x", {"a": "ü"}).partition(b"\r\n\r\n")
    assert body == b'{"a": "\\u00fc"}' and f"Content-Length: {len(body)}".encode() in head


def test_scorers_told_of_changes_equal_fits_after_them_on_the_bundled_shop():
    report = changes.main(["--dataset", "sample", "--users", "7", "--events", "25"])
    assert set(report["taken_out"]) == set(changes.SCORERS) and set(report["played_in"]) == set(changes.COUNTING)
    for name, part in [*report["taken_out"].items(), *report["played_in"].items()]:
        assert part["difference"] <= 1e-6 * max(1.0, part["greatest_score"]), name


def test_the_librarys_own_choice_is_the_last_step_that_its_fit_found_to_pay():
    pays = {
        "behaviour": {"sequence": False},
        "words": {"sequence": True},
        "encoder": {"sequence": True, "semantic": True},
        "cross_encoder": {"sequence": True, "semantic": True, "cross_encoder": False},
    }
    assert regimes.chosen_step(list(pays), pays) == "encoder"
    pays["encoder"]["semantic"] = False
    assert regimes.chosen_step(list(pays), pays) == "words"
    pays["cross_encoder"]["cross_encoder"] = True
    assert regimes.chosen_step(list(pays), pays) == "cross_encoder"
    # a part that was not tried at all (no text, nothing to train on) does not pay
    assert regimes.chosen_step(["words", "encoder"], {"words": {}, "encoder": {}}) == "words"


def test_a_choice_is_judged_by_its_loss_against_the_best_in_hindsight():
    values = {"words": np.array([0.1, 0.2, 0.3, 0.4]), "encoder": np.array([0.2, 0.3, 0.3, 0.4])}
    auto = regimes.Measured("ndcg@10", [values], ["words"]).to_dict(seed=0)["auto"]
    assert (auto["choice"], auto["best"]) == ("words", "encoder")
    assert auto["loss"] == pytest.approx(0.05)
    assert auto["standard_error"] == pytest.approx(np.std([0.1, 0.1, 0, 0], ddof=1) / 2)
    assert regimes.Measured("ndcg@10", [values], ["encoder"]).to_dict(seed=0)["auto"]["loss"] == 0


def test_over_several_draws_means_are_taken_by_case_and_their_spread_widens_the_interval():
    rng = np.random.default_rng(0)
    base = rng.random(400)
    draws = [{"words": base, "encoder": base + gain} for gain in (0.01, 0.03, 0.05)]
    said = regimes.Measured("ndcg@10", draws, ["words", "encoder", "encoder"]).to_dict(seed=0)
    step = said["steps"]["encoder over words"]
    assert said["draws"] == 3 and step["by_draw"] == pytest.approx([0.01, 0.03, 0.05])
    assert step["mean"] == pytest.approx(0.03)
    # all cases gain alike, so the interval is that of the draws: t of two degrees, 4.303 × .02 / √3
    assert step["low"] == pytest.approx(0.03 - 4.303 * 0.02 / np.sqrt(3), abs=1e-4)
    auto = said["auto"]
    assert (auto["choice"], auto["choices"]) == ("encoder", ["words", "encoder", "encoder"])
    assert auto["mean"] == pytest.approx(base.mean() + 0.08 / 3) and auto["loss"] == pytest.approx(0.01 / 3)
    assert auto["standard_error"] == pytest.approx(0.01 / 3)  # of the draws: .01, 0, 0 lost
    one = regimes.Measured("ndcg@10", draws[:1], ["words"]).to_dict(seed=0)["steps"]["encoder over words"]
    assert one["low"] == pytest.approx(0.01) and one["high"] == pytest.approx(0.01)


def test_another_draw_is_another_shop_of_the_same_size():
    events = pd.DataFrame({"user_id": np.repeat(np.arange(200), 3), "item_id": 1, "timestamp": np.arange(600)})
    trial = trial_of([[0]], [1], events)
    users = [set(regimes.young_shop(trial, 0.1, seed=0, draw=draw)["user_id"]) for draw in range(3)]
    assert all(len(drawn) == 20 for drawn in users)
    assert users[0] != users[1] != users[2] != users[0]
    assert users[0] == set(regimes.young_shop(trial, 0.1, seed=0)["user_id"])


def test_what_was_made_otherwise_is_not_found_again(tmp_path):
    path, made_by = tmp_path / "a" / "kept.safetensors", {"seed": 0, "commit": "abc"}
    assert kept_arrays(path, made_by) is None and kept_arrays(None, made_by) is None
    keep_arrays(path, {"values": np.arange(3)}, {"seconds": 2.0}, made_by)
    arrays, said = kept_arrays(path, made_by)
    assert arrays["values"].tolist() == [0, 1, 2] and said == {"seconds": 2.0}
    assert kept_arrays(path, {**made_by, "seed": 1}) is None
    keep_arrays(None, {}, {}, made_by)
