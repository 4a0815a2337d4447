"""Around every request: its id, its time, headers for browsers, and an answer even to an error that nobody foresaw.

Logs hold the request id, the route and the status; never a path, a query or a body, which may name a user.
"""

from __future__ import annotations

import logging
import time
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_rerank.service.failures import ServiceError, describe, failure_response
from llm_rerank.service.metrics import Metrics
from llm_rerank.service.values import path_of_segments

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

logger = logging.getLogger(__name__)


class Observer:
    """The outermost ASGI middleware. HEAD is answered as GET without a body."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, count and log."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["request_id"] = request_id = uuid.uuid4().hex
        scope["path"] = path_of_segments(scope)
        method = scope["method"]
        if method == "HEAD":
            scope["method"] = "GET"
        status = 0
        started = time.perf_counter()

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            elif method == "HEAD" and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self.app(scope, receive, send_on)
        except Exception as error:  # whatever it is: counted, logged, answered
            route = route_name(scope)
            self.metrics.unexpected.labels(route).inc()
            logger.error("request %s to %s failed: %s", request_id, route, describe(error))
            if not status:
                failure = ServiceError(503, "something failed; the log has it under X-Request-ID", retry_after_s=5)
                await failure_response(scope, failure)(scope, receive, send_on)
        finally:
            route, seconds = route_name(scope), time.perf_counter() - started
            self.metrics.requests.labels(_known_method(method), route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            logger.info("request %s: %s %s %d in %.3f s", request_id, _known_method(method), route, status, seconds)


def route_name(scope: Scope) -> str:
    """Give the route's template, which names no user; "unmatched" where there is none."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "unmatched"


def _known_method(method: str) -> str:
    """Keep the number of labels bounded: a client may invent methods."""
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
