"""The blend of component scores and pair features, and the guard that falls back to the best single component.

A conditional logit: within a case's list, P(target = i) = softmax_i(x_i · w). Linear, so a score splits exactly into
contributions. The weights are shrunk toward a prior.

A component's standardised score may enter in two forms, and neither is better everywhere (benchmarks/blend_forms.py):
as its signed root, shrunk toward the default component alone, or as it is up to ``CLIP``, shrunk toward the plain sum.
Another shop's blend, where one is lent, joins or takes the place of both priors, by how it ranks here.

How far the weights are shrunk, and which kinds of columns join at all (``RUNGS``), is decided by cross-validation over
cases: the penalty by likelihood, the rungs by NDCG@10, because many columns on few cases gain likelihood in the tail
of the list and lose its top. No rung is chosen: each has a share of the blend by how near it comes to the best, in
units of the error of that difference (``shares_of_rungs``), so that noise between equals moves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_rerank.models.conditional_logit import Float64Array, informative
from llm_rerank.recommendation.cross_fitting import PENALTIES, Lists, Pair, fit_across_folds, fit_shares, sum_of_shares
from llm_rerank.recommendation.guard import LEAST_CASES_FOR_BLEND, RUNGS, GuardVerdict, judge
from llm_rerank.recommendation.newcomers import with_popularity
from llm_rerank.recommendation.priors import at_best_scale
from llm_rerank.types import FloatArray, IntArray

SHARPNESS = 1.0
"""How fast a rung's share falls with its distance from the best one, a standard error (benchmarks/blend_rungs.py)."""


@dataclass(frozen=True)
class Blend:
    """Weights of a linear score over named columns (see ``design_columns``).

    names: columns in order. weights: float64, shape (n_columns,). default: name of the component to fall back to.
    penalty: strength of the shrinkage, the shares' geometric mean over rungs; None where nothing was fitted.
    """

    names: tuple[str, ...]
    weights: Float64Array
    default: str
    penalty: float | None

    def score(self, design: FloatArray) -> Float64Array:
        """Scores: float64, shape (n_candidates,)."""
        return self.contributions(design).sum(axis=1)

    def contributions(self, design: FloatArray) -> Float64Array:
        """Part of each column in each score: float64, shape (n_candidates, n_columns); rows sum to the score."""
        return design.astype(np.float64) * self.weights

    def on(self, names: Sequence[str]) -> Float64Array:
        """Lay the weights out for other columns, 0 where they have none: float64, shape (len(names),)."""
        known = dict(zip(self.names, self.weights, strict=True))
        return np.array([known.get(name, 0.0) for name in names], dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "names": list(self.names),
            "weights": self.weights.tolist(),
            "default": self.default,
            "penalty": self.penalty,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Blend:
        """Rebuild from ``to_dict``'s values."""
        weights = np.asarray(values["weights"], dtype=np.float64)
        return cls(tuple(values["names"]), weights, values["default"], values["penalty"])


def fold_of_case(n_cases: int, n_folds: int, seed: int) -> IntArray:
    """Fold of each case, sizes equal to within one, drawn at random: int64, shape (n_cases,)."""
    return np.random.default_rng(seed).permutation(np.arange(n_cases, dtype=np.int64) % n_folds)


@dataclass(frozen=True)
class Chosen:
    """What cross-validation chose: each rung at its penalty, and the default component of each fold."""

    rungs: tuple[Pair, ...]
    defaults: tuple[str, ...]


@dataclass(frozen=True)
class FusionFit:
    """A fitted blend, the guard's verdict on it, and its out-of-fold scores (float64, shape (n_candidates,)).

    default_ndcg: NDCG@10 of the default alone on each case with a target, float64. It and chosen are None where no
    blend was fitted, or the guard did not keep it.
    """

    blend: Blend
    verdict: GuardVerdict
    out_of_fold: Float64Array
    default_ndcg: Float64Array | None = None
    chosen: Chosen | None = None


def fit_fusion(
    lists: Lists,
    *,
    default: str | None,
    start: Blend | None,
    seed: int,
    n_folds: int = 5,
    sharpness: float = SHARPNESS,
) -> FusionFit:
    """Fit the blend on the lists of whole histories, and judge it by cross-validation over cases.

    Lists of short histories are only scored. default: the component that the root's rungs shrink toward, and to fall
    back to; None: ``first_unless_beaten`` by NDCG@10, for each fold on the other folds: the first component ranks best
    on most shops. start: a blend from another shop, whose weights are part of the prior where the names agree. Cases
    whose target was not retrieved count in the guard (as 0 for both) but cannot train. Where fewer than
    ``LEAST_CASES_FOR_BLEND`` can, nothing is fitted but a scale: both priors rank, the default alone where there are
    none, and the sum for up to one half as they come near that number. There popularity parts what is equal.
    """
    names, whole, judged = lists.names, lists.whole, lists.judged
    overall = default or lists.best_component(judged)
    lent = None if start is None else start.on(names)
    n_informative = lists.n_informative
    if n_informative < LEAST_CASES_FOR_BLEND:
        priors = lists.priors(whole, overall, lent)
        together = n_informative / (2 * LEAST_CASES_FOR_BLEND)
        weights = with_popularity((1 - together) * priors[0] + together * priors[-1], names)
        blend = Blend(names, weights, overall, None)
        scores = blend.score(lists.design)
        verdict = GuardVerdict(
            default=overall,
            default_ndcg=float(lists.of_component(overall)[judged].sum() / max(judged.sum(), 1)),
            blend_ndcg=float(lists.ndcg(scores)[judged].sum() / max(judged.sum(), 1)),
            difference=None,
            margin=0.0,
            n_cases=n_informative,
            kept_blend=False,
            non_inferior=False,
            shares={},
            rungs={},
        )
        return FusionFit(blend, verdict, scores)

    folds = fold_of_case(lists.n_cases, n_folds, seed)[lists.case_of]
    defaults = tuple(default or lists.best_component((folds != fold) & judged) for fold in range(n_folds))
    rungs, penalties = range(len(RUNGS)), range(len(PENALTIES))
    fits = fit_across_folds(lists, whole, folds, defaults, lent, [(r, p) for r in rungs for p in penalties])
    likeliest = [max(((r, p) for p in penalties), key=lambda pair: fits[pair].log_likelihood) for r in rungs]
    by_rung = np.stack([lists.ndcg(fits[pair].scores)[judged] for pair in likeliest])
    shares = dict(zip(likeliest, shares_of_rungs(by_rung, sharpness).tolist(), strict=True))
    scores = sum_of_shares({pair: fits[pair].scores for pair in shares}, shares)
    default_ndcg = np.empty(len(lists.rows), dtype=np.float64)
    for fold, name in enumerate(defaults):
        default_ndcg[folds == fold] = lists.of_component(name)[folds == fold]
    blend_ndcg = lists.ndcg(scores)[judged]
    shares_in_order = np.array(list(shares.values()), dtype=np.float64)
    verdict = judge(by_rung, shares_in_order, blend_ndcg, default_ndcg[judged], overall, seed)
    if not verdict.kept_blend:
        design, rows, positive = informative(*lists.part(whole))
        alone = at_best_scale(design, np.array(names) == overall, rows, positive)
        blend = Blend(names, with_popularity(alone, names), overall, None)
        return FusionFit(blend, verdict, blend.score(lists.design))
    weights = fit_shares(lists, whole, overall, lent, fits, shares)
    penalty = float(np.exp(sum(share * np.log(PENALTIES[place]) for (_, place), share in shares.items())))
    blend = Blend(names, weights, overall, penalty)
    return FusionFit(blend, verdict, scores, default_ndcg[judged], Chosen(tuple(likeliest), defaults))


def shares_of_rungs(by_rung: Float64Array, sharpness: float = SHARPNESS) -> Float64Array:
    """Share of each rung in the blend: proportional to exp(−sharpness × (best − mean) / its standard error).

    by_rung: NDCG@10, shape (n_rungs, n_cases). The error is that of the paired difference from the best rung; one that
    differs from the best without any error has a share only if it is as good. sharpness: 0 averages all rungs evenly,
    infinity takes the best alone. Returns float64, shape (n_rungs,), summing to 1.
    """
    means = by_rung.mean(axis=1)
    best = int(means.argmax())  # of equals the simplest
    losses = by_rung[best] - by_rung
    errors = losses.std(axis=1, ddof=1) / np.sqrt(by_rung.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = np.where(means[best] > means, (means[best] - means) / errors, 0.0)
    if np.isinf(sharpness):
        return np.eye(len(means))[best]
    shares = np.exp(-sharpness * distances)
    return shares / shares.sum()
