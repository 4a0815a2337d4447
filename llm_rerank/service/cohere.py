"""Cohere's rerank, so that what speaks to Cohere can speak to us: a query that is a history, documents, relevance.

The query is what the user did, one item a line, oldest first. Where the model has a fine-tuned cross-encoder it reads
history and documents; else the sentence encoder does, and the score is the recency-weighted cosine. Reading takes the
time, so texts are read a few a step, rankings run in between, and the time limit grows with the documents.
"""

from __future__ import annotations

import copy
import logging
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, Request

from llm_rerank.data.values import plain
from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder
from llm_rerank.models.semantic.encoder import SentenceEncoder
from llm_rerank.models.semantic.weights import DEFAULT_MODEL
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.service.answers import CohereAnswer, CohereFailure, refusals
from llm_rerank.service.bodies import CohereBody
from llm_rerank.service.context import Context
from llm_rerank.service.failures import COHERE_PATHS, JsonResponse, ServiceError, describe
from llm_rerank.steps import Steps
from llm_rerank.types import DataError, FloatArray

LONGEST_HISTORY = 50
"""Newest lines of a query that are read."""

DECAY = 0.2
"""What a line counts less for each line after it, as exp(-decay × age)."""

TEXTS_A_STEP = 2
"""More at once read no sooner on a CPU, and let rankings wait longer."""

MOST_TEXTS_KEPT = 5_000
"""Texts whose reading is remembered between requests; before a request that would pass it, all is forgotten."""

Relevance = npt.NDArray[np.float64]

logger = logging.getLogger(__name__)


class TextRelevance:
    """Scores documents for a history of texts, on the scoring thread alone; built anew for another fit.

    Its cross-encoder is a copy that shares the weights: what it remembers of texts is bounded and its own.
    """

    def __init__(self, reranker: Reranker) -> None:
        scorers = [component.scorer for component in reranker.components]
        self._cross_encoder: HistoryCrossEncoder | None = None
        self._encoder: Any = None  # a SentenceEncoder, perhaps with a memory around it
        self._n_texts = 0
        for scorer in scorers:
            if isinstance(scorer, HistoryCrossEncoder):
                self._cross_encoder = copy.copy(scorer)
                self._forget_texts()
                self._encoder = self._cross_encoder.encoder
                _ = self._cross_encoder.reader  # loaded now, not while rankings wait
                return
        self._encoder = next((e for s in scorers if (e := getattr(s, "encoder", None)) is not None), None)
        if self._encoder is None:
            self._encoder = SentenceEncoder(
                reranker.config.encoder or DEFAULT_MODEL, device=reranker.config.device, dtype=reranker.config.dtype
            )

    def scores(self, history: list[str], documents: list[str], most_tokens: int) -> Steps[Relevance]:
        """Relevance of each document: float64, shape (n_documents,), in [0, 1], rising with the model's score.

        most_tokens: of a document, what follows is not read; never more than the model reads anyway. A step reads a few
        lines of the history, or documents, of about one length.
        """
        relevance: Relevance = np.empty(len(documents))
        if self._cross_encoder is not None:
            history = history[-self._cross_encoder.history_length :]
            if self._n_texts + len(history) + len(documents) > MOST_TEXTS_KEPT:
                self._forget_texts()
            self._n_texts += len(history) + len(documents)
        user = yield from self._read_history(history)
        by_length = np.argsort([-len(document) for document in documents], kind="stable")
        for start in range(0, len(documents), TEXTS_A_STEP):
            places = by_length[start : start + TEXTS_A_STEP]
            texts = self._encoder.first_tokens([documents[place] for place in places], most_tokens)
            if self._cross_encoder is not None:
                relevance[places] = relevance_of_logits(self._cross_encoder.predict([history], [texts])[0])
            else:
                relevance[places] = (1 + recency_cosine(user, self._encoder.encode(texts))) / 2
            yield
        return relevance

    def _read_history(self, history: list[str]) -> Steps[FloatArray]:
        """Vectors of the history's lines, float32, shape (n_lines, size); a cross-encoder remembers its own reading."""
        vectors = []
        for start in range(0, len(history), TEXTS_A_STEP):
            lines = history[start : start + TEXTS_A_STEP]
            if self._cross_encoder is not None:
                self._cross_encoder.predict([[]], [lines])
            else:
                vectors.append(self._encoder.encode(lines))
            yield
        return np.concatenate(vectors) if vectors else np.empty((0, 0), dtype=np.float32)

    def _forget_texts(self) -> None:
        assert self._cross_encoder is not None
        self._cross_encoder.network = self._cross_encoder.network  # the setter drops what was read with the old one
        self._n_texts = 0


def recency_cosine(history: FloatArray, documents: FloatArray) -> Relevance:
    """Cosine of each document and the recency-weighted mean of the history: float64, shape (n_documents,), in [-1, 1].

    history: vectors of unit length or zero, oldest first, shape (n_texts, size). documents: (n_documents, size).
    0 where a side says nothing.
    """
    weights = np.exp(-DECAY * np.arange(len(history) - 1, -1, -1, dtype=np.float64))
    user = weights @ history
    norms = np.linalg.norm(documents, axis=1) * np.linalg.norm(user)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.where(norms > 1e-9, documents @ user / norms, 0.0)
    return np.clip(cosines, -1.0, 1.0)


def relevance_of_logits(scores: FloatArray) -> Relevance:
    """Bring scores into [0, 1] by the logistic function, in float64 so that near scores stay apart."""
    relevance: Relevance = 1 / (1 + np.exp(-np.clip(scores.astype(np.float64), -500, 500)))
    return relevance


def document_text(document: str | dict[str, Any]) -> str:
    """Give a document as text; an object as lines of key: value in their order, what is empty left out."""
    if isinstance(document, str):
        return document
    if set(document) == {"text"}:
        return str(document["text"] or "")
    return "\n".join(f"{name}: {value}" for name, value in document.items() if value not in (None, ""))


def first_version_text(document: str | dict[str, Any], rank_fields: list[str] | None) -> str:
    """Give what Cohere's first version reads: of an object the fields named, in this order, else its text.

    An object without a text, which Cohere refuses, is read as ``document_text`` does.
    """
    if isinstance(document, str):
        return document
    names = rank_fields or (["text"] if document.get("text") not in (None, "") else list(document))
    return document_text({name: document[name] for name in names if name in document})


def history_of(query: str) -> list[str]:
    """Give the lines of a query that say something, oldest first, the newest 50."""
    return [line.strip() for line in query.splitlines() if line.strip()][-LONGEST_HISTORY:]


def add_routes(app: FastAPI, context: Context) -> None:
    """Add /v2/rerank, and the same as /v1/rerank and /rerank."""
    built: list[tuple[Any, TextRelevance]] = []  # of the fit in use
    building = threading.Lock()

    def relevance() -> TextRelevance:
        """Load what reads texts; may take seconds, in which rankings go on, for it is not done on their thread."""
        reranker = context.snapshot().reranker
        stage = reranker.saved.fitted.stage
        with building:
            if not built or built[0][0] is not stage:
                built[:] = [(stage, TextRelevance(reranker))]
            return built[0][1]

    async def rerank(body: CohereBody, request: Request) -> JsonResponse:
        """Rerank documents for a history of texts, as Cohere's endpoint of this name does.

        query: the user's history, one item a line, oldest first. Where scoring fails, the documents come back in the
        order given with a relevance of 0, and meta.warnings says so. /v1/rerank reads of an object its rank_fields,
        else its text, and gives it back whole; the others read all its fields.
        """
        settings = context.settings
        most = settings.most_candidates
        if len(body.documents) > most:
            raise ServiceError(422, f"has {len(body.documents):,} entries; at most {most:,}", field="documents")
        is_first = request.url.path.startswith("/v1/")
        history = history_of(body.query)
        if not history:
            raise ServiceError(422, "has no words", field="query")
        documents = [
            first_version_text(document, body.rank_fields) if is_first else document_text(document)
            for document in body.documents
        ]
        if is_first and body.rank_fields and not any(documents):
            raise ServiceError(422, "no document has words in these fields", field="rank_fields")
        warnings: list[str] = []
        try:
            reader = await context.slow.run(relevance, settings.long_time_limit_s)
            steps = reader.scores(history, documents, body.max_tokens_per_doc)
            limit_s = settings.long_time_limit_s + len(documents) * settings.document_time_limit_s
            scores = await context.queue.run_steps(steps, limit_s)
        except (ServiceError, DataError):
            raise
        except Exception as error:
            context.metrics.unexpected.labels("cohere").inc()
            context.metrics.count_answer((), "order_given")
            logger.error("request %s: texts cannot be scored: %s", request.scope["request_id"], describe(error))
            scores = np.zeros(len(documents))
            warnings.append("scoring failed; the documents are in the order given")
        return JsonResponse(_content(request.scope["request_id"], is_first, body, documents, scores, warnings))

    for path in COHERE_PATHS:
        app.post(
            path,
            response_model=CohereAnswer,
            responses=refusals(model=CohereFailure),
            tags=["cohere"],
            operation_id=f"cohere{path.replace('/', '_')}",
        )(rerank)


def _content(
    request_id: str, is_first: bool, body: CohereBody, documents: list[str], scores: Relevance, warnings: list[str]
) -> dict[str, Any]:
    """Lay out a ``CohereAnswer``; the first version gives objects back as they were sent, and with a text."""
    order = np.argsort(-scores, kind="stable")[: body.top_n].tolist()
    results = [{"index": place, "relevance_score": plain(scores[place])} for place in order]
    if body.return_documents:
        for result in results:
            text, sent = documents[result["index"]], body.documents[result["index"]]
            whole = sent if is_first and isinstance(sent, dict) else {}
            result["document"] = {**whole, "text": whole.get("text") or text}
    meta: dict[str, Any] = {"api_version": {"version": "1" if is_first else "2"}, "billed_units": {"search_units": 0}}
    return {"id": request_id, "results": results, "meta": {**meta, "warnings": warnings} if warnings else meta}
