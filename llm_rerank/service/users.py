"""Users over HTTP: who is known, what they did, all that is held of one, and forgetting one.

Ids in a path are texts: "7" finds the number 7 where there is no text "7".
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Path, Query

from llm_rerank.data.id_index import code_of, codes_by_id, spellings
from llm_rerank.data.values import plain
from llm_rerank.recommendation.live_events import LONGEST_ID
from llm_rerank.recommendation.privacy import ForgetReport
from llm_rerank.service.answers import History, UserList, refusals
from llm_rerank.service.context import Context
from llm_rerank.service.failures import JsonResponse, ServiceError
from llm_rerank.service.records import Forgotten, HeldOfUser
from llm_rerank.service.values import with_slashes
from llm_rerank.types import UNKNOWN, DataError, Interactions

UserPath = Annotated[str, Path(min_length=1, max_length=LONGEST_ID, description="Id of a user.")]
Limit = Annotated[int, Query(ge=1, le=1_000)]


def add_routes(app: FastAPI, context: Context) -> None:
    """Add /users, /users/{user_id} and /users/{user_id}/history."""
    settings = context.settings

    @app.get("/users", response_model=UserList, responses=refusals(), tags=["users"])
    async def users(limit: Limit = 20) -> JsonResponse:
        """Name known users, who did something last first."""

        def work() -> list[Any]:
            events = context.snapshot().reranker.saved.events
            return [plain(events.user_ids[code]) for code in latest_users(events, limit)]

        return JsonResponse({"users": await context.quick.run(work, settings.time_limit_s)})

    @app.get("/users/{user_id}/history", response_model=History, responses=refusals(), tags=["users"])
    async def history(user_id: UserPath, limit: Limit = 50) -> JsonResponse:
        """Give what a user did, newest first."""

        def work() -> list[dict[str, Any]] | None:
            snapshot = context.snapshot()
            events = snapshot.reranker.saved.events
            code = code_of(with_slashes(user_id), codes_by_id(events.user_ids))
            if code == UNKNOWN:
                return None
            return history_rows(events, code, limit, snapshot.catalogue.items.ids, snapshot.catalogue.titles)

        return JsonResponse({"events": _found(await context.quick.run(work, settings.time_limit_s))})

    @app.get("/users/{user_id}", response_model=HeldOfUser, responses=refusals(), tags=["users"])
    async def export(user_id: UserPath) -> JsonResponse:
        """Give all that is held of a user: events, attributes, the log's entries, lists that were shown."""
        try:
            held = await context.slow.run(
                lambda: context.shop.export(with_slashes(user_id)), settings.long_time_limit_s
            )
        except DataError:  # its words name the user
            held = None
        return JsonResponse(plain(_found(held)))

    @app.delete("/users/{user_id}", response_model=Forgotten, responses=refusals(), tags=["users"])
    async def forget(user_id: UserPath) -> JsonResponse:
        """Erase a user from memory, log and model folder; the answer says what still carries influence until a refit.

        It also says what was not reached: a cache folder of the fit that the service was not told of, a file that
        could not be removed.
        A user of whom nothing is held is no error: afterwards nothing is held.
        """
        ids = spellings(with_slashes(user_id))  # answers to users nobody knows may be kept under either

        def work() -> ForgetReport:
            report = context.shop.forget(ids, cache_folder=settings.cache_folder)
            context.snapshot()  # in the place of the last one, which knew the user; and no answer of theirs stays
            return report

        report = await context.slow.run(work, settings.long_time_limit_s)
        context.metrics.forgotten.inc(len(report.forgotten))
        return JsonResponse({**plain(report), "text": str(report)})


def latest_users(events: Interactions, limit: int) -> list[int]:
    """Codes of the users with the newest events, newest first, each once."""
    found: dict[int, None] = {}
    for end in range(len(events), 0, -10_000):  # from the end: a long past is not looked at
        found |= dict.fromkeys(events.users[max(0, end - 10_000) : end][::-1].tolist())
        if len(found) >= limit:
            break
    return list(found)[:limit]


def history_rows(events: Interactions, user: int, limit: int, item_ids: Any, titles: list[str]) -> list[dict[str, Any]]:
    """Lay out a user's newest events as ``HistoryEvent``."""
    rows = np.flatnonzero(events.users == user)[::-1][:limit].tolist()
    return [
        {
            "item_id": plain(item_ids[events.items[row]]) if events.items[row] >= 0 else None,
            "title": titles[events.items[row]] if events.items[row] >= 0 else "",
            "event_weight": plain(events.weights[row]),
            "timestamp": plain(events.times[row]),
            "query": events.queries[row],
            "rating": plain(events.ratings[row]),
        }
        for row in rows
    ]


def _found(held: Any) -> Any:
    if held is None:
        raise ServiceError(404, "nothing is held of this user", field="user_id")
    return held
