"""Before the fit: the encoder with its memory on disk, and what the plan says of both."""

import json
import re

import numpy as np
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.models.semantic.cache import CachedEncoder
from llm_rerank.models.semantic.encoder import SentenceEncoder
from llm_rerank.recommendation.planning import make_encoder
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.types import DataError
from tests.shops import make_shop


@pytest.fixture(scope="module")
def shop():
    return make_shop(n_users=150)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vectors")


@pytest.fixture(scope="module")
def first(shop, folder) -> Reranker:
    config = RerankerConfig(cache_folder=str(folder), candidates_per_source=20)
    return Reranker(config, verbose=False).fit(*shop)


def semantic(reranker):
    return next(component.scorer for component in reranker.components if component.name == "semantic")


def on_disk(folder) -> CachedEncoder:
    return CachedEncoder(SentenceEncoder(), folder)


def test_a_fit_leaves_the_vectors_of_every_text_it_read(first, folder, shop):
    kept = on_disk(folder)
    before = len(kept)
    reviews = [review for review in shop[0]["review"].unique() if review]
    kept.encode(reviews)
    assert len(kept) == before  # every review was there
    assert before == len(semantic(first).encoder) > len(shop[1])  # and the texts of the last items read


def test_the_next_fit_encodes_nothing_again_and_decides_the_same(first, folder, shop):
    (path,) = folder.glob("*.safetensors")
    before = path.read_bytes()
    n_vectors = len(on_disk(folder))
    again = Reranker(first.config, verbose=False).fit(*shop)
    assert path.read_bytes() == before
    assert len(semantic(again).encoder) == n_vectors
    users = ["u0", "u1", "u2"]
    np.testing.assert_array_equal(again.recommend(users)["score"], first.recommend(users)["score"])
    said = again.report().values["lines"]
    assert f"plan: {n_vectors:,} vectors of earlier fits are in the cache folder; the same texts take no time" in said


def test_vectors_are_taken_from_the_folder(folder, first, shop, tmp_path):
    """Vectors of another's making, under this encoder's fingerprint, decide what the reviews seem to say."""

    class Constant:
        embedding_size, fingerprint = 384, SentenceEncoder().fingerprint

        def encode(self, inputs):
            return np.full((len(inputs), 384), 384**-0.5, dtype=np.float32)

    events, items = shop
    reviews = [review for review in events["review"].unique() if review]
    CachedEncoder(Constant(), tmp_path).encode(reviews)
    told = Reranker(RerankerConfig(cache_folder=str(tmp_path), refit=False), verbose=False).fit(events, items)
    # all reviews are one vector, so one sentiment; with the encoder's own vectors they differ
    assert len(np.unique(sentiments(told))) == 1
    assert len(np.unique(sentiments(first))) > 1


def sentiments(reranker):
    values = reranker._data().sentiment
    return values[~np.isnan(values)].round(4)


def test_nothing_is_kept_on_disk_unless_asked():
    assert make_encoder(RerankerConfig()).path is None
    assert make_encoder(RerankerConfig(encoder=None)) is None


def test_the_plan_names_the_encoder_in_one_line(first):
    said = [line for line in first.report().values["lines"] if line.startswith("plan: encoder")]
    assert len(said) == 1
    assert re.fullmatch(r"plan: encoder 'default': 384 numbers a text of at most 128 tokens, \w+ on \w+.*", said[0])


def test_a_saved_model_does_not_name_the_folder(first, folder, tmp_path):
    first.save(tmp_path / "model")
    content = next(path for path in (tmp_path / "model").iterdir() if path.is_dir())
    assert json.loads((content / "config.json").read_text())["config"]["cache_folder"] is None
    for path in content.rglob("*.json"):
        assert str(folder) not in path.read_text()
    assert Reranker.load(tmp_path / "model", verbose=False).config.cache_folder is None


@pytest.mark.parametrize("value", ["", "  ", 3])
def test_a_folder_that_is_no_name_is_refused(value):
    with pytest.raises(DataError, match="cache_folder is .* folder's name"):
        RerankerConfig(cache_folder=value)
