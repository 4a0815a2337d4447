"""What may be asked: the bodies of requests, strict, with every size bounded. What is answered is in ``answers.py``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from llm_rerank.data.values import GREATEST_WHOLE
from llm_rerank.recommendation.live_events import LONGEST_ID, LONGEST_TEXT
from llm_rerank.service.fields import (
    GREATEST_NUMBER,
    ID_SCHEMA,
    LONGEST_TITLE,
    Attribute,
    Depth,
    Id,
    Kind,
    Moment,
    Number,
    RequestId,
    Scalar,
    Share,
    ShortText,
    checked_id,
    is_encodable,
)
from llm_rerank.service.settings import MOST_CANDIDATES

LONGEST_WORDS = 1_000
MOST_FRESH_EVENTS = 200
MOST_EVENTS = 1_000
MOST_ITEMS = 1_000


class Body(BaseModel):
    """Strict: a number is not taken for a text, and a field nobody knows is told, not passed over."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, given: Any) -> Any:
        fields = cls.model_fields
        unknown = [name for name in given if name not in fields] if isinstance(given, dict) else []
        if unknown and all(name in given for name, field in fields.items() if field.is_required()):
            said = {"field": unknown[0], "fields": ", ".join(fields)}
            raise PydanticCustomError("no_such_field", "there is no such field; the fields are {fields}", said)
        return given  # what is missing is said first


class FreshEvent(Body):
    """Something the user did. Without item_id it is a search, and then query says what for."""

    item_id: Id | None = None
    timestamp: Moment | None = Field(None, description="Default: just before the decision.")
    event: Kind | None = None
    rating: Number | None = None
    quantity: Number | None = None
    weight: Number | None = Field(None, description="Replaces the weight of the kind of event; below 0: a dislike.")
    review: str | None = Field(None, max_length=LONGEST_TEXT)
    query: str | None = Field(None, max_length=LONGEST_WORDS)

    def mapping(self) -> dict[str, Any]:
        """Give the fields that were set."""
        return {name: value for name, value in self.__dict__.items() if value is not None}


class ShopEvent(FreshEvent):
    """Something a user did, to be kept. An event_id that comes again changes nothing."""

    user_id: Id
    event_id: str | None = Field(None, min_length=1, max_length=LONGEST_ID, description="Made here if absent.")


class EventsBody(Body):
    """One event, or ``{"events": [...]}``."""

    events: list[ShopEvent] = Field(min_length=1, max_length=MOST_EVENTS)

    @model_validator(mode="before")
    @classmethod
    def _one_is_many(cls, given: Any) -> Any:
        return {"events": [given]} if isinstance(given, dict) and "events" not in given else given

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Say that one event may stand alone."""
        many = handler.resolve_ref_schema(handler(core))
        return {"title": "EventsBody", "anyOf": [many["properties"]["events"]["items"], dict(many)]}


class Candidate(Body):
    """An item to rank: its id alone, or with the score that the recommender before us gave it."""

    item_id: Id
    upstream_score: Number | None = None

    @model_validator(mode="before")
    @classmethod
    def _id_alone(cls, given: Any) -> Any:
        return given if isinstance(given, dict) else {"item_id": checked_id(given)}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Say that an id may stand alone."""
        return {"title": "Candidate", "anyOf": [ID_SCHEMA, dict(handler.resolve_ref_schema(handler(core)))]}


class Decision(Body):
    """How a list is decided."""

    user_id: Id | None = Field(None, description="Null: a newcomer.")
    events: list[FreshEvent] = Field(
        default_factory=list,
        max_length=MOST_FRESH_EVENTS,
        description="Fresh events, read with what is known of the user, and not kept.",
    )
    as_of: Moment | None = Field(None, description="Moment of the decision; default: just after the last known event.")
    diversity: Share | None = Field(None, description="Variety against relevance; default: as the model was fitted.")
    least_probability: Share | None = Field(None, description="What is kept; default: the model's cut.")
    remember: bool = Field(True, description="Keep the list for 7 days as shown to the user, for feedback.")


class RerankBody(Decision):
    """Candidates of another recommender, best first, to be put in order."""

    candidates: list[Candidate] = Field(max_length=MOST_CANDIDATES)
    k: Depth | None = Field(None, description="Items to return; default: all.")


class RecommendBody(Decision):
    """A list without candidates of one's own."""

    k: Depth | None = Field(10, description="Items to return; null: every retrieved candidate.")
    exclude_seen: bool = Field(True, description="Leave out what the user has had.")


class RecutBody(Body):
    """An earlier answer, cut or spread anew without scoring again."""

    request_id: RequestId
    least_probability: Share | None = None
    diversity: Share | None = None
    k: Depth | None = None


class ExplainBody(Body):
    """A user and an item; with ``versus`` also why the item stands above or below another."""

    user_id: Id | None = Field(None, description="Null: a newcomer.")
    item_id: Id
    versus: Id | None = None
    events: list[FreshEvent] = Field(default_factory=list, max_length=MOST_FRESH_EVENTS)
    as_of: Moment | None = None
    upstream_scores: list[Number | None] | None = Field(
        None,
        min_length=1,
        max_length=2,
        description="Of the item, and of versus, in a list that has such scores; null where one is unknown.",
    )


class ShownEvent(Body):
    """What a user did with an item that an answer of ours held, as it was asked for or, lately, cut anew."""

    item_id: Id
    event: Kind
    event_id: str | None = Field(None, min_length=1, max_length=LONGEST_ID)
    timestamp: Moment | None = None
    rating: Number | None = None
    quantity: Number | None = None
    review: str | None = Field(None, max_length=LONGEST_TEXT)

    def mapping(self) -> dict[str, Any]:
        """Give the fields that were set."""
        return {name: value for name, value in self.__dict__.items() if value is not None}


class FeedbackBody(Body):
    """Events on an answer, named by its request_id: one event beside it, or a list ``events``."""

    request_id: RequestId
    events: list[ShownEvent] = Field(min_length=1, max_length=MOST_EVENTS)

    @model_validator(mode="before")
    @classmethod
    def _one_is_many(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "events" in given or "request_id" not in given:
            return given
        one = {name: value for name, value in given.items() if name != "request_id"}
        return {"request_id": given["request_id"], "events": [one]}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Say that one event may stand beside the request_id."""
        many = handler.resolve_ref_schema(handler(core))
        one = handler.resolve_ref_schema(many["properties"]["events"]["items"])
        alone = {
            "type": "object",
            "properties": {"request_id": many["properties"]["request_id"], **one["properties"]},
            "required": ["request_id", *one["required"]],
            "additionalProperties": False,
        }
        return {"title": "FeedbackBody", "anyOf": [alone, dict(many)]}


class NewItem(BaseModel):
    """An item of the catalogue, new or changed; further fields are attributes of it, or its vectors (``*_vector``)."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Attribute]

    item_id: Id
    title: str = Field(min_length=1, max_length=LONGEST_TITLE, json_schema_extra={"pattern": r"\S"})
    description: str | None = Field(None, max_length=LONGEST_TEXT)
    brand: str | None = Field(None, max_length=LONGEST_TITLE)
    categories: str | list[ShortText] | None = Field(None, max_length=LONGEST_TITLE)
    price: Annotated[float, Field(gt=0, le=GREATEST_NUMBER)] | None = None
    specs: dict[str, Scalar] | None = Field(None, max_length=100)

    @field_validator("title")
    @classmethod
    def _says_something(cls, title: str) -> str:
        if not title.strip():
            raise PydanticCustomError("blank", "has blanks only; give the item's name")
        return title

    @model_validator(mode="after")
    def _few_attributes(self) -> NewItem:
        extra = self.model_extra or {}
        if len(extra) > 100 or any(not 0 < len(name) <= 100 or not is_encodable(name) for name in extra):
            raise PydanticCustomError("attributes", "has more than 100 attributes, or one with a name of over 100")
        return self

    def mapping(self) -> dict[str, Any]:
        """Give the fields that were set, attributes included."""
        given = {**self.__dict__, **(self.model_extra or {})}
        return {name: value for name, value in given.items() if value is not None}


class ItemsBody(Body):
    """Items to add to the catalogue, or to read again."""

    items: list[NewItem] = Field(min_length=1, max_length=MOST_ITEMS)


class CohereBody(BaseModel):
    """What Cohere's clients send; fields that are not listed are passed over, as Cohere does."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    model: str | None = Field(None, max_length=LONGEST_TITLE, description="Passed over: there is one model.")
    query: str = Field(
        min_length=1, max_length=100_000, description="The user's history, one item a line, oldest first."
    )
    documents: list[str | dict[str, Scalar]] = Field(
        min_length=1, max_length=MOST_CANDIDATES, description="Texts, or objects, read as lines of key: value."
    )
    top_n: int | None = Field(None, ge=1, le=GREATEST_WHOLE)
    max_tokens_per_doc: int = Field(
        4_096, ge=1, le=GREATEST_WHOLE, description="What follows in a document is not read, if the model read as far."
    )
    return_documents: bool | None = Field(None, description="As in Cohere's first version.")
    rank_fields: list[ShortText] | None = Field(
        None, max_length=100, description="Of /v1/rerank: fields of an object that are read, in this order."
    )
