"""Lists that an upstream recommender showed, as a state keeps them: for a refit, an export, and until they go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from llm_rerank.data.id_index import code_of, codes_by_id, known_id
from llm_rerank.data.impressions import UNKNOWN_ITEMS, list_numbers
from llm_rerank.data.values import object_array
from llm_rerank.types import BoolArray, FloatArray, IntArray, Interactions, ObjectArray

ARRAYS = ("users", "items", "times", "upstream_scores", "lists")


@dataclass(frozen=True)
class Impressions:
    """One row an item shown, sorted by time, ties in the order of the list.

    user_ids: object, shape (n_users,), distinct, those with a row. users: int64, shape (n_rows,), places in
    ``user_ids``. items: int64, codes. times: int64, when the list was shown. upstream_scores: float32, NaN where none.
    unknown_items: share of the table's rows that named no item of the catalogue and are not here; None: of lists kept
    before it was counted. lists: int64, shape (n_rows,), equal where rows are of one list; None: of lists kept before
    they were numbered, when each was the rows of one user at one time.
    """

    user_ids: ObjectArray
    users: IntArray
    items: IntArray
    times: IntArray
    upstream_scores: FloatArray
    unknown_items: float | None = None
    lists: IntArray | None = None

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, events: Interactions) -> Self:
        """Take over what ``validate_impressions`` returned; users are named as the events name them, 7 or "7"."""
        users, ids = pd.factorize(frame["user_id"])
        known = codes_by_id(events.user_ids)
        return cls(
            object_array([known_id(value, known) for value in ids.tolist()]),
            users.astype(np.int64),
            frame["item"].to_numpy(dtype=np.int64),
            frame["time"].to_numpy(dtype=np.int64),
            frame["upstream_score"].to_numpy(dtype=np.float32),
            frame.attrs.get(UNKNOWN_ITEMS),
            frame["list"].to_numpy(dtype=np.int64),
        )

    def arrays(self) -> dict[str, Any]:
        """Give the arrays of one entry a row that there are, by name."""
        held = {name: getattr(self, name) for name in ARRAYS}
        return {name: values for name, values in held.items() if values is not None}

    def to_frame(self) -> pd.DataFrame:
        """Give the rows as ``validate_impressions`` does."""
        ids = pd.Series(self.user_ids[self.users], dtype=object)
        lists = list_numbers(self.users, self.times) if self.lists is None else self.lists
        columns = {"item": self.items, "time": self.times, "list": lists, "upstream_score": self.upstream_scores}
        frame = pd.DataFrame({"user_id": ids.infer_objects(), **columns})
        frame.attrs[UNKNOWN_ITEMS] = self.unknown_items
        return frame

    def take(self, kept: BoolArray) -> Impressions | None:
        """Keep some rows, and the ids of their users alone; None where no row is left. kept: bool, shape (n_rows,)."""
        if not kept.any():
            return None
        held, users = np.unique(self.users[kept], return_inverse=True)
        rows = {name: values[kept] for name, values in self.arrays().items()} | {"users": users.astype(np.int64)}
        return Impressions(self.user_ids[held], **rows, unknown_items=self.unknown_items)


def code_among(impressions: Impressions | None, user_id: Any) -> int:
    """Return a user's place among those who were shown something, -1 where nothing was; ids as in ``code_of``."""
    return -1 if impressions is None else code_of(user_id, codes_by_id(impressions.user_ids))
