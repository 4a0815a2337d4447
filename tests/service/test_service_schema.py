"""Requests made from the OpenAPI document: whatever comes, an answer that the document describes, and no failure."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from llm_rerank.recommendation.live import LiveShop
from llm_rerank.service.settings import ServiceSettings
from tests.service.asking import listening, serving

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)
LISTS = ("/recommend", "/recommend/rerank", "/explain", "/events", "/feedback", "/users/{user_id}/history", "/preview")


KEY = "a-key-of-the-shop-0123456789"


@contextmanager
def shop_served(saved_model, tmp_path_factory, **settings):
    """Address of the service and its shop; nothing may have failed in a way that nobody foresaw."""
    folder = shutil.copytree(saved_model, tmp_path_factory.mktemp("schema") / "shop")
    with (
        LiveShop(folder, device="cpu") as shop,
        listening(shop, ServiceSettings(time_limit_s=30.0, long_time_limit_s=300.0, **settings)) as base,
        httpx.Client(base_url=base, headers={"X-API-Key": settings.get("api_key", "")}, timeout=300) as client,
    ):
        yield client, shop
        counts = client.get("/metrics").text
        assert "llm_rerank_unexpected_errors_total{" not in counts
        assert "llm_rerank_fallbacks_total{" not in counts


@pytest.fixture(scope="module")
def service(saved_model, tmp_path_factory):
    with shop_served(saved_model, tmp_path_factory) as served:
        yield served


@pytest.fixture(scope="module")
def keyed_service(saved_model, tmp_path_factory):
    with shop_served(saved_model, tmp_path_factory, api_key=KEY) as served:
        yield served


def with_known_ids(client: httpx.Client, shop: LiveShop, folder: Path) -> Path:
    """Write the document, its ids narrowed to some of the shop's, for others are refused at the door."""
    document = client.get("/openapi.json").json()
    saved = shop.reranker().saved
    known_user = saved.events.user_ids[0]
    fields = {
        "item_id": {"enum": saved.fitted.items.ids[:8].tolist()},
        "user_id": {"enum": saved.events.user_ids[:8].tolist()},
        "request_id": {"enum": [client.post("/recommend", json={"user_id": known_user}).json()["request_id"]]},
        "timestamp": {"type": "number", "minimum": 0, "maximum": 1.7e9},
        "event": {"enum": list(saved.kinds)},
    }
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        asked = {name: operation[name] for name in ("requestBody", "parameters") if name in operation}
        operation.update(narrowed(asked, fields))  # answers stay as the document has them
    schemas = document["components"]["schemas"]
    for name in schemas:
        if name.endswith("Body") or name in ("FreshEvent", "ShopEvent", "ShownEvent", "Candidate"):
            schemas[name] = narrowed(schemas[name], fields)
    path = folder / "openapi.json"
    path.write_text(json.dumps(document))
    return path


def fields_of(document: dict, method: str, path: str) -> dict:
    """Fields of a route's 200, each with its schema."""
    schema = document["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
    return document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]


def test_answers_are_described_by_their_fields(client):
    document = client.get("/openapi.json").json()
    item = client.shop.reranker().saved.fitted.items.ids[0]
    client.post("/events", json={"user_id": "u1", "item_id": item})
    shown = client.post("/recommend", json={"user_id": "u1"}).json()
    said = {
        ("get", "/users/{user_id}"): client.get("/users/u1").json(),
        ("delete", "/users/{user_id}"): client.delete("/users/u1").json(),
        ("post", "/items"): client.post("/items", json={"items": [{"item_id": item, "title": "Tea"}]}).json(),
        ("post", "/explain"): client.post("/explain", json={"user_id": "u2", "item_id": item}).json(),
    }
    for (method, path), answer in said.items():
        assert set(answer) == set(fields_of(document, method, path)), path
    schemas = document["components"]["schemas"]
    held = said["get", "/users/{user_id}"]
    assert set(held["events"][0]) == set(schemas["HeldEvent"]["properties"])
    assert set(held["event_log"][0]) >= set(schemas["LoggedEvent"]["required"])
    assert set(held["lists_shown"][0]) >= set(schemas["ShownList"]["required"])
    assert set(shown["cut"]) == set(schemas["Cut"]["properties"])
    assert set(shown["cut"]["drift"]) == set(schemas["Drift"]["properties"])


@pytest.mark.parametrize("key", [None, KEY])
def test_the_document_says_whether_a_key_is_asked_for_and_how_much_may_be_asked(model, key):
    with serving(model, api_key=key, most_candidates=7) as client:
        document = client.get("/openapi.json", headers={"X-API-Key": KEY}).json()
        at_most = {name: client.post(path, json=body, headers={"X-API-Key": KEY}).status_code for name, path, body in (
            ("candidates", "/recommend/rerank", {"candidates": ["a"] * 8}),
            ("documents", "/v2/rerank", {"query": "a", "documents": ["a"] * 8}),
        )}  # fmt: skip
    schemes = document["components"]["securitySchemes"]
    assert (schemes["ApiKey"]["type"], schemes["ApiKey"]["name"]) == ("apiKey", "X-API-Key")
    assert ({} in document["security"]) is (key is None)
    assert [set(one) for one in document["security"] if one] == [{"ApiKey"}, {"Bearer"}]
    assert document["paths"]["/healthz"]["get"]["security"] == []
    schemas = document["components"]["schemas"]
    assert schemas["CohereBody"]["properties"]["documents"]["maxItems"] == 7
    assert schemas["RerankBody"]["properties"]["candidates"]["maxItems"] == 7
    assert at_most == {"candidates": 422, "documents": 422}


def narrowed(part, fields: dict):
    """Replace the schemas of these fields, at any depth, and those of path parameters of these names."""
    if isinstance(part, list):
        return [narrowed(one, fields) for one in part]
    if not isinstance(part, dict):
        return part
    given = {name: narrowed(value, fields) for name, value in part.items()}
    if "properties" in given:
        given["properties"] = {name: fields.get(name, value) for name, value in given["properties"].items()}
    return {**given, "schema": fields[given["name"]]} if given.get("in") == "path" else given


def run_schemathesis(where, client: httpx.Client, *options: str, folder: Path) -> None:
    command = [
        Path(sys.executable).with_name("schemathesis"),
        "run",
        where,
        "--url",
        str(client.base_url),
        "--no-color",
    ]
    command += ["--header", f"X-API-Key: {client.headers['X-API-Key']}"] if client.headers["X-API-Key"] else []
    words = ["--checks", ",".join(CHECKS), "--seed", "7", "--request-timeout", "300", "--continue-on-failure"]
    # in a folder of its own: it keeps what it learns beside where it runs
    run = subprocess.run([*command, *words, *options], capture_output=True, text=True, cwd=folder, timeout=1_500)
    assert run.returncode == 0, run.stdout[-6_000:] + run.stderr[-1_000:]


def test_lists_and_events_answer_as_the_document_says(service, tmp_path):
    client, shop = service
    document = with_known_ids(client, shop, tmp_path)
    paths = [word for path in LISTS for word in ("--include-path", path)]
    run_schemathesis(document, client, "--phases", "fuzzing", "-n", "12", *paths, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("served", ["service", "keyed_service"])
def test_every_route_answers_as_the_document_says(served, request, tmp_path):
    client, shop = request.getfixturevalue(served)
    client.post("/v2/rerank", json={"query": "a", "documents": ["b"]})  # loads the encoder, which may take its time
    where = f"{client.base_url}/openapi.json"
    run_schemathesis(where, client, "--phases", "coverage,fuzzing", "-n", "40", folder=tmp_path)
    document = with_known_ids(client, shop, tmp_path)
    run_schemathesis(document, client, "--phases", "coverage,fuzzing", "-n", "40", folder=tmp_path)
