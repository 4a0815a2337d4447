"""What nobody sees: what users like, how good items are, and how the items' fortunes change week by week.

Each term here is described in README.md under "What is planted".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from shop.draws import Array, Draws
from shop.texts import Item, read_kinds, read_sections

N_USERS = 4000
START = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp())
END = int(datetime(2025, 7, 1, tzinfo=UTC).timestamp())
DAY = 86_400
WEEK = 7 * DAY
N_WEEKS = (END - START) // WEEK + 1
NEW_ITEM_DAYS = 91
NEWCOMER_DAYS = 61
REGIONS = ("north", "coast", "hills", "city", "south")
WAVE, PERSISTENCE = 1.0, 0.9
"""Size of an item's ups and downs (standard deviation, in units of liking) and what is left of one a week later."""
ONLY_FOR = {"lh": 2.5, "dog": 2.0, "kids": 1.5, "van": 1.2, "grip": 0.8}
"""How strongly those without a need leave alone what serves it (no right-handed user buys left-handed shears)."""


@dataclass
class World:
    """The hidden side of the shop.

    liking: float64, shape (n_users, n_items). fortune: float64, shape (N_WEEKS, n_items), -inf before an item is
    listed. quality: float64, shape (n_items,). needs: bool, shape (n_users, n_needs). need_names: n_needs codes.
    joined: int64, shape (n_users,), seconds. n_sessions: int64, shape (n_users,). people: attributes of each user.
    """

    liking: Array
    fortune: Array
    quality: Array
    needs: Array
    need_names: list[str]
    joined: Array
    n_sessions: Array
    people: list[dict[str, Any]]


def make_world(items: list[Item], draws: Draws) -> World:
    """Draw everything that is hidden."""
    needs = read_sections("needs")
    people, user_needs = draw_people(draws, needs)
    quality = draws.normals(len(items))
    liking = draw_liking(draws, items, people, user_needs, list(needs))
    liking += 0.6 * draws.normals(len(items)) + 0.25 * quality
    joined, n_sessions = draw_activity(draws)
    fortune = draw_fortune(draws, items, quality)
    return World(liking, fortune, quality, user_needs, list(needs), joined, n_sessions, people)


def list_items(draws: Draws, items: list[Item]) -> list[Item]:
    """Give each item its day of listing and its id, in order of listing.

    One item in ten is new in the last three months; one in seven came between the first month and then.
    """
    chances, days = draws.uniforms(len(items)), draws.uniforms(len(items))
    for item, chance, day in zip(items, chances, days, strict=True):
        item.listed = START
        if chance < 0.10:
            item.listed = END - NEW_ITEM_DAYS * DAY + int(day * 56) * DAY
        elif chance < 0.25:
            item.listed = START + int(30 + day * 400) * DAY
    ordered = sorted((items[row] for row in draws.order(len(items))), key=lambda item: item.listed)
    for number, item in enumerate(ordered):
        item.item_id = f"HF{1003 + 7 * number}"
    return ordered


def codes_of(values: Sequence[str]) -> Array:
    """Give distinct strings codes by first appearance: int64, shape (n_values,)."""
    known = {value: code for code, value in enumerate(dict.fromkeys(values))}
    return np.array([known[value] for value in values])


def draw_people(draws: Draws, needs: dict[str, dict[str, list[str]]]) -> tuple[list[dict[str, Any]], Array]:
    """Draw age, gender, region, and needs that lean on them (small flats in the city, weak hands with age)."""
    shares = np.array([float(section["share"][0]) for section in needs.values()])
    people, has_need = [], np.zeros((N_USERS, len(needs)), dtype=bool)
    for user in range(N_USERS):
        age = int(np.clip(18 + 31 * (draws.uniform() + draws.uniform()) - 4 * draws.normal(), 17, 86))
        region = draws.pick(REGIONS)
        people.append({"age": age, "gender": draws.pick(("f", "m")), "region": region})
        lift = {
            "kids": 3.0 if 29 <= age <= 46 else 0.4,
            "grip": 3.5 if age >= 62 else 0.5,
            "ul": 2.0 if age <= 35 else 0.7,
            "flat": 2.5 if region == "city" else 0.6,
            "winter": 2.5 if region in ("north", "hills") else 0.5,
            "wild": 1.6 if region in ("hills", "south") else 0.7,
        }
        has_need[user] = draws.uniforms(len(needs)) < shares * [lift.get(name, 1.0) for name in needs]
    return people, has_need


def draw_liking(
    draws: Draws, items: list[Item], people: list[dict[str, Any]], user_needs: Array, need_names: list[str]
) -> Array:
    """Add up interest, loyalty, needs, purse and unseen taste: float64, shape (n_users, n_items)."""
    category, brand = codes_of([item.category for item in items]), codes_of([item.brand for item in items])
    interest, home = draw_interest(draws, items, category, people)
    loyalty = np.zeros((N_USERS, brand.max() + 1))
    made_for = {name: sorted(set(brand[[item.department == name for item in items]].tolist())) for name in set(home)}
    for user in range(N_USERS):
        for strength in (1.8, 1.4):
            loyalty[user, draws.pick(made_for[home[user]])] = strength
    taste, style = draws.normals(N_USERS, 6), draws.normals(len(items), 6)
    serves = np.array([[name in item.needs for name in need_names] for item in items], dtype=np.float64)
    avoided = serves * [ONLY_FOR.get(name, 0.3) for name in need_names]
    log_price = np.log([item.price for item in items])
    level = log_price - (np.bincount(category, log_price) / np.bincount(category))[category]
    purse = np.clip(draws.normals(N_USERS) + [0.015 * (person["age"] - 45) for person in people], -2, 2)
    return np.asarray(
        interest[:, category]
        + loyalty[:, brand]
        + 2.0 * np.minimum(user_needs @ serves.T, 2)
        - (~user_needs).astype(np.float64) @ avoided.T
        - 0.8 * np.abs(purse[:, None] - (level / level.std())[None, :])
        + 0.22 * taste @ style.T
    )


def draw_interest(
    draws: Draws, items: list[Item], category: Array, people: list[dict[str, Any]]
) -> tuple[Array, list[str]]:
    """Draw two to five categories that each user cares about, most of them in one department, the user's home.

    Returns float64, shape (n_users, n_categories), and each user's home.
    """
    department = dict(zip(category.tolist(), (item.department for item in items), strict=True))
    departments = [department[code] for code in range(len(department))]
    calm = np.array([name in ("Garden", "Kitchen") for name in departments])
    interest = np.zeros((N_USERS, len(departments)))
    homes = [draws.pick(sorted(set(departments))) for _ in people]
    for user, (person, home) in enumerate(zip(people, homes, strict=True)):
        leaning = draws.uniforms(len(departments)) + 0.55 * np.array([name == home for name in departments])
        leaning += 0.25 * (person["age"] > 50) * calm
        loved = np.argsort(-leaning, kind="stable")[: 2 + draws.below(4)]
        interest[user, loved] = 2.2 + 0.5 * draws.uniforms(len(loved))
    return interest, homes


def draw_fortune(draws: Draws, items: list[Item], quality: Array) -> Array:
    """Draw the weekly ups and downs: waves that last some weeks, seasons, word of mouth, the lift of the new."""
    kinds = read_kinds()
    fortune = np.zeros((N_WEEKS, len(items)))
    wave = WAVE * draws.normals(len(items))
    for week in range(N_WEEKS):
        wave = PERSISTENCE * wave + WAVE * np.sqrt(1 - PERSISTENCE**2) * draws.normals(len(items))
        month = datetime.fromtimestamp(START + week * WEEK, tz=UTC).month
        fortune[week] = wave + 0.008 * week * quality + [season_lift(kinds[item.category], month) for item in items]
    age = START + WEEK * np.arange(N_WEEKS)[:, None] - np.array([item.listed for item in items])[None, :]
    late = np.array([item.listed > START for item in items])
    fortune += 0.5 * (late & (age < 60 * DAY))
    fortune[age < 0] = -np.inf
    return fortune


def season_lift(kind: dict[str, list[str]], month: int) -> float:
    """Look up how much better or worse a kind of thing sells in a month (1 to 12)."""
    if "season" not in kind:
        return 0.0
    return 0.65 if str(month) in kind["season"][0].split() else -0.35


def draw_activity(draws: Draws) -> tuple[Array, Array]:
    """Draw when each user came first and how often: some were there from the start, a tenth came in the last weeks."""
    entry = draws.uniforms(N_USERS)
    lead = draws.uniforms(N_USERS)
    joined = np.where(entry < 0.2, 100 * DAY * lead, (entry - 0.2) / 0.8 * (END - START - 3 * DAY))
    newcomer = draws.uniforms(N_USERS) < 0.03
    joined = np.where(newcomer, END - START - 3 * DAY - NEWCOMER_DAYS * DAY * lead, joined)
    lifetime = 1 - joined / (END - START)
    rate = np.exp(0.75 * draws.normals(N_USERS)) * (0.25 + 1.9 * lifetime)
    n_sessions = 1 + np.floor(1.2 * rate + draws.uniforms(N_USERS)).astype(np.int64)
    return START + joined.astype(np.int64), np.minimum(n_sessions, 45)
