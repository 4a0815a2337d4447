"""The sequence nets and their loss, in torch: unit item vectors of text and id, a user as a pooled history.

Only training needs this; scoring is numpy (``sequence_tables.py``) and agrees with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_rerank.models.collaborative.sequence_rows import Context
from llm_rerank.types import FloatArray

INITIAL_SCALE = 10.0
INITIAL_DECAY = 0.2
_INITIAL_ID = 0.01


@dataclass(frozen=True)
class NetworkSettings:
    """embedding_size: length of a vector. attends: the history's weights depend on what is in it."""

    embedding_size: int
    attends: bool
    dropout: float
    text_dropout: float


class CatalogueSoftmax(torch.autograd.Function):
    """Mean over rows of log Σ_j exp(s_j) − Σ_t w_t s_t over the row's targets, s = u·v + b, with its gradient by hand.

    One table of (n_rows, n_items) is formed and overwritten by exp(s − max), which is all that backward needs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        biases: Tensor,
        target_rows: Tensor,
        target_items: Tensor,
        target_weights: Tensor,
    ) -> Tensor:
        """Compute the loss.

        users: (n_rows, size), scaled. items: (n_items, size). biases: (n_items,). target_rows, target_items: int64,
        target_weights: float32, shape (n_targets,); the weights of a row's targets sum to 1.
        """
        table = torch.addmm(biases, users, items.T)
        top = table.amax(dim=1, keepdim=True)
        table.sub_(top).exp_()
        sums = table.sum(dim=1)
        positive = ((users[target_rows] * items[target_items]).sum(dim=1) + biases[target_items]) @ target_weights
        ctx.save_for_backward(users, items, table, sums, target_rows, target_items, target_weights)
        return (torch.log(sums).sum() + top.sum() - positive) / len(users)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Softmax less the targets, times the other side's vectors."""
        users, items, table, sums, target_rows, target_items, target_weights = ctx.saved_tensors
        step = gradients[0] / len(users)
        share = (step / sums)[:, None]
        of_users = (table @ items).mul_(share)
        of_items = table.T @ (users * share)
        of_biases = table.T @ share[:, 0]
        weights = (step * target_weights)[:, None]
        of_users.index_add_(0, target_rows, items[target_items] * -weights)
        of_items.index_add_(0, target_items, users[target_rows] * -weights)
        of_biases.index_add_(0, target_items, -weights[:, 0])
        return of_users, of_items, of_biases, None, None, None


class SequenceNetwork(nn.Module):
    """Score of item i = scale × u · v_i + b_i, with v_i = unit(W text_i + id_i) and u = unit(Σ_j α_j v_j).

    α: softmax over the events read of log weight − decay × age. A net that attends does so twice: the average that
    comes first asks, through a bilinear form that starts at zero, which events count in the second.

    text: float32, shape (n_items, text_size), the main directions first; text_size 0: ids only.
    """

    text: Tensor

    def __init__(self, text: Tensor, settings: NetworkSettings) -> None:
        super().__init__()
        n_items, text_size = text.shape
        size = settings.embedding_size
        self.settings = settings
        self.register_buffer("text", text, persistent=False)
        # the texts' main directions, as they are, scaled so that what is left of a vector has about unit length
        self.text_layer = nn.Parameter(torch.eye(text_size, size) * max(text_size / size, 1.0) ** 0.5)
        self.ids = nn.Parameter(torch.randn(n_items, size) * _INITIAL_ID)
        self.biases = nn.Parameter(torch.zeros(n_items))
        self.log_scale = nn.Parameter(torch.tensor(INITIAL_SCALE).log())
        self.log_decay = nn.Parameter(torch.tensor(INITIAL_DECAY).log())
        self.dropout = nn.Dropout(settings.dropout)
        if settings.attends:
            self.attention = nn.Parameter(torch.zeros(size, size))
            self.log_attention_decay = nn.Parameter(torch.tensor(INITIAL_DECAY).log())

    def item_vectors(self) -> Tensor:
        """Vectors of all items, shape (n_items, size), unit length; in training some go without their text."""
        if not len(self.text_layer):
            return nn.functional.normalize(self.ids, dim=1)
        text = self.text @ self.text_layer
        if self.training and self.settings.text_dropout:
            text = text * (torch.rand(len(text), 1) >= self.settings.text_dropout)
        return nn.functional.normalize(text + self.ids, dim=1)

    def user_vectors(self, vectors: Tensor, context: Context) -> Tensor:
        """Vectors of the context's rows times the scale, shape (n_rows, size); every row has an event."""
        ages, log_weights = torch.from_numpy(context.ages), torch.from_numpy(context.log_weights)
        pooled = _pooled(vectors, log_weights - self.log_decay.exp() * ages, context)
        if self.settings.attends:
            pooled = nn.functional.normalize(pooled, dim=1)
            # embedding, not indexing: its backward adds in one order whatever the number of threads
            questions = nn.functional.embedding(torch.from_numpy(context.rows), pooled @ self.attention)
            read = nn.functional.embedding(torch.from_numpy(context.items), vectors)
            asked = (questions * read).sum(dim=1)
            logits = asked + log_weights - self.log_attention_decay.exp() * ages
            pooled = _pooled(vectors, logits, context)
        # dropout takes whole coordinates out of a sum of unit vectors; the sum's length says nothing
        return nn.functional.normalize(self.dropout(pooled), dim=1) * self.log_scale.exp()

    @torch.no_grad()
    def arrays(self) -> Mapping[str, FloatArray]:
        """Give what scoring needs, by name."""
        tensors = {
            "text_layer": self.text_layer,
            "ids": self.ids,
            "biases": self.biases,
            "scale": self.log_scale.exp(),
            "decay": self.log_decay.exp(),
        }
        if self.settings.attends:
            tensors |= {"attention": self.attention, "attention_decay": self.log_attention_decay.exp()}
        return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def _pooled(vectors: Tensor, logits: Tensor, context: Context) -> Tensor:
    """Sum the events' vectors by exp(logit − the row's greatest): parallel to their average by softmax."""
    top = np.maximum.reduceat(logits.detach().numpy(), context.starts)
    lengths = np.diff(context.starts, append=len(logits))
    raised = (logits - torch.from_numpy(np.repeat(top, lengths))).exp()
    # fused: the events' vectors are never written out one by one
    return nn.functional.embedding_bag(
        torch.from_numpy(context.items),
        vectors,
        torch.from_numpy(context.starts),
        mode="sum",
        per_sample_weights=raised,
    )
