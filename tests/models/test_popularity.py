"""Popularity and recent popularity, by hand."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_rerank.models.collaborative.popularity import Popularity, RecentPopularity
from llm_rerank.types import DataError, NotFittedError
from tests.planted import DAY, cases_of, events_of, items_of, planted_shop
from tests.scorer_suite import check_scorer, first_rate, joined

ITEMS = items_of(["a", "b", "c", "d"])
ONE_CASE = cases_of([[0]], [[0, 1, 2, 3]])


@pytest.mark.parametrize("make", [Popularity, RecentPopularity])
def test_suite(make, tmp_path):
    check_scorer(make, tmp_path, quality_floor=0.0, needs_history=False, new_items="known")


def test_popularity_cannot_tell_the_planted_themes():
    shop = planted_shop()
    scores = Popularity().fit(shop.past, shop.items).score(shop.cases)
    assert first_rate(scores, shop.cases) < 0.05  # or the floors of the other scorers would prove nothing


def test_users_count_once_and_only_positive_events():
    # item 0: users 0 and 1, the first twice; item 1: user 0, disliked; item 2: user 2; item 3: nobody
    past = events_of([(0, 0, 1), (0, 0, 2), (1, 0, 3), (0, 1, 4, -1.0), (2, 2, 5), (2, -1, 6)], 4)
    scores = Popularity().fit(past, ITEMS).score(ONE_CASE)
    np.testing.assert_allclose(scores, np.log1p([2, 0, 1, 0]), rtol=1e-6)


def test_half_life_fades_the_newest_event_of_each_user():
    # newest event of all: day 20. item 0: user 0 on days 0 and 10 -> age 10
    # item 1: user 1 on day 20 -> age 0, user 0 on day 0 -> age 20
    past = events_of([(0, 0, 0), (0, 0, 10 * DAY), (1, 1, 20 * DAY), (0, 1, 0)], 4, time_kind="time")
    scores = RecentPopularity(half_life_days=10).fit(past, ITEMS).score(ONE_CASE)
    np.testing.assert_allclose(scores, np.log1p([0.5, 1 + 0.25, 0, 0]), rtol=1e-6)


def test_window_is_a_hard_edge():
    past = events_of([(0, 0, 0), (1, 0, 13 * DAY + 1), (2, 1, 20 * DAY)], 4, time_kind="time")
    scores = RecentPopularity(window_days=7).fit(past, ITEMS).score(ONE_CASE)
    np.testing.assert_allclose(scores, np.log1p([1, 1, 0, 0]), rtol=1e-6)
    scores = RecentPopularity(window_days=20).fit(past, ITEMS).score(ONE_CASE)
    np.testing.assert_allclose(scores, np.log1p([1, 1, 0, 0]), rtol=1e-6)  # age 20 days is not within 20 days


def test_positions_are_no_clock(caplog):
    past = events_of([(0, 0, 0), (1, 0, 1), (1, 1, 500)], 4, time_kind="position")
    recent = RecentPopularity(half_life_days=1)
    with caplog.at_level(logging.WARNING):
        scores = recent.fit(past, ITEMS).score(ONE_CASE)
    assert recent.uses_time is False
    assert "positions" in caplog.text
    np.testing.assert_array_equal(scores, Popularity().fit(past, ITEMS).score(ONE_CASE))


def test_what_is_said_survives_saving(tmp_path):
    past = events_of([(0, 0, 0), (1, 0, 1)], 4, time_kind="position")
    RecentPopularity(window_days=3).fit(past, ITEMS).save(tmp_path)
    loaded = RecentPopularity.load(tmp_path)
    assert (loaded.uses_time, loaded.window_days, loaded.half_life_days) == (False, 3, None)


def test_errors():
    with pytest.raises(DataError, match="both given"):
        RecentPopularity(half_life_days=1, window_days=1)
    with pytest.raises(DataError, match="window_days is 0"):
        RecentPopularity(window_days=0)
    with pytest.raises(NotFittedError):
        Popularity().score(ONE_CASE)


event_rows = st.tuples(
    st.integers(0, 3),
    st.integers(-1, 3),
    st.sampled_from([0, DAY, 5 * DAY, 6 * DAY - 1, 6 * DAY, 30 * DAY, 31 * DAY, 36_500 * DAY]),
    st.sampled_from([1.0, 0.5, -1.0]),
)


@pytest.mark.parametrize(
    ("make", "time_kind"),
    [
        (Popularity, "time"),
        (RecentPopularity, "position"),
        (lambda: RecentPopularity(half_life_days=3), "time"),
        (lambda: RecentPopularity(half_life_days=300), "time"),
        (lambda: RecentPopularity(window_days=5), "time"),
        (lambda: RecentPopularity(window_days=0.5), "time"),
    ],
)
@settings(max_examples=40, deadline=None)
@given(rows=st.lists(event_rows, min_size=1, max_size=12), random=st.randoms(use_true_random=False))
def test_one_event_at_a_time_equals_a_recount(make, time_kind, rows, random):
    """Also where the newest event, from which ages count, comes a hundred years late, and where it goes again."""
    stream = [events_of([row], 4, n_users=4, time_kind=time_kind) for row in rows]
    scorer = make().fit(stream[0].take(stream[0].users < 0), ITEMS)
    held: list = []
    steps = [(event, True) for event in stream] + [(event, False) for event in random.sample(stream, len(stream))]
    for event, comes in steps:
        before = [one for one in held if one.users[0] == event.users[0]]
        held = [*held, event] if comes else [one for one in held if one is not event]
        after = [one for one in held if one.users[0] == event.users[0]]
        nothing = event.take(event.users < 0)
        scorer = scorer.revised(joined(nothing, *before), joined(nothing, *after))
        fitted = make().fit(joined(nothing, *held), ITEMS)
        np.testing.assert_allclose(scorer.score(ONE_CASE), fitted.score(ONE_CASE), atol=1e-7)


def test_a_removal_of_what_was_never_there_is_refused():
    past = events_of([(0, 0, 5 * DAY), (1, 1, 6 * DAY)], 4, time_kind="time")
    scorer = RecentPopularity().fit(past, ITEMS)
    nothing = past.take(past.users < 0)
    for row in [(0, 0, 4 * DAY), (0, 1, 5 * DAY), (0, 3, 99 * DAY)]:
        with pytest.raises(DataError, match="recent_popularity has not counted"):
            scorer.revised(events_of([row], 4, n_users=2, time_kind="time"), nothing)
    with pytest.raises(DataError, match="has not counted"):  # once, but not twice
        scorer.revised(events_of([(0, 0, 5 * DAY), (1, 0, 5 * DAY)], 4, n_users=2, time_kind="time"), nothing)


def test_saved_file_has_times_but_no_users(tmp_path):
    past = planted_shop().past
    RecentPopularity().fit(past, items_of(["x"] * past.n_items)).save(tmp_path)
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not any(user.encode() in content for user in past.user_ids if len(user) > 2)
