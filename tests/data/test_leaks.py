"""What happens at or after a time must not reach features, histories, texts or fillings as of that time.

Every check comes with planted leaks that it must catch: a check that cannot fail shows nothing.
"""

from dataclasses import replace

import numpy as np
import pytest

from llm_rerank.data.cases import build_cases, seen_items
from llm_rerank.data.features import PAIR_FEATURES, ItemStatistics, pair_features
from llm_rerank.data.missing import MissingValues
from llm_rerank.data.rendering import Renderer
from llm_rerank.data.splits import before
from llm_rerank.types import Ragged
from tests.data.making import make_events, make_items, texts

DAY = 86_400
CUT = 100 * DAY
N_USERS, N_ITEMS = 30, 20
ITEMS = make_items(
    [
        {"brand": f"b{code % 4}", "categories": f"All > C{code % 3} > D{code % 5}", "price": 1.0 + code}
        for code in range(N_ITEMS)
    ]
)


def shop(time_kind="time"):
    """Events of 140 days; sentiment of each."""
    rng = np.random.default_rng(7)
    rows = [
        {
            "user": int(rng.integers(N_USERS)),
            "item": int(rng.integers(N_ITEMS)),
            "time": int(rng.integers(140) * DAY),  # whole days: many rows lie exactly at the cut
            "positive": bool(rng.random() < 0.7),
            "rating": float(rng.integers(1, 6)),
            "weight": float(rng.uniform(0.5, 2)),
            "review": f"review {place}",
            "query": "lamp" if rng.random() < 0.2 else "",
        }
        for place in range(900)
    ]
    events = make_events(rows, n_users=N_USERS, n_items=N_ITEMS, time_kind=time_kind)
    assert (events.times == CUT).any()
    return events, rng.uniform(-1, 1, len(events)).astype(np.float32)


def altered(events, sentiment, since):
    """Rewrite every row at or after a time: users, items, sales, weights, ratings, reviews, queries; add as many."""
    late = events.times >= since
    rng = np.random.default_rng(8)
    changed = replace(
        events,
        users=np.where(late, rng.integers(0, N_USERS, len(events)), events.users),
        items=np.where(late, 0, events.items),
        positive=events.positive | late,
        weights=np.where(late, np.float32(50), events.weights),
        ratings=np.where(late, np.float32(1), events.ratings),
        reviews=np.where(late, texts(["the future"] * len(events)), events.reviews),
        queries=np.where(late, texts(["the future"] * len(events)), events.queries),
    )
    twice = np.concatenate([np.arange(len(events)), np.flatnonzero(late)])
    twice = twice[np.argsort(events.times[twice], kind="stable")]
    return changed.take(twice), np.where(late, np.float32(1), sentiment)[twice]


def case_times(time):
    """Cases at different times, none later than the one given; some exactly at it."""
    return np.minimum(np.random.default_rng(9).integers(20, 120, N_USERS) * DAY, time)


def features(events, sentiment, *, as_of=CUT, time=CUT):
    users = np.arange(N_USERS)
    candidates = Ragged.from_lists([range(N_ITEMS)] * N_USERS)
    cases = build_cases(events, users, case_times(time), candidates=candidates)
    return pair_features(cases, ItemStatistics.from_events(events, ITEMS, as_of, sentiment), ITEMS)


def changed_features(first, second):
    return {name for place, name in enumerate(PAIR_FEATURES) if first[:, place].tobytes() != second[:, place].tobytes()}


def test_features_do_not_move_when_the_future_does():
    events, sentiment = shop()
    first, second = features(events, sentiment), features(*altered(events, sentiment, CUT))
    assert first.tobytes() == second.tobytes()
    assert np.isfinite(first).all(axis=1).any()  # there is something that could have moved


def test_features_do_not_move_within_the_fitted_past_either():
    # A case before the cut reads statistics that go up to the cut, but only up to its own time
    events, sentiment = shop()
    soonest = int(case_times(CUT).max())
    for time in (30 * DAY, 60 * DAY):
        assert time < soonest
        first = features(events, sentiment, time=time)
        second = features(*altered(events, sentiment, time), time=time)
        assert first.tobytes() == second.tobytes()


def test_a_planted_leak_moves_every_feature_it_can_reach():
    events, sentiment = shop()
    leak = {"as_of": CUT + DAY, "time": CUT + DAY}  # one day too far
    moved = changed_features(features(events, sentiment, **leak), features(*altered(events, sentiment, CUT), **leak))
    # item_age is the first event of an item, and every item's lies well before the cut
    assert moved == set(PAIR_FEATURES) - {"item_age"}


@pytest.mark.parametrize("late", [1, 10])
def test_later_statistics_leak_nothing_into_earlier_cases(late):
    events, sentiment = shop()
    assert features(events, sentiment).tobytes() == features(events, sentiment, as_of=CUT + late * DAY).tobytes()


def test_on_positions_only_as_of_guards_and_a_later_one_leaks():
    events, sentiment = shop("position")
    changed = altered(events, sentiment, CUT)
    assert features(events, sentiment).tobytes() == features(*changed).tobytes()
    moved = changed_features(features(events, sentiment, as_of=CUT + 1), features(*changed, as_of=CUT + 1))
    assert moved == {"item_support", "sentiment", "mean_rating"}


def histories(events, time):
    users = np.arange(N_USERS)
    cases = build_cases(events, users, case_times(time))
    seen = seen_items(events, users, case_times(time))
    arrays = (cases.history.values, cases.history.offsets, cases.history_weights, cases.history_times, seen.values)
    return [array.tobytes() for array in arrays], list(cases.queries)


def test_histories_do_not_move_when_the_future_does():
    events, sentiment = shop()
    changed, _ = altered(events, sentiment, CUT)
    assert histories(events, CUT) == histories(changed, CUT)
    assert histories(events, CUT + 1)[0] != histories(changed, CUT + 1)[0]  # one second too far is seen
    assert histories(events, CUT + 1)[1] != histories(changed, CUT + 1)[1]


def test_texts_do_not_move_when_the_future_does():
    events, sentiment = shop()
    changed, _ = altered(events, sentiment, CUT)
    renderer = Renderer()
    first, second = (renderer.render_items(ITEMS, each, CUT).texts.tolist() for each in (events, changed))
    assert first == second
    assert all("Reviews: review" in text for text in first)
    leaked = renderer.render_items(ITEMS, changed, CUT + 1).texts.tolist()
    assert leaked[0] != first[0]
    assert "the future" in leaked[0]


def test_fillings_do_not_move_when_the_future_does():
    events, sentiment = shop()
    changed, changed_sentiment = altered(events, sentiment, CUT)

    def filled(source, moods, time):
        past = before(source, time)
        values = features(past, moods[: len(past)], as_of=time, time=time)
        return MissingValues().fit(values, PAIR_FEATURES).transform(values).tobytes()

    assert filled(events, sentiment, CUT) == filled(changed, changed_sentiment, CUT)
    assert filled(events, sentiment, CUT + DAY) != filled(changed, changed_sentiment, CUT + DAY)
