"""How many bends does the calibrator need? Calibrators of one fitted blend, judged on users of the future.

    python -m benchmarks.calibrator_bends --dataset amazon_scientific --data-dir DIR --out FILE.json

Components and blend are fitted once, inside the trial's past and without a refit. The calibrators are fitted on fold G,
which the blend has not seen, and judged on the trial's users. With real time the same is said of the users whose first
visit comes within so many days of the decision: how fast does what is known of them age?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks._common import run_information, table, trial_parser, write_report
from benchmarks._halves import fold_of_trial
from benchmarks.calibration import as_long_after
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.data.rendering import Renderer
from llm_rerank.evaluation.protocols import PROTOCOLS, LastOut, TimeCut, hold_out
from llm_rerank.recommendation.calibration import KNOTS, Bends, fit_calibrator
from llm_rerank.recommendation.calibration_report import describe_calibration
from llm_rerank.recommendation.candidates import is_member, ranks_in_row
from llm_rerank.recommendation.held_out import fit_and_score_holdout
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools, Fold
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.parts import fit_fusion_stage
from llm_rerank.recommendation.planning import make_encoder, sentiment_of
from llm_rerank.recommendation.specs import specs_for
from llm_rerank.recommendation.stage import Stage, supports
from llm_rerank.types import BoolArray

VARIANTS: dict[str, Bends] = {"straight": (), "one bend": ((10, (0.5,)),), "as fitted": KNOTS}
DAYS = (7, 14, 28, 50)


def judge(fold: Fold, stage: Stage, bends: Bends, judged: Fold, asked: BoolArray, n_items: int) -> dict[str, Any]:
    """Fit a calibrator on one fold and judge it on the asked cases of another (``describe_calibration``)."""
    positive = is_member(fold.candidates, fold.targets, n_items)
    calibrator = fit_calibrator(stage.score(fold), *supports(fold.pair_values), positive, bends=bends)
    assert calibrator is not None
    part = judged.take(np.flatnonzero(asked))
    scores, of_pair = stage.score(part), supports(part.pair_values)
    return describe_calibration(
        calibrator.probability(scores, *of_pair),
        is_member(part.candidates, part.targets, n_items),
        part.candidates.row_of_value,
        ranks_in_row(scores, part.candidates),
        *of_pair,
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = trial_parser("calibrator_bends", __doc__ or "", dataset="sample")
    parser.add_argument("--encoder", default="default", help="folder or hub name; 'none'")
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    protocol = PROTOCOLS.get(options.dataset, LastOut())
    if isinstance(protocol, TimeCut):
        protocol = replace(protocol, first_visit=True)
    dataset = load_dataset(options.dataset, options.data_dir)
    trial = hold_out(dataset, protocol, options.split)
    encoder_name = None if options.encoder == "none" else options.encoder
    config, log = RerankerConfig(encoder=encoder_name, cache_folder=options.cache, seed=options.seed), FitLog()
    encoder, n_items = make_encoder(config), len(trial.items)
    tools = FitTools(config, encoder, specs_for(config, trial.past, encoder), PAIR_FEATURES, Renderer())
    data = FitData(trial.past, trial.items, None, None, sentiment_of(trial.past, encoder))
    components, items, fold_f, fold_g = fit_and_score_holdout(
        data, tools, plan_holdout(trial.past, options.seed, log), log
    )
    stage = fit_fusion_stage(fold_f, components, tools, n_items, None).stage
    later = fold_of_trial(trial, items, components, config, data.sentiment)
    everybody = np.ones(len(trial.cases), dtype=np.bool_)
    judged = {name: judge(fold_g, stage, bends, later, everybody, n_items) for name, bends in VARIANTS.items()}
    if isinstance(protocol, TimeCut):
        for days in DAYS:
            came = as_long_after(dataset, trial, protocol, days * 86_400).user_ids
            asked = np.isin(trial.user_ids.astype(str), came.astype(str))
            judged[f"as fitted, within {days} days"] = judge(fold_g, stage, KNOTS, later, asked, n_items)
    report = {"dataset": options.dataset, "trial": trial.describe(), "calibration": judged, **information}
    write_report(options.out, report)
    rows = [
        [
            name,
            "{:.3f} [{:.3f}, {:.3f}]".format(values["slope"], *values["slope_ci95"]),
            f"{values['ece_top_10'] / values['mean_probability_top_10']:.1%}",
            f"{values['ece_top_10_if_perfect'] / values['mean_probability_top_10']:.1%}",
            f"{values['n_targets']:,}",
        ]
        for name, values in judged.items()
    ]
    print(table([options.dataset, "slope [95 %]", "ECE of top 10 / mean p", "if perfect", "targets"], rows))
    return report


if __name__ == "__main__":
    main()
