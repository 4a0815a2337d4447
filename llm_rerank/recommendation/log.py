"""What a fit says: lines kept for the report, printed where wanted, with progress bars and seconds a step."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_rerank.types import DataReport


class FitLog:
    """Collects lines and timings; prints them as they come unless ``verbose`` is False.

    lines: list of str. seconds: dict of step name to seconds.
    """

    def __init__(self, *, verbose: bool = True) -> None:
        self.verbose = verbose
        self.lines: list[str] = []
        self.seconds: dict[str, float] = {}
        self._step: tuple[str, float] | None = None

    def say(self, line: str) -> None:
        """Keep a line and print it."""
        self.lines.append(line)
        if self.verbose:
            print(line, flush=True)  # noqa: T201  # fit is asked to tell its user what it decided

    def detail(self, line: str) -> None:
        """Print a line of progress that the report need not keep."""
        if self.verbose:
            print(line, flush=True)  # noqa: T201  # as above

    def say_report(self, report: DataReport) -> None:
        """Say what was understood of the data and what was dropped."""
        for line in report.lines():
            self.say(line)

    def step(self, name: str) -> None:
        """End the step that runs, if any, and start another; a name that comes again adds up."""
        now = time.perf_counter()
        if self._step is not None:
            previous, began = self._step
            self.seconds[previous] = self.seconds.get(previous, 0.0) + now - began
        self._step = (name, now)

    def finish(self) -> None:
        """End the last step and say where the time went."""
        self.step("")
        self._step = None
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items() if seconds >= 0.05)
        self.say(f"fit took {sum(self.seconds.values()):.1f} s ({parts})")

    def progress(self, total: int, description: str) -> Any:
        """Return a progress bar: shown on a terminal or in a notebook, silent in a pipe."""
        from tqdm.auto import tqdm

        return tqdm(total=total, desc=description, disable=None if self.verbose else True, leave=False)


def duration(seconds: float) -> str:
    """Write a duration that was measured: "35 s", "4 min"."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@dataclass(frozen=True)
class FitReport:
    """What a fit decided and measured. values: JSON-ready; its "lines" are what was said, in order."""

    values: Mapping[str, Any]

    def __str__(self) -> str:
        return "\n".join(self.values["lines"])

    def _repr_html_(self) -> str:
        return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in self.values["lines"]) + "</ul>"
