"""The fit protocol, from events to a fitted reranker, top to bottom.

Hold out the newest targets; fit the components on what came before; let half of the held-out users fit the blend, the
guard and the calibrator; report and choose the cut on the other half; then fit the components again on everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_rerank.data.cases import build_cases, seen_items
from llm_rerank.data.features import ItemStatistics, pair_features
from llm_rerank.data.splits import hash_users
from llm_rerank.metrics import hit_matrix, ndcg_at_k
from llm_rerank.recommendation.components import Component, reference_items, retrieve_and_score
from llm_rerank.recommendation.holdout import Holdout, plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools, Fold, Start
from llm_rerank.recommendation.judging import report_and_cut
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.refit import refit_components
from llm_rerank.recommendation.stage import Stage, fit_stage
from llm_rerank.recommendation.upstream import fit_upstream_stage
from llm_rerank.types import Cases, IntArray, Interactions, Items, Ragged

MOST_CASES_FOR_TUNING = 1_000


@dataclass(frozen=True)
class Fitted:
    """A fitted reranker's parts. items carry the texts that the components read."""

    items: Items
    components: tuple[Component, ...]
    reference: IntArray
    stage: Stage
    upstream_stage: Stage | None
    report: Mapping[str, Any]


def fit_reranker(data: FitData, tools: FitTools, log: FitLog, start: Start | None = None) -> Fitted:
    """Run the whole protocol (module docstring) and return the fitted parts."""
    config, n_items = tools.config, len(data.items)
    reference = reference_items(n_items, config.seed)
    holdout = plan_holdout(data.events, config.seed, log)
    components, items, fold_f, fold_g = fit_and_score_holdout(data, tools, holdout, log, start)

    log.step("fusion")
    stage = fit_stage(
        fold_f,
        [component.name for component in components if component.blends],
        features=tools.features,
        n_items=n_items,
        start=None if start is None else start.stage,
        seed=config.seed,
    )
    log.say(stage.verdict.sentence())
    stage, report = report_and_cut(stage, fold_g, config, n_items, log)
    upstream_stage = fit_upstream_stage(data, tools, holdout, items, components, reference, log, start)

    if config.refit:
        log.step("refit on all rows")
        items = tools.render(data.items, data.events, None)
        components = refit_components(
            components, tools.specs, data.events, items, fold_g, stage, reference, config.seed, log
        )
    else:
        log.say("refit=False: the components keep what they learned before the hold-out")
    settings = {component.name: dict(component.settings) for component in components}
    summary = {"protocol": holdout.protocol, "holdout": holdout.description, "settings": settings, **report}
    return Fitted(items, tuple(components), reference, stage, upstream_stage, summary)


def fit_and_score_holdout(
    data: FitData, tools: FitTools, holdout: Holdout, log: FitLog, start: Start | None = None
) -> tuple[list[Component], Items, Fold, Fold]:
    """Fit the components on the past and score the held-out cases; reads no event outside ``holdout.past``.

    Returns the components, the items as rendered for the past, and the folds F (fusion) and G (report and cut).
    """
    config, n_items = tools.config, len(data.items)
    targets = holdout.targets
    items = tools.render(data.items, holdout.past, holdout.as_of)
    cases = build_cases(holdout.past, targets.users, targets.times, targets=targets.targets)
    seen = seen_items(holdout.past, targets.users, targets.times)
    in_f = hash_users(data.events.user_ids[targets.users], 2, salt=f"fold-{config.seed}") == 0
    rows_f, rows_g = np.flatnonzero(in_f), np.flatnonzero(~in_f)
    components = _fit_components(tools, holdout.past, items, cases.take(rows_f), seen.take(rows_f), log, start)

    log.step("score held-out cases")
    with log.progress(len(cases), "scoring") as bar:
        scored = retrieve_and_score(
            components,
            cases,
            reference_items(n_items, config.seed),
            n_items,
            candidates_per_source=config.candidates_per_source,
            seen=seen,
            progress=bar.update,
        )
    sentiment = data.sentiment[holdout.past_rows]
    statistics = ItemStatistics.from_events(holdout.past, items, holdout.as_of, sentiment=sentiment)
    fold = Fold(scored, seen, pair_features(scored.cases, statistics, items))
    return components, items, fold.take(rows_f), fold.take(rows_g)


def _fit_components(
    tools: FitTools,
    past: Interactions,
    items: Items,
    cases: Cases,
    seen: Ragged,
    log: FitLog,
    start: Start | None,
) -> list[Component]:
    """Fit each component, its settings chosen from the grid by NDCG@10 over the catalogue on fold F."""
    from llm_rerank.models.scoring import retrieve  # loads scipy, which the façade's import must not

    seed = tools.config.seed
    tuning_rows = np.arange(min(len(cases), MOST_CASES_FOR_TUNING), dtype=np.int64)
    tuning, tuning_seen = cases.take(tuning_rows), seen.take(tuning_rows)
    components = []
    with log.progress(sum(len(spec.grid) for spec in tools.specs), "components") as bar:
        for spec in tools.specs:
            log.step(spec.name)
            best: tuple[float, Mapping[str, Any], Any] | None = None
            grid = spec.grid
            if start is not None and spec.name in start.settings:
                grid = [start.settings[spec.name]]
            elif not len(tuning):
                grid = spec.grid[:1]
            for settings in grid:
                scorer = spec.make(**settings).fit(past, items, seed=seed)
                value = 0.0
                if len(grid) > 1:
                    top = retrieve(scorer, tuning, 10, exclude=tuning_seen)
                    value = _mean_ndcg(top, tuning.targets)
                if best is None or value > best[0]:
                    best = (value, settings, scorer)
                bar.update(1)
            assert best is not None
            if len(grid) > 1:
                log.say(f"{spec.name}: {dict(best[1])} of {len(grid)} settings (NDCG@10 {best[0]:.4f} on fold F)")
            components.append(Component(best[2], spec.group, spec.retrieves, spec.blends, best[1]))
    return components


def _mean_ndcg(top: Ragged, targets: Ragged) -> float:
    return float(ndcg_at_k(hit_matrix(top, targets, 10), targets.lengths, 10).mean())
