"""How many held-out users does the blend want? It is fitted on more and more of them and judged on later cases.

    python -m benchmarks.blend_cases --dataset amazon_scientific --data-dir DIR --out FILE.json

Works inside the validation trial's training data as ``blend_rungs`` does: the components are fitted on the past of the
fit's own hold-out. Of its held-out users, both folds, so many are drawn at random; blend, guard and calibrator are
fitted on them as a fit does and rank the trial's own cases, later ones, with the same components. A draw of half the
users is what fold F alone teaches; all of them is what a fit with a refit learns from. Differences are paired by case,
and means over the draws; the interval knows the cases' spread, the draws' own spread stands beside it. With ``--refit``
the components that rank the later cases are fitted again on all of the past, as a fit hands them on; each ``--seed``
holds out other users.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks._common import run_information, table, write_report
from benchmarks._halves import Halves, halves_parser, judged_ndcg, load_options
from llm_rerank.recommendation.fusion import SHARPNESS
from llm_rerank.statistics import paired_difference

SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
HALF = 0.5


def later_ndcg(halves: Halves, share: float, draw: int, sharpness: float) -> npt.NDArray[np.float64]:
    """Fit on a share of the held-out users; NDCG@10 of each later case, shape (n_later,)."""
    n_cases = len(halves.whole.targets)
    order = np.random.default_rng([draw, n_cases]).permutation(n_cases)
    drawn = halves.whole.take(np.sort(order[: round(share * n_cases)]))
    return judged_ndcg(halves.fitted(drawn, seed=draw, sharpness=sharpness).score(halves.later), halves.later)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = halves_parser("blend_cases", __doc__ or "")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=SHARES, help="of the held-out users, a half with them"
    )
    parser.add_argument("--refit", action="store_true", help="judge with components fitted again on all of the past")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--sharpness", type=float, default=SHARPNESS, help="of the shares of rungs")
    options = parser.parse_args(arguments)
    if HALF not in options.shares or not all(0 < share <= 1 for share in options.shares):
        parser.error(
            f"--shares is {options.shares}; give shares above 0 up to 1, {HALF} among them, which others are over"
        )
    information = run_information(options.seed)
    halves = load_options(options, refit=options.refit)
    values = {}
    for share in options.shares:
        # the seed of all users' draws still draws the folds of the cross-validation
        values[share] = np.stack([later_ndcg(halves, share, draw, options.sharpness) for draw in range(options.draws)])
        print(f"{share:.0%} of the held-out users: NDCG@10 {values[share].mean():.4f}", flush=True)
    rows = []
    for share, of_draws in values.items():
        difference = paired_difference(of_draws.mean(axis=0), values[HALF].mean(axis=0), seed=options.seed)
        rows.append(
            {
                "share": share,
                "n_users": round(share * len(halves.whole.targets)),
                "ndcg": float(of_draws.mean()),
                "ndcg_of_draws": of_draws.mean(axis=1).tolist(),
                "over_half": [difference.mean, difference.low, difference.high],
            }
        )
    report = {
        "dataset": options.dataset,
        "components": list(halves.names),
        "n_later": values[HALF].shape[1],
        "draws": options.draws,
        "sharpness": options.sharpness,
        "refit": options.refit,
        "shares": rows,
        "fit_said": halves.said,
        **information,
    }
    write_report(options.out, report)
    cells = [
        [
            f"{row['n_users']:,}",
            f"{row['ndcg']:.4f}",
            f"{np.std(row['ndcg_of_draws'], ddof=1) if options.draws > 1 else np.nan:.4f}",
            "{:+.4f} [{:+.4f}, {:+.4f}]".format(*row["over_half"]),
        ]
        for row in rows
    ]
    print(table(["held-out users", "NDCG@10 of later cases", "sd of draws", "over half of them"], cells))
    return report


if __name__ == "__main__":
    main()
