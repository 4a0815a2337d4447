"""A chat server as something that is asked for an order: retries, memory, a budget, and what it cost.

It sends what it is given; that nothing personal is in it is the business of ``chat.py``. Any server that speaks
OpenAI's chat completions will do, through the openai package (extra ``llm``), which is imported at the first request.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from llm_rerank.models.language_model.answers import read_order
from llm_rerank.storage import read_json, write_json
from llm_rerank.types import BudgetError, DataError, IntArray, RerankError, ServerError, StorageError

MEMORY_VERSION = 1
"""Raised whenever answers would be read otherwise: what a folder remembers is then not found again."""

MOST_WAIT_S = 60.0
"""Between two attempts, whatever the server asks for."""

_AGAIN = (408, 409, 429)


class Unanswered(RerankError):
    """One request got no order in all its attempts; ``reason`` is short, for counting."""

    def __init__(self, reason: str, said: str = "") -> None:
        super().__init__(f"{reason}: {said}" if said else reason)
        self.reason = reason


class Stopped(RerankError):
    """Another thread met an error that concerns all requests."""


@dataclass(frozen=True)
class Usage:
    """What was asked of a server so far; tokens as the server counted them, 0 where it does not say."""

    n_requests: int = 0
    n_failed: int = 0
    n_remembered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def sentence(self) -> str:
        """Say it in one sentence."""
        return (
            f"{self.n_requests:,} requests ({self.n_failed:,} of them without a usable answer), {self.n_remembered:,} "
            f"answers from memory, {self.prompt_tokens:,} prompt and {self.completion_tokens:,} completion tokens"
        )


@dataclass(frozen=True)
class ServerSettings:
    """How a server is asked; all of it goes with a saved model.

    base_url: None: what the openai package takes. temperature, seed: None: not sent, for models that refuse them.
    timeout_s: of one attempt. retries: attempts after the first. backoff_s: before the second attempt, doubled for
    each further one; a server's Retry-After counts more. max_requests: attempts in all; None: any number.
    """

    model: str
    base_url: str | None = None
    temperature: float | None = 0.0
    seed: int | None = 0
    timeout_s: float = 60.0
    retries: int = 3
    backoff_s: float = 1.0
    max_requests: int | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise DataError("model is ''; give the name under which the server has it")
        for name in ("retries", "backoff_s", "max_requests"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise DataError(f"{name} is {value}; it must be 0 or more")
        if not self.timeout_s > 0:
            raise DataError(f"timeout_s is {self.timeout_s}; it must be above 0")
        parts = urlsplit(self.base_url or "")
        if "@" in parts.netloc or parts.query:  # it is saved, and stands in messages
            raise DataError("base_url holds a login or a query; give the address alone, and the key as api_key")


class ChatServer:
    """Asks for orders; threads may share it. api_key: None takes OPENAI_API_KEY; it is never written anywhere.

    cache_folder: where answers are kept for later runs, as bare numbers under a hash of what was asked; None: nowhere.
    """

    def __init__(
        self, settings: ServerSettings, *, api_key: str | None = None, cache_folder: str | Path | None = None
    ) -> None:
        self.settings = settings
        self.usage = Usage()
        self._api_key = api_key
        self._cache_folder = None if cache_folder is None else Path(cache_folder)
        self._client: Any = None
        self._has_answered = False
        self._orders: dict[str, Future[IntArray]] = {}
        self._lock = threading.Lock()

    def order(self, prompt: str, n: int, stop: threading.Event) -> IntArray:
        """Places of n candidates, best first: int64, shape (n,). The same prompt is never asked twice.

        stop: set from outside to end waiting.
        Raises Unanswered where all attempts failed, ServerError where all requests would, BudgetError, Stopped.
        """
        key = self._key(prompt)
        with self._lock:
            future = self._orders.get(key)
            is_mine = future is None
            if future is None:
                future = self._orders[key] = Future()
            else:
                self._count(n_remembered=1)
        if not is_mine:
            return future.result()
        try:
            order = self._read(key, n)
            if order is None:
                order = self._ask(prompt, n, stop)
                self._write(key, order)
            else:
                with self._lock:
                    self._count(n_remembered=1)
        except BaseException as error:
            with self._lock:
                del self._orders[key]  # a later call may ask again
            future.set_exception(error)
            raise
        future.set_result(order)
        return order

    def remembered(self, prompt: str, n: int) -> IntArray | None:
        """Return the order if it is known without a request."""
        key = self._key(prompt)
        future = self._orders.get(key)
        return future.result() if future is not None else self._read(key, n)

    def check_budget(self, n_needed: int) -> None:
        """Raise BudgetError where so many requests more are over the budget."""
        limit = self.settings.max_requests
        if limit is not None and self.usage.n_requests + n_needed > limit:
            raise BudgetError(
                f"{n_needed:,} more requests are needed and {self.usage.n_requests:,} were sent, max_requests is "
                f"{limit:,}; raise it to {self.usage.n_requests + n_needed:,} or more (a retry counts too), or ask "
                "about fewer users or candidates. None of these was sent"
            )

    def connect(self) -> None:
        """Make the client, so that a missing package or key shows before anything is sent."""
        with self._lock:
            if self._client is not None:
                return
            try:
                import openai
            except ImportError as error:
                raise DataError(f"{error.name} is not installed; run: pip install 'llm-rerank[llm]'") from None
            key = self._api_key or os.environ.get("OPENAI_API_KEY")
            if not key and self.settings.base_url is None:
                raise DataError("there is no API key; set OPENAI_API_KEY, or give api_key, or base_url of a server")
            # a server of one's own needs none, but the client does. Retries are counted here, so not there.
            self._client = openai.OpenAI(
                api_key=key or "none",
                base_url=self.settings.base_url,
                timeout=self.settings.timeout_s,
                max_retries=0,
            )

    def _ask(self, prompt: str, n: int, stop: threading.Event) -> IntArray:
        """Try until there is an order; every attempt counts."""
        self.connect()
        failure, wait_s = Unanswered("not asked"), 0.0
        for attempt in range(self.settings.retries + 1):
            if stop.wait(wait_s):
                raise Stopped
            self._take_one()
            try:
                order = read_order(self._answer(prompt, attempt), n)
                if order is not None:
                    return order
                failure, asked_s = Unanswered("no order in the answer"), 0.0
            except _Retry as error:
                failure, asked_s = error.failure, error.wait_s
            except Unanswered:
                with self._lock:
                    self._count(n_failed=1)
                raise
            with self._lock:
                self._count(n_failed=1)
            wait_s = min(max(self.settings.backoff_s * 2**attempt, asked_s), MOST_WAIT_S)
        if failure.reason == "no connection" and not self._has_answered:
            raise ServerError(f"{self._where()} cannot be reached; start it, or correct base_url") from failure
        raise failure

    def _answer(self, prompt: str, attempt: int) -> str:
        """Send one request and return what the model said, "" for nothing."""
        import openai

        sent: dict[str, Any] = {"model": self.settings.model, "messages": [{"role": "user", "content": prompt}]}
        if self.settings.temperature is not None:
            sent["temperature"] = self.settings.temperature
        if self.settings.seed is not None:
            sent["seed"] = self.settings.seed + attempt  # the same seed would only say the same again
        try:
            completion = self._client.chat.completions.create(**sent)
        except openai.APITimeoutError:
            raise _Retry(Unanswered("timeout")) from None
        except openai.APIConnectionError:
            raise _Retry(Unanswered("no connection")) from None
        except openai.APIStatusError as error:
            raise self._failure(error, sent) from None
        except (openai.OpenAIError, ValueError):
            raise _Retry(Unanswered("no order in the answer")) from None
        self._has_answered = True
        usage = getattr(completion, "usage", None)
        with self._lock:
            self._count(
                prompt_tokens=getattr(usage, "prompt_tokens", None) or 0,
                completion_tokens=getattr(usage, "completion_tokens", None) or 0,
            )
        choices = getattr(completion, "choices", None) or [None]  # some proxies answer a page of HTML with 200
        content = getattr(getattr(choices[0], "message", None), "content", None)
        return content if isinstance(content, str) else ""

    def _failure(self, error: Any, sent: dict[str, Any]) -> RerankError:
        """Tell what concerns one request from what concerns all, and what may pass from what will not."""
        status, where = error.status_code, self._where()
        if status in (401, 403):
            # without the server's words: some repeat the key
            return ServerError(f"{where} refuses the API key ({status}); set OPENAI_API_KEY or give api_key")
        if status == 404:
            return ServerError(
                f"{where} has no model {self.settings.model!r}, or no chat at this address (404); correct model or "
                "base_url, which usually ends in /v1"
            )
        if error.code == "insufficient_quota":
            return ServerError(f"{where} says that the account has no credit left (429); add some")
        if status in (400, 422) and error.param in ("model", "temperature", "seed") and error.param in sent:
            remedy = "name another" if error.param == "model" else f"give {error.param}=None, so that it is not sent"
            return ServerError(f"{where} refuses {error.param} {sent[error.param]!r} ({status}); {remedy}")
        if status in _AGAIN or status >= 500:
            self._has_answered = True
            return _Retry(Unanswered(f"status {status}"), _seconds(error.response.headers.get("retry-after")))
        said = str(error.message)[:200].replace(str(self._client.api_key), "…")
        return Unanswered(f"status {status}", said)

    def _take_one(self) -> None:
        with self._lock:
            if self.settings.max_requests is not None and self.usage.n_requests >= self.settings.max_requests:
                raise BudgetError(
                    f"{self.usage.n_requests:,} requests were sent, retries among them, and max_requests is "
                    f"{self.settings.max_requests:,}; raise it: what was answered is remembered and not asked again"
                )
            self._count(n_requests=1)

    def _count(self, **added: int) -> None:
        """Add to the usage; under the lock."""
        self.usage = Usage(**{name: value + added.get(name, 0) for name, value in vars(self.usage).items()})

    def _where(self) -> str:
        return f"the server at {self._client.base_url}"

    def _key(self, prompt: str) -> str:
        asked = self.settings
        what = [MEMORY_VERSION, asked.base_url, asked.model, asked.temperature, asked.seed, prompt]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def _path(self, key: str) -> Path | None:
        return None if self._cache_folder is None else self._cache_folder / key[:2] / f"{key}.json"

    def _read(self, key: str, n: int) -> IntArray | None:
        path = self._path(key)
        if path is None:
            return None
        try:
            order = read_json(path)["order"]
            return np.array(order, dtype=np.int64) if sorted(order) == list(range(n)) else None
        except (StorageError, OSError, KeyError, TypeError):
            return None  # missing, or damaged: it is asked again

    def _write(self, key: str, order: IntArray) -> None:
        path = self._path(key)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"order": order.tolist()})
        except OSError as error:  # a full disk must not cost the answers that were paid for
            self._cache_folder = None
            said = f"{path.parent.parent} cannot be written ({error.strerror}); no more answers are kept there"
            warnings.warn(said, stacklevel=2)


class _Retry(RerankError):
    """An attempt failed in a way that may pass."""

    def __init__(self, failure: Unanswered, wait_s: float = 0.0) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.wait_s = wait_s


def _seconds(header: str | None) -> float:
    """Read a Retry-After in seconds; 0 where there is none, or where it is a date."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0
