"""For those who run it: alive, ready, counts."""

from __future__ import annotations

from fastapi import FastAPI, Response

from llm_rerank.service.answers import Health, refusals
from llm_rerank.service.context import Context
from llm_rerank.service.failures import JsonResponse, ServiceError
from llm_rerank.service.metrics import CONTENT_TYPE


def add_routes(app: FastAPI, context: Context) -> None:
    """Add /healthz, /readyz and /metrics."""

    @app.get("/healthz", response_model=Health, responses=refusals(), tags=["operations"])
    async def health() -> JsonResponse:
        """Tell that the process answers."""
        return JsonResponse({"status": "ok"})

    @app.get("/readyz", response_model=Health, responses=refusals(), tags=["operations"])
    async def ready() -> JsonResponse:
        """Tell whether rankings can be answered: a model is loaded and its thread works and is not stuck."""
        if not context.queue.is_working() or context.queue.stuck_for_s() > context.settings.long_time_limit_s:
            raise ServiceError(503, "the scoring thread does not come back", retry_after_s=5)
        return JsonResponse({"status": "ready", "model_version": context.shop.version})

    @app.get(
        "/metrics",
        response_class=Response,
        responses={**refusals(), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        tags=["operations"],
    )
    async def metrics() -> Response:
        """Give all counts in Prometheus' text format."""
        return Response(context.metrics.text(), media_type=CONTENT_TYPE)
