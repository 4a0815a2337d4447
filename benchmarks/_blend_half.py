"""One half of the held-out users, laid out as columns with any transform of the scores, and what several forms need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llm_rerank.data.features import PAIR_FEATURES, MissingValues, Standardizer
from llm_rerank.recommendation.blend_columns import (
    ITEM_SUPPORT,
    LINEAR,
    USER_SUPPORT,
    centred_support,
    design_columns,
    linear_form,
    root_form,
)
from llm_rerank.recommendation.candidates import is_member, ranks_in_row
from llm_rerank.recommendation.cross_fitting import Lists
from llm_rerank.recommendation.fusion import FusionFit, fit_fusion
from llm_rerank.recommendation.inputs import Fold
from llm_rerank.recommendation.priors import at_best_scale
from llm_rerank.recommendation.stage import supports, usable_features
from llm_rerank.types import BoolArray, FloatArray, IntArray, Ragged

Transform = Callable[[FloatArray, Ragged], FloatArray]
"""From standardised component scores, shape (n_candidates, n_components), and their lists, to values of that shape."""


def signed_root(scores: FloatArray, rows: Ragged) -> FloatArray:
    """Take signed roots: the library's first form."""
    return root_form(scores)


def clipped(scores: FloatArray, rows: Ragged) -> FloatArray:
    """Hold scores within bounds: the library's second form."""
    return linear_form(scores)


LIBRARY = (signed_root, clipped)
"""Transforms of the two forms in which a score enters: shrunk toward the default, and toward the plain sum."""


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
    """The columns of a blend as a half of the users has them, with any transforms in the place of the library's two.

    scales: mean and deviation of each transform's values; the root alone has its own zero and scale.
    """

    component_names: tuple[str, ...]
    used: tuple[str, ...]
    missing: MissingValues
    standardizer: Standardizer
    transforms: tuple[Transform, Transform]
    scales: tuple[Standardizer, Standardizer]

    @classmethod
    def of(
        cls, fold: Fold, component_names: tuple[str, ...], transforms: tuple[Transform, Transform], seed: int
    ) -> Columns:
        """Learn filling and scale from a half, as ``fit_stage`` does."""
        used = usable_features(fold.pair_values, fold.candidates, PAIR_FEATURES)
        selected = fold.pair_values[:, [PAIR_FEATURES.index(name) for name in used]]
        missing = MissingValues().fit(selected, used, seed=seed)
        standardizer = Standardizer().fit(missing.transform(selected))
        first, second = (Standardizer().fit(transform(fold.scored.scores, fold.candidates)) for transform in transforms)
        return cls(component_names, used, missing, standardizer, transforms, (first, second))

    def lay_out(self, fold: Fold) -> tuple[FloatArray, tuple[str, ...]]:
        """Columns of a fold's candidates, float32, shape (n_candidates, n_columns), and their names."""
        selected = fold.pair_values[:, [PAIR_FEATURES.index(name) for name in self.used]]
        user_support, item_support = supports(fold.pair_values)
        design, names = design_columns(
            fold.scored.scores,
            self.component_names,
            self.scales[1],
            self.standardizer.transform(self.missing.transform(selected)),
            self.missing.output_names,
            user_support,
            item_support,
        )
        times: dict[str, float | FloatArray] = {
            "": 1.0,
            f" × {USER_SUPPORT}": centred_support(user_support),
            f" × {ITEM_SUPPORT}": centred_support(item_support),
        }
        for form, transform, scale in zip(("", LINEAR), self.transforms, self.scales, strict=True):
            values = transform(fold.scored.scores, fold.candidates)
            values = np.nan_to_num(values if transform is signed_root else scale.transform(values), nan=0.0)
            for column, name in enumerate(self.component_names):
                for with_support, factor in times.items():
                    design[:, names.index(f"{name}{form}{with_support}")] = values[:, column] * factor
        return design, names


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
        return Columns.of(self.fold, self.names, LIBRARY, self.seed)

    @cached_property
    def laid_out(self) -> tuple[FloatArray, tuple[str, ...]]:
        """The library's columns of the half's candidates, and their names."""
        return self.columns.lay_out(self.fold)

    @cached_property
    def present(self) -> FusionFit:
        """The library's blend."""
        return self.fuse(*self.laid_out)

    def fuse(self, design: FloatArray, names: tuple[str, ...]) -> FusionFit:
        """Fit the library's ladders of logits on columns."""
        fold = self.fold
        lists = Lists.of_cases(design, names, self.names, fold.candidates, self.positive, fold.targets)
        return fit_fusion(lists, default=None, start=None, seed=self.seed)

    def root_sum(self) -> np.ndarray:
        """Equal weights on the components' roots, which come first, at the likeliest scale: float64, (n_columns,)."""
        design, names = self.laid_out
        return at_best_scale(design, np.arange(len(names)) < len(self.names), self.fold.candidates, self.positive)
