"""A page of sections as one self-contained HTML file: figures inline, style inline, every text escaped, no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_rerank.storage import atomic_path

TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class Figure:
    """A picture that ``charts.py`` drew, and what to see in it."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Table:
    """Cells as texts. n_text_columns: the first columns are words, the others numbers, set to the right."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    n_text_columns: int = 1


@dataclass(frozen=True)
class Section:
    """One part of the page. anchor: of its link. Where a figure is absent a paragraph says why."""

    anchor: str
    title: str
    paragraphs: Sequence[str]
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Tile:
    """One figure of the summary: what it is, the figure, what it means."""

    name: str
    figure: str
    note: str


@dataclass(frozen=True)
class Page:
    """Everything that is shown. lines: what the fit said, word for word."""

    title: str
    subtitle: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    lines: Sequence[str]
    made: str


def render_page(page: Page) -> str:
    """Render the page through the packaged template; texts are data in it, figures alone are markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawn"] = Markup  # figures escape their own words (svg.py)
    return environment.get_template(TEMPLATE).render(page=page)


def write_page(path: Path, page: Page) -> None:
    """Write the page atomically: an earlier file stays whole until the new one is."""
    rendered = render_page(page)
    with atomic_path(path) as unfinished:
        # half emoji of broken exports cannot be written as UTF-8
        unfinished.write_text(rendered, encoding="utf-8", errors="replace")
