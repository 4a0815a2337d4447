"""Fit the components again on all rows, and keep the result only where it still ranks as the judged ones did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llm_rerank.recommendation.candidates import is_member
from llm_rerank.recommendation.components import Component, retrieve_and_score
from llm_rerank.recommendation.inputs import Fold
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.specs import ComponentSpec
from llm_rerank.recommendation.stage import Stage
from llm_rerank.types import BoolArray, IntArray, Interactions, Items

LEAST_SPEARMAN = 0.80
MOST_CHANGE_OF_KEPT_RATE = 0.10
STANDARD_ERRORS = 2.0
"""Within so many of McNemar's, the square root of the pairs that crossed the cut, no change of the rate is told."""


def refit_components(
    components: Sequence[Component],
    specs: Sequence[ComponentSpec],
    events: Interactions,
    items: Items,
    fold: Fold,
    stage: Stage,
    reference: IntArray,
    seed: int,
    log: FitLog,
) -> list[Component]:
    """Refit with settings fixed, then compare both sets on the fold's pairs that are not targets.

    The new components are kept where Spearman's correlation of the fused scores is at least .80 and the kept rate
    moves by at most 10 %, or by no more than chance moves it where few are kept; otherwise the old ones stay and a
    warning says so.
    """
    refitted = fit_again(components, specs, events, items, seed, log)
    cases = fold.scored.cases
    if not len(cases.candidates.values):
        return refitted
    after_scored = retrieve_and_score(refitted, cases, reference, len(items))
    other = ~is_member(cases.candidates, cases.targets, len(items))
    before = stage.blend.score(stage.design(fold.scored.scores, fold.pair_values, None))
    after = stage.blend.score(stage.design(after_scored.scores, fold.pair_values, None))
    correlation = _spearman(before[other], after[other])
    sentence = f"refit: Spearman of fused scores before and after {correlation:.3f}"
    kept_alike = True
    if stage.cut is not None:
        least = stage.cut.least_probability
        was_kept, is_kept = (stage.probability(s, fold.pair_values)[other] >= least for s in (before, after))
        kept_alike = _kept_alike(was_kept, is_kept)
        sentence += f", kept rate {was_kept.mean():.4f} → {is_kept.mean():.4f}"
    if correlation >= LEAST_SPEARMAN and kept_alike:
        log.say(f"{sentence}: the refitted components are used")
        return refitted
    log.say(
        f"warning: {sentence}: they differ too much (Spearman at least {LEAST_SPEARMAN}, kept rate within "
        f"{MOST_CHANGE_OF_KEPT_RATE:.0%}), so the components that were judged stay in use"
    )
    return list(components)


def fit_again(
    components: Sequence[Component],
    specs: Sequence[ComponentSpec],
    events: Interactions,
    items: Items,
    seed: int,
    log: FitLog,
) -> list[Component]:
    """Fit each component on other events with the settings that were chosen for it."""
    spec_of = {spec.name: spec for spec in specs}
    fitted = []
    with log.progress(len(components), "fit again") as bar:
        for component in components:
            scorer = spec_of[component.name].make(**component.settings).fit(events, items, seed=seed)
            fitted.append(replace(component, scorer=scorer))
            bar.update(1)
    return fitted


def _kept_alike(before: BoolArray, after: BoolArray) -> bool:
    """Tell whether the kept rate stays, as far as a few pairs that cross the cut can tell (McNemar's test)."""
    change = abs(int(after.sum()) - int(before.sum()))
    n_crossed = int((before != after).sum())
    return bool(change <= max(MOST_CHANGE_OF_KEPT_RATE * before.sum(), STANDARD_ERRORS * np.sqrt(n_crossed)))


def _spearman(before: np.ndarray, after: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if len(before) < 2 or np.ptp(before) == 0 or np.ptp(after) == 0:
        return 1.0 if np.array_equal(before, after) else 0.0
    return float(spearmanr(before, after).statistic)
