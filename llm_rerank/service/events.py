"""What comes in to stay: events, feedback on answers, new items. Written to disk before it is answered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI

from llm_rerank.data.values import plain
from llm_rerank.recommendation.live import MOST_SHOWN, Recorded, UnknownRequest
from llm_rerank.recommendation.live_events import EventError
from llm_rerank.service.answers import RecordedEvents, refusals
from llm_rerank.service.bodies import EventsBody, FeedbackBody, ItemsBody
from llm_rerank.service.context import Context
from llm_rerank.service.failures import JsonResponse, ServiceError
from llm_rerank.service.records import AddedItems
from llm_rerank.types import DataError


def add_routes(app: FastAPI, context: Context) -> None:
    """Add /events, /feedback and /items."""
    settings = context.settings

    @app.post("/events", response_model=RecordedEvents, responses=refusals(), tags=["events"])
    async def record(body: EventsBody) -> JsonResponse:
        """Take one event or many: durable, and in every later answer, when this is answered.

        All or none: where one breaks a rule it is named, and none is taken. An event_id that comes again is counted as
        a duplicate and changes nothing, so that a request without an answer may be sent again.
        """
        events = [event.mapping() for event in body.events]
        try:
            recorded = await context.quick.run(lambda: context.shop.record(events), settings.time_limit_s)
        except DataError as error:
            raise _without_number(error, alone=len(events) == 1) from None
        return _recorded(context, recorded)

    @app.post("/feedback", response_model=RecordedEvents, responses=refusals(), tags=["events"])
    async def feedback(body: FeedbackBody) -> JsonResponse:
        """Take what a user did with an answer: the user, and the rank that was shown, come from the request's id.

        An item that the answer did not hold is refused; of an answer only the first 50 items are remembered, so that in
        a longer one any item is taken, and has no rank where it is not among them.
        """
        events = [event.mapping() for event in body.events]

        def work() -> Recorded:
            answer = context.shop.log.answer(body.request_id)
            if answer is not None:
                _require_shown(context, body.request_id, answer["item_ids"], events)
            try:
                return context.shop.feedback(body.request_id, events)
            except UnknownRequest as error:
                said = str(error).removeprefix("request_id").strip()
                raise ServiceError(
                    404 if answer is None else 422, f"{said}; or post to /events", field="request_id"
                ) from None

        try:
            recorded = await context.quick.run(work, settings.time_limit_s)
        except DataError as error:
            raise _without_number(error, alone=len(events) == 1) from None
        return _recorded(context, recorded)

    @app.post("/items", response_model=AddedItems, responses=refusals(), tags=["events"])
    async def add_items(body: ItemsBody) -> JsonResponse:
        """Add items, or change them: they can be recommended at once, without a fit."""
        items = [item.mapping() for item in body.items]
        report = await context.slow.run(lambda: context.shop.add_items(items), settings.long_time_limit_s)
        context.metrics.items.inc(len(items))
        return JsonResponse(plain(report))


def _require_shown(
    context: Context, request_id: str, shown: Sequence[Any], events: Sequence[Mapping[str, Any]]
) -> None:
    """Raise EventError for the first event on an item that the answer cannot have held.

    shown: items remembered on disk. An answer that can still be cut anew may have shown any of its candidates.
    """
    if len(shown) >= MOST_SHOWN:
        return
    kept = context.kept(request_id)
    held = {str(item) for item in (*shown, *(() if kept is None else kept.answer.scored.item_ids))}
    for number, event in enumerate(events):
        if str(event["item_id"]) not in held:
            raise EventError(
                f"events[{number}].item_id", f"{event['item_id']!r} was not in this answer; post it to /events"
            )


def _recorded(context: Context, recorded: Recorded) -> JsonResponse:
    context.metrics.events.labels("accepted").inc(len(recorded.accepted))
    context.metrics.events.labels("duplicate").inc(len(recorded.duplicates))
    return JsonResponse({"accepted": recorded.accepted, "duplicates": recorded.duplicates})


def _without_number(error: DataError, *, alone: bool) -> DataError | ServiceError:
    """Name the field of an event that came alone without the number of the event."""
    field = getattr(error, "field", "")
    if not (alone and field.startswith("events[0]")):
        return error
    message = str(error).removeprefix(field).strip()
    return ServiceError(422, message, field=re.sub(r"^events\[0\]\.?", "", field) or "events")
