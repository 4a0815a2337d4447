"""Where users and items are thin or thick: the bounds by which figures are broken down, and their labels."""

from __future__ import annotations

from llm_rerank.types import BoolArray, IntArray

Bounds = tuple[int, int | None]

NOTHING: Bounds = (0, 0)
"""Who has nothing in the past of what is counted: a user who only looked, or is new."""

USER_STRATA: tuple[Bounds, ...] = ((1, 2), (3, 5), (6, 10), (11, None))
"""What is in the user's past: from, to (None: no end). Rankings count distinct positive items, calibration and drift
the events of the history."""

ITEM_STRATA: tuple[Bounds, ...] = ((0, 0), (1, 4), (5, 19), (20, None))
"""Distinct users with a positive event on the item in the past: from, to."""


def within(counts: IntArray, bounds: Bounds) -> BoolArray:
    """Tell which counts lie inside the bounds, both ends included: bool, shape as given."""
    low, high = bounds
    inside: BoolArray = (counts >= low) & (True if high is None else counts <= high)
    return inside


def label(bounds: Bounds) -> str:
    """Name bounds: "0", "1-4", "20+"."""
    low, high = bounds
    return f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"
