"""What the service counts, for Prometheus: in a registry of its own, without a label that names a user or an item."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters, gauges and histograms of one service."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory and CPU time of the process
        self.registry = registry
        self.requests = Counter(
            "llm_rerank_requests", "Answered requests.", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "llm_rerank_request_seconds", "Time to the answer.", ["route"], buckets=SECONDS, registry=registry
        )
        self.in_progress = Gauge("llm_rerank_requests_in_progress", "Requests in progress.", registry=registry)
        self.refused = Counter(
            "llm_rerank_refused", "Requests refused for want of room or time.", ["reason"], registry=registry
        )
        self.queue_depth = Gauge("llm_rerank_queue_depth", "Requests that wait to be scored.", registry=registry)
        self.batch_questions = Histogram(
            "llm_rerank_batch_questions", "Rankings answered by one call.", buckets=BATCH_SIZES, registry=registry
        )
        self.batch_seconds = Histogram(
            "llm_rerank_batch_seconds", "Time of one call.", buckets=SECONDS, registry=registry
        )
        self.degraded = Counter(
            "llm_rerank_degraded", "Answers that a failing component is missing from.", ["component"], registry=registry
        )
        self.fallbacks = Counter(
            "llm_rerank_fallbacks", "Answers that are the order given, because all failed.", ["kind"], registry=registry
        )
        self.unexpected = Counter(
            "llm_rerank_unexpected_errors", "Errors that nobody foresaw.", ["route"], registry=registry
        )
        self.events = Counter("llm_rerank_events", "Events posted.", ["outcome"], registry=registry)
        self.items = Counter("llm_rerank_items", "Items posted.", registry=registry)
        self.forgotten = Counter("llm_rerank_forgotten_users", "Users forgotten.", registry=registry)
        self.swaps = Counter(
            "llm_rerank_model_swaps",
            "Other models taken over; not what a process wrote back of the same one.",
            registry=registry,
        )
        self.model = Gauge("llm_rerank_model_info", "1 for the model in use.", ["version"], registry=registry)
        for outcome in ("accepted", "duplicate"):  # so that a rate can be taken from the first one on
            self.events.labels(outcome)

    def set_model(self, version: str) -> None:
        """Name the model in use."""
        self.model.clear()
        self.model.labels(version).set(1)

    def count_answer(self, degraded: Iterable[str], fallback: str) -> None:
        """Count what an answer lacks."""
        for component in degraded:
            self.degraded.labels(component).inc()
        if fallback:
            self.fallbacks.labels(fallback).inc()

    def text(self) -> bytes:
        """Write everything in Prometheus' text format."""
        return generate_latest(self.registry)
