"""Tells whether vectors that a shop brings in a column join the blend as the built-in encoder's do.

    python -m benchmarks.brought_vectors --dataset amazon_scientific --data-dir DIR --out FILE.json

The encoder's vectors of the items' texts are put into the items' table as ``text_vector``. Three fits on the same past:
without encoder and without that column; without encoder, with it; and with the encoder. Neither nets nor a
cross-encoder, whose gains are other questions, and no refit. Each then answers for every case of the trial, histories
given, on the whole catalogue without seen items. If the door works, the second gains over the first, and is told from
the third by no more than what the encoder does besides: text-aware EASE reads its vectors too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from benchmarks._common import run_information, table, trial_parser, write_report
from benchmarks.regimes import ndcg_of
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.rendering import Renderer
from llm_rerank.data.schema import validate_items
from llm_rerank.data.values import object_array
from llm_rerank.evaluation.protocols import Trial, hold_out
from llm_rerank.recommendation.inputs import ITEM_TOKENS
from llm_rerank.recommendation.planning import make_encoder
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.statistics import paired_difference

FITS = ("words alone", "vectors brought", "encoder")


def with_text_vectors(trial: Trial, config: RerankerConfig) -> Any:
    """Give the items' table with the encoder's vectors of the texts that a fit renders, reviews left out."""
    encoder = make_encoder(config)
    assert encoder is not None
    items = Renderer().render_items(
        validate_items(trial.item_frame), max_tokens=ITEM_TOKENS, count_tokens=encoder.count_tokens
    )
    vectors = dict(zip(items.ids, encoder.encode(list(items.texts)), strict=True))
    encoder.flush()
    cells: list[Any] = [vectors.get(item) for item in trial.item_frame["item_id"]]
    return trial.item_frame.assign(text_vector=object_array(cells))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    options = trial_parser("brought_vectors", __doc__ or "").parse_args(arguments)
    information = run_information(options.seed)
    trial = hold_out(load_dataset(options.dataset, options.data_dir), None, options.split)
    rest = {"sequence": "off", "cross_encoder": "off", "refit": False, "seed": options.seed}
    encoded = RerankerConfig(cache_folder=options.cache, **rest)
    report: dict[str, Any] = {"dataset": options.dataset, "split": options.split, "fits": {}, "differences": {}}
    values: dict[str, np.ndarray] = {}
    for name in FITS:
        config = encoded if name == "encoder" else RerankerConfig(encoder=None, **rest)
        items = with_text_vectors(trial, encoded) if name == "vectors brought" else trial.item_frame
        reranker = Reranker(config).fit(trial.interactions, items, users=trial.user_frame)
        values[name] = ndcg_of(reranker, trial, trial.interactions, exclude=None)
        fitted = reranker.saved.fitted
        report["fits"][name] = {
            "ndcg@10": float(values[name].mean()),
            "components": [component.name for component in fitted.components],
            "settings": fitted.report["settings"],
            "parts": fitted.report["parts"],
        }
        print(f"{name}: NDCG@10 {values[name].mean():.4f} of {len(values[name]):,} cases", flush=True)
    rows = []
    for less, more in combinations(FITS, 2):
        difference = paired_difference(values[more], values[less], seed=options.seed)
        report["differences"][f"{more} over {less}"] = vars(difference)
        interval = f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
        rows.append([f"{more} over {less}", interval, f"{difference.p:.4f}"])
    print(trial.describe())
    print(table(["NDCG@10", "difference, 95 %", "p"], rows))
    write_report(options.out, {**report, **information})
    return report


if __name__ == "__main__":
    main()
