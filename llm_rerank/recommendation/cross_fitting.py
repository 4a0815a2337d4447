"""A blend's lists, and its weights fitted fold by fold: each list is scored by what the other cases have taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from llm_rerank.models.conditional_logit import (
    Float64Array,
    fit_conditional_logit,
    informative,
    informative_candidates,
    log_likelihood_of,
)
from llm_rerank.recommendation.blend_columns import columns_of_rungs
from llm_rerank.recommendation.candidates import ndcg_of
from llm_rerank.recommendation.priors import priors_of_rungs
from llm_rerank.statistics import first_unless_beaten
from llm_rerank.types import BoolArray, FloatArray, IntArray, Ragged

PENALTIES = (3.0, 30.0, 300.0)

Pair = tuple[int, int]
"""Places of a rung in ``RUNGS`` and of a penalty in ``PENALTIES``."""


@dataclass(frozen=True)
class Lists:
    """What a blend learns from: lists of candidates, laid out in columns.

    design: float32, shape (n_candidates, n_columns), of these names; component_names: those of columns that are single
    components. positive: bool, shape (n_candidates,). case_of: the case of each list, int64, shape (n_lists,): first
    the lists of all cases in order, then those of some cases once more, asked with a short history.
    """

    design: FloatArray
    names: tuple[str, ...]
    component_names: Sequence[str]
    rows: Ragged
    positive: BoolArray
    targets: Ragged
    case_of: IntArray

    @classmethod
    def of_cases(
        cls,
        design: FloatArray,
        names: tuple[str, ...],
        component_names: Sequence[str],
        rows: Ragged,
        positive: BoolArray,
        targets: Ragged,
    ) -> Self:
        """Take the lists of whole histories alone, one a case."""
        return cls(design, names, component_names, rows, positive, targets, np.arange(len(rows), dtype=np.int64))

    @property
    def n_cases(self) -> int:
        """Number of cases, each asked with its whole history once."""
        return int(self.case_of.max(initial=-1)) + 1

    @property
    def whole(self) -> BoolArray:
        """Which lists are of whole histories: bool, shape (n_lists,)."""
        return np.arange(len(self.rows)) < self.n_cases

    @property
    def short_candidates(self) -> BoolArray:
        """Which candidates are on lists of short histories: bool, shape (n_candidates,)."""
        return ~self.whole[self.rows.row_of_value]

    @property
    def judged(self) -> BoolArray:
        """Which lists have an NDCG that counts: of whole histories, and something was taken from them."""
        return (self.targets.lengths > 0) & self.whole

    @property
    def n_informative(self) -> int:
        """Number of cases whose target is on the list."""
        found = np.bincount(self.rows.row_of_value, weights=self.positive, minlength=len(self.rows)) > 0
        return int(found[: self.n_cases].sum())

    def ndcg(self, scores: FloatArray | Float64Array) -> Float64Array:
        """NDCG@10 of each list by the candidates' scores: float64, shape (n_lists,), NaN where nothing was taken."""
        return ndcg_of(scores, self.rows, self.targets)

    @cached_property
    def _by_component(self) -> Float64Array:
        return np.stack([self.ndcg(self.design[:, self.names.index(name)]) for name in self.component_names])

    def of_component(self, name: str) -> Float64Array:
        """NDCG@10 of each list by one component alone."""
        return self._by_component[self.component_names.index(name)]

    def best_component(self, of: BoolArray) -> str:
        """Name the component that ranks some of the lists best: the first unless another is clearly better."""
        return self.component_names[first_unless_beaten(self._by_component[:, of])]

    def part(self, of: BoolArray) -> tuple[FloatArray, Ragged, BoolArray]:
        """Design, rows and positives of some of the lists."""
        return self.design[self.positions(of)], *self.answers(of)

    def answers(self, of: BoolArray) -> tuple[Ragged, BoolArray]:
        """Rows and positives of some of the lists, without their design, which is most of the memory."""
        return self.rows.take(np.flatnonzero(of)), self.positive[self.positions(of)]

    def followed_by(
        self, design: FloatArray, rows: Ragged, positive: BoolArray, targets: Ragged, case_of: IntArray
    ) -> Lists:
        """Add lists of short histories."""
        return replace(
            self,
            design=np.concatenate([self.design, design]),
            rows=self.rows.followed_by(rows),
            positive=np.append(self.positive, positive),
            targets=self.targets.followed_by(targets),
            case_of=np.append(self.case_of, case_of),
        )

    def positions(self, of: BoolArray) -> IntArray:
        """Candidates of some of the lists, in order."""
        return self.rows.value_positions(np.flatnonzero(of))

    def priors(self, of: BoolArray, default: str, lent: Float64Array | None) -> list[Float64Array]:
        """Say what each rung's weights are shrunk toward, told by some of the lists (``priors_of_rungs``)."""
        design, rows, positive = self.part(of)
        targets = self.targets.take(np.flatnonzero(of))
        return priors_of_rungs(design, self.names, self.component_names, rows, positive, targets, default, lent)


@dataclass(frozen=True)
class OutOfFold:
    """What fits of one rung at one penalty, each without a fold, say of that fold.

    scores: float64, shape (n_candidates,). log_likelihood: of the lists that teach. last: weights of the last fold's
    fit, near which other searches may begin.
    """

    scores: Float64Array
    log_likelihood: float
    last: Float64Array


def fit_across_folds(
    lists: Lists,
    teaches: BoolArray,
    folds: IntArray,
    defaults: Sequence[str],
    lent: Float64Array | None,
    tried: Sequence[Pair],
) -> dict[Pair, OutOfFold]:
    """Fit the tried rungs and penalties for each fold on the others.

    teaches: bool, shape (n_lists,); the other lists are only scored. folds: int64, the fold of each list. defaults: for
    each fold the component that the root's rungs shrink toward. lent: another shop's weights.
    """
    columns = columns_of_rungs(lists.names, lists.component_names)
    scores = {pair: np.empty(len(lists.design), dtype=np.float64) for pair in tried}
    log_likelihoods = dict.fromkeys(tried, 0.0)
    last: dict[Pair, Float64Array] = {}
    for fold, default in enumerate(defaults):
        inside, outside = (folds != fold) & teaches, folds == fold
        priors = lists.priors(inside, default, lent)
        taught = informative(*lists.part(inside))
        test = lists.positions(outside)
        held_out = lists.design[test].astype(np.float64)
        # whole histories come first, so these places are the same among all candidates of the fold
        asked, asked_rows, asked_positive = informative_candidates(*lists.answers(outside & teaches))
        for pair in tried:
            rung, penalty = pair
            first = last.get(pair, priors[rung])
            last[pair] = _fit_columns(*taught, columns[rung], priors[rung], PENALTIES[penalty], first)
            scores[pair][test] = held_out @ last[pair]
            if len(asked_rows):
                log_likelihoods[pair] += log_likelihood_of(scores[pair][test][asked], asked_rows, asked_positive)
    return {pair: OutOfFold(scores[pair], log_likelihoods[pair], last[pair]) for pair in tried}


def fit_shares(
    lists: Lists,
    teaches: BoolArray,
    default: str,
    lent: Float64Array | None,
    fits: Mapping[Pair, OutOfFold],
    shares: Mapping[Pair, float],
) -> Float64Array:
    """Fit on all lists that teach: the weights of each rung by its share, float64, shape (n_columns,)."""
    columns, priors = columns_of_rungs(lists.names, lists.component_names), lists.priors(teaches, default, lent)
    taught = informative(*lists.part(teaches))
    return sum_of_shares(
        {
            (rung, place): _fit_columns(*taught, columns[rung], priors[rung], PENALTIES[place], fits[rung, place].last)
            for rung, place in shares
        },
        shares,
    )


def sum_of_shares(values: Mapping[Pair, Float64Array], shares: Mapping[Pair, float]) -> Float64Array:
    """Add up what each rung says, times its share."""
    return np.einsum("r,ri->i", np.array(list(shares.values())), np.stack([values[pair] for pair in shares]))


def _fit_columns(
    design: FloatArray | Float64Array,
    rows: Ragged,
    positive: BoolArray,
    columns: IntArray,
    prior: Float64Array,
    penalty: float,
    first: Float64Array,
) -> Float64Array:
    """Fit some columns, the prior's own always among them; the others keep the prior's weight. first: to begin at."""
    weights = prior.copy()
    if not len(columns):
        return weights
    free = np.union1d(columns, np.flatnonzero(prior))
    weights[free] = fit_conditional_logit(
        design[:, free], rows, positive, prior=prior[free], penalty=penalty, first=first[free]
    )
    return weights
