"""One event as a mapping, as it comes from outside: every field checked and named, before anything is stored."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from llm_rerank.data.events import GREATEST_WEIGHT, event_kind
from llm_rerank.data.id_index import known_id
from llm_rerank.data.times import seconds_of_date
from llm_rerank.data.values import GREATEST_ID
from llm_rerank.types import DataError, TimeKind

FIELDS = ("event_id", "user_id", "item_id", "timestamp", "event", "rating", "quantity", "weight", "review", "query")
FUTURE_ALLOWED_S = 300
"""Clocks differ: an event may be this far ahead of ours."""

FUTURE_ALLOWED_POSITIONS = 100_000
"""Where times are positions, an event may be this far beyond the newest known: every later answer comes after it."""

EARLIEST_S = 365 * 86_400
"""The start of 1971: what lies before it is a number that was never a time."""

LONGEST_TEXT = 10_000
LONGEST_ID = 512

LONGEST_SAID = 60
"""Characters of a value that an error repeats."""

MOST_SAID = 30
"""Kinds of event that an error names."""


class EventError(DataError):
    """A field of one event breaks a rule. field: its path, such as ``events[3].item_id``."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field} {rule}")
        self.field = field


def checked_events(
    events: Sequence[Mapping[str, Any]],
    *,
    item_of: Mapping[Any, int],
    user_of: Mapping[Any, int],
    kinds: Collection[str],
    now: float,
    time_kind: TimeKind,
    next_position: int,
) -> list[dict[str, Any]]:
    """Check events and make them complete: ids as the shop has them, whole seconds, an event id.

    item_of, user_of: code of each known id. kinds: of event that may come, as ``Saved.kinds``. now: seconds since 1970,
    the time of events that say none. next_position: the same for shops whose times are positions.
    Raises EventError, naming the event and the field; nothing is changed.
    """
    return [
        _checked(event, f"events[{number}]", item_of, user_of, kinds, now, time_kind, next_position)
        for number, event in enumerate(events)
    ]


def _checked(
    event: Mapping[str, Any],
    place: str,
    item_of: Mapping[Any, int],
    user_of: Mapping[Any, int],
    kinds: Collection[str],
    now: float,
    time_kind: TimeKind,
    next_position: int,
) -> dict[str, Any]:
    if not isinstance(event, Mapping):
        raise EventError(place, f"is {type(event).__name__}; give a mapping of fields such as user_id and item_id")
    unknown = [name for name in event if name not in FIELDS]
    if unknown:
        raise EventError(f"{place}.{unknown[0]}", f"is unknown; an event has {', '.join(FIELDS)}")
    given = {name: value for name, value in event.items() if value is not None}
    checked: dict[str, Any] = {
        "event_id": _text(given.get("event_id", uuid.uuid4().hex), f"{place}.event_id", LONGEST_ID),
        "user_id": known_id(_id(given.get("user_id"), f"{place}.user_id"), user_of),
    }
    if not checked["event_id"]:
        raise EventError(f"{place}.event_id", "is empty; give a distinct text, or leave it out")
    checked |= {
        name: _text(given[name], f"{place}.{name}", LONGEST_TEXT) for name in ("review", "query") if name in given
    }
    if "item_id" in given:
        checked["item_id"] = known_id(_id(given["item_id"], f"{place}.item_id"), item_of)
        if checked["item_id"] not in item_of:
            raise EventError(f"{place}.item_id", f"{given['item_id']!r} is absent from items; add the item first")
    elif not checked.get("query", "").strip():
        raise EventError(f"{place}.item_id", "is missing, and there is no query; give one of them")
    checked["timestamp"] = _time(given.get("timestamp"), f"{place}.timestamp", now, time_kind, next_position)
    return checked | _strength(given, place, kinds)


def _strength(given: Mapping[str, Any], place: str, kinds: Collection[str]) -> dict[str, Any]:
    """Check what says how strong the evidence is: kind, rating, quantity, weight."""
    checked: dict[str, Any] = {}
    if "event" in given:
        kind = event_kind(_text(given["event"], f"{place}.event", LONGEST_ID))
        if kind not in kinds:
            raise EventError(
                f"{place}.event",
                f"is {given['event'][:LONGEST_SAID]!r}; it must be one of {_listed(kinds)}; a kind of the shop's own "
                "is taken once the tables of a fit or of an update had it",
            )
        checked["event"] = kind
    for name in ("rating", "quantity", "weight"):
        if name in given:
            checked[name] = _number(given[name], f"{place}.{name}")
    if abs(checked.get("weight", 0.0)) > GREATEST_WEIGHT:
        rule = f"give at most {GREATEST_WEIGHT:,.0f} in size: a purchase counts 1"
        raise EventError(f"{place}.weight", f"is {given['weight']!r}; {rule}")
    if checked.get("quantity", 1.0) <= 0:
        raise EventError(f"{place}.quantity", f"is {given['quantity']}; it must be above 0: returns are not events")
    return checked


def _listed(kinds: Collection[str]) -> str:
    said = [kind[:LONGEST_SAID] for kind in kinds]
    more = f" and {len(said) - MOST_SAID:,} more" if len(said) > MOST_SAID else ""
    return ", ".join(said[:MOST_SAID]) + more


def _id(value: Any, field: str) -> Any:
    if value is None:
        raise EventError(field, "is missing; give a text or a whole number")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise EventError(field, f"is of type {type(value).__name__}; give a text or a whole number")
    if isinstance(value, int):
        if abs(value) > GREATEST_ID:
            raise EventError(field, "is a number beyond 2^63; give a text, or a smaller number")
        return value
    if not value.strip() or len(value) > LONGEST_ID:
        raise EventError(field, f"has {len(value)} characters, or blanks only; give 1 to {LONGEST_ID}")
    return _text(value, field, LONGEST_ID)


def _text(value: Any, field: str, longest: int) -> str:
    if not isinstance(value, str):
        raise EventError(field, f"is of type {type(value).__name__}; give a text")
    if len(value) > longest:
        raise EventError(field, f"has {len(value):,} characters; give at most {longest:,}")
    return value


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise EventError(field, f"is {value!r}; give a number below 1e9 in size")
    return float(value)


def _time(value: Any, field: str, now: float, time_kind: TimeKind, next_position: int) -> int:
    """Whole seconds since 1970, or a position."""
    if time_kind == "position":
        if value is None:
            return next_position
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
            raise EventError(field, f"is {value!r}; this shop's times are positions: give a whole number, or leave it")
        if value >= next_position + FUTURE_ALLOWED_POSITIONS:
            raise EventError(
                field,
                f"is {value}, more than {FUTURE_ALLOWED_POSITIONS:,} beyond the newest, {next_position - 1}; give the "
                "next position, or leave it",
            )
        return value
    if value is None:
        return int(now)
    if isinstance(value, str):
        seconds = _seconds_of_text(value, field)
    elif isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise EventError(field, f"is {value!r}; give seconds since 1970 or a date as text")
    else:
        seconds = float(value)
    if seconds > now + FUTURE_ALLOWED_S:
        unit = "; it looks like milliseconds: give seconds" if seconds > 100 * now else ""
        raise EventError(field, f"is {value!r}, more than {FUTURE_ALLOWED_S} s in the future{unit}")
    if seconds < EARLIEST_S:
        raise EventError(field, f"is {value!r}, before 1971; give seconds since 1970 or a date as text")
    return int(seconds)


def _seconds_of_text(value: str, field: str) -> float:
    try:
        return seconds_of_date(value)
    except (ValueError, OverflowError):
        raise EventError(field, "is no date; give one such as 2026-01-31T12:00:00Z, or seconds") from None
