"""Results to files: a frame as CSV, TSV, JSON lines or Parquet, by the suffix; whole or not at all."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_rerank.data.object_columns import texts_without_halves, with_typed_whole_numbers
from llm_rerank.data.values import is_missing, plain, without_halves
from llm_rerank.folders import check_writable
from llm_rerank.storage import atomic_path, write_frame
from llm_rerank.types import DataError

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")


def check_output(path: str | Path) -> Path:
    """Return the path; worth asking before hours of work.

    Raises DataError where the suffix is none of SUFFIXES or the folder does not exist, StorageError where it cannot be
    written to.
    """
    path = Path(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"output {path} has no known suffix; end it with one of {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise DataError(f"output {path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise DataError(f"output {path} lies in a folder that does not exist; make {path.parent} first")
    check_writable(path.parent)
    return path


def _json_lines(frame: pd.DataFrame) -> Iterator[str]:
    """One object a row; pandas' own writer would round numbers to ten digits and times to milliseconds."""
    names = [str(name) for name in frame.columns]
    columns = (map(_json_value, frame.iloc[:, place].tolist()) for place in range(len(names)))
    for row in zip(*columns, strict=True):
        yield without_halves(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False)) + "\n"


def _json_value(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) and not is_missing(value) else plain(value)


def write_table(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a frame without its row index; an earlier file at the path stays until the new one is whole.

    Half an emoji in a text is marked as an unreadable character.

    Raises DataError as ``check_output`` does, StorageError where Parquet cannot hold a column.
    """
    path = check_output(path)
    name = path.name.lower()
    frame = texts_without_halves(frame)
    if name.endswith(".parquet"):
        write_frame(path, with_typed_whole_numbers(frame))
        return
    with atomic_path(path) as unfinished:
        if ".jsonl" in name:
            opened = gzip.open if name.endswith(".gz") else open
            with opened(unfinished, "wt", encoding="utf-8", newline="\n") as lines:
                lines.writelines(_json_lines(frame))
        else:
            frame.to_csv(unfinished, index=False, sep="\t" if ".tsv" in name else ",")
