"""Training of the neural scorer: Adam, early stopping on held-out users. The only part of it that needs torch."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from llm_rerank.metrics import hit_matrix
from llm_rerank.models.scoring import top_k
from llm_rerank.types import DataError, FloatArray, IntArray, Ragged

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_INITIAL_SCALE = 0.1
_FEWEST_HELD_OUT = 10
"""With fewer held-out targets their loss is noise; the training loss is watched instead."""

MOST_RANKED = 500
"""Of more watched rows so many, evenly spaced, are ranked after each epoch."""

_RANKED_CELLS = 2**22  # hidden units held at once while ranking: 16 MiB of float32


@dataclass(frozen=True)
class TrainingRows:
    """One row = one observed event and what was known of its user before it.

    histories: float32 CSR, shape (n_rows, n_items), rows of absolute sum 1 (or 0).
    attributes: float32, shape (n_rows, n_attributes), standardised, 0 where unknown.
    items: int64, shape (n_rows,). targets: float32, shape (n_rows,), ratings less their mean (explicit form only).
    weights: float32, shape (n_rows,).
    """

    histories: csr_matrix
    attributes: FloatArray
    items: IntArray
    targets: FloatArray
    weights: FloatArray

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: IntArray) -> TrainingRows:
        """Rows in the order given."""
        return TrainingRows(
            self.histories[rows], self.attributes[rows], self.items[rows], self.targets[rows], self.weights[rows]
        )


@dataclass(frozen=True)
class TrainingSettings:
    """What ``train`` reads of the scorer's settings; their meaning is said there."""

    explicit: bool
    embedding_size: int
    hidden_size: int
    learning_rate: float
    epochs: int
    patience: int
    batch_size: int
    dropout: float
    negatives: int
    negative_weight: float


class Curves(NamedTuple):
    """What each epoch that was run came to; float32, shape (n_epochs,), mean loss a row and shares of rows.

    found_in_ten, found_first: of watched rows, whose item is among the ten best, or the best, of all items that can be
    drawn; empty in the explicit form, whose rows are ratings, low ones among them.
    """

    loss: FloatArray
    held_out_loss: FloatArray
    found_in_ten: FloatArray
    found_first: FloatArray


class Network(nn.Module):
    """score = w · relu(A·pool(history) + B·attributes + C·item + b) + c."""

    def __init__(self, n_items: int, n_attributes: int, settings: TrainingSettings) -> None:
        super().__init__()
        size, hidden = settings.embedding_size, settings.hidden_size
        self.history_table = nn.EmbeddingBag(n_items, size, mode="sum")
        self.item_table = nn.Embedding(n_items, size)
        for table in (self.history_table, self.item_table):
            nn.init.normal_(table.weight, std=_INITIAL_SCALE)
        self.history_layer = nn.Linear(size, hidden)
        self.attribute_weights = nn.Parameter(torch.zeros(n_attributes, hidden))
        self.item_layer = nn.Linear(size, hidden, bias=False)
        self.output = nn.Linear(hidden, 1)
        self.dropout = nn.Dropout(settings.dropout)
        self._start_as_similarity()

    @torch.no_grad()
    def _start_as_similarity(self) -> None:
        """Let both tables start equal and the hidden units in fours: |x + y| − |x − y| = 2·sign(xy)·min(|x|, |y|).

        x, y: the same random projection of the pooled history and of the item. From the usual random start the layer
        learns popularity first and hardly ever what a product of the two gives at once.
        """
        n_fours = self.item_layer.out_features // 4
        projection = nn.functional.normalize(torch.randn(n_fours, self.item_layer.in_features), dim=1)
        self.item_table.weight.copy_(self.history_table.weight)
        for four, (of_history, of_item, out) in enumerate(((1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, 1, -1))):
            units = slice(four * n_fours, (four + 1) * n_fours)
            self.history_layer.weight[units] = of_history * projection
            self.item_layer.weight[units] = of_item * projection
            self.output.weight[0, units] = float(out)
        self.history_layer.bias.zero_()

    def user_part(self, rows: TrainingRows) -> Tensor:
        """Sum what the history and the attributes give to each hidden unit: shape (n_rows, hidden_size)."""
        pooled = self.history_table(
            torch.from_numpy(rows.histories.indices.astype(np.int64)),
            torch.from_numpy(rows.histories.indptr[:-1].astype(np.int64)),
            per_sample_weights=torch.from_numpy(rows.histories.data),
        )
        hidden: Tensor = self.history_layer(self.dropout(pooled))
        return hidden + torch.from_numpy(rows.attributes) @ self.attribute_weights

    def item_part(self, items: IntArray) -> Tensor:
        """Compute what each item gives to each hidden unit: shape (n_items, hidden_size)."""
        part: Tensor = self.item_layer(self.dropout(self.item_table(torch.from_numpy(items))))
        return part

    def score(self, hidden: Tensor) -> Tensor:
        """Scores from summed parts, shape (..., hidden_size)."""
        scores: Tensor = self.output(torch.relu(hidden))
        return scores[..., 0]

    def tables(self) -> dict[str, FloatArray]:
        """Everything that scoring needs, with the first layer already applied to both tables.

        Pooling is linear, so histories may be pooled over rows of hidden_size straight away.
        """
        with torch.no_grad():
            tensors = {
                "history_table": self.history_table.weight @ self.history_layer.weight.T,
                "attribute_weights": self.attribute_weights,
                "item_table": self.item_table.weight @ self.item_layer.weight.T,
                "hidden_bias": self.history_layer.bias,
                "output_weights": self.output.weight[0],
                "output_bias": self.output.bias,
            }
            return {name: tensor.numpy().copy() for name, tensor in tensors.items()}


def train(
    rows: TrainingRows, held_out: TrainingRows, drawable: IntArray, settings: TrainingSettings, *, seed: int
) -> tuple[dict[str, FloatArray], Curves]:
    """Train until the held-out loss has not fallen for ``patience`` epochs, or for ``epochs``; keep the best epoch.

    drawable: int64, ascending item codes that negatives are drawn from.
    Returns the network's tables, and what was watched.

    Raises DataError where the loss is no longer finite.
    """
    rng = np.random.default_rng(seed)
    watched = held_out if len(held_out) >= _FEWEST_HELD_OUT else rows
    fixed_draws = rng.choice(drawable, (-(-len(watched) // settings.batch_size), settings.negatives))
    ranked = watched.take(np.arange(0, len(watched), -(-len(watched) // MOST_RANKED)))
    curve: list[float] = []
    watched_curve: list[float] = []
    found: list[tuple[float, float]] = []
    best: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it is
        torch.manual_seed(seed)
        network = Network(rows.histories.shape[1], rows.attributes.shape[1], settings)
        optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        for epoch in range(settings.epochs):
            network.train()
            total = 0.0
            order = rng.permutation(len(rows))
            for start in range(0, len(rows), settings.batch_size):
                batch = rows.take(order[start : start + settings.batch_size])
                losses = _losses(network, batch, rng.choice(drawable, settings.negatives), settings)
                optimizer.zero_grad()
                losses.mean().backward()
                optimizer.step()
                total += float(losses.detach().sum())
            curve.append(total / float(rows.weights.sum()))
            watched_curve.append(_mean_loss(network, watched, fixed_draws, settings))
            if not np.isfinite([curve[-1], watched_curve[-1]]).all():
                raise DataError(
                    f"neural diverged in epoch {epoch + 1} with learning_rate {settings.learning_rate}; lower it"
                )
            if not settings.explicit:
                found.append(_found(network, ranked, drawable))
            if watched_curve[-1] <= min(watched_curve):
                best = copy.deepcopy(network.state_dict())
            elif epoch - int(np.argmin(watched_curve)) >= settings.patience:
                break
        network.load_state_dict(best)
    shares = np.array(found, dtype=np.float32).reshape(-1, 2)
    watched_losses = np.array(watched_curve, dtype=np.float32)
    return network.tables(), Curves(np.array(curve, dtype=np.float32), watched_losses, shares[:, 0], shares[:, 1])


def _losses(network: Network, rows: TrainingRows, drawn: IntArray, settings: TrainingSettings) -> Tensor:
    """Weighted loss of each row: squared error, or logistic against the items drawn; shape (n_rows,)."""
    user_part = network.user_part(rows)
    scores = network.score(user_part + network.item_part(rows.items))
    weights = torch.from_numpy(rows.weights)
    if settings.explicit:
        return weights * (scores - torch.from_numpy(rows.targets)) ** 2
    opposed = network.score(user_part[:, None, :] + network.item_part(drawn)[None, :, :])
    softplus = nn.functional.softplus
    return weights * (softplus(-scores) + settings.negative_weight * softplus(opposed).mean(dim=1))


def _mean_loss(network: Network, rows: TrainingRows, draws: IntArray, settings: TrainingSettings) -> float:
    """Weighted mean loss without dropout; draws: int64, shape (n_batches, negatives), the same at every call."""
    network.eval()
    total = 0.0
    with torch.no_grad():
        for number, drawn in enumerate(draws):
            start = number * settings.batch_size
            batch = rows.take(np.arange(start, min(start + settings.batch_size, len(rows))))
            total += float(_losses(network, batch, drawn, settings).sum())
    return total / float(rows.weights.sum())


def _found(network: Network, rows: TrainingRows, items: IntArray) -> tuple[float, float]:
    """Shares of rows whose item is among the ten best of ``items``, and the best; no item is left out of a list."""
    network.eval()
    with torch.no_grad():
        item_part = network.item_part(items)
        step = max(1, _RANKED_CELLS // item_part.numel())
        scores = [
            network.score(network.user_part(block)[:, None, :] + item_part[None, :, :]).numpy()
            for start in range(0, len(rows), step)
            for block in [rows.take(np.arange(start, min(start + step, len(rows))))]
        ]
    best = top_k(np.concatenate(scores), 10)
    targets = Ragged.from_lengths(rows.items, np.ones(len(rows), dtype=np.int64))
    hits = hit_matrix(Ragged(items[best.values], best.offsets), targets, 10)
    return float(hits.any(axis=1).mean()), float(hits[:, 0].mean())
