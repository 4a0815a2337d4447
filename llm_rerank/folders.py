"""Saved folders: content that is checked when it is opened, and replaced in one step.

A saved folder holds ``<hash>/`` with the content and its ``manifest.json``, and the small file ``CURRENT`` that names
the hash. A save writes a whole new ``<hash>/`` and only then replaces ``CURRENT``, which is one atomic step: whoever
opens the folder sees the old content or the new, never a mixture. Names that a save did not write are left alone.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from llm_rerank.storage import (
    UNFINISHED,
    atomic_path,
    closed_file,
    exclusive,
    file_digest,
    flush_to_disk,
    missing_file,
    read_json,
    write_json,
)
from llm_rerank.types import ReplacedError, StorageError

FORMAT = "llm_rerank"
FORMAT_VERSION = 2
"""Raised by one whenever an older library could not read what this one writes."""

CURRENT = "CURRENT"
MANIFEST = "manifest.json"
TUNED_MODEL = "model"
"""In the folder that ``llm-rerank finetune`` writes, the saved folder of the cross-encoder."""

CROSS_ENCODER_FILE = "cross_encoder.json"
"""What the content of a cross-encoder has, and that of a reranker has not."""

_LOCK = ".lock"
_CONTENT_NAME = re.compile(r"[0-9a-f]{32}")


def save_folder(target: Path, write: Callable[[Path], None], *, expected: str | None = None) -> str:
    """Save what ``write`` puts into the empty folder it is given as the new content of ``target``; returns its name.

    expected: name of the content that is to be replaced; None: whatever is there.
    A crash at any moment leaves ``target`` with the old content or the new. Where ``write`` raises, the old stays. Two
    processes that save at once take turns; who *opens* while another saves may be told that a file went: open again.
    An older content that cannot be removed goes with the next save; ``remove_leftovers`` names it.
    Raises StorageError where ``target`` is a file or holds a file CURRENT that no save wrote, ReplacedError where its
    content is not the expected one.
    """
    check_target(target)
    target.mkdir(parents=True, exist_ok=True)
    with exclusive(target / _LOCK):
        if expected is not None and current_name(target) != expected:
            raise ReplacedError(f"{target} was given another content meanwhile; load it again and repeat the change")
        unfinished = target / f"{UNFINISHED}{uuid.uuid4().hex}"
        unfinished.mkdir()
        try:
            write(unfinished)
            name = _seal(unfinished)
            content = target / name
            if content.exists() and not _is_sound(content):
                os.replace(content, target / f"{UNFINISHED}{uuid.uuid4().hex}")
            if not content.exists():
                os.replace(unfinished, content)
                flush_to_disk(target)  # the content must be on disk before CURRENT names it
            with atomic_path(target / CURRENT) as pointer:
                pointer.write_text(name + "\n", encoding="ascii")
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        _prune(target, keep=name)
    return name


def remove_leftovers(target: Path) -> list[Path]:
    """Try again to remove what earlier saves left; returns what cannot go: after an erasure, it may hold the user.

    Raises StorageError where no content was saved in ``target``.
    """
    with exclusive(target / _LOCK):
        return _prune(target, keep=current_name(target))


def check_target(target: Path) -> None:
    """Raise StorageError where ``save_folder`` would refuse ``target``: worth asking before hours of work."""
    check_writable(target)
    if (target / CURRENT).exists():
        current_name(target)


def check_writable(folder: Path) -> None:
    """Raise StorageError where nothing can be written into a folder, or where it cannot be made."""
    try:
        place = folder
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise StorageError(f"{place} is a file; a model is saved as a folder: give another name")
        with TemporaryDirectory(prefix=UNFINISHED, dir=place):
            pass
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written ({error.strerror}); give a place that you may write to"
        ) from None


def open_folder(target: Path) -> Path:
    """Return the folder of ``target``'s current content, every file checked against the manifest's SHA-256.

    Raises StorageError, naming the file, where something is missing, closed to this user, foreign, damaged or of
    another format version.
    """
    content = target / current_name(target)
    _verify(content)
    return content


def current_name(target: Path) -> str:
    """Return the name of ``target``'s current content, which changes with every bit of it.

    Raises StorageError where no content was saved there, or where it is closed to this user.
    """
    if not target.is_dir():
        raise StorageError(f"{target} is not a folder; give the folder that a model was saved to")
    try:
        name = (target / CURRENT).read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        raise _nothing_saved(target) from None
    except PermissionError:
        raise closed_file(target / CURRENT) from None
    if not _CONTENT_NAME.fullmatch(name):
        raise StorageError(f"{target / CURRENT} reads {name[:40]!r}; llm_rerank did not write it: give another folder")
    return name


def tuned_model(folder: Path) -> Path | None:
    """Find the cross-encoder's own folder in one that ``llm-rerank finetune`` wrote; None: that is none of it."""
    inner = folder / TUNED_MODEL
    return inner if (inner / CURRENT).is_file() and any(inner.glob(f"*/{CROSS_ENCODER_FILE}")) else None


def _nothing_saved(target: Path) -> StorageError:
    said, tuned = f"{target} has no file {CURRENT}", tuned_model(target)
    if tuned is None:
        return StorageError(f"{said}: no model was saved there, or no save ended; give one that a model is saved in")
    return StorageError(
        f"{said}: llm-rerank finetune wrote it, a cross-encoder alone, which HistoryCrossEncoder.load({str(tuned)!r}) "
        "reads; give a folder that fit wrote"
    )


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
    if file_digest(manifest_path)[:32] != content.name:
        raise StorageError(f"{manifest_path} is damaged: its hash is not {content.name}; save the model again")
    listed: dict[str, str] = manifest["files"]
    present = _files(content)
    for name, digest in listed.items():
        if name not in present:
            raise missing_file(content / name)
        if file_digest(present[name]) != digest:
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
    digests = {name: file_digest(files[name]) for name in sorted(files)}
    write_json(content / MANIFEST, {"format": FORMAT, "format_version": FORMAT_VERSION, "files": digests})
    for path in [*files.values(), *(path for path in content.rglob("*") if path.is_dir()), content]:
        flush_to_disk(path)
    return file_digest(content / MANIFEST)[:32]


def _files(content: Path) -> dict[str, Path]:
    """List the files below a content folder but the manifest itself, by relative name with forward slashes."""
    paths = {path.relative_to(content).as_posix(): path for path in content.rglob("*") if not path.is_dir()}
    paths.pop(MANIFEST, None)
    return paths


def _prune(target: Path, keep: str) -> list[Path]:
    """Remove older contents and what killed saves left; returns what cannot go now (open on Windows)."""
    left = []
    for path in sorted(target.iterdir()):
        try:
            if _CONTENT_NAME.fullmatch(path.name) and path.name != keep and (path / MANIFEST).exists():
                # renamed first: half removed, it must not look like content
                path = path.rename(target / f"{UNFINISHED}{uuid.uuid4().hex}")
            if path.name.startswith(UNFINISHED):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:
            if os.path.lexists(path):
                left.append(path)
    return left
