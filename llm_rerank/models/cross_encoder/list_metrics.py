"""How well logits tell the taken item of a list: loss, NDCG, recall, accuracy beside its base rate."""

from __future__ import annotations

import numpy as np

from llm_rerank.metrics import hit_matrix, ndcg_at_k
from llm_rerank.models.conditional_logit import Float64Array
from llm_rerank.models.cross_encoder.lists import TrainingLists
from llm_rerank.types import FloatArray, Ragged


def log_likelihoods(logits: FloatArray | Float64Array, lists: TrainingLists) -> np.ndarray:
    """Log softmax of each list's positive over its list: float64, shape (n_lists,)."""
    rows = lists.cases.candidates
    starts, row = rows.offsets[:-1], rows.row_of_value
    shifted = logits.astype(np.float64) - np.maximum.reduceat(logits, starts).astype(np.float64)[row]
    totals = np.log(np.add.reduceat(np.exp(shifted), starts))
    return shifted[lists.positive] - totals


def judge_lists(logits: FloatArray | Float64Array, lists: TrainingLists) -> dict[str, float]:
    """Mean loss, NDCG@10, recall@10 (one positive: also the hit rate), accuracy and its base rate.

    accuracy: share of lists whose positive comes first; base_rate: what guessing reaches, the mean of 1 / length.
    """
    rows = lists.cases.candidates
    order = np.lexsort((np.arange(len(logits)), -logits, rows.row_of_value))
    ranked = Ragged(rows.values[order], rows.offsets)
    targets = Ragged.from_lengths(rows.values[lists.positive], np.ones(len(rows), dtype=np.int64))
    hits = hit_matrix(ranked, targets, 10)
    return {
        "loss": float(-log_likelihoods(logits, lists).mean()),
        "ndcg@10": float(ndcg_at_k(hits, targets.lengths, 10).mean()),
        "recall@10": float(hits.any(axis=1).mean()),
        "accuracy": float(hits[:, 0].mean()),
        "base_rate": float((1.0 / rows.lengths).mean()),
    }
