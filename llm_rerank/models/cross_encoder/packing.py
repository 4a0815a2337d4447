"""Rows of unequal length laid out so that nothing is computed for padding: pure index arithmetic.

Texts are packed in order of length, so texts of one length lie side by side and are one dense block for attention.
Users' lists are cut into blocks of users with about as many candidates and history tokens each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm_rerank.types import BoolArray, IntArray, Ragged


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


@dataclass(frozen=True)
class ListBlock:
    """Some lists, padded to one width: what a dense kernel reads at once.

    rows: int64, shape (n_lists,), the user of each list. candidates: int64, shape (n_lists, width), positions in the
    candidates' values, −1 is padding.
    """

    rows: IntArray
    candidates: IntArray


def list_blocks(
    candidates: Ragged, history_sizes: IntArray, *, most_pairs: int, most_candidates: int = 1024
) -> list[ListBlock]:
    """Cut users' lists into blocks of at most ``most_pairs`` cells, users of like size together.

    A list longer than ``most_candidates`` is cut into pieces, so that 100,000 candidates of one user take no more
    memory than 100 users. history_sizes: int64, shape (n_users,), what else makes users alike (tokens of history).
    """
    lengths = candidates.lengths
    pieces = -(-lengths // most_candidates)
    rows = np.repeat(np.arange(len(lengths), dtype=np.int64), pieces)
    piece = np.arange(len(rows)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = candidates.offsets[:-1][rows] + piece * most_candidates
    sizes = np.minimum(lengths[rows] - piece * most_candidates, most_candidates)
    order = np.lexsort((history_sizes[rows], sizes))
    blocks: list[ListBlock] = []
    first = 0
    while first < len(order):
        # sizes rise, so the widest list of a block is its last one
        widths = sizes[order[first:]]
        cells = widths * np.arange(1, len(widths) + 1)
        count = max(int(np.searchsorted(cells, most_pairs, side="right")), 1)
        taken = order[first : first + count]
        width = int(sizes[taken[-1]])
        column = np.arange(width)
        positions = np.where(column < sizes[taken, None], starts[taken, None] + column, -1)
        blocks.append(ListBlock(rows[taken], positions))
        first += count
    return blocks


def padded(rows: Ragged) -> IntArray:
    """Positions in ``rows.values`` as a rectangle: int64, shape (n_rows, longest row), −1 is padding."""
    width = int(rows.lengths.max(initial=0))
    column = np.arange(width)
    return np.where(column < rows.lengths[:, None], rows.offsets[:-1, None] + column, -1)
