"""Answers to single requests: the frame-less path from questions to lists, a micro-batch in one pass.

It agrees with the slow way, ``Reranker.rerank`` and ``recommend``, and differs where a service must: every question is
decided for itself (whether it has upstream scores, how it is cut), one bad question fails alone, and a component that
fails costs its opinion, not the answer (``fallbacks.py``). Whether lists drift shows in many: ``answers.watched``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from llm_rerank.config import DiversityConfig, RerankerConfig
from llm_rerank.recommendation.answers import Answer, ScoredList, cut_list, in_catalogue
from llm_rerank.recommendation.candidates import ranks_in_row
from llm_rerank.recommendation.components import ScoredCases
from llm_rerank.recommendation.deciding import ScoredBatch, groups_of_columns, score_batch, stage_for, sums_of_groups
from llm_rerank.recommendation.decision_facts import not_retrieved_here, retrieved_otherwise
from llm_rerank.recommendation.failures import Failures, warn_of
from llm_rerank.recommendation.fallbacks import (
    NOTHING,
    POPULARITY,
    UPSTREAM_ORDER,
    can_rank,
    can_retrieve,
    order_without_us,
    popular_items,
)
from llm_rerank.recommendation.questions import (
    Prepared,
    Question,
    QuestionError,
    cases_of_questions,
    check_settings,
    prepare,
)
from llm_rerank.recommendation.stage import UPSTREAM
from llm_rerank.types import DataError, IntArray, Ragged

if TYPE_CHECKING:
    from llm_rerank.recommendation.fitting import Fitted
    from llm_rerank.recommendation.reranker import Reranker
    from llm_rerank.recommendation.state import Saved

__all__ = ["Answer", "Question", "QuestionError", "answer_each", "answer_questions", "recut"]

RETRIEVAL = "retrieval"
"""Name of the order before us where the component that the guard compares with said nothing: as retrieved."""

DECISION, DIVERSITY = "decision", "diversity"
"""Names in ``degraded`` of what is no component: the whole way to a list, and its variety."""


def answer_questions(reranker: Reranker, questions: Sequence[Question]) -> list[Answer]:
    """Answer a micro-batch. Raises DataError for the first bad question, naming its number; see ``answer_each``."""
    answers = []
    for number, answer in enumerate(answer_each(reranker, questions)):
        if isinstance(answer, DataError):
            raise DataError(f"question {number}: {answer}") from answer
        answers.append(answer)
    return answers


def answer_each(reranker: Reranker, questions: Sequence[Question]) -> list[Answer | DataError]:
    """Answer a micro-batch; a bad question gets its error, which has a ``field``, and the others their answers.

    Questions of one kind (decided by the same stage, and with candidates or without) are scored in one pass. Raises
    NotFittedError before a fit, MemoryError where there is no room; nothing else.
    """
    saved, config = reranker.saved, reranker.config
    answers: dict[int, Answer | DataError] = {}
    kinds: dict[tuple[int, int], list[tuple[int, Prepared]]] = {}
    for number, question in enumerate(questions):
        try:
            one = prepare(question, saved)
        except DataError as error:
            answers[number] = error
            continue
        per_source = max(config.candidates_per_source, question.k or 0) if one.codes is None else 0
        kinds.setdefault((id(stage_for(saved.fitted, one.upstream is not None)), per_source), []).append((number, one))
    for (_, per_source), numbered in kinds.items():
        found = _answers(saved, config, [one for _, one in numbered], per_source)
        answers.update(zip((number for number, _ in numbered), found, strict=True))
    return [answers[number] for number in range(len(questions))]


def recut(
    reranker: Reranker,
    answer: Answer,
    *,
    least_probability: float | None = None,
    diversity: float | None = None,
    k: int | None = None,
) -> Answer:
    """Cut, diversify and shorten an answer anew, without scoring: as if it had been asked with these settings.

    None means what it means in a question, not what the answer had. Retrieval is not repeated: a k above the config's
    ``candidates_per_source`` brings no further candidates. Nothing is decided in a fallback; there k alone counts.
    Raises DataError for impossible settings, or where an item has left the catalogue since.
    """
    check_settings(k, diversity, least_probability)
    fitted, scored = reranker.saved.fitted, answer.scored
    if scored.catalogue is not fitted.items.ids:
        scored = in_catalogue(scored, fitted)
    return cut_list(scored, fitted, reranker.config, least_probability, diversity, k)


# ------------------------------------------------------------------ scoring


def _answers(
    saved: Saved, config: RerankerConfig, group: Sequence[Prepared], per_source: int
) -> list[Answer | DataError]:
    """Answer questions of one kind; if that fails for all together, each alone; then by a fallback."""
    failures = Failures(len(group))
    try:
        return _scored_answers(saved, config, group, per_source, failures)
    except MemoryError:
        raise
    except Exception as error:
        warn_of(DECISION, error)
    if len(group) > 1:
        return [answer for one in group for answer in _answers(saved, config, [one], per_source)]
    one = group[0]
    degraded = (*failures.of_case(0), DECISION)
    return [_settled(_fallback_list(saved, one, per_source, degraded), one, saved.fitted, config)]


def _scored_answers(
    saved: Saved, config: RerankerConfig, group: Sequence[Prepared], per_source: int, failures: Failures
) -> list[Answer | DataError]:
    fitted = saved.fitted
    cases, seen = cases_of_questions(group, saved)
    upstream = None
    if any(one.upstream is not None for one in group) and stage_for(fitted, True) is not fitted.stage:
        upstream = np.concatenate([one.upstream for one in group if one.upstream is not None])
    excluded = np.array([one.question.exclude_seen for one in group], dtype=np.bool_)[seen.row_of_value]
    lengths = np.bincount(seen.row_of_value[excluded], minlength=len(group)).astype(np.int64)
    batch = score_batch(
        fitted,
        config,
        cases,
        seen,
        saved.item_statistics,
        user_ids=[one.question.user_id for one in group],
        upstream=upstream,
        candidates_per_source=per_source or None,
        exclude=Ragged.from_lengths(seen.values[excluded], lengths),
        failures=failures,
    )
    answers: list[Answer | DataError] = []
    for row, one in enumerate(group):
        failed = failures.of_case(row)
        source = ""
        of_case = batch.take(np.array([row], dtype=np.int64))
        if per_source and not can_retrieve(fitted.components, failed):
            of_case = _with_popular(saved, config, one, per_source, failures, row)
            source, failed = POPULARITY, failures.of_case(row)
        if can_rank(batch.stage, failed):
            scored = _scored_list(of_case, fitted, config, one, per_source, failed, source)
        else:
            scored = _fallback_list(saved, one, per_source, failed)
        answers.append(_settled(scored, one, fitted, config))
    return answers


def _with_popular(
    saved: Saved, config: RerankerConfig, one: Prepared, per_source: int, failures: Failures, row: int
) -> ScoredBatch:
    """Score the best sellers for a question whose sources of candidates have all failed."""
    cases, seen = cases_of_questions([one], saved)
    exclude = seen.values if one.question.exclude_seen else seen.values[:0]
    codes = popular_items(saved.item_statistics, one.at, per_source, exclude)
    again = Failures(1)
    cases = cases.with_candidates(Ragged.from_lists([codes]))
    users = [one.question.user_id]
    batch = score_batch(saved.fitted, config, cases, seen, saved.item_statistics, user_ids=users, failures=again)
    for name in again.of_case(0):
        failures.mark(name, np.array([row], dtype=np.int64))
    return batch


def _scored_list(
    batch: ScoredBatch,
    fitted: Fitted,
    config: RerankerConfig,
    one: Prepared,
    per_source: int,
    failed: tuple[str, ...],
    source: str,
) -> ScoredList:
    """Keep of one question's batch what a cut needs. source: of candidates that no component retrieved."""
    codes = batch.candidates.values
    parts = sums_of_groups(batch.contributions, groups_of_columns(fitted, batch.stage))
    if per_source:
        item_ids = fitted.items.ids[codes].tolist()
        before_ranks, before = _retrieved_before(batch, failed, source)
        not_as_cut = retrieved_otherwise(one.question.exclude_seen, per_source, config.candidates_per_source)
    else:
        item_ids = list(one.question.item_ids or [])
        before_ranks, before = order_without_us(one.upstream, len(codes)), UPSTREAM
        not_as_cut = not_retrieved_here(batch.stage, fitted, one.upstream, batch.candidates)
    if failed or source:
        not_as_cut = _failed(failed)
    nothing = np.empty((len(codes), 0), dtype=np.float32)
    slim = replace(
        batch,
        scored=ScoredCases(batch.scored.cases, nothing, nothing),
        contributions=np.column_stack([*parts.values()]),
    )
    return ScoredList(
        slim,
        tuple(parts),
        item_ids,
        codes,
        fitted.items.ids,
        one.upstream,
        before_ranks,
        before,
        not_as_cut,
        failed,
        "",
        one.at,
        one.user >= 0,
    )


def _failed(names: Sequence[str]) -> str:
    return f"{', '.join(names)} failed, and the cut was chosen with all at work"


def _retrieved_before(batch: ScoredBatch, failed: Sequence[str], source: str) -> tuple[IntArray, str]:
    """Rank the retrieved candidates as they would stand without us, and say by whose order."""
    names = [name for name in batch.stage.component_names if name != UPSTREAM]
    default = batch.stage.verdict.default
    if default in names and default not in failed and not source:
        return ranks_in_row(batch.scored.scores[:, names.index(default)], batch.candidates), default
    return np.arange(1, len(batch.scores) + 1, dtype=np.int64), source or RETRIEVAL


def _fallback_list(saved: Saved, one: Prepared, per_source: int, degraded: tuple[str, ...]) -> ScoredList:
    """Give the list that there would be without us; nothing here asks a component."""
    items = saved.fitted.items
    if one.codes is not None:
        codes, item_ids, fallback, before = one.codes, list(one.question.item_ids or []), UPSTREAM_ORDER, UPSTREAM
    else:
        codes = np.empty(0, dtype=np.int64)
        try:
            _, seen = cases_of_questions([one], saved)
            exclude = seen.values if one.question.exclude_seen else seen.values[:0]
            codes = popular_items(saved.item_statistics, one.at, per_source, exclude)
        except MemoryError:
            raise
        except Exception as error:
            warn_of(POPULARITY, error)
            degraded = (*degraded, POPULARITY)
        item_ids, fallback = items.ids[codes].tolist(), POPULARITY if len(codes) else NOTHING
        before = POPULARITY
    ranks = order_without_us(one.upstream, len(codes))
    return ScoredList(
        None,
        (),
        item_ids,
        codes,
        items.ids,
        one.upstream,
        ranks,
        before,
        _failed(degraded),
        degraded,
        fallback,
        one.at,
        one.user >= 0,
    )


def _settled(scored: ScoredList, one: Prepared, fitted: Fitted, config: RerankerConfig) -> Answer | DataError:
    """Cut a list as its question asks; without variety where that fails."""
    question = one.question
    try:
        return cut_list(scored, fitted, config, question.least_probability, question.diversity, question.k)
    except DataError as error:  # variety was asked for, and this shop has no vectors or no such column
        return error
    except MemoryError:
        raise
    except Exception as error:
        warn_of(DIVERSITY, error)
    failed = (*scored.degraded, DIVERSITY)
    scored = replace(scored, degraded=failed, not_as_cut=_failed(failed))
    return cut_list(
        scored, fitted, replace(config, diversity=DiversityConfig()), question.least_probability, None, question.k
    )
