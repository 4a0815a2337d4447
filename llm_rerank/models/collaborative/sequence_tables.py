"""One trained sequence net as plain arrays: what a user takes next, as probabilities over the catalogue. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy.sparse import csr_matrix

from llm_rerank.models.changes import longer, with_rows
from llm_rerank.models.collaborative.sequence_rows import Context
from llm_rerank.models.unit_length import unit_rows
from llm_rerank.types import FloatArray, IntArray


@dataclass(frozen=True)
class SequenceTables:
    """Vectors and weights of one net; the formulas are those of ``sequence_networks.SequenceNetwork``.

    vectors: float32, shape (n_items, size), unit length; zero where an item has neither text nor id.
    ids: float32, shape (n_items, size), zero where the fit has no event of the item. text_layer: (text_size, size).
    biases: float32, shape (n_items,); of an item that the fit has no event of: the mean of those with the fewest.
    cold_bias: that mean. attention: float32, shape (size, size); None: the net does not attend.
    """

    vectors: FloatArray
    ids: FloatArray
    text_layer: FloatArray
    biases: FloatArray
    cold_bias: float
    scale: float
    decay: float
    attention: FloatArray | None
    attention_decay: float

    @classmethod
    def of(cls, trained: Mapping[str, FloatArray], support: IntArray, text: FloatArray) -> Self:
        """Lay out what a training gave for the fitted items over the whole catalogue.

        trained: as ``SequenceNetwork.arrays``. support: int64, shape (n_items,), events in the fit, 0: not fitted.
        text: float32, shape (n_items, text_size).
        """
        fitted = support > 0
        cold_bias = float(trained["biases"][support[fitted] == support[fitted].min()].mean())
        biases = np.full(len(support), cold_bias, dtype=np.float32)
        biases[fitted] = trained["biases"]
        size = trained["ids"].shape[1]
        ids = np.zeros((len(support), size), dtype=np.float32)
        ids[fitted] = trained["ids"]
        return cls(
            vectors=unit_rows(text @ trained["text_layer"] + ids),
            ids=ids,
            text_layer=trained["text_layer"],
            biases=biases,
            cold_bias=cold_bias,
            scale=float(trained["scale"]),
            decay=float(trained["decay"]),
            attention=trained.get("attention"),
            attention_decay=float(trained.get("attention_decay", 0.0)),
        )

    def grown(self, n_items: int, codes: IntArray, text: FloatArray) -> SequenceTables:
        """Return tables for n_items items in which these have this text, float32, shape (n_codes, text_size)."""
        ids = longer(self.ids, n_items, 0.0)
        vectors = with_rows(self.vectors, n_items, codes, unit_rows(text @ self.text_layer + ids[codes]))
        return replace(self, ids=ids, vectors=vectors, biases=longer(self.biases, n_items, self.cold_bias))

    def probabilities(self, context: Context, fitted: IntArray) -> FloatArray:
        """exp(score) over its sum over the fitted items: float32, shape (n_rows, n_items); NaN for rows without events.

        An item that came after the fit is measured against the same sum, so that it changes nothing for the others.
        """
        table = self.users(context) @ self.vectors.T
        table += self.biases
        table -= table.max(axis=1, keepdims=True, initial=-np.inf)
        np.exp(table, out=table)
        of_fitted = table if len(fitted) == table.shape[1] else table[:, fitted]
        table /= of_fitted.sum(axis=1, keepdims=True)
        return table

    def users(self, context: Context) -> FloatArray:
        """Vector of each row times the scale: float32, shape (n_rows, size); NaN where a row has no event."""
        users = self._pooled(context, context.log_weights - np.float32(self.decay) * context.ages)
        if self.attention is not None:
            asked = np.einsum("ij,ij->i", (users @ self.attention)[context.rows], self.vectors[context.items])
            ages = np.float32(self.attention_decay) * context.ages
            users = self._pooled(context, asked + context.log_weights - ages)
        users *= np.float32(self.scale)
        users[np.bincount(context.rows, minlength=context.n_rows) == 0] = np.nan
        return users

    def _pooled(self, context: Context, logits: FloatArray) -> FloatArray:
        """Average the vectors of the events by the softmax of their logits, scaled to unit length."""
        lengths = np.bincount(context.rows, minlength=context.n_rows)
        if len(logits):
            logits = logits - np.repeat(np.maximum.reduceat(logits, context.starts), lengths[lengths > 0])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        # unit length at the end: the softmax need not be divided by its sum
        shares = csr_matrix((np.exp(logits), context.items, offsets), shape=(context.n_rows, len(self.vectors)))
        return unit_rows(shares @ self.vectors)

    def to_arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """Give the arrays to write, by name."""
        arrays = {
            f"{prefix}.vectors": self.vectors,
            f"{prefix}.ids": self.ids,
            f"{prefix}.text_layer": self.text_layer,
            f"{prefix}.numbers": np.array([self.scale, self.decay, self.attention_decay, self.cold_bias]),
            f"{prefix}.biases": self.biases,
        }
        if self.attention is not None:
            arrays[f"{prefix}.attention"] = self.attention
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str) -> Self:
        """Read what ``to_arrays`` gave."""
        scale, decay, attention_decay, cold_bias = arrays[f"{prefix}.numbers"].tolist()
        return cls(
            arrays[f"{prefix}.vectors"],
            arrays[f"{prefix}.ids"],
            arrays[f"{prefix}.text_layer"],
            arrays[f"{prefix}.biases"],
            cold_bias,
            scale,
            decay,
            arrays.get(f"{prefix}.attention"),
            attention_decay,
        )
