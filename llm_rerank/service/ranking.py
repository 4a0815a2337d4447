"""Lists over HTTP: rerank, recommend, and an earlier answer cut anew. Scored in batches on one thread."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request

from llm_rerank.data.id_index import codes_by_id, known_id
from llm_rerank.data.values import plain
from llm_rerank.recommendation.answering import Answer, Question, answer_each, recut
from llm_rerank.recommendation.answers import drifted_as
from llm_rerank.recommendation.fallbacks import UPSTREAM_ORDER
from llm_rerank.service.answers import RankedList, refusals
from llm_rerank.service.bodies import Decision, RecommendBody, RecutBody, RerankBody
from llm_rerank.service.catalogue import Catalogue
from llm_rerank.service.context import Context, Snapshot
from llm_rerank.service.failures import JsonResponse, ServiceError, describe, to_json
from llm_rerank.types import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A question with the request's id. remember: keep the answer on disk, for feedback."""

    question: Question
    request_id: str
    remember: bool = True


def add_routes(app: FastAPI, context: Context) -> None:
    """Add /recommend/rerank, /recommend and /recommend/recut."""

    @app.post("/recommend/rerank", response_model=RankedList, responses=refusals(), tags=["lists"])
    async def rerank(body: RerankBody, request: Request) -> JsonResponse:
        """Put another recommender's candidates in order, with probabilities and what is kept.

        Where every component fails, the order given comes back, and `fallback` says so.
        """
        most = context.settings.most_candidates
        if len(body.candidates) > most:
            raise ServiceError(422, f"has {len(body.candidates):,} entries; at most {most:,}", field="candidates")
        scores = [candidate.upstream_score for candidate in body.candidates]
        question = _question(
            body,
            item_ids=[candidate.item_id for candidate in body.candidates],
            upstream_scores=None if all(score is None for score in scores) else scores,
            k=body.k,
        )
        return await _asked(context, question, request, body)

    @app.post("/recommend", response_model=RankedList, responses=refusals(), tags=["lists"])
    async def recommend(body: RecommendBody, request: Request) -> JsonResponse:
        """Find items for a user, best first."""
        question = _question(body, item_ids=None, k=body.k, exclude_seen=body.exclude_seen)
        return await _asked(context, question, request, body)

    @app.post("/recommend/recut", response_model=RankedList, responses=refusals(), tags=["lists"])
    async def cut_anew(body: RecutBody) -> JsonResponse:
        """Cut or spread an earlier answer anew, without scoring. The request id stays, and feedback with it.

        Where another model has come in since, the list has to be asked for again (410).
        """
        content = await context.queue.run(lambda: _recut(context, body), context.settings.time_limit_s)
        return JsonResponse(content)


async def _asked(context: Context, question: Question, request: Request, body: Decision) -> JsonResponse:
    asked = Asked(question, request.scope["request_id"], body.remember)
    return JsonResponse(await context.queue.ask(asked, context.settings.time_limit_s))


def _question(body: Decision, **further: Any) -> Question:
    return Question(
        user_id=body.user_id,
        events=[event.mapping() for event in body.events],
        at=body.as_of,
        diversity=body.diversity,
        least_probability=body.least_probability,
        **further,
    )


def answer_batch(context: Context, batch: Sequence[Asked]) -> list[bytes | Exception]:
    """Answer questions together, on the scoring thread: JSON for each, or what is wrong with it.

    A question of candidates whose answer fails for a reason that nobody foresaw gets the order given.
    """
    snapshot: Snapshot | None = None
    answers: Sequence[Answer | Exception]
    try:
        snapshot = context.snapshot()
        answers = answer_each(snapshot.reranker, [asked.question for asked in batch])
    except Exception as error:
        if snapshot is not None and len(batch) > 1:
            raise  # the queue asks each alone, and so the others are answered
        answers = [error] * len(batch)
    return [_said(context, snapshot, asked, answer) for asked, answer in zip(batch, answers, strict=True)]


def _said(context: Context, snapshot: Snapshot | None, asked: Asked, answer: Answer | Exception) -> bytes | Exception:
    try:
        if isinstance(answer, Exception):
            raise answer
        assert snapshot is not None
        answer = context.watched(answer)
        content = list_content(answer, snapshot, asked.request_id, asked.question.user_id)
        context.metrics.count_answer(content["degraded"], content["fallback"])
        remember(context, snapshot, asked, answer, content)
        return to_json(content)
    except DataError as error:
        return in_the_body(error)
    except Exception as error:
        return _given_order(context, snapshot, asked, error)


def in_the_body(error: DataError) -> DataError | ServiceError:
    """Name a question's field as the body of the request has it."""
    field = getattr(error, "field", "")
    renamed = re.sub(r"^at$", "as_of", field)
    renamed = re.sub(r"^item_ids(\[\d+\])$", r"candidates\1.item_id", renamed)
    renamed = re.sub(r"^upstream_scores(\[\d+\])$", r"candidates\1.upstream_score", renamed)
    if renamed == field:
        return error
    return ServiceError(422, str(error).removeprefix(field).strip(), field=renamed)


def _given_order(context: Context, snapshot: Snapshot | None, asked: Asked, error: Exception) -> bytes | Exception:
    """Answer with the order given; without one, with the error."""
    context.metrics.unexpected.labels("scoring").inc()
    logger.error("request %s: scoring failed: %s", asked.request_id, describe(error))
    if asked.question.item_ids is None:
        return ServiceError(503, "no list can be made now; come again", retry_after_s=5)
    snapshot = snapshot or context.last_snapshot()
    context.metrics.count_answer((), UPSTREAM_ORDER)
    return to_json(_order_content(context, snapshot, asked))


def _order_content(context: Context, snapshot: Snapshot | None, asked: Asked) -> dict[str, Any]:
    question = asked.question
    ids = list(question.item_ids or ())
    scores = list(question.upstream_scores or [None] * len(ids))
    order = sorted(range(len(ids)), key=lambda place: (scores[place] is None, -(scores[place] or 0.0)))  # stable
    items = [
        {
            "item_id": ids[place],
            "title": "" if snapshot is None else snapshot.catalogue.title(ids[place]),
            "rank": rank,
            "score": None,
            "probability": None,
            "kept": True,
            "upstream_score": scores[place],
            "before_rank": rank,
            "components": {},
        }
        for rank, place in enumerate(order[: question.k], start=1)
    ]
    return {
        "request_id": asked.request_id,
        "model_version": "" if snapshot is None else snapshot.version,
        "user_id": question.user_id,
        "as_of": question.at if isinstance(question.at, int) else None,
        "known_user": False,
        "items": items,
        "unknown_items": [],
        "before": "upstream",
        "cut": {},
        "degraded": [],
        "fallback": UPSTREAM_ORDER,
    }


def remember(context: Context, snapshot: Snapshot, asked: Asked, answer: Answer, content: dict[str, Any]) -> None:
    """Keep the answer for cutting anew, and for feedback; where that fails, the list still goes out."""
    # as the shop has it, so that what is kept under it is found when the user is to be forgotten
    user_id = asked.question.user_id
    user_id = None if user_id is None else known_id(user_id, codes_by_id(snapshot.reranker.saved.events.user_ids))
    context.keep(asked.request_id, answer, snapshot, user_id)
    if not asked.remember:
        return
    items = content["items"]
    facts = {name: [item[name] for item in items] for name in ("score", "probability", "kept")}
    if items and "propensity" in items[0]:
        facts["propensity"] = [item["propensity"] for item in items]
    try:
        shown = [item["item_id"] for item in items]
        context.shop.remember_answer(asked.request_id, user_id, shown, facts, position=snapshot.position)
    except Exception as error:
        context.metrics.unexpected.labels("feedback").inc()
        logger.error("request %s: its answer cannot be kept for feedback: %s", asked.request_id, describe(error))


def _recut(context: Context, body: RecutBody) -> bytes:
    snapshot = context.snapshot()
    kept = context.kept(body.request_id)
    if kept is None:
        raise ServiceError(404, "the request is unknown or too old; ask anew", field="request_id")
    if kept.origin != snapshot.reranker.saved.origin:
        message = f"the list was made by model {kept.version}, which another has replaced since; ask for the list anew"
        raise ServiceError(410, message, code="model_replaced", field="request_id")
    answer = recut(
        snapshot.reranker,
        kept.answer,
        least_probability=body.least_probability,
        diversity=body.diversity,
        k=body.k,
    )
    content = list_content(drifted_as(answer, kept.answer), snapshot, body.request_id, kept.user_id)
    return to_json({**content, "model_version": kept.version})


def list_content(answer: Answer, snapshot: Snapshot, request_id: str, user_id: Any) -> dict[str, Any]:
    """Lay out an answer as ``RankedList``."""
    return {
        "request_id": request_id,
        "model_version": snapshot.version,
        "user_id": user_id,
        "as_of": plain(answer.at),
        "known_user": bool(answer.known_user),
        "items": item_rows(answer, snapshot.catalogue),
        "unknown_items": plain(answer.unknown_items),
        "before": answer.before,
        "cut": plain(answer.facts),
        "degraded": [*snapshot.degraded, *answer.degraded],
        "fallback": answer.fallback,
    }


def item_rows(answer: Answer, catalogue: Catalogue) -> list[dict[str, Any]]:
    """Lay out an answer's items, best first, as ``RankedItem``."""
    n = len(answer.item_ids)
    nothing = [None] * n
    ids = plain(list(answer.item_ids))
    groups = {group: plain(values) for group, values in answer.components.items()}
    columns = [
        ids,
        [catalogue.titles[code] if code >= 0 else "" for code in answer.codes.tolist()],
        plain(answer.ranks),
        plain(answer.scores),
        plain(answer.probabilities),
        plain(answer.kept),
        nothing if answer.upstream_scores is None else plain(answer.upstream_scores),
        plain(answer.before_ranks),
    ]
    names = ("item_id", "title", "rank", "score", "probability", "kept", "upstream_score", "before_rank")
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    propensities = None if answer.propensities is None else plain(answer.propensities)
    for place, row in enumerate(rows):
        row["components"] = {group: values[place] for group, values in groups.items()}
        if propensities is not None:
            row["propensity"] = propensities[place]
    return rows
