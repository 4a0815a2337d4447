"""What the lists of tested users were worth as decisions: their probabilities, and what the cut kept of them.

How well lists are ordered is in ``comparison.py``; what a fit estimated on its own held-out users is in its report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from llm_rerank.data.frames import id_codes
from llm_rerank.evaluation.protocols import Trial
from llm_rerank.metrics import classification
from llm_rerank.recommendation.decision_facts import DECISION
from llm_rerank.reliability import calibration_line

if TYPE_CHECKING:
    from llm_rerank.types import BoolArray, IntArray


def tested_probabilities(result: pd.DataFrame, trial: Trial) -> dict[str, Any]:
    """Hold the probabilities of lists against the trial's targets, JSON-ready; {} where there are none.

    result: of ``recommend`` for the trial's users, whole lists (k=None). Keys: n_users; mean_probability_top_10 and
    rate_top_10, the share of the first ten that is a target; slope and slope_ci95 over all rows, lists as the unit;
    counted, of the trial.
    """
    result = result[result["probability"].notna()]
    if not len(result):
        return {}
    users, positive = _taken(result, trial)
    probabilities, top = result["probability"].to_numpy(), result["rank"].to_numpy() <= 10
    line = calibration_line(probabilities, positive, users)
    return {
        "n_users": len(np.unique(users)),
        "mean_probability_top_10": float(probabilities[top].mean()),
        "rate_top_10": float(positive[top].mean()),
        "slope": line.slope,
        "slope_ci95": list(line.slope_interval),
        "counted": trial.counted,
    }


def tested_cut(result: pd.DataFrame, trial: Trial) -> dict[str, Any]:
    """Hold what a cut kept of lists against the trial's targets, JSON-ready; {} where nothing was cut.

    result: of ``recommend`` for the trial's users, whole lists (k=None), as a cut is chosen on them: of their first k
    alone the recall is near 1 whatever the cut. Keys: n_users, n (candidates), n_targets (among them),
    least_probability, mean_kept (a list), and those of ``metrics.Classification``, pooled over the candidates: accuracy
    beside its base_rate, precision and recall, of the targets that are in the lists.
    recall_of_all: of all targets.
    """
    least = result.attrs[DECISION]["least_probability"]
    if least is None or not len(result):
        return {}
    users, positive = _taken(result, trial)
    kept = result["kept"].to_numpy(dtype=bool)
    n_users = len(np.unique(users))
    return {
        **asdict(classification(kept, positive)),
        "recall_of_all": int((kept & positive).sum()) / len(trial.cases.targets.values),
        "mean_kept": int(kept.sum()) / n_users,
        "least_probability": least,
        "n_users": n_users,
        "n_targets": int(positive.sum()),
    }


def cut_in_words(tested: Mapping[str, Any]) -> str:
    """Say in one sentence what a cut was worth on the tested users. tested: of ``tested_cut``, not empty."""
    said = (
        f"cut: {tested['mean_kept']:.1f} of {tested['n'] / tested['n_users']:.0f} candidates a list are kept, for "
        f"{tested['n_users']:,} tested users"
    )
    if tested["mean_kept"]:
        said += (
            f": precision {tested['precision']:.4f}, recall {_share(tested['recall'])} of the targets in the lists, "
            f"{tested['recall_of_all']:.3f} of all"
        )
    same = "nothing" if 2 * tested["n_targets"] <= tested["n"] else "everything"
    return (
        f"{said}; accuracy {tested['accuracy']:.4f} beside the {tested['base_rate']:.4f} of keeping {same}, which it "
        "is near by nature where few candidates are targets: a cut is judged by precision and recall"
    )


def _share(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "unknown"


def _taken(result: pd.DataFrame, trial: Trial) -> tuple[IntArray, BoolArray]:
    """Tell the case of each row, and whether its item is a target of it: both of shape (n_rows,)."""
    users = id_codes(result["user_id"], trial.user_ids)
    n_items, targets = len(trial.items), trial.cases.targets
    pairs = users * n_items + id_codes(result["item_id"], trial.items.ids)
    return users, np.isin(pairs, targets.row_of_value * n_items + targets.values)
