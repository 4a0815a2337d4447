"""Events from outside: what is completed, and each rule by the field that it names."""

import pytest

from llm_rerank.data.events import EVENT_WEIGHTS
from llm_rerank.data.id_index import known_id
from llm_rerank.recommendation.live_events import EventError, checked_events
from llm_rerank.types import DataError

NOW = 1_700_000_000.4
ITEMS = {"tea": 0, 7: 1, "9": 2, 9: 3}
USERS = {"ann": 0, 12: 1}


def check(*events, kinds=tuple(EVENT_WEIGHTS), time_kind="time", next_position=50):
    return checked_events(
        events,
        item_of=ITEMS,
        user_of=USERS,
        kinds=kinds,
        now=NOW,
        time_kind=time_kind,
        next_position=next_position,
    )


def test_a_bare_event_is_made_complete():
    (event,) = check({"user_id": "ann", "item_id": "tea"})
    assert event == {"event_id": event["event_id"], "user_id": "ann", "item_id": "tea", "timestamp": 1_700_000_000}
    assert len(event["event_id"]) == 32
    (other,) = check({"user_id": "ann", "item_id": "tea"})
    assert other["event_id"] != event["event_id"]


def test_everything_given_is_kept_and_none_is_as_absent():
    given = {"event_id": "e1", "user_id": 12, "item_id": 7, "timestamp": "2023-01-01T00:00:00Z", "event": " Buy "}
    more = {"rating": 4, "quantity": 2, "weight": None, "review": "good", "query": "red"}
    (event,) = check({**given, **more})
    assert event == {
        "event_id": "e1",
        "user_id": 12,
        "item_id": 7,
        "timestamp": 1_672_531_200,  # 2023-01-01: 53 years of 365 days, 13 leap days: (53 · 365 + 13) · 86,400
        "event": "purchase",
        "rating": 4.0,
        "quantity": 2.0,
        "review": "good",
        "query": "red",
    }
    assert 1_672_531_200 == (53 * 365 + 13) * 86_400


def test_a_text_stands_for_a_number_only_where_no_text_is_known():
    assert known_id("7", ITEMS) == 7 and known_id("9", ITEMS) == "9" and known_id("07", ITEMS) == "07"
    assert known_id("tea", ITEMS) == "tea" and known_id("8", ITEMS) == "8" and known_id(7, ITEMS) == 7
    assert known_id(55, {"55": 0}) == "55" and known_id(True, {1: 0, "True": 1}) is True
    (event,) = check({"user_id": "12", "item_id": "7"})
    assert (event["user_id"], event["item_id"]) == (12, 7)
    (event,) = check({"user_id": "someone new", "item_id": "9"})
    assert (event["user_id"], event["item_id"]) == ("someone new", "9")


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"user_id": None}, "events[1].user_id", "missing"),
        ({"user_id": 1.5}, "events[1].user_id", "float"),
        ({"weight": -1_001}, "events[1].weight", "at most 1,000 in size"),
        ({"user_id": True}, "events[1].user_id", "bool"),
        ({"user_id": "  "}, "events[1].user_id", "blanks"),
        ({"user_id": "u" * 513}, "events[1].user_id", "513"),
        ({"user_id": 2**63}, "events[1].user_id", "2^63"),
        ({"item_id": "coffee"}, "events[1].item_id", "'coffee' is absent from items"),
        ({"item_id": None}, "events[1].item_id", "no query"),
        ({"item_id": None, "query": " "}, "events[1].item_id", "no query"),
        ({"event_id": ""}, "events[1].event_id", "empty"),
        ({"event_id": 3}, "events[1].event_id", "int"),
        ({"timestamp": NOW + 301}, "events[1].timestamp", "300 s in the future"),
        ({"timestamp": NOW * 1000}, "events[1].timestamp", "milliseconds"),
        ({"timestamp": -1}, "events[1].timestamp", "before 1971"),
        ({"timestamp": 12_345}, "events[1].timestamp", "before 1971"),
        ({"timestamp": "soon"}, "events[1].timestamp", "no date"),
        ({"timestamp": "NaT"}, "events[1].timestamp", "no date"),
        ({"timestamp": "now"}, "events[1].timestamp", "no date"),
        ({"timestamp": "01:02"}, "events[1].timestamp", "no date"),
        ({"timestamp": "2020Q1"}, "events[1].timestamp", "no date"),
        ({"timestamp": "31/12/2020"}, "events[1].timestamp", "no date"),
        ({"timestamp": float("nan")}, "events[1].timestamp", "nan"),
        ({"timestamp": 10**400}, "events[1].timestamp", "seconds since 1970"),
        ({"timestamp": [1]}, "events[1].timestamp", "seconds since 1970"),
        ({"event": "purchse"}, "events[1].event", "is 'purchse'; it must be one of search, view"),
        ({"event": "p" * 500}, "events[1].event", f"is '{'p' * 60}'; it"),
        ({"rating": "5"}, "events[1].rating", "number"),
        ({"rating": float("inf")}, "events[1].rating", "number"),
        ({"quantity": 0}, "events[1].quantity", "above 0"),
        ({"review": "x" * 10_001}, "events[1].review", "10,001"),
        ({"price": 3}, "events[1].price", "unknown"),
    ],
)
def test_a_broken_rule_names_event_and_field(change, field, said):
    good = {"user_id": "ann", "item_id": "tea"}
    with pytest.raises(EventError) as raised:
        check(good, {**good, **change})
    assert raised.value.field == field
    assert str(raised.value).startswith(field) and said in str(raised.value)
    assert isinstance(raised.value, DataError)


def test_what_is_no_mapping_is_named():
    with pytest.raises(EventError, match=r"events\[0\] is list"):
        check(["ann", "tea"])


def test_kinds_of_the_shops_own_are_taken_and_named():
    own = (*EVENT_WEIGHTS, "kauf")
    (event,) = check({"user_id": "ann", "item_id": "tea", "event": " KAUF "}, kinds=own)
    assert event["event"] == "kauf"
    with pytest.raises(EventError, match=r"interaction, kauf; a kind of the shop's own is taken once the tables of a"):
        check({"user_id": "ann", "item_id": "tea", "event": "kauff"}, kinds=own)
    many = (*EVENT_WEIGHTS, *(f"own {number}" for number in range(100)))
    with pytest.raises(EventError, match=r"own 20, own 21 and 78 more; a kind"):  # 8 of the library's, 22 of 100
        check({"user_id": "ann", "item_id": "tea", "event": "kauff"}, kinds=many)


def test_a_little_ahead_of_our_clock_is_allowed():
    (event,) = check({"user_id": "ann", "item_id": "tea", "timestamp": NOW + 299})
    assert event["timestamp"] == int(NOW + 299)


def test_positions_follow_the_newest_and_are_not_dates():
    (event,) = check({"user_id": "ann", "item_id": "tea"}, time_kind="position")
    assert event["timestamp"] == 50
    (event,) = check({"user_id": "ann", "item_id": "tea", "timestamp": 3}, time_kind="position")
    assert event["timestamp"] == 3
    (event,) = check({"user_id": "ann", "item_id": "tea", "timestamp": 49 + 100_000}, time_kind="position")
    assert event["timestamp"] == 100_049
    for far in (50 + 100_000, 2**53, 2**61):
        with pytest.raises(EventError, match=r"more than 100,000 beyond the newest, 49; give the next position"):
            check({"user_id": "ann", "item_id": "tea", "timestamp": far}, time_kind="position")
    with pytest.raises(EventError, match="positions"):
        check({"user_id": "ann", "item_id": "tea", "timestamp": "2023-01-01"}, time_kind="position")


def test_a_search_needs_no_item():
    (event,) = check({"user_id": "ann", "query": "warm hat"})
    assert "item_id" not in event and event["query"] == "warm hat"
