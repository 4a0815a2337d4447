"""Make the sample shop: items.jsonl, users.csv and interactions.csv.gz, from the texts in source/ and one seed.

``python make_sample.py [FOLDER]`` writes the three files, the same bytes at each run. README.md says what is planted.
Random numbers are uniform draws turned into others here, since numpy promises to keep only those across versions.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = Path(__file__).parent / "source"
SEED = 20240101
N_USERS = 4000
START = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp())
END = int(datetime(2025, 7, 1, tzinfo=UTC).timestamp())
DAY = 86_400
WEEK = 7 * DAY
N_WEEKS = (END - START) // WEEK + 1
NEW_ITEM_DAYS = 91
REGIONS = ("north", "coast", "hills", "city", "south")
DEPARTMENTS = ("outdoor", "kitchen", "workshop", "garden")
EVENT_ORDER = ("search", "view", "favourite", "cart", "purchase", "rating")


class Draws:
    """Random draws that are the same for one seed under every numpy version."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.Generator(np.random.PCG64(seed)).random

    def uniform(self, *shape: int) -> Any:
        """Draw from [0, 1): a float, or an array of the shape."""
        return self._random(shape) if shape else float(self._random())

    def normal(self, *shape: int) -> Any:
        """Draw from the standard normal distribution, by Box and Muller."""
        radius = np.sqrt(-2 * np.log(1 - self._random(shape)))
        return radius * np.cos(2 * np.pi * self._random(shape))

    def below(self, n: int) -> int:
        """Draw a whole number from 0 to n - 1."""
        return int(self._random() * n)

    def pick(self, values: Any) -> Any:
        """Draw one of the values."""
        return values[self.below(len(values))]

    def happens(self, probability: float) -> bool:
        """Draw True with this probability."""
        return bool(self._random() < probability)

    def order(self, n: int) -> Any:
        """Draw an order of n things: int64, shape (n,)."""
        return np.argsort(self._random(n), kind="stable")

    def choose(self, logits: Any) -> int:
        """Draw a position with probability softmax(logits)."""
        weights = np.cumsum(np.exp(logits - logits.max()))
        return int(np.searchsorted(weights, self._random() * weights[-1], side="right").clip(0, len(logits) - 1))


# ------------------------------------------------------------------------------------------------ texts


def read_sections(name: str) -> dict[str, dict[str, list[str]]]:
    """Read a source file: section → key → phrases; lines that start with "- " are under the key "lines"."""
    sections: dict[str, dict[str, list[str]]] = {}
    current: dict[str, list[str]] = {}
    for line in (SOURCE / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            current = sections.setdefault(line[3:].split("|")[0].strip(), {"lines": []})
        elif line.startswith("- "):
            current["lines"].append(line[2:].strip())
        elif ": " in line:
            key, values = line.split(": ", 1)
            current[key] = [value.strip() for value in values.split("|")]
    return sections


@dataclass
class Item:
    """One line of the catalogue and what is hidden behind it."""

    department: str
    category: str
    brand: str
    title: str
    price: float
    needs: list[str]
    wants: list[str]
    gives: list[str]
    again: bool
    specs: dict[str, str]
    description: str
    item_id: str = ""
    listed: int = START


def read_catalogue(draws: Draws) -> list[Item]:
    """Read all departments and finish each description with a detail of its kind and a word on its brand."""
    brands = read_sections("brands")
    items = []
    for department in DEPARTMENTS:
        if not (SOURCE / f"{department}.txt").exists():
            continue
        for category, section in read_sections(department).items():
            details = section["details"]
            order = draws.order(len(details))
            for row, line in enumerate(section["lines"]):
                brand, title, price, tags, specs, text = (part.strip() for part in line.split("|", 5))
                words = tags.split()
                # neighbours in the order share one detail at most, so no two items end alike
                parts = [text, details[order[row % len(details)]]]
                if row % 3 == 0:
                    parts.append(details[order[(row + 2 + row // len(details)) % len(details)]])
                if row % 3 != 2:
                    parts.append(draws.pick(brands[brand]["lines"]))
                items.append(
                    Item(
                        department=department.capitalize(),
                        category=category,
                        brand=brand,
                        title=title,
                        price=round(float(price) - (0.05 if float(price) < 100 else 0.0), 2),
                        needs=[word for word in words if word[0] not in "+>" and word != "again"],
                        wants=[word[1:] for word in words if word[0] == ">"],
                        gives=[word[1:] for word in words if word[0] == "+"],
                        again="again" in words,
                        specs=dict(pair.split(": ", 1) for pair in specs.split("; ")),
                        description=" ".join(parts),
                    )
                )
    return items


# ------------------------------------------------------------------------------------------------ the hidden world


@dataclass
class World:
    """What nobody sees: likings of users for items, and the items' fortunes week by week."""

    liking: Any  # float64, shape (n_users, n_items)
    fortune: Any  # float64, shape (N_WEEKS, n_items); -inf before an item is listed
    quality: Any  # float64, shape (n_items,)
    needs: Any  # bool, shape (n_users, n_needs)
    joined: Any  # int64, shape (n_users,)
    n_sessions: Any  # int64, shape (n_users,)
    people: list[dict[str, Any]] = field(default_factory=list)


def codes(values: list[str]) -> Any:
    """Number distinct strings by first appearance: int64, shape (n_values,)."""
    known = {value: code for code, value in enumerate(dict.fromkeys(values))}
    return np.array([known[value] for value in values])


def list_items(items: list[Item], draws: Draws) -> list[Item]:
    """Give each item its day of listing and an id; one in ten is new in the last three months, one in seven younger."""
    luck = draws.uniform(len(items))
    days = draws.uniform(len(items))
    for item, chance, day in zip(items, luck, days, strict=True):
        if chance < 0.10:
            item.listed = END - NEW_ITEM_DAYS * DAY + int(day * 63) * DAY
        elif chance < 0.25:
            item.listed = START + int(30 + day * 400) * DAY
    ordered = sorted((items[row] for row in draws.order(len(items))), key=lambda item: item.listed)
    for number, item in enumerate(ordered):
        item.item_id = f"HF{1003 + 7 * number}"
    return ordered


def draw_people(draws: Draws, need_names: list[str], shares: Any) -> tuple[list[dict[str, Any]], Any]:
    """Draw age, gender and region, and needs that lean on them."""
    people, needs = [], np.zeros((N_USERS, len(need_names)), dtype=bool)
    for user in range(N_USERS):
        age = int(np.clip(18 + 62 * (draws.uniform() + draws.uniform()) / 2 - 4 * draws.normal(1)[0], 17, 86))
        gender, region = draws.pick(("f", "m")), draws.pick(REGIONS)
        lift = {
            "kids": 3.0 if 29 <= age <= 46 else 0.4,
            "grip": 3.5 if age >= 62 else 0.5,
            "ul": 2.0 if age <= 35 else 0.7,
            "flat": 2.5 if region == "city" else 0.6,
            "winter": 2.5 if region in ("north", "hills") else 0.5,
            "wild": 1.6 if region in ("hills", "south") else 0.7,
        }
        chances = shares * np.array([lift.get(name, 1.0) for name in need_names])
        needs[user] = draws.uniform(len(need_names)) < chances
        people.append({"age": age, "gender": gender, "region": region})
    return people, needs


def make_world(items: list[Item], draws: Draws) -> World:
    """Draw all that is hidden; each term of the sum is described in README.md."""
    sections = read_sections("needs")
    need_names = list(sections)
    shares = np.array([float(sections[name]["share"][0]) for name in need_names])
    people, needs = draw_people(draws, need_names, shares)
    n_items = len(items)
    category, brand = codes([item.category for item in items]), codes([item.brand for item in items])
    department_of = {code: item.department for code, item in zip(category, items, strict=True)}
    n_categories, n_brands = category.max() + 1, brand.max() + 1
    item_needs = np.array([[name in item.needs for name in need_names] for item in items], dtype=float)
    log_price = np.log([item.price for item in items])
    level = log_price - (np.bincount(category, log_price) / np.bincount(category))[category]
    level = level / max(level.std(), 1e-9)

    # two to five categories that a user cares about, most of them in one department
    interest = np.zeros((N_USERS, n_categories))
    for user in range(N_USERS):
        home = draws.pick(sorted(set(department_of.values())))
        leaning = draws.uniform(n_categories) + 0.55 * np.array(
            [department_of[code] == home for code in range(n_categories)]
        )
        leaning += 0.25 * (people[user]["age"] > 50) * np.array(
            [department_of[code] in ("Garden", "Kitchen") for code in range(n_categories)]
        )
        loved = np.argsort(-leaning)[: 2 + draws.below(4)]
        interest[user, loved] = 2.2 + 0.5 * draws.uniform(len(loved))
    loyal = np.zeros((N_USERS, n_brands))
    loyal[np.arange(N_USERS), (draws.uniform(N_USERS) * n_brands).astype(int)] = 1.3
    loyal[np.arange(N_USERS), (draws.uniform(N_USERS) * n_brands).astype(int)] = 1.0
    purse = draws.normal(N_USERS) + np.array([0.015 * (person["age"] - 45) for person in people])
    taste, style = draws.normal(N_USERS, 6), draws.normal(n_items, 6)
    quality = draws.normal(n_items)
    popularity = 0.7 * draws.normal(n_items) + 0.25 * quality

    liking = interest[:, category] + loyal[:, brand] + 0.22 * taste @ style.T + popularity
    liking += 1.5 * np.minimum(needs @ item_needs.T, 2)
    # nobody else buys left-handed shears, dog beds or children's things
    only_for = np.array([{"lh": 2.5, "dog": 2.0, "kids": 1.5, "van": 1.2, "grip": 0.8}.get(n, 0.3) for n in need_names])
    liking -= (~needs).astype(float) @ (item_needs * only_for).T
    liking -= 0.5 * np.abs(np.clip(purse, -2, 2)[:, None] - level[None, :])

    fortune = np.zeros((N_WEEKS, n_items))
    wave = 0.75 * draws.normal(n_items)
    for week in range(N_WEEKS):
        wave = 0.88 * wave + 0.75 * np.sqrt(1 - 0.88**2) * draws.normal(n_items)
        fortune[week] = wave + 0.008 * week * quality
    season = {name: values for name, values in read_seasons().items()}
    for week in range(N_WEEKS):
        month = datetime.fromtimestamp(START + week * WEEK, tz=UTC).month
        fortune[week] += np.array([season.get(item.category, np.zeros(13))[month] for item in items])
    listed = np.array([item.listed for item in items])
    begin = START + WEEK * np.arange(N_WEEKS)
    fortune[begin[:, None] < listed[None, :]] = -np.inf
    fortune += 0.5 * (begin[:, None] - listed[None, :] < 60 * DAY) * (listed > START)

    joined = START + (np.maximum(draws.uniform(N_USERS) * 1.32 - 0.32, 0) * (END - START - 3 * DAY)).astype(np.int64)
    joined += (draws.uniform(N_USERS) * 60 * DAY * (joined == START)).astype(np.int64)
    lifetime = (END - joined) / (END - START)
    rate = np.exp(0.95 * draws.normal(N_USERS)) * (0.35 + 1.5 * lifetime)
    n_sessions = 1 + np.floor(0.62 * rate + draws.uniform(N_USERS)).astype(np.int64)
    return World(liking, fortune, quality, needs, joined, np.minimum(n_sessions, 40), people)


def read_seasons() -> dict[str, Any]:
    """Read which months a category sells in ("season: 4 5 6"): category → lift by month, index 1 to 12."""
    seasons = {}
    for department in DEPARTMENTS:
        if not (SOURCE / f"{department}.txt").exists():
            continue
        for category, section in read_sections(department).items():
            lift = np.zeros(13)
            if "season" in section:
                lift[:] = -0.35
                lift[[int(month) for month in section["season"][0].split()]] = 0.65
            seasons[category] = lift
    return seasons


# ------------------------------------------------------------------------------------------------ events


class Shop:
    """Lets every user visit the shop and writes down what the shop sees of it."""

    def __init__(self, items: list[Item], world: World, draws: Draws) -> None:
        self.items, self.world, self.draws = items, world, draws
        self.events: list[dict[str, Any]] = []
        self.needs = read_sections("needs")
        self.need_names = list(self.needs)
        self.tone = {int(stars): section["lines"] for stars, section in read_sections("tone").items()}
        self.kinds = {
            category: section
            for department in DEPARTMENTS
            if (SOURCE / f"{department}.txt").exists()
            for category, section in read_sections(department).items()
        }
        self.category = codes([item.category for item in items])
        self.brand = codes([item.brand for item in items])
        tags = sorted({tag for item in items for tag in item.gives})
        self.givers = {tag: np.array([row for row, item in enumerate(items) if tag in item.gives]) for tag in tags}

    def live(self, user: int) -> None:
        """Let one user visit: sessions in time order; what was seen and bought moves later choices."""
        draws = self.draws
        extra = np.zeros(len(self.items))
        for time in self.visit_times(user):
            self.visit(user, time, extra)
            extra *= 0.9  # what was seen is forgotten slowly; see also visit()
        del draws

    def visit_times(self, user: int) -> list[int]:
        """Draw the starts of a user's sessions; some come back within days. Evenings are busiest."""
        draws, joined = self.draws, int(self.world.joined[user])
        days = [joined]
        while len(days) < self.world.n_sessions[user]:
            if draws.happens(0.3):
                days.append(days[-1] + int((1 + 6 * draws.uniform()) * DAY))
            else:
                days.append(joined + int(draws.uniform() * (END - joined)))
        times = []
        for day in days:
            hour = 8 + 15 * max(draws.uniform(), draws.uniform())
            times.append(day - day % DAY + int(hour * 3600) + draws.below(60))
        return sorted(time for time in times if time < END - 2 * 3600)

    def visit(self, user: int, time: int, extra: Any) -> None:
        """One session: perhaps a search, some views, carts, favourites, a basket; later a rating."""
        draws, items = self.draws, self.items
        week = (time - START) // WEEK
        attraction = self.world.liking[user] + self.world.fortune[week] + extra
        first = draws.choose(attraction)
        if draws.happens(0.12):
            self.note(user, time, "search", query=self.query(user, first))
            extra[self.category == self.category[first]] += 0.6
            extra[first] += 1.0
            time += 15 + draws.below(60)
            if draws.happens(0.3):
                return
        viewed = [first]
        attraction = attraction + 1.5 * (self.category == self.category[first])
        for _ in range(draws.below(4)):
            attraction[viewed[-1]] = -np.inf
            viewed.append(draws.choose(attraction))
        bought: list[int] = []
        for item in viewed:
            wish = -0.75 + 0.3 * self.world.quality[item] + 0.25 * (self.world.liking[user, item] - 2.5)
            buys = draws.happens(1 / (1 + np.exp(-wish)))
            if not buys or draws.happens(0.7):
                self.note(user, time, "view", item)
                time += 20 + draws.below(200)
            if buys:
                bought.append(item)
                continue
            extra[item] += 0.9
            if draws.happens(0.11):
                self.note(user, time, "favourite", item)
                extra[item] += 1.2
            if draws.happens(0.08):
                self.note(user, time, "cart", item, quantity=1)
                extra[item] += 0.8
        for item in list(bought):
            for tag in items[item].wants:
                if draws.happens(0.3):
                    bought += self.companion(user, week, tag)
                else:
                    extra[self.givers[tag]] += 2.4
        bought = list(dict.fromkeys(bought))
        for item in bought:
            if draws.happens(0.35):
                self.note(user, time, "cart", item, quantity=1)
                time += 10 + draws.below(40)
        time += 30 + draws.below(240)
        for item in bought:
            quantity = 1 + draws.below(3) if items[item].again else 1 + (draws.uniform() < 0.06)
            self.note(user, time, "purchase", item, quantity=int(quantity))
            extra[item] += 0.4 if items[item].again else -6.0
            if draws.happens(0.33):
                self.rate(user, item, time + int((4 + 20 * draws.uniform()) * DAY), extra)

    def companion(self, user: int, week: int, tag: str) -> list[int]:
        """Choose what goes with a thing bought (pegs to a tent), of what is listed by now, by the user's own liking."""
        rows = self.givers[tag]
        rows = rows[np.isfinite(self.world.fortune[week, rows])]
        if not len(rows):
            return []
        return [int(rows[self.draws.choose(self.world.liking[user, rows] + self.world.fortune[week, rows])])]

    def rate(self, user: int, item: int, time: int, extra: Any) -> None:
        """Rate something bought: by its quality and by how well it suits; a bad one spoils its brand."""
        if time >= END:
            return
        liking = np.clip(self.world.liking[user, item] - 2.5, -2, 2)
        mark = 3.95 + 0.75 * self.world.quality[item] + 0.15 * liking + 0.7 * self.draws.normal(1)[0]
        stars = int(np.clip(np.rint(mark), 1, 5))
        review = self.review(user, item, stars) if self.draws.happens(0.8) else ""
        self.note(user, time, "rating", item, rating=stars, review=review)
        if stars <= 2:
            extra[self.brand == self.brand[item]] -= 1.2

    def review(self, user: int, item: int, stars: int) -> str:
        """Compose a review whose tone fits the stars, with something about the kind of thing and the need it serves."""
        draws, kind = self.draws, self.kinds[self.items[item].category]
        sentences = [draws.pick(self.tone[stars])]
        if stars >= 4 and draws.happens(0.6):
            sentences.append(draws.pick(kind["praise"]))
        if stars <= 2 and draws.happens(0.75):
            sentences.append(draws.pick(kind["complaint"]))
        if stars == 3 and draws.happens(0.7):
            sentences.append(draws.pick(kind["praise" if draws.happens(0.5) else "complaint"]))
        shared = [n for k, n in enumerate(self.need_names) if n in self.items[item].needs and self.world.needs[user, k]]
        if stars >= 4 and shared and draws.happens(0.6):
            sentences.append(draws.pick(self.needs[draws.pick(shared)]["praise"]))
        if draws.happens(0.4):
            sentences.reverse()
        return " ".join(sentences)

    def query(self, user: int, item: int) -> str:
        """Word a search for an item: its kind, a need with its kind, or words of its title."""
        draws, thing = self.draws, self.items[item]
        phrase = draws.pick(self.kinds[thing.category]["queries"])
        chance = draws.uniform()
        if thing.needs and chance < 0.45:
            return f"{draws.pick(self.needs[draws.pick(thing.needs)]['queries'])} {phrase.split()[-1]}"
        if chance < 0.6:
            words = thing.title.replace(",", "").lower().split()
            return " ".join(words[:3])
        return phrase

    def note(self, user: int, time: int, event: str, item: int | None = None, **more: Any) -> None:
        """Write down one event."""
        item_id = "" if item is None else self.items[item].item_id
        self.events.append({"user": user, "item_id": item_id, "timestamp": time, "event": event, **more})


# ------------------------------------------------------------------------------------------------ files


def table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    """Write rows as CSV with a header; a missing value is an empty field."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def make(folder: Path, seed: int = SEED) -> None:
    """Write the three files into the folder."""
    draws = Draws(seed)
    items = list_items(read_catalogue(draws), draws)
    world = make_world(items, draws)
    shop = Shop(items, world, draws)
    for user in range(N_USERS):
        shop.live(user)
    names = [f"c{10007 + 13 * number}" for number in draws.order(N_USERS)]
    events = sorted(shop.events, key=lambda row: (row["timestamp"], row["user"]))
    for row in events:
        row["user_id"] = names[row["user"]]
    people = []
    for person in world.people:
        kept = {key: value for key, value in person.items() if not draws.happens({"age": 0.12}.get(key, 0.06))}
        people.append(kept)
    users = sorted(({"user_id": names[u], **person} for u, person in enumerate(people)), key=lambda row: row["user_id"])
    lines = [
        json.dumps(
            {
                "item_id": item.item_id,
                "title": item.title,
                "description": item.description,
                "brand": item.brand,
                "categories": [item.department, item.category],
                "price": item.price,
                "specs": item.specs,
            },
            ensure_ascii=False,
        )
        for item in items
    ]
    columns = ("user_id", "item_id", "timestamp", "event", "rating", "quantity", "review", "query")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items.jsonl").write_bytes(("\n".join(lines) + "\n").encode())
    (folder / "users.csv").write_bytes(table(("user_id", "age", "gender", "region"), users).encode())
    with (folder / "interactions.csv.gz").open("wb") as raw:
        # neither a time nor a name in the header, so that the same events give the same bytes
        with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=raw, mtime=0) as packed:
            packed.write(table(columns, events).encode())


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
