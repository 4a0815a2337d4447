"""Lists of candidates through the network, a block of users at once; items come from a table, nothing is read twice."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from llm_rerank.models.cross_encoder.history_encoder import HistoryNetwork, HistoryTokens, TextGroup
from llm_rerank.models.cross_encoder.item_table import ItemTable
from llm_rerank.models.cross_encoder.packing import ListBlock, length_groups, list_blocks, newest, padded
from llm_rerank.models.scoring import visit_numbers
from llm_rerank.types import BoolArray, Cases, FloatArray, IntArray, Ragged


@dataclass(frozen=True)
class Batching:
    """How pairs are laid out for a device; the scores do not depend on it.

    most_pairs: scored at once. With the reader a block holds the states of each pair's tokens in its number format:
    2,048 × 32 × 384 × 4 bytes = 100 MB, 32,768 in float16 800 MB.
    most_history: tokens of all histories of a block (items without the reader), 65,536 × 384 × 4 bytes = 100 MB; lists
    of few candidates reach it long before they are many pairs.
    least_pairs: from which on a block ends rather than be padded by more than 3 %. Smaller ones cost more than they
    save, for a block takes time of its own: the lists of a few users are padded by more.
    least_texts: candidates' texts that are read as one rectangle, padded to the longest; 1: no text is padded. A few
    texts more to a kernel cost a CPU what they weigh; a GPU takes the same time for a hundred as for one.
    """

    most_pairs: int
    most_history: int
    least_pairs: int
    least_texts: int

    @property
    def bounds(self) -> dict[str, int]:
        """The arguments of ``list_blocks``."""
        return {name: getattr(self, name) for name in ("most_pairs", "most_history", "least_pairs")}


MEASURED_SIZE = 384
"""Hidden size that these were measured with; blocks of a larger network are as much smaller."""

READER_ON_CPU = Batching(2_048, 65_536, 8, 1)
READER_ON_GPU = Batching(32_768, 262_144, 2_048, 512)
WITHOUT_READER = Batching(16_384, 65_536, 1_024, 1)
WITHOUT_READER_ON_GPU = Batching(65_536, 262_144, 8_192, 1)


@dataclass(frozen=True)
class Histories:
    """What the network reads of each user: the newest liked items that say something.

    rows: item codes, oldest first. ages: int64, visits back from the user's newest event. weights: float32, above 0.
    """

    rows: Ragged
    ages: IntArray
    weights: FloatArray


def readable_histories(cases: Cases, has_text: BoolArray, history_length: int) -> Histories:
    """Pick each case's newest ``history_length`` events of known items with text and a weight above 0."""
    items = cases.history.values
    known = (items >= 0) & (items < len(has_text)) & (cases.history_weights > 0)
    known[known] = has_text[items[known]]
    kept = newest(cases.history, known, history_length)
    visits = visit_numbers(cases.history, cases.history_times)
    last = np.zeros(len(cases), dtype=np.int64)
    filled = cases.history.lengths > 0
    last[filled] = visits[cases.history.offsets[1:][filled] - 1]
    positions = kept.values
    ages = last[kept.row_of_value] - visits[positions]
    return Histories(Ragged(items[positions], kept.offsets), ages, cases.history_weights[positions])


def cases_of_visits(history: Ragged, weights: FloatArray, candidates: Ragged) -> Cases:
    """Build cases from codes alone, each event of a history a visit of its own, oldest first."""
    return Cases(
        user_rows=np.full(len(history), -1, dtype=np.int64),
        times=np.full(len(history), np.iinfo(np.int64).max),
        history=history,
        history_weights=weights,
        history_times=np.arange(len(history.values)) - np.repeat(history.offsets[:-1], history.lengths),
        queries=[""] * len(history),
        candidates=candidates,
        targets=Ragged.empty(len(history)),
    )


def batching_for(network: HistoryNetwork, device: torch.device) -> Batching:
    """Choose the layout of pairs for a network on a device."""
    on_gpu = device.type == "cuda"  # of others nothing was measured
    if network.shape.cross_attention:
        chosen = READER_ON_GPU if on_gpu else READER_ON_CPU
    else:
        chosen = WITHOUT_READER_ON_GPU if on_gpu else WITHOUT_READER
    share = min(1.0, MEASURED_SIZE / network.shape.hidden_size)
    return replace(chosen, most_pairs=int(share * chosen.most_pairs), most_history=int(share * chosen.most_history))


@torch.inference_mode()
def score_lists(
    network: HistoryNetwork,
    table: ItemTable,
    histories: Histories,
    candidates: Ragged,
    batching: Batching | None = None,
) -> FloatArray:
    """Score each user's candidates (codes of the table, all known): float32, shape (n_candidates,).

    batching: None: the device's.
    """
    batching = batching or batching_for(network, table.key.device)
    scores = np.empty(len(candidates.values), dtype=np.float32)
    lengths = np.diff(table.offsets)
    read = np.zeros(len(histories.rows), dtype=np.int64)  # tokens, or items
    of_items = lengths[histories.rows.values] if network.shape.cross_attention else 1
    np.add.at(read, histories.rows.row_of_value, of_items)
    blocks = list_blocks(candidates, read, **batching.bounds)
    # every block is begun before the first is waited for: a GPU computes one while the next is laid out here
    found = [score_block(network, table, histories, candidates, block, batching) for block in blocks]
    for block, values in zip(blocks, found, strict=True):
        real = block.candidates >= 0
        scores[block.candidates[real]] = values.float().cpu().numpy()[real]
    return scores


def score_block(
    network: HistoryNetwork,
    table: ItemTable,
    histories: Histories,
    candidates: Ragged,
    block: ListBlock,
    batching: Batching,
) -> Tensor:
    """Scores of one block: (n_lists, width); what stands where padding is means nothing."""
    device = table.key.device
    codes = np.where(block.candidates >= 0, candidates.values[block.candidates], 0)
    item = _moved(codes, device)
    history, age, weight = (_moved(part, device) for part in padded_histories(histories, block.rows))
    cosines = table.vectors[item] @ table.vectors[history].transpose(1, 2)
    item_part = table.item_part[item]
    if network.shape.cross_attention:
        groups = text_groups(table, codes, np.flatnonzero(block.candidates >= 0), batching.least_texts)
        readers = _read(network, table, codes, groups, histories, block.rows)
        item_part = item_part + network.head_first(readers)
    return network.combine(
        item_part, table.query[item], table.value[item], table.key[history], table.value[history], age, weight, cosines
    )


def padded_histories(histories: Histories, rows: IntArray) -> tuple[IntArray, IntArray, FloatArray]:
    """Items, ages and weights of some users' histories as rectangles (n_users, longest history).

    Where padding is, the age is −1, the weight 1 and the item one that is there. rows: int64, users taken.
    """
    taken, positions = histories.rows.take(rows), histories.rows.value_positions(rows)
    cells = padded(taken)
    if not len(positions):
        return cells, cells, np.ones(cells.shape, dtype=np.float32)
    real = cells >= 0
    ages = np.where(real, histories.ages[positions][cells], -1)
    weights = np.where(real, histories.weights[positions][cells], 1.0).astype(np.float32)
    return taken.values[cells], ages, weights


def text_groups(table: ItemTable, codes: IntArray, cells: IntArray, least: int) -> list[TextGroup]:
    """Group a block's pairs by the length of the candidate's text, ``least`` pairs or more to all groups but the last.

    codes: int64, (n_lists, width), items. cells: int64, (n,), the places in it that are pairs and no padding.
    """
    device = table.states.device
    items = codes.ravel()[cells]
    first, lengths = table.offsets[items], np.diff(table.offsets)[items]
    groups = []
    for chosen in length_groups(lengths, least):
        shortest, longest = int(lengths[chosen[0]]), int(lengths[chosen[-1]])
        column, padding = torch.arange(longest, device=device), None
        if shortest < longest:  # beyond its end a text's last token stands, masked
            ends = _moved(lengths[chosen], device)[:, None]
            column, padding = torch.minimum(column, ends - 1), column >= ends
        positions = _moved(first[chosen], device)[:, None] + column
        groups.append(TextGroup(_moved(cells[chosen], device), positions, padding))
    return groups


def _read(
    network: HistoryNetwork,
    table: ItemTable,
    codes: IntArray,
    groups: list[TextGroup],
    histories: Histories,
    rows: IntArray,
) -> Tensor:
    """Run the reader over a block: (n_lists, width, hidden_size)."""
    device, size = table.states.device, network.shape.hidden_size
    positions = histories.rows.value_positions(rows)
    tokens = history_tokens(
        table.offsets, histories.rows.take(rows), histories.ages[positions], histories.weights[positions]
    )
    history = HistoryTokens(*(_moved(part, device) for part in tokens))
    inputs = tuple(table.states[:, start : start + size] for start in range(0, network.shape.n_upper * size, size))
    first = _moved(table.offsets[codes.ravel()], device)
    return network.read_candidates(inputs, first, groups, history, (codes.shape[0], codes.shape[1]))


def _moved(array: np.ndarray, device: torch.device) -> Tensor:
    """Bring an array to the device, a CUDA one without waiting for what it is at."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":  # others might read the memory after numpy has freed it
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # from memory that is not pinned a copy may wait


def history_tokens(
    offsets: IntArray, rows: Ragged, ages: IntArray, weights: FloatArray
) -> tuple[IntArray, IntArray, FloatArray]:
    """Token positions, ages and log weights of each list's history, padded: three arrays (n_lists, n_tokens).

    offsets: first token of each item. rows: item codes of each list's history. ages, weights: shape (n_history,).
    """
    lengths = np.diff(offsets)[rows.values]
    n_tokens = np.zeros(len(rows), dtype=np.int64)
    np.add.at(n_tokens, rows.row_of_value, lengths)
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    positions = np.arange(int(lengths.sum())) - first + np.repeat(offsets[:-1][rows.values], lengths)
    cells = padded(Ragged.from_lengths(positions, n_tokens))
    real = cells >= 0
    if not cells.size:
        cells, real = np.zeros((len(rows), 1), dtype=np.int64), np.zeros((len(rows), 1), dtype=bool)
        return cells, np.full_like(cells, -1), np.zeros(cells.shape, dtype=np.float32)
    token_ages = np.repeat(ages, lengths)
    token_weights = np.log(np.repeat(weights, lengths))
    return (
        np.where(real, positions[cells], 0),
        np.where(real, token_ages[cells], -1),
        np.where(real, token_weights[cells], 0.0).astype(np.float32),
    )
