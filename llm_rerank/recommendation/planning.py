"""Before a fit: the encoder it will use, the sentiment of the reviews, and its plan with an estimate of the time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_rerank.config import RerankerConfig
from llm_rerank.recommendation.components import MOST_ITEMS_FOR_EASE, ComponentSpec
from llm_rerank.recommendation.log import FitLog
from llm_rerank.types import Encoder, FloatArray, Interactions, Items

MOST_REVIEWS_READ = 20_000
"""Newest reviews whose sentiment is read with the encoder; older ones count through their ratings only."""


def make_encoder(config: RerankerConfig) -> Encoder | None:
    """Build the encoder that the settings name, with a memory of what it has encoded; None without one."""
    if config.encoder is None:
        return None
    from llm_rerank.models.semantic.encoder import CachedEncoder, SentenceEncoder

    return CachedEncoder(SentenceEncoder(config.encoder, device=config.device))


def sentiment_of(events: Interactions, encoder: Encoder | None) -> FloatArray:
    """Sentiment of each event's review in [−1, 1]: float32, shape (n_events,); NaN without a review or an encoder."""
    sentiment = np.full(len(events), np.nan, dtype=np.float32)
    with_review = np.flatnonzero(events.reviews.astype(bool))[-MOST_REVIEWS_READ:]
    if encoder is not None and len(with_review):
        from llm_rerank.models.semantic.encoder import review_sentiment

        sentiment[with_review] = review_sentiment(encoder, list(events.reviews[with_review]))
    return sentiment


def say_plan(
    log: FitLog,
    events: Interactions,
    items: Items,
    specs: Sequence[ComponentSpec],
    encoder: Encoder | None,
    *,
    refit: bool,
) -> None:
    """Say what a fit is going to do and about how long it takes."""
    n_settings = sum(spec.n_settings for spec in specs)
    log.say(
        f"plan: {len(events):,} events of {len(np.unique(events.users)):,} users on {len(items):,} items; "
        f"components {', '.join(spec.name for spec in specs)} ({n_settings} settings tried)"
        + (", then a refit on all rows" if refit else "")
    )
    if len(items) > MOST_ITEMS_FOR_EASE:
        log.say(
            f"plan: {len(items):,} items are more than {MOST_ITEMS_FOR_EASE:,}, so EASE, whose inverse is dense, gives "
            "way to sparse co-occurrence"
        )
    if encoder is None:
        log.say("plan: no encoder: reviews count through their ratings, and texts through their words at most")
