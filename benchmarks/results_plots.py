"""Plots of the page of results: what each step of the ladder gains, against the amount of behaviour and elsewhere.

One colour, dash and mark a step on every plot, on white paper, so that they read alike on light and dark pages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.results_reports import LADDER, Gain, Report, in_order, map_gains, regime_words, share_of, signed
from llm_rerank.evaluation.charts import Axis, Series, xy_chart
from llm_rerank.evaluation.scales import tick_words
from llm_rerank.evaluation.svg import (
    COLOURS,
    GRID,
    MARKERS,
    SOFT,
    figure,
    fitted_text,
    line,
    marker,
    text_width,
    whisker,
    words,
)

MARGIN = 12.0
WIDTH = 900.0 - 2 * MARGIN
APART = 1.05
"""Ratio of the places of neighbouring steps on the logarithmic axis, so that their intervals stay apart."""

HEADER = 56.0
"""Units above a plot for its title and the key to its marks."""

ROW, GAP = 20.0, 12.0
MOST_LABEL = 300.0


@dataclass(frozen=True)
class Plot:
    """A picture, the name of its file without the ending, and what it shows, in words."""

    name: str
    svg: str
    alternative: str

    @property
    def markdown(self) -> str:
        """Link to the picture from the page."""
        return f"![{self.alternative}](plots/{self.name}.svg)"


def plots_of(dataset: str, report: Report) -> list[Plot]:
    """Draw a map: gains against the share of users, then the other regimes, one plot a metric."""
    gains = map_gains(dataset, report)
    by_share = [gain for gain in gains if share_of(gain.regime) is not None]
    others = [gain for gain in gains if share_of(gain.regime) is None]
    plots = [against_behaviour(dataset, by_share)] if by_share else []
    for metric in dict.fromkeys(gain.metric for gain in others):
        plots.append(elsewhere(dataset, metric, [gain for gain in others if gain.metric == metric]))
    return plots


def against_behaviour(dataset: str, gains: Sequence[Gain]) -> Plot:
    """Draw the gain of each step over the one below against the share of users whose events are known."""
    series = []
    for place, step in enumerate(LADDER[1:]):
        of_step = sorted((gain for gain in gains if gain.step == step), key=lambda gain: share_of(gain.regime) or 0)
        shift = APART ** (place - (len(LADDER) - 2) / 2)
        series.append(
            Series(
                "",
                [shift * (share_of(gain.regime) or 0) for gain in of_step],
                [gain.mean for gain in of_step],
                low=[gain.low for gain in of_step],
                high=[gain.high for gain in of_step],
            )
        )
    title = f"{dataset}: what a step gains over the one below it"
    axis = Axis("share of the users whose events are known", log=True, percent=True)
    up = Axis(f"gain in {gains[0].metric.upper()} over the step below, 95 % intervals", zero=True)
    alternative = _in_words(title, gains)
    svg = xy_chart(title, alternative, axis, up, series, height=300.0, width=WIDTH)
    return Plot(f"{dataset}_behaviour", on_paper(svg, _header(title, gains)), alternative)


def elsewhere(dataset: str, metric: str, gains: Sequence[Gain]) -> Plot:
    """Draw the gains of regimes of one metric as dots with intervals, one band a regime."""
    regimes = in_order([gain.regime for gain in gains])
    left = min(max(text_width(regime_words(regime)) for regime in regimes), MOST_LABEL) + 12
    right = WIDTH - max(text_width(signed(gain.mean)) for gain in gains) - 16
    bottom = sum(GAP + ROW * sum(gain.regime == regime for gain in gains) for regime in regimes)
    scale = Axis("", zero=True).scale([bound for gain in gains for bound in (gain.low, gain.high)], left, right)
    parts, ticks = [], scale.ticks()
    for tick, label in zip(ticks, tick_words(ticks), strict=True):
        parts.append(line((scale(tick), 0), (scale(tick), bottom), colour=SOFT if tick == 0 else GRID))
        parts.append(words(scale(tick), bottom + 12, label, anchor="middle", soft=True))
    level = 0.0
    for regime in regimes:
        parts.append(line((0, level), (WIDTH, level), colour=GRID))
        of_regime = [gain for gain in gains if gain.regime == regime]
        name = fitted_text(regime_words(regime), MOST_LABEL)
        parts.append(words(left - 8, level + (GAP + ROW * len(of_regime)) / 2, name, anchor="end"))
        level += GAP / 2
        for gain in of_regime:
            parts += _dot(gain, scale(gain.low), scale(gain.mean), scale(gain.high), level + ROW / 2, right + 12)
            level += ROW
        level += GAP / 2
    name = f"gain in {metric.upper()} over the step below, 95 % intervals"
    parts.append(words((left + right) / 2, bottom + 31, name, anchor="middle", soft=True))
    title = f"{dataset}: what a step gains over the one below it, {metric.upper()} in other regimes"
    alternative = _in_words(title, gains)
    svg = on_paper(figure(title, alternative, parts, bottom + 46, WIDTH), _header(title, gains))
    return Plot(f"{dataset}_{re.sub('[^a-z0-9]+', '_', metric)}", svg, alternative)


def on_paper(svg: str, header: Sequence[str]) -> str:
    """Put a figure under a header of ``HEADER`` units, on white paper, in a plain font: a page lends it neither."""
    found = re.search(r'viewBox="0 0 (\S+) (\S+)"', svg)
    assert found is not None
    x, y, width, height = -MARGIN, -MARGIN - HEADER, float(found[1]) + 2 * MARGIN, float(found[2]) + 2 * MARGIN + HEADER
    size = f'viewBox="{x:g} {y:g} {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    paper = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="#fff"/>'
    drawn = svg.replace(found[0], f'{size} font-family="sans-serif"', 1)
    return drawn.replace("</desc>", f"</desc>{paper}{''.join(header)}", 1) + "\n"


def _style(step: str) -> tuple[str, str]:
    place = LADDER.index(step) - 1
    return COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]


def _header(title: str, gains: Sequence[Gain]) -> list[str]:
    """Write the title, and below it each step's mark and what it is compared with."""
    parts, at = [words(0, 10 - HEADER, title, bold=True)], 0.0
    for step in LADDER:
        below = next((gain.below for gain in gains if gain.step == step), None)
        if below is not None:
            name = f"{step} over {below}"
            colour, shape = _style(step)
            parts += [marker(shape, (at + 4, 34 - HEADER), colour), words(at + 14, 34 - HEADER, name)]
            at += text_width(name) + 30
    return parts


def _dot(gain: Gain, low: float, mean: float, high: float, level: float, end: float) -> list[str]:
    colour, shape = _style(gain.step)
    return [
        whisker((low, level), (high, level), colour),
        marker(shape, (mean, level), colour),
        words(end, level, signed(gain.mean), soft=True),
    ]


def _in_words(title: str, gains: Sequence[Gain]) -> str:
    """Say the title and every gain: what a reader without the picture needs."""
    sentences = [f"{title}."]
    for step in LADDER:
        of_step = {gain.regime: gain for gain in gains if gain.step == step}
        if of_step:
            said = (f"{signed(of_step[name].mean)} with {regime_words(name)}" for name in in_order(list(of_step)))
            sentences.append(f"{step.capitalize()}: {', '.join(said)}.")
    return " ".join(sentences)
