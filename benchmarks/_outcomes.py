"""What one system did on one trial, and how it is kept on disk, so that a long run can go on after a break."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._keeping import keep_arrays, kept_arrays
from benchmarks.systems import Settings
from llm_rerank.evaluation.comparison import RankingResult, evaluate_ranking
from llm_rerank.evaluation.protocols import Trial
from llm_rerank.types import Ragged

DEPTH = 100


@dataclass(frozen=True)
class Outcome:
    """One system on one trial.

    ranked: the best ``DEPTH`` items of each case, codes of the trial's catalogue. peak_memory_mb: of the whole process.
    extra: further JSON-ready entries.
    """

    ranked: Ragged
    result: RankingResult
    seconds_fit: float
    seconds_score: float
    peak_memory_mb: float | None
    settings: Settings | str
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of the report."""
        return {
            **self.result.summary(),
            "seconds_fit": self.seconds_fit,
            "seconds_score": self.seconds_score,
            "peak_memory_mb": self.peak_memory_mb,
            "settings": self.settings if isinstance(self.settings, str) else dict(self.settings),
            **self.extra,
        }

    def keep(self, path: Path, made_by: Mapping[str, Any]) -> None:
        """Write the lists, and beside them what cannot be computed from them. made_by: what ``kept`` will ask for."""
        names = ("seconds_fit", "seconds_score", "peak_memory_mb", "settings", "extra")
        values = {name: getattr(self, name) for name in names}
        keep_arrays(path, {"values": self.ranked.values, "offsets": self.ranked.offsets}, values, made_by)


def kept(path: Path, made_by: Mapping[str, Any], trial: Trial, seed: int) -> Outcome | None:
    """Read an outcome that ``Outcome.keep`` wrote; None where there is none, or one that something else made."""
    found = kept_arrays(path, made_by)
    if found is None:
        return None
    arrays, values = found
    ranked = Ragged(arrays["values"], arrays["offsets"])
    return Outcome(ranked, evaluate_ranking(ranked, trial, depth=DEPTH, seed=seed), **values)
