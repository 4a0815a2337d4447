"""A data set's tables, validated once, so that their rows can be cut where their events are; ``protocols.py`` cuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from llm_rerank.data.frames import clean_ids, id_codes
from llm_rerank.data.schema import validate_interactions, validate_items, validate_users
from llm_rerank.data.times import parse_times
from llm_rerank.types import DataReport, IntArray, Interactions, Items

if TYPE_CHECKING:
    from llm_rerank.types import BoolArray


class Rule(NamedTuple):
    """What counts as positive."""

    target_events: Sequence[str] | None
    min_rating: float | None


@dataclass(frozen=True)
class Tables:
    """A data set validated, with user and time of each row of its table, so that rows can be cut as events are.

    row_users: int64 codes, -1 where no event of the user was kept. row_times: int64. row_known: bool, time is known.
    """

    frame: pd.DataFrame
    item_frame: pd.DataFrame
    items: Items
    events: Interactions
    user_frame: pd.DataFrame | None
    rule: Rule
    row_users: IntArray
    row_times: IntArray
    row_known: BoolArray

    @classmethod
    def read(cls, frame: pd.DataFrame, item_frame: pd.DataFrame, user_frame: pd.DataFrame | None, rule: Rule) -> Tables:
        """Validate the tables; raises DataError where they break a rule of the data contract."""
        report = DataReport()
        items = validate_items(item_frame, report=report)
        users = None if user_frame is None else validate_users(user_frame, report=report)
        events = validate_interactions(
            frame, items, users=users, target_events=rule.target_events, min_rating=rule.min_rating, report=report
        )
        times, known, _ = parse_times(frame["timestamp"], report=report)
        row_users = id_codes(clean_ids(frame["user_id"], "user_id of interactions", report), events.user_ids)
        return cls(frame, item_frame, items, events, user_frame, rule, row_users, times, known)

    def only_items(self, kept: BoolArray) -> Tables:
        """Read the tables as if the catalogue had only these items (bool, shape (n_items,)); searches stay."""
        of_events, of_items = (
            clean_ids(table["item_id"], "item_id", DataReport()) for table in (self.frame, self.item_frame)
        )
        rows, item_rows = (id_codes(ids, self.items.ids[kept]) >= 0 for ids in (of_events, of_items))
        rows |= of_events.isna().to_numpy()
        return Tables.read(self.frame[rows], self.item_frame[item_rows], self.user_frame, self.rule)
