"""What a chat model is told of a case, and how that becomes a prompt: redacted, cut, one line a text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from llm_rerank.data.redaction import Redactor
from llm_rerank.data.rendering import cut_to_budget, read_template
from llm_rerank.types import DataError, IntArray, ObjectArray

TOOK, INTERESTED, DISLIKED = "took", "was interested in", "disliked"
"""What an event was, as far as its weight says it: 1 and more, below 1, negative."""

_UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
_TRIAL = {"history": [(TOOK, '"a"')], "searches": ['"b"'], "candidates": ['"c"', '"d"']}


@dataclass(frozen=True)
class Question:
    """All that a server is told of one case. history: (what was done, text); searches; both oldest first.

    candidates: distinct texts, none blank. All texts come from a ``Cleaner``.
    """

    history: tuple[tuple[str, str], ...]
    searches: tuple[str, ...]
    candidates: tuple[str, ...]

    @classmethod
    def of(
        cls, history: Iterable[tuple[str, str]], searches: Iterable[str], candidates: Iterable[str], *, newest: int
    ) -> Self:
        """Keep the newest of what says something, and each candidate's text once."""
        told = [(action, text) for action, text in history if text][-newest:]
        searched = [text for text in searches if text][-newest:]
        return cls(tuple(told), tuple(searched), tuple(dict.fromkeys(filter(None, candidates))))

    @property
    def can_be_asked(self) -> bool:
        """Whether there is something to go by and something to put in order."""
        return bool((self.history or self.searches) and self.candidates)


class Cleaner:
    """Makes texts fit to be sent. terms: to be redacted wherever they stand; text_tokens: longer texts are cut."""

    def __init__(self, terms: Iterable[str], *, text_tokens: int) -> None:
        self._redactor = Redactor(terms)
        self._text_tokens = text_tokens

    @property
    def terms(self) -> tuple[str, ...]:
        """What is redacted besides what has a form."""
        return self._redactor.terms

    def rows(self, texts: Sequence[str]) -> ObjectArray:
        """Redact and cut texts, in this order: half an address must not be left. object, shape (n_texts,)."""
        # on one line and without what nobody sees, both of which would hide an address; halves of emoji are no text
        plain = (" ".join(text.translate(_UNSEEN).encode("utf-8", "replace").decode().split()) for text in texts)
        rows = np.empty(len(texts), dtype=object)
        rows[:] = cut_to_budget([self._redactor(text)[0] for text in plain], self._text_tokens)
        return rows

    def by_text(self, texts: Iterable[str]) -> dict[str, str]:
        """Give each distinct text as it may be sent."""
        distinct = list(dict.fromkeys(texts))
        return dict(zip(distinct, self.rows(distinct), strict=True))


class Prompts:
    """Renders ``prompts/chat_ranking.jinja``."""

    def __init__(self) -> None:
        self._template = read_template("chat_ranking", _TRIAL)

    def text(self, question: Question, part: IntArray) -> str:
        """Ask for the order of some of the candidates. part: their places, int64, shape (n_asked,)."""
        return self._template.render(
            history=[(action, _quoted(text)) for action, text in question.history],
            searches=[_quoted(text) for text in question.searches],
            candidates=[_quoted(question.candidates[place]) for place in part],
        )


def check_texts(rows: Sequence[Sequence[str]], name: str) -> None:
    """Raise DataError where a row is a text itself, which would be read letter by letter, or holds what is no text."""
    for number, row in enumerate(rows):
        if isinstance(row, str) or not all(isinstance(text, str) for text in row):
            raise DataError(f"row {number} of {name} is {str(row)[:60]!r}; give a list of texts for each user")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
