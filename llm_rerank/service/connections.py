"""Connections: the head of a request must arrive in time, else the connection is closed. Bodies are ``limits.py``'s."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from llm_rerank.service.context import Context


class TimedProtocol(H11Protocol):
    """uvicorn's protocol, which closes where neither a request is worked on nor a head arrives whole in time.

    uvicorn limits the time between two requests alone: who sends a byte now and then, or nothing at all, would keep a
    connection for ever. Serves what ``create_app`` gives, by its settings, and counts in its metrics.
    """

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        super().connection_lost(exc)
        self._relax()

    def data_received(self, data: bytes) -> None:
        """Take what came; a byte more is no reason to wait longer."""
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        """Begin to wait for a head, or cease to."""
        cycle: Any = self.cycle  # of the newest request whose head is here
        if cycle is not None and not cycle.response_complete:
            self._relax()
        elif self._due is None:
            self._due = self.loop.call_later(self._context.settings.head_time_limit_s, self._give_up)

    def _relax(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self._context.metrics.refused.labels("slow_head").inc()
            self.transport.close()

    @property
    def _context(self) -> Context:
        context: Context = cast(FastAPI, self.config.app).state.context
        return context
