"""How long a fit will take, from counts and one quick measurement of the encoder: right within a factor of about two.

The dear parts: encoding each distinct text once, inverting matrices of items × items, factorising, and scoring the
whole catalogue for the held-out users with each setting tried. Rates are seconds of one CPU core; the encoder's rate is
measured where the estimate is made, on the texts at hand.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from llm_rerank.recommendation.components import ComponentSpec
from llm_rerank.recommendation.holdout import HOLDOUT_SHARE, MOST_HOLDOUT_USERS
from llm_rerank.types import Encoder, Interactions, Items

TEXTS_MEASURED = 64

START_S = 4.0  # imports, weights, reading
SECONDS_PER_EVENT = 2e-5  # sorting, histories, features
SECONDS_PER_INVERTED_CELL = 1.5e-10  # times items³: one inverse in float64
SECONDS_PER_FACTORISED_EVENT = 1e-4
SECONDS_PER_SCORE = 1e-8  # one score of one item for one held-out user
SECONDS_PER_HELD_OUT_USER = 2e-2  # the blend: ~200 candidates, four rungs, cross-validated


def estimate_fit_seconds(
    events: Interactions,
    items: Items,
    specs: Sequence[ComponentSpec],
    *,
    seconds_per_text: float,
    n_reviews_read: int,
    refit: bool,
) -> float:
    """Estimate the seconds of a fit.

    seconds_per_text: from ``measure_encoder``; 0 without an encoder. n_reviews_read: reviews whose sentiment is read.
    """
    n_events, n_items = len(events), len(items)
    n_held_out = min(HOLDOUT_SHARE * len(np.unique(events.users)), MOST_HOLDOUT_USERS)
    passes = 2 if refit else 1  # texts change with their review digests, and every component is fitted again
    n_inverses = sum(len(spec.grid) for spec in specs if "ease" in spec.name) + passes - 1
    n_scored = sum(spec.n_settings for spec in specs) + passes * len(specs)
    return (
        START_S
        + SECONDS_PER_EVENT * n_events
        + seconds_per_text * (passes * n_items + n_reviews_read)
        + SECONDS_PER_INVERTED_CELL * n_inverses * float(n_items) ** 3
        + SECONDS_PER_FACTORISED_EVENT * passes * n_events
        + SECONDS_PER_SCORE * n_scored * n_held_out * n_items
        + SECONDS_PER_HELD_OUT_USER * n_held_out
    )


def measure_encoder(encoder: Encoder, texts: Sequence[str]) -> float:
    """Seconds a text, on at most TEXTS_MEASURED of the texts, evenly spread; 0 without texts."""
    if not len(texts):
        return 0.0
    rows = np.unique(np.linspace(0, len(texts) - 1, TEXTS_MEASURED).astype(np.int64))
    sample = [texts[row] for row in rows]
    encoder.encode(sample[:2])  # the first call warms up
    started = time.perf_counter()
    encoder.encode(sample)
    return (time.perf_counter() - started) / len(sample)


def seconds_in_words(seconds: float) -> str:
    """Round to what an estimate deserves: "40 seconds", "3 minutes", "2.5 hours"."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
