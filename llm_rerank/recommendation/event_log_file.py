"""The SQLite file of an event log: its tables, and connections to it that lose and leave nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS entries (
  position INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, user TEXT, recorded REAL NOT NULL,
  body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS entries_of_user ON entries (user);
CREATE TABLE IF NOT EXISTS folds (position INTEGER PRIMARY KEY, recorded REAL NOT NULL);
CREATE TABLE IF NOT EXISTS event_ids (digest BLOB PRIMARY KEY, recorded REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
  number INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT UNIQUE NOT NULL, user TEXT, recorded REAL NOT NULL,
  body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS answers_of_user ON answers (user);
"""


def connected(path: Path, wait_s: float) -> sqlite3.Connection:
    """Open the file; it is made where there is none. wait_s: for whoever else writes. Raises sqlite3.Error."""
    connection = sqlite3.connect(path, timeout=wait_s, check_same_thread=False, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA secure_delete=ON")  # what is erased is overwritten with zeros
    return connection
