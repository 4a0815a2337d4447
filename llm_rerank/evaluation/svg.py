"""Marks of a figure as SVG text: lines, dots, words, and the frame that says what the figure shows. All text escaped.

Figures are drawn on a page ``WIDTH`` units wide, so that their words stay readable on a telephone; a browser scales
them. What is told apart is told apart by dash and shape, never by colour alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

WIDTH = 400.0
FONT_SIZE = 13.0
LINE = 16.0
"""Height of a line of words."""

INK, SOFT, GRID = "#1b1f24", "#57606a", "#d8dee4"
COLOURS = ("#0b5394", "#9a3412", "#1a7f37", "#6f42c1")  # all at least 5.9:1 on white
DASHES = ("", "6 3", "2 3", "8 3 2 3")
MARKERS = ("dot", "square", "triangle", "ring")

Point = tuple[float, float]
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def safe(text: object) -> str:
    """Escape text for HTML and SVG; characters that neither may hold become a question mark."""
    return escape(_NOT_XML.sub("?", str(text)))


def figure(title: str, description: str, parts: Sequence[str], height: float, width: float = WIDTH) -> str:
    """Put marks into a picture with its name and its description for those who do not see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width:g} {height:g}" '
        f'font-size="{FONT_SIZE:g}" fill="{INK}"><title>{safe(title)}</title><desc>{safe(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def words(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    soft: bool = False,
    bold: bool = False,
    turned: bool = False,
) -> str:
    """Write text whose middle line is at y. anchor: "start", "middle" or "end". turned: upwards, for a y axis."""
    style = (f' fill="{SOFT}"' if soft else "") + (' font-weight="600"' if bold else "")
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    # dy instead of dominant-baseline, which printers and some converters do not know
    return f'<text x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="{anchor}"{style}{turn}>{safe(text)}</text>'


def line(start: Point, end: Point, *, colour: str = INK, width: float = 1.0, dash: str = "") -> str:
    """Draw a straight line."""
    (x1, y1), (x2, y2) = start, end
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width:g}"{dashed}/>'
    )


def path(points: Sequence[Point], *, colour: str = INK, dash: str = "") -> str:
    """Draw a line through points."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>'


def box(
    x: float, y: float, width: float, height: float, *, fill: str, colour: str = INK, dash: str = "", name: str = ""
) -> str:
    """Draw a rectangle. name: of its class, where a test or a style wants to find it."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    named = f' class="{name}"' if name else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" fill="{fill}" '
        f'stroke="{colour}"{dashed}{named}/>'
    )


def marker(shape: str, at: Point, colour: str = INK) -> str:
    """Draw a point's mark: "dot", "square", "triangle", "ring", or "below" (a value under the axis)."""
    x, y = at
    fill = f'class="mark" fill="{colour}" stroke="{colour}"'
    hollow = f'class="mark" fill="#fff" stroke="{colour}" stroke-width="1.5"'
    if shape == "square":
        return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" {fill}/>'
    if shape == "triangle":
        return f'<path d="M{x:.1f} {y - 4.5:.1f}l4.5 8h-9z" {fill}/>'
    if shape == "ring":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" {hollow}/>'
    if shape == "below":
        return f'<path d="M{x:.1f} {y + 4.5:.1f}l4.5 -8h-9z" {hollow}/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {fill}/>'


def whisker(start: Point, end: Point, colour: str = INK) -> str:
    """Draw an interval with a short stroke across either end; it runs along x or along y."""
    (x1, y1), (x2, y2) = start, end
    across = (0.0, 4.0) if abs(x2 - x1) >= abs(y2 - y1) else (4.0, 0.0)
    ends = [
        line((x - across[0], y - across[1]), (x + across[0], y + across[1]), colour=colour) for x, y in (start, end)
    ]
    return line(start, end, colour=colour, width=1.5) + "".join(ends)


def text_width(text: str, *, bold: bool = False) -> float:
    """Guess the width of words in a broad sans-serif font: .62 of the font size a character, wide scripts whole."""
    narrow = 0.69 if bold else 0.62
    return sum(
        FONT_SIZE * (1.0 if ord(character) >= 0x1100 and character not in "–−…→" else narrow) for character in text
    )


def fitted_text(text: str, room: float, *, bold: bool = False) -> str:
    """Shorten text to a width, with a mark where something is gone."""
    if text_width(text, bold=bold) <= room:
        return text
    while text and text_width(text + "…", bold=bold) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def wrapped_text(text: str, room: float, *, bold: bool = False) -> list[str]:
    """Divide text at its spaces into lines of a width; a word that is wider is shortened."""
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, bold=bold) <= room:
            lines[-1] = longer
        else:
            lines.append(fitted_text(word, room, bold=bold))
    return lines
