"""Which system ranks best? Every system tuned alike on the validation split, then judged on the same users.

    python -m benchmarks.ranking --dataset amazon_scientific --data-dir DIR --split test --out FILE.json

Prints a table and writes everything to ``--out``. With ``--split test`` settings are chosen on the validation split
(or read from an earlier report, ``--settings``) and the test split is looked at once a system. The whole catalogue is
ranked, seen items removed; a target that is not retrieved scores 0.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from benchmarks._common import forget_peak, peak_memory_mb, run_information, table, write_report
from benchmarks._outcomes import DEPTH, Outcome, kept
from benchmarks.systems import FUSED, SINGLES, Z_SUM_PARTS, Settings, Single, Tools, ZSum, system_names
from llm_rerank.data.datasets import LOADERS, Dataset, load_dataset
from llm_rerank.data.readers import read_interactions, read_items
from llm_rerank.evaluation.comparison import ceiling, compare, evaluate_ranking
from llm_rerank.evaluation.protocols import (
    PROTOCOLS,
    LastOut,
    Protocol,
    TimeCut,
    Trial,
    hold_out,
    rank_catalogue,
    ranking_from_frame,
)
from llm_rerank.metrics import hit_matrix, ndcg_at_k
from llm_rerank.storage import read_json
from llm_rerank.types import CatalogueScorer, DataError, Ragged

Model = TypeVar("Model")

METRIC = "ndcg@10"
SHOWN = ("ndcg@10", "hr@10", "map@10", "mrr", f"recall@{DEPTH}")


def tune(single: Single, trial: Trial, tools: Tools, seed: int) -> tuple[Settings, list[dict[str, Any]]]:
    """Try every setting of a grid on a trial; return the one with the best mean NDCG@10 (of equals the first), and all.

    A scorer is fitted once for all settings that it reads only when scoring.
    """
    tried: list[dict[str, Any]] = []
    fitted, fitted_settings = None, None
    for settings in single.grid:
        inside = {name: value for name, value in settings.items() if name not in single.read_when_scoring}
        if fitted is None or inside != fitted_settings:
            fitted = single.make(tools, settings).fit(trial.past, trial.items, seed=seed)
            fitted_settings = inside
        for name in single.read_when_scoring:
            setattr(fitted, name, settings[name])
        tried.append({"settings": settings, METRIC: _mean_ndcg(rank_catalogue(fitted, trial, 10), trial)})
    best = int(np.argmax([entry[METRIC] for entry in tried]))
    return single.grid[best], tried


def _mean_ndcg(ranked: Ragged, trial: Trial) -> float:
    hits = hit_matrix(ranked, trial.cases.targets, 10)
    return float(ndcg_at_k(hits, trial.cases.targets.lengths, 10).mean())


class Benchmark:
    """Runs systems one by one on a trial, keeps their outcomes, and writes the report after each.

    tuning_trial: the validation split; None where settings are given. known: settings by system from an earlier report.
    keep: folder whose outcomes of the same commit, trial, settings and seeds are taken instead of being made again.
    """

    def __init__(
        self,
        trial: Trial,
        tuning_trial: Trial | None,
        *,
        known: Mapping[str, Settings],
        tools: Tools,
        seed: int,
        n_seeds: int,
        out: Path | None,
        keep: Path | None = None,
    ) -> None:
        self.trial, self.tuning_trial = trial, tuning_trial
        self.known, self.tools, self.seed, self.n_seeds, self.out, self.keep = known, tools, seed, n_seeds, out, keep
        self.outcomes: dict[str, Outcome] = {}
        self.information = run_information(seed)
        self.seconds_encode = 0.0
        self._scorers: dict[str, CatalogueScorer] = {}
        self._chosen: dict[str, tuple[Settings, list[dict[str, Any]]]] = {}

    def run(self, names: Sequence[str]) -> dict[str, Any]:
        """Run the systems in order; returns the report."""
        for name in names:
            self.outcomes[name] = outcome = self._made_or_kept(name)
            print(
                f"{name}: {METRIC} {outcome.result.intervals[METRIC].mean:.4f}, settings {outcome.settings}", flush=True
            )
            write_report(self.out, self.report(complete=False))
        report = self.report(complete=True)
        write_report(self.out, report)
        return report

    def _made_or_kept(self, name: str) -> Outcome:
        path = None if self.keep is None else self.keep / f"{self.trial.dataset}-{self.trial.split}-{name}.safetensors"
        made_by = {
            "commit": self.information["commit"],
            "trial": self.trial.describe(),
            "settings": {part: self.known.get(part) for part in (Z_SUM_PARTS if name == "z_sum" else [name])},
            "seeds": [self.seed, self.n_seeds],
        }
        outcome = None if path is None else kept(path, made_by, self.trial, self.seed)
        if outcome is None:
            make = self._fused if name in FUSED else self._single
            outcome = self._z_sum() if name == "z_sum" else make(name)
            if path is not None:
                outcome.keep(path, made_by)
        return outcome

    def _settings(self, name: str) -> tuple[Settings, list[dict[str, Any]]]:
        if name not in self._chosen:
            single = SINGLES[name]
            if name in self.known:
                self._chosen[name] = (self.known[name], [])
            elif len(single.grid) == 1 or (single.needs_clock and self.trial.past.time_kind == "position"):
                self._chosen[name] = (single.grid[0], [])
            elif self.tuning_trial is None:
                self._chosen[name] = ({}, [])  # --settings has none for it: the scorer's own defaults
            else:
                self._encode(single, self.tuning_trial)
                self._chosen[name] = tune(single, self.tuning_trial, self.tools, self.seed)
        return self._chosen[name]

    def _encode(self, single: Single, trial: Trial) -> None:
        """Encode the texts before the clocks of fits start; the seconds are reported for themselves."""
        if single.encodes:
            began = time.perf_counter()
            self.tools.encoder().encode([*trial.items.texts, *trial.items.frame["title"]])
            self.seconds_encode += time.perf_counter() - began

    def _single(self, name: str) -> Outcome:
        single = SINGLES[name]
        settings, tried = self._settings(name)
        self._encode(single, self.trial)

        def fit(seed: int) -> CatalogueScorer:
            self.tools.forget_kernel()
            return single.make(self.tools, settings).fit(self.trial.past, self.trial.items, seed=seed)

        outcome, scorer = self._measure(fit, lambda s: rank_catalogue(s, self.trial, DEPTH), drawn=single.drawn)
        self._scorers[name] = scorer
        return replace(outcome, settings=settings, extra={**outcome.extra, "tuning": tried})

    def _z_sum(self) -> Outcome:
        for name in Z_SUM_PARTS:
            if name not in self._scorers:
                self._single(name)
        # only score_catalogue is asked of a scorer when it ranks
        sum_of_parts = cast(CatalogueScorer, ZSum([self._scorers[name] for name in Z_SUM_PARTS]))
        outcome, _ = self._measure(
            lambda seed: sum_of_parts, lambda s: rank_catalogue(s, self.trial, DEPTH), drawn=False
        )
        return replace(outcome, settings=f"z-scores of {', '.join(Z_SUM_PARTS)} as tuned for themselves, summed")

    def _fused(self, name: str) -> Outcome:
        trial, cache = self.trial, None if self.tools.cache is None else str(self.tools.cache)
        outcome, reranker = self._measure(
            lambda seed: FUSED[name](trial, seed, cache).fit(
                trial.interactions, trial.item_frame, users=trial.user_frame
            ),
            lambda r: ranking_from_frame(r.recommend(list(trial.user_ids), k=DEPTH, at=trial.moments), trial),
            drawn=True,
        )
        extra = {
            **outcome.extra,
            "ceiling": ceiling(outcome.ranked, trial),
            "fit_said": reranker.report().values["lines"],
        }
        return replace(outcome, settings="chosen inside its own fit", extra=extra)

    def _measure(
        self, fit: Callable[[int], Model], rank: Callable[[Model], Ragged], *, drawn: bool
    ) -> tuple[Outcome, Model]:
        """Fit, rank and judge with the first seed; with further ones, where a fit draws at random, only the mean."""
        forget_peak()
        began = time.perf_counter()
        model = fit(self.seed)
        fitted = time.perf_counter()
        ranked = rank(model)
        scored = time.perf_counter()
        peak = peak_memory_mb()
        result = evaluate_ranking(ranked, self.trial, depth=DEPTH, seed=self.seed)
        extra = {}
        if drawn and self.n_seeds > 1:
            further = (rank(fit(seed)) for seed in range(self.seed + 1, self.seed + self.n_seeds))
            means = [_mean_ndcg(other, self.trial) for other in further]
            extra[f"{METRIC}_by_seed"] = [result.intervals[METRIC].mean, *means]
        return Outcome(ranked, result, fitted - began, scored - fitted, peak, {}, extra), model

    def report(self, *, complete: bool) -> dict[str, Any]:
        """Lay out what is known so far."""
        results = {name: outcome.result for name, outcome in self.outcomes.items()}
        return {
            "dataset": self.trial.dataset,
            "protocol": self.trial.describe(),
            "split": self.trial.split,
            "tuned_on": None if self.tuning_trial is None else self.tuning_trial.describe(),
            "systems": {name: outcome.to_dict() for name, outcome in self.outcomes.items()},
            "tests": compare(results, pairs_to_test(list(results)), metric=METRIC, seed=self.seed) if complete else {},
            "seconds_encode": self.seconds_encode,
            "notes": NOTES,
            "complete": complete,
            **self.information,
        }


STEPS = (
    ("text_ease", "ease"),
    ("fused_without_language_model", "fused_behaviour"),
    ("fused_without_language_model", "fused_without_nets"),
    ("fused_without_cross_encoder", "fused_without_language_model"),
    ("fused_with_cross_encoder", "fused_without_cross_encoder"),
)
"""Pairs of systems that differ in one thing: text, word counts, nets, the encoder, the cross-encoder."""

NOTES = (
    "All items ranked, items the user has seen removed, a target that is not retrieved scores 0.",
    "map@10 divides by min(10, number of targets); mrr and recall@100 read the first 100.",
    "seconds_fit of single systems is without the encoding of texts (seconds_encode), of fused ones with it; texts "
    "that an earlier run left in the folder of --cache take no time.",
    "peak_memory_mb: greatest resident memory of the process while a system was fitted and ranked, with libraries, the "
    "data and the scorers fitted before it, which z_sum needs.",
    "Validation figures of single systems are those of the best of their settings on the same users: optimistic.",
    "Settings {}: the scorer's own defaults, chosen on the validation split of amazon_scientific.",
    "ceiling: what the best order of the 100 items that were returned would reach.",
)


def pairs_to_test(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the comparisons that are claimed: fused against every other system, and what each step adds."""
    pairs = [("fused", name) for name in names if name != "fused"] if "fused" in names else []
    return pairs + [(a, b) for a, b in STEPS if a in names and b in names]


def print_report(report: Mapping[str, Any]) -> None:
    """Print the table of systems and the tests."""
    heads = ["system", *SHOWN, "coverage@10", "fit s", "score s", "MiB"]
    rows = []
    for name, entry in report["systems"].items():
        low, high = entry["ci95"][METRIC]
        figures = [f"{entry[METRIC]:.4f} [{low:.4f}, {high:.4f}]", *(f"{entry[metric]:.4f}" for metric in SHOWN[1:])]
        seconds = [f"{entry['seconds_fit']:.1f}", f"{entry['seconds_score']:.1f}"]
        memory = entry["peak_memory_mb"]
        seconds.append("" if memory is None else f"{memory:,.0f}")
        rows.append([name, *figures, f"{entry['coverage@10']:.3f}", *seconds])
    print(f"\n{report['protocol']}\n\n{table(heads, rows)}\n")
    tests = [
        [name, f"{test['difference']:+.4f} [{test['ci95'][0]:+.4f}, {test['ci95'][1]:+.4f}]", f"{test['p_holm']:.4f}"]
        for name, test in report["tests"].items()
    ]
    if tests:
        print(table([f"paired on {METRIC}", "difference [95 %]", "p (Holm)"], tests))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    options = _parser().parse_args(arguments)
    dataset, protocol = _dataset(options)
    known = {}
    if options.settings:
        entries = read_json(options.settings)["systems"]
        known = {name: entry["settings"] for name, entry in entries.items() if name in SINGLES}
    names = options.systems.split(",") if options.systems else system_names(dataset.name)
    unknown = sorted(set(names) - {*SINGLES, "z_sum", *FUSED})
    if unknown:
        raise DataError(f"--systems names {unknown}; there are {', '.join([*SINGLES, 'z_sum', *FUSED])}")
    trial = hold_out(dataset, protocol, options.split)
    tuning_trial = None
    if not known:
        tuning_trial = trial if options.split == "validation" else hold_out(dataset, protocol, "validation")
    if options.cases:
        rng = np.random.default_rng(options.seed)
        trial, tuning_trial = (_sample(part, options.cases, rng) for part in (trial, tuning_trial))
    for note in dataset.notes:
        print(note)
    print(trial.describe(), flush=True)
    benchmark = Benchmark(
        trial,
        tuning_trial,
        known=known,
        tools=Tools(options.cache),
        seed=options.seed,
        n_seeds=options.seeds,
        out=options.out,
        keep=options.keep,
    )
    report = benchmark.run(names)
    print_report(report)
    return report


def _sample(trial: Trial | None, n_cases: int, rng: np.random.Generator) -> Any:
    if trial is None or len(trial.cases) <= n_cases:
        return trial
    return trial.take(np.sort(rng.choice(len(trial.cases), n_cases, replace=False)).astype(np.int64))


def _dataset(options: argparse.Namespace) -> tuple[Dataset, Protocol | None]:
    protocol: Protocol | None = None
    if options.cut is not None:
        protocol = LastOut() if options.cut == "last" else TimeCut(options.cut, least_buyers=options.least_buyers)
    if options.interactions is None:
        if options.dataset not in LOADERS:
            raise DataError(f"--dataset is {options.dataset!r}; there are {', '.join(LOADERS)}")
        return load_dataset(options.dataset, options.data_dir), protocol
    if options.items is None:
        raise DataError("--interactions is given without --items; give both files")
    interactions, items = read_interactions(options.interactions), read_items(options.items)
    return Dataset(options.dataset, interactions, items, None, []), protocol or TimeCut()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranking", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--dataset", required=True, help=f"one of {', '.join(PROTOCOLS)}, or a name for your own files")
    add("--data-dir", type=Path, help="folder that holds the published data sets")
    add("--interactions", type=Path, help="your own events, with --items")
    add("--items", type=Path, help="your own catalogue")
    add("--cut", help="'last' (each user's last event) or a date; default: the data set's own protocol")
    add("--least-buyers", type=int, default=0, help="with a date: only items with so many buyers before it")
    add("--split", choices=("validation", "test"), default="validation")
    add("--systems", help="comma-separated; default: all")
    add("--settings", type=Path, help="an earlier report: its settings are taken, else defaults; nothing is tuned")
    add("--cases", type=int, help="a random sample of this many users, for a quick look")
    add("--seed", type=int, default=0)
    add("--seeds", type=int, default=1, help="fits of each system that draws at random; the first is tested")
    add("--cache", type=Path, help="folder that keeps encoded texts between runs")
    add("--keep", type=Path, help="folder that keeps each system's lists, to go on after a break")
    add("--out", type=Path, help="JSON report")
    return parser


if __name__ == "__main__":
    main()
