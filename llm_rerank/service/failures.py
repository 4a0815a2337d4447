"""Failures as answers: one shape for all, that names the field and repeats nothing that names a user.

``{"error": {"code", "message", "field"?}}``; where Cohere's clients ask, the shape they read: ``{"id", "message"}``.
"""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import Scope

from llm_rerank.service.ids import exact_ids
from llm_rerank.types import DataError, StorageError

COHERE_PATHS = ("/v2/rerank", "/v1/rerank", "/rerank")

CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    410: "gone",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid",
    503: "unavailable",
}


BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
BOUNDED = ("moment", "scalar")
"""Kinds of errors about a number's size: pydantic's, and those of ``bodies.py`` that may be about one."""

LONGEST_NUMBER = 30


class ServiceError(HTTPException):
    """A refusal with its status, a code for programs, a sentence for people and, where there is one, the field.

    retry_after_s: seconds after which asking again makes sense; required for 503.
    """

    def __init__(
        self, status: int, message: str, *, code: str = "", field: str | None = None, retry_after_s: float | None = None
    ) -> None:
        headers = None if retry_after_s is None else {"Retry-After": str(max(1, math.ceil(retry_after_s)))}
        super().__init__(status, message, headers=headers)
        self.code = code or CODES.get(status, "refused")
        self.message = message
        self.field = field


class JsonResponse(Response):
    """JSON in pure ASCII: a title that holds half an emoji of a broken export must not fail an answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Write plain values; bytes are JSON already."""
        return content if isinstance(content, bytes) else to_json(content)


def to_json(content: Any) -> bytes:
    """Write plain values as JSON, ids as ``exact_ids`` has them; NaN raises ValueError (``plain`` makes it null)."""
    return json.dumps(exact_ids(content), ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def failure_response(scope: Scope, error: ServiceError) -> Response:
    """Give a refusal in the shape that the path's clients read."""
    content: dict[str, Any]
    if scope.get("path") in COHERE_PATHS:
        said = f"{error.field}: {error.message}" if error.field else error.message
        content = {"id": scope.get("request_id", ""), "message": said}
    else:
        content = {"error": {"code": error.code, "message": error.message}}
        if error.field:
            content["error"]["field"] = error.field
    return JsonResponse(content, status_code=error.status_code, headers=error.headers)


def as_service_error(error: Exception) -> ServiceError | None:
    """Translate what is raised on purpose; None for everything else, which nobody foresaw."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, RequestValidationError):
        return _of_validation(error.errors(), error.body)
    if isinstance(error, AnyHTTPException):
        return ServiceError(error.status_code, str(error.detail))
    if isinstance(error, DataError):
        field = getattr(error, "field", None)
        message = str(error)
        if field and message.startswith(field):
            message = message[len(field) :].lstrip(" :")
        return ServiceError(422, message, field=field)
    if isinstance(error, StorageError):  # names files of ours, which are nobody else's business
        return ServiceError(503, "the model folder or the event log cannot be used now", retry_after_s=5)
    return None


def field_path(location: Sequence[str | int]) -> str:
    """Write a location as the client would: ``candidates[3].upstream_score``."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _of_validation(errors: Sequence[Any], body: Any) -> ServiceError:
    """Name the first field that is wrong, as it was sent; of values, numbers alone that name nobody are repeated."""
    first = errors[0]
    where, *location = (part for part in first["loc"] if not _is_type(part))
    if location[:2] == ["events", 0] and isinstance(body, dict) and "events" not in body:
        location = location[2:]  # an event that came alone
    if first["type"] == "no_such_field":
        location.append(first["ctx"]["field"])
    if first["type"] == "missing":
        if not location:
            return ServiceError(422, f"the {where} is missing; send a JSON object")
        beside = [one["loc"][-1] for one in errors if one["type"] == "extra_forbidden"]
        more = f"; there is no field {beside[0]}" if beside else ""
        return ServiceError(422, f"{location[-1]} is required{more}", field=field_path(location))
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    number = _number_at_fault(first)
    if number:
        message = f"is {number}; it {message.removeprefix('input ')}"
    return ServiceError(422, message, field=field_path(location) or str(where))


def _number_at_fault(error: Mapping[str, Any]) -> str:
    """Write the number that breaks a bound, which in a query of the address comes as text; "" for any other error."""
    value = error["input"]
    if error["type"] in BOUNDS or (error["type"] in BOUNDED and type(value) in (int, float)):
        said = str(value)
        return said if len(said) <= LONGEST_NUMBER else f"{said[:LONGEST_NUMBER]}…"
    return ""


def _is_type(part: str | int) -> bool:
    """Tell whether a part of a location is the type that pydantic tried, where several may stand: no field of ours."""
    return isinstance(part, str) and (part == "str" or part.startswith(("dict[", "list[")))


def describe(error: BaseException) -> str:
    """Say where an error came from, without its message, which may hold ids: type, then file and line of each frame."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return f"{type(error).__name__} at {places or 'an unknown place'}"


async def answer_failure(request: Request, error: Exception) -> Response:
    """Answer an error of a route; raises it again where nobody foresaw it."""
    known = as_service_error(error)
    if known is None:
        raise error
    return failure_response(request.scope, known)
