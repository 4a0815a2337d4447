"""One half of the held-out users, laid out as columns with any transform of the scores, and what several forms need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llm_rerank.data.features import PAIR_FEATURES, MissingValues, Standardizer
from llm_rerank.models.conditional_logit import fit_conditional_logit
from llm_rerank.recommendation.candidates import is_member, ranks_in_row
from llm_rerank.recommendation.fusion import Blend, FusionFit, design_columns, fit_fusion
from llm_rerank.recommendation.inputs import Fold
from llm_rerank.recommendation.stage import supports, usable_features
from llm_rerank.types import BoolArray, FloatArray, IntArray, Ragged

Transform = Callable[[FloatArray, Ragged], FloatArray]
"""From standardised component scores, shape (n_candidates, n_components), and their lists, to values of that shape."""

CLIP = 20.0
"""In standard deviations over the catalogue: of candidates one in a thousand lies beyond, of targets one in ten."""


def signed_root(scores: FloatArray, rows: Ragged) -> FloatArray:
    """Sign times the root of the size: the library's transform."""
    return np.sign(scores) * np.sqrt(np.abs(scores))


def clipped(scores: FloatArray, rows: Ragged) -> FloatArray:
    """Scores held within ``CLIP`` standard deviations."""
    return np.clip(scores, -CLIP, CLIP)


def reciprocal_rank(scores: FloatArray, rows: Ragged) -> FloatArray:
    """1 / (60 + rank in the list); Cormack, Clarke and Büttcher, 2009. NaN stays NaN."""
    return _of_ranks(scores, rows, lambda ranks: 1.0 / (60.0 + ranks))


def log_rank(scores: FloatArray, rows: Ragged) -> FloatArray:
    """−log of the rank in the list. NaN stays NaN."""
    return _of_ranks(scores, rows, lambda ranks: -np.log(ranks))


def _of_ranks(scores: FloatArray, rows: Ragged, value: Callable[[IntArray], np.ndarray]) -> FloatArray:
    columns = [np.where(np.isnan(column), np.nan, value(ranks_in_row(column, rows))) for column in scores.T]
    return np.stack(columns, axis=1).astype(np.float32)


@dataclass(frozen=True)
class Columns:
    """The columns of a blend as a half of the users has them, with any transform in the root's place.

    centre, scale: of the transformed scores, shape (n_components,); 0 and 1 for the root, which has its own zero.
    """

    component_names: tuple[str, ...]
    used: tuple[str, ...]
    missing: MissingValues
    standardizer: Standardizer
    transform: Transform
    centre: FloatArray
    scale: FloatArray

    @classmethod
    def of(cls, fold: Fold, component_names: tuple[str, ...], transform: Transform, seed: int) -> Columns:
        """Learn filling and scale from a half, as ``fit_stage`` does."""
        used = usable_features(fold.pair_values, fold.candidates, PAIR_FEATURES)
        selected = fold.pair_values[:, [PAIR_FEATURES.index(name) for name in used]]
        missing = MissingValues().fit(selected, used, seed=seed)
        standardizer = Standardizer().fit(missing.transform(selected))
        n = len(component_names)
        centre, scale = np.zeros(n, dtype=np.float32), np.ones(n, dtype=np.float32)
        if transform is not signed_root:
            values = transform(fold.scored.scores, fold.candidates)
            centre, scale = np.nanmean(values, axis=0), np.maximum(np.nanstd(values, axis=0), 1e-9)
        return cls(component_names, used, missing, standardizer, transform, centre, scale)

    def lay_out(self, fold: Fold) -> tuple[FloatArray, tuple[str, ...]]:
        """Columns of a fold's candidates, float32, shape (n_candidates, n_columns), and their names."""
        values = (self.transform(fold.scored.scores, fold.candidates) - self.centre) / self.scale
        selected = fold.pair_values[:, [PAIR_FEATURES.index(name) for name in self.used]]
        return design_columns(
            np.sign(values) * values**2,  # of which the library takes the signed root
            self.component_names,
            self.standardizer.transform(self.missing.transform(selected)),
            self.missing.output_names,
            *supports(fold.pair_values),
        )


@dataclass(frozen=True)
class Half:
    """One half of the held-out users, to fit a form on; what several forms need is computed once."""

    fold: Fold
    names: tuple[str, ...]
    n_items: int
    seed: int

    @cached_property
    def positive(self) -> BoolArray:
        """Which candidates are targets: bool, shape (n_candidates,)."""
        return is_member(self.fold.candidates, self.fold.targets, self.n_items)

    @cached_property
    def columns(self) -> Columns:
        """The library's columns."""
        return Columns.of(self.fold, self.names, signed_root, self.seed)

    @cached_property
    def laid_out(self) -> tuple[FloatArray, tuple[str, ...]]:
        """The library's columns of the half's candidates, and their names."""
        return self.columns.lay_out(self.fold)

    @cached_property
    def present(self) -> FusionFit:
        """The library's blend."""
        return self.fuse(*self.laid_out)

    @cached_property
    def toward_sum(self) -> FusionFit:
        """The library's ladder of logits, shrunk toward the plain sum of signed roots."""
        return self.fuse(*self.laid_out, self.plain_sum(*self.laid_out))

    def fuse(self, design: FloatArray, names: tuple[str, ...], start: Blend | None = None) -> FusionFit:
        """Fit the library's ladder of logits on columns; start: what it shrinks toward."""
        fold = self.fold
        return fit_fusion(
            design,
            names,
            self.names,
            fold.candidates,
            self.positive,
            fold.targets,
            default=None,
            start=start,
            seed=self.seed,
        )

    def plain_sum(self, design: FloatArray, names: tuple[str, ...]) -> Blend:
        """Equal weights on the components' own columns, which come first, at the scale that is likeliest."""
        n = len(self.names)
        total = design[:, :n].sum(axis=1, keepdims=True)
        scale = fit_conditional_logit(total, self.fold.candidates, self.positive, prior=np.zeros(1), penalty=1e-3)[0]
        weights = np.where(np.arange(len(names)) < n, max(float(scale), 1e-3), 0.0)
        return Blend(names, weights, self.names[0], None)
