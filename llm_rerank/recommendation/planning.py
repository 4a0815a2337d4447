"""Before a fit: tables read and validated, the encoder, the reviews' sentiment, and the plan with its estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from llm_rerank.config import RerankerConfig
from llm_rerank.data.frames import applicable, open_tables
from llm_rerank.data.impressions import validate_impressions
from llm_rerank.data.rendering import Renderer
from llm_rerank.data.schema import validate_interactions, validate_items, validate_users
from llm_rerank.data.times import TimeUnit
from llm_rerank.models.semantic.sentiment import review_sentiment
from llm_rerank.recommendation.estimate import MOST_REVIEWS_READ, estimate_fit_seconds, seconds_in_words
from llm_rerank.recommendation.item_groups import CLUSTERS, group_column
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.specs import MOST_ITEMS_FOR_EASE, PARTS, ComponentSpec, in_use
from llm_rerank.types import DataReport, Encoder, FloatArray, Interactions, Items, Users

if TYPE_CHECKING:
    from llm_rerank.models.semantic.cache import CachedEncoder


def read_shop(
    config: RerankerConfig,
    interactions: Any,
    items: Any,
    users: Any | None,
    impressions: Any | None,
    columns: Mapping[str, str] | None,
    time_unit: TimeUnit,
    report: DataReport,
    *,
    encoding: str | None = None,
) -> tuple[Interactions, Items, Users | None, pd.DataFrame | None]:
    """Read and validate a shop's tables (frames or paths); one mapping of columns serves them all.

    encoding: of files, None to find it.
    Raises DataError where a table breaks a rule, or where a column that the settings name is not there.
    """
    given = {"items": items, "users": users, "interactions": interactions, "impressions": impressions}
    tables = open_tables(given, columns, encoding, report, required=("interactions", "items"))
    named = {name: applicable(columns, table) for name, table in tables.items()}
    valid_items = validate_items(tables["items"], columns=named["items"], report=report)
    diversity = config.diversity_settings
    if diversity.max_per_group is not None and diversity.group_by != CLUSTERS:
        group_column(valid_items, diversity)  # a wrong name is said now, not at the first question
    valid_users = None
    if "users" in tables:
        valid_users = validate_users(tables["users"], columns=named["users"], report=report)
    events = validate_interactions(
        tables["interactions"],
        valid_items,
        users=valid_users,
        columns=named["interactions"],
        time_unit=time_unit,
        target_events=config.target_events,
        min_rating=config.min_rating,
        report=report,
    )
    shown = None
    if "impressions" in tables:
        shown = validate_impressions(
            tables["impressions"], valid_items, columns=named["impressions"], time_unit=time_unit, report=report
        )
    return events, valid_items, valid_users, shown


def make_encoder(config: RerankerConfig) -> CachedEncoder | None:
    """Build the encoder that the settings name, with a memory of what it has encoded; None without one.

    Raises StorageError where the weights cannot be had or the cache folder cannot be made.
    """
    if config.encoder is None:
        return None
    from llm_rerank.models.semantic.cache import CachedEncoder
    from llm_rerank.models.semantic.encoder import SentenceEncoder

    return CachedEncoder(SentenceEncoder(config.encoder, device=config.device, dtype=config.dtype), config.cache_folder)


def has_text(items: Items, events: Interactions, renderer: Renderer) -> bool:
    """Tell whether anything is known of any item in words: a title, another column, a review."""
    if items.frame["title"].astype(bool).any():  # nearly always; else all are rendered
        return True
    return any(text.strip() for text in renderer.render_items(items, events).texts)


def sentiment_of(events: Interactions, encoder: Encoder | None) -> FloatArray:
    """Sentiment of each event's review in [−1, 1]: float32, shape (n_events,); NaN without a review or an encoder."""
    sentiment = np.full(len(events), np.nan, dtype=np.float32)
    with_review = np.flatnonzero(events.reviews.astype(bool))[-MOST_REVIEWS_READ:]
    if encoder is not None and len(with_review):
        sentiment[with_review] = review_sentiment(encoder, list(events.reviews[with_review]))
    return sentiment


def say_plan(
    log: FitLog,
    events: Interactions,
    items: Items,
    specs: Sequence[ComponentSpec],
    encoder: CachedEncoder | None,
    *,
    refit: bool,
    fine_tune_steps: int = 0,
    seed: int = 0,
) -> None:
    """Say what a fit is going to do and about how long it takes; arguments as for ``estimate_fit_seconds``."""
    always = in_use(specs, ())
    parts = [part for part in PARTS if any(spec.part == part for spec in specs)]
    if encoder is not None and fine_tune_steps:
        parts.append("a cross-encoder fine-tuned on what they leave")
    seconds = estimate_fit_seconds(
        events,
        items,
        specs,
        encoder,
        refit=refit,
        fine_tune_steps=0 if encoder is None else fine_tune_steps,
        seed=seed,
    )
    log.say(
        f"plan: {len(events):,} events of {len(np.unique(events.users)):,} users on {len(items):,} items; "
        f"components {', '.join(spec.name for spec in always)} ({sum(s.n_settings for s in always)} settings tried)"
        + "".join(f", {part} where it pays" for part in parts)
        + (", then a refit on all rows" if refit else "")
        + f"; about {seconds_in_words(seconds)}, give or take a factor of two"
    )
    if len(items) > MOST_ITEMS_FOR_EASE:
        log.say(
            f"plan: {len(items):,} items are more than {MOST_ITEMS_FOR_EASE:,}, so EASE, whose inverse is dense, gives "
            "way to sparse co-occurrence"
        )
    if encoder is None:
        log.say("plan: no encoder: reviews count through their ratings, and texts through their words at most")
        return
    log.say(f"plan: {encoder.description}")
    if len(encoder):
        log.say(f"plan: {len(encoder):,} vectors of earlier fits are in the cache folder; the same texts take no time")
