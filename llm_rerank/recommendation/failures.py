"""What a component's failure costs: its opinion, not the answer. For answers to single requests, which must not fail.

A fit, an evaluation and ``Reranker.rerank`` do not come here: there an error is raised, because it is better known.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable

import numpy as np

from llm_rerank.types import BoolArray, Cases, FloatArray, IntArray

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_WARNINGS = 60.0

_warned: dict[str, float] = {}
_lock = threading.Lock()


class Failures:
    """Which components failed for which cases of a batch. failed: bool, shape (n_cases,), by component."""

    def __init__(self, n_cases: int) -> None:
        self.n_cases = n_cases
        self.failed: dict[str, BoolArray] = {}

    def mark(self, name: str, rows: IntArray) -> None:
        """Note that a component said nothing of these cases because it failed."""
        self.failed.setdefault(name, np.zeros(self.n_cases, dtype=np.bool_))[rows] = True

    def of_case(self, row: int) -> tuple[str, ...]:
        """Names of the components that failed for a case."""
        return tuple(name for name, failed in self.failed.items() if failed[row])


def attempt(
    name: str,
    call: Callable[[Cases], FloatArray],
    block: Cases,
    rows: IntArray,
    failures: Failures | None,
    *,
    n_columns: int | None = None,
) -> FloatArray:
    """Ask a component; what it fails on becomes NaN, no opinion, and is noted.

    A block on which it fails is asked case by case, so that one odd history costs only its own case. rows: int64,
    shape (len(block),), numbers of the cases in ``failures``. n_columns: width of the table asked for; None: one score
    a candidate. failures: None: errors are raised. MemoryError is raised always: another try would not help.
    """
    if failures is None:
        return call(block)
    shape = (len(block.candidates.values),) if n_columns is None else (len(block), n_columns)
    try:
        values = call(block)
        if np.shape(values) != shape:
            raise ValueError(f"scores have shape {np.shape(values)}, not {shape}")
        return values
    except MemoryError:
        raise
    except Exception as error:
        warn_of(name, error)
    if len(block) == 1:
        failures.mark(name, rows)
        return np.full(shape, np.nan, dtype=np.float32)
    cases = np.arange(len(block), dtype=np.int64)
    return np.concatenate(
        [
            attempt(name, call, block.take(cases[at : at + 1]), rows[at : at + 1], failures, n_columns=n_columns)
            for at in range(len(block))
        ]
    )


def warn_of(name: str, error: Exception) -> None:
    """Warn in the log that something failed, at most once a minute a name.

    The log says what kind of error it was and where it came up. Its message is left out: it may hold words of a user.
    """
    now = time.monotonic()
    with _lock:
        if now - _warned.get(name, -np.inf) < SECONDS_BETWEEN_WARNINGS:
            return
        _warned[name] = now
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = f"{last[0].filename}:{last[0].lineno}" if last else "an unknown place"
    logger.warning("%s failed (%s at %s); answers go on without it, and say so", name, type(error).__name__, place)
