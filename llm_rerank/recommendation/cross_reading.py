"""The cross-encoder's place in a fit: lists, fine-tuning, its scores beside the others', and whether it stays."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm_rerank.recommendation.components import Component, ComponentSpec
from llm_rerank.recommendation.holdout import Holdout
from llm_rerank.recommendation.inputs import FitData, FitTools, Fold
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.residual import CROSS_ENCODER
from llm_rerank.recommendation.stage import Stage
from llm_rerank.recommendation.training_lists import Lists, build_training_lists
from llm_rerank.types import Items

if TYPE_CHECKING:
    from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder
    from llm_rerank.models.cross_encoder.training import FineTuning
    from llm_rerank.models.cross_encoder.training_settings import TrainingSettings


@dataclass(frozen=True)
class CrossReading:
    """A fine-tuned cross-encoder as a component, the folds with its scores as their last column, and its tuning."""

    component: Component
    spec: ComponentSpec
    fold_f: Fold
    fold_g: Fold
    tuning: FineTuning


def read_with_cross_encoder(
    data: FitData,
    tools: FitTools,
    holdout: Holdout,
    items: Items,
    components: Sequence[Component],
    stage: Stage,
    fold_f: Fold,
    fold_g: Fold,
    log: FitLog,
) -> CrossReading | None:
    """Fine-tune on lists from the past and score both folds; None where there is nothing to train on.

    items: as rendered for the hold-out. stage: fitted on fold F without the cross-encoder.
    """
    from llm_rerank.models.cross_encoder.training import LEAST_LISTS
    from llm_rerank.models.cross_encoder.training_settings import TrainingSettings

    config = tools.config
    if config.cross_encoder == "off" or tools.encoder is None or not any(str(text).strip() for text in items.texts):
        return None
    log.step("cross-encoder lists")
    lists = build_training_lists(data, tools, holdout, components, stage, log)
    if len(lists.training) < LEAST_LISTS or not len(lists.validation):
        log.say(
            f"cross-encoder: {len(lists.training)} training lists are too few (at least {LEAST_LISTS}): it is left out"
        )
        return None
    log.step("cross-encoder fine-tuning")
    settings = TrainingSettings(steps=config.fine_tune_steps, seed=config.seed)
    checkpoint = None if config.cache_folder is None else Path(config.cache_folder) / "fine-tuning"
    model, tuning = tune_on_lists(lists, tools, settings, checkpoint, log)
    log.step("cross-encoder scores")
    model.fit(holdout.past, items, seed=config.seed)
    component = Component(model, "cross_encoder", retrieves=False, blends=True, settings={})
    # a refit reads new texts with the same weights, and must not touch the table of the model that was judged
    spec = ComponentSpec(CROSS_ENCODER, "cross_encoder", lambda: copy(model), retrieves=False)
    return CrossReading(component, spec, with_scores(fold_f, model), with_scores(fold_g, model), tuning)


def tune_on_lists(
    lists: Lists, tools: FitTools, settings: TrainingSettings, checkpoint: Path | None, log: FitLog
) -> tuple[HistoryCrossEncoder, FineTuning]:
    """Fine-tune a new cross-encoder from the fit's encoder and say what came out."""
    from llm_rerank.models.cross_encoder.training import fine_tune

    model = new_cross_encoder(tools)
    log.say(f"cross-encoder: {model.reader.cost_in_words(list(lists.items.texts))}")
    tuning = fine_tune(
        model, lists.training, lists.validation, lists.items, settings, checkpoint=checkpoint, say=log.detail
    )
    log.say(tuning.sentence())
    return model, tuning


def new_cross_encoder(tools: FitTools) -> HistoryCrossEncoder:
    """Build an untrained cross-encoder from the fit's encoder and settings."""
    from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder

    config = tools.config
    return HistoryCrossEncoder(
        tools.encoder,
        history_length=config.history_length,
        cache_folder=config.cache_folder,
        device=config.device,
        seed=config.seed,
    )


def with_scores(fold: Fold, model: HistoryCrossEncoder) -> Fold:
    """Add the model's scores as the last column of a fold's component scores."""
    values = model.score(fold.scored.cases)
    scored = replace(
        fold.scored,
        scores=np.column_stack([fold.scored.scores, values]).astype(np.float32),
        raw=np.column_stack([fold.scored.raw, values]).astype(np.float32),
    )
    return replace(fold, scored=scored)
