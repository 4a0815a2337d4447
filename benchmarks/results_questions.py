"""Sections of the page of results on single questions, one small function a folder of reports.

Each takes the reports and returns its markdown, or "" where its folder is absent; ``QUESTIONS`` lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.results_reports import METRIC, Results, figure, load, with_interval


def cross_encoder_gain(results: Results) -> str:
    """Say what the cross-encoder knows beside all the rest, in nats and in NDCG."""
    lines = []
    for dataset, report in load(results.folder, "cross_encoder_gain").items():
        split = report["trial"].split(", ")[1]
        rare = [f"{name} {_nats(found)}" for name, found in report["log_likelihood_gain_by_support"].items()]
        lines += [
            f"- {dataset} ({split}, {report['n_users_with_target_in_first_100']:,} users whose target is among the "
            f"first 100): log-likelihood {_nats(report['log_likelihood_gain'])} nats; {'; '.join(rare)}. "
            f"NDCG@10 of these users {_nats(report['ndcg@10_difference_over_these_users'])}"
        ]
    return "\n".join(["### What does the cross-encoder know that the rest does not?\n", *lines, ""]) if lines else ""


def _nats(found: dict[str, Any]) -> str:
    return with_interval(found["mean"], *found["ci95"])


def start_from(results: Results) -> str:
    """Say what a start from another shop's reranker gains a young shop."""
    lines = []
    for dataset, report in load(results.folder, "start_from").items():
        for size, found in report["sizes"].items():
            difference = found["difference"]
            lines.append(
                f"- {dataset} with the events of {size} users, started from {report['old']} ({report['split']}): "
                f"NDCG@10 {with_interval(difference['mean'], difference['low'], difference['high'])} over a fit alone"
            )
    return "\n".join(["### Does a start from another shop help a young one?\n", *lines, ""]) if lines else ""


def sequence_gain(results: Results) -> str:
    """Say what small nets over text and id add to text-aware EASE."""
    lines = []
    for dataset, report in load(results.folder, "sequence_gain").items():
        for run in report["runs"]:
            gain = run["gain"]
            lines.append(
                f"- {dataset} ({report['split']}), texts read by {run['texts']}, seed {run['seed']}: alone NDCG@10 "
                f"{figure(run['nets'][METRIC])}; in a plain sum with `text_ease` "
                f"{with_interval(gain['mean'], gain['low'], gain['high'])} over it"
            )
    return "\n".join(["### What do small sequence nets add to text-aware EASE?\n", *lines, ""]) if lines else ""


QUESTIONS: tuple[Callable[[Results], str], ...] = (cross_encoder_gain, start_from, sequence_gain)


def further(results: Results) -> str:
    """Show the experiments on single questions whose reports are there."""
    parts = [text for text in (question(results) for question in QUESTIONS) if text]
    return "\n".join(["## Single questions\n", *parts]) if parts else ""
