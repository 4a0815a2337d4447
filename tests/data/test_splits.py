import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_rerank.data.splits import (
    VISIT_SECONDS,
    HeldOut,
    Timeline,
    all_targets_after,
    before,
    first_unseen_targets,
    hash_users,
    last_out,
    last_targets,
    quantile_time,
)
from llm_rerank.types import DataError
from tests.data.making import LAST_DAY, N_ITEMS, N_USERS, event_rows, make_events


def build(rows):
    return make_events(rows, n_users=N_USERS, n_items=N_ITEMS)


def as_dict(held_out: HeldOut):
    return {
        int(user): (int(time), held_out.targets[row].tolist())
        for row, (user, time) in enumerate(zip(held_out.users, held_out.times, strict=True))
    }


def of_user(rows, user, *, targets_only=False):
    chosen = [row for row in rows if row["user"] == user and row["item"] >= 0]
    return [row for row in chosen if row["positive"]] if targets_only else chosen


def had_before(rows, user, time):
    """Items that a user took before a time, liked or disliked."""
    return {r["item"] for r in of_user(rows, user) if r["time"] < time and (r["positive"] or r["weight"] < 0)}


def distinct(values):
    return list(dict.fromkeys(values))


def start_of_visit(rows, taken):
    """Time of the earliest look at any of the rows that a user took at one time, at most a day before; else theirs."""
    times = [row["time"] for row in taken]
    for look in rows:
        if not look["positive"] and look["weight"] > 0 and look["item"] >= 0:
            times += [
                look["time"]
                for row in taken
                if (look["user"], look["item"]) == (row["user"], row["item"])
                and row["time"] - VISIT_SECONDS <= look["time"] < row["time"]
            ]
    return min(times)


def without_looks(rows):
    """Of the rows only what a shop with one kind of event knows: targets, dislikes and searches."""
    return [row for row in rows if row["positive"] or row["item"] < 0 or row["weight"] < 0]


@given(event_rows(), st.integers(-1, N_USERS), st.integers(-2, LAST_DAY + 2), st.sampled_from([None, 1, 3]))
def test_timeline_finds_what_a_loop_finds(rows, group, time, newest):
    events = build(rows)
    timeline = Timeline.of(events.users, events.times)
    expected = [place for place, row in enumerate(rows) if row["user"] == group and row["time"] < time]
    expected = expected if newest is None else expected[-newest:]
    found = timeline.before(np.array([group, group]), np.array([time, time]), newest=newest)
    assert found[0].tolist() == expected
    assert found[1].tolist() == expected


def test_timeline_bears_nanoseconds():
    # user * span of times would overflow int64; ranks of times do not
    times = np.array([-(2**62), 0, 2**62], dtype=np.int64)
    timeline = Timeline.of(np.array([5_000_000, 3, 5_000_000]), times)
    assert timeline.before(np.array([5_000_000]), np.array([2**62]))[0].tolist() == [0]


def test_quantile_time_leaves_the_share_strictly_before():
    events = build([{"user": 0, "item": 0, "time": time} for time in range(10)])
    assert quantile_time(events, 0.9) == 9  # 0..8, nine of ten, are before 9
    assert len(before(events, 9)) == 9
    tied = build([{"user": 0, "item": 0, "time": time} for time in (1, 2, 2, 2)])
    assert quantile_time(tied, 0.5) == 2
    assert len(before(tied, 2)) == 1  # ties stay together, after the cut


@pytest.mark.parametrize("q", [0.0, 1.0, 90, float("nan")])
def test_quantile_time_refuses_other_quantiles(q):
    with pytest.raises(DataError, match="strictly between 0 and 1"):
        quantile_time(build([{"user": 0, "item": 0, "time": 1}]), q)


def test_quantile_time_refuses_no_events():
    with pytest.raises(DataError, match="0 events"):
        quantile_time(build([]), 0.9)


THIRD_OF_A_DAY = VISIT_SECONDS // 3


@given(event_rows(unit=THIRD_OF_A_DAY), st.integers(1, 3), st.sampled_from([None, [0, 2], []]))
def test_last_out_agrees_with_a_loop(rows, n_last, chosen):
    past, held_out = last_out(build(rows), n_last, users=None if chosen is None else np.array(chosen, dtype=np.int64))
    expected_held, cut = set(), {}
    for user in range(N_USERS) if chosen is None else chosen:
        targets = of_user(rows, user, targets_only=True)
        last = targets[-n_last:]
        decision = min((start_of_visit(rows, [row]) for row in last), default=0)
        if len(targets) > n_last and targets[0]["time"] < decision:
            expected_held |= {row["name"] for row in last}
            cut[user] = decision
    expected_past = [r for r in rows if r["user"] not in cut or r["time"] < cut[r["user"]]]
    expected = [r for r in rows if r["name"] in expected_held]
    for events, wanted in ((past, expected_past), (held_out, expected)):
        assert list(zip(events.users, events.items, events.times, strict=True)) == [
            (r["user"], r["item"], r["time"]) for r in wanted
        ]


def test_last_out_drops_what_happened_at_the_same_time():
    rows = [(0, 1, 1), (0, 2, 5), (0, 3, 5), (1, 4, 2)]
    past, held_out = last_out(build([{"user": u, "item": i, "time": t} for u, i, t in rows]))
    assert held_out.items.tolist() == [3]  # of two at one time the later in input order
    assert past.items.tolist() == [1, 4]  # its companion is no past; user 1 has one event and keeps it


def test_last_out_refuses_zero_events():
    with pytest.raises(DataError, match="n_last is 0"):
        last_out(build([]), 0)


@given(event_rows(), st.integers(-1, LAST_DAY + 1))
def test_first_unseen_targets_agree_with_a_loop(rows, since):
    expected = {}
    for user in range(N_USERS):
        if not any(row["time"] < since for row in of_user(rows, user)):
            continue
        targets = of_user(rows, user, targets_only=True)
        seen = had_before(rows, user, since)
        unseen = [row for row in targets if row["time"] >= since and row["item"] not in seen]
        if unseen:
            expected[user] = (since, distinct(r["item"] for r in unseen if r["time"] == unseen[0]["time"]))
    assert as_dict(first_unseen_targets(build(rows), since)) == expected


def last_targets_by_loop(rows, limit, unit=1, decided=None):
    """Each user's last new targets with a past by their decision; decided: time of it, of (rows, targets)."""
    expected = {}
    for user in range(N_USERS):
        for time in range(LAST_DAY if limit is None else limit - 1, -1, -1):
            targets = of_user(rows, user, targets_only=True)
            seen = had_before(rows, user, time * unit)
            new = [row for row in targets if row["time"] == time * unit and row["item"] not in seen]
            decision = decided(rows, new) if new and decided else time * unit
            if new and any(row["time"] < decision for row in of_user(rows, user)):
                expected[user] = (decision, distinct(row["item"] for row in new))
                break
    return expected


@given(event_rows(unit=THIRD_OF_A_DAY), st.sampled_from([None, 0, 3, 7]))
def test_last_targets_agree_with_a_loop(rows, limit):
    found = last_targets(build(rows), before=None if limit is None else limit * THIRD_OF_A_DAY)
    assert as_dict(found) == last_targets_by_loop(rows, limit, THIRD_OF_A_DAY, start_of_visit)


@given(event_rows(unit=THIRD_OF_A_DAY).map(without_looks), st.sampled_from([None, 0, 3, 7]))
def test_with_one_kind_of_event_last_targets_are_decided_when_they_are_taken(rows, limit):
    found = last_targets(build(rows), before=None if limit is None else limit * THIRD_OF_A_DAY)
    assert as_dict(found) == last_targets_by_loop(rows, limit, THIRD_OF_A_DAY)
    events = build(rows)
    past, held_out = last_out(events)
    assert HeldOut.from_events(held_out, events).times.tolist() == held_out.times[np.argsort(held_out.users)].tolist()


def test_a_look_of_weeks_ago_stays_and_the_visit_itself_goes():
    day = VISIT_SECONDS
    rows = [
        {"time": 0, "item": 1},
        {"time": 9 * day, "item": 2, "positive": False},  # of an earlier visit: past
        {"time": 30 * day, "item": 2, "positive": False},  # exactly a day before: of this visit
        {"time": 31 * day - 60, "item": 3, "positive": False},  # looked at after the decision: not past
        {"time": 31 * day, "item": 2},
    ]
    for time_kind, decision in (("time", 30 * day), ("position", 9 * day)):  # positions: any look may be the visit's
        events = make_events(rows, n_users=1, n_items=4, time_kind=time_kind)
        assert as_dict(last_targets(events)) == {0: (decision, [2])}
        past, held_out = last_out(events)
        assert as_dict(HeldOut.from_events(held_out, events)) == {0: (decision, [2])}
        assert past.times.tolist() == [row["time"] for row in rows if row["time"] < decision]


def test_a_user_whose_visit_is_all_there_is_falls_back_on_an_earlier_target():
    rows = [(0, 1, True), (5, 2, True), (10, 3, True)]
    looks = [(0, 3, False)]  # the last item was looked at before anything else
    events = build([{"time": t, "item": i, "positive": p} for t, i, p in sorted(rows + looks)])
    assert as_dict(last_targets(events)) == {0: (5, [2])}


@given(event_rows(), st.integers(-1, LAST_DAY + 1), st.booleans())
def test_all_targets_after_agree_with_a_loop(rows, cut, unseen_only):
    expected = {}
    for user in range(N_USERS):
        targets = of_user(rows, user, targets_only=True)
        seen = had_before(rows, user, cut) if unseen_only else set()
        later = distinct(row["item"] for row in targets if row["time"] >= cut and row["item"] not in seen)
        if later and any(row["time"] < cut for row in of_user(rows, user)):
            expected[user] = (cut, later)
    assert as_dict(all_targets_after(build(rows), cut, unseen_only=unseen_only)) == expected


def test_held_out_from_events_takes_the_earliest_time():
    rows = [{"user": 1, "item": 3, "time": 4}, {"user": 1, "item": 2, "time": 6}, {"user": 0, "item": 2, "time": 5}]
    events = build(rows)
    held_out = HeldOut.from_events(events, events)
    assert as_dict(held_out) == {0: (5, [2]), 1: (4, [3, 2])}
    assert as_dict(held_out.take(np.array([False, True]))) == {1: (4, [3, 2])}
    assert as_dict(held_out.take(np.array([1]))) == {1: (4, [3, 2])}


def test_hash_users_is_the_same_everywhere():
    # Golden: blake2b("u1", digest_size=8, key=blake2b("", digest_size=32)) read as little-endian, modulo 1000
    key = hashlib.blake2b(b"", digest_size=32).digest()
    by_hand = int.from_bytes(hashlib.blake2b(b"u1", digest_size=8, key=key).digest(), "little") % 1000
    assert hash_users(["u1", "u2", 17, ("a", 1)], 1000).tolist() == [351, 451, 805, 266]
    assert by_hand == 351
    assert hash_users(["half \ud83d"], 1000).tolist() == [420]


def test_hash_users_fills_buckets_evenly_and_by_salt():
    ids = [f"user {code}" for code in range(20_000)]
    first, second = hash_users(ids, 4, salt="a"), hash_users(ids, 4, salt="b")
    # 20,000 in 4 buckets: 5,000 each, standard deviation sqrt(20000 * 1/4 * 3/4) = 61; five of them
    assert np.abs(np.bincount(first, minlength=4) - 5_000).max() < 306
    assert np.abs(np.bincount(first * 4 + second, minlength=16) - 1_250).max() < 5 * np.sqrt(20_000 / 16)
    assert hash_users([], 4).tolist() == []


def test_hash_users_refuses_no_buckets():
    with pytest.raises(DataError, match="n_buckets is 0"):
        hash_users(["u"], 0)
