"""Texts that ``predict`` was asked for: read once, remembered between calls, and never too many of them at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from llm_rerank.models.cross_encoder.item_states import cut_in_words
from llm_rerank.models.cross_encoder.item_table import ItemTable
from llm_rerank.types import DataError, IntArray

MOST_BYTES_KEPT = 2**30
"""Memory of the remembered texts; beyond it a new text makes them all forgotten. With token attention a text of 32
tokens takes 50 kB, without it 4."""

TEXTS_AT_ONCE = 16_384
"""Distinct texts that are read and scored at once: 100,000 new candidates of one user are scored in seven pieces."""


class TextTable:
    """Rows of a table by the text that they were read from, named by a digest: a text may be a hundred kilobytes.

    It is kept in parts, as they were read, each longer than the next: a new text must not copy all that there are.
    """

    def __init__(self) -> None:
        self._parts: list[ItemTable] = []
        self._rows: dict[bytes, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @property
    def n_bytes(self) -> int:
        """Memory of what is remembered."""
        return sum(part.n_bytes for part in self._parts)

    def take(
        self, rows: Sequence[Sequence[str]], read: Callable[[list[str]], ItemTable]
    ) -> tuple[ItemTable, list[list[int]]]:
        """Return a table that holds all of these texts, and each text's row in it; ``read`` reads the new ones."""
        keys = {text: _digest(text) for row in rows for text in row}
        fresh = [text for text, key in keys.items() if key not in self._rows]
        if fresh and self.n_bytes > MOST_BYTES_KEPT:
            self._parts, self._rows, fresh = [], {}, list(keys)
        if fresh or not self._parts:
            part, first = read(fresh), len(self)
            self._keep(part)
            # named last: where reading or joining fails, no text may be taken for read
            self._rows |= {keys[text]: first + row for row, text in enumerate(fresh)}
        places = [[self._rows[keys[text]] for text in row] for row in rows]
        if len(self._parts) == 1:
            return self._parts[0], places
        used = np.unique(np.array([place for row in places for place in row], dtype=np.int64))
        own = {place: row for row, place in enumerate(used.tolist())}
        return self._taken(used), [[own[place] for place in row] for row in places]

    def _keep(self, part: ItemTable) -> None:
        """Add a part; it is joined with the last ones that are no longer, so that a text is copied log(n) times."""
        self._parts.append(part)
        while len(self._parts) > 1 and len(self._parts[-1]) >= len(self._parts[-2]):
            self._parts[-2:] = [ItemTable.joined(self._parts[-2:])]

    def _taken(self, rows: IntArray) -> ItemTable:
        """Rows (rising, counted through all parts) as one table."""
        ends = np.cumsum([0, *map(len, self._parts)])
        cuts = np.searchsorted(rows, ends)
        return ItemTable.joined(
            [
                part.take(rows[first:last] - start)
                for part, start, first, last in zip(self._parts, ends[:-1], cuts[:-1], cuts[1:], strict=True)
            ]
        )


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def check_texts(rows: Sequence[Sequence[str]], name: str) -> None:
    """Raise DataError where a row is a text itself, which would be read letter by letter, or holds what is no text."""
    for number, row in enumerate(rows):
        if isinstance(row, str):
            raise DataError(f"row {number} of {name} is the text {row[:60]!r}; give a list of texts for each user")
        wrong = [text for text in row if not isinstance(text, str)]
        if wrong:
            raise DataError(f"a text is {wrong[0]!r} of type {type(wrong[0]).__name__}; give strings, '' for no text")


def check_weights(weights: Sequence[Sequence[float]], histories: Sequence[Sequence[str]]) -> None:
    """Raise DataError where there is not one weight a history text, or one is no number above 0."""
    if [len(row) for row in weights] != [len(row) for row in histories]:
        raise DataError("weights do not match histories; give one weight a history text")
    for number, row in enumerate(weights):
        wrong = [value for value in row if not 0 < value < float("inf")]  # so written, NaN is wrong too
        if wrong:
            raise DataError(
                f"row {number} of weights holds {wrong[0]}; give numbers above 0, 1 for an ordinary event, and leave "
                "out texts that should not count"
            )


def pieces(histories: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]]) -> Iterator[tuple[int, int]]:
    """First and last (excluded) of runs of candidates, counted through all users, of few distinct texts each.

    The texts of the users' histories count as well. One user's candidates may lie in several runs. Distinct within the
    run: by a later one, what was read for an earlier one may be forgotten.
    """
    seen: set[str] = set()
    first = place = 0
    for history, row in zip(histories, candidates, strict=True):
        seen.update(history)
        for text in row:
            if place > first and len(seen) + (text not in seen) > TEXTS_AT_ONCE:
                yield first, place
                first, seen = place, set(history)
            seen.add(text)
            place += 1
    if place > first:
        yield first, place


def what_was_cut(
    histories: Sequence[Sequence[str]],
    history_length: int,
    n_cut: int,
    n_read: int,
    item_tokens: int,
    *,
    settable: bool,
) -> str:
    """Say how many histories and texts were too long to be read whole; empty where none was.

    settable: whether ``item_tokens`` is the caller's to raise, as it is not once a model was trained with it.
    """
    said = []
    n_long = sum(len(row) > history_length for row in histories)
    if n_long:
        these = f"{n_long:,} of {len(histories):,} histories"
        said.append(f"{these} are longer than {history_length} items, of each the newest are read")
    if n_cut:
        remedy = "; raise item_tokens to read more" if settable else ""
        said.append(cut_in_words(n_cut, n_read, item_tokens) + remedy)
    return "; ".join(said)
