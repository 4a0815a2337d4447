"""Fine-tuning of the conventional cross-encoder on lists: softmax over a list, with what is known already as an offset.

A plain loop on one device. How lists become text is said in ``pairwise_texts.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_rerank.models.cross_encoder.pairwise_texts import TextLists
from llm_rerank.models.semantic.weights import DTypeName
from llm_rerank.types import DataError, FloatArray, IntArray

OFFSET_LEARNING_RATE = 1e-2
"""Of λ alone: one number that starts at 1 and must be able to halve within a hundred steps."""

WEIGHT_DECAY = 0.01

PAIRS_A_PASS = 32
"""Pairs (in whole lists) whose activations are held at once; gradients add up over the passes of a step."""


@dataclass(frozen=True)
class TuningSettings:
    """How ``tune`` trains; said at ``PairwiseCrossEncoder.fine_tune``."""

    steps: int
    lists_per_step: int
    learning_rate: float
    head_learning_rate: float
    evaluate_every: int
    patience: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise DataError(f"{name} is {value}; it must be greater than 0")


@dataclass(frozen=True)
class FineTuning:
    """What a fine-tuning did. Losses are means over lists, in nats.

    training_losses: float32, shape (n_steps_run,), before each step, with dropout. validation_losses: float32, shape
    (n_evaluations,), without; empty where there was nothing to validate on. validation_steps: int64, shape
    (n_evaluations,), the steps done before each, from 0. kept_step: the weights kept are those after so many steps.
    offset_weight: the λ that belongs to them.
    """

    training_losses: FloatArray
    validation_steps: IntArray
    validation_losses: FloatArray
    kept_step: int
    offset_weight: float

    @property
    def description(self) -> str:
        """One line for a log."""
        n_steps = len(self.training_losses)
        if not len(self.validation_losses):
            return f"{n_steps} steps without validation lists: the last weights are kept, whatever they are worth"
        losses = (
            f"validation loss {self.validation_losses[0]:.4f} untrained, {self.validation_losses.min():.4f} at best"
        )
        if self.kept_step == 0:
            return f"none of {n_steps} steps beat the untrained model, so it is kept ({losses})"
        return f"step {self.kept_step} of {n_steps} is kept ({losses}); weight of the offset {self.offset_weight:.3f}"


def tune(
    network: Any,
    lists: TextLists,
    held_out: TextLists | None,
    settings: TuningSettings,
    *,
    new_weights: Set[str],
    dtype: DTypeName,
    seed: int,
) -> FineTuning:
    """Train the network in place and leave it with the weights that are kept.

    network: a ``CrossEncoder`` in float32; bfloat16 is autocast. new_weights: names of what was never trained.

    Raises DataError where the loss is no longer finite. After that, or Ctrl-C, the network is as it was.
    """
    rng = np.random.default_rng(seed)
    offset_weight = torch.nn.Parameter(torch.ones((), device=network.device))
    optimizer = _optimizer(network, offset_weight, new_weights, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings.steps))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    training_losses: list[float] = []
    validation: dict[int, float] = {}
    best = _state(network, offset_weight)
    order = np.empty(0, dtype=np.int64)

    def evaluate() -> None:
        nonlocal best
        assert held_out is not None
        loss = _mean_loss(network, held_out, offset_weight, dtype)
        if not validation or loss < min(validation.values()):
            best = _state(network, offset_weight)
        validation[len(training_losses)] = loss

    devices = [network.device] if network.device.type == "cuda" else []
    with _as_it_was_on_failure(network), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)  # dropout; the caller's random state stays as it is
        if held_out is not None:
            evaluate()
        for step in range(1, settings.steps + 1):
            while len(order) < settings.lists_per_step:
                order = np.concatenate([order, rng.permutation(len(lists))])
            drawn, order = np.split(order, [settings.lists_per_step])
            training_losses.append(_step(network, lists, drawn, offset_weight, dtype))
            if not np.isfinite(training_losses[-1]):
                raise DataError(f"the loss was not finite in step {step}; lower learning_rate {settings.learning_rate}")
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if held_out is not None and (step % settings.evaluate_every == 0 or step == settings.steps):
                evaluate()
                least = min(validation, key=lambda done: validation[done])
                if sum(done > least for done in validation) >= settings.patience:
                    break
        if held_out is None:
            best = _state(network, offset_weight)
        network.load_state_dict(best[0])
    return FineTuning(
        training_losses=np.array(training_losses, dtype=np.float32),
        validation_steps=np.array(list(validation), dtype=np.int64),
        validation_losses=np.array(list(validation.values()), dtype=np.float32),
        kept_step=min(validation, key=lambda done: validation[done]) if validation else len(training_losses),
        offset_weight=best[1],
    )


@contextmanager
def _as_it_was_on_failure(network: Any) -> Iterator[None]:
    """Give a network back its weights where the body raises; in either case it is left ready to score."""
    before = copy.deepcopy(network.state_dict())
    try:
        yield
    except BaseException:
        network.load_state_dict(before)
        raise
    finally:
        network.zero_grad()
        network.eval()


def _optimizer(
    network: Any, offset_weight: Tensor, new_weights: Set[str], settings: TuningSettings
) -> torch.optim.Optimizer:
    named = list(network.model.named_parameters())
    return torch.optim.AdamW(
        [
            {"params": [part for name, part in named if name not in new_weights], "lr": settings.learning_rate},
            {"params": [part for name, part in named if name in new_weights], "lr": settings.head_learning_rate},
            {"params": [offset_weight], "lr": OFFSET_LEARNING_RATE, "weight_decay": 0.0},
        ],
        weight_decay=WEIGHT_DECAY,
    )


def _rate(step: int, n_steps: int) -> float:
    """Share of the full learning rate: up over the first tenth of the steps, then down in a line."""
    warm_up = max(1, n_steps // 10)
    return min((step + 1) / warm_up, (n_steps - step) / max(1, n_steps - warm_up))


def _step(network: Any, lists: TextLists, drawn: IntArray, offset_weight: Tensor, dtype: DTypeName) -> float:
    """Set the gradients of the drawn lists' mean loss and return it."""
    network.train()
    network.zero_grad()
    offset_weight.grad = None
    total = 0.0
    for rows in _passes(lists, drawn):
        loss = _losses(network, lists, rows, offset_weight, dtype).sum() / len(drawn)
        loss.backward()
        total += float(loss.detach())
    return total


@torch.no_grad()
def _mean_loss(network: Any, lists: TextLists, offset_weight: Tensor, dtype: DTypeName) -> float:
    network.eval()
    passes = _passes(lists, np.arange(len(lists), dtype=np.int64))
    return sum(float(_losses(network, lists, rows, offset_weight, dtype).sum()) for rows in passes) / len(lists)


def _passes(lists: TextLists, rows: IntArray) -> list[IntArray]:
    """Cut rows into runs of whole lists that end where ``PAIRS_A_PASS`` pairs are reached."""
    through = np.cumsum([len(lists.candidates[row]) for row in rows])
    return np.split(rows, np.flatnonzero(np.diff(through // PAIRS_A_PASS)) + 1)


def _losses(network: Any, lists: TextLists, rows: IntArray, offset_weight: Tensor, dtype: DTypeName) -> Tensor:
    """−log softmax(λ × offset + score) of each list's positive: shape (n_rows,)."""
    from sentence_transformers.util import batch_to_device

    pairs = [(lists.histories[row], text) for row in rows for text in lists.candidates[row]]
    features = batch_to_device(network.preprocess(pairs), network.device)
    with torch.autocast(network.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        scores = network(features)["scores"][:, 0].float()
    offsets = torch.from_numpy(np.concatenate([lists.offsets[row] for row in rows])).to(scores.device)
    logits = (offset_weight * offsets + scores).split([len(lists.candidates[row]) for row in rows])
    places = lists.positives[rows].tolist()
    return torch.stack([-one.log_softmax(0)[place] for one, place in zip(logits, places, strict=True)])


def _state(network: Any, offset_weight: Tensor) -> tuple[dict[str, Tensor], float]:
    return copy.deepcopy(network.state_dict()), float(offset_weight.detach())
