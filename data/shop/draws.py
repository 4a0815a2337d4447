"""Random draws that do not change with numpy's version.

Only uniform numbers are taken from numpy (their stream is fixed by the bit generator); the rest is computed from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Array = np.ndarray[Any, np.dtype[Any]]


class Draws:
    """A seeded stream of draws."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.Generator(np.random.PCG64(seed)).random

    def uniform(self) -> float:
        """Draw a number from [0, 1)."""
        return float(self._random())

    def uniforms(self, *shape: int) -> Array:
        """Draw numbers from [0, 1): float64 of the shape."""
        return np.asarray(self._random(shape))

    def normals(self, *shape: int) -> Array:
        """Draw from the standard normal distribution, as Box and Muller did: float64 of the shape."""
        radius = np.sqrt(-2 * np.log(1 - self.uniforms(*shape)))
        return radius * np.cos(2 * np.pi * self.uniforms(*shape))

    def normal(self) -> float:
        """Draw one number from the standard normal distribution."""
        return float(self.normals(1)[0])

    def below(self, n: int) -> int:
        """Draw a whole number from 0 to n - 1."""
        return int(self._random() * n)

    def pick(self, values: Sequence[T]) -> T:
        """Draw one of the values."""
        return values[self.below(len(values))]

    def happens(self, probability: float) -> bool:
        """Draw True with this probability."""
        return bool(self._random() < probability)

    def order(self, n: int) -> Array:
        """Draw an order of n things: int64, shape (n,)."""
        return np.argsort(self.uniforms(n), kind="stable")

    def choose(self, logits: Array) -> int:
        """Draw a position with probability softmax(logits), shape (n,); -inf is never drawn."""
        possible = np.flatnonzero(np.isfinite(logits))
        weights = np.cumsum(np.exp(logits[possible] - logits[possible].max()))
        drawn = np.searchsorted(weights, self._random() * weights[-1], side="right")
        return int(possible[min(int(drawn), len(possible) - 1)])
