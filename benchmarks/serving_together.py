"""Do long requests hold up short ones, and how soon is an event acknowledged meanwhile? Measured from outside.

    python -m benchmarks.serving_together --model shop --rate 3 --seconds 120 --out FILE.json

Starts ``llm-rerank serve`` on a copy of a saved model. First rankings and events arrive at random (Poisson), each at a
rate of its own, and the time to an event's acknowledgement is measured. Then, beside rankings at the same rate, one
long request after another is sent: documents that were never read, a table for a first look, a comparison of two
items for the user with the longest history. Told are the long requests' seconds, and of the rankings that were due
while one was under way how many were answered, and how late.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import run_information, table, write_report
from benchmarks._service import RunningService
from benchmarks.serving import Connections, bodies, quantiles_ms, request_of
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.state import Saved

MOST_CANDIDATES = 1_000
N_TABLE_USERS = 5
WARM_S = 5.0

Sent = tuple[float, float, int]  # when it was due (s since the start), seconds to its answer, status


def long_requests(saved: Saved, n_each: int, n_documents: int, seed: int) -> dict[str, list[bytes]]:
    """Build long requests of each kind; the documents of no two hold the same text."""
    rng = np.random.default_rng(seed)
    items, events = saved.fitted.items, saved.events
    numbers = iter(range(n_each * n_documents))
    reranks = []
    for _ in range(n_each):
        codes = rng.choice(len(items), n_documents)
        documents = [f"{items.texts[code]} ({next(numbers)})" for code in codes]
        reranks.append(request_of("/v2/rerank", {"query": "\n".join(items.texts[:10]), "documents": documents}))
    lines = ["user_id,item_id"]
    for user in events.user_ids[rng.choice(len(events.user_ids), N_TABLE_USERS, replace=False)]:
        codes = rng.choice(len(items), min(MOST_CANDIDATES, len(items)), replace=False)
        lines += [f"{user},{items.ids[code]}" for code in codes]
    preview = table_request("/preview", "\n".join(lines))
    user = events.user_ids[np.bincount(events.users).argmax()]
    explained = {"user_id": user, "item_id": items.ids[0], "versus": items.ids[1]}
    return {
        f"rerank of {n_documents:,} documents": reranks,
        "preview": [preview] * n_each,
        "explain versus": [request_of("/explain", explained)] * n_each,
    }


def table_request(path: str, text: str) -> bytes:
    """Lay out a request whose body is CSV."""
    content = text.encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/csv\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


async def arrivals(port: int, asked: Iterator[bytes], rate: float, ended: asyncio.Event, seed: int) -> list[Sent]:
    """Send requests at random moments, ``rate`` a second, until told to end; latency counts from when each was due."""
    rng = np.random.default_rng(seed)
    connections, tasks, sent = Connections(port), [], []
    began, due = time.perf_counter(), 0.0

    async def one(request: bytes, at: float) -> None:
        status, _, _ = await connections.post(request)
        sent.append((began + at, time.perf_counter() - began - at, status))

    while not ended.is_set():
        due += rng.exponential(1 / rate)
        await asyncio.sleep(max(0.0, due - (time.perf_counter() - began)))
        tasks.append(asyncio.create_task(one(next(asked), due)))
    await asyncio.gather(*tasks)
    connections.close()
    return sent


def cycled(requests: Sequence[bytes]) -> Iterator[bytes]:
    """Give the requests again and again."""
    while True:
        yield from requests


def overlapping(sent: Sequence[Sent], spans: Sequence[tuple[float, float]]) -> list[Sent]:
    """Those that were due within one of the spans (start, end)."""
    return [one for one in sent if any(start <= one[0] < end for start, end in spans)]


def told(sent: Sequence[Sent]) -> dict[str, Any]:
    """Sum up requests: statuses, and quantiles of the latencies of those answered."""
    statuses = Counter(str(status) for _, _, status in sent)
    return {"statuses": dict(statuses), **quantiles_ms([seconds for _, seconds, status in sent if status == 200])}


async def events_beside_lists(
    port: int, asked: Sequence[bytes], events: Sequence[bytes], options: argparse.Namespace
) -> dict[str, Any]:
    """Post events while lists are asked for; returns both sides."""
    ended = asyncio.Event()
    lists = asyncio.create_task(arrivals(port, cycled(asked), options.rate, ended, options.seed))
    posted = asyncio.create_task(arrivals(port, cycled(events), options.event_rate, ended, options.seed + 1))
    await asyncio.sleep(options.seconds)
    ended.set()
    return {"lists": told(await lists), "events": told(await posted)}


async def lists_beside(
    port: int, asked: Sequence[bytes], long: Sequence[bytes], options: argparse.Namespace
) -> dict[str, Any]:
    """Ask for lists while one long request follows another, a second between them."""
    ended, spans, statuses = asyncio.Event(), [], Counter[str]()
    lists = asyncio.create_task(arrivals(port, cycled(asked), options.rate, ended, options.seed + 2))
    connections = Connections(port)
    for request in long:
        await asyncio.sleep(1.0)
        began = time.perf_counter()
        status, _, _ = await connections.post(request)
        spans.append((began, time.perf_counter()))
        statuses[str(status)] += 1
    connections.close()
    ended.set()
    meanwhile = overlapping(await lists, spans)
    return {
        "long": {"statuses": dict(statuses), **quantiles_ms([end - start for start, end in spans])},
        "lists_meanwhile": told(meanwhile),
    }


async def measure(port: int, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run all parts against a service that is ready."""
    saved = Reranker.load(model, verbose=False).saved
    asked_bodies = bodies(model, options.candidates, 1_000, options.seed)
    asked = [request_of("/recommend/rerank", body) for body in asked_bodies]
    posted = [
        request_of("/events", {"user_id": body["user_id"], "item_id": body["candidates"][0], "event": "view"})
        for body in asked_bodies
    ]
    long = long_requests(saved, options.each, options.documents, options.seed)
    warm = argparse.Namespace(**{**vars(options), "seconds": WARM_S})
    await events_beside_lists(port, asked, posted, warm)
    report: dict[str, Any] = {"events_beside_lists": await events_beside_lists(port, asked, posted, options)}
    report["long"] = {name: await lists_beside(port, asked, requests, options) for name, requests in long.items()}
    return report


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving_together", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of a saved reranker; a copy of it is served")
    add("--rate", type=float, default=3.0, help="rankings a second")
    add("--event-rate", type=float, default=10.0, help="events a second in the first part")
    add("--seconds", type=float, default=120.0, help="length of the first part")
    add("--each", type=int, default=3, help="long requests of each kind")
    add("--documents", type=int, default=300, help="of a long rerank")
    add("--candidates", type=int, default=100)
    add("--seed", type=int, default=0)
    add("--out", type=Path)
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copytree(options.model, Path(place) / "shop"))
        with RunningService(copy) as service:
            report = asyncio.run(measure(service.port, options.model, options))
    beside = report["events_beside_lists"]
    parts = {"list": beside["lists"], "event beside lists": beside["events"]}
    for name, part in report["long"].items():
        parts |= {name: part["long"], f"list beside {name}": part["lists_meanwhile"]}
    heads = ["", "answers", "p50 ms", "p95 ms", "p99 ms", "max ms"]
    rows = [
        [name, str(part["statuses"]), *(f"{part[q]:.0f}" for q in ("p50_ms", "p95_ms", "p99_ms", "max_ms"))]
        for name, part in parts.items()
    ]
    print(f"\n{table(heads, rows)}\n")
    write_report(options.out, {**report, "candidates": options.candidates, **information})
    return report


if __name__ == "__main__":
    main()
