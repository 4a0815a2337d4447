"""How long a fit will take, from counts and one quick measurement of the encoder: right within a factor of about two.

The dear parts: encoding the texts, inverting matrices of items × items, factorising, and scoring the
whole catalogue for the held-out users with each setting tried. Rates are seconds of one CPU core; the encoder's rate is
measured where the estimate is made, on the texts at hand.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from llm_rerank.recommendation.holdout import HOLDOUT_SHARE, MOST_HOLDOUT_USERS
from llm_rerank.recommendation.specs import PARTS, ComponentSpec, in_use
from llm_rerank.types import Encoder, Interactions, Items

TEXTS_MEASURED = 48

USUAL_STEPS = 150  # early stopping seldom goes on for longer
TEXTS_A_STEP = 120.0
"""Encodings that a step of fine-tuning is worth: some 300 items of at most 32 tokens, forward and backward through a
third of the layers."""

# From fits of five data sets (400 to 9,000 items, 40,000 to 400,000 events) on one core, without an encoder.
START_S = 9.0  # imports, reading, and the blend's cross-validation, which is nearly the same for every shop
SECONDS_PER_EVENT = 2e-5  # sorting, histories, features, factorisation
SECONDS_PER_SQUARED_ITEM = 5e-8  # text kernel and Gram matrix
SECONDS_PER_CUBED_ITEM = 1.4e-11  # one inverse of items × items
SECONDS_PER_SCORE = 4e-8  # one score of one item for one held-out user, ranking included
SECONDS_PER_CELL_OF_NETS = 1.2e-7  # an event against an item: three nets, three epochs, forward and backward
MOST_CELLS = 2e8  # of an epoch; nets draw rows above that
SECONDS_PER_HELD_OUT_USER = 2e-3  # some 200 candidates in the blend


def estimate_fit_seconds(
    events: Interactions,
    items: Items,
    specs: Sequence[ComponentSpec],
    *,
    seconds_per_text: float,
    n_reviews_read: int,
    refit: bool,
    fine_tune_steps: int = 0,
) -> float:
    """Estimate the seconds of a fit.

    seconds_per_text: of an item's text, from ``measure_encoder``; 0 without an encoder.
    n_reviews_read: reviews whose sentiment is read; the newest, each as dear as it is long.
    fine_tune_steps: most steps of the cross-encoder; 0: none is trained.
    """
    n_items = float(len(items))
    n_nets = sum(spec.part == "sequence" for spec in specs)
    n_specs, specs = len(specs), in_use(specs, PARTS)
    n_taken_over = n_specs - len(specs)  # fitted once more, with settings that are chosen already
    n_held_out = min(HOLDOUT_SHARE * len(np.unique(events.users)), MOST_HOLDOUT_USERS)
    passes = 2 if refit else 1  # every component is fitted again, on texts with later reviews
    n_inverses = sum(len(spec.grid) for spec in specs if "ease" in spec.name) + n_taken_over + passes - 1
    n_rankings = sum(spec.n_settings for spec in specs) / 2 + passes * len(specs)  # half of the users choose settings
    return (
        START_S
        + SECONDS_PER_CELL_OF_NETS * n_nets * passes * min(len(events) * n_items, MOST_CELLS)
        + SECONDS_PER_EVENT * passes * len(events)
        + n_inverses * (SECONDS_PER_SQUARED_ITEM * n_items**2 + SECONDS_PER_CUBED_ITEM * n_items**3)
        + SECONDS_PER_SCORE * n_rankings * n_held_out * n_items
        + SECONDS_PER_HELD_OUT_USER * n_held_out
        + seconds_per_text * (passes * n_items + _texts_worth(events, items, n_reviews_read))
        + seconds_per_text * min(fine_tune_steps, USUAL_STEPS) * min(TEXTS_A_STEP, n_items)
    )


def measure_encoder(encoder: Encoder, texts: Sequence[str]) -> float:
    """Seconds a text, on at most TEXTS_MEASURED of the texts, evenly spread; 0 without any character."""
    rows = np.unique(np.linspace(0, max(len(texts) - 1, 0), TEXTS_MEASURED).astype(np.int64))
    sample = [texts[row] for row in rows if row < len(texts) and texts[row]]
    rates = []
    # different texts, because an encoder may remember; the faster half: what else the machine does only slows
    for half in (sample[::2], sample[1::2]):
        started = time.perf_counter()
        encoder.encode(half)
        rates.append((time.perf_counter() - started) / max(sum(map(len, half)), 1))
    return min(rates) * sum(map(len, sample)) / max(len(sample), 1)


def _texts_worth(events: Interactions, items: Items, n_reviews: int) -> float:
    """How many items' texts are as long as the newest reviews together."""
    reviews = events.reviews[events.reviews.astype(bool)]
    of_reviews = sum(map(len, reviews[len(reviews) - min(n_reviews, len(reviews)) :]))
    of_items = sum(items.frame["title"].str.len()) + sum(items.frame["description"].str.len())
    return of_reviews * len(items) / of_items if of_items else float(n_reviews)


def seconds_in_words(seconds: float) -> str:
    """Round to what an estimate deserves: "40 seconds", "3 minutes", "2.5 hours"."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
