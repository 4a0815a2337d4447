"""A saved reranker that follows its shop: events, items and erasures are durable at once and in the next answer.

The model folder and the log beside it are one state: the folder holds everything up to a position of the log, the later
entries are played on top. Several processes may serve one folder; each plays what the others wrote before it answers.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from llm_rerank.data.id_index import known_id
from llm_rerank.folders import current_name, remove_leftovers, save_folder
from llm_rerank.recommendation.event_log import LOG_FILE, EventLog
from llm_rerank.recommendation.live_events import EventError, checked_events
from llm_rerank.recommendation.live_privacy import all_held, kept_under
from llm_rerank.recommendation.live_state import LiveState, caught_up, loaded_state, with_events
from llm_rerank.recommendation.privacy import ForgetReport, expired, forgotten, with_not_removed
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.saving import write_reranker
from llm_rerank.recommendation.specs import ComponentSpec
from llm_rerank.recommendation.state import expiry
from llm_rerank.recommendation.updating import UpdateReport, updated
from llm_rerank.storage import exclusive, read_json
from llm_rerank.types import DataError, ReplacedError

MOST_SHOWN = 50
"""First ranks of an answer that are remembered for feedback."""

_LOCK = ".live.lock"
_TRIES = 5


class UnknownRequest(DataError):
    """Feedback names a request that is not, or no longer, remembered."""


@dataclass(frozen=True)
class Recorded:
    """What became of events: ids that were taken, and ids that had been taken before, in the order given."""

    accepted: list[str]
    duplicates: list[str]


class LiveShop:
    """A model folder in use. Every method may be called from several threads, and several processes may hold one.

    folder: what ``Reranker.save`` wrote, with the histories. device, components: as for ``Reranker.load``. clock:
    seconds since 1970. Raises StorageError where the folder or the log cannot be read, DataError where it was saved
    without histories.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str = "auto",
        components: Sequence[ComponentSpec] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self.device, self.components, self.clock = Path(folder), device, components, clock
        current_name(self.folder)  # so that no log is made in a folder that is none of ours
        self.log = EventLog(self.folder / LOG_FILE)
        self._swapping = threading.Lock()
        self._playing = threading.Lock()
        self._state = loaded_state(self.folder, self.log, device, components)
        self._folded = self._state.position
        unfinished = any(entry.kind == "forget" for entry in self.log.after(self._state.position))
        self._state = caught_up(self._state, self.log)
        if unfinished:  # a kill between an erasure and the new folder, which may still hold the user
            self.compact()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the log. What is not in the model folder yet is in the log."""
        self.log.close()

    # ------------------------------------------------------------- answers

    @property
    def version(self) -> str:
        """Name of the model folder's content that is in use."""
        return self._state.version

    @property
    def origin(self) -> str:
        """Which model is in use: the same after events and erasures, by whichever process; another after a fit."""
        return self._state.saved.origin

    def reranker(self) -> Reranker:
        """Return a reranker that knows every event acknowledged so far, by this process or another.

        It is a snapshot: later events do not change it.
        """
        return Reranker.from_saved(self._current().saved, components=self.components)

    def remember_answer(
        self,
        request_id: str,
        user_id: Any,
        item_ids: Sequence[Any],
        facts: Mapping[str, Any] | None = None,
        *,
        position: int | None = None,
    ) -> None:
        """Keep what was shown, best first, so that feedback can name the request; the first 50 items are kept.

        facts: lists of one entry an item (scores, propensities …) and single values, all JSON values. position:
        ``log.last_position()`` before the answer was made; of a user who was forgotten since, nothing is kept.
        """
        body = {"user_id": user_id, "item_ids": list(item_ids[:MOST_SHOWN]), "version": self.version}
        for name, value in (facts or {}).items():
            body[name] = value[:MOST_SHOWN] if isinstance(value, list) else value
        self.log.remember_answer(request_id, user_id, body, self.clock(), position=position)

    def shown_lists(self) -> list[dict[str, Any]]:
        """Return the answers that are remembered, oldest first: request_id, recorded (s), user_id, item_ids, facts."""
        return self.log.answers()

    # ------------------------------------------------------------- changes

    def record(self, events: Sequence[Mapping[str, Any]], *, now: float | None = None) -> Recorded:
        """Take events: when this returns they are on disk and in every later answer.

        An event whose ``event_id`` was taken in the last 30 days is a duplicate and changes nothing.
        Raises EventError, naming the field, where one breaks a rule, StorageError where the disk refuses; then none of
        the events is taken.
        """
        return self._record(events, None, self.clock() if now is None else now)

    def feedback(self, request_id: str, events: Sequence[Mapping[str, Any]]) -> Recorded:
        """Take events that answer a list: the user is the request's, and the rank that was shown is kept beside them.

        An event needs ``item_id``; without an ``event_id`` the same item and kind count once a request.
        Raises UnknownRequest where the request is not remembered, and as ``record`` does.
        """
        answer = self.log.answer(request_id)
        if answer is None:
            raise UnknownRequest("request_id is not, or no longer, remembered; answers are kept for 7 days at most")
        if answer["user_id"] is None:
            raise UnknownRequest("request_id is of a list for nobody; feedback needs a user: give user_id when asking")
        ranks = {str(item): rank for rank, item in enumerate(answer["item_ids"], start=1)}
        given, notes = [], []
        for number, event in enumerate(events):
            if event.get("user_id") is not None:
                raise EventError(f"events[{number}].user_id", "is the request's already; leave it out")
            if event.get("item_id") is None:
                raise EventError(f"events[{number}].item_id", "is missing; name the item of the list")
            said = f"{request_id} {event['item_id']!r} {event.get('event')}".encode("utf-8", "surrogatepass")
            own = {"user_id": answer["user_id"], "event_id": hashlib.blake2b(said, digest_size=16).hexdigest()}
            given.append({**own, **{name: value for name, value in event.items() if value is not None}})
            notes.append({"request_id": request_id, "shown_rank": ranks.get(str(event["item_id"]))})
        return self._record(given, notes, self.clock())

    def add_items(self, items: Sequence[Mapping[str, Any]]) -> UpdateReport:
        """Take new items, or new columns of known ones; they can be recommended when this returns.

        Raises DataError where a rule is broken, StorageError where the disk refuses; then nothing is taken.
        """
        bodies = [
            {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in item.items()}
            for item in items
        ]
        before = self._current()
        saved, report = updated(before.saved, None, bodies)  # texts are encoded while the log is free
        with self.log.writing():
            state = caught_up(self._state, self.log)
            if state is not before:
                saved, report = updated(state.saved, None, bodies)
            state = replace(state, saved=saved, position=self.log.append("items", [bodies], [None], self.clock()))
        self._swap(state)
        return report

    def export(self, user_id: Any) -> dict[str, Any] | None:
        """Return all that is held of a user, in the model and in the log; None where nothing is; see ``all_held``."""
        return all_held(self._current(), self.log, user_id)

    def forget(self, user_ids: Sequence[Any], *, cache_folder: str | Path | None = None) -> ForgetReport:
        """Erase users from the log and from memory, which a kill cannot undo, then from the model folder.

        When this returns no file of the folder holds them, or the report names the one (``not_reached``). A user who
        comes back later is a newcomer. cache_folder: of the fit, whose vectors of texts that quoted a review go too.
        """
        with exclusive(self.folder / _LOCK):
            state = self._current()
            if isinstance(user_ids, str | bytes):
                raise DataError("user_ids is one text; give a list of ids")
            user_ids = [user.item() if isinstance(user, np.generic) else user for user in user_ids]
            ids = [known_id(user, state.users) for user in user_ids]
            names = list(dict.fromkeys(name for user in user_ids for name in kept_under(user, state.users)))
            # the dear part, while the log is free: nobody waits for it
            saved, report = forgotten(state.saved, ids, cache_folder)
            _ = saved.item_statistics
            with self.log.writing():
                state = caught_up(replace(state, saved=saved), self.log)
                saved, late = forgotten(state.saved, names, cache_folder)  # what they did in between
                state = LiveState(saved, state.version, self.log.erase(names, self.clock()))
            self._swap(state)
            self._fold()
            left = remove_leftovers(self.folder)
        return with_not_removed(replace(report, n_events=report.n_events + late.n_events), left)

    @property
    def is_behind(self) -> bool:
        """Whether the log has entries that the model folder does not hold yet."""
        return self.log.last_position() > self._folded

    def compact(self) -> None:
        """Fold the log into the model folder, so that the next start has nothing to play; a kill does no harm."""
        with exclusive(self.folder / _LOCK):
            self._fold()

    def tidy(self) -> None:
        """Drop what is past its time from the log, and fold it into the folder where that has something to say."""
        if self.is_behind or self._state.saved.config.retention_days is not None:
            self.compact()
        else:
            self.log.prune(self._folded, self.clock())

    def refit(self) -> Reranker:
        """Fit again on all that is known and make the result the folder's content; events may come in meanwhile.

        Raises ReplacedError, and changes nothing, where the folder got events meanwhile that the log does not have.
        """
        state = self._current()
        fresh = Reranker.from_saved(state.saved, components=self.components).refit()
        refitted = LiveState(replace(fresh.saved, log_name=self.log.name), state.version, state.position)
        with exclusive(self.folder / _LOCK):
            # what came in during the fit, erasures above all: none comes now, for it takes our lock
            refitted = caught_up(refitted, self.log)
            saved = replace(refitted.saved, log_position=refitted.position)
            current = current_name(self.folder)
            if read_json(self.folder / current / "config.json")["origin"] != state.saved.origin:
                raise ReplacedError(
                    f"{self.folder} was fitted or updated by another program during the refit, which would undo that; "
                    "refit again"
                )
            version = save_folder(self.folder, lambda place: write_reranker(place, saved), expected=current)
        with self._swapping:
            self._state, self._folded = replace(refitted, saved=saved, version=version), refitted.position
        return self.reranker()

    def reload_if_replaced(self, prepare: Callable[[Reranker], None] | None = None) -> bool:
        """Where the folder was given another model, load it, play the log on top and answer with it from then on.

        prepare: called with the new reranker before anybody else sees it.
        """
        if current_name(self.folder) == self._state.version:
            return False
        loaded = loaded_state(self.folder, self.log, self.device, self.components)
        fresh = caught_up(loaded, self.log)
        if prepare is not None:
            prepare(Reranker.from_saved(fresh.saved, components=self.components))
        with self._swapping:
            self._state, self._folded = fresh, loaded.position
        return True

    # ------------------------------------------------------------- inside

    def _current(self) -> LiveState:
        """Return the state after every entry that is committed."""
        newest = self.log.last_position()
        if newest <= (state := self._state).position:
            return state
        with self._playing:  # not the log's lock: who answers must not wait for who writes
            if newest > (state := self._state).position:  # else another thread has played it
                state = caught_up(state, self.log)
                self._swap(state)
        return state

    def _swap(self, state: LiveState) -> None:
        """Make a newer state the one in use; an older one, or one of a model that was replaced meanwhile, is dropped.

        Nothing is lost by that: what is dropped is in the log, and the next answer plays it.
        """
        with self._swapping:
            if state.version == self._state.version and state.position >= self._state.position:
                self._state = state

    def _record(
        self, events: Sequence[Mapping[str, Any]], notes: Sequence[Mapping[str, Any]] | None, now: float
    ) -> Recorded:
        with self.log.writing():
            state = caught_up(self._state, self.log)
            checked = checked_events(
                events,
                item_of=state.items,
                user_of=state.users,
                kinds=state.saved.kinds,
                now=now,
                time_kind=state.saved.events.time_kind,
                next_position=state.next_time,
            )
            known = self.log.known_ids(event["event_id"] for event in checked)
            taken: dict[str, dict[str, Any]] = {}
            duplicates = []
            for number, event in enumerate(checked):
                name = event["event_id"]
                if name in known or name in taken:
                    duplicates.append(name)
                else:
                    taken[name] = {**event, **(notes[number] if notes else {})}
            if taken:
                # before the log: what cannot be played is not written
                saved = with_events(state.saved, list(taken.values()))
                users = [event["user_id"] for event in taken.values()]
                position = self.log.append("event", list(taken.values()), users, now)
                self.log.remember_ids(list(taken), now)
                state = replace(state, saved=saved, position=position)
        self._swap(state)  # after the commit: nobody sees what might still be undone
        return Recorded(list(taken), duplicates)

    def _fold(self) -> None:
        """Write the present state as the folder's content. Hold the folder's lock."""
        for attempt in range(_TRIES):
            self.reload_if_replaced()
            state = self._current()
            kept = expired(state.saved, self.clock())[0] if state.saved.config.retention_days else state.saved
            if kept is not state.saved:
                state = LiveState(kept, state.version, state.position)
                self._swap(state)
            saved = replace(state.saved, log_name=self.log.name, log_position=state.position)
            write = partial(write_reranker, saved=saved)
            try:
                version = save_folder(self.folder, write, expected=state.version)
            except ReplacedError:  # by a fit that does not hold our lock
                if attempt == _TRIES - 1:
                    raise
                continue
            break
        with self._swapping:
            if self._state.version == state.version:
                self._state = replace(self._state, version=version)
        self._folded = state.position
        now = self.clock()
        self.log.prune(state.position, now, expiry(saved.config, saved.events.time_kind, now))
