"""What a stage's probabilities are worth on cases that nothing was fitted on: the figures of the report."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_rerank.reliability import (
    brier_skill_interval,
    calibration_error_of_noise,
    calibration_line,
    expected_calibration_error,
    reliability_bins,
)
from llm_rerank.strata import ITEM_STRATA, NOTHING, USER_STRATA, label, within
from llm_rerank.types import BoolArray, FloatArray, IntArray

SHOWN = 10
"""The first ranks, which a shopper sees: their probabilities are judged apart."""

RESAMPLES_OF_STRATA = 500
"""Fewer than for all lists: there are a dozen strata, and each takes as long as the whole."""


OF_USERS = (NOTHING, *USER_STRATA)
"""Newcomers apart; they are held out only where an upstream recommender's lists are."""


def describe_calibration(
    probabilities: FloatArray,
    positive: BoolArray,
    cases: IntArray,
    ranks: IntArray,
    user_support: FloatArray,
    item_support: FloatArray,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge probabilities, JSON-ready; all arrays of shape (n_candidates,), cases the list of each candidate.

    user_support, item_support: log1p counts, of the events of the user's history and of the item's users. Candidates
    without a probability (NaN) are left out. Of the first ten: ECE, what perfect probabilities would show on so many
    (its floor), mean probability and rate. Of all: Brier skill and calibration slope with 95 % intervals that take
    lists as the unit, and intercept; all of it again by strata.
    Returns {} where nothing is known or no candidate is a target.
    """
    known = ~np.isnan(probabilities)
    if not positive[known].any():
        return {}
    probabilities, positive, cases, ranks = probabilities[known], positive[known], cases[known], ranks[known]
    users, items = (np.rint(np.expm1(support[known])).astype(np.int64) for support in (user_support, item_support))
    top = ranks <= SHOWN
    skill = brier_skill_interval(probabilities, positive, cases, seed=seed)
    line = calibration_line(probabilities, positive, cases)
    bins = reliability_bins(probabilities, positive)
    strata = {}
    for kind, counts, all_bounds in (("user", users, OF_USERS), ("item", items, ITEM_STRATA)):
        for bounds in all_bounds:
            inside = within(counts, bounds)
            if inside.any():
                strata[f"{kind} {label(bounds)}"] = _stratum(probabilities, positive, cases, top, inside, seed)
    return {
        **_of_the_top(probabilities[top], positive[top]),
        "brier_skill": skill.mean,
        "brier_skill_ci95": [skill.low, skill.high],
        "slope": line.slope,
        "slope_ci95": list(line.slope_interval),
        "intercept": line.intercept,
        "n_candidates": int(known.sum()),
        "n_targets": int(positive.sum()),
        "reliability": {name: getattr(bins, name).tolist() for name in ("probability", "observed", "counts")},
        "strata": strata,
    }


def _of_the_top(probabilities: FloatArray, positive: BoolArray) -> dict[str, float]:
    return {
        "ece_top_10": expected_calibration_error(probabilities, positive),
        "ece_top_10_if_perfect": calibration_error_of_noise(probabilities, positive),
        "mean_probability_top_10": float(probabilities.mean()),
        "rate_top_10": float(positive.mean()),
    }


def _stratum(
    probabilities: FloatArray, positive: BoolArray, cases: IntArray, top: BoolArray, inside: BoolArray, seed: int
) -> dict[str, Any]:
    line = calibration_line(probabilities[inside], positive[inside], cases[inside])
    skill = brier_skill_interval(
        probabilities[inside], positive[inside], cases[inside], n_resamples=RESAMPLES_OF_STRATA, seed=seed
    )
    shown = inside & top
    return {
        "n": int(inside.sum()),
        "n_targets": int(positive[inside].sum()),
        "slope": line.slope,
        "slope_ci95": list(line.slope_interval),
        "intercept": line.intercept,
        "brier_skill": skill.mean,
        "brier_skill_ci95": [skill.low, skill.high],
        **(_of_the_top(probabilities[shown], positive[shown]) if shown.any() else {}),
    }


def calibration_sentence(values: dict[str, Any]) -> str:
    """Say the figures of ``describe_calibration`` in one line."""
    low, high = values["slope_ci95"]
    skill_low, skill_high = values["brier_skill_ci95"]
    return (
        f"ECE of the top 10 {values['ece_top_10']:.4f} (perfect ones would show "
        f"{values['ece_top_10_if_perfect']:.4f}; mean probability {values['mean_probability_top_10']:.4f}), "
        f"Brier skill {values['brier_skill']:+.4f} [{skill_low:+.4f}, {skill_high:+.4f}], slope {values['slope']:.2f} "
        f"[{low:.2f}, {high:.2f}], intercept {values['intercept']:+.2f}"
    )
