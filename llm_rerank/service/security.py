"""Who is answered: a key compared in constant time, or, without one, this machine alone and no other page's script.

A browser lets any page send requests to this machine. Without a key, the header ``Host`` must therefore name this
machine (a foreign name that was bound to its address does not), and a request that changes something may only come from
a page of the service itself.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llm_rerank.service.failures import ServiceError, failure_response
from llm_rerank.service.settings import ServiceSettings, is_loopback

FREE_PATHS = ("/", "/healthz", "/readyz")
FREE_FOLDER = "/page/"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Guard:
    """ASGI middleware that refuses (401, 403) before a body is read."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                await failure_response(scope, refusal)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ServiceError | None:
        headers = Headers(scope=scope)
        if self.settings.api_key is None:
            return _foreign(scope, headers, self.settings.allowed_hosts)
        path = scope["path"]
        if path in FREE_PATHS or path.startswith(FREE_FOLDER):
            return None
        if _same(_given_key(headers), self.settings.api_key):
            return None
        error = ServiceError(401, "send the API key as X-API-Key, or as Authorization: Bearer KEY")
        error.headers = {"WWW-Authenticate": "Bearer"}
        return error


def _given_key(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _same(given: str, wanted: str) -> bool:
    """Compare in a time that depends on neither."""
    digests = (hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest() for key in (given, wanted))
    return hmac.compare_digest(*digests)


def _foreign(scope: Scope, headers: Headers, allowed: Iterable[str]) -> ServiceError | None:
    client = scope.get("client")
    if client is not None and not is_loopback(client[0]):
        return ServiceError(403, "without an API key only this machine is answered")
    host = headers.get("host", "")
    name = _name(host)
    if not is_loopback(name) and name not in {_name(other) for other in allowed}:
        return ServiceError(403, "the header Host does not name this machine; set an API key to serve other names")
    if scope["method"] in SAFE_METHODS:
        return None
    origin = headers.get("origin")
    same_site = origin is None and headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    if not same_site and _authority(origin or "") != _authority(f"{scope.get('scheme', 'http')}://{host}"):
        return ServiceError(403, "a page of another origin may not ask; set an API key and send it")
    return None


def _name(host: str) -> str:
    """Host name of a header ``Host``, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _authority(origin: str) -> tuple[str, int] | None:
    """Name and port of an origin; None where it is none, as "null" is."""
    try:
        parts = urlsplit(origin)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        return None
    return (parts.hostname.lower(), port) if parts.hostname else None
