"""Sections of the page of results that draw conclusions: the library's own choice, and when a shop needs what.

Every sentence follows from thresholds over the numbers, so that the advice changes when they do.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.results_reports import (
    COSTS,
    LADDER,
    LEVEL,
    LITTLE,
    PAYS,
    WORTH,
    Gain,
    Results,
    figure,
    in_order,
    percent,
    regime_words,
    signed,
)
from benchmarks.results_sections import markdown_table

LEAST = f"{100 * WORTH:g} %"


def own_choice(results: Results) -> str:
    """Say whether what the library chooses by itself is within one standard error of the best step in hindsight."""
    choices = results.choices()
    if not choices:
        return ""
    rows = [
        [
            choice.dataset,
            regime_words(choice.regime),
            f"`{choice.best}`",
            f"`{choice.own}`",
            figure(choice.own_mean),
            signed(choice.difference),
            figure(choice.error),
            "yes" if choice.within else "**no**",
        ]
        for choice in choices
    ]
    heads = ["data set", "regime", "best step", "own choice", "reaches", "own − best", "standard error", "within one"]
    within = sum(choice.within for choice in choices)
    return f"""## Is the library's own choice good enough?

What the library chooses by itself beside the best step in hindsight, which is picked on the very users it is judged on
and so looks better than it is. Within one standard error of the paired difference: {within} of {len(choices)}.

{markdown_table(heads, rows)}
"""


def step_to_take(gains: Sequence[Gain]) -> str:
    """Name the step that one regime of one data set is worth; the lowest step where nothing is worth more.

    A step is taken where its interval over the step below lies above 0 and it reaches at least ``WORTH`` more than the
    step taken before it, or than chance. gains: at least one, in the order of the ladder.
    """
    taken, base = gains[0].below, max(gains[0].below_mean, gains[0].floor)
    for gain in gains:
        if gain.low > 0 and gain.reached >= (1 + WORTH) * base:
            taken, base = gain.step, gain.reached
    return taken


def when_you_need_what(results: Results) -> str:
    """Give advice by regime, then by step."""
    gains = results.gains()
    if not gains:
        return ""
    return f"""## When you need what

Made from the numbers above. The table names the step to take: the highest whose gain over the step below has its 95 %
interval above 0 and that reaches at least {LEAST} more than the step one would take otherwise (and than chance). In
brackets: steps not taken whose interval lies above 0 all the same. {_by_chance(gains)}

{_by_regime(gains)}

{_nothing_pays(gains)}

Step by step, each over the one below it (over chance, where the one below does worse than chance); a step *pays* where
it gains at least {LEAST} and the interval lies above 0:

{_by_step(gains)}
"""


def _by_chance(gains: Sequence[Gain]) -> str:
    # a regime that is another by its cases (all targets are often taken) or a step that changes nothing counts once
    different = {(gain.dataset, gain.step, gain.mean, gain.low, gain.high): gain for gain in gains}.values()
    expected = 0.025 * len(different)
    return (
        f"Of {len(different)} different intervals about {expected:.1f} would lie above 0 by chance alone; "
        f"{sum(gain.low > 0 for gain in different)} do. Where a shop with a part of the users was drawn once, its "
        "intervals leave out what another draw would have shown: its small gains and losses are hints."
    )


def _by_regime(gains: Sequence[Gain]) -> str:
    datasets = list(dict.fromkeys(gain.dataset for gain in gains))
    rows = []
    for regime in in_order([gain.regime for gain in gains]):
        cells = []
        for dataset in datasets:
            here = [gain for gain in gains if (gain.dataset, gain.regime) == (dataset, regime)]
            cells.append(_advice(here) if here else "–")
        rows.append([regime_words(regime), *cells])
    return markdown_table(["you have", *datasets], rows)


def _advice(gains: Sequence[Gain]) -> str:
    taken = step_to_take(gains)
    above = gains if taken == gains[0].below else gains[[gain.step for gain in gains].index(taken) + 1 :]
    also = [f"`{gain.step}` over `{gain.below}` {percent(gain.relative)}" for gain in above if gain.low > 0]
    return f"`{taken}`" + (f" ({', '.join(also)})" if also else "")


def _nothing_pays(gains: Sequence[Gain]) -> str:
    by_place: dict[tuple[str, str], list[Gain]] = {}
    for gain in gains:
        by_place.setdefault((gain.regime, gain.dataset), []).append(gain)
    where = [place for place, here in by_place.items() if step_to_take(here) == here[0].below]
    return f"Nothing is worth more than the lowest step measured: {_grouped(where) or 'nowhere'}."


def _by_step(gains: Sequence[Gain]) -> str:
    lines = []
    for step in LADDER:
        of_step = [gain for gain in gains if gain.step == step]
        if not of_step:
            continue
        found = {verdict: [gain for gain in of_step if gain.verdict == verdict] for verdict in (PAYS, LITTLE, COSTS)}
        n_level = sum(gain.verdict == LEVEL for gain in of_step)
        if found[PAYS]:
            lines.append(f"- **`{step}`** pays with {_listed(found[PAYS])}.")
        else:
            lines.append(f"- **`{step}`** pays in none of the {len(of_step)} regimes where it was measured.")
        if found[LITTLE]:
            lines.append(f"  A little, under {LEAST}, with {_listed(found[LITTLE])}.")
        if found[COSTS]:
            lines.append(f"  It costs with {_listed(found[COSTS])}.")
        lines.append(f"  Not told apart from the step below it in {n_level} of {len(of_step)}.")
    return "\n".join(lines)


def _listed(gains: Sequence[Gain]) -> str:
    return _grouped([(gain.regime, f"{gain.dataset} {percent(gain.relative)}") for gain in gains])


def _grouped(said: Sequence[tuple[str, str]]) -> str:
    """Gather what is said of each regime: "new items (a +12 %, b +30 %); events of 1 % of users (a +9 %)"."""
    regimes = in_order([regime for regime, _ in said])
    parts = (
        f"{regime_words(regime)} ({', '.join(words for other, words in said if other == regime)})" for regime in regimes
    )
    return "; ".join(parts)
