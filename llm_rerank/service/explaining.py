"""Why an item has its score for a user, over HTTP; with the user's fresh events, which are not kept.

A component that fails is left out of every score, as in a list: the parts are those of the blend without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from fastapi import FastAPI

from llm_rerank.config import DiversityConfig
from llm_rerank.data.id_index import code_of, codes_by_id
from llm_rerank.data.values import plain
from llm_rerank.recommendation.deciding import Decided, score_batch, settle, stage_for
from llm_rerank.recommendation.explanation import Contribution, Explanation, HistoryEffect, Versus, explain_in_steps
from llm_rerank.recommendation.failures import Failures
from llm_rerank.recommendation.fallbacks import can_rank
from llm_rerank.recommendation.questions import Question, cases_of_questions, prepare
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.service.answers import ExplainedScore, refusals
from llm_rerank.service.bodies import ExplainBody
from llm_rerank.service.context import Context
from llm_rerank.service.failures import JsonResponse, ServiceError
from llm_rerank.service.ranking import in_the_body
from llm_rerank.steps import Steps
from llm_rerank.types import UNKNOWN, Cases, DataError, FloatArray, Ragged

NEWCOMER = "a newcomer"


@dataclass(frozen=True)
class Explained:
    """An explanation, and the components that failed and are missing from it."""

    explanation: Explanation
    degraded: tuple[str, ...] = ()


def add_routes(app: FastAPI, context: Context) -> None:
    """Add /explain."""

    @app.post("/explain", response_model=ExplainedScore, responses=refusals(), tags=["lists"])
    async def explain(body: ExplainBody) -> JsonResponse:
        """Give the parts that add up to the score, and what each item of the history did to it, by leaving it out.

        `degraded` names components that failed: the parts are those of the score without them.
        """

        def work() -> Steps[dict[str, Any]]:
            snapshot = context.snapshot()
            try:
                found = yield from explained(
                    snapshot.reranker, _question(body), body.item_id, body.versus, body.upstream_scores
                )
            except DataError as error:
                raise in_the_body(error) from None
            degraded = [*snapshot.degraded, *found.degraded]
            context.metrics.count_answer(degraded, "")
            return {**explanation_content(found.explanation, body.user_id), "degraded": degraded}

        return JsonResponse(await context.queue.run_steps(work(), context.settings.long_time_limit_s))


def _question(body: ExplainBody) -> Question:
    return Question(user_id=body.user_id, events=[event.mapping() for event in body.events], at=body.as_of)


def explained(
    reranker: Reranker,
    question: Question,
    item_id: Any,
    versus: Any = None,
    upstream_scores: Sequence[float | None] | None = None,
) -> Steps[Explained]:
    """Explain an item for a question's user, in steps; as ``Reranker.explain`` where the question has no events.

    upstream_scores: of the item, and of the other one, in a list that has such scores, None unknown.
    Raises QuestionError or EventError for a bad question, ServiceError for an item that is not in the catalogue (422)
    and where every component that carries weight fails (503).
    """
    saved = reranker.saved
    prepared = prepare(question, saved)
    codes = codes_by_id(saved.fitted.items.ids)
    asked = {"item_id": item_id} if versus is None else {"item_id": item_id, "versus": versus}
    found = {name: code_of(value, codes) for name, value in asked.items()}
    for name, code in found.items():
        if code == UNKNOWN:
            raise ServiceError(422, "is not in the catalogue; ask for another item, or add it", field=name)
    if len(set(found.values())) < len(found):
        raise ServiceError(422, "is the item itself; name another to compare with", field="versus")
    if upstream_scores is not None and len(upstream_scores) != len(found):
        raise ServiceError(422, f"has {len(upstream_scores)} for {len(found)} items", field="upstream_scores")
    upstream = None if upstream_scores is None else np.array(upstream_scores, dtype=np.float32)  # None is NaN
    stage = stage_for(saved.fitted, upstream is not None)
    cases, seen = cases_of_questions([prepared], saved)
    cases = cases.with_candidates(Ragged.from_lists([np.array([found["item_id"]], dtype=np.int64)]))
    user = NEWCOMER if question.user_id is None else question.user_id
    failed: tuple[str, ...] = ()
    while True:
        decider = _Decider(reranker, failed)
        explanation = yield from explain_in_steps(
            user, saved.fitted, cases, seen, decider, other=found.get("versus"), upstream=upstream
        )
        if not decider.noticed:
            return Explained(explanation, failed)
        # again, without them in any of the scores that are compared
        failed = (*failed, *decider.noticed)
        if not can_rank(stage, failed):
            raise ServiceError(503, "every component that carries weight failed; come again", retry_after_s=5)


class _Decider:
    """Scores and decides cases without some components. noticed: names of others that failed."""

    def __init__(self, reranker: Reranker, without: tuple[str, ...]) -> None:
        saved = reranker.saved
        kept = tuple(component for component in saved.fitted.components if component.name not in without)
        self.fitted = replace(saved.fitted, components=kept)
        self.config = replace(reranker.config, diversity=DiversityConfig())  # of a lone item there is none
        self.statistics = saved.item_statistics
        self.noticed: dict[str, None] = {}

    def __call__(self, cases: Cases, seen: Ragged, upstream: FloatArray | None = None) -> Decided:
        failures = Failures(len(cases))
        batch = score_batch(
            self.fitted, self.config, cases, seen, self.statistics, upstream=upstream, failures=failures
        )
        self.noticed |= dict.fromkeys(failures.failed)
        return settle(batch, self.fitted, self.config)


def explanation_content(explanation: Explanation, user_id: Any) -> dict[str, Any]:
    """Lay out an explanation as ``ExplainedScore``."""
    return {
        "user_id": user_id,
        "item_id": plain(explanation.item_id),
        "title": explanation.title,
        "score": plain(explanation.score),
        "probability": plain(explanation.probability),
        "groups": plain(explanation.by_group()),
        "contributions": [_part(part) for part in explanation.contributions if part.value],
        "history": [_effect(effect) for effect in explanation.history],
        "versus": None if explanation.versus is None else _versus(explanation.versus),
        "text": str(explanation),
    }


def _versus(versus: Versus) -> dict[str, Any]:
    return {
        "item_id": plain(versus.other_id),
        "title": versus.other_title,
        "score": plain(versus.other_score),
        "difference": plain(versus.difference),
        "groups": plain(versus.by_group()),
        "contributions": [_part(part) for part in versus.contributions if part.value],
        "history": [_effect(effect) for effect in versus.history],
        "sentence": versus.sentence(),
    }


def _part(part: Contribution) -> dict[str, Any]:
    return {"name": part.name, "group": part.group, "value": plain(part.value)}


def _effect(effect: HistoryEffect) -> dict[str, Any]:
    return {"item_id": plain(effect.item_id), "title": effect.title, "effect": plain(effect.effect)}
