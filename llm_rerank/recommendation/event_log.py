"""The log of a live shop: accepted events, new items and erasures in one order, in SQLite, so that a kill loses none.

What an entry means is the business of ``live.py``; this file only keeps entries, in order, once each, and erases them.
The model folder holds everything up to a position of the log; whoever loads it plays the later entries on top.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_rerank.data.values import plain_id
from llm_rerank.recommendation.event_log_file import SCHEMA, connected
from llm_rerank.types import StorageError

LOG_FILE = "live.sqlite"
DAYS_KEPT = 7
"""Days that entries stay after the model folder holds them: a refit that began before then still finds them.

Events and answers go earlier where the model's ``retention_days`` are fewer."""

DAYS_OF_IDS = 30
"""Days within which an event id that comes again is known as a duplicate."""

MOST_ANSWERS = 200_000
"""Answers that are remembered for feedback; older ones go first."""

WAIT_S = 10.0
SHORT_WAIT_S = 0.02
"""How long an answer waits for whoever writes, before it is kept in memory until they are done."""

MOST_LATE = 2_000
"""Answers that are kept in memory so; older ones go first."""

_DAY_S = 86_400
_GREATEST = 2**63 - 1  # SQLite's greatest whole number

Kind = Literal["event", "items", "forget"]
_Row = tuple[str, str | None, float, str, int]  # of the table answers, without its number; position of the log then


@dataclass(frozen=True)
class Entry:
    """One row of the log. position: rises, never used twice. body: JSON values; of a "forget", the user's digest."""

    position: int
    kind: Kind
    body: Any


class EventLog:
    """A durable, ordered log that several processes may write and read.

    A write is on disk when the method returns (write-ahead log, flushed at each commit). Answers, which only serve
    feedback, are not flushed, and do not wait for who writes for long: a power failure may lose the last of them, a
    killed process those of that time.
    May be used from several threads. Raises StorageError where the file cannot be opened, read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._reading = threading.Lock()
        self._keeping = threading.Lock()
        self._late: deque[_Row] = deque(maxlen=MOST_LATE)
        with self._guarded():
            self._connection = connected(path, WAIT_S)
            with self.writing():
                for statement in filter(str.strip, SCHEMA.split(";")):
                    self._connection.execute(statement)
                fresh = (("name", secrets.token_hex(16)), ("key", secrets.token_hex(16)))
                self._connection.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", fresh)
            kept = dict(self._connection.execute("SELECT name, value FROM meta"))
            self._reader = connected(path, WAIT_S)  # of its own: whoever asks does not wait for who writes
            self._keeper = connected(path, WAIT_S)  # for checkpoints, which nobody waits for
        self.name: str = kept["name"]
        self._key = bytes.fromhex(kept["key"])

    def close(self) -> None:
        """Close the file; the log stays."""
        with self._lock, self._reading, self._keeping:
            if self._late:
                with suppress(sqlite3.Error):
                    self._write_late(SHORT_WAIT_S)
            for connection in (self._keeper, self._reader, self._connection):
                connection.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the one right to write, in a transaction that is undone where the body raises."""
        with self._guarded():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
            if self._late:
                with suppress(sqlite3.Error):  # what the body wrote is written all the same
                    self._write_late(SHORT_WAIT_S)

    # ------------------------------------------------------------- entries

    def last_position(self) -> int:
        """Position of the newest entry that was ever committed; 0 without any."""
        rows = self._read("SELECT seq FROM sqlite_sequence WHERE name = 'entries'")
        return int(rows[0][0]) if rows else 0

    def after(self, position: int, last: int | None = None) -> list[Entry]:
        """Entries after a position, and up to ``last`` where it is given, oldest first."""
        query = "SELECT position, kind, body FROM entries WHERE position > ? AND position <= ? ORDER BY position"
        given = (position, _GREATEST if last is None else last)
        return [Entry(row[0], row[1], json.loads(row[2])) for row in self._read(query, given)]

    def entries_of(self, user: Any) -> list[dict[str, Any]]:
        """All entries of a user, oldest first, each with ``position`` and ``recorded`` (s)."""
        query = "SELECT position, recorded, body FROM entries WHERE user = ? ORDER BY position"
        rows = self._read(query, (user_key(user),))
        return [{"position": row[0], "recorded": row[1], **json.loads(row[2])} for row in rows]

    def append(self, kind: Kind, bodies: Sequence[Any], users: Sequence[Any], now: float) -> int:
        """Write entries (inside ``writing``); returns the position of the last. users: of each entry, None: of none."""
        position = 0
        for body, user in zip(bodies, users, strict=True):
            row = (kind, None if user is None else user_key(user), now, json.dumps(body))
            query = "INSERT INTO entries (kind, user, recorded, body) VALUES (?, ?, ?, ?)"
            position = int(self._connection.execute(query, row).lastrowid or 0)
        return position

    def begun_at(self, origin: str) -> int:
        """Return the position that the log had when a model was first loaded beside it. origin: of the model.

        What the log says of items up to there is older than the model, what comes later is newer.
        """
        with self.writing():
            name, newest = f"begun {origin}", self.last_position()
            self._connection.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, str(newest)))
            rows = self._connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchall()
        return int(rows[0][0])

    def known_ids(self, event_ids: Iterable[str]) -> set[str]:
        """Tell which of these event ids were written before."""
        query = "SELECT 1 FROM event_ids WHERE digest = ?"
        return {name for name in event_ids if self._read(query, (self._id_digest(name),))}

    def remember_ids(self, event_ids: Sequence[str], now: float) -> None:
        """Know these event ids from now on (inside ``writing``); only keyed hashes are kept."""
        rows = [(self._id_digest(name), now) for name in event_ids]
        self._connection.executemany("INSERT INTO event_ids VALUES (?, ?)", rows)

    def prune(self, position: int, now: float, expires: float = -math.inf) -> None:
        """Drop what the model folder has held for long (up to ``position`` since now), and old ids and answers.

        expires: time (s) before which no event and no answer may be kept, however young its entry is; erasures, which
        name nobody, stay as long as ever, for a model that was fitted before may come back with the user.
        Raises StorageError where the write-ahead file cannot be emptied, for it may hold rows of a forgotten user.
        """
        with self.writing():
            before = now - DAYS_KEPT * _DAY_S
            self._connection.execute("INSERT OR IGNORE INTO folds VALUES (?, ?)", (position, now))
            query = "SELECT max(position) FROM folds WHERE recorded < ? AND position <= ?"
            held = self._connection.execute(query, (before, position)).fetchone()[0] or 0
            self._connection.execute("DELETE FROM entries WHERE position <= ?", (held,))
            self._connection.execute("DELETE FROM folds WHERE position < ?", (held,))
            self._connection.execute(
                "DELETE FROM entries WHERE position <= ? AND kind = 'event' "
                "AND (recorded < ? OR json_extract(body, '$.timestamp') < ?)",
                (position, expires, expires),
            )
            self._connection.execute("DELETE FROM event_ids WHERE recorded < ?", (now - DAYS_OF_IDS * _DAY_S,))
            newest = self._connection.execute("SELECT max(number) FROM answers").fetchone()[0] or 0
            self._connection.execute(
                "DELETE FROM answers WHERE recorded < ? OR number <= ?",
                (max(before, expires), newest - MOST_ANSWERS),
            )
        until = time.monotonic() + WAIT_S
        with self._guarded(), self._reading, self._keeping:  # the write-ahead file held the rows too
            # SQLite waits for readers and writers, and not at all for another's checkpoint
            query = "PRAGMA wal_checkpoint(TRUNCATE)"
            while (is_busy := self._connection.execute(query).fetchone()[0]) and time.monotonic() < until:
                time.sleep(SHORT_WAIT_S)
        if is_busy:
            raise StorageError(
                f"the write-ahead file of {self.path} cannot be emptied: another program has been reading or writing "
                f"it for {WAIT_S:g} s; try again"
            )

    def checkpoint(self) -> None:
        """Bring the write-ahead file into the main file while others go on to read and write.

        Without it SQLite does so in the commit that finds the file long, and whoever wrote waits for the disk.
        """
        with self._keeping, self._explained():
            self._keeper.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    # ------------------------------------------------------------- answers

    def remember_answer(
        self, request_id: str, user: Any, body: Mapping[str, Any], now: float, *, position: int | None = None
    ) -> None:
        """Keep what was shown under a request id, for feedback; whoever asked for a list does not wait for writers.

        position: of the log when the answer was made: where the user was forgotten since, it is not kept. None: now.
        """
        position = self.last_position() if position is None else position
        row = (request_id, None if user is None else user_key(user), now, json.dumps(body), position)
        self._late.append(row)
        # where others wait already there is no use in it: of a batch one waits, not each
        patience_s = SHORT_WAIT_S if len(self._late) == 1 else 0.0
        if self._lock.acquire(timeout=patience_s):
            try:
                with self._explained():
                    if not self._connection.in_transaction:
                        self._write_late(patience_s)
            except StorageError:
                self._leave(row)
                raise
            finally:
                self._lock.release()

    def _write_late(self, patience_s: float) -> None:
        """Write the answers that wait; those that another process keeps us from go on waiting."""
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute(f"PRAGMA busy_timeout={patience_s * 1000:.0f}")
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            rows = list(self._late)
            try:
                kept = [row[:4] for row in rows if not self._is_erased(row[1], row[4])]
                query = "INSERT OR REPLACE INTO answers (request_id, user, recorded, body) VALUES (?, ?, ?, ?)"
                self._connection.executemany(query, kept)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
            for row in rows:  # not before: whoever asks for it meanwhile finds it
                self._leave(row)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
        finally:
            self._connection.execute(f"PRAGMA busy_timeout={WAIT_S * 1000:.0f}")
            self._connection.execute("PRAGMA synchronous=FULL")

    def _is_erased(self, key: str | None, position: int) -> bool:
        """Tell whether a user was forgotten after a position: who asked just before may be answered just after."""
        query = "SELECT body FROM entries WHERE position > ? AND kind = 'forget'"
        bodies = [] if key is None else self._connection.execute(query, (position,)).fetchall()
        return any(self._digest_of(key or "") in json.loads(body) for (body,) in bodies)

    def _leave(self, row: _Row) -> None:
        with suppress(ValueError):  # it fell out of the full queue meanwhile
            self._late.remove(row)

    def answer(self, request_id: str) -> dict[str, Any] | None:
        """Return what was kept under a request id; None where nothing is."""
        for late in list(self._late):
            if late[0] == request_id:
                return json.loads(late[3])
        rows = self._read("SELECT body FROM answers WHERE request_id = ?", (request_id,))
        return json.loads(rows[0][0]) if rows else None

    def answers(self, user: Any = None) -> list[dict[str, Any]]:
        """All answers kept, oldest first, of one user where one is given; each with ``request_id`` and ``recorded``."""
        waiting = list(self._late)
        columns = "SELECT request_id, recorded, body FROM answers"
        if user is None:
            rows = self._read(f"{columns} ORDER BY number")
        else:
            rows = self._read(f"{columns} WHERE user = ? ORDER BY number", (user_key(user),))
        written = {row[0] for row in rows}
        wanted = None if user is None else user_key(user)
        late = [row for row in waiting if row[0] not in written and wanted in (None, row[1])]
        rows = [*rows, *((request_id, recorded, body) for request_id, _, recorded, body, _ in late)]
        return [{"request_id": row[0], "recorded": row[1], **json.loads(row[2])} for row in rows]

    # ------------------------------------------------------------- erasure

    def user_digest(self, user: Any) -> str:
        """Keyed hash that stands for a user in an erasure, which must itself not name the user."""
        return self._digest_of(user_key(user))

    def _digest_of(self, key: str) -> str:
        return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), key=self._key, digest_size=16).hexdigest()

    def _id_digest(self, event_id: str) -> bytes:
        # keyed: an event id may hold a user's
        return hashlib.blake2b(event_id.encode("utf-8", "surrogatepass"), key=self._key, digest_size=16).digest()

    def erasures(self, position: int, last: int) -> dict[str, int]:
        """Digest of each user who was erased after a position and up to another, with the position of the erasure."""
        query = "SELECT position, body FROM entries WHERE kind = 'forget' AND position > ? AND position <= ?"
        rows = self._read(f"{query} ORDER BY position", (position, last))
        return {digest: row[0] for row in rows for digest in json.loads(row[1])}

    def erasures_of(self, user: Any) -> list[dict[str, Any]]:
        """Every erasure of a user that is kept: ``position``, ``recorded`` (s) and ``user_digest``, oldest first."""
        digest = self.user_digest(user)
        rows = self._read("SELECT position, recorded, body FROM entries WHERE kind = 'forget' ORDER BY position")
        return [
            {"position": row[0], "recorded": row[1], "user_digest": digest}
            for row in rows
            if digest in json.loads(row[2])
        ]

    def erase(self, users: Sequence[Any], now: float) -> int:
        """Delete the users' entries and answers and write their erasure (inside ``writing``); returns its position.

        Until ``prune``, or the next checkpoint, the write-ahead file may still hold the deleted rows.
        """
        for user in users:
            self._connection.execute("DELETE FROM entries WHERE user = ?", (user_key(user),))
            self._connection.execute("DELETE FROM answers WHERE user = ?", (user_key(user),))
        return self.append("forget", [[self.user_digest(user) for user in users]], [None], now)

    def _read(self, query: str, given: tuple[Any, ...] = ()) -> list[Any]:
        with self._reading, self._explained():
            return self._reader.execute(query, given).fetchall()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        with self._lock, self._explained():
            yield

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(
                f"{self.path} cannot be used ({error}); free disk space or check the rights, and if it is damaged, "
                "move it away: the model folder holds all but the newest events"
            ) from error


def user_key(user: Any) -> str:
    """Text under which a user's rows are found: JSON, so that 7 and "7" stay two users, and 7.0 is 7."""
    return json.dumps(plain_id(user))
