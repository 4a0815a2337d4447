"""The sample shop in data/: made again byte for byte, shaped as README.md there says, with what it plants in place."""

import gzip
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llm_rerank.data.datasets import load_dataset

SAMPLE = Path(__file__).parents[2] / "data"
START, END = pd.Timestamp("2024-01-01").timestamp(), pd.Timestamp("2025-07-01").timestamp()
DAY = 86_400
LEFT = r"(?i)left-hand|left hand\b|\blefty\b|\blefties\b"
GLAD = "wonderful love perfect delighted flawless joy excellent beautifully happy good well better best like".split()
CROSS = (
    "broken waste terrible useless damaged worst awful disappointing regret poor failed not faults bent jammed".split()
)


@pytest.fixture(scope="module")
def events() -> pd.DataFrame:
    frame = pd.read_csv(SAMPLE / "interactions.csv.gz", keep_default_na=False)
    for name in ("rating", "quantity"):
        frame[name] = pd.to_numeric(frame[name])
    return frame


@pytest.fixture(scope="module")
def items() -> pd.DataFrame:
    frame = pd.read_json(SAMPLE / "items.jsonl", lines=True)
    frame["category"] = frame["categories"].str[1]
    return frame.set_index("item_id")


@pytest.fixture(scope="module")
def purchases(events: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    return events[events["event"] == "purchase"].join(items[["category", "brand", "title", "price"]], on="item_id")


def test_made_again_the_files_are_the_same(tmp_path: Path) -> None:
    # another hash seed, so that an order taken from a set would show
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, SAMPLE / "make_sample.py", tmp_path], check=True, env=environment)
    for name in ("items.jsonl", "users.csv"):
        assert (tmp_path / name).read_bytes() == (SAMPLE / name).read_bytes(), name
    made, kept = ((folder / "interactions.csv.gz").read_bytes() for folder in (tmp_path, SAMPLE))
    assert gzip.decompress(made) == gzip.decompress(kept)
    # header of RFC 1952: no flags (so no file name), time 0
    assert made[:8] == kept[:8] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00"
    # another zlib may pack the same text into other bytes, so the file made is held to what this one makes of the text
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=packed, mtime=0) as file:
        file.write(gzip.decompress(kept))
    assert made == packed.getvalue()


def test_files_have_the_size_and_columns_that_the_readme_names(events: pd.DataFrame, items: pd.DataFrame) -> None:
    users = pd.read_csv(SAMPLE / "users.csv")
    assert list(events) == ["user_id", "item_id", "timestamp", "event", "rating", "quantity", "review", "query"]
    assert list(users) == ["user_id", "age", "gender", "region"]
    assert (len(items), items["category"].nunique(), items["brand"].nunique()) == (401, 25, 27)
    assert users["user_id"].nunique() == len(users) == events["user_id"].nunique() == 4000
    assert set(users["user_id"]) == set(events["user_id"])
    assert 39_000 < len(events) < 43_000
    assert events["timestamp"].is_monotonic_increasing
    assert START <= events["timestamp"].min() < START + 5 * DAY
    assert END - 5 * DAY < events["timestamp"].max() < END
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < 3_000_000


def test_the_readme_states_the_counts_of_the_files(events: pd.DataFrame, items: pd.DataFrame) -> None:
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    names = {"view": "views", "purchase": "purchases", "rating": "ratings", "cart": "carts"}
    names |= {"search": "searches", "favourite": "favourites"}
    for kind, count in events["event"].value_counts().items():
        assert f"{count:,} {names[kind]}" in readme, kind
    reviews, bought = (events["review"] != "").sum(), events["item_id"][events["event"] == "purchase"].nunique()
    joined = events.groupby("user_id")["timestamp"].min()
    first_seen = events[events["item_id"] != ""].groupby("item_id")["timestamp"].min()
    assert f"{len(events):,} events" in readme
    assert f"{reviews:,} with a review" in readme
    assert f"{len(items) - bought} items were never bought" in readme
    assert f"{(joined >= END - 61 * DAY).sum()} users came in the last two months" in readme
    assert f"{(first_seen >= END - 91 * DAY).sum()} items in the last three" in readme


def test_each_event_carries_what_its_kind_carries_and_no_more(events: pd.DataFrame, items: pd.DataFrame) -> None:
    kind = events["event"]
    assert set(kind) == {"view", "cart", "purchase", "favourite", "rating", "search"}
    assert ((events["item_id"] == "") == (kind == "search")).all()
    assert ((events["query"] != "") == (kind == "search")).all()
    assert events["item_id"][kind != "search"].isin(items.index).all()
    assert (events["rating"].notna() == (kind == "rating")).all()
    assert set(events["rating"].dropna()) == {1, 2, 3, 4, 5}
    assert (events["quantity"].notna() == kind.isin(["cart", "purchase"])).all()
    assert events["quantity"].dropna().between(1, 3).all()
    assert (events["review"] != "")[kind != "rating"].sum() == 0
    assert 0.7 < (events["review"] != "")[kind == "rating"].mean() < 0.9


def test_a_rating_follows_the_purchase_of_the_same_item(events: pd.DataFrame) -> None:
    first_bought = events[events["event"] == "purchase"].groupby(["user_id", "item_id"])["timestamp"].min()
    rated = events[events["event"] == "rating"].set_index(["user_id", "item_id"])["timestamp"]
    waited = rated - first_bought.reindex(rated.index)
    assert waited.notna().all()
    assert (waited >= 4 * DAY).all()


def test_no_two_items_read_alike(items: pd.DataFrame) -> None:
    assert items["title"].str.lower().is_unique
    assert items["description"].is_unique

    def shingles(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[start : start + 3]) for start in range(len(words) - 2)}

    rows = [shingles(text) for text in items["description"]]
    overlap = max(len(a & b) / len(a | b) for row, a in enumerate(rows) for b in rows[:row])
    # two items share at most one or two of their closing sentences; three quarters of their words in a row differ
    assert overlap < 0.35


def test_some_users_and_some_items_are_new_at_the_end(events: pd.DataFrame) -> None:
    first_seen = events[events["item_id"] != ""].groupby("item_id")["timestamp"].min()
    joined = events.groupby("user_id")["timestamp"].min()
    assert 30 <= (first_seen >= END - 91 * DAY).sum() <= 50
    assert 300 <= (joined >= END - 61 * DAY).sum() <= 600
    # enough users with a past buy something in the last tenth of the events: the fit protocol needs 400 of them
    late = events["timestamp"] >= events["timestamp"].quantile(0.9)
    buyers = set(events["user_id"][late & (events["event"] == "purchase")])
    assert len(buyers & set(events["user_id"][~late])) >= 400


def test_attributes_are_missing_here_and_there() -> None:
    users = pd.read_csv(SAMPLE / "users.csv")
    assert users["age"].isna().mean() == pytest.approx(0.12, abs=0.02)
    assert users["gender"].isna().mean() == pytest.approx(0.06, abs=0.02)
    assert users["region"].isna().mean() == pytest.approx(0.06, abs=0.02)


@pytest.mark.parametrize(
    ("main", "companion"),
    [
        (r"(?i)tent\b|awning|tarp", r"(?i)pegs|anchors"),
        (r"(?i)planter|trough|tomatoes|vegetable plot|long toms", r"(?i)compost|soil bricks|seed trays|propagator"),
    ],
)
def test_what_goes_together_is_bought_with_it_or_after_it(purchases: pd.DataFrame, main: str, companion: str) -> None:
    is_main = purchases["title"].str.contains(main)
    mains = purchases[is_main].reset_index()
    companions = purchases[~is_main & purchases["title"].str.contains(companion)]
    pairs = mains.merge(companions[["user_id", "timestamp"]], on="user_id")
    waited = pairs["timestamp_y"] - pairs["timestamp_x"]

    def share(least: float, most: float) -> float:
        """Share of the main purchases with a companion that came this long after them."""
        return pairs["index"][waited.between(least, most)].nunique() / len(mains)

    # the same users, so that a shared interest weighs before and after alike: only the tie has a direction
    assert len(mains) > 200
    assert share(0, 60 * DAY) > max(0.15, 3 * share(-60 * DAY, -1))
    # in a later visit alone, which is what a history can foretell
    assert share(1, 60 * DAY) > max(0.03, 2 * share(-60 * DAY, -1))


def test_a_need_that_only_the_text_names_spans_the_shop(purchases: pd.DataFrame, items: pd.DataFrame) -> None:
    text = items["title"] + " " + items["description"]
    left = set(items.index[text.str.contains(LEFT)])
    categories = items.loc[sorted(left), "category"]
    assert categories.nunique() >= 6
    bought = purchases[purchases["item_id"].isin(left)]
    # buyers of left-handed things in one category against all buyers: how many buy one in another category
    n_categories = bought.groupby("user_id")["category"].nunique()
    again = (n_categories >= 2).sum() / len(n_categories)
    chance = len(n_categories) / purchases["user_id"].nunique()
    assert again > 2 * chance


def test_users_are_loyal_to_a_brand_and_to_a_price(purchases: pd.DataFrame) -> None:
    frame = purchases.drop_duplicates(["user_id", "item_id"]).copy()
    frame["dear"] = np.log(frame["price"]) - np.log(frame["price"]).groupby(frame["category"]).transform("mean")
    generator = np.random.default_rng(0)

    def agreement(column: str) -> tuple[float, float]:
        """Agreement of two successive purchases of a user, and the same after a shuffle within categories."""
        values = frame[column].to_numpy()
        shuffled = values.copy()
        for rows in frame.groupby("category").indices.values():
            shuffled[rows] = values[generator.permutation(rows)]
        order = np.lexsort((frame["timestamp"], frame["user_id"]))
        same = frame["user_id"].to_numpy()[order][1:] == frame["user_id"].to_numpy()[order][:-1]
        results = []
        for column_values in (values[order], shuffled[order]):
            a, b = column_values[1:][same], column_values[:-1][same]
            results.append(float(np.corrcoef(a, b)[0, 1]) if column == "dear" else float((a == b).mean()))
        return results[0], results[1]

    brand, brand_by_chance = agreement("brand")
    price, price_by_chance = agreement("dear")
    assert brand > 1.2 * brand_by_chance
    assert price > price_by_chance + 0.08


def test_the_fortune_of_an_item_lasts_weeks_and_not_a_year(purchases: pd.DataFrame) -> None:
    first_sold = purchases.groupby("item_id")["timestamp"].min()
    established = first_sold.index[first_sold < START + 60 * DAY]
    month = ((purchases["timestamp"] - START) // (30 * DAY)).astype(int)
    sold = np.log1p(pd.crosstab(purchases["item_id"], month).reindex(established))
    # twelve months apart the season is the same again, so what is more alike a month apart is the item's own wave
    near = np.mean([sold[month].corr(sold[month + 1]) for month in range(12, 17)])
    far = np.mean([sold[month].corr(sold[month - 12]) for month in range(12, 17)])
    assert near > far + 0.2


def test_popularity_has_a_long_tail(purchases: pd.DataFrame) -> None:
    counts = purchases["item_id"].value_counts()
    assert 0.35 < counts.head(40).sum() / counts.sum() < 0.55
    assert counts.median() < counts.mean() / 1.5


def test_what_lasts_is_not_bought_twice(purchases: pd.DataFrame) -> None:
    repeats = purchases[purchases.duplicated(["user_id", "item_id"])]
    used_up = {"Camp Accessories", "Baking", "Coffee & Tea", "Preserving & Storage", "Kitchen Tools"}
    used_up |= {"Drills & Drivers", "Fixings & Glue", "Sharpening & Care", "Seeds & Bulbs", "Pots & Soil"}
    used_up |= {"Birds & Wildlife"}
    assert len(repeats) > 100
    assert repeats["category"].isin(used_up).mean() > 0.9


def test_a_view_often_comes_before_a_purchase_and_views_alone_are_common(events: pd.DataFrame) -> None:
    views = events[events["event"] == "view"].groupby(["user_id", "item_id"])["timestamp"].min()
    bought = events[events["event"] == "purchase"].groupby(["user_id", "item_id"])["timestamp"].min()
    seen = views.reindex(bought.index)
    assert 0.55 < (seen < bought).mean() < 0.85
    assert 0.4 < (~views.index.isin(bought.index)).mean() < 0.8


def test_quality_lasts_and_shows_in_ratings(events: pd.DataFrame) -> None:
    rated = events[events["event"] == "rating"].reset_index(drop=True)
    halves = rated.groupby(["item_id", rated.index % 2])["rating"].agg(["mean", "size"]).unstack()
    enough = halves[(halves["size"] >= 5).all(axis=1)]["mean"]
    assert len(enough) > 80
    assert enough[0].corr(enough[1]) > 0.4


def test_the_tone_of_a_review_fits_its_stars(events: pd.DataFrame) -> None:
    reviews = events[events["review"] != ""]
    words = reviews["review"].str.lower().str.findall(r"[a-z]+")
    tone = words.map(lambda row: sum(word in GLAD for word in row) - sum(word in CROSS for word in row))
    means = tone.groupby(reviews["rating"]).mean()
    assert means[5] > means[3] > means[2]
    assert means[4] > 0.3 > -0.3 > max(means[1], means[2])
    # no judgement that belongs to five stars stands in a review of one or two, nor the other way round
    judgements = {stars: set() for stars in (1, 2, 3, 4, 5)}
    stars = 0
    for line in (SAMPLE / "shop" / "source" / "tone.txt").read_text(encoding="utf-8").splitlines():
        stars = int(line[3:]) if line.startswith("## ") else stars
        if line.startswith("- "):
            judgements[stars].add(line[2:])
    for given, text in zip(reviews["rating"], reviews["review"], strict=True):
        found = {stars for stars, phrases in judgements.items() if any(phrase in text for phrase in phrases)}
        assert found == {int(given)}, text


def test_search_words_name_what_is_looked_at_next(events: pd.DataFrame, items: pd.DataFrame) -> None:
    text = (items["title"] + " " + items["description"] + " " + items["category"]).str.lower()
    following = events.sort_values(["user_id", "timestamp"], kind="stable")
    next_user, next_item = following["user_id"].shift(-1), following["item_id"].shift(-1)
    near = (following["timestamp"].shift(-1) - following["timestamp"]) < 600
    rows = following[(following["event"] == "search") & (next_user == following["user_id"]) & near & (next_item != "")]
    wanted = next_item[rows.index]
    generator = np.random.default_rng(0)

    def shared(query: str, item_id: str) -> bool:
        return any(word in text[item_id] for word in query.split() if len(word) > 3)

    hits = np.mean([shared(query, item) for query, item in zip(rows["query"], wanted, strict=True)])
    others = generator.permutation(wanted.to_numpy())
    chance = np.mean([shared(query, item) for query, item in zip(rows["query"], others, strict=True)])
    assert len(rows) > 500
    assert hits > 0.65 > 2 * chance


def test_the_loader_gives_the_same_tables(events: pd.DataFrame, items: pd.DataFrame) -> None:
    dataset = load_dataset("sample")
    assert len(dataset.interactions) == len(events)
    assert set(dataset.items["item_id"]) == set(items.index)
    assert dataset.users is not None
    assert len(dataset.users) == 4000
