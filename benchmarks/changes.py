"""Is a scorer that was told of a change equal to one fitted after it? How long being told takes, beside a fit.

    python -m benchmarks.changes --dataset amazon_scientific --data-dir DIR --out FILE.json

Some users, drawn, are taken out of fitted scorers and compared with fits that never saw them: the greatest difference
of any score, over 500 users and all items. Then events are played one by one into counting scorers, and compared with
fits on everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks._common import run_information, table, trial_parser, write_report
from llm_rerank.data.datasets import load_dataset
from llm_rerank.evaluation.protocols import Trial, hold_out
from llm_rerank.models.collaborative.ease import EASE
from llm_rerank.models.collaborative.item_item import ItemKNN
from llm_rerank.models.collaborative.neighbours import UserKNN
from llm_rerank.models.collaborative.popularity import Popularity, RecentPopularity
from llm_rerank.models.collaborative.text_ease import TextAwareEASE
from llm_rerank.models.collaborative.text_kernel import TextKernel
from llm_rerank.types import CatalogueScorer

COMPARED = 500
COUNTING = ("popularity", "recent_popularity", "item_knn")
SCORERS: dict[str, Callable[[TextKernel], Any]] = {
    "popularity": lambda kernel: Popularity(),
    "recent_popularity": lambda kernel: RecentPopularity(),
    "item_knn": lambda kernel: ItemKNN(),
    "user_knn": lambda kernel: UserKNN(),
    "ease": lambda kernel: EASE(),
    "text_ease": lambda kernel: TextAwareEASE(kernel=kernel),
}


def difference(one: CatalogueScorer, other: CatalogueScorer, trial: Trial) -> tuple[float, float]:
    """Greatest difference of a score, and greatest score, over some cases and all items; both must know the same."""
    cases = trial.cases.take(np.arange(min(COMPARED, len(trial.cases)), dtype=np.int64))
    a, b = one.score_catalogue(cases), other.score_catalogue(cases)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf"), float(np.nanmax(np.abs(b)))
    return float(np.nanmax(np.abs(a - b))), float(np.nanmax(np.abs(b)))


def taken_out(name: str, trial: Trial, users: np.ndarray, kernel: TextKernel) -> dict[str, float]:
    """Take users out of a fitted scorer, and compare with a fit without them."""
    past = trial.past
    theirs = np.isin(past.users, users)
    before, none = past.take(theirs), past.take(np.zeros(len(past), dtype=bool))
    began = time.perf_counter()
    fitted = SCORERS[name](kernel).fit(past, trial.items, seed=0)
    seconds_fit = time.perf_counter() - began
    began = time.perf_counter()
    revised = fitted.revised(before, none)
    seconds = time.perf_counter() - began
    without = SCORERS[name](kernel).fit(past.take(~theirs), trial.items, seed=0)
    error, greatest = difference(revised, without, trial)
    return {"difference": error, "greatest_score": greatest, "seconds": seconds, "seconds_fit": seconds_fit}


def played_in(name: str, trial: Trial, n_events: int, kernel: TextKernel) -> dict[str, float]:
    """Fit on all but the newest events, play those in one by one, and compare with a fit on everything."""
    past = trial.past
    first = len(past) - n_events
    scorer = SCORERS[name](kernel).fit(past.take(np.arange(first)), trial.items, seed=0)
    seconds = []
    for last in range(first, len(past)):
        rows = np.flatnonzero(past.users[: last + 1] == past.users[last])
        before, after = past.take(rows[:-1]), past.take(rows)
        began = time.perf_counter()
        scorer = scorer.revised(before, after)
        seconds.append(time.perf_counter() - began)
    error, greatest = difference(scorer, SCORERS[name](kernel).fit(past, trial.items, seed=0), trial)
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1e3
    return {
        "difference": error,
        "greatest_score": greatest,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "max_ms": max(seconds) * 1e3,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = trial_parser("changes", __doc__)
    parser.add_argument("--users", type=int, default=20, help="users to take out")
    parser.add_argument("--events", type=int, default=1_000, help="events to play in one by one")
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    trial = hold_out(load_dataset(options.dataset, options.data_dir), split=options.split)
    print(trial.describe(), flush=True)
    kernel = TextKernel()
    present = np.unique(trial.past.users)
    users = np.random.default_rng(options.seed).choice(present, options.users, replace=False)
    out = {name: taken_out(name, trial, users, kernel) for name in SCORERS}
    rows = [
        [name, *(f"{part[key]:.2g}" for key in ("difference", "greatest_score", "seconds", "seconds_fit"))]
        for name, part in out.items()
    ]
    print(table([f"{len(users)} users out", "greatest difference", "greatest score", "s", "a fit, s"], rows), "\n")
    played = {name: played_in(name, trial, options.events, kernel) for name in COUNTING}
    rows = [
        [name, *(f"{part[key]:.2g}" for key in ("difference", "greatest_score", "p50_ms", "p99_ms", "max_ms"))]
        for name, part in played.items()
    ]
    heads = [f"{options.events:,} events in", "greatest difference", "greatest score", "p50 ms", "p99 ms", "max ms"]
    print(table(heads, rows))
    report = {
        "dataset": options.dataset,
        "split": options.split,
        "users": len(users),
        "events": options.events,
        "taken_out": out,
        "played_in": played,
        **information,
    }
    write_report(options.out, report)
    return report


if __name__ == "__main__":
    main()
