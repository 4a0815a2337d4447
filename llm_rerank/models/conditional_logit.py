"""The conditional logit: which candidate of a list is chosen, given columns; likelihood, derivatives and the fit.

McFadden, "Conditional logit analysis of qualitative choice behavior", 1974.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llm_rerank.types import BoolArray, FloatArray, IntArray, Ragged

Float64Array = npt.NDArray[np.float64]


def conditional_log_likelihood(
    weights: Float64Array, design: Float64Array, rows: Ragged, positive: BoolArray
) -> tuple[float, Float64Array, Float64Array]:
    """Log-likelihood, gradient and Hessian of the conditional logit.

    Each case adds the mean over its positives of log softmax. design: shape (n_candidates, n_columns). rows: one row
    a case, none empty, each with a positive. positive: bool, shape (n_candidates,).
    """
    value, share, probabilities = _choice(design @ weights, rows, positive)
    gradient = design.T @ (share - probabilities)
    weighted = design * probabilities[:, None]
    means = np.add.reduceat(weighted, rows.offsets[:-1], axis=0)
    hessian = -(weighted.T @ design - means.T @ means)
    return value, gradient, hessian


def log_likelihood_of(scores: Float64Array, rows: Ragged, positive: BoolArray) -> float:
    """Log-likelihood of ``conditional_log_likelihood`` where the scores, design · weights, are there already."""
    return _choice(scores, rows, positive)[0]


def _choice(scores: Float64Array, rows: Ragged, positive: BoolArray) -> tuple[float, Float64Array, Float64Array]:
    """Log-likelihood, and of each candidate its share of its case's positives and its probability."""
    starts, case = rows.offsets[:-1], rows.row_of_value
    logits = scores - np.maximum.reduceat(scores, starts)[case]
    exponentials = np.exp(logits)
    totals = np.add.reduceat(exponentials, starts)
    share = positive / np.add.reduceat(positive.astype(np.float64), starts)[case]
    return float(share @ (logits - np.log(totals)[case])), share, exponentials / totals[case]


def fit_conditional_logit(
    design: FloatArray | Float64Array,
    rows: Ragged,
    positive: BoolArray,
    *,
    prior: Float64Array,
    penalty: float,
    first: Float64Array | None = None,
) -> Float64Array:
    """Maximise the penalised conditional log-likelihood; returns weights: float64, shape (n_columns,).

    Penalty: penalty / 2 × Σ (sd_j (w_j − prior_j))², with sd_j the column's standard deviation, summed against the
    sum over cases. Cases without a positive, or with nothing but positives, say nothing and are left out. first: where
    the search begins, which decides how long it takes; None: at the prior.

    Raises RuntimeError where the optimiser does not converge (it did so silently in a prototype).
    """
    from scipy.optimize import minimize

    design64, rows, positive = informative(design, rows, positive)
    if not len(rows):
        return prior.copy()
    scale = design64.std(axis=0)
    stiffness = penalty * np.where(scale > 0, scale, 1.0) ** 2

    last: tuple[Float64Array, tuple[float, Float64Array, Float64Array]] | None = None

    def derivatives(weights: Float64Array) -> tuple[float, Float64Array, Float64Array]:
        """Remember the last point: the optimiser asks for its value and, where it goes there, for its Hessian."""
        nonlocal last
        if last is None or not np.array_equal(last[0], weights):
            last = weights.copy(), conditional_log_likelihood(weights, design64, rows, positive)
        return last[1]

    def objective(weights: Float64Array) -> tuple[float, Float64Array]:
        value, gradient, _ = derivatives(weights)
        away = weights - prior
        return -value + 0.5 * float(stiffness @ away**2), -gradient + stiffness * away

    def hessian(weights: Float64Array) -> Float64Array:
        return -derivatives(weights)[2] + np.diag(stiffness)

    found = minimize(
        objective,
        prior if first is None else first,
        jac=True,
        hess=hessian,
        method="trust-exact",
        options={"gtol": 1e-4, "maxiter": 200},
    )
    gradient_norm = float(np.linalg.norm(found.jac))
    # the optimiser stops on rounding when the objective is large; what counts is the gradient beside the data's size
    if gradient_norm > 1e-3 * max(1.0, float(len(rows))):
        raise RuntimeError(f"the blend did not converge: gradient {gradient_norm:.3g} after {found.nit} steps")
    return np.asarray(found.x, dtype=np.float64)


def informative(
    design: FloatArray | Float64Array, rows: Ragged, positive: BoolArray
) -> tuple[Float64Array, Ragged, BoolArray]:
    """Keep the cases that have both a positive and another candidate; the design becomes float64."""
    positions, rows, kept = informative_candidates(rows, positive)
    design = design if len(kept) == len(positive) else design[positions]
    return design.astype(np.float64, copy=False), rows, kept


def informative_candidates(rows: Ragged, positive: BoolArray) -> tuple[IntArray, Ragged, BoolArray]:
    """Find the candidates of the cases that ``informative`` keeps: their positions, rows, and which are positive."""
    counts = np.bincount(rows.row_of_value, weights=positive, minlength=len(rows))
    useful = np.flatnonzero((counts > 0) & (counts < rows.lengths)).astype(np.int64)
    positions = rows.value_positions(useful)
    return positions, rows.take(useful), positive[positions]
