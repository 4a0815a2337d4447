"""Cut-off rules: which probability a candidate needs to be kept, chosen on held-out cases (``judging``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llm_rerank.config import ThresholdConfig
from llm_rerank.recommendation.candidates import positions_in_row
from llm_rerank.recommendation.risk_control import (
    LEAST_CASES_FOR_GUARANTEE,
    LOSSES_IN_WORDS,
    Guarantee,
    conditions_of,
    control_risk,
    mean_losses,
    risk_levels,
)
from llm_rerank.types import DataError, FloatArray, Ragged

if TYPE_CHECKING:
    from llm_rerank.types import BoolArray

Float64Array = npt.NDArray[np.float64]

NEVER_PROMISED = "this rule is an estimate on held-out cases; the rule 'risk' gives a guarantee"
GIVEN_A_TAKE = (
    "probabilities are given that the user takes something new: where only a share of the lists shown leads to that, "
    "set take_rate to it, or the cut keeps more than pays"
)
SET_AFTERWARDS = "threshold was set after the fit, which judged no such cut"

DEFINED_OTHERWISE = (
    "an earlier version gave a guarantee that counted lists of which nothing is kept as right; fit again for one of "
    "lists that keep something"
)

KEEPS_EVERYTHING, KEEPS_NOTHING = 0.0, 2.0

LEAST_KEPT = 30
"""Fewer kept candidates say too little of a precision to choose a cut by it: a lucky handful has any."""


@dataclass(frozen=True)
class Cut:
    """A chosen cut and what it achieved on the cases it was chosen on (estimates; ``guarantee`` is what is promised).

    value: the rule's number; of "expected_value" cost / (gain × take_rate), of "risk" alpha. least_probability: a
    candidate is kept where its probability is at least this; 2 keeps nothing. precision, recall: pooled over
    candidates; recall is of the retrieved targets; NaN where nothing is kept or retrieved. mean_kept: candidates kept
    a case. n_cases, n_targets: their basis. no_guarantee: why there is none, "" where there is one.
    """

    rule: str
    value: float
    least_probability: float
    precision: float
    recall: float
    mean_kept: float
    n_cases: int
    n_targets: int
    guarantee: Guarantee | None = None
    no_guarantee: str = NEVER_PROMISED

    def sentence(self) -> str:
        """Say the cut in one sentence."""
        said = (
            f"cut: rule {self.rule} ({self.value:g}) keeps probability ≥ {self.least_probability:.4g}; on "
            f"{self.n_cases:,} held-out cases precision {self.precision:.3f}, recall of retrieved targets "
            f"{self.recall:.3f}, {self.mean_kept:.1f} kept a case"
        )
        if self.guarantee is not None:
            return f"{said}; guaranteed: {self.guarantee.sentence()}{self.vacuous}"
        reason = "" if self.no_guarantee == NEVER_PROMISED else f": {self.no_guarantee}"
        return f"{said} (an estimate, not a guarantee{reason})"

    @property
    def vacuous(self) -> str:
        """Say where a guarantee holds only because nothing is kept; "" elsewhere."""
        if self.guarantee is None or self.mean_kept > 0:
            return ""
        return " (but only because nothing is kept: raise alpha to keep something)"

    @property
    def misses_its_target(self) -> bool:
        """Tell whether no cut had the precision asked for, so that this one has the highest there was."""
        return self.rule == "precision" and self.precision < self.value - 1e-9

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cut:
        """Rebuild from ``to_dict``'s values; a guarantee that was given by another definition is taken back."""
        given = values.get("guarantee")
        guarantee = None if given is None else Guarantee.from_dict(given)
        if guarantee is not None and not guarantee.is_as_defined:
            return cls(**{**values, "guarantee": None, "no_guarantee": DEFINED_OTHERWISE})
        return cls(**{**values, "guarantee": guarantee})


def cut_as_set(cut: Cut | None, threshold: ThresholdConfig | None, asked: ThresholdConfig | None) -> Cut | None:
    """Give the cut that settings changed since the fit ask for; ``cut``, the fit's, where it is what they ask for.

    The rules "probability" and "expected_value" need no held-out users, and None cuts nothing. asked: what the fit was
    asked for; where it has no cut by one of the other rules, it tried in vain, and nothing is cut.

    Raises DataError where one of the other rules, or its number, is another than the fit's.
    """
    if threshold is None:
        return None
    if cut is not None and threshold == asked:
        return cut
    if threshold.rule in ("probability", "expected_value"):
        value, least = _known_beforehand(threshold)
        nan = float("nan")
        return Cut(threshold.rule, value, least, nan, nan, nan, 0, 0, no_guarantee=SET_AFTERWARDS)
    if threshold == asked:
        return None
    chosen = "the fit chose no cut" if cut is None or asked is None else f"the fit's cut is by the rule {_said(asked)}"
    raise DataError(
        f"threshold was changed after the fit to the rule {_said(threshold)}, which chooses on held-out users, and "
        f"{chosen}: fit again with this threshold, or take the rule 'probability' or 'expected_value', which need no "
        "users"
    )


def _said(threshold: ThresholdConfig) -> str:
    """Say a rule and its numbers."""
    if threshold.rule == "risk":
        return f"'risk' ({threshold.risk}, alpha {threshold.alpha:g}, delta {threshold.delta:g})"
    value = _known_beforehand(threshold)[0] if threshold.value is None else threshold.value
    return f"{threshold.rule!r} ({value:g})"


def _known_beforehand(threshold: ThresholdConfig) -> tuple[float, float]:
    """Value and least probability of a rule that asks for nothing but its own numbers."""
    if threshold.rule == "probability":
        assert threshold.value is not None
        return float(threshold.value), float(threshold.value)
    assert threshold.cost is not None
    gain = threshold.gain * threshold.take_rate
    return threshold.cost / gain, least_profitable(gain, threshold.cost)


def choose_cut(config: ThresholdConfig, probabilities: FloatArray, positive: BoolArray, rows: Ragged) -> Cut:
    """Choose the least probability that the rule asks for.

    probabilities, positive: shape (n_candidates,), laid out as ``rows`` (one row a case). Equal probabilities are
    kept or cut together. A NaN probability is never kept, and a target that has one was not retrieved.

    Of precision only cuts that keep ``LEAST_KEPT`` candidates can tell. Where none of them has the precision asked for
    it is the one that has the highest, and ``no_guarantee`` says so.

    Raises DataError where the rule needs targets and there are none.
    """
    known = ~np.isnan(probabilities)
    n_targets = int((positive & known).sum())
    needs_targets = config.rule in ("f_beta", "recall", "precision")
    if n_targets == 0 and (needs_targets or (config.rule == "risk" and config.risk == "missed_target")):
        raise DataError(
            f"threshold rule {config.rule!r} needs retrieved targets among the held-out cases and there are 0; "
            "give more interactions, or use the rule 'probability'"
        )
    value, guarantee, reason = config.value, None, NEVER_PROMISED
    if config.rule == "risk":
        value = config.alpha
        least, guarantee, reason = _controlled(config, probabilities, positive, rows)
    elif config.rule in ("probability", "expected_value"):
        value, least = _known_beforehand(config)
    else:
        assert value is not None
        least, reason = _estimated(config.rule, value, CutLevels.of(probabilities, positive), len(rows))
    chosen = probabilities >= least  # never where NaN
    n_kept, n_right = int(chosen.sum()), int(positive[chosen].sum())
    return Cut(
        rule=config.rule,
        value=value,
        least_probability=least,
        precision=n_right / n_kept if n_kept else float("nan"),
        recall=n_right / n_targets if n_targets else float("nan"),
        mean_kept=n_kept / max(len(rows), 1),
        n_cases=len(rows),
        n_targets=n_targets,
        guarantee=guarantee,
        no_guarantee=reason,
    )


@dataclass(frozen=True)
class CutLevels:
    """Every cut there is: the distinct known probabilities, highest first, and what is kept from each on.

    All of shape (n_levels,): levels as given; kept, right: float64, candidates kept and targets among them.
    """

    levels: FloatArray
    kept: Float64Array
    right: Float64Array

    @classmethod
    def of(cls, probabilities: FloatArray, positive: BoolArray) -> CutLevels:
        """Count candidates and targets from each distinct probability on; NaN is left out."""
        known = ~np.isnan(probabilities)
        order = np.argsort(-probabilities[known], kind="stable")
        levels, hits = probabilities[known][order], positive[known][order]
        last = np.flatnonzero(np.append(levels[1:] != levels[:-1], True)) if len(levels) else np.empty(0, dtype=np.intp)
        return cls(levels[last], (last + 1).astype(np.float64), np.cumsum(hits, dtype=np.float64)[last])


def _estimated(rule: str, value: float, cuts: CutLevels, n_cases: int) -> tuple[float, str]:
    """Least probability by a rule that reads precision and recall on the cases, and what is to be said of it.

    There is at least one target.
    """
    said = NEVER_PROMISED
    n_targets = int(cuts.right[-1])
    if rule == "f_beta":
        place = int(np.argmax(f_beta(cuts.right, cuts.kept, n_targets, value)))
    elif rule == "recall":
        place = int(np.argmax(cuts.right >= value * n_targets - 1e-9))
    else:
        least = min(LEAST_KEPT, int(cuts.kept[-1]))
        telling = cuts.kept >= least
        reaching = np.flatnonzero(telling & (cuts.right >= value * cuts.kept - 1e-9))
        if len(reaching):
            place = int(reaching[-1])
        else:
            precision = np.where(telling, cuts.right / cuts.kept, 0.0)
            place = int(np.flatnonzero(precision >= precision.max() - 1e-12)[-1])
            said = (
                f"a precision of {value:g} was asked for, and no cut reaches it that keeps {least} candidates or more "
                f"of the {n_cases:,} held-out cases: the highest that can be told is {precision[place]:.4g}, at recall "
                f"{cuts.right[place] / n_targets:.3g} with {cuts.kept[place] / n_cases:.3g} kept a case, and that is "
                "the cut; ask for at most that, or use the rule 'recall'"
            )
    return float(cuts.levels[place]), said


def _controlled(
    config: ThresholdConfig, probabilities: FloatArray, positive: BoolArray, rows: Ragged
) -> tuple[float, Guarantee | None, str]:
    """Least probability by the rule "risk", its guarantee, and why there is none."""
    levels = risk_levels()
    losses, n_counted = mean_losses(config.risk, probabilities, positive, rows, levels)
    place = int(control_risk(config.risk, losses, n_counted, config.alpha, config.delta))
    if place < 0:
        everything = config.risk == "missed_target"
        return (
            KEEPS_EVERYTHING if everything else KEEPS_NOTHING,
            None,
            f"no cut could be shown to hold alpha {config.alpha:g} at delta {config.delta:g} on {n_counted[0]:,} cases,"
            f" so {'everything' if everything else 'nothing'} is kept; give more cases, or raise alpha or delta",
        )
    hit = positive & ~np.isnan(probabilities)
    n_retrieved = len(np.unique(rows.row_of_value[hit]))
    least = float(levels[place])
    if n_retrieved < LEAST_CASES_FOR_GUARANTEE:
        reason = (
            f"chosen on {n_retrieved:,} cases with a retrieved target, fewer than the {LEAST_CASES_FOR_GUARANTEE} that "
            f"a guarantee is given on; on these, {LOSSES_IN_WORDS[config.risk]} is {losses[place]:.4g}"
        )
        return least, None, reason
    observed, conditions = float(losses[place]), conditions_of(config.risk)
    return least, Guarantee(config.risk, config.alpha, config.delta, int(n_counted[place]), observed, conditions), ""


def least_profitable(gain: float, cost: float) -> float:
    """Least float32 probability p with p × gain > cost, as a float; needs 0 ≤ cost < gain."""
    least = np.float32(cost / gain)
    while float(least) * gain <= cost:
        least = np.nextafter(least, np.float32(2))
    return float(least)


def cut_curve(
    probabilities: FloatArray, positive: BoolArray, rows: Ragged, n_points: int = 50
) -> dict[str, list[float]]:
    """Tell what other cuts would have done: lists under least_probability, precision, recall, mean_kept.

    Arguments as in ``choose_cut``. Points run from the highest cut to the lowest, evenly spaced in the logarithm of
    what is kept; fewer than n_points where there are fewer cuts; none without a retrieved target.
    """
    cuts = CutLevels.of(probabilities, positive)
    if not len(cuts.levels) or not cuts.right[-1]:
        return {name: [] for name in ("least_probability", "precision", "recall", "mean_kept")}
    wanted = np.geomspace(cuts.kept[0], cuts.kept[-1], n_points)
    places = np.unique(np.minimum(np.searchsorted(cuts.kept, wanted - 1e-9), len(cuts.kept) - 1))
    return {
        "least_probability": cuts.levels[places].astype(np.float64).tolist(),
        "precision": (cuts.right / cuts.kept)[places].tolist(),
        "recall": (cuts.right / cuts.right[-1])[places].tolist(),
        "mean_kept": (cuts.kept / len(rows))[places].tolist(),
    }


def f_beta(true_positives: Float64Array, kept: Float64Array, n_targets: int, beta: float) -> Float64Array:
    """F-beta = (1 + β²) TP / (β² targets + kept): recall weighs β times as much as precision."""
    return (1 + beta**2) * true_positives / (beta**2 * n_targets + kept)


def bounded_kept(
    kept: BoolArray, ranks: npt.NDArray[np.int64], rows: Ragged, *, min_items: int, max_items: int | None
) -> BoolArray:
    """Let the cut keep at least ``min_items`` and at most ``max_items`` of each list.

    kept, ranks (from 1 in each list): shape (n_candidates,), laid out as ``rows``. Of too many kept ones those of the
    best ranks stay; where there are too few the best ranks of the others are added. So how many are kept does not
    depend on the ranks.
    """
    order = np.lexsort((ranks, ~kept, rows.row_of_value))  # in each list the kept ones first, each part by rank
    places = np.empty(len(kept), dtype=np.int64)
    places[order] = positions_in_row(rows)
    wanted = np.maximum(np.bincount(rows.row_of_value[kept], minlength=len(rows)), min_items)
    if max_items is not None:
        wanted = np.minimum(wanted, max_items)
    return places < wanted[rows.row_of_value]
