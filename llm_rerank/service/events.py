"""What comes in to stay: events, feedback on answers, new items. Written to disk before it is answered."""

from __future__ import annotations

import re

from fastapi import FastAPI

from llm_rerank.data.values import plain
from llm_rerank.recommendation.live import Recorded, UnknownRequest
from llm_rerank.service.answers import RecordedEvents, refusals
from llm_rerank.service.bodies import EventsBody, FeedbackBody, ItemsBody
from llm_rerank.service.context import Context
from llm_rerank.service.failures import JsonResponse, ServiceError
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
            recorded = await context.workers.run(lambda: context.shop.record(events), settings.time_limit_s)
        except DataError as error:
            raise _without_number(error, alone=len(events) == 1) from None
        return _recorded(context, recorded)

    @app.post("/feedback", response_model=RecordedEvents, responses=refusals(), tags=["events"])
    async def feedback(body: FeedbackBody) -> JsonResponse:
        """Take what a user did with an answer: the user, and the rank that was shown, come from the request's id."""
        events = [event.mapping() for event in body.events]
        try:
            recorded = await context.workers.run(
                lambda: context.shop.feedback(body.request_id, events), settings.time_limit_s
            )
        except UnknownRequest:
            raise ServiceError(
                404, "the request is unknown, or older than 7 days; post to /events", field="request_id"
            ) from None
        except DataError as error:
            raise _without_number(error, alone=len(events) == 1) from None
        return _recorded(context, recorded)

    @app.post("/items", response_model=dict[str, object], responses=refusals(), tags=["events"])
    async def add_items(body: ItemsBody) -> JsonResponse:
        """Add items, or change them: they can be recommended at once, without a fit."""
        items = [item.mapping() for item in body.items]
        report = await context.workers.run(lambda: context.shop.add_items(items), settings.long_time_limit_s)
        context.metrics.items.inc(len(items))
        return JsonResponse(plain(report))


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
