"""Cut-off rules: which probability a candidate needs to be kept. Chosen on cases that nothing else was fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llm_rerank.config import ThresholdConfig
from llm_rerank.types import DataError, FloatArray, Ragged

if TYPE_CHECKING:
    from llm_rerank.types import BoolArray


@dataclass(frozen=True)
class Cut:
    """A chosen cut and what it achieved on the cases it was chosen on (estimates, not guarantees).

    least_probability: a candidate is kept where its probability is at least this. precision, recall: pooled over
    candidates; recall is of the retrieved targets. mean_kept: candidates kept a case. n_cases, n_targets: their basis.
    """

    rule: str
    value: float
    least_probability: float
    precision: float
    recall: float
    mean_kept: float
    n_cases: int
    n_targets: int

    def sentence(self) -> str:
        """Say the cut in one sentence."""
        return (
            f"cut: rule {self.rule} ({self.value:g}) keeps probability ≥ {self.least_probability:.4g}; on "
            f"{self.n_cases:,} held-out cases precision {self.precision:.3f}, recall of retrieved targets "
            f"{self.recall:.3f}, {self.mean_kept:.1f} kept a case (an estimate, not a guarantee)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cut:
        """Rebuild from ``to_dict``'s values."""
        return cls(**values)


def choose_cut(config: ThresholdConfig, probabilities: FloatArray, positive: BoolArray, rows: Ragged) -> Cut:
    """Choose the least probability that the rule asks for.

    probabilities, positive: shape (n_candidates,), laid out as ``rows`` (one row a case). Equal probabilities are
    kept or cut together.

    Raises DataError where the rule needs targets and there are none.
    """
    known = ~np.isnan(probabilities)
    descending = np.argsort(-probabilities[known], kind="stable")
    levels, hits = probabilities[known][descending], positive[known][descending]
    n_targets = int(hits.sum())
    if config.rule != "probability" and n_targets == 0:
        raise DataError(
            f"threshold rule {config.rule!r} needs retrieved targets among the held-out cases and there are 0; "
            "give more interactions, or use the rule 'probability'"
        )
    if config.rule == "probability":
        least = float(config.value)
    else:
        last_of_level = np.append(levels[1:] != levels[:-1], True)
        true_positives = np.cumsum(hits)[last_of_level].astype(np.float64)
        kept = (np.flatnonzero(last_of_level) + 1).astype(np.float64)
        if config.rule == "f_beta":
            place = int(np.argmax(f_beta(true_positives, kept, n_targets, config.value)))
        else:
            place = int(np.argmax(true_positives >= config.value * n_targets - 1e-9))
        least = float(levels[last_of_level][place])
    chosen = levels >= least
    n_kept = int(chosen.sum())
    n_right = int(hits[chosen].sum())
    return Cut(
        rule=config.rule,
        value=config.value,
        least_probability=least,
        precision=n_right / n_kept if n_kept else float("nan"),
        recall=n_right / n_targets if n_targets else float("nan"),
        mean_kept=n_kept / max(len(rows), 1),
        n_cases=len(rows),
        n_targets=n_targets,
    )


def f_beta(
    true_positives: npt.NDArray[np.float64], kept: npt.NDArray[np.float64], n_targets: int, beta: float
) -> npt.NDArray[np.float64]:
    """F-beta = (1 + β²) TP / (β² targets + kept): recall weighs β times as much as precision."""
    return (1 + beta**2) * true_positives / (beta**2 * n_targets + kept)


def bounded_kept(kept: BoolArray, ranks: npt.NDArray[np.int64], *, min_items: int, max_items: int | None) -> BoolArray:
    """Let the cut keep at least ``min_items`` and at most ``max_items`` of a user, by rank from 1."""
    bounded = kept | (ranks <= min_items)
    return bounded if max_items is None else bounded & (ranks <= max_items)
