"""The ablation of what fills gaps: each way is really taken, and the choice is measured against itself."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import missing_values
from llm_rerank.data.missing import TREATMENTS


def test_each_way_is_taken_and_measured_against_the_choice(smaller_sample, tmp_path, monkeypatch):
    found = {}
    halves_of, stages_of = missing_values.load_options, missing_values.stages_of

    def fewer(*arguments, **options):
        halves = halves_of(*arguments, **options)
        few = np.arange(100)
        found["halves"] = replace(halves, fold_f=halves.fold_f.take(few), fold_g=halves.fold_g.take(few))
        return found["halves"]

    def remembered(*arguments):
        found["stages"] = stages_of(*arguments)
        return found["stages"]

    monkeypatch.setattr(missing_values, "load_options", fewer)
    monkeypatch.setattr(missing_values, "stages_of", remembered)
    out = tmp_path / "report.json"
    report = missing_values.main([*smaller_sample, "--without-sequence", "--out", str(out)])
    assert out.exists()
    rows, halves, stages = report["ways"], found["halves"], found["stages"]
    assert set(rows) == {missing_values.CHOSEN, missing_values.WITHOUT_INDICATORS, *TREATMENTS}
    assert rows[missing_values.CHOSEN]["over_chosen"] == [0.0, 0.0, 0.0]
    for row in rows.values():
        assert row["over_chosen"][0] == pytest.approx(row["ndcg@10"] - rows[missing_values.CHOSEN]["ndcg@10"])
    assert report["n_later"] == int((halves.later.targets.lengths > 0).sum())
    assert any(share > 0 for share in report["share_missing"].values())
    for name in TREATMENTS:
        assert set(stages[name].missing.treatments.values()) == {name}
    names = stages[missing_values.WITHOUT_INDICATORS].missing.output_names
    assert not any(name.endswith("_missing") for name in names)
    assert any(name.endswith("_missing") for name in stages[missing_values.CHOSEN].missing.output_names)
    scores = [stages[name].score(halves.later) for name in ("mean", "most_frequent")]
    assert not np.allclose(scores[0], scores[1])
