"""The course of a fine-tuning as a small picture (SVG): losses, NDCG and recall, accuracy beside its base rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_rerank.storage import atomic_path

WIDTH, HEIGHT, MARGIN = 320, 180, 40
PANELS = (
    ("loss on other users' lists", (("loss", "validation"),)),
    ("loss of the steps", (("training_loss", "training, on shorter lists"),)),
    ("ranking", (("ndcg@10", "NDCG@10"), ("recall@10", "recall@10"))),
    ("accuracy", (("accuracy", "accuracy"), ("base_rate", "base rate"))),
)
DASHES = ("", "5 3")  # told apart without colour


def training_plot(log: Sequence[Mapping[str, Any]]) -> str:
    """Draw an SVG with a panel a kind of figure, over steps. log: of ``FineTuning``, at least one entry."""
    known = {key for entry in log for key in entry}
    shown = [(title, series) for title, series in PANELS if known.issuperset(key for key, _ in series)]
    panels = "".join(
        f'<g transform="translate({number * WIDTH},0)">{_panel(title, series, log)}</g>'
        for number, (title, series) in enumerate(shown)
    )
    width = WIDTH * len(shown)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 50}" width="{width}" '
        f'font-family="sans-serif" font-size="11" role="img"><title>Course of the fine-tuning</title>{panels}</svg>\n'
    )


def write_training_plot(path: Path, log: Sequence[Mapping[str, Any]]) -> None:
    """Write the picture atomically."""
    with atomic_path(path) as unfinished:
        unfinished.write_text(training_plot(log), encoding="utf-8")


def _panel(title: str, series: Sequence[tuple[str, str]], log: Sequence[Mapping[str, Any]]) -> str:
    points = {key: [(entry["step"], entry[key]) for entry in log if key in entry] for key, _ in series}
    values = [value for rows in points.values() for _, value in rows]
    low, high = min(values), max(values)
    room = (high - low) or abs(high) or 1.0
    low, high = low - 0.05 * room, high + 0.05 * room
    last = max(entry["step"] for entry in log) or 1

    def place(step: float, value: float) -> str:
        x = MARGIN + step / last * (WIDTH - MARGIN - 10)
        y = 20 + (high - value) / (high - low) * (HEIGHT - 50)
        return f"{x:.1f},{y:.1f}"

    drawn = [f'<text x="{MARGIN}" y="12" font-weight="bold">{title}</text>']
    for value in (low, (low + high) / 2, high):
        level = place(0, value).split(",")[1]
        drawn.append(f'<line x1="{MARGIN}" y1="{level}" x2="{WIDTH - 10}" y2="{level}" stroke="#ddd"/>')
        drawn.append(
            f'<text x="{MARGIN - 4}" y="{level}" text-anchor="end" dominant-baseline="middle">{value:.3f}</text>'
        )
    drawn.append(f'<text x="{WIDTH - 10}" y="{HEIGHT - 14}" text-anchor="end">step {last}</text>')
    for number, ((key, label), dash) in enumerate(zip(series, DASHES, strict=False)):
        line = " ".join(place(step, value) for step, value in points[key])
        style = f'fill="none" stroke="black" stroke-width="1.5" stroke-dasharray="{dash}"'
        drawn.append(f'<polyline points="{line}" {style}/>')
        y = HEIGHT + 6 + 16 * number
        drawn.append(f'<line x1="{MARGIN}" y1="{y}" x2="{MARGIN + 24}" y2="{y}" {style}/>')
        drawn.append(f'<text x="{MARGIN + 30}" y="{y + 4}">{label} {points[key][-1][1]:.4f}</text>')
    return "".join(drawn)
