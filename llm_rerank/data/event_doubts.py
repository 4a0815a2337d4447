"""What looks odd about events that are read all the same: exact repeats, and times ahead of the clock.

They are counted and told, never dropped: two of one thing bought at once may be two rows.
"""

from __future__ import annotations

import time

import numpy as np
import pandas as pd

from llm_rerank.types import EVENT_ARRAYS, DataReport, IntArray, Interactions

AHEAD_S = 86_400
"""Time zones differ: what lies less than a day ahead of the clock is no future."""


def advise_on_events(events: Interactions, kinds: IntArray, name: str, report: DataReport) -> None:
    """Say how many events repeat another in all that is read of them, and how many lie in the future.

    events: sorted by time. kinds: int64, shape (n_events,), a number for each kind of event. name: of the table.
    """
    n_repeated = _n_repeated(events, kinds) if len(events) > 1 else 0
    if n_repeated:
        report.advice.append(
            f"{n_repeated:,} of {len(events):,} rows of {name} repeat another exactly (user, item, time, kind and all "
            "else that is read), and count again; drop them if an export doubled them"
        )
    if events.time_kind != "time":
        return
    n_ahead = len(events) - int(np.searchsorted(events.times, time.time() + AHEAD_S, side="right"))
    if n_ahead:
        newest = np.datetime64(int(events.times[-1]), "s").astype("datetime64[D]")
        report.advice.append(
            f"{n_ahead:,} of {len(events):,} rows of {name} lie more than a day in the future (the newest on {newest})"
            ": a fit learns from them, and no history has them until then; correct their times or drop them"
        )


def _n_repeated(events: Interactions, kinds: IntArray) -> int:
    keys = pd.DataFrame({"user": events.users, "item": events.items, "time": events.times})
    rows = np.flatnonzero(keys.duplicated(keep=False))  # of these few alone are texts compared
    return int(_frame_of(events.take(rows)).assign(kind=kinds[rows]).duplicated().sum())


def n_known(events: Interactions, new: Interactions) -> int:
    """Count the new events that are among the others with all that is kept of them; of a kind, that is its weight.

    Both are sorted by time, users and items numbered alike (``match_users``). Only events at the new ones' times are
    read.
    """
    wanted = np.unique(new.times)
    ends = (np.searchsorted(events.times, wanted, side=side) for side in ("left", "right"))
    spans = [np.arange(start, end) for start, end in zip(*ends, strict=True) if end > start]
    if not spans:
        return 0
    together = pd.concat([_frame_of(events.take(np.concatenate(spans))), _frame_of(new)], ignore_index=True)
    alike = together.groupby(list(EVENT_ARRAYS), sort=False, dropna=False).ngroup().to_numpy()
    n_held = len(together) - len(new)
    return int(np.isin(alike[n_held:], alike[:n_held]).sum())


def _frame_of(events: Interactions) -> pd.DataFrame:
    return pd.DataFrame({name: getattr(events, name) for name in EVENT_ARRAYS})
