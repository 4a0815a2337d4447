"""Arrays that a long run leaves on disk, and finds again only where the same code measured the same thing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm_rerank.storage import read_arrays, write_arrays

MADE_BY = "made_by"


def keep_arrays(
    path: Path | None, arrays: Mapping[str, np.ndarray], said: Mapping[str, Any], made_by: Mapping[str, Any]
) -> None:
    """Write arrays and what is said of them; without a path nothing is written.

    made_by: JSON-ready, all that decides the arrays: the commit, the data set, its split, the seed and settings.
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, dict(arrays), {**said, MADE_BY: dict(made_by)})


def kept_arrays(path: Path | None, made_by: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Read what ``keep_arrays`` wrote; None where nothing is there, or where it was made by something else."""
    if path is None or not path.exists():
        return None
    arrays, said = read_arrays(path)
    return (arrays, said) if said.pop(MADE_BY, None) == dict(made_by) else None
