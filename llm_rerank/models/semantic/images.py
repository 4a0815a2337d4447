"""Files of pictures to vectors, by a model of pictures: what goes into the items' column ``image_vector``.

Nothing is fetched: a shop's pictures are files here. What is done with the vectors is said in ``media.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_rerank.data.values import is_missing
from llm_rerank.models.semantic.weights import load_network, settled
from llm_rerank.models.unit_length import unit_rows
from llm_rerank.types import DataError, FloatArray

if TYPE_CHECKING:
    from PIL.Image import Image

ADDRESSES = ("http://", "https://", "ftp://", "data:")


def encode_images(paths: Sequence[Any], model: str, *, device: str = "auto", batch_size: int = 32) -> FloatArray:
    """Encode pictures, each file once.

        items["image_vector"] = list(encode_images(items["image"], "clip"))

    paths: files (str or Path); None, NaN and "" where an item has no picture. model: folder or hub name of a model of
    pictures that sentence-transformers reads, such as CLIP, in safetensors. device: "auto" takes cuda, mps or cpu.
    Returns float32, shape (n_paths, size), unit length; zero where there is no picture, which as a vector is none.
    Files that are missing or damaged, and addresses, which are not fetched, are counted in one warning.
    Raises DataError where pillow is not installed, a path is no text, or the model reads no pictures; StorageError
    where the model cannot be read.
    """
    from tqdm.auto import tqdm

    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; it must be at least 1")
    rows: dict[str, int] = {}
    row_of_path = np.array([rows.setdefault(name, len(rows)) for name in map(_name, paths)], dtype=np.int64)
    names = list(rows)
    network, size = _network_of_pictures(model, device)
    vectors = np.zeros((len(names), size), dtype=np.float32)
    unread: dict[str, str] = {}
    filled = [row for row, name in enumerate(names) if name]
    with tqdm(total=len(filled), desc="encoding images", unit="image", disable=None) as progress:
        for start in range(0, len(filled), batch_size):
            batch = filled[start : start + batch_size]
            pictures = {row: picture for row in batch if (picture := _opened(names[row], unread)) is not None}
            if pictures:
                vectors[list(pictures)] = _encoded(network, list(pictures.values()))
            progress.update(len(batch))
    if unread:
        name, why = next(iter(unread.items()))
        warnings.warn(
            f"{len(unread):,} of {len(filled):,} images give no vector (first: {name!r}: {why}); the items with them "
            "are ranked by everything else",
            stacklevel=2,
        )
    return vectors[row_of_path]


def _name(path: Any) -> str:
    if is_missing(path):
        return ""
    if not isinstance(path, str | Path):
        raise DataError(
            f"paths hold {path!r} of type {type(path).__name__}; give names of files, None where there is no picture"
        )
    return str(path).strip()


def _network_of_pictures(model: str, device: str) -> tuple[Any, int]:
    """Load a model, and find how many numbers it makes of a picture by giving it one."""
    try:
        from PIL import Image
    except ImportError:
        raise DataError("pillow is not installed; run: pip install 'llm-rerank[images]'") from None
    network = load_network(str(model), settled(device, "float32")[0])
    try:
        return network, _encoded(network, [Image.new("RGB", (64, 64), "gray")]).shape[1]
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # as versions of the library have it
        raise DataError(
            f"model {model!r} reads no pictures ({str(error).splitlines()[0][:120]}); name one that does, such as CLIP"
        ) from error


def _encoded(network: Any, pictures: list[Image]) -> FloatArray:
    vectors = network.encode(pictures, batch_size=len(pictures), show_progress_bar=False, convert_to_numpy=True)
    return unit_rows(vectors)


def _opened(name: str, unread: dict[str, str]) -> Image | None:
    """Read a file's picture as it is to be looked at, in colours; what goes wrong is noted under its name."""
    from PIL import Image, ImageOps

    if name.lower().startswith(ADDRESSES):
        unread[name] = "an address, and nothing is fetched: download it and give the file"
        return None
    try:
        with Image.open(name) as picture:
            upright = ImageOps.exif_transpose(picture)  # cameras turn pictures by a note beside them
            return upright.convert("RGB")
    except FileNotFoundError:
        unread[name] = "there is no such file"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        unread[name] = str(error)[:120]
    return None
