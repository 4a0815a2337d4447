"""Do smaller numbers change the list? A fine-tuned cross-encoder whose items are read from kept states, by format.

    python -m benchmarks.number_formats --dataset amazon_scientific --data-dir DIR --out FILE.json

The reranker is fitted with its cross-encoder. Every item is then read anew from lower states that are kept in no file
(float32), in float16 and in int8, and the same candidates, the first 100 of each user, are scored. Of each format: the
share of the first ten positions that hold the same item as with float32, by the cross-encoder alone and in the list
that a shop shows; the greatest difference of a score; and NDCG@10 of the list. ``benchmarks.scoring_speed`` has the
same for random weights, and bfloat16, which only the reader of token attention computes in.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks._common import fitted_on, run_information, table, trial_parser, write_report
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.frames import id_codes
from llm_rerank.evaluation.protocols import PROTOCOLS, LastOut, Trial, hold_out, ranking_from_frame
from llm_rerank.metrics import Float64Array, hit_matrix, ndcg_at_k
from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder
from llm_rerank.models.cross_encoder.state_cache import StateType
from llm_rerank.recommendation.candidates import ranked
from llm_rerank.recommendation.residual import CROSS_ENCODER
from llm_rerank.statistics import paired_difference
from llm_rerank.types import FloatArray, Ragged

CANDIDATES = 100
K = 10


def read_from(model: HistoryCrossEncoder, trial: Trial, cache_type: StateType | None) -> HistoryCrossEncoder:
    """Read the trial's items with a model's network from states of a format; None: states that no file holds."""
    other = copy.copy(model)
    with tempfile.TemporaryDirectory() as folder:
        other.cache_folder, other.cache_type = None if cache_type is None else Path(folder), cache_type or "float16"
        other._reader = None  # the next one opens that folder
        return other.fit(trial.past, trial.items, seed=0)


def share_of_same_positions(first: Ragged, second: Ragged) -> float:
    """Share of the first K positions that hold the same item; lists of the same lengths."""
    shown = np.arange(len(first.values)) - np.repeat(first.offsets[:-1], first.lengths) < K
    return float((first.values == second.values)[shown].mean())


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    options = trial_parser("number_formats", __doc__ or "").parse_args(arguments)
    information = run_information(options.seed)
    trial = hold_out(
        load_dataset(options.dataset, options.data_dir), PROTOCOLS.get(options.dataset, LastOut()), options.split
    )
    config = RerankerConfig(cache_folder=options.cache, cross_encoder="always", seed=options.seed)
    reranker = fitted_on(trial, config, options.model)
    (model,) = [c.scorer for c in reranker.components if c.name == CROSS_ENCODER]
    assert isinstance(model, HistoryCrossEncoder)
    frame = reranker.recommend(list(trial.user_ids), k=CANDIDATES, at=trial.moments)[["user_id", "item_id"]]
    users = id_codes(frame["user_id"], trial.user_ids)
    codes = id_codes(frame["item_id"], trial.items.ids)[np.argsort(users, kind="stable")]
    lists = Ragged.from_lengths(codes, np.bincount(users, minlength=len(trial.user_ids)).astype(np.int64))
    cases = trial.cases.with_candidates(lists)

    def judge(cache_type: StateType | None) -> tuple[FloatArray, Ragged, Float64Array]:
        model._table = read_from(model, trial, cache_type)._table
        scores = model.score(cases)
        fused = ranking_from_frame(reranker.rerank(frame, at=trial.moments), trial)
        return scores, fused, ndcg_at_k(hit_matrix(fused, trial.cases.targets, K), trial.cases.targets.lengths, K)

    exact, fused, ndcg = judge(None)
    formats: dict[str, Any] = {}
    for cache_type in get_args(StateType):
        scores, other, other_ndcg = judge(cache_type)
        formats[cache_type] = {
            "same_top_10_cross_encoder": share_of_same_positions(ranked(exact, lists), ranked(scores, lists)),
            "same_top_10_fused": share_of_same_positions(fused, other),
            "max_abs_difference": float(np.nanmax(np.abs(scores - exact))),
            "ndcg@10": float(other_ndcg.mean()),
            "against_float32": dict(vars(paired_difference(other_ndcg, ndcg, seed=options.seed))),
        }
    report = {
        "dataset": options.dataset,
        "split": options.split,
        "n_users": len(trial.user_ids),
        "cross_attention": model.cross_attention,
        "spread_of_scores": float(np.nanstd(exact)),
        "ndcg@10_float32": float(ndcg.mean()),
        "formats": formats,
        **information,
    }
    write_report(options.out, report)
    print(f"float32: NDCG@10 {ndcg.mean():.4f}, scores spread by {np.nanstd(exact):.3f}")
    rows = [
        [
            name,
            f"{f['same_top_10_cross_encoder']:.4f}",
            f"{f['same_top_10_fused']:.4f}",
            f"{f['max_abs_difference']:.1e}",
            f"{f['ndcg@10']:.4f}",
        ]
        for name, f in formats.items()
    ]
    heads = ["states in", "same first ten, cross-encoder", "same first ten, list", "greatest difference", "NDCG@10"]
    print(table(heads, rows))
    return report


if __name__ == "__main__":
    main()
