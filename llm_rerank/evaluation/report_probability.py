"""Sections on decisions: what a probability is worth, where the cut lies and what it promises, what variety costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llm_rerank.evaluation.charts import Axis, Row, Series, dot_plot, xy_chart
from llm_rerank.evaluation.page import Figure, Section, Table
from llm_rerank.evaluation.scales import interval_words, number_words
from llm_rerank.evaluation.tested_lists import cut_in_words
from llm_rerank.recommendation.thresholds import Cut

NORMAL_975 = 1.959964
LEAST_KEPT = 10


def wilson_interval(share: float, n: float, z: float = NORMAL_975) -> tuple[float, float]:
    """95 % interval of a binomial share seen in n draws (Wilson, 1927): never below 0, never empty at 0 of n."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def probability_section(
    calibration: Mapping[str, Any] | None,
    of: str = "",
    *,
    tested: Mapping[str, Any] | None = None,
    by_position: bool = False,
    refitted: bool = False,
) -> Section:
    """Show what probabilities are worth: reliability, slope, calibration error, skill, and all by strata.

    calibration: of the fit's report; empty or None: absent. of: words for the lists meant, where not our own. tested:
    ``tested_lists.tested_probabilities``. by_position: the fit held out by its fallback protocol, "positions".
    refitted: the calibrator was fitted again on both folds after it had been judged.
    """
    title = f"What a probability is worth{of}"
    anchor = "probability" + ("-upstream" if of else "")
    if not calibration:
        absent = "This fit reports no calibration: it had too few retrieved targets, or its model is older than that."
        return Section(anchor, title, [absent, *([tested_in_words(tested)] if tested else [])])
    paragraphs = _in_words(calibration)
    if by_position:
        paragraphs.append(
            "These figures are of the fallback protocol 'positions': the last event of single users was held out, so "
            "they speak of users who were about to take something, and not of all who might come."
        )
    if refitted:
        paragraphs.append(
            "They are of the calibrator that fold F had taught. The one in use was fitted again on both folds, and no "
            "held-out user of the fit is left to judge it."
        )
    if tested:
        paragraphs.append(tested_in_words(tested))
    figures = [*_reliability(calibration.get("reliability")), *_slopes(calibration.get("strata") or {})]
    if not figures:
        paragraphs.append("Bins and strata were not kept, so there is no reliability diagram.")
    return Section(anchor, title, paragraphs, figures, _strata_table(calibration.get("strata") or {}))


def tested_in_words(tested: Mapping[str, Any]) -> str:
    """Say what the probabilities of the tested users' lists were worth."""
    low, high = tested.get("slope_ci95", (math.nan, math.nan))
    mean, rate = tested["mean_probability_top_10"], tested["rate_top_10"]
    ratio = f", {mean / rate:.2f} times the share" if rate > 0 else ""
    slope = "unknown" if not math.isfinite(tested["slope"]) else interval_words(tested["slope"], low, high, 2)
    return (
        f"On the {tested['n_users']:,} users tested, which the fit did not see: of the first ten of a list the mean "
        f"probability is {_decimals(mean, 4)}, and {_decimals(rate, 4)} of them were taken{ratio}; calibration slope "
        f"of whole lists {slope} (95 %). A probability speaks of the new items of the next visit, and the test counts "
        f"{tested['counted']}."
    )


def _in_words(values: Mapping[str, Any]) -> list[str]:
    said = []
    if "slope" in values:
        low, high = values.get("slope_ci95", (math.nan, math.nan))
        verdict = "which contains 1" if low <= 1 <= high else "which does not contain 1"
        known = math.isfinite(values["slope"]) and math.isfinite(low)
        at = values.get("intercept", math.nan)
        intercept = f" The intercept is {at:+.2f}; 0 is perfect." if math.isfinite(at) else ""
        said.append(
            f"Calibration slope {interval_words(values['slope'], low, high, 2)}"
            + (f" (95 %), {verdict}." if known else ": too little to tell.")
            + " A slope of 1 is perfect, below 1 is overconfident, above 1 too timid."
            + intercept
        )
    if "ece_top_10" in values:
        mean = values.get("mean_probability_top_10", math.nan)
        share = values["ece_top_10"] / mean if mean else math.nan
        of_mean = f", {share:.0%} of it" if math.isfinite(share) else ""
        said.append(
            f"Of the first ten of a list the mean probability is {_decimals(mean, 4)} and the calibration error (ECE) "
            f"{_decimals(values['ece_top_10'], 4)}{of_mean}; perfect probabilities would show "
            f"{_decimals(values.get('ece_top_10_if_perfect'), 4)} on so many cases by chance alone."
        )
    if "brier_skill" in values:
        low, high = values.get("brier_skill_ci95", (math.nan, math.nan))
        better = "better than" if low > 0 else "not shown to be better than"
        said.append(
            f"Brier skill {interval_words(values['brier_skill'], low, high)} (95 %): {better} giving every candidate "
            "the base rate. Intervals take whole lists as the unit that is drawn."
        )
    return said


def _reliability(bins: Mapping[str, Any] | None) -> list[Figure]:
    if not bins or not any(value > 0 for value in bins["observed"]):
        return []
    intervals = [wilson_interval(share, n) for share, n in zip(bins["observed"], bins["counts"], strict=True)]
    points = Series(
        "", bins["probability"], bins["observed"], joined=False,
        low=[low for low, _ in intervals], high=[high for _, high in intervals],
    )  # fmt: skip
    positive = [v for v in (*bins["probability"], *bins["observed"]) if v > 0]
    ends = {"low": min(positive) / 1.8, "high": min(1.0, max(*positive, *(high for _, high in intervals)) * 1.8)}
    n_bins, n = len(bins["counts"]), sum(bins["counts"])
    svg = xy_chart(
        "Reliability diagram",
        f"Observed share of targets against mean probability in {n_bins} bins of equal mass, {n} candidates, both axes "
        "logarithmic. Points on the diagonal are perfect.",
        Axis("mean probability of the bin (log)", log=True, percent=True, **ends),
        Axis("share that was taken (log)", log=True, percent=True, **ends),
        [points],
        diagonal="perfect",
        height=300,
    )
    caption = (
        f"Reliability: {n_bins} bins of equal mass over {n:,} candidates of fold G, both axes logarithmic because the "
        "base rate is a fraction of a percent. Bars: 95 % binomial intervals (Wilson), which take candidates as "
        "independent. A hollow triangle at the lower edge: none was taken."
    )
    return [Figure(svg, caption)]


def _slopes(strata: Mapping[str, Any]) -> list[Figure]:
    rows = []
    for name, values in strata.items():
        low, high = values.get("slope_ci95", (None, None))
        slope = values.get("slope", math.nan)
        if slope is not None and math.isfinite(slope):
            rows.append(Row(stratum_words(name, "events"), slope, low, high, f"{slope:.2f}"))
    if not rows:
        return []
    svg = dot_plot(
        "Calibration slope by stratum",
        "One row a stratum with the calibration slope and its 95 % interval; 1 is perfect.",
        Axis("calibration slope"),
        rows,
        reference=(1.0, "perfect"),
    )
    return [
        Figure(svg, "Slope by the length of the user's history and by the support of the item, with 95 % intervals.")
    ]


def stratum_words(name: str, of_users: str = "items") -> str:
    """Turn "user 1-2" into "users, 1–2 items", "item 20+" into "items, 20+ users".

    of_users: what is counted of a user: distinct items, or "events" where it is the length of a history.
    """
    kind, _, bounds = name.partition(" ")
    counted = {"user": of_users, "item": "users"}.get(kind, "")
    return f"{kind}s, {bounds.replace('-', '–')} {counted}".strip() if counted else name


def _strata_table(strata: Mapping[str, Any]) -> list[Table]:
    if not strata:
        return []
    heads = ["stratum", "candidates", "mean probability, top 10", "ECE, top 10", "slope", "Brier skill"]
    rows = [
        [
            stratum_words(name, "events"),
            f"{values['n']:,}" if "n" in values else "unknown",
            _decimals(values.get("mean_probability_top_10"), 4),
            _decimals(values.get("ece_top_10"), 4),
            _decimals(values.get("slope"), 2),
            _decimals(values.get("brier_skill"), 4),
        ]
        for name, values in strata.items()
    ]
    return [Table("Calibration by strata, on fold G", heads, rows)]


def _decimals(value: float | None, digits: int) -> str:
    return "unknown" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def cut_section(
    cut: Mapping[str, Any] | None,
    curve: Mapping[str, Sequence[float]] | None,
    n_lists: int = 0,
    of: str = "",
    *,
    tested: Mapping[str, Any] | None = None,
) -> Section:
    """Show precision and recall of every cut, the one chosen, and what is promised of it.

    n_lists: the curve's; cuts that keep fewer than ``LEAST_KEPT`` candidates of all of them together say nothing.
    tested: ``tested_lists.tested_cut``.
    """
    title, anchor = f"What is kept{of}", "cut" + ("-upstream" if of else "")
    paragraphs = []
    chosen = None if not cut else Cut.from_dict(cut)
    if chosen is None:
        paragraphs.append(
            "No threshold rule was set, or none could be applied, so nothing is cut: a list keeps its first k. A "
            "guarantee needs the rule 'risk'."
        )
    else:
        paragraphs.append(_cut_in_words(chosen))
        paragraphs.append(
            f"Guaranteed: {chosen.guarantee.sentence()}{chosen.vacuous}."
            if chosen.guarantee is not None
            else f"No guarantee: {chosen.no_guarantee}."
        )
    if tested:
        paragraphs.append(f"On the test, which the fit did not see: {cut_in_words(tested).removeprefix('cut: ')}.")
    figures = _cut_figures(_readable(curve or {}, n_lists), chosen)
    if not figures:
        paragraphs.append("The fit did not keep what other cuts would have done, so there is no cut-off curve.")
    return Section(anchor, title, paragraphs, figures)


def _cut_in_words(cut: Cut) -> str:
    if cut.mean_kept == 0:
        return f"The rule '{cut.rule}' ({cut.value:g}) keeps nothing."
    return (
        f"The rule '{cut.rule}' ({cut.value:g}) keeps a candidate whose probability is at least "
        f"{number_words(cut.least_probability)}. On {cut.n_cases:,} held-out lists that kept "
        f"{number_words(cut.mean_kept)} items a list with precision {number_words(cut.precision)} and recall of the "
        f"retrieved targets {number_words(cut.recall)}: estimates on the cases it was chosen on."
    )


def _readable(curve: Mapping[str, Sequence[float]], n_lists: int) -> dict[str, list[float]]:
    """Leave out points that rest on hardly any candidate."""
    inside = [index for index, kept in enumerate(curve.get("mean_kept", ())) if kept * n_lists >= LEAST_KEPT - 1e-6]
    return {name: [values[index] for index in inside] for name, values in curve.items()}


def _cut_figures(curve: Mapping[str, Sequence[float]], cut: Cut | None) -> list[Figure]:
    if not curve.get("mean_kept"):
        return []
    at = (
        None if cut is None or not cut.mean_kept > 0 else (cut.mean_kept, f"chosen: {number_words(cut.mean_kept)} kept")
    )
    figures = []
    for key, name, axis in (
        ("precision", "precision", Axis("share of the kept that were taken", percent=True, zero=True)),
        ("recall", "recall", Axis("share of retrieved targets kept", percent=True, low=0.0, high=1.02)),
    ):
        x_axis = Axis("items kept a list, on average (log)", log=True)
        described = f"{name.capitalize()} of every cut against the mean number of items kept a list, on held-out users."
        series = [Series("", curve["mean_kept"], curve[key], marked=False)]
        if cut is not None and at is not None:
            series.append(Series("", [cut.mean_kept], [getattr(cut, key)], joined=False))
        figures.append(
            Figure(xy_chart(f"{name.capitalize()} by cut", described, x_axis, axis, series, cut=at), described)
        )
    return figures


def diversity_section(curve: Sequence[Mapping[str, float]], strength: float | None = None) -> Section:
    """Show what variety costs.

    curve: one mapping a strength (strength, ndcg, ild, coverage, long_tail), the first of them as it was ranked.
    strength: the setting in use; None: not said.
    """
    title = "What variety costs"
    if not curve:
        return Section(
            "diversity", title, ["No component has item vectors, so the variety of a list was not measured."]
        )
    first = curve[0]
    affordable = [point for point in curve if point["ndcg"] >= 0.98 * first["ndcg"]]
    best = max(affordable, key=lambda point: point["ild"], default=first)
    gain = best["ild"] / first["ild"] - 1 if first["ild"] else math.nan
    paragraphs = [
        "The same lists, ordered by maximal marginal relevance at strengths from 0 (untouched) to 1 (variety alone). "
        "Intra-list distance is the mean of 1 − cosine over pairs of a list's first ten.",
        f"At a loss of at most 2 % of NDCG@10, strength {best['strength']:g} is the furthest of those tried: distance "
        f"{first['ild']:.3f} → {best['ild']:.3f} ({gain:+.0%}), NDCG@10 {first['ndcg']:.4f} → {best['ndcg']:.4f}.",
    ]
    if strength is not None:
        paragraphs.append(f"In use: strength {strength:g}.")
    names = [f"{point['strength']:g}" for point in curve]
    trade = xy_chart(
        "NDCG@10 against intra-list distance",
        "One point a strength of diversity, named by it: to the right lists vary more, above they rank better.",
        Axis("intra-list distance@10"),
        Axis("NDCG@10"),
        [Series("", [p["ild"] for p in curve], [p["ndcg"] for p in curve], point_names=names)],
    )
    strengths = [point["strength"] for point in curve]
    reach = xy_chart(
        "Coverage and long-tail share by strength",
        "Share of the catalogue in any list's first ten, and mean share of long-tail items in a list's first ten.",
        Axis("strength of diversity"),
        Axis("share", percent=True, zero=True),
        [
            Series("coverage", strengths, [point["coverage"] for point in curve]),
            Series("long-tail share", strengths, [point["long_tail"] for point in curve]),
        ],
    )
    figures = [
        Figure(trade, "NDCG@10 against intra-list distance, on the test cases. Numbers are strengths."),
        Figure(reach, "How much of the catalogue is shown, and how much of that lies outside the most sold fifth."),
    ]
    return Section("diversity", title, paragraphs, figures)
