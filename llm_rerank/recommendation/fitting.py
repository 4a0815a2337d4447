"""The fit protocol, from events to a fitted reranker, top to bottom.

Hold out the newest targets; fit the components on what came before; let half of the held-out users fit the blend, the
guard and the calibrator, and a cross-encoder, fine-tuned on the past, join where it pays; report and choose the cut on
the other half; then fit the components again on everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llm_rerank.data.cases import build_cases, seen_items
from llm_rerank.data.features import ItemStatistics, pair_features
from llm_rerank.data.splits import hash_users
from llm_rerank.metrics import hit_matrix, ndcg_at_k
from llm_rerank.models.scoring import retrieve
from llm_rerank.recommendation.components import Component, ComponentSpec, reference_items, retrieve_and_score
from llm_rerank.recommendation.cross_reading import read_with_cross_encoder
from llm_rerank.recommendation.holdout import Holdout, plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools, Fold
from llm_rerank.recommendation.judging import report_and_cut
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.refit import refit_components
from llm_rerank.recommendation.stage import Stage, Start, fit_stage
from llm_rerank.recommendation.upstream import fit_upstream_stage
from llm_rerank.types import BoolArray, Cases, CatalogueScorer, IntArray, Interactions, Items, Ragged, Scorer

MOST_CASES_FOR_TUNING = 1_000
BY_POSITION = (
    "too few users came after a cut in time, so single last events were held out, which later ones may not be like"
)
REFITTED = "the components were fitted again after the cut was chosen; refit=False keeps the guarantee"


@dataclass(frozen=True)
class Fitted:
    """A fitted reranker's parts. items carry the texts that the components read."""

    items: Items
    components: tuple[Component, ...]
    reference: IntArray
    stage: Stage
    upstream_stage: Stage | None
    report: Mapping[str, Any]


def fit_reranker(data: FitData, tools: FitTools, log: FitLog, start: Start | None = None) -> tuple[Fitted, BoolArray]:
    """Run the whole protocol (module docstring).

    Returns the fitted parts, and which events the components have learned from: bool, shape (n_events,). That is all of
    them after a refit that was kept, else those before the hold-out.
    """
    config, n_items = tools.config, len(data.items)
    reference = reference_items(n_items, config.seed)
    holdout = plan_holdout(data.events, config.seed, log)
    components, items, fold_f, fold_g = fit_and_score_holdout(data, tools, holdout, log, start)

    stage = fit_fusion_stage(fold_f, components, tools, n_items, start, log)
    log.say(stage.verdict.sentence())
    specs = list(tools.specs)
    reading = read_with_cross_encoder(data, tools, holdout, items, components, stage, fold_f, fold_g, log)
    if reading is not None:
        with_reading = fit_fusion_stage(reading.fold_f, [*components, reading.component], tools, n_items, start, log)
        verdict = with_reading.residual_verdict
        assert verdict is not None
        log.say(verdict.sentence())
        if verdict.kept:
            stage, fold_f, fold_g = with_reading, reading.fold_f, reading.fold_g
            components, specs = [*components, reading.component], [*specs, reading.spec]
    stage, report = report_and_cut(stage, fold_g, config, n_items, log)
    upstream_stage, upstream_report = fit_upstream_stage(data, tools, holdout, items, components, reference, log, start)

    in_fit = np.zeros(len(data.events), dtype=np.bool_)
    in_fit[holdout.past_rows] = True
    broken = BY_POSITION if holdout.protocol != "time" and data.events.time_kind == "time" else ""
    if config.refit:
        log.step("refit on all rows")
        items = tools.render(data.items, data.events, None)
        judged = components
        components = refit_components(components, specs, data.events, items, fold_g, stage, reference, config.seed, log)
        if any(after.scorer is not before.scorer for after, before in zip(components, judged, strict=True)):
            broken = REFITTED
            in_fit[:] = True
    else:
        log.say("refit=False: the components keep what they learned before the hold-out")
    stage = _settle_guarantee(stage, broken, log)
    upstream_stage = None if upstream_stage is None else _settle_guarantee(upstream_stage, broken, log)
    settings = {component.name: dict(component.settings) for component in components}
    summary = {"protocol": holdout.protocol, "holdout": holdout.description, "settings": settings, **report}
    summary["cut"] = None if stage.cut is None else stage.cut.to_dict()
    if upstream_report is not None and upstream_stage is not None:
        cut = upstream_stage.cut
        summary["upstream"] = {**upstream_report, "cut": None if cut is None else cut.to_dict()}
    if reading is not None:
        summary["fine_tuning"] = {"log": list(reading.tuning.log), "best_step": reading.tuning.best_step}
    return Fitted(items, tuple(components), reference, stage, upstream_stage, summary), in_fit


def _settle_guarantee(stage: Stage, broken: str, log: FitLog) -> Stage:
    """Say a guaranteed cut at the end of the fit; its guarantee is taken back first where something broke it."""
    if stage.cut is None or stage.cut.guarantee is None:
        return stage
    stage = stage.without_guarantee(broken) if broken else stage
    assert stage.cut is not None
    log.say(stage.cut.sentence())
    return stage


def fit_fusion_stage(
    fold: Fold, components: Sequence[Component], tools: FitTools, n_items: int, start: Start | None, log: FitLog
) -> Stage:
    """Fit blend, guard and calibrator on a fold with the scores of these components in order."""
    log.step("fusion")
    return fit_stage(
        fold,
        [component.name for component in components if component.blends],
        features=tools.features,
        n_items=n_items,
        start=None if start is None else start.stage,
        seed=tools.config.seed,
        cross_encoder="always" if tools.config.cross_encoder == "always" else "auto",
    )


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
    rows = np.arange(min(len(cases), MOST_CASES_FOR_TUNING), dtype=np.int64)
    tuning, tuning_seen = cases.take(rows), seen.take(rows)
    components = []
    with log.progress(len(tools.specs), "components") as bar:
        for spec in tools.specs:
            log.step(spec.name)
            if start is not None and spec.name in start.settings:
                spec = replace(spec, grid=[start.settings[spec.name]], decays=())
            elif not len(tuning):
                spec = replace(spec, grid=spec.grid[:1], decays=())
            scorer, settings, ndcg = tune(spec, past, items, tuning, tuning_seen, tools.config.seed)
            if spec.n_settings > 1:
                log.say(f"{spec.name}: {settings} of {spec.n_settings} settings (NDCG@10 {ndcg:.4f} on fold F)")
            components.append(Component(scorer, spec.group, spec.retrieves, spec.blends, settings))
            bar.update(1)
    return components


def tune(
    spec: ComponentSpec, past: Interactions, items: Items, cases: Cases, seen: Ragged, seed: int
) -> tuple[Scorer, dict[str, Any], float]:
    """Fit a spec with each of its settings; returns the best scorer, its settings and its NDCG@10.

    NDCG is over the whole catalogue without the seen items. With a single setting nothing is scored and it is NaN.
    """
    best: tuple[float, dict[str, Any], Scorer] | None = None
    for settings in spec.grid:
        scorer = spec.make(**settings).fit(past, items, seed=seed)
        if spec.n_settings == 1:
            return scorer, dict(settings), float("nan")
        assert isinstance(scorer, CatalogueScorer)
        for decay in spec.decays or (None,):
            if decay is not None:
                scorer.decay = decay  # type: ignore[attr-defined]  # read when scoring only
                settings = {**settings, "decay": decay}
            top = retrieve(scorer, cases, 10, exclude=seen)
            value = float(ndcg_at_k(hit_matrix(top, cases.targets, 10), cases.targets.lengths, 10).mean())
            if best is None or value > best[0]:
                best = (value, dict(settings), copy(scorer))  # shallow: the arrays are shared, the decay is not
    assert best is not None
    return best[2], best[1], best[0]
