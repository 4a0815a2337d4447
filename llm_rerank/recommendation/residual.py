"""The cross-encoder's part of a score: how much of it counts, by support, and whether it counts at all.

It was trained on what the blend does not know, so it is added to the blend's score as it is (log-odds, no standardising
and no root). How much of it to trust depends on the supports: text says most where behaviour is thin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from llm_rerank.models.conditional_logit import Float64Array, fit_conditional_logit
from llm_rerank.recommendation.blend_columns import ITEM_SUPPORT, USER_SUPPORT, centred_support
from llm_rerank.recommendation.cross_fitting import Lists
from llm_rerank.recommendation.fusion import FusionFit, fold_of_case
from llm_rerank.statistics import Difference, paired_difference
from llm_rerank.types import BoolArray, FloatArray

CROSS_ENCODER = "cross_encoder"
"""Name of the component whose score is a residual, in log-odds."""

PENALTY = 3.0
STEPS = ("none", "one weight", "weights by support")
"""How much of the residual joins, simplest first: nothing; itself; itself and its products with the supports."""


@dataclass(frozen=True)
class ResidualVerdict:
    """Whether the cross-encoder's score joined. ndcg: out-of-fold NDCG@10 of each of ``STEPS``; step: the chosen one.

    difference: of the better step with the residual from "none". pays: whether that gain is above its standard error.
    """

    step: str
    ndcg: Mapping[str, float]
    difference: Difference
    n_cases: int
    pays: bool

    @property
    def kept(self) -> bool:
        """Whether the residual counts."""
        return self.step != STEPS[0]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        difference = {name: getattr(self.difference, name) for name in self.difference.__dataclass_fields__}
        values = {"step": self.step, "ndcg": dict(self.ndcg), "difference": difference}
        return {**values, "n_cases": self.n_cases, "pays": self.pays}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ResidualVerdict:
        """Rebuild from ``to_dict``'s values."""
        pays = values["difference"]["mean"] > 0  # the rule of models that do not say
        return cls(**{"pays": pays, **values, "difference": Difference(**values["difference"])})


def residual_columns(
    residual: FloatArray, user_support: FloatArray, item_support: FloatArray | None
) -> tuple[FloatArray, tuple[str, ...]]:
    """Lay out the residual's columns of the blend: itself, and its products with the supports.

    residual: float32, shape (n_candidates,); NaN (no text, no history) counts as 0: no opinion.
    """
    known = np.nan_to_num(residual, nan=0.0)
    columns, names = [known], [CROSS_ENCODER]
    for label, support in ((USER_SUPPORT, user_support), (ITEM_SUPPORT, item_support)):
        if support is not None:
            columns.append(known * centred_support(support))
            names.append(f"{CROSS_ENCODER} × {label}")
    return np.stack(columns, axis=1).astype(np.float32), tuple(names)


def add_residual(
    fusion: FusionFit,
    columns: FloatArray,
    names: tuple[str, ...],
    lists: Lists,
    *,
    choice: Literal["auto", "always"],
    seed: int,
    n_folds: int = 5,
) -> tuple[FusionFit, ResidualVerdict]:
    """Add the residual's columns to a fitted blend where that pays on other folds; weights of 0 where it does not.

    columns: of ``residual_columns``. choice: "always" takes the better step with the residual in any case; "auto" where
    it gains more than the standard error of the gain: reading costs minutes of every fit and most of an answer's time,
    and the better of two steps looks better than it is. The blend's weights keep their proportions; together they get
    one weight, from 1. Lists of short histories are only scored.
    """
    widths = (0, 1, len(names))
    design = np.column_stack([fusion.out_of_fold, columns])
    folds = fold_of_case(lists.n_cases, n_folds, seed)[lists.case_of]
    out_of_fold = np.empty((len(STEPS), len(design)))
    out_of_fold[0] = fusion.out_of_fold
    for fold in range(n_folds):
        inside, test = (folds != fold) & lists.whole, lists.positions(folds == fold)
        for step in (1, 2):
            weights = _fit(lists, inside, design[:, : 1 + widths[step]])
            out_of_fold[step, test] = design[test, : 1 + widths[step]] @ weights
    by_step = np.stack([lists.ndcg(scores)[lists.judged] for scores in out_of_fold])
    better = 1 + int(by_step[1:].mean(axis=1).argmax())  # of equals the simplest
    gain = by_step[better] - by_step[0]
    pays = len(gain) > 1 and float(gain.mean()) > float(gain.std(ddof=1)) / len(gain) ** 0.5
    step = better if pays or choice == "always" else 0
    verdict = ResidualVerdict(
        step=STEPS[step],
        ndcg={name: float(values.mean()) for name, values in zip(STEPS, by_step, strict=True)},
        difference=paired_difference(by_step[better], by_step[0], seed=seed),
        n_cases=int(lists.judged.sum()),
        pays=pays,
    )
    weights = np.zeros(1 + len(names))
    weights[0] = 1.0
    if step:
        weights[: 1 + widths[step]] = _fit(lists, lists.whole, design[:, : 1 + widths[step]])
    blend = replace(
        fusion.blend,
        names=(*fusion.blend.names, *names),
        weights=np.concatenate([fusion.blend.weights * weights[0], weights[1:]]),
    )
    return replace(fusion, blend=blend, out_of_fold=out_of_fold[step]), verdict


def _fit(lists: Lists, of: BoolArray, design: Float64Array) -> Float64Array:
    """Fit the weights on some lists: the first is shrunk toward 1, the residual's toward 0."""
    taught = design[lists.positions(of)].astype(np.float32)
    prior = np.eye(1, design.shape[1])[0]
    return fit_conditional_logit(taught, *lists.answers(of), prior=prior, penalty=PENALTY)
