"""The catalogue's search over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query

from llm_rerank.data.values import plain
from llm_rerank.service.answers import CatalogueItems, refusals
from llm_rerank.service.bodies import LONGEST_WORDS
from llm_rerank.service.context import Context
from llm_rerank.service.failures import JsonResponse


def add_routes(app: FastAPI, context: Context) -> None:
    """Add /catalogue."""

    @app.get("/catalogue", response_model=CatalogueItems, responses=refusals(), tags=["catalogue"])
    async def search(
        q: Annotated[str, Query(max_length=LONGEST_WORDS)] = "", limit: Annotated[int, Query(ge=1, le=1_000)] = 20
    ) -> JsonResponse:
        """Search titles and brands: items with most of the words first; a word may be cut short."""

        def work() -> list[dict[str, Any]]:
            catalogue = context.snapshot().catalogue
            return [plain(catalogue.entry(code)) for code in catalogue.search(q, limit)]

        return JsonResponse({"items": await context.quick.run(work, context.settings.time_limit_s)})
