"""A shop as its owner has it, in two tables: themes in the titles, tastes in the events, fashion in the dates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from llm_rerank.data.datasets import load_dataset
from tests.planted import CLOCK_START, DAY, GRADES, THEMES

DAYS = 300


def make_items() -> pd.DataFrame:
    """One item a (noun, grade): 8 themes × 9 nouns × 2 grades, with brand, price and description."""
    rows = []
    for theme, nouns in THEMES.items():
        for place, noun in enumerate(nouns.split(", ")):
            for grade in GRADES[:2]:
                rows.append(
                    {
                        "item_id": f"{theme[:3]}-{place}-{grade[:3]}",
                        "title": f"{grade} {noun}",
                        "brand": f"{theme.title()} & Co",
                        "price": 5.0 + 3 * place + (20 if grade == GRADES[1] else 0),
                        "description": f"A {grade} {noun} for {theme}.",
                        "theme": theme,
                    }
                )
    return pd.DataFrame(rows)


def make_shop(n_users: int = 700, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Interactions (purchases, some views, ratings, reviews) and items; the last two items are never taken.

    A user takes 80 % of their items from one theme; what is in fashion moves from one noun to the next with the days.
    """
    rng = np.random.default_rng(seed)
    items = make_items()
    themes = items["theme"].to_numpy()
    names = list(THEMES)
    sold = len(items) - 2
    rows = []
    for user in range(n_users):
        taste = names[user % len(names)]
        for day in np.sort(rng.choice(DAYS, rng.integers(4, 12), replace=False)):
            fashion = np.exp(-0.5 * ((np.arange(len(items)) % 18) - 18 * day / DAYS) ** 2 / 9)
            weights = fashion * np.where(themes == taste, 1.0, 0.04)
            weights[sold:] = 0
            code = rng.choice(len(items), p=weights / weights.sum())
            moment = CLOCK_START + int(day) * DAY + int(rng.integers(DAY))
            rows.append((f"u{user}", items["item_id"][code], moment, "view", np.nan, ""))
            if rng.random() < 0.8:
                stars = float(rng.integers(3, 6))
                review = f"good {themes[code]} buy" if rng.random() < 0.2 else ""
                rows.append((f"u{user}", items["item_id"][code], moment + 60, "purchase", stars, review))
    columns = ["user_id", "item_id", "timestamp", "event", "rating", "review"]
    return pd.DataFrame(rows, columns=columns), items


def save_smaller_sample(folder: Path) -> Path:
    """Write the bundled shop with two of three items, in its own layout: a fit takes half the time."""
    shop = load_dataset("sample")
    items = shop.items[np.arange(len(shop.items)) % 3 > 0]
    events = shop.interactions[shop.interactions["item_id"].isin(set(items["item_id"]))]
    events.to_csv(folder / "interactions.csv.gz", index=False)
    items.to_json(folder / "items.jsonl", orient="records", lines=True)
    shop.users.to_csv(folder / "users.csv", index=False)
    return folder


def with_searches(events: pd.DataFrame) -> pd.DataFrame:
    """Give every fortieth event a search phrase, so that the shop is one that records them."""
    return events.assign(query=np.where(np.arange(len(events)) % 40 == 0, "something for the garden", ""))


def with_telling_searches(events: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """Before every second view, half a minute earlier, let the user search for the theme of what is then looked at."""
    theme = items.set_index("item_id")["theme"]
    looked = events[events["event"] == "view"].iloc[::2]
    searches = pd.DataFrame(
        {
            "user_id": looked["user_id"],
            "timestamp": looked["timestamp"] - 30,
            "event": "search",
            "query": [f"something for {name}" for name in theme[looked["item_id"]]],
        }
    )
    return pd.concat([events.assign(query=""), searches], ignore_index=True)


def make_vector_shop(n_users: int = 400, n_items: int = 400, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Purchases, and items that only their vectors tell apart: directions in five dimensions; titles are numbers.

    A user has a direction for a taste and takes four of the fourteen items nearest to it, so that few take the same.
    """
    rng = np.random.default_rng(seed)
    places = rng.normal(size=(n_items, 5))
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    ids = [f"i{code}" for code in range(n_items)]
    rows = []
    for user in range(n_users):
        near = np.argsort(-places @ rng.normal(size=5))[:14]
        days = np.sort(rng.choice(DAYS, 4, replace=False))
        for code, day in zip(rng.choice(near, 4, replace=False), days, strict=True):
            rows.append((f"u{user}", ids[code], CLOCK_START + int(day) * DAY, "purchase"))
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "event"])
    titles = [f"item {code}" for code in range(n_items)]
    # at several lengths, which say nothing
    cells = list((places * rng.uniform(0.5, 20, (n_items, 1))).astype(np.float32))
    return events, pd.DataFrame({"item_id": ids, "title": titles, "image_vector": cells})
