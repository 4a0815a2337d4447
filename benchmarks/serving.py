"""How fast does the service answer, where does it saturate, and what does it do beyond? Load from outside.

    python -m benchmarks.serving --model shop --rate 10 --seconds 300 --out FILE.json

Starts ``llm-rerank serve`` on a copy of a saved model and asks it from a second process on the same machine, requests
arriving at random (Poisson) at the rate given, whether or not earlier ones were answered; latency counts from the
moment a request was due. Then the rate is raised until fewer than 99 % are answered, and four times what was answered
at most is held. Last, whether an event that was acknowledged is always in the next answer of its user.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks._common import run_information, table, write_report
from benchmarks._service import RunningService
from llm_rerank.recommendation.reranker import Reranker

ANSWERED = 0.99
STEP_S = 15.0


def bodies(model: Path, n_candidates: int, n_bodies: int, seed: int) -> list[dict[str, Any]]:
    """Build requests of known users with candidates drawn at random from the catalogue, upstream order included."""
    saved = Reranker.load(model, verbose=False).saved
    rng = np.random.default_rng(seed)
    users = rng.choice(len(saved.events.user_ids), n_bodies)
    item_ids = saved.fitted.items.ids
    return [
        {
            "user_id": saved.events.user_ids[user],
            "candidates": item_ids[rng.choice(len(item_ids), min(n_candidates, len(item_ids)), replace=False)].tolist(),
        }
        for user in users
    ]


class Connections:
    """Keep-alive connections that are taken and given back: as little client as can be, for it shares the cores."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a whole request and read its answer: status, headers in lower case, body."""
        while True:
            used = bool(self.idle)
            reader, writer = self.idle.pop() if used else await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                break
            except (OSError, asyncio.IncompleteReadError):
                writer.close()
                if not used:  # one that had been idle may have been closed before it got the request: try another
                    raise
        try:
            first, *lines = head.rstrip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers["content-length"]))
        except BaseException:
            writer.close()
            raise
        if headers.get("connection") == "close":
            writer.close()
        else:
            self.idle.append((reader, writer))
        return int(first.split()[1]), headers, body

    def close(self) -> None:
        """Close the idle ones."""
        for _, writer in self.idle:
            writer.close()


def request_of(path: str, body: Mapping[str, Any]) -> bytes:
    """Lay out a request with a JSON body."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


async def offered(port: int, asked: Sequence[bytes], rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Send requests at a rate for some seconds; returns what came back and how late.

    sent_late_ms: how far behind its plan the client itself was: what of the latencies is its own.
    """
    rng = np.random.default_rng(seed)
    due = np.cumsum(rng.exponential(1 / rate, int(rate * seconds * 1.5) + 10))
    due = due[due < seconds]
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    late: list[float] = []
    noted: Counter[str] = Counter()
    connections = Connections(port)
    began = time.perf_counter()

    async def one(number: int, at: float) -> None:
        late.append(time.perf_counter() - began - at)
        try:
            status, headers, body = await connections.post(asked[number % len(asked)])
        except (OSError, asyncio.IncompleteReadError) as error:
            statuses[type(error).__name__] += 1
            return
        statuses[str(status)] += 1
        if status == 200:
            latencies.append(time.perf_counter() - began - at)
            noted["degraded" if b'"degraded":[]' not in body else "whole"] += 1
        elif status in (429, 503) and "retry-after" not in headers:
            noted["without Retry-After"] += 1

    tasks = []
    for number, at in enumerate(due):
        if (wait := at - (time.perf_counter() - began)) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(number, at)))
    await asyncio.gather(*tasks)
    took = time.perf_counter() - began
    connections.close()
    return {
        "rate": rate,
        "seconds": seconds,
        "requests": len(due),
        "statuses": dict(statuses),
        "noted": dict(noted),
        "answered_a_second": statuses["200"] / max(took, seconds),
        "sent_late_ms": quantiles_ms(late),
        **quantiles_ms(latencies),
    }


def quantiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Quantiles of latencies, in milliseconds."""
    if not seconds:
        return {name: float("nan") for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms")}
    p50, p95, p99 = np.quantile(seconds, [0.5, 0.95, 0.99]) * 1e3
    return {"p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99), "max_ms": float(max(seconds) * 1e3)}


async def read_your_writes(client: httpx.AsyncClient, users: Sequence[Any], tries: int) -> dict[str, Any]:
    """Buy a user's first recommendation and ask again, many times: what was bought must be gone from the next list."""
    stale, acknowledged, answered = 0, [], []
    for number in range(tries):
        user = users[number % len(users)]
        before = (await client.post("/recommend", json={"user_id": user, "k": 1})).raise_for_status().json()
        item = before["items"][0]["item_id"]
        began = time.perf_counter()
        event = {"user_id": user, "item_id": item, "event": "purchase"}
        (await client.post("/events", json=event)).raise_for_status()
        acknowledged.append(time.perf_counter() - began)
        after = (await client.post("/recommend", json={"user_id": user, "k": 10})).raise_for_status().json()
        answered.append(time.perf_counter() - began)
        stale += item in {row["item_id"] for row in after["items"]}
    return {
        "tries": tries,
        "stale": stale,
        "event": quantiles_ms(acknowledged),
        "event_and_next_answer": quantiles_ms(answered),
    }


async def measure(service: RunningService, bodies: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Run all parts against a service that is ready."""
    asked = [request_of("/recommend/rerank", body) for body in bodies]
    port, seed = service.port, options.seed
    await offered(port, asked, options.rate, 5.0, seed)  # warm
    report: dict[str, Any] = {"memory_mib_warm": service.memory_mib()}
    cpu = service.cpu_s()
    report["steady"] = await offered(port, asked, options.rate, options.seconds, seed + 1)
    report["steady"]["cpu_share_of_one_core"] = (service.cpu_s() - cpu) / options.seconds
    say("steady", report["steady"])
    rate = options.rate * 2
    steps: list[dict[str, Any]] = []
    while True:
        step = await offered(port, asked, rate, STEP_S, seed + len(steps))
        steps.append(step)
        say("rising", step)
        if step["statuses"].get("200", 0) < ANSWERED * step["requests"]:
            break
        rate *= 1.5
    report["rising"] = steps
    saturation = max(step["answered_a_second"] for step in steps)
    report["saturation_a_second"] = saturation
    before = service.memory_mib()
    report["overload"] = await offered(port, asked, 4 * saturation, options.overload_seconds, seed)
    report["overload"]["memory_mib"] = [before, service.memory_mib()]
    say("overload", report["overload"])
    await asyncio.sleep(3.0)
    report["after"] = await offered(port, asked, options.rate, 15.0, seed)
    say("after", report["after"])
    users = [body["user_id"] for body in bodies[:50]]
    async with httpx.AsyncClient(base_url=service.url, timeout=60.0) as client:
        report["read_your_writes"] = await read_your_writes(client, users, options.tries)
    report["memory_mib_end"] = service.memory_mib()
    return report


def say(name: str, part: Mapping[str, Any]) -> None:
    """Print one part on one line."""
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(part["statuses"].items()))
    print(
        f"{name}: {part['rate']:.1f} a second for {part['seconds']:.0f} s: p50 {part['p50_ms']:.0f} ms, "
        f"p95 {part['p95_ms']:.0f}, p99 {part['p99_ms']:.0f}, max {part['max_ms']:.0f}; {statuses}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of a saved reranker; a copy of it is served")
    add("--rate", type=float, default=10.0, help="requests a second")
    add("--seconds", type=float, default=300.0, help="length of the steady part")
    add("--overload-seconds", type=float, default=30.0)
    add("--candidates", type=int, default=100)
    add("--tries", type=int, default=1_000, help="of reading what was written")
    add("--seed", type=int, default=0)
    add("--out", type=Path)
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    asked = bodies(options.model, options.candidates, 1_000, options.seed)
    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copytree(options.model, Path(place) / "shop"))
        with RunningService(copy) as service:
            report = asyncio.run(measure(service, asked, options))
    reads = report["read_your_writes"]
    heads = ["", "p50 ms", "p95 ms", "p99 ms", "max ms"]
    rows = [
        [name, *(f"{part[q]:.0f}" for q in ("p50_ms", "p95_ms", "p99_ms", "max_ms"))]
        for name, part in (
            (f"{options.rate:g} a second", report["steady"]),
            ("beyond saturation", report["overload"]),
            ("event acknowledged", reads["event"]),
            ("event and next answer", reads["event_and_next_answer"]),
        )
    ]
    print(f"\n{table(heads, rows)}\n")
    print(f"saturation: {report['saturation_a_second']:.0f} answers a second")
    first, last = report["overload"]["memory_mib"]
    print(f"memory: {report['memory_mib_warm']:.0f} MiB warm, {first:.0f} → {last:.0f} over the overload")
    print(f"read your writes: {reads['stale']} of {reads['tries']:,} answers did not know the event before them")
    write_report(options.out, {**report, "candidates": options.candidates, **information})
    return report


if __name__ == "__main__":
    main()
