"""Lists of candidates through the network, a block of users at once; items come from a table, nothing is read twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm_rerank.models.cross_encoder.history_encoder import HistoryNetwork, HistoryTokens
from llm_rerank.models.cross_encoder.item_table import ItemTable
from llm_rerank.models.cross_encoder.packing import ListBlock, list_blocks, newest, padded
from llm_rerank.models.scoring import visit_numbers
from llm_rerank.types import BoolArray, Cases, FloatArray, IntArray, Ragged

MOST_PAIRS = 16_384
MOST_PAIRS_READING = 2_048
"""Pairs scored at once with the reader, which holds the states of each pair's tokens: 2,048 × 32 × 384 × 4 = 100 MB."""

LEAST_PAIRS, LEAST_PAIRS_READING = 1_024, 256
"""Pairs from which on a block ends rather than be padded by more than 3 %. Smaller ones cost more than they save, for a
block takes time of its own: the lists of a few users are padded by more. On a GPU, where the block itself weighs more,
the reader's are filled as the others are.
"""


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


@torch.inference_mode()
def score_lists(network: HistoryNetwork, table: ItemTable, histories: Histories, candidates: Ragged) -> FloatArray:
    """Score each user's candidates (codes of the table, all known): float32, shape (n_candidates,)."""
    scores = np.empty(len(candidates.values), dtype=np.float32)
    lengths = np.diff(table.offsets)
    crossing = network.shape.cross_attention
    read = np.zeros(len(histories.rows), dtype=np.int64)  # tokens, or items
    np.add.at(read, histories.rows.row_of_value, lengths[histories.rows.values] if crossing else 1)
    most = MOST_PAIRS_READING if crossing else MOST_PAIRS
    least = LEAST_PAIRS_READING if crossing and table.key.device.type == "cpu" else LEAST_PAIRS
    for block in list_blocks(candidates, read, most_pairs=most, least_pairs=least):
        values = score_block(network, table, histories, candidates, block).float().cpu().numpy()
        real = block.candidates >= 0
        scores[block.candidates[real]] = values[real]
    return scores


def score_block(
    network: HistoryNetwork, table: ItemTable, histories: Histories, candidates: Ragged, block: ListBlock
) -> Tensor:
    """Scores of one block: (n_lists, width); what stands where padding is means nothing."""
    device = table.key.device
    codes = np.where(block.candidates >= 0, candidates.values[block.candidates], 0)
    past, ages, weights = padded_histories(histories, block.rows)
    item, history = torch.from_numpy(codes).to(device), torch.from_numpy(past).to(device)
    age, weight = torch.from_numpy(ages).to(device), torch.from_numpy(weights).to(device)
    cosines = table.vectors[item] @ table.vectors[history].transpose(1, 2)
    item_part = table.item_part[item]
    if network.shape.cross_attention:
        readers = _read(network, table, codes, block.candidates >= 0, histories, block.rows)
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


def _read(
    network: HistoryNetwork,
    table: ItemTable,
    codes: IntArray,
    real_pair: BoolArray,
    histories: Histories,
    rows: IntArray,
) -> Tensor:
    """Run the reader over a block: (n_lists, width, hidden_size)."""
    device, shape = table.states.device, network.shape
    lengths = np.diff(table.offsets)
    flat = codes.ravel()
    groups = []
    active = np.flatnonzero(real_pair.ravel())
    of_active = lengths[flat[active]]
    for length in np.unique(of_active):
        cells = active[of_active == length]
        tokens = table.offsets[flat[cells], None] + np.arange(length)
        groups.append((torch.from_numpy(cells).to(device), torch.from_numpy(tokens).to(device)))
    positions = histories.rows.value_positions(rows)
    history = history_tokens(
        table.offsets, histories.rows.take(rows), histories.ages[positions], histories.weights[positions]
    )
    tensors = HistoryTokens(
        torch.from_numpy(history[0]).to(device),
        torch.from_numpy(history[1]).to(device),
        torch.from_numpy(history[2]).to(device),
    )
    size = shape.hidden_size
    inputs = tuple(table.states[:, number * size : (number + 1) * size] for number in range(shape.n_upper))
    first = torch.from_numpy(table.offsets[flat]).to(device)
    return network.read_candidates(inputs, first, groups, tensors, (codes.shape[0], codes.shape[1]))


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
