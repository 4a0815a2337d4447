"""The texts of training lists, held as frozen lower states in memory, so that a step computes upper layers only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm_rerank.models.cross_encoder.history_encoder import HistoryNetwork
from llm_rerank.models.cross_encoder.item_states import ItemReader
from llm_rerank.models.cross_encoder.item_table import ItemTable, table_of
from llm_rerank.models.cross_encoder.packing import pack
from llm_rerank.types import BoolArray, Encoder, IntArray, Items


@dataclass(frozen=True)
class TrainingTexts:
    """Lower states of the items that lists name.

    states: (n_tokens, hidden_size), one text after the other. offsets: first token of each row. row_of_item: int64,
    shape (n_items,), −1 where no list names the item. has_text: bool, the same shape, False there and where a text is
    blank. vectors: (n_rows, embedding_size), the frozen encoder's.
    """

    states: Tensor
    offsets: IntArray
    row_of_item: IntArray
    has_text: BoolArray
    vectors: Tensor

    @classmethod
    def read(cls, reader: ItemReader, encoder: Encoder, items: Items, codes: IntArray) -> TrainingTexts:
        """Read the texts of these items (distinct codes) through the frozen layers."""
        texts = [str(items.texts[code]) for code in codes]
        empty, _ = reader.no_states()
        parts, places, lengths = [empty], [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        # in batches() equal texts count as two, which costs time only
        for taken, packing, states in reader.batches(texts):
            parts.append(states)
            places.append(taken)
            lengths.append(np.diff(packing.offsets))
        row_of_item = np.full(len(items), -1, dtype=np.int64)
        order = np.concatenate(places)
        row_of_item[codes[order]] = np.arange(len(codes))
        has_text = np.zeros(len(items), dtype=np.bool_)
        has_text[codes] = [bool(text.strip()) for text in texts]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        vectors = torch.from_numpy(encoder.encode(texts)).to(reader.device, torch.float32)
        order_on_device = torch.from_numpy(order).to(reader.device)
        return cls(torch.cat(parts), offsets, row_of_item, has_text, vectors[order_on_device])

    def table(self, network: HistoryNetwork, codes: IntArray) -> ItemTable:
        """Read these items through the upper layers, gradients and all; a row a code, in the order given."""
        rows = self.row_of_item[codes]
        lengths = np.diff(self.offsets)[rows]
        packing = pack(lengths)
        ordered = rows[packing.order]
        positions = np.arange(packing.offsets[-1]) + np.repeat(
            self.offsets[:-1][ordered] - packing.offsets[:-1], lengths[packing.order]
        )
        states = self.states[torch.from_numpy(positions).to(self.states.device)]
        vectors = self.vectors[torch.from_numpy(ordered).to(self.states.device)]
        return table_of(network, states, packing, vectors).take(packing.place)
