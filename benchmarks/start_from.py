"""Measures what the saved reranker of another shop gives to a shop that has few customers yet.

    python -m benchmarks.start_from --old online_retail --dataset completejourney --data-dir DIR --out FILE.json

The old shop's reranker is fitted on all its events before its cut and saved. The young shop has the events of a few
users, drawn; it is fitted alone, and with ``start_from`` the old one. Both then answer for every user of the young
shop's trial, histories given, on the whole catalogue without seen items. Settings, the weights of the blend and the
cross-encoder come from the old shop, none of its items or users. Behaviour only, so that the first two are told apart
from the last; with ``--cross-encoder`` all of it: without one, with one of its own, with the lent one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks._common import run_information, table, write_report
from benchmarks.regimes import ndcg_of
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.evaluation.protocols import Trial, hold_out
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.statistics import paired_difference


@dataclass(frozen=True)
class Variant:
    """A way to fit the young shop. started: from the old shop. cross_encoder: as in ``RerankerConfig``."""

    started: bool
    cross_encoder: Literal["always", "off"] = "off"


BEHAVIOUR = {"alone": Variant(False), "started": Variant(True)}
WITH_CROSS_ENCODER = {
    **BEHAVIOUR,
    "alone, own cross-encoder": Variant(False, "always"),
    "started, lent cross-encoder": Variant(True, "always"),
}
LESS = {"started": "alone", "alone, own cross-encoder": "alone", "started, lent cross-encoder": "started"}
"""What each way is set against."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start_from", description=__doc__.split("\n")[0])
    parser.add_argument("--old", default="online_retail")
    parser.add_argument("--dataset", default="completejourney")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--users", type=int, nargs="+", default=[50, 200], help="users of the young shop")
    parser.add_argument("--draws", type=int, default=1, help="young shops of each size")
    parser.add_argument("--cross-encoder", action="store_true", help="with encoder and cross-encoder; dear")
    parser.add_argument("--old-model", type=Path, help="a saved reranker of the old shop, instead of fitting one")
    parser.add_argument("--cache", help="folder that keeps the encoder's vectors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    variants = WITH_CROSS_ENCODER if options.cross_encoder else BEHAVIOUR
    trial = _trial(options.dataset, options)
    report: dict[str, Any] = {"old": options.old, "dataset": options.dataset, "split": options.split, "sizes": {}}
    rows = []
    with tempfile.TemporaryDirectory() as place:
        old_model = options.old_model or Path(place) / "old"
        if options.old_model is None:
            old = _trial(options.old, options)
            old_shop = Reranker(_config(options, "always" if options.cross_encoder else "off"), verbose=False)
            old_shop.fit(old.interactions, old.item_frame, users=old.user_frame).save(old_model)
        for size in sorted({min(size, len(trial.user_ids)) for size in options.users}):
            values = {name: np.zeros(len(trial.user_ids)) for name in variants}
            for draw in range(options.draws):
                rng = np.random.default_rng([options.seed, size, draw])
                chosen = rng.choice(trial.user_ids, size, replace=False)
                young = trial.interactions[trial.interactions["user_id"].isin(chosen)]
                for name, variant in variants.items():
                    reranker = Reranker(_config(options, variant.cross_encoder), verbose=False)
                    start = old_model if variant.started else None
                    reranker.fit(young, trial.item_frame, users=trial.user_frame, start_from=start)
                    values[name] += ndcg_of(reranker, trial, trial.interactions, exclude=None) / options.draws
                    print(f"{size} users, {name}: {values[name].mean():.4f}", flush=True)
            rows += _against_less(size, values, options, report)
            write_report(options.out, {**report, **information})
    print(trial.describe())
    print(table(["users", "fitted", "NDCG@10", "over one thing less, 95 %", "p"], rows))
    return report


def _against_less(
    size: int, values: Mapping[str, np.ndarray], options: argparse.Namespace, report: dict[str, Any]
) -> list[list[str]]:
    """Add a size to the report, each way against the one that differs from it in one thing; returns its rows."""
    entry: dict[str, Any] = {"n": len(values["alone"]), "draws": options.draws, "ndcg@10": {}, "differences": {}}
    rows = []
    for name, of_case in values.items():
        entry["ndcg@10"][name] = float(of_case.mean())
        row = [f"{size}", name, f"{of_case.mean():.4f}", "", ""]
        if name in LESS:
            difference = paired_difference(of_case, values[LESS[name]], seed=options.seed)
            entry["differences"][f"{name} over {LESS[name]}"] = vars(difference)
            row[3:] = [
                f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]", f"{difference.p:.4f}",
            ]  # fmt: skip
        rows.append(row)
    report["sizes"][str(size)] = entry
    return rows


def _trial(name: str, options: argparse.Namespace) -> Trial:
    # these two bring their own data
    folder = None if name in ("sample", "completejourney") else options.data_dir
    return hold_out(load_dataset(name, folder), None, options.split)


def _config(options: argparse.Namespace, cross_encoder: Literal["always", "off"]) -> RerankerConfig:
    if not options.cross_encoder:
        return RerankerConfig(encoder=None, seed=options.seed)
    return RerankerConfig(semantic="always", cross_encoder=cross_encoder, cache_folder=options.cache, seed=options.seed)


if __name__ == "__main__":
    main()
