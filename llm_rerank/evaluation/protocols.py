"""Outer tests: hold events out of a data set's tables, before any fit sees them, and say what was held out.

Two protocols. *Last out*: each user's last positive event (or all new items of the last visit that has any) is the
test target, the one before it the validation target; other users' futures stay visible, so it is for data without real
time. *Time cut*: everything at or after a time is the future. Ranking metrics and comparisons are in ``comparison.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from llm_rerank.data.cases import build_cases, seen_items
from llm_rerank.data.datasets import Dataset
from llm_rerank.data.frames import id_codes
from llm_rerank.data.rendering import Renderer
from llm_rerank.data.splits import (
    HeldOut,
    all_targets_after,
    before,
    first_of_pair,
    first_unseen_targets,
    last_out,
    last_targets,
    quantile_time,
)
from llm_rerank.data.times import seconds_of_date
from llm_rerank.evaluation.tables import Rule, Tables
from llm_rerank.types import (
    Cases,
    CatalogueScorer,
    DataError,
    IntArray,
    Interactions,
    Items,
    ObjectArray,
    Ragged,
)

Split = Literal["validation", "test"]
NEVER = np.iinfo(np.int64).max
DEFAULT_CUT_QUANTILE = 0.9


@dataclass(frozen=True)
class LastOut:
    """Hold out each user's last positive event (test) or, with that one gone, the one before it (validation).

    The decision is taken before the visit in which the target was first looked at (``splits.visit_starts``); a user
    needs a positive event strictly before it. A target that the user had before stays a target;
    since seen items are never recommended, it scores 0.

    visits: hold out as a fit does (``splits.last_targets``): all items that the user took for the first time at the
    last such time. The order of rows, and what was taken again, then change nothing.
    """

    visits: bool = False

    def sentence(self) -> str:
        """Say the protocol in one line."""
        which = "all new items of each user's last visit that has any are targets"
        if not self.visits:
            which = "each user's last positive event is the target"
        return f"leave-last-out: {which}, other users' futures are visible"

    @property
    def counted(self) -> str:
        """Say what of a user counts as taken."""
        return "all new items of one visit" if self.visits else "one event of the last visit alone"


@dataclass(frozen=True)
class TimeCut:
    """Hold out everything at or after the cut; targets are the new positive items of users with a past.

    cut: a date or time (UTC); None: the 90 % quantile of event times. Validation is cut as long before the cut as the
    data reach beyond it, and sees nothing at or after the cut.
    least_buyers: keep only items that so many users took before the cut in question (of validation or of test).
    first_visit: targets are the new items of each user's first visit that has any, as a fit holds them out: what its
    probabilities speak of.
    repeats: targets are all items taken, those that the user had before among them: for whoever is asked as a stranger.
    """

    cut: str | None = None
    least_buyers: int = 0
    first_visit: bool = False
    repeats: bool = False

    def __post_init__(self) -> None:
        if self.first_visit and self.repeats:
            raise DataError("first_visit and repeats are both set; a first visit is told by its new items: set one")

    def sentence(self, at: int) -> str:
        """Say the protocol in one line; at: the cut of the split in question."""
        fewest = f"; items with at least {self.least_buyers} buyers before the cut" if self.least_buyers else ""
        which = "all positive items, had before or not" if self.repeats else "all new positive items"
        if self.first_visit:
            which = "the new positive items of the first visit"
        return f"time cut at {_date(at)}: targets are {which} from then on, of users with a past{fewest}"

    @property
    def counted(self) -> str:
        """Say what of a user counts as taken."""
        return f"the new items of {'one visit' if self.first_visit else 'all visits from the cut on'}"


Protocol = LastOut | TimeCut

PROTOCOLS: dict[str, Protocol] = {
    "amazon_scientific": LastOut(),
    "amazon_musical_instruments": LastOut(),
    "amazon_gift_cards": LastOut(),
    "movielens_small": LastOut(),
    "lastfm_friends": LastOut(),
    "online_retail": TimeCut("2011-10-20"),
    "completejourney": TimeCut("2017-12-01", least_buyers=30),
    "sample": TimeCut(),
}
"""How each published data set is held out."""


@dataclass(frozen=True)
class Trial:
    """One outer test, frozen: the past in both forms, the decisions to be taken, and what they should find.

    interactions, item_frame, user_frame: tables of the past, for ``Reranker.fit``; no held-out row is in them.
    past, items: the same past for scorers; the items' texts are rendered from it.
    cases: one a user, with targets and without candidates. user_ids: their ids. seen: what must not be recommended.
    at: the moment of all decisions; None where each user has their own (``moments`` has either form).
    item_support: distinct users with a positive event on each item in the past, int64, shape (n_items,).
    removed: what is not in the past or not tested, counted by reason.
    counted: what of a user the targets are, in words.
    """

    dataset: str
    protocol: str
    split: Split
    interactions: pd.DataFrame
    item_frame: pd.DataFrame
    user_frame: pd.DataFrame | None
    past: Interactions
    items: Items
    cases: Cases
    user_ids: ObjectArray
    seen: Ragged
    at: int | None
    item_support: IntArray
    removed: dict[str, int] = field(default_factory=dict)
    counted: str = ""

    @property
    def moments(self) -> int | dict[Any, int] | None:
        """When the lists are decided, as ``Reranker.recommend`` takes it: once for all, or by user id.

        None where times are positions: a user's next one is all that they say.
        """
        if self.at is not None or self.past.time_kind == "position":
            return self.at
        return dict(zip(self.user_ids, self.cases.times.tolist(), strict=True))

    def take(self, rows: IntArray) -> Trial:
        """Only these cases (positions, int64); the past stays whole."""
        return replace(self, cases=self.cases.take(rows), user_ids=self.user_ids[rows], seen=self.seen.take(rows))

    def describe(self) -> str:
        """Say in one line what is tested on what."""
        removed = "".join(f"; taken out: {count:,} {reason}" for reason, count in self.removed.items() if count)
        return (
            f"{self.dataset}, {self.split}, {self.protocol}; {len(self.past):,} past events, {len(self.items):,} items "
            f"all ranked, seen items removed; {len(self.cases):,} users with "
            f"{len(self.cases.targets.values):,} targets{removed}"
        )


def hold_out(
    dataset: Dataset,
    protocol: Protocol | None = None,
    split: Split = "validation",
    *,
    least_history: int = 1,
    target_events: Sequence[str] | None = None,
    min_rating: float | None = None,
) -> Trial:
    """Split a data set's tables by a protocol (None: the one of ``PROTOCOLS``).

    least_history: distinct positive items that a user needs before the decision; 0: a look at one will do.
    target_events, min_rating: what counts as positive, as in ``RerankerConfig``: a test asks for what the fit learned.

    Raises DataError where the data set has no protocol, or no user is left to test on.
    """
    if protocol is None:
        if dataset.name not in PROTOCOLS:
            raise DataError(f"data set {dataset.name!r} has no protocol; pass LastOut() or TimeCut('2024-05-31')")
        protocol = PROTOCOLS[dataset.name]
    if split not in ("validation", "test"):
        raise DataError(f"split is {split!r}; it must be 'validation' or 'test'")
    rule = Rule(target_events, min_rating)
    tables = Tables.read(dataset.interactions, dataset.items, dataset.users, rule)
    at: int | None = None
    if isinstance(protocol, TimeCut):
        tables, cuts, held_out, at = _cut_in_time(tables, protocol, split)
        sentence = protocol.sentence(at)
    else:
        sentence = protocol.sentence()
        cuts, held_out = _last_of_each_user(tables.events, protocol, split)
    events = tables.events
    past = events.take(events.times < cuts[events.users])
    seen = seen_items(events, held_out.users, held_out.times)
    enough = np.flatnonzero(seen.lengths >= least_history)
    if not len(enough):
        raise DataError(
            f"no user of {dataset.name!r} is left for the {split} split ({sentence}); give an earlier cut, "
            "or users with more events"
        )
    n_short = len(held_out) - len(enough)
    held_out, seen = held_out.take(enough), seen.take(enough)
    return Trial(
        dataset=dataset.name,
        protocol=sentence,
        split=split,
        interactions=tables.frame[tables.row_known & (tables.row_times < cuts[tables.row_users])],
        item_frame=tables.item_frame,
        user_frame=dataset.users,
        past=past,
        items=Renderer().render_items(tables.items, past),
        cases=build_cases(past, held_out.users, held_out.times, targets=held_out.targets),
        user_ids=events.user_ids[held_out.users],
        seen=seen,
        at=at,
        item_support=item_support(past),
        removed={
            "events at or after the decision": len(events) - len(past),
            f"users with fewer than {least_history} items before the decision": n_short,
        },
        counted=protocol.counted,
    )


def rank_catalogue(scorer: CatalogueScorer, trial: Trial, k: int = 100) -> Ragged:
    """Rank the whole catalogue for each case, seen items removed: at most k item codes a case, best first."""
    from llm_rerank.models.scoring import retrieve

    return retrieve(scorer, trial.cases, k, exclude=trial.seen)


def ranking_from_frame(result: pd.DataFrame, trial: Trial) -> Ragged:
    """Read a table of ``Reranker.recommend`` or of any other system: item codes, best first, one row a case.

    result: user_id, item_id, rank. Users without a row get an empty list; users that the trial does not ask are left
    out.
    """
    users = id_codes(result["user_id"], trial.user_ids)
    codes = id_codes(result["item_id"], trial.items.ids)
    order = np.lexsort((result["rank"].to_numpy(), users))
    order = order[users[order] >= 0]
    lengths = np.bincount(users[order], minlength=len(trial.user_ids)).astype(np.int64)
    return Ragged.from_lengths(codes[order], lengths)


def item_support(past: Interactions) -> IntArray:
    """Distinct users with a positive event on each item: int64, shape (n_items,)."""
    rows = np.flatnonzero(past.positive & (past.items >= 0))
    rows = rows[first_of_pair(past.users[rows], past.items[rows], past.n_items)]
    return np.bincount(past.items[rows], minlength=past.n_items).astype(np.int64)


def _last_of_each_user(events: Interactions, protocol: LastOut, split: Split) -> tuple[IntArray, HeldOut]:
    """Time from which each user's events are not past, int64, shape (n_users + 1,): the last for unknown users."""

    def last_of(known: Interactions) -> HeldOut:
        return last_targets(known) if protocol.visits else HeldOut.from_events(last_out(known)[1], known)

    cuts = np.full(events.n_users + 1, NEVER, dtype=np.int64)
    held_out = last_of(events)
    cuts[held_out.users] = held_out.times
    if split == "validation":
        held_out = last_of(events.take(events.times < cuts[events.users]))
        cuts[held_out.users] = held_out.times
    return cuts, held_out


def _cut_in_time(tables: Tables, protocol: TimeCut, split: Split) -> tuple[Tables, IntArray, HeldOut, int]:
    if tables.events.time_kind != "time":
        raise DataError("a time cut needs real timestamps and these are positions; use LastOut()")
    cut = quantile_time(tables.events, DEFAULT_CUT_QUANTILE) if protocol.cut is None else _seconds(protocol.cut)
    first, end = int(tables.events.times.min()), int(tables.events.times.max()) + 1
    if split == "validation":
        cut, end = cut - (end - cut), cut
    if not first < cut < end:
        raise DataError(
            f"the {split} cut {_date(cut)} leaves no past or no future (events from {_date(first)} to "
            f"{_date(end - 1)}); give another cut"
        )
    if protocol.least_buyers:
        buyers = item_support(before(tables.events, cut))
        tables = tables.only_items(buyers >= protocol.least_buyers)
    known = before(tables.events, end)
    if protocol.first_visit:
        held_out = first_unseen_targets(known, cut)
    else:
        held_out = all_targets_after(known, cut, unseen_only=not protocol.repeats)
    return tables, np.full(tables.events.n_users + 1, cut, dtype=np.int64), held_out, cut


def _seconds(cut: str) -> int:
    try:
        return int(seconds_of_date(cut))
    except ValueError as error:
        raise DataError(f"cut is {cut!r}; give a date such as '2017-12-01'") from error


def _date(seconds: int) -> str:
    return str(np.datetime64(int(seconds), "s"))
