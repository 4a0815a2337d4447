"""Would the reranker have ordered a recommender's lists better? Those of ``examples/own_lists.py``, by what followed.

    python -m benchmarks.own_lists --dataset online_retail --data-dir DIR --out FILE.json

The recommender shows the best sellers of four weeks at each visit. The reranker is fitted without the cross-encoder on
what came before the cut, earlier lists among it; the cut is that of ``evaluate``, the 90 % quantile of event times.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import run_information, write_report
from examples.own_lists import judged
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.evaluation.shown_lists import shown_in_words


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.own_lists", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset", default="online_retail")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--encoder", default="default", help="folder or hub name; 'none'")
    parser.add_argument("--cache", help="folder of encoded texts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    config = RerankerConfig(
        encoder=None if options.encoder == "none" else options.encoder,
        cross_encoder="off",
        cache_folder=options.cache,
        seed=options.seed,
    )
    evaluation = judged(load_dataset(options.dataset, options.data_dir), config)
    table = evaluation.table
    report = {"dataset": options.dataset, "trial": table.trial, **table.to_dict()["shown"], **information}
    write_report(options.out, report)
    print(shown_in_words(table.shown))
    return report


if __name__ == "__main__":
    main()
