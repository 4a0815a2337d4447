"""What a fine-tuning trains: the network with the texts that it reads, from lists to a loss or to logits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from llm_rerank.models.cross_encoder.history_encoder import HistoryNetwork
from llm_rerank.models.cross_encoder.item_table import ItemTable
from llm_rerank.models.cross_encoder.lists import TrainingLists
from llm_rerank.models.cross_encoder.packing import one_block
from llm_rerank.models.cross_encoder.scoring import (
    Histories,
    batching_for,
    readable_histories,
    score_block,
    score_lists,
)
from llm_rerank.models.cross_encoder.training_texts import TrainingTexts
from llm_rerank.types import IntArray, Ragged

ITEMS_AT_ONCE = 512


def list_loss(scores: Tensor, offsets: Tensor, positive: Tensor, real: Tensor) -> Tensor:
    """Mean over lists of −log softmax(scores + offsets) at the positive, over what is ``real``; (n_lists, width)."""
    logits = (scores + offsets).masked_fill(~real, float("-inf"))
    return -torch.log_softmax(logits, dim=1)[positive].mean()


class ListScorer(nn.Module):
    """The network with the texts that it reads, as one module from lists to logits: what accelerate wraps."""

    def __init__(self, network: HistoryNetwork, texts: TrainingTexts, history_length: int) -> None:
        super().__init__()
        self.network = network
        self.offset_weight = nn.Parameter(torch.tensor(1.0))
        self._texts = texts
        self._history_length = history_length

    def forward(self, lists: TrainingLists) -> Tensor:
        """Loss of some lists, each item read once."""
        candidates = lists.cases.candidates
        histories = self.histories(lists)
        codes = np.unique(np.concatenate([candidates.values, histories.rows.values]))
        table = self._texts.table(self.network, codes)
        local, past = _renumbered(codes, candidates, histories)
        block = one_block(local, past.rows.lengths)
        device = table.key.device
        scores = score_block(self.network, table, past, local, block, batching_for(self.network, device))
        real = block.candidates >= 0
        cells = np.where(real, block.candidates, 0)
        offsets = torch.from_numpy(lists.offsets[cells]).to(device)
        positive = torch.from_numpy(lists.positive[cells] & real).to(device)
        return list_loss(scores, self.offset_weight * offsets, positive, torch.from_numpy(real).to(device))

    def histories(self, lists: TrainingLists) -> Histories:
        """Histories as far as they are read: items with text, as in scoring."""
        return readable_histories(lists.cases, self._texts.has_text, self._history_length)

    @torch.no_grad()
    def logits(self, lists: TrainingLists) -> np.ndarray:
        """λ × offset + score of every candidate: float32, shape (n_candidates,)."""
        candidates, histories = lists.cases.candidates, self.histories(lists)
        codes = np.unique(np.concatenate([candidates.values, histories.rows.values]))
        parts = [
            self._texts.table(self.network, codes[start : start + ITEMS_AT_ONCE])
            for start in range(0, len(codes), ITEMS_AT_ONCE)
        ]
        local, past = _renumbered(codes, candidates, histories)
        scores = score_lists(self.network, ItemTable.joined(parts), past, local)
        return scores + np.float32(self.offset_weight.item()) * lists.offsets


def _renumbered(codes: IntArray, candidates: Ragged, histories: Histories) -> tuple[Ragged, Histories]:
    """Name items by their place among ``codes`` (sorted)."""
    local = Ragged(np.searchsorted(codes, candidates.values), candidates.offsets)
    rows = Ragged(np.searchsorted(codes, histories.rows.values), histories.rows.offsets)
    return local, Histories(rows, histories.ages, histories.weights)
