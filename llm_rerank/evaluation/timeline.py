"""The protocol as a time line: what the components learned from, what the folds F and G held out, what was tested."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_rerank.evaluation.protocols import Trial
from llm_rerank.evaluation.scales import Scale
from llm_rerank.evaluation.svg import (
    COLOURS,
    INK,
    LINE,
    SOFT,
    WIDTH,
    box,
    figure,
    line,
    text_width,
    words,
    wrapped_text,
)
from llm_rerank.recommendation.holdout import Holdout, plan_holdout
from llm_rerank.recommendation.log import FitLog

LEFT, RIGHT = 6.0, WIDTH - 6.0
BAR, GAP = 12.0, 9.0
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
BEFORE, HELD_OUT, LAST = 0.0, 0.42, 0.74
"""Where positions are drawn: events long past, each user's last but one, the last; of the figure's width."""


@dataclass(frozen=True)
class Span:
    """One step of the protocol: what happens, in words, and on what part of the line (0 to 1 of its length)."""

    name: str
    what: str
    when: str
    start: float
    end: float
    fill: str
    dash: str = ""


@dataclass(frozen=True)
class TimeLine:
    """The steps in order, and the moments named under them: (place from 0 to 1, words)."""

    spans: Sequence[Span]
    moments: Sequence[tuple[float, str]]
    in_time: bool

    def draw(self) -> str:
        """Draw one bar a step, its words above it, the moments below."""
        over = Scale(0.0, 1.0, LEFT, RIGHT)
        labels_of = [wrapped_text(f"{span.name}: {span.what}", RIGHT - LEFT) for span in self.spans]
        heights = [LINE * len(label) + BAR + GAP for label in labels_of]
        bottom = sum(heights) + 2
        turns = RIGHT / 2 if self.in_time else RIGHT  # a position names the stretch after it
        rows, labels = _rows_of_labels([(over(at), text) for at, text in self.moments], turns)
        parts = [
            line((over(at), 0), (over(at), bottom + LINE * (row + 1)), colour=SOFT, dash="2 3")
            for (at, _), row in zip(self.moments, rows, strict=True)
        ]
        for number, span in enumerate(self.spans):
            top = sum(heights[:number])
            for place, said in enumerate(labels_of[number]):
                label = words(LEFT + 5, top + 8 + LINE * place, said)
                parts.append(label.replace("<text ", '<text stroke="#fff" stroke-width="3" paint-order="stroke" '))
            width, level = over(span.end) - over(span.start), top + heights[number] - BAR - GAP
            parts.append(box(over(span.start), level, width, BAR, fill=span.fill, dash=span.dash, name="span"))
        parts += [
            words(x, bottom + 10 + LINE * row, text, soft=True) for (x, text), row in zip(labels, rows, strict=True)
        ]
        height = bottom + 10 + LINE * (max(rows, default=0) + 1)
        description = ". ".join(f"{span.name}: {span.what}, {span.when}" for span in self.spans)
        return figure("Time line of the protocol", description, parts, height)


def time_line(trial: Trial, report: Mapping[str, Any], *, seed: int, refit: bool, last_time: int) -> TimeLine | None:
    """Lay out what was fitted, held out and tested.

    report: of the fit on the trial's past, seed and refit: its settings. last_time: of the last event that there is.
    None where the report does not say what was held out.
    """
    # the plan is a function of events and seed; where it reads otherwise, the fit was on other events
    plan = plan_holdout(trial.past, seed, FitLog(verbose=False))
    if not report.get("holdout") or plan.description != report["holdout"] or "n_cases" not in report:
        return None
    in_time = trial.at is not None
    n_judged = int(report["n_cases"])
    n_blended = len(plan.targets.users) - n_judged
    first = int(trial.past.times.min())
    reach = max(last_time - first, 1)
    at = 1.0 if trial.at is None else (trial.at - first) / reach
    tested = (at, 1.0) if in_time else (LAST, 1.0)
    past = (0.0, tested[0])
    if plan.protocol == "time":
        place = (plan.as_of - first) / reach if in_time else HELD_OUT
        held, learned, dash = (place, past[1]), (0.0, place), "" if in_time else "4 3"
        when = f"from {_day(plan.as_of)} on" + (f", before {_day(trial.at)}" if trial.at is not None else "")
        learned_when = f"before {_day(plan.as_of)}"
    else:
        held, learned = ((0.0, past[1]) if in_time else (HELD_OUT, LAST)), past
        dash, when = "4 3", "each user's last event of the past"
        learned_when = "the past without those events"
    test_when = f"from {_day(trial.at)} on" if trial.at is not None else "each user's last new items"
    fold = "#c5d8ec" if not dash else "none"
    spans = [
        Span("1 Components", f"learn from {len(plan.past):,} events", learned_when, *learned, COLOURS[0]),
        Span("2 Fold F", f"{n_blended:,} users fit blend, guard, calibrator", when, *held, fold, dash),
        Span("3 Fold G", f"{n_judged:,} users judge them and set the cut", when, *held, fold, dash),
    ]
    if refit:
        again = f"components learn from all {len(trial.past):,} events, the rest from both folds"
        spans.append(Span("4 Refit", again, "the whole past", *past, "#7ba3cc"))
    n_targets = len(trial.cases.targets.values)
    tested_words = f"{len(trial.cases):,} users with {n_targets:,} targets"
    spans.append(Span(f"{len(spans) + 1} Test", tested_words, test_when, *tested, INK))
    return TimeLine(spans, _moments(trial, plan, first, last_time, at, held[0]), in_time)


def _moments(
    trial: Trial, plan: Holdout, first: int, last_time: int, at: float, held_from: float
) -> list[tuple[float, str]]:
    if trial.at is None:
        return [(BEFORE, "older events"), (HELD_OUT, "last but one"), (LAST, "last")]
    inner = [(held_from, _day(plan.as_of))] if plan.protocol == "time" else []
    return [(0.0, _day(first)), *inner, (at, _day(trial.at)), (1.0, _day(last_time))]


def _day(seconds: int | None) -> str:
    if seconds is None:
        return ""
    day = np.datetime64(int(seconds), "s").astype(datetime.datetime)
    # not strftime, whose names of months depend on the machine; no spaces at which a line could break
    return f"{day.day}\u00a0{MONTHS[day.month - 1]}\u00a0{day.year}"


def _rows_of_labels(labels: Sequence[tuple[float, str]], turns: float) -> tuple[list[int], list[tuple[float, str]]]:
    """First row where each label touches no other, and its start: after its place, or before it from ``turns`` on."""
    ends: list[float] = []
    rows, placed = [], []
    for x, text in labels:
        width = text_width(str(text))
        start = x + 4 if x < turns else x - 4 - width
        row = next((number for number, end in enumerate(ends) if end + 8 <= start), len(ends))
        if row == len(ends):
            ends.append(0.0)
        ends[row] = start + width
        rows.append(row)
        placed.append((start, str(text)))
    return rows, placed
