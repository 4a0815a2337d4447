"""Pictures to vectors, by a real CLIP of one small layer with random weights."""

import json
import sys
import warnings

import numpy as np
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.models.semantic.images import encode_images
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.types import DataError, StorageError
from tests.shops import make_vector_shop
from tests.tiny_media import save_tiny_clip

Image = pytest.importorskip("PIL.Image")
SIZE = 12


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Folder of the model, as transformers writes it."""
    folder = tmp_path_factory.mktemp("clip")
    save_tiny_clip(folder, SIZE)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "clip"
    return str(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("one", "two", "three"):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes((folder / "one.png").read_bytes()[:200])
    (folder / "words.png").write_text("no picture")
    return folder


def quietly(*arguments, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return encode_images(*arguments, **settings)


def test_vectors_are_the_models_own(clip, pictures):
    from sentence_transformers import SentenceTransformer

    paths = [pictures / "one.png", str(pictures / "two.png"), pictures / "three.png"]
    vectors = quietly(paths, clip, device="cpu")
    assert vectors.dtype == np.float32 and vectors.shape == (3, SIZE)
    opened = [Image.open(path).convert("RGB") for path in paths]
    expected = SentenceTransformer(clip, device="cpu").encode(opened)
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(quietly(paths, clip, device="cpu", batch_size=1), vectors, atol=1e-5)


def test_each_row_is_its_own_picture_and_no_picture_is_zero(clip, pictures):
    one, two = pictures / "one.png", pictures / "two.png"
    vectors = quietly([two, None, one, "", float("nan"), two], clip, device="cpu")
    alone = quietly([one, two], clip, device="cpu")
    np.testing.assert_allclose(vectors[[2, 0, 5]], alone[[0, 1, 1]], atol=1e-5)
    assert np.linalg.norm(alone[0] - alone[1]) > 1e-3
    np.testing.assert_array_equal(vectors[[1, 3, 4]], np.zeros((3, SIZE)))
    assert quietly([], clip, device="cpu").shape == (0, SIZE)


def test_what_cannot_be_read_is_counted_and_the_first_named(clip, pictures):
    paths = ["https://shop.example/1.jpg", pictures / "gone.png", pictures / "broken.png", pictures / "words.png"]
    paths += [pictures / "one.png", None]
    with pytest.warns(UserWarning, match=r"4 of 5 images .*first: 'https://shop.example/1.jpg': .*nothing is fetched"):
        vectors = encode_images(paths, clip, device="cpu")
    assert vectors.any(axis=1).tolist() == [False] * 4 + [True, False]
    for path, why in (
        (paths[1], "there is no such file"),
        (paths[2], "truncated|broken"),
        (paths[3], "cannot identify"),
    ):
        with pytest.warns(UserWarning, match=f"1 of 1 images give no vector .*{why}"):
            encode_images([path], clip, device="cpu")


def test_pictures_of_any_kind_are_looked_at_upright_and_in_colours(clip, pictures, tmp_path):
    picture = Image.open(pictures / "one.png")
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    note = turned.getexif()
    note[0x0112] = 6  # to be turned clockwise for looking at
    turned.save(tmp_path / "turned.png", exif=note)
    picture.convert("RGBA").save(tmp_path / "glass.png")
    grey = picture.convert("L")
    grey.save(tmp_path / "grey.png")
    grey.convert("RGB").save(tmp_path / "grey_in_colours.png")
    names = ["turned.png", "glass.png", "grey.png", "grey_in_colours.png"]
    vectors = quietly([pictures / "one.png", *(tmp_path / name for name in names)], clip, device="cpu")
    np.testing.assert_allclose(vectors[1:3], vectors[[0, 0]], atol=1e-5)
    np.testing.assert_allclose(vectors[3], vectors[4], atol=1e-5)


def test_a_fit_reads_them_from_the_column(clip, pictures):
    events, items = make_vector_shop(n_users=60, n_items=60)
    names = [str(pictures / f"{('one', 'two', 'three')[row % 3]}.png") if row % 4 else None for row in range(60)]
    items = items.drop(columns="image_vector").assign(image=names)
    items["image_vector"] = list(encode_images(items["image"], clip, device="cpu"))
    config = RerankerConfig(encoder=None, sequence="off", refit=False, vectors="always")
    reranker = Reranker(config, verbose=False).fit(events, items)
    found = reranker.saved.fitted.items.vectors["image_vector"]
    assert found.shape == (60, SIZE) and found.any(axis=1).tolist() == [row % 4 > 0 for row in range(60)]
    assert "image_vector" in [component.name for component in reranker.saved.fitted.components]


def test_errors(clip, pictures, monkeypatch):
    with pytest.raises(DataError, match="'default' reads no pictures .* name one that does, such as CLIP"):
        encode_images([pictures / "one.png"], "default", device="cpu")
    with pytest.raises(StorageError, match="does not exist"):
        encode_images([pictures / "one.png"], "./no/such/folder", device="cpu")
    with pytest.raises(DataError, match="paths hold 7 of type int; give names of files"):
        encode_images([7], clip, device="cpu")
    with pytest.raises(DataError, match="batch_size is 0"):
        encode_images([], clip, batch_size=0)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"pillow is not installed; run: pip install 'llm-rerank\[images\]'"):
        encode_images([pictures / "one.png"], clip, device="cpu")
