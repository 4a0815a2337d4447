"""From cases to decisions: scores, probabilities, ranks and what is kept, and the frame that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from llm_rerank.config import RerankerConfig
from llm_rerank.data.features import ItemStatistics, pair_features
from llm_rerank.recommendation.blend_columns import column_label
from llm_rerank.recommendation.candidates import positions_in_row, ranks_in_row
from llm_rerank.recommendation.components import Group, ScoredCases, retrieve_and_score
from llm_rerank.recommendation.diversity import diversify_cases
from llm_rerank.recommendation.exploration import user_keys
from llm_rerank.recommendation.failures import Failures, attempt
from llm_rerank.recommendation.fitting import Fitted
from llm_rerank.recommendation.inputs import Fold
from llm_rerank.recommendation.residual import CROSS_ENCODER
from llm_rerank.recommendation.stage import UPSTREAM, Stage
from llm_rerank.recommendation.thresholds import bounded_kept
from llm_rerank.types import BoolArray, Cases, FloatArray, IntArray, Ragged, Scorer

if TYPE_CHECKING:
    import pandas as pd

CONTEXT = "context"
"""Group of everything in the blend that is no component: sales, support, affinities, price, opinions."""

OF_A_RESULT = ("propensity", *(f"score_{group}" for group in (*get_args(Group), CONTEXT)))
"""Columns that a result may have and another not: of an earlier one they say nothing of this one."""

MOST_TOGETHER = 2_048
"""Cases whose candidates are retrieved and held together, 0.1 to 0.2 MB each."""


@dataclass(frozen=True)
class ScoredBatch:
    """A batch that is scored and not yet cut or diversified; arrays have shape (n_candidates,), laid out as candidates.

    scored: the cases with their candidates and what each component said. contributions, scores: as in ``Decided``.
    ranks: from 1 in each row, by score alone. users: int64, shape (n_cases,), by which the random slots of one user
    differ from another's (``user_keys``).
    """

    scored: ScoredCases
    stage: Stage
    contributions: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    probabilities: FloatArray
    ranks: IntArray
    users: IntArray

    @property
    def candidates(self) -> Ragged:
        """Candidate codes, one row a case."""
        return self.scored.cases.candidates

    def take(self, rows: IntArray) -> ScoredBatch:
        """Cases in the order given."""
        at = self.candidates.value_positions(rows)
        return ScoredBatch(
            self.scored.take(rows),
            self.stage,
            self.contributions[at],
            self.scores[at],
            self.probabilities[at],
            self.ranks[at],
            self.users[rows],
        )


@dataclass(frozen=True)
class Decided:
    """A decided batch; every array has shape (n_candidates,), laid out as ``candidates``.

    contributions: float64, shape (n_candidates, n_columns), rows sum to ``scores``. scores: NaN for an item that the
    catalogue does not have. ranks: from 1 in each row, after diversity. kept: by the cut (``kept_by_cut``) and then by
    min_items and max_items. propensities: of the ranks (``exploration.py``); None where nothing is drawn at random.
    """

    candidates: Ragged
    stage: Stage
    contributions: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    probabilities: FloatArray
    ranks: IntArray
    kept: BoolArray
    kept_by_cut: BoolArray
    propensities: FloatArray | None = None


def decide(
    fitted: Fitted,
    config: RerankerConfig,
    cases: Cases,
    seen: Ragged,
    statistics: ItemStatistics,
    *,
    user_ids: Sequence[Any] | None = None,
    upstream: FloatArray | None = None,
    candidates_per_source: int | None = None,
    exclude: Ragged | None = None,
) -> Decided:
    """Score the cases' candidates, or retrieve them first where ``candidates_per_source`` is given, and decide.

    Arguments as in ``score_batch``.
    """
    batch = score_batch(
        fitted,
        config,
        cases,
        seen,
        statistics,
        user_ids=user_ids,
        upstream=upstream,
        candidates_per_source=candidates_per_source,
        exclude=exclude,
    )
    return settle(batch, fitted, config)


def batches(n_cases: int, n_items: int) -> list[IntArray]:
    """Divide cases that are decided one after the other: rows of each batch, int64; at least one, which may be empty.

    A batch is some whole blocks of those that are scored together anyway, so that no score changes in its last bit.
    """
    from llm_rerank.models.scoring import cases_a_block

    block = cases_a_block(n_items)
    size = max(MOST_TOGETHER // block, 1) * block
    return [np.arange(start, min(start + size, n_cases), dtype=np.int64) for start in range(0, max(n_cases, 1), size)]


def joined(parts: Sequence[Decided]) -> Decided:
    """Put batches decided by one stage behind one another, without contributions, which are most of their memory."""
    first = parts[0]

    def whole(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    lengths = np.concatenate([part.candidates.lengths for part in parts])
    values = np.concatenate([part.candidates.values for part in parts])
    return Decided(
        Ragged.from_lengths(values, lengths),
        first.stage,
        contributions=np.empty((len(values), 0)),
        scores=whole("scores"),
        probabilities=whole("probabilities"),
        ranks=whole("ranks"),
        kept=whole("kept"),
        kept_by_cut=whole("kept_by_cut"),
        propensities=None if first.propensities is None else whole("propensities"),
    )


def score_batch(
    fitted: Fitted,
    config: RerankerConfig,
    cases: Cases,
    seen: Ragged,
    statistics: ItemStatistics,
    *,
    user_ids: Sequence[Any] | None = None,
    upstream: FloatArray | None = None,
    candidates_per_source: int | None = None,
    exclude: Ragged | None = None,
    failures: Failures | None = None,
) -> ScoredBatch:
    """Score the cases' candidates, or retrieve them first where ``candidates_per_source`` is given.

    user_ids: of the cases; each user draws random slots of their own. upstream: raw upstream scores, shape
    (n_candidates,), NaN unknown; with them, and impressions at the fit, the upstream stage decides. exclude: items not
    to retrieve. failures: as in ``retrieve_and_score``.
    """
    n_items = len(fitted.items)
    stage = stage_for(fitted, upstream is not None).cut_as(config.threshold, fitted.threshold)
    readers = [c for c in fitted.components if c.name == CROSS_ENCODER]
    depth = config.cross_encoder_depth if readers and stage.residual_verdict is not None else None
    scored = retrieve_and_score(
        fitted.components if depth is None else [c for c in fitted.components if c.name != CROSS_ENCODER],
        cases,
        fitted.reference,
        n_items,
        candidates_per_source=candidates_per_source,
        seen=exclude,
        failures=failures,
    )
    pair_values = pair_features(scored.cases, statistics, fitted.items)
    codes = scored.cases.candidates.values
    known = (codes >= 0) & (codes < n_items)
    read = np.ones(len(pair_values), dtype=np.bool_)
    blended = [component.name for component in fitted.components if component.blends]
    if depth is not None:
        others = [name for name in blended if name != CROSS_ENCODER]
        reader = readers[0].scorer
        scored, read = _read_to_depth(scored, reader, stage, others, pair_values, upstream, known, depth, failures)
    scored = replace(scored, scores=scores_for(stage, blended, scored.scores))
    fold = Fold(scored, seen, pair_values, upstream)
    contributions = stage.blend.contributions(stage.design(scored.scores, pair_values, upstream))
    contributions[~known] = np.nan
    scores = contributions.sum(axis=1)
    ranks = _ranks(scores, read, fold.candidates)
    probabilities = stage.probability(scores, pair_values)
    users = user_keys([None] * len(cases) if user_ids is None else user_ids)
    return ScoredBatch(scored, stage, contributions, scores, probabilities, ranks, users)


def stage_for(fitted: Fitted, has_upstream_scores: bool) -> Stage:
    """Give the stage that decides: that of the upstream recommender's lists where there are its scores and a fit."""
    return fitted.upstream_stage if has_upstream_scores and fitted.upstream_stage is not None else fitted.stage


def settle(batch: ScoredBatch, fitted: Fitted, config: RerankerConfig) -> Decided:
    """Cut and diversify what is scored, by the batch's stage and these settings."""
    stage, candidates = batch.stage, batch.candidates
    unknown = np.isnan(batch.scores)
    kept = ~unknown
    if stage.cut is not None:
        kept &= np.nan_to_num(batch.probabilities, nan=-1.0) >= stage.cut.least_probability
    settings = config.diversity_settings
    placed = diversify_cases(
        fitted.components,
        fitted.items,
        batch.scored.cases,
        batch.users,
        batch.scores,
        batch.ranks,
        settings,
        config.seed,
    )
    kept_by_cut = kept
    # by the ranks that are shown, so that what is taken out is what a page shows last
    kept = bounded_kept(kept, placed.ranks, candidates, min_items=config.min_items, max_items=config.max_items)
    kept &= ~unknown
    return Decided(
        candidates,
        stage,
        batch.contributions,
        batch.scores,
        batch.probabilities,
        placed.ranks,
        kept,
        kept_by_cut,
        placed.propensities if settings.exploration_slots else None,
    )


def scores_for(stage: Stage, names: Sequence[str], scores: FloatArray) -> FloatArray:
    """Lay component scores out as a stage was fitted on them; NaN, no opinion, for a component that is not there.

    A stage lent by another shop (``start_from``) may know more or fewer components than this one has. names: of the
    columns of ``scores``, shape (n_candidates, n_blended).
    """
    wanted = [name for name in stage.component_names if name != UPSTREAM]
    if wanted == list(names):
        return scores
    absent = np.full(len(scores), np.nan, dtype=np.float32)
    return np.column_stack([scores[:, names.index(name)] if name in names else absent for name in wanted])


def _read_to_depth(
    scored: ScoredCases,
    reader: Scorer,
    stage: Stage,
    names: Sequence[str],
    pair_values: FloatArray,
    upstream: FloatArray | None,
    known: BoolArray,
    depth: int,
    failures: Failures | None,
) -> tuple[ScoredCases, BoolArray]:
    """Let the cross-encoder read each case's best ``depth`` candidates by all else; also which those are.

    names: of the components whose scores there are, without the cross-encoder. known: candidates that the catalogue
    has; the others come after them, so that they take no place of what can be read.
    What it did not read has NaN for its score, which counts as no opinion.
    """
    rows = scored.cases.candidates
    nothing = np.full((len(pair_values), 1), np.nan, dtype=np.float32)
    unread = scores_for(stage, [*names, CROSS_ENCODER], np.column_stack([scored.scores, nothing]))
    first = stage.blend.score(stage.design(unread, pair_values, upstream))
    first[~known] = np.nan
    read = ranks_in_row(first, rows) <= depth
    lengths = np.bincount(rows.row_of_value[read], minlength=len(rows)).astype(np.int64)
    values = nothing[:, 0]
    first_cases = scored.cases.with_candidates(Ragged.from_lengths(rows.values[read], lengths))
    numbers = np.arange(len(rows), dtype=np.int64)
    values[read] = attempt(reader.name, reader.score, first_cases, numbers, failures)
    scores, raw = (np.column_stack([table, values]).astype(np.float32) for table in (scored.scores, scored.raw))
    return ScoredCases(scored.cases, scores, raw), read


def _ranks(scores: npt.NDArray[np.float64], read: BoolArray, rows: Ragged) -> IntArray:
    """Rank by score, what the cross-encoder did not read below what it read."""
    if read.all():
        return ranks_in_row(scores, rows)
    badness = np.where(np.isnan(scores), np.inf, -scores)
    order = np.lexsort((badness, ~read, rows.row_of_value))
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[order] = positions_in_row(rows) + 1
    return ranks


def groups_of_columns(fitted: Fitted, stage: Stage) -> list[str]:
    """Group of each column of the blend: that of its component, with or without a support, else "context"."""
    group_of: dict[str, str] = {component.name: component.group for component in fitted.components}
    group_of[UPSTREAM] = UPSTREAM
    return [group_of.get(column_label(name).split(" × ")[0], CONTEXT) for name in stage.blend.names]


def sums_of_groups(contributions: npt.NDArray[np.float64], groups: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
    """Part of each group in the scores, float64, shape (n_candidates,), in order of the groups' first columns."""
    member = {group: np.array([name == group for name in groups]) for group in dict.fromkeys(groups)}
    return {group: contributions[:, columns].sum(axis=1) for group, columns in member.items()}


def result_frame(passed: pd.DataFrame, decided: Decided, fitted: Fitted, k: int | None) -> pd.DataFrame:
    """Lay out the result: one row a candidate, users in order, best rank first, at most k a user.

    passed: user_id, item_id and the columns passed through, one row a candidate in the order of ``decided``.
    """
    import pandas as pd

    columns: dict[str, object] = {
        "user_id": passed["user_id"],
        "item_id": passed["item_id"],
        "rank": decided.ranks,
        "score": decided.scores,
        "probability": decided.probabilities,
        "kept": decided.kept,
    }
    if decided.propensities is not None:
        columns["propensity"] = decided.propensities
    groups = groups_of_columns(fitted, decided.stage)
    columns.update({f"score_{group}": part for group, part in sums_of_groups(decided.contributions, groups).items()})
    if "upstream_score" in passed:
        columns["upstream_score"] = passed["upstream_score"]
    # our own names win over columns of an earlier result that comes in again; its parts and chances are not of these
    columns.update({name: passed[name] for name in passed.columns if name not in columns and name not in OF_A_RESULT})
    order = np.lexsort((decided.ranks, decided.candidates.row_of_value))
    if k is not None:
        order = order[decided.ranks[order] <= k]
    return pd.DataFrame(columns).iloc[order].reset_index(drop=True)
