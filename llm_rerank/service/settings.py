"""The settings of the service: who may ask, how much at once, and how long it may take."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field
from pathlib import Path

from llm_rerank.types import DataError

SHORTEST_KEY = 16

MOST_CANDIDATES = 10_000
"""What ``most_candidates`` may be at most."""


@dataclass(frozen=True)
class ServiceSettings:
    """Limits of the service. Every field has a default for a small machine.

    api_key: what requests must carry; None: nobody is asked, and only this machine is answered.
    allowed_hosts: further names under which the service may be asked without a key, as in the header ``Host``.
    body_bytes, preview_bytes: greatest body of a request, and of an uploaded table.
    most_candidates: greatest number of candidates, or of documents, of one request.
    time_limit_s: seconds after which a ranking that is not ready is refused (503). long_time_limit_s: the same for
    explanations, previews, erasures, new items, and reranks of documents; there each document adds
    document_time_limit_s. head_time_limit_s, body_time_limit_s: seconds within which the head of a request must have
    arrived, and its body.
    queue_length: rankings that may wait for the scoring thread, long jobs that may, and what may for the threads beside
    it. batch_size: most rankings that are answered at once.
    most_requests: requests in progress at once, beyond which all others are refused (503).
    most_answers, answer_lifetime_s: answers that can be cut anew, and for how long.
    reload_every_s: seconds between looks at the model folder. compact_every_s: seconds between foldings of the event
    log into the model folder, where there is something to fold.
    cache_folder: of the fits; it is emptied where a user who is forgotten left words. None: nobody knows of one.
    """

    api_key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    body_bytes: int = 2**20
    preview_bytes: int = 5 * 2**20
    most_candidates: int = 1_000
    time_limit_s: float = 2.0
    long_time_limit_s: float = 30.0
    document_time_limit_s: float = 0.2
    head_time_limit_s: float = 10.0
    body_time_limit_s: float = 10.0
    queue_length: int = 64
    batch_size: int = 16
    most_requests: int = 256
    most_answers: int = 500
    answer_lifetime_s: float = 900.0
    reload_every_s: float = 1.0
    compact_every_s: float = 3_600.0
    cache_folder: Path | None = None

    def __post_init__(self) -> None:
        for name, default in ((n, f.default) for n, f in self.__dataclass_fields__.items()):
            value = getattr(self, name)
            if isinstance(default, int) and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise DataError(f"{name} is {value!r}; it must be a whole number of at least 1")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if isinstance(default, float) and not (number and math.isfinite(value) and value > 0):
                raise DataError(f"{name} is {value!r}; it must be a number of seconds above 0")
        if self.most_candidates > MOST_CANDIDATES:
            raise DataError(f"most_candidates is {self.most_candidates:,}; it must be at most {MOST_CANDIDATES:,}")
        if self.api_key is not None:
            check_key(self.api_key)
        if self.cache_folder is not None and not self.cache_folder.is_dir():
            raise DataError(f"cache folder {self.cache_folder} is no folder; give the one of the fits, or none")


def check_key(key: str) -> None:
    """Raise DataError, which does not repeat the key, where a key is too short or cannot stand in a header."""
    if len(key) < SHORTEST_KEY or not (key.isascii() and key.isprintable()) or " " in key:
        raise DataError(
            f"the API key has {len(key)} characters; give at least {SHORTEST_KEY} of ASCII without blanks, for example "
            "the output of: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )


def is_loopback(host: str) -> bool:
    """Tell whether a name or address can only be reached from this machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_bind(host: str, settings: ServiceSettings) -> None:
    """Raise DataError where the service would be reachable from other machines without a key."""
    if settings.api_key is None and not is_loopback(host):
        raise DataError(
            f"host is {host!r}, which other machines can reach, and there is no API key; give one (--api-key-file, or "
            "LLM_RERANK_API_KEY in the environment), or bind 127.0.0.1"
        )
