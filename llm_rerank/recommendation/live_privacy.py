"""All that a live shop holds of a user: in the model, in the log of events, and among the lists that were shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_rerank.data.id_index import known_id, spellings
from llm_rerank.data.values import plain_id
from llm_rerank.recommendation.event_log import EventLog
from llm_rerank.recommendation.exporting import exported
from llm_rerank.recommendation.live_state import LiveState
from llm_rerank.types import DataError


def all_held(state: LiveState, log: EventLog, user_id: Any) -> dict[str, Any] | None:
    """Lay out everything that is held of a user as JSON values; None where nothing is.

    Besides what ``exporting.exported`` gives: ``event_log``, each event as it was taken, with its id, its kind, the
    request that it answers and when it was taken, oldest first; ``lists_shown``; ``erasures``, which stand in the log
    under a keyed hash of the user for a week. After an erasure they alone are left, and are not counted as held.
    """
    names = kept_under(user_id, state.users)
    try:
        held = exported(state.saved, names[0])
    except DataError:  # nothing in the model; a newcomer may have been shown lists
        held = {"user_id": names[0]}
    taken = [entry for name in names for entry in log.entries_of(name)]
    lists = [shown for name in names for shown in log.answers(name)]
    if len(held) == 1 and not taken and not lists:
        return None
    return {
        **held,
        "event_log": sorted(taken, key=lambda entry: entry["position"]),
        "lists_shown": sorted(lists, key=lambda shown: shown["recorded"]),
        "erasures": [erased for name in names for erased in log.erasures_of(name)],
    }


def kept_under(user_id: Any, users: Mapping[Any, int]) -> list[Any]:
    """Ids under which the log may name a user, the shop's own first.

    An answer to somebody unknown is kept under the id as it was asked, 7 or "7"; later the shop may know the other one.
    """
    own = known_id(user_id, users)
    return [own, *(name for name in spellings(plain_id(user_id)) if name != own and name not in users)]
