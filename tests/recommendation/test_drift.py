"""The drift watch: indices by hand, quiet on the same population, loud on a shifted one, silent on a handful."""

from dataclasses import replace

import numpy as np
import pytest

from llm_rerank.recommendation.drift import (
    MOST_DRIFT,
    Drift,
    DriftProfile,
    DriftWatch,
    chance_limit,
    drift_from,
    profile_of,
    shares_of,
    stability_index,
)
from llm_rerank.types import Ragged


def batch(rng, n=500, shift=0.0, longest=12, shortest=1, length=20):
    rows = Ragged.from_lengths(np.zeros(n * length, dtype=np.int64), np.full(n, length))
    lists = rng.normal(0, 0.7, (n, 1))  # candidates of a list hang together
    scores = (lists + rng.normal(shift, 1, (n, length))).ravel()
    return scores, rows, rng.integers(shortest, longest, n)


def test_the_index_by_hand():
    # counts 50 and 50, 80 and 20, with half a case added to each
    e, o = np.array([50.5, 50.5]) / 101, np.array([80.5, 20.5]) / 101
    by_hand = (o[0] - e[0]) * np.log(o[0] / e[0]) + (o[1] - e[1]) * np.log(o[1] / e[1])
    assert stability_index([0.5, 0.5], [0.8, 0.2], 100, 100) == pytest.approx(by_hand)
    assert stability_index([0.5, 0.5], [0.5, 0.5], 100, 40) == pytest.approx(0.0)
    assert np.isfinite(stability_index([1.0, 0.0], [0.0, 1.0], 100, 100))


def test_the_limit_of_chance_is_what_samples_of_one_population_show():
    rng = np.random.default_rng(0)
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    indices = [
        stability_index(rng.multinomial(400, shares) / 400, rng.multinomial(150, shares) / 150, 400, 150)
        for _ in range(20_000)
    ]
    assert np.mean(np.array(indices) > chance_limit(4, 400, 150)) == pytest.approx(0.001, abs=0.001)


def test_the_profile_weighs_every_list_alike():
    # one list of nine low scores, one of a single high score: half of the mass each
    rows = Ragged.from_lengths(np.zeros(10, dtype=np.int64), np.array([9, 1]))
    profile = profile_of(np.array([*np.zeros(9), 5.0]), rows, np.array([0, 4]))
    assert profile.score_edges == [0.0, 5.0]
    assert profile.score_shares == pytest.approx([0.0, 0.5, 0.5])
    assert profile.history_shares == pytest.approx([0, 1, 0, 0])  # of the one user who has a history
    assert (profile.no_history, profile.unknown_items, profile.n_cases) == (0.5, 0.0, 2)
    assert DriftProfile.from_dict(profile.to_dict()) == profile
    assert profile_of(np.full(10, np.nan), rows, np.array([0, 4])) is None


def test_the_same_population_has_not_drifted():
    rng = np.random.default_rng(1)
    shifted = 0
    for _ in range(200):
        shifted += bool(drift_from(profile_of(*batch(rng)), *batch(rng, n=300)).shifted)
    assert shifted == 0


def test_populations_of_now_change_nothing_of_what_was_judged():
    rows = Ragged.from_lengths(np.zeros(4, dtype=np.int64), np.ones(4, dtype=np.int64))
    profile = profile_of(np.arange(4.0), rows, np.array([0, 0, 0, 4]))
    grown = profile.knowing(np.array([0, 0, 1, 20]), np.array([0, 3, 20, 30]))
    assert grown.by_now == [[1, 0, 0, 1], [0, 1, 0, 2]]
    assert replace(grown, by_now=()) == profile
    assert DriftProfile.from_dict(grown.to_dict()) == grown


def test_lists_for_whom_a_shop_has_by_now_differ_from_the_judged_ones_without_being_news():
    rng = np.random.default_rng(8)
    shop = np.concatenate([rng.integers(1, 4, 3_000), rng.integers(9, 30, 600)])
    scores, rows, _ = batch(rng)
    judged = rng.integers(4, 9, 500)
    profile = profile_of(scores, rows, judged).knowing(rng.integers(9, 30, 500), shop)
    assert not drift_from(profile, scores, rows, judged).shifted
    for lengths in (rng.choice(shop, 500), rng.integers(9, 30, 500)):  # everybody; the judged ones, grown
        drift = drift_from(profile, scores, rows, lengths)
        assert (drift.shifted, drift.as_by_now, drift.is_news) == (["history lengths"], True, False)
        assert Drift.from_dict(drift.to_dict()) == drift
        assert drift_from(replace(profile, by_now=()), scores, rows, lengths).is_news
    newer = drift_from(profile, scores, rows, rng.integers(1, 2, 500))
    assert (newer.shifted, newer.as_by_now, newer.is_news) == (["history lengths"], False, True)
    higher = drift_from(profile, scores + 1, rows, rng.choice(shop, 500))
    assert higher.as_by_now
    assert higher.is_news


@pytest.mark.parametrize("share_without", [0.5, 0.97])
def test_histories_are_compared_as_many_as_there_are(share_without):
    # of 400 and 300 lists 12 and 9 have a history at .97: by chance four of five such pairs pass an index of .25
    rng = np.random.default_rng(7)

    def drawn(n):
        scores, rows, _ = batch(rng, n=n, length=2)
        return scores, rows, np.where(rng.random(n) < share_without, 0, rng.geometric(0.15, n))

    shifted = 0
    for _ in range(300):
        one, other = drawn(400), drawn(300)
        drift = drift_from(profile_of(*one), *other)
        shifted += "history lengths" in drift.shifted
        n, m = ((lengths > 0).sum() for _, _, lengths in (one, other))
        assert drift.limits["history lengths"] == pytest.approx(max(MOST_DRIFT, chance_limit(4, n, m)))
    assert shifted <= 3  # .1 % of draws


@pytest.mark.parametrize(
    ("name", "changes"),
    [("score quantiles", {"shift": 0.8}), ("history lengths", {"shortest": 9}), ("history lengths", {"longest": 4})],
)
def test_a_shifted_population_is_named(name, changes):
    rng = np.random.default_rng(2)
    drift = drift_from(profile_of(*batch(rng)), *batch(rng, **changes))
    assert drift.shifted == [name]
    assert name in drift.sentence()
    assert f"index {drift.indices[name]:.2f}" in drift.sentence()
    assert drift.to_dict()["shifted"] == [name]


def test_newcomers_and_unknown_items_are_named():
    rng = np.random.default_rng(3)
    profile = profile_of(*batch(rng))
    scores, rows, lengths = batch(rng)
    lengths[:200] = 0
    assert "users without history" in drift_from(profile, scores, rows, lengths).shifted
    scores, rows, lengths = batch(rng)
    scores[rng.random(len(scores)) < 0.3] = np.nan
    assert drift_from(profile, scores, rows, lengths).shifted == ["unknown items"]


def test_what_is_not_known_is_not_compared():
    rng = np.random.default_rng(5)
    profile = replace(profile_of(*batch(rng)), unknown_items=None)
    scores, rows, lengths = batch(rng)
    scores[rng.random(len(scores)) < 0.3] = np.nan
    drift = drift_from(profile, scores, rows, lengths)
    assert "unknown items" not in drift.indices
    assert drift.shifted == []
    newcomers = drift_from(profile, scores, rows, np.zeros_like(lengths))
    assert newcomers.shifted == ["users without history"]  # there are no lengths to compare


def test_a_handful_of_lists_says_nothing():
    rng = np.random.default_rng(4)
    profile = profile_of(*batch(rng))
    assert not drift_from(profile, *batch(rng, n=2, shift=1.0)).shifted
    assert drift_from(profile, *batch(rng, n=200, shift=1.0)).shifted
    drift = drift_from(profile, *batch(rng, n=2))
    assert drift.limits["score quantiles"] == pytest.approx(chance_limit(10, 500, 2))
    assert drift_from(profile, *batch(rng, n=50_000)).limits["score quantiles"] == MOST_DRIFT
    empty = drift_from(profile, np.empty(0), Ragged.empty(3), np.array([1, 2, 3]))
    assert (empty.shifted, empty.sentence()) == ([], "")


def test_lists_one_by_one_are_compared_as_they_are_together():
    rng = np.random.default_rng(5)
    profile = profile_of(*batch(rng))
    scores, rows, lengths = batch(rng, n=80, shift=0.6, shortest=0)
    scores[::17] = np.nan
    watch = DriftWatch(profile, n_lists=50)

    def alone(row):
        at = slice(rows.offsets[row], rows.offsets[row + 1])
        return shares_of(profile, scores[at], rows.take(np.array([row])), lengths[[row]])

    for row in range(80):
        drift = watch.after(alone(row))
        last = np.arange(max(0, row - 49), row + 1)
        together = drift_from(profile, scores[rows.value_positions(last)], rows.take(last), lengths[last])
        assert drift.n_cases == len(last)
        assert drift.indices == pytest.approx(together.indices)
        assert drift.limits == pytest.approx(together.limits)
    assert drift.shifted
    assert not DriftWatch(profile).after(alone(79)).shifted  # one list tells nothing


def test_histories_shorter_than_any_held_out_one_are_said_to_be_so():
    rng = np.random.default_rng(6)
    profile = profile_of(*batch(rng, shortest=5))
    scores, rows, lengths = batch(rng, n=400, shortest=5)
    lengths[:100] = 1
    drift = drift_from(profile, scores, rows, lengths)
    assert drift.uncovered == pytest.approx(0.25) and drift.shifted == ["history lengths"]
    assert "25% have histories of a length that none of those had" in drift.sentence()
    assert Drift.from_dict(drift.to_dict()) == drift
    assert "that none of those had" not in drift_from(profile, *batch(rng, n=400, shift=1.0, shortest=5)).sentence()
