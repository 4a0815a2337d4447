"""The benchmarks from the outside: files in, a report out, and what must be true of it, on a planted shop."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import benchmarks
from benchmarks import cross_encoder_gain, number_formats, review_sentiment, scoring_speed, throughput
from benchmarks.ranking import main, pairs_to_test
from benchmarks.systems import FUSED, N_SETTINGS, SINGLES, system_names
from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder
from llm_rerank.types import DataError, Ragged
from tests.planted import items_of
from tests.shops import make_shop
from tests.tiny_encoder import save_tiny_encoder

SYSTEMS = ["popularity", "recent_popularity", "item_knn", "als", "ease", "fused_behaviour"]
KEYS = {"ndcg@10", "hr@10", "map@10", "mrr", "recall@100", "coverage@10", "ci95", "seconds_fit", "seconds_score"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Users with one taste each, fashion that moves: behaviour beats recent popularity beats popularity."""
    folder = tmp_path_factory.mktemp("shop")
    interactions, items = make_shop(n_users=400, seed=1)
    interactions.to_csv(folder / "events.csv", index=False)
    items.to_json(folder / "items.jsonl", orient="records", lines=True)
    return [
        "--interactions",
        str(folder / "events.csv"),
        "--items",
        str(folder / "items.jsonl"),
        "--dataset",
        "planted",
    ]


@pytest.fixture(scope="module")
def report(shop: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("out") / "planted.json"
    main([*shop, "--systems", ",".join(SYSTEMS), "--split", "test", "--seeds", "2", "--out", str(out)])
    return json.loads(out.read_text())


def test_a_run_goes_on_where_another_stopped(shop: list[str], tmp_path: Path) -> None:
    def run(systems: str, *more: str) -> dict:
        keep = ["--keep", str(tmp_path)]
        return main([*shop, "--split", "test", "--systems", systems, *keep, *more])

    first = run("als,fused_behaviour")["systems"]
    second = run("als,ease,fused_behaviour")
    systems, tests = second["systems"], second["tests"]
    assert [systems[name] for name in first] == [*first.values()]  # seconds of the fits too: nothing was fitted again
    assert systems["ease"]["seconds_fit"] > 0
    assert tests == main([*shop, "--split", "test", "--systems", "als,ease,fused_behaviour"])["tests"]
    other = run("als", "--seed", "1")["systems"]["als"]
    assert other["seconds_fit"] != first["als"]["seconds_fit"]


def test_the_report_says_what_was_measured_how_and_on_what(report: dict) -> None:
    assert (report["dataset"], report["split"], report["complete"]) == ("planted", "test", True)
    assert "time cut at" in report["protocol"]
    assert "planted, validation" in report["tuned_on"]
    assert report["hardware"]["cores"] >= 1
    assert report["versions"]["numpy"].count(".") == 2
    assert report["seed"] == 0
    assert list(report["systems"]) == SYSTEMS
    for name, entry in report["systems"].items():
        assert set(entry) >= KEYS, name
        low, high = entry["ci95"]["ndcg@10"]
        assert 0 <= low <= entry["ndcg@10"] <= high <= 1
        assert entry["n_cases"] == report["systems"]["popularity"]["n_cases"] > 100


def test_the_planted_order_of_systems_is_found(report: dict) -> None:
    ndcg = {name: entry["ndcg@10"] for name, entry in report["systems"].items()}
    assert ndcg["recent_popularity"] > 1.1 * ndcg["popularity"]  # fashion moves
    for name in ("item_knn", "als", "ease", "fused_behaviour"):
        assert ndcg[name] > 1.2 * ndcg["popularity"], name  # users have tastes
    assert ndcg["fused_behaviour"] > 1.05 * max(ndcg["item_knn"], ndcg["als"], ndcg["ease"])  # both at once


def test_the_best_setting_on_validation_is_taken_from_the_whole_grid(report: dict) -> None:
    for name in ("recent_popularity", "item_knn", "als", "ease"):
        entry = report["systems"][name]
        tried = entry["tuning"]
        assert [trial["settings"] for trial in tried] == SINGLES[name].grid
        best = max(tried, key=lambda trial: trial["ndcg@10"])
        assert entry["settings"] == best["settings"]


def test_settings_read_when_scoring_give_what_a_fit_with_them_gives(shop: list[str]) -> None:
    names = [name for name in ("item_knn", "user_knn", "ease") if SINGLES[name].read_when_scoring]
    systems = main([*shop, "--systems", ",".join(names)])["systems"]
    for name in names:
        tried = {json.dumps(trial["settings"]): trial["ndcg@10"] for trial in systems[name]["tuning"]}
        # the chosen scorer was made and fitted anew; while tuning it was another one's fit with new attributes
        assert systems[name]["ndcg@10"] == pytest.approx(tried[json.dumps(systems[name]["settings"])], abs=1e-9)
        fits = {
            json.dumps({key: value for key, value in settings.items() if key not in SINGLES[name].read_when_scoring})
            for settings in SINGLES[name].grid
        }
        assert len(set(tried.values())) > len(fits)  # and the attributes do matter


def test_what_draws_at_random_is_fitted_with_each_seed(report: dict) -> None:
    by_seed = report["systems"]["als"]["ndcg@10_by_seed"]
    assert by_seed[0] == report["systems"]["als"]["ndcg@10"]
    assert len(by_seed) == 2
    assert by_seed[0] != by_seed[1]
    assert "ndcg@10_by_seed" not in report["systems"]["ease"]


def test_fused_systems_bring_their_ceiling_and_what_their_fit_said(report: dict) -> None:
    entry = report["systems"]["fused_behaviour"]
    assert entry["ndcg@10"] < entry["ceiling"]["oracle_ndcg@10"] <= 1
    assert entry["ceiling"]["candidate_recall"] == pytest.approx(entry["recall@100"])
    assert any("guard" in line for line in entry["fit_said"])


def test_settings_of_an_earlier_report_give_its_figures_again(shop: list[str], report: dict, tmp_path) -> None:  # noqa: ANN001
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(report))
    again = main([*shop, "--systems", "item_knn,ease", "--split", "test", "--settings", str(earlier)])
    assert again["tuned_on"] is None
    for name in ("item_knn", "ease"):
        assert again["systems"][name]["settings"] == report["systems"][name]["settings"]
        assert again["systems"][name]["ndcg@10"] == pytest.approx(report["systems"][name]["ndcg@10"])
    # a system that the earlier report lacks keeps its own defaults, and says so by empty settings
    defaults = main([*shop, "--systems", "user_knn", "--split", "test", "--settings", str(earlier)])
    assert defaults["systems"]["user_knn"]["settings"] == {}
    assert "tuning" not in defaults["systems"]["user_knn"] or defaults["systems"]["user_knn"]["tuning"] == []


def test_tuning_does_not_see_the_test_events(shop: list[str], report: dict, tmp_path) -> None:  # noqa: ANN001
    events = pd.read_csv(shop[1])
    cut = events["timestamp"].quantile(0.9, interpolation="lower")
    events.loc[events["timestamp"] > cut, "item_id"] = events["item_id"].iloc[0]
    changed = tmp_path / "events.csv"
    events.to_csv(changed, index=False)
    arguments = ["--interactions", str(changed), *shop[2:], "--systems", "item_knn", "--split", "test"]
    other = main(arguments)["systems"]["item_knn"]
    assert other["tuning"] == report["systems"]["item_knn"]["tuning"]
    assert other["ndcg@10"] != report["systems"]["item_knn"]["ndcg@10"]


def test_every_benchmark_can_be_imported() -> None:
    """One that no other test runs would else break unseen where the library moves on."""
    names = [path.stem for path in Path(benchmarks.__file__).parent.glob("*.py") if path.stem != "__init__"]
    assert len(names) > 30
    for name in names:
        importlib.import_module(f"benchmarks.{name}")


def test_every_tuned_system_gets_the_same_number_of_distinct_settings() -> None:
    for name, single in SINGLES.items():
        assert len(single.grid) == (1 if name == "popularity" else N_SETTINGS), name
        assert len({json.dumps(settings, sort_keys=True) for settings in single.grid}) == len(single.grid), name
        assert set(single.read_when_scoring) <= set(single.grid[0]), name


def test_claimed_comparisons_are_of_fused_with_every_other_system() -> None:
    names = ["ease", "text_ease", "fused"]
    assert pairs_to_test(names) == [("fused", "ease"), ("fused", "text_ease"), ("text_ease", "ease")]
    assert pairs_to_test(["ease"]) == []
    steps = ["fused_behaviour", "fused_without_language_model", "fused_without_cross_encoder"]
    assert pairs_to_test(steps) == [(steps[1], steps[0]), (steps[2], steps[1])]


def test_the_line_without_item_support_is_there_where_support_leaks() -> None:
    assert "fused_without_item_support" in system_names("amazon_scientific")
    assert "fused_without_item_support" not in system_names("online_retail")
    assert set(system_names("online_retail")) | {"fused_without_item_support"} == {*SINGLES, "z_sum", *FUSED}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "nothing"], "--dataset is 'nothing'; there are sample,"),
        (["--dataset", "mine", "--interactions", "x.csv"], "--interactions is given without --items"),
    ],
)
def test_errors_name_value_rule_and_remedy(arguments: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        main(arguments)


def test_unknown_systems_are_named(shop: list[str]) -> None:
    with pytest.raises(DataError, match=r"--systems names \['magic'\]"):
        main([*shop, "--systems", "ease,magic"])


def test_wins_are_counted_by_pair() -> None:
    # 0.1 < both; 0.5 ties with one and lies below none: (1 + 1 + ½ + 0) / 4
    pairs = review_sentiment.wins(np.array([0.1, 0.5]), np.array([0.5, 0.2]))
    assert pairs.tolist() == [[1, 1], [0.5, 0]]
    assert review_sentiment.interval(np.ones((5, 7)), 0) == pytest.approx([1, 1])
    low, high = review_sentiment.interval(np.tile([[1.0], [0.0]], (50, 100)), 0)
    # the mean of 100 draws of 0 or 1: ½ ± 1.96 × .05
    assert (low, high) == pytest.approx((0.402, 0.598), abs=0.012)


def test_reviews_are_drawn_by_stars_and_few_tokens_lose() -> None:
    stars = [1.0, 2.0, 3.0, 4.0, 5.0] * 4 + [1.0, 5.0]
    events = pd.DataFrame({"rating": stars, "review": [f"{rating} stars" for rating in stars[:-2]] + ["", " "]})
    low, high = review_sentiment.sample_of_reviews(events, 10, np.random.default_rng(0))
    assert set(low) == {"1.0 stars", "2.0 stars"}
    assert set(high) == {"4.0 stars", "5.0 stars"}
    assert (len(low), len(high)) == (5, 5)
    low, high = review_sentiment.sample_of_reviews(events, 100, np.random.default_rng(0))
    assert (len(low), len(high)) == (8, 8)
    with pytest.raises(DataError, match="no reviews with ratings"):
        review_sentiment.sample_of_reviews(events[["rating"]], 10, np.random.default_rng(0))

    report = review_sentiment.main(["--dataset", "sample", "--reviews", "60", "--tokens", "3,32"])
    entries = report["by_tokens"]
    assert list(entries) == ["32", "3"]
    assert entries["3"]["share_of_reviews_cut"] == 1
    # one token tells little: the first word of a review
    assert entries["32"]["auc"] > 0.8
    assert entries["3"]["auc_difference"] == pytest.approx(entries["3"]["auc"] - entries["32"]["auc"])
    assert entries["3"]["auc_difference"] < -review_sentiment.MOST_LOSS
    assert report["chosen_tokens"] == 32


def test_gain_of_a_user_by_hand() -> None:
    # user "a": target second of three, scores 2, 1, 0; user "b": target not among the candidates, so no row
    trial = SimpleNamespace(
        items=SimpleNamespace(ids=np.array(["x", "y", "z"], dtype=object)),
        user_ids=["a", "b"],
        cases=SimpleNamespace(targets=Ragged.from_lists([[1], [2]])),
    )
    frame = pd.DataFrame(
        {
            "user_id": ["a", "a", "a", "b", "b"],
            "item_id": ["x", "y", "z", "x", "y"],
            "rank": [1, 2, 3, 1, 2],
            "score": [2.0, 1.0, 0.0, 1.0, 0.5],
        }
    )
    found = cross_encoder_gain.lists_with_target(frame, trial)
    assert list(found.user_ids) == ["a"]
    assert found.log_likelihood(found.scores) == pytest.approx([1.0 - np.log(np.e**2 + np.e + 1)])
    assert found.ndcg() == pytest.approx([1 / np.log2(3)])
    assert found.candidates.values[found.first_targets].tolist() == [1]


def test_a_blend_with_a_poor_scale_loses_nothing_to_the_same_ranking_with_a_good_one() -> None:
    rng = np.random.default_rng(0)
    n, length = 2_000, 20
    logits = rng.normal(0.0, 1.5, (n, length))
    taken = np.argmax(logits + rng.gumbel(size=(n, length)), axis=1)
    rows = Ragged.from_lists([np.arange(length)] * n)
    hits = (np.arange(length) == taken[:, None]).ravel()

    def lists(scale: float, noise: float = 0.0) -> cross_encoder_gain.ScoredLists:
        scores = scale * (logits + noise * rng.normal(size=logits.shape)).ravel()
        return cross_encoder_gain.ScoredLists(np.arange(n).astype(object), rows, scores, hits, np.ones(n, dtype=int))

    good, poor, worse = lists(1.0), lists(0.3), lists(1.0, noise=0.5)
    half = np.arange(n) % 2 == 0

    def rescaled(which: cross_encoder_gain.ScoredLists, *further: np.ndarray) -> float:
        return which.log_likelihood(which.cross_fitted(half, *further)[0]).mean()

    assert good.log_likelihood(good.scores).mean() - poor.log_likelihood(poor.scores).mean() > 0.2
    assert rescaled(good) == pytest.approx(rescaled(poor), abs=1e-4)
    assert np.ravel(poor.cross_fitted(half)[1]) == pytest.approx([1 / 0.3, 1 / 0.3], rel=0.1)
    assert rescaled(good) - rescaled(worse) > 0.02  # what is really told stays
    assert rescaled(worse, good.scores) == pytest.approx(rescaled(good), abs=5e-3)


def test_slope_and_agreement_by_hand() -> None:
    assert throughput.slope([10, 100, 1000], [0.1, 1.0, 10.0]) == pytest.approx(1.0)
    assert throughput.slope([10, 100, 1000], [0.3, 0.3, 0.3]) == pytest.approx(0.0)
    first, second = [np.array([3.0, 2.0, 1.0])], [np.array([3.0, 1.0, 2.0])]
    assert scoring_speed.same_top(first, second, k=3) == pytest.approx(1 / 3)  # only the first place holds the same


def test_number_formats_by_hand() -> None:
    first = Ragged.from_lists([np.arange(12), np.arange(3)])
    swapped_within, swapped_beyond = np.r_[1, 0, np.arange(2, 12)], np.r_[np.arange(10), 11, 10]
    share = number_formats.share_of_same_positions
    assert share(first, Ragged.from_lists([swapped_within, np.arange(3)])) == pytest.approx(11 / 13)
    assert share(first, Ragged.from_lists([swapped_beyond, np.arange(3)])) == 1  # only the first ten are shown


def test_items_are_read_from_states_of_the_format_asked_for(tmp_path: Path) -> None:
    encoder = save_tiny_encoder(tmp_path)
    model = HistoryCrossEncoder.from_encoder(encoder, item_tokens=8, dtype="float32", device="cpu")
    scoring_speed.as_if_trained(model, 0)
    trial = SimpleNamespace(past=None, items=items_of(["tent", "camp stove", "tea pot", "lamp"]))
    tables = [number_formats.read_from(model, trial, kind)._table for kind in (None, "float16", "int8")]
    errors = [float((table.item_part - tables[0].item_part).abs().max()) for table in tables]
    assert 0 == errors[0] < errors[1] < 0.1 * errors[2] < 0.01
    exact = model.fit(None, trial.items, seed=0)._table
    assert (tables[0].item_part == exact.item_part).all()


def test_a_made_up_shop_is_a_shop() -> None:
    events, items = throughput.made_up_shop(400, seed=0, n_users=50)
    assert set(events["item_id"]) <= set(items["item_id"])
    assert items["title"].is_unique
    themes = events.assign(theme=events["item_id"] % throughput.N_THEMES).groupby("user_id")["theme"].nunique()
    assert themes.max() <= 3
