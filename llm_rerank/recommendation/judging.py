"""What the fitted stage is worth on fold G, cases that nothing was fitted on, and its cut there.

Once that is known, and the components are fitted again too, G's cases are free to teach: ``settled_on_all``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from llm_rerank.config import RerankerConfig
from llm_rerank.models.conditional_logit import Float64Array
from llm_rerank.recommendation.calibration import LEAST_POSITIVES
from llm_rerank.recommendation.calibration_report import calibration_sentence, describe_calibration
from llm_rerank.recommendation.candidates import is_member, ndcg_of, ranks_in_row
from llm_rerank.recommendation.drift import profile_of
from llm_rerank.recommendation.guard import LEAST_CASES_FOR_BLEND
from llm_rerank.recommendation.inputs import Fold
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.risk_control import LEAST_CASES_FOR_GUARANTEE
from llm_rerank.recommendation.stage import UPSTREAM, Stage, StageFit, supports
from llm_rerank.recommendation.thresholds import GIVEN_A_TAKE, choose_cut, cut_curve
from llm_rerank.types import BoolArray, DataError, FloatArray, IntArray, Interactions


def few_held_out(n_held_out: int) -> str:
    """Say what so few held-out users cannot give, half of whom are fitted on; "" where they are enough."""
    if n_held_out >= 2 * LEAST_CASES_FOR_BLEND:
        return ""
    remedy = "give more events, with their real times"
    if not n_held_out:
        return f"no user can be held out: there will be no blend, no probabilities and no cut; {remedy}"
    return (
        f"only {n_held_out:,} users can be held out, and half of them teach: a blend needs {LEAST_CASES_FOR_BLEND} of "
        f"these and probabilities {LEAST_POSITIVES} retrieved targets, without which nothing is cut; {remedy}"
    )


def report_and_cut(
    stage: Stage, fold: Fold, config: RerankerConfig, n_items: int, log: FitLog
) -> tuple[Stage, dict[str, Any]]:
    """Report ranking and calibration on fold G and choose the cut there; returns the stage with its cut."""
    rows, targets = fold.candidates, fold.targets
    if not len(rows):
        log.say("fold G has no cases: ranking, calibration and cut cannot be reported")
        return stage, {"n_cases": 0, "ranking": {}, "calibration": {}}
    scores = stage.score(fold)
    positive = is_member(rows, targets, n_items)
    n_retrieved = np.bincount(rows.row_of_value, weights=positive, minlength=len(rows))
    with_target = targets.lengths > 0
    ranking = {"fused": _mean(ndcg_of(scores, rows, targets)[with_target])}
    own_names = [name for name in stage.component_names if name != UPSTREAM]
    for name in stage.component_names:
        values = fold.upstream if name == UPSTREAM else fold.scored.scores[:, own_names.index(name)]
        assert values is not None
        ranking[name] = _mean(ndcg_of(values, rows, targets)[with_target])
    recall = _mean(n_retrieved[with_target] / targets.lengths[with_target])
    log.say(
        f"fold G ({len(rows):,} cases, {rows.lengths.mean():.0f} candidates each, candidate recall {recall:.3f}): "
        "NDCG@10 " + ", ".join(f"{name} {value:.4f}" for name, value in ranking.items())
    )
    probabilities = stage.probability(scores, fold.pair_values)
    n_hit = int((n_retrieved > 0).sum())
    stage = replace(stage, profile=profile_of(scores, rows, fold.scored.cases.history.lengths))
    stage = _with_cut(stage, config, probabilities, positive, fold, n_hit, log)
    return stage, {
        "n_cases": len(rows),
        "n_retrieved": n_hit,
        "candidate_recall": recall,
        "ranking": ranking,
        **_decided(stage),
        "calibration": _calibration(stage, probabilities, positive, fold, ranks_in_row(scores, rows), log),
        "cut_curve": cut_curve(probabilities, positive, rows),
    }


def settled_on_all(
    fitted: StageFit, fold: Fold, config: RerankerConfig, n_items: int, log: FitLog
) -> tuple[Stage, dict[str, Any]]:
    """Give a stage fitted on both folds its profile and cut, from what its blend says of their cases out of fold.

    Returns the stage, and what of the report is no longer fold G's: guard, cut and its curve.
    """
    stage, scores, rows = fitted.stage, fitted.out_of_fold, fold.candidates
    if not len(rows):
        return stage, {}
    log.say(f"refit: blend, guard and calibrator on all {len(rows):,} held-out cases; {stage.verdict.sentence()}")
    positive = is_member(rows, fold.targets, n_items)
    n_hit = int((np.bincount(rows.row_of_value, weights=positive, minlength=len(rows)) > 0).sum())
    stage = replace(stage, profile=profile_of(scores, rows, fold.scored.cases.history.lengths))
    probabilities = stage.probability(scores, fold.pair_values)
    stage = _with_cut(stage, config, probabilities, positive, fold, n_hit, log)
    return stage, {**_decided(stage), "cut_curve": cut_curve(probabilities, positive, rows)}


def with_histories_by_now(stage: Stage, events: Interactions, users: IntArray) -> Stage:
    """Let the profile know how long histories have become, those of its own users and those of all, beside the judged.

    users: of the profile's cases, whose histories ended at the hold-out: codes of ``events``, shape (n_cases,).
    """
    if stage.profile is None or not len(users):
        return stage
    lengths = np.bincount(events.users[events.items >= 0], minlength=events.n_users)
    return replace(stage, profile=stage.profile.knowing(lengths[users], lengths))


def _decided(stage: Stage) -> dict[str, Any]:
    return {"guard": stage.verdict.to_dict(), "cut": None if stage.cut is None else stage.cut.to_dict()}


def _mean(values: Float64Array) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _calibration(
    stage: Stage, probabilities: FloatArray, positive: BoolArray, fold: Fold, ranks: IntArray, log: FitLog
) -> dict[str, Any]:
    if stage.calibrator is None:
        log.say("calibration: fewer than 10 retrieved targets in fold F, so probability reads NaN")
        return {}
    supports_of = supports(fold.pair_values)
    values = describe_calibration(probabilities, positive, fold.candidates.row_of_value, ranks, *supports_of)
    if values:
        log.say(f"calibration on fold G: {calibration_sentence(values)}")
    return values


def _with_cut(
    stage: Stage,
    config: RerankerConfig,
    probabilities: FloatArray,
    positive: BoolArray,
    fold: Fold,
    n_retrieved: int,
    log: FitLog,
) -> Stage:
    rule = config.threshold
    if rule is None:
        return stage
    if stage.calibrator is None:
        log.say(f"warning: cut: rule {rule.rule!r} needs probabilities and there are none, so nothing is cut")
        return stage
    try:
        cut = choose_cut(rule, probabilities, positive, fold.candidates)
    except DataError as error:  # the fit took minutes: it is not lost for a cut that cannot be had
        log.say(f"warning: cut: {error}; nothing is cut")
        return stage
    stage = replace(stage, cut=cut)
    if cut.guarantee is None:  # else it is said at the end of the fit, when it is known whether it still holds
        log.say(f"{'warning: ' if cut.misses_its_target else ''}{cut.sentence()}")
    if rule.rule == "expected_value" and rule.take_rate == 1 and UPSTREAM not in stage.component_names:
        log.say(f"cut: {GIVEN_A_TAKE}")
    if n_retrieved < LEAST_CASES_FOR_GUARANTEE and rule.rule in ("f_beta", "recall", "precision"):
        log.say(f"warning: cut: chosen on {n_retrieved} retrieved cases, fewer than {LEAST_CASES_FOR_GUARANTEE}")
    return stage
