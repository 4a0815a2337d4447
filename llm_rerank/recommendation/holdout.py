"""Which targets a fit holds out: by time where there is time and enough users, else each chosen user's last event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from llm_rerank.data.splits import HeldOut, first_unseen_targets, last_targets, quantile_time
from llm_rerank.recommendation.log import FitLog
from llm_rerank.types import IntArray, Interactions

LEAST_WINDOW_USERS = 400
MOST_WINDOW_USERS = 20_000
"""More users after a cut in time are drawn from: a blend learns little of more, and scoring them would take hours."""

QUANTILES = (0.9, 0.8)
LEAST_EVENTS_OF_HOLDOUT_USER = 3
MOST_HOLDOUT_USERS = 3_000
HOLDOUT_SHARE = 0.3
ENOUGH_HOLDOUT_USERS, MOST_HOLDOUT_SHARE = 1_500, 0.6
"""A young shop holds out more than ``HOLDOUT_SHARE``: its blend lacks cases more than its components lack events."""


@dataclass(frozen=True)
class Holdout:
    """The past that components are fitted on, and the targets that they have not seen.

    past_rows: int64, positions in the events of ``past``. as_of: features count what came before this time.
    """

    protocol: Literal["time", "positions"]
    past: Interactions
    past_rows: IntArray
    as_of: int
    targets: HeldOut
    description: str


def plan_holdout(events: Interactions, seed: int, log: FitLog) -> Holdout:
    """Choose the protocol and the held-out targets, and say which and why.

    Time: T = the 90 % quantile of event times, or 80 % where fewer than 400 users with a past have an unseen target
    at or after T; of more than 20,000 so many are drawn. Fewer still, or no real time: the last event of single users
    (``n_holdout_users``) with three targets or more.
    """
    if events.time_kind == "time" and len(events):
        for quantile in QUANTILES:
            cut = quantile_time(events, quantile)
            window = first_unseen_targets(events, cut)
            if len(window.users) >= LEAST_WINDOW_USERS:
                past_rows = np.flatnonzero(events.times < cut)
                targets = window.take(drawn(np.arange(len(window)), MOST_WINDOW_USERS, seed))
                who = f"{len(window):,} users with a past have an unseen target after it"
                if len(targets) < len(window):
                    who = f"{len(targets):,} of {len(window):,} users with a past and an unseen target after it drawn"
                description = (
                    f"protocol time: fitted before {_date(cut)} (the {quantile:.0%} quantile of events); {who}"
                )
                log.say(description)
                return Holdout("time", events.take(past_rows), past_rows, cut, targets, description)
        log.say(
            f"warning: only {len(window.users):,} users with a past have an unseen target after the "
            f"{QUANTILES[-1]:.0%} quantile of events (at least {LEAST_WINDOW_USERS} wanted), so the last event of "
            "single users is held out instead"
        )
    return _last_events(events, seed, log)


def _last_events(events: Interactions, seed: int, log: FitLog) -> Holdout:
    last = last_targets(events)
    n_positive = np.bincount(events.users[events.positive], minlength=events.n_users)
    eligible = np.flatnonzero(n_positive[last.users] >= LEAST_EVENTS_OF_HOLDOUT_USER)
    n_chosen = min(n_holdout_users(len(np.unique(events.users))), len(eligible))
    targets = last.take(drawn(eligible, n_chosen, seed))
    never = np.iinfo(np.int64).max
    decided = np.full(events.n_users, never, dtype=np.int64)
    decided[targets.users] = targets.times
    past_rows = np.flatnonzero(events.times < decided[events.users])
    as_of = int(events.times.max()) + 1 if len(events) else 0
    description = (
        f"protocol positions: the last target of {n_chosen:,} of {len(eligible):,} users with at least "
        f"{LEAST_EVENTS_OF_HOLDOUT_USER} targets, and events before the last, is held out; other users' futures are "
        "visible to the components"
    )
    log.say(description)
    return Holdout("positions", events.take(past_rows), past_rows, as_of, targets, description)


def drawn(places: IntArray, most: int, seed: int) -> IntArray:
    """At most so many of the places, drawn at random: ascending, shape (min(most, n_places),). places: ascending."""
    return np.sort(np.random.default_rng(seed).permutation(places)[:most])


def n_holdout_users(n_users: int) -> int:
    """How many of a shop's users lose their last event: 30 %, at most 3,000, and up to 60 % to have at least 1,500."""
    young = min(int(MOST_HOLDOUT_SHARE * n_users), ENOUGH_HOLDOUT_USERS)
    return min(max(int(HOLDOUT_SHARE * n_users), young), MOST_HOLDOUT_USERS)


def _date(seconds: int) -> str:
    return str(np.datetime64(seconds, "s"))
