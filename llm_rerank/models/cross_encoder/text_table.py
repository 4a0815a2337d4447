"""Texts that ``predict`` was asked for: read once, remembered between calls, and never too many of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from llm_rerank.models.cross_encoder.item_table import ItemTable
from llm_rerank.types import DataError

MOST_BYTES_KEPT = 2**30
"""Memory of the remembered texts; beyond it a new text makes them all forgotten. With token attention a text of 32
tokens takes 50 kB, without it 4."""

TEXTS_AT_ONCE = 16_384
"""Distinct texts that are read and scored at once: 100,000 new candidates of one user are scored in seven pieces."""


class TextTable:
    """Rows of a table by the text that they were read from."""

    def __init__(self) -> None:
        self.table: ItemTable | None = None
        self._rows: dict[str, int] = {}

    def take(
        self, rows: Sequence[Sequence[str]], read: Callable[[list[str]], ItemTable]
    ) -> tuple[ItemTable, list[list[int]]]:
        """Return a table that holds all of these texts, and each text's row in it; ``read`` reads the new ones."""
        distinct = dict.fromkeys(text for row in rows for text in row)
        fresh = [text for text in distinct if text not in self._rows]
        if fresh and self.table is not None and self.table.n_bytes > MOST_BYTES_KEPT:
            self.table, self._rows, fresh = None, {}, list(distinct)
        if fresh or self.table is None:
            table = read(fresh)
            self.table = table if self.table is None else ItemTable.joined([self.table, table])
            self._rows.update({text: len(self._rows) + row for row, text in enumerate(fresh)})
        return self.table, [[self._rows[text] for text in row] for row in rows]


def check_texts(rows: Sequence[Sequence[str]], name: str) -> None:
    """Raise DataError where a row is a text itself, which would be read letter by letter, or holds what is no text."""
    for number, row in enumerate(rows):
        if isinstance(row, str):
            raise DataError(f"row {number} of {name} is the text {row[:60]!r}; give a list of texts for each user")
        wrong = [text for text in row if not isinstance(text, str)]
        if wrong:
            raise DataError(f"a text is {wrong[0]!r} of type {type(wrong[0]).__name__}; give strings, '' for no text")


def pieces(histories: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]]) -> Iterator[tuple[int, int]]:
    """First and last (excluded) of runs of candidates, counted through all users, of few distinct texts each.

    The texts of the users' histories count as well. One user's candidates may lie in several runs.
    """
    seen: set[str] = set()
    n_seen = []
    for history, row in zip(histories, candidates, strict=True):
        seen.update(history)
        for text in row:
            seen.add(text)
            n_seen.append(len(seen))
    edges = np.flatnonzero(np.diff(np.array(n_seen, dtype=np.int64) // TEXTS_AT_ONCE)) + 1
    bounds = [0, *edges.tolist(), len(n_seen)] if n_seen else [0]
    yield from zip(bounds[:-1], bounds[1:], strict=True)


def what_was_cut(
    histories: Sequence[Sequence[str]], history_length: int, n_cut: int, n_read: int, item_tokens: int
) -> str:
    """Say how many histories and texts were too long to be read whole; empty where none was."""
    said = []
    n_long = sum(len(row) > history_length for row in histories)
    if n_long:
        these = f"{n_long:,} of {len(histories):,} histories"
        said.append(f"{these} are longer than {history_length} items, of each the newest are read")
    if n_cut:
        said.append(
            f"{n_cut:,} of {n_read:,} texts are longer than {item_tokens} tokens and were cut at the end; "
            "raise item_tokens to read more"
        )
    return "; ".join(said)
