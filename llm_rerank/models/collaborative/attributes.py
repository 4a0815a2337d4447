"""From a user's attributes to the vector they stand for: a ridge regression on the vectors of fitted users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from llm_rerank.types import BoolArray, DataError, FloatArray, IntArray

Float64Array = npt.NDArray[np.float64]

LEAST_DEVIATION = 1e-7
"""Of the mean; float32 has steps of 6e-8 to 1.2e-7."""

_REGULARIZATION = 1.0
"""Ridge penalty on standardised attributes: as much as one more user says."""


@dataclass(frozen=True)
class AttributeMap:
    """Prediction = offset + ((features − mean) / deviation) @ weights.

    mean, deviation: float32, shape (n_features,). offset: float32, shape (n_outputs,).
    weights: float32, shape (n_features, n_outputs).
    """

    mean: FloatArray
    deviation: FloatArray
    offset: FloatArray
    weights: FloatArray

    @classmethod
    def fit(cls, features: FloatArray, rows: IntArray, outputs: FloatArray) -> Self | None:
        """Regress outputs on attributes; None where no user has attributes.

        features: float32, shape (n_rows, n_features). rows: int64, shape (n_users,), row of each user, -1: none.
        outputs: float32, shape (n_users, n_outputs).
        """
        known = known_rows(rows, features)
        if not known.any():
            return None
        x, y = features[rows[known]].astype(np.float64), outputs[known].astype(np.float64)
        mean, deviation = feature_scale(x)
        offset = y.mean(axis=0)
        x = (x - mean) / deviation
        weights = np.linalg.solve(x.T @ x + _REGULARIZATION * np.eye(x.shape[1]), x.T @ (y - offset))
        return cls(
            mean.astype(np.float32), deviation.astype(np.float32), offset.astype(np.float32), weights.astype(np.float32)
        )

    def predict(self, features: FloatArray) -> FloatArray:
        """Vectors: float32, shape (n_users, n_outputs), from features of shape (n_users, n_features)."""
        vectors = self.offset + ((features - self.mean) / self.deviation) @ self.weights
        return vectors.astype(np.float32, copy=False)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Give the arrays to write, by name."""
        return {f"attribute_{name}": getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self | None:
        """Read what ``to_arrays`` gave; None where it is not there."""
        if "attribute_weights" not in arrays:
            return None
        return cls(**{name: arrays[f"attribute_{name}"] for name in cls.__dataclass_fields__})


def check_features(features: FloatArray) -> FloatArray:
    """Return attributes as float32, shape (n_rows, n_features).

    Raises DataError where they are no finite matrix.
    """
    matrix = np.asarray(features, dtype=np.float32)
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise DataError(f"user_features has shape {matrix.shape}; give one row a user and one column an attribute")
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        raise DataError(
            f"user_features holds {matrix[row, column]} in row {row}, column {column}; fill missing values first "
            "(llm_rerank.data.missing)"
        )
    return matrix


def feature_scale(features: npt.NDArray[np.floating[Any]]) -> tuple[Float64Array, Float64Array]:
    """Mean and deviation of attributes over users, shape (n_users, n_features): float64, both shape (n_features,).

    The deviation of a constant attribute, which says nothing and must not divide by 0, is 1: of one that varies by
    less than float32 tells apart. In float64, for in float32 a constant may deviate from its own mean.
    """
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    return mean, np.where(deviation > np.maximum(LEAST_DEVIATION * np.abs(mean), 1e-12), deviation, 1.0)


def known_rows(rows: IntArray, features: FloatArray) -> BoolArray:
    """Rows that features has: bool, same shape; -1 and rows that came after the matrix was made are unknown."""
    return (rows >= 0) & (rows < len(features))
