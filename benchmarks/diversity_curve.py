"""What does variety cost? NDCG@10 against intra-list distance, coverage and long-tail share, by strength and by cap.

    python -m benchmarks.diversity_curve --dataset amazon_scientific --data-dir DIR --split test --out FILE.json

Fits once on the trial's past and scores each user's first 100 candidates once; every setting orders those same lists.
Strengths 0 to 1 (MMR), caps by cluster and by brand (where the shop has brands), and their mix. Each setting's NDCG@10
is compared with strength 0 user by user. Distance is measured on the vectors that MMR reads. At the end: which settings
raise the distance by 30 % at a loss of at most 2 %, by the mean and by the end of the interval; and what bounds the
distance: strength 1 (nothing but variety among the user's candidates), and ten items drawn from the whole catalogue.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks._common import fitted_on, run_information, table, trial_parser, write_report
from llm_rerank.config import DiversityConfig, RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.frames import id_codes
from llm_rerank.evaluation.protocols import PROTOCOLS, LastOut, Trial, hold_out, ranking_from_frame
from llm_rerank.metrics import (
    Float64Array,
    coverage_at_k,
    hit_matrix,
    intra_list_distance,
    long_tail_share_at_k,
    ndcg_at_k,
)
from llm_rerank.recommendation.candidates import positions_in_row, ranked
from llm_rerank.recommendation.diversity import diversify
from llm_rerank.recommendation.item_groups import item_groups, item_vectors, vector_source
from llm_rerank.statistics import paired_difference
from llm_rerank.types import FloatArray, IntArray, Ragged

CANDIDATES = 100
K = 10
STRENGTHS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CAPS = (1, 2, 3, 5)
MIXES = ((0.1, 3), (0.2, 2), (0.2, 3), (0.3, 2))
DEEP_STRENGTHS = (0.1, 0.2, 0.3, 1.0)
LEAST_GAIN, MOST_LOSS = 0.30, 0.02


def settings_to_try(has_brands: bool) -> dict[str, DiversityConfig]:
    """Name each setting; the first changes nothing and is what the others are compared with."""
    found = {f"strength {strength:g}": DiversityConfig(strength) for strength in STRENGTHS}
    found |= {f"{cap} a cluster": DiversityConfig(max_per_group=cap) for cap in CAPS}
    found |= {f"strength {s:g}, {cap} a cluster": DiversityConfig(s, max_per_group=cap) for s, cap in MIXES}
    found |= {f"strength {s:g}, depth {CANDIDATES}": DiversityConfig(s, depth=CANDIDATES) for s in DEEP_STRENGTHS}
    if has_brands:
        found |= {f"{cap} a brand": DiversityConfig(max_per_group=cap, group_by="brand") for cap in CAPS}
    return found


def reorder(lists: Ragged, vectors: FloatArray, groups: IntArray | None, config: DiversityConfig) -> Ragged:
    """Put lists that stand in order of score in the order of a setting."""
    ranks = positions_in_row(lists) + 1
    found = diversify(np.zeros(len(ranks)), ranks, lists, vectors, groups, config)
    return ranked(-found.ranks.astype(np.float64), lists)


def measure(lists: Ragged, trial: Trial, vectors: FloatArray) -> tuple[Float64Array, dict[str, float]]:
    """NDCG@10 of each user, and the other figures of the lists."""
    targets = trial.cases.targets
    ndcg = ndcg_at_k(hit_matrix(lists, targets, K), targets.lengths, K)
    liked = trial.past.items[trial.past.positive & (trial.past.items >= 0)]
    counts = np.bincount(liked, minlength=len(trial.items))
    return ndcg, {
        "ndcg@10": float(np.nanmean(ndcg)),
        "intra_list_distance@10": float(np.nanmean(intra_list_distance(lists, vectors, K))),
        "coverage@10": coverage_at_k(lists, len(trial.items), K),
        "long_tail_share@10": float(np.nanmean(long_tail_share_at_k(lists, counts, K))),
    }


def compare(
    ndcg: Float64Array, base: Float64Array, figures: dict[str, float], start: dict[str, float]
) -> dict[str, Any]:
    """Tell the change against strength 0, in shares of its figures, with the paired interval of NDCG@10."""
    asked = ~np.isnan(base)
    difference = paired_difference(ndcg[asked], base[asked])
    scale = start["ndcg@10"]
    gain = figures["intra_list_distance@10"] / start["intra_list_distance@10"] - 1
    change, low, high = (value / scale for value in (difference.mean, difference.low, difference.high))
    return {
        "ndcg_difference": {"mean": difference.mean, "ci95": [difference.low, difference.high], "p": difference.p},
        "ndcg_change": change,
        "ndcg_change_ci95": [low, high],
        "distance_change": gain,
        "reached": bool(gain >= LEAST_GAIN and change >= -MOST_LOSS),
        "reached_by_interval": bool(gain >= LEAST_GAIN and low >= -MOST_LOSS),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = trial_parser("diversity_curve", __doc__ or "")
    parser.add_argument("--encoder", default="default", help="folder or hub name; 'none': vectors are als factors")
    parser.add_argument("--cross-encoder", choices=("auto", "always", "off"), default="off")
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    dataset = load_dataset(options.dataset, options.data_dir)
    trial = hold_out(dataset, PROTOCOLS.get(options.dataset, LastOut()), options.split)
    config = RerankerConfig(
        encoder=None if options.encoder == "none" else options.encoder,
        cross_encoder=options.cross_encoder,
        cache_folder=options.cache,
        seed=options.seed,
    )
    began = time.perf_counter()
    reranker = fitted_on(trial, config, options.model)
    seconds_fit = time.perf_counter() - began
    best = reranker.recommend(list(trial.user_ids), k=CANDIDATES, at=trial.moments)
    # vectors and groups in the codes of the trial, which are those of the reranker: both read the same item table
    fitted = reranker._fit_result()
    assert (id_codes(fitted.items.ids, trial.items.ids) == np.arange(len(trial.items))).all()
    codes = np.arange(len(fitted.items), dtype=np.int64)
    lists, vectors = ranking_from_frame(best, trial), item_vectors(reranker.components, codes)
    entries: dict[str, dict[str, Any]] = {}
    base: Float64Array | None = None
    has_brands = bool((fitted.items.frame["brand"].astype(str).str.strip() != "").any())
    for name, setting in settings_to_try(has_brands).items():
        groups = None
        if setting.max_per_group is not None:
            groups = item_groups(reranker.components, fitted.items, setting, codes, options.seed)
        began = time.perf_counter()
        reordered = reorder(lists, vectors, groups, setting)
        seconds = time.perf_counter() - began
        ndcg, figures = measure(reordered, trial, vectors)
        if base is None:
            base, start = ndcg, figures
        entries[name] = {**figures, **compare(ndcg, base, figures, start), "seconds": seconds}
    source: object = vector_source(reranker.components)
    report = {
        "dataset": options.dataset,
        "trial": trial.describe(),
        "n_users": len(trial.user_ids),
        "vectors": next(c.name for c in reranker.components if c.scorer is source),
        "settings": entries,
        "reached": [name for name, entry in entries.items() if entry["reached"]],
        "reached_by_interval": [name for name, entry in entries.items() if entry["reached_by_interval"]],
        "greatest_distance_change": max(entry["distance_change"] for entry in entries.values()),
        "distance_of_random_items": float(intra_list_distance(Ragged.from_lists([codes]), vectors, len(codes))[0]),
        "seconds_fit_or_load": seconds_fit,
        **information,
    }
    write_report(options.out, report)
    print(say(report))
    return report


def say(report: dict[str, Any]) -> str:
    """Lay the report out as a table and the verdict below it."""
    rows = [
        [
            name,
            f"{entry['ndcg@10']:.4f}",
            f"{entry['ndcg_change']:+.1%}",
            f"[{entry['ndcg_change_ci95'][0]:+.1%}, {entry['ndcg_change_ci95'][1]:+.1%}]",
            f"{entry['intra_list_distance@10']:.3f}",
            f"{entry['distance_change']:+.0%}",
            f"{entry['coverage@10']:.3f}",
            f"{entry['long_tail_share@10']:.3f}",
        ]
        for name, entry in report["settings"].items()
    ]
    heads = [report["dataset"], "NDCG@10", "change", "95 %", "distance", "change", "coverage", "long tail"]
    reached = ", ".join(report["reached"]) or "none"
    return (
        f"{table(heads, rows)}\n"
        f"distance +{LEAST_GAIN:.0%} at a loss of at most {MOST_LOSS:.0%} NDCG@10: {reached}; "
        f"by the end of the interval: {', '.join(report['reached_by_interval']) or 'none'}\n"
        f"greatest distance that any setting reached: {report['greatest_distance_change']:+.0%}; items drawn at "
        f"random: {report['distance_of_random_items']:.3f} (vectors of {report['vectors']})"
    )


if __name__ == "__main__":
    main()
