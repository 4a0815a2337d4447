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
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_rerank.models.conditional_logit import (
    Float64Array,
    fit_conditional_logit,
    informative,
    informative_candidates,
    log_likelihood_of,
)
from llm_rerank.recommendation.candidates import ndcg_of
from llm_rerank.recommendation.guard import LEAST_CASES_FOR_BLEND, RUNGS, GuardVerdict, judge
from llm_rerank.recommendation.newcomers import with_popularity
from llm_rerank.recommendation.priors import LINEAR, at_best_scale, priors_of_rungs
from llm_rerank.statistics import first_unless_beaten
from llm_rerank.types import FloatArray, IntArray, Ragged

if TYPE_CHECKING:
    from llm_rerank.data.missing import Standardizer
    from llm_rerank.types import BoolArray

PENALTIES = (3.0, 30.0, 300.0)
SHARPNESS = 1.0
"""How fast a rung's share falls with its distance from the best one, a standard error (benchmarks/blend_rungs.py)."""

SUPPORT_CAP = np.log1p(40.0)
"""Log support beyond which more behaviour changes nothing: findings put the turn near 40 interactions."""

CLIP = 20.0
"""Bound of a linear score, in standard deviations over the catalogue: one candidate in a thousand lies beyond it."""

SHORT_HISTORY = " × short history"
"""Marks the columns of weights that fade out as a history grows."""

USER_SUPPORT, ITEM_SUPPORT = "user_support", "item_support"


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


def root_form(scores: FloatArray) -> FloatArray:
    """Take the signed root of standardised scores; NaN stays NaN."""
    return np.sign(scores) * np.sqrt(np.abs(scores))


def linear_form(scores: FloatArray) -> FloatArray:
    """Hold standardised scores within ``CLIP``; NaN stays NaN."""
    return np.clip(scores, -CLIP, CLIP)


def design_columns(
    scores: FloatArray,
    component_names: Sequence[str],
    linear: Standardizer,
    features: FloatArray,
    feature_names: Sequence[str],
    user_support: FloatArray,
    item_support: FloatArray | None,
) -> tuple[FloatArray, tuple[str, ...]]:
    """Lay out the columns of the blend: components in both forms, each × support, pair features.

    scores: float32, shape (n_candidates, n_components), standardised over the catalogue. Each enters as its signed
    root, because tails are long and a fivefold score is not five times the log-odds, and in its linear form, by linear
    (fitted on held-out candidates) standardised once more. Unknown is 0: the catalogue's mean, and the candidates'.
    features: float32, shape (n_candidates, n_features), complete and standardised.
    user_support, item_support: log1p counts, shape (n_candidates,), capped; item_support None leaves its columns out.
    """
    known = np.nan_to_num(np.concatenate([root_form(scores), linear.transform(linear_form(scores))], axis=1), nan=0.0)
    component_names = [*component_names, *(f"{name}{LINEAR}" for name in component_names)]
    blocks, names = [known], list(component_names)
    for label, support in ((USER_SUPPORT, user_support), (ITEM_SUPPORT, item_support)):
        if support is not None:
            blocks.append(known * centred_support(support)[:, None])
            names += [f"{name} × {label}" for name in component_names]
    blocks.append(features)
    return np.concatenate(blocks, axis=1, dtype=np.float32), (*names, *feature_names)


def column_label(name: str) -> str:
    """Name of a column as people read it: both forms of a component are one, for long histories and for short."""
    return name.replace(LINEAR, "").replace(SHORT_HISTORY, "")


def centred_support(support: FloatArray) -> FloatArray:
    """Cap log support and centre it at half the cap, so that a column's own weight is its weight at middling support.

    Returns float32 in [−0.5, 0.5], shape as given.
    """
    return (np.minimum(support, SUPPORT_CAP) / SUPPORT_CAP - 0.5).astype(np.float32)


def fold_of_case(n_cases: int, n_folds: int, seed: int) -> IntArray:
    """Fold of each case, sizes equal to within one, drawn at random: int64, shape (n_cases,)."""
    return np.random.default_rng(seed).permutation(np.arange(n_cases, dtype=np.int64) % n_folds)


@dataclass(frozen=True)
class FusionFit:
    """A fitted blend, the guard's verdict on it, and its out-of-fold scores (float64, shape (n_candidates,)).

    default_ndcg: NDCG@10 of the default alone on each case with a target, float64; None where no blend was fitted.
    """

    blend: Blend
    verdict: GuardVerdict
    out_of_fold: Float64Array
    default_ndcg: Float64Array | None = None


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
    sharpness: float = SHARPNESS,
    case_of: IntArray | None = None,
    short_teach: bool = True,
) -> FusionFit:
    """Fit the blend on all lists, and judge it by cross-validation over cases.

    default: the component that the root's rungs shrink toward, and to fall back to; None: ``first_unless_beaten`` by
    NDCG@10, for each fold on the other folds: the first component ranks best on most shops. start: a blend from another
    shop, whose weights are part of the prior where the names agree. case_of: the case of each list, int64, shape
    (n_lists,): first the lists of all cases in order, then those of some cases asked with a short history, which teach
    beside their case, or are only scored out of fold (short_teach), and are not judged; None: there are none of those.
    Cases whose target was not retrieved count in the guard (as 0 for both) but cannot train. Where fewer than
    ``LEAST_CASES_FOR_BLEND`` can, nothing is fitted but a scale: both priors rank, the default alone where there are
    none, and the sum for up to one half as they come near that number. There popularity parts what is equal.
    """
    by_component = np.stack([ndcg_of(design[:, names.index(name)], rows, targets) for name in component_names])
    case_of = np.arange(len(rows), dtype=np.int64) if case_of is None else case_of
    n_cases = int(case_of.max(initial=-1)) + 1
    # a shown list from which nothing was taken has no NDCG
    judged = (targets.lengths > 0) & (np.arange(len(rows)) < n_cases)
    overall = default or component_names[first_unless_beaten(by_component[:, judged])]
    default_row = by_component[component_names.index(overall)]
    lent = None if start is None else start.on(names)
    teaches = (np.arange(len(rows)) < n_cases) | short_teach

    def lists(of: BoolArray) -> tuple[FloatArray, Ragged, BoolArray]:
        positions = rows.value_positions(np.flatnonzero(of))
        return design[positions], rows.take(np.flatnonzero(of)), positive[positions]

    def priors_on(of: BoolArray, chosen: str) -> list[Float64Array]:
        columns, of_rows, of_positive = lists(of)
        found = columns, names, component_names, of_rows, of_positive, targets.take(np.flatnonzero(of))
        return priors_of_rungs(*found, chosen, lent)

    priors = priors_on(teaches, overall)
    n_informative = int((np.bincount(rows.row_of_value, weights=positive, minlength=len(rows)) > 0)[:n_cases].sum())
    if n_informative < LEAST_CASES_FOR_BLEND:
        together = n_informative / (2 * LEAST_CASES_FOR_BLEND)
        weights = with_popularity((1 - together) * priors[0] + together * priors[-1], names)
        blend = Blend(names, weights, overall, None)
        scores = blend.score(design)
        verdict = GuardVerdict(
            default=overall,
            default_ndcg=float(default_row[judged].sum() / max(judged.sum(), 1)),
            blend_ndcg=float(ndcg_of(scores, rows, targets)[judged].sum() / max(judged.sum(), 1)),
            difference=None,
            margin=0.0,
            n_cases=n_informative,
            kept_blend=False,
            non_inferior=False,
            shares={},
            rungs={},
        )
        return FusionFit(blend, verdict, scores)

    folds = fold_of_case(n_cases, n_folds, seed)[case_of]
    columns = columns_of_rungs(names, component_names)
    out_of_fold = np.empty((len(RUNGS), len(PENALTIES), len(design)))
    log_likelihoods = np.zeros((len(RUNGS), len(PENALTIES)))
    default_ndcg = np.empty(len(rows), dtype=np.float64)
    latest = np.repeat(np.stack(priors)[:, None], len(PENALTIES), axis=1)  # of other folds: each search begins nearby
    for fold in range(n_folds):
        inside, outside = (folds != fold) & teaches, folds == fold
        chosen = default or component_names[first_unless_beaten(by_component[:, inside & judged])]
        default_ndcg[outside] = by_component[component_names.index(chosen), outside]
        fold_priors = priors_on(inside, chosen)
        taught = informative(*lists(inside))
        test = rows.value_positions(np.flatnonzero(outside))
        held_out = design[test].astype(np.float64)
        # whole histories come first, so these places are the same among all candidates of the fold
        asked, asked_rows, asked_positive = informative_candidates(*lists(outside & teaches)[1:])
        for rung, penalty in np.ndindex(len(RUNGS), len(PENALTIES)):
            latest[rung, penalty] = _fit_columns(
                *taught, columns[rung], fold_priors[rung], PENALTIES[penalty], latest[rung, penalty]
            )
            scores = held_out @ latest[rung, penalty]
            out_of_fold[rung, penalty, test] = scores
            if len(asked_rows):
                log_likelihoods[rung, penalty] += log_likelihood_of(scores[asked], asked_rows, asked_positive)
    penalties = log_likelihoods.argmax(axis=1)
    by_rung = np.stack([ndcg_of(out_of_fold[r, penalties[r]], rows, targets)[judged] for r in range(len(RUNGS))])
    shares = shares_of_rungs(by_rung, sharpness)
    blended = np.tensordot(shares, out_of_fold[np.arange(len(RUNGS)), penalties], axes=1)
    blend_ndcg = ndcg_of(blended, rows, targets)[judged]
    verdict = judge(by_rung, shares, blend_ndcg, default_ndcg[judged], overall, seed)
    taught = informative(*lists(teaches))
    if not verdict.kept_blend:
        alone = at_best_scale(taught[0], np.array(names) == overall, *taught[1:])
        blend = Blend(names, with_popularity(alone, names), overall, None)
        return FusionFit(blend, verdict, blend.score(design))
    of_rungs = [
        _fit_columns(*taught, columns[rung], priors[rung], PENALTIES[place], latest[rung, place])
        for rung, place in enumerate(penalties)
    ]
    penalty = float(np.exp(shares @ np.log(np.array(PENALTIES)[penalties])))
    fitted = Blend(names, shares @ np.stack(of_rungs), overall, penalty)
    return FusionFit(fitted, verdict, blended, default_ndcg[judged])


def shares_of_rungs(by_rung: Float64Array, sharpness: float) -> Float64Array:
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


def columns_of_rungs(names: Sequence[str], component_names: Sequence[str]) -> list[IntArray]:
    """Columns that each rung may fit: int64 positions in ``names``, one array a rung of ``RUNGS``."""
    support = np.array(["×" in name for name in names], dtype=bool)
    linear = np.array([LINEAR in name for name in names], dtype=bool)
    component = np.array([column_label(name) in component_names for name in names], dtype=bool)
    feature = ~np.array([column_label(name).split(" × ")[0] in component_names for name in names], dtype=bool)
    columns: list[IntArray] = []
    for form in (~linear, linear):
        of_form = form | feature
        kinds = (np.zeros_like(form), form & component, of_form & ~support, of_form)
        columns += [np.flatnonzero(kind).astype(np.int64) for kind in kinds]
    return columns


def _fit_columns(
    design: FloatArray | Float64Array,
    rows: Ragged,
    positive: BoolArray,
    columns: IntArray,
    prior: Float64Array,
    penalty: float,
    first: Float64Array,
) -> Float64Array:
    """Fit some columns, the prior's own always among them; the others keep the prior's weight. first: to begin at."""
    weights = prior.copy()
    if not len(columns):
        return weights
    free = np.union1d(columns, np.flatnonzero(prior))
    weights[free] = fit_conditional_logit(
        design[:, free], rows, positive, prior=prior[free], penalty=penalty, first=first[free]
    )
    return weights
