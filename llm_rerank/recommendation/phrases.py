"""The words of an item that mattered: its score again, exactly, with one phrase of its text left out at a time.

Only components that read the texts of candidates when they score (``ScoresTexts``) can say; the others keep their part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from llm_rerank.data.features import ItemStatistics, pair_features
from llm_rerank.recommendation.components import Component, retrieve_and_score, standardize_rows
from llm_rerank.recommendation.deciding import scores_for, stage_for
from llm_rerank.recommendation.fitting import Fitted
from llm_rerank.types import Cases, CatalogueScorer, FloatArray, IntArray, Ragged, Scorer, StorageError

MOST_PHRASES = 24
MOST_TITLE_PHRASES = 12

READ_AT_FIT = ("text_ease", "lexical")
"""Components that read an item's text at the fit and not when they score."""

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_UNSPACED}]{{1,2}}|[^\s{_UNSPACED}]+")
_BREAK = re.compile(r"[.!?](?=\s)\s*|[。！？；]\s*|;\s+|\s+[|>]\s+|\n+")
_SENTENCE_END = re.compile("[.!?。！？]")


@runtime_checkable
class ScoresTexts(Scorer, Protocol):
    """A scorer that can score given texts in place of the candidates'."""

    def score_texts(self, cases: Cases, texts: Sequence[str]) -> FloatArray:
        """Scores: float32, shape (n_candidates,), of one text a candidate, laid out as the candidates."""
        ...


@dataclass(frozen=True)
class PhraseEffect:
    """What one phrase of the item's text did: the score minus the score computed again without the phrase."""

    phrase: str
    effect: float


@dataclass(frozen=True)
class Phrases:
    """Effects of all phrases of an item's text, strongest first, and in words what was read again and what was not.

    The effects need not add up: words work together.
    """

    effects: Sequence[PhraseEffect]
    note: str


def phrase_effects(
    fitted: Fitted, case: Cases, statistics: ItemStatistics, upstream: FloatArray | None = None
) -> Phrases:
    """Leave out one phrase of the single candidate's text at a time and score again by the blend.

    upstream: raw upstream score of the candidate, shape (1,), NaN unknown; None: by the blend of retrieved items.

    Exact for the components that read texts when they score: their raw score is that of the shortened text, on the
    scale of the user's reference items as it was. Everything else in the score stays as it is.
    Raises StorageError where an encoder of the fit cannot be loaded.
    """
    code = int(case.candidates.values[0])
    text = str(fitted.items.texts[code])
    blended = [component for component in fitted.components if component.blends]
    readers = [component for component in blended if isinstance(component.scorer, ScoresTexts)]
    note = _note(readers, blended)
    pieces = cut_phrases(text, str(fitted.items.frame["title"].iloc[code]))
    if not readers or not pieces:
        return Phrases((), note if not readers else f"the item has no text; {note}")
    # the whole text is read again beside the shortened ones, so that no rounding of another batch is taken for a word
    texts = [text, *(without_phrase(pieces, place) for place in range(len(pieces)))]
    repeated = case.with_candidates(Ragged.from_lists([[code] * len(texts)]))
    scores = retrieve_and_score(fitted.components, case, fitted.reference, len(fitted.items)).scores
    scores = np.repeat(scores, len(texts), axis=0)
    for component in readers:
        scores[:, blended.index(component)] = _read_again(component, case, repeated, texts, fitted.reference)
    stage = stage_for(fitted, upstream is not None)
    pair_values = np.repeat(pair_features(case, statistics, fitted.items), len(texts), axis=0)
    laid_out = scores_for(stage, [component.name for component in blended], scores)
    said = None if upstream is None else np.repeat(upstream, len(texts))
    fused = stage.blend.score(stage.design(laid_out, pair_values, said))
    effects = fused[0] - fused[1:]
    order = np.argsort(-np.abs(effects), kind="stable")
    return Phrases([PhraseEffect(pieces[i][0], float(effects[i])) for i in order], note)


def _read_again(
    component: Component, case: Cases, repeated: Cases, texts: Sequence[str], reference: IntArray
) -> FloatArray:
    """Scores of the texts on the scale of the blend: float32, shape (n_texts,)."""
    scorer = component.scorer
    assert isinstance(scorer, ScoresTexts)
    try:
        raw = scorer.score_texts(repeated, texts)
    except StorageError as error:
        raise StorageError(
            f"the words of an item are read again by {component.name!r}, with the encoder of the fit: {error}; "
            "without phrases=True no encoder is needed"
        ) from error
    if not isinstance(scorer, CatalogueScorer):
        return raw
    mean, deviation = standardize_rows(scorer.score_catalogue(case), reference)
    return (raw - mean[0, 0]) / deviation[0, 0]


def _note(readers: Sequence[Component], blended: Sequence[Component]) -> str:
    read = " and ".join(component.name for component in readers)
    said = f"read again without the phrase by {read}" if read else "no part of this score reads texts anew"
    kept = [component.name for component in blended if component.name in READ_AT_FIT]
    if not kept:
        return said
    return f"{said}; {' and '.join(kept)} read texts at the fit only, and that stays in the score"


def cut_phrases(text: str, title: str = "", *, most: int = MOST_PHRASES) -> list[tuple[str, str]]:
    """Cut a text into at most ``most`` phrases that together are the whole of it.

    The title, where the text begins with it, is cut into words (or short runs of them, evenly, where it has more than
    12; pairs of characters where a script has no spaces); the rest into sentences and attributes, neighbours joined
    where there are too many. Returns (phrase, what stands between it and the next) pairs; none for a blank text.
    """
    text, title = text.strip(), " ".join(title.split()).rstrip(" .")  # as the item template does
    head = len(title) if title and text.startswith(title) and not text[len(title) :][:1].isalnum() else 0
    head = head if most > 1 else 0  # one phrase is all of it
    words = [match.span() for match in _WORD.finditer(text, 0, head)]
    begin = head
    segments = []
    for match in _BREAK.finditer(text, head):
        segments.append((begin, match.start()))
        begin = match.end()
    segments.append((begin, len(text)))
    segments = _telling(text, segments)
    spans = _joined(_telling(text, words), min(MOST_TITLE_PHRASES, most - bool(segments)))
    spans += _joined(segments, most - len(spans))
    if not spans:
        return []
    spans[0] = (0, spans[0][1])
    ends = [start for start, _ in spans[1:]] + [len(text)]
    return [(text[start:stop], text[stop:end]) for (start, stop), end in zip(spans, ends, strict=True)]


def without_phrase(pieces: Sequence[tuple[str, str]], place: int) -> str:
    """Put the text together again without one phrase; of the gaps on its two sides the greater break stays."""
    left = list(pieces[:place])
    if left:
        phrase, before = left[-1]
        # the end of a sentence is more of a break than any blank or bar, and the end of the text more than all
        after = pieces[place][1]
        greater = max(before, after, key=lambda gap: (bool(_SENTENCE_END.search(gap)), len(gap)))
        left[-1] = (phrase, greater if place + 1 < len(pieces) else after)
    return "".join(phrase + gap for phrase, gap in [*left, *pieces[place + 1 :]]).strip()


def _telling(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Leave out spans without a letter or a digit; they become part of a gap."""
    return [(start, stop) for start, stop in spans if any(letter.isalnum() for letter in text[start:stop])]


def _joined(spans: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Join neighbours evenly into at most ``most`` spans."""
    if len(spans) <= most:
        return spans
    bounds = np.linspace(0, len(spans), most + 1).round().astype(int).tolist()
    return [(spans[start][0], spans[stop - 1][1]) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
