"""Token states on disk: what was kept comes back, what is stale or damaged never, and no death loses earlier keys."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llm_rerank.models.cross_encoder import state_cache
from llm_rerank.models.cross_encoder.discarding import remove_states, state_key
from llm_rerank.models.cross_encoder.state_cache import (
    MANIFEST,
    StateCache,
    bytes_needed,
    dequantize,
    fingerprint_of,
    quantize,
)
from llm_rerank.types import DataError, StorageError

STATE_SIZE = 8
DTYPES = ["float16", "int8"]
TEXTS = ["red cup", "", "日本語の本", "half an emoji \ud83d", "red cup ", "x" * 100_000]
LENGTHS = np.array([3, 2, 5, 0, 1, 4])


def states_of(text: str, length: int) -> np.ndarray:
    """States that float16 holds exactly, float32 of shape (length, STATE_SIZE), other ones for each text."""
    draw = np.random.default_rng(list(text.encode("utf-8", "surrogatepass"))[:50])
    return draw.integers(-2048, 2049, (length, STATE_SIZE)).astype(np.float32) / 64


def batch(texts, lengths):
    states = [states_of(text, length) for text, length in zip(texts, lengths, strict=True)]
    return texts, np.concatenate([np.empty((0, STATE_SIZE), dtype=np.float32), *states]), np.asarray(lengths)


def opened(folder: Path, **changed) -> StateCache:
    return StateCache(folder, **{"fingerprint": "f" * 64, "state_size": STATE_SIZE, **changed})


def three_segments(folder: Path) -> StateCache:
    """Two texts a segment."""
    cache = opened(folder)
    for first in (0, 2, 4):
        cache.add(*batch(TEXTS[first : first + 2], LENGTHS[first : first + 2]))
    return cache


def segments_of(folder: Path) -> list[Path]:
    """Segment files, in the order in which they were added."""
    return [folder / name for name in json.loads((folder / MANIFEST).read_bytes())["segments"]]


def assert_holds(cache: StateCache, texts, lengths) -> None:
    states, read_lengths = cache.read(texts)
    assert read_lengths.tolist() == list(lengths)
    np.testing.assert_array_equal(states, batch(texts, lengths)[1])


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# What is kept comes back.


def test_states_come_back_in_the_order_asked_for(tmp_path):
    three_segments(tmp_path)
    cache = opened(tmp_path)
    assert cache.notes == []
    assert len(cache) == 6
    order = [5, 0, 3, 2, 2, 1, 4, 0]
    assert_holds(cache, [TEXTS[i] for i in order], LENGTHS[order])
    assert cache.read([])[0].shape == (0, STATE_SIZE)
    assert cache.read([])[0].dtype == np.float32
    assert cache.read([])[1].tolist() == []
    assert cache.read([TEXTS[3]])[0].shape == (0, STATE_SIZE)


def test_states_are_read_at_once_by_whoever_added_them(tmp_path):
    assert_holds(three_segments(tmp_path), TEXTS, LENGTHS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adding_bit_by_bit_equals_adding_once(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(state_cache, "TOKENS_A_BLOCK", 7)  # so that blocks cut texts
    monkeypatch.setattr(state_cache, "_TEXTS_A_BLOCK", 3)
    draw = np.random.default_rng(0)
    keys, lengths = [f"item {i}" for i in range(40)], draw.integers(0, 6, 40)
    states = draw.normal(size=(lengths.sum(), STATE_SIZE)).astype(np.float32)
    ends = np.cumsum(lengths)
    once = opened(tmp_path / "once", dtype=dtype)
    once.add(keys, states, lengths)
    bits = opened(tmp_path / "bits", dtype=dtype)
    for first, last in [(0, 1), (1, 17), (17, 18), (18, 40)]:
        start = ends[first] - lengths[first]
        bits.add(keys[first:last], states[start : ends[last - 1]], lengths[first:last])
    shuffled = [keys[i] for i in draw.permutation(40)]
    for cache in (bits, opened(tmp_path / "bits", dtype=dtype)):
        for one, other in zip(once.read(shuffled), cache.read(shuffled), strict=True):
            np.testing.assert_array_equal(one, other)
    assert len(segments_of(tmp_path / "bits")) == 4
    assert len(segments_of(tmp_path / "once")) == 1


def test_missing_names_each_key_once(tmp_path):
    cache = opened(tmp_path)
    assert cache.missing(["b", "a", "b"]).tolist() == [0, 1]
    cache.add(*batch(["a"], [2]))
    assert cache.missing(["b", "a", "b", "c"]).tolist() == [0, 3]
    assert cache.missing(["a"]).tolist() == []
    assert cache.missing([]).dtype == np.int64
    assert "a" in cache
    assert "b" not in cache
    assert 3 not in cache


def test_a_key_that_is_held_keeps_its_first_states(tmp_path):
    cache = opened(tmp_path)
    cache.add(*batch(["a", "b"], [2, 3]))
    cache.add(
        ["b", "c", "a"],
        np.concatenate([np.zeros((3, STATE_SIZE)), states_of("c", 2), np.zeros((1, STATE_SIZE))]),
        np.array([3, 2, 1]),
    )
    assert_holds(cache, ["a", "b", "c"], [2, 3, 2])
    assert len(cache) == 3
    cache.add(*batch(["c", "a"], [1, 1]))
    assert len(segments_of(tmp_path)) == 2


def test_size_is_said_beforehand(tmp_path):
    # by hand: 10 tokens x 384 floats x 2 bytes; x 1 byte, and 4 of a scale for every 32
    assert bytes_needed(10, 384, "float16") == 7_680
    assert bytes_needed(10, 384, "int8") == 4_320
    for dtype in DTYPES:
        cache = opened(tmp_path / dtype, dtype=dtype)
        cache.add(*batch(TEXTS, LENGTHS))
        (segment,) = segments_of(tmp_path / dtype)
        assert cache.n_bytes == segment.stat().st_size
        assert cache.n_bytes == bytes_needed(LENGTHS.sum(), STATE_SIZE, dtype) + 24 * len(TEXTS) + 8


# What rounding costs.


states_to_round = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-65504, 65504, width=32),
)


@settings(deadline=None)
@given(states_to_round, st.sampled_from([1, 31, 32, 33, 70]))
def test_int8_is_off_by_half_a_step_at_most(states, width):
    states = np.resize(states, (len(states), width))
    quantized, scales = quantize(states)
    assert quantized.dtype == np.int8
    assert scales.dtype == np.float32
    back = dequantize(quantized, scales).astype(np.float64)
    for group in range(scales.shape[1]):
        part = np.s_[:, 32 * group : 32 * group + 32]
        step = scales[:, group].astype(np.float64)
        assert (np.abs(back[part] - states[part]) <= step[:, None] * (0.5 + 2e-5)).all()
        # and the step is the finest that 255 even ones allow: the greatest of the values is 127 steps
        greatest = np.abs(states[part]).max(axis=1)
        np.testing.assert_allclose(step, np.maximum(greatest / 127, np.finfo(np.float32).tiny), rtol=1e-6)
    assert 32 * scales.shape[1] >= width > 32 * (scales.shape[1] - 1)


@settings(deadline=None, max_examples=30)
@given(states_to_round)
def test_float16_keeps_eleven_bits(tmp_path_factory, states):
    cache = opened(tmp_path_factory.mktemp("cache"), state_size=states.shape[1])
    cache.add(["a"], states, np.array([len(states)]))
    error = np.abs(cache.read(["a"])[0].astype(np.float64) - states)
    assert (error <= np.maximum(np.abs(states) * 2.0**-11, 2.0**-25)).all()


def test_int8_reads_what_quantize_kept(tmp_path):
    cache = opened(tmp_path, dtype="int8")
    keys, states, lengths = batch(TEXTS, LENGTHS)
    cache.add(keys, states, lengths)
    np.testing.assert_array_equal(opened(tmp_path, dtype="int8").read(keys)[0], dequantize(*quantize(states)))
    # by hand: the step is 254 / 127 = 2; 3 / 2 and 5 / 2 are rounded to the even neighbour
    quantized, scales = quantize(np.array([[254, -254, 3, 5, -1.5]], dtype=np.float32))
    assert scales.tolist() == [[2]]
    assert quantized.tolist() == [[127, -127, 2, 2, -1]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65505.0, -65536.0])
def test_states_beyond_float16_are_refused_by_key(tmp_path, dtype, value):
    keys, states, lengths = batch(["a", "b", "c"], [2, 0, 2])
    states[2, 5] = value  # the first token of "c"
    cache = opened(tmp_path, dtype=dtype)
    with pytest.raises(DataError, match=r"key at position 2 .*65504"):
        cache.add(keys, states, lengths)
    assert len(opened(tmp_path, dtype=dtype)) == 0
    states[2, 5] = 65504
    cache.add(keys, states, lengths)
    assert cache.read(["c"])[0][0, 5] == pytest.approx(65504)


@pytest.mark.parametrize(
    ("keys", "shape", "lengths", "message"),
    [
        (["a"], (2, STATE_SIZE + 1), [2], r"\(n_tokens, 8\)"),
        (["a"], (2 * STATE_SIZE,), [2], r"\(n_tokens, 8\)"),
        (["a", "b"], (2, STATE_SIZE), [2], "2 keys, 1 lengths"),
        (["a", "b"], (2, STATE_SIZE), [2, 1], "of sum 3 and 2 rows"),
        (["a", "b"], (2, STATE_SIZE), [3, -1], "none negative"),
        (["a", "a"], (2, STATE_SIZE), [1, 1], "keys repeat"),
    ],
)
def test_input_that_disagrees_is_refused(tmp_path, keys, shape, lengths, message):
    cache = opened(tmp_path)
    with pytest.raises(DataError, match=message):
        cache.add(keys, np.zeros(shape, dtype=np.float32), np.array(lengths))
    assert len(cache) == 0


def test_a_key_that_is_not_held_is_named(tmp_path):
    cache = three_segments(tmp_path)
    with pytest.raises(DataError, match="'blue cup' at position 1"):
        cache.read(["red cup", "blue cup"])


def test_unknown_dtype_and_file_for_a_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="'float32' is not kept"):
        opened(tmp_path, dtype="float32")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file is a file"):
        opened(tmp_path / "file")


def test_fingerprint_tells_parts_apart():
    # sha256 of 01 00 00 00 00 00 00 00 "a", by `printf '\1\0\0\0\0\0\0\0a' | sha256sum`
    assert fingerprint_of("a") == "ae6121c88ba555f64c3d812123eb799d128015541f850c5e9bf1d54c08ad8481"
    assert fingerprint_of("ab", "c") != fingerprint_of("a", "bc")
    assert fingerprint_of("a", "") != fingerprint_of("a")
    assert fingerprint_of("é") == fingerprint_of("é".encode())


# What is stale or damaged is dropped, said, and computed again.


@pytest.mark.parametrize(
    ("changed", "word"),
    [({"fingerprint": "0" * 64}, "fingerprint"), ({"state_size": 4}, "state_size"), ({"dtype": "int8"}, "dtype")],
)
def test_a_stale_cache_is_dropped(tmp_path, changed, word):
    three_segments(tmp_path)
    old = segments_of(tmp_path)
    cache = opened(tmp_path, **changed)
    assert len(cache) == 0
    assert len(cache.notes) == 1
    assert f"of another {word}: 3 segments" in cache.notes[0]
    assert not any(path.exists() for path in old)
    assert opened(tmp_path, **changed).notes == []
    assert len(opened(tmp_path).notes) == 0  # nothing was left to drop


def test_another_format_version_is_dropped(tmp_path, monkeypatch):
    three_segments(tmp_path)
    monkeypatch.setattr(state_cache, "FORMAT_VERSION", state_cache.FORMAT_VERSION + 1)
    assert "of another format_version: 3 segments" in opened(tmp_path).notes[0]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "its number of texts": lambda path: flip(path, 0),
    "a digest": lambda path: flip(path, 8),
    "a length": lambda path: flip(path, 8 + 2 * 16),
    "its first state": lambda path: flip(path, 8 + 2 * 24),
    "its last byte": lambda path: flip(path, -1),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 2 * STATE_SIZE),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + bytes(2 * STATE_SIZE)),
    "gone": Path.unlink,
    "another segment": lambda path: path.write_bytes(segments_of(path.parent)[0].read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_drops_its_segment_only(tmp_path, damage):
    three_segments(tmp_path)
    path = segments_of(tmp_path)[1]
    DAMAGES[damage](path)
    cache = opened(tmp_path)
    assert len(cache.notes) == 1
    assert path.name in cache.notes[0]
    assert ("cannot be read (No such file" if damage == "gone" else "is damaged") in cache.notes[0]
    assert cache.missing(TEXTS).tolist() == [2, 3]
    assert_holds(cache, TEXTS[:2] + TEXTS[4:], [*LENGTHS[:2], *LENGTHS[4:]])
    assert not path.exists()
    assert opened(tmp_path).notes == []  # said once
    cache.add(*batch(TEXTS[2:4], LENGTHS[2:4]))
    again = opened(tmp_path)
    assert again.notes == []
    assert_holds(again, TEXTS, LENGTHS)


def with_segments(segments):
    return lambda content: json.dumps({**json.loads(content), "segments": segments}).encode()


GARBAGE = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "bytes": lambda content: bytes(range(256)),
    "another kind": lambda content: b"[1, 2]",
    "null": lambda content: b"null",
    "no segments": lambda content: content.replace(b"segments", b"segmentz"),
    "a list": with_segments(["a"]),
    "no checksum": with_segments({"0" * 32 + ".states": None}),
    "a path": with_segments({"../precious": "0" * 64}),
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_for_a_manifest_drops_all(tmp_path, garbage):
    (tmp_path / "precious").touch()
    folder = tmp_path / "cache"
    three_segments(folder)
    (folder / "note.txt").touch()
    manifest = folder / MANIFEST
    manifest.write_bytes(GARBAGE[garbage](manifest.read_bytes()))
    cache = opened(folder)
    assert len(cache) == 0
    assert [note.partition(": ")[2] for note in cache.notes] == ["3 segments are dropped"]
    assert "damaged" in cache.notes[0]
    assert (tmp_path / "precious").exists()
    assert (folder / "note.txt").exists()
    assert not list(folder.glob("*.states"))
    cache.add(*batch(TEXTS, LENGTHS))
    assert opened(folder).notes == []
    assert_holds(opened(folder), TEXTS, LENGTHS)


def test_a_manifest_that_is_gone_drops_all_and_is_said(tmp_path):
    three_segments(tmp_path)
    (tmp_path / MANIFEST).unlink()
    cache = opened(tmp_path)
    assert len(cache) == 0
    assert "missing or damaged: 3 segments" in cache.notes[0]
    assert opened(tmp_path / "new").notes == []


def test_a_bit_flipped_anywhere_in_the_manifest_gives_no_wrong_states(tmp_path):
    n_held = []
    for position in range(0, 480, 5):
        folder = tmp_path / str(position)
        three_segments(folder)
        flip(folder / MANIFEST, position)
        cache = opened(folder)
        held = [i for i, text in enumerate(TEXTS) if text in cache]
        assert_holds(cache, [TEXTS[i] for i in held], LENGTHS[held])
        assert bool(cache.notes) == (len(held) < 6)
        n_held.append(len(held))
    # the name or the checksum of one segment, and all else
    assert set(n_held) == {4, 0}


# Compacting.


def test_compacting_keeps_states_bit_for_bit(tmp_path):
    for dtype in DTYPES:
        draw = np.random.default_rng(0)
        cache = opened(tmp_path / dtype, dtype=dtype)
        for i in range(5):
            cache.add([f"{i}a", f"{i}b"], draw.normal(size=(6, STATE_SIZE)).astype(np.float32), np.array([2, 4]))
        keys = [f"{i}{letter}" for letter in "ba" for i in range(5)]
        before, lengths = cache.read(keys)
        for _ in range(2):
            cache.compact()
            assert len(list((tmp_path / dtype).glob("*.states"))) == 1
            for after in (cache, opened(tmp_path / dtype, dtype=dtype)):
                np.testing.assert_array_equal(after.read(keys)[0], before)
                np.testing.assert_array_equal(after.read(keys)[1], lengths)
                assert len(after) == 10
                assert after.notes == []
            assert cache.n_bytes == bytes_needed(30, STATE_SIZE, dtype) + 24 * 10 + 8


def test_compacting_drops_what_is_not_kept(tmp_path):
    cache = three_segments(tmp_path)
    cache.compact(keep=["never seen", TEXTS[4], TEXTS[0]])
    for after in (cache, opened(tmp_path)):
        assert after.missing(TEXTS).tolist() == [1, 2, 3, 5]
        assert_holds(after, [TEXTS[4], TEXTS[0]], LENGTHS[[4, 0]])
    cache.compact(keep=[])
    assert len(cache) == len(opened(tmp_path)) == 0
    assert not list(tmp_path.glob("*.states"))
    cache.add(*batch(TEXTS, LENGTHS))
    assert_holds(opened(tmp_path), TEXTS, LENGTHS)


def test_compacting_does_not_copy_damage_that_came_after_opening(tmp_path):
    cache = three_segments(tmp_path)
    flip(segments_of(tmp_path)[1], -1)
    cache.compact()
    for after in (cache, opened(tmp_path)):
        assert after.missing(TEXTS).tolist() == [2, 3]
        assert_holds(after, TEXTS[:2] + TEXTS[4:], [*LENGTHS[:2], *LENGTHS[4:]])


FEW_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
os.fsync = lambda descriptor: None  # for speed
cache = opened()  # of 300 segments, which an earlier version left
assert groups_held(cache) == list(range(300))
other = opened()
for group in range(300, 500):
    add(cache if group % 3 else other, group)
    assert len(cache._listed) <= 65
assert groups_held(cache) == groups_held(opened()) == list(range(500))
assert groups_held(other) == list(range(499))  # it has not looked since
assert cache.notes == other.notes == []
"""


def test_more_segments_than_files_that_may_be_open(tmp_path, monkeypatch):
    """Two caches of one folder and 500 segments in a process that may open 256 files."""
    pytest.importorskip("resource")
    monkeypatch.setattr(state_cache, "MOST_SEGMENTS", 1_000)
    held: dict = {}
    exec(COMMON.replace("sys.argv[1]", repr(str(tmp_path))), held)
    cache = held["opened"]()
    for group in range(300):
        held["add"](cache, group)
    few = child(FEW_FILES, tmp_path)
    _, errors = few.communicate()
    assert few.returncode == 0, errors
    listed = segments_of(tmp_path)
    assert len(listed) <= 65
    assert sorted(path.name for path in listed) == sorted(path.name for path in tmp_path.glob("*.states"))


def test_joining_copies_no_damage_and_keeps_states_bit_for_bit(tmp_path, monkeypatch):
    for dtype in DTYPES:
        draw = np.random.default_rng(0)
        cache = opened(tmp_path / dtype, dtype=dtype)
        for i in range(4):
            cache.add([f"{i}a", f"{i}b"], draw.normal(size=(6, STATE_SIZE)).astype(np.float32), np.array([2, 4]))
        keys = [f"{i}{letter}" for letter in "ba" for i in (0, 2, 3)]
        before, _ = cache.read(keys)
        flip(segments_of(tmp_path / dtype)[1], -1)  # after it was mapped
        with monkeypatch.context() as patched:
            patched.setattr(state_cache, "MOST_SEGMENTS", 2)
            cache.add(["new"], np.ones((1, STATE_SIZE), dtype=np.float32), np.array([1]))
        assert ["is damaged" in note for note in cache.notes] == [True]
        assert len(segments_of(tmp_path / dtype)) == 3  # the largest, those joined, the new one
        again = opened(tmp_path / dtype, dtype=dtype)
        assert again.notes == []
        assert again.missing([*keys, "new", "1a", "1b"]).tolist() == [7, 8]
        for after in (cache, again):
            np.testing.assert_array_equal(after.read(keys)[0], before)


def test_every_cache_of_a_folder_is_emptied_without_its_layers(tmp_path, monkeypatch):
    gone = states_of(state_key("of the user"), 2).astype("<f2").tobytes()
    for number, dtype in enumerate(DTYPES):
        cache = opened(tmp_path / f"states-{number}", dtype=dtype, fingerprint=str(number))
        cache.add(*batch([state_key(text) for text in ("of the user", f"another {number}", "half \ud83d")], [2, 3, 1]))
    opened(tmp_path / "states-2", fingerprint="2").add(*batch([state_key("of the user")], [4]))
    (tmp_path / "states-2" / MANIFEST).write_text("{")
    (tmp_path / "fine-tuning").mkdir()
    assert any(gone in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    with monkeypatch.context() as patched:  # gigabytes are not read to be thrown away
        patched.delattr(hashlib, "file_digest")
        assert remove_states(tmp_path) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fine-tuning", "states-0", "states-1"]
    for number, dtype in enumerate(DTYPES):
        assert len(opened(tmp_path / f"states-{number}", dtype=dtype, fingerprint=str(number))) == 0
    assert not any(gone in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert remove_states(tmp_path / "nowhere") == 0


# Several at once.


def test_two_caches_on_one_folder_keep_each_others_segments(tmp_path):
    one, other = opened(tmp_path), opened(tmp_path)
    one.add(*batch(TEXTS[:2], LENGTHS[:2]))
    other.add(*batch(TEXTS[1:4], LENGTHS[1:4]))
    assert_holds(other, TEXTS[:4], LENGTHS[:4])
    one.add(*batch(TEXTS[4:], LENGTHS[4:]))
    assert_holds(opened(tmp_path), TEXTS, LENGTHS)
    assert len(segments_of(tmp_path)) == 3
    # each text is there once, though two caches were given the second
    assert one.n_bytes == bytes_needed(LENGTHS.sum(), STATE_SIZE, "float16") + 24 * 6 + 3 * 8
    other.compact(keep=TEXTS[:1])
    assert_holds(one, TEXTS, LENGTHS)  # what another removed stays readable
    one.add(*batch(["new"], [3]))
    assert sorted(text for text in [*TEXTS, "new"] if text in opened(tmp_path)) == ["new", "red cup"]
    assert one.notes == other.notes == []


COMMON = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
from llm_rerank.models.cross_encoder import state_cache
from llm_rerank.models.cross_encoder.state_cache import StateCache

folder = Path(sys.argv[1])

def opened():
    return StateCache(folder, fingerprint="f" * 64, state_size=8)

def texts_of(group, n_texts=4):
    return [f"{group} {i}" for i in range(n_texts)]

def states_of(texts, length=3):  # each text's states are its group and its number
    return np.array([[*map(int, text.split()), *[7] * 6] for text in texts for _ in range(length)], dtype=np.float32)

def add(cache, group):
    texts = texts_of(group)
    cache.add(texts, states_of(texts), np.full(len(texts), 3))

def groups_held(cache):
    groups = [group for group in range(500) if f"{group} 0" in cache]
    texts = [text for group in groups for text in texts_of(group)]
    assert len(texts) == len(cache)
    assert (cache.read(texts)[0] == states_of(texts)).all()
    return groups
"""

WRITE = """
first = int(sys.argv[2])
cache = opened()
print("ready", flush=True)
sys.stdin.readline()
for group in range(first, first + 15):
    add(cache, group)
    if group % 5 == 2:
        cache.compact()
assert cache.notes == [], cache.notes
"""


def child(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", COMMON + code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.name == "nt", reason="without file locks the last writer wins")
def test_processes_that_write_at_once_lose_nothing(tmp_path):
    writers = [child(WRITE, tmp_path, first) for first in (0, 100, 200)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors
    held: dict = {}
    exec(COMMON.replace("sys.argv[1]", repr(str(tmp_path))), held)
    cache = held["opened"]()
    assert cache.notes == []
    assert held["groups_held"](cache) == [*range(15), *range(100, 115), *range(200, 215)]


# Death.

DIE_AT_EVERY_LINE = """
os.fsync = lambda descriptor: None  # for speed; the death of a process loses nothing that it wrote
method = sys.argv[2]

def die_at(n_lines):  # before the n-th line that was not run before
    seen = set()

    def trace(frame, event, argument):
        file = os.path.basename(frame.f_code.co_filename)
        if file not in ("state_cache.py", "state_segments.py", "storage.py") and frame.f_code.co_name != "write_text":
            return None
        seen.add((file, frame.f_lineno))
        if len(seen) == n_lines:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace

cache = opened()
for group in range(3):
    add(cache, group)
n_lines, died, leftovers = 0, True, 0
while died:
    n_lines += 1
    pid = os.fork()
    if not pid:
        cache = opened()
        if method == "join":
            state_cache.MOST_SEGMENTS = 2  # so that the next call of add joins
        sys.settrace(die_at(n_lines))
        if method != "compact":
            add(cache, 100)
        else:
            cache.compact(keep=texts_of(1) + texts_of(2))
        os._exit(0)
    died = os.waitpid(pid, 0)[1] != 0
    leftovers += len(list(folder.glob(".unfinished-*")))
    cache = opened()
    assert cache.notes == [], cache.notes
    assert not list(folder.glob(".unfinished-*"))
    held = groups_held(cache)
    print(n_lines, *held)
    listed = json.loads((folder / "manifest.states.json").read_bytes())["segments"]
    assert {path.name for path in folder.glob("*.states")} == set(listed)
    if held != [0, 1, 2] or len(listed) != 3:  # the next death must find the old state to lose
        cache.compact(keep=[])
        for group in range(3):
            add(cache, group)
print("leftovers", leftovers)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize(("method", "new"), [("add", [0, 1, 2, 100]), ("join", [0, 1, 2, 100]), ("compact", [1, 2])])
def test_death_at_any_line_leaves_the_earlier_keys_or_all(tmp_path, method, new):
    dying = child(DIE_AT_EVERY_LINE, tmp_path, method)
    output, errors = dying.communicate()
    assert dying.returncode == 0, output[-300:] + errors
    *lines, leftovers = output.splitlines()
    held = [list(map(int, line.split()[1:])) for line in lines]
    # one turning point: up to it the old keys, from it on the new
    assert held == sorted(held, key=lambda groups: groups == new)
    assert held.count([0, 1, 2]) > 30
    assert held.count(new) > 1
    assert held.count([0, 1, 2]) + held.count(new) == len(held)
    assert int(leftovers.split()[1]) > 3, "no death hit a write half-way: the test proves nothing"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not tell what a descriptor is of")
def test_each_file_is_on_disk_before_it_is_named(tmp_path, monkeypatch):
    calls = []
    cache = opened(tmp_path)

    def note_fsync(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        size = "empty" if path.is_file() and not path.stat().st_size else "whole"
        calls.append(f"fsync {size} {'folder' if path == tmp_path else path.suffix}")

    replace = os.replace

    def note_replace(source, target):
        calls.append(f"name {Path(target).suffix}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    cache.add(*batch(TEXTS, LENGTHS))
    written = [f"fsync whole {kind}" for kind in (".states", "folder", ".json", "folder")]
    assert calls == [written[0], "name .states", written[1], written[2], "name .json", written[3]]


# Memory.

READ_FEW = """
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

cache = StateCache(folder, fingerprint="f" * 64, state_size=384)
opened_at = resident()
for i in range(0, 10_000, 1_000):
    states, lengths = cache.read([str(i)])
    assert (states == i % 2048).all() and lengths.tolist() == [26], i
print(opened_at, resident(), cache.n_bytes)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell a process's memory there")
def test_reading_a_few_keys_leaves_the_rest_on_disk(tmp_path):
    cache = StateCache(tmp_path, fingerprint="f" * 64, state_size=384)
    keys = [str(i) for i in range(10_000)]
    for first in range(0, 10_000, 2_500):
        numbers = np.arange(first, first + 2_500, dtype=np.float32) % 2048
        states = np.broadcast_to(np.repeat(numbers, 26)[:, None], (2_500 * 26, 384))
        cache.add(keys[first : first + 2_500], states, np.full(2_500, 26))
    reading = child(READ_FEW, tmp_path)
    output, errors = reading.communicate()
    assert reading.returncode == 0, errors
    opened_at, after, n_bytes = map(int, output.split())
    assert n_bytes > 190e6
    assert after - opened_at < 20e6
    assert opened_at < 150e6, "opening read the states into memory"
