"""What the steps of a map reach in one regime: means over draws of the shop, differences with intervals, own choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t

from llm_rerank.statistics import paired_difference

PART_OF_STEP = {"encoder": "semantic", "cross_encoder": "cross_encoder"}
"""The part whose verdict in a step's fit says whether the library would have kept it."""


@dataclass(frozen=True)
class Measured:
    """One regime: for each draw of the shop, a value a case for each step: NDCG@10, or HR@10 among new items.

    draws: arrays of shape (n_cases,) by step. autos: the step that the library would have taken in each draw.
    """

    metric: str
    draws: Sequence[Mapping[str, np.ndarray]]
    autos: Sequence[str]

    def to_dict(self, seed: int) -> dict[str, Any]:
        """Give means, and each step's difference from the one below it; both over the draws.

        Intervals: 95 % over the cases, and with several draws t intervals over the draws added in squares.
        """
        names = list(self.draws[0])
        means_of_case = {name: np.mean([draw[name] for draw in self.draws], axis=0) for name in names}
        steps = {}
        for below, name in zip(names, names[1:], strict=False):
            difference = paired_difference(means_of_case[name], means_of_case[below], seed=seed)
            by_draw = [float((draw[name] - draw[below]).mean()) for draw in self.draws]
            spread = half_width(by_draw)
            base = float(means_of_case[below].mean())
            steps[f"{name} over {below}"] = {
                **vars(difference),
                "low": difference.mean - float(np.hypot(difference.mean - difference.low, spread)),
                "high": difference.mean + float(np.hypot(difference.high - difference.mean, spread)),
                "by_draw": by_draw,
                "relative": difference.mean / base if base > 0 else None,
            }
        means = {name: float(values.mean()) for name, values in means_of_case.items()}
        best = max(means, key=means.__getitem__)
        own = np.mean([draw[auto] for draw, auto in zip(self.draws, self.autos, strict=True)], axis=0)
        losses = means_of_case[best] - own
        by_draw = [float((draw[best] - draw[auto]).mean()) for draw, auto in zip(self.draws, self.autos, strict=True)]
        errors = [losses.std(ddof=1) / np.sqrt(len(own)), error_of_mean(by_draw)]
        auto = {
            "choice": max(dict.fromkeys(self.autos), key=self.autos.count),
            "choices": list(self.autos),
            "mean": float(own.mean()),
            "best": best,
            "loss": float(losses.mean()),
            "standard_error": float(np.hypot(*errors)),
        }
        return {
            "metric": self.metric,
            "n": len(own),
            "draws": len(self.draws),
            "means": means,
            "steps": steps,
            "auto": auto,
        }


def error_of_mean(values: Sequence[float]) -> float:
    """Give the standard error of the mean over draws; 0 for a single one, of which nothing is known."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def half_width(values: Sequence[float]) -> float:
    """Give half of the 95 % t interval of the mean over draws; 0 for a single one."""
    return float(t.ppf(0.975, max(len(values) - 1, 1))) * error_of_mean(values)


def chosen_step(names: Sequence[str], pays: Mapping[str, Mapping[str, bool]]) -> str:
    """Return the last step whose part its own fit found to pay; what stands below parts is always there.

    pays: by step, then by part.
    """
    return [name for name in names if pays[name].get(PART_OF_STEP.get(name, ""), name not in PART_OF_STEP)][-1]
