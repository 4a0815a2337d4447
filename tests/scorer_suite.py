"""One suite that every scorer passes: ``check_scorer(make, tmp_path, quality_floor=...)``. Black box, on planted data.

Each check is a function of its own, so that a failure names the rule that was broken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from llm_rerank.types import Cases, CatalogueScorer, Ragged, Scorer
from tests.planted import PlantedShop, cases_of, planted_shop

TOLERANCE = 1e-6
"""Of scores that must be equal, in units of the largest score's size (but at least 1)."""


def check_scorer(
    make: Callable[[], Scorer],
    tmp_path: Path,
    *,
    quality_floor: float,
    needs_history: bool = True,
    same_with_seed: bool = True,
    shop: PlantedShop | None = None,
) -> Scorer:
    """Check everything; returns the fitted scorer.

    make: builds an unfitted scorer, the same one each time. quality_floor: least share of planted cases whose target
    is ranked first of 20 (chance .05; see ``planted_shop``). needs_history: an empty history must give NaN; else it
    must give numbers. same_with_seed: False only where the scorer itself says that it is not reproducible.
    """
    shop = planted_shop() if shop is None else shop
    before = _copies(shop)
    scorer = make().fit(shop.past, shop.items, seed=7)
    assert isinstance(scorer, Scorer)
    assert isinstance(scorer.name, str) and scorer.name
    assert scorer.depends_on_list in (True, False)
    scores = scorer.score(shop.cases)
    assert scores.dtype == np.float32
    assert scores.shape == (len(shop.cases.candidates.values),)

    check_quality(scorer, shop, quality_floor)
    check_empty_history(scorer, shop, needs_history)
    check_unknown_items(scorer, shop)
    check_unknown_history(scorer, shop)
    check_empty_candidates(scorer, shop)
    if not scorer.depends_on_list:
        check_list_independence(scorer, shop)
    check_case_independence(scorer, shop)
    if isinstance(scorer, CatalogueScorer):
        check_catalogue(scorer, shop)
    if same_with_seed:
        assert_same(make().fit(shop.past, shop.items, seed=7).score(shop.cases), scores)
    check_save_and_load(scorer, shop, tmp_path)
    _assert_unchanged(shop, before)
    return scorer


def first_rate(scores: np.ndarray, cases: Cases) -> float:
    """Share of cases whose target scores above all other candidates; NaN never does, and a tie is no win."""
    wins = 0
    for row in range(len(cases)):
        part = slice(*cases.candidates.offsets[row : row + 2])
        own = np.isin(cases.candidates.values[part], cases.targets[row])
        values = np.where(np.isnan(scores[part]), -np.inf, scores[part])
        wins += bool(values[own].max() > values[~own].max())
    return wins / len(cases)


def check_quality(scorer: Scorer, shop: PlantedShop, quality_floor: float) -> None:
    rate = first_rate(scorer.score(shop.cases), shop.cases)
    assert rate >= quality_floor, f"{scorer.name} puts the target first in {rate:.3f} of cases; floor {quality_floor}"


def check_empty_history(scorer: Scorer, shop: PlantedShop, needs_history: bool) -> None:
    warm = np.setdiff1d(np.arange(len(shop.items)), shop.cold)[:5]
    scores = scorer.score(cases_of([[], shop.cases.history[0]], [warm, warm]))
    assert np.isnan(scores[:5]).all() if needs_history else np.isfinite(scores[:5]).all()
    assert np.isfinite(scores[5:]).all(), "the case beside the empty one must not suffer"


def check_unknown_items(scorer: Scorer, shop: PlantedShop) -> None:
    n_items = len(shop.items)
    known = shop.cases.candidates[0]
    mixed = np.concatenate([[-1], known[:3], [n_items, n_items + 1000], known[3:], [-1]])
    scores = scorer.score(shop.cases.take(np.array([0])).with_candidates(Ragged.from_lists([mixed])))
    unknown = (mixed < 0) | (mixed >= n_items)
    assert np.isnan(scores[unknown]).all()
    if not scorer.depends_on_list:
        assert_same(scores[~unknown], scorer.score(shop.cases.take(np.array([0]))))


def check_unknown_history(scorer: Scorer, shop: PlantedShop) -> None:
    """History items outside the catalogue say nothing, and break nothing."""
    past, n_items = shop.cases.history[3], len(shop.items)
    known = np.setdiff1d(np.arange(n_items), shop.cold)[:40]
    clean = cases_of([past], [known], times=[np.arange(len(past)) + 1])
    # the unknown ones share visits with known ones, so that no age changes
    dirty = cases_of(
        [[-1, *past, n_items + 5]], [known], times=[np.concatenate([[1], np.arange(len(past)) + 1, [len(past)]])]
    )
    assert_same(scorer.score(dirty), scorer.score(clean))


def check_empty_candidates(scorer: Scorer, shop: PlantedShop) -> None:
    some = shop.cases.take(np.array([0, 1, 2]))
    gappy = Ragged.from_lists([some.candidates[0], [], some.candidates[2]])
    scores = scorer.score(some.with_candidates(gappy))
    whole = scorer.score(some)
    n_first, n_second = some.candidates.lengths[:2]
    assert_same(scores, np.concatenate([whole[:n_first], whole[n_first + n_second :]]))
    assert scorer.score(some.with_candidates(Ragged.empty(3))).shape == (0,)
    assert scorer.score(some.take(np.empty(0, dtype=np.int64))).shape == (0,)


def check_list_independence(scorer: Scorer, shop: PlantedShop) -> None:
    """A pair's score alone equals its score among 500, in any order, and beside itself."""
    rng = np.random.default_rng(3)
    case = shop.cases.take(np.array([5]))
    crowd = rng.integers(0, len(shop.items), 500)
    among = scorer.score(case.with_candidates(Ragged.from_lists([crowd])))
    shuffle = rng.permutation(500)
    assert_same(scorer.score(case.with_candidates(Ragged.from_lists([crowd[shuffle]]))), among[shuffle])
    chosen = np.arange(0, 500, 25)
    alone = scorer.score(
        shop.cases.take(np.full(len(chosen), 5)).with_candidates(
            Ragged.from_lists([[crowd[place]] for place in chosen])
        )
    )
    assert_same(alone, among[chosen])


def check_case_independence(scorer: Scorer, shop: PlantedShop) -> None:
    """A case's scores do not depend on the cases beside it, nor on their order."""
    rows = np.array([4, 0, 11, 4, 2])
    together = scorer.score(shop.cases.take(rows))
    apart = np.concatenate([scorer.score(shop.cases.take(np.array([row]))) for row in rows])
    assert_same(together, apart)


def check_catalogue(scorer: CatalogueScorer, shop: PlantedShop) -> None:
    some = shop.cases.take(np.arange(6))
    table = scorer.score_catalogue(some)
    assert table.dtype == np.float32
    assert table.shape == (6, len(shop.items))
    assert_same(scorer.score(some), table[some.candidates.row_of_value, some.candidates.values])


def check_save_and_load(scorer: Scorer, shop: PlantedShop, tmp_path: Path) -> None:
    folder = tmp_path / f"saved_{scorer.name}"
    folder.mkdir()
    scorer.save(folder)
    loaded = type(scorer).load(folder)
    assert loaded.name == scorer.name
    everything = np.arange(-1, len(shop.items) + 1)
    history = [*(shop.cases.history[row] for row in range(4)), [], [shop.cold[0]] if len(shop.cold) else []]
    hard = cases_of(history, [everything] * 6)
    assert_same(loaded.score(hard), scorer.score(hard))
    assert_same(loaded.score(shop.cases), scorer.score(shop.cases))


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    """Equal within ``TOLERANCE``, NaN in the same places."""
    scale = max(1.0, float(np.nanmax(np.abs(other), initial=0.0)))
    np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE * scale)


def _copies(shop: PlantedShop) -> list:
    return [
        (owner, field.name, _copy(getattr(owner, field.name)))
        for owner in (shop.past, shop.items, shop.cases)
        for field in fields(owner)
    ]


def _copy(value):
    if isinstance(value, Ragged):
        return replace(value, values=value.values.copy(), offsets=value.offsets.copy())
    return value.copy() if hasattr(value, "copy") else value


def _assert_unchanged(shop: PlantedShop, before: list) -> None:
    for owner, name, old in before:
        new = getattr(owner, name)
        if isinstance(old, Ragged):
            same = np.array_equal(old.values, new.values) and np.array_equal(old.offsets, new.offsets)
        elif hasattr(old, "equals"):
            same = old.equals(new)
        elif isinstance(old, np.ndarray):
            same = np.array_equal(old, new, equal_nan=old.dtype.kind == "f")
        else:
            same = old == new
        assert same, f"{type(owner).__name__}.{name} was changed"
