"""Choose the best set of columns for the blend, or share among the sets? And how sharply? On held-out users.

    python -m benchmarks.blend_rungs --dataset amazon_scientific --data-dir DIR --out FILE.json

Works inside the validation trial's training data, so neither its targets nor the test's are seen: the components are
fitted on the past of the fit's own hold-out, the blend on one half of the held-out users and judged on the other, then
the halves change places. Sharpness: how fast the share of a rung falls with its distance from the best one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import run_information, table, write_report
from benchmarks._halves import judged_ndcg, load_halves
from llm_rerank.statistics import paired_difference

RULES = {
    "best rung": np.inf,
    "shares, sharpness 4": 4.0,
    "shares, sharpness 2": 2.0,
    "shares, sharpness 1": 1.0,
    "shares, sharpness 0.5": 0.5,
    "even shares": 0.0,
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blend_rungs", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="amazon_scientific")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--keep", type=Path, help="folder that keeps the scored candidates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    halves = load_halves(options.dataset, options.data_dir, seed=options.seed, keep=options.keep)
    rows: list[dict[str, Any]] = []
    for name, sharpness in RULES.items():
        chosen, values = [], []
        for train, judge in halves.turns():
            stage = halves.fitted(train, seed=options.seed, sharpness=sharpness)
            chosen.append(stage.verdict.to_dict())
            values.append(judged_ndcg(stage.score(judge), judge))
        rows.append({"rule": name, "sharpness": str(sharpness), "verdicts": chosen, "ndcg": np.concatenate(values)})
    best = rows[0]["ndcg"]
    for row in rows:
        difference = paired_difference(row["ndcg"], best, seed=options.seed)
        row["difference_from_best_rung"] = [difference.mean, difference.low, difference.high]
        row["n_users"] = len(row["ndcg"])
        row["ndcg"] = float(row["ndcg"].mean())
    report = {"dataset": options.dataset, "rules": rows, "fit_said": halves.said, **information}
    write_report(options.out, report)
    cells = [
        [
            row["rule"],
            f"{row['ndcg']:.4f}",
            "{:+.4f} [{:+.4f}, {:+.4f}]".format(*row["difference_from_best_rung"]),
            " | ".join(" ".join(f"{share:.2f}" for share in verdict["shares"].values()) for verdict in row["verdicts"]),
        ]
        for row in rows
    ]
    print(table(["rule", "NDCG@10 of the other half", "difference", "shares (F | G)"], cells))
    return report


if __name__ == "__main__":
    main()
