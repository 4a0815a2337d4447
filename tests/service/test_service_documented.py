"""The table of routes in docs/live.md: each example is posted as it stands, and no route is left out."""

import json
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "live.md"
OTHER_NAMES = {"/v1/rerank", "/rerank"}
"""Of /v2/rerank, for older clients."""


def documented() -> dict[str, str]:
    """Each route of the table that is posted to, with its example; "" where that is no JSON."""
    rows = re.findall(r"^\| `(/[\w/]+)` \| (?:`(\{.*?\})`(?=,| \|$))?.*\|$", PAGE.read_text(encoding="utf-8"), re.M)
    return dict(rows)


def test_every_route_is_named(reading):
    paths = reading.get("/openapi.json").json()["paths"]
    assert set(documented()) == {path for path, has in paths.items() if "post" in has} - OTHER_NAMES
    page = PAGE.read_text(encoding="utf-8")
    for path, has in paths.items():
        named = path.replace("{user_id}", "u1")
        assert ("get" not in has) or re.search(rf"`(?:GET )?{re.escape(named)}[`?]", page), path
        assert ("delete" not in has) or f"`DELETE {named}`" in page, path


def test_every_example_is_answered(client):
    examples = documented()
    assert examples.pop("/preview") == ""
    request_id = ""
    for path, example in examples.items():
        answer = client.post(path, json=json.loads(example.replace("…", request_id)))
        assert answer.status_code == 200, (path, answer.text)
        request_id = answer.json().get("request_id", request_id)
    assert client.get("/users/u1/history").json()["events"][0]["item_id"] == "B07"  # events and feedback came to stay
    assert [event["event"] for event in client.shop.export("u1")["event_log"]] == ["view", "purchase"]
