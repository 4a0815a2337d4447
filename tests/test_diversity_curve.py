"""The curve of variety against relevance from the outside, on the made-up shop."""

import json

import numpy as np
import pytest

from benchmarks import diversity_curve
from llm_rerank.config import DiversityConfig
from llm_rerank.types import Ragged


@pytest.fixture(scope="module")
def report(smaller_sample: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("out") / "curve.json"
    diversity_curve.main([*smaller_sample, "--split", "test", "--encoder", "none", "--out", str(out)])
    return json.loads(out.read_text())


def test_the_curve_starts_at_the_plain_list_and_falls(report: dict) -> None:
    assert report["vectors"] == "als"
    entries = report["settings"]
    start, varied = entries["strength 0"], entries["strength 1"]
    assert (start["ndcg_change"], start["distance_change"]) == (0, 0)
    assert varied["distance_change"] > 0.1
    assert varied["ndcg_change_ci95"][1] < 0
    distances = [entries[f"strength {strength:g}"]["intra_list_distance@10"] for strength in diversity_curve.STRENGTHS]
    assert (np.diff(distances) > 0).all()
    # a cap of ten a group leaves nothing to cap; the tighter, the farther from the plain list
    tight = [entries[f"{cap} a brand"]["distance_change"] for cap in diversity_curve.CAPS]
    assert tight == sorted(tight, reverse=True)
    assert report["greatest_distance_change"] == max(entry["distance_change"] for entry in entries.values())
    for name, entry in entries.items():
        fulfilled = entry["distance_change"] >= 0.3 and entry["ndcg_change"] >= -0.02
        assert (name in report["reached"]) == fulfilled


def test_lists_are_reordered_by_hand() -> None:
    # 0 and 1 are twins of one group, 2 is alone: a cap of one puts 1 last
    lists = Ragged.from_lists([[0, 1, 2], [2, 1]])
    groups, vectors = np.array([4, 4, 5]), np.eye(3, dtype=np.float32)
    found = diversity_curve.reorder(lists, vectors, groups, DiversityConfig(max_per_group=1))
    assert [row.tolist() for row in (found[0], found[1])] == [[0, 2, 1], [2, 1]]
    figures = {"ndcg@10": 0.5, "intra_list_distance@10": 0.4}
    base, changed = np.array([0.5, 0.4, 0.6, np.nan]), np.array([0.49, 0.39, 0.59, np.nan])
    compared = diversity_curve.compare(changed, base, {**figures, "intra_list_distance@10": 0.52}, figures)
    assert compared["ndcg_change"] == pytest.approx(-0.02)
    assert compared["distance_change"] == pytest.approx(0.3)
