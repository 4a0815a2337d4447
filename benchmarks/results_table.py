"""Prints the README's table of results from the committed reports: ``python -m benchmarks.results_table``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_rerank.storage import read_json

RESULTS = Path(__file__).parent / "results" / "ranking"
DATASETS = ("amazon_scientific", "online_retail", "completejourney", "amazon_musical_instruments")
METRIC = "ndcg@10"


def load_reports() -> dict[str, Mapping[str, Any]]:
    """Read the report of each data set that has a whole one."""
    reports = {name: read_json(RESULTS / f"{name}.json") for name in DATASETS if (RESULTS / f"{name}.json").exists()}
    return {name: report for name, report in reports.items() if report["complete"]}


def best_single(report: Mapping[str, Any]) -> tuple[str, float]:
    """Name the best system that is one model, and its NDCG@10."""
    singles = {
        name: entry[METRIC]
        for name, entry in report["systems"].items()
        if not name.startswith("fused") and name != "z_sum"
    }
    best = max(singles, key=singles.__getitem__)
    return best, singles[best]


def markdown(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out one row a system and one column a data set, then what fused is worth beside the best single model."""
    names = list(dict.fromkeys(name for report in reports.values() for name in report["systems"]))
    lines = [
        "| NDCG@10, test | " + " | ".join(reports) + " |",
        "|---|" + "---|" * len(reports),
        *(f"| `{name}` | " + " | ".join(_cell(report, name) for report in reports.values()) + " |" for name in names),
    ]
    for name, report in reports.items():
        best, value = best_single(report)
        fused = report["systems"]["fused"][METRIC]
        test = report["tests"][f"fused vs {best}"]
        low, high = test["ci95"]
        lines.append(
            f"- {name}: `fused` {fused / value:.3f} × `{best}`, the best single model: {test['difference']:+.4f} "
            f"[{low:+.4f}, {high:+.4f}], p = {test['p_holm']:.4f} (Holm)"
        )
    return "\n".join([*lines[: 2 + len(names)], "", *lines[2 + len(names) :]])


def _cell(report: Mapping[str, Any], name: str) -> str:
    entry = report["systems"].get(name)
    if entry is None:
        return "–"
    if name != "fused":
        return f"{entry[METRIC]:.4f}"
    low, high = entry["ci95"][METRIC]
    return f"**{entry[METRIC]:.4f}** [{low:.4f}, {high:.4f}]"


if __name__ == "__main__":
    print(markdown(load_reports()))
