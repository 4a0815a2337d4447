"""The benchmark of short histories, run on the bundled shop."""

import json

import numpy as np
import pytest

from benchmarks import short_histories
from benchmarks._halves import as_fold
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.types import Ragged


def test_short_histories_on_most_of_the_bundled_shop(smaller_sample, tmp_path):
    out = tmp_path / "report.json"
    report = short_histories.main([*smaller_sample, "--without-sequence", "--out", str(out)])
    assert json.loads(out.read_text())["lengths"].keys() == {"0", "1", "2", "5", "10", "whole"}
    rows = report["lengths"]
    assert report["n_held_out"] == 502 and 0 < report["n_short"] <= 502
    assert {row["n"] for row in rows.values()} == {200}
    for row in rows.values():
        ndcg = row["ndcg@10"]
        gain = ndcg["short ones too"] - ndcg["whole histories alone"]
        assert row["over_whole_alone"][0] == pytest.approx(gain)
        assert row["over_most_popular"][0] == pytest.approx(ndcg["short ones too"] - ndcg[row["most_popular"]])
    # more history, more known: the same users, and a newcomer's list is no more than popularity
    assert rows["0"]["ndcg@10"]["short ones too"] < rows["1"]["ndcg@10"]["short ones too"] - 0.05
    assert rows["1"]["ndcg@10"]["short ones too"] < rows["whole"]["ndcg@10"]["short ones too"]
    assert rows["0"]["ndcg@10"]["short ones too"] > 0.9 * rows["0"]["ndcg@10"][rows["0"]["most_popular"]]
    assert abs(rows["whole"]["over_whole_alone"][0]) < 0.005


def test_of_the_first_ten_by_hand():
    class Known:
        def score(self, fold):
            return fold.pair_values[:, 0].astype(float)

        def probability(self, scores, pair_values):
            return (scores / 100).astype(np.float32)

    candidates = Ragged.from_lists([np.arange(12), [3, 4]])
    values = np.concatenate([np.arange(12), [50, 60]]).astype(np.float32)
    pairs = np.zeros((14, len(PAIR_FEATURES)), dtype=np.float32)
    pairs[:, 0] = values
    fold = as_fold(values[:, None], pairs, candidates, Ragged.from_lists([[11, 1, 5], [4]]))
    first_visit = Ragged.from_lists([[11, 1], [4]])  # item 5 was taken later
    found = short_histories.first_ten(Known(), fold, first_visit, 20)
    # the ten best of the first list are 2 to 11, one of them taken; both of the second, one taken
    assert found["probability"] == pytest.approx((np.arange(2, 12).sum() + 110) / 12 / 100)
    assert found["taken"] == pytest.approx(2 / 12)
