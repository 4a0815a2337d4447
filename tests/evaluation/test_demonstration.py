"""The demo and the table of systems: what is shown follows from the figures, and the user is taken by the rule said."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import Dataset
from llm_rerank.evaluation.comparison import evaluate_ranking
from llm_rerank.evaluation.demonstration import (
    SecondSelection,
    biggest_moves,
    demonstrate,
    one_list,
    second_selection,
    worth_of_text,
)
from llm_rerank.evaluation.protocols import hold_out
from llm_rerank.evaluation.systems import compare_systems, evaluate_shop
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.types import DataError, Ragged
from tests.shops import make_shop

NO_ENCODER = RerankerConfig(encoder=None, sequence="off")


@pytest.fixture(scope="module")
def dataset():
    interactions, items = make_shop(n_users=250)
    return Dataset("sample", interactions, items, None, ["a note"])


@pytest.fixture(scope="module")
def trial(dataset):
    return hold_out(dataset, split="test")


@pytest.fixture(scope="module")
def reranker(trial):
    return Reranker(NO_ENCODER, verbose=False).fit(trial.interactions, trial.item_frame)


@pytest.fixture(scope="module")
def second(reranker, trial):
    return second_selection(reranker, trial)


def test_biggest_moves_by_hand():
    before = list(range(1, 15))  # item n stands at place n
    after = [12, 2, 3, 4, 5, 14, 7, 8, 13, 10, 11, 9, 6, 1]
    # into the first ten rose 12 (by 11), 14 (by 8), 13 (by 4); out of them fell 1 (by 13), 6 (by 7), 9 (by 3)
    assert biggest_moves(before, after) == [(12, 12, 1), (14, 14, 6), (1, 1, 14), (6, 6, 13)]
    assert biggest_moves(before, before) == []


def test_before_and_after_are_the_same_items(second, trial, reranker):
    np.testing.assert_array_equal(second.before.offsets, second.after.offsets)
    changed = 0
    for case in range(len(trial.cases)):
        assert sorted(second.before[case]) == sorted(second.after[case])
        changed += list(second.before[case]) != list(second.after[case])
    assert changed > 0.9 * len(trial.cases)
    user = trial.user_ids[3]
    candidates = pd.DataFrame({"user_id": user, "item_id": trial.items.ids[second.before[3]]})
    alone = reranker.rerank(candidates, at=trial.at)["item_id"]
    assert alone.tolist() == trial.items.ids[second.after[3]].tolist()


def test_the_sentence_counts_users(second, trial):
    before = evaluate_ranking(second.before, trial).per_case["ndcg@10"]
    after = evaluate_ranking(second.after, trial).per_case["ndcg@10"]
    gain, lose = int((after > before).sum()), int((after < before).sum())
    assert f"NDCG@10 {before.mean():.4f} → {after.mean():.4f}; {gain} users gain, {lose} lose" in second.sentence()
    assert "The same candidates, 100 a user, from" in second.sentence()
    few = replace(second, before=Ragged.from_lists([list(range(28)), list(range(29))]))  # of a shop of 30 items
    assert "The same candidates, 28.5 a user, from" in few.sentence()


def test_typical_gainer_has_the_median_gain(trial, second):
    long = trial.seen.lengths >= 5
    assert long.sum() >= 5
    before = np.zeros(len(trial.cases))
    after = before.copy()
    chosen = np.flatnonzero(long)[:5]
    after[chosen] = [0.9, 0.1, 0.5, 0.2, 0.7]
    after[np.flatnonzero(~long)[:3]] = 0.5  # gains, but has a short history
    made = SecondSelection(trial, second.before, second.after, before, after)
    case, who = made.typical_gainer()
    assert (case, who) == (chosen[2], "The user of median gain among those who gain and have had at least 5 items")
    case, who = SecondSelection(trial, second.before, second.after, before, before).typical_gainer()
    assert (case, who) == (0, "Nobody gains who has had at least 5 items, so the first user")


def test_one_list_shows_places_and_what_was_taken(reranker, second, trial):
    case, who = second.typical_gainer()
    lines = one_list(reranker, second, case, who)
    assert lines[0] == f"{who}: {trial.user_ids[case]}"
    titles = trial.items.frame["title"].tolist()
    before, after = list(second.before[case]), list(second.after[case])
    start = next(row for row, line in enumerate(lines) if line.lstrip().startswith("before")) + 1
    taken = set(trial.cases.targets[case])
    for place in range(10):
        line = lines[start + place]
        new = after[place]
        star = "*" if new in taken else " "
        assert line.startswith(f"{place + 1:>3} ")
        assert line.endswith(f"{star}{titles[new]} ({before.index(new) + 1})")
    for item, old, new in biggest_moves(before, after):
        assert f"  {old} → {new}  {titles[item]}" in lines


def test_reasons_are_parts_against_the_mean_of_the_first_ten(reranker, second, trial):
    case, who = second.typical_gainer()
    lines = one_list(reranker, second, case, who)
    before, after = list(second.before[case]), list(second.after[case])
    item, old, new = biggest_moves(before, after)[0]

    def parts(code):
        explanation = reranker.explain(trial.user_ids[case], trial.items.ids[code], at=trial.at)
        return {part.name: part.value for part in explanation.contributions}

    usual = pd.DataFrame([parts(code) for code in before[:10]]).mean()
    apart = pd.Series(parts(item)) - usual
    name = apart.abs().idxmax()
    row = next(row for row, line in enumerate(lines) if line.startswith(f"  {old} → {new}  "))
    assert lines[row + 1].startswith(f"      {name} {apart[name]:+.2f}")


def test_table_has_every_part_and_its_tests(reranker, trial):
    table = compare_systems(reranker, trial)
    assert set(table.results) == {"popularity", "recent_popularity", "text_ease", "als", "item_knn", "fused"}
    assert set(table.tests) == {f"fused vs {name}" for name in table.results if name != "fused"}
    rows = [line.split()[0] for line in str(table).splitlines() if "[0." in line and " vs " not in line]
    by_ndcg = sorted(table.results, key=lambda name: table.results[name].intervals["ndcg@10"].mean)
    assert rows == by_ndcg
    # tastes are planted: histories tell more than sales
    assert table.results["fused"].intervals["ndcg@10"].low > table.results["popularity"].intervals["ndcg@10"].high


def test_the_demo_says_it_all(dataset, capsys):
    said = []
    table = demonstrate(dataset, config=NO_ENCODER, say=said.append)
    told = "\n".join(said)
    order = [
        "a note",
        "held out: sample, test, time cut",
        "before and after: NDCG@10",
        "Why the biggest moves",
        str(table),
    ]
    places = [told.index(part) for part in order]
    assert places == sorted(places)
    assert "guard" in capsys.readouterr().out  # what fit decided goes to the terminal


def test_evaluate_reads_times_in_the_unit_given(dataset):
    # seconds of 1971 and 1972 are taken for positions unless the unit is said, those of 2020 for seconds
    seconds = dataset.interactions["timestamp"]
    early = dataset.interactions.assign(timestamp=seconds - seconds.min() + 40_000_000)
    early = early.rename(columns={"user_id": "customer"})

    def protocol(events, time_unit):
        shown = evaluate_shop(
            events,
            dataset.items,
            columns={"customer": "user_id"} if "customer" in events else None,
            time_unit=time_unit,
            config=NO_ENCODER,
            verbose=False,
        )
        return shown.table.trial

    assert "leave-last-out" in protocol(early, "auto")
    assert "time cut at 1972-01-04" in protocol(early, "s")
    assert "leave-last-out" in protocol(dataset.interactions, "position")
    assert "time cut at 20" in protocol(dataset.interactions, "auto")


def test_evaluate_hands_positions_on_as_positions(dataset, capsys):
    evaluate_shop(dataset.interactions, dataset.items, time_unit="position", config=NO_ENCODER)
    assert "timestamps of interactions: read as plain positions" in capsys.readouterr().out


def test_worth_of_text_follows_the_figures(reranker, trial):
    table = compare_systems(reranker, trial)
    assert worth_of_text(table) == "text: no encoder was used"
    low, high = table.results["popularity"], table.results["fused"]
    little = replace(table, results={"semantic": low, "popularity": high})
    assert "tells little here: behaviour, recent sales and the guard decide" in worth_of_text(little)
    much = replace(table, results={"semantic": high, "popularity": low})
    assert "tells users apart here" in worth_of_text(much)
    assert f"alone has NDCG@10 {high.intervals['ndcg@10'].mean:.4f}" in worth_of_text(much)


def test_evaluate_takes_a_cut(dataset):
    first_day = pd.to_datetime(dataset.interactions["timestamp"], unit="s")
    cut = str(first_day.quantile(0.8).date())
    shown = evaluate_shop(dataset.interactions, dataset.items, cut=cut, config=NO_ENCODER, verbose=False)
    assert f"time cut at {cut}T00:00:00" in shown.table.trial
    last = evaluate_shop(dataset.interactions, dataset.items, cut="last", config=NO_ENCODER, verbose=False)
    assert "leave-last-out" in last.table.trial
    with pytest.raises(DataError, match="'soon'"):
        evaluate_shop(dataset.interactions, dataset.items, cut="soon", config=NO_ENCODER)
