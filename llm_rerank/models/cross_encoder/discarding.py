"""Token states of texts forgotten: out of every cache that an ``ItemReader`` keeps in a folder, without its layers."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from llm_rerank.models.cross_encoder.state_cache import MANIFEST, StateCache
from llm_rerank.storage import read_json
from llm_rerank.types import StorageError

STATES_PREFIX = "states-"
"""A cache's folder is this and the start of its fingerprint."""


def state_key(text: str) -> str:
    """Name a text in a cache of states: SHA-256, 64 hex digits."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def remove_states(cache_folder: Path | str) -> int:
    """Empty every cache of states in a folder; returns how many there were.

    One whose manifest cannot be read is removed whole: it could not be used either. One that another process has open
    is left empty on disk, and serves what it had there until it is opened again.
    """
    folders = sorted(Path(cache_folder).glob(f"{STATES_PREFIX}*"))
    for folder in folders:
        try:
            header = read_json(folder / MANIFEST)
            fingerprint, state_size, dtype = header["fingerprint"], header["state_size"], header["dtype"]
        except (StorageError, KeyError, TypeError):
            shutil.rmtree(folder)
            continue
        StateCache(folder, fingerprint=fingerprint, state_size=state_size, dtype=dtype).compact(keep=())
    return len(folders)
