"""The whole state of a reranker as one value that is never changed in place: what a saved folder holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from llm_rerank.config import RerankerConfig
from llm_rerank.data.events import EVENT_WEIGHTS, WEAK_EVENTS, event_kind
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.data.item_statistics import DAY_S, ItemStatistics
from llm_rerank.data.rendering import Renderer
from llm_rerank.recommendation.fitting import Fitted
from llm_rerank.recommendation.impressions import Impressions
from llm_rerank.types import BoolArray, DataError, FloatArray, IntArray, Interactions, Items, TimeKind, Users

END_OF_TIME = np.iinfo(np.int64).max
PURCHASES = ("purchase",)
MARKS = ("sentiment", "in_fit", "counted", "torn")
"""Arrays of ``Saved`` with one entry an event."""


@dataclass(frozen=True)
class CountedStatistics:
    """Statistics, and the very arrays that they are of."""

    events: Interactions
    items: Items
    sentiment: FloatArray
    statistics: ItemStatistics


@dataclass(frozen=True)
class Saved:
    """Everything that a saved folder holds.

    sentiment: of each event's review, as ``FitData.sentiment``; NaN for reviews that came after the fit, until a refit.
    in_fit: bool, shape (n_events,): the components have learned from the event. counted: bool, shape (n_events,): those
    that count (``revises_cheaply``) know it; they follow every update. torn: bool, shape (n_events,): older events of
    the user went while scorers other than those that count kept them, so these cannot lose the user exactly any more.
    target_events: kinds of event that count as a
    positive, () is every kind but views and searches. statistics: what stays of the events where they are left out
    (``has_histories`` False); it holds no users. impressions: upstream lists of the last fit. log_name, log_position:
    the event log that brought events, and its last row that ``events`` hold; "" and 0 without a log. origin: another
    after each fit, and after each change that no log has, so that a refit which took an hour can tell whether it missed
    one. features: pair features that a fit may use. own_kinds: kinds of event besides the library's that events had,
    at the fit or since; empty in earlier folders, whose rule of targets may still name some.
    """

    config: RerankerConfig
    fitted: Fitted
    events: Interactions
    sentiment: FloatArray
    users: Users | None
    renderer: Renderer
    has_histories: bool
    in_fit: BoolArray
    counted: BoolArray
    torn: BoolArray
    target_events: tuple[str, ...]
    statistics: ItemStatistics | None = None
    impressions: Impressions | None = None
    log_name: str = ""
    log_position: int = 0
    origin: str = ""
    features: tuple[str, ...] = PAIR_FEATURES
    own_kinds: tuple[str, ...] = ()
    _known: CountedStatistics | None = field(default=None, repr=False, compare=False)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of event that may come one by one: the library's, those that count as targets, those that came before.

        Of any other an ``update`` would make a target, or nothing, without a word; a single event of it is a slip.
        """
        return tuple(dict.fromkeys((*EVENT_WEIGHTS, *map(event_kind, self.target_events), *self.own_kinds)))

    def with_kinds(self, kinds: tuple[str, ...]) -> Saved:
        """Return the state with kinds of event known that it had not had."""
        own = own_kinds((*self.own_kinds, *kinds))
        return self if own == self.own_kinds else replace(self, own_kinds=own)

    @property
    def item_statistics(self) -> ItemStatistics:
        """Statistics over all events; those that were saved where the events were not. Counted once.

        ``pair_features`` reads them as of each case's time.
        """
        if self.statistics is not None:
            return self.statistics
        known = self.known_statistics
        if known is None:
            known = ItemStatistics.from_events(self.events, self.fitted.items, END_OF_TIME, sentiment=self.sentiment)
            object.__setattr__(self, "_known", CountedStatistics(self.events, self.fitted.items, self.sentiment, known))
        return known

    @property
    def known_statistics(self) -> ItemStatistics | None:
        """The statistics, where these very events, items and sentiments were counted already."""
        known = self._known
        if known is None or known.events is not self.events or known.sentiment is not self.sentiment:
            return None
        return known.statistics if known.items is self.fitted.items else None

    def with_statistics(self, statistics: ItemStatistics | None) -> Saved:
        """Return the state with its statistics known; None: they will be counted when they are asked for."""
        if statistics is None:
            return replace(self, _known=None)
        return replace(self, _known=CountedStatistics(self.events, self.fitted.items, self.sentiment, statistics))

    def as_set(self, config: RerankerConfig) -> Saved:
        """Return the state with settings that were changed since the fit.

        Those that say how texts are read and events are judged stay, for vectors and events are there already.
        """
        was = self.config
        config = replace(config, encoder=was.encoder, min_rating=was.min_rating, target_events=was.target_events)
        return replace(self, config=config)

    def without_histories(self) -> Saved:
        """Return the state without events, users and their attributes; statistics and texts, which name nobody, stay.

        Texts quote reviews: read again without them, every scorer of texts would score otherwise than was judged.
        """
        nobody = np.empty(0, dtype=np.int64)
        events = self.events.take(nobody)
        return replace(
            self,
            events=replace(events, user_ids=events.user_ids[nobody], user_rows=events.user_rows[nobody]),
            **self.marks(nobody),
            users=None,
            impressions=None,
            has_histories=False,
            statistics=self.item_statistics,
        )

    def marks(self, rows: IntArray | BoolArray) -> dict[str, Any]:
        """Give what is kept beside each event, of these rows: for ``replace`` together with the events."""
        return {name: getattr(self, name)[rows] for name in MARKS}


def own_kinds(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Pick the kinds of event that are a shop's own, sorted."""
    return tuple(sorted({*kinds} - {*EVENT_WEIGHTS, ""}))


def settled_targets(configured: tuple[str, ...] | None, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Keep the rule by which a fit chose its targets, so that later events are judged by it.

    configured: ``target_events`` of the settings. targets: the kinds that were targets at the fit.
    """
    if configured is not None:
        return configured
    return PURCHASES if targets == PURCHASES else ()


def target_kinds(rule: tuple[str, ...], kinds: set[str]) -> tuple[str, ...]:
    """Kinds that are targets by the rule of ``settled_targets``; kinds: those that may come besides the known ones."""
    if rule:  # as the settings write them
        return tuple(dict.fromkeys(map(event_kind, rule)))
    return tuple(sorted({*EVENT_WEIGHTS, *kinds} - {*WEAK_EVENTS, ""}))


def expiry(config: RerankerConfig, time_kind: TimeKind, now: float) -> int:
    """Time before which events are too old to be kept, in seconds since 1970; the smallest there is without a limit.

    Raises DataError where the times of events are positions, which have no age.
    """
    if config.retention_days is None:
        return int(np.iinfo(np.int64).min)
    if time_kind == "position":
        raise DataError(
            f"retention_days is {config.retention_days:g} and the events' times are positions, which have no age; give "
            "real timestamps, or leave retention_days out"
        )
    return int(now - config.retention_days * DAY_S)
