"""Figures as pure functions from numbers to SVG: curves over an axis, points with intervals, bars.

Every figure says in words what it shows (title and description) and refuses to be drawn empty: a caller with nothing
to show writes a sentence instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from llm_rerank.evaluation.scales import Scale, around, spread, tick_words
from llm_rerank.evaluation.svg import (
    COLOURS,
    DASHES,
    GRID,
    INK,
    LINE,
    MARKERS,
    SOFT,
    WIDTH,
    box,
    figure,
    fitted_text,
    line,
    marker,
    path,
    text_width,
    whisker,
    words,
    wrapped_text,
)
from llm_rerank.types import DataError

RIGHT, TOP, BOTTOM = 12.0, 24.0, 46.0
PLOT_HEIGHT = 210.0
MOST_LABEL = 165.0
"""Units that the names of a dot plot may take."""


@dataclass(frozen=True)
class Axis:
    """What an axis shows. low, high: its ends, None: from the values. zero: 0 lies on it. percent: 0.004 is ".4 %"."""

    name: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    zero: bool = False
    percent: bool = False

    def scale(self, values: Sequence[float], start: float, end: float) -> Scale:
        """Scale for values, between two places."""
        low, high = (self.low, self.high)
        if low is None or high is None:
            found = around(values, zero=self.zero, log=self.log)
            low, high = (found[0] if low is None else low), (found[1] if high is None else high)
        return Scale(low, high, start, end, self.log)


@dataclass(frozen=True)
class Series:
    """Points of one kind. joined: by a line; marked: each with a mark. low, high: an interval of y at each point.

    point_names: written beside points, "" for none. Points that are not finite are left out.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    joined: bool = True
    marked: bool = True
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    point_names: Sequence[str] = field(default=())


@dataclass(frozen=True)
class Row:
    """One row of a dot plot: a name, a value with its interval (None: none), and words at its end."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    strong: bool = False


def xy_chart(
    title: str,
    description: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    *,
    diagonal: str = "",
    cut: tuple[float, str] | None = None,
    height: float = PLOT_HEIGHT,
    width: float = WIDTH,
) -> str:
    """Draw series over two axes, each with its dash, mark and name beside its end.

    diagonal: words at the line y = x, none without them. cut: a value of x marked across the figure, and its words.
    height, width: units of the plot itself and of the whole figure.
    On a logarithmic y a value of 0 is drawn as a hollow mark at the lower edge.

    Raises DataError where no point is finite.
    """
    shown = [_finite(one, x.log) for one in series]
    if not any(len(one.x) for one in shown):
        raise DataError(f"figure {title!r} has no finite point; say so instead of drawing it")
    # room below the name of the y axis: for the words of the cut, else for a name above the highest line
    top = TOP + (LINE if cut else 10.0 if any(one.name for one in shown) else 0.0)
    up = y.scale([v for s in shown for v in (*s.y, *s.low, *s.high)], top + height, top)
    left = max(text_width(label) for label in tick_words(up.ticks(), percent=y.percent)) + 8
    over = x.scale([*(v for s in shown for v in s.x), *([cut[0]] if cut else [])], left, width - RIGHT)
    parts = _frame(over, up, x, y)
    if diagonal:
        parts += _diagonal(over, up, diagonal)
    if cut is not None:
        parts += _cut_line(over(cut[0]), cut[1], up, width)
    for number, one in enumerate(shown):
        parts += _series(one, over, up, COLOURS[number % 4], DASHES[number % 4], MARKERS[number % 4])
    parts += _series_names(shown, over, up, up.end if cut else TOP)
    return figure(title, description, parts, up.start + BOTTOM, width)


def dot_plot(
    title: str, description: str, axis: Axis, rows: Sequence[Row], *, reference: tuple[float, str] | None = None
) -> str:
    """Draw one row a value: name, point with its interval, words at the end (a forest plot).

    reference: a value marked down the figure, and its words. Rows whose value is not finite are left out.

    Raises DataError where no row is left.
    """
    rows = [row for row in rows if math.isfinite(row.value)]
    if not rows:
        raise DataError(f"figure {title!r} has no finite row; say so instead of drawing it")
    names = [wrapped_text(row.name, MOST_LABEL, bold=row.strong) for row in rows]
    left = 12 + max(text_width(part, bold=row.strong) for row, parts in zip(rows, names, strict=True) for part in parts)
    noted = max(text_width(row.note, bold=row.strong) for row in rows)
    right = WIDTH - (noted + 12 if noted else RIGHT)
    values = [v for row in rows for v in (row.value, row.low, row.high) if v is not None and math.isfinite(v)]
    over = axis.scale([*values, *([reference[0]] if reference else [])], left, right)
    top = TOP if reference else 8.0
    heights = [8.0 + LINE * len(name) for name in names]
    bottom = top + sum(heights)
    parts = _x_axis(over, axis, top, bottom)
    if reference is not None:
        at = over(reference[0])
        parts.append(line((at, top), (at, bottom), dash="4 3", width=1.5))
        parts.append(_inside(at, top - 9, reference[1], left, right))
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        level = top + sum(heights[:number]) + heights[number] / 2
        colour = COLOURS[0] if row.strong else INK
        for place, said in enumerate(name):
            at_line = level + LINE * (place - (len(name) - 1) / 2)
            parts.append(words(left - 8, at_line, said, anchor="end", bold=row.strong))
        if row.low is not None and row.high is not None and math.isfinite(row.low) and math.isfinite(row.high):
            parts.append(whisker((over(row.low), level), (over(row.high), level), colour))
        parts.append(marker("square" if row.strong else "dot", (over(row.value), level), colour))
        if row.note:
            parts.append(words(right + 8, level, row.note, bold=row.strong))
    return figure(title, description, parts, bottom + BOTTOM)


def bar_chart(title: str, description: str, rows: Sequence[Row]) -> str:
    """Draw one bar a row from 0, its note at the end. Raises DataError where no row is above 0."""
    rows = [row for row in rows if math.isfinite(row.value) and row.value > 0]
    if not rows:
        raise DataError(f"figure {title!r} has no bar; say so instead of drawing it")
    left = min(max(text_width(row.name) for row in rows), MOST_LABEL + 40) + 12
    right = WIDTH - max(text_width(row.note) for row in rows) - 12
    over = Scale(0.0, max(row.value for row in rows), left, right)
    step, parts = 21.0, []
    for number, row in enumerate(rows):
        level = 4 + step * (number + 0.5)
        parts.append(words(left - 8, level, fitted_text(row.name, MOST_LABEL + 40), anchor="end"))
        width = over(row.value) - left
        parts.append(box(left, level - 7, width, 14, fill="#b6cbe2", colour=COLOURS[0], name="bar"))
        parts.append(words(left + width + 6, level, row.note))
    return figure(title, description, parts, 8 + step * len(rows))


def _finite(one: Series, log_x: bool) -> Series:
    kept = [
        index
        for index, (x, y) in enumerate(zip(one.x, one.y, strict=True))
        if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x)
    ]
    taken = {name: [getattr(one, name)[i] for i in kept] if getattr(one, name) else () for name in ("low", "high")}
    names = [one.point_names[i] for i in kept] if one.point_names else ()
    return Series(
        one.name, [one.x[i] for i in kept], [one.y[i] for i in kept], one.joined, one.marked, point_names=names, **taken
    )


def _frame(over: Scale, up: Scale, x: Axis, y: Axis) -> list[str]:
    ticks = up.ticks()
    parts = []
    for value, label in zip(ticks, tick_words(ticks, percent=y.percent), strict=True):
        colour = SOFT if value == 0 and y.zero else GRID
        parts.append(line((over.start, up(value)), (over.end, up(value)), colour=colour))
        parts.append(words(over.start - 6, up(value), label, anchor="end", soft=True))
    parts += _x_axis(over, x, up.end, up.start)
    parts.append(line((over.start, up.end), (over.start, up.start), colour=SOFT))
    parts.append(words(2, 9, y.name, soft=True))
    return parts


def _x_axis(over: Scale, axis: Axis, top: float, bottom: float) -> list[str]:
    ticks = over.ticks(6 if over.end - over.start > 200 else 4)
    parts = [line((over.start, bottom), (over.end, bottom), colour=SOFT)]
    labels = tick_words(ticks, percent=axis.percent)
    if sum(text_width(label) + 10 for label in labels) > over.end - over.start:
        ticks, labels = ticks[::2], labels[::2]
    for value, label in zip(ticks, labels, strict=True):
        parts.append(line((over(value), top), (over(value), bottom), colour=GRID))
        parts.append(words(over(value), bottom + 12, label, anchor="middle", soft=True))
    parts.append(_inside((over.start + over.end) / 2, bottom + 31, axis.name, 0, max(WIDTH, over.end), soft=True))
    return parts


def _diagonal(over: Scale, up: Scale, label: str) -> list[str]:
    low, high = max(over.low, up.low), min(over.high, up.high)
    if not low < high:
        return []
    drawn = line((over(low), up(low)), (over(high), up(high)), colour=SOFT, width=1.5, dash="6 4")
    at = (over(high), up(high))
    return [drawn, _halo(words(at[0] - 8, at[1] + 6, label, anchor="end", soft=True))]


def _cut_line(at: float, label: str, up: Scale, width: float) -> list[str]:
    return [line((at, up.end), (at, up.start), width=1.5, dash="4 3"), _inside(at, up.end - 8, label, 2, width - 2)]


def _series(one: Series, over: Scale, up: Scale, colour: str, dash: str, shape: str) -> list[str]:
    under = [up.log and value <= 0 for value in one.y]
    points = [(over(x), up(up.low if low else y)) for x, y, low in zip(one.x, one.y, under, strict=True)]
    parts = []
    for (place, _), low, high in zip(points, one.low, one.high, strict=False):
        if math.isfinite(low) and math.isfinite(high):
            bottom = up.low if up.log and low <= 0 else low
            parts.append(whisker((place, up(bottom)), (place, up(max(high, up.low))), colour))
    if one.joined and len(points) > 1:
        parts.append(path(points, colour=colour, dash=dash))
    if one.marked or len(points) == 1:
        parts += [marker("below" if low else shape, point, colour) for point, low in zip(points, under, strict=True)]
    for (place, level), name in zip(points, one.point_names, strict=False):
        if name:
            parts.append(_halo(words(place + 8, level - 9, name)))
    return parts


def _series_names(shown: Sequence[Series], over: Scale, up: Scale, top: float) -> list[str]:
    """Write each series' name beside its end, on the side where it crosses the fewest lines."""
    courses = [[(over(x), up(y)) for x, y in zip(one.x, one.y, strict=True)] for one in shown]
    named = [index for index, one in enumerate(shown) if one.name and one.x]
    levels, places = [], []
    for index in named:
        x, y = courses[index][-1]
        wide = text_width(shown[index].name, bold=True)
        to_left = x - wide > over.start
        start = x - wide if to_left else x + 8
        levels.append(_clear_level(y, start, start + wide, courses, top, up.start))
        places.append((x - 2, "end") if to_left else (x + 8, "start"))
    levels = spread(levels, LINE, top + 8, up.start - 8)
    return [
        _halo(words(x, level, shown[index].name, anchor=anchor, bold=True))
        for index, level, (x, anchor) in zip(named, levels, places, strict=True)
    ]


def _clear_level(
    y: float, start: float, end: float, courses: Sequence[Sequence[tuple[float, float]]], top: float, bottom: float
) -> float:
    """Find a level near y for words from start to end that keeps clear of the courses, or the clearest there is."""
    passed = [level for course in courses for level in _levels_between(course, start, end)]
    tried = [
        y + step for step in (-13, 14, -22, 24, -32, 34, -44, 48, -58, 62) if top + 8 <= y + step <= bottom - 8
    ] or [y]
    clear = [min((abs(level - other) for other in passed), default=math.inf) for level in tried]
    return next((level for level, room in zip(tried, clear, strict=True) if room >= 11), tried[clear.index(max(clear))])


def _levels_between(course: Sequence[tuple[float, float]], start: float, end: float) -> list[float]:
    """Levels of a course of points at several places between start and end."""
    levels = [y for x, y in course if start <= x <= end]
    for (x1, y1), (x2, y2) in zip(course, course[1:], strict=False):
        for step in range(11):
            x = start + (end - start) * step / 10
            if x1 < x2 and x1 <= x <= x2:
                levels.append(y1 + (y2 - y1) * (x - x1) / (x2 - x1))
    return levels


def _halo(text: str) -> str:
    """Give words a white edge, so that a line under them does not cross them out."""
    return text.replace("<text ", '<text stroke="#fff" stroke-width="3" paint-order="stroke" ', 1)


def _inside(at: float, level: float, text: str, low: float, high: float, *, soft: bool = False) -> str:
    """Write words around a place, moved so far that they stay within the figure."""
    half = text_width(text) / 2
    middle = (low + high) / 2 if 2 * half > high - low else min(max(at, low + half), high - half)
    return words(middle, level, text, anchor="middle", soft=soft)
