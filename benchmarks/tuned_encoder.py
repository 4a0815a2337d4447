"""Does an encoder that was tuned on the shop's own purchases know what the untuned one does not? One longer trial.

    python -m benchmarks.tuned_encoder --dataset amazon_scientific --data-dir DIR --cache CACHE --out FILE.json

Tuned on pairs of items of one user, from before the fit's own hold-out: the fit then judges text on users whose last
items the encoder has not seen. Reviews stay out of the texts that it is tuned on, for both items of a pair would carry
the words of the user who took them. Both encoders are used in the same forms: similarity to the history alone (the
better decay of two, each its own), and everything but the cross-encoder, where the vectors are a kernel of text-aware
EASE, the similarity and, where there are reviews, their sentiment. Paired differences of NDCG@10 on the trial's users.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import run_information, table, trial_parser, write_report
from benchmarks._encoder_tuning import EncoderTuning, tune_encoder
from benchmarks.fresh_histories import ndcg_of_lists
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.rendering import Renderer
from llm_rerank.evaluation.protocols import Trial, hold_out, rank_catalogue
from llm_rerank.metrics import hit_matrix, ndcg_at_k
from llm_rerank.models.semantic.similarity import SemanticScorer
from llm_rerank.models.semantic.weights import DEFAULT_MODEL, load_network, quiet
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.planning import make_encoder
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.statistics import paired_difference
from llm_rerank.types import DataError

DECAYS = (0.05, 0.2)
UNTUNED, TUNED = "untuned", "tuned"


def tuned_folder(
    trial: Trial, settings: EncoderTuning, encoder: str, folder: Path
) -> tuple[list[dict[str, float]], float]:
    """Tune an encoder on what came before the fit's hold-out and save it in the folder; its log and seconds."""
    began = time.perf_counter()
    holdout = plan_holdout(trial.past, settings.seed, FitLog(verbose=False))
    items = Renderer().render_items(trial.items, holdout.past.take(np.empty(0, dtype=np.int64)), holdout.as_of)
    if not any(str(text).strip() for text in items.texts):
        raise DataError(f"{trial.dataset} has no text but its buyers' reviews; give a data set with descriptions")
    network = load_network(encoder, "cpu")
    log = tune_encoder(network, holdout.past, items.texts, settings, lambda line: print(line, flush=True))
    with quiet():
        network.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)
    return log, time.perf_counter() - began


def measured(trial: Trial, encoder: str, cache: str | None, seed: int) -> dict[str, np.ndarray]:
    """NDCG@10 of each case with an encoder, by form: float64, shape (n_cases,)."""
    config = RerankerConfig(encoder=encoder, cache_folder=cache, semantic="always", cross_encoder="off", seed=seed)
    vectors = make_encoder(config)
    assert vectors is not None
    alone = []
    for decay in DECAYS:
        scorer = SemanticScorer(vectors, decay=decay).fit(trial.past, trial.items, seed=seed)
        ranked = rank_catalogue(scorer, trial, 10)
        targets = trial.cases.targets
        alone.append(ndcg_at_k(hit_matrix(ranked, targets, 10), targets.lengths, 10))
    reranker = Reranker(config, verbose=False).fit(trial.interactions, trial.item_frame, users=trial.user_frame)
    whole = ndcg_of_lists(reranker.recommend(list(trial.user_ids), k=10, at=trial.moments), trial)
    return {"similarity alone": max(alone, key=np.mean), "all but the cross-encoder": whole}


def compared(values: Mapping[str, Mapping[str, np.ndarray]], seed: int) -> dict[str, dict[str, Any]]:
    """Both means of each form, and the paired difference, tuned minus untuned."""
    return {
        form: {
            **{name: float(values[name][form].mean()) for name in (UNTUNED, TUNED)},
            **vars(paired_difference(values[TUNED][form], untuned, seed=seed)),
        }
        for form, untuned in values[UNTUNED].items()
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = trial_parser("tuned_encoder", __doc__ or "")
    parser.add_argument("--encoder", default=DEFAULT_MODEL, help="where tuning starts: folder, hub name or default")
    parser.add_argument("--steps", type=int, default=EncoderTuning.steps)
    parser.add_argument("--pairs", type=int, default=EncoderTuning.pairs_per_step, help="a step")
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    trial = hold_out(load_dataset(options.dataset, options.data_dir), split=options.split)
    settings = EncoderTuning(steps=options.steps, pairs_per_step=options.pairs, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        log, seconds = tuned_folder(trial, settings, options.encoder, Path(folder))
        # vectors of a tuned encoder serve this run alone: the cache folder would keep them for ever
        values = {
            UNTUNED: measured(trial, options.encoder, options.cache, options.seed),
            TUNED: measured(trial, folder, None, options.seed),
        }
    report = {
        "dataset": options.dataset,
        "split": options.split,
        "n_users": len(trial.cases),
        "settings": vars(settings),
        "seconds_of_tuning": seconds,
        "log": log,
        "forms": compared(values, options.seed),
        **information,
    }
    write_report(options.out, report)
    rows = [
        [
            form,
            f"{entry[UNTUNED]:.4f}",
            f"{entry[TUNED]:.4f}",
            f"{entry['mean']:+.4f} [{entry['low']:+.4f}, {entry['high']:+.4f}]",
        ]
        for form, entry in report["forms"].items()
    ]
    print(table([f"{options.dataset}, {options.split}", UNTUNED, TUNED, "difference [95 %]"], rows))
    return report


if __name__ == "__main__":
    main()
