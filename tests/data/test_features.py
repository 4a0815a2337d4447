import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_rerank.data import features as features_module
from llm_rerank.data.cases import build_cases
from llm_rerank.data.features import PAIR_FEATURES, ItemStatistics, pair_features
from llm_rerank.storage import read_arrays, write_arrays
from llm_rerank.types import DataError, Ragged
from tests.data.making import LAST_DAY, N_ITEMS, N_USERS, event_rows, make_events, make_items

DAY = 86_400
CATALOGUE = make_items(
    [
        {"brand": "Ari", "categories": "Home > Lamps", "price": 10.0},
        {"brand": "ari ", "categories": "Home > Chairs", "price": 40.0},
        {"brand": "Bo", "categories": "Home > Lamps > Desk"},
        {"categories": "Home", "price": 20.0},
        {"brand": "Bo"},
    ]
)
# Lamps on 2 of the 4 items with categories, Chairs and Desk on 1, Home on all
RARITY = {"Home": 0.0, "Lamps": math.log(2), "Chairs": math.log(4), "Desk": math.log(4)}


def codes(values):
    return np.array(values, dtype=np.int64)


def column(values, name):
    return values[:, PAIR_FEATURES.index(name)]


def features_of(rows, users, times, candidates, *, as_of=10**9, sentiment=None, time_kind="time"):
    events = make_events(rows, n_users=N_USERS, n_items=N_ITEMS, time_kind=time_kind)
    statistics = ItemStatistics.from_events(events, CATALOGUE, as_of, sentiment)
    cases = build_cases(events, codes(users), codes(times), candidates=Ragged.from_lists(candidates))
    return pair_features(cases, statistics, CATALOGUE)


def test_sales_count_the_days_before_and_not_the_moment_itself():
    days = [0.5, 6.9, 7, 7.1, 28, 28.1, 90, 91]
    rows = [{"user": 0, "item": 0, "time": int(-day * DAY)} for day in days]
    rows += [{"user": 1, "item": 0, "time": 0}, {"user": 1, "item": 0, "time": -5, "positive": False}]
    values = features_of(rows, [3], [0], [[0, 1]])
    # [t - 7 days, t): .5, 6.9 and exactly 7 days ago; then 7.1 and 28; then 28.1 and 90
    for name, count in (("sales_7d", 3), ("sales_28d", 5), ("sales_90d", 7)):
        assert column(values, name)[0] == pytest.approx(math.log1p(count))
        assert column(values, name)[1] == 0  # known to have sold nothing
    assert column(values, "recency")[0] == pytest.approx(math.log1p(0.5))
    assert column(values, "item_age")[0] == pytest.approx(math.log1p(91))
    assert np.isnan(column(values, "recency")[1])
    assert np.isnan(column(values, "item_age")[1])
    assert column(values, "item_support").tolist() == [pytest.approx(math.log(2)), 0]  # one buyer, eight times


def test_windows_end_where_the_statistics_end():
    rows = [{"user": 0, "item": 0, "time": -3 * DAY}]
    late = features_of(rows, [3], [100 * DAY], [[0]], as_of=0)
    assert column(late, "sales_7d")[0] == pytest.approx(math.log(2))
    assert column(late, "recency")[0] == pytest.approx(math.log1p(3))


def test_affinities_and_price_gap_by_hand():
    rows = [
        {"user": 0, "item": 0, "time": 1, "weight": 3.0},  # Ari, Lamps, price 10
        {"user": 0, "item": 2, "time": 2, "weight": 1.0},  # Bo, Lamps and Desk, no price
        {"user": 0, "item": 3, "time": 3, "weight": 2.0},  # no brand, price 20
        {"user": 0, "item": 1, "time": 4, "weight": -1.0},  # disliked: no evidence of a liking
    ]
    values = features_of(rows, [0, 1], [9, 9], [[0, 1, 2, 3, 4, -1], [0]])
    # Brand known on weight 3 (Ari) and 1 (Bo); case and blanks do not matter
    assert column(values, "brand_affinity")[[0, 1, 2, 4]] == pytest.approx([0.75, 0.75, 0.25, 0.25])
    # Categories known on 6; Lamps has 4 of them, Desk 1; "Home", on every item, tells nothing
    desk = (RARITY["Lamps"] * 4 / 6 + RARITY["Desk"] * 1 / 6) / (RARITY["Lamps"] + RARITY["Desk"])
    assert column(values, "category_affinity")[[0, 1, 2]] == pytest.approx([4 / 6, 0, desk])
    usual = (3 * math.log(10) + 2 * math.log(20)) / 5
    assert column(values, "price_gap")[[0, 1, 3]] == pytest.approx(
        [abs(math.log(10) - usual), abs(math.log(40) - usual), abs(math.log(20) - usual)], rel=1e-6
    )
    assert column(values, "user_support") == pytest.approx([math.log(5)] * 6 + [0])
    unknown = {"brand_affinity": [3, 5, 6], "category_affinity": [3, 4, 5, 6], "price_gap": [2, 4, 5, 6]}
    for name, places in unknown.items():
        assert np.flatnonzero(np.isnan(column(values, name))).tolist() == places
    known_of_unknown_item = np.flatnonzero(~np.isnan(values[5]))
    assert [PAIR_FEATURES[place] for place in known_of_unknown_item] == ["user_support"]


def test_opinions_are_drawn_to_the_mean_of_all_items():
    rows = [{"user": 0, "item": item, "time": time, "rating": r} for item, time, r in ((0, 1, 5), (0, 2, 4), (1, 3, 1))]
    values = features_of(rows, [3], [9], [[0, 1, 2]], sentiment=np.array([0.5, np.nan, -0.5], dtype=np.float32))
    # Mean of all ratings 10/3, counted 5 times: (5 + 4 + 50/3) / 7, (1 + 50/3) / 6
    assert column(values, "mean_rating")[:2] == pytest.approx([(9 + 50 / 3) / 7, (1 + 50 / 3) / 6], rel=1e-5)
    assert column(values, "sentiment")[:2] == pytest.approx([0.5 / 6, -0.5 / 6], rel=1e-5)
    assert np.isnan(values[2, -2:]).all()


def slow_features(rows, sentiment, user, time, item, as_of):
    """Compute every feature of one pair by loops."""
    t = min(time, as_of)
    past = [(row, mood) for row, mood in zip(rows, sentiment, strict=True) if row["time"] < t and row["item"] >= 0]
    mine = [row for row, _ in past if row["item"] == item]
    sold = [row for row in mine if row["positive"]]
    history = [row for row in rows if row["user"] == user and row["time"] < time and row["item"] >= 0]
    liked = [row for row in history if row["weight"] > 0]
    frame = CATALOGUE.frame

    def labels(code):
        return [] if not frame["categories"][code] else frame["categories"][code].split(" > ")

    def brand(code):
        return frame["brand"][code].strip().lower()

    def share(matches, known):
        total = sum(row["weight"] for row in liked if known(row["item"]))
        return sum(row["weight"] for row in liked if matches(row["item"])) / total if total else math.nan

    def mean(values_mine, values_all):
        if not values_mine:
            return math.nan
        return (sum(values_mine) + 5 * sum(values_all) / len(values_all)) / (len(values_mine) + 5)

    result = {f"sales_{d}d": math.log1p(sum(r["time"] >= t - d * DAY for r in sold)) for d in (7, 28, 90)}
    result["recency"] = math.log1p((t - max(r["time"] for r in sold)) / DAY) if sold else math.nan
    result["item_age"] = math.log1p((t - min(r["time"] for r in mine)) / DAY) if mine else math.nan
    result["item_support"] = math.log1p(len({r["user"] for r in sold}))
    result["user_support"] = math.log1p(len(history))
    result["brand_affinity"] = share(lambda c: brand(c) == brand(item), brand) if brand(item) else math.nan
    rarity = sum(RARITY[label] for label in labels(item))
    shares = [RARITY[k] * share(lambda c, k=k: k in labels(c), labels) for k in labels(item)]
    result["category_affinity"] = sum(shares) / rarity if rarity else math.nan
    priced = [r for r in liked if frame["price"][r["item"]] > 0]
    price = frame["price"][item]
    result["price_gap"] = math.nan
    if priced and price > 0:
        usual = sum(r["weight"] * math.log(frame["price"][r["item"]]) for r in priced)
        usual /= sum(r["weight"] for r in priced)
        result["price_gap"] = abs(math.log(price) - usual)
    result["sentiment"] = mean([m for r, m in past if r["item"] == item and m == m], [m for _, m in past if m == m])
    result["mean_rating"] = mean(
        [r["rating"] for r in mine if r["rating"] == r["rating"]],
        [r["rating"] for r, _ in past if r["rating"] == r["rating"]],
    )
    return [result[name] for name in PAIR_FEATURES]


pairs = st.lists(
    st.tuples(
        st.integers(0, N_USERS - 1), st.integers(0, LAST_DAY + 2), st.lists(st.integers(0, N_ITEMS - 1), max_size=9)
    ),
    max_size=4,
)


@given(event_rows(unit=5 * DAY), pairs, st.integers(0, LAST_DAY + 2), st.data())
def test_pair_features_agree_with_loops(rows, asked, as_of_day, data):
    moods = st.sampled_from([math.nan, -1.0, 0.25, 1.0])
    sentiment = data.draw(st.lists(moods, min_size=len(rows), max_size=len(rows)))
    users, times = [a[0] for a in asked], [a[1] * 5 * DAY for a in asked]
    as_of = as_of_day * 5 * DAY
    found = features_of(
        rows, users, times, [a[2] for a in asked], as_of=as_of, sentiment=np.array(sentiment, dtype=np.float32)
    )
    expected = [
        slow_features(rows, sentiment, user, time, item, as_of)
        for user, time, (_, _, items) in zip(users, times, asked, strict=True)
        for item in items
    ]
    np.testing.assert_allclose(found, np.array(expected).reshape(-1, len(PAIR_FEATURES)), rtol=2e-5, atol=2e-6)


def random_shop(seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        {
            "user": int(rng.integers(N_USERS)),
            "item": int(rng.integers(N_ITEMS)),
            "time": int(rng.integers(60 * DAY)),
            "rating": float(rng.integers(1, 6)),
            "weight": float(rng.uniform(0.1, 1)),
        }
        for _ in range(300)
    ]
    events = make_events(rows, n_users=N_USERS, n_items=N_ITEMS)
    sentiment = rng.uniform(-1, 1, len(events)).astype(np.float32)
    users, times = rng.integers(-1, N_USERS, 40), rng.integers(0, 70 * DAY, 40)
    candidates = Ragged.from_lists([rng.integers(-1, N_ITEMS, rng.integers(0, 7)) for _ in range(40)])
    return events, sentiment, build_cases(events, users, times, candidates=candidates)


def test_a_pair_has_the_same_features_alone_and_in_blocks(monkeypatch):
    events, sentiment, cases = random_shop()
    statistics = ItemStatistics.from_events(events, CATALOGUE, 65 * DAY, sentiment)
    whole = pair_features(cases, statistics, CATALOGUE)
    alone = [
        pair_features(cases.take(codes([row])).with_candidates(Ragged.from_lists([[code]])), statistics, CATALOGUE)
        for row in range(len(cases))
        for code in cases.candidates[row]
    ]
    assert np.concatenate(alone).tobytes() == whole.tobytes()
    monkeypatch.setattr(features_module, "_BLOCK_CANDIDATES", 3)
    assert pair_features(cases, statistics, CATALOGUE).tobytes() == whole.tobytes()


def test_statistics_survive_the_disk(tmp_path):
    events, sentiment, cases = random_shop()
    statistics = ItemStatistics.from_events(events, CATALOGUE, 50 * DAY, sentiment)
    write_arrays(tmp_path / "statistics.safetensors", statistics.to_arrays())
    again = ItemStatistics.from_arrays(read_arrays(tmp_path / "statistics.safetensors")[0], CATALOGUE)
    assert (again.as_of, again.time_kind) == (50 * DAY, "time")
    before, after = (pair_features(cases, each, CATALOGUE) for each in (statistics, again))
    assert before.tobytes() == after.tobytes()


def test_positions_have_no_clock():
    events = ((0, 0, 0), (1, 0, 5), (1, 0, 6), (2, 1, 0))
    rows = [{"user": user, "item": item, "time": time, "rating": 4.0} for user, item, time in events]
    values = features_of(rows, [3], [1], [[0, 1, 2]], time_kind="position")
    for name in ("sales_7d", "sales_28d", "sales_90d", "recency", "item_age"):
        assert np.isnan(column(values, name)).all()
    # Position 5 of user 1 is not after position 1 of user 3: every event given counts
    assert column(values, "item_support") == pytest.approx([math.log(3), math.log(2), 0])
    assert column(values, "mean_rating")[:2] == pytest.approx([4, 4])


def test_no_candidates_and_no_events():
    empty = features_of([], [0, 1], [5, 5], [[], []])
    assert empty.shape == (0, len(PAIR_FEATURES))
    assert empty.dtype == np.float32
    cold = features_of([], [0], [5], [[0]])[0]
    known = {name: value for name, value in zip(PAIR_FEATURES, cold, strict=True) if value == value}
    assert known == {"sales_7d": 0, "sales_28d": 0, "sales_90d": 0, "item_support": 0, "user_support": 0}


def test_statistics_refuse_what_does_not_fit():
    events = make_events([{"time": 1}], n_users=1, n_items=3)
    with pytest.raises(DataError, match="refer to 3 items, the catalogue has 5"):
        ItemStatistics.from_events(events, CATALOGUE, 5)
    events = make_events([{"time": 1}], n_users=1, n_items=5)
    with pytest.raises(DataError, match="sentiment has 2 values for 1 events"):
        ItemStatistics.from_events(events, CATALOGUE, 5, np.zeros(2, dtype=np.float32))
    statistics = ItemStatistics.from_events(events, CATALOGUE, 5)
    with pytest.raises(DataError, match="statistics are of 5 items, the catalogue has 1"):
        pair_features(build_cases(events, codes([0]), codes([5])), statistics, make_items([{}]))
