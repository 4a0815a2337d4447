"""How a fine-tuning runs: its settings, and what each step does by its number alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from llm_rerank.types import DataError, IntArray


@dataclass(frozen=True)
class TrainingSettings:
    """How fine-tuning runs. Where the defaults come from: docs/lab-notebook.md.

    steps: most optimiser steps. lists_per_step, n_negatives: lists a step, and others beside each positive.
    layer_learning_rate: of the pretrained layers; learning_rate: of what is new. warmup_steps: of linear rise, then a
    cosine fall to zero at ``steps``. evaluate_every: steps between evaluations on the validation lists (and between
    checkpoints); patience: evaluations without a better loss before it stops. most_gradient: norm that gradients are
    clipped to. precision: of the steps' arithmetic; weights are float32.
    """

    steps: int = 300
    lists_per_step: int = 16
    n_negatives: int = 15
    layer_learning_rate: float = 1e-4
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 20
    evaluate_every: int = 20
    patience: int = 4
    most_gradient: float = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "lists_per_step", "n_negatives", "evaluate_every", "patience"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}; it must be at least 1")


def learning_rate_at(step: int, settings: TrainingSettings) -> float:
    """Share of the full learning rate at a step: linear rise, then a cosine to zero at ``steps``."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return 0.5 * (1 + float(np.cos(np.pi * min(done, 1.0))))


def rows_of_step(step: int, n_lists: int, settings: TrainingSettings) -> IntArray:
    """Choose the lists of a step from its number alone: every epoch all lists in a new order."""
    first = step * settings.lists_per_step
    places = np.arange(first, first + settings.lists_per_step)
    epochs = places // n_lists
    orders = {
        epoch: np.random.default_rng([settings.seed, int(epoch)]).permutation(n_lists) for epoch in np.unique(epochs)
    }
    return np.array(
        [orders[epoch][place % n_lists] for epoch, place in zip(epochs, places, strict=True)], dtype=np.int64
    )
