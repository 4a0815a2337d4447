"""A planted shop: every user likes one theme, every item belongs to one, and its text says which in real words.

The right answer is provable: each case's candidates hold exactly one item of the user's theme (the target); the others
are of other themes, and the best sellers of the shop are among them. Popularity, by construction, cannot tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from llm_rerank.types import Cases, Interactions, Items, Ragged

THEMES = {
    "garden": (
        "trowel, pruning shears, watering can, flower pot, seed tray, "
        "lawn rake, garden hose, potting soil, plant trellis"
    ),
    "coffee": (
        "espresso machine, coffee grinder, milk frother, pour over dripper, coffee beans, "
        "moka pot, espresso cups, coffee filter, tamper"
    ),
    "cycling": (
        "bicycle helmet, bike pump, bicycle chain, bike saddle, cycling gloves, "
        "bicycle light, bike lock, inner tube, pedals"
    ),
    "painting": (
        "watercolor paints, oil paint set, artist canvas, paint brushes, easel, "
        "sketchbook, palette knife, gouache, drawing pencils"
    ),
    "camping": (
        "hiking tent, sleeping bag, camping stove, backpack, headlamp, "
        "hammock, trekking poles, camp chair, water bottle"
    ),
    "baking": (
        "cake pan, rolling pin, cookie cutter, stand mixer, bread flour, muffin tray, pastry brush, icing bag, loaf tin"
    ),
    "music": (
        "acoustic guitar, guitar strings, violin bow, drum sticks, piano bench, "
        "ukulele, music stand, metronome, harmonica"
    ),
    "fishing": (
        "fishing rod, spinning reel, fishing lure, tackle box, fishing line, landing net, bait hooks, waders, bobbers"
    ),
}
GRADES = ("classic", "premium", "compact", "deluxe", "travel", "starter")

CLOCK_START = 1_600_000_000  # September 2020
DAY = 86_400


@dataclass(frozen=True)
class PlantedShop:
    """What ``planted_shop`` made.

    past: events; cases: one a user, with candidates and one target. item_themes, user_themes: int64 theme numbers.
    cold: codes of the items that nobody took; they have texts and are no one's target.
    """

    past: Interactions
    items: Items
    cases: Cases
    item_themes: np.ndarray
    user_themes: np.ndarray
    cold: np.ndarray


def planted_shop(
    *,
    n_users: int = 320,
    items_a_theme: int = 20,
    events_a_user: int = 9,
    n_candidates: int = 20,
    loyalty: float = 0.9,
    n_cold: int = 8,
    time_kind: str = "time",
    seed: int = 0,
) -> PlantedShop:
    """Plant a shop.

    Each event is of the user's theme with probability ``loyalty``, else of any; within a theme, items sell by a
    popularity of their own (one over the root of its rank). The target is an unseen item of the user's theme, drawn
    evenly; the other candidates are the n_candidates / 2 best sellers of other themes and even draws from other themes.
    A single score for all users therefore ranks the target below those best sellers more often than not.
    """
    rng = np.random.default_rng(seed)
    n_themes = len(THEMES)
    item_themes = np.repeat(np.arange(n_themes), items_a_theme)
    n_items = len(item_themes)
    cold = np.sort(rng.choice(n_items, n_cold, replace=False))
    appeal = rng.permutation(n_items).reshape(n_themes, items_a_theme).argsort(axis=1) + 1.0
    appeal = (1.0 / np.sqrt(appeal)).reshape(-1)
    appeal[cold] = 0
    user_themes = np.arange(n_users) % n_themes
    users, items, histories = [], [], []
    for user in range(n_users):
        own = item_themes == user_themes[user]
        chance = loyalty * appeal * own / (appeal * own).sum() + (1 - loyalty) * appeal / appeal.sum()
        taken = rng.choice(n_items, events_a_user, replace=False, p=chance)
        histories.append(taken)
        users += [user] * events_a_user
        items += taken.tolist()
    gaps = rng.integers(1, 4, (n_users, events_a_user)).cumsum(axis=1)
    times = (
        CLOCK_START + gaps * DAY if time_kind == "time" else np.tile(np.arange(events_a_user), (n_users, 1))
    ).ravel()
    past = _interactions(np.array(users), np.array(items), times, n_users, n_items, time_kind)
    sellers = np.argsort(-np.bincount(past.items, minlength=n_items), kind="stable")
    candidates, targets = [], []
    for user in range(n_users):
        own = item_themes == user_themes[user]
        fresh = np.setdiff1d(np.flatnonzero(own), np.concatenate([histories[user], cold]))
        target = rng.choice(fresh)
        others = [code for code in sellers if not own[code]][: n_candidates // 2]
        rest = np.setdiff1d(np.flatnonzero(~own), others)
        drawn = rng.choice(rest, n_candidates - 1 - len(others), replace=False)
        candidates.append(rng.permutation(np.concatenate([[target], others, drawn])))
        targets.append([target])
    return PlantedShop(
        past=past,
        items=_items(item_themes, items_a_theme),
        cases=cases_of(histories, candidates, targets, times.reshape(n_users, -1)),
        item_themes=item_themes,
        user_themes=user_themes,
        cold=cold,
    )


def cases_of(histories, candidates, targets=None, times=None) -> Cases:
    """Cases from lists: without ``times`` every event is a visit of its own, and weighs 1."""
    history = Ragged.from_lists(histories)
    n_cases = len(history)
    if times is None:
        times = [np.arange(len(row)) for row in histories]
    history_times = np.concatenate([np.asarray(row, dtype=np.int64) for row in times] or [np.empty(0, np.int64)])
    return Cases(
        user_rows=np.full(n_cases, -1, dtype=np.int64),
        times=np.full(n_cases, history_times.max(initial=0) + 1, dtype=np.int64),
        history=history,
        history_weights=np.ones(len(history.values), dtype=np.float32),
        history_times=history_times,
        queries=[""] * n_cases,
        candidates=Ragged.from_lists(candidates),
        targets=Ragged.empty(n_cases) if targets is None else Ragged.from_lists(targets),
    )


def events_of(rows, n_items: int, *, n_users: int | None = None, time_kind: str = "position") -> Interactions:
    """Interactions from (user, item, time) or (user, item, time, weight) rows, in any order."""
    rows = sorted(rows, key=lambda row: row[2])
    users, items, times = (np.array([row[part] for row in rows], dtype=np.int64) for part in range(3))
    weights = np.array([row[3] if len(row) > 3 else 1.0 for row in rows], dtype=np.float32)
    n_users = int(users.max(initial=-1)) + 1 if n_users is None else n_users
    return _interactions(users, items, times, n_users, n_items, time_kind, weights)


def items_of(texts, *, titles=None) -> Items:
    """Items with these texts; a title is the text unless given."""
    values = np.array(list(texts), dtype=object)
    frame = _frame(values if titles is None else titles)
    return Items(frame["item_id"].to_numpy(object), frame, values)


def _interactions(users, items, times, n_users, n_items, time_kind, weights=None) -> Interactions:
    order = np.argsort(times, kind="stable")
    weights = np.ones(len(users), dtype=np.float32) if weights is None else weights
    blank = np.full(len(users), "", dtype=object)
    return Interactions(
        user_ids=np.array([f"u{code}" for code in range(n_users)], dtype=object),
        user_rows=np.full(n_users, -1, dtype=np.int64),
        n_items=n_items,
        time_kind=time_kind,
        users=np.asarray(users, dtype=np.int64)[order],
        items=np.asarray(items, dtype=np.int64)[order],
        times=np.asarray(times, dtype=np.int64)[order],
        weights=weights[order],
        positive=weights[order] > 0,
        ratings=np.full(len(users), np.nan, dtype=np.float32),
        quantities=np.ones(len(users), dtype=np.float32),
        reviews=blank,
        queries=blank,
    )


def _items(item_themes, items_a_theme: int) -> Items:
    names = list(THEMES)
    goods = [THEMES[name].split(", ") for name in names]
    titles, categories = [], []
    for code, theme in enumerate(item_themes):
        place = code % items_a_theme
        good = goods[theme][place % len(goods[theme])]
        titles.append(f"{GRADES[place // len(goods[theme]) % len(GRADES)]} {good}")
        categories.append(names[theme])
    frame = _frame(titles)
    frame["categories"] = categories
    texts = np.array([f"{title}. {theme}" for title, theme in zip(titles, categories, strict=True)], dtype=object)
    return Items(frame["item_id"].to_numpy(object), frame, texts)


def _frame(titles) -> pd.DataFrame:
    n = len(titles)
    blank = [""] * n
    return pd.DataFrame(
        {
            "item_id": [f"i{code}" for code in range(n)],
            "title": list(titles),
            "description": blank,
            "brand": blank,
            "categories": blank,
            "price": np.full(n, np.nan),
            "specs": blank,
            "image": blank,
        }
    )
