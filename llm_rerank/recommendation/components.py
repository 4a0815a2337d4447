"""Component scores: what each scorer says of each candidate, on one scale, and the candidates that it brings.

A component's score is standardised a case against a fixed sample of reference items, never against list mates, so a
pair's score is the same in a list of 1 and in a list of 500. Which components there are is said in ``specs.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import numpy as np

from llm_rerank.recommendation.candidates import union
from llm_rerank.recommendation.failures import Failures, attempt
from llm_rerank.types import Cases, CatalogueScorer, DataError, FloatArray, IntArray, Ragged, Scorer

if TYPE_CHECKING:
    from llm_rerank.types import BoolArray

Group = Literal["collaborative", "semantic", "cross_encoder", "upstream"]

MOST_REFERENCE_ITEMS = 5_000


@dataclass(frozen=True)
class Component:
    """A fitted scorer with its place in the fusion and the settings that were chosen for it."""

    scorer: Scorer
    group: Group
    retrieves: bool
    blends: bool
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the scorer."""
        return self.scorer.name


@dataclass(frozen=True)
class ScoredCases:
    """Cases with candidates, and the standardised score of each blended component.

    scores: float32, shape (n_candidates, n_blended); NaN where the component cannot score.
    raw: the same before standardising.
    """

    cases: Cases
    scores: FloatArray
    raw: FloatArray

    def take(self, rows: IntArray) -> ScoredCases:
        """Cases in the order given."""
        positions = self.cases.candidates.value_positions(rows)
        return ScoredCases(self.cases.take(rows), self.scores[positions], self.raw[positions])


def reference_items(n_items: int, seed: int) -> IntArray:
    """Draw the items against which scores are standardised: all of them up to 5,000, else a fixed sample."""
    if n_items <= MOST_REFERENCE_ITEMS:
        return np.arange(n_items, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(n_items, MOST_REFERENCE_ITEMS, replace=False)).astype(np.int64)


def standardize_rows(scores: FloatArray, reference: IntArray) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of each row over the reference columns, NaN left out.

    scores: float32, shape (n_cases, n_items). Returns two float32 arrays of shape (n_cases, 1); a row without any
    known score has mean NaN, a row of equal scores has deviation 1 (so that they become 0, not infinity).
    """
    sample = scores if len(reference) == scores.shape[1] else scores[:, reference]
    known = ~np.isnan(sample)
    if known.all():  # the usual case, without the copies below
        mean = sample.mean(axis=1, dtype=np.float64)
        deviation = sample.std(axis=1, dtype=np.float64)
    else:
        counts = known.sum(axis=1)
        filled = np.where(known, sample, 0.0).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = filled.sum(axis=1) / counts
            centred = np.where(known, filled - mean[:, None], 0.0)
            deviation = np.sqrt((centred**2).sum(axis=1) / counts)
    deviation = np.where(deviation > 1e-12, deviation, 1.0)
    return mean[:, None].astype(np.float32), deviation[:, None].astype(np.float32)


def retrieve_and_score(
    components: Sequence[Component],
    cases: Cases,
    reference: IntArray,
    n_items: int,
    *,
    candidates_per_source: int | None = None,
    seen: Ragged | None = None,
    progress: Callable[[int], None] | None = None,
    failures: Failures | None = None,
) -> ScoredCases:
    """Score every candidate of every case with every blended component, in blocks of cases.

    With ``candidates_per_source`` the candidates are first found: the union of that many best items of each
    component that retrieves, without the ``seen`` items. Without it ``cases.candidates`` are scored as they are.
    progress: called with the number of cases done after each block. failures: takes note of components that raise an
    error, which then have no opinion and retrieve nothing; None: the error is raised.
    """
    from llm_rerank.models.scoring import cases_a_block

    block_size = cases_a_block(n_items)
    blended = [component for component in components if component.blends]
    parts_candidates: list[Ragged] = []
    parts_scores: list[FloatArray] = []
    parts_raw: list[FloatArray] = []
    for start in range(0, len(cases), block_size):
        rows = np.arange(start, min(start + block_size, len(cases)), dtype=np.int64)
        block = cases.take(rows)
        catalogue = {
            c.name: attempt(c.name, c.scorer.score_catalogue, block, rows, failures, n_columns=n_items)
            for c in components
            if scores_catalogue(c.scorer) and (c.blends or candidates_per_source is not None)
        }
        if candidates_per_source is not None:
            block_seen = None if seen is None else seen.take(rows)
            block = block.with_candidates(
                _union_of_sources(components, block, catalogue, candidates_per_source, block_seen, n_items)
            )
        raw, scores = _gather(blended, block, catalogue, reference, rows, failures)
        parts_candidates.append(block.candidates)
        parts_raw.append(raw)
        parts_scores.append(scores)
        if progress is not None:
            progress(len(rows))
    empty = np.empty((0, len(blended)), dtype=np.float32)
    candidates = Ragged.from_lengths(
        np.concatenate([part.values for part in parts_candidates] or [np.empty(0, dtype=np.int64)]),
        np.concatenate([part.lengths for part in parts_candidates] or [np.empty(0, dtype=np.int64)]),
    )
    return ScoredCases(
        cases.with_candidates(candidates),
        np.concatenate([*parts_scores, empty]),
        np.concatenate([*parts_raw, empty]),
    )


def scores_catalogue(scorer: Scorer) -> TypeGuard[CatalogueScorer]:
    """Tell a ``CatalogueScorer``; asking the protocol itself takes as long as some scorers."""
    return callable(getattr(scorer, "score_catalogue", None))


def _union_of_sources(
    components: Sequence[Component],
    block: Cases,
    catalogue: Mapping[str, FloatArray],
    k: int,
    seen: Ragged | None,
    n_items: int,
) -> Ragged:
    from llm_rerank.models.scoring import top_k

    sources = [component for component in components if component.retrieves]
    if all(component.group == "semantic" for component in sources):
        raise DataError(
            f"candidates would come from {[c.name for c in sources] or 'nothing'} alone; text alone finds what is "
            "similar, not what is bought: let a collaborative or popularity component retrieve too"
        )
    return union([top_k(catalogue[component.name], k, exclude=seen) for component in sources], n_items)


def _gather(
    blended: Sequence[Component],
    block: Cases,
    catalogue: Mapping[str, FloatArray],
    reference: IntArray,
    case_rows: IntArray,
    failures: Failures | None,
) -> tuple[FloatArray, FloatArray]:
    """Raw and standardised scores of the block's candidates: two float32 arrays, (n_candidates, n_blended)."""
    codes, rows = block.candidates.values, block.candidates.row_of_value
    raw = np.full((len(codes), len(blended)), np.nan, dtype=np.float32)
    scores = raw.copy()
    for column, component in enumerate(blended):
        if component.name in catalogue:
            table = catalogue[component.name]
            known: BoolArray = (codes >= 0) & (codes < table.shape[1])
            mean, deviation = standardize_rows(table, reference)
            raw[known, column] = table[rows[known], codes[known]]
            scores[:, column] = (raw[:, column] - mean[rows, 0]) / deviation[rows, 0]
        else:
            # a scorer that cannot score the whole catalogue (a cross-encoder) brings its own global scale
            raw[:, column] = attempt(component.name, component.scorer.score, block, case_rows, failures)
            scores[:, column] = raw[:, column]
    return raw, scores
