"""Sections on what was fitted, how it was tested, and how the systems compare."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llm_rerank.evaluation.charts import Axis, Row, Series, bar_chart, dot_plot, xy_chart
from llm_rerank.evaluation.comparison import verdict
from llm_rerank.evaluation.page import Figure, Section, Table
from llm_rerank.evaluation.report_probability import stratum_words
from llm_rerank.evaluation.scales import interval_words, number_words
from llm_rerank.evaluation.shown_lists import shown_in_words
from llm_rerank.evaluation.systems import DEPTH, SHOWN, SystemTable, shown_figures
from llm_rerank.evaluation.timeline import TimeLine
from llm_rerank.models.cross_encoder.training_plot import PANELS
from llm_rerank.recommendation.guard import GuardVerdict
from llm_rerank.recommendation.parts import PartVerdict
from llm_rerank.statistics import LEAST_FOR_INTERVAL, Interval
from llm_rerank.strata import NOTHING, label

FUSED = "fused"
METRIC = "ndcg@10"


def fitted_section(report: Mapping[str, Any], data: Sequence[str], settings: Mapping[str, Any]) -> Section:
    """Say what went in and what came out of the fit.

    report: of the fit. data: sentences on the data. settings: those of the reranker that differ from the defaults.
    """
    chosen = [[name, _settings_words(values)] for name, values in (report.get("settings") or {}).items()]
    tables = (
        [Table("Components and the settings chosen for each", ["component", "settings"], chosen, 2)] if chosen else []
    )
    dropped = [[reason, f"{count:,}"] for reason, count in (report.get("dropped") or {}).items()]
    if dropped:
        tables.append(Table("Rows that were dropped, and why", ["reason", "rows"], dropped))
    paragraphs = [*data]
    given = _settings_words(settings)
    paragraphs.append(f"Settings other than the defaults: {given}." if settings else "All settings are the defaults.")
    seconds = report.get("seconds") or {}
    if not any(value > 0 for value in seconds.values()):
        paragraphs.append("The fit did not keep how long its steps took.")
        return Section("fitted", "What was fitted", paragraphs, tables=tables)
    rows = [Row(name, value, note=f"{value:.1f} s") for name, value in seconds.items() if value >= 0.05]
    rows = sorted(rows, key=lambda row: -row.value)[:12] or [Row("fit", sum(seconds.values()), note="< 0.1 s")]
    total = sum(seconds.values())
    svg = bar_chart("Seconds of each step", f"One bar a step of the fit; {total:.1f} s in all.", rows)
    caption = f"Where {total:.1f} s went" + (", the longest 12 steps." if len(rows) == 12 else ".")
    return Section("fitted", "What was fitted", paragraphs, [Figure(svg, caption)], tables)


def _settings_words(settings: Mapping[str, Any]) -> str:
    def written(value: Any) -> str:
        if isinstance(value, bool) or value is None or isinstance(value, str):
            return str(value)
        if isinstance(value, int | float):
            return number_words(float(value), 4)
        if isinstance(value, Mapping):
            return f"({_settings_words(value)})"
        return json.dumps(value, ensure_ascii=False, default=str)

    return ", ".join(f"{name} {written(value)}" for name, value in settings.items()) or "none to choose"


def protocol_section(report: Mapping[str, Any], trial: str, line: TimeLine | None) -> Section:
    """Draw what was learned from, held out and tested. trial: its description in words."""
    paragraphs = [f"{trial[:1].upper()}{trial[1:]}."]
    if report.get("holdout"):
        paragraphs.append(f"Within the past, the fit held out again: {report['holdout']}.")
    if line is None:
        paragraphs.append("The fit does not say enough of its own hold-out for a time line.")
        return Section("protocol", "How it was tested", paragraphs)
    caption = "The steps in order. What a step holds out, no earlier step has read." + (
        "" if line.in_time else " Places are each user's own events in order, not dates."
    )
    rows = [[span.name, span.what, span.when] for span in line.spans]
    table = Table("The steps of the protocol", ["step", "what", "when"], rows, 3)
    return Section("protocol", "How it was tested", paragraphs, [Figure(line.draw(), caption)], [table])


def systems_section(table: SystemTable) -> Section:
    """Compare the systems: a row each with its interval, and the paired difference to the whole."""
    order = sorted(table.results, key=lambda name: -table.results[name].intervals[METRIC].mean)
    rows, heads = [], ["system", "NDCG@10 [95 %]", *SHOWN, "coverage@10"]
    heads += ["fused − system [95 %]", "p (Holm)"]
    for name in order:
        result, test = table.results[name], table.tests.get(f"{FUSED} vs {name}")
        interval = result.intervals[METRIC]
        rows.append(
            [
                name,
                interval_words(interval.mean, interval.low, interval.high),
                *shown_figures(result),
                "–" if test is None else interval_words(test["difference"], *test["ci95"]),
                "–" if test is None else _p_words(test["p_holm"]),
            ]
        )
    best, n_users = best_other(table), table.results[FUSED].intervals[METRIC].n
    paragraphs = [
        f"The whole (fused) beside its own parts, each with the settings that the fit chose, and popularity; "
        f"{n_users:,} users, the same for all. Intervals are 95 % bootstrap intervals over users, each by itself; p "
        f"values are of paired randomisation tests, adjusted for {len(table.tests)} tests (Holm)."
    ]
    if best is not None:
        test = table.tests[f"{FUSED} vs {best}"]
        found, said = interval_words(test["difference"], *test["ci95"], signed=True), verdict(test)
        paragraphs.append(
            f"Fused is {said} {best}, the best of the others: {found} NDCG@10, p = {test['p_holm']:.4f} (Holm)."
            if said
            else f"{n_users:,} are too few users to tell ({LEAST_FOR_INTERVAL} at least are wanted): fused minus "
            f"{best}, the best of the others, is {found} NDCG@10, and no interval is given."
        )
    paragraphs.append(
        f"{table.ceiling['candidate_recall']:.1%} of a user's targets, on average, are among the first {DEPTH} of "
        f"fused; the best order of those would have NDCG@10 {table.ceiling['oracle_ndcg@10']:.3f}."
    )
    figures = [_forest(table, order), *_differences(table, order)]
    return Section("systems", "Systems compared", paragraphs, figures, [Table("All figures, best first", heads, rows)])


def shown_section(judged: Mapping[str, Any]) -> Section:
    """Compare the order of the lists that were shown with that of the reranker. judged: of ``judge_shown``."""
    said = shown_in_words(judged)
    paragraphs = [f"{said[:1].upper()}{said[1:]}."]
    if not judged["n_cases"]:
        return Section("shown", "Lists of your recommender, tested", paragraphs)
    paragraphs.append(
        "Each user's first list from the cut on, as it was shown, with what the user took from it afterwards; the "
        "reranker knows what came before the cut. Items that the user had before are removed from both orders. Lists "
        "from which nothing was taken have no best order, and are not counted. What stood first was looked at more, "
        "and so taken more, wherever it belonged: nothing here takes that advantage away from the order that was shown."
    )
    systems = judged["systems"]
    metrics = list(systems[FUSED])
    rows = [
        [name, *(interval_words(found[metric]["mean"], *found[metric]["ci95"]) for metric in metrics)]
        for name, found in systems.items()
    ]
    heads = ["order", *(f"{metric if 'recall' in metric else metric.upper()} [95 %]" for metric in metrics)]
    dots = [
        Row(name, of[METRIC]["mean"], of[METRIC]["ci95"][0], of[METRIC]["ci95"][1], strong=name == FUSED)
        for name, of in systems.items()
    ]
    svg = dot_plot("NDCG@10 of both orders", "One row an order with its 95 % interval.", Axis("NDCG@10"), dots)
    return Section(
        "shown",
        "Lists of your recommender, tested",
        paragraphs,
        [Figure(svg, f"NDCG@10 {_intervals(judged['n_cases'])}; the square is the reranker's order.")],
        [Table("Both orders of the same lists", heads, rows)],
    )


def _forest(table: SystemTable, order: Sequence[str]) -> Figure:
    rows = [_row(name, table.results[name].intervals[METRIC], strong=name == FUSED) for name in order]
    svg = dot_plot(
        "NDCG@10 of each system", "One row a system with its 95 % interval, best first.", Axis("NDCG@10"), rows
    )
    n_users = table.results[FUSED].intervals[METRIC].n
    return Figure(svg, f"NDCG@10 {_intervals(n_users)}; the square is the whole.")


def _intervals(n: int) -> str:
    return "with 95 % intervals" if n >= LEAST_FOR_INTERVAL else "without intervals, for too few users"


def _differences(table: SystemTable, order: Sequence[str]) -> list[Figure]:
    rows = []
    for name in order:
        test = table.tests.get(f"{FUSED} vs {name}")
        if test is not None:
            low, high = test["ci95"]
            rows.append(Row(name, test["difference"], low, high, f"{test['difference']:+.4f}"))
    if not rows:
        return []
    svg = dot_plot(
        "Fused minus each system, NDCG@10",
        "One row a system: the paired difference of fused and it with its 95 % interval; right of 0 fused is better.",
        Axis("fused − system, NDCG@10", zero=True),
        rows,
        reference=(0.0, "equal"),
    )
    n_users = table.results[FUSED].intervals[METRIC].n
    return [Figure(svg, f"Paired differences {_intervals(n_users)}: right of the line fused is better.")]


def _row(name: str, interval: Interval, *, strong: bool) -> Row:
    return Row(name, interval.mean, interval.low, interval.high, f"{interval.mean:.4f}", strong)


def _p_words(p: float) -> str:
    return "<\u00a00.001" if p < 0.001 else f"{p:.3f}"


def best_other(table: SystemTable) -> str | None:
    """Name of the best system by NDCG@10 beside the whole; None where there is no other."""
    others = [name for name in table.results if name != FUSED]
    return max(others, key=lambda name: table.results[name].intervals[METRIC].mean, default=None)


def guard_section(verdict: Mapping[str, Any] | None, of: str = "") -> Section:
    """Say whether the blend may rank, and what can be said of it. of: words for the lists meant, where not our own."""
    anchor, title = "guard" + ("-upstream" if of else ""), f"The guard{of}"
    if not verdict:
        return Section(anchor, title, ["The fit kept no verdict of the guard: fold G had no cases."])
    guard = GuardVerdict.from_dict(verdict)
    said = guard.sentence().removeprefix("guard: ").split("; out of fold: ")[0]
    paragraphs = [
        f"{said[:1].upper()}{said[1:]}.",
        "The guard lets the fitted blend rank only where its loss against the best single component, out of fold on "
        "held-out users, is harmless (at most 2 %).",
    ]
    if guard.difference is None:
        paragraphs.append("Without a fitted blend there is no difference to draw.")
        return Section(anchor, title, paragraphs)
    difference = guard.difference
    note = f"{difference.mean:+.4f}"
    svg = dot_plot(
        "Blend minus default, NDCG@10",
        f"The paired difference with its 95 % interval; a loss of up to {guard.margin:.4f} counts as harmless.",
        Axis("blend − default, NDCG@10", zero=True),
        [Row(f"blend − {guard.default}", difference.mean, difference.low, difference.high, note, strong=True)],
        reference=(-guard.margin, f"harmless loss −{guard.margin:.4f}"),
    )
    caption = f"Right of the dashed line is harmless or better; {guard.n_cases:,} out-of-fold cases, 95 % interval."
    figures = [Figure(svg, caption)]
    tried = {f"default: {guard.default}": guard.default_ndcg, **guard.rungs, "blend": guard.blend_ndcg}
    rows = [Row(name, value, note=f"{value:.4f}", strong=name == "blend") for name, value in tried.items()]
    figures.append(
        Figure(
            dot_plot(
                "NDCG@10 out of fold of each rung", "One row a rung of the blend.", Axis("NDCG@10, out of fold"), rows
            ),
            "What each kind of column adds: components, pair features, support; first with the root of each "
            "component's score, shrunk toward the default, then with the score itself, shrunk toward the plain sum.",
        )
    )
    return Section(anchor, title, paragraphs, figures)


def parts_section(parts: Sequence[Mapping[str, Any]]) -> Section:
    """Say of each part that is not taken on trust what it gains, what it costs, and whether it stays."""
    if not parts:
        return Section("parts", "Parts that must pay", ["No part was tried: nothing but what is always there ranks."])
    verdicts = [PartVerdict.from_dict(values) for values in parts]
    paragraphs = [
        "Each part was fitted on top of what stood before it and measured on fold F, out of fold; it stays unless it "
        "is worse by more than a standard error (the cross-encoder only where it gains more than one) or a setting "
        "says otherwise.",
        *(f"{verdict.sentence()}." for verdict in verdicts),
    ]
    rows = [
        Row(v.part, v.difference.mean, v.difference.low, v.difference.high, f"{v.difference.mean:+.4f}", strong=v.kept)
        for v in verdicts
        if v.difference is not None
    ]
    if not rows:
        return Section("parts", "Parts that must pay", paragraphs)
    svg = dot_plot(
        "What each part adds, NDCG@10",
        "One row a part: the paired difference with its 95 % interval; parts that stay are strong.",
        Axis("with − without, NDCG@10", zero=True),
        rows,
    )
    return Section("parts", "Parts that must pay", paragraphs, [Figure(svg, "Held-out cases, 95 % interval.")])


def strata_section(table: SystemTable) -> Section:
    """Show for whom it works: by the length of users' histories and by the support of items."""
    best = best_other(table)
    figures, absent = [], []
    for kind, caption in (("user", "By what the user had before"), ("item", "By how many took the item before")):
        rows = []
        for name, interval in table.results[FUSED].strata.items():
            if not name.startswith(f"{kind} "):
                continue
            if interval is None:
                absent.append(stratum_words(name))
                continue
            said = stratum_words(name).split(", ", 1)[-1]
            rows.append(Row(said, interval.mean, interval.low, interval.high, f"n = {interval.n:,}", strong=True))
            other = None if best is None else table.results[best].strata.get(name)
            if best is not None and other is not None:
                rows.append(Row(best, other.mean, other.low, other.high))
        if rows:
            svg = dot_plot(
                f"NDCG@10 by stratum of {kind}s",
                f"Two rows a stratum: fused (square) and {best} (dot), with 95 % intervals.",
                Axis("NDCG@10"),
                rows,
            )
            figures.append(Figure(svg, f"{caption}: fused (square) and {best} (dot), 95 % intervals."))
    paragraphs = [
        "For whom it works. Of items only targets of that support count. Strata of fewer than "
        f"{LEAST_FOR_INTERVAL} users have no interval."
    ]
    if f"user {label(NOTHING)}" in table.results[FUSED].strata:
        paragraphs.append("Users with 0 items had looked at some until then, and taken none.")
    if absent:
        paragraphs.append(f"No test case: {'; '.join(absent)}.")
    return Section("strata", "By strata", paragraphs, figures)


def tuning_section(tuning: Mapping[str, Any] | None) -> Section:
    """Draw the course of the cross-encoder's fine-tuning, where one was tried."""
    title, log = "Fine-tuning of the cross-encoder", [] if not tuning else list(tuning.get("log") or [])
    if not log:
        return Section("tuning", title, ["No cross-encoder was tried, so there are no loss curves."])
    figures, kept = [], tuning.get("best_step") if tuning else None
    for name, keys in PANELS:
        series = []
        for key, words in keys:
            known = [entry for entry in log if math.isfinite(entry.get(key, math.nan))]
            if known:
                series.append(Series(words, [entry["step"] for entry in known], [entry[key] for entry in known]))
        if series:
            if len(series) == 1:  # nothing to tell it apart from: its name goes to the axis
                name, series = f"{name} ({series[0].name})", [replace(series[0], name="")]
            svg = xy_chart(
                name[:1].upper() + name[1:],
                f"{name} over the steps of the fine-tuning; the step that was kept is marked.",
                Axis("step", zero=True),
                Axis(name),
                series,
                cut=None if kept is None else (kept, f"kept: step {kept}"),
            )
            figures.append(Figure(svg, f"{name[:1].upper()}{name[1:]}."))
    first, last = log[0], log[-1]
    paragraphs = [f"{len(log)} evaluations up to step {last['step']}, the first before any step."]
    if math.isfinite(first.get("loss", math.nan)):
        best = min(log, key=lambda entry: entry.get("loss", math.inf))
        paragraphs.append(
            f"The loss on other users' lists was {first['loss']:.4f} at the warm start and least, {best['loss']:.4f}, "
            f"at step {best['step']}."
        )
    return Section("tuning", title, paragraphs, figures)
