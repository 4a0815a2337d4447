"""The benchmarks of searches and of ablations: their arithmetic by hand, and both from the outside on small shops."""

import gzip
import json
from math import log
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from benchmarks import ablations, phrase_rankers, query_regime
from llm_rerank.data.datasets import load_dataset
from llm_rerank.types import Ragged
from tests.shops import make_shop

# --------------------------------------------------------------- searches


def test_words_of_a_title_and_how_they_are_changed():
    rng = np.random.default_rng(0)
    title = "The 3M Duct-Tape for 500 Pipes, black (2)"
    assert query_regime.title_words(title, 9, rng) == ["duct", "tape", "pipes", "black"]
    drawn = [tuple(query_regime.title_words(title, 2, rng)) for _ in range(50)]
    assert all(len(words) == 2 for words in drawn) and len(set(drawn)) == 6
    assert [query_regime.inflected(word) for word in ("pipes", "tape", "glass")] == ["pipe", "tapes", "glasss"]
    seen = {query_regime.mistyped("tape", rng) for _ in range(200)}
    assert seen == {"tpae", "taep", "tpe", "tae"}
    assert {query_regime.mistyped("aaa", rng) for _ in range(20)} == {"aa"}


def test_bm25_by_hand():
    texts = ["red mug", "red red tea pot", "tea"]
    scores = phrase_rankers.BM25.fit(texts).score(["red", "tea mug", "sofa"])

    def weight(tf: int, n_with: int, length: int) -> float:
        idf = log(1 + (3 - n_with + 0.5) / (n_with + 0.5))
        return idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * length / (7 / 3)))

    assert scores[0] == pytest.approx([weight(1, 2, 2), weight(2, 2, 4), 0])
    assert scores[1] == pytest.approx([weight(1, 1, 2), weight(1, 2, 4), weight(1, 2, 1)])
    assert scores[2].tolist() == [0, 0, 0]


class Letters:
    """An encoder that counts letters: unit rows, so a passage equal to the phrase scores 1."""

    embedding_size = 26
    fingerprint = "letters"

    def encode(self, inputs):
        counts = np.array([[text.count(chr(97 + place)) for place in range(26)] for text in inputs], dtype=np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def test_an_item_scores_as_its_nearest_passage(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(phrase_rankers, "PASSAGE_WORDS", 2)
    assert phrase_rankers.passages("a b c d e") == ["a b", "c d", "e"]
    scores = phrase_rankers.Passages.of(["a b c d e", "f", "e e a"], Letters()).score(["e", "ab", "f"])
    assert scores == pytest.approx(np.array([[1, 0, 1], [1, 0, 0.5**0.5], [0, 1, 0]]))


def perfect_on(rows: np.ndarray, targets: np.ndarray, n_items: int = 40) -> np.ndarray:
    """Scores that put the target first in these rows, and last in the others."""
    scores = np.tile(np.linspace(1, 0.5, n_items), (len(targets), 1))
    scores[np.arange(len(targets)), targets] = np.where(rows, 2, -2)
    return scores.astype(np.float32)


def test_the_best_is_chosen_on_one_half_and_judged_on_the_other():
    half = np.arange(20) % 2 == 0
    targets = np.arange(20)
    nothing, everything = np.zeros(20, dtype=bool), np.ones(20, dtype=bool)
    words = {"good on the half": perfect_on(half, targets), "good on the rest": perfect_on(~half, targets)}
    found = query_regime.judge(words, {"bad": perfect_on(nothing, targets)}, targets, half)
    # each is chosen where it shines and judged where it does not
    assert found["words"].chosen == ["good on the half", "good on the rest"]
    assert found["words"].ndcg.tolist() == [0] * 20 and found["words"].hr.tolist() == [0] * 20
    words = {"good": perfect_on(everything, targets), "bad": perfect_on(nothing, targets)}
    found = query_regime.judge(words, {"half good": perfect_on(half, targets)}, targets, half)
    assert found["words"].ndcg.tolist() == [1] * 20
    assert found["encoder"].hr.tolist() == half.astype(float).tolist()
    assert all(name.startswith("good + ") for name in found["sum"].chosen)


def test_a_sum_finds_what_neither_of_its_parts_does():
    targets, half = np.arange(20), np.arange(20) % 2 == 0
    # each part has its own twelve items before the target, which only their sum puts first
    parts = []
    for other in (range(20, 32), range(32, 40)):
        scores = np.zeros((20, 40), dtype=np.float32)
        scores[:, list(other)] = 3
        scores[np.arange(20), targets] = 2
        parts.append(scores)
    noise = np.random.default_rng(0).normal(size=(20, 40)).astype(np.float32)
    found = query_regime.judge({"a": parts[0], "noise": noise}, {"b": parts[1]}, targets, half)
    assert [name.split(" + ")[0] for name in found["sum"].chosen] == ["a", "a"]
    assert found["words"].hr.mean() < 0.5 and found["encoder"].ndcg.mean() < 0.5
    assert found["sum"].ndcg.mean() == 1
    found = query_regime.judge({"a": parts[0], "b": parts[1]}, {"noise": noise}, targets, half)
    assert found["two words"].ndcg.mean() == 1


def test_the_headline_is_the_users_own_over_the_review_that_was_held_out(tmp_path: Path):
    reviews = [
        ("u1", "a", 10, "an old headline"),
        ("u1", "a", 20, " the held-out one "),
        ("u1", "a", 30, "a later headline"),
        ("u2", "a", 20, "another user's"),
        ("u3", "b", 30, None),
    ]
    folder = tmp_path / "amazon_gift_cards"
    folder.mkdir()
    with gzip.open(folder / query_regime.REVIEWS["amazon_gift_cards"], "wt", encoding="utf-8") as file:
        for user, item, time, summary in reviews:
            row = {"reviewerID": user, "asin": item, "unixReviewTime": time, "summary": summary, "overall": 5.0}
            file.write(json.dumps(row) + "\n")
    trial = SimpleNamespace(
        user_ids=np.array(["u1", "u3", "u4"], dtype=object),
        items=SimpleNamespace(ids=np.array(["a", "b"], dtype=object)),
        cases=SimpleNamespace(times=np.array([20, 30, 40])),
    )
    phrases = query_regime.headline_phrases("amazon_gift_cards", tmp_path, trial, np.array([0, 1, 1]))
    assert phrases == ["the held-out one", "", ""]


def test_searches_on_a_third_of_the_bundled_shop(tmp_path: Path):
    bundled = load_dataset("sample")
    items = bundled.items.iloc[::3]
    items.to_json(tmp_path / "items.jsonl", orient="records", lines=True)
    events = bundled.interactions[bundled.interactions["item_id"].isin(items["item_id"])]
    events.to_csv(tmp_path / "interactions.csv.gz", index=False)
    bundled.users.to_csv(tmp_path / "users.csv", index=False)
    arguments = ["--dataset", "sample", "--data-dir", str(tmp_path), "--cases", "60"]
    query_regime.main([*arguments, "--out", str(tmp_path / "found.json")])
    report = json.loads((tmp_path / "found.json").read_text())
    regimes = {regime["regime"]: regime for regime in report["regimes"]}
    assert len(regimes) == 9 and report["simulated"] is True
    whole = regimes["3 words of the title"]
    assert whole["n"] == 60 and whole["n_items"] > 120 and whole["words_a_phrase"] > 2
    assert whole["judged"]["words"]["hr@10"] > 0.9 and whole["judged"]["encoder"]["hr@10"] > 0.9
    typed = regimes["3 words of the title, mistyped"]["rankers"]
    assert typed["characters of title"]["ndcg@10"] > typed["words of title"]["ndcg@10"] + 0.2
    assert whole["rankers"]["words of title"]["ndcg@10"] > typed["words of title"]["ndcg@10"] + 0.2
    for regime in report["regimes"]:
        means = {kind: best["ndcg@10"] for kind, best in regime["judged"].items()}
        gain = regime["gains"]["sum over words"]
        assert gain["mean"] == pytest.approx(means["sum"] - means["words"])
        assert gain["p"] <= gain["p_holm"] <= 1
        assert gain["pays"] == (gain["relative"] >= 0.1 and gain["low"] > 0)


# -------------------------------------------------------------- ablations


def test_shuffled_text_moves_text_and_reviews_together_and_nothing_else():
    items = pd.DataFrame({"item_id": list("abcd"), "title": list("ABCD"), "price": [1.0, 2, 3, 4], "image": "x"})
    events = pd.DataFrame(
        {
            "user_id": list("uvwuvx"),
            "item_id": list("aababc"),
            "timestamp": [5, 1, 2, 3, 4, 6],
            "review": ["a3", "a1", "b1", None, "b2", "c1"],
        }
    )
    trial = SimpleNamespace(item_frame=items, interactions=events)
    moved = set()
    for seed in range(20):
        new_events, new_items = ablations.shuffled_text(trial, seed)
        assert sorted(new_items["title"]) == list("ABCD")
        assert new_items.drop(columns="title").equals(items.drop(columns="title"))
        assert new_events.drop(columns="review").equals(events.drop(columns="review"))
        source = dict(zip(new_items["item_id"], new_items["title"].str.lower(), strict=True))
        said = {"a": ["a1", "a3"], "b": ["b1", "b2"], "c": ["c1"], "d": [""]}
        given = new_events.set_index(["item_id", "timestamp"])["review"]
        for key, place in {("a", 1): 0, ("a", 5): 1, ("b", 2): 0, ("b", 4): 1, ("c", 6): 0}.items():
            others = said[source[key[0]]]
            assert given[key] == others[place % len(others)]
        assert pd.isna(given[("a", 3)])
        moved.add(tuple(new_items["title"]))
    assert len(moved) > 5
    assert list(items["title"]) == list("ABCD") and events["review"].iloc[0] == "a3"


def test_everyone_gets_the_history_of_another_of_about_the_same_length():
    lengths = np.array([9, 1, 4, 2, 2, 30, 5])
    donor = ablations.donors(lengths, 0)
    assert (donor != np.arange(7)).all()
    assert lengths[donor].tolist()[:3] == [30, 2, 5] and lengths[donor[5]] == 9 and lengths[donor[6]] == 9
    events = pd.DataFrame({"user_id": np.repeat(np.arange(7), lengths), "timestamp": 1})
    events["item_id"] = [f"{user}-{place}" for place, user in enumerate(events["user_id"])]
    trial = SimpleNamespace(
        user_ids=np.arange(7).astype(object),
        cases=SimpleNamespace(history=Ragged.from_lengths(np.zeros(53, dtype=np.int64), lengths)),
        interactions=events,
    )
    wrong = ablations.wrong_histories(trial, 0)
    for user in range(7):
        expected = events.loc[events["user_id"] == donor[user], "item_id"]
        assert set(wrong.loc[wrong["user_id"] == user, "item_id"]) == set(expected)
    assert len(wrong) == lengths[donor].sum()


def test_comparisons_of_gains_by_hand():
    def kept(own: float, wrong: float | None = None) -> dict[str, np.ndarray]:
        found = {"own": np.full(30, own)}
        return found if wrong is None else {**found, "wrong": np.full(30, wrong)}

    values = {
        "behaviour": kept(0.10, 0.02),
        "words": kept(0.13, 0.03),
        "encoder": kept(0.20, 0.04),
        "words, shuffled text": kept(0.09),
        "encoder, shuffled text": kept(0.11),
        "no als": kept(0.16),
    }
    variants = {name: ablations.Variant("base", "encoder") for name in values}
    variants["no als"] = ablations.Variant("components", "encoder", without=("als",))
    rows = {c.label: c.to_dict(0) for c in ablations.comparisons(values, variants)}
    means = {label: row["mean"] for label, row in rows.items()}
    assert means == pytest.approx(
        {
            "words over behaviour": 0.03,
            "encoder over words": 0.07,
            "encoder over behaviour": 0.10,
            "words over behaviour, shuffled text": -0.01,
            "encoder over words, shuffled text": 0.02,
            "encoder over behaviour, shuffled text": 0.01,
            "gain of words over behaviour: real less shuffled text": 0.04,
            "gain of encoder over words: real less shuffled text": 0.05,
            "gain of encoder over behaviour: real less shuffled text": 0.09,
            "behaviour: own history over another's": 0.08,
            "words: own history over another's": 0.10,
            "encoder: own history over another's": 0.16,
            "gain of words over behaviour: own history less another's": 0.02,
            "gain of encoder over words: own history less another's": 0.06,
            "gain of encoder over behaviour: own history less another's": 0.08,
            "whole over no als": 0.04,
        }
    )
    assert rows["words over behaviour"]["relative"] == pytest.approx(0.3)
    assert rows["gain of words over behaviour: real less shuffled text"]["relative"] is None


def test_ablations_on_a_planted_shop(tmp_path: Path):
    # in the layout of the bundled shop, which the benchmark knows by name
    interactions, items = make_shop(n_users=200, seed=2)
    interactions.to_csv(tmp_path / "interactions.csv.gz", index=False)
    items.drop(columns="theme").to_json(tmp_path / "items.jsonl", orient="records", lines=True)
    pd.DataFrame({"user_id": ["u0"], "region": ["north"]}).to_csv(tmp_path / "users.csv", index=False)
    arguments = ["--dataset", "sample", "--data-dir", str(tmp_path), "--keep", str(tmp_path / "kept"), "--variants"]
    wanted = ["behaviour", "words", "words, shuffled text", "encoder", "no text_ease"]
    report = ablations.main([*arguments, *wanted, "--out", str(tmp_path / "found.json")])
    rows = {row["label"]: row for row in report["comparisons"]}
    # everyone has one taste: another's history is worth much less
    assert rows["words: own history over another's"]["low"] > 0.05
    assert {f"whole over {name}" for name in wanted[4:]} <= set(rows)
    assert report["means"]["no text_ease"] != report["means"]["encoder"]
    assert "no als" in report["not_run"] and set(wanted).isdisjoint(report["not_run"])
    assert all(row["p"] <= row["p_holm"] <= 1 for row in rows.values())
    assert json.loads((tmp_path / "found.json").read_text())["comparisons"][0]["label"] == "words over behaviour"
    seconds = {name: fit["seconds_fit"] for name, fit in report["fits"].items()}
    again = ablations.main([*arguments, *wanted])
    assert {name: fit["seconds_fit"] for name, fit in again["fits"].items()} == seconds
    assert again["comparisons"] == report["comparisons"]
