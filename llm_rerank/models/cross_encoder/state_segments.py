"""The segment files of a cache of token states: written whole, mapped, joined, removed where no manifest names them.

A segment, little-endian: the number of texts (int64), their digests (16 bytes each), their numbers of tokens (int64
each), then one record a token (``token_records``).
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from llm_rerank.models.cross_encoder.token_records import Records
from llm_rerank.storage import atomic_path
from llm_rerank.types import IntArray

SEGMENT = re.compile(r"[0-9a-f]{32}\.states")
_LEFTOVER = re.compile(r"\.unfinished-[0-9a-f]{32}\.states(\.json)?")  # of killed writes, as atomic_path names them
DIGEST_SIZE = 16  # bytes: two of 10^9 texts collide with probability 10^-21
TOKENS_A_BLOCK = 8192  # packed at once: memory stays bounded, and a block within a core's cache


def write_segment(
    folder: Path, digests: Sequence[bytes], lengths: IntArray, blocks: Iterable[Records]
) -> dict[str, str]:
    """Write one segment atomically; returns its SHA-256 by its name."""
    name = f"{uuid.uuid4().hex}.states"
    sha256 = hashlib.sha256()
    with atomic_path(folder / name) as unfinished, open(unfinished, "wb") as file:

        def write(part: bytes) -> None:
            sha256.update(part)
            file.write(part)

        write(len(digests).to_bytes(8, "little"))
        write(b"".join(digests))
        write(lengths.astype("<i8").tobytes())
        for block in blocks:
            write(block.tobytes())
    return {name: sha256.hexdigest()}


def map_segment(path: Path, record: np.dtype[np.void]) -> tuple[list[bytes], IntArray, Records, int]:
    """Digests, lengths (int64, shape (n_texts,)), records (shape (n_tokens,), mapped) and size of a sound segment."""
    content = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    n_texts = int(content[:8].view("<i8")[0])
    digests, lengths, records = np.split(content[8:], [n_texts * DIGEST_SIZE, n_texts * (DIGEST_SIZE + 8)])
    raw = digests.tobytes()
    cut = [raw[first : first + DIGEST_SIZE] for first in range(0, len(raw), DIGEST_SIZE)]
    # records as plain bytes: numpy gathers rows with fields at half the speed
    return cut, lengths.view("<i8").astype(np.int64), records.view(f"V{record.itemsize}"), content.nbytes


def join_segments(folder: Path, names: Sequence[str], record: np.dtype[np.void]) -> dict[str, str]:
    """Write the texts of sound segments to one more, bit for bit; one of them is open at a time."""
    heads = [map_segment(folder / name, record)[:2] for name in names]

    def blocks() -> Iterator[Records]:
        for name in names:
            records = map_segment(folder / name, record)[2]
            for first in range(0, len(records), TOKENS_A_BLOCK):
                yield records[first : first + TOKENS_A_BLOCK]

    digests = [digest for part, _ in heads for digest in part]
    return write_segment(folder, digests, np.concatenate([lengths for _, lengths in heads]), blocks())


def remove_unlisted(folder: Path, listed: Collection[str]) -> None:
    """Remove the segments that are not listed, and what killed writes left."""
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name) or (SEGMENT.fullmatch(path.name) and path.name not in listed):
            with suppress(OSError):  # open elsewhere on Windows: goes next time
                path.unlink()
