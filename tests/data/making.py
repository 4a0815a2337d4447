"""Small events and catalogues as arrays, and hypothesis strategies for them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from llm_rerank.types import Interactions, Items


def texts(values):
    result = np.empty(len(values), dtype=object)
    result[:] = list(values)
    return result


def make_events(rows, *, n_users, n_items, time_kind="time"):
    """Events from dicts with user, item, time and optional weight, positive, rating, review, query."""
    rows = sorted(rows, key=lambda row: row["time"])  # stable, as validated events are

    def column(name, default, dtype):
        return np.array([row.get(name, default) for row in rows], dtype=dtype)

    return Interactions(
        user_ids=texts([f"u{code}" for code in range(n_users)]),
        user_rows=np.arange(100, 100 + n_users, dtype=np.int64),
        n_items=n_items,
        time_kind=time_kind,
        users=column("user", 0, np.int64),
        items=column("item", 0, np.int64),
        times=column("time", 0, np.int64),
        weights=column("weight", 1.0, np.float32),
        positive=column("positive", True, np.bool_),
        ratings=column("rating", np.nan, np.float32),
        quantities=np.ones(len(rows), dtype=np.float32),
        reviews=texts([row.get("review", "") for row in rows]),
        queries=texts([row.get("query", "") for row in rows]),
    )


def make_items(rows):
    """Build a catalogue from dicts with any of the validated columns."""
    frame = pd.DataFrame(
        {
            "item_id": [f"i{code}" for code in range(len(rows))],
            "title": [row.get("title", f"title {code}") for code, row in enumerate(rows)],
            "description": [row.get("description", "") for row in rows],
            "brand": [row.get("brand", "") for row in rows],
            "categories": [row.get("categories", "") for row in rows],
            "price": np.array([row.get("price", np.nan) for row in rows], dtype=np.float64),
            "specs": [json.dumps(row["specs"], ensure_ascii=False) if "specs" in row else "" for row in rows],
            "image": "",
        }
    )
    return Items(texts(frame["item_id"]), frame, texts([""] * len(rows)))


N_USERS, N_ITEMS, LAST_DAY = 4, 5, 12


@st.composite
def event_rows(draw, max_size=25, unit=1):
    """Rows of few users, items and days, so that ties and repeats are common; item -1 is a search."""
    row = st.fixed_dictionaries(
        {
            "user": st.integers(0, N_USERS - 1),
            "item": st.integers(-1, N_ITEMS - 1),
            "time": st.integers(0, LAST_DAY).map(lambda day: day * unit),
            "positive": st.booleans(),
            "weight": st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),
            "rating": st.sampled_from([float("nan"), 1.0, 3.5, 5.0]),
            "query": st.sampled_from(["", "", "lamp", "red bike"]),
            "review": st.sampled_from(["", "good", "bad"]),
        }
    )
    rows = draw(st.lists(row, max_size=max_size))
    for place, values in enumerate(rows):
        values["name"] = place
    return sorted(rows, key=lambda values: values["time"])
