"""Forms that a learned blend can take, each fitted on one half of the held-out users; ``blend_forms`` compares them.

A form is fitted on a ``Half`` and gives scores of any fold. All choices within a form (penalties, shares, numbers of
trees) are made by cross-fitting inside the half. Every logit raises RuntimeError where it does not converge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from llm_rerank.data.features import PAIR_FEATURES, MissingValues, Standardizer
from llm_rerank.models.conditional_logit import fit_conditional_logit
from llm_rerank.recommendation.candidates import is_member, ranks_in_row
from llm_rerank.recommendation.fusion import (
    Blend,
    FusionFit,
    design_columns,
    fit_fusion,
)
from llm_rerank.recommendation.inputs import Fold
from llm_rerank.recommendation.stage import supports, usable_features
from llm_rerank.types import BoolArray, FloatArray, IntArray, Ragged

Scores = Callable[[Fold], np.ndarray]
Transform = Callable[[FloatArray, Ragged], FloatArray]
"""From standardised component scores, shape (n_candidates, n_components), and their lists, to values of that shape."""

Lists = tuple[np.ndarray, Ragged, BoolArray]
"""Columns, lists and targets of informative cases."""

N_FOLDS = 5
CLIP = 8.0
KNOT_QUANTILES = (0.5, 0.75, 0.9, 0.97, 0.995)
N_REWEIGHTINGS = 4
PAIRS_START_PENALTY = 30.0
LEAVES, MOST_TREES, TREES_STEP = (4, 8), 200, 10


def signed_root(scores: FloatArray, rows: Ragged) -> FloatArray:
    """Sign times the root of the size: the library's transform."""
    return np.sign(scores) * np.sqrt(np.abs(scores))


def clipped(scores: FloatArray, rows: Ragged) -> FloatArray:
    """Scores held within ``CLIP`` standard deviations."""
    return np.clip(scores, -CLIP, CLIP)


def reciprocal_rank(scores: FloatArray, rows: Ragged) -> FloatArray:
    """1 / (60 + rank in the list); Cormack, Clarke and Büttcher, 2009. NaN stays NaN."""
    return _of_ranks(scores, rows, lambda ranks: 1.0 / (60.0 + ranks))


def log_rank(scores: FloatArray, rows: Ragged) -> FloatArray:
    """−log of the rank in the list. NaN stays NaN."""
    return _of_ranks(scores, rows, lambda ranks: -np.log(ranks))


def _of_ranks(scores: FloatArray, rows: Ragged, value: Callable[[IntArray], np.ndarray]) -> FloatArray:
    columns = [np.where(np.isnan(column), np.nan, value(ranks_in_row(column, rows))) for column in scores.T]
    return np.stack(columns, axis=1).astype(np.float32)


@dataclass(frozen=True)
class Columns:
    """The columns of a blend as a half of the users has them, with any transform in the root's place.

    centre, scale: of the transformed scores, shape (n_components,); 0 and 1 for the root, which has its own zero.
    """

    component_names: tuple[str, ...]
    used: tuple[str, ...]
    missing: MissingValues
    standardizer: Standardizer
    transform: Transform
    centre: FloatArray
    scale: FloatArray

    @classmethod
    def of(cls, fold: Fold, component_names: tuple[str, ...], transform: Transform, seed: int) -> Columns:
        """Learn filling and scale from a half, as ``fit_stage`` does."""
        used = usable_features(fold.pair_values, fold.candidates, PAIR_FEATURES)
        selected = fold.pair_values[:, [PAIR_FEATURES.index(name) for name in used]]
        missing = MissingValues().fit(selected, used, seed=seed)
        standardizer = Standardizer().fit(missing.transform(selected))
        n = len(component_names)
        centre, scale = np.zeros(n, dtype=np.float32), np.ones(n, dtype=np.float32)
        if transform is not signed_root:
            values = transform(fold.scored.scores, fold.candidates)
            centre, scale = np.nanmean(values, axis=0), np.maximum(np.nanstd(values, axis=0), 1e-9)
        return cls(component_names, used, missing, standardizer, transform, centre, scale)

    def lay_out(self, fold: Fold) -> tuple[FloatArray, tuple[str, ...]]:
        """Columns of a fold's candidates, float32, shape (n_candidates, n_columns), and their names."""
        values = (self.transform(fold.scored.scores, fold.candidates) - self.centre) / self.scale
        selected = fold.pair_values[:, [PAIR_FEATURES.index(name) for name in self.used]]
        return design_columns(
            np.sign(values) * values**2,  # of which the library takes the signed root
            self.component_names,
            self.standardizer.transform(self.missing.transform(selected)),
            self.missing.output_names,
            *supports(fold.pair_values),
        )


@dataclass(frozen=True)
class Half:
    """One half of the held-out users, to fit a form on; what several forms need is computed once."""

    fold: Fold
    names: tuple[str, ...]
    n_items: int
    seed: int

    @cached_property
    def positive(self) -> BoolArray:
        """Which candidates are targets: bool, shape (n_candidates,)."""
        return is_member(self.fold.candidates, self.fold.targets, self.n_items)

    @cached_property
    def columns(self) -> Columns:
        """The library's columns."""
        return Columns.of(self.fold, self.names, signed_root, self.seed)

    @cached_property
    def laid_out(self) -> tuple[FloatArray, tuple[str, ...]]:
        """The library's columns of the half's candidates, and their names."""
        return self.columns.lay_out(self.fold)

    @cached_property
    def present(self) -> FusionFit:
        """The library's blend."""
        return self.fuse(*self.laid_out)

    def fuse(self, design: FloatArray, names: tuple[str, ...], start: Blend | None = None) -> FusionFit:
        """Fit the library's ladder of logits on columns; start: what it shrinks toward."""
        fold = self.fold
        return fit_fusion(
            design,
            names,
            self.names,
            fold.candidates,
            self.positive,
            fold.targets,
            default=None,
            start=start,
            seed=self.seed,
        )

    @cached_property
    def sum_of_roots(self) -> Blend:
        """The plain sum of the components' signed roots, at the scale that is likeliest."""
        (design, names), n = self.laid_out, len(self.names)
        total = design[:, :n].sum(axis=1, keepdims=True)
        scale = fit_conditional_logit(total, self.fold.candidates, self.positive, prior=np.zeros(1), penalty=1e-3)[0]
        weights = np.where(np.arange(len(names)) < n, max(float(scale), 1e-3), 0.0)
        return Blend(names, weights, self.names[0], None)


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


def toward_sum(half: Half) -> Fitted:
    """Fit the library's ladder, shrunk toward the plain sum of signed roots."""
    return _linear(half.columns, half.fuse(*half.laid_out, half.sum_of_roots))


def transformed(transform: Transform) -> Callable[[Half], Fitted]:
    """Fit the library's ladder on columns with another transform in the root's place."""

    def fit(half: Half) -> Fitted:
        columns = Columns.of(half.fold, half.names, transform, half.seed)
        return _linear(columns, half.fuse(*columns.lay_out(half.fold)))

    return fit


def lambda_logit(half: Half) -> Fitted:
    """Fit a linear score by pairs, each weighted by the NDCG that its swap would move; penalty by cross-fitted NDCG."""
    (design, names), fold = half.laid_out, half.fold
    folds = fold_of_case(len(fold.targets), N_FOLDS, half.seed)
    out_of_fold = np.empty((len(PENALTIES), len(design)))
    for number in range(N_FOLDS):
        inside, outside = np.flatnonzero(folds != number), np.flatnonzero(folds == number)
        train, test = fold.candidates.value_positions(inside), fold.candidates.value_positions(outside)
        lists = informative(design[train], fold.candidates.take(inside), half.positive[train])
        prior = _logit_toward(half.sum_of_roots, lists)
        for place, penalty in enumerate(PENALTIES):
            out_of_fold[place, test] = design[test] @ fit_by_pairs(*lists, prior=prior, penalty=penalty)
    ndcg = [float(judged_ndcg(scores, fold).mean()) for scores in out_of_fold]
    penalty = PENALTIES[int(np.argmax(ndcg))]
    lists = informative(design, fold.candidates, half.positive)
    weights = fit_by_pairs(*lists, prior=_logit_toward(half.sum_of_roots, lists), penalty=penalty)
    said = {"penalty": penalty, "weights": dict(zip(names, weights.tolist(), strict=True))}
    return Fitted(lambda other: half.columns.lay_out(other)[0] @ weights, said)


def _logit_toward(prior: Blend, lists: Lists) -> np.ndarray:
    design, rows, positive = lists
    return fit_conditional_logit(design, rows, positive, prior=prior.weights, penalty=PAIRS_START_PENALTY)


def fit_by_pairs(
    design: np.ndarray, rows: Ragged, positive: BoolArray, *, prior: np.ndarray, penalty: float
) -> np.ndarray:
    """Minimise Σ weight × log(1 + exp(−(s_target − s_other))) over each list's pairs, shrunk toward the prior.

    The weight of a pair is |1/log₂(1 + rank) − 1/log₂(1 + other's rank)| at the present scores, taken anew
    ``N_REWEIGHTINGS`` times (Burges, 2010; Wang et al., 2018), over the list's number of targets. Lists as
    ``informative`` gives them. Returns weights: float64, shape (n_columns,).
    """
    targets = np.flatnonzero(positive)
    case = rows.row_of_value[targets]
    of_pair = np.repeat(np.arange(len(targets)), rows.lengths[case])
    others = rows.value_positions(case)
    pairs = ~positive[others]
    first, others, case = targets[of_pair[pairs]], others[pairs], case[of_pair[pairs]]
    n_targets = np.bincount(rows.row_of_value, weights=positive, minlength=len(rows))
    stiffness = _stiffness(design, penalty)
    weights = prior
    for _ in range(N_REWEIGHTINGS):
        discounts = 1.0 / np.log2(1.0 + ranks_in_row(design @ weights, rows))
        of_swap = np.abs(discounts[first] - discounts[others]) / n_targets[case]

        def objective(w: np.ndarray, of_swap: np.ndarray = of_swap) -> tuple[float, np.ndarray]:
            scores = design @ w
            margins = scores[first] - scores[others]
            pull = of_swap * _sigmoid(-margins)
            n = len(scores)
            slopes = np.bincount(others, pull, n) - np.bincount(first, pull, n)
            away = w - prior
            value = of_swap @ np.logaddexp(0.0, -margins) + 0.5 * stiffness @ away**2
            return float(value), slopes @ design + stiffness * away

        weights = minimise(objective, weights, n_cases=len(rows))
    return weights


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * values))


def _stiffness(design: np.ndarray, penalty: float) -> np.ndarray:
    """Penalty on each column's weight, as ``fit_conditional_logit`` has it."""
    scale = design.std(axis=0)
    return penalty * np.where(scale > 0, scale, 1.0) ** 2


def minimise(
    objective: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    *,
    n_cases: int,
    least: np.ndarray | None = None,
) -> np.ndarray:
    """Minimise a smooth convex function, weights held at or above ``least`` where it is given.

    Raises RuntimeError where the gradient, but for what pushes against a bound, is not small beside the data's size.
    """
    from scipy.optimize import minimize

    floor = np.full(len(start), -np.inf) if least is None else least
    found = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(low, None) for low in floor],
        options={"maxiter": 2000, "maxfun": 4000, "maxcor": 30, "ftol": 1e-12, "gtol": 1e-4},
    )
    gradient = np.where((found.x <= floor) & (found.jac > 0), 0.0, found.jac)
    norm = float(np.linalg.norm(gradient))
    if norm > 1e-3 * max(1.0, n_cases):
        raise RuntimeError(f"the fit did not converge: gradient {norm:.3g} after {found.nit} steps")
    return np.asarray(found.x)


def monotone(half: Half) -> Fitted:
    """Fit a logit with a rising, broken line for each component, and pair features; shrunk toward the plain sum."""
    n = len(half.names)
    roots = half.laid_out[0][:, :n]
    knots = np.quantile(roots, KNOT_QUANTILES, axis=0).T

    def lay_out(fold: Fold) -> np.ndarray:
        design, names = half.columns.lay_out(fold)
        features = [column for column, name in enumerate(names) if column >= n and "×" not in name]
        return np.column_stack([ramps(design[:, :n], knots), design[:, features]])

    fold, design = half.fold, lay_out(half.fold)
    n_ramps = knots.size + n
    is_ramp = np.arange(design.shape[1]) < n_ramps
    prior = np.where(is_ramp, half.sum_of_roots.weights[0], 0.0)
    least = np.where(is_ramp, 0.0, -np.inf)
    folds = fold_of_case(len(fold.targets), N_FOLDS, half.seed)
    out_of_fold = np.empty((len(PENALTIES), len(design)))
    for number in range(N_FOLDS):
        inside, outside = np.flatnonzero(folds != number), np.flatnonzero(folds == number)
        train, test = fold.candidates.value_positions(inside), fold.candidates.value_positions(outside)
        lists = informative(design[train], fold.candidates.take(inside), half.positive[train])
        for place, penalty in enumerate(PENALTIES):
            out_of_fold[place, test] = design[test] @ fit_above(*lists, prior=prior, least=least, penalty=penalty)
    ndcg = [float(judged_ndcg(scores, fold).mean()) for scores in out_of_fold]
    penalty = PENALTIES[int(np.argmax(ndcg))]
    lists = informative(design, fold.candidates, half.positive)
    weights = fit_above(*lists, prior=prior, least=least, penalty=penalty)
    slopes = dict(zip(half.names, weights[:n_ramps].reshape(n, -1).tolist(), strict=True))
    return Fitted(lambda other: lay_out(other) @ weights, {"penalty": penalty, "slopes": slopes})


def ramps(values: FloatArray, knots: np.ndarray) -> np.ndarray:
    """Cut each column at its knots into pieces that add up to it: shape (n_rows, n_columns × (n_knots + 1)).

    knots: shape (n_columns, n_knots), rising. A piece is the column held between two knots, less the lower one.
    """
    n_columns, n_knots = knots.shape
    pieces = []
    for column, own in zip(values.T, knots, strict=True):
        pieces.append(np.minimum(column, own[0]))
        for place in range(n_knots):
            upper = own[place + 1] if place + 1 < n_knots else np.inf
            pieces.append(np.clip(column, own[place], upper) - own[place])
    return np.stack(pieces, axis=1)


def fit_above(
    design: np.ndarray, rows: Ragged, positive: BoolArray, *, prior: np.ndarray, least: np.ndarray, penalty: float
) -> np.ndarray:
    """Fit a conditional logit as ``fit_conditional_logit`` does, with weights at or above ``least``."""
    starts, case = rows.offsets[:-1], rows.row_of_value
    share = positive / np.add.reduceat(positive.astype(np.float64), starts)[case]
    stiffness = _stiffness(design, penalty)

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = design @ weights
        logits -= np.maximum.reduceat(logits, starts)[case]
        exponentials = np.exp(logits)
        totals = np.add.reduceat(exponentials, starts)[case]
        away = weights - prior
        value = -share @ (logits - np.log(totals)) + 0.5 * stiffness @ away**2
        return float(value), (exponentials / totals - share) @ design + stiffness * away

    return minimise(objective, prior, n_cases=len(rows), least=least)


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
    row, n_trees = np.unravel_index(int(curves.argmax()), curves.shape)
    said = {"leaves": LEAVES[row], "trees": int(n_trees)}
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
    "present blend": present_blend,
    "toward the sum": toward_sum,
    "clipped z": transformed(clipped),
    "log rank": transformed(log_rank),
    "reciprocal rank": transformed(reciprocal_rank),
    "lambda logit": lambda_logit,
    "monotone": monotone,
    "lambdamart": lambdamart,
}
"""Each form by name, simplest first."""
