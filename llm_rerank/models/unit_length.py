"""Rows scaled to unit length, dense and sparse, so that an inner product is a cosine."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from llm_rerank.types import FloatArray

_NOTHING = 1e-6  # shorter rows have no direction that rounding did not give them


def unit_rows(rows: FloatArray) -> FloatArray:
    """Scale rows to unit length: float32, shape as given; rows of (nearly) nothing become zero."""
    rows = np.asarray(rows, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(norms > _NOTHING, rows / np.maximum(norms, _NOTHING), np.float32(0))


def unit_sparse_rows(rows: csr_matrix) -> csr_matrix:
    """Scale rows to unit length: a new float32 CSR; rows of (nearly) nothing become empty."""
    rows = csr_matrix(rows, dtype=np.float32, copy=True)
    row_of_entry = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    norms = np.sqrt(np.bincount(row_of_entry, weights=rows.data.astype(np.float64) ** 2, minlength=rows.shape[0]))
    scales = np.where(norms > _NOTHING, 1 / np.maximum(norms, _NOTHING), 0)
    rows.data *= scales[row_of_entry].astype(np.float32)
    rows.eliminate_zeros()
    return rows
