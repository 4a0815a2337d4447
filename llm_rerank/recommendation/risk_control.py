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
N_STARTS = 20
"""Levels from which "false_discovery" is tested downward: none is safe by nature, and above most nothing is kept."""

LEAST_LEVEL, GREATEST_LEVEL = 1e-6, 0.999
BLOCK_CELLS = 2**22  # 32 MiB of float64 losses at a time

OF_KEEPING_LISTS = " of which something is kept"

LOSSES_IN_WORDS = {
    "missed_target": "the share of lists of which no retrieved target is kept",
    "false_positives": "the mean share of a list's candidates that are kept and no target",
    "false_discovery": "the mean share of a list's kept items that are no target, of lists that keep any",
}


@dataclass(frozen=True)
class Guarantee:
    """With probability 1 − delta over the draw of the held-out cases, the expected risk is at most alpha.

    n_cases: the cases it was tested on (with a retrieved target, or something kept, where the risk is of those).
    observed_risk: the mean loss on them. conditional_on: in words, where it holds.
    """

    risk: str
    alpha: float
    delta: float
    n_cases: int
    observed_risk: float
    conditional_on: str

    @property
    def is_as_defined(self) -> bool:
        """Whether it is of its risk as that is defined now: false discovery was of all lists in earlier versions."""
        return self.risk != "false_discovery" or OF_KEEPING_LISTS in self.conditional_on

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
    counted = {"missed_target": " with a retrieved target", "false_discovery": OF_KEEPING_LISTS}
    lists = f"lists{counted.get(risk, '')}"
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
    """Loss of each case at each level: float64, shape (n_counted, n_levels), in [0, 1]; NaN where it does not count.

    probabilities, positive: shape (n_candidates,), laid out as ``rows``; NaN is never kept and its target counts as
    not retrieved. levels: rising. Counted is every case, with "missed_target" each with a retrieved target, and with
    "false_discovery" at each level those that keep something: a list that shows nothing makes no list better.
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
    kept = _kept_at_levels(case, reached, n_cases, n_levels)
    return np.where(kept > 0, wrong / np.maximum(kept, 1), np.nan)


def _kept_at_levels(case: IntArray, reached: IntArray, n_cases: int, n_levels: int) -> IntArray:
    """Candidates of a case that are kept at each level: int64, shape (n_cases, n_levels)."""
    width = n_levels + 1
    counts = np.bincount(case * width + reached, minlength=n_cases * width).reshape(n_cases, width)
    return counts[:, :0:-1].cumsum(axis=1)[:, ::-1]


def mean_losses(
    risk: str, probabilities: FloatArray, positive: BoolArray, rows: Ragged, levels: Float64Array
) -> tuple[Float64Array, IntArray]:
    """Average ``case_losses`` over the cases counted at each level: two arrays of shape (n_levels,), means and counts.

    Works on a block of cases at a time. Without a counted case a mean is 1: nothing speaks for the level.
    """
    total, n_counted = np.zeros(len(levels)), np.zeros(len(levels), dtype=np.int64)
    block = max(1, BLOCK_CELLS // len(levels))
    for start in range(0, len(rows), block):
        taken = np.arange(start, min(start + block, len(rows)))
        flat = slice(rows.offsets[taken[0]], rows.offsets[taken[-1] + 1])
        losses = case_losses(risk, probabilities[flat], positive[flat], rows.take(taken), levels)
        total += np.nansum(losses, axis=0)
        n_counted += (~np.isnan(losses)).sum(axis=0)
    return np.where(n_counted > 0, total / np.maximum(n_counted, 1), 1.0), n_counted


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


def control_risk(
    risk: str, mean_loss: Float64Array, n: npt.ArrayLike, alpha: float, delta: float
) -> npt.NDArray[np.intp]:
    """Learn-then-Test by fixed sequences of levels: the level farthest along that passes before one that does not.

    mean_loss: shape (..., n_levels), over rising levels that do not depend on the cases. n: int, or the counts of each
    level: given how many lists keep something at a level, their losses are independent, and of the law of such lists.
    The test starts where least can go wrong: "missed_target" at the lowest level, upward, so that the result is the
    highest level that is safe; "false_positives" at the highest, downward; "false_discovery" downward from
    ``N_STARTS`` levels with delta shared among them. All levels passed are safe together with probability 1 − delta,
    monotone or not. Returns positions of levels, shape (...); −1: none passed.
    """
    share = delta / len(first_levels(risk, mean_loss.shape[-1]))
    p_values = hoeffding_bentkus_p_value(mean_loss, n, alpha, binary=risk == "missed_target")
    return last_in_sequence(risk, p_values <= share)


def first_levels(risk: str, n_levels: int) -> npt.NDArray[np.intp]:
    """Positions of the levels that ``control_risk`` starts from, rising."""
    if risk == "missed_target":
        return np.array([0])
    if risk == "false_positives":
        return np.array([n_levels - 1])
    return np.unique(np.linspace(0, n_levels - 1, N_STARTS + 1)[1:].astype(np.intp))


def last_in_sequence(risk: str, passed: BoolArray) -> npt.NDArray[np.intp]:
    """Position farthest along that is reached from a start over levels that all passed; −1: no start passed.

    passed: shape (..., n_levels); returns shape (...).
    """
    n_levels = passed.shape[-1]
    starts = first_levels(risk, n_levels)
    if risk == "missed_target":
        return np.logical_and.accumulate(passed, axis=-1).sum(axis=-1) - 1
    places = np.arange(n_levels)
    failures = np.where(passed, n_levels, places)
    next_failure = np.minimum.accumulate(failures[..., ::-1], axis=-1)[..., ::-1]
    next_start = np.append(starts, n_levels)[np.searchsorted(starts, places)]
    reached = next_start < next_failure
    return np.where(reached.any(axis=-1), reached.argmax(axis=-1), -1)
