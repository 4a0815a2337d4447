"""How much of a review must be read to know whether its writer liked the item? Time and AUC by number of tokens.

    python -m benchmarks.review_sentiment --dataset amazon_musical_instruments --data-dir DIR --out FILE.json

The AUC says how often a review of four or five stars gets a higher sentiment than one of one or two. The sample holds
every such low review, at most as many as half of it, and high ones drawn at random. Named is the smallest number of
tokens that loses less than ``MOST_LOSS`` of AUC against the greatest. What the library reads is the encoder's 128; why,
says the lab notebook.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._common import run_information, table, write_report
from llm_rerank.data.datasets import load_dataset
from llm_rerank.models.semantic.encoder import SentenceEncoder
from llm_rerank.models.semantic.sentiment import review_sentiment
from llm_rerank.types import DataError, FloatArray

MOST_LOSS = 0.005
N_DRAWS = 2_000


def sample_of_reviews(events: pd.DataFrame, n_reviews: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Reviews of at most two stars and of at least four, together at most ``n_reviews``."""
    if not {"review", "rating"} <= set(events.columns):
        raise DataError(f"the data have no reviews with ratings; their columns are {sorted(events.columns)}")
    written = events[events["review"].fillna("").str.strip() != ""]
    low, high = (written.loc[rows, "review"].to_numpy() for rows in (written["rating"] <= 2, written["rating"] >= 4))
    low = rng.permutation(low)[: n_reviews // 2]
    return list(low), list(rng.permutation(high)[: n_reviews - len(low)])


def wins(low: FloatArray, high: FloatArray) -> FloatArray:
    """1 where the high review has the greater sentiment, ½ where equal: float32, shape (n_low, n_high); mean: AUC."""
    return (low[:, None] < high[None, :]).astype(np.float32) + 0.5 * (low[:, None] == high[None, :])


def interval(pairs: FloatArray, seed: int) -> list[float]:
    """95 % bootstrap interval of the mean of a table of pairs; low and high reviews are drawn each on its own."""
    rng = np.random.default_rng(seed)
    rows, columns = (rng.multinomial(n, np.full(n, 1 / n), size=N_DRAWS) / n for n in pairs.shape)
    means = np.einsum("dr,dr->d", rows @ pairs, columns)
    return [float(bound) for bound in np.quantile(means, [0.025, 0.975])]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.review_sentiment", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="amazon_musical_instruments")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--tokens", default="128,96,64,32", help="numbers of tokens to compare")
    parser.add_argument("--reviews", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    events = load_dataset(options.dataset, options.data_dir).interactions
    low, high = sample_of_reviews(events, options.reviews, np.random.default_rng(options.seed))
    budgets = sorted({int(number) for number in options.tokens.split(",")}, reverse=True)
    entries: dict[int, dict[str, Any]] = {}
    whole: FloatArray | None = None
    for budget in budgets:
        encoder = SentenceEncoder(max_tokens=budget)
        lengths = encoder.count_tokens([*low, *high])
        began, began_cpu = time.perf_counter(), time.process_time()
        sentiment = review_sentiment(encoder, [*low, *high])
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        pairs = wins(sentiment[: len(low)], sentiment[len(low) :])
        whole = pairs if whole is None else whole
        entries[budget] = {
            "encoder": encoder.description,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "share_of_reviews_cut": float(np.mean(lengths > budget)),
            "auc": float(pairs.mean()),
            "auc_ci95": interval(pairs, options.seed),
            "auc_difference": float((pairs - whole).mean()),
            "auc_difference_ci95": interval(pairs - whole, options.seed),
        }
    chosen = min(budget for budget, entry in entries.items() if entry["auc_difference"] > -MOST_LOSS)
    report = {
        "dataset": options.dataset,
        "n_low": len(low),
        "n_high": len(high),
        "by_tokens": {str(budget): entry for budget, entry in entries.items()},
        "most_loss": MOST_LOSS,
        "chosen_tokens": chosen,
        **information,
    }
    write_report(options.out, report)
    heads = ["tokens", "CPU s", "cut", "AUC [95 %]", f"difference to {budgets[0]}"]
    rows = [
        [
            str(budget),
            f"{entry['cpu_seconds']:.1f}",
            f"{entry['share_of_reviews_cut']:.0%}",
            f"{entry['auc']:.4f} [{entry['auc_ci95'][0]:.4f}, {entry['auc_ci95'][1]:.4f}]",
            "{:+.4f} [{:+.4f}, {:+.4f}]".format(entry["auc_difference"], *entry["auc_difference_ci95"]),
        ]
        for budget, entry in entries.items()
    ]
    print(f"{options.dataset}: {len(low):,} low and {len(high):,} high reviews\n\n{table(heads, rows)}\n")
    print(f"smallest that loses less than {MOST_LOSS} of AUC: {chosen} tokens")
    return report


if __name__ == "__main__":
    main()
