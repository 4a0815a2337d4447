"""Measures how long a fit takes, and reranking every user's candidates, on this machine.

    python -m benchmarks.rerank_time --dataset amazon_scientific --data-dir DIR --out FILE.json

Every user of the data set gets the same number of candidates, drawn at random; the time counts from the frame of
candidates to the frame of results. It is taken three times, and the median is published. With ``--cache`` the fit's
encoded texts are kept in a folder: a second run then measures a fit whose texts are known. With ``--model`` a second
run loads the fitted reranker, and its peak memory is that of a process that only reranks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._common import fitted_on, forget_peak, peak_gpu_memory_mb, peak_memory_mb, run_information, write_report
from llm_rerank.config import PART_CHOICES, RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.evaluation.protocols import Trial, hold_out

N_RUNS = 3


def drawn_candidates(trial: Trial, n_candidates: int, seed: int) -> pd.DataFrame:
    """Draw distinct candidates for each of the trial's users: user_id, item_id."""
    rng = np.random.default_rng(seed)
    n_candidates = min(n_candidates, len(trial.items))
    codes = np.concatenate([rng.choice(len(trial.items), n_candidates, replace=False) for _ in trial.user_ids])
    return pd.DataFrame({"user_id": np.repeat(trial.user_ids, n_candidates), "item_id": trial.items.ids[codes]})


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rerank_time", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="amazon_scientific")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="folder that keeps encoded texts between runs")
    parser.add_argument("--model", type=Path, help="folder of a fitted reranker; read where it is there: no fit then")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cross-encoder", choices=PART_CHOICES, default="auto")
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    trial = hold_out(load_dataset(options.dataset, options.data_dir), split="test")
    began = time.perf_counter()
    config = RerankerConfig(
        cache_folder=None if options.cache is None else str(options.cache), cross_encoder=options.cross_encoder
    )
    loaded = options.model is not None and options.model.exists()
    reranker = fitted_on(trial, config, options.model)
    seconds_fit = time.perf_counter() - began
    candidates = drawn_candidates(trial, options.candidates, options.seed)
    peak_fit = peak_memory_mb()
    forget_peak()
    seconds = []
    for _ in range(N_RUNS):
        began = time.perf_counter()
        result = reranker.rerank(candidates, at=trial.moments)
        seconds.append(time.perf_counter() - began)
    assert len(result) == len(candidates)
    median = float(np.median(seconds))
    report = {
        "dataset": options.dataset,
        "cross_encoder": options.cross_encoder,
        "components": [component.name for component in reranker.components],
        "peak_memory_mb_fit": peak_fit,
        "peak_memory_mb_rerank": peak_memory_mb(),
        "peak_gpu_memory_mb_rerank": peak_gpu_memory_mb(),
        "n_users": len(trial.user_ids),
        "n_items": len(trial.items),
        "n_pairs": len(candidates),
        "loaded": loaded,
        "seconds_fit_or_load": seconds_fit,
        "plan": [line for line in reranker.report().values["lines"] if line.startswith("plan")],
        "seconds_fit_by_step": reranker.report().values["seconds"],
        "seconds_rerank": seconds,
        "seconds_rerank_median": median,
        "pairs_per_second": len(candidates) / median,
        **information,
    }
    write_report(options.out, report)
    print(
        f"{options.dataset}: {'load' if loaded else 'fit, encoding of new texts included,'} {seconds_fit:.1f} s; "
        f"rerank of {len(trial.user_ids):,} users × {options.candidates} candidates {median:.1f} s, "
        f"{peak_memory_mb() or float('nan'):,.0f} MiB at most "
        f"({len(candidates) / median:,.0f} pairs a second)"
    )
    return report


if __name__ == "__main__":
    main()
