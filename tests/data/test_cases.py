import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_rerank.data.cases import build_cases, next_cases, seen_items, with_newest
from llm_rerank.types import DataError, Ragged
from tests.data.making import LAST_DAY, N_ITEMS, N_USERS, event_rows, make_events

moments = st.lists(st.tuples(st.integers(-1, N_USERS - 1), st.integers(-1, LAST_DAY + 1)), max_size=8)
ragged_rows = st.lists(st.lists(st.integers(-1, 6), max_size=6), max_size=5)


def codes(values):
    return np.array(values, dtype=np.int64)


def build(rows):
    return make_events(rows, n_users=N_USERS, n_items=N_ITEMS)


def lists(ragged):
    return [ragged[row].tolist() for row in range(len(ragged))]


def test_what_comes_next_for_each_user_is_asked_after_all_events():
    """Users by their ids, in the order asked, an unknown one among them; the fake shop's user 1 comes last of all."""
    rows = [
        {"user": 0, "item": 2, "time": 1, "query": "", "positive": True},
        {"user": 1, "item": 3, "time": 2, "query": "lamp", "positive": False},
        {"user": 1, "item": 2, "time": 5, "query": "", "positive": True},
    ]
    events = build(rows)
    cases, had = next_cases(events, [events.user_ids[1], "nobody", events.user_ids[0]])
    assert lists(cases.history) == [[3, 2], [], [2]] and cases.queries == ["lamp", "", ""]
    assert cases.times.tolist() == [6, 6, 6]
    assert lists(had) == [[2], [], [2]]  # what was only looked at has not been had
    assert len(cases.candidates) == 3 and not len(cases.candidates.values)
    earlier, had = next_cases(events, events.user_ids[:2], at=codes([1, 5]))
    assert lists(earlier.history) == [[], [3]] and lists(had) == [[], []]
    assert next_cases(events.take(codes([])), ["nobody"])[0].times.tolist() == [0]


@given(event_rows(), moments, st.sampled_from([None, 1, 3]))
def test_cases_agree_with_a_loop(rows, asked, length):
    users, times = codes([user for user, _ in asked]), codes([time for _, time in asked])
    cases = build_cases(build(rows), users, times, history_length=length)
    assert len(cases) == len(asked)
    position = 0
    for case, (user, time) in enumerate(asked):
        earlier = [row for row in rows if row["user"] == user and row["time"] < time]
        history = [row for row in earlier if row["item"] >= 0]
        words = [row["query"] for row in earlier if row["query"]]
        if length is not None:
            history, words = history[-length:], words[-length:]
        assert cases.history[case].tolist() == [row["item"] for row in history]
        events = slice(position, position + len(history))
        assert cases.history_times[events].tolist() == [row["time"] for row in history]
        assert cases.history_weights[events].tolist() == [row["weight"] for row in history]
        assert cases.queries[case] == "; ".join(words)
        assert cases.user_rows[case] == (-1 if user < 0 else 100 + user)
        assert cases.times[case] == time
        position += len(history)
    assert position == len(cases.history_weights)
    assert lists(cases.candidates) == lists(cases.targets) == [[] for _ in asked]


def test_events_at_one_time_are_not_each_others_history():
    events = build([{"user": 0, "item": item, "time": time, "query": "q"} for item, time in ((0, 1), (1, 5), (2, 5))])
    at, after = build_cases(events, codes([0]), codes([5])), build_cases(events, codes([0]), codes([6]))
    assert at.history[0].tolist() == [0]
    assert at.queries == ["q"]
    assert after.history[0].tolist() == [0, 1, 2]
    assert lists(seen_items(events, codes([0, 0]), codes([5, 6]))) == [[0], [0, 1, 2]]


def test_candidates_and_targets_pass_through():
    events = build([{"user": 0, "item": 0, "time": 1}])
    candidates, targets = Ragged.from_lists([[3, -1], [], [0]]), Ragged.from_lists([[3], [], []])
    cases = build_cases(events, codes([0, -1, 1]), codes([2, 2, 2]), candidates=candidates, targets=targets)
    assert lists(cases.candidates) == [[3, -1], [], [0]]
    assert lists(cases.targets) == [[3], [], []]
    assert lists(cases.history) == [[0], [], []]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"users": codes([0, 7])}, "1 codes outside the 4 known users \\(first: 7\\)"),
        ({"users": codes([0, -2])}, "first: -2"),
        ({"times": codes([1])}, "times has 1 rows for 2 users"),
        ({"candidates": Ragged.from_lists([[1]])}, "candidates has 1 rows for 2 users"),
        ({"targets": Ragged.from_lists([[1]] * 3)}, "targets has 3 rows for 2 users"),
        ({"history_length": 0}, "history_length is 0"),
    ],
)
def test_build_cases_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(DataError, match=message):
        build_cases(build([]), **({"users": codes([0, 1]), "times": codes([1, 1])} | arguments))


@given(event_rows(), moments)
def test_seen_items_agree_with_a_loop(rows, asked):
    seen = seen_items(build(rows), codes([user for user, _ in asked]), codes([time for _, time in asked]))
    assert lists(seen) == [
        sorted(
            {
                r["item"]
                for r in rows
                if r["user"] == u and r["time"] < t and (r["positive"] or r["weight"] < 0) and r["item"] >= 0
            }
        )
        for u, t in asked
    ]


@given(event_rows(), moments, st.lists(st.integers(0, 4), min_size=8, max_size=8))
def test_histories_cut_to_their_newest_events_agree_with_a_loop(rows, asked, kept):
    cases = build_cases(build(rows), codes([user for user, _ in asked]), codes([time for _, time in asked]))
    cut = with_newest(cases, codes(kept[: len(asked)]))
    events = [slice(*cases.history.offsets[case : case + 2]) for case in range(len(asked))]
    newest = [np.arange(e.stop)[e][max(e.stop - e.start - n, 0) :] for e, n in zip(events, kept, strict=False)]
    assert lists(cut.history) == [cases.history.values[places].tolist() for places in newest]
    places = np.concatenate([codes([]), *newest])
    assert cut.history_times.tolist() == cases.history_times[places].tolist()
    assert cut.history_weights.tolist() == cases.history_weights[places].tolist()
    assert cut.queries == cases.queries and cut.times is cases.times and cut.targets is cases.targets
