"""Tune a sentence encoder on a shop's own purchases: two items of one user's history belong together.

In-batch softmax over cosines with fresh vectors in every step and the popularity correction of sampled softmax (Yi et
al., "Sampling-bias-corrected neural modeling for large corpus item recommendations", 2019): log q of each item is taken
off its logit, so that the texts of best sellers are not pushed away for being drawn often.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_rerank.data.splits import first_of_pair, hash_users
from llm_rerank.models.cross_encoder.training_settings import TrainingSettings, learning_rate_at
from llm_rerank.models.semantic.weights import best_dtype
from llm_rerank.types import BoolArray, IntArray, Interactions, ObjectArray, Ragged

VALIDATION_SHARE = 10  # one user in ten
VALIDATION_BATCHES = 10


@dataclass(frozen=True)
class EncoderTuning:
    """Settings. temperature: cosines are divided by it. item_tokens: of a text; what is over is cut off."""

    steps: int = 600
    pairs_per_step: int = 64
    learning_rate: float = 5e-5
    temperature: float = 0.05
    item_tokens: int = 32
    evaluate_every: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Purchases:
    """Distinct items of each user who took two or more that have a text.

    shares: float64, shape (n_items,): chance that an item is drawn as the second of a pair.
    """

    items: Ragged
    shares: np.ndarray

    @classmethod
    def of(cls, items: Ragged, n_items: int) -> Purchases:
        """Take rows of distinct items, two or more each."""
        weights = 1.0 / items.lengths[items.row_of_value] / len(items)
        return cls(items, np.bincount(items.values, weights, minlength=n_items))

    def draw(self, n: int, rng: np.random.Generator) -> tuple[IntArray, IntArray, IntArray]:
        """Draw n users, or all where there are fewer, and two different items of each: rows, first, second."""
        rows = rng.permutation(len(self.items))[:n]
        lengths, starts = self.items.lengths[rows], self.items.offsets[rows]
        first = rng.integers(0, lengths)
        second = (first + rng.integers(1, lengths)) % lengths
        return rows, self.items.values[starts + first], self.items.values[starts + second]


def purchases_of(past: Interactions, texts: ObjectArray) -> tuple[Purchases, Purchases]:
    """Purchases of nine tenths of the users, to tune on, and of the others, to stop by."""
    has_text = np.array([bool(str(text).strip()) for text in texts], dtype=np.bool_)
    taken = np.flatnonzero(past.positive & (past.items >= 0))
    taken = taken[has_text[past.items[taken]]]
    taken = taken[first_of_pair(past.users[taken], past.items[taken], past.n_items)]
    taken = taken[np.argsort(past.users[taken], kind="stable")]
    lengths = np.bincount(past.users[taken], minlength=past.n_users)
    rows = Ragged.from_lengths(past.items[taken], lengths.astype(np.int64))
    is_validation = hash_users(past.user_ids, VALIDATION_SHARE, salt="encoder") == 0
    tuned_on, stopped_by = (
        Purchases.of(rows.take(np.flatnonzero((rows.lengths > 1) & part)), len(texts))
        for part in (~is_validation, is_validation)
    )
    return tuned_on, stopped_by


def own_items(purchases: Purchases, rows: IntArray, second: IntArray) -> BoolArray:
    """Tell which second items each user took: no negatives of theirs. Shape (n_rows, n_rows), False on the diagonal."""
    own = np.stack([np.isin(second, purchases.items[row]) for row in rows])
    np.fill_diagonal(own, False)
    return own


def pair_loss(first: Tensor, second: Tensor, shares: Tensor, own: Tensor, temperature: float) -> Tensor:
    """Mean −log softmax of cosine / temperature − log share at each row's own second item.

    first, second: shape (n, size), unit length. shares: shape (n,), of the second items. own: as ``own_items``.
    """
    logits = first @ second.T / temperature - shares.log()
    return -torch.log_softmax(logits.masked_fill(own, float("-inf")), dim=1).diagonal().mean()


def tune_encoder(
    network: Any, past: Interactions, texts: ObjectArray, settings: EncoderTuning, say: Callable[[str], None] = print
) -> list[dict[str, float]]:
    """Tune a ``SentenceTransformer`` in place and leave it with the weights of the least validation loss.

    Returns an entry an evaluation, the first before any step: step, loss, mean loss of the steps since the last one.
    """
    tuned_on, stopped_by = purchases_of(past, texts)
    rng = np.random.default_rng(settings.seed)
    dtype = torch.bfloat16 if best_dtype(str(network.device)) == "bfloat16" else torch.float32
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = TrainingSettings(steps=settings.steps, warmup_steps=max(1, settings.steps // 10))
    longest, network.max_seq_length = network.max_seq_length, settings.item_tokens

    def loss_of(purchases: Purchases, drawn: np.random.Generator) -> Tensor:
        rows, first, second = purchases.draw(settings.pairs_per_step, drawn)
        vectors = _vectors(network, [*texts[first], *texts[second]], dtype)
        shares = torch.from_numpy(purchases.shares[second]).float()
        own = torch.from_numpy(own_items(purchases, rows, second))
        return pair_loss(vectors[: len(first)], vectors[len(first) :], shares, own, settings.temperature)

    @torch.no_grad()
    def evaluate() -> float:
        network.eval()
        drawn = np.random.default_rng([settings.seed, 1])  # the same pairs each time
        return float(np.mean([float(loss_of(stopped_by, drawn)) for _ in range(VALIDATION_BATCHES)]))

    log, losses = [{"step": 0.0, "loss": evaluate()}], []
    best = copy.deepcopy(network.state_dict())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        for step in range(1, settings.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * learning_rate_at(step - 1, schedule)
            network.train()
            loss = loss_of(tuned_on, rng)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            if step % settings.evaluate_every == 0 or step == settings.steps:
                entry = {"step": float(step), "loss": evaluate(), "training_loss": float(np.mean(losses))}
                if entry["loss"] < min(earlier["loss"] for earlier in log):
                    best = copy.deepcopy(network.state_dict())
                log.append(entry)
                losses = []
                say(f"step {step}: validation loss {entry['loss']:.4f}, training loss {entry['training_loss']:.4f}")
    network.load_state_dict(best)
    network.max_seq_length = longest
    network.eval()
    return log


def _vectors(network: Any, texts: Sequence[str], dtype: torch.dtype) -> Tensor:
    """Encode texts, each different one once: unit vectors, float32, shape (n_texts, size), with gradients."""
    from sentence_transformers.util import batch_to_device

    distinct = list(dict.fromkeys(texts))
    place = {text: row for row, text in enumerate(distinct)}
    features = batch_to_device(network.preprocess(distinct), network.device)
    with torch.autocast(network.device.type, dtype, enabled=dtype is not torch.float32):
        vectors = network(features)["sentence_embedding"]
    return torch.nn.functional.normalize(vectors.float(), dim=1)[[place[text] for text in texts]]
