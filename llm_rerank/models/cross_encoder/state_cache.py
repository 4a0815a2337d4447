"""Token states of texts: computed once, kept on disk, read through a memory map. What computes them is not here.

A folder holds segments (``state_segments``), one a call of ``add``, the small ones joined from time to time, and a
manifest: what the states are of, and a SHA-256 a segment. A segment is written whole before the manifest names it and
never changes after, so a process killed at any moment leaves at most a file that no manifest names, which the next to
open the folder removes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_rerank.models.cross_encoder.state_segments import (
    DIGEST_SIZE,
    SEGMENT,
    TOKENS_A_BLOCK,
    join_segments,
    map_segment,
    remove_unlisted,
    write_segment,
)
from llm_rerank.models.cross_encoder.token_records import (
    GREATEST,
    Records,
    StateType,
    bytes_needed,
    dequantize,
    greatest_magnitudes,
    pack,
    quantize,
    record_type,
    unpack_into,
)
from llm_rerank.storage import exclusive, read_json, write_json
from llm_rerank.types import DataError, FloatArray, IntArray, StorageError

__all__ = ["StateCache", "StateType", "bytes_needed", "dequantize", "fingerprint_of", "quantize"]

FORMAT = "llm_rerank token states"
FORMAT_VERSION = 2
"""Raised by one whenever an older library could not read what this one writes."""

MANIFEST = "manifest.states.json"  # not manifest.json: a saved model's must survive a folder given by mistake
LOCK = ".states-lock"
_TEXTS_A_BLOCK = 256  # gathered at once: memory stays bounded, and a block within a core's cache

MOST_SEGMENTS = 64
"""Each one holds a file open; beyond it all but the larger half are joined into one, so that a record is written anew
log(n) times. A process may open some hundred files."""


class StateCache:
    """Token states of texts on disk: each text's states are float rows, one a token; read through a memory map.

    folder: of this cache alone, made where missing; best one a fingerprint, for another's states are removed.
    fingerprint: of everything that changes the states (``fingerprint_of``). state_size: floats a token. dtype: what is
    kept of a float, "float16" (error at most 2**-11 of the value, or 2**-25) or "int8" (``quantize``).

    Opening reads and checks every segment. What is of another fingerprint, size, type or format version is removed,
    and of this cache each segment that is missing, cut or damaged; ``notes`` says what. Those texts are ``missing``.

    Processes that write at once take turns by a file lock and keep each other's segments. Without file locks (Windows)
    the last to write the manifest wins: a segment may be lost, wrong states are never read. What others wrote since
    opening is taken in by the next ``add`` or ``compact``; what they removed stays readable here.

    Raises StorageError where the folder is a file.
    """

    def __init__(self, folder: Path, *, fingerprint: str, state_size: int, dtype: StateType = "float16") -> None:
        if folder.exists() and not folder.is_dir():
            raise StorageError(f"{folder} is a file; token states are kept in a folder: give another name")
        self.dtype = dtype
        self.notes: list[str] = []
        self._folder = folder
        self._state_size = state_size
        self._record = record_type(state_size, dtype)
        self._header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "fingerprint": fingerprint,
            "state_size": state_size,
            "dtype": dtype,
        }
        self._listed: Mapping[str, str] = {}  # SHA-256 by segment, as the manifest has it
        self._sizes: dict[str, int] = {}  # bytes by segment, of those mapped
        self._segments: list[Records] = []
        self._rows: dict[bytes, int] = {}  # row of places, by digest
        self._places: IntArray = np.empty((0, 3), dtype=np.int64)  # segment, first record in it, number of records
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / LOCK):
            self._take_in()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and _digest(key) in self._rows

    @property
    def n_bytes(self) -> int:
        """Size on disk of the segments that are read here."""
        return sum(self._sizes.values())

    def missing(self, keys: Sequence[str]) -> IntArray:
        """Positions of the keys that are not held, of a repeated key the first: int64, shape (n_missing,), rising."""
        first: dict[bytes, int] = {}
        for position, digest in enumerate(map(_digest, keys)):
            if digest not in self._rows:
                first.setdefault(digest, position)
        return np.array(list(first.values()), dtype=np.int64)

    def add(self, keys: Sequence[str], states: FloatArray, lengths: IntArray) -> None:
        """Write the states of texts to one new segment; they are on disk when it returns.

        keys: distinct; one that is held already, or that another process added meanwhile, keeps its first states.
        states: float32, shape (n_tokens, state_size), the keys' rows one after another. lengths: int64, shape
        (n_keys,), tokens of each key, 0 allowed.

        Raises DataError where shapes disagree, a key repeats, or a state is NaN or beyond what float16 holds.
        """
        digests = [_digest(key) for key in keys]
        self._check(digests, states, lengths)
        with exclusive(self._folder / LOCK):
            self._take_in()
            new: IntArray = np.array([row for row, digest in enumerate(digests) if digest not in self._rows], np.int64)
            if not len(new):
                return
            if len(new) < len(keys):
                states = states[_spans((np.cumsum(lengths) - lengths)[new], lengths[new])]
            blocks = (
                pack(states[first : first + TOKENS_A_BLOCK], self._record)
                for first in range(0, len(states), TOKENS_A_BLOCK)
            )
            segment = write_segment(self._folder, [digests[row] for row in new], lengths[new], blocks)
            self._write_manifest({**self._listed, **segment})
            self._attach(segment)

    def read(self, keys: Sequence[str]) -> tuple[FloatArray, IntArray]:
        """States and lengths of texts, in the order of the keys; a key may be asked for more than once.

        Returns float32, shape (n_tokens, state_size), the keys' rows one after another, and int64, shape (n_keys,).
        Raises DataError where a key is not held.
        """
        found = [self._rows.get(_digest(key), -1) for key in keys]
        if -1 in found:
            position = found.index(-1)
            raise DataError(f"key {keys[position][:60]!r} at position {position} has no states here; add them first")
        rows: IntArray = np.array(found, dtype=np.int64)
        lengths = self._places[rows, 2]
        states = np.empty((lengths.sum(), self._state_size), dtype=np.float32)
        first = 0
        for records in self._gather(rows):
            unpack_into(states[first : first + len(records)], records)
            first += len(records)
        return states, lengths

    def compact(self, keep: Collection[str] | None = None) -> None:
        """Put one segment, equal bit for bit, in place of all, which are checked again; a kill leaves old or new.

        keep: keys to keep, None: all. Disk must hold both for a moment; memory only a block.
        """
        with exclusive(self._folder / LOCK):
            self._forget()  # else damage since opening would be copied under a checksum that is right
            self._take_in()
            kept = self._rows.keys() if keep is None else self._rows.keys() & {_digest(key) for key in keep}
            if len(self._segments) <= 1 and len(kept) == len(self._places):
                return
            digests = sorted(kept, key=self._rows.__getitem__)
            rows: IntArray = np.array([self._rows[digest] for digest in digests], dtype=np.int64)
            segment = {}
            if digests:
                segment = write_segment(self._folder, digests, self._places[rows, 2], self._gather(rows))
            self._write_manifest(segment)
            self._forget()  # unmapped first: Windows removes no mapped file
            self._attach(segment)
            remove_unlisted(self._folder, self._listed)

    def _check(self, digests: list[bytes], states: FloatArray, lengths: IntArray) -> None:
        if states.ndim != 2 or states.shape[1] != self._state_size:
            raise DataError(f"states have shape {states.shape}; this cache keeps (n_tokens, {self._state_size})")
        if len(lengths) != len(digests) or (lengths < 0).any() or lengths.sum() != len(states):
            raise DataError(
                f"{len(digests)} keys, {len(lengths)} lengths of sum {lengths.sum()} and {len(states)} rows of states "
                "disagree; give one length a key, none negative, summing to the rows"
            )
        if len(set(digests)) < len(digests):
            raise DataError("keys repeat; give each key once, as missing() does")
        magnitudes = greatest_magnitudes(states)
        bad = np.flatnonzero(~(magnitudes <= GREATEST))  # so written, NaN is bad too
        if len(bad):
            position = np.searchsorted(np.cumsum(lengths), bad[0], side="right")
            raise DataError(
                f"states of the key at position {position} reach {magnitudes[bad[0]]}; float16 holds magnitudes up to "
                f"{GREATEST:.0f}: find what made the encoder overflow"
            )

    def _gather(self, rows: IntArray) -> Iterator[Records]:
        """Yield the records of the texts at these rows of the index, in order, a bounded number of texts at a time."""
        for first in range(0, len(rows), _TEXTS_A_BLOCK):
            segments, starts, lengths = self._places[rows[first : first + _TEXTS_A_BLOCK]].T
            tokens = _spans(starts, lengths)
            segment_of_token = np.repeat(segments, lengths)
            records = np.empty(len(tokens), dtype=f"V{self._record.itemsize}")
            for segment in np.unique(segments):
                chosen = np.flatnonzero(segment_of_token == segment)
                records[chosen] = self._segments[segment][tokens[chosen]]
            yield records.view(self._record)

    def _take_in(self) -> None:
        """Check and map what the manifest lists and is not mapped yet; remove what is stale, damaged or left over.

        Needs the lock.
        """
        manifest = self._read_manifest()
        listed = manifest.get("segments", {})
        sound = {name: sha256 for name, sha256 in listed.items() if name in self._sizes or self._is_sound(name, sha256)}
        if not manifest or len(sound) < len(listed):
            self._write_manifest(sound)
        self._listed = sound
        if len(sound) > MOST_SEGMENTS:
            self._join()
        self._attach(name for name in self._listed if name not in self._sizes)
        remove_unlisted(self._folder, self._listed)

    def _join(self) -> None:
        """Put one segment in place of the smaller ones, before more are mapped than a process may open."""
        by_size = sorted(self._listed, key=lambda name: (self._folder / name).stat().st_size)
        small = by_size[: len(by_size) - MOST_SEGMENTS // 2]
        # of those mapped, damage since then would be copied under a checksum that is right
        sound = [name for name in small if name not in self._sizes or self._is_sound(name, self._listed[name])]
        try:
            joined = join_segments(self._folder, sound, self._record)
        except OSError as error:
            self.notes.append(f"{self._folder} holds {len(by_size)} segments, not joined ({error.strerror})")
            return
        kept = {name: sha256 for name, sha256 in self._listed.items() if name not in small}
        self._write_manifest({**kept, **joined})

    def _read_manifest(self) -> Mapping[str, Any]:
        """Read the manifest; empty where it is not this cache's, with a note where that drops segments."""
        path = self._folder / MANIFEST
        n_segments = sum(bool(SEGMENT.fullmatch(entry.name)) for entry in self._folder.iterdir())
        try:
            manifest = read_json(path)
            differing = [name for name, value in self._header.items() if manifest[name] != value]
            segments = manifest["segments"].items()
            is_ours = all(SEGMENT.fullmatch(name) and isinstance(sha256, str) for name, sha256 in segments)
        except (StorageError, AttributeError, KeyError, TypeError):
            is_ours, differing = False, []
        if is_ours and not differing:
            return manifest
        wrong = f"is of another {', '.join(differing)}" if differing else "is missing or damaged"
        if n_segments:
            self.notes.append(f"{path} {wrong}: {n_segments} segments are dropped")
        return {}

    def _write_manifest(self, listed: Mapping[str, str]) -> None:
        write_json(self._folder / MANIFEST, {**self._header, "segments": listed})
        self._listed = listed

    def _is_sound(self, name: str, sha256: str) -> bool:
        path = self._folder / name
        try:
            with open(path, "rb") as file:  # read, not mapped: checking must not fill this process's memory
                wrong = "" if hashlib.file_digest(file, "sha256").hexdigest() == sha256 else "is damaged"
        except OSError as error:
            wrong = f"cannot be read ({error.strerror})"
        if wrong:
            self.notes.append(f"{path} {wrong}: the segment is dropped")
        return not wrong

    def _attach(self, names: Iterable[str]) -> None:
        """Map sound segments and index their texts."""
        places = [self._places]
        # all mapped before the index changes: one may fail, where a process has too many files open
        mapped = [(name, *map_segment(self._folder / name, self._record)) for name in names]
        for name, digests, lengths, records, size in mapped:
            self._sizes[name] = size
            first = sum(map(len, places))
            self._rows.update(zip(digests, range(first, first + len(digests)), strict=True))
            segment = np.full(len(digests), len(self._segments))
            places.append(np.column_stack([segment, np.cumsum(lengths) - lengths, lengths]))
            self._segments.append(records)
        self._places = np.concatenate(places)
        self._release()

    def _release(self) -> None:
        """Unmap the unlisted segments whose texts have all been joined into others."""
        names = list(self._sizes)
        unlisted = [number for number, name in enumerate(names) if self._sizes[name] and name not in self._listed]
        if unlisted:
            used = self._places[np.fromiter(self._rows.values(), np.int64), 0]
            for number in np.setdiff1d(unlisted, used).tolist():
                self._segments[number], self._sizes[names[number]] = self._segments[number][:0].copy(), 0

    def _forget(self) -> None:
        """Empty the index; the disk is untouched."""
        self._segments.clear()
        self._sizes.clear()
        self._rows.clear()
        self._places = self._places[:0]


def fingerprint_of(*parts: bytes | str) -> str:
    """SHA-256 of the parts, each after its length, so that ("ab", "c") and ("a", "bc") differ; 64 hex digits."""
    sha256 = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        sha256.update(len(content).to_bytes(8, "little"))
        sha256.update(content)
    return sha256.hexdigest()


def _spans(starts: IntArray, lengths: IntArray) -> IntArray:
    """Positions of spans, one span after another: int64, shape (sum of lengths,)."""
    ends = np.cumsum(lengths)
    return np.arange(lengths.sum(), dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=DIGEST_SIZE).digest()
