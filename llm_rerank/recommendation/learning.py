"""From tables to a reranker's whole state: read, fit, and fit again later on what is known by then."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llm_rerank.config import RerankerConfig
from llm_rerank.data.frames import to_pandas
from llm_rerank.data.impressions import validate_impressions
from llm_rerank.data.merging import without_events
from llm_rerank.data.rendering import Renderer
from llm_rerank.data.times import TimeUnit
from llm_rerank.folders import open_folder
from llm_rerank.recommendation.fitting import fit_reranker
from llm_rerank.recommendation.impressions import Impressions
from llm_rerank.recommendation.inputs import FitData, FitTools
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.planning import has_text, make_encoder, read_shop, say_plan, sentiment_of
from llm_rerank.recommendation.saving import Saved, read_start
from llm_rerank.recommendation.specs import ComponentSpec, specs_for
from llm_rerank.recommendation.stage import Start
from llm_rerank.recommendation.state import expiry, settled_targets
from llm_rerank.types import DataError, DataReport

LENT_UPSTREAM = (
    "warning: no impressions can be used, so the stage for upstream lists stays as it was fitted, without its cut"
)


UNREAD = np.empty(0, dtype=np.float32)
"""Stands for the sentiment, which is read once the plan is said, of what is left to learn from."""


@dataclass(frozen=True)
class Learner:
    """What a fit works with besides the data; arguments as for ``Reranker``."""

    config: RerankerConfig
    specs: Sequence[ComponentSpec] | None
    features: Sequence[str]
    log: FitLog


def fit_shop(
    learner: Learner,
    tables: Mapping[str, Any],
    *,
    columns: Mapping[str, str] | None,
    time_unit: TimeUnit,
    encoding: str | None = None,
    start_from: str | Path | None,
) -> Saved:
    """Read a shop's tables and fit everything on them.

    tables: interactions, items, users and impressions, each a frame, a path or None. Other arguments as for
    ``Reranker.fit``. Raises DataError where the data break a rule, StorageError where ``start_from`` cannot be read.
    """
    config, log = learner.config, learner.log
    log.step("read")
    start = None if start_from is None else read_start(open_folder(Path(start_from)))
    report = DataReport()
    events, items, users, shown = read_shop(
        config,
        tables["interactions"],
        tables["items"],
        tables["users"],
        tables["impressions"],
        columns,
        time_unit,
        report,
        encoding=encoding,
    )
    targets = settled_targets(config.target_events, report.target_events)
    learned = _learned(learner, FitData(events, items, users, shown, UNREAD), Renderer(), targets, report, start)
    return learned.with_kinds(report.event_kinds)


def refit_shop(
    learner: Learner,
    saved: Saved,
    impressions: Any | None,
    *,
    columns: Mapping[str, str] | None,
    time_unit: TimeUnit,
    encoding: str | None = None,
) -> Saved:
    """Run the whole protocol again on the events and items of a state, with its templates.

    impressions: upstream lists; None: those that the state keeps, and where none of them can be used, its stage for
    them stays, without a cut. Raises DataError where the state has no histories, or has no events any more.
    """
    if not saved.has_histories:
        raise DataError(
            "this reranker was saved without histories, so there is nothing to fit on; fit it on your tables"
        )
    log, report, items = learner.log, DataReport(), saved.fitted.items
    log.step("read")
    log.say(f"refit: the whole fit again on the {len(saved.events):,} events and {len(items):,} items of now")
    shown = None if saved.impressions is None else saved.impressions.to_frame()
    if impressions is not None:
        shown = validate_impressions(
            to_pandas(impressions, columns=columns, encoding=encoding, report=report),
            items,
            columns=columns,
            time_unit=time_unit,
            report=report,
        )
    data = FitData(saved.events, items, saved.users, shown, UNREAD)
    again = _learned(learner, data, saved.renderer, saved.target_events, report, None)
    lent = saved.fitted.upstream_stage
    if again.fitted.upstream_stage is None and lent is not None:
        log.say(LENT_UPSTREAM)
        # neither its cut nor the population that it was judged on belong to these components
        stage = replace(lent, cut=None, profile=None)
        summary = {**again.fitted.report, "lines": log.lines}
        again = replace(again, fitted=replace(again.fitted, upstream_stage=stage, report=summary))
    return replace(again, log_name=saved.log_name, log_position=saved.log_position, own_kinds=saved.own_kinds)


def _learned(
    learner: Learner,
    data: FitData,
    renderer: Renderer,
    targets: tuple[str, ...],
    report: DataReport,
    start: Start | None,
) -> Saved:
    config, log = learner.config, learner.log
    data = within_retention(data, config, report)
    log.say_report(report)
    encoder = make_encoder(config)
    specs = learner.specs
    if not specs:
        text = has_text(data.items, data.events, renderer)
        if not text:
            log.say("warning: no item has a title, another column or a review to read: the fit is by behaviour alone")
        specs = specs_for(config, data.events, encoder, data.items.vectors, text=text)
    steps = 0 if config.cross_encoder == "off" else config.fine_tune_steps
    say_plan(log, data.events, data.items, specs, encoder, refit=config.refit, fine_tune_steps=steps, seed=config.seed)
    log.step("review sentiment")
    data = replace(data, sentiment=sentiment_of(data.events, encoder))
    fitted, in_fit = fit_reranker(data, FitTools(config, encoder, specs, learner.features, renderer), log, start)
    if encoder is not None:
        encoder.flush()
    log.finish()
    summary = {**fitted.report, "lines": log.lines, "seconds": log.seconds, "dropped": report.dropped}
    return Saved(
        config,
        replace(fitted, report=summary),
        data.events,
        data.sentiment,
        data.users,
        renderer,
        has_histories=True,
        in_fit=in_fit,
        counted=in_fit,
        torn=np.zeros(len(in_fit), dtype=np.bool_),
        target_events=targets,
        impressions=None if data.impressions is None else Impressions.from_frame(data.impressions, data.events),
        origin=uuid.uuid4().hex,
        features=tuple(learner.features),
    )


def within_retention(data: FitData, config: RerankerConfig, report: DataReport) -> FitData:
    """Leave out events that are too old to be kept, before anything is learned from them or their sentiment is read.

    Raises DataError where no target is left.
    """
    given, too_old = data.events, ""
    if config.retention_days is not None:
        old = given.times < expiry(config, given.time_kind, time.time())
        report.drop(f"interactions: older than retention_days ({config.retention_days:g})", int(old.sum()))
        data = replace(data, events=without_events(given, old)[0])
        if old.any():
            newest = np.datetime64(int(given.times[-1]), "s").astype("datetime64[D]")
            too_old = (
                f", and {old.sum():,} others are older than retention_days ({config.retention_days:g}; the newest "
                f"event of all is of {newest})"
            )
        if data.impressions is not None:
            kept = data.impressions["time"] >= expiry(config, given.time_kind, time.time())
            data = replace(data, impressions=data.impressions[kept].reset_index(drop=True) if kept.any() else None)
    if not (data.events.positive & (data.events.items >= 0)).any():
        remedy = "; give newer events, or lengthen it (--retention-days on the command line)"
        raise DataError(
            f"there is nothing to learn from: none of {len(data.events):,} events is a target"
            + (f"{too_old}{remedy}" if too_old else "; give events that are")
        )
    return data
