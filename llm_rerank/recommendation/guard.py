"""The guard: does a fitted blend rank, or the best single component alone; and what can honestly be said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_rerank.statistics import Difference, non_inferior, paired_difference

Float64Array = npt.NDArray[np.float64]

LEAST_CASES_FOR_BLEND = 50
GUARD_MARGIN = 0.02
KINDS = ("components", "components + features", "components + features + support")
RUNGS = ("prior", *KINDS, "sum", *(f"linear {kind}" for kind in KINDS))
"""Kinds of columns that may carry a fitted weight, fewest first: of root scores, then of linear ones."""


@dataclass(frozen=True)
class GuardVerdict:
    """What the guard decided, and what can be said: never "never".

    difference: NDCG@10 of blend − default over out-of-fold cases, with its 95 % interval.
    margin: loss that counts as harmless, in NDCG (2 % of the default's mean).
    kept_blend: False where the default alone ranks, because the point estimate lies below −margin, and where none was
    fitted (difference None).
    non_inferior: whether the one-sided 95 % bound lies above −margin. rungs: out-of-fold NDCG@10 of each rung; shares:
    what part of the blend each has. (The interval knows nothing of how the shares came about.)
    """

    default: str
    default_ndcg: float
    blend_ndcg: float
    difference: Difference | None
    margin: float
    n_cases: int
    kept_blend: bool
    non_inferior: bool
    shares: Mapping[str, float]
    rungs: Mapping[str, float]

    def sentence(self) -> str:
        """Say the verdict in one sentence with its interval and n."""
        if self.difference is None:
            return (
                f"guard: {self.n_cases} cases with a retrieved target are too few to fit a blend "
                f"(at least {LEAST_CASES_FOR_BLEND}); {self.default} and the sum of all rank, or a given start"
            )
        tried = ", ".join(f"{name} {self.rungs[name]:.4f} (share {share:.2f})" for name, share in self.shares.items())
        low, high = self.difference.low, self.difference.high
        head = (
            f"guard: blend: NDCG@10 {self.blend_ndcg:.4f}, {self.default} alone {self.default_ndcg:.4f}, difference "
            f"{self.difference.mean:+.4f} [{low:+.4f}, {high:+.4f}], n = {self.n_cases:,} held-out cases"
        )
        tail = f"; out of fold: {tried}"
        if not self.kept_blend:
            return f"{head}: worse by more than {GUARD_MARGIN:.0%}, so {self.default} alone ranks{tail}"
        if self.non_inferior:
            return f"{head}: non-inferior by margin {self.margin:.4f} at confidence 95 %, the blend ranks{tail}"
        return f"{head}: n is too small to tell at confidence 95 %, the blend ranks on its point estimate{tail}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        values = {key: getattr(self, key) for key in self.__dataclass_fields__ if key != "difference"}
        d = self.difference
        return {**values, "difference": None if d is None else {f: getattr(d, f) for f in d.__dataclass_fields__}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GuardVerdict:
        """Rebuild from ``to_dict``'s values."""
        d = values["difference"]
        return cls(**{**values, "difference": None if d is None else Difference(**d)})


def judge(
    by_rung: Float64Array,
    shares: Float64Array,
    blend_ndcg: Float64Array,
    default_ndcg: Float64Array,
    default: str,
    seed: int,
) -> GuardVerdict:
    """Compare the blend with the default, case by case, and decide which of them ranks.

    by_rung: NDCG@10, shape (len(RUNGS), n_cases). shares: shape (len(RUNGS),). blend_ndcg, default_ndcg: shape
    (n_cases,).
    """
    difference = paired_difference(blend_ndcg, default_ndcg, seed=seed)
    margin = GUARD_MARGIN * float(default_ndcg.mean())
    return GuardVerdict(
        default=default,
        default_ndcg=float(default_ndcg.mean()),
        blend_ndcg=float(blend_ndcg.mean()),
        difference=difference,
        margin=margin,
        n_cases=len(default_ndcg),
        kept_blend=difference.mean >= -margin,
        non_inferior=non_inferior(blend_ndcg - default_ndcg, margin=margin, confidence=0.95),
        shares=dict(zip(RUNGS, shares.tolist(), strict=True)),
        rungs={name: float(values.mean()) for name, values in zip(RUNGS, by_rung, strict=True)},
    )


def judged_again(
    verdict: GuardVerdict, blend_ndcg: Float64Array, default_ndcg: Float64Array, seed: int
) -> GuardVerdict:
    """Judge a blend that was changed since; arguments as for ``judge``. Rungs and shares stay what they were."""
    difference = paired_difference(blend_ndcg, default_ndcg, seed=seed)
    return replace(
        verdict,
        blend_ndcg=float(blend_ndcg.mean()),
        difference=difference,
        kept_blend=difference.mean >= -verdict.margin,
        non_inferior=non_inferior(blend_ndcg - default_ndcg, margin=verdict.margin, confidence=0.95),
    )
