"""Users visit the shop, and the shop writes down what it sees: searches, views, favourites, carts, purchases, ratings.

What a user did moves their later choices: a thing seen comes to mind again, a thing bought wants what goes with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shop.draws import Array, Draws
from shop.texts import Item, Reviewers, word_query
from shop.world import DAY, END, START, WEEK, World, codes_of

MEMORY_DAYS = 60
"""What was seen loses its pull by a factor e in this time."""


class Shop:
    """Holds the items, the hidden world and the log (``events``) that grows with each visit."""

    def __init__(self, items: list[Item], world: World, draws: Draws) -> None:
        self.items, self.world, self.draws = items, world, draws
        self.events: list[dict[str, Any]] = []
        self.reviewers = Reviewers()
        self.category = codes_of([item.category for item in items])
        self.brand = codes_of([item.brand for item in items])
        tags = sorted({tag for item in items for tag in item.gives})
        self.givers = {tag: np.array([row for row, item in enumerate(items) if tag in item.gives]) for tag in tags}

    def live(self, user: int) -> None:
        """Let one user make all their visits in order of time."""
        pull, lasting = np.zeros(len(self.items)), np.zeros(len(self.items))
        times = self.visit_times(user)
        for time, before in zip(times, [times[0], *times], strict=False):
            pull *= np.exp(-(time - before) / (MEMORY_DAYS * DAY))
            self.visit(user, time, pull, lasting)

    def visit_times(self, user: int) -> list[int]:
        """Draw the starts of a user's visits; some come back within days, evenings are busiest."""
        draws, joined = self.draws, int(self.world.joined[user])
        days = [joined]
        while len(days) < self.world.n_sessions[user]:
            if draws.happens(0.3):
                days.append(days[-1] + int((1 + 6 * draws.uniform()) * DAY))
            else:
                days.append(joined + int(draws.uniform() ** 0.7 * (END - joined)))
        hours = [8 + 15 * max(draws.uniform(), draws.uniform()) for _ in days]
        times = [day - day % DAY + int(hour * 3600) + draws.below(60) for day, hour in zip(days, hours, strict=True)]
        return sorted(min(time, END - 2 * 3600 - draws.below(DAY)) for time in times)

    def visit(self, user: int, time: int, pull: Array, lasting: Array) -> None:
        """Make one visit; pull and lasting (float64, shape (n_items,)) are what the past adds, changed in place."""
        draws = self.draws
        attraction = self.world.liking[user] + self.world.fortune[(time - START) // WEEK] + pull + lasting
        first = draws.choose(attraction)
        if draws.happens(0.16):
            query = word_query(draws, self.items[first], self.reviewers.kinds, self.reviewers.needs)
            self.note(user, time, "search", query=query)
            pull[self.category == self.category[first]] += 0.6
            pull[first] += 1.0
            time += 15 + draws.below(60)
            if draws.happens(0.35):
                return
        looked_at = [first]
        attraction += 1.5 * (self.category == self.category[first])
        for _ in range(draws.below(3)):
            attraction[looked_at[-1]] = -np.inf
            looked_at.append(draws.choose(attraction))
        bought, time = self.look(user, time, looked_at, pull)
        bought = list(dict.fromkeys(bought + self.companions(user, time, bought, pull)))
        self.buy(user, time, bought, pull, lasting)

    def look(self, user: int, time: int, looked_at: list[int], pull: Array) -> tuple[list[int], int]:
        """View the items in turn; give back what is to be bought, and the time after it."""
        draws, world = self.draws, self.world
        bought = []
        for item in looked_at:
            wish = -0.55 + 0.3 * world.quality[item] + 0.25 * (world.liking[user, item] - 2.5)
            buys = draws.happens(1 / (1 + float(np.exp(-wish))))
            if not buys or draws.happens(0.6):  # not every view is recorded
                self.note(user, time, "view", item)
                time += 20 + draws.below(200)
            if buys:
                bought.append(item)
                continue
            pull[item] += 0.9
            if draws.happens(0.11):
                self.note(user, time, "favourite", item)
                pull[item] += 1.2
            if draws.happens(0.08):
                self.note(user, time, "cart", item, quantity=1)
                pull[item] += 0.8
        return bought, time

    def companions(self, user: int, time: int, bought: list[int], pull: Array) -> list[int]:
        """Add what goes with the things bought (pegs to a tent) to this basket, or let it be wanted for weeks."""
        added = []
        for item in bought:
            for tag in self.items[item].wants:
                rows = self.givers[tag]
                logits = self.world.liking[user, rows] + self.world.fortune[(time - START) // WEEK, rows]
                if self.draws.happens(0.22) and np.isfinite(logits).any():
                    added.append(int(rows[self.draws.choose(logits)]))
                else:
                    pull[rows] += 4.2
        return added

    def buy(self, user: int, time: int, bought: list[int], pull: Array, lasting: Array) -> None:
        """Put a basket through the till, all at one time; what lasts is not bought twice."""
        draws = self.draws
        for item in bought:
            if draws.happens(0.22):
                self.note(user, time, "cart", item, quantity=1)
                time += 10 + draws.below(40)
        time += 30 + draws.below(240)
        for item in bought:
            again = self.items[item].again
            quantity = 1 + draws.below(3) if again else 1 + draws.happens(0.06)
            self.note(user, time, "purchase", item, quantity=quantity)
            pull[item] = 0.0
            lasting[item] = 1.5 if again else -6.0
            if draws.happens(0.36):
                self.rate(user, item, time + int((4 + 20 * draws.uniform()) * DAY), lasting)

    def rate(self, user: int, item: int, time: int, lasting: Array) -> None:
        """Rate a thing bought by its quality and how it suits; some pieces are faulty; a bad one spoils a brand."""
        draws = self.draws
        suits = float(np.clip(self.world.liking[user, item] - 2.5, -2, 2))
        mark = 3.9 + 0.75 * self.world.quality[item] + 0.15 * suits + 0.75 * draws.normal()
        stars = 1 if draws.happens(0.02) else int(np.clip(np.rint(mark), 1, 5))
        shared = [
            name
            for name, needed in zip(self.world.need_names, self.world.needs[user], strict=True)
            if needed and name in self.items[item].needs
        ]
        review = self.reviewers.write(draws, self.items[item], stars, shared) if draws.happens(0.8) else ""
        if time >= END:
            return
        self.note(user, time, "rating", item, rating=stars, review=review)
        if stars <= 2:
            lasting[self.brand == self.brand[item]] -= 1.2

    def note(self, user: int, time: int, event: str, item: int | None = None, **more: Any) -> None:
        """Write down one event."""
        item_id = "" if item is None else self.items[item].item_id
        self.events.append({"user": user, "item_id": item_id, "timestamp": time, "event": event, **more})
