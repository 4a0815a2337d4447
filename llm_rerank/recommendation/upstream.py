"""The stage for lists that an upstream recommender showed: its score joins the blend and is the guard's default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from llm_rerank.data.cases import build_cases, seen_items
from llm_rerank.data.features import ItemStatistics, pair_features
from llm_rerank.data.frames import id_codes
from llm_rerank.data.impressions import UNKNOWN_ITEMS
from llm_rerank.data.splits import hash_users
from llm_rerank.recommendation.candidates import is_member
from llm_rerank.recommendation.components import Component, retrieve_and_score
from llm_rerank.recommendation.holdout import Holdout
from llm_rerank.recommendation.inputs import FitData, FitTools, Fold, Folds
from llm_rerank.recommendation.judging import report_and_cut, settled_on_all, with_histories_by_now
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.parts import fit_fusion_stage
from llm_rerank.recommendation.stage import Stage, Start
from llm_rerank.types import (
    UNKNOWN,
    Cases,
    DataError,
    FloatArray,
    IntArray,
    Interactions,
    Items,
    ObjectArray,
    Ragged,
)

UNUSED = "impressions_unused"
"""Key of a fit's report: why none of the impressions that it was given could be used."""


@dataclass(frozen=True)
class ShownLists:
    """Each user's first list at or after the cut as a case: candidates shown, targets taken from it afterwards.

    A user of whom there is no event took nothing, and counts: leaving such users out would keep of the newcomers those
    alone who took something. seen: items that the users had before, one row a case. scores: upstream, float32, shape
    (n_candidates,). users: int64, shape (n_cases,), codes of the events, -1 where there is no event. user_ids: object,
    shape (n_cases,). n_repeated: rows left out because the list had the item already. n_later: rows at or after the
    cut of users' further lists, which are left out.
    """

    cases: Cases
    seen: Ragged
    scores: FloatArray
    users: IntArray
    user_ids: ObjectArray
    n_repeated: int = 0
    n_later: int = 0


def fit_upstream_stage(
    data: FitData,
    tools: FitTools,
    holdout: Holdout,
    items: Items,
    components: Sequence[Component],
    reference: IntArray,
    log: FitLog,
    start: Start | None,
    *,
    refit: bool = False,
) -> tuple[Stage | None, dict[str, Any] | None]:
    """Fit a stage on each user's first shown list at or after the cut, and report it on the users of fold G.

    components: of the past. refit: fit it again on the users of both folds, once it is reported. Both results are None
    without impressions. Where none of them can be used, the report is ``{UNUSED: why}``.
    """
    if data.impressions is None:
        return None, None
    log.step("upstream stage")
    shown = usable_lists(data.impressions, data.events, holdout)
    if isinstance(shown, str):
        return _unused(shown, start, log)
    if shown.n_repeated:
        log.say(f"upstream lists: {shown.n_repeated:,} rows repeat an item of their list (the first row is kept)")
    if shown.n_later:
        n_rows = len(shown.scores) + shown.n_repeated + shown.n_later
        log.say(
            f"upstream lists: each user's first one at or after the cut counts; {shown.n_later:,} of {n_rows:,} rows "
            "are of later ones and do not"
        )
    scored = retrieve_and_score(components, shown.cases, reference, len(items))
    sentiment = data.sentiment[holdout.past_rows]
    statistics = ItemStatistics.from_events(holdout.past, items, holdout.as_of, sentiment=sentiment)
    fold = Fold(scored, shown.seen, pair_features(scored.cases, statistics, items), shown.scores)
    folds = Folds(fold, hash_users(shown.user_ids, 2, salt=f"fold-{tools.config.seed}") == 0)
    assert folds.f.upstream is not None
    if np.isnan(folds.f.upstream).all():  # as where F has no case: its scale would be NaN
        why = (
            f"none of the {len(folds.f.candidates):,} first lists of fold F, which the stage is fitted on, has an "
            f"upstream_score ({len(shown.cases):,} lists in all)"
        )
        return _unused(why, start, log)
    lent = None if start is None else replace(start, stage=start.upstream_stage)
    stage = fit_fusion_stage(folds.f, components, tools, len(items), lent).stage
    log.say(f"upstream lists: {stage.verdict.sentence()}")
    stage, report = report_and_cut(stage, folds.g, tools.config, len(items), log)
    if refit:
        again = fit_fusion_stage(folds.whole, components, tools, len(items), lent)
        stage, of_both = settled_on_all(again, folds.whole, tools.config, len(items), log)
        report |= of_both
    if stage.profile is not None:
        # unknown items were dropped from the impressions; how many there were was counted
        unknown = data.impressions.attrs.get(UNKNOWN_ITEMS)
        profile = replace(stage.profile, unknown_items=unknown)
        asked = shown.users if refit else shown.users[~folds.in_f]
        stage = with_histories_by_now(replace(stage, profile=profile), data.events, asked)
    return stage, report


def usable_lists(impressions: pd.DataFrame, events: Interactions, holdout: Holdout) -> ShownLists | str:
    """Find the lists that a stage can be fitted on, or say why there are none. impressions: of their validation."""
    if holdout.protocol != "time":
        return (
            "impressions need the time protocol (real timestamps, and enough users who take something new after one "
            "moment)"
        )
    shown = shown_lists(impressions, events, holdout.past, holdout.as_of)
    if not (shown.users >= 0).any():
        day = pd.to_datetime(holdout.as_of, unit="s").isoformat()
        return f"no impressions of known users at or after the cut ({day})"
    if np.isnan(shown.scores).all():
        return "impressions have no upstream_score, and lists are told apart by it"
    return shown


def _unused(why: str, start: Start | None, log: FitLog) -> tuple[Stage | None, dict[str, Any]]:
    log.say(f"warning: {why}; they are not used")
    return _lent_stage(start), {UNUSED: why}


def _lent_stage(start: Start | None) -> Stage | None:
    """Take over another shop's stage, but neither its cut nor the population that it was judged on."""
    if start is None or start.upstream_stage is None:
        return None
    return replace(start.upstream_stage, cut=None, profile=None)


def shown_lists(impressions: pd.DataFrame, events: Interactions, past: Interactions, cut: int) -> ShownLists:
    """Find each user's first list at or after the cut, users without an event last; an item is once on a list.

    impressions: of ``validate_impressions``, sorted by time. past: the events before the cut, from which alone
    histories come, so that they are as old as the components.
    """
    people, items, times, scores, ids, n_later = _first_lists(impressions, events, cut)
    once = np.sort(np.unique(people * np.int64(events.n_items) + items, return_index=True)[1])
    n_repeated = len(people) - len(once)
    order = once[np.argsort(people[once], kind="stable")]
    people, items, times, scores = people[order], items[order], times[order], scores[order]
    list_people, first, lengths = np.unique(people, return_index=True, return_counts=True)
    candidates = Ragged.from_lengths(items, lengths.astype(np.int64))
    case_of_user = np.full(len(ids), -1, dtype=np.int64)
    case_of_user[list_people] = np.arange(len(list_people))
    case = case_of_user[events.users]
    bought = (case >= 0) & events.positive & (events.items >= 0)
    bought[bought] = events.times[bought] >= times[first][case[bought]]
    pairs = np.unique(np.stack([case[bought], events.items[bought]], axis=1), axis=0)
    taken = Ragged.from_lengths(pairs[:, 1], np.bincount(pairs[:, 0], minlength=len(list_people)).astype(np.int64))
    as_of = np.full(len(list_people), cut, dtype=np.int64)
    users = np.where(list_people < events.n_users, list_people, UNKNOWN)
    seen = seen_items(past, users, as_of)
    target = is_member(taken, candidates, events.n_items) & ~is_member(taken, seen, events.n_items)
    counts = np.bincount(taken.row_of_value[target], minlength=len(list_people)).astype(np.int64)
    targets = Ragged.from_lengths(taken.values[target], counts)
    cases = build_cases(past, users, as_of, candidates=candidates, targets=targets)
    return ShownLists(cases, seen, scores, users, ids[list_people], n_repeated, n_later)


def _first_lists(
    impressions: pd.DataFrame, events: Interactions, cut: int
) -> tuple[IntArray, IntArray, IntArray, FloatArray, ObjectArray, int]:
    """Rows of the first lists: places of their users among the ids, items, times and scores; the ids; rows left out.

    The ids are those of the events, then those that the events do not know. Of lists shown at one time the first one
    of the table is taken.
    """
    people = id_codes(impressions["user_id"], events.user_ids)
    unknown = people < 0
    codes, others = pd.factorize(impressions["user_id"].to_numpy(dtype=object)[unknown])
    people[unknown] = events.n_users + codes
    ids = np.concatenate([events.user_ids, others])
    times, lists = (impressions[name].to_numpy(dtype=np.int64) for name in ("time", "list"))
    late = np.flatnonzero(times >= cut)
    _, first_rows, person = np.unique(people[late], return_index=True, return_inverse=True)  # rows are sorted by time
    kept = late[lists[late] == lists[late][first_rows][person]]
    items = impressions["item"].to_numpy(dtype=np.int64)
    scores = impressions["upstream_score"].to_numpy(dtype=np.float32)
    return people[kept], items[kept], times[kept], scores[kept], ids, len(late) - len(kept)


def is_number(value: Any) -> bool:
    """Tell numbers, NaN and infinity among them, from all else; a whole number that no float holds is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return False
    return not isinstance(value, int) or abs(value) < 2**1023


def upstream_of_both(
    upstream_score: float | None, versus_upstream_score: float | None, has_other: bool
) -> FloatArray | None:
    """Upstream scores as ``explain_item`` takes them: one, or two with another item; None: none given.

    Raises DataError where one is no number, or belongs to no item or to a list without upstream scores.
    """
    given = {"upstream_score": upstream_score, "versus_upstream_score": versus_upstream_score}
    for name, score in given.items():
        if score is not None and not is_number(score):
            raise DataError(f"{name} is {score!r}; give a number, NaN where it is unknown, or leave it out")
    if versus_upstream_score is not None and not has_other:
        raise DataError("versus_upstream_score is given without versus; name the item that it belongs to")
    if upstream_score is None:
        if versus_upstream_score is not None:
            raise DataError("versus_upstream_score is given without upstream_score; give both, NaN where unknown")
        return None
    scores = [upstream_score, *([versus_upstream_score] if has_other else [])]
    with np.errstate(over="ignore"):  # what float32 cannot hold is unknown, as infinity is
        values = np.array([np.nan if score is None else score for score in scores]).astype(np.float32)
    values[np.isinf(values)] = np.nan
    return values
