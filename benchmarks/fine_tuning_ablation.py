"""Which way of fine-tuning the cross-encoder tells most of what the blend does not know? On held-out users.

    python -m benchmarks.fine_tuning_ablation --dataset amazon_scientific --data-dir DIR --out FILE.json

Works inside the validation trial's training data, so neither its targets nor the test's are seen. The components and
the blend are fitted once, the training lists are made once; each variant is fine-tuned on them. Its score joins the
blend by a conditional logit of two weights, fitted on one half of the held-out users and judged on the other, then the
halves change places. The gain is over the blend with its own weight, in nats a list of at most 100 candidates.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import run_information, table, write_report
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.data.rendering import Renderer
from llm_rerank.evaluation.protocols import PROTOCOLS, LastOut, hold_out
from llm_rerank.models.conditional_logit import Float64Array, fit_conditional_logit
from llm_rerank.models.cross_encoder.list_metrics import judge_lists, log_likelihoods
from llm_rerank.models.cross_encoder.lists import TrainingLists
from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder
from llm_rerank.models.cross_encoder.training import fine_tune
from llm_rerank.models.cross_encoder.training_settings import TrainingSettings
from llm_rerank.recommendation.held_out import fit_and_score_holdout
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.parts import fit_fusion_stage
from llm_rerank.recommendation.planning import make_encoder, sentiment_of
from llm_rerank.recommendation.specs import specs_for
from llm_rerank.recommendation.training_lists import as_lists, build_training_lists
from llm_rerank.statistics import bootstrap_interval
from llm_rerank.types import FloatArray


@dataclass(frozen=True)
class Variant:
    """What differs from the library's own way. with_offset: train over the blend; else as if nothing were known."""

    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    with_offset: bool = True


VARIANTS = {
    "the library's way": Variant(),
    "token attention to the history": Variant(model={"cross_attention": True}),
    "pretrained layers frozen": Variant(training={"layer_learning_rate": 0.0}),
    "no offset": Variant(with_offset=False),
}


def joined(train: TrainingLists, judge: TrainingLists, scores: Sequence[FloatArray]) -> Float64Array:
    """Logits of the judged lists: offset and score with weights fitted on the other lists."""
    columns = [np.column_stack([lists.offsets, values]) for lists, values in zip((train, judge), scores, strict=True)]
    prior = np.array([1.0, 0.0])
    weights = fit_conditional_logit(columns[0], train.cases.candidates, train.positive, prior=prior, penalty=1e-3)
    return columns[1] @ weights


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fine_tuning_ablation", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--dataset", default="amazon_scientific")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--cache", help="folder that keeps vectors and states")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    protocol = PROTOCOLS.get(options.dataset, LastOut())
    trial = hold_out(load_dataset(options.dataset, options.data_dir), protocol, "validation")
    config, log = RerankerConfig(seed=options.seed, cache_folder=options.cache), FitLog()
    encoder = make_encoder(config)
    assert encoder is not None
    n_items = len(trial.items)
    tools = FitTools(config, encoder, specs_for(config, trial.past, encoder), PAIR_FEATURES, Renderer())
    data = FitData(trial.past, trial.items, None, None, sentiment_of(trial.past, encoder))
    holdout = plan_holdout(data.events, config.seed, log)
    components, items, fold_f, fold_g = fit_and_score_holdout(data, tools, holdout, log)
    stage, _ = fit_fusion_stage(fold_f, components, tools, n_items, None)
    log.step("lists")
    lists = build_training_lists(data, tools, holdout, components, stage, log)
    halves = [as_lists(fold, stage.score(fold).astype(np.float32), n_items)[0] for fold in (fold_f, fold_g)]
    log.finish()

    nothing = [np.zeros(len(half.offsets), dtype=np.float32) for half in halves]
    swaps = ((0, 1), (1, 0))
    alone = [joined(halves[a], halves[b], (nothing[a], nothing[b])) for a, b in swaps]
    entries: dict[str, Any] = {}
    for name, variant in VARIANTS.items():
        training, validation = (
            part if variant.with_offset else replace(part, offsets=np.zeros_like(part.offsets))
            for part in (lists.training, lists.validation)
        )
        model = HistoryCrossEncoder(encoder, cache_folder=options.cache, seed=options.seed, **variant.model)
        settings = TrainingSettings(steps=options.steps, seed=options.seed, **variant.training)
        began = time.perf_counter()
        tuning = fine_tune(model, training, validation, lists.items, settings, say=log.detail)
        seconds = time.perf_counter() - began
        model.fit(holdout.past, items, seed=options.seed)
        scores = [np.nan_to_num(model.score(half.cases), nan=0.0) for half in halves]
        logits = [joined(halves[a], halves[b], (scores[a], scores[b])) for a, b in swaps]
        gains = np.concatenate(
            [
                log_likelihoods(with_it, halves[b]) - log_likelihoods(without, halves[b])
                for with_it, without, (_, b) in zip(logits, alone, swaps, strict=True)
            ]
        )
        interval = bootstrap_interval(gains, seed=options.seed)
        entries[name] = {
            "gain": {"mean": interval.mean, "ci95": [interval.low, interval.high], "n": interval.n},
            "ndcg@10": [
                judge_lists(values, halves[b])["ndcg@10"] for values, (_, b) in zip(logits, swaps, strict=True)
            ],
            "best_step": tuning.best_step,
            "seconds": seconds,
            "evaluations": tuning.log,
        }
    known = {"training": lists.training, "fold F": halves[0], "fold G": halves[1]}
    report = {
        "dataset": options.dataset,
        "blend_alone": {name: {**judge_lists(part.offsets, part), "n": len(part)} for name, part in known.items()},
        "variants": entries,
        "fit_said": log.lines,
        **information,
    }
    write_report(options.out, report)
    rows = [
        [
            name,
            "{:+.4f} [{:+.4f}, {:+.4f}]".format(entry["gain"]["mean"], *entry["gain"]["ci95"]),
            " ".join(f"{value:.4f}" for value in entry["ndcg@10"]),
            str(entry["best_step"]),
            f"{entry['seconds']:.0f}",
        ]
        for name, entry in entries.items()
    ]
    print(table(["variant", "gain, nats [95 %]", "NDCG@10 (G, F)", "best step", "seconds"], rows))
    for name, values in report["blend_alone"].items():
        print(f"blend alone, {name}: loss {values['loss']:.4f}, NDCG@10 {values['ndcg@10']:.4f}, n = {values['n']:,}")
    return report


if __name__ == "__main__":
    main()
