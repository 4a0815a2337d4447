"""Liking and disliking in reviews, read from the encoder's vectors against a few sentences that say either."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_rerank.types import Encoder, FloatArray

LIKING = (
    "Does the job well",
    "Exactly what I needed",
    "Great product",
    "Very happy with it",
    "So glad I bought it",
    "Good",
    "Worth every penny",
)
DISLIKING = (
    "Unfortunately it failed",
    "Defective",
    "I regret buying it",
    "I returned it",
    "Very disappointed",
    "Not worth the money",
    "Awful",
)
"""Chosen one by one from 30 + 30 by their AUC on half of the users of Amazon Musical Instruments (default encoder)."""


def review_sentiment(encoder: Encoder, reviews: Sequence[str]) -> FloatArray:
    """Place each review between disliking (−1) and liking (1).

    With p and n the mean vectors of the anchor sentences and v the review's vector, how far v lies along the way from
    n (−1) to p (1):  s = clip(2 (v − (p + n) / 2) · (p − n) / |p − n|², −1, 1).

    On the other half of those users (616 reviews, 265 of at most two stars): AUC of four and five stars against one
    and two .825 [.789, .856], rank correlation with the stars .53; a logistic regression trained on the vectors of
    the first half .790. Known limits: it orders reviews, its zero is not neutral (three stars lie at .24 on average);
    only the first tokens of a long review are read; the anchors are English.

    Returns float32, shape (n_reviews,); NaN for a blank review.
    """
    vectors = encoder.encode([*LIKING, *DISLIKING, *reviews])
    liking = vectors[: len(LIKING)].mean(axis=0)
    disliking = vectors[len(LIKING) : len(LIKING) + len(DISLIKING)].mean(axis=0)
    way = liking - disliking
    places = 2 * (vectors[len(LIKING) + len(DISLIKING) :] - (liking + disliking) / 2) @ way / (way @ way)
    blank = np.array([not review.strip() for review in reviews], dtype=bool)
    return np.where(blank, np.nan, np.clip(places, -1, 1)).astype(np.float32)
