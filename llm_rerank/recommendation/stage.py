"""One decision stage, fitted: pair features made complete, the blend, its guard, the calibrator and the cut.

There is one stage for candidates that this library retrieves, and another for lists from an upstream recommender.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llm_rerank.config import ThresholdConfig
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.data.missing import MissingValues, Standardizer
from llm_rerank.recommendation.blend_columns import (
    ITEM_SUPPORT,
    USER_SUPPORT,
    design_columns,
    linear_form,
    with_short_columns,
)
from llm_rerank.recommendation.calibration import LogisticCalibrator, fit_calibrator
from llm_rerank.recommendation.candidates import is_member, ndcg_of
from llm_rerank.recommendation.cross_fitting import Lists
from llm_rerank.recommendation.drift import DriftProfile
from llm_rerank.recommendation.fusion import SHARPNESS, Blend, fit_fusion
from llm_rerank.recommendation.guard import GuardVerdict
from llm_rerank.recommendation.inputs import Fold
from llm_rerank.recommendation.residual import (
    CROSS_ENCODER,
    ResidualVerdict,
    add_residual,
    residual_columns,
)
from llm_rerank.recommendation.short_histories import fading_into, knows_short_histories
from llm_rerank.recommendation.thresholds import Cut, cut_as_set
from llm_rerank.types import FloatArray, Ragged

Float64Array = npt.NDArray[np.float64]

UPSTREAM = "upstream"
"""Name of the upstream recommender's score among the components."""


@dataclass(frozen=True)
class Stage:
    """Everything between component scores and a decision. Built by ``fit_stage``, immutable after.

    feature_names: the pair features in use, a part of ``PAIR_FEATURES``. standardizer: of the features; linear: of the
    components' linear scores. upstream_scale: mean and standard deviation of the upstream scores it was fitted on; None
    where there are none. residual_verdict: what was decided of the cross-encoder, whose score is then the last column
    of the component scores; None without one. profile: what batches are compared with; None where there were no lists
    to take it from.
    """

    component_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    uses_item_support: bool
    missing: MissingValues
    standardizer: Standardizer
    upstream_scale: tuple[float, float] | None
    linear: Standardizer
    blend: Blend
    verdict: GuardVerdict
    calibrator: LogisticCalibrator | None
    cut: Cut | None
    residual_verdict: ResidualVerdict | None = None
    profile: DriftProfile | None = None

    def without_guarantee(self, reason: str) -> Stage:
        """Take back the cut's guarantee, where there is one, and keep why."""
        if self.cut is None or self.cut.guarantee is None:
            return self
        return replace(self, cut=replace(self.cut, guarantee=None, no_guarantee=reason))

    def cut_as(self, threshold: ThresholdConfig | None, asked: ThresholdConfig | None) -> Stage:
        """Cut as these settings ask for, or refuse (``cut_as_set``); without probabilities nothing can be cut."""
        cut = cut_as_set(self.cut, threshold, asked)
        if self.calibrator is None:
            cut = None
        return self if cut is self.cut else replace(self, cut=cut)

    @property
    def standardised_names(self) -> tuple[str, ...]:
        """The components whose scores are standardised: all but the cross-encoder."""
        return tuple(name for name in self.component_names if name != CROSS_ENCODER)

    def design(self, component_scores: FloatArray, pair_values: FloatArray, upstream: FloatArray | None) -> FloatArray:
        """Columns of the blend for each candidate: float32, shape (n_candidates, n_columns).

        component_scores: shape (n_candidates, n_components without upstream). pair_values: shape (n_candidates,
        len(PAIR_FEATURES)), NaN unknown. upstream: raw upstream scores, shape (n_candidates,), NaN unknown.
        """
        scores, residual = split_residual(component_scores, self.residual_verdict is not None)
        if self.upstream_scale is not None:
            mean, deviation = self.upstream_scale
            given = np.full(len(scores), np.nan, dtype=np.float32) if upstream is None else upstream
            scores = np.column_stack([scores, (given - mean) / deviation]).astype(np.float32)
        learned = self.feature_names, self.missing, self.standardizer, self.linear, self.uses_item_support
        design, _ = _lay_out(scores, pair_values, self.standardised_names, *learned)
        user_support, item_support = supports(pair_values)
        if knows_short_histories(self.blend):
            design = with_short_columns(design, user_support)
        if residual is None:
            return design
        return np.column_stack([design, self._residual_columns(residual, user_support, item_support)])

    def _residual_columns(self, residual: FloatArray, user_support: FloatArray, item_support: FloatArray) -> FloatArray:
        return residual_columns(residual, user_support, item_support if self.uses_item_support else None)[0]

    def score(self, fold: Fold) -> Float64Array:
        """Fused scores of a fold's candidates: float64, shape (n_candidates,)."""
        return self.blend.score(self.design(fold.scored.scores, fold.pair_values, fold.upstream))

    def probability(self, scores: Float64Array, pair_values: FloatArray) -> FloatArray:
        """Calibrated probabilities: float32, shape (n_candidates,); NaN without a calibrator or a score."""
        if self.calibrator is None:
            return np.full(len(scores), np.nan, dtype=np.float32)
        user_support, item_support = supports(pair_values)
        return self.calibrator.probability(scores, user_support, item_support)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "component_names": list(self.component_names),
            "feature_names": list(self.feature_names),
            "uses_item_support": self.uses_item_support,
            "missing": self.missing.to_dict(),
            "standardizer": self.standardizer.to_dict(),
            "upstream_scale": self.upstream_scale,
            "linear": self.linear.to_dict(),
            "blend": self.blend.to_dict(),
            "verdict": self.verdict.to_dict(),
            "calibrator": None if self.calibrator is None else self.calibrator.to_dict(),
            "cut": None if self.cut is None else self.cut.to_dict(),
            "residual_verdict": None if self.residual_verdict is None else self.residual_verdict.to_dict(),
            "profile": None if self.profile is None else self.profile.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Stage:
        """Rebuild from ``to_dict``'s values."""
        scale, residual = values["upstream_scale"], values.get("residual_verdict")
        profile = values.get("profile")
        return cls(
            component_names=tuple(values["component_names"]),
            feature_names=tuple(values["feature_names"]),
            uses_item_support=values["uses_item_support"],
            missing=MissingValues.from_dict(values["missing"]),
            standardizer=Standardizer.from_dict(values["standardizer"]),
            upstream_scale=None if scale is None else (scale[0], scale[1]),
            linear=Standardizer.from_dict(values["linear"]),
            blend=Blend.from_dict(values["blend"]),
            verdict=GuardVerdict.from_dict(values["verdict"]),
            calibrator=None if values["calibrator"] is None else LogisticCalibrator.from_dict(values["calibrator"]),
            cut=None if values["cut"] is None else Cut.from_dict(values["cut"]),
            residual_verdict=None if residual is None else ResidualVerdict.from_dict(residual),
            profile=None if profile is None else DriftProfile.from_dict(profile),
        )


@dataclass(frozen=True)
class StageFit:
    """A stage and what its blend says of the cases that it was fitted on, each by a blend fitted without it.

    out_of_fold: fused scores, float64, shape (n_candidates,). ndcg: NDCG@10 of each case with a target, float64, shape
    (n_cases,); None where the cases were too few to fit a blend.
    """

    stage: Stage
    out_of_fold: Float64Array
    ndcg: Float64Array | None


@dataclass(frozen=True)
class Start:
    """What another shop's saved reranker lends to a new one: the blends, and its cross-encoder.

    Not its settings: those of a shop of another size cost a young one up to a tenth of its NDCG; it chooses its own.
    cross_encoder: the folder of its fine-tuned weights; None where it has none.
    """

    stage: Stage | None
    upstream_stage: Stage | None
    cross_encoder: Path | None = None


def supports(pair_values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Log support of user and item from the pair features: two arrays of shape (n_candidates,), unknown is 0."""
    user = np.nan_to_num(pair_values[:, PAIR_FEATURES.index(USER_SUPPORT)], nan=0.0)
    item = np.nan_to_num(pair_values[:, PAIR_FEATURES.index(ITEM_SUPPORT)], nan=0.0)
    return user, item


def _lay_out(
    scores: FloatArray,
    pair_values: FloatArray,
    names: Sequence[str],
    feature_names: Sequence[str],
    missing: MissingValues,
    standardizer: Standardizer,
    linear: Standardizer,
    uses_item_support: bool,
) -> tuple[FloatArray, tuple[str, ...]]:
    """Columns of ``design_columns`` and their names, from what a stage has learned to fill and to scale."""
    selected = pair_values[:, [PAIR_FEATURES.index(name) for name in feature_names]]
    user_support, item_support = supports(pair_values)
    return design_columns(
        scores,
        names,
        linear,
        standardizer.transform(missing.transform(selected)),
        missing.output_names,
        user_support,
        item_support if uses_item_support else None,
    )


def usable_features(pair_values: FloatArray, rows: Ragged, allowed: Sequence[str]) -> tuple[str, ...]:
    """Names of the features that are known somewhere and differ within some list (else they cannot order anything)."""
    starts = rows.offsets[:-1][rows.lengths > 0]
    names = []
    for name in allowed:
        column = pair_values[:, PAIR_FEATURES.index(name)]
        if not np.isfinite(column).any() or not len(starts):
            continue
        least = np.minimum.reduceat(np.nan_to_num(column, nan=-1e9), starts)
        greatest = np.maximum.reduceat(np.nan_to_num(column, nan=-1e9), starts)
        if (greatest > least).any():
            names.append(name)
    return tuple(names)


def fit_stage(
    fold: Fold,
    component_names: Sequence[str],
    *,
    features: Sequence[str],
    n_items: int,
    start: Stage | None,
    seed: int,
    cross_encoder: Literal["auto", "always"] = "auto",
    sharpness: float = SHARPNESS,
    missing: MissingValues | None = None,
) -> StageFit:
    """Fit blend, guard and calibrator on held-out cases.

    component_names: of the columns of the fold's scores; a "cross_encoder", if there is one, comes last.
    features: the pair features allowed. start: the stage of another shop, whose blend joins the prior.
    cross_encoder: "always" lets its score count even where that does not pay. sharpness: see ``shares_of_rungs``.
    missing: what fills the gaps of pair features, fitted here; None: by the treatments that rebuild hidden cells best.
    """
    rows, targets, pair_values, upstream = fold.candidates, fold.targets, fold.pair_values, fold.upstream
    has_residual = CROSS_ENCODER in component_names
    names = tuple(name for name in component_names if name != CROSS_ENCODER)
    scores, residual = split_residual(fold.scored.scores, has_residual)
    scale = None
    if upstream is not None:
        scale = (float(np.nanmean(upstream)), max(float(np.nanstd(upstream)), 1e-9))
        scores = np.column_stack([scores, (upstream - scale[0]) / scale[1]]).astype(np.float32)
        names = (*names, UPSTREAM)
    used = usable_features(pair_values, rows, features)
    selected = pair_values[:, [PAIR_FEATURES.index(name) for name in used]]
    missing = (missing or MissingValues()).fit(selected, used, seed=seed)
    standardizer = Standardizer().fit(missing.transform(selected))
    user_support, item_support = supports(pair_values)
    uses_item_support = ITEM_SUPPORT in features
    linear = Standardizer().fit(linear_form(scores))

    learned = used, missing, standardizer, linear, uses_item_support
    design, column_names = _lay_out(scores, pair_values, names, *learned)

    lists = Lists.of_cases(design, column_names, names, rows, is_member(rows, targets, n_items), targets)
    if fold.short is not None:
        short = fold.short.fold
        short_scores, short_residual = split_residual(short.scored.scores, has_residual)
        short_design, _ = _lay_out(short_scores, short.pair_values, names, *learned)
        short_positive = is_member(short.candidates, short.targets, n_items)
        lists = lists.followed_by(short_design, short.candidates, short_positive, short.targets, fold.short.case_of)
        user_support, item_support = supports(np.concatenate([pair_values, short.pair_values]))
        if residual is not None and short_residual is not None:
            residual = np.append(residual, short_residual)
    lent = None if start is None else start.blend
    default = UPSTREAM if upstream is not None else None
    fusion = fit_fusion(lists, default=default, start=lent, seed=seed, sharpness=sharpness)
    fusion = fading_into(fusion, lists, user_support, start=lent, seed=seed, sharpness=sharpness)
    residual_verdict = None
    if residual is not None:
        columns, residual_names = residual_columns(residual, user_support, item_support if uses_item_support else None)
        fusion, residual_verdict = add_residual(fusion, columns, residual_names, lists, choice=cross_encoder, seed=seed)
        names = (*names, CROSS_ENCODER)
    if fusion.blend.penalty is None:
        # where no blend was fitted, support's effect is noise; without it probabilities keep the order of the scores
        item_support = np.zeros_like(item_support)
    calibrator = fit_calibrator(
        fusion.out_of_fold, user_support, item_support, lists.positive, short=lists.short_candidates
    )
    out_of_fold = fusion.out_of_fold[: len(rows.values)]
    ndcg = None
    if fusion.verdict.difference is not None:
        ndcg = ndcg_of(out_of_fold, rows, targets)[targets.lengths > 0]
    stage = Stage(
        names,
        used,
        uses_item_support,
        missing,
        standardizer,
        scale,
        linear,
        fusion.blend,
        fusion.verdict,
        calibrator,
        None,
        residual_verdict,
    )
    return StageFit(stage, out_of_fold, ndcg)


def split_residual(component_scores: FloatArray, has_residual: bool) -> tuple[FloatArray, FloatArray | None]:
    """Part the cross-encoder's scores, the last column where there are any, from the standardised ones."""
    if not has_residual:
        return component_scores, None
    return component_scores[:, :-1], component_scores[:, -1]
