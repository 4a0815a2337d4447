"""The OpenAPI document, with what the routes cannot say of themselves: keys, and limits that are settings."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from llm_rerank.service.settings import ServiceSettings

KEYS: dict[str, dict[str, str]] = {
    "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "Bearer": {"type": "http", "scheme": "bearer", "description": "The same key."},
}
FREE = ("/healthz", "/readyz")


class DescribedApp(FastAPI):
    """A FastAPI whose document knows the settings, ``state.context.settings``."""

    def openapi(self) -> dict[str, Any]:
        """Give the document; made once."""
        if self.openapi_schema is None:
            complete(super().openapi(), self.state.context.settings)
        document: dict[str, Any] = self.openapi_schema or {}
        return document


def complete(document: dict[str, Any], settings: ServiceSettings) -> None:
    """Write into a document which key is asked for, if any, and how many candidates or documents a request may have."""
    parts = document["components"]
    parts["securitySchemes"] = KEYS
    asked: list[dict[str, list[str]]] = [{name: []} for name in KEYS]
    document["security"] = asked if settings.api_key is not None else [{}, *asked]  # {}: none is needed
    for path in FREE:
        document["paths"][path]["get"]["security"] = []
    for body, field in (("RerankBody", "candidates"), ("CohereBody", "documents")):
        parts["schemas"][body]["properties"][field]["maxItems"] = settings.most_candidates
