"""Single requests at the door: each question checked, its ids found, its user's history gathered. No frames: speed.

What a question means is said by the slow way, ``Reranker.rerank`` and ``recommend`` with ``histories``: the events
known of the user and the fresh ones after them, as one history.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llm_rerank.data.cases import build_cases, seen_items
from llm_rerank.data.events import implied_kinds, judge_events
from llm_rerank.data.id_index import code_of, codes_by_id
from llm_rerank.data.times import EARLIEST, FIRST_YEAR, LATEST, seconds_of_date
from llm_rerank.data.values import clean_text, object_array
from llm_rerank.recommendation.histories import last_time
from llm_rerank.recommendation.live_events import checked_events
from llm_rerank.recommendation.state import Saved, target_kinds
from llm_rerank.recommendation.upstream import is_number
from llm_rerank.types import (
    EVENT_ARRAYS,
    UNKNOWN,
    Cases,
    DataError,
    FloatArray,
    IntArray,
    Interactions,
    Ragged,
)


class QuestionError(DataError):
    """A field of a question breaks a rule. field: its path, such as ``item_ids[3]``."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field} {rule}")
        self.field = field


@dataclass(frozen=True)
class Question:
    """One request: the best order of some candidates for a user, or the best items of the catalogue.

    user_id: None, or an id that nothing is known of: a newcomer. item_ids: candidates; None: they are retrieved.
    upstream_scores: one a candidate, None where unknown; None: none at all. events: fresh events of the user, mappings
    with the fields of ``live_events.FIELDS``; they count in this answer and are not stored; one without a timestamp
    happened just before the decision. at: moment of the decision, seconds since 1970, a date as text, or a position;
    None: just after the last event known that is not ahead of the clock. k: items to return; None: all. exclude_seen:
    retrieve nothing that the user has had. diversity: 0 to 1; None: the config's. least_probability: what ``kept`` is
    cut at; None: the model's cut.
    """

    user_id: Any
    item_ids: Sequence[Any] | None = None
    upstream_scores: Sequence[float | None] | None = None
    events: Sequence[Mapping[str, Any]] = ()
    at: int | float | str | None = None
    k: int | None = None
    exclude_seen: bool = True
    diversity: float | None = None
    least_probability: float | None = None


@dataclass(frozen=True)
class Prepared:
    """A question that was checked.

    user: code, -1 unknown. codes: int64, shape (n_candidates,), -1 unknown; None: to retrieve. upstream: float32, shape
    (n_candidates,), NaN unknown; None: no score at all. events: complete, in the order given. at: time of the decision.
    """

    question: Question
    user: int
    codes: IntArray | None
    upstream: FloatArray | None
    events: list[dict[str, Any]]
    at: int


def prepare(question: Question, saved: Saved) -> Prepared:
    """Check a question by what is known. Raises QuestionError or EventError, naming the field."""
    check_settings(question.k, question.diversity, question.least_probability)
    known = saved.events
    user_codes, item_codes = codes_by_id(known.user_ids), codes_by_id(saved.fitted.items.ids)
    user = UNKNOWN if question.user_id is None else _code(question.user_id, user_codes, "user_id")
    codes, upstream = None, None
    if question.item_ids is not None:
        codes, upstream = _candidates(question.item_ids, question.upstream_scores, item_codes)
    elif question.upstream_scores is not None:
        raise QuestionError("upstream_scores", "are given without item_ids; give the candidates that they belong to")
    at = None if question.at is None else _moment(question.at, known)
    last = last_time(known, statistics=saved.statistics)
    events = _fresh_events(question, saved, at, last, item_codes) if len(question.events) else []
    if at is None:
        at = max([last, *(event["timestamp"] for event in events)]) + 1
    return Prepared(question, user, codes, upstream, events, at)


def check_settings(k: int | None, diversity: float | None, least_probability: float | None) -> None:
    """Check what may also be asked of an answer that is there. Raises QuestionError."""
    if k is not None and (isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1):
        raise QuestionError("k", f"is {k!r}; it must be a whole number of at least 1, or None for every candidate")
    for name, value in (("diversity", diversity), ("least_probability", least_probability)):
        if value is not None and not (is_number(value) and 0 <= value <= 1):
            raise QuestionError(name, f"is {value!r}; it must be a number from 0 to 1, or None for the model's own")


def cases_of_questions(prepared: Sequence[Prepared], saved: Saved) -> tuple[Cases, Ragged]:
    """Build one case a question, with its candidates where they are given, and the items its user has had before.

    One pass over ``known.users`` finds the events: about 1 ms a million events, and nothing to keep up to date when
    one is added.
    """
    known = saved.events
    users = np.array([one.user for one in prepared], dtype=np.int64)
    wanted = np.unique(users[users >= 0])
    rows = np.flatnonzero(known.users == wanted[0] if len(wanted) == 1 else np.isin(known.users, wanted))
    rows = rows[np.argsort(known.users[rows], kind="stable")]
    starts, ends = (np.searchsorted(known.users[rows], users, side=side) for side in ("left", "right"))
    taken = [rows[start:end] for start, end in zip(starts, ends, strict=True)]  # two questions may be of one user
    own = known.take(np.concatenate([rows[:0], *taken]))
    each = np.arange(len(prepared), dtype=np.int64)
    user_rows = np.full(len(prepared), UNKNOWN, dtype=np.int64)
    user_rows[users >= 0] = known.user_rows[users[users >= 0]]
    own = replace(own, users=np.repeat(each, ends - starts))
    events = _joined(own, prepared, saved)
    events = replace(events, user_ids=np.empty(len(prepared), dtype=object), user_rows=user_rows)
    times = np.array([one.at for one in prepared], dtype=np.int64)
    given = [one.codes if one.codes is not None else rows[:0] for one in prepared]
    cases = build_cases(events, each, times, candidates=Ragged.from_lists(given))
    return cases, seen_items(events, each, times)


def _code(value: Any, codes: Mapping[Any, int], field: str) -> int:
    if isinstance(value, bool):
        raise QuestionError(field, f"is {value}; an id is a text or a number")
    try:
        return code_of(value, codes)
    except TypeError:
        raise QuestionError(field, f"is of type {type(value).__name__}; an id is a text or a number") from None


def _candidates(
    item_ids: Sequence[Any], upstream_scores: Sequence[float | None] | None, item_codes: Mapping[Any, int]
) -> tuple[IntArray, FloatArray | None]:
    if isinstance(item_ids, str | bytes) or not isinstance(item_ids, Sequence | np.ndarray):
        raise QuestionError("item_ids", f"is of type {type(item_ids).__name__}; give a list of ids")
    for place, item_id in enumerate(item_ids):
        if item_id is None or item_id != item_id:
            raise QuestionError(f"item_ids[{place}]", "is missing; give an id, or leave the candidate out")
    codes = [_code(item_id, item_codes, f"item_ids[{place}]") for place, item_id in enumerate(item_ids)]
    if upstream_scores is None:
        return np.array(codes, dtype=np.int64), None
    if len(upstream_scores) != len(codes):
        raise QuestionError(
            "upstream_scores", f"has {len(upstream_scores)} values for {len(codes)} candidates; give one a candidate"
        )
    for place, score in enumerate(upstream_scores):
        if score is not None and not is_number(score):
            raise QuestionError(
                f"upstream_scores[{place}]", f"is {score!r}; give a number, or None where it is unknown"
            )
    with np.errstate(over="ignore"):  # beyond float32 it is infinite, and unknown
        upstream = np.array([np.nan if score is None else score for score in upstream_scores]).astype(np.float32)
    upstream[np.isinf(upstream)] = np.nan
    return np.array(codes, dtype=np.int64), None if np.isnan(upstream).all() else upstream


def _moment(at: Any, known: Interactions) -> int:
    """Whole seconds since 1970, or a position."""
    if isinstance(at, str):
        try:
            seconds = seconds_of_date(at)
        except ValueError:
            raise QuestionError("at", "is no date; give one such as 2026-01-31T12:00:00Z, or seconds") from None
        if known.time_kind == "position":
            raise QuestionError("at", "is a date, and this shop's times are positions; give a whole number")
        at = seconds
    if not is_number(at) or not math.isfinite(at):
        raise QuestionError("at", f"is {at!r}; give seconds since 1970 or a date as text")
    if known.time_kind == "time" and -FIRST_YEAR < at < FIRST_YEAR:  # 20240531, which is no time but a date
        raise QuestionError("at", f"is {at!r}, which is too small for a time of a shop; give a date as text")
    if known.time_kind == "time" and not EARLIEST <= at <= LATEST:
        raise QuestionError("at", f"is {at!r}, which is not between 1900 and 2200; give seconds since 1970")
    if abs(at) >= 2**62:
        raise QuestionError("at", f"is {at!r}; give a smaller position")
    return int(at)


def _fresh_events(
    question: Question, saved: Saved, at: int | None, last: int, item_codes: Mapping[Any, int]
) -> list[dict[str, Any]]:
    """Check the events of a question and make them complete; each gets the code of its item."""
    for number, event in enumerate(question.events):
        owner = event.get("user_id") if isinstance(event, Mapping) else None
        if owner is not None and str(owner) != str(question.user_id):
            raise QuestionError(f"events[{number}].user_id", "is another than the question's; leave it out")
    owned = [{**event, "user_id": "-"} if isinstance(event, Mapping) else event for event in question.events]
    moment = last + 1 if at is None else max(at - 1, 0)
    events = checked_events(
        owned,
        item_of=item_codes,
        user_of={},
        kinds=saved.kinds,
        now=max(time.time(), moment),
        time_kind=saved.events.time_kind,
        next_position=moment,
    )
    timed = [given.get("timestamp") is not None for given in owned]
    if at is None:
        said = [event["timestamp"] for event, has_time in zip(events, timed, strict=True) if has_time]
        moment = max([last, *said]) + 1
    for event, has_time in zip(events, timed, strict=True):
        event["code"] = code_of(event["item_id"], item_codes) if "item_id" in event else UNKNOWN
        event["timestamp"] = event["timestamp"] if has_time else moment
    return events


def _joined(own: Interactions, prepared: Sequence[Prepared], saved: Saved) -> Interactions:
    """Put each question's fresh events behind the known ones; users are numbers of questions."""
    rows = [(number, event) for number, one in enumerate(prepared) for event in one.events]
    if not rows:
        return own
    events = [event for _, event in rows]
    has_item = np.array(["item_id" in event for event in events], dtype=np.bool_)
    ratings, quantities, weights = (
        np.array([event.get(name, np.nan) for event in events], dtype=np.float32)
        for name in ("rating", "quantity", "weight")
    )
    implied = implied_kinds(has_item, ratings).tolist()
    names = [event.get("event") or kind for event, kind in zip(events, implied, strict=True)]
    values = judge_events(
        names,
        np.arange(len(events), dtype=np.int64),
        has_item=has_item,
        ratings=ratings,
        weights_given=weights,
        quantities=quantities,
        targets=target_kinds(saved.target_events, set(names)),
        min_rating=saved.config.min_rating,
    )
    added: dict[str, Any] = {
        "users": np.array([number for number, _ in rows], dtype=np.int64),
        "items": np.array([event["code"] for event in events], dtype=np.int64),
        "times": np.array([event["timestamp"] for event in events], dtype=np.int64),
        "weights": values.weights,
        "positive": values.positive,
        "ratings": values.ratings,
        "quantities": values.quantities,
        "reviews": np.full(len(rows), "", dtype=object),
        "queries": object_array([clean_text(event.get("query", "")) for event in events]),
    }
    joined: dict[str, Any] = {name: np.concatenate([getattr(own, name), added[name]]) for name in EVENT_ARRAYS}
    return replace(own, **joined)
