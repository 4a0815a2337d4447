"""What is said of a batch as a whole: how it was cut, whether the guarantee holds for it, whether it drifted."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from llm_rerank.config import RerankerConfig
from llm_rerank.recommendation.deciding import Decided
from llm_rerank.recommendation.drift import Drift, Shares, drift_from, drift_of
from llm_rerank.recommendation.fitting import Fitted
from llm_rerank.recommendation.risk_control import Guarantee
from llm_rerank.recommendation.stage import Stage
from llm_rerank.recommendation.upstream import UNUSED
from llm_rerank.types import Cases, DriftWarning, FloatArray, Ragged

DECISION = "decision"
"""Key of ``frame.attrs`` under which a result carries its facts."""


OWN_LISTS = "the cut was chosen on lists that this library retrieves"
HOW_TO_GIVE_LISTS = (
    "fit with impressions that have real times and upstream_score, and give upstream_score with such lists"
)
OTHER_LISTS = f"{OWN_LISTS}; {HOW_TO_GIVE_LISTS}"
IGNORED_SCORES = "candidates have upstream_score, which is passed through and counts for nothing"
NO_LISTS = (
    "the fit saw none of that recommender's lists; fit with impressions (lists that it showed, with their times and "
    "upstream_score)"
)
WITHOUT_UPSTREAM_SCORE = (
    "lists of the recommender that the fit saw are known by their upstream_score, and these have none; give it with "
    "the candidates"
)

NEWCOMERS = "lists of users without a history are among these, and none was among those that the cut was chosen on"

MOSTLY = 0.5
"""Share of a list's candidates that must have an upstream score for it to be an upstream recommender's."""

BOUNDS = (("added", "min_items"), ("removed", "max_items"))


def decision_facts(
    decided: Decided,
    cases: Cases,
    config: RerankerConfig,
    k: int | None,
    *,
    other_lists: str = "",
    shares: Shares | None = None,
    warn: bool = True,
) -> dict[str, Any]:
    """Describe a decided batch, JSON-ready; warns, if ``warn``, of drift that is news, given probabilities or a cut.

    cases: whose candidates were decided. k: rows a user that are returned. other_lists: why these are not lists as the
    cut was chosen on, in words; "" where they are. shares: of the batch, where they are measured already.
    Keys: least_probability (None: nothing is cut), n_kept (among the rows returned), n_added_by_min_items,
    n_removed_by_max_items, guarantee (of the cut, or None), no_guarantee (why it is None), drift.
    """
    cut, profile = decided.stage.cut, decided.stage.profile
    shown = decided.kept if k is None else decided.kept & (decided.ranks <= k)
    drift = Drift({}, {}, len(cases))
    if profile is not None and shares is not None:
        drift = drift_of(profile, shares)
    elif profile is not None:
        drift = drift_from(profile, decided.scores, decided.candidates, cases.history.lengths)
    has_newcomers = bool((cases.history.lengths == 0).any())
    reason = _why_no_guarantee(decided, drift, config, k, has_newcomers) or other_lists
    if warn and drift.is_news and (cut is not None or decided.stage.calibrator is not None):
        warnings.warn(
            f"{drift.sentence()}: probabilities and cut were judged on those and may not hold for these; fit again "
            "where the shop has changed since, and with impressions where the lists are another recommender's",
            DriftWarning,
            stacklevel=3,
        )
    return {
        "least_probability": None if cut is None else cut.least_probability,
        "n_kept": int(shown.sum()),
        "n_added_by_min_items": int((decided.kept & ~decided.kept_by_cut).sum()),
        "n_removed_by_max_items": int((decided.kept_by_cut & ~decided.kept).sum()),
        "guarantee": None if reason or cut is None or cut.guarantee is None else cut.guarantee.to_dict(),
        "no_guarantee": reason,
        "drift": drift.to_dict(),
    }


def retrieved_otherwise(exclude_seen: bool, per_source: int, as_fitted: int) -> str:
    """Say why lists that were retrieved by other rules are not such as the cut was chosen on; "" where they are."""
    if not exclude_seen:
        return "exclude_seen=False: the cut was chosen on lists without seen items"
    if per_source != as_fitted:
        return f"{per_source} candidates a source were retrieved, and the cut was chosen on lists of {as_fitted}"
    return ""


def not_retrieved_here(decided_by: Stage, fitted: Fitted, scores: FloatArray | None, rows: Ragged) -> str:
    """Say why the cut does not hold for candidates that were given; "" where it was chosen on such lists.

    decided_by: the stage of the batch, one of the model's. scores: upstream scores, shape (n_candidates,), NaN unknown;
    None: none at all. rows: the lists of the batch.
    """
    if decided_by is fitted.stage or scores is None:
        if fitted.upstream_stage is not None:
            return WITHOUT_UPSTREAM_SCORE
        unused = lists_not_used(fitted)
        return f"{OWN_LISTS}; {unused}" if unused else OTHER_LISTS
    known = np.bincount(rows.row_of_value, weights=~np.isnan(scores), minlength=len(rows))
    n_without = int(((known < MOSTLY * rows.lengths) & (rows.lengths > 0)).sum())
    if n_without:
        return f"in {n_without:,} of {len(rows):,} lists most upstream scores are missing: they are no such lists"
    return ""


def lists_not_used(fitted: Fitted) -> str:
    """Say why a fit that was given impressions used none of them; "" where it was given none, or used some."""
    why = fitted.report.get(UNUSED)
    return f"the fit was given impressions and could use none of them: {why}" if why else ""


def warn_where_scores_do_not_count(scores: FloatArray | None, fitted: Fitted) -> None:
    """Warn where candidates bring upstream scores, and the model was fitted without lists of that recommender."""
    if scores is not None and fitted.upstream_stage is None:
        warnings.warn(f"{IGNORED_SCORES}: {lists_not_used(fitted) or NO_LISTS}", stacklevel=3)


def decision_sentence(facts: Mapping[str, Any]) -> str:
    """Say the facts of a batch in one line."""
    kept = f"{facts['n_kept']:,} kept"
    if facts["least_probability"] is not None:
        kept += f", of probability ≥ {facts['least_probability']:.4g}"
    bounds = ((f"n_{done}_by_{name}", f"{done} by {name}") for done, name in BOUNDS)
    changed = "".join(f", {facts[key]:,} {words}" for key, words in bounds if facts[key])
    if facts["guarantee"] is not None:
        return f"{kept}{changed}; guaranteed: {Guarantee.from_dict(facts['guarantee']).sentence()}"
    drift = Drift.from_dict(facts["drift"])
    warned = f"; warning: {drift.sentence()}" if drift.is_news and drift.sentence() != facts["no_guarantee"] else ""
    return f"{kept}{changed}; no guarantee: {facts['no_guarantee']}{warned}"


def _why_no_guarantee(
    decided: Decided, drift: Drift, config: RerankerConfig, k: int | None, has_newcomers: bool
) -> str:
    """Say why the cut's guarantee does not hold for a batch; "" where it does."""
    cut = decided.stage.cut
    if cut is None:
        if decided.stage.calibrator is None:  # whatever was asked for
            return "nothing is cut: the fit found no probabilities, and its report says why"
        if config.threshold is None:
            return "nothing is cut: no threshold was set"
        return f"nothing is cut: the fit found no cut by rule {config.threshold.rule!r}, and its report says why"
    if cut.guarantee is None:
        return cut.no_guarantee
    if drift.shifted:
        return drift.sentence()
    profile = decided.stage.profile
    if has_newcomers and profile is not None and profile.no_history == 0:
        return NEWCOMERS
    if config.cross_encoder_depth is not None and decided.stage.residual_verdict is not None:
        return f"cross_encoder_depth ({config.cross_encoder_depth}) leaves candidates unread that were read for the cut"
    return _otherwise_shown(cut.guarantee.risk, int(decided.candidates.lengths.max(initial=0)), config, k)


def _otherwise_shown(risk: str, longest: int, config: RerankerConfig, k: int | None) -> str:
    """Say why lists are not shown as the cut left them, where the risk could grow by it; "" where it cannot.

    longest: candidates of the batch's longest list. Decided by what was asked for and not by what it changed here: a
    list of which one knows that ``k`` cut nothing off is not one drawn at random.
    """
    if risk != "false_positives":  # fewer items shown are never more false ones
        if config.max_items is not None and config.max_items < longest:
            return f"max_items ({config.max_items}) may leave out what the cut keeps"
        if k is not None and k < longest:
            return f"only the first {k} of a list are returned, and the cut may keep more; ask for whole lists (k=None)"
    if risk != "missed_target" and config.min_items:
        return f"min_items ({config.min_items}) may add what the cut leaves out"
    return ""
