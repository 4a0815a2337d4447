"""How much may come in: requests in progress, and bytes and seconds of a body, counted while it arrives."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_rerank.service.failures import ServiceError, failure_response
from llm_rerank.service.metrics import Metrics
from llm_rerank.service.settings import ServiceSettings

PREVIEW_PATH = "/preview"
DISCARDED = 16
"""Bodies of up to this many times the limit are read to their end, and not kept, so that their sender is told why."""

FREE_OF_COUNT = ("/healthz", "/readyz", "/metrics")


class Limits:
    """ASGI middleware that reads the whole body, up to its limit, before a route sees anything of it."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings, metrics: Metrics) -> None:
        self.app = app
        self.settings = settings
        self.metrics = metrics
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on with the body, or refuse (408, 413, 415, 503)."""
        if scope["type"] != "http" or scope["path"] in FREE_OF_COUNT:
            await self.app(scope, receive, send)
            return
        if self._in_progress >= self.settings.most_requests:
            self.metrics.refused.labels("requests").inc()
            busy = ServiceError(503, "too many requests are in progress; come again", code="busy", retry_after_s=1)
            await failure_response(scope, busy)(scope, receive, send)
            return
        self._in_progress += 1
        self.metrics.in_progress.set(self._in_progress)
        try:
            async with asyncio.timeout(self.settings.body_time_limit_s):
                body = await self._body(scope, receive)
        except TimeoutError:
            late = ServiceError(408, f"the body did not arrive within {self.settings.body_time_limit_s:g} s")
            await _refuse(scope, receive, send, late)
        except ServiceError as error:
            await _refuse(scope, receive, send, error)
        else:
            if body is not None:
                await self.app(scope, _replayed(body, receive), send)
        finally:
            self._in_progress -= 1
            self.metrics.in_progress.set(self._in_progress)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Read the body; None where the client went away. Raises ServiceError (413, 415)."""
        headers = Headers(scope=scope)
        most = self.settings.preview_bytes if scope["path"] == PREVIEW_PATH else self.settings.body_bytes
        too_large = ServiceError(413, f"the body has more than {most:,} bytes")
        length = headers.get("content-length", "")
        announced = int(length) if length.isascii() and length.isdigit() and len(length) < 18 else 0
        if announced > DISCARDED * most or len(length) >= 18:
            raise too_large
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ServiceError(415, "the body is compressed; send it as it is", field="Content-Encoding")
        parts: list[bytes] = []
        n_bytes = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            part = message.get("body", b"")
            n_bytes += len(part)  # whatever Content-Length said, or where there is none
            if n_bytes > DISCARDED * most:
                raise too_large
            if max(n_bytes, announced) <= most:
                parts.append(part)
            else:  # not kept; who still sends would not see an answer that came in between
                parts.clear()
            if not message.get("more_body", False):
                if n_bytes > most:
                    raise too_large
                return b"".join(parts)


async def _refuse(scope: Scope, receive: Receive, send: Send, error: ServiceError) -> None:
    """Refuse, and close the connection: the rest of the body is not worth reading."""
    error.headers = {**(error.headers or {}), "Connection": "close"}
    await failure_response(scope, error)(scope, receive, send)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Give the body as one message, and then what comes."""
    given: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return given.pop() if given else await receive()

    return replay
