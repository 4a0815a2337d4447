"""The blend of component scores and pair features, and the guard that falls back to the best single component.

A conditional logit: within a case's list, P(target = i) = softmax_i(x_i · w). Linear, so a score splits exactly into
contributions. The weights are shrunk toward a prior (the default component alone, or another shop's blend), and how
far is chosen by cross-validation over cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llm_rerank.metrics import hit_matrix, ndcg_at_k
from llm_rerank.recommendation.candidates import ranked
from llm_rerank.statistics import Difference, non_inferior, paired_difference
from llm_rerank.types import FloatArray, IntArray, Ragged

if TYPE_CHECKING:
    from llm_rerank.types import BoolArray

Float64Array = npt.NDArray[np.float64]

PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)
LEAST_CASES_FOR_BLEND = 50
GUARD_MARGIN = 0.02
SUPPORT_CAP = np.log1p(40.0)
"""Log support beyond which more behaviour changes nothing: findings put the turn near 40 interactions."""

USER_SUPPORT, ITEM_SUPPORT = "user_support", "item_support"


@dataclass(frozen=True)
class Blend:
    """Weights of a linear score over named columns (see ``design_columns``).

    names: columns in order. weights: float64, shape (n_columns,). default: name of the component to fall back to.
    penalty: strength of the shrinkage that was chosen; None where nothing was fitted.
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


@dataclass(frozen=True)
class GuardVerdict:
    """What the guard decided, and what can be said: never "never".

    difference: NDCG@10 of blend − default over out-of-fold cases, with its 95 % interval.
    margin: loss that counts as harmless, in NDCG (2 % of the default's mean).
    kept_blend: False where the point estimate lies below −margin. non_inferior: whether the one-sided 95 % bound
    lies above −margin.
    """

    default: str
    default_ndcg: float
    blend_ndcg: float
    difference: Difference | None
    margin: float
    n_cases: int
    kept_blend: bool
    non_inferior: bool

    def sentence(self) -> str:
        """Say the verdict in one sentence with its interval and n."""
        if self.difference is None:
            return (
                f"guard: {self.n_cases} cases with a retrieved target are too few to fit a blend "
                f"(at least {LEAST_CASES_FOR_BLEND}); {self.default} or the given start ranks"
            )
        low, high = self.difference.low, self.difference.high
        head = (
            f"guard: blend NDCG@10 {self.blend_ndcg:.4f}, {self.default} alone {self.default_ndcg:.4f}, difference "
            f"{self.difference.mean:+.4f} [{low:+.4f}, {high:+.4f}], n = {self.n_cases:,} held-out cases"
        )
        if not self.kept_blend:
            return f"{head}: worse by more than {GUARD_MARGIN:.0%}, so {self.default} alone ranks"
        if self.non_inferior:
            return f"{head}: non-inferior by margin {self.margin:.4f} at confidence 95 %, the blend ranks"
        return f"{head}: n is too small to tell at confidence 95 %, the blend ranks on its point estimate"

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


def design_columns(
    scores: FloatArray,
    component_names: Sequence[str],
    features: FloatArray,
    feature_names: Sequence[str],
    user_support: FloatArray,
    item_support: FloatArray | None,
) -> tuple[FloatArray, tuple[str, ...]]:
    """Lay out the columns of the blend: components, components × support, pair features.

    scores: float32, shape (n_candidates, n_components), NaN becomes 0, the component's mean over reference items.
    features: float32, shape (n_candidates, n_features), complete and standardised.
    user_support, item_support: log1p counts, shape (n_candidates,), capped; item_support None leaves its columns out.
    """
    known = np.nan_to_num(scores, nan=0.0)
    blocks, names = [known], list(component_names)
    for label, support in ((USER_SUPPORT, user_support), (ITEM_SUPPORT, item_support)):
        if support is not None:
            # centred at half the cap, so that a component's own weight is its weight at middling support
            centred = (np.minimum(support, SUPPORT_CAP) / SUPPORT_CAP - 0.5).astype(np.float32)
            blocks.append(known * centred[:, None])
            names += [f"{name} × {label}" for name in component_names]
    blocks.append(features)
    return np.concatenate(blocks, axis=1, dtype=np.float32), (*names, *feature_names)


def conditional_log_likelihood(
    weights: Float64Array, design: Float64Array, rows: Ragged, positive: BoolArray
) -> tuple[float, Float64Array, Float64Array]:
    """Log-likelihood, gradient and Hessian of the conditional logit.

    Each case adds the mean over its positives of log softmax. design: shape (n_candidates, n_columns). rows: one row
    a case, none empty, each with a positive. positive: bool, shape (n_candidates,).
    """
    starts, case = rows.offsets[:-1], rows.row_of_value
    logits = design @ weights
    logits -= np.maximum.reduceat(logits, starts)[case]
    exponentials = np.exp(logits)
    totals = np.add.reduceat(exponentials, starts)
    probabilities = exponentials / totals[case]
    share = positive / np.add.reduceat(positive.astype(np.float64), starts)[case]
    value = float(share @ (logits - np.log(totals)[case]))
    gradient = design.T @ (share - probabilities)
    weighted = design * probabilities[:, None]
    means = np.add.reduceat(weighted, starts, axis=0)
    hessian = -(weighted.T @ design - means.T @ means)
    return value, gradient, hessian


def fit_conditional_logit(
    design: FloatArray,
    rows: Ragged,
    positive: BoolArray,
    *,
    prior: Float64Array,
    penalty: float,
) -> Float64Array:
    """Maximise the penalised conditional log-likelihood; returns weights: float64, shape (n_columns,).

    Penalty: penalty / 2 × Σ (sd_j (w_j − prior_j))², with sd_j the column's standard deviation, summed against the
    sum over cases. Cases without a positive, or with nothing but positives, say nothing and are left out.

    Raises RuntimeError where the optimiser does not converge (it did so silently in a prototype).
    """
    from scipy.optimize import minimize

    design64, rows, positive = _informative(design, rows, positive)
    if not len(rows):
        return prior.copy()
    scale = design64.std(axis=0)
    stiffness = penalty * np.where(scale > 0, scale, 1.0) ** 2

    def objective(weights: Float64Array) -> tuple[float, Float64Array]:
        value, gradient, _ = conditional_log_likelihood(weights, design64, rows, positive)
        away = weights - prior
        return -value + 0.5 * float(stiffness @ away**2), -gradient + stiffness * away

    def hessian(weights: Float64Array) -> Float64Array:
        return -conditional_log_likelihood(weights, design64, rows, positive)[2] + np.diag(stiffness)

    found = minimize(
        objective, prior, jac=True, hess=hessian, method="trust-exact", options={"gtol": 1e-4, "maxiter": 200}
    )
    gradient_norm = float(np.linalg.norm(found.jac))
    # the optimiser stops on rounding when the objective is large; what counts is the gradient beside the data's size
    if gradient_norm > 1e-3 * max(1.0, float(len(rows))):
        raise RuntimeError(f"the blend did not converge: gradient {gradient_norm:.3g} after {found.nit} steps")
    return np.asarray(found.x, dtype=np.float64)


def _informative(design: FloatArray, rows: Ragged, positive: BoolArray) -> tuple[Float64Array, Ragged, BoolArray]:
    counts = np.bincount(rows.row_of_value, weights=positive, minlength=len(rows))
    useful = np.flatnonzero((counts > 0) & (counts < rows.lengths)).astype(np.int64)
    positions = rows.value_positions(useful)
    return design[positions].astype(np.float64), rows.take(useful), positive[positions]


def fold_of_case(n_cases: int, n_folds: int, seed: int) -> IntArray:
    """Fold of each case, sizes equal to within one, drawn at random: int64, shape (n_cases,)."""
    return np.random.default_rng(seed).permutation(np.arange(n_cases, dtype=np.int64) % n_folds)


def ndcg_of(scores: Float64Array | FloatArray, rows: Ragged, targets: Ragged, k: int = 10) -> Float64Array:
    """NDCG@k of each case with its candidates in order of scores: float64, shape (n_cases,); NaN without a target."""
    hits = hit_matrix(ranked(scores, rows, k), targets, k)
    return ndcg_at_k(hits, targets.lengths, k)


@dataclass(frozen=True)
class FusionFit:
    """A fitted blend, the guard's verdict on it, and its out-of-fold scores (float64, shape (n_candidates,))."""

    blend: Blend
    verdict: GuardVerdict
    out_of_fold: Float64Array


def fit_fusion(
    design: FloatArray,
    names: tuple[str, ...],
    component_names: Sequence[str],
    rows: Ragged,
    positive: BoolArray,
    targets: Ragged,
    *,
    default: str | None,
    start: Blend | None,
    seed: int,
    n_folds: int = 5,
) -> FusionFit:
    """Fit the blend on all cases, and judge it by cross-validation over cases.

    default: the component to shrink toward and to fall back to; None: the one with the best NDCG@10, chosen for each
    fold on the other folds. start: a blend from another shop; its weights are the prior where the names agree.
    Cases whose target was not retrieved count in the guard (as 0 for both) but cannot train.
    """
    by_component = np.stack([ndcg_of(design[:, names.index(name)], rows, targets) for name in component_names])
    judged = targets.lengths > 0  # a shown list from which nothing was taken has no NDCG
    overall = default or component_names[int(by_component[:, judged].sum(axis=1).argmax())]
    n_informative = int((np.bincount(rows.row_of_value, weights=positive, minlength=len(rows)) > 0).sum())
    if n_informative < LEAST_CASES_FOR_BLEND:
        blend = Blend(names, _prior(design, names, rows, positive, overall, start), overall, None)
        in_sample = blend.score(design)
        verdict = GuardVerdict(
            default=overall,
            default_ndcg=_mean(by_component[component_names.index(overall), judged]),
            blend_ndcg=_mean(ndcg_of(in_sample, rows, targets)[judged]),
            difference=None,
            margin=0.0,
            n_cases=n_informative,
            kept_blend=start is not None,
            non_inferior=False,
        )
        return FusionFit(blend, verdict, in_sample)

    folds = fold_of_case(len(rows), n_folds, seed)
    out_of_fold_by_penalty = np.empty((len(PENALTIES), len(design)))
    log_likelihoods = np.zeros(len(PENALTIES))
    default_ndcg = np.empty(len(rows), dtype=np.float64)
    for fold in range(n_folds):
        inside, outside = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        chosen = default or component_names[int(by_component[:, inside[judged[inside]]].sum(axis=1).argmax())]
        default_ndcg[outside] = by_component[component_names.index(chosen), outside]
        train, test = rows.value_positions(inside), rows.value_positions(outside)
        prior = _prior(design[train], names, rows.take(inside), positive[train], chosen, start)
        for place, penalty in enumerate(PENALTIES):
            weights = fit_conditional_logit(
                design[train], rows.take(inside), positive[train], prior=prior, penalty=penalty
            )
            out_of_fold_by_penalty[place, test] = design[test].astype(np.float64) @ weights
            held_out, held_rows, held_positive = _informative(design[test], rows.take(outside), positive[test])
            if len(held_rows):
                log_likelihoods[place] += conditional_log_likelihood(weights, held_out, held_rows, held_positive)[0]
    best = int(log_likelihoods.argmax())
    prior = _prior(design, names, rows, positive, overall, start)
    weights = fit_conditional_logit(design, rows, positive, prior=prior, penalty=PENALTIES[best])
    blend = Blend(names, weights, overall, PENALTIES[best])
    blend_ndcg = ndcg_of(out_of_fold_by_penalty[best], rows, targets)
    verdict = judge(blend_ndcg[judged], default_ndcg[judged], overall, seed)
    if not verdict.kept_blend:
        fallback = _prior(design, names, rows, positive, overall, None)
        blend = replace(blend, weights=fallback, penalty=None)
        return FusionFit(blend, verdict, blend.score(design))
    return FusionFit(blend, verdict, out_of_fold_by_penalty[best])


def _mean(values: npt.NDArray[np.floating[Any]]) -> float:
    return float(values.mean()) if len(values) else 0.0


def _prior(
    design: FloatArray,
    names: tuple[str, ...],
    rows: Ragged,
    positive: BoolArray,
    default: str,
    start: Blend | None,
) -> Float64Array:
    """Weights to shrink toward: another shop's where there are some, else the default component at its best scale."""
    prior = np.zeros(len(names), dtype=np.float64)
    if start is not None:
        known = dict(zip(start.names, start.weights, strict=True))
        return np.array([known.get(name, 0.0) for name in names], dtype=np.float64)
    column = names.index(default)
    scale = fit_conditional_logit(design[:, [column]], rows, positive, prior=np.zeros(1), penalty=1e-3)
    # a default that ranks against the data would turn its own list over; it then keeps its order at a small scale
    prior[column] = max(float(scale[0]), 1e-3)
    return prior


def judge(blend_ndcg: Float64Array, default_ndcg: Float64Array, default: str, seed: int) -> GuardVerdict:
    """Compare blend and default a case (NDCG@10, shape (n_cases,)) and decide which of them ranks."""
    margin = GUARD_MARGIN * float(default_ndcg.mean())
    difference = paired_difference(blend_ndcg, default_ndcg, seed=seed)
    return GuardVerdict(
        default=default,
        default_ndcg=float(default_ndcg.mean()),
        blend_ndcg=float(np.mean(blend_ndcg)),
        difference=difference,
        margin=margin,
        n_cases=len(default_ndcg),
        kept_blend=difference.mean >= -margin,
        non_inferior=non_inferior(blend_ndcg - default_ndcg, margin=margin, confidence=0.95),
    )
