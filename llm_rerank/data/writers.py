"""Results to files: a frame as CSV, TSV, JSON lines or Parquet, by the suffix; whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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


def write_table(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a frame without its row index; an earlier file at the path stays until the new one is whole.

    Raises DataError as ``check_output`` does, StorageError where Parquet cannot hold a column.
    """
    path = check_output(path)
    name = path.name.lower()
    if name.endswith(".parquet"):
        write_frame(path, frame)
        return
    with atomic_path(path) as unfinished:
        if ".jsonl" in name:
            frame.to_json(unfinished, orient="records", lines=True, force_ascii=False, date_format="iso")
        else:
            frame.to_csv(unfinished, index=False, sep="\t" if ".tsv" in name else ",")
