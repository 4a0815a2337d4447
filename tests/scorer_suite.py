"""One suite that every scorer passes: ``check_scorer(make, tmp_path, quality_floor=...)``. Black box, on planted data.

Each check is a function of its own, so that a failure names the rule that was broken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llm_rerank.types import (
    EVENT_ARRAYS,
    Cases,
    CatalogueScorer,
    DataError,
    GrowingScorer,
    Interactions,
    Items,
    Ragged,
    RevisableScorer,
    Scorer,
)
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
    new_items: str = "unknown",
    shop: PlantedShop | None = None,
) -> Scorer:
    """Check everything; returns the fitted scorer.

    make: builds an unfitted scorer, the same one each time. quality_floor: least share of planted cases whose target
    is ranked first of 20 (chance .05; see ``planted_shop``). needs_history: an empty history must give NaN; else it
    must give numbers. same_with_seed: False only where the scorer itself says that it is not reproducible.
    new_items: what ``grown`` can say of items without events: "unknown" (NaN), "known" by their text or by their lack
    of events, or "related", known and in the sums of which the old items' scores are made too.
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
    check_growth(scorer, shop, tmp_path, new_items)
    if isinstance(scorer, RevisableScorer):
        check_revision(make, scorer, shop, tmp_path)
    assert_same(scorer.score(shop.cases), scores)  # the old one is as it was
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


def check_growth(scorer: Scorer, shop: PlantedShop, tmp_path: Path, new_items: str) -> None:
    """Three new items, one of them without a text, and none: ``grown`` reads them and leaves the rest alone."""
    assert isinstance(scorer, GrowingScorer)
    n_before, n_items = len(shop.items), len(shop.items) + 3
    items = longer_items(shop.items, [str(shop.items.texts[0]), "walnut rolling pin, baking", ""])
    new = np.arange(n_before, n_items)
    whole = [*range(0, n_before, 7), *new, n_items]
    hard = cases_of([shop.cases.history[0], [*shop.cases.history[1], n_before]], [whole] * 2)
    grown = scorer.grown(items, new)
    assert type(grown) is type(scorer) and grown is not scorer
    assert_same(scorer.grown(shop.items, np.empty(0, dtype=np.int64)).score(shop.cases), scorer.score(shop.cases))
    scores = grown.score(hard).reshape(2, -1)
    old, fresh, beyond = np.split(scores, [-4, -1], axis=1)
    assert np.isnan(beyond).all()
    if new_items != "related":
        assert_same(grown.score(shop.cases), scorer.score(shop.cases))
    if new_items == "unknown":
        assert np.isnan(fresh).all()
        assert_same(old, scorer.score(hard).reshape(2, -1)[:, :-4])
    else:
        assert np.isfinite(fresh[:, :2]).all()
        assert_same(fresh[:, 2], np.full(2, fresh[0, 2]))  # all alike where there is nothing to go by
    if isinstance(grown, CatalogueScorer):
        assert grown.score_catalogue(hard).shape == (2, n_items)
    assert np.isnan(scorer.score(hard).reshape(2, -1)[:, -4:]).all(), "the old one knows nothing of the new items"
    _check_saved_again(grown, hard, tmp_path / "grown")
    with pytest.raises(DataError, match="changed lacks the new item"):
        scorer.grown(items, new[:-1])
    with pytest.raises(DataError, match="codes are 0 to"):
        scorer.grown(items, np.append(new, n_items))
    with pytest.raises(DataError, match="items keep their codes"):
        scorer.grown(Items(items.ids[:5], items.frame[:5], items.texts[:5]), new[:0])


def check_revision(
    make: Callable[[], Scorer], scorer: RevisableScorer, shop: PlantedShop, tmp_path: Path, *, users: int = 9
) -> None:
    """Users taken out, put in, and given other events: equal to a fit on the events as they are then."""
    assert scorer.revises_cheaply in (True, False)
    past, rng = shop.past, np.random.default_rng(1)
    nobody = np.empty(0, dtype=np.int64)
    some = np.isin(past.users, rng.choice(past.n_users, users, replace=False))
    kept = rng.random(len(past)) < 0.6
    without = make().fit(past.take(~some), shop.items, seed=7)
    fewer = make().fit(past.take(~some | kept), shop.items, seed=7)
    everything = cases_of([shop.cases.history[row] for row in range(6)], [np.arange(len(shop.items))] * 6)
    taken_out = scorer.revised(past.take(some), past.take(nobody))
    for found, fitted in (
        (taken_out, without),
        (without.revised(past.take(nobody), past.take(some)), scorer),
        (scorer.revised(past.take(some), past.take(some & kept)), fewer),
        (taken_out.revised(past.take(nobody), past.take(some & kept)), fewer),
        (scorer.revised(past.take(nobody), past.take(nobody)), scorer),
    ):
        assert_same(found.score(everything), fitted.score(everything))
        assert_same(found.score(shop.cases), fitted.score(shop.cases))
    _check_saved_again(taken_out, everything, tmp_path / "revised")
    with pytest.raises(DataError, match="has not counted"):
        taken_out.revised(past, past.take(nobody))
    with pytest.raises(DataError, match="call grown first"):
        scorer.revised(past.take(nobody), replace(past.take(nobody), n_items=past.n_items + 1))


def _check_saved_again(scorer: Scorer, cases: Cases, folder: Path) -> None:
    folder = folder.with_name(f"{folder.name}_{scorer.name}")
    folder.mkdir()
    scorer.save(folder)
    assert_same(type(scorer).load(folder).score(cases), scorer.score(cases))


def longer_items(items: Items, texts: list[str]) -> Items:
    """The items with further ones after them, whose texts are these, and titles too.

    Of vectors they have those of the first items, in order, and none where the text is blank.
    """
    n = len(texts)
    added = pd.DataFrame({"item_id": [f"new{row}" for row in range(n)], "title": texts})
    frame = pd.concat([items.frame, added], ignore_index=True)
    says = np.array([[bool(text)] for text in texts])
    vectors = {name: np.concatenate([rows, np.where(says, rows[:n], 0)]) for name, rows in items.vectors.items()}
    return Items(
        frame["item_id"].to_numpy(object), frame, np.append(items.texts, np.array(texts, dtype=object)), vectors
    )


def joined(*events: Interactions) -> Interactions:
    """Events of the same users and catalogue, together, sorted by time."""
    arrays = {name: np.concatenate([getattr(part, name) for part in events]) for name in EVENT_ARRAYS}
    order = np.argsort(arrays["times"], kind="stable")
    return replace(events[0], **{name: array[order] for name, array in arrays.items()})


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
    if isinstance(value, dict):
        return {name: array.copy() for name, array in value.items()}
    return value.copy() if hasattr(value, "copy") else value


def _assert_unchanged(shop: PlantedShop, before: list) -> None:
    for owner, name, old in before:
        new = getattr(owner, name)
        if isinstance(old, Ragged):
            same = np.array_equal(old.values, new.values) and np.array_equal(old.offsets, new.offsets)
        elif isinstance(old, dict):
            same = list(old) == list(new) and all(np.array_equal(old[part], new[part]) for part in old)
        elif hasattr(old, "equals"):
            same = old.equals(new)
        elif isinstance(old, np.ndarray):
            same = np.array_equal(old, new, equal_nan=old.dtype.kind == "f")
        else:
            same = old == new
        assert same, f"{type(owner).__name__}.{name} was changed"
