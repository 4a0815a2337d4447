"""The first places of a finished list put in another order by a ranker that reads texts; nothing else is touched."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from llm_rerank.types import DataError, FloatArray, IntArray


class TextRanker(Protocol):
    """Scores candidate texts for histories of texts: ``ChatRanker``, ``LanguageModelScorer``, a cross-encoder."""

    def predict(self, histories: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]]) -> list[FloatArray]:
        """Give one float32 array a user, NaN where it cannot score; higher is better."""


def reorder_first(
    result: pd.DataFrame,
    ranker: TextRanker,
    histories: Mapping[Hashable, Sequence[str]],
    texts: Mapping[Hashable, str],
    *,
    depth: int = 20,
    weight: float = 0.3,
) -> pd.DataFrame:
    """Blend a ranker's places into each user's first ``depth`` places: (1 − weight) × place + weight × its place.

    result: of ``Reranker.rerank`` or ``recommend``: user_id, item_id, rank and whatever else. histories: texts of what
    each user did, oldest first, by user id, which is not passed on; users without one stay as they are. texts: of the
    items, by item id. weight: 0 leaves the list, 1 follows the ranker alone; .3 is a cautious guess, not a
    measurement: measure yours on held-out users.

    Returns a new frame, best first, users in the order given, ties as before: ``rank`` is new, ``rank_before`` and
    ``rank_of_ranker`` (NaN: not asked, or no answer) say why. Items that the ranker did not score keep their place in
    its order too; a list without an answer stays. ``score``, ``probability`` and ``kept`` stay each item's own, and
    speak of the old order.
    Raises DataError where a column is missing, a text of the first places is, or a setting is out of range.
    """
    if not isinstance(result, pd.DataFrame):
        raise DataError(f"result is a {type(result).__name__}; give a pandas frame (polars: result.to_pandas())")
    missing = {"user_id", "item_id", "rank"} - set(result.columns)
    if missing:
        raise DataError(f"result lacks the columns {', '.join(sorted(missing))}; give what rerank returned")
    if depth < 1 or not 0 <= weight <= 1:
        raise DataError(f"depth is {depth} and weight {weight}; depth is at least 1, weight between 0 and 1")
    users = pd.factorize(result["user_id"].astype(object), use_na_sentinel=False)[0]
    order = np.lexsort((result["rank"].to_numpy(), users))
    before = result.iloc[order].reset_index(drop=True)
    starts = np.flatnonzero(np.diff(users[order], prepend=-1))
    ends = np.append(starts, len(before))[1:]
    asked, rows = [], []
    for start, end in zip(starts, ends, strict=True):
        history = histories.get(before["user_id"].iloc[start])
        if history:
            asked.append(list(history))
            rows.append(np.arange(start, min(end, start + depth)))
    scores = ranker.predict(asked, [_texts(before["item_id"].iloc[row], texts) for row in rows]) if rows else []
    places = np.arange(len(before), dtype=np.float64) - np.repeat(starts, ends - starts)
    theirs = np.full(len(before), np.nan)
    blended = places.copy()
    for row, given in zip(rows, scores, strict=True):
        if np.isnan(given).all():
            continue
        place = _places(given)
        theirs[row[~np.isnan(given)]] = place[~np.isnan(given)] + 1
        blended[row] = (1 - weight) * places[row] + weight * place
    after = np.lexsort((places, blended, users[order]))
    reordered = before.iloc[after].reset_index(drop=True)
    reordered["rank_before"] = before["rank"].to_numpy()[after]
    reordered["rank_of_ranker"] = theirs[after]
    reordered["rank"] = before["rank"].to_numpy()  # the ranks that there were, from the first row of each user on
    reordered.attrs = dict(result.attrs)
    return reordered


def _texts(item_ids: pd.Series, texts: Mapping[Hashable, str]) -> list[str]:
    lacking = [item for item in item_ids if item not in texts]
    if lacking:
        raise DataError(f"texts lacks the item {lacking[0]!r} of the first places; give every item's, '' for none")
    return [texts[item] for item in item_ids]


def _places(scores: FloatArray) -> IntArray:
    """Place of each by falling score, ties as given; what has no score keeps its own place among the others."""
    known = np.flatnonzero(~np.isnan(scores))
    places = np.arange(len(scores), dtype=np.int64)
    places[known[np.argsort(-scores[known], kind="stable")]] = known
    return places
