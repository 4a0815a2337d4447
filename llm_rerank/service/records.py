"""What is held of a user, what was erased, what became of new items: as the OpenAPI document says it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from llm_rerank.service.answers import AnyId, Nullable, Open


class HeldEvent(Open):
    """An event as the model has it. timestamp: seconds since 1970, or a position."""

    item_id: AnyId | None
    title: str | None
    timestamp: int
    weight: Nullable
    counts_as_target: bool
    rating: Nullable
    quantity: Nullable
    review: str
    review_sentiment: Nullable
    query: str
    learned_from: bool = Field(description="Whether the model was fitted on it.")


class HeldImpression(Open):
    """An item that an upstream recommender had shown, among what the model was fitted on."""

    item_id: AnyId
    title: str
    timestamp: int
    upstream_score: Nullable


class ShownList(Open):
    """A list that was shown; beside each item further facts, such as its score."""

    request_id: str
    recorded: float = Field(description="Seconds since 1970.")
    user_id: AnyId | None
    item_ids: list[AnyId]
    version: str


class LoggedEvent(Open):
    """An event as it was taken, with those of its fields that were given."""

    position: int
    recorded: float = Field(description="Seconds since 1970.")
    event_id: str
    user_id: AnyId
    timestamp: int


class Erasure(Open):
    """An erasure, which stands in the log under a keyed hash."""

    position: int
    recorded: float
    user_digest: str


class HeldOfUser(Open):
    """All that is held of a user. Of a newcomer who was shown lists, what the log holds alone."""

    user_id: AnyId
    time_kind: str | None = Field(None, description='"time", or "position".')
    attributes: dict[str, Any] | None = None
    events: list[HeldEvent] | None = None
    impressions: list[HeldImpression] | None = None
    event_log: list[LoggedEvent] | None = None
    lists_shown: list[ShownList]
    erasures: list[Erasure] | None = None


class Forgotten(Open):
    """What was erased, and what still carries influence."""

    forgotten: list[AnyId]
    unknown: list[AnyId] = Field(description="Ids of which nothing was held.")
    n_events: int
    rewritten: list[str] = Field(description="What no longer knows of the user.")
    influence: list[str] = Field(description="What was learned with the user and keeps that until a refit.")
    texts_rewritten: list[AnyId] = Field(description="Items whose texts quoted a review of the user.")
    not_reached: list[str] = Field(description="Where the user may still be, in words.")
    text: str = Field(description="The same in words.")


class AddedItems(Open):
    """What became of items."""

    new_items: list[AnyId]
    changed_items: list[AnyId]
    refreshed: list[str] = Field(description="Components that know them already.")
    stale: list[str] = Field(description="Components that will at the next refit.")
    dropped: dict[str, int] = Field(description="Rows that were left out, by reason.")
    n_events: int
    n_new_users: int
    n_known: int = Field(description="Events that were there exactly as they came; none came with items.")
    advice: list[str] = Field(description="What looks odd about the events.")
