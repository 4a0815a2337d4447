"""Why an item has its score: contributions that add up to it exactly, and what each history item did to it."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from llm_rerank.recommendation.deciding import Decided, groups_of_columns
from llm_rerank.recommendation.fitting import Fitted
from llm_rerank.recommendation.histories import without_each_item
from llm_rerank.types import Cases, Ragged

Hashable = Any
MOST_HISTORY_ITEMS = 50


@dataclass(frozen=True)
class Contribution:
    """One column of the blend: its name, its group, and its part of the score (weight × value)."""

    name: str
    group: str
    value: float


@dataclass(frozen=True)
class HistoryEffect:
    """What one item of the history did: the score minus the score computed again without that item."""

    item_id: Hashable
    title: str
    effect: float


@dataclass(frozen=True)
class Explanation:
    """Why one item has its score for one user.

    contributions sum to ``score`` (float64, up to rounding). history: effects by exact leave-one-item-out, strongest
    first; they need not add up, because history items work together.
    """

    user_id: Hashable
    item_id: Hashable
    title: str
    score: float
    probability: float
    contributions: Sequence[Contribution]
    history: Sequence[HistoryEffect]

    def by_group(self) -> dict[str, float]:
        """Sum the contributions of each group."""
        sums: dict[str, float] = {}
        for contribution in self.contributions:
            sums[contribution.group] = sums.get(contribution.group, 0.0) + contribution.value
        return sums

    def strongest(self, n: int = 5) -> list[Contribution]:
        """Pick the n contributions of greatest size, zeros left out."""
        return sorted((c for c in self.contributions if c.value), key=lambda c: -abs(c.value))[:n]

    def __str__(self) -> str:
        lines = [f"{self.title or self.item_id} for {self.user_id}: score {self.score:+.3f}" + self._chance()]
        lines += [f"  {group:<14} {value:+.3f}" for group, value in self.by_group().items()]
        lines.append("  strongest parts")
        lines += [f"    {part.name:<28} {part.value:+.3f}" for part in self.strongest()]
        lines.append("  history items, by what the score loses without them")
        lines += [f"    {effect.effect:+.3f}  {effect.title or effect.item_id}" for effect in self.history[:5]]
        return "\n".join(lines if self.history else lines[:-1])

    def _chance(self) -> str:
        return "" if self.probability != self.probability else f", probability {self.probability:.4f}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(part.group)}</td><td>{html.escape(part.name)}</td><td>{part.value:+.3f}</td></tr>"
            for part in self.strongest(10)
        )
        history = "".join(
            f"<li>{effect.effect:+.3f} {html.escape(str(effect.title or effect.item_id))}</li>"
            for effect in self.history[:5]
        )
        title = html.escape(str(self.title or self.item_id))
        return (
            f"<p><b>{title}</b> for {html.escape(str(self.user_id))}: score {self.score:+.3f}{self._chance()}</p>"
            f"<table><tr><th>group</th><th>part</th><th>contribution</th></tr>{rows}</table><ol>{history}</ol>"
        )


def explain_item(
    user_id: Hashable, fitted: Fitted, case: Cases, seen: Ragged, decide: Callable[[Cases, Ragged], Decided]
) -> Explanation:
    """Explain the single candidate of a single case; ``decide`` scores cases with the items that each has seen.

    Effects are of the 50 newest distinct history items.
    """
    decided = decide(case, seen)
    code = int(case.candidates.values[0])
    newest = pd.unique(case.history.values[::-1])[:MOST_HISTORY_ITEMS].astype(np.int64)
    without = decide(without_each_item(case, newest), seen.take(np.zeros_like(newest)))
    effects = decided.scores[0] - without.scores
    titles = fitted.items.frame["title"].to_numpy(dtype=object)
    groups = groups_of_columns(fitted, decided.stage)
    parts = zip(decided.stage.blend.names, groups, decided.contributions[0].tolist(), strict=True)
    return Explanation(
        user_id=user_id,
        item_id=fitted.items.ids[code],
        title=str(titles[code]),
        score=float(decided.scores[0]),
        probability=float(decided.probabilities[0]),
        contributions=[Contribution(*part) for part in parts],
        history=[
            HistoryEffect(fitted.items.ids[newest[i]], str(titles[newest[i]]), float(effects[i]))
            for i in np.argsort(-np.abs(effects), kind="stable")
        ],
    )
