"""What do small nets over text and id add to text-aware EASE? Alone, averaged, and in a plain sum, seed by seed.

    python -m benchmarks.sequence_gain --dataset amazon_scientific --data-dir DIR --out FILE.json

Text-aware EASE at its defaults; the nets with texts read by a sentence encoder, by word counts, and with ids alone. The
sum adds z-scores over the catalogue. Full ranking, seen items removed; the validation split by default, on which the
nets' own settings were chosen: its gains are optimistic.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks._common import run_information, table, trial_parser, write_report
from benchmarks.systems import Tools, ZSum
from llm_rerank.data.datasets import load_dataset
from llm_rerank.evaluation.protocols import Trial, hold_out, rank_catalogue
from llm_rerank.metrics import hit_matrix, hit_rate_at_k, ndcg_at_k
from llm_rerank.models.collaborative.sequence import SequenceScorer
from llm_rerank.models.collaborative.text_ease import TextAwareEASE
from llm_rerank.statistics import paired_difference
from llm_rerank.types import Encoder

TEXTS = ("encoder", "words", "none")


def measures(scorer: Any, trial: Trial) -> tuple[np.ndarray, np.ndarray]:
    """NDCG@10 and HR@10 of each case: two float64 arrays, shape (n_cases,)."""
    hits = hit_matrix(rank_catalogue(scorer, trial, 10), trial.cases.targets, 10)
    lengths = trial.cases.targets.lengths
    return ndcg_at_k(hits, lengths, 10), hit_rate_at_k(hits, lengths, 10)


def nets(texts: str, encoder: Encoder | None) -> SequenceScorer:
    """Build the unfitted nets over texts read by an encoder, by word counts, or over ids alone."""
    return SequenceScorer(encoder if texts == "encoder" else None, text=texts != "none")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = trial_parser("sequence_gain", __doc__)
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the first of --texts; the others have one")
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    trial = hold_out(load_dataset(options.dataset, options.data_dir), split=options.split)
    print(trial.describe(), flush=True)
    encoder = Tools(options.cache).encoder() if "encoder" in options.texts else None
    if encoder is not None:
        encoder.encode(list(trial.items.texts))  # before the clocks of the fits
    ease = TextAwareEASE(encoder=encoder).fit(trial.past, trial.items, seed=options.seed)
    base, base_hits = measures(ease, trial)
    report: dict[str, Any] = {
        "dataset": options.dataset,
        "split": options.split,
        "text_ease": {"ndcg@10": float(base.mean()), "hr@10": float(base_hits.mean())},
        "runs": [],
    }
    rows = [["text_ease", "", "", f"{base.mean():.4f} / {base_hits.mean():.3f}", "", ""]]
    for place, texts in enumerate(options.texts):
        for seed in range(options.seed, options.seed + (options.seeds if place == 0 else 1)):
            began = time.perf_counter()
            scorer = nets(texts, encoder).fit(trial.past, trial.items, seed=seed)
            seconds = time.perf_counter() - began
            alone, alone_hits = measures(scorer, trial)
            together, hits = measures(ZSum([ease, scorer]), trial)
            gain = paired_difference(together, base, seed=options.seed)
            report["runs"].append(
                {
                    "texts": texts,
                    "seed": seed,
                    "seconds_fit": seconds,
                    "nets": {"ndcg@10": float(alone.mean()), "hr@10": float(alone_hits.mean())},
                    "sum": {"ndcg@10": float(together.mean()), "hr@10": float(hits.mean())},
                    "gain": vars(gain),
                }
            )
            rows.append(
                [
                    f"{texts}, seed {seed}",
                    f"{seconds:.0f}",
                    f"{alone.mean():.4f} / {alone_hits.mean():.3f}",
                    f"{together.mean():.4f} / {hits.mean():.3f}",
                    f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]",
                    f"{gain.p:.4f}",
                ]
            )
            print("  ".join(rows[-1]), flush=True)
            write_report(options.out, {**report, **information})
    heads = ["texts of the nets", "fit s", "nets NDCG / HR@10", "sum NDCG / HR@10", "gain over text_ease, 95 %", "p"]
    print(table(heads, rows))
    return report


if __name__ == "__main__":
    main()
