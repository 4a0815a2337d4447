"""The fields of requests: what one value may be, and how the schema says it. The bodies are in ``bodies.py``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from llm_rerank.data.events import EVENT_WEIGHTS
from llm_rerank.data.values import GREATEST_ID
from llm_rerank.recommendation.live_events import LONGEST_ID, LONGEST_TEXT

LONGEST_TITLE = 2_000
LONGEST_VECTOR = 16_384
MOST_SHOWN = 1_000
GREATEST_NUMBER = 1e9
FURTHER_TIME = 2**53


def checked_id(value: Any) -> str | int:
    """Take an id: a text that is not blank, or a whole number."""
    if isinstance(value, str):
        if value.strip() and len(value) <= LONGEST_ID and is_encodable(value):
            return value
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) <= GREATEST_ID:
        return value
    raise PydanticCustomError("id", f"must be a text of 1 to {LONGEST_ID} characters or a whole number below 2^63")


def _moment(value: Any) -> str | int | float:
    if isinstance(value, str):
        if 0 < len(value) <= 64 and is_encodable(value):
            return value
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= FURTHER_TIME:
        return value
    raise PydanticCustomError("moment", "must be seconds since 1970, or a date of ISO 8601, as 2026-01-31T12:00:00Z")


def _scalar(value: Any) -> Any:
    """Take a text, a number, a truth value or null: what a column of a table can hold."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and len(value) <= LONGEST_TEXT and is_encodable(value):
        return value
    if isinstance(value, int | float) and abs(value) <= 1e15:  # NaN and infinity are not
        return value
    raise PydanticCustomError(
        "scalar", f"must be a text of at most {LONGEST_TEXT} characters, a number to 1e15 or null"
    )


def _attribute(value: Any) -> Any:
    if not isinstance(value, list):
        return _scalar(value)
    if 0 < len(value) <= LONGEST_VECTOR and all(type(v) in (int, float) and abs(v) <= 1e15 for v in value):
        return value
    raise PydanticCustomError("numbers", f"must be a text, a number, null, or 1 to {LONGEST_VECTOR:,} numbers")


def _kind(value: Any) -> str:
    if isinstance(value, str) and value.strip() and len(value) <= LONGEST_ID and is_encodable(value):
        return value  # the model in use says which it takes
    raise PydanticCustomError("kind", f"must be a text of 1 to {LONGEST_ID} characters, such as purchase")


def is_encodable(text: str) -> bool:
    """Tell whether a text is whole: half an emoji (a lone surrogate) can be stored nowhere."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_WHOLE = {"type": "integer", "minimum": -GREATEST_ID, "maximum": GREATEST_ID}
ID_SCHEMA = {"anyOf": [{"type": "string", "minLength": 1, "maxLength": LONGEST_ID}, _WHOLE], "examples": ["u1"]}
_MOMENT_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": 64},
        {"type": "number", "minimum": 0, "maximum": FURTHER_TIME},
    ],
    "description": "Seconds since 1970, a date of ISO 8601 with or without time (UTC without a zone), or, in a shop "
    "whose times are positions, a position.",
    "examples": ["2026-01-31T12:00:00Z", 1_769_860_800],
}
_KIND_SCHEMA = {
    "type": "string",
    "minLength": 1,
    "maxLength": LONGEST_ID,
    "description": f"One of {', '.join(EVENT_WEIGHTS)}, another usual name of one (order, add_to_cart, …), or one of "
    "the shop's own that counts as a target, or that the tables of a fit or an update had. Capitals do not matter.",
    "examples": ["purchase"],
}
_SCALAR_SCHEMA = {
    "anyOf": [
        {"type": "string", "maxLength": LONGEST_TEXT},
        {"type": "number", "minimum": -1e15, "maximum": 1e15},
        {"type": "boolean"},
        {"type": "null"},
    ]
}

Id = Annotated[Any, PlainValidator(checked_id), WithJsonSchema(ID_SCHEMA)]
Moment = Annotated[Any, PlainValidator(_moment), WithJsonSchema(_MOMENT_SCHEMA)]
Scalar = Annotated[Any, PlainValidator(_scalar), WithJsonSchema(_SCALAR_SCHEMA)]
_NUMBERS = {"type": "array", "minItems": 1, "maxItems": LONGEST_VECTOR, "items": _SCALAR_SCHEMA["anyOf"][1]}
Attribute = Annotated[Any, PlainValidator(_attribute), WithJsonSchema({"anyOf": [*_SCALAR_SCHEMA["anyOf"], _NUMBERS]})]
Kind = Annotated[Any, PlainValidator(_kind), WithJsonSchema(_KIND_SCHEMA)]
RequestId = Annotated[str, Field(min_length=1, max_length=64)]
Number = Annotated[float, Field(gt=-GREATEST_NUMBER, lt=GREATEST_NUMBER, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
ShortText = Annotated[str, Field(max_length=LONGEST_TITLE)]
Depth = Annotated[int, Field(ge=1, le=MOST_SHOWN)]
