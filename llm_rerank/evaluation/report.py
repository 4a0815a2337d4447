"""The report of an evaluation as one HTML file: what was fitted, how it was tested, what it is worth, what it promises.

It needs no network and no script. What a fit did not measure, or an older model does not know, is said in a sentence.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llm_rerank.config import DiversityConfig, RerankerConfig, ThresholdConfig
from llm_rerank.evaluation.comparison import verdict
from llm_rerank.evaluation.demonstration import SecondSelection, second_selection
from llm_rerank.evaluation.diversity_curve import diversity_curve
from llm_rerank.evaluation.page import Page, Tile, write_page
from llm_rerank.evaluation.protocols import ranking_from_frame
from llm_rerank.evaluation.report_examples import examples_section
from llm_rerank.evaluation.report_probability import cut_section, diversity_section, probability_section
from llm_rerank.evaluation.report_sections import (
    FUSED,
    METRIC,
    best_other,
    fitted_section,
    guard_section,
    parts_section,
    protocol_section,
    shown_section,
    strata_section,
    systems_section,
    tuning_section,
)
from llm_rerank.evaluation.scales import interval_words, number_words
from llm_rerank.evaluation.systems import DEPTH, ShopEvaluation, SystemTable
from llm_rerank.evaluation.timeline import TimeLine, time_line
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.types import Ragged


def write_report(path: Path, evaluation: ShopEvaluation) -> None:
    """Draw everything that is known of an evaluation, and write it atomically to one HTML file."""
    reranker, trial, table = evaluation.reranker, evaluation.trial, evaluation.table
    report, config = reranker.report().values, reranker.config
    line = time_line(
        trial,
        report,
        seed=config.seed,
        refit=bool(report.get("refitted", config.refit)),
        last_time=evaluation.last_time,
    )
    page = report_page(
        report,
        table,
        config,
        line=line,
        second=second_selection(reranker, trial, seed=config.seed),
        diversity=diversity_curve(lists_by_relevance(evaluation), trial, reranker.components),
        data=[
            f"{trial.dataset[:1].upper()}{trial.dataset[1:]}: {len(trial.past):,} events of the past, "
            f"{trial.past.n_users:,} users and {len(trial.items):,} items in all."
        ],
    )
    write_page(path, page)


def lists_by_relevance(evaluation: ShopEvaluation) -> Ragged:
    """Give the lists as relevance alone orders them: where the shop's are varied already, they are asked for again."""
    reranker, trial = evaluation.reranker, evaluation.trial
    if not reranker.config.diversity_settings.changes_ranks:
        return evaluation.table.fused
    plain = Reranker.from_saved(replace(reranker.saved, config=replace(reranker.config, diversity=0.0)))
    return ranking_from_frame(plain.recommend(list(trial.user_ids), k=DEPTH, at=trial.moments), trial)


def report_page(
    report: Mapping[str, Any],
    table: SystemTable,
    config: RerankerConfig,
    *,
    line: TimeLine | None,
    second: SecondSelection,
    diversity: Sequence[Mapping[str, float]],
    data: Sequence[str],
) -> Page:
    """Lay out the page. report: ``Reranker.report().values``, of which any key may be absent. data: sentences."""
    calibration, cut, refitted = report.get("calibration"), report.get("cut"), bool(report.get("refitted"))
    fused = table.results[FUSED].intervals[METRIC]
    sections = [
        fitted_section(report, data, changed_settings(config)),
        protocol_section(report, table.trial, line),
        systems_section(table),
        *([shown_section(table.shown)] if table.shown else []),
        guard_section(report.get("guard")),
        parts_section(report.get("parts") or ()),
        probability_section(
            calibration, tested=table.probabilities, by_position=by_position(report), refitted=refitted
        ),
        cut_section(cut, report.get("cut_curve"), _lists_of_curve(report), tested=table.cut),
    ]
    upstream = report.get("upstream")
    if upstream:
        of = ", for lists of the upstream recommender"
        sections += [
            guard_section(upstream.get("guard"), of),
            probability_section(upstream.get("calibration"), of, refitted=refitted),
            cut_section(upstream.get("cut"), upstream.get("cut_curve"), _lists_of_curve(upstream), of),
        ]
    sections += [
        diversity_section(diversity, config.diversity_settings.strength),
        strata_section(table),
        tuning_section(report.get("fine_tuning")),
        examples_section(second),
    ]
    return Page(
        title="What the reranker is worth",
        subtitle="Fitted without the events that it is tested on. "
        f"{fused.n:,} users are tested; intervals are at 95 %, where users are enough for them, and what was not "
        "measured is said.",
        tiles=tiles(report, table),
        sections=sections,
        lines=[str(text) for text in report.get("lines") or []],
        made=f"llm_rerank {_version()}, {datetime.date.today().isoformat()}",
    )


def _lists_of_curve(report: Mapping[str, Any]) -> int:
    """Count the lists that the cut-off curve is of: all held-out ones after a refit, else those of fold G."""
    return int((report.get("cut") or {}).get("n_cases") or report.get("n_cases") or 0)


def tiles(report: Mapping[str, Any], table: SystemTable) -> list[Tile]:
    """Pick the few figures to see first."""
    fused, best = table.results[FUSED].intervals[METRIC], best_other(table)
    found = [Tile("NDCG@10 on the test", f"{fused.mean:.4f}", _bounds(fused.low, fused.high))]
    if best is not None:
        test = table.tests[f"{FUSED} vs {best}"]
        low, high = test["ci95"]
        said = verdict(test)
        note = f"{said.removesuffix(' from').removesuffix(' than')}; {_bounds(low, high, '+')}"
        found.append(Tile(f"against {best}", f"{test['difference']:+.4f}", note if said else "too few users to tell"))
    if table.shown.get("test"):
        test = table.shown["test"]
        low, high = test["ci95"]
        note = f"{_bounds(low, high, '+')}, on its own lists"
        found.append(Tile("against your recommender", f"{test['difference']:+.4f}", note))
    guard = report.get("guard")
    if guard:
        figure = "blend ranks" if guard.get("kept_blend") else "default ranks"
        sure = "non-inferior at 95 %" if guard.get("non_inferior") else "too few cases to be sure"
        if guard.get("difference") is None:
            figure, sure = "no blend fitted", "too few cases"
        elif not guard.get("kept_blend"):
            sure = "the blend loses more than is harmless"
        found.append(Tile("guard", figure, sure))
    calibration = report.get("calibration") or {}
    if calibration.get("slope") is not None:
        low, high = calibration.get("slope_ci95") or [None, None]
        written = interval_words(calibration["slope"], low, high, 2)
        slope, _, bounds = written.partition(" ")
        how = "; protocol positions" if by_position(report) else ""
        note = f"95 %: {bounds.strip('[]').replace(', ', ' to ')}; perfect: 1{how}"
        found.append(Tile("calibration slope", slope, note))
    if table.probabilities:
        mean, rate = (table.probabilities[name] for name in ("mean_probability_top_10", "rate_top_10"))
        found.append(Tile("mean probability, top 10", f"{mean:.4f}", f"on the test {rate:.4f} were taken"))
    cut = report.get("cut")
    if cut:
        promised = "with a guarantee" if cut.get("guarantee") else "an estimate, no guarantee"
        found.append(Tile("kept a list", number_words(cut.get("mean_kept")), promised))
    return found


def _bounds(low: float, high: float, sign: str = "") -> str:
    return "too few users for an interval" if math.isnan(low) else f"95 %: {low:{sign}.4f} to {high:{sign}.4f}"


def by_position(report: Mapping[str, Any]) -> bool:
    """Tell whether the fit held out single users' last events, for want of time or of users."""
    return report.get("protocol") == "positions"


def changed_settings(config: RerankerConfig) -> dict[str, Any]:
    """Pick the settings that differ from the defaults, JSON-ready; of nested ones only what is set."""
    usual, found = RerankerConfig().to_dict(), {}
    for name, value in config.to_dict().items():
        if value != usual[name]:
            nested = getattr(config, name)
            found[name] = _given(nested) if isinstance(value, dict) else value
    return found


def _given(settings: ThresholdConfig | DiversityConfig) -> dict[str, Any]:
    """Pick what was set of nested settings."""
    return {
        field.name: getattr(settings, field.name)
        for field in fields(settings)
        if getattr(settings, field.name) != field.default
    }


def _version() -> str:
    try:
        return version("llm-rerank")
    except PackageNotFoundError:  # run from a folder that is not installed
        return "(not installed)"
