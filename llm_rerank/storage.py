"""Files that survive a crash: arrays, strings, frames and JSON, and folders whose content is checked when opened.

Nothing here is executed on reading: no pickle, ever. What the files mean is the business of those who write them.

A saved folder holds ``<hash>/`` with the content and its ``manifest.json``, and the small file ``CURRENT`` that names
the hash. A save writes a whole new ``<hash>/`` and only then replaces ``CURRENT``, which is one atomic step: whoever
opens the folder sees the old content or the new, never a mixture. Names that a save did not write are left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_rerank.types import ObjectArray, ReplacedError, StorageError

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix

FORMAT = "llm_rerank"
FORMAT_VERSION = 1
"""Raised by one whenever an older library could not read what this one writes."""

CURRENT = "CURRENT"
MANIFEST = "manifest.json"
_LOCK = ".lock"
_UNFINISHED = ".unfinished-"  # prefix of what a killed save may leave behind; the next save removes it
_METADATA_KEY = "metadata"
_CONTENT_NAME = re.compile(r"[0-9a-f]{32}")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a path to write to, in the same folder and with the same suffix, that becomes ``path`` at the end.

    Where the body raises, nothing is left and an earlier file at ``path`` is untouched.
    """
    path = Path(os.path.realpath(path))  # so that a link stays a link and its target is replaced
    unfinished = path.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}{''.join(path.suffixes[-2:])}")
    try:
        yield unfinished
        _flush(unfinished)
        os.replace(unfinished, path)
        _flush(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, obj: Any) -> None:
    """Write plain values and numpy scalars as JSON, atomically; NaN stays NaN, as Python's json has it."""
    with atomic_path(path) as unfinished:
        unfinished.write_text(_to_json(obj, path, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read what ``write_json`` wrote.

    Raises StorageError where the file is missing or is no JSON.
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
        save_file(plain, unfinished, metadata=header)


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays and the metadata that ``write_arrays`` wrote.

    Raises StorageError where the file is missing, damaged or of another kind.
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

    Raises StorageError where the file is missing, damaged or of another kind.
    """
    column = _read_parquet(path)
    if column.column_names != ["text"]:
        raise StorageError(f"{path} has columns {column.column_names}; stored strings have the one column 'text'")
    strings = np.empty(column.num_rows, dtype=object)
    strings[:] = [value.decode("utf-8", "surrogatepass") for value in column["text"].to_pylist()]
    return strings


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame's columns to one Parquet file, atomically; the row index is not kept.

    Raises StorageError, naming what Arrow said of the column, where a column holds values of several types.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, UnicodeEncodeError) as error:
        raise StorageError(f"frame for {path} cannot be stored: {error}; give each column one type") from error
    with atomic_path(path) as unfinished:
        parquet.write_table(table, unfinished, compression="zstd")


def read_frame(path: Path) -> pd.DataFrame:
    """Read what ``write_frame`` wrote.

    Raises StorageError where the file is missing, damaged or of another kind.
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


def save_folder(target: Path, write: Callable[[Path], None], *, expected: str | None = None) -> str:
    """Save what ``write`` puts into the empty folder it is given as the new content of ``target``; returns its name.

    expected: name of the content that is to be replaced; None: whatever is there.
    A crash at any moment leaves ``target`` with the old content or the new. Where ``write`` raises, the old stays. Two
    processes that save at once take turns; who *opens* while another saves may be told that a file went: open again.
    Raises StorageError where ``target`` is a file or holds a file CURRENT that no save wrote, ReplacedError where its
    content is not the expected one.
    """
    check_target(target)
    target.mkdir(parents=True, exist_ok=True)
    with exclusive(target / _LOCK):
        if expected is not None and current_name(target) != expected:
            raise ReplacedError(f"{target} was given another content meanwhile; load it again and repeat the change")
        unfinished = target / f"{_UNFINISHED}{uuid.uuid4().hex}"
        unfinished.mkdir()
        try:
            write(unfinished)
            name = _seal(unfinished)
            content = target / name
            if content.exists() and not _is_sound(content):
                os.replace(content, target / f"{_UNFINISHED}{uuid.uuid4().hex}")
            if not content.exists():
                os.replace(unfinished, content)
                _flush(target)  # the content must be on disk before CURRENT names it
            with atomic_path(target / CURRENT) as pointer:
                pointer.write_text(name + "\n", encoding="ascii")
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        _prune(target, keep=name)
    return name


def check_target(target: Path) -> None:
    """Raise StorageError where ``save_folder`` would refuse ``target``: worth asking before hours of work."""
    if target.exists() and not target.is_dir():
        raise StorageError(f"{target} is a file; a model is saved as a folder: give another name")
    if (target / CURRENT).exists():
        current_name(target)


def open_folder(target: Path) -> Path:
    """Return the folder of ``target``'s current content, every file checked against the manifest's SHA-256.

    Raises StorageError, naming the file, where something is missing, foreign, damaged or of another format version.
    """
    content = target / current_name(target)
    _verify(content)
    return content


def current_name(target: Path) -> str:
    """Return the name of ``target``'s current content, which changes with every bit of it.

    Raises StorageError where no content was saved there.
    """
    if not target.is_dir():
        raise StorageError(f"{target} is not a folder; give the folder that a model was saved to")
    try:
        name = (target / CURRENT).read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        raise StorageError(f"{target} has no file {CURRENT}: no model was saved there, or no save ended") from None
    if not _CONTENT_NAME.fullmatch(name):
        raise StorageError(f"{target / CURRENT} reads {name[:40]!r}; llm_rerank did not write it: give another folder")
    return name


def _verify(content: Path) -> None:
    manifest_path = content / MANIFEST
    manifest = read_json(manifest_path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StorageError(f"{manifest_path} is no manifest of llm_rerank; give the folder that a model was saved to")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise StorageError(
            f"{manifest_path} has format version {manifest.get('format_version')!r}, this library reads "
            f"{FORMAT_VERSION}; load it with the llm_rerank that saved it, or fit and save again"
        )
    if _digest(manifest_path)[:32] != content.name:
        raise StorageError(f"{manifest_path} is damaged: its hash is not {content.name}; save the model again")
    listed: dict[str, str] = manifest["files"]
    present = _files(content)
    for name, digest in listed.items():
        if name not in present:
            raise _missing(content / name)
        if _digest(present[name]) != digest:
            raise StorageError(f"{content / name} is damaged: its SHA-256 is not the manifest's; save the model again")
    for name in present.keys() - listed.keys():
        raise StorageError(f"{content / name} is foreign: the manifest does not list it; remove it")


def _is_sound(content: Path) -> bool:
    try:
        _verify(content)
    except StorageError:
        return False
    return True


def _seal(content: Path) -> str:
    """Write the manifest, put everything on disk, and return the content's name: the start of the manifest's hash."""
    files = _files(content)
    digests = {name: _digest(files[name]) for name in sorted(files)}
    write_json(content / MANIFEST, {"format": FORMAT, "format_version": FORMAT_VERSION, "files": digests})
    for path in [*files.values(), *(path for path in content.rglob("*") if path.is_dir()), content]:
        _flush(path)
    return _digest(content / MANIFEST)[:32]


def _files(content: Path) -> dict[str, Path]:
    """List the files below a content folder but the manifest itself, by relative name with forward slashes."""
    paths = {path.relative_to(content).as_posix(): path for path in content.rglob("*") if not path.is_dir()}
    paths.pop(MANIFEST, None)
    return paths


def _prune(target: Path, keep: str) -> None:
    """Remove older contents and what killed saves left; what cannot go now (open on Windows) goes next time."""
    for path in target.iterdir():
        with suppress(OSError):
            if _CONTENT_NAME.fullmatch(path.name) and path.name != keep and (path / MANIFEST).exists():
                # renamed first: half removed, it must not look like content
                path = path.rename(target / f"{_UNFINISHED}{uuid.uuid4().hex}")
            if path.name.startswith(_UNFINISHED):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file, which the system frees if the process dies; without effect on Windows."""
    with open(path, "ab") as lock:
        with suppress(ImportError):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _flush(path: Path) -> None:
    """Put a file, or a folder's entries, on disk."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_parquet(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    with _reading(path, pa.ArrowException, OSError):
        return parquet.ParquetFile(path).read()


@contextmanager
def _reading(path: Path, *damage: type[Exception]) -> Iterator[None]:
    """Turn a missing file, and the errors that a reader raises on damage, into StorageError."""
    try:
        yield
    except FileNotFoundError:
        raise _missing(path) from None
    except damage as error:
        raise StorageError(f"{path} is damaged or llm_rerank did not write it ({error}); save it again") from None


def _missing(path: Path) -> StorageError:
    return StorageError(f"{path} is missing; save the model again or restore the file")


def _to_json(obj: Any, path: Path, indent: int | None = None) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        raise StorageError(f"value of type {type(value).__name__} cannot be written to {path}; give JSON values")

    return json.dumps(obj, default=plain, indent=indent, ensure_ascii=True)
