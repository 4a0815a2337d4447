"""Fine-tuning of the history cross-encoder on a shop's own lists: what everything else does not know yet.

Listwise softmax over λ × offset + score, early stopping by the same loss on other users' lists, one list a user. Runs
on ``accelerate``: CPU, one GPU or several, float32 or bfloat16. A killed run that was given a folder goes on from its
last checkpoint and ends where it would have ended; Ctrl-C keeps the best step so far.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llm_rerank.folders import check_target
from llm_rerank.models.cross_encoder.checkpoints import (
    Progress,
    load_progress,
    optimizer_moments,
    restore_moments,
    run_identity,
    save_progress,
)
from llm_rerank.models.cross_encoder.list_metrics import judge_lists
from llm_rerank.models.cross_encoder.list_scorer import ListScorer
from llm_rerank.models.cross_encoder.lists import TrainingLists, sample_negatives
from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder
from llm_rerank.models.cross_encoder.scoring import readable_histories
from llm_rerank.models.cross_encoder.training_settings import TrainingSettings, learning_rate_at, rows_of_step
from llm_rerank.models.cross_encoder.training_texts import TrainingTexts
from llm_rerank.models.cross_encoder.warm_start import fit_warm_start
from llm_rerank.models.semantic.weights import best_dtype
from llm_rerank.types import DataError, IntArray, Items, StorageError

if TYPE_CHECKING:
    from accelerate import Accelerator

LEAST_LISTS = 50
"""Fewer lists than this teach a network of millions of weights nothing but themselves."""

SECONDS_BETWEEN_CHECKPOINTS = 30.0
"""A step of a large shop takes seconds on a CPU, and the first evaluation comes after 20 of them."""


@dataclass(frozen=True)
class FineTuning:
    """What a fine-tuning did. log: one entry an evaluation, the first before any step; none where that was interrupted.

    best_step: 0: the warm start.
    """

    log: list[dict[str, Any]]
    best_step: int
    n_lists: int
    n_validation: int
    interrupted: bool

    def sentence(self) -> str:
        """Say what came out in one sentence."""
        head = f"cross-encoder: {self.n_lists:,} lists, {self.n_validation:,} more for early stopping"
        if not self.log:
            return f"{head}, interrupted before the first evaluation: the warm start is kept"
        first = self.log[0]
        best = next(entry for entry in self.log if entry["step"] == self.best_step)
        if self.interrupted:
            head += f", interrupted after step {self.log[-1]['step']}"
        if not self.best_step:
            return f"{head}: no step beats the warm start (loss {first['loss']:.4f}), which is kept"
        return (
            f"{head}: loss {first['loss']:.4f} → {best['loss']:.4f} at step {self.best_step}, NDCG@10 "
            f"{first['ndcg@10']:.4f} → {best['ndcg@10']:.4f}, accuracy {best['accuracy']:.4f} "
            f"(base rate {best['base_rate']:.4f})"
        )


def fine_tune(
    model: HistoryCrossEncoder,
    lists: TrainingLists,
    validation: TrainingLists,
    items: Items,
    settings: TrainingSettings | None = None,
    *,
    checkpoint: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> FineTuning:
    """Train the model's upper layers, attention and head in place; what it had computed of items is forgotten.

    lists, validation: of different users, codes of ``items``; ``items`` carry texts. checkpoint: folder to go on from,
    and to write to at each evaluation and twice a minute; None: nothing is written. A checkpoint there that is not of
    this work is written over, which is said. say: called with a line an evaluation.

    Several processes (``accelerate launch``) take the lists, the checkpoint and the evaluations of the first.

    Raises DataError where there are too few lists, StorageError where no checkpoint can be written. Ctrl-C ends the
    training and keeps the best step so far.
    """
    settings = settings or TrainingSettings()
    if len(lists) < LEAST_LISTS or not len(validation):
        raise DataError(
            f"there are {len(lists)} training and {len(validation)} validation lists; at least {LEAST_LISTS} and 1 are "
            "needed: bring more users whose last item was retrieved, or leave the cross-encoder out"
        )
    with torch.random.fork_rng(devices=[]):
        return _Run(model, lists, validation, items, settings, checkpoint, say or (lambda line: None)).go()


def accelerator_for(device: str) -> Accelerator:
    """Let accelerate run on a device, though an earlier fine-tuning of this process ran on another kind of device.

    It keeps one device a process and refuses another; several processes keep theirs. What it prepares stays where it
    is: its own device is the first GPU, whichever the model is on.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    on_cpu = device.startswith("cpu")
    if PartialState._shared_state:
        held = PartialState()
        if held.num_processes == 1 and (held.device.type == "cpu") != on_cpu:
            AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=on_cpu, device_placement=False)


class _Run:
    """One fine-tuning from start to end."""

    def __init__(
        self,
        model: HistoryCrossEncoder,
        lists: TrainingLists,
        validation: TrainingLists,
        items: Items,
        settings: TrainingSettings,
        checkpoint: Path | None,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.settings = model, settings
        self.checkpoint, self.say = checkpoint, say
        self.accelerator = accelerator_for(model.device)
        self.run = run_identity(
            {**asdict(settings), **model.network.shape.to_dict()},
            f"{model.reader.fingerprint} {model.encoder.fingerprint}",
            model.network.state_dict(),
            items.texts,
            (lists, validation),
        )
        self._found, (lists, validation) = self._agreed(lambda: self._checkpoint((lists, validation)))
        self.lists, self.validation = lists, validation
        codes = _codes_read((lists, validation), items, model.history_length)
        texts = TrainingTexts.read(model.reader, model.encoder, items, codes)
        scorer = ListScorer(model.network.float(), texts, model.history_length).to(model.device)
        if not model.training_log:  # one that was trained, on this shop or another, goes on from where it is
            fit_warm_start(
                scorer.network, scorer.offset_weight, texts.vectors, texts.row_of_item, lists, scorer.histories(lists)
            )
        new = {id(p) for name, p in scorer.named_parameters() if ".layers." not in name}
        groups = [
            {"params": [p for p in scorer.parameters() if (id(p) in new) is is_new], "share": rate}
            for is_new, rate in ((False, settings.layer_learning_rate), (True, settings.learning_rate))
        ]
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.scorer = scorer
        self.wrapped, self.optimizer = self.accelerator.prepare(scorer, optimizer)
        self.names = {id(p): name for name, p in scorer.named_parameters()}
        precision = best_dtype(model.device) if settings.precision == "auto" else settings.precision
        self._bfloat16 = precision == "bfloat16"
        self._saved = time.monotonic()

    def go(self) -> FineTuning:
        """Train until the last step, or until patience or the user ends it."""
        progress, interrupted = Progress(0, {}, {}, 0, self._weights(), [], []), False
        try:
            progress = self._start()
            while progress.step < self.settings.steps and not self._is_out_of_patience(progress):
                progress.losses.append(self._step(progress.step))
                progress.step += 1
                if not math.isfinite(progress.losses[-1]):
                    self.say(f"step {progress.step}: the loss is {progress.losses[-1]}; the best so far is kept")
                    break
                is_due = progress.step % self.settings.evaluate_every == 0 or progress.step == self.settings.steps
                if is_due:
                    self._evaluate(progress)
                if is_due or time.monotonic() - self._saved >= SECONDS_BETWEEN_CHECKPOINTS:
                    self._save(progress)
        except KeyboardInterrupt:
            interrupted = True
        self.scorer.load_state_dict(progress.best_weights)
        self.model.network = self.scorer.network.eval()
        self.model.training_log = progress.log
        return FineTuning(progress.log, progress.best_step, len(self.lists), len(self.validation), interrupted)

    def _checkpoint(self, lists: Sequence[TrainingLists]) -> tuple[Progress | None, Sequence[TrainingLists]]:
        """Read what to go on from, with its lists in place of those given; say why where a checkpoint is not taken.

        Raises StorageError where none could be written: before the work, not after it.
        """
        if self.checkpoint is None:
            return None, lists
        check_target(self.checkpoint)
        try:
            found = load_progress(self.checkpoint, self.run, lists)
        except StorageError as error:
            self.say(f"the checkpoint in {self.checkpoint} is not gone on from, and will be written over: {error}")
            found = None
        return found or (None, lists)

    def _agreed(self, decide: Callable[[], Any]) -> Any:
        """Return what the first of the processes decides.

        Each alone would decide by its own files and last bits, and one that ended would leave the others waiting.
        """
        decided = [decide() if self.accelerator.is_main_process else None]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(decided)
        return decided[0]

    def _start(self) -> Progress:
        found = self._found
        if found is not None:
            self.scorer.load_state_dict(found.weights)
            restore_moments(self.optimizer.optimizer, self.names, found.moments)
            self.say(f"going on from the checkpoint after step {found.step}")
            return found
        progress = Progress(0, {}, {}, 0, self._weights(), [], [])
        self._evaluate(progress)
        return progress

    def _step(self, step: int) -> float:
        """Take a step by its number; returns its loss."""
        settings, accelerator = self.settings, self.accelerator
        # everything random in a step follows from its number, so that a resumed run takes the same steps
        torch.manual_seed(settings.seed * 1_000_003 + step)
        rows = rows_of_step(step, len(self.lists), settings)[accelerator.process_index :: accelerator.num_processes]
        batch = sample_negatives(self.lists.take(rows), settings.n_negatives, settings.seed * 1_000_003 + step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * learning_rate_at(step, settings)
        self.wrapped.train()
        with self._arithmetic():
            loss = self.wrapped(batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(self.wrapped.parameters(), settings.most_gradient)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(accelerator.reduce(loss.detach(), "mean"))  # not finite in one process, so in all

    def _evaluate(self, progress: Progress) -> None:
        entry: dict[str, Any] = {"step": progress.step, **self._agreed(self._judged)}
        entry["offset_weight"] = float(self.scorer.offset_weight.detach())
        if progress.losses:
            entry["training_loss"] = float(np.mean(progress.losses))
        progress.losses = []
        if not math.isfinite(entry["loss"]):  # diverged: the next step says so and ends it
            return
        best = min((e["loss"] for e in progress.log), default=float("inf"))
        progress.log.append(entry)
        if entry["loss"] < best:
            progress.best_step, progress.best_weights = progress.step, self._weights()
        self.say(
            f"step {progress.step}: validation loss {entry['loss']:.4f}, NDCG@10 {entry['ndcg@10']:.4f}, recall@10 "
            f"{entry['recall@10']:.4f}, accuracy {entry['accuracy']:.4f} (base rate {entry['base_rate']:.4f})"
        )

    def _judged(self) -> dict[str, float]:
        self.scorer.eval()
        with self._arithmetic():
            return judge_lists(self.scorer.logits(self.validation), self.validation)

    def _save(self, progress: Progress) -> None:
        if self.checkpoint is None or not self.accelerator.is_main_process:
            return
        progress.weights = self._weights()
        progress.moments = optimizer_moments(self.optimizer.optimizer, self.names)
        save_progress(self.checkpoint, self.run, (self.lists, self.validation), progress)
        self._saved = time.monotonic()

    def _is_out_of_patience(self, progress: Progress) -> bool:
        last = progress.log[-1]["step"]
        return last - progress.best_step >= self.settings.patience * self.settings.evaluate_every

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.scorer.state_dict().items()}

    def _arithmetic(self) -> AbstractContextManager[Any]:
        kind = self.model.device.split(":")[0]
        return torch.autocast(kind, torch.bfloat16) if self._bfloat16 else nullcontext()


def _codes_read(parts: Sequence[TrainingLists], items: Items, history_length: int) -> IntArray:
    """Codes of the items that lists name and read: distinct, rising."""
    has_text = np.array([bool(str(text).strip()) for text in items.texts], dtype=np.bool_)
    histories = [readable_histories(lists.cases, has_text, history_length).rows.values for lists in parts]
    return np.unique(np.concatenate([*histories, *(lists.cases.candidates.values for lists in parts)]))
