"""Which targets are held out: bounds by hand, who may be held out, and draws that a seed decides."""

from dataclasses import replace

import numpy as np
import pytest

from llm_rerank.data.cases import build_cases
from llm_rerank.recommendation.holdout import MOST_HOLDOUT_USERS, n_holdout_users, plan_holdout
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.training_lists import list_targets, peel
from tests.planted import DAY, events_of


def planned(events, seed=0):
    return plan_holdout(events, seed, FitLog(verbose=False))


def window_shop(n_users):
    """Nine events of each user, then a tenth, of an item that nobody had, after all the others."""
    rows = [(user, step % 5, step * 10_000 + user) for user in range(n_users) for step in range(9)]
    return events_of(rows + [(user, 5, 10**6 + user) for user in range(n_users)], 6, time_kind="time")


def test_four_hundred_users_in_the_newest_tenth_are_enough_and_one_less_is_not():
    holdout = planned(window_shop(400))
    assert holdout.protocol == "time"
    assert "the 90% quantile" in holdout.description
    assert holdout.as_of == 10**6  # the first of the tenth events
    assert len(holdout.past) == 9 * 400  # the event at the cut itself is not past
    assert len(holdout.targets) == 400
    assert set(holdout.targets.targets.values) == {5}
    assert planned(window_shop(399)).protocol == "positions"


def test_of_more_users_after_the_cut_so_many_are_drawn_and_a_seed_says_which(monkeypatch):
    events = window_shop(600)
    whole = planned(events)
    monkeypatch.setattr("llm_rerank.recommendation.holdout.MOST_WINDOW_USERS", 450)
    plans = [planned(events, seed) for seed in (0, 0, 1)]
    users = [plan.targets.users.tolist() for plan in plans]
    assert users[0] == users[1] == sorted(set(users[0])) != users[2]
    for plan in plans:
        assert len(plan.targets) == 450
        assert len(plan.targets.targets.values) == 450
        # the oldest and the newest customers alike: a mean of 299.5, of which 450 of 600 miss 4.1 by chance
        assert plan.targets.users.mean() == pytest.approx(299.5, abs=13)
        assert len(plan.past) == len(whole.past)  # nobody else loses an event by it
        assert "450 of 600 users with a past and an unseen target after it drawn" in plan.description
    assert len(whole.targets) == 600
    assert whole.description.endswith("600 users with a past have an unseen target after it")


def mixed_users():
    """Users 0 to 4 with three positives each; 5 to 9 with two and five views; 10 to 19 without any event."""
    rows = [(user, step, step) for user in range(5) for step in range(3)]
    rows += [(user, step, step) for user in range(5, 10) for step in range(7)]
    events = events_of(rows, 7, n_users=20)
    return replace(events, positive=~((events.users >= 5) & (events.items >= 2)))


@pytest.mark.parametrize(
    ("n_users", "n_held_out"), [(0, 0), (3, 1), (1_000, 600), (2_500, 1_500), (4_000, 1_500), (8_000, 2_400)]
)
def test_a_young_shop_holds_out_more_of_its_users(n_users, n_held_out):
    assert n_holdout_users(n_users) == n_held_out


def test_users_with_three_positives_are_held_out_and_a_seed_says_which():
    events = mixed_users()
    events = events.take(events.users < 8)
    drawn = [tuple(planned(events, seed).targets.users) for seed in range(12)]
    for users in drawn:
        assert len(users) == 4  # 60 % of the eight users with events
        assert set(users) <= set(range(5))  # two positives are too few, whatever was viewed
    assert set().union(*drawn) == set(range(5))
    assert planned(events, 3).targets.users.tolist() == list(drawn[3])


def test_only_the_held_out_users_lose_their_target_and_what_follows():
    events = mixed_users()
    holdout = planned(events)
    assert (holdout.targets.times == 2).all()
    gone = np.isin(events.users, holdout.targets.users) & (events.times >= 2)
    np.testing.assert_array_equal(holdout.past_rows, np.flatnonzero(~gone))
    np.testing.assert_array_equal(holdout.past.items, events.items[~gone])
    assert holdout.as_of == 7  # after the last event, so that all of the past counts


def test_of_many_users_three_thousand_are_held_out():
    n_users = 10_100
    events = events_of([(user, step, step) for user in range(n_users) for step in range(3)], 3, n_users=n_users)
    assert len(planned(events).targets) == MOST_HOLDOUT_USERS == 3_000


def test_without_events_nothing_is_held_out():
    holdout = planned(events_of([], 3, n_users=2, time_kind="time"))
    assert (holdout.protocol, len(holdout.targets), len(holdout.past), holdout.as_of) == ("positions", 0, 0, 0)


def looking_shop(n_users=40, n_visits=5):
    """Each user takes an item a day, each viewed a minute before, and had viewed tomorrow's item a month ago."""
    rows = [(user, (user + visit) % 9, visit * DAY + user) for user in range(n_users) for visit in range(n_visits)]
    views = [(user, item, time - 60) for user, item, time in rows]
    long_ago = [(user, (user + n_visits - 1) % 9, user - 30 * DAY) for user in range(n_users)]
    events = events_of(views + rows + long_ago, 9, time_kind="time")
    taken = np.isin(events.users * DAY + events.times, [user * DAY + time for user, _, time in rows])
    return replace(events, positive=taken)


def test_no_history_holds_the_visit_in_which_its_target_was_taken():
    events = looking_shop()
    holdout = planned(events)
    assert holdout.protocol == "positions"
    lists = list_targets(holdout, 0)
    assert len(lists)
    for past, targets in ((holdout.past, holdout.targets), (peel(holdout.past, lists)[0], lists)):
        cases = build_cases(past, targets.users, targets.times, targets=targets.targets)
        own = cases.history.values == cases.targets.values[cases.history.row_of_value]
        assert own.sum() == len(cases)  # the look of a month ago, and no other
        assert (cases.history_times[own] < 0).all()
        rows = np.isin(past.users, targets.users)
        assert (past.times[rows] < targets.times[np.searchsorted(targets.users, past.users[rows])]).all()
