"""What a score adds to the blend on the judged lists, and over all users: the arithmetic, paired by user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks._fine_tuning_rest import Rest
from llm_rerank.models.conditional_logit import Float64Array, fit_conditional_logit
from llm_rerank.models.cross_encoder.list_metrics import log_likelihoods
from llm_rerank.models.cross_encoder.lists import TrainingLists
from llm_rerank.recommendation.blend_columns import centred_support
from llm_rerank.recommendation.candidates import ranks_in_row
from llm_rerank.recommendation.fusion import fold_of_case
from llm_rerank.statistics import Difference, holm, paired_difference
from llm_rerank.types import FloatArray

N_FOLDS = 10
SUPPORTS = ((0, 5), (5, 40), (40, 10**9))


def cross_fitted(lists: TrainingLists, columns: Sequence[FloatArray | Float64Array], seed: int) -> Float64Array:
    """Logits of a conditional logit over the columns, each fold of the lists by the weights of the nine others.

    Not by halves: a useless column whose weight differs between two halves by chance would look harmful.
    columns: aligned with the candidates, the offset first: its weight is shrunk toward 1, the others' toward 0, all but
    imperceptibly. Returns float64, shape (n_candidates,).
    """
    design, rows = np.column_stack(columns).astype(np.float64), lists.cases.candidates
    fold = fold_of_case(len(lists), N_FOLDS, seed)
    logits = np.empty(len(design))
    for judged in range(N_FOLDS):
        inside, outside = np.flatnonzero(fold != judged), np.flatnonzero(fold == judged)
        train, test = rows.value_positions(inside), rows.value_positions(outside)
        prior = np.eye(design.shape[1])[0]
        weights = fit_conditional_logit(
            design[train], rows.take(inside), lists.positive[train], prior=prior, penalty=1e-3
        )
        logits[test] = design[test] @ weights
    return logits


def ndcg(logits: Float64Array, lists: TrainingLists) -> Float64Array:
    """NDCG@10 of each list, one relevant item each: float64, shape (n_lists,)."""
    ranks = ranks_in_row(logits, lists.cases.candidates)[lists.positive]
    return np.where(ranks <= 10, 1.0 / np.log2(1.0 + ranks), 0.0)


@dataclass(frozen=True)
class Judged:
    """Each judged user's values: arrays of shape (n_lists,). loss: −log softmax at the target."""

    loss: Float64Array
    ndcg: Float64Array


class Judge:
    """The blend alone, and what a score beside it adds.

    By support: the score may count more or less by the supports of item and user; a column of the item's support then
    stands on both sides, so that a mere shift toward rare items is no gain.
    """

    def __init__(self, rest: Rest, seed: int) -> None:
        self.rest, self.seed = rest, seed
        candidates = rest.judged.cases.candidates
        item = np.log1p(rest.item_support[candidates.values]).astype(np.float32)
        user = np.log1p(rest.user_support[candidates.row_of_value]).astype(np.float32)
        self._supports = [centred_support(item), centred_support(user)]
        self.alone = self._judged(rest.judged.offsets)
        self._alone_by_support = self._judged(rest.judged.offsets, self._supports[0])

    def read(self, scores: FloatArray) -> tuple[Judged, Judged]:
        """Judge the blend with a score (NaN: no opinion): with one weight, and with weights by support."""
        known, offsets = np.nan_to_num(scores, nan=0.0), self.rest.judged.offsets
        by_support = [known, *(known * support for support in self._supports)]
        return self._judged(offsets, known), self._judged(offsets, self._supports[0], *by_support)

    def _judged(self, *columns: FloatArray) -> Judged:
        lists = self.rest.judged
        logits = cross_fitted(lists, columns, self.seed)
        return Judged(-log_likelihoods(logits, lists), ndcg(logits, lists))

    def over_all_users(self, values: Float64Array) -> Float64Array:
        """Values of the judged users and a 0 for each other one: float64, shape (n_users,)."""
        return np.concatenate([values, np.zeros(self.rest.n_users - len(values))])

    def entry(self, readings: Sequence[tuple[Judged, Judged]]) -> dict[str, Difference]:
        """Differences from the blend alone, the mean over seeds for each user (one reading a seed)."""
        loss, by_support, ranked = (
            np.mean(values, axis=0) for values in zip(*((a.loss, b.loss, a.ndcg) for a, b in readings), strict=True)
        )
        by_support_ndcg = np.mean([b.ndcg for _, b in readings], axis=0)
        return {
            "gain": self._paired(self.alone.loss, loss),
            "gain by support": self._paired(self._alone_by_support.loss, by_support),
            "ndcg@10 of all users": self._paired(self.over_all_users(ranked), self.over_all_users(self.alone.ndcg)),
            "ndcg@10 of all users, by support": self._paired(
                self.over_all_users(by_support_ndcg), self.over_all_users(self._alone_by_support.ndcg)
            ),
        }

    def gain_by_target_support(self, readings: Sequence[tuple[Judged, Judged]]) -> dict[str, Difference]:
        """Give the gain with one weight, by how many users had taken the target."""
        lists = self.rest.judged
        support = self.rest.item_support[lists.cases.candidates.values[lists.positive]]
        loss = np.mean([reading.loss for reading, _ in readings], axis=0)
        found = {}
        for low, high in SUPPORTS:
            inside = (support >= low) & (support < high)
            if inside.sum() > 1:
                name = f"{low} to {high - 1}" if high < 10**9 else f"{low} or more"
                found[name] = self._paired(self.alone.loss[inside], loss[inside])
        return found

    def against(self, readings: Sequence[tuple[Judged, Judged]], others: Sequence[tuple[Judged, Judged]]) -> Difference:
        """Gain over another variant's readings, with one weight each."""
        own, other = (np.mean([reading.loss for reading, _ in group], axis=0) for group in (readings, others))
        return self._paired(other, own)

    def _paired(self, a: Float64Array, b: Float64Array) -> Difference:
        return paired_difference(a, b, seed=self.seed)


def as_dict(difference: Difference) -> dict[str, Any]:
    """JSON-ready values of a paired difference."""
    return {"mean": difference.mean, "ci95": [difference.low, difference.high], "p": difference.p, "n": difference.n}


def holm_of_gains(entries: Mapping[str, Mapping[str, Any]], n_tried: int = 0) -> dict[str, float]:
    """Adjust the p values of all variants' gains for their number, or for ``n_tried`` where more were, by variant."""
    names = list(entries)
    others = [1.0] * max(0, n_tried - len(names))
    adjusted = holm([*(entries[name]["gain"]["p"] for name in names), *others])
    return dict(zip(names, adjusted[: len(names)].tolist(), strict=True))
