"""The guard: does a fitted blend rank, or the best single component alone; and what can honestly be said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_rerank.statistics import Difference, non_inferior, paired_difference

Float64Array = npt.NDArray[np.float64]

LEAST_CASES_FOR_BLEND = 50
GUARD_MARGIN = 0.02
RUNGS = ("prior", "components", "components + features", "components + features + support")
"""Kinds of columns that may carry a fitted weight, simplest first."""


@dataclass(frozen=True)
class GuardVerdict:
    """What the guard decided, and what can be said: never "never".

    difference: NDCG@10 of blend − default over out-of-fold cases, with its 95 % interval.
    margin: loss that counts as harmless, in NDCG (2 % of the default's mean).
    kept_blend: False where the default alone ranks: no rung is better out of fold, or the point estimate lies below
    −margin. non_inferior: whether the one-sided 95 % bound lies above −margin. rungs: out-of-fold
    NDCG@10 of each rung; rung: the chosen one. (The interval knows nothing of that choice among four.)
    """

    default: str
    default_ndcg: float
    blend_ndcg: float
    difference: Difference | None
    margin: float
    n_cases: int
    kept_blend: bool
    non_inferior: bool
    rung: str
    rungs: Mapping[str, float]

    def sentence(self) -> str:
        """Say the verdict in one sentence with its interval and n."""
        if self.difference is None:
            return (
                f"guard: {self.n_cases} cases with a retrieved target are too few to fit a blend "
                f"(at least {LEAST_CASES_FOR_BLEND}); {self.default} or the given start ranks"
            )
        tried = ", ".join(f"{name} {ndcg:.4f}" for name, ndcg in self.rungs.items())
        tail = f" (out of fold: {tried})"
        if self.rung == RUNGS[0]:
            return (
                f"guard: no blend is better than {self.default} alone on {self.n_cases:,} held-out cases, so it ranks "
                f"alone{tail}"
            )
        low, high = self.difference.low, self.difference.high
        head = (
            f"guard: blend of {self.rung}: NDCG@10 {self.blend_ndcg:.4f}, {self.default} alone "
            f"{self.default_ndcg:.4f}, difference {self.difference.mean:+.4f} [{low:+.4f}, {high:+.4f}], "
            f"n = {self.n_cases:,} held-out cases"
        )
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


def judge(by_rung: Float64Array, rung: int, default_ndcg: Float64Array, default: str, seed: int) -> GuardVerdict:
    """Compare the chosen rung with the default and decide which of them ranks.

    by_rung: NDCG@10, shape (len(RUNGS), n_cases). default_ndcg: shape (n_cases,).
    """
    blend_ndcg = by_rung[rung]
    margin = GUARD_MARGIN * float(default_ndcg.mean())
    difference = paired_difference(blend_ndcg, default_ndcg, seed=seed)
    differs = bool((blend_ndcg != default_ndcg).any()) or rung > 0
    return GuardVerdict(
        default=default,
        default_ndcg=float(default_ndcg.mean()),
        blend_ndcg=float(blend_ndcg.mean()),
        difference=difference,
        margin=margin,
        n_cases=len(default_ndcg),
        kept_blend=differs and difference.mean >= -margin,
        non_inferior=non_inferior(blend_ndcg - default_ndcg, margin=margin, confidence=0.95),
        rung=RUNGS[rung],
        rungs={name: float(values.mean()) for name, values in zip(RUNGS, by_rung, strict=True)},
    )
