"""Forms that a learned blend can take, each fitted on one half of the held-out users; ``blend_forms`` compares them.

A form is fitted on a ``Half`` and gives scores of any fold. All choices within a form (penalties, shares, numbers of
trees) are made by cross-fitting inside the half. Every logit raises RuntimeError where it does not converge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks._blend_fits import fit_above, fit_by_pairs, ramps
from benchmarks._blend_half import Columns, Half, Transform, clipped, log_rank, reciprocal_rank, signed_root
from benchmarks._halves import judged_ndcg
from llm_rerank.models.conditional_logit import fit_conditional_logit, informative
from llm_rerank.recommendation.cross_fitting import PENALTIES
from llm_rerank.recommendation.fusion import FusionFit, fold_of_case
from llm_rerank.recommendation.inputs import Fold
from llm_rerank.types import BoolArray, IntArray, Ragged

Scores = Callable[[Fold], np.ndarray]

Lists = tuple[np.ndarray, Ragged, BoolArray]
"""Columns, lists and targets of informative cases."""

N_FOLDS = 5
KNOT_QUANTILES = (0.5, 0.75, 0.9, 0.97, 0.995)
PAIRS_START_PENALTY = 30.0
LEAVES, MOST_TREES, TREES_STEP = (4, 8), 200, 10


@dataclass(frozen=True)
class Fitted:
    """A fitted form: how it scores a fold, and what is worth saying of the fit."""

    score: Scores
    said: dict[str, Any] = field(default_factory=dict)


def _linear(columns: Columns, fusion: FusionFit) -> Fitted:
    shares = {name: round(share, 3) for name, share in fusion.verdict.shares.items()}
    said = {
        "default": fusion.verdict.default,
        "kept_blend": fusion.verdict.kept_blend,
        "shares": shares,
        "rungs": fusion.verdict.rungs,
        "penalty": fusion.blend.penalty,
        "weights": dict(zip(fusion.blend.names, fusion.blend.weights.tolist(), strict=True)),
    }
    return Fitted(lambda fold: fusion.blend.score(columns.lay_out(fold)[0]), said)


def default_alone(half: Half) -> Fitted:
    """Take the component that did best on the half."""
    column = half.names.index(half.present.verdict.default)
    return Fitted(lambda fold: np.nan_to_num(fold.scored.scores[:, column], nan=0.0), {"default": half.names[column]})


def z_sum(half: Half) -> Fitted:
    """Add the standardised scores."""
    return Fitted(lambda fold: np.nan_to_num(fold.scored.scores, nan=0.0).sum(axis=1))


def root_sum(half: Half) -> Fitted:
    """Add the signed roots of the standardised scores."""
    return Fitted(lambda fold: np.nan_to_num(signed_root(fold.scored.scores, fold.candidates), nan=0.0).sum(axis=1))


def present_blend(half: Half) -> Fitted:
    """Fit the library's blend."""
    return _linear(half.columns, half.present)


def transformed(transform: Transform) -> Callable[[Half], Fitted]:
    """Fit the library's ladders with one transform in both forms: shrunk toward the default, and toward the sum."""

    def fit(half: Half) -> Fitted:
        columns = Columns.of(half.fold, half.names, (transform, transform), half.seed)
        return _linear(columns, half.fuse(*columns.lay_out(half.fold)))

    return fit


def by_penalty(half: Half, design: np.ndarray, fit: Callable[[Lists, float], np.ndarray]) -> tuple[np.ndarray, float]:
    """Fit weights at the penalty of ``PENALTIES`` with the best cross-fitted NDCG@10; returns them and the penalty."""
    fold, positive = half.fold, half.positive
    folds = fold_of_case(len(fold.targets), N_FOLDS, half.seed)
    out_of_fold = np.empty((len(PENALTIES), len(design)))
    for number in range(N_FOLDS):
        inside, outside = np.flatnonzero(folds != number), np.flatnonzero(folds == number)
        train, test = fold.candidates.value_positions(inside), fold.candidates.value_positions(outside)
        lists = informative(design[train], fold.candidates.take(inside), positive[train])
        for place, penalty in enumerate(PENALTIES):
            out_of_fold[place, test] = design[test] @ fit(lists, penalty)
    best = PENALTIES[int(np.argmax([judged_ndcg(scores, fold).mean() for scores in out_of_fold]))]
    return fit(informative(design, fold.candidates, positive), best), best


def lambda_logit(half: Half) -> Fitted:
    """Fit a linear score by pairs, each weighted by the NDCG that its swap would move; penalty by cross-fitted NDCG."""
    (design, names), start = half.laid_out, half.root_sum()

    def fit(lists: Lists, penalty: float) -> np.ndarray:
        prior = fit_conditional_logit(*lists, prior=start, penalty=PAIRS_START_PENALTY)
        return fit_by_pairs(*lists, prior=prior, penalty=penalty)

    weights, penalty = by_penalty(half, design, fit)
    said = {"penalty": penalty, "weights": dict(zip(names, weights.tolist(), strict=True))}
    return Fitted(lambda other: half.columns.lay_out(other)[0] @ weights, said)


def monotone(half: Half) -> Fitted:
    """Fit a logit with a rising, broken line for each component, and pair features; shrunk toward the plain sum."""
    n = len(half.names)
    roots = half.laid_out[0][:, :n]
    knots = np.quantile(roots, KNOT_QUANTILES, axis=0).T

    def lay_out(fold: Fold) -> np.ndarray:
        design, names = half.columns.lay_out(fold)
        features = [column for column, name in enumerate(names) if column >= 2 * n and "×" not in name]
        return np.column_stack([ramps(design[:, :n], knots), design[:, features]])

    design, n_ramps = lay_out(half.fold), knots.size + n
    is_ramp = np.arange(design.shape[1]) < n_ramps
    prior = np.where(is_ramp, half.root_sum()[0], 0.0)
    least = np.where(is_ramp, 0.0, -np.inf)
    weights, penalty = by_penalty(
        half, design, lambda lists, penalty: fit_above(*lists, prior=prior, least=least, penalty=penalty)
    )
    slopes = dict(zip(half.names, weights[:n_ramps].reshape(n, -1).tolist(), strict=True))
    return Fitted(lambda other: lay_out(other) @ weights, {"penalty": penalty, "slopes": slopes})


def lambdamart(half: Half) -> Fitted:
    """Boost small trees on top of the present blend; leaves and number of trees by cross-fitted NDCG, none allowed.

    The offset in training is the blend's out-of-fold score.

    Raises ModuleNotFoundError without lightgbm.
    """
    try:
        import lightgbm
    except ModuleNotFoundError:
        raise ModuleNotFoundError("lambdamart needs lightgbm: pip install lightgbm") from None

    (design, _), fold, offset = half.laid_out, half.fold, half.present.out_of_fold
    folds = fold_of_case(len(fold.targets), N_FOLDS, half.seed)

    def lists(cases: IntArray) -> Any:
        found = np.bincount(fold.candidates.row_of_value, half.positive, len(fold.targets))[cases]
        kept = cases[(found > 0) & (found < fold.candidates.lengths[cases])]
        places = fold.candidates.value_positions(kept)
        return lightgbm.Dataset(
            design[places],
            half.positive[places].astype(np.int32),
            group=fold.candidates.lengths[kept],
            init_score=offset[places],
            free_raw_data=False,
        )

    def settings(n_leaves: int) -> dict[str, Any]:
        return {
            "objective": "lambdarank",
            "metric": "ndcg",
            "eval_at": [10],
            "num_leaves": n_leaves,
            "learning_rate": 0.05,
            "min_data_in_leaf": 50,
            "num_threads": 1,
            "seed": half.seed,
            "deterministic": True,
            "verbosity": -1,
        }

    curves = np.zeros((len(LEAVES), MOST_TREES + 1))
    for number in range(N_FOLDS):
        inside, outside = np.flatnonzero(folds != number), np.flatnonzero(folds == number)
        places = fold.candidates.value_positions(outside)
        judged = fold.take(outside)
        for row, n_leaves in enumerate(LEAVES):
            booster = lightgbm.train(settings(n_leaves), lists(inside), MOST_TREES)
            for n_trees in range(0, MOST_TREES + 1, TREES_STEP):
                added = booster.predict(design[places], num_iteration=n_trees, raw_score=True) if n_trees else 0.0
                curves[row, n_trees] += judged_ndcg(offset[places] + added, judged).sum()
    row, n_trees = (int(place) for place in np.unravel_index(int(curves.argmax()), curves.shape))
    said = {"leaves": LEAVES[row], "trees": n_trees}
    blend = half.present.blend
    if not n_trees:
        return Fitted(lambda other: blend.score(half.columns.lay_out(other)[0]), said)
    booster = lightgbm.train(settings(LEAVES[row]), lists(np.arange(len(folds))), int(n_trees))

    def score(other: Fold) -> np.ndarray:
        design = half.columns.lay_out(other)[0]
        return blend.score(design) + booster.predict(design, raw_score=True)

    return Fitted(score, said)


FORMS: dict[str, Callable[[Half], Fitted]] = {
    "default alone": default_alone,
    "z sum": z_sum,
    "root sum": root_sum,
    "roots only": transformed(signed_root),
    "linear only": transformed(clipped),
    "log rank": transformed(log_rank),
    "reciprocal rank": transformed(reciprocal_rank),
    "present blend": present_blend,
    "lambda logit": lambda_logit,
    "monotone": monotone,
    "lambdamart": lambdamart,
}
"""Each form by name, simplest first."""
