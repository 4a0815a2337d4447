"""Files that survive a crash: arrays, strings, frames and JSON. Folders of them are in ``folders.py``.

Nothing here is executed on reading: no pickle, ever. What the files mean is the business of those who write them.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_rerank.types import ObjectArray, StorageError

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix

UNFINISHED = ".unfinished-"
"""Prefix of what a killed write may leave behind."""

_METADATA_KEY = "metadata"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a path to write to, in the same folder and with the same suffix, that becomes ``path`` at the end.

    Where the body raises, nothing is left and an earlier file at ``path`` is untouched.
    """
    path = Path(os.path.realpath(path))  # so that a link stays a link and its target is replaced
    unfinished = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}{''.join(path.suffixes[-2:])}")
    try:
        yield unfinished
        flush_to_disk(unfinished)
        os.replace(unfinished, path)
        flush_to_disk(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, obj: Any) -> None:
    """Write plain values and numpy scalars as JSON, atomically; NaN stays NaN, as Python's json has it."""
    with atomic_path(path) as unfinished:
        unfinished.write_text(_to_json(obj, path, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read what ``write_json`` wrote.

    Raises StorageError where the file is missing, closed to this user, or no JSON.
    """
    with _reading(path, ValueError):
        return json.loads(path.read_bytes())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any] | None = None) -> None:
    """Write named arrays of numbers or booleans, and a mapping of JSON values, to one safetensors file, atomically.

    Raises StorageError for an array of objects or strings (``write_strings`` takes those).
    """
    from safetensors.numpy import save_file

    plain = {}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise StorageError(f"array {name!r} for {path} has dtype {array.dtype}; only numbers and booleans are kept")
        # safetensors writes the raw buffer: it must be contiguous and little-endian
        plain[name] = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    # one key only: safetensors writes several in random order, and equal content would get another hash
    header = {_METADATA_KEY: _to_json(dict(metadata or {}), path)}
    with atomic_path(path) as unfinished:
        unfinished.touch()
        mode = unfinished.stat().st_mode & 0o777  # of any new file here
        save_file(plain, unfinished, metadata=header)
        unfinished.chmod(mode)  # safetensors lets their owner alone read its files


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays and the metadata that ``write_arrays`` wrote.

    Raises StorageError where the file is missing, closed to this user, damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    with _reading(path, SafetensorError, KeyError, ValueError):
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            # get_tensor copies out of the memory map: the arrays outlive the file
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return arrays, json.loads(header[_METADATA_KEY])


def write_strings(path: Path, values: Sequence[str] | ObjectArray) -> None:
    """Write strings to one Parquet file, atomically and without loss: half emoji of broken exports included."""
    import pyarrow as pa
    from pyarrow import parquet

    # binary: Arrow's own strings refuse lone surrogates, and a save must not fail on one bad title
    encoded = pa.array([value.encode("utf-8", "surrogatepass") for value in values], type=pa.large_binary())
    with atomic_path(path) as unfinished:
        parquet.write_table(pa.table({"text": encoded}), unfinished, compression="zstd")


def read_strings(path: Path) -> ObjectArray:
    """Read what ``write_strings`` wrote: object array of str, shape (n_values,).

    Raises StorageError where the file is missing, closed to this user, damaged or of another kind.
    """
    column = _read_parquet(path)
    if column.column_names != ["text"]:
        raise StorageError(f"{path} has columns {column.column_names}; stored strings have the one column 'text'")
    strings = np.empty(column.num_rows, dtype=object)
    strings[:] = [value.decode("utf-8", "surrogatepass") for value in column["text"].to_pylist()]
    return strings


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame's columns to one Parquet file, atomically; the row index is not kept.

    Raises StorageError, naming what Arrow said of the column, where a column holds values of several types or of one
    that Parquet cannot keep.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
        with atomic_path(path) as unfinished:
            parquet.write_table(table, unfinished, compression="zstd")
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise StorageError(
            f"frame for {path} cannot be stored: {error}; give each column one type that Parquet keeps"
        ) from error


def read_frame(path: Path) -> pd.DataFrame:
    """Read what ``write_frame`` wrote.

    Raises StorageError where the file is missing, closed to this user, damaged or of another kind.
    """
    return _read_parquet(path).to_pandas()


def sparse_arrays(matrix: csr_matrix, prefix: str) -> dict[str, np.ndarray]:
    """Take a CSR matrix apart into arrays for ``write_arrays``, named ``<prefix>.data`` and so on."""
    return {
        f"{prefix}.data": matrix.data,
        f"{prefix}.indices": matrix.indices,
        f"{prefix}.indptr": matrix.indptr,
        f"{prefix}.shape": np.asarray(matrix.shape, dtype=np.int64),
    }


def sparse_from(arrays: Mapping[str, np.ndarray], prefix: str) -> csr_matrix:
    """Put together the CSR matrix that ``sparse_arrays`` took apart."""
    from scipy.sparse import csr_matrix

    data, indices, indptr, shape = (arrays[f"{prefix}.{part}"] for part in ("data", "indices", "indptr", "shape"))
    return csr_matrix((data, indices, indptr), shape=tuple(shape.tolist()))


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file, which the system frees if the process dies; without effect on Windows."""
    with open(path, "ab") as lock:
        with suppress(ImportError):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def flush_to_disk(path: Path) -> None:
    """Put a file, or a folder's entries, on disk."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex.

    Raises StorageError where it is missing or closed to this user.
    """
    with _reading(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_parquet(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    with _reading(path, pa.ArrowException, OSError):
        return parquet.ParquetFile(path).read()


@contextmanager
def _reading(path: Path, *damage: type[Exception]) -> Iterator[None]:
    """Turn a missing file, a closed one, and the errors that a reader raises on damage, into StorageError."""
    try:
        with open(path, "rb"):  # safetensors calls a closed file missing, Arrow's error would pass for damage
            yield
    except FileNotFoundError:
        raise missing_file(path) from None
    except PermissionError:
        raise closed_file(path) from None
    except damage as error:
        raise StorageError(f"{path} is damaged or llm_rerank did not write it ({error}); save it again") from None


def missing_file(path: Path) -> StorageError:
    """Give the error for a file that should be there."""
    return StorageError(f"{path} is missing; save the model again or restore the file")


def closed_file(path: Path) -> StorageError:
    """Give the error for a file that this user may not read."""
    return StorageError(f"{path} may not be read by you; let its owner give you the right to read it")


def _to_json(obj: Any, path: Path, indent: int | None = None) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        raise StorageError(f"value of type {type(value).__name__} cannot be written to {path}; give JSON values")

    return json.dumps(obj, default=plain, indent=indent, ensure_ascii=True)
