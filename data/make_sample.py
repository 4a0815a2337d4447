"""Make the sample shop: items.jsonl, users.csv and interactions.csv.gz, from the texts in shop/source and one seed.

``python make_sample.py [FOLDER]`` writes the three files (here, without a folder), the same bytes at each run.
README.md says what is planted in them.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shop.draws import Draws
from shop.texts import Item, read_catalogue
from shop.visits import Shop
from shop.world import N_USERS, list_items, make_world

SEED = 20240101
EVENT_COLUMNS = ("user_id", "item_id", "timestamp", "event", "rating", "quantity", "review", "query")
USER_COLUMNS = ("user_id", "age", "gender", "region")
MISSING = {"age": 0.12, "gender": 0.06, "region": 0.06}
"""Share of users who left a question unanswered."""


def make(folder: Path, seed: int = SEED) -> None:
    """Write the three files into the folder."""
    draws = Draws(seed)
    items = list_items(draws, read_catalogue(draws))
    world = make_world(items, draws)
    shop = Shop(items, world, draws)
    for user in range(N_USERS):
        shop.live(user)
    names = [f"c{10007 + 13 * place}" for place in draws.order(N_USERS)]
    events = sorted(shop.events, key=lambda event: (event["timestamp"], event["user"]))
    for event in events:
        event["user_id"] = names[event["user"]]
    users = [
        {"user_id": name, **{key: value for key, value in person.items() if not draws.happens(MISSING[key])}}
        for name, person in zip(names, world.people, strict=True)
    ]
    users.sort(key=lambda user: user["user_id"])

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items.jsonl").write_bytes("".join(map(item_line, items)).encode())
    (folder / "users.csv").write_bytes(table(USER_COLUMNS, users))
    with (folder / "interactions.csv.gz").open("wb") as raw:
        # neither a time nor a name in the header, so that the same events give the same bytes
        with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=raw, mtime=0) as packed:
            packed.write(table(EVENT_COLUMNS, events))


def item_line(item: Item) -> str:
    """Write an item as one line of JSON."""
    fields = {
        "item_id": item.item_id,
        "title": item.title,
        "description": item.description,
        "brand": item.brand,
        "categories": [item.department, item.category],
        "price": item.price,
        "specs": item.specs,
    }
    return json.dumps(fields, ensure_ascii=False) + "\n"


def table(columns: tuple[str, ...], rows: Iterable[dict[str, Any]]) -> bytes:
    """Write rows as CSV with a header; a missing value is an empty field."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
