"""What scoring needs of each item, computed once: the head's inputs, frozen vectors, and the reader's token states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from llm_rerank.models.cross_encoder.history_encoder import HistoryNetwork
from llm_rerank.models.cross_encoder.item_states import ItemReader
from llm_rerank.models.cross_encoder.packing import Packing
from llm_rerank.storage import read_arrays, write_arrays
from llm_rerank.types import BoolArray, FloatArray, IntArray

COLUMNS = ("vectors", "item_part", "query", "key", "value", "states")


@dataclass(frozen=True)
class ItemTable:
    """One row an item, on the network's device; float32 but for the states, which ``build_table`` keeps in float16.

    vectors: (n_items, embedding_size), the frozen encoder's unit vectors; zero without text.
    item_part: (n_items, head_size), the head's first layer as far as it depends on the item alone; with the reader,
    without its [CLS]. query, key: (n_items, attention_size). value: (n_items, value_size).
    states: (n_tokens, n_upper × hidden_size), the inputs of the upper layers side by side, item after item; (0, 0)
    without cross attention. offsets: int64, shape (n_items + 1,), each item's first token.
    """

    vectors: Tensor
    item_part: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    states: Tensor
    offsets: IntArray

    def __len__(self) -> int:
        return len(self.key)

    @property
    def n_bytes(self) -> int:
        """Memory of the table."""
        tensors = [getattr(self, name) for name in COLUMNS]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def take(self, rows: IntArray) -> ItemTable:
        """Rows in the order given, their token states with them."""
        lengths = np.diff(self.offsets)[rows]
        offsets = _offsets(lengths)
        states = self.states
        if states.numel():
            positions = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths)
            states = states[torch.from_numpy(positions).to(states.device)]
        index = torch.from_numpy(rows).to(self.key.device)
        columns = {name: getattr(self, name)[index] for name in COLUMNS if name != "states"}
        return ItemTable(**columns, states=states, offsets=offsets)

    def with_rows(self, codes: IntArray, rows: ItemTable) -> ItemTable:
        """Copy the table with ``rows`` at ``codes`` (int64, rising), which are rows it has or the next ones after."""
        if not len(codes) or codes[0] >= len(self):  # nothing but new rows
            return ItemTable.joined([self, rows])
        n_rows = max(len(self), int(codes[-1]) + 1)
        index = torch.from_numpy(codes).to(self.key.device)
        columns = {}
        for name in COLUMNS:
            if name != "states":
                column = getattr(self, name)
                columns[name] = torch.cat([column, column.new_empty((n_rows - len(self), *column.shape[1:]))])
                columns[name][index] = getattr(rows, name)
        lengths = np.diff(self.offsets, append=np.full(n_rows - len(self), self.offsets[-1]))
        lengths[codes] = np.diff(rows.offsets)
        states, done = [], 0  # stretches between the codes and the codes' own: all is copied once
        for code, first, last in zip(codes.tolist(), rows.offsets[:-1], rows.offsets[1:], strict=True):
            start, stop = self.offsets[np.minimum([done, code], len(self))]
            states += [self.states[start:stop], rows.states[first:last]]
            done = code + 1
        states.append(self.states[self.offsets[min(done, len(self))] :])
        return ItemTable(**columns, states=torch.cat(states), offsets=_offsets(lengths))

    @classmethod
    def joined(cls, tables: Sequence[Self]) -> ItemTable:
        """Rows of the tables, one after the other; states of unlike formats all in the wider, so none is rounded."""
        columns = {name: torch.cat([getattr(table, name) for table in tables]) for name in COLUMNS}
        return ItemTable(**columns, offsets=_offsets(np.concatenate([np.diff(table.offsets) for table in tables])))


def table_of(network: HistoryNetwork, lower_states: Tensor, packing: Packing, vectors: Tensor) -> ItemTable:
    """Read packed texts through the upper layers into a table, a row a place of the packing. Differentiable.

    lower_states: (n_tokens, hidden_size). vectors: (n_texts, embedding_size), in the order of the places.
    """
    features = network.read_items(lower_states, packing)
    states = torch.cat(features.inputs, dim=1) if features.inputs else features.mean.new_empty((0, 0))
    return ItemTable(vectors=vectors, states=states, offsets=packing.offsets, **network.columns(features))


@torch.inference_mode()
def build_table(
    network: HistoryNetwork,
    reader: ItemReader,
    texts: Sequence[str],
    vectors: FloatArray,
    *,
    progress: bool = False,
    state_dtype: torch.dtype = torch.float16,
) -> ItemTable:
    """Read texts through all layers into a table, in the order given; equal texts are read once.

    vectors: float32, shape (n_texts, embedding_size), of the frozen encoder. state_dtype: of the token states that are
    kept for the reader; float16 halves their memory for a relative error of 2⁻¹¹.
    """
    from tqdm.auto import tqdm

    rows: dict[str, int] = {}
    row_of_text = np.array([rows.setdefault(text, len(rows)) for text in texts], dtype=np.int64)
    unit = torch.from_numpy(np.ascontiguousarray(vectors)).to(reader.device)
    distinct = list(rows)

    def read(states: Tensor, packing: Packing, part_of_unit: Tensor) -> ItemTable:
        table = table_of(network, states, packing, part_of_unit)
        return replace(table, states=table.states.to(state_dtype))

    # an empty part gives the columns their shapes where there is no text at all
    parts = [read(*reader.no_states(), unit[:0])]
    places = [np.empty(0, dtype=np.int64)]
    with tqdm(total=len(distinct), desc="reading items", unit="text", disable=None if progress else True) as bar:
        for taken, packing, states in reader.batches(distinct):
            parts.append(read(states, packing, unit[: len(taken)]))
            places.append(taken)
            bar.update(len(taken))
    order = np.empty(len(distinct), dtype=np.int64)
    order[np.concatenate(places)] = np.arange(len(distinct))
    return replace(ItemTable.joined(parts).take(order[row_of_text]), vectors=unit)


def write_table(path: Path, table: ItemTable, has_text: BoolArray) -> None:
    """Write a table; nothing is rounded, so that a loaded model scores as the saved one."""
    arrays = {name: getattr(table, name).cpu().numpy() for name in COLUMNS}
    write_arrays(path, {**arrays, "offsets": table.offsets, "has_text": has_text})


def read_table(path: Path, device: str) -> tuple[ItemTable, BoolArray]:
    """Read what ``write_table`` wrote: the table, and which items have a text."""
    arrays, _ = read_arrays(path)
    tensors = {name: torch.from_numpy(arrays[name]).to(device) for name in COLUMNS}
    return ItemTable(**tensors, offsets=arrays["offsets"]), arrays["has_text"]


def _offsets(lengths: IntArray) -> IntArray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
