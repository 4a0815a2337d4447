"""What is answered, as the OpenAPI document says it, and the refusals that every route may give."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

AnyId = str | int
Nullable = float | None


class FailureDetail(BaseModel):
    """code: for programs. message: for people. field: of the request, where one is to blame."""

    code: str
    message: str
    field: str | None = None


class Failure(BaseModel):
    """Every refusal."""

    error: FailureDetail


class CohereFailure(BaseModel):
    """A refusal in the shape of Cohere's."""

    id: str
    message: str


class RankedItem(BaseModel):
    """An item of a list. components add up to score; all numbers are null where nothing is known of the item."""

    item_id: AnyId
    title: str
    rank: int
    score: Nullable
    probability: Nullable
    kept: bool
    upstream_score: Nullable
    before_rank: int | None = Field(description="Rank without us, by what `before` names.")
    components: dict[str, Nullable]
    propensity: Nullable = Field(None, description="Chance of this rank, where ranks are drawn at random.")


class Open(BaseModel):
    """What may get further fields."""

    model_config = ConfigDict(extra="allow")


class Guarantee(Open):
    """With probability 1 − delta over the draw of the held-out cases, the expected risk is at most alpha."""

    risk: str
    alpha: float
    delta: float
    n_cases: int
    observed_risk: float
    conditional_on: str = Field(description="Where it holds, in words.")


class Drift(Open):
    """How far the last lists are from those of the fit: an index for each thing compared, and when it is drift.

    n_cases: how many of the last lists, this among them. A single one tells nothing, nor do a few. uncovered: share of
    the users with a history whose length no held-out list had. as_by_now: the lengths are those that users have by now.
    """

    indices: dict[str, Nullable]
    limits: dict[str, Nullable]
    n_cases: int
    uncovered: float
    as_by_now: bool = False
    shifted: list[str] = Field(description="What drifted.")


class Cut(Open):
    """How a list was cut; empty where the order given came back."""

    least_probability: Nullable = Field(None, description="Null: nothing was cut.")
    n_kept: int | None = Field(None, description="Among the items returned.")
    n_added_by_min_items: int | None = None
    n_removed_by_max_items: int | None = None
    guarantee: Guarantee | None = None
    no_guarantee: str | None = Field(None, description="Why there is no guarantee; empty where there is one.")
    drift: Drift | None = None


class RankedList(BaseModel):
    """A decided list, best first.

    degraded: what failed, and is missing from the answer. fallback: what stood in where all failed; "" where nothing
    had to: "upstream_order" (the order given), "popularity" (best sellers), "nothing".
    """

    request_id: str
    model_version: str
    user_id: AnyId | None
    as_of: int | None
    known_user: bool
    items: list[RankedItem]
    unknown_items: list[AnyId] = Field(description="Candidates that the catalogue does not have; they come last.")
    before: str
    cut: Cut
    degraded: list[str]
    fallback: str


class RecordedEvents(BaseModel):
    """Event ids that were taken, and those that had been taken before."""

    accepted: list[str]
    duplicates: list[str]


class UserList(BaseModel):
    """Known users, who did something last first."""

    users: list[AnyId]


class HistoryEvent(BaseModel):
    """Something a user did."""

    item_id: AnyId | None
    title: str
    event_weight: float
    timestamp: int
    query: str
    rating: Nullable


class History(BaseModel):
    """Newest first."""

    events: list[HistoryEvent]


class CatalogueItem(BaseModel):
    """An item of the catalogue."""

    item_id: AnyId
    title: str
    brand: str
    price: Nullable


class CatalogueItems(BaseModel):
    """Items found, best first."""

    items: list[CatalogueItem]


class Contribution(BaseModel):
    """A part of a score."""

    name: str
    group: str
    value: float


class HistoryEffect(BaseModel):
    """What an item of the history did to a score."""

    item_id: AnyId
    title: str
    effect: float


class Comparison(BaseModel):
    """Why one item stands above or below another."""

    item_id: AnyId
    title: str
    score: Nullable
    difference: Nullable
    groups: dict[str, float]
    contributions: list[Contribution]
    history: list[HistoryEffect]
    sentence: str


class ExplainedScore(BaseModel):
    """Parts that add up to the score; what each item of the history did to it; the same in words.

    degraded: what failed, and is missing from the score.
    """

    user_id: AnyId | None
    item_id: AnyId
    title: str
    score: Nullable
    probability: Nullable
    groups: dict[str, float]
    contributions: list[Contribution]
    history: list[HistoryEffect]
    versus: Comparison | None
    text: str
    degraded: list[str]


class PreviewList(BaseModel):
    """The list of one user of an uploaded table."""

    user_id: AnyId
    items: list[RankedItem]
    before: str
    degraded: list[str]
    fallback: str


class Preview(BaseModel):
    """A first look at a table: what it was taken for, what was understood, the lists of its first users."""

    kind: Annotated[str, Field(pattern="^(candidates|events)$")]
    users: list[AnyId]
    notes: list[str]
    lists: list[PreviewList]


class CohereResult(BaseModel):
    """A document's place in what was sent, and its relevance: 0…1, rising with the score."""

    index: int
    relevance_score: Annotated[float, Field(ge=0, le=1)]
    document: dict[str, Any] | None = None


class CohereAnswer(BaseModel):
    """Documents, best first, in the shape of Cohere's answers. meta.warnings: said where something failed."""

    id: str
    results: list[CohereResult]
    meta: dict[str, Any]


class Health(BaseModel):
    """Whether it works."""

    status: str
    model_version: str | None = None


_REFUSALS = {
    400: "The body is no JSON.",
    401: "The API key is missing or wrong.",
    403: "Without an API key, only this machine and the service's own page are answered.",
    404: "There is no such route, user or request.",
    405: "The route has other methods; the header Allow names them.",
    408: "The body did not arrive in time.",
    410: "The model that made the list was replaced; ask for the list again.",
    413: "The body is too large.",
    415: "The body is of another type.",
    422: "A field breaks a rule; it is named.",
    503: "Too much to do, or out of order; come again after Retry-After seconds.",
}


def refusals(*, model: type[BaseModel] = Failure) -> dict[int | str, dict[str, Any]]:
    """Describe every refusal for the OpenAPI document."""
    described: dict[int | str, dict[str, Any]] = {
        status: {"model": model, "description": text} for status, text in _REFUSALS.items()
    }
    described[503]["headers"] = {
        "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}, "required": True}
    }
    return described
