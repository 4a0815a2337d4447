"""What the committed reports say, as numbers: gains of each step of the ladder, losses, the library's own choice.

The ladder is ``regimes.STEPS``, simplest first. What the library chooses by itself is a system of its own on the test
split; in a regime it is the step that the report names under "auto".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.regimes import NEW_ITEMS, STEPS
from llm_rerank.storage import read_json

OWN = "fused"
"""What the library chooses by itself, as a system of the ranking benchmark."""

LADDER = tuple(STEPS)
METRIC = "ndcg@10"
WHOLE_TEST = "all users, test"
"""Name, among the regimes, of the whole shop judged on the test split."""

DATASETS = ("amazon_scientific", "online_retail", "completejourney", "amazon_musical_instruments")
"""Their order on the page; others follow by name."""

WORTH = 0.1
"""Least gain that is called worth its step: a share of what the step below reaches."""

PAYS, LITTLE, LEVEL, COSTS = "pays", "pays a little", "level", "costs"

Report = Mapping[str, Any]
_SHARE = re.compile(r"(\d+(?:\.\d+)?)% of users(?:, (.+))?")


@dataclass(frozen=True)
class Gain:
    """A step over the one below it in one regime: the mean paired difference, its 95 % interval and its p value.

    below_mean: what the step below reaches. floor: what chance reaches; a step below chance is no yardstick.
    """

    dataset: str
    regime: str
    step: str
    below: str
    below_mean: float
    mean: float
    low: float
    high: float
    p: float
    metric: str = METRIC
    floor: float = 0.0

    @property
    def relative(self) -> float:
        """Gain as a share of what the step below reaches, or chance where that is more; without end over 0."""
        base = max(self.below_mean, self.floor)
        gain = self.reached - base
        return gain / base if base > 0 else math.copysign(math.inf, gain) if gain else 0.0

    @property
    def reached(self) -> float:
        """Mean of the step itself."""
        return self.below_mean + self.mean

    @property
    def verdict(self) -> str:
        """PAYS, LITTLE, LEVEL (the interval holds 0) or COSTS."""
        if self.low > 0:
            return PAYS if self.relative >= WORTH else LITTLE
        return COSTS if self.high < 0 else LEVEL


@dataclass(frozen=True)
class Choice:
    """What the library chose by itself beside the best step in hindsight. difference: own − best, paired.

    error: the standard error of that difference.
    """

    dataset: str
    regime: str
    best: str
    own: str
    own_mean: float
    difference: float
    error: float

    @property
    def within(self) -> bool:
        """Whether the own choice lies at most one standard error below the best."""
        return self.difference >= -self.error


@dataclass(frozen=True)
class Results:
    """The folder of all reports; those on the test split and the maps of regimes, by data set."""

    folder: Path
    tests: Mapping[str, Report]
    maps: Mapping[str, Report]

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read what the page always shows; further folders are read by the sections that show them."""
        rankings = load(folder, "ranking")
        whole = {name: report for name, report in rankings.items() if report["complete"] and report["split"] == "test"}
        return cls(folder, whole, joined_maps(load(folder, "regimes")))

    def gains(self) -> list[Gain]:
        """Every gain of a step over the one below: whole shops on the test split, then the maps."""
        tested = [gain for name, report in self.tests.items() for gain in gains_on_test(name, report)]
        return tested + [gain for name, report in self.maps.items() for gain in map_gains(name, report)]

    def choices(self) -> list[Choice]:
        """Every own choice that can be judged: whole shops on the test split, then the maps."""
        found = [choice_on_test(name, report) for name, report in self.tests.items()]
        for name, report in self.maps.items():
            found += [regime_choice(name, label, regime) for label, regime in report["regimes"].items()]
        return [choice for choice in found if choice is not None]


def load(results: Path, folder: str) -> dict[str, Report]:
    """Read the reports of a folder by data set, in the order of ``DATASETS``; none where the folder is absent."""
    paths = {path.stem: path for path in sorted((results / folder).glob("*.json"))}
    names = [name for name in DATASETS if name in paths] + [name for name in paths if name not in DATASETS]
    return {name: read_json(paths[name]) for name in names}


def joined_maps(maps: Mapping[str, Report]) -> dict[str, Report]:
    """Join maps of one data set: a later run's regimes fill in what the map that bears its name lacks."""
    joined: dict[str, Report] = {}
    for name, report in maps.items():
        of_set = report.get("dataset", name)
        if of_set in joined:
            first = joined[of_set]
            report = {**first, "regimes": {**first["regimes"], **_lacking(report["regimes"], first["regimes"])}}
        joined[of_set] = report
    return joined


def _lacking(regimes: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    return {name: regime for name, regime in regimes.items() if name not in known}


def best_single(report: Report) -> str:
    """Name the best system that is one model by its NDCG@10."""
    systems = report["systems"]
    singles = [name for name in systems if not name.startswith("fused") and name not in (*STEPS.values(), "z_sum")]
    return max(singles, key=lambda name: systems[name][METRIC])


def steps_of(report: Report) -> list[str]:
    """List the steps of the ladder that a ranking report measures."""
    return [step for step in LADDER if STEPS[step] in report["systems"]]


def difference_of(report: Report, name: str, other: str) -> dict[str, float] | None:
    """Paired difference name − other: mean, low, high, p after Holm; None where the report tests no such pair.

    Where a system ranked exactly as the library's own choice did, the tests of that choice stand for it.
    """
    for a in _stand_ins(report, name):
        for b in _stand_ins(report, other):
            for pair, sign in ((f"{a} vs {b}", 1), (f"{b} vs {a}", -1)):
                if pair in report["tests"]:
                    test = report["tests"][pair]
                    low, high = sorted(sign * bound for bound in test["ci95"])
                    return {"mean": sign * test["difference"], "low": low, "high": high, "p": test["p_holm"]}
    return None


def ranks_alike(report: Report, name: str, other: str) -> bool:
    """Tell whether a test of two systems finds no difference on any user."""
    test = report["tests"].get(f"{name} vs {other}")
    return test is not None and test["ci95"] == [0, 0]


def _stand_ins(report: Report, name: str) -> list[str]:
    return [name, OWN] if ranks_alike(report, OWN, name) else [name]


def gains_on_test(dataset: str, report: Report) -> list[Gain]:
    """Gains of each step over the one below on the test split, where the report tests the pair."""
    gains = []
    for below, step in pairwise(steps_of(report)):
        found = difference_of(report, STEPS[step], STEPS[below])
        if found is not None:
            mean, low, high, p = (found[name] for name in ("mean", "low", "high", "p"))
            reached = report["systems"][STEPS[below]][METRIC]
            gains.append(Gain(dataset, WHOLE_TEST, step, below, reached, mean, low, high, p))
    return gains


def regime_gains(dataset: str, name: str, regime: Report) -> list[Gain]:
    """Gains of each step over the one below that was measured in a regime."""
    means, gains = regime["means"], []
    for below, step in pairwise([step for step in LADDER if step in means]):
        found = regime["steps"].get(f"{step} over {below}")
        if found is not None:
            figures = {key: found[key] for key in ("mean", "low", "high", "p")}
            floor = regime.get("at_random", 0.0)
            metric = regime["metric"]
            gains.append(Gain(dataset, name, step, below, means[below], **figures, metric=metric, floor=floor))
    return gains


def map_gains(dataset: str, report: Report) -> list[Gain]:
    """Gains of every regime of a map."""
    return [gain for name, regime in report["regimes"].items() for gain in regime_gains(dataset, name, regime)]


def choice_on_test(dataset: str, report: Report) -> Choice | None:
    """Own choice beside the best step on the test split; None where one or the test between them is absent."""
    steps = steps_of(report)
    if OWN not in report["systems"] or not steps:
        return None
    best = max(steps, key=lambda step: report["systems"][STEPS[step]][METRIC])
    found = difference_of(report, OWN, STEPS[best])
    if found is None:
        return None
    error = (found["high"] - found["low"]) / (2 * 1.96)  # of a 95 % interval
    return Choice(dataset, WHOLE_TEST, best, OWN, report["systems"][OWN][METRIC], found["mean"], error)


def regime_choice(dataset: str, name: str, regime: Report) -> Choice | None:
    """Own choice beside the best step in a regime; None where the report names no choice."""
    if "auto" not in regime:
        return None
    auto = regime["auto"]
    own = auto["choice"]
    mean = auto.get("mean", regime["means"][own])
    return Choice(dataset, name, auto["best"], own, mean, -auto["loss"], auto["standard_error"])


def share_of(regime: str) -> float | None:
    """Share of the users whose events a regime has; None for regimes of another kind."""
    match = _SHARE.fullmatch(regime)
    return None if match is None or match[2] else float(match[1]) / 100


def regime_words(regime: str) -> str:
    """Name a regime for the page: "1% of users" → "events of 1 % of users", "100% of users, cut" → "cut"."""
    match = _SHARE.fullmatch(regime)
    if match is None:
        return regime
    if match[2] is None:
        return "events of all users" if float(match[1]) == 100 else f"events of {match[1]} % of users"
    return match[2] if float(match[1]) == 100 else f"{match[1]} % of users, {match[2]}"


def in_order(regimes: Iterator[str] | list[str]) -> list[str]:
    """Order regimes: the whole shop on the test split, shares from small to large, then the others, new items last."""
    names = list(dict.fromkeys(regimes))
    shares = sorted((name for name in names if share_of(name) is not None), key=lambda name: share_of(name) or 0)
    others = [name for name in names if share_of(name) is None and name not in (WHOLE_TEST, NEW_ITEMS)]
    ends = [[name] if name in names else [] for name in (WHOLE_TEST, NEW_ITEMS)]
    return [*ends[0], *shares, *others, *ends[1]]


def figure(value: float) -> str:
    """Write a number with four decimals and no zero before the point: .0123; −0 is 0."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{value + 0.0:.4f}").replace("-", "−")


def signed(value: float) -> str:
    """Write a difference with its sign: +.0123, −.0007."""
    return ("+" if value >= 0 else "") + figure(value)


def with_interval(mean: float, low: float, high: float) -> str:
    """Write a paired difference with its interval: +.0123 [+.0100, +.0146]."""
    return f"{signed(mean)} [{signed(low)}, {signed(high)}]"


def percent(share: float) -> str:
    """Write a relative gain: +12 %."""
    if math.isinf(share):
        return "from 0" if share > 0 else "to 0"
    return f"{share:+.0%}".replace("%", " %").replace("-", "−")
