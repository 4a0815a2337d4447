"""Training of one sequence net: Adam with a rate that falls to zero, a fixed number of epochs. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from llm_rerank.models.collaborative.sequence_networks import CatalogueSoftmax, NetworkSettings, SequenceNetwork
from llm_rerank.models.collaborative.sequence_rows import Rows
from llm_rerank.types import BoolArray, DataError, FloatArray

FEWEST_STEPS = 32
"""Steps of an epoch at least: where there are few rows, batches are smaller."""


@dataclass(frozen=True)
class TrainingSettings:
    """What ``train`` reads beside the network's settings. most_cells: rows × items of an epoch; more rows are drawn."""

    epochs: int
    learning_rate: float
    batch_size: int
    most_cells: int


def train(
    rows: Rows, text: FloatArray, fitted: BoolArray, network: NetworkSettings, settings: TrainingSettings, *, seed: int
) -> tuple[Mapping[str, FloatArray], FloatArray]:
    """Train on rows over the fitted items; returns ``SequenceNetwork.arrays`` and each epoch's mean loss a row.

    text: float32, shape (n_items, text_size). fitted: bool, shape (n_items,), items of the rows; only they are in the
    softmax, so that an item nobody took yet is not pushed away.

    Raises DataError where the loss is no longer finite.
    """
    codes = np.cumsum(fitted) - 1
    n_drawn = min(len(rows), max(settings.most_cells // int(fitted.sum()), settings.batch_size))
    batch_size = int(np.clip(n_drawn // FEWEST_STEPS, 1, settings.batch_size))
    n_steps = settings.epochs * -(-n_drawn // batch_size)
    rng = np.random.default_rng(seed)
    curve = np.zeros(settings.epochs, dtype=np.float32)
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it is
        torch.manual_seed(seed)
        net = SequenceNetwork(torch.from_numpy(np.ascontiguousarray(text[fitted])), network)
        net.train()
        optimizer = torch.optim.Adam(net.parameters(), lr=settings.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / n_steps)
        for epoch in range(settings.epochs):
            drawn = rng.permutation(len(rows))[:n_drawn]
            total = 0.0
            for start in range(0, n_drawn, batch_size):
                batch = rows.take(drawn[start : start + batch_size])
                vectors = net.item_vectors()
                users = net.user_vectors(vectors, batch.context().with_codes(codes))
                target_rows = batch.targets.row_of_value
                loss = CatalogueSoftmax.apply(
                    users,
                    vectors,
                    net.biases,
                    torch.from_numpy(target_rows),
                    torch.from_numpy(codes[batch.targets.values]),
                    torch.from_numpy(batch.target_weights),
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * len(batch)
            curve[epoch] = total / n_drawn
            if not np.isfinite(curve[epoch]):
                raise DataError(
                    f"sequence diverged in epoch {epoch + 1} with learning_rate {settings.learning_rate}; lower it"
                )
        return net.arrays(), curve
