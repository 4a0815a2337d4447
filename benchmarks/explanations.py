"""Do explanations say exactly what the scores say? Random pairs of a real shop against the public ``rerank``.

    python -m benchmarks.explanations --dataset online_retail --data-dir DIR --out FILE.json

Each pair is explained in a list of one, against another item of the same user; its parts must add up to its score, to
the score that one rerank of all pairs gives, and to the gap between the two items. The effects of history items are
compared with a rerank whose ``histories`` truly lack the item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks._common import fitted_on, run_information, trial_parser, write_report
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.evaluation.protocols import PROTOCOLS, LastOut, hold_out
from tests.recommendation.explaining import error_of_leave_one_out, errors_of_sums, random_pairs

PAIRS_LEFT_OUT = 40


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = trial_parser("explanations", __doc__ or "", dataset="sample")
    parser.add_argument("--pairs", type=int, default=1_000)
    parser.add_argument("--encoder", default="default", help="folder or hub name; 'none'")
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    dataset = load_dataset(options.dataset, options.data_dir)
    trial = hold_out(dataset, PROTOCOLS.get(options.dataset, LastOut()), options.split)
    encoder = None if options.encoder == "none" else options.encoder
    config = RerankerConfig(encoder=encoder, cache_folder=options.cache, cross_encoder="off", seed=options.seed)
    reranker = fitted_on(trial, config, options.model)
    after_all = int(trial.past.times.max()) + 1
    pairs = random_pairs(list(trial.user_ids), list(trial.items.ids), options.pairs, seed=options.seed)
    errors = errors_of_sums(reranker, pairs, at=after_all)
    error, n_effects = error_of_leave_one_out(reranker, trial.interactions, pairs.iloc[:PAIRS_LEFT_OUT], at=after_all)
    report = {
        "dataset": options.dataset,
        "n_pairs": len(pairs),
        "greatest_errors": errors,
        "greatest_error_of_leave_one_out": error,
        "n_effects": n_effects,
        **information,
    }
    write_report(options.out, report)
    print(
        f"{options.dataset}: {len(pairs):,} pairs, greatest error of a sum {errors['sum']:.1e}, against one rerank "
        f"{errors['score']:.1e}, of a gap {errors['difference']:.1e}; {n_effects:,} history effects within {error:.1e}"
    )
    return report


if __name__ == "__main__":
    main()
