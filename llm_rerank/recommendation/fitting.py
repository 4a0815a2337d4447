"""The fit protocol, from events to a fitted reranker, top to bottom.

Hold out the newest targets; fit the components on what came before; let half of the held-out users choose their
settings, fit the blend, the guard and the calibrator, and decide which parts join: nets, an encoder, a cross-encoder
fine-tuned on the past; report and choose the cut on the other half. Then fit all of it again: the components on every
event; blend, guard, calibrator and cut on both halves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llm_rerank.config import ThresholdConfig
from llm_rerank.recommendation.components import Component, reference_items
from llm_rerank.recommendation.cross_reading import judged_reading, read_with_cross_encoder
from llm_rerank.recommendation.held_out import HeldOutCases
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools
from llm_rerank.recommendation.judging import few_held_out, report_and_cut, settled_on_all, with_histories_by_now
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.parts import fit_fusion_stage, stand_on_parts
from llm_rerank.recommendation.refit import refit_components
from llm_rerank.recommendation.stage import Stage, Start
from llm_rerank.recommendation.upstream import UNUSED, fit_upstream_stage
from llm_rerank.types import BoolArray, IntArray, Items

BY_POSITION = (
    "too few users came after a cut in time, so single last events were held out, which later ones may not be like"
)
REFITTED = "components and blend were fitted again after the cut was chosen; refit=False keeps the guarantee"


@dataclass(frozen=True)
class Fitted:
    """A fitted reranker's parts.

    items carry the texts that the components read. threshold: what the fit was asked for, whether or not it found it.
    """

    items: Items
    components: tuple[Component, ...]
    reference: IntArray
    stage: Stage
    upstream_stage: Stage | None
    threshold: ThresholdConfig | None
    report: Mapping[str, Any]


def fit_reranker(data: FitData, tools: FitTools, log: FitLog, start: Start | None = None) -> tuple[Fitted, BoolArray]:
    """Run the whole protocol (module docstring).

    Returns the fitted parts, and which events the components have learned from: bool, shape (n_events,). That is all of
    them after a refit that was kept, else those before the hold-out.
    """
    config, n_items = tools.config, len(data.items)
    reference = reference_items(n_items, config.seed)
    holdout = plan_holdout(data.events, config.seed, log)
    if few := few_held_out(len(holdout.targets)):
        log.say(f"warning: {few}")
    held_out = HeldOutCases.of(data, tools, holdout)
    standing = stand_on_parts(held_out, tools, log, start)
    tools = replace(tools, specs=standing.specs)
    log.say(standing.stage.verdict.sentence())
    reading = read_with_cross_encoder(data, tools, holdout, held_out.items, standing, log, start)
    if reading is not None:
        standing = judged_reading(standing, reading, tools, n_items, start, log)
    components, stage = list(standing.components), standing.stage
    stage, report = report_and_cut(stage, standing.folds.g, config, n_items, log)

    in_fit = np.zeros(len(data.events), dtype=np.bool_)
    in_fit[holdout.past_rows] = True
    broken = BY_POSITION if holdout.protocol != "time" and data.events.time_kind == "time" else ""
    items, refitted = held_out.items, False
    if config.refit:
        log.step("refit on all rows")
        items_by_now = tools.render(data.items, data.events, None)
        components = refit_components(
            standing.components,
            standing.specs,
            data.events,
            items_by_now,
            standing.folds.g,
            stage,
            reference,
            config.seed,
            log,
        )
        pairs = zip(components, standing.components, strict=True)
        refitted = any(after.scorer is not before.scorer for after, before in pairs)
    if refitted:  # else the components that stay have read the texts as of the hold-out
        items, broken = items_by_now, REFITTED
        in_fit[:] = True
        whole = standing.folds.whole
        again = fit_fusion_stage(whole, standing.components, tools, n_items, start, all_joined=True)
        stage, of_both = settled_on_all(again, whole, config, n_items, log)
        report |= of_both
    asked = holdout.targets.users if refitted else holdout.targets.users[~held_out.in_f]
    stage = with_histories_by_now(stage, data.events, asked)
    if not config.refit:
        log.say("refit=False: components and blend keep what they learned before the hold-out")
    upstream_stage, upstream_report = fit_upstream_stage(
        data, tools, holdout, held_out.items, standing.components, reference, log, start, refit=refitted
    )
    stage = _settle_guarantee(stage, broken, log)
    upstream_stage = None if upstream_stage is None else _settle_guarantee(upstream_stage, broken, log)
    settings = {component.name: dict(component.settings) for component in components}
    summary = {"protocol": holdout.protocol, "holdout": holdout.description, "settings": settings, **report}
    summary["refitted"] = refitted
    summary["cut"] = None if stage.cut is None else stage.cut.to_dict()
    if upstream_report is not None and UNUSED in upstream_report:
        summary[UNUSED] = upstream_report[UNUSED]
    elif upstream_report is not None and upstream_stage is not None:
        cut = upstream_stage.cut
        summary["upstream"] = {**upstream_report, "cut": None if cut is None else cut.to_dict()}
    summary["parts"] = [verdict.to_dict() for verdict in standing.verdicts]
    if reading is not None and reading.tuning is not None:
        summary["fine_tuning"] = {"log": list(reading.tuning.log), "best_step": reading.tuning.best_step}
    return Fitted(items, tuple(components), reference, stage, upstream_stage, config.threshold, summary), in_fit


def _settle_guarantee(stage: Stage, broken: str, log: FitLog) -> Stage:
    """Say a guaranteed cut at the end of the fit; its guarantee is taken back first where something broke it."""
    if stage.cut is None or stage.cut.guarantee is None:
        return stage
    stage = stage.without_guarantee(broken) if broken else stage
    assert stage.cut is not None
    log.say(f"{'warning: ' if stage.cut.vacuous else ''}{stage.cut.sentence()}")
    return stage
