"""The service as it is run: a real server, the command, signals, and a model that is replaced."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress

import httpx
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from llm_rerank.cli import app
from llm_rerank.config import RerankerConfig
from llm_rerank.recommendation.live import LiveShop
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.serve_command import read_key
from llm_rerank.service.app import create_app
from llm_rerank.service.settings import ServiceSettings
from tests.service.asking import ADDRESS, listening

KEY = "a-key-of-the-shop-0123456789"


# ------------------------------------------------------------------ a model replaced under load


class Load:
    """Clients that ask without a pause, and what they were answered."""

    def __init__(self, base: str, n_threads: int = 4, headers: dict | None = None) -> None:
        self.base = base
        self.headers = headers
        self.stop = threading.Event()
        self.answers: list[tuple[int, str]] = []
        self.failures: list[str] = []
        self.threads = [threading.Thread(target=self.ask, args=(number,)) for number in range(n_threads)]

    def ask(self, number: int) -> None:
        with httpx.Client(base_url=self.base, headers=self.headers, timeout=60) as client:
            while not self.stop.is_set():
                try:
                    answer = client.post("/recommend", json={"user_id": f"u{number}", "k": 5})
                    version = answer.json().get("model_version", answer.text)
                    self.answers.append((answer.status_code, version))
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def wait_until(true, seconds: float = 30.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come about in time"
        time.sleep(0.02)


def test_a_model_is_replaced_without_a_lost_request_and_events_go_with_it(model, tables, tmp_path):
    events, items = tables
    other = Reranker(RerankerConfig(encoder=None, sequence="off", candidates_per_source=20, seed=1), verbose=False).fit(
        events, items
    )
    item = items["item_id"][0]
    settings = ServiceSettings(time_limit_s=30, reload_every_s=0.1)
    taken_in = []
    with (
        LiveShop(model, device="cpu") as shop,
        listening(shop, settings, loaded=lambda: taken_in.append(shop.version)) as base,
    ):
        old = shop.version
        event = {"user_id": "u1", "item_id": item, "event_id": "before the swap"}
        assert httpx.post(f"{base}/events", json=event).json()["accepted"] == ["before the swap"]
        with Load(base) as load:
            wait_until(lambda: len(load.answers) >= 20)
            other.save(model)
            wait_until(lambda: any(version != old for _, version in load.answers))
            n_at_swap = len(load.answers)
            wait_until(lambda: len(load.answers) >= n_at_swap + 20)
        assert load.failures == []
        assert {status for status, _ in load.answers} == {200}
        assert {version for _, version in load.answers} == {old, shop.version}
        assert httpx.get(f"{base}/readyz").json()["model_version"] == shop.version != old
        history = httpx.get(f"{base}/users/u1/history").json()["events"]
        assert history[0]["item_id"] == item  # the log was played on the new model
        assert httpx.post(f"{base}/events", json=event).json()["duplicates"] == ["before the swap"]
        assert "llm_rerank_model_swaps_total 1.0" in httpx.get(f"{base}/metrics").text
        wait_until(lambda: taken_in == [old, shop.version])


def test_the_log_is_folded_into_the_model_folder_now_and_then_where_there_is_something_to_fold(model, tables):
    item = tables[1]["item_id"][0]
    current = model / "CURRENT"
    before = current.read_text()
    settings = ServiceSettings(time_limit_s=30, reload_every_s=0.05, compact_every_s=0.1)
    with LiveShop(model, device="cpu") as shop, listening(shop, settings) as base:
        shown = httpx.post(f"{base}/recommend", json={"user_id": "u1"}).json()
        time.sleep(1.0)
        assert current.read_text() == before
        httpx.post(f"{base}/events", json={"user_id": "u1", "item_id": item, "event_id": "folded"})
        wait_until(lambda: current.read_text() != before)
        wait_until(lambda: httpx.get(f"{base}/readyz").json()["model_version"] == current.read_text().strip())
        # folding is no other model: what was asked before can still be cut anew
        anew = httpx.post(f"{base}/recommend/recut", json={"request_id": shown["request_id"], "k": 3})
        assert [item["item_id"] for item in anew.json()["items"]] == [item["item_id"] for item in shown["items"][:3]]
        assert "llm_rerank_model_swaps_total 0.0" in httpx.get(f"{base}/metrics").text
    assert Reranker.load(model, verbose=False).export("u1")["events"][-1]["item_id"] == item


def test_a_model_that_cannot_be_loaded_is_tried_once_and_the_rest_is_kept_in_order_meanwhile(
    model, tables, tmp_path, caplog
):
    other = shutil.copytree(model, tmp_path / "other")
    changed = Reranker.load(other, device="cpu", verbose=False)
    changed.update(items=[{"item_id": "one-more", "title": "One more"}])
    changed.save(other)
    name = (other / "CURRENT").read_text().strip()
    shutil.copytree(other / name, model / name)
    texts = model / name / "item_texts.parquet"
    whole = texts.read_bytes()
    texts.write_bytes(whole[:-50])
    days_later = [0.0]
    settings = ServiceSettings(reload_every_s=0.05, compact_every_s=0.2)

    def said() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        return [line for line in lines if "StorageError" in line and "kept in order" not in line]  # that is of tidying

    with LiveShop(model, device="cpu", clock=lambda: time.time() + days_later[0] * 86_400) as shop:
        before = shop.version
        service = create_app(shop, settings)
        with TestClient(service, base_url=ADDRESS, client=("127.0.0.1", 50_000)) as client:
            client.post("/recommend", json={"user_id": "u1"})
            assert len(shop.shown_lists()) == 1
            os.replace(other / "CURRENT", model / "CURRENT")
            wait_until(said)
            days_later[0] = 8  # lists shown are kept for 7
            wait_until(lambda: not shop.shown_lists())
            time.sleep(1.0)  # some twenty looks
            (line,) = said()
            assert "StorageError at folders.py:" in line
            assert f"{texts} is damaged" in line
            days_later[0] = 0
            client.post("/events", json={"user_id": "u1", "item_id": tables[1]["item_id"][0], "event_id": "kept"})
            wait_until(lambda: is_in_the_main_file(shop, tmp_path))
            assert (shop.version, client.post("/recommend", json={"user_id": "u1"}).status_code) == (before, 200)
            client.portal.call(service.state.look.set)  # as the signal does
            wait_until(lambda: len(said()) == 2)
            texts.write_bytes(whole)
            client.portal.call(service.state.look.set)
            wait_until(lambda: shop.version != before)  # its name, or, the event folded in, another one
            assert "one-more" in shop.reranker().saved.fitted.items.ids
            assert len(said()) == 2


def test_what_another_process_writes_back_of_the_same_model_is_no_swap(model, tables):
    item = tables[1]["item_id"][0]
    settings = ServiceSettings(time_limit_s=30, reload_every_s=0.05)
    with (
        LiveShop(model, device="cpu") as shop,
        LiveShop(model, device="cpu") as peer,
        listening(shop, settings) as base,
    ):

        def n_swaps() -> float:
            lines = httpx.get(f"{base}/metrics").text.splitlines()
            return next(float(line.split()[1]) for line in lines if line.startswith("llm_rerank_model_swaps_total "))

        for change in (
            lambda: (peer.record([{"user_id": "u1", "item_id": item}]), peer.compact()),
            lambda: (peer.record([{"user_id": "u2", "item_id": item}]), peer.compact()),
            lambda: peer.forget(["u2"]),
        ):
            before = shop.version
            change()
            wait_until(lambda before=before: shop.version != before)
            wait_until(lambda: httpx.get(f"{base}/readyz").json()["model_version"] == peer.version)
        time.sleep(0.3)  # the count follows the version within one look
        assert n_swaps() == 0
        other = Reranker.load(model, device="cpu", verbose=False)
        other.update([{"user_id": "u1", "item_id": item, "timestamp": int(time.time())}])
        other.save(model)
        wait_until(lambda: n_swaps() == 1)


def is_in_the_main_file(shop, folder) -> bool:
    """Tell whether the log's main file has an entry without its write-ahead file."""
    alone = shutil.copy(shop.log.path, folder / "alone.sqlite")
    with closing(sqlite3.connect(alone)) as connection, suppress(sqlite3.DatabaseError):  # copied while emptied
        tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'entries'").fetchone()[0]
        return bool(tables and connection.execute("SELECT count(*) FROM entries").fetchone()[0])
    return False


def test_the_logs_write_ahead_file_is_emptied_beside_the_requests(model, tables, tmp_path):
    settings = ServiceSettings(time_limit_s=30, reload_every_s=0.05)
    with LiveShop(model, device="cpu") as shop, listening(shop, settings) as base:
        httpx.post(f"{base}/events", json={"user_id": "u1", "item_id": tables[1]["item_id"][0], "event_id": "kept"})
        wait_until(lambda: is_in_the_main_file(shop, tmp_path))


# ------------------------------------------------------------------ connections that stay open


def seconds_open(address: str, *parts: bytes, pause: float = 0.05, most: float = 8.0) -> float:
    """Send the parts, the last of them again and again, and tell after how long the other side closes."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=pause) as connection:
        began = time.monotonic()
        sent = list(parts)
        while time.monotonic() - began < most:
            with suppress(OSError):
                if parts:
                    connection.sendall(sent.pop(0) if len(sent) > 1 else sent[0])
            try:
                if not connection.recv(65_536):
                    break
                time.sleep(pause)
            except TimeoutError:
                continue
            except ConnectionError:
                break
        return time.monotonic() - began


def test_a_connection_whose_head_never_ends_is_closed_and_one_with_slow_but_whole_requests_is_not(model):
    settings = ServiceSettings(head_time_limit_s=0.5, time_limit_s=30)
    whole = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with LiveShop(model, device="cpu") as shop, listening(shop, settings) as base:
        for parts in (
            (),  # nothing at all
            (b"GET /healthz HTTP/1.1\r\n", b"X-Slow: 1\r\n"),  # a head without an end
            (whole, b"GET /healthz HTTP/1.1\r\n", b"X-Slow: 1\r\n"),  # behind a whole one
            (whole[:-2] + b"Content-Length: 100000\r\n\r\n", b"x"),  # answered before its body is here
        ):
            assert 0.4 < seconds_open(base, *parts) < 5, parts
        counts = httpx.get(f"{base}/metrics").text
        assert 'llm_rerank_refused_total{reason="slow_head"} 4.0' in counts
        assert seconds_open(base, whole, pause=0.3, most=2.0) >= 2.0  # asks again and again
        with httpx.Client(base_url=base) as client:  # the body may take longer than the head

            def slowly():
                yield b'{"user_id": "u1", '
                time.sleep(1.0)
                yield b'"k": 3}'

            answer = client.post("/recommend", content=slowly(), headers={"content-type": "application/json"})
            assert answer.status_code == 200
            time.sleep(1.0)  # between two requests uvicorn's own limit holds
            assert client.get("/healthz").status_code == 200
            n_open = httpx.get(f"{base}/metrics").text.count('slow_head"} 4.0')
        assert n_open == 1


# ------------------------------------------------------------------ the command


@contextmanager
def command(*words, **environment):
    """Run ``llm-rerank serve`` and give the process, its address and its stderr so far."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_rerank", "serve", *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment},
    )
    try:
        line = process.stderr.readline()
        address = line.rpartition(" at ")[2].strip().rstrip("/") if " is served at " in line else line
        yield process, address
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_the_command_serves_takes_over_a_model_on_a_signal_and_ends_after_the_requests_in_progress(
    model, tables, tmp_path
):
    events, items = tables
    item = items["item_id"][0]
    other = Reranker(RerankerConfig(encoder=None, sequence="off", candidates_per_source=20, seed=1), verbose=False).fit(
        events, items
    )
    key = {"X-API-Key": KEY}
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n", encoding="utf-8")
    words = ("--port", 0, "--time-limit", 30, "--api-key-file", file)
    with command(model, *words, LLM_RERANK_API_KEY="not-this-one-0123456789") as (process, address):
        assert address.startswith("http://127.0.0.1:"), address
        old = httpx.get(f"{address}/readyz").json()["model_version"]
        assert httpx.get(f"{address}/users").status_code == 401
        event = {"user_id": "u1", "item_id": item, "event_id": "kept"}
        assert httpx.post(f"{address}/events", json=event, headers=key).json()["accepted"] == ["kept"]
        with Load(address, headers=key) as load:
            wait_until(lambda: len(load.answers) >= 20)
            other.save(model)
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: any(version != old for _, version in load.answers))
            assert load.failures == []
            assert {status for status, _ in load.answers} == {200}
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        assert {status for status, _ in load.answers} <= {200, 503}
        # connections that were refused, or closed between two requests; none in the middle of an answer
        assert not [failure for failure in load.failures if "ReadTimeout" in failure or "incomplete" in failure]
        assert "u1" not in process.stderr.read()
    with LiveShop(model, device="cpu") as shop:
        assert shop.export("u1")["events"][-1]["item_id"] == item


def test_what_is_loaded_is_left_out_of_the_garbage_collectors_rounds_and_freed_all_the_same(model, tables, tmp_path):
    script = """
import gc, sys, weakref
from llm_rerank.recommendation.live import LiveShop
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.serve_command import settle_memory
with LiveShop(sys.argv[1], device="cpu") as shop:
    held = weakref.ref(shop.reranker().saved.fitted)
    settle_memory()
    rest = len(gc.get_objects())
    print(gc.get_freeze_count() > 100 * rest)
    Reranker.load(sys.argv[1], device="cpu", verbose=False).save(sys.argv[1])
    print(shop.reload_if_replaced())
    gc.collect()
    print(held() is None)
"""
    ran = subprocess.run([sys.executable, "-c", script, str(model)], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True"] * 3


def test_the_command_says_what_is_wrong_in_a_line(saved_model, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.write_text("\n")
    taken = socket.create_server(("127.0.0.1", 0))
    for words, key, said in (
        (("--host", "0.0.0.0"), None, "no API key"),
        (("--host", "::"), None, "no API key"),
        (("--api-key-file", tmp_path / "nokey"), None, "cannot be read"),
        (("--api-key-file", empty), KEY, "empty first line"),
        (("--cache-folder", tmp_path / "nocache"), None, "nocache is no folder"),
        ((), "short", "at least 16"),
        ((), "", "is empty"),
        (("--time-limit", 0), None, "time_limit_s"),
        (("--host", "nowhere.invalid"), KEY, "cannot be bound"),
        (("--host", "nowhere..invalid"), KEY, "cannot be bound (no host can be named so)"),
        (("--host", "n" * 64), KEY, "cannot be bound (no host can be named so)"),
        (("--port", taken.getsockname()[1]), None, "cannot be bound"),
    ):
        monkeypatch.delenv("LLM_RERANK_API_KEY", raising=False)
        if key is not None:
            monkeypatch.setenv("LLM_RERANK_API_KEY", key)
        result = CliRunner().invoke(app, ["serve", str(saved_model), *map(str, words)])
        assert (result.exit_code, said in result.stderr) == (2, True), (words, result.output)
        assert result.stderr.count("\n") == 1
    taken.close()
    monkeypatch.delenv("LLM_RERANK_API_KEY", raising=False)
    result = CliRunner().invoke(app, ["serve", str(tmp_path / "nothing"), "--port", "0"])
    assert (result.exit_code, "is not a folder" in result.stderr) == (2, True)
    assert not (tmp_path / "nothing").exists()


def test_the_key_comes_from_the_file_else_from_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_text("of-the-file-0123456789\nmore\n", encoding="utf-8")
    monkeypatch.delenv("LLM_RERANK_API_KEY", raising=False)
    assert read_key(None) is None
    monkeypatch.setenv("LLM_RERANK_API_KEY", KEY)
    assert read_key(None) == KEY
    assert read_key(file) == "of-the-file-0123456789"
