"""Ids as they go out: a whole number that JavaScript cannot hold exactly goes out as text, and comes in as either."""

from __future__ import annotations

from typing import Any

from llm_rerank.data.values import GREATEST_WHOLE

ID_FIELDS = frozenset(
    ("changed_items", "forgotten", "item_id", "item_ids", "new_items", "texts_rewritten")
    + ("unknown", "unknown_items", "user_id", "users")
)
"""Fields of answers that hold an id, or a list of ids."""

GREATEST_EXACT = GREATEST_WHOLE - 1
"""JavaScript's greatest whole number that no other one is rounded to."""


def exact_ids(content: Any, *, is_id: bool = False) -> Any:
    """Give plain values with the ids that JavaScript would round as texts; either form finds them again."""
    if isinstance(content, dict):
        return {name: exact_ids(part, is_id=name in ID_FIELDS) for name, part in content.items()}
    if isinstance(content, list):
        return [exact_ids(part, is_id=is_id) for part in content]
    return str(content) if is_id and isinstance(content, int) and abs(content) > GREATEST_EXACT else content
