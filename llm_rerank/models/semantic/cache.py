"""A memory around any encoder: a text that was encoded once is not encoded again, in this process or in the next."""

from __future__ import annotations

import hashlib
import re
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_rerank.storage import read_arrays, write_arrays
from llm_rerank.types import BoolArray, Encoder, FloatArray, IntArray, StorageError

TEXTS_AT_ONCE = 8192
"""Texts encoded between two writes: what a killed process loses, or 5 % of the file where that is more."""

_DIGEST_SIZE = 16  # bytes: two of 10^9 texts collide with probability 10^-21
_FILE_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")
_LEFTOVER = re.compile(r"\.unfinished-[0-9a-f]{32}\.safetensors")  # of killed writes, as atomic_path names them


class CachedEncoder:
    """An encoder that remembers vectors by the hash of their text; whatever else it offers is the encoder's own.

    encoder: any encoder of texts. folder: where the vectors are kept too, None: in memory only. One file an encoder,
    named by its fingerprint; a file that is damaged, closed to this user or of another encoder is reported, not
    used, and written anew.
    A file is replaced in one step, so a killed process leaves the old one or the new one. Small additions are written
    when they amount to 5 % of the file, or on ``flush``; where writing fails, that is reported once and the vectors
    stay in memory only. Threads take turns: a text that one encodes another waits for. Known limits: it only grows
    until ``clear``; of two processes that write at once the later one's vectors stay, and the other's new texts are
    encoded again next time.

    Raises StorageError where the folder cannot be made.
    """

    def __init__(self, encoder: Encoder, folder: Path | str | None = None) -> None:
        self.encoder = encoder
        self.embedding_size = encoder.embedding_size
        self.fingerprint = encoder.fingerprint
        self._rows: dict[bytes, int] = {}
        self._vectors = np.empty((0, self.embedding_size), dtype=np.float32)  # spare rows at the end
        self._n_written = 0
        self._turn = threading.Lock()  # rows are given out by count: two threads would give one row to two texts
        self.path = None if folder is None else Path(folder) / f"{self.fingerprint[:32]}.safetensors"
        if self.path is not None:
            try:  # now, not after hours of encoding
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(
                    f"cache folder {folder} cannot be made ({error.strerror}); name another, or None to keep nothing"
                ) from error
            if self.path.exists():
                self._read(self.path)

    def __len__(self) -> int:
        return len(self._rows)

    def __getattr__(self, name: str) -> Any:
        if name == "encoder":  # not there yet: an object being copied
            raise AttributeError(name)
        return getattr(self.encoder, name)

    def __getstate__(self) -> dict[str, Any]:
        """Give what a copy starts from: rows of its own, no spare ones to share, and no lock."""
        with self._turn:
            mine = {"_rows": dict(self._rows), "_vectors": self._vectors[: len(self)], "_turn": None}
            return self.__dict__ | mine

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _turn=threading.Lock())

    def knows(self, inputs: Sequence[Any]) -> BoolArray:
        """Tell which inputs were encoded before: bool, shape (n_inputs,)."""
        return np.array([_key(text) in self._rows for text in inputs], dtype=np.bool_)

    def encode(self, inputs: Sequence[Any]) -> FloatArray:
        """Vectors of the inputs: float32, shape (n_inputs, embedding_size); only new texts reach the encoder."""
        with self._turn:
            return self._encode(inputs)

    def _encode(self, inputs: Sequence[Any]) -> FloatArray:
        keys = [_key(text) for text in inputs]
        new = {key: text for key, text in zip(keys, inputs, strict=True) if key not in self._rows}
        unknown = list(new)
        for start in range(0, len(unknown), TEXTS_AT_ONCE):
            part = unknown[start : start + TEXTS_AT_ONCE]
            self._add(part, self.encoder.encode([new[key] for key in part]))
            if len(self) - self._n_written > self._n_written // 20:
                self._flush()
        rows: IntArray = np.array([self._rows[key] for key in keys], dtype=np.int64)
        return self._vectors[rows]

    def flush(self) -> None:
        """Write what is not on disk yet; nothing happens without a folder."""
        with self._turn:
            self._flush()

    def _flush(self) -> None:
        if self.path is None or self._n_written == len(self):
            return
        keys = np.frombuffer(b"".join(self._rows), dtype=np.uint8).reshape(len(self), _DIGEST_SIZE)
        vectors = self._vectors[: len(self)]
        metadata = {"fingerprint": self.fingerprint, "sha256": _checksum(keys, vectors)}
        try:
            write_arrays(self.path, {"keys": keys, "vectors": vectors}, metadata)
        except OSError as error:  # a full disk must not cost a fit
            warnings.warn(f"{self.path} cannot be written ({error}); new vectors stay in memory only", stacklevel=4)
            self.path = None
            return
        self._n_written = len(self)

    def clear(self) -> None:
        """Forget every vector, in memory and on disk: for texts that cannot be named any more.

        Raises StorageError where the file cannot be removed.
        """
        with self._turn:
            self._rows, self._vectors, self._n_written = {}, self._vectors[:0].copy(), 0
            if self.path is not None:
                remove_vectors(self.path.parent, self.path.name)

    def _add(self, keys: list[bytes], vectors: FloatArray) -> None:
        first, last = len(self), len(self) + len(keys)
        if last > len(self._vectors):  # doubled, so that many small additions copy little
            grown = np.empty((max(last, 2 * len(self._vectors)), self.embedding_size), dtype=np.float32)
            grown[:first] = self._vectors[:first]
            self._vectors = grown
        self._vectors[first:last] = vectors
        self._rows.update(zip(keys, range(first, last), strict=True))

    def _read(self, path: Path) -> None:
        try:
            arrays, metadata = read_arrays(path)
            keys, vectors = arrays["keys"], arrays["vectors"]
            sound = (
                metadata["fingerprint"] == self.fingerprint
                and metadata["sha256"] == _checksum(keys, vectors)
                and (keys.dtype.name, keys.shape[1:]) == ("uint8", (_DIGEST_SIZE,))  # the checksum knows bytes only
                and (vectors.dtype.name, vectors.shape) == ("float32", (len(keys), self.embedding_size))
            )
        except (StorageError, KeyError):
            sound = False
        if not sound:
            warnings.warn(
                f"{path} is damaged, closed to you, or of another encoder; it is not used and will be rebuilt",
                stacklevel=3,
            )
            return
        self._add([key.tobytes() for key in keys], vectors)
        self._n_written = len(self)


def remove_vectors(folder: Path | str, name: str | None = None) -> int:
    """Remove the files that ``CachedEncoder``s keep in a folder, or the one of this name; returns how many there were.

    Raises StorageError where one cannot be removed.
    """
    paths = sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []
    ours = [path for path in paths if _FILE_NAME.fullmatch(path.name) and name in (None, path.name)]
    for path in [*ours, *(path for path in paths if _LEFTOVER.fullmatch(path.name))]:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{path} cannot be removed ({error}); remove it yourself, it is only a cache") from error
    return len(ours)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_SIZE).digest()


def _checksum(keys: np.ndarray, vectors: np.ndarray) -> str:
    digest = hashlib.sha256(keys.tobytes())
    digest.update(vectors.tobytes())
    return digest.hexdigest()
