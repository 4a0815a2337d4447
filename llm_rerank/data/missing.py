"""Missing values and scale of numeric columns: what a cell is filled with, how that is chosen, normalisation.

Both classes learn from the rows they are fitted on and from nothing else, so fit them on rows before the cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from llm_rerank.types import DataError, FloatArray, NotFittedError

TREATMENTS = ("mean", "median", "most_frequent", "model")
"""What a missing cell can be filled with, simplest first; "model": ridge regression on the other columns."""

MOST_DISTINCT = 12
"""A column of at most so many distinct values is a label: it is filled with one of them and judged by hits."""

_HIDDEN_SHARE = 0.2
_CHOICE_ROWS = 20_000
_RIDGE = 1e-3  # per row, on standardised columns

DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Column:
    """One fitted column: what fills its gaps.

    values: the distinct known values of a label, empty for a measure. coefficients: shape (2 * n_columns + 1,), on the
    other columns (standardised, 0 where missing), on their being missing, and the intercept.
    """

    treatment: str
    mean: float
    scale: float
    median: float
    most_frequent: float
    values: DoubleArray
    coefficients: DoubleArray

    def fill(self, treatment: str, design: DoubleArray) -> DoubleArray:
        """Values for the rows of a design matrix (``_design``): float64, shape (n_rows,)."""
        if treatment == "model":
            filled = design @ self.coefficients
        else:
            filled = np.full(len(design), getattr(self, treatment))
        if len(self.values):
            middles = (self.values[1:] + self.values[:-1]) / 2
            filled = self.values[np.searchsorted(middles, filled)]
        return filled


class MissingValues:
    """Fills NaN by mean, median, most frequent value or a model, chosen for each column, and says where it did.

    Where no treatment is given for a column, a fifth of its known cells is hidden, every treatment rebuilds them, and
    the simplest one within one standard error of the best is taken. The error is the absolute one, or for a label (at
    most ``MOST_DISTINCT`` distinct values) the share of cells not hit exactly. Hidden cells are drawn at random, real
    gaps seldom are: hence the indicator. A column without any known value is filled with 0.

    treatments: a name of ``TREATMENTS`` for some or all columns. indicator: add a column of 0 and 1 for each column
    that had gaps when fitted, beside known values.
    """

    def __init__(self, *, treatments: Mapping[str, str] | None = None, indicator: bool = True) -> None:
        for name, treatment in (treatments or {}).items():
            if treatment not in TREATMENTS:
                raise DataError(f"treatment of {name!r} is {treatment!r}; it must be one of {', '.join(TREATMENTS)}")
        self.given = dict(treatments or {})
        self.indicator = indicator
        self.names: tuple[str, ...] = ()
        self.errors: dict[str, dict[str, float]] = {}
        self._columns: list[_Column] = []
        self._is_fitted = False  # a table without columns is a fitted one too
        self._flagged: list[int] = []

    def fit(self, values: FloatArray, names: Sequence[str], *, seed: int = 0) -> Self:
        """Choose a treatment for each column and learn it.

        values: shape (n_rows, n_columns), NaN where missing. names: of the columns. seed: draws the hidden
        cells.

        Raises DataError where names do not fit the columns, a treatment names no column or a value is infinite.
        """
        cells = _checked(values, len(names))
        strange = sorted(set(self.given) - set(names))
        if strange:
            raise DataError(f"treatments name unknown columns {strange}; columns are {list(names)}")
        self.names, self.errors, self._is_fitted = tuple(names), {}, True
        self._columns = _fit_columns(cells)
        missing = np.isnan(cells)
        self._flagged = [int(j) for j in np.flatnonzero(missing.any(axis=0) & ~missing.all(axis=0)) if self.indicator]
        open_columns = [j for j, name in enumerate(names) if name not in self.given and not missing[:, j].all()]
        chosen = dict.fromkeys(names, "mean") | self.given | self._choose(cells, open_columns, seed)
        self._columns = [
            _Column(**(vars(column) | {"treatment": chosen[name]}))
            for name, column in zip(names, self._columns, strict=True)
        ]
        return self

    @property
    def treatments(self) -> dict[str, str]:
        """Treatment of each column."""
        return {name: column.treatment for name, column in zip(self.names, self._columns, strict=True)}

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the columns of ``transform``: those given, then "<name>_missing" for each indicator."""
        return self.names + tuple(f"{self.names[j]}_missing" for j in self._flagged)

    def transform(self, values: FloatArray) -> FloatArray:
        """Fill the gaps: float32, shape (n_rows, len(output_names)), no NaN.

        Raises NotFittedError before ``fit``, DataError where the number of columns is another.
        """
        if not self._is_fitted:
            raise NotFittedError("MissingValues was not fitted; call fit(values, names) first")
        cells = _checked(values, len(self.names))
        missing = np.isnan(cells)
        filled = np.empty((len(cells), len(self.output_names)), dtype=np.float32)
        filled[:, : len(self.names)] = cells
        for j, column in enumerate(self._columns):
            gaps = np.flatnonzero(missing[:, j])
            if len(gaps):
                filled[gaps, j] = column.fill(column.treatment, _design(cells[gaps], self._columns))
        filled[:, len(self.names) :] = missing[:, self._flagged]
        return filled

    def to_dict(self) -> dict[str, Any]:
        """Return everything learned as JSON-ready values."""
        columns = [
            {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in vars(column).items()}
            for column in self._columns
        ]
        return {
            "given": self.given,
            "indicator": self.indicator,
            "names": list(self.names),
            "errors": self.errors,
            "columns": columns,
            "flagged": self._flagged,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from ``to_dict``'s values."""
        result = cls(treatments=values["given"], indicator=values["indicator"])
        result.names, result.errors, result._flagged = tuple(values["names"]), values["errors"], values["flagged"]
        result._is_fitted = True
        arrays = ("values", "coefficients")
        result._columns = [
            _Column(**(column | {key: np.array(column[key], dtype=np.float64) for key in arrays}))
            for column in values["columns"]
        ]
        return result

    def _choose(self, cells: DoubleArray, open_columns: Sequence[int], seed: int) -> dict[str, str]:
        """Hide known cells of the open columns, rebuild them with every treatment, take the simplest good one."""
        rng = np.random.default_rng(seed)
        if len(cells) > _CHOICE_ROWS:
            cells = cells[np.sort(rng.choice(len(cells), _CHOICE_ROWS, replace=False))]
        chosen = {}
        # Cells of all columns are hidden at once, as real gaps come in several columns at once.
        hidden = (rng.random(cells.shape) < _HIDDEN_SHARE) & np.isfinite(cells)
        visible = np.where(hidden, np.nan, cells)
        columns = _fit_columns(visible)
        for j in open_columns:
            rows = np.flatnonzero(hidden[:, j])
            if len(rows) < 2 or np.isnan(visible[:, j]).all():
                continue
            design, truth = _design(visible[rows], columns), cells[rows, j]
            losses = {}
            for treatment in TREATMENTS:
                rebuilt = columns[j].fill(treatment, design)
                losses[treatment] = (
                    (rebuilt != truth).astype(np.float64) if len(columns[j].values) else np.abs(rebuilt - truth)
                )
            chosen[self.names[j]] = _simplest(losses)
            self.errors[self.names[j]] = {name: float(loss.mean()) for name, loss in losses.items()}
        return chosen


class Standardizer:
    """Brings columns to mean 0 and standard deviation 1 over the known cells; NaN stays NaN, a constant becomes 0."""

    def __init__(self) -> None:
        self.means: DoubleArray | None = None
        self.scales: DoubleArray | None = None

    def fit(self, values: FloatArray) -> Self:
        """Learn mean and standard deviation of each column of values, shape (n_rows, n_columns)."""
        self.means, self.scales = _moments(_checked(values, np.shape(values)[-1]))
        return self

    def transform(self, values: FloatArray) -> FloatArray:
        """Scale: float32, the shape of values.

        Raises NotFittedError before ``fit``, DataError where the number of columns is another.
        """
        if self.means is None or self.scales is None:
            raise NotFittedError("Standardizer was not fitted; call fit(values) first")
        return ((_checked(values, len(self.means)) - self.means) / self.scales).astype(np.float32)

    def to_dict(self) -> dict[str, list[float]]:
        """Return means and scales as JSON-ready values."""
        if self.means is None or self.scales is None:
            raise NotFittedError("Standardizer was not fitted; call fit(values) first")
        return {"means": self.means.tolist(), "scales": self.scales.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float]]) -> Self:
        """Rebuild from ``to_dict``'s values."""
        result = cls()
        result.means, result.scales = (np.array(values[key], dtype=np.float64) for key in ("means", "scales"))
        return result


def _checked(values: FloatArray, n_columns: int) -> DoubleArray:
    """Return values as float64; raise DataError where the shape is wrong or a value infinite."""
    cells = np.asarray(values, dtype=np.float64)
    if cells.ndim != 2 or cells.shape[1] != n_columns:
        raise DataError(f"values have shape {cells.shape}; expected (n_rows, {n_columns})")
    if np.isinf(cells).any():
        raise DataError(f"values have {np.isinf(cells).sum()} infinite cells; mark unknown cells as NaN")
    return cells


def _moments(cells: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Mean and standard deviation of each column over its known cells; 0 and 1 where there is nothing to measure."""
    known = np.isfinite(cells)
    counts = np.maximum(known.sum(axis=0), 1)
    means = np.where(known, cells, 0).sum(axis=0) / counts
    deviations = np.sqrt((np.where(known, cells - means, 0) ** 2).sum(axis=0) / counts)
    # Rounding leaves a constant column a deviation near 1e-16 of its size; dividing by that would make noise of it.
    constant = deviations <= 1e-9 * np.maximum(np.abs(means), 1e-30)
    return means, np.where(constant, 1.0, deviations)


def _fit_columns(cells: DoubleArray) -> list[_Column]:
    """Learn all treatments of all columns."""
    means, scales = _moments(cells)
    n_rows, n_columns = cells.shape
    columns = []
    for j in range(n_columns):
        distinct, counts = np.unique(cells[np.isfinite(cells[:, j]), j], return_counts=True)
        columns.append(
            _Column(
                treatment="mean",
                mean=float(means[j]),
                scale=float(scales[j]),
                median=float(np.median(np.repeat(distinct, counts))) if len(distinct) else 0.0,
                most_frequent=float(distinct[np.argmax(counts)]) if len(distinct) else 0.0,
                values=distinct if len(distinct) <= MOST_DISTINCT else np.empty(0),
                coefficients=np.empty(0),
            )
        )
    design = _design(cells, columns)
    fitted = []
    for j, column in enumerate(columns):
        known = np.isfinite(cells[:, j])
        others = np.ones(design.shape[1], dtype=bool)
        others[[j, n_columns + j]] = False  # itself and its own being missing
        coefficients = np.zeros(design.shape[1])
        coefficients[-1] = column.mean
        if known.any():
            inputs = design[known][:, others]
            gram = inputs.T @ inputs + _RIDGE * known.sum() * np.diag([*np.ones(inputs.shape[1] - 1), 0.0])
            coefficients[others] = np.linalg.solve(gram, inputs.T @ cells[known, j])
        fitted.append(_Column(**(vars(column) | {"coefficients": coefficients})))
    return fitted


def _design(cells: DoubleArray, columns: Sequence[_Column]) -> DoubleArray:
    """Lay out the model's inputs: standardised cells (0 where missing), being missing, 1."""
    missing = np.isnan(cells)
    means, scales = np.array([c.mean for c in columns]), np.array([c.scale for c in columns])
    standardised = np.where(missing, 0.0, (cells - means) / scales)
    return np.column_stack([standardised, missing, np.ones(len(cells))])


def _simplest(losses: Mapping[str, DoubleArray]) -> str:
    """First treatment whose loss is within one standard error (of the paired difference) of the least."""
    best = min(losses, key=lambda name: float(losses[name].mean()))
    for name, loss in losses.items():
        difference = loss - losses[best]
        if difference.mean() <= difference.std(ddof=1) / np.sqrt(len(difference)):
            return name
    return best
