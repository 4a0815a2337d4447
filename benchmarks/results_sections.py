"""Sections of the page of results that show what was measured: how, the test split, thin items and users, the maps.

Each takes the reports and returns its markdown, or "" where its reports are absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.regimes import STEPS
from benchmarks.results_plots import plots_of
from benchmarks.results_reports import (
    COSTS,
    LADDER,
    METRIC,
    OWN,
    Gain,
    Report,
    Results,
    best_single,
    difference_of,
    figure,
    gains_on_test,
    in_order,
    ranks_alike,
    regime_gains,
    regime_words,
    signed,
    steps_of,
    with_interval,
)

LEAST_CASES = 100
"""Users that a stratum must have before a sentence is made of it."""


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table; the first column is set to the left, the others to the right."""
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def how(results: Results) -> str:
    """Say what was measured and how."""
    machines = dict.fromkeys(_machine(report) for report in [*results.tests.values(), *results.maps.values()])
    return f"""## What was measured

- The ranking of the whole catalogue, items the user has seen removed; a target that is not retrieved scores 0.
- Test tables: the test split; every setting was chosen on the validation split or inside a fit. The test split was
  looked at again after changes of the library, that of amazon_scientific by its prototypes too: it is not untouched.
- Maps of regimes and the further experiments: the validation split, unless they say otherwise.
- Intervals: 95 %, bootstrap over users; differences are paired by user, and p on the test split is Holm's over all
  tests of a data set. Intervals of the maps are not corrected for their number.
- Steps, each a whole reranker that tunes itself: {", ".join(f"`{step}` (`{STEPS[step]}`)" for step in LADDER)}.
  What the library chooses by itself is `{OWN}`, in the maps "own choice".
- Hardware: {"; ".join(machines)}.
"""


def _machine(report: Report) -> str:
    hardware = report["hardware"]
    return (
        f"{hardware['processor']}, {hardware['cores']} cores, {hardware['memory_gb']} GiB, "
        f"OMP_NUM_THREADS {hardware['threads']}"
    )


def on_test(results: Results) -> str:
    """Show every system of each data set on its test split, the gains step by step, and the losses."""
    parts = ["## On the test split\n"] if results.tests else []
    for name, report in results.tests.items():
        parts += [f"### {name}\n", f"{report['protocol']}.\n", systems_table(report)]
        parts += ["\nStep by step, paired (p after Holm):\n", *_steps_on_test(name, report)]
        parts += ["\nLosses:\n", *losses(report), ""]
    if parts:
        parts.append(
            "Seconds to fit: without the encoding of texts for single systems, with it for the fused ones, except for "
            "texts\nthat an earlier run had left in the cache.\n"
        )
    return "\n".join(parts)


def systems_table(report: Report) -> str:
    """Lay out one row a system."""
    memory = {name: _memory(entry) for name, entry in report["systems"].items()}
    heads = ["system", "NDCG@10 [95 %]", "HR@10", "recall@100", "coverage@10", "fit, s"]
    heads += ["memory, MiB"] if any(memory.values()) else []
    rows = []
    for name, entry in report["systems"].items():
        low, high = entry["ci95"][METRIC]
        rates = [figure(entry[key]) for key in ("hr@10", "recall@100", "coverage@10")]
        row = [f"`{name}`", f"{figure(entry[METRIC])} [{figure(low)}, {figure(high)}]", *rates, _seconds(entry)]
        rows.append(row + ([memory[name] or "–"] if any(memory.values()) else []))
    return markdown_table(heads, rows)


def _memory(entry: Report) -> str:
    found = [value for key, value in entry.items() if key.startswith("peak_memory_mb") and value is not None]
    return f"{found[0]:,.0f}" if found else ""


def _seconds(entry: Report) -> str:
    seconds = entry["seconds_fit"]
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"


def _steps_on_test(dataset: str, report: Report) -> list[str]:
    tested = {(gain.step, gain.below): gain for gain in gains_on_test(dataset, report)}
    lines = []
    for below, step in pairwise(steps_of(report)):
        gain = tested.get((step, below))
        if gain is None:
            apart = report["systems"][STEPS[step]][METRIC] - report["systems"][STEPS[below]][METRIC]
            lines.append(f"- `{step}` over `{below}`: {signed(apart)}, not tested in pairs")
        else:
            difference = with_interval(gain.mean, gain.low, gain.high)
            lines.append(f"- `{step}` over `{below}`: {difference}, p = {figure(gain.p)}")
    if OWN in report["systems"]:
        lines.append(f"- {over_best_single(report)}")
    return lines


def over_best_single(report: Report) -> str:
    """Say what the library's own choice is worth beside the best single model."""
    best = best_single(report)
    ratio = report["systems"][OWN][METRIC] / report["systems"][best][METRIC]
    test = difference_of(report, OWN, best)
    tested = "not tested in pairs"
    if test is not None:
        tested = f"{with_interval(test['mean'], test['low'], test['high'])}, p = {figure(test['p'])} (Holm)"
    return f"`{OWN}` {ratio:.3f} × `{best}`, the best single model: {tested}"


def losses(report: Report) -> list[str]:
    """Say in words every tested pair in which the library's own choice, or a step, lies below what it should beat."""
    pairs = [(OWN, name) for name in report["systems"] if name != OWN]
    # a step that ranks exactly as the own choice is named once
    one_name = {name: OWN if ranks_alike(report, OWN, name) else name for name in report["systems"]}
    pairs += [(one_name[STEPS[step]], one_name[STEPS[below]]) for below, step in pairwise(steps_of(report))]
    lines = []
    for name, other in dict.fromkeys(pairs):
        test = difference_of(report, name, other)
        if test is not None and test["mean"] < 0:
            told = "a loss" if test["high"] < 0 else "not told apart from none"
            difference = with_interval(test["mean"], test["low"], test["high"])
            lines.append(f"- `{name}` lies below `{other}`: {difference}, {told}")
    return lines or ["- none: no tested step lies below the one before it, and no system above the library's choice"]


def strata(results: Results) -> str:
    """Show NDCG@10 by the length of histories and by how often targets were taken before."""
    if not results.tests:
        return ""
    parts = [
        "## Thin users and thin items\n",
        "NDCG@10 on the test split. Users by the distinct items they had; items by their buyers: then only targets of "
        "that\nkind count as targets. These are means without a paired test.\n",
    ]
    for dataset, report in results.tests.items():
        systems = report["systems"]
        names = list(dict.fromkeys([best_single(report), *(STEPS[step] for step in steps_of(report)), OWN]))
        names = [name for name in names if name in systems]
        rows = []
        for stratum, last in systems[names[-1]]["strata"].items():
            if last is not None:
                values = [systems[name]["strata"][stratum][METRIC] for name in names]
                interval = f" [{figure(last['ci95'][0])}, {figure(last['ci95'][1])}]"
                cells = [
                    f"{stratum} {'items' if stratum.startswith('user') else 'buyers'}",
                    f"{last['n_cases']:,}",
                    *(figure(value) for value in values),
                ]
                rows.append([*cells[:-1], cells[-1] + interval])
        parts += [f"### {dataset}\n", markdown_table(["", "users", *(f"`{name}`" for name in names)], rows)]
        parts.append(_strata_words(report, names))
    return "\n".join(parts)


def _strata_words(report: Report, names: Sequence[str]) -> str:
    best, own = (report["systems"][name]["strata"] for name in (names[0], names[-1]))
    below = [
        f"{stratum} ({figure(own[stratum][METRIC])} against {figure(best[stratum][METRIC])})"
        for stratum, entry in own.items()
        if entry is not None and entry["n_cases"] >= LEAST_CASES and entry[METRIC] < best[stratum][METRIC]
    ]
    where = "; ".join(below) or "none"
    return f"\nStrata of {LEAST_CASES} users or more where `{names[-1]}` lies below `{names[0]}`: {where}.\n"


def maps(results: Results) -> str:
    """Show what each step reaches and gains in every regime, with plots."""
    if not results.maps:
        return ""
    parts = [
        "## Map of regimes: what each step adds, and where\n",
        "Each cell: what the step reaches and, below it, its gain over the step to its left with a 95 % interval; bold "
        "where\nthe interval leaves out 0, on either side. Shops with a part of the users are one draw of them, of "
        "which intervals\nsay nothing, unless the row says how many: then their spread is in the intervals.\n",
    ]
    for dataset, report in results.maps.items():
        parts += [f"### {dataset} ({report['split']})\n", _map_table(dataset, report), ""]
        parts += [f"{plot.markdown}\n" for plot in plots_of(dataset, report)]
        costs = [
            f"- {regime_words(name)}: `{gain.step}` lies below `{gain.below}`: "
            + with_interval(gain.mean, gain.low, gain.high)
            for name in in_order(list(report["regimes"]))
            for gain in regime_gains(dataset, name, report["regimes"][name])
            if gain.verdict == COSTS
        ]
        parts += ["Losses (interval below 0):\n", *(costs or ["- none"]), ""]
        parts += [_fit_seconds(report), ""]
    return "\n".join(parts)


def _map_table(dataset: str, report: Report) -> str:
    regimes = report["regimes"]
    steps = [step for step in STEPS if any(step in regime["means"] for regime in regimes.values())]
    with_chance = any("at_random" in regime for regime in regimes.values())
    with_choice = any("auto" in regime for regime in regimes.values())
    rows = []
    for name in in_order(list(regimes)):
        regime = regimes[name]
        gains = {gain.step: gain for gain in regime_gains(dataset, name, regime)}
        cells = [_cell(regime["means"].get(step), gains.get(step)) for step in steps]
        chance = [figure(regime["at_random"]) if "at_random" in regime else "–"] if with_chance else []
        choice = [_choice(regime.get("auto"))] if with_choice else []
        draws = f" ({regime['draws']} draws)" if regime.get("draws", 1) > 1 else ""
        rows.append(
            [regime_words(name) + draws, regime["metric"].upper(), f"{regime['n']:,}", *chance, *cells, *choice]
        )
    heads = ["regime", "metric", "users", *(["at random"] if with_chance else []), *(f"`{step}`" for step in steps)]
    heads += ["own choice"] if with_choice else []
    return markdown_table(heads, rows)


def _choice(auto: Mapping[str, Any] | None) -> str:
    if auto is None:
        return "–"
    choices = auto.get("choices", [])
    often = f" ({choices.count(auto['choice'])} of {len(choices)})" if len(set(choices)) > 1 else ""
    return f"`{auto['choice']}`{often}"


def _cell(mean: float | None, gain: Gain | None) -> str:
    if mean is None:
        return "–"
    if gain is None:
        return figure(mean)
    return f"{figure(mean)}<br>{_interval(gain)}"


def _interval(gain: Gain) -> str:
    written = with_interval(gain.mean, gain.low, gain.high)
    return written if gain.low <= 0 <= gain.high else f"**{written}**"


def _fit_seconds(report: Report) -> str:
    found = {step: report["fits"].get(f"100% of users: {step}") for step in LADDER}
    seconds = [f"`{step}` {entry['seconds_fit']:.0f}" for step, entry in found.items() if entry is not None]
    return f"Seconds of a fit on all users' events: {', '.join(seconds)}."
