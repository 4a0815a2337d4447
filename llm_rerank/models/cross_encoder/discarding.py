"""Token states of texts forgotten: out of every cache that an ``ItemReader`` keeps in a folder, without its layers."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from llm_rerank.models.cross_encoder.state_cache import LOCK, MANIFEST
from llm_rerank.models.cross_encoder.state_segments import remove_unlisted
from llm_rerank.storage import exclusive, read_json, write_json
from llm_rerank.types import StorageError

STATES_PREFIX = "states-"
"""A cache's folder is this and the start of its fingerprint."""


def state_key(text: str) -> str:
    """Name a text in a cache of states: SHA-256, 64 hex digits."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def remove_states(cache_folder: Path | str) -> int:
    """Empty every cache of states in a folder, unread; returns how many there were.

    One whose manifest cannot be read is removed whole: it could not be used either. One that another process has open
    is left empty on disk, and serves what it had there until it is opened again.
    """
    folders = sorted(Path(cache_folder).glob(f"{STATES_PREFIX}*"))
    for folder in folders:
        try:
            with exclusive(folder / LOCK):
                write_json(folder / MANIFEST, {**read_json(folder / MANIFEST), "segments": {}})
                remove_unlisted(folder, ())
        except (StorageError, TypeError):
            shutil.rmtree(folder)
    return len(folders)
