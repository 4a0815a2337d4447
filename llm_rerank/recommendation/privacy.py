"""Users forgotten, at once as far as that goes without a fit; and events that grew too old.

At once: events, ids and attributes; item statistics; scorers that can take users out of their fit (``revised``: they
equal a fit without them); texts of items that quoted a review, in every scorer; what the report of the fit says;
caches of texts. Until a refit: what the other scorers learned, fine-tuned weights, the weights of the fusion and the
calibrator, how rare words are and how vectors are whitened. The report names what of this there is.

The guarantee of a cut goes as soon as a component changes: it was proved for components that score as they did then.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from llm_rerank.data.merging import without_events
from llm_rerank.data.vectors import is_vector_name
from llm_rerank.recommendation.components import Component
from llm_rerank.recommendation.erasing import erase_caches, without_mentions
from llm_rerank.recommendation.exporting import places_of
from llm_rerank.recommendation.impressions import code_among
from llm_rerank.recommendation.item_changes import with_texts_read_again, without_guarantees
from llm_rerank.recommendation.state import Saved, expiry
from llm_rerank.types import UNKNOWN, BoolArray, DataError, InexactError, IntArray, Interactions, RevisableScorer, Users

FORGOTTEN = (
    "users or events were forgotten after the cut was chosen, so the components score otherwise than they did then"
)
READS_TEXTS_ALONE = ("lexical", "semantic")
LEARNED_OF_TEXTS = {
    "text_ease": "rarity of words, whitening",
    "lexical": "rarity of words",
    "semantic": "whitening",
}
"""What scorers learned of all texts together, which a text read again does not change."""

NO_CACHE_FOLDER = (
    "a cache folder of the fit, if there was one: none was named that exists, and it may hold vectors of their words; "
    "delete what is in it"
)
EVENT_LOG = (
    "the event log beside a served folder, if this model is saved into one: it would play their events again; name "
    "them to `llm-rerank forget FOLDER` or to the service as well"
)
MOST_TOUCHED = 0.5
"""Share of the items up to which expiring takes users out of a scorer whose cost grows with their items."""


@dataclass(frozen=True)
class ForgetReport:
    """What was forgotten and how far.

    forgotten, unknown: user ids as given. n_events: events that are gone. rewritten: what no longer knows of them.
    influence: what was learned with them and keeps that until a refit. texts_rewritten: ids of items whose texts quoted
    a review of theirs. not_reached: where they may still be, in sentences.
    """

    forgotten: list[Any] = field(default_factory=list)
    unknown: list[Any] = field(default_factory=list)
    n_events: int = 0
    rewritten: tuple[str, ...] = ()
    influence: tuple[str, ...] = ()
    texts_rewritten: list[Any] = field(default_factory=list)
    not_reached: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.forgotten):,} users forgotten, {self.n_events:,} events gone"]
        if self.unknown:
            lines.append(f"{len(self.unknown):,} user ids are unknown: nothing is held of them")
        if self.rewritten:
            lines.append(f"rewritten at once: {', '.join(self.rewritten)}")
        if self.texts_rewritten:
            lines.append(f"texts of {len(self.texts_rewritten):,} items no longer quote their reviews")
        if self.influence:
            lines.append(f"still shaped by them until a refit: {', '.join(self.influence)}")
        lines += [f"not reached: {place}" for place in self.not_reached]
        return "\n".join(lines)


def forgotten(
    saved: Saved, user_ids: Sequence[Any], cache_folder: str | Path | None = None
) -> tuple[Saved, ForgetReport]:
    """Return the state without these users; the one given stays as it is.

    user_ids: as in the data; "7" finds the number 7 where there is no text "7". Unknown ids are reported. cache_folder:
    of the fits; it is emptied where a user wrote a review or a search, for it tells texts by hashes alone; where none
    is given, or there is none, the report says that it was not reached.
    """
    if isinstance(user_ids, str | bytes):
        raise DataError(f"user_ids is the text {user_ids!r}; give a list of ids")
    wanted = list(dict.fromkeys(user_ids))
    codes, rows = places_of(saved, wanted)
    shown = np.array([code_among(saved.impressions, value) for value in wanted], dtype=np.int64)
    held_of = (codes >= 0) | (rows >= 0) | (shown >= 0)
    known = [value for value, is_held in zip(wanted, held_of, strict=True) if is_held]
    unknown = [value for value, is_held in zip(wanted, held_of, strict=True) if not is_held]
    if not known:
        return saved, ForgetReport(unknown=unknown)
    events = saved.events
    held = [*events.user_ids[codes[codes >= 0]]]
    held += [] if saved.users is None else [*saved.users.ids[rows[rows >= 0]]]
    is_user = np.zeros(events.n_users, dtype=np.bool_)
    is_user[codes[codes >= 0]] = True
    gone = is_user[events.users]
    has_words = bool((gone & (events.reviews.astype(bool) | events.queries.astype(bool))).any())
    saved, rewritten, influence, read = _without(saved, gone, all_scorers=True)
    rewritten = ["events and user ids", *rewritten]
    # users without any event: their ids are left
    saved = _without_ids(saved, held)
    if saved.users is not None and (rows >= 0).any():
        saved = _without_attributes(saved, rows[rows >= 0])
        rewritten.insert(1, "attributes")
    if (shown >= 0).any():
        assert saved.impressions is not None
        held += [*saved.impressions.user_ids[shown[shown >= 0]]]
        saved = replace(saved, impressions=saved.impressions.take(~np.isin(saved.impressions.users, shown)))
        rewritten.insert(1, "lists shown by the upstream recommender")
        influence += [] if saved.fitted.upstream_stage is None else ["stage for upstream lists"]
    report = without_mentions(dict(saved.fitted.report), held)
    if report != saved.fitted.report:
        saved = replace(saved, fitted=replace(saved.fitted, report=report))
        rewritten.append("the report of the fit")
    if has_words:
        rewritten += erase_caches(saved.fitted.components, cache_folder)
    item_ids = saved.fitted.items.ids[read].tolist()
    not_reached = () if cache_folder is not None and Path(cache_folder).is_dir() else (NO_CACHE_FOLDER,)
    n_events = int(gone.sum())
    return saved, ForgetReport(known, unknown, n_events, tuple(rewritten), tuple(influence), item_ids, not_reached)


def with_not_removed(report: ForgetReport, paths: Sequence[Path]) -> ForgetReport:
    """Add earlier contents of a model folder that could not be removed, and so may hold the users."""
    told = (f"{path}, an earlier content, cannot be removed now: the next save tries again" for path in paths)
    return replace(report, not_reached=(*report.not_reached, *told))


def expired(saved: Saved, now: float | None = None, *, slack_s: float = 0.0) -> tuple[Saved, ForgetReport]:
    """Return the state without events older than ``retention_days`` of its settings, forgotten as a user's are.

    now: seconds since 1970; None: the clock. slack_s: nothing is done before the oldest event is that much over its
    time, so that a stream of events does not drop a few others with each. Users without an event left go too; their
    attributes are not events and stay. Upstream lists that are too old go likewise. Raises DataError where times are
    positions.
    """
    events, shown = saved.events, saved.impressions
    before = expiry(saved.config, events.time_kind, time.time() if now is None else now)
    if shown is not None and shown.times[0] < before - slack_s:
        saved = replace(saved, impressions=shown.take(shown.times >= before))
    if not len(events) or events.times[0] >= before - slack_s:
        return saved, ForgetReport()
    gone = events.times < before
    users = events.user_ids
    saved, rewritten, influence, read = _without(saved, gone, all_scorers=False)
    left = set(saved.events.user_ids.tolist())
    ids = [value for value in users.tolist() if value not in left]
    item_ids = saved.fitted.items.ids[read].tolist()
    return saved, ForgetReport(ids, [], int(gone.sum()), ("events", *rewritten), tuple(influence), item_ids)


def _without(saved: Saved, gone: BoolArray, *, all_scorers: bool) -> tuple[Saved, list[str], list[str], IntArray]:
    """Take events out of everything that can lose them.

    gone: bool, shape (n_events,). Returns the state, what was rewritten, what keeps influence, and the codes of the
    items whose texts changed.
    """
    events = saved.events
    if not gone.any():
        return saved, [], [], np.empty(0, dtype=np.int64)
    of_touched = _rows_of_users(events, gone)
    is_torn = np.zeros(len(events), dtype=np.bool_)
    is_torn[_rows_of_users(events, saved.torn)] = True
    learned: IntArray = of_touched[saved.in_fit[of_touched]]
    whole = learned[~is_torn[learned]]
    can_revise_all = all_scorers or len(np.unique(events.items[whole])) <= MOST_TOUCHED * events.n_items
    components, rewritten, influence, are_torn = [], ["item statistics"], [], not can_revise_all
    for component in saved.fitted.components:
        scorer, left_in = component.scorer, learned
        if isinstance(scorer, RevisableScorer) and (scorer.revises_cheaply or can_revise_all):
            counts = scorer.revises_cheaply
            knows = of_touched[saved.counted[of_touched]] if counts else whole
            revised = _revised(component, events.take(knows), events.take(knows[~gone[knows]]))
            if revised is None:
                are_torn = True
            else:
                left_in = learned[:0] if counts else learned[is_torn[learned]]
                rewritten += [component.name] if revised is not component else []
                component = revised
        if gone[left_in].any() and component.name not in READS_TEXTS_ALONE and not is_vector_name(component.name):
            influence.append(_learned_part(component))
        components.append(component)
    torn = saved.torn
    if are_torn:
        torn = torn.copy()
        torn[_rows_of_users(events, gone & saved.in_fit)] = True
    saved = replace(saved, torn=torn)
    reviewed = gone & events.reviews.astype(bool) & (events.items >= 0)
    quoted = np.unique(events.items[reviewed])
    if len(learned):  # only users with a past were held out, so others shaped neither
        influence += ["weights of the fusion", "calibrator"]
    changed = len(rewritten) > 1
    left, _ = without_events(events, gone)
    fitted = replace(saved.fitted, components=tuple(components))
    saved = replace(saved, fitted=fitted, events=left, **saved.marks(~gone))
    if changed:
        saved = without_guarantees(saved, FORGOTTEN)
    saved, read, names = with_texts_read_again(saved, quoted, len(saved.fitted.items))
    if len(read):
        rewritten.append("texts of items")
        rewritten += [f"{name} (texts)" for name in names if name not in rewritten and not is_vector_name(name)]
        influence += [f"{name}: {what}" for name, what in LEARNED_OF_TEXTS.items() if name in names]
    return saved, rewritten, influence, read


def _revised(component: Component, before: Interactions, after: Interactions) -> Component | None:
    """Take events out of a component's scorer; None where it cannot be done exactly: it stays and keeps influence."""
    if len(before) == len(after):
        return component
    try:
        return replace(component, scorer=component.scorer.revised(before, after))  # type: ignore[attr-defined]
    except InexactError:
        return None


def _rows_of_users(events: Interactions, chosen: BoolArray) -> IntArray:
    """Rows of all events of the users who have a chosen one: int64, rising. chosen: bool, shape (n_events,)."""
    is_user = np.zeros(events.n_users, dtype=np.bool_)
    is_user[events.users[chosen]] = True
    return np.flatnonzero(is_user[events.users]).astype(np.int64)


def _learned_part(component: Component) -> str:
    return "fine-tuned weights of the cross-encoder" if component.group == "cross_encoder" else component.name


def _without_ids(saved: Saved, ids: Sequence[Any]) -> Saved:
    """Take users out that have no events: by the very objects that are held as their ids."""
    events, wanted = saved.events, {id(value) for value in ids}
    keep = np.array([id(value) not in wanted for value in events.user_ids], dtype=np.bool_)
    if keep.all():
        return saved
    code = np.cumsum(keep) - 1
    left = replace(events, user_ids=events.user_ids[keep], user_rows=events.user_rows[keep], users=code[events.users])
    return replace(saved, events=left)


def _without_attributes(saved: Saved, rows: IntArray) -> Saved:
    """Take rows out of the users' attributes, here and in scorers that hold them by row."""
    users = saved.users
    assert users is not None
    keep = np.ones(len(users), dtype=np.bool_)
    keep[rows] = False
    place = np.where(keep, np.cumsum(keep) - 1, UNKNOWN)
    user_rows = saved.events.user_rows
    user_rows = np.where(user_rows >= 0, place[np.maximum(user_rows, 0)], UNKNOWN)
    components = []
    for component in saved.fitted.components:
        features = getattr(component.scorer, "user_features", None)
        if features is not None and len(features) == len(users):
            scorer: Any = copy(component.scorer)
            scorer.user_features = features[keep]
            component = replace(component, scorer=scorer)
        components.append(component)
    return replace(
        saved,
        users=Users(users.ids[keep], users.frame[keep].reset_index(drop=True)),
        events=replace(saved.events, user_rows=user_rows.astype(np.int64)),
        fitted=replace(saved.fitted, components=tuple(components)),
    )
