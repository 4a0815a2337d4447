"""From cases to decisions: scores, probabilities, ranks and what is kept, and the frame that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llm_rerank.config import RerankerConfig
from llm_rerank.data.features import ItemStatistics, pair_features
from llm_rerank.recommendation.candidates import positions_in_row, ranks_in_row
from llm_rerank.recommendation.components import ScoredCases, retrieve_and_score
from llm_rerank.recommendation.diversity import diversify_cases
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


@dataclass(frozen=True)
class Decided:
    """A scored batch; every array has shape (n_candidates,), laid out as ``candidates``.

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
    upstream: FloatArray | None = None,
    candidates_per_source: int | None = None,
    exclude: Ragged | None = None,
) -> Decided:
    """Score the cases' candidates, or retrieve them first where ``candidates_per_source`` is given.

    upstream: raw upstream scores, shape (n_candidates,), NaN unknown; with them, and impressions at the fit, the
    upstream stage decides. exclude: items not to retrieve.
    """
    n_items = len(fitted.items)
    stage = fitted.stage if upstream is None or fitted.upstream_stage is None else fitted.upstream_stage
    readers = [c for c in fitted.components if c.name == CROSS_ENCODER]
    depth = config.cross_encoder_depth if readers and stage.residual_verdict is not None else None
    scored = retrieve_and_score(
        fitted.components if depth is None else [c for c in fitted.components if c.name != CROSS_ENCODER],
        cases,
        fitted.reference,
        n_items,
        candidates_per_source=candidates_per_source,
        seen=exclude,
    )
    pair_values = pair_features(scored.cases, statistics, fitted.items)
    read = np.ones(len(pair_values), dtype=np.bool_)
    blended = [component.name for component in fitted.components if component.blends]
    if depth is not None:
        others = [name for name in blended if name != CROSS_ENCODER]
        scored, read = _read_to_depth(scored, readers[0].scorer, stage, others, pair_values, upstream, depth)
    scored = replace(scored, scores=scores_for(stage, blended, scored.scores))
    fold = Fold(scored, seen, pair_values, upstream)
    candidates = fold.candidates
    contributions = stage.blend.contributions(stage.design(scored.scores, pair_values, upstream))
    unknown = (candidates.values < 0) | (candidates.values >= n_items)
    contributions[unknown] = np.nan
    scores = contributions.sum(axis=1)
    probabilities = stage.probability(scores, pair_values)
    ranks = _ranks(scores, read, candidates)
    kept = ~unknown
    if stage.cut is not None:
        kept &= np.nan_to_num(probabilities, nan=-1.0) >= stage.cut.least_probability
    settings = config.diversity_settings
    placed = diversify_cases(fitted.components, fitted.items, fold.scored.cases, scores, ranks, settings, config.seed)
    kept_by_cut = kept
    # by the ranks that are shown, so that the first min_items of a page are kept ones
    kept = bounded_kept(kept, placed.ranks, min_items=config.min_items, max_items=config.max_items) & ~unknown
    propensities = placed.propensities if settings.exploration_slots else None
    return Decided(
        candidates, stage, contributions, scores, probabilities, placed.ranks, kept, kept_by_cut, propensities
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
    depth: int,
) -> tuple[ScoredCases, BoolArray]:
    """Let the cross-encoder read each case's best ``depth`` candidates by all else; also which those are.

    names: of the components whose scores there are, without the cross-encoder.
    What it did not read has NaN for its score, which counts as no opinion.
    """
    rows = scored.cases.candidates
    nothing = np.full((len(pair_values), 1), np.nan, dtype=np.float32)
    unread = scores_for(stage, [*names, CROSS_ENCODER], np.column_stack([scored.scores, nothing]))
    first = stage.blend.score(stage.design(unread, pair_values, upstream))
    read = ranks_in_row(first, rows) <= depth
    lengths = np.bincount(rows.row_of_value[read], minlength=len(rows)).astype(np.int64)
    values = nothing[:, 0]
    values[read] = reader.score(scored.cases.with_candidates(Ragged.from_lengths(rows.values[read], lengths)))
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
    return [group_of.get(name.split(" × ")[0], CONTEXT) for name in stage.blend.names]


def result_frame(passed: pd.DataFrame, decided: Decided, fitted: Fitted, k: int | None) -> pd.DataFrame:
    """Lay out the result: one row a candidate, users in order, best rank first, at most k a user.

    passed: user_id, item_id and the columns passed through, one row a candidate in the order of ``decided``.
    """
    import pandas as pd

    groups = groups_of_columns(fitted, decided.stage)
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
    for group in dict.fromkeys(groups):
        member = np.array([name == group for name in groups])
        columns[f"score_{group}"] = decided.contributions[:, member].sum(axis=1)
    if "upstream_score" in passed:
        columns["upstream_score"] = passed["upstream_score"]
    # our own names win over columns of an earlier result that comes in again
    columns.update({name: passed[name] for name in passed.columns if name not in columns})
    order = np.lexsort((decided.ranks, decided.candidates.row_of_value))
    if k is not None:
        order = order[decided.ranks[order] <= k]
    return pd.DataFrame(columns).iloc[order].reset_index(drop=True)
