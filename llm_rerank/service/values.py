"""What a request says, read strictly: its JSON, and the names in its path."""

from __future__ import annotations

import json
import math
from typing import Any
from urllib.parse import unquote

from starlette.types import Scope

from llm_rerank.service.failures import ServiceError

SLASH = "\ufdd0"
"""Stands for a slash inside a name; Unicode gives this place to no character."""


def path_of_segments(scope: Scope) -> str:
    """Give the path of a request with a stand-in for each slash that is part of a name (%2F), not between two."""
    raw: bytes = scope.get("raw_path") or b""
    if b"%2f" not in raw.lower():
        path: str = scope["path"]
        return path
    segments = raw.partition(b"?")[0].decode("ascii", "replace").split("/")
    return "/".join(unquote(segment).replace("/", SLASH) for segment in segments)


def with_slashes(name: str) -> str:
    """Give a name of a path with its own slashes again."""
    return name.replace(SLASH, "/")


def parse_json(body: bytes) -> Any:
    """Read a request's JSON; NaN, infinities and numbers beyond float64 are refused, as the standard has it.

    Raises ServiceError (400).
    """
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_number, parse_float=_finite)
    except json.JSONDecodeError as error:
        said = f"the body is no JSON: {error.msg} at character {error.pos}"
    except UnicodeDecodeError:
        said = "the body is no JSON: it is not UTF-8"
    except RecursionError:
        said = "the body is nested too deeply"
    except ValueError as error:  # ours, and Python's own for whole numbers of thousands of digits
        said = str(error) if isinstance(error, _BadNumber) else "the body holds a number that is too long"
    raise ServiceError(400, said, code="malformed_json")


class _BadNumber(ValueError):
    pass


def _no_number(name: str) -> float:
    raise _BadNumber(f"the body holds {name}, which is not JSON; send null where a number is unknown")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _BadNumber("the body holds a number beyond 1.8e308")
    return value
