"""Lists for the cross-encoder: one a user, the last item taken before the hold-out among what was retrieved then.

The last items of these users, with the visits that led to them, are *peeled off* the past and the components are
fitted once more on what is left, with the settings that were chosen: so candidates and offset come from models that
have not seen the answer and know as much of the user as they know at the decision. (Removing the user altogether would
be a stricter cross-fit than the use: at the decision the user's history is in the fit.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_rerank.data.cases import build_cases, seen_items
from llm_rerank.data.features import ItemStatistics, pair_features
from llm_rerank.data.splits import HeldOut, hash_users, last_targets
from llm_rerank.models.cross_encoder.lists import TrainingLists
from llm_rerank.recommendation.candidates import is_member, ranks_in_row
from llm_rerank.recommendation.components import Component, reference_items, retrieve_and_score
from llm_rerank.recommendation.holdout import Holdout, drawn
from llm_rerank.recommendation.inputs import FitData, FitTools, Fold
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.refit import fit_again
from llm_rerank.recommendation.stage import Stage
from llm_rerank.types import FloatArray, Interactions, Items, Ragged

MOST_LIST_USERS = 10_000
"""More users than this are drawn from: a fine-tuning reads some thousand lists before it has learned what it can."""

LONGEST_LIST = 100
"""Candidates a list, best by offset first."""

VALIDATION_SHARE = 5  # one user in five


@dataclass(frozen=True)
class Lists:
    """Training and validation lists of different users, with the items as they were rendered for them."""

    training: TrainingLists
    validation: TrainingLists
    items: Items


def build_training_lists(
    data: FitData,
    tools: FitTools,
    holdout: Holdout,
    components: Sequence[Component],
    stage: Stage,
    log: FitLog,
) -> Lists:
    """Peel, fit again, retrieve, score, and split by users; reads no event outside ``holdout.past``.

    stage: fitted on fold F; its score is the offset. Lists without a target near the top are left out.
    """
    config, n_items = tools.config, len(data.items)
    targets = list_targets(holdout, config.seed)
    peeled, kept_rows = peel(holdout.past, targets)
    items = tools.render(data.items, peeled, holdout.as_of)
    refitted = fit_again(components, tools.specs, peeled, items, config.seed, log)
    cases = build_cases(peeled, targets.users, targets.times, targets=targets.targets)
    scored = retrieve_and_score(
        refitted,
        cases,
        reference_items(n_items, config.seed),
        n_items,
        candidates_per_source=config.candidates_per_source,
        seen=seen_items(peeled, targets.users, targets.times),
    )
    statistics = ItemStatistics.from_events(
        peeled, items, holdout.as_of, sentiment=data.sentiment[holdout.past_rows][kept_rows]
    )
    fold = Fold(scored, Ragged.empty(len(cases)), pair_features(scored.cases, statistics, items))
    lists, users = as_lists(fold, stage.score(fold).astype(np.float32), items)
    is_validation = hash_users(data.events.user_ids[targets.users[users]], VALIDATION_SHARE, salt="early stopping") == 0
    log.say(
        f"cross-encoder: {len(targets):,} users' last items before the hold-out are peeled off; {len(lists):,} of them "
        f"are among the first {LONGEST_LIST} and make a list"
    )
    return Lists(lists.take(np.flatnonzero(~is_validation)), lists.take(np.flatnonzero(is_validation)), items)


def peel(past: Interactions, targets: HeldOut) -> tuple[Interactions, np.ndarray]:
    """Take these users' events from their decision on out of the past; also the positions that stay."""
    decided = np.full(past.n_users, np.iinfo(np.int64).max, dtype=np.int64)
    decided[targets.users] = targets.times
    kept = np.flatnonzero(past.times < decided[past.users])
    return past.take(kept), kept


def as_lists(fold: Fold, offsets: FloatArray, items: Items) -> tuple[TrainingLists, np.ndarray]:
    """Make a list of each case with a target near the top; also the positions of those cases.

    A list is a case's best ``LONGEST_LIST`` candidates by offset, and its positive must be among them: a target that
    everything else ranks far below says little of the order at the top, and there are enough such cases to drown it.
    Of several targets the one with the best offset stays, so that every list has one positive; the others leave the
    list, for they are no negatives. Candidates without a text are left out: in use they have no score either.
    """
    rows = fold.candidates
    readable = np.array([bool(str(text).strip()) for text in items.texts], dtype=np.bool_)[rows.values]
    read = np.where(readable, offsets, -np.inf)
    positive = is_member(rows, fold.targets, len(items))
    taken = positive & readable & (ranks_in_row(np.where(positive, read, -np.inf), rows) == 1)
    kept = readable & (taken | ~positive) & (ranks_in_row(read, rows) <= LONGEST_LIST)
    with_target = np.bincount(rows.row_of_value, weights=taken & kept, minlength=len(rows)) > 0
    kept &= with_target[rows.row_of_value]
    users = np.flatnonzero(with_target)
    lengths = np.bincount(rows.row_of_value[kept], minlength=len(rows))[users].astype(np.int64)
    candidates = Ragged.from_lengths(rows.values[kept], lengths)
    cases = fold.scored.cases.take(users).with_candidates(candidates)
    return TrainingLists(cases, taken[kept], offsets[kept]), users


def list_targets(holdout: Holdout, seed: int) -> HeldOut:
    """Last targets in the past, ``MOST_LIST_USERS`` at most; with positions only of users who are not held out.

    Held-out users' items before, lists too where there is time, gained nothing for their minutes (lab notebook).
    """
    targets = last_targets(holdout.past)
    if holdout.protocol == "positions":
        targets = targets.take(~np.isin(targets.users, holdout.targets.users))
    return targets.take(drawn(np.arange(len(targets)), MOST_LIST_USERS, seed))
