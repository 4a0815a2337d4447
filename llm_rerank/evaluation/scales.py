"""From numbers to places on a page: linear and logarithmic scales, their ticks, and numbers in words. Draws nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llm_rerank.types import DataError

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
ROOM = 0.06  # of the span, left free at either end
MOST_DECIMALS = 6


@dataclass(frozen=True)
class Scale:
    """Maps values of [low, high] to places between ``start`` and ``end`` (which may run backwards, as y does).

    log: equal ratios take equal room; low must then be above 0.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise DataError(f"a scale from {self.low} to {self.high} has no extent; give finite low < high")
        if self.log and self.low <= 0:
            raise DataError(f"a logarithmic scale from {self.low} is impossible; low must be above 0")

    def __call__(self, value: float) -> float:
        """Place of a value; a value outside the scale is put at its end."""
        value = min(max(value, self.low), self.high)
        share = (
            math.log(value / self.low) / math.log(self.high / self.low)
            if self.log
            else (value - self.low) / (self.high - self.low)
        )
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values inside the scale, rising: at least two where the scale spans a decade or is linear."""
        return log_ticks(self.low, self.high, most) if self.log else linear_ticks(self.low, self.high, most)


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten within [low, high], as many as fit under ``most``."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power * factor for factor in (*STEPS, 20.0, 25.0, 50.0, 100.0)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [number * step for number in range(first, last + 1)]
    raise AssertionError("a step of 100 powers always fits")


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten within [low, high], thinned to ``most``; with 2 and 5 (or 3) times each where those are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        values = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
        inside = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(inside) < 2 and len(factors) == 3:
            return linear_ticks(low, high, most)  # within one decade: no round powers to show
        if len(inside) <= most:
            return inside
    every = math.ceil(len(inside) / most)
    return inside[::every]


def around(values: Iterable[float], *, zero: bool = False, log: bool = False) -> tuple[float, float]:
    """Bounds of a scale for values, with some room at either end; NaN and infinities are passed over.

    zero: 0 lies within. log: room as a ratio; values of 0 or less are passed over.
    Raises DataError where no value is left.
    """
    known = [float(value) for value in values if math.isfinite(value) and not (log and value <= 0)]
    if not known:
        raise DataError("no finite value to draw; leave the figure out")
    low, high = min(known), max(known)
    if log:
        room = max((high / low) ** ROOM, 1.25)
        return low / room, high * room
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = ROOM * (high - low) or 0.1 * abs(high) or 1.0
    # a side ends at 0 only where the other one does not
    return low if zero and low == 0 < high else low - room, high if zero and high == 0 > low else high + room


def number_words(value: float | None, digits: int = 3) -> str:
    """Write a number with so many significant digits and no exponent: 0.0042, 0.5, 12, 1,234; "unknown" for NaN."""
    if value is None or not math.isfinite(value):
        return "unknown"
    if value == 0:
        return "0"
    decimals = min(max(0, digits - 1 - math.floor(math.log10(abs(value)))), MOST_DECIMALS)
    written = f"{value:,.{decimals}f}"
    return written.rstrip("0").rstrip(".") if "." in written else written


def interval_words(
    value: float, low: float | None, high: float | None, digits: int = 4, *, signed: bool = False
) -> str:
    """Write a value with its interval: .1234 [.1200, .1270], all to so many decimals; "unknown" for NaN.

    signed: with + before what is above 0. Bounds that are none or not finite are left out.
    """
    if not math.isfinite(value):
        return number_words(value)
    sign = "+" if signed else ""
    bounds = [f"{bound:{sign}.{digits}f}" for bound in (low, high) if bound is not None and math.isfinite(bound)]
    shown = f"{value:{sign}.{digits}f}"
    return f"{shown} [{bounds[0]}, {bounds[1]}]" if len(bounds) == 2 else shown


def tick_words(ticks: Sequence[float], *, percent: bool = False) -> list[str]:
    """Write ticks with no more digits than tell them apart, and three where fewer do; percent: as 0.4 %."""
    values = [round(100.0 * tick if percent else tick, 10) for tick in ticks]
    digits = next((n for n in range(3, 12) if _true_words(values, n)), 12)
    words = [number_words(value, digits) for value in values]
    return [f"{word} %" for word in words] if percent else words


def _true_words(values: Sequence[float], digits: int) -> bool:
    """Tell whether numbers written so are off by less than a hundredth of the least step between them."""
    steps = [abs(b - a) for a, b in pairwise(values) if a != b]
    written = [float(number_words(value, digits).replace(",", "")) for value in values]
    return all(abs(a - b) <= 0.01 * min(steps, default=math.inf) for a, b in zip(values, written, strict=True))


def spread(places: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Move label places apart, to at least ``least`` between neighbours and within [low, high], in the order given.

    Places that are far enough apart stay. Where there is no room for all, they are spread evenly.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = [min(max(places[index], low), high) for index in order]
    if len(moved) > 1 and least * (len(moved) - 1) > high - low:
        moved = [low + (high - low) * rank / (len(moved) - 1) for rank in range(len(moved))]
    else:
        for rank in range(1, len(moved)):
            moved[rank] = max(moved[rank], moved[rank - 1] + least)
        overshoot = (moved[-1] - high) if moved else 0.0
        if overshoot > 0:
            moved[-1] = high
            for rank in range(len(moved) - 2, -1, -1):
                moved[rank] = min(moved[rank], moved[rank + 1] - least)
    placed = [0.0] * len(places)
    for rank, index in enumerate(order):
        placed[index] = moved[rank]
    return placed
