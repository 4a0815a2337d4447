"""The cross-encoder's place in a fit: lists, fine-tuning, its scores beside the others', and whether it stays."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from llm_rerank.recommendation.components import Component
from llm_rerank.recommendation.holdout import Holdout
from llm_rerank.recommendation.inputs import FitData, FitTools, Fold, Folds
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.parts import PartVerdict, Standing, fit_fusion_stage
from llm_rerank.recommendation.residual import CROSS_ENCODER, STEPS, ResidualVerdict
from llm_rerank.recommendation.specs import ComponentSpec
from llm_rerank.recommendation.stage import Start
from llm_rerank.recommendation.training_lists import Lists, build_training_lists
from llm_rerank.types import Items, StorageError

if TYPE_CHECKING:
    from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder
    from llm_rerank.models.cross_encoder.training import FineTuning
    from llm_rerank.models.cross_encoder.training_settings import TrainingSettings


@dataclass(frozen=True)
class CrossReading:
    """A fine-tuned cross-encoder as a component, the folds with its scores as their last column, and its tuning.

    tuning: None where another shop's is used as it is. seconds: what all of it took.
    """

    component: Component
    spec: ComponentSpec
    folds: Folds
    tuning: FineTuning | None
    seconds: float


def read_with_cross_encoder(
    data: FitData,
    tools: FitTools,
    holdout: Holdout,
    items: Items,
    standing: Standing,
    log: FitLog,
    start: Start | None = None,
) -> CrossReading | None:
    """Fine-tune on lists from the past and score both folds; None where there is nothing to train on.

    items: as rendered for the hold-out. standing: without the cross-encoder. start: of another shop, whose
    cross-encoder is fine-tuned further, or used as it is where there are too few lists.
    """
    from llm_rerank.models.cross_encoder.training import LEAST_LISTS
    from llm_rerank.models.cross_encoder.training_settings import TrainingSettings

    config = tools.config
    if config.cross_encoder == "off" or tools.encoder is None or not any(str(text).strip() for text in items.texts):
        return None
    began = perf_counter()
    log.step("cross-encoder lists")
    lists = build_training_lists(data, tools, holdout, standing.components, standing.stage, log)
    lent = None if start is None else lent_cross_encoder(start, tools, log)
    tuning = None
    if len(lists.training) >= LEAST_LISTS and len(lists.validation):
        log.step("cross-encoder fine-tuning")
        settings = TrainingSettings(steps=config.fine_tune_steps, precision=config.dtype, seed=config.seed)
        checkpoint = None if config.cache_folder is None else Path(config.cache_folder) / "fine-tuning"
        model, tuning = tune_on_lists(lists, tools, settings, checkpoint, log, lent)
    else:
        said = f"cross-encoder: {len(lists.training)} training lists are too few (at least {LEAST_LISTS})"
        if lent is None:
            log.say(f"{said}: it is left out")
            return None
        log.say(f"{said}: the other shop's is used as it is")
        model = lent
    log.step("cross-encoder scores")
    model.fit(holdout.past, items, seed=config.seed)
    component = Component(model, "cross_encoder", retrieves=False, blends=True, settings={})
    # a refit reads new texts with the same weights, and must not touch the table of the model that was judged
    spec = ComponentSpec(CROSS_ENCODER, "cross_encoder", lambda: copy(model), retrieves=False)
    folds = replace(standing.folds, whole=with_scores(standing.folds.whole, model))
    return CrossReading(component, spec, folds, tuning, perf_counter() - began)


def judged_reading(
    standing: Standing, reading: CrossReading, tools: FitTools, n_items: int, start: Start | None, log: FitLog
) -> Standing:
    """Let the cross-encoder join what stands where that pays, and say so."""
    components = [*standing.components, reading.component]
    log.step("fusion")
    fitted = fit_fusion_stage(reading.folds.f, components, tools, n_items, start)
    verdict = _as_part(fitted.stage.residual_verdict, reading.seconds)
    log.say(verdict.sentence())
    verdicts = [*standing.verdicts, verdict]
    if not verdict.kept:
        return replace(standing, verdicts=verdicts)
    return Standing([*standing.specs, reading.spec], components, reading.folds, fitted.stage, fitted.ndcg, verdicts)


def _as_part(verdict: ResidualVerdict | None, seconds: float) -> PartVerdict:
    assert verdict is not None
    ndcg = (verdict.ndcg[STEPS[0]], max(verdict.ndcg[step] for step in STEPS[1:]))
    pays, gains = verdict.pays, verdict.difference.mean > 0
    reason = f"with {verdict.step}" if pays else "cross_encoder='always'" if verdict.kept else ""
    if gains and not verdict.kept:
        reason = "gains no more than a standard error"
    return PartVerdict(CROSS_ENCODER, ndcg, verdict.difference, verdict.n_cases, seconds, pays, verdict.kept, reason)


def tune_on_lists(
    lists: Lists,
    tools: FitTools,
    settings: TrainingSettings,
    checkpoint: Path | None,
    log: FitLog,
    lent: HistoryCrossEncoder | None = None,
) -> tuple[HistoryCrossEncoder, FineTuning]:
    """Fine-tune a cross-encoder, a new one from the fit's encoder or the one that was lent, and say what came out."""
    from llm_rerank.models.cross_encoder.training import fine_tune

    model = lent or new_cross_encoder(tools)
    log.say(f"cross-encoder: {model.reader.cost_in_words(list(lists.items.texts))}")
    tuning = fine_tune(
        model, lists.training, lists.validation, lists.items, settings, checkpoint=checkpoint, say=log.detail
    )
    for note in model.reader.notes():
        log.say(f"cross-encoder: {note}")
    log.say(tuning.sentence())
    return model, tuning


def new_cross_encoder(tools: FitTools) -> HistoryCrossEncoder:
    """Build an untrained cross-encoder from the fit's encoder and settings."""
    from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder

    config = tools.config
    return HistoryCrossEncoder(
        tools.encoder,
        history_length=config.history_length,
        cross_attention=config.token_attention,
        cache_folder=config.cache_folder,
        device=config.device,
        dtype=config.dtype,
        seed=config.seed,
    )


def lent_cross_encoder(start: Start, tools: FitTools, log: FitLog) -> HistoryCrossEncoder | None:
    """Load another shop's cross-encoder; None where it has none, or one of another encoder."""
    from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder

    if start.cross_encoder is None:
        return None
    device, dtype = tools.config.device, tools.config.dtype
    try:
        model = HistoryCrossEncoder.load(start.cross_encoder, encoder=tools.encoder, device=device, dtype=dtype)
    except StorageError as error:
        log.say(f"cross-encoder: the other shop's cannot be used: {error}")
        return None
    model.cache_folder = None if tools.config.cache_folder is None else Path(tools.config.cache_folder)
    return model


def with_scores(fold: Fold, model: HistoryCrossEncoder) -> Fold:
    """Add the model's scores as the last column of a fold's component scores, short histories' too."""
    values = model.score(fold.scored.cases)
    scored = replace(
        fold.scored,
        scores=np.column_stack([fold.scored.scores, values]).astype(np.float32),
        raw=np.column_stack([fold.scored.raw, values]).astype(np.float32),
    )
    short = None if fold.short is None else replace(fold.short, fold=with_scores(fold.short.fold, model))
    return replace(fold, scored=scored, short=short)
