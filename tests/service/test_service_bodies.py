"""Bodies at the door: what is taken, and the field that a refusal names."""

import json
import math

import numpy as np
import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from llm_rerank.data.values import plain
from llm_rerank.service.bodies import (
    CohereBody,
    EventsBody,
    ExplainBody,
    FeedbackBody,
    ItemsBody,
    RecommendBody,
    RecutBody,
    RerankBody,
)
from llm_rerank.service.failures import ServiceError, as_service_error, to_json
from llm_rerank.service.values import parse_json


def refusal(model, body) -> ServiceError:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    return as_service_error(RequestValidationError(errors, body=body))


def test_candidates_are_ids_or_objects():
    body = RerankBody.model_validate({"user_id": 7, "candidates": ["a", 3, {"item_id": "b", "upstream_score": 1}]})
    assert [candidate.item_id for candidate in body.candidates] == ["a", 3, "b"]
    assert [candidate.upstream_score for candidate in body.candidates] == [None, None, 1.0]
    assert body.user_id == 7
    assert body.k is None
    assert RecommendBody.model_validate({}).k == 10


@pytest.mark.parametrize(
    ("model", "body", "field"),
    [
        (RerankBody, {"user_id": "u"}, "candidates"),
        (RerankBody, {"candidates": ["a", None]}, "candidates[1]"),
        (RerankBody, {"candidates": ["a", True]}, "candidates[1]"),
        (RerankBody, {"candidates": ["a", 1.5]}, "candidates[1]"),
        (RerankBody, {"candidates": ["a", [1]]}, "candidates[1]"),
        (RerankBody, {"candidates": ["a", "   "]}, "candidates[1]"),
        (RerankBody, {"candidates": ["a", "x" * 513]}, "candidates[1]"),
        (RerankBody, {"candidates": ["a", "half \ud83d"]}, "candidates[1]"),
        (RerankBody, {"candidates": [{"item_id": "a"}, {"upstream_score": 1.0}]}, "candidates[1].item_id"),
        (RerankBody, {"candidates": [{"item_id": "a", "upstream_score": "1"}]}, "candidates[0].upstream_score"),
        (RerankBody, {"candidates": [{"item_id": "a", "score": 1}]}, "candidates[0].score"),
        (RerankBody, {"candidates": ["a"] * 10_001}, "candidates"),
        (RerankBody, {"candidates": [], "user_id": 2**63}, "user_id"),
        (RerankBody, {"candidates": [], "user": "u"}, "user"),
        (RerankBody, {"candidates": [], "k": 0}, "k"),
        (RerankBody, {"candidates": [], "k": "3"}, "k"),
        (RerankBody, {"candidates": [], "diversity": 1.01}, "diversity"),
        (RerankBody, {"candidates": [], "diversity": True}, "diversity"),
        (RerankBody, {"candidates": [], "as_of": -1}, "as_of"),
        (RerankBody, {"candidates": [], "as_of": {}}, "as_of"),
        (RerankBody, {"candidates": [], "events": [{"item_id": "a", "rating": 1e10}]}, "events[0].rating"),
        (RerankBody, {"candidates": [], "events": [{"item_id": "a", "event_id": "e"}]}, "events[0].event_id"),
        (RerankBody, {"candidates": [], "events": [{"item_id": "a"}] * 201}, "events"),
        (RerankBody, [], "body"),
        (RerankBody, "u", "body"),
        (RecommendBody, {"exclude_seen": 1}, "exclude_seen"),
        (EventsBody, {"item_id": "a"}, "user_id"),
        (EventsBody, {"events": [{"item_id": "a"}]}, "events[0].user_id"),
        (EventsBody, {"events": []}, "events"),
        (EventsBody, {"events": [{"user_id": "u"}] * 1_001}, "events"),
        (EventsBody, {"events": [{"user_id": "u", "item_id": "a", "review": "x" * 10_001}]}, "events[0].review"),
        (EventsBody, {"events": [{"user_id": "u", "item_id": "a", "event_id": ""}]}, "events[0].event_id"),
        (EventsBody, {"user_id": "u", "item_id": "a", "colour": 1}, "colour"),
        (EventsBody, {"events": [{"user_id": "u", "item_id": "a"}], "more": 1}, "more"),
        (FeedbackBody, {"item_id": "a", "event": "click"}, "request_id"),
        (FeedbackBody, {"request_id": "r", "item_id": "a"}, "event"),
        (FeedbackBody, {"request_id": "r", "events": [{"item_id": "a"}]}, "events[0].event"),
        (FeedbackBody, {"request_id": "r", "events": [{"item_id": "a", "event": "click", "user_id": "u"}]},
         "events[0].user_id"),
        (ExplainBody, {"user_id": "u"}, "item_id"),
        (ItemsBody, {"items": [{"item_id": "a"}]}, "items[0].title"),
        (ItemsBody, {"items": [{"item_id": "a", "title": " \t\u2003"}]}, "items[0].title"),
        (ItemsBody, {"items": [{"item_id": "a", "title": "t", "price": 0}]}, "items[0].price"),
        (ItemsBody, {"items": [{"item_id": "a", "title": "t", "colour": {"deep": 1}}]}, "items[0].colour"),
        (ItemsBody, {"items": [{"item_id": "a", "title": "t", "specs": {"deep": [1]}}]}, "items[0].specs.deep"),
        (CohereBody, {"documents": ["a"]}, "query"),
        (CohereBody, {"query": "a", "documents": []}, "documents"),
        (CohereBody, {"query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
        (CohereBody, {"query": "a", "documents": ["a", 3]}, "documents[1]"),
        (CohereBody, {"query": "a", "documents": [{"text": "a", "n": 10**400}]}, "documents[0]"),
        (ItemsBody, {"items": [{"item_id": "a", "title": "t", "grams": 10**400}]}, "items[0].grams"),
        (ItemsBody, {"items": [{"item_id": "a", "title": "t", "specs": {"grams": -(10**400)}}]},
         "items[0].specs.grams"),
        (ItemsBody, {"items": [{"item_id": "a", "title": "t", "specs": {"grams": float("nan")}}]},
         "items[0].specs.grams"),
        (ItemsBody, {"items": [{"item_id": "a", "title": "t", "categories": ["b", 1]}]}, "items[0].categories"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field(model, body, field):
    error = refusal(model, body)
    assert (error.status_code, error.field) == (422, field)
    assert error.message


@pytest.mark.parametrize(
    ("model", "body", "said"),
    [
        (RecutBody, {"request_id": "r", "threshold": 0.05},
         "there is no such field; the fields are request_id, least_probability, diversity, k"),
        (RerankBody, {"candidates": [{"item_id": "a", "score": 1}]},
         "there is no such field; the fields are item_id, upstream_score"),
        (FeedbackBody, {"request_id": "r", "item_id": "a", "event": "click", "user_id": "u"},
         "there is no such field; the fields are item_id, event, event_id, timestamp, rating, quantity, review"),
        (ItemsBody, {"item_id": "a", "title": "t"}, "items is required; there is no field item_id"),
        (EventsBody, {"events": [{"item_id": "a"}]}, "user_id is required"),
        (CohereBody, {"documents": ["a"], "more": 1}, "query is required"),
        (RerankBody, {"candidates": [], "k": 0}, "is 0; it should be greater than or equal to 1"),
        (RerankBody, {"candidates": [], "diversity": 1.01}, "is 1.01; it should be less than or equal to 1"),
        (RerankBody, {"candidates": [], "as_of": -1}, "is -1; it must be seconds since 1970, or a date of ISO 8601, as "
         "2026-01-31T12:00:00Z"),
        (ItemsBody, {"items": [{"item_id": "a", "title": "t", "grams": 10**400}]},
         f"is 1{'0' * 29}…; it must be a text of at most 10000 characters, a number to 1e15 or null"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_fields_there_are_and_the_number_that_is_out_of_range(model, body, said):
    assert refusal(model, body).message == said


def test_a_refusal_repeats_no_text_that_was_sent_and_no_id():
    for body in (
        {"user_id": ["secret-user"], "candidates": []},
        {"user_id": "secret-user", "candidates": [{"item_id": "a", "upstream_score": "secret-user"}]},
        {"candidates": [], "events": [{"item_id": "a", "event": "secret-user" * 50}]},
        {"candidates": [], "as_of": "secret-user" * 10},
        {"candidates": [], "user_id": 4711.5},
        {"candidates": [], "user_id": 4711 * 10**20},
    ):
        error = refusal(RerankBody, body)
        assert "secret" not in error.message
        assert "4711" not in error.message
        assert "secret" not in error.field


def test_one_event_stands_for_a_list_of_one():
    one = {"user_id": "u", "item_id": "a", "event": "view"}
    assert EventsBody.model_validate(one) == EventsBody.model_validate({"events": [one]})
    body = FeedbackBody.model_validate({"request_id": "r", "item_id": "a", "event": "click"})
    assert body == FeedbackBody.model_validate({"request_id": "r", "events": [{"item_id": "a", "event": "click"}]})
    assert body.events[0].mapping() == {"item_id": "a", "event": "click"}


def test_an_item_brings_attributes_of_its_own():
    item = {"item_id": 5, "title": "Tea", "colour": "green", "grams": 100, "specs": {"leaf": "whole"}}
    (given,) = ItemsBody.model_validate({"items": [{**item, "brand": None}]}).items
    assert given.mapping() == item


def test_an_item_brings_vectors_of_its_own():
    item = {"item_id": 5, "title": "Tea", "image_vector": [0.5, -1, 2.25]}
    (given,) = ItemsBody.model_validate({"items": [item]}).items
    assert given.mapping() == item
    wrong = ([], ["0.5"], [None], [True], [[0.5]], [1e300], [float("nan")], [0.0] * 16_385)
    for vector in wrong:
        with pytest.raises(ValidationError):
            ItemsBody.model_validate({"items": [{**item, "image_vector": vector}]})


@pytest.mark.parametrize("body", [
    b"", b"{", b"[1,", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": -Infinity}', b'{"a": 1e400}', b'"\xff"', b"nul",
    b"[" * 100_000, b'{"a": ' + b"9" * 5_000 + b"}", b"\xef\xbb\xbf{}", b"{'a': 1}",
])  # fmt: skip
def test_what_is_no_json_is_refused(body):
    with pytest.raises(ServiceError) as caught:
        parse_json(body)
    assert (caught.value.status_code, caught.value.code) == (400, "malformed_json")


def test_json_is_read_as_python_reads_it():
    body = {"a": [1, -2.5, 1e300, None, True, "é\u0000\U0001f600"], "b": {"c": 2**60}}
    assert parse_json(json.dumps(body).encode()) == body


def test_plain_values_are_json():
    values = {
        "nan": math.nan, "inf": -math.inf, 3: np.float32(0.5), "array": np.array([1.0, np.nan]),
        "ids": (np.int64(3), "x"), "half": "\ud83d",
    }  # fmt: skip
    assert json.loads(to_json(plain(values))) == {
        "nan": None, "inf": None, "3": 0.5, "array": [1.0, None], "ids": [3, "x"], "half": "\ud83d",
    }  # fmt: skip
