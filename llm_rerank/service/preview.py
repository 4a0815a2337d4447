"""A first look at somebody's own table: candidates, or events, of a few users, ranked; nothing of it is kept."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fastapi import FastAPI, Request

from llm_rerank.data.candidates import validate_candidates
from llm_rerank.data.columns import with_item_column
from llm_rerank.data.events import event_kind
from llm_rerank.data.frames import as_objects, clean_ids
from llm_rerank.data.id_index import code_of, codes_by_id
from llm_rerank.data.layouts import as_interactions
from llm_rerank.data.readers import read_table
from llm_rerank.data.times import parse_times
from llm_rerank.data.values import plain
from llm_rerank.recommendation.answering import answer_each
from llm_rerank.recommendation.questions import Question
from llm_rerank.recommendation.saving import Saved
from llm_rerank.service.answers import Preview, refusals
from llm_rerank.service.bodies import LONGEST_WORDS, MOST_FRESH_EVENTS
from llm_rerank.service.context import Context, Snapshot
from llm_rerank.service.failures import JsonResponse, ServiceError
from llm_rerank.service.ranking import item_rows
from llm_rerank.steps import Steps
from llm_rerank.types import UNKNOWN, DataError, DataReport

USERS_SHOWN = 5
MOST_ROWS = 50_000
ITEMS_SHOWN = 10
"""Of lists that are retrieved; candidates are all shown."""

TABLE_TYPES = ("text/csv", "text/tab-separated-values")
_PACKED = (b"\x1f\x8b", b"PAR1", b"PK\x03\x04")
_TABLE = {"schema": {"type": "string", "minLength": 1}, "example": "user_id,item_id,upstream_score\nu1,B07,0.5\n"}
_BODY = {"requestBody": {"required": True, "content": dict.fromkeys(TABLE_TYPES, _TABLE)}}


def add_routes(app: FastAPI, context: Context) -> None:
    """Add /preview."""

    @app.post("/preview", response_model=Preview, responses=refusals(), openapi_extra=_BODY, tags=["lists"])
    async def preview(request: Request) -> JsonResponse:
        """Rank a table of candidates (user_id, item_id, perhaps upstream_score), or of events (timestamp as well).

        The first five users are shown. Users of events are taken as newcomers with these events. Nothing is kept.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in TABLE_TYPES:
            raise ServiceError(415, f"send a table as {' or '.join(TABLE_TYPES)}", field="Content-Type")
        raw = await request.body()
        settings = context.settings
        report = DataReport()

        def read() -> tuple[str, Snapshot, list[tuple[Any, Question]]]:
            return _asked(context, _table(raw, report), report)

        kind, snapshot, asked = await context.slow.run(read, settings.long_time_limit_s)
        lists = await context.queue.run_steps(_lists(context, snapshot, asked), settings.long_time_limit_s)
        users = [one["user_id"] for one in lists]
        return JsonResponse({"kind": kind, "users": users, "notes": report.lines(), "lists": lists})


def _table(raw: bytes, report: DataReport) -> pd.DataFrame:
    """Read a table of text. Raises ServiceError (415, 422)."""
    if raw.startswith(_PACKED) or raw.lstrip()[:1] in (b"{", b"["):
        raise ServiceError(415, "the body is no table of text; send CSV as it is", field="Content-Type")
    with tempfile.TemporaryDirectory(prefix="llm-rerank-") as folder:
        path = Path(folder) / "table"
        path.write_bytes(raw)
        try:
            frame = as_interactions(read_table(path, report=report), report)
        except DataError as error:
            raise ServiceError(422, str(error).replace(str(path), "the table"), code="bad_table") from None
    if len(frame) > MOST_ROWS:
        raise ServiceError(422, f"the table has {len(frame):,} rows; at most {MOST_ROWS:,} can be looked at")
    if not len(frame):
        raise ServiceError(422, "the table has no rows; give at least one")
    return frame


def _asked(
    context: Context, frame: pd.DataFrame, report: DataReport
) -> tuple[str, Snapshot, list[tuple[Any, Question]]]:
    """Tell what a table holds, and the questions of its first users, for the model as of now."""
    snapshot = context.snapshot()
    saved = snapshot.reranker.saved
    kind = "events" if "timestamp" in frame.columns else "candidates"
    try:
        if kind == "events":
            return kind, snapshot, questions_of_events(frame, saved, report)
        most = context.settings.most_candidates
        return kind, snapshot, questions_of_candidates(frame, saved, most, report)
    except DataError as error:
        raise ServiceError(422, _without_mapping(str(error)), code="bad_table") from None


def _without_mapping(message: str) -> str:
    """Leave the column to be renamed of a remedy, for a body brings no mapping of columns."""
    renamed = re.sub(r"rename one or pass columns=\{(.+): ('\w+')\}", r"rename \1 to \2", message)
    return renamed.replace("rename 'your_name'", "rename one")


def _lists(context: Context, snapshot: Snapshot, asked: list[tuple[Any, Question]]) -> Steps[list[dict[str, Any]]]:
    """Answer one user a step."""
    lists = []
    for user_id, question in asked:
        (answer,) = answer_each(snapshot.reranker, [question])
        if isinstance(answer, Exception):
            raise answer
        context.metrics.count_answer(answer.degraded, answer.fallback)
        lists.append(
            {
                "user_id": plain(user_id),
                "items": item_rows(answer, snapshot.catalogue),
                "before": answer.before,
                "degraded": [*snapshot.degraded, *answer.degraded],
                "fallback": answer.fallback,
            }
        )
        yield
    return lists


def questions_of_candidates(
    frame: pd.DataFrame, saved: Saved, most_candidates: int, report: DataReport
) -> list[tuple[Any, Question]]:
    """Ask for the first users' candidates to be ranked. Raises DataError where a column is missing."""
    table = validate_candidates(frame, saved.fitted.items, report=report)
    if not len(table):
        raise DataError("no row of the table can be used; give user_id and item_id in each")
    rows_of = _first_users(table.user_ids.tolist(), report)
    item_ids = as_objects(clean_ids(table.frame["item_id"], "item_id", report))
    asked = []
    for user_id, rows in rows_of.items():
        if len(rows) > most_candidates:
            report.notes.append(f"of a user's {len(rows):,} candidates the first {most_candidates:,} are ranked")
        rows = rows[:most_candidates]
        scores = [None if np.isnan(table.upstream_scores[row]) else float(table.upstream_scores[row]) for row in rows]
        known = None if all(score is None for score in scores) else scores
        asked.append((user_id, Question(user_id, [item_ids[row] for row in rows], known)))
    return asked


def questions_of_events(frame: pd.DataFrame, saved: Saved, report: DataReport) -> list[tuple[Any, Question]]:
    """Ask for lists for the first users, as newcomers with these events.

    Raises DataError where a column is missing, or the times are of another kind than the shop's.
    """
    frame = with_item_column(frame)
    missing = [name for name in ("user_id", "item_id") if name not in frame.columns]
    if missing:
        raise DataError(f"the table has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns[:12]))}")
    time_kind = saved.events.time_kind
    unit: Any = "position" if time_kind == "position" else "auto"
    times, known_time, kind = parse_times(frame["timestamp"], time_unit=unit, name="the table", report=report)
    if kind != time_kind:
        raise DataError(f"the table's times are of kind {kind!r} and the shop's {time_kind!r}; give times of one kind")
    users = clean_ids(frame["user_id"], "user_id", report)
    items = clean_ids(frame["item_id"], "item_id", report)
    queries = frame["query"].fillna("").astype(str) if "query" in frame.columns else pd.Series([""] * len(frame))
    item_codes = codes_by_id(saved.fitted.items.ids)
    searches = items.isna().to_numpy(dtype=bool) & (queries.str.strip() != "").to_numpy(dtype=bool)
    codes = np.array([UNKNOWN if pd.isna(item) else code_of(item, item_codes) for item in items], dtype=np.int64)
    keep = users.notna().to_numpy(dtype=bool).copy()  # pandas may lend its own
    for reason, broken in (
        ("user_id is missing", ~keep),
        ("timestamp is missing or unreadable", keep & ~known_time),
        ("item is absent from the catalogue", keep & known_time & (codes == UNKNOWN) & ~searches),
    ):
        report.drop(reason, int(broken.sum()))
    keep &= known_time & ((codes != UNKNOWN) | searches)
    if not keep.any():
        raise DataError("no event of the table can be used; give users, times, and items of this shop's catalogue")
    kept = np.flatnonzero(keep)
    rows_of = _first_users(users.iloc[kept].tolist(), report)
    asked = []
    for user_id, places in rows_of.items():
        rows = kept[places]
        rows = rows[np.argsort(times[rows], kind="stable")]
        if len(rows) > MOST_FRESH_EVENTS:
            report.notes.append(f"of a user's {len(rows):,} events the newest {MOST_FRESH_EVENTS:,} are read")
        events = []
        for row in rows[-MOST_FRESH_EVENTS:].tolist():
            event = {"timestamp": int(times[row]), **_values(frame, row, saved.kinds)}
            if codes[row] != UNKNOWN:
                event["item_id"] = saved.fitted.items.ids[codes[row]]
            if queries.iloc[row].strip():
                event["query"] = queries.iloc[row][:LONGEST_WORDS]
            events.append(event)
        asked.append((user_id, Question(None, None, events=events, k=ITEMS_SHOWN)))
    return asked


def _values(frame: pd.DataFrame, row: int, kinds: Collection[str]) -> dict[str, Any]:
    """Give an event's kind, if it is one of these, and numbers, where the table has them and they can be read."""
    found: dict[str, Any] = {}
    if "event" in frame.columns:
        kind = event_kind(frame["event"].iloc[row])
        if kind in kinds:
            found["event"] = kind
    for name in ("rating", "quantity", "weight"):
        if name in frame.columns:
            number = pd.to_numeric(frame[name].iloc[row], errors="coerce")
            if np.isfinite(number) and abs(number) < 1e9 and (name != "quantity" or number > 0):
                found[name] = float(number)
    return found


def _first_users(user_ids: list[Any], report: DataReport) -> dict[Any, list[int]]:
    """Rows of the first few users, in order of appearance."""
    rows_of: dict[Any, list[int]] = {}
    for row, user_id in enumerate(user_ids):
        rows_of.setdefault(user_id, []).append(row)
    if len(rows_of) > USERS_SHOWN:
        report.notes.append(f"{len(rows_of):,} users; the first {USERS_SHOWN} are shown")
    return dict(list(rows_of.items())[:USERS_SHOWN])
