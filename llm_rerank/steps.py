"""Long work cut into steps: a generator that yields None between them and returns the result at its end.

Whoever runs it may do something else between two steps; what comes out is the same as in one go.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

Steps = Generator[None, None, T]


def in_one_go(steps: Steps[T]) -> T:
    """Run all steps and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
