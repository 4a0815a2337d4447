import copy
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

from llm_rerank.models.semantic import cache
from llm_rerank.models.semantic.cache import CachedEncoder
from llm_rerank.models.semantic.encoder import SentenceEncoder, encoder_reference
from llm_rerank.types import Encoder, StorageError


class CountingEncoder:
    """Remembers what it was asked; a text's vector says its length."""

    embedding_size = 3

    def __init__(self, fingerprint="a" * 64):
        self.fingerprint = fingerprint
        self.asked = []

    def encode(self, inputs):
        self.asked.append(list(inputs))
        return np.array([[len(text), 1, 0] for text in inputs], dtype=np.float32).reshape(-1, 3)


def test_cache_encodes_each_text_once():
    inner = CountingEncoder()
    cached = CachedEncoder(inner)
    assert isinstance(cached, Encoder)
    assert (cached.embedding_size, cached.fingerprint) == (3, inner.fingerprint)
    first = cached.encode(["a", "bb", "a"])
    second = cached.encode(["ccc", "bb"])
    assert inner.asked == [["a", "bb"], ["ccc"]]
    assert first[:, 0].tolist() == [1, 2, 1]
    assert second[:, 0].tolist() == [3, 2]
    assert cached.encode([]).shape == (0, 3)
    for n in range(200):  # grows
        cached.encode(["x" * n])
    assert cached.encode(["x" * n for n in range(200)])[:, 0].tolist() == list(range(200))


def test_cache_hands_out_copies():
    cached = CachedEncoder(CountingEncoder())
    cached.encode(["a"])[:] = 7
    assert cached.encode(["a"]).tolist() == [[1, 1, 0]]


def test_cache_offers_what_the_encoder_offers():
    encoder = SentenceEncoder()
    cached = CachedEncoder(encoder)
    assert cached.count_tokens(["hello world"]).tolist() == [4]
    assert encoder_reference(cached) == encoder.reference
    assert not hasattr(CachedEncoder(CountingEncoder()), "count_tokens")
    assert copy.copy(cached).fingerprint == encoder.fingerprint


def test_a_copy_has_rows_of_its_own():
    cached = CachedEncoder(CountingEncoder())
    cached.encode(["a", "bb"])
    for copied in (copy.copy(cached), copy.deepcopy(cached), pickle.loads(pickle.dumps(cached))):
        copied.encode(["ccc"])
        cached.encode(["dddd"])
        assert copied.encode(["a", "bb", "ccc"])[:, 0].tolist() == [1, 2, 3]
        assert cached.encode(["a", "bb", "dddd"])[:, 0].tolist() == [1, 2, 4]
        assert cached.knows(["ccc"]).tolist() == [False]
        assert (len(cached), len(copied)) == (3, 3)
        cached.clear()
        cached.encode(["a", "bb"])


def test_threads_that_encode_the_same_new_text_do_not_shift_rows(tmp_path):
    class Slow(CountingEncoder):
        def encode(self, inputs):
            vectors = super().encode(inputs)
            time.sleep(0.05)  # the others come meanwhile
            return vectors

    inner = Slow()
    cached = CachedEncoder(inner, tmp_path)
    start = threading.Barrier(4)

    def encode():
        start.wait()
        cached.encode(["a"])

    threads = [threading.Thread(target=encode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inner.asked, len(cached)) == ([["a"]], 1)
    assert cached.encode(["bb"]).tolist() == [[2, 1, 0]]
    assert cached.encode(["a"]).tolist() == [[1, 1, 0]], "a later text must not take an earlier one's row"
    cached.flush()
    assert CachedEncoder(CountingEncoder(), tmp_path).encode(["a", "bb"])[:, 0].tolist() == [1, 2]


def test_cache_on_disk_serves_the_next_process(tmp_path):
    CachedEncoder(CountingEncoder(), tmp_path / "cache").encode(["a", "bb"])
    inner = CountingEncoder()
    assert CachedEncoder(inner, tmp_path / "cache").encode(["bb", "a"])[:, 0].tolist() == [2, 1]
    assert inner.asked == []
    other = CountingEncoder("b" * 64)
    CachedEncoder(other, tmp_path / "cache").encode(["a"])
    assert other.asked == [["a"]], "another encoder's vectors are not used"


def test_cache_writes_small_additions_when_they_amount_to_something(tmp_path):
    cached = CachedEncoder(CountingEncoder(), tmp_path)
    cached.encode(["x" * n for n in range(100)])

    def on_disk():
        return len(CachedEncoder(CountingEncoder(), tmp_path))

    cached.encode(["y"])
    assert on_disk() == 100
    cached.flush()
    assert on_disk() == 101
    cached.encode(["y" * n for n in range(2, 9)])  # 7 > 5 % of 101
    assert on_disk() == 108


def flip_one_byte(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-5])


def rename_from_another(path):
    CachedEncoder(CountingEncoder("b" * 64), path.parent).encode(["bb", "a"])
    os.replace(path.parent / f"{'b' * 32}.safetensors", path)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_one_byte, cut_off, rename_from_another, empty])
def test_damaged_cache_is_found_and_rebuilt(tmp_path, damage):
    path = CachedEncoder(CountingEncoder(), tmp_path).path
    CachedEncoder(CountingEncoder(), tmp_path).encode(["a", "bb"])
    damage(path)
    inner = CountingEncoder()
    with pytest.warns(UserWarning, match=path.name):
        cached = CachedEncoder(inner, tmp_path)
    assert cached.encode(["bb", "a"]).tolist() == [[2, 1, 0], [1, 1, 0]]
    assert inner.asked == [["bb", "a"]]
    after = CountingEncoder()
    CachedEncoder(after, tmp_path).encode(["a", "bb"])
    assert after.asked == []


def test_no_damaged_byte_is_ever_used(tmp_path):
    first = CachedEncoder(CountingEncoder(), tmp_path)
    expected = first.encode(["a", "bb"])
    path, sound = first.path, first.path.read_bytes()
    n_found = 0
    for place in range(len(sound)):
        for mask in (0x01, 0x0F, 0x80):  # 0x0F makes I32 of F32 in the header: the same bytes, other numbers
            path.write_bytes(sound[:place] + bytes([sound[place] ^ mask]) + sound[place + 1 :])
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                cached = CachedEncoder(CountingEncoder(), tmp_path)
            n_found += bool(caught)
            assert len(cached) == (0 if caught else 2), (place, mask)
            np.testing.assert_array_equal(cached.encode(["a", "bb"]), expected)
            path.write_bytes(sound)
    assert n_found > 2.9 * len(sound)  # a blank that pads the header may change its kind


DIE_AT_EVERY_LINE = """
import os, sys
from pathlib import Path

import numpy as np

from llm_rerank.models.semantic.cache import CachedEncoder

class Length:
    embedding_size, fingerprint = 1, "c" * 64

    def encode(self, texts):
        return np.array([[len(text)] for text in texts], dtype=np.float32)

def die_at(line):
    left = line
    def trace(frame, event, argument):
        nonlocal left
        if event == "line":
            left -= 1
            if left < 0:
                os._exit(1)
        return trace
    return trace

folder = Path(sys.argv[1])
cached = CachedEncoder(Length(), folder)
cached.encode(["a"])
before = cached.path.read_bytes()
line, died = 0, True
while died:
    child = os.fork()
    if not child:
        sys.settrace(die_at(line))
        cached.encode(["bb", "ccc"])
        os._exit(0)
    died = os.waitpid(child, 0)[1] != 0
    found = CachedEncoder(Length(), folder)  # a warning is an error here
    print(len(found))  # 1: the old file; 3: the new one; 0: lost
    assert found.encode(["a", "bb", "ccc"]).tolist() == [[1.0], [2.0], [3.0]]
    cached.path.write_bytes(before)
    line += 1
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_death_at_any_line_leaves_the_old_file_or_the_new(tmp_path):
    dying = subprocess.run(
        [sys.executable, "-W", "error", "-c", DIE_AT_EVERY_LINE, str(tmp_path)], capture_output=True, text=True
    )
    assert dying.returncode == 0, dying.stdout[-200:] + dying.stderr
    n_texts = list(map(int, dying.stdout.split()))
    assert set(n_texts[:-1]) <= {1, 3}
    assert n_texts == sorted(n_texts)
    assert n_texts.count(1) > 50
    assert n_texts[-1] == 3


def test_long_work_is_written_on_the_way(tmp_path, monkeypatch):
    class Dying(CountingEncoder):
        def encode(self, inputs):
            if len(self.asked) == 2:
                raise KeyboardInterrupt
            return super().encode(inputs)

    monkeypatch.setattr(cache, "TEXTS_AT_ONCE", 10)
    with pytest.raises(KeyboardInterrupt):
        CachedEncoder(Dying(), tmp_path).encode(["x" * n for n in range(35)])
    assert len(CachedEncoder(CountingEncoder(), tmp_path)) == 20
    inner = CountingEncoder()
    lengths = CachedEncoder(inner, tmp_path).encode(["x" * n for n in range(35)])[:, 0]
    assert lengths.tolist() == list(range(35))
    assert [len(texts) for texts in inner.asked] == [10, 5]


def test_a_folder_that_cannot_be_made_is_named_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cache folder .*file.* cannot be made"):
        CachedEncoder(CountingEncoder(), tmp_path / "file")


def test_a_file_that_cannot_be_written_costs_no_work(tmp_path):
    cached = CachedEncoder(CountingEncoder(), tmp_path)
    (cached.path / "in the way").mkdir(parents=True)
    with pytest.warns(UserWarning, match="cannot be written .* in memory only") as caught:
        assert cached.encode(["a", "bb"])[:, 0].tolist() == [1, 2]
        assert cached.encode(["ccc", "a"])[:, 0].tolist() == [3, 1]
    assert len(caught) == 1


def test_cleared_vectors_are_nowhere_and_come_again(tmp_path):
    inner = CountingEncoder()
    cached, other = CachedEncoder(inner, tmp_path), CachedEncoder(CountingEncoder("b" * 64), tmp_path)
    for encoder in (cached, other):
        encoder.encode(["a", "bb"])
        encoder.flush()
    cached.clear()
    assert (len(cached), cached.path.exists(), other.path.exists()) == (0, False, True)
    cached.encode(["bb"])
    assert inner.asked[-1] == ["bb"]
    cached.flush()
    assert len(CachedEncoder(CountingEncoder(), tmp_path)) == 1
    (tmp_path / "notes.safetensors").write_bytes(b"not ours")
    assert cache.remove_vectors(tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["notes.safetensors"]
    assert cache.remove_vectors(tmp_path / "missing") == 0
