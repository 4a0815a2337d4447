"""Fits that the library does not have: by pairs weighted by NDCG, and a logit with weights held above a floor.

Lists are as ``informative`` gives them: columns, float64, shape (n_candidates, n_columns); no list without a target and
another candidate. Penalties are those of ``fit_conditional_logit``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llm_rerank.recommendation.candidates import ranks_in_row
from llm_rerank.types import BoolArray, FloatArray, Ragged

N_REWEIGHTINGS = 3


def fit_by_pairs(
    design: np.ndarray, rows: Ragged, positive: BoolArray, *, prior: np.ndarray, penalty: float
) -> np.ndarray:
    """Minimise Σ weight × log(1 + exp(−(s_target − s_other))) over each list's pairs, shrunk toward the prior.

    The weight of a pair is |1/log₂(1 + rank) − 1/log₂(1 + other's rank)| at the present scores, taken anew
    ``N_REWEIGHTINGS`` times (Burges, 2010; Wang et al., 2018), over the list's number of targets. Lists as
    ``informative`` gives them. Returns weights: float64, shape (n_columns,).
    """
    targets = np.flatnonzero(positive)
    case = rows.row_of_value[targets]
    of_pair = np.repeat(np.arange(len(targets)), rows.lengths[case])
    others = rows.value_positions(case)
    pairs = ~positive[others]
    first, others, case = targets[of_pair[pairs]], others[pairs], case[of_pair[pairs]]
    n_targets = np.bincount(rows.row_of_value, weights=positive, minlength=len(rows))
    stiffness = _stiffness(design, penalty)
    weights = prior
    for _ in range(N_REWEIGHTINGS):
        discounts = 1.0 / np.log2(1.0 + ranks_in_row(design @ weights, rows))
        of_swap = np.abs(discounts[first] - discounts[others]) / n_targets[case]

        def objective(w: np.ndarray, of_swap: np.ndarray = of_swap) -> tuple[float, np.ndarray]:
            scores = design @ w
            margins = scores[first] - scores[others]
            pull = of_swap * _sigmoid(-margins)
            n = len(scores)
            slopes = np.bincount(others, pull, n) - np.bincount(first, pull, n)
            away = w - prior
            value = of_swap @ np.logaddexp(0.0, -margins) + 0.5 * stiffness @ away**2
            return float(value), slopes @ design + stiffness * away

        weights = minimise(objective, weights, n_cases=len(rows))
    return weights


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * values))


def _stiffness(design: np.ndarray, penalty: float) -> np.ndarray:
    """Penalty on each column's weight, as ``fit_conditional_logit`` has it."""
    scale = design.std(axis=0)
    return penalty * np.where(scale > 0, scale, 1.0) ** 2


def minimise(
    objective: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    *,
    n_cases: int,
    least: np.ndarray | None = None,
) -> np.ndarray:
    """Minimise a smooth convex function, weights held at or above ``least`` where it is given.

    Raises RuntimeError where the gradient, but for what pushes against a bound, is not small beside the data's size.
    """
    from scipy.optimize import minimize

    floor = np.full(len(start), -np.inf) if least is None else least
    found = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(low, None) for low in floor],
        options={"maxiter": 2000, "maxfun": 4000, "maxcor": 30, "ftol": 1e-13, "gtol": 1e-4},
    )
    gradient = np.where((found.x <= floor) & (found.jac > 0), 0.0, found.jac)
    norm = float(np.linalg.norm(gradient))
    if norm > 1e-3 * max(1.0, n_cases):
        raise RuntimeError(f"the fit did not converge: gradient {norm:.3g} after {found.nit} steps")
    return np.asarray(found.x)


def ramps(values: FloatArray, knots: np.ndarray) -> np.ndarray:
    """Cut each column at its knots into pieces that add up to it: shape (n_rows, n_columns × (n_knots + 1)).

    knots: shape (n_columns, n_knots), rising. A piece is the column held between two knots, less the lower one.
    """
    n_columns, n_knots = knots.shape
    pieces = []
    for column, own in zip(values.T, knots, strict=True):
        pieces.append(np.minimum(column, own[0]))
        for place in range(n_knots):
            upper = own[place + 1] if place + 1 < n_knots else np.inf
            pieces.append(np.clip(column, own[place], upper) - own[place])
    return np.stack(pieces, axis=1)


def fit_above(
    design: np.ndarray, rows: Ragged, positive: BoolArray, *, prior: np.ndarray, least: np.ndarray, penalty: float
) -> np.ndarray:
    """Fit a conditional logit as ``fit_conditional_logit`` does, with weights at or above ``least``."""
    starts, case = rows.offsets[:-1], rows.row_of_value
    share = positive / np.add.reduceat(positive.astype(np.float64), starts)[case]
    stiffness = _stiffness(design, penalty)

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = design @ weights
        logits -= np.maximum.reduceat(logits, starts)[case]
        exponentials = np.exp(logits)
        totals = np.add.reduceat(exponentials, starts)[case]
        away = weights - prior
        value = -share @ (logits - np.log(totals)) + 0.5 * stiffness @ away**2
        return float(value), (exponentials / totals - share) @ design + stiffness * away

    return minimise(objective, prior, n_cases=len(rows), least=least)
