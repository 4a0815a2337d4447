"""The hand-written texts of the shop, read from source/: its catalogue, its searches and what reviewers say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shop.draws import Draws

SOURCE = Path(__file__).parent / "source"
DEPARTMENTS = ("outdoor", "kitchen", "workshop", "garden")
UNITS = ("cm", "kg", "ml")
COLLECTIVE = ("set", "kit", "pair", "trio", "pack", "kinds", "mix")

Section = dict[str, list[str]]


@dataclass
class Item:
    """One thing for sale.

    needs: codes of source/needs.txt that it serves. wants, gives: tags that tie a thing to what goes with it (a tent
    wants "pegs"). again: used up and bought again. listed: seconds since 1970 from which it is for sale.
    """

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
    listed: int = 0


def read_sections(name: str) -> dict[str, Section]:
    """Read a source file: section → key → phrases. Lines that start with "- " are kept under "lines"."""
    sections: dict[str, Section] = {}
    current: Section = {}
    for line in (SOURCE / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            current = sections.setdefault(line[3:].split("|")[0].strip(), {"lines": []})
        elif line.startswith("- "):
            current["lines"].append(line[2:].strip())
        elif ": " in line:
            key, values = line.split(": ", 1)
            current[key] = [value.strip() for value in values.split(" | ")]
    return sections


def read_kinds() -> dict[str, Section]:
    """Read the categories of all departments: category → its phrases."""
    return {kind: section for department in DEPARTMENTS for kind, section in read_sections(department).items()}


def read_catalogue(draws: Draws) -> list[Item]:
    """Read all items, each description finished with details of its kind and a word on its brand."""
    brands = read_sections("brands")
    items = []
    for department in DEPARTMENTS:
        for category, section in read_sections(department).items():
            details, order = section["details"], draws.order(len(section["details"]))
            for row, line in enumerate(section["lines"]):
                item = parse_item(line, department.capitalize(), category)
                endings = [details[order[row % len(details)]]]
                if row % 3 == 0:
                    # another distance on each round, so that no two items of a kind share both details
                    endings.append(details[order[(row + 2 + row // len(details)) % len(details)]])
                if row % 3 != 2:
                    endings.append(draws.pick(brands[item.brand]["lines"]))
                item.description = " ".join([item.description, *endings])
                items.append(item)
    return items


def parse_item(line: str, department: str, category: str) -> Item:
    """Read "brand | title | price | tags | specs | text"; tags are needs, +gives, >wants and "again"."""
    brand, title, price, tags, specs, text = (part.strip() for part in line.split("|", 5))
    words = tags.split()
    return Item(
        department=department,
        category=category,
        brand=brand,
        title=title,
        price=round(float(price) - (0.05 if float(price) < 100 else 0.0), 2),
        needs=[word for word in words if word[0] not in "+>" and word != "again"],
        wants=[word[1:] for word in words if word[0] == ">"],
        gives=[word[1:] for word in words if word[0] == "+"],
        again="again" in words,
        specs=dict(pair.split(": ", 1) for pair in specs.split("; ")),
        description=text,
    )


def word_query(draws: Draws, item: Item, kinds: dict[str, Section], needs: dict[str, Section]) -> str:
    """Word a search for an item: a need with the thing's noun, the first words of its title, or its kind."""
    chance = draws.uniform()
    if item.needs and chance < 0.45:
        need, noun = draws.pick(needs[draws.pick(item.needs)]["queries"]), noun_of(item.title)
        return f"{noun} {need}" if need.startswith(("for ", "under ")) else f"{need} {noun}"
    if chance < 0.6:
        return " ".join(item.title.replace(",", "").lower().split()[:3])
    return draws.pick(kinds[item.category]["queries"])


def noun_of(title: str) -> str:
    """Find the thing that a title names: the last word before "for", "with" or a comma."""
    head = title.split(",")[0].lower()
    for joint in (" for ", " with ", " in ", " that "):
        head = head.split(joint)[0]
    words = [word for word in head.split() if word.isalpha() and len(word) > 1 and word not in UNITS]
    if len(words) > 1 and words[-1] in COLLECTIVE:
        return " ".join(words[-2:])
    return words[-1] if words else head


class Reviewers:
    """Puts reviews together from hand-written sentences whose tone fits the stars."""

    def __init__(self) -> None:
        self.tone = {int(stars): section["lines"] for stars, section in read_sections("tone").items()}
        self.kinds = read_kinds()
        self.needs = read_sections("needs")

    def write(self, draws: Draws, item: Item, stars: int, shared_needs: list[str]) -> str:
        """Compose one review: a judgement, something about the kind of thing, and the need that it served."""
        kind = self.kinds[item.category]
        sentences = [draws.pick(self.tone[stars])]
        if stars >= 4 and draws.happens(0.6):
            sentences.append(draws.pick(kind["praise"]))
        if stars <= 2 and draws.happens(0.75):
            sentences.append(draws.pick(kind["complaint"]))
        if stars == 3 and draws.happens(0.7):
            sentences.append(draws.pick(kind[draws.pick(("praise", "complaint"))]))
        if stars >= 4 and shared_needs and draws.happens(0.6):
            sentences.append(draws.pick(self.needs[draws.pick(shared_needs)]["praise"]))
        if draws.happens(0.4):
            sentences.reverse()
        return " ".join(sentences)
