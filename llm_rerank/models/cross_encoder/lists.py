"""Training lists of a cross-encoder: a history, one bought item among items that were retrieved but not bought.

Each candidate carries an offset, the score that everything else already gives it, so that what is learned is the
residual: what the rest does not know. The loss is the listwise softmax, in log-likelihood that of a conditional logit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from llm_rerank.types import BoolArray, Cases, DataError, FloatArray, IntArray, Ragged


@dataclass(frozen=True)
class TrainingLists:
    """Cases with candidates, of which exactly one a case was taken, and each candidate's offset.

    cases: ``candidates`` holds the list, ``history`` what the user had before. positive: bool, shape (n_candidates,),
    one True a case. offsets: float32, shape (n_candidates,), log-odds up to a constant a case.
    """

    cases: Cases
    positive: BoolArray
    offsets: FloatArray

    def __post_init__(self) -> None:
        n_positive = np.bincount(self.cases.candidates.row_of_value, weights=self.positive, minlength=len(self.cases))
        wrong = np.flatnonzero(n_positive != 1)
        if len(wrong):
            raise DataError(
                f"training list {wrong[0]} has {int(n_positive[wrong[0]])} positives; every list needs exactly one: "
                "leave out the lists whose target was not retrieved"
            )
        if not np.isfinite(self.offsets).all():
            raise DataError("offsets hold NaN or infinity; an offset must be a finite score, 0 where nothing is known")

    def __len__(self) -> int:
        return len(self.cases)

    def take(self, rows: IntArray) -> TrainingLists:
        """Take lists in the order given."""
        positions = self.cases.candidates.value_positions(rows)
        return TrainingLists(self.cases.take(rows), self.positive[positions], self.offsets[positions])


def sample_negatives(lists: TrainingLists, n_negatives: int, seed: int) -> TrainingLists:
    """Keep each list's positive and at most ``n_negatives`` others, drawn evenly; order within a list stays."""
    rows = lists.cases.candidates
    draw = np.random.default_rng(seed).random(len(rows.values))
    draw[lists.positive] = -1.0  # always the first
    order = np.lexsort((draw, rows.row_of_value))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order)) - np.repeat(rows.offsets[:-1], rows.lengths)
    kept = place <= n_negatives
    lengths = np.bincount(rows.row_of_value[kept], minlength=len(rows)).astype(np.int64)
    candidates = Ragged.from_lengths(rows.values[kept], lengths)
    cases = lists.cases.with_candidates(candidates)
    return replace(lists, cases=cases, positive=lists.positive[kept], offsets=lists.offsets[kept])
