"""Who is answered and how much may come in; what a browser is told; what is logged."""

import asyncio
import logging
import os
import shutil
import time

import pytest

from llm_rerank.recommendation.live import LiveShop
from llm_rerank.service.app import create_app
from llm_rerank.service.metrics import Metrics
from llm_rerank.service.observing import Observer
from llm_rerank.service.settings import ServiceSettings, check_bind, is_loopback
from llm_rerank.types import DataError
from tests.service.asking import ADDRESS, counted, serving

KEY = "0123456789abcdef-secret"
EVENT = {"user_id": "u1", "item_id": "gar-0-cla"}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def keyed(saved_model, tmp_path_factory):
    folder = shutil.copytree(saved_model, tmp_path_factory.mktemp("keyed") / "shop")
    with serving(folder, api_key=KEY, client_host="203.0.113.9", address="http://shop.example") as client:
        yield client


# ------------------------------------------------------------------ keys and hosts


@pytest.mark.parametrize("headers", [
    {}, {"X-API-Key": ""}, {"X-API-Key": KEY[:-1]}, {"X-API-Key": KEY + "x"}, {"X-API-Key": "é" * 23},
    {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer"},
])  # fmt: skip
def test_without_the_key_nothing_is_answered_nor_done(keyed, headers):
    headers = {name: value.encode("latin-1") for name, value in headers.items()}
    for asked in ("POST /events", "GET /users/u1", "DELETE /users/u1", "GET /metrics", "GET /openapi.json",
                  "GET /nowhere", "POST /v2/rerank", "HEAD /users"):  # fmt: skip
        response = keyed.request(*asked.split(), headers=headers)
        assert response.status_code == 401, asked
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert keyed.request("POST", "/users", headers=headers).json()["error"]["code"] == "unauthorized"
    assert "message" in keyed.request("POST", "/v2/rerank", headers=headers).json()
    assert counted(keyed, "llm_rerank_events_total", outcome="accepted") == 0


def test_with_the_key_either_header_and_any_host_do(keyed):
    for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, {"Authorization": f"bearer  {KEY} "}):
        assert keyed.get("/users", headers=headers).status_code == 200
    assert keyed.get("/users", headers={"X-API-Key": KEY, "Origin": "https://elsewhere"}).status_code == 200


def test_page_and_health_need_no_key(keyed):
    for path in ("/", "/page/api.js", "/healthz", "/readyz"):
        assert keyed.get(path).status_code == 200, path
    assert keyed.get("/page/../users").status_code == 401
    assert keyed.get("/page/%2e%2e/users").status_code in (401, 404)


@pytest.mark.parametrize(("headers", "status"), [
    ({}, 200), ({"Host": "localhost"}, 200), ({"Host": "127.0.0.2:9"}, 200), ({"Host": "[::1]:8000"}, 200),
    ({"Host": "LOCALHOST:8000"}, 200),
    ({"Host": "evil.example"}, 403), ({"Host": "evil.example:8000"}, 403), ({"Host": "127.0.0.1.evil.example"}, 403),
    ({"Host": "localhost.evil.example"}, 403), ({"Host": ""}, 403), ({"Host": "[::1"}, 403),
    ({"Host": "10.0.0.1"}, 403),
    ({"Host": "evil.example@127.0.0.1"}, 200),  # no browser sends it; its host is this machine's
])  # fmt: skip
def test_without_a_key_a_name_bound_to_our_address_is_no_way_in(reading, headers, status):
    assert reading.get("/users", headers=headers).status_code == status


@pytest.mark.parametrize(("headers", "status"), [
    ({"Origin": ADDRESS}, 422), ({"Sec-Fetch-Site": "same-origin"}, 422), ({"Sec-Fetch-Site": "none"}, 422), ({}, 422),
    ({"Origin": "http://127.0.0.1:8001"}, 403), ({"Origin": "null"}, 403),
    ({"Origin": "http://evil.example"}, 403), ({"Origin": "http://127.0.0.1:8000.evil.example"}, 403),
    ({"Origin": ""}, 403), ({"Origin": "http://["}, 403), ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-site"}, 403),
    ({"Origin": "http://localhost:8000", "Host": "localhost:8000"}, 422),
])  # fmt: skip
def test_without_a_key_another_pages_script_can_change_nothing(reading, headers, status):
    assert reading.post("/events", json={}, headers=headers).status_code == status
    assert reading.delete(f"/users/{'x' * 513}", headers=headers).status_code == status


def test_a_form_of_another_page_is_refused_by_its_type_too(reading):
    body = b'{"user_id": "u1", "item_id": "gar-0-cla", "x": "="}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert reading.post("/events", content=body, headers={"content-type": kind}).status_code == 415


def test_without_a_key_another_machine_is_not_answered(saved_model, tmp_path):
    folder = shutil.copytree(saved_model, tmp_path / "shop")
    with serving(folder, client_host="203.0.113.9") as client:
        assert client.get("/users").status_code == 403
        assert client.get("/healthz").status_code == 403
    with serving(folder, allowed_hosts=("Shop.local", "lab.local:8000")) as client:
        for host in ("shop.LOCAL:8000", "shop.local", "lab.local:8000"):
            assert client.get("/users", headers={"Host": host}).status_code == 200, host
        assert client.get("/users", headers={"Host": ""}).status_code == 403


def test_only_this_machine_is_bound_without_a_key():
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        check_bind(host, ServiceSettings())
    for host in ("0.0.0.0", "::", "192.168.1.5", "shop.example", ""):
        assert not is_loopback(host)
        with pytest.raises(DataError, match="API key"):
            check_bind(host, ServiceSettings())
        check_bind(host, ServiceSettings(api_key=KEY))


@pytest.mark.parametrize(
    "key", ["", "short", "with a blank in the middle", "ünïcödé-but-long-enough", "line\nbreak-0123456789"]
)
def test_a_key_that_is_none_is_refused_and_not_repeated(key):
    with pytest.raises(DataError) as caught:
        ServiceSettings(api_key=key)
    assert not key or key not in str(caught.value)
    assert KEY not in repr(ServiceSettings(api_key=KEY))


@pytest.mark.parametrize("settings", [
    {"queue_length": 0}, {"batch_size": True}, {"time_limit_s": 0}, {"time_limit_s": float("inf")}, {"body_bytes": 1.5},
    {"most_candidates": "9"}, {"most_candidates": 10_001}, {"document_time_limit_s": 0.0}, {"head_time_limit_s": -1.0},
])  # fmt: skip
def test_impossible_settings_are_named(settings):
    with pytest.raises(DataError, match=next(iter(settings))):
        ServiceSettings(**settings)


# ------------------------------------------------------------------ bodies


def test_a_body_beyond_the_limit_is_refused_whatever_it_says_of_itself(saved_model, tmp_path):
    folder = shutil.copytree(saved_model, tmp_path / "shop")
    with serving(folder, body_bytes=1_000, preview_bytes=2_000) as client:
        for length in (1_001, 50_000):
            body = b" " * length
            assert client.post("/events", content=body, headers=JSON).status_code == 413
            assert client.post("/events", content=iter([body]), headers=JSON).status_code == 413  # in chunks, no length
            assert client.post("/nowhere", content=body, headers=JSON).status_code == 413
            refusal = client.post("/rerank", content=body, headers=JSON)
            assert (refusal.status_code, set(refusal.json())) == (413, {"id", "message"})
        assert client.post("/events", content=b" " * 1_000, headers=JSON).status_code == 400
        assert client.post("/preview", content=b"a" * 2_000, headers={"content-type": "text/csv"}).status_code == 422
        assert client.post("/preview", content=b"a" * 2_001, headers={"content-type": "text/csv"}).status_code == 413
        packed = {**JSON, "content-encoding": "gzip"}
        assert client.post("/events", content=b"x", headers=packed).status_code == 415


class Sender:
    """A client of ASGI: messages that come after given waits."""

    def __init__(self, *messages) -> None:
        self.messages = list(messages)
        self.sent: list[dict] = []

    async def receive(self):
        if not self.messages:
            await asyncio.sleep(60)
        wait, message = self.messages.pop(0)
        await asyncio.sleep(wait)
        return message

    async def send(self, message):
        self.sent.append(message)


def scope(path: str, method: str = "POST", headers=()) -> dict:
    return {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), *headers],
        "scheme": "http", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "http_version": "1.1",
        "root_path": "",
    }  # fmt: skip


def test_a_body_that_trickles_is_given_up_and_one_that_never_ends_too(saved_model, tmp_path):
    with LiveShop(shutil.copytree(saved_model, tmp_path / "shop"), device="cpu") as shop:
        app = create_app(shop, ServiceSettings(body_time_limit_s=0.2, body_bytes=100))

        async def ask(*messages, headers=()):
            sender = Sender(*messages)
            await app(scope("/events", headers=headers), sender.receive, sender.send)
            return sender

        part = {"type": "http.request", "body": b"{", "more_body": True}
        started = time.monotonic()
        slow = asyncio.run(ask((0, part)))
        assert slow.sent[0]["status"] == 408
        assert 0.2 <= time.monotonic() - started < 3
        assert (b"connection", b"close") in slow.sent[0]["headers"]
        endless = asyncio.run(ask(*[(0, {**part, "body": b"x" * 100})] * 1_000))
        assert endless.sent[0]["status"] == 413
        assert 980 <= len(endless.messages) <= 985  # 16 times the limit were read, the rest was not
        announced = asyncio.run(ask((0, part), headers=[(b"content-length", b"9999999999")]))
        assert announced.sent[0]["status"] == 413
        assert len(announced.messages) == 1  # nothing was read
        gone = asyncio.run(ask((0, part), (0, {"type": "http.disconnect"})))
        assert gone.sent == []


def test_too_many_requests_at_once_are_refused_and_health_is_still_told(saved_model, tmp_path):
    with LiveShop(shutil.copytree(saved_model, tmp_path / "shop"), device="cpu") as shop:
        app = create_app(shop, ServiceSettings(most_requests=2, body_time_limit_s=0.5))

        async def run():
            waiting = [Sender() for _ in range(2)]
            tasks = [asyncio.create_task(app(scope("/events"), one.receive, one.send)) for one in waiting]
            await asyncio.sleep(0.1)
            third, health = Sender(), Sender((0, {"type": "http.request"}))
            await app(scope("/events"), third.receive, third.send)
            await app(scope("/healthz", "GET"), health.receive, health.send)
            await asyncio.gather(*tasks)
            return [one.sent[0] for one in (*waiting, third, health)]

        first, second, third, health = asyncio.run(run())
        assert (first["status"], second["status"], third["status"], health["status"]) == (408, 408, 503, 200)
        assert b"retry-after" in dict(third["headers"])


# ------------------------------------------------------------------ answers to everybody


def test_routes_and_methods_that_are_none(reading):
    for path in ("/nowhere", "/users/a/b/c", "/page/none.js", "/page/%2e%2e/app.py", "/docs", "/redoc", "/events/"):
        response = reading.get(path)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found"), path
    for method, path, allow in (
        ("GET", "/events", "OPTIONS, POST"),
        ("PUT", "/users/u1", "DELETE, GET, HEAD, OPTIONS"),
        ("DELETE", "/users/u1/history", "GET, HEAD, OPTIONS"),
        ("BREW", "/", "GET, HEAD, OPTIONS"),
    ):
        response = reading.request(method, path)
        assert (response.status_code, response.headers["Allow"]) == (405, allow), path
        assert response.json()["error"]["code"] == "method_not_allowed"
    options = reading.options("/users/u1")
    assert (options.status_code, options.headers["Allow"], options.content) == (204, "DELETE, GET, HEAD, OPTIONS", b"")
    assert "access-control-allow-origin" not in options.headers
    for path in ("/users", "/healthz", "/"):
        head, get = reading.head(path), reading.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == get.headers["content-length"]
        assert head.headers["content-type"] == get.headers["content-type"]


def test_every_answer_has_an_id_and_what_browsers_must_know(reading):
    responses = [
        reading.get("/"),
        reading.get("/page/api.js"),
        reading.get("/nowhere"),
        reading.post("/events", json={}),
    ]
    assert len({response.headers["X-Request-ID"] for response in responses}) == 4
    for response in responses:
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy


def test_an_error_that_nobody_foresaw_is_answered_counted_and_logged_without_its_words(caplog):
    async def broken(scope, receive, send):
        raise KeyError("secret-user bought secret-item")

    async def broken_midway(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("secret-user")

    for app, status in ((broken, 503), (broken_midway, 200)):
        metrics, sender = Metrics(), Sender((0, {"type": "http.request"}))
        with caplog.at_level(logging.DEBUG):
            asyncio.run(Observer(app, metrics)(scope("/users/secret-user"), sender.receive, sender.send))
        assert sender.sent[0]["status"] == status
        assert metrics.registry.get_sample_value("llm_rerank_unexpected_errors_total", {"route": "unmatched"}) == 1
    assert "KeyError at test_service_guards.py" in caplog.text
    assert "secret" not in caplog.text


def test_nothing_that_names_a_user_is_logged(client, caplog):
    secret = "secret-user-77"
    with caplog.at_level(logging.DEBUG):
        client.post("/events", json={**EVENT, "user_id": secret, "review": "a secret-user-77 review"})
        client.post("/events", json={**EVENT, "user_id": secret, "timestamp": "never"})
        client.post("/events", content=f'{{"user_id": "{secret}"', headers=JSON)
        client.post("/recommend", json={"user_id": secret})
        client.post("/recommend/rerank", json={"user_id": [secret], "candidates": [secret]})
        client.post("/explain", json={"user_id": secret, "item_id": secret})
        client.get(f"/users/{secret}")
        client.get(f"/users/{secret}/nowhere")
        client.get("/catalogue", params={"q": secret})
        client.delete(f"/users/{secret}")
    ours = [record for record in caplog.records if record.name.startswith(("llm_rerank", "uvicorn"))]
    assert len(ours) >= 10
    assert all(secret not in record.getMessage() for record in ours)


def test_counts_name_no_user_and_are_in_prometheus_format(client):
    client.post("/recommend", json={"user_id": "u1"})
    client.get("/users/u1")
    client.get("/users/u1/nowhere")
    text = client.get("/metrics").text
    assert 'llm_rerank_requests_total{method="GET",route="/users/{user_id}",status="200"} 1.0' in text
    assert 'llm_rerank_requests_total{method="GET",route="unmatched",status="404"} 1.0' in text
    assert f'llm_rerank_model_info{{version="{client.shop.version}"}} 1.0' in text
    assert "llm_rerank_batch_questions_count 1.0" in text
    assert "process_resident_memory_bytes" in text
    assert '"u1"' not in text
    assert os.path.basename(str(client.shop.folder)) not in text
