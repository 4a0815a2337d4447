"""Requests made from the OpenAPI document: whatever comes, an answer that the document describes, and no failure."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from llm_rerank.recommendation.live import LiveShop
from llm_rerank.service.settings import ServiceSettings
from tests.service.asking import listening

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


@pytest.fixture(scope="module")
def service(saved_model, tmp_path_factory):
    """Address of the service and its shop; nothing may have failed in a way that nobody foresaw."""
    folder = shutil.copytree(saved_model, tmp_path_factory.mktemp("schema") / "shop")
    with (
        LiveShop(folder, device="cpu") as shop,
        listening(shop, ServiceSettings(time_limit_s=30.0, long_time_limit_s=300.0)) as base,
    ):
        yield base, shop
        counts = httpx.get(f"{base}/metrics").text
        assert "llm_rerank_unexpected_errors_total{" not in counts
        assert "llm_rerank_fallbacks_total{" not in counts


def with_known_ids(base: str, shop: LiveShop, folder: Path) -> Path:
    """Write the document, its ids narrowed to some of the shop's, for others are refused at the door."""
    document = httpx.get(f"{base}/openapi.json").json()
    saved = shop.reranker().saved
    fields = {
        "item_id": {"enum": saved.fitted.items.ids[:8].tolist()},
        "user_id": {"enum": saved.events.user_ids[:8].tolist()},
        "request_id": {"enum": [httpx.post(f"{base}/recommend", json={}).json()["request_id"]]},
        "timestamp": {"type": "number", "minimum": 0, "maximum": 1.7e9},
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


def run_schemathesis(where, base: str, *options: str, folder: Path) -> None:
    command = [Path(sys.executable).with_name("schemathesis"), "run", where, "--url", base, "--no-color"]
    words = ["--checks", ",".join(CHECKS), "--seed", "7", "--request-timeout", "300", "--continue-on-failure"]
    # in a folder of its own: it keeps what it learns beside where it runs
    run = subprocess.run([*command, *words, *options], capture_output=True, text=True, cwd=folder, timeout=1_500)
    assert run.returncode == 0, run.stdout[-6_000:] + run.stderr[-1_000:]


def test_lists_and_events_answer_as_the_document_says(service, tmp_path):
    base, shop = service
    document = with_known_ids(base, shop, tmp_path)
    paths = [word for path in LISTS for word in ("--include-path", path)]
    run_schemathesis(document, base, "--phases", "fuzzing", "-n", "12", *paths, folder=tmp_path)


@pytest.mark.slow
def test_every_route_answers_as_the_document_says(service, tmp_path):
    base, shop = service
    httpx.post(
        f"{base}/v2/rerank", json={"query": "a", "documents": ["b"]}, timeout=300
    )  # loads the encoder, which may take its time
    run_schemathesis(f"{base}/openapi.json", base, "--phases", "coverage,fuzzing", "-n", "40", folder=tmp_path)
    document = with_known_ids(base, shop, tmp_path)
    run_schemathesis(document, base, "--phases", "coverage,fuzzing", "-n", "40", folder=tmp_path)
