"""A cut with a finite-sample guarantee: Learn-then-Test over fixed levels, Hoeffding–Bentkus p-values, losses a list.

Angelopoulos, Bates, Candès, Jordan and Lei, "Learn then Test", 2021; Bates et al., "Distribution-free, risk-controlling
prediction sets", 2021. Conformal risk control is left out: it bounds the expectation over calibration sets only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llm_rerank.types import FloatArray, IntArray, Ragged

if TYPE_CHECKING:
    from llm_rerank.types import BoolArray

Float64Array = npt.NDArray[np.float64]

LEAST_CASES_FOR_GUARANTEE = 300
"""Cases with a retrieved target under which no guarantee is given, though the bound itself would hold."""

N_LEVELS = 1_000
LEAST_LEVEL, GREATEST_LEVEL = 1e-6, 0.999
BLOCK_CELLS = 2**22  # 32 MiB of float64 losses at a time

LOSSES_IN_WORDS = {
    "missed_target": "the share of lists of which no retrieved target is kept",
    "false_positives": "the mean share of a list's candidates that are kept and no target",
    "false_discovery": "the mean share of a list's kept items that are no target",
}


@dataclass(frozen=True)
class Guarantee:
    """With probability 1 − delta over the draw of the held-out cases, the expected risk is at most alpha.

    n_cases: the cases it was tested on (with a retrieved target where the risk is of one). observed_risk: the mean
    loss on them. conditional_on: in words, where it holds.
    """

    risk: str
    alpha: float
    delta: float
    n_cases: int
    observed_risk: float
    conditional_on: str

    def sentence(self) -> str:
        """Say the guarantee and its limits in one sentence."""
        return (
            f"with probability at least {1 - self.delta:.4g} over the draw of the {self.n_cases:,} held-out cases, "
            f"{LOSSES_IN_WORDS[self.risk]} is at most {self.alpha:g} in expectation (observed "
            f"{self.observed_risk:.4g}; Learn-then-Test, Hoeffding–Bentkus); for {self.conditional_on}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Guarantee:
        """Rebuild from ``to_dict``'s values."""
        return cls(**values)


def conditions_of(risk: str) -> str:
    """Say what a guarantee of this risk is conditional on."""
    lists = "lists with a retrieved target" if risk == "missed_target" else "lists"
    return (
        f"{lists} exchangeable with the held-out ones (users, candidates and targets of the same kind; where this "
        "library retrieves them: of users who go on to take something new), cut by this fitted model without a refit "
        "and not changed after the cut"
    )


def risk_levels() -> Float64Array:
    """Probabilities tried as cuts, rising evenly in log-odds: float64, shape (1000,); no data decide on them.

    Each is exact in float32, as probabilities are, so that both precisions agree on what reaches it.
    """
    from scipy.special import expit, logit

    return expit(np.linspace(logit(LEAST_LEVEL), logit(GREATEST_LEVEL), N_LEVELS)).astype(np.float32).astype(np.float64)


def case_losses(
    risk: str, probabilities: FloatArray, positive: BoolArray, rows: Ragged, levels: Float64Array
) -> Float64Array:
    """Loss of each case at each level: float64, shape (n_counted, n_levels), in [0, 1].

    probabilities, positive: shape (n_candidates,), laid out as ``rows``; NaN is never kept and its target counts as
    not retrieved. levels: rising. Counted is every case, or with "missed_target" each with a retrieved target.
    """
    n_cases, n_levels = len(rows), len(levels)
    case = rows.row_of_value
    known = ~np.isnan(probabilities)
    # a candidate is kept at its first so many levels; no array has a cell for each candidate and level
    reached = np.where(known, np.searchsorted(levels, probabilities, side="right"), 0)
    if risk == "missed_target":
        best = np.full(n_cases, -1, dtype=np.int64)
        hit = positive & known
        np.maximum.at(best, case[hit], reached[hit])
        return (np.arange(n_levels) >= best[best >= 0, None]).astype(np.float64)
    wrong = _kept_at_levels(case[~positive], reached[~positive], n_cases, n_levels)
    if risk == "false_positives":
        return wrong / np.maximum(rows.lengths, 1)[:, None]
    return wrong / np.maximum(_kept_at_levels(case, reached, n_cases, n_levels), 1)


def _kept_at_levels(case: IntArray, reached: IntArray, n_cases: int, n_levels: int) -> IntArray:
    """Candidates of a case that are kept at each level: int64, shape (n_cases, n_levels)."""
    width = n_levels + 1
    counts = np.bincount(case * width + reached, minlength=n_cases * width).reshape(n_cases, width)
    return counts[:, :0:-1].cumsum(axis=1)[:, ::-1]


def mean_losses(
    risk: str, probabilities: FloatArray, positive: BoolArray, rows: Ragged, levels: Float64Array
) -> tuple[Float64Array, int]:
    """Average ``case_losses`` over the counted cases, a block of cases at a time: shape (n_levels,), and their number.

    Without a counted case the losses are 1: nothing speaks for any level.
    """
    total, n_counted = np.zeros(len(levels)), 0
    block = max(1, BLOCK_CELLS // len(levels))
    for start in range(0, len(rows), block):
        taken = np.arange(start, min(start + block, len(rows)))
        flat = slice(rows.offsets[taken[0]], rows.offsets[taken[-1] + 1])
        losses = case_losses(risk, probabilities[flat], positive[flat], rows.take(taken), levels)
        total += losses.sum(axis=0)
        n_counted += len(losses)
    return (total / n_counted if n_counted else np.ones(len(levels))), n_counted


def hoeffding_bentkus_p_value(
    mean_loss: npt.ArrayLike, n: npt.ArrayLike, alpha: npt.ArrayLike, *, binary: bool = False
) -> Float64Array:
    """P value of "the expected loss is above alpha", given the mean of n independent losses in [0, 1].

    min(exp(−n h(min(r, α), α)), e P(Bin(n, α) ≤ ⌈n r⌉)) with h(a, b) = a log(a/b) + (1 − a) log((1 − a)/(1 − b));
    Bates et al. 2021, proposition 5 and Angelopoulos et al. 2021, proposition 1. binary: losses are 0 or 1, so the sum
    is binomial and the factor e is not needed. Arguments are broadcast; with n = 0 the p value is 1.
    """
    from scipy.special import bdtr, rel_entr

    r, n_cases, a = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (mean_loss, n, alpha)))
    least = np.minimum(r, a)
    hoeffding = np.exp(-n_cases * (rel_entr(least, a) + rel_entr(1 - least, 1 - a)))
    # a sum of n floats that is whole on paper may lie a little above
    at_most = np.minimum(np.ceil(n_cases * r - 1e-9), n_cases)
    bentkus = (1.0 if binary else np.e) * bdtr(at_most, n_cases.astype(np.int64), a)
    return np.minimum(hoeffding, bentkus)


def control_risk(risk: str, mean_loss: Float64Array, n: int, alpha: float, delta: float) -> npt.NDArray[np.intp]:
    """Learn-then-Test by a fixed sequence of levels: the last level that passes before the first that does not, or −1.

    mean_loss: shape (..., n_levels), over rising levels that do not depend on the cases. The test starts where least
    can go wrong: "missed_target" at the lowest level, upward, so that the result is the highest level that is safe; the
    others at the highest, downward. All levels passed are safe together with probability 1 − delta, monotone or not.
    Returns positions of levels, shape (...).
    """
    passed = hoeffding_bentkus_p_value(mean_loss, n, alpha, binary=risk == "missed_target") <= delta
    return last_in_sequence(risk, passed)


def last_in_sequence(risk: str, passed: BoolArray) -> npt.NDArray[np.intp]:
    """Position of the last level before the first that failed, in the order of ``control_risk``; −1: the first failed.

    passed: shape (..., n_levels); returns shape (...).
    """
    upward = risk == "missed_target"
    n_passed = np.logical_and.accumulate(passed if upward else passed[..., ::-1], axis=-1).sum(axis=-1)
    return n_passed - 1 if upward else np.where(n_passed > 0, passed.shape[-1] - n_passed, -1)
