"""Rows of unequal length laid out so that little is computed for padding: pure index arithmetic.

Texts are packed in order of length, so texts of one length lie side by side and are one dense block for attention, with
no padding. Users' lists are cut into blocks of about as many candidates and as long a history each, which are padded: a
block that is not small (``least_pairs``) by at most 3 %, in cells of pair × history.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llm_rerank.types import BoolArray, IntArray, Ragged

MOST_PADDING = 0.03
HISTORY_STEP = 1.05


@dataclass(frozen=True)
class Packing:
    """Texts in rising order of length, end to end.

    order: int64, shape (n_texts,), the text at each place. offsets: int64, shape (n_texts + 1,), first token of each
    place. spans: (first token, number of texts, length) of each run of texts of one length.
    """

    order: IntArray
    offsets: IntArray
    spans: tuple[tuple[int, int, int], ...]

    @property
    def place(self) -> IntArray:
        """Place of each text: int64, shape (n_texts,), the inverse of ``order``."""
        place = np.empty_like(self.order)
        place[self.order] = np.arange(len(self.order))
        return place


def pack(lengths: IntArray) -> Packing:
    """Lay texts of the given lengths (int64, shape (n_texts,), at least 1 each) end to end, short ones first."""
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    offsets = np.concatenate([[0], np.cumsum(ordered)]).astype(np.int64)
    values, first, counts = np.unique(ordered, return_index=True, return_counts=True)
    spans = tuple(
        (int(offsets[place]), int(count), int(length))
        for length, place, count in zip(values, first, counts, strict=True)
    )
    return Packing(order, offsets, spans)


def newest(rows: Ragged, kept: BoolArray, most: int) -> Ragged:
    """Positions of each row's last ``most`` values among those marked: values of the result index ``rows.values``.

    kept: bool, shape (n_values,).
    """
    positions = np.flatnonzero(kept)
    row = rows.row_of_value[positions]
    counts = np.bincount(row, minlength=len(rows))
    ends = np.cumsum(counts)
    from_end = ends[row] - np.arange(len(positions))
    taken = positions[from_end <= most]
    return Ragged.from_lengths(taken, np.minimum(counts, most))


def length_groups(lengths: IntArray, least: int) -> list[IntArray]:
    """Cut texts into groups of like length, short ones first: positions in ``lengths``, int64, of each group.

    Texts of one length stay together; a length of fewer than ``least`` texts is joined with the next ones, so at
    ``least`` 1 no text is padded. lengths: int64, shape (n_texts,).
    """
    order = np.argsort(lengths, kind="stable")
    _, counts = np.unique(lengths, return_counts=True)
    edges, first = [], 0
    for last in np.cumsum(counts).tolist():
        if last - first >= least:
            edges.append(last)
            first = last
    return [group for group in np.split(order, edges) if len(group)]


@dataclass(frozen=True)
class ListBlock:
    """Some lists, padded to one width: what a dense kernel reads at once.

    rows: int64, shape (n_lists,), the user of each list. candidates: int64, shape (n_lists, width), positions in the
    candidates' values, −1 is padding.
    """

    rows: IntArray
    candidates: IntArray


def list_blocks(
    candidates: Ragged,
    history_sizes: IntArray,
    *,
    most_pairs: int,
    most_history: int,
    least_pairs: int,
    most_candidates: int = 1024,
) -> list[ListBlock]:
    """Cut users' lists into blocks of at most ``most_pairs`` cells, lists of like length and history together.

    A list longer than ``most_candidates`` is cut into pieces, so that 100,000 candidates of one user take no more
    memory than 100 users. history_sizes: int64, shape (n_users,), what of a user's history each pair reads (items or
    tokens). most_history: of that in a block, padding included; one list always fits. least_pairs: from so many on a
    block ends before a list that would bring its padding above ``MOST_PADDING``; smaller ones are filled whatever the
    padding, because a block costs time of its own.
    """
    lengths = candidates.lengths
    pieces = -(-lengths // most_candidates)
    rows = np.repeat(np.arange(len(lengths), dtype=np.int64), pieces)
    piece = np.arange(len(rows)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = candidates.offsets[:-1][rows] + piece * most_candidates
    sizes = np.minimum(lengths[rows] - piece * most_candidates, most_candidates)
    histories = np.maximum(history_sizes[rows], 1)
    order = _like_beside_like(sizes, histories)
    blocks: list[ListBlock] = []
    for first, last in _runs_of_little_padding(sizes[order], histories[order], most_pairs, most_history, least_pairs):
        taken = order[first:last]
        column = np.arange(sizes[taken].max())
        positions = np.where(column < sizes[taken, None], starts[taken, None] + column, -1)
        blocks.append(ListBlock(rows[taken], positions))
    return blocks


def one_block(candidates: Ragged, history_sizes: IntArray) -> ListBlock:
    """Pad all lists to one block, short ones first, of equals the one with the shorter history."""
    order = np.lexsort((history_sizes, candidates.lengths))
    return ListBlock(order, padded(candidates)[order])


def _like_beside_like(sizes: IntArray, histories: IntArray) -> IntArray:
    """Order lists so that neighbours have about as many candidates and as long a history.

    Histories in steps of 5 %; within a step by number of candidates, in every other step downwards, so that the last
    list of a step is like the first of the next.
    """
    _, step = np.unique(np.floor(np.log(histories) / np.log(HISTORY_STEP)), return_inverse=True)
    return np.lexsort((histories, np.where(step % 2, -sizes, sizes), step))


def _runs_of_little_padding(
    sizes: IntArray, histories: IntArray, most_pairs: int, most_history: int, least_pairs: int
) -> Iterator[tuple[int, int]]:
    """First and last (excluded) of runs of lists that are padded to one block each."""
    first, real, width, longest = 0, 0, 0, 0  # real: cells of the run that are no padding
    for place, (size, history) in enumerate(zip(sizes.tolist(), histories.tolist(), strict=True)):
        count = place - first
        pairs = (count + 1) * max(width, size)
        cells = pairs * max(longest, history)
        is_padded = count * width >= least_pairs and cells > (1 + MOST_PADDING) * (real + size * history)
        is_heavy = pairs > most_pairs or (count + 1) * max(longest, history) > most_history
        if count and (is_heavy or is_padded):
            yield first, place
            first, real, width, longest = place, 0, 0, 0
        real += size * history
        width, longest = max(width, size), max(longest, history)
    if len(sizes):
        yield first, len(sizes)


def padded(rows: Ragged) -> IntArray:
    """Positions in ``rows.values`` as a rectangle: int64, shape (n_rows, longest row), −1 is padding."""
    width = int(rows.lengths.max(initial=0))
    column = np.arange(width)
    return np.where(column < rows.lengths[:, None], rows.offsets[:-1, None] + column, -1)
