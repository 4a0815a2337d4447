"""Which union of candidate lists holds most targets at equal length, and whether the blend gains by it.

    python -m benchmarks.candidates --dataset amazon_scientific --data-dir DIR --out FILE.json

Every source lists its best ``DEPTH`` unseen items for each user; a union takes so many of each. Its length is the mean
over users, the same for all: quotas are stretched until it is reached, and a part of an item is given to a part of the
users. Compared at 100, 200 and 300 items in all, with ``equal``, which is what a reranker does:

one source alone; ``equal`` without one source; ``blend``: the fitted blend's own order of all that is listed;
``learned``: quotas in blocks of ten ranks, each time the block that adds most recall per new item, learned on one half
of the users and judged on the other, then changed places; both with one more source: items near each item of the
history by text or by co-occurrence, best sellers of its brands, semantic again for users with one or two events;
``without padding``: item_knn without items that never co-occurred with the history, which it otherwise lists by their
code. "ndcg": NDCG@10 of the fitted blend within the union. ``--per-source`` also fits whole rerankers with other
``candidates_per_source``. Intervals are of single comparisons, not of the best of many.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks._candidate_sources import (
    ABSENT,
    PADDED,
    UNPADDED,
    cheapest,
    greedy_quotas,
    pool_of,
    sources_of,
    with_thin_users_first,
)
from benchmarks._common import fitted_on, run_information, table, trial_parser, write_report
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.splits import hash_users
from llm_rerank.evaluation.protocols import Trial, hold_out, ranking_from_frame
from llm_rerank.metrics import hit_matrix, ndcg_at_k, recall_at_k
from llm_rerank.recommendation.candidates import best_first, ranks_in_row
from llm_rerank.recommendation.deciding import score_batch
from llm_rerank.recommendation.planning import make_encoder
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.specs import default_specs, in_use
from llm_rerank.statistics import paired_difference
from llm_rerank.strata import Bounds, label, within
from llm_rerank.types import BoolArray, Ragged

Float64Array = npt.NDArray[np.float64]

BLOCK = 10
LENGTHS = (100, 200, 300)
HISTORIES: tuple[Bounds, ...] = ((1, 2), (3, 5), (6, None))
SUPPORTS: tuple[Bounds, ...] = ((0, 0), (1, 4), (5, None))
USERS_A_BLOCK = 512


def blend_scores(trial: Trial, reranker: Reranker, items: Ragged) -> Float64Array:
    """Score every pair of a pool by the fitted blend: float64, shape (n_pairs,)."""
    saved, parts = reranker.saved, []
    for start in range(0, len(items), USERS_A_BLOCK):
        rows = np.arange(start, min(start + USERS_A_BLOCK, len(items)), dtype=np.int64)
        cases = trial.cases.take(rows).with_candidates(items.take(rows))
        batch = score_batch(saved.fitted, saved.config, cases, trial.seen.take(rows), saved.item_statistics)
        parts.append(batch.scores)
    return np.concatenate(parts)


class Comparison:
    """The unions of one data set, each judged by recall and by the blend's NDCG@10 within it."""

    def __init__(self, trial: Trial, reranker: Reranker, seed: int) -> None:
        self.trial, self.seed = trial, seed
        base, more = sources_of(trial, reranker)
        self.base, self.more = list(base), list(more)
        targets = trial.cases.targets
        self.pool = with_thin_users_first(pool_of({**base, **more}, targets, len(trial.items), seed))
        scores = blend_scores(trial, reranker, self.pool.items)
        self.blend_ranks = ranks_in_row(np.where(self.in_base(), scores, np.nan), self.pool.items)
        self.order = best_first(scores, self.pool.items)
        self.worth = self.pool.hits / targets.lengths[self.pool.items.row_of_value]
        self.blocks = np.where(self.pool.ranks < ABSENT, self.pool.ranks // BLOCK, -1).astype(np.int16)
        self.half = hash_users(trial.user_ids, 2, salt=f"candidates-{seed}") == 0

    def in_base(self) -> BoolArray:
        """Pairs that a source in use lists: bool, shape (n_pairs,)."""
        columns = [self.pool.names.index(name) for name in self.base]
        return np.asarray((self.pool.ranks[:, columns] < ABSENT).any(axis=1))

    def learned(self, names: Sequence[str], n: int) -> tuple[BoolArray, list[dict[str, float]]]:
        """Take by quotas that the other half of the users taught: pairs, and the quotas of both halves."""
        columns = [self.pool.names.index(name) for name in names]
        taken, said = np.zeros(len(self.worth), dtype=np.bool_), []
        for judged in (self.half, ~self.half):
            judges = judged[self.pool.items.row_of_value]
            blocks, worth = self.blocks[~judges][:, columns], self.worth[~judges]
            quotas = BLOCK * greedy_quotas(blocks, worth, n * int((~judged).sum()))
            said.append(dict(zip(names, quotas.astype(float).tolist(), strict=True)))
            needed = self.pool.needed(said[-1])
            taken |= cheapest(np.where(judges, needed, np.inf), n * int(judged.sum()))
        return taken, said

    def unions(self, n: int) -> dict[str, tuple[BoolArray, Any]]:
        """Every union of mean length n: the pairs taken, and the quotas where they were learned."""
        total = n * len(self.half)

        def equal(names: Sequence[str]) -> tuple[BoolArray, Any]:
            return cheapest(self.pool.needed(dict.fromkeys(names, 1.0)), total), None

        replaced = [UNPADDED if name == PADDED else name for name in self.base]
        found = {"equal": equal(self.base)}
        found |= {f"{name} alone": equal([name]) for name in self.base}
        for left_out in self.base:
            found[f"equal, without {left_out}"] = equal([name for name in self.base if name != left_out])
        blend_needs = np.where(self.in_base(), self.blend_ranks.astype(np.float64), np.inf)
        found["blend"] = cheapest(blend_needs, total), None
        found["learned"] = self.learned(self.base, n)
        for name in self.more:
            names = replaced if name == UNPADDED else [*self.base, name]
            joined = name if name == UNPADDED else f"+ {name}"
            found[f"equal, {joined}"] = equal(names)
            found[f"learned, {joined}"] = self.learned(names, n)
        found["learned, all"] = self.learned([*replaced, *(name for name in self.more if name != UNPADDED)], n)
        return found

    def recall(self, taken: BoolArray, wanted: BoolArray) -> Float64Array:
        """Share of each case's targets among ``wanted`` items that was taken; NaN without any: shape (n_cases,)."""
        targets, items = self.trial.cases.targets, self.pool.items
        n_wanted = np.bincount(targets.row_of_value[wanted[targets.values]], minlength=len(targets))
        hit = taken & self.pool.hits & wanted[items.values]
        n_hit = np.bincount(items.row_of_value[hit], minlength=len(targets))
        return np.divide(n_hit, n_wanted, out=np.full(len(targets), np.nan), where=n_wanted > 0)

    def ndcg(self, taken: BoolArray) -> Float64Array:
        """NDCG@10 of the blend's order of what was taken: shape (n_cases,)."""
        rows, order, targets = self.pool.items.row_of_value, self.order[taken[self.order]], self.trial.cases.targets
        lengths = np.bincount(rows[order], minlength=len(targets)).astype(np.int64)
        lists = Ragged.from_lengths(self.pool.items.values[order], lengths)
        return ndcg_at_k(hit_matrix(lists, targets, 10), targets.lengths, 10)

    def groups(self) -> dict[str, tuple[BoolArray, BoolArray]]:
        """Cases and wanted items of each group that recall is broken down by."""
        every_case = np.ones(len(self.half), dtype=np.bool_)
        every_item = np.ones(len(self.trial.items), dtype=np.bool_)
        lengths = self.trial.seen.lengths
        return {
            **{f"history {label(bounds)}": (within(lengths, bounds), every_item) for bounds in HISTORIES},
            **{
                f"target taken by {label(bounds)}": (every_case, within(self.trial.item_support, bounds))
                for bounds in SUPPORTS
            },
        }

    def at(self, n: int) -> dict[str, Any]:
        """Compare all unions of mean length n with the equal one."""
        everything = np.ones(len(self.trial.items), dtype=np.bool_)
        unions = self.unions(n)
        reference = unions["equal"][0]
        report: dict[str, Any] = {}
        for name, (taken, quotas) in unions.items():
            report[name] = {
                "mean_length": float(taken.sum() / len(self.half)),
                "recall": self._judged(self.recall(taken, everything), self.recall(reference, everything)),
                "ndcg": self._judged(self.ndcg(taken), self.ndcg(reference)),
                "quotas": quotas,
                "groups": {
                    group: self._judged(self.recall(taken, wanted)[cases], self.recall(reference, wanted)[cases])
                    for group, (cases, wanted) in self.groups().items()
                },
            }
        return report

    def _judged(self, values: Float64Array, reference: Float64Array) -> dict[str, float] | None:
        known = np.isfinite(values)
        if not known.any():
            return None
        difference = paired_difference(values[known], reference[known], n_resamples=2_000, seed=self.seed)
        return {"mean": float(values[known].mean()), **{f"d_{key}": value for key, value in vars(difference).items()}}


def fits_by_length(trial: Trial, reranker: Reranker, sizes: Sequence[int]) -> dict[str, Any]:
    """Fit whole rerankers with so many candidates a source and the settings known: NDCG@10, recall, seconds.

    Seconds are of a fit without the tuning, and of ranking all users once.
    """
    encoder = make_encoder(reranker.config)
    settings = {component.name: component.settings for component in reranker.components}
    specs = [
        replace(spec, grid=[settings[spec.name]], decays=(), part=None)
        for spec in in_use(default_specs(len(trial.items), encoder=encoder), tuple(settings))
        if spec.name in settings
    ]
    targets, values, report = trial.cases.targets, {}, {}
    for size in sizes:
        config = replace(reranker.config, candidates_per_source=size)
        began = time.perf_counter()
        fitted = Reranker(config, components=specs, verbose=False)
        fitted.fit(trial.interactions, trial.item_frame, users=trial.user_frame)
        seconds_fit = time.perf_counter() - began
        began = time.perf_counter()
        lists = [
            ranking_from_frame(fitted.recommend(list(part.user_ids), at=trial.moments, k=None), part)
            for part in (
                trial.take(np.arange(start, min(start + USERS_A_BLOCK, len(trial.cases))))
                for start in range(0, len(trial.cases), USERS_A_BLOCK)
            )
        ]
        seconds_rank = time.perf_counter() - began
        shown = Ragged.from_lengths(
            np.concatenate([part.values for part in lists]), np.concatenate([part.lengths for part in lists])
        )
        hits = hit_matrix(shown, targets, max(int(shown.lengths.max()), 100))
        values[size] = ndcg_at_k(hits, targets.lengths, 10)
        report[str(size)] = {
            "ndcg@10": float(values[size].mean()),
            "recall@100": float(recall_at_k(hits, targets.lengths, 100).mean()),
            "recall": float(recall_at_k(hits, targets.lengths, hits.shape[1]).mean()),
            "mean_length": float(shown.lengths.mean()),
            "seconds_fit": seconds_fit,
            "seconds_rank": seconds_rank,
            "shares": fitted.saved.fitted.stage.verdict.to_dict()["shares"],
        }
        print(size, report[str(size)], flush=True)
    for size in sizes:
        report[str(size)]["difference_from_100"] = vars(paired_difference(values[size], values[100]))
    return report


def print_report(report: Mapping[str, Any]) -> None:
    """Print one line a union and length, then one a fit."""
    for n, unions in report["lengths"].items():
        cells = []
        for name, union in unions.items():
            recall, ndcg = union["recall"], union["ndcg"]
            cells.append(
                [
                    name,
                    f"{union['mean_length']:.1f}",
                    f"{recall['mean']:.4f}",
                    f"{recall['d_mean']:+.4f} [{recall['d_low']:+.4f}, {recall['d_high']:+.4f}]",
                    f"{ndcg['mean']:.4f}",
                    f"{ndcg['d_mean']:+.4f} [{ndcg['d_low']:+.4f}, {ndcg['d_high']:+.4f}]",
                ]
            )
        print(table([f"{report['dataset']}, {n}", "length", "recall", "over equal", "NDCG@10", "over equal"], cells))
    for size, fit in report["fits"].items():
        print(size, fit)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = trial_parser("candidates", __doc__)
    parser.add_argument("--lengths", type=int, nargs="*", default=list(LENGTHS), help="mean items of a union")
    parser.add_argument("--per-source", type=int, nargs="*", default=[], help="fit with these, 100 among them")
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    trial = hold_out(load_dataset(options.dataset, options.data_dir), None, options.split)
    print(trial.describe(), flush=True)
    config = RerankerConfig(cache_folder=options.cache, cross_encoder="off", seed=options.seed)
    reranker = fitted_on(trial, config, options.model)
    comparison = Comparison(trial, reranker, options.seed) if options.lengths else None
    report = {
        "dataset": options.dataset,
        "split": options.split,
        "n_cases": len(trial.cases),
        "n_targets": len(trial.cases.targets.values),
        "lengths": {} if comparison is None else {str(n): comparison.at(n) for n in options.lengths},
        "fits": fits_by_length(trial, reranker, options.per_source),
        **information,
    }
    write_report(options.out, report)
    print_report(report)
    return report


if __name__ == "__main__":
    main()
