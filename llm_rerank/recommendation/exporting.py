"""What is held of a user, shown to them: events, attributes, and the lists that an upstream recommender showed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_rerank.data.id_index import code_of, codes_by_id
from llm_rerank.data.values import plain
from llm_rerank.recommendation.impressions import code_among
from llm_rerank.recommendation.state import Saved
from llm_rerank.types import UNKNOWN, DataError, IntArray


def exported(saved: Saved, user_id: Any) -> dict[str, Any]:
    """Return everything that is held of a user as JSON values, and nothing of others.

    user_id: "7" finds the number 7 where there is no text "7". Times are seconds since 1970, or positions. What scorers
    learned from many users at once is not split by user. Raises DataError where nothing is held.
    """
    codes, rows = places_of(saved, [user_id])
    code, row, shown = int(codes[0]), int(rows[0]), code_among(saved.impressions, user_id)
    if code < 0 and row < 0 and shown < 0:
        raise DataError(f"nothing is held of user {user_id!r}; check the id and its type")
    events, items = saved.events, saved.fitted.items
    titles = items.frame["title"]
    mine = np.flatnonzero(events.users == code) if code >= 0 else np.empty(0, dtype=np.int64)
    listed = []
    for event in mine.tolist():
        item = int(events.items[event])
        listed.append(
            {
                "item_id": plain(items.ids[item]) if item >= 0 else None,
                "title": plain(titles.iloc[item]) if item >= 0 else None,
                "timestamp": int(events.times[event]),
                "weight": plain(events.weights[event]),
                "counts_as_target": bool(events.positive[event]),
                "rating": plain(events.ratings[event]),
                "quantity": plain(events.quantities[event]),
                "review": events.reviews[event],
                "review_sentiment": plain(saved.sentiment[event]),
                "query": events.queries[event],
                "learned_from": bool(saved.in_fit[event]),
            }
        )
    attributes = {}
    if saved.users is not None and row >= 0:
        frame = saved.users.frame
        attributes = {str(name): plain(frame[name].iloc[row]) for name in frame.columns if name != "user_id"}
    if code >= 0:
        held_id = events.user_ids[code]
    else:
        held_id = saved.users.ids[row] if row >= 0 else saved.impressions.user_ids[shown]  # type: ignore[union-attr]
    return {
        "user_id": plain(held_id),
        "time_kind": events.time_kind,
        "attributes": attributes,
        "events": listed,
        "impressions": _shown_to(saved, shown),
    }


def _shown_to(saved: Saved, user: int) -> list[dict[str, Any]]:
    """Lay out what an upstream recommender showed a user, oldest first. user: place among ``impressions``, -1: none."""
    if user < 0 or saved.impressions is None:
        return []
    shown, items = saved.impressions, saved.fitted.items
    titles = items.frame["title"]
    return [
        {
            "item_id": plain(items.ids[shown.items[row]]),
            "title": plain(titles.iloc[shown.items[row]]),
            "timestamp": int(shown.times[row]),
            "upstream_score": plain(shown.upstream_scores[row]),
        }
        for row in np.flatnonzero(shown.users == user).tolist()
    ]


def places_of(saved: Saved, user_ids: Sequence[Any]) -> tuple[IntArray, IntArray]:
    """Code among the events and row among the attributes of each id: int64, shape (n_ids,), -1 where there is none."""
    by_id = codes_by_id(saved.events.user_ids)
    codes = np.array([code_of(value, by_id) for value in user_ids], dtype=np.int64)
    rows = np.full(len(codes), UNKNOWN, dtype=np.int64)
    if saved.users is not None:
        attributed = codes_by_id(saved.users.ids)
        rows = np.array([code_of(value, attributed) for value in user_ids], dtype=np.int64)
        known = codes >= 0
        rows[known & (rows < 0)] = saved.events.user_rows[codes[known & (rows < 0)]]
    return codes, rows
