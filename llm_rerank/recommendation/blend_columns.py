"""The columns that a blend weighs: components' scores in two forms, each × support, and pair features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from llm_rerank.types import FloatArray, IntArray

if TYPE_CHECKING:
    from llm_rerank.data.missing import Standardizer

LINEAR = " (linear)"
"""Marks the columns of linear scores: "als (linear)" beside "als", which is the root."""

SHORT_HISTORY = " × short history"
"""Marks the columns of weights that fade out as a history grows."""

SUPPORT_CAP = np.log1p(40.0)
"""Log support beyond which more behaviour changes nothing: findings put the turn near 40 interactions."""

CLIP = 20.0
"""Bound of a linear score, in standard deviations over the catalogue: one candidate in a thousand lies beyond it."""

USER_SUPPORT, ITEM_SUPPORT = "user_support", "item_support"


def root_form(scores: FloatArray) -> FloatArray:
    """Take the signed root of standardised scores; NaN stays NaN."""
    return np.sign(scores) * np.sqrt(np.abs(scores))


def linear_form(scores: FloatArray) -> FloatArray:
    """Hold standardised scores within ``CLIP``; NaN stays NaN."""
    return np.clip(scores, -CLIP, CLIP)


def design_columns(
    scores: FloatArray,
    component_names: Sequence[str],
    linear: Standardizer,
    features: FloatArray,
    feature_names: Sequence[str],
    user_support: FloatArray,
    item_support: FloatArray | None,
) -> tuple[FloatArray, tuple[str, ...]]:
    """Lay out the columns of the blend: components in both forms, each × support, pair features.

    scores: float32, shape (n_candidates, n_components), standardised over the catalogue. Each enters as its signed
    root, because tails are long and a fivefold score is not five times the log-odds, and in its linear form, by linear
    (fitted on held-out candidates) standardised once more. Unknown is 0: the catalogue's mean, and the candidates'.
    features: float32, shape (n_candidates, n_features), complete and standardised.
    user_support, item_support: log1p counts, shape (n_candidates,), capped; item_support None leaves its columns out.
    """
    known = np.nan_to_num(np.concatenate([root_form(scores), linear.transform(linear_form(scores))], axis=1), nan=0.0)
    component_names = [*component_names, *(f"{name}{LINEAR}" for name in component_names)]
    blocks, names = [known], list(component_names)
    for label, support in ((USER_SUPPORT, user_support), (ITEM_SUPPORT, item_support)):
        if support is not None:
            blocks.append(known * centred_support(support)[:, None])
            names += [f"{name} × {label}" for name in component_names]
    blocks.append(features)
    return np.concatenate(blocks, axis=1, dtype=np.float32), (*names, *feature_names)


def centred_support(support: FloatArray) -> FloatArray:
    """Cap log support and centre it at half the cap, so that a column's own weight is its weight at middling support.

    Returns float32 in [−0.5, 0.5], shape as given.
    """
    return (np.minimum(support, SUPPORT_CAP) / SUPPORT_CAP - 0.5).astype(np.float32)


def column_label(name: str) -> str:
    """Name of a column as people read it: both forms of a component are one, for long histories and for short."""
    return name.replace(LINEAR, "").replace(SHORT_HISTORY, "")


def columns_of_rungs(names: Sequence[str], component_names: Sequence[str]) -> list[IntArray]:
    """Columns that each rung may fit: int64 positions in ``names``, one array a rung of ``RUNGS``."""
    support = np.array(["×" in name for name in names], dtype=bool)
    linear = np.array([LINEAR in name for name in names], dtype=bool)
    component = np.array([column_label(name) in component_names for name in names], dtype=bool)
    feature = ~np.array([column_label(name).split(" × ")[0] in component_names for name in names], dtype=bool)
    columns: list[IntArray] = []
    for form in (~linear, linear):
        of_form = form | feature
        kinds = (np.zeros_like(form), form & component, of_form & ~support, of_form)
        columns += [np.flatnonzero(kind).astype(np.int64) for kind in kinds]
    return columns


def shortness(user_support: FloatArray) -> FloatArray:
    """How much the weights of short histories count: 1 without events, 0 from forty on; float32, shape as given."""
    return np.maximum(1 - user_support / SUPPORT_CAP, 0).astype(np.float32)


def with_short_columns(design: FloatArray, user_support: FloatArray) -> FloatArray:
    """Lay each column out once more, times ``shortness``: float32, shape (n_candidates, 2 × n_columns)."""
    return np.concatenate([design, design * shortness(user_support)[:, None]], axis=1)
