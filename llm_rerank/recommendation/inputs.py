"""What a fit is given and what its steps hand on: data, tools, and folds of held-out cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from llm_rerank.config import RerankerConfig
from llm_rerank.data.rendering import Renderer
from llm_rerank.recommendation.components import ScoredCases
from llm_rerank.recommendation.specs import ComponentSpec
from llm_rerank.types import BoolArray, Encoder, FloatArray, IntArray, Interactions, Items, Ragged, Users

if TYPE_CHECKING:
    import pandas as pd


ITEM_TOKENS = 128
"""Token budget of an item's text."""


@dataclass(frozen=True)
class FitData:
    """Validated input of a fit. sentiment: float32, shape (n_events,), of each event's review in [−1, 1], NaN none."""

    events: Interactions
    items: Items
    users: Users | None
    impressions: pd.DataFrame | None
    sentiment: FloatArray


@dataclass(frozen=True)
class FitTools:
    """What a fit works with: settings, encoder, component specs, allowed pair features, templates."""

    config: RerankerConfig
    encoder: Encoder | None
    specs: Sequence[ComponentSpec]
    features: Sequence[str]
    renderer: Renderer

    def render(self, items: Items, events: Interactions, as_of: int | None) -> Items:
        """Render each item's text with the reviews before ``as_of``, within the token budget."""
        count_tokens = getattr(self.encoder, "count_tokens", None)
        return self.renderer.render_items(items, events, as_of, max_tokens=ITEM_TOKENS, count_tokens=count_tokens)


@dataclass(frozen=True)
class Fold:
    """Held-out cases of some users, their candidates scored, and the pair features.

    seen: items that the user had before, one row a case. pair_values: float32, shape (n_candidates,
    len(PAIR_FEATURES)). upstream: raw upstream scores, shape (n_candidates,), or None. short: some of the cases once
    more with a short history, for the blend to learn from; nothing is judged on them.
    """

    scored: ScoredCases
    seen: Ragged
    pair_values: FloatArray
    upstream: FloatArray | None = None
    short: ShortHistories | None = None

    @property
    def candidates(self) -> Ragged:
        """Candidate codes, one row a case."""
        return self.scored.cases.candidates

    @property
    def targets(self) -> Ragged:
        """Target codes, one row a case."""
        return self.scored.cases.targets

    def take(self, rows: IntArray) -> Fold:
        """Cases in the order given."""
        positions = self.candidates.value_positions(rows)
        upstream = None if self.upstream is None else self.upstream[positions]
        short = None if self.short is None else self.short.of_cases(rows)
        return Fold(self.scored.take(rows), self.seen.take(rows), self.pair_values[positions], upstream, short)


@dataclass(frozen=True)
class ShortHistories:
    """Some cases of a fold as if their users had done little yet, which may retrieve other candidates.

    fold: of these cases. case_of: rows of the cases in the fold that they were cut from, int64, ascending and distinct.
    """

    fold: Fold
    case_of: IntArray

    def of_cases(self, rows: IntArray) -> ShortHistories:
        """Keep those of some of the cases; what was row rows[i] becomes row i."""
        places = np.searchsorted(self.case_of, rows)
        found = np.flatnonzero(np.append(self.case_of, -1)[places] == rows)
        return ShortHistories(self.fold.take(places[found]), found)


@dataclass(frozen=True)
class Folds:
    """Held-out cases in two folds by user: F fits the blend, G is for the report and the cut.

    whole: the cases of both. in_f: bool, shape (n_cases,).
    """

    whole: Fold
    in_f: BoolArray

    @cached_property
    def f(self) -> Fold:
        """Cases of fold F."""
        return self.whole.take(np.flatnonzero(self.in_f))

    @cached_property
    def g(self) -> Fold:
        """Cases of fold G."""
        return self.whole.take(np.flatnonzero(~self.in_f))
