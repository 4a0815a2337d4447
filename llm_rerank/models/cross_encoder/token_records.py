"""What is kept of one token's state: a record of fixed size, float16 or int8 with a scale. No file is touched here."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from llm_rerank.types import DataError, FloatArray

StateType = Literal["float16", "int8"]

Records = npt.NDArray[np.void]
"""One record a token, with the field "states" and, for int8, "scales"."""

GREATEST = 65504.0
"""Greatest magnitude that float16 holds; asked of int8 as well, so that the type never decides what is accepted."""


VALUES_A_SCALE = 32
"""int8 values that share a scale. A BERT's states have a few values many times the rest; one scale a token would round
all others by them."""


def record_type(state_size: int, dtype: StateType) -> np.dtype[np.void]:
    """Describe a record: little-endian, without gaps. A token is one stretch of bytes, so it costs one access.

    Raises DataError for another dtype.
    """
    if dtype == "float16":
        return np.dtype([("states", "<f2", (state_size,))])
    if dtype == "int8":
        return np.dtype([("states", "i1", (state_size,)), ("scales", "<f4", (len(_starts(state_size)),))])
    raise DataError(f"dtype {dtype!r} is not kept; give 'float16' or 'int8'")


def bytes_needed(n_tokens: int, state_size: int, dtype: StateType) -> int:
    """Bytes that the states of so many tokens take on disk; 24 more a text, 8 more a segment."""
    return n_tokens * record_type(state_size, dtype).itemsize


def greatest_magnitudes(states: FloatArray) -> FloatArray:
    """Greatest magnitude of each row: float32, shape (n_tokens,); NaN where the row has one."""
    return np.maximum(states.max(axis=1), -states.min(axis=1))  # np.abs would copy all states


def quantize(states: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Round to 255 even steps around 0, every 32 values of a row to steps of their own (``VALUES_A_SCALE``).

    states: float32, shape (n_tokens, state_size), magnitudes up to ``GREATEST``. Returns int8 of the same shape and the
    steps, float32, shape (n_tokens, ⌈state_size / 32⌉): each the greatest magnitude of its values / 127. Greatest error
    after ``dequantize``: half a step, plus float32's own rounding, below 2e-5 of a step.
    """
    starts = _starts(states.shape[1])
    greatest = np.maximum(np.maximum.reduceat(states, starts, axis=1), -np.minimum.reduceat(states, starts, axis=1))
    # at least float32's smallest normal number: 32 zeros must not divide by 0
    scales = np.maximum(greatest / np.float32(127), np.finfo(np.float32).tiny)
    return np.rint(states / _spread(scales, states.shape[1])).astype(np.int8), scales


def dequantize(quantized: npt.NDArray[np.int8], scales: FloatArray) -> FloatArray:
    """States of quantised rows: float32, shape (n_tokens, state_size)."""
    return quantized * _spread(scales, quantized.shape[1])


def pack(states: FloatArray, record: np.dtype[np.void]) -> Records:
    """Make records, shape (n_tokens,), of states: float32, shape (n_tokens, state_size), up to ``GREATEST``."""
    records = np.empty(len(states), dtype=record)
    if _is_quantized(records):
        records["states"], records["scales"] = quantize(states)
    else:
        records["states"] = states
    return records


def unpack_into(states: FloatArray, records: Records) -> None:
    """Write the states of records over ``states`` (float32, shape (n_records, state_size))."""
    if _is_quantized(records):
        np.multiply(records["states"], _spread(records["scales"], states.shape[1]), out=states)
    else:
        states[:] = records["states"]


def _is_quantized(records: Records) -> bool:
    return "scales" in (records.dtype.names or ())


def _starts(state_size: int) -> npt.NDArray[np.int64]:
    """First value of each stretch that shares a scale."""
    return np.arange(0, state_size, VALUES_A_SCALE)


def _spread(scales: FloatArray, state_size: int) -> FloatArray:
    """Give each value its scale: float32, shape (n_tokens, state_size)."""
    return np.repeat(scales, VALUES_A_SCALE, axis=1)[:, :state_size]
