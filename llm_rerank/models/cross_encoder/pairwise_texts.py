"""Histories and candidates as the texts of pairs, cut by tokens: the newest of a history first, so that it stays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_rerank.models.cross_encoder.lists import TrainingLists
from llm_rerank.types import Cases, DataError, FloatArray, IntArray, ObjectArray

SEPARATOR = " | "
"""Between the items of a history."""


@dataclass(frozen=True)
class PairTexts:
    """Renders and cuts. tokenizer: a fast one of transformers. history_tokens, item_tokens: without special tokens."""

    tokenizer: Any
    history_tokens: int
    item_tokens: int

    def items(self, texts: Iterable[str]) -> list[str]:
        """Cut each text from its end to at most ``item_tokens``."""
        return self._cut(list(texts), self.item_tokens)

    def histories(self, rows: Sequence[Sequence[str]]) -> list[str]:
        """Render texts of items, oldest first in each row, newest first: what is over the budget is the oldest."""
        # a text has at least one token, so no more items than tokens can have a place
        newest = [[text for text in row if text][: -self.history_tokens - 1 : -1] for row in rows]
        cut = iter(self.items(text for row in newest for text in row))
        joined = [SEPARATOR.join(filter(None, [next(cut) for _ in row])) for row in newest]
        return [text.rstrip(SEPARATOR) for text in self._cut(joined, self.history_tokens)]

    def lists(self, lists: TrainingLists, texts: ObjectArray) -> TextLists:
        """Render training lists. texts: object, shape (n_items,), by item code.

        Raises DataError where there is no list, or where a candidate's code is not in ``texts``.
        """
        codes, offsets = lists.cases.candidates.values, lists.cases.candidates.offsets
        if not len(lists):
            raise DataError("0 lists were given to train or validate on; give at least one")
        wrong = codes[(codes < 0) | (codes >= len(texts))]
        if len(wrong):
            raise DataError(f"lists hold item {wrong[0]}, texts has {len(texts)} rows; give the texts of all items")
        cut = self.items(texts[codes])
        spans = [slice(*offsets[row : row + 2]) for row in range(len(lists))]
        return TextLists(
            histories=self.histories(history_texts(lists.cases, texts)),
            candidates=[cut[span] for span in spans],
            positives=np.array([np.argmax(lists.positive[span]) for span in spans], dtype=np.int64),
            offsets=[lists.offsets[span] for span in spans],
        )

    def _cut(self, texts: list[str], n_tokens: int) -> list[str]:
        """Cut from the end at the last token that fits; each different text is read once."""
        cleaned = {text: _clean(text) for text in texts}
        filled = [text for text in dict.fromkeys(cleaned.values()) if text]
        if not filled:
            return [""] * len(texts)
        spans = self.tokenizer(
            filled,
            add_special_tokens=False,
            truncation=True,
            max_length=n_tokens,
            padding=False,
            return_attention_mask=False,
            return_offsets_mapping=True,
        )["offset_mapping"]
        cut = {text: text[: span[-1][1]] if span else "" for text, span in zip(filled, spans, strict=True)}
        return [cut.get(cleaned[text], "") for text in texts]


@dataclass(frozen=True)
class TextLists:
    """Training lists as the network reads them, one entry a list.

    histories: rendered. candidates: cut. positives: int64, shape (n_lists,), place of the taken one in its list.
    offsets: float32, shape (n_candidates_of_list,) each.
    """

    histories: list[str]
    candidates: list[list[str]]
    positives: IntArray
    offsets: list[FloatArray]

    def __len__(self) -> int:
        return len(self.histories)


def history_texts(cases: Cases, texts: ObjectArray) -> list[list[str]]:
    """Look up each case's history, oldest first, without disliked items and those that ``texts`` does not know."""
    codes = cases.history.values
    kept = (cases.history_weights >= 0) & (codes >= 0) & (codes < len(texts))
    ends = np.cumsum(np.bincount(cases.history.row_of_value[kept], minlength=len(cases)))
    return [row.tolist() for row in np.split(texts[codes[kept]], ends[:-1])] if len(cases) else []


def _clean(text: Any) -> str:
    """Collapse white space and put "?" for what is no character (halves of emoji), which tokenizers refuse."""
    if not isinstance(text, str):
        raise DataError(f"texts hold {text!r} of type {type(text).__name__}; give strings, '' where there is no text")
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
