"""Measures what a causal language model knows that all the rest does not, and what its reading costs.

    python -m benchmarks.language_model --dataset amazon_scientific --data-dir DIR --out FILE.json

Zero-shot: ``LanguageModelScorer`` scores the first 100 of the whole blend for some of the validation trial's users, who
are drawn evenly. Its score joins the blend as in ``benchmarks.fine_tuning_ablation``: by a conditional logit whose
weights are fitted on nine tenths of the users and judged on the tenth. Beside it stand, on the same lists, the score's
own order and that of two readers that cost microseconds: the encoder's similarity and TF-IDF's. With --fraction the
shop has so many of its users only (as in ``benchmarks.regimes``), and all lists are the young shop's.

The cost is measured on the first users again: the packed reading against its slow twin, and how far they differ.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks._common import run_information, table, write_report
from benchmarks._fine_tuning_judging import Judge, as_dict, ndcg
from benchmarks._fine_tuning_rest import Rest, fit_rest
from benchmarks.regimes import young_shop
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.evaluation.protocols import PROTOCOLS, LastOut, hold_out
from llm_rerank.models.language_model.causal import CausalLanguageModel
from llm_rerank.models.language_model.scorer import LanguageModelScorer
from llm_rerank.models.semantic.lexical import LexicalScorer
from llm_rerank.models.semantic.similarity import SemanticScorer
from llm_rerank.recommendation.planning import make_encoder
from llm_rerank.types import FloatArray, IntArray, Scorer

USERS_FOR_COST, CANDIDATES_FOR_COST = 5, 20


def rest_of(options: argparse.Namespace, config: RerankerConfig) -> Rest:
    """Fit everything but the language model on the trial's past, or on that of some of its users."""
    dataset = load_dataset(options.dataset, options.data_dir)
    trial = hold_out(dataset, PROTOCOLS.get(options.dataset, LastOut()), "validation")
    if options.fraction < 1:
        chosen = set(young_shop(trial, options.fraction, options.seed)["user_id"])
        is_chosen = np.array([user in chosen for user in trial.past.user_ids], dtype=np.bool_)
        trial = replace(trial, past=trial.past.take(is_chosen[trial.past.users]))
    return fit_rest(trial, config).drawn(options.judged, options.seed)


def shares_above(scores: FloatArray, rest: Rest) -> FloatArray:
    """Share of a list's other candidates that the target stands above, ties half: float32, shape (n_lists,)."""
    lists, rows = rest.judged, rest.judged.cases.candidates
    known = np.nan_to_num(scores, nan=-np.inf)
    of_target = known[lists.positive][rows.row_of_value]
    points = (known < of_target) + 0.5 * ((known == of_target) & ~lists.positive)
    sums = np.bincount(rows.row_of_value, weights=points, minlength=len(rows))
    return (sums / np.maximum(rows.lengths - 1, 1)).astype(np.float32)


def entry_of(scores: FloatArray, rest: Rest, judge: Judge, seconds: float) -> dict[str, Any]:
    """Lay out what a score is worth alone and in the blend."""
    known, deviation = np.isfinite(scores), float(np.nanstd(scores))
    standardised = ((scores - np.nanmean(scores)) / (deviation or 1.0)).astype(np.float32)
    shares = shares_above(scores, rest)
    gains = {key: as_dict(value) for key, value in judge.entry([judge.read(standardised)]).items()}
    return {
        **gains,
        "share above": {"mean": float(shares.mean()), "error": float(shares.std(ddof=1) / len(shares) ** 0.5)},
        "ndcg@10 alone": float(ndcg(np.nan_to_num(scores, nan=-1e9).astype(np.float64), rest.judged).mean()),
        "scored": float(known.mean()),
        "seconds": seconds,
    }


def cost_of(scorer: LanguageModelScorer, rest: Rest) -> dict[str, Any]:
    """Read some pairs packed and by the slow twin: pairs a second of both, and how far they differ."""
    cases = rest.judged.cases.take(np.arange(min(USERS_FOR_COST, len(rest.judged)), dtype=np.int64))
    codes: list[IntArray] = [cases.candidates[row][:CANDIDATES_FOR_COST] for row in range(len(cases))]
    cases = cases.with_candidates(type(cases.candidates).from_lists(codes))
    scorer.score(cases)  # what texts say on their own is kept from here on, for both ways
    seconds, found = {}, {}
    packs = scorer.model.reads_packs
    for way, packed in (("packed", packs), ("one at a time", False)):
        scorer.model.reads_packs = packed
        began = perf_counter()
        found[way] = scorer.score(cases)
        seconds[way] = perf_counter() - began
    scorer.model.reads_packs = packs
    pairs = {way: len(cases.candidates.values) / value for way, value in seconds.items()}
    return {
        "pairs_per_second": pairs,
        "ratio": pairs["packed"] / pairs["one at a time"],
        "max_abs_difference": float(np.nanmax(np.abs(found["packed"] - found["one at a time"]))),
        "dtype": scorer.model.dtype,
        "device": scorer.model.device,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language_model", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="amazon_scientific")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--language-model", default="default", help="a .gguf file, a folder or a hub name")
    parser.add_argument("--history-length", type=int, default=10)
    parser.add_argument("--item-tokens", type=int, default=24)
    parser.add_argument("--fraction", type=float, default=1.0, help="of the users that the shop has")
    parser.add_argument("--judged", type=int, default=400, help="most users to judge, drawn evenly")
    parser.add_argument("--cache", help="folder that keeps the encoder's vectors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    config = RerankerConfig(seed=options.seed, cache_folder=options.cache)
    rest = rest_of(options, config)
    judge = Judge(rest, options.seed)
    began = perf_counter()
    model = CausalLanguageModel(options.language_model)
    seconds_to_load = perf_counter() - began
    reader = LanguageModelScorer(model, history_length=options.history_length, item_tokens=options.item_tokens)
    makers: dict[str, Callable[[], Scorer]] = {
        "language model": lambda: reader,
        "encoder's similarity": lambda: SemanticScorer(make_encoder(config)),
        "TF-IDF": LexicalScorer,
    }
    report: dict[str, Any] = {
        "dataset": options.dataset,
        "split": "validation",
        "fraction": options.fraction,
        "n_users": rest.n_users,
        "n_judged": len(rest.judged),
        "share above, blend": float(shares_above(rest.judged.offsets, rest).mean()),
        "ndcg@10 of the judged, blend": float(judge.alone.ndcg.mean()),
        "language_model": {"fingerprint": model.fingerprint, "seconds_to_load": seconds_to_load},
        "readers": {},
        "fit_said": rest.said,
        **information,
    }
    for name, make in makers.items():
        scorer = make().fit(rest.past, rest.items, seed=options.seed)
        began = perf_counter()
        scores = scorer.score(rest.judged.cases)
        report["readers"][name] = entry_of(scores, rest, judge, perf_counter() - began)
        print("  ".join(_row(name, report["readers"][name])), flush=True)
    report["cost"] = cost_of(reader, rest)
    write_report(options.out, report)
    gains = ["gain, nats [95 %]", "by support", "NDCG@10, all users"]
    print(
        table(
            ["reader", "target above others", "NDCG@10 alone", *gains, "s"],
            [_row(name, entry) for name, entry in report["readers"].items()],
        )
    )
    print(f"blend: target above {report['share above, blend']:.3f} of the others; {report['cost']}")
    return report


def _row(name: str, entry: dict[str, Any]) -> list[str]:
    gains = [
        "{:+.4f} [{:+.4f}, {:+.4f}]".format(entry[key]["mean"], *entry[key]["ci95"])
        for key in ("gain", "gain by support", "ndcg@10 of all users")
    ]
    share = entry["share above"]
    own = [f"{share['mean']:.3f} ± {share['error']:.3f}", f"{entry['ndcg@10 alone']:.4f}"]
    return [name, *own, *gains, f"{entry['seconds']:.0f}"]


if __name__ == "__main__":
    main()
