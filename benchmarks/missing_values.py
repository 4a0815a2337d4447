"""Does it matter what a gap is filled with? One treatment for all pair features, against the choice of a fit.

    python -m benchmarks.missing_values --dataset online_retail --data-dir DIR --out FILE.json

Works inside the validation trial's training data as ``blend_cases`` does: the components are fitted on the past of the
fit's own hold-out, and its held-out users teach the blend, whose pair features have their gaps filled by each treatment
in turn, by the one that a fit chooses for each column, and by that without the indicators of what was missing. All rank
the trial's own cases, later ones. Differences are paired by case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks._common import run_information, table, write_report
from benchmarks._halves import Halves, halves_parser, judged_ndcg, load_options
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.data.missing import TREATMENTS, MissingValues
from llm_rerank.recommendation.stage import Stage, fit_stage, usable_features
from llm_rerank.statistics import paired_difference

CHOSEN = "chosen for each column"
WITHOUT_INDICATORS = "chosen, without indicators"


def stages_of(halves: Halves, seed: int) -> dict[str, Stage]:
    """Fit the stage with each way of filling gaps."""
    fold = halves.whole
    used = usable_features(fold.pair_values, fold.candidates, PAIR_FEATURES)
    ways = {CHOSEN: MissingValues(), WITHOUT_INDICATORS: MissingValues(indicator=False)}
    ways |= {name: MissingValues(treatments=dict.fromkeys(used, name)) for name in TREATMENTS}
    return {
        name: fit_stage(
            fold, halves.names, features=PAIR_FEATURES, n_items=halves.n_items, start=None, seed=seed, missing=missing
        ).stage
        for name, missing in ways.items()
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    options = halves_parser("missing_values", __doc__ or "").parse_args(arguments)
    information = run_information(options.seed)
    halves = load_options(options)
    stages = stages_of(halves, options.seed)
    ndcg = {name: judged_ndcg(stage.score(halves.later), halves.later) for name, stage in stages.items()}
    rows: dict[str, dict[str, Any]] = {}
    for name, values in ndcg.items():
        over = paired_difference(values, ndcg[CHOSEN], seed=options.seed)
        rows[name] = {"ndcg@10": float(values.mean()), "over_chosen": [over.mean, over.low, over.high]}
    missing = stages[CHOSEN].missing
    gaps = np.isnan(halves.later.pair_values).mean(axis=0)
    report = {
        "dataset": options.dataset,
        "n_held_out": len(halves.whole.targets),
        "n_later": len(ndcg[CHOSEN]),
        "share_missing": {name: float(gaps[PAIR_FEATURES.index(name)]) for name in missing.names},
        "chosen": missing.treatments,
        "errors": missing.errors,
        "ways": rows,
        **information,
    }
    write_report(options.out, report)
    cells = [
        [name, f"{row['ndcg@10']:.4f}", "{:+.4f} [{:+.4f}, {:+.4f}]".format(*row["over_chosen"])]
        for name, row in rows.items()
    ]
    print(table(["gaps filled by", "NDCG@10", "over the choice"], cells))
    return report


if __name__ == "__main__":
    main()
