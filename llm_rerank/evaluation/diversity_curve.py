"""What variety costs on a trial: NDCG@10 against intra-list distance, coverage and long-tail share, by strength."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_rerank.config import DiversityConfig
from llm_rerank.evaluation.protocols import Trial
from llm_rerank.metrics import coverage_at_k, hit_matrix, intra_list_distance, long_tail_share_at_k, ndcg_at_k
from llm_rerank.recommendation.candidates import positions_in_row, ranked
from llm_rerank.recommendation.components import Component
from llm_rerank.recommendation.diversity import diversify
from llm_rerank.recommendation.item_groups import item_vectors
from llm_rerank.types import DataError, Ragged

STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
K = 10


def diversity_curve(
    lists: Ragged, trial: Trial, components: Sequence[Component], strengths: Sequence[float] = STRENGTHS
) -> list[dict[str, float]]:
    """Order the same lists at each strength of MMR and say what became of them.

    lists: item codes of the trial, best first, one row a case, deeper than K so that others can come up. Returns one
    mapping a strength: strength, ndcg (mean NDCG@K), ild (mean intra-list distance), coverage, long_tail (mean share);
    none where no component has item vectors.
    """
    try:
        vectors = item_vectors(components, np.arange(len(trial.items), dtype=np.int64))
    except DataError:  # without an encoder and without factors there is nothing to measure distance by
        return []
    targets, ranks = trial.cases.targets, positions_in_row(lists) + 1
    counts = np.bincount(trial.past.items[trial.past.positive & (trial.past.items >= 0)], minlength=len(trial.items))
    points = []
    for strength in strengths:
        found = diversify(np.zeros(len(ranks)), ranks, lists, vectors, None, DiversityConfig(strength))
        reordered = ranked(-found.ranks.astype(np.float64), lists)
        points.append(
            {
                "strength": float(strength),
                "ndcg": float(np.nanmean(ndcg_at_k(hit_matrix(reordered, targets, K), targets.lengths, K))),
                "ild": float(np.nanmean(intra_list_distance(reordered, vectors, K))),
                "coverage": coverage_at_k(reordered, len(trial.items), K),
                "long_tail": float(np.nanmean(long_tail_share_at_k(reordered, counts, K))),
            }
        )
    return points
