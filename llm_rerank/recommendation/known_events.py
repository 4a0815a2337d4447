"""Which events of a log a model fitted from files has already: none may count twice, and none may be lost.

The files name no event ids, so events are matched by what they say: of equal ones as many as the model has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_rerank.data.events import implied_kinds, judge_events
from llm_rerank.data.id_index import code_of, codes_by_id
from llm_rerank.data.values import clean_text, object_array
from llm_rerank.recommendation.state import Saved
from llm_rerank.types import BoolArray, Interactions


def is_known(bodies: Sequence[Mapping[str, Any]], saved: Saved) -> BoolArray:
    """Tell which events the state has: bool, shape (n_bodies,). bodies: as ``live_events.checked_events`` gives them.

    Equal are events of the same user, item, time and search, and of the same weight where the model's files tell kinds
    apart: of a kind the state keeps the weight alone. Among equal ones those that agree in all else are known first.
    """
    if not bodies:
        return np.zeros(0, dtype=np.bool_)
    given, events = _as_events(bodies, saved), saved.events
    tells_kinds = bool((np.abs(events.weights[events.items >= 0]) != 1).any())
    held = events.take(np.isin(events.users, given.users))
    wanted, wanted_whole = _keys(given, tells_kinds), _whole_keys(given)
    left, left_whole = Counter(_keys(held, tells_kinds)), Counter(_whole_keys(held))
    known = np.zeros(len(bodies), dtype=np.bool_)
    for row, (key, whole) in enumerate(zip(wanted, wanted_whole, strict=True)):
        if left_whole[whole]:
            known[row] = True
            left_whole[whole] -= 1
            left[key] -= 1
    for row in np.flatnonzero(~known).tolist():
        if left[wanted[row]]:
            known[row] = True
            left[wanted[row]] -= 1
    return known


def _as_events(bodies: Sequence[Mapping[str, Any]], saved: Saved) -> Interactions:
    """Read events as the state would keep them, in the order given; code -1: a user or an item that it has not."""
    user_codes, item_codes = codes_by_id(saved.events.user_ids), codes_by_id(saved.fitted.items.ids)
    has_item = np.array([body.get("item_id") is not None for body in bodies], dtype=np.bool_)
    ratings, quantities, weights = (
        np.array([body.get(name, np.nan) for body in bodies], dtype=np.float32)
        for name in ("rating", "quantity", "weight")
    )
    implied = implied_kinds(has_item, ratings).tolist()
    values = judge_events(
        [body.get("event", kind) for body, kind in zip(bodies, implied, strict=True)],
        np.arange(len(bodies)),
        has_item=has_item,
        ratings=ratings,
        weights_given=weights,
        quantities=quantities,
        targets=(),
        min_rating=saved.config.min_rating,
    )
    return Interactions(
        user_ids=saved.events.user_ids,
        user_rows=saved.events.user_rows,
        n_items=saved.events.n_items,
        time_kind=saved.events.time_kind,
        users=np.array([code_of(body["user_id"], user_codes) for body in bodies], dtype=np.int64),
        items=np.array([code_of(body.get("item_id"), item_codes) for body in bodies], dtype=np.int64),
        times=np.array([body["timestamp"] for body in bodies], dtype=np.int64),
        weights=values.weights,
        positive=values.positive,
        ratings=ratings,
        quantities=values.quantities,
        reviews=object_array([clean_text(body.get("review", "")) for body in bodies]),
        queries=object_array([clean_text(body.get("query", "")) for body in bodies]),
    )


def _keys(events: Interactions, tells_kinds: bool) -> list[tuple[Any, ...]]:
    """Name each event by what must agree."""
    weights = events.weights if tells_kinds else np.ones_like(events.weights)
    columns = (events.users, events.items, events.times, events.queries, weights)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _whole_keys(events: Interactions) -> list[tuple[Any, ...]]:
    """Name each event by all that the state keeps of it."""
    ratings = np.nan_to_num(events.ratings, nan=np.inf)  # so that none equals none
    columns = (ratings, events.quantities, events.reviews)
    return list(zip(_keys(events, True), *(column.tolist() for column in columns), strict=True))
