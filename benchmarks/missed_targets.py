"""Why are targets missed? Where the missed ones stand in the list, and whether anything in the data points to them.

    python -m benchmarks.missed_targets --dataset amazon_scientific --data-dir DIR --out FILE.json

A target is missed if it is not among the first ten that the blend (without a cross-encoder) shows its user; each target
of a user counts for itself. Every miss has one *place*, the first that holds: "new" (no event before), "not retrieved",
"ranked beyond 100", "ranked 11-100". And it has one *evidence*, again the first that holds:

repeat: the user had it before (such items are never shown);
co-occurred: another user took it and an item of the history;
similar text: its text is near that of an item of the history (cosine of the raw encoder vectors, or of word TF-IDF);
same brand or category: as an item of the history (category: the whole path);
popular: in the top decile of the catalogue by users;
none: nothing in the data points to it.

Evidence is cheap where much of the catalogue has it, so each kind is also reported alone, beside the share that an item
drawn from those the user has not had would reach. Evidence by place is what would have been needed: a better order, a
longer list or another source, or a start for new items. The oracle ranks misses of some kinds as if they were solved:
at the top of the list, and in its last places. ``--show`` prints drawn misses for a reader; no report holds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_matrix

from benchmarks._common import fitted_on, run_information, table, trial_parser, write_report
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.evaluation.protocols import Trial, hold_out, ranking_from_frame
from llm_rerank.metrics import hit_matrix, hit_rate_at_k, ndcg_at_k
from llm_rerank.models.collaborative.item_item import co_occurrence
from llm_rerank.models.scoring import history_matrix
from llm_rerank.models.semantic.text_features import TextFeatures, add_similarities, has_text
from llm_rerank.recommendation.candidates import is_member, positions_in_row
from llm_rerank.recommendation.planning import make_encoder
from llm_rerank.types import BoolArray, Encoder, FloatArray, IntArray, Items, Ragged

Float64Array = npt.NDArray[np.float64]

SHOWN, NEAR = 10, 100
PLACES = ("new", "not retrieved", "ranked beyond 100", "ranked 11-100")
EVIDENCE = ("repeat", "co-occurred", "similar text", "same brand or category", "popular", "none")
OFTEN = "co-occurred 3 times"
POPULAR_QUANTILE = 0.9
BLOCK = 1024
ORACLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "co-occurred, ranked 11-100": (EVIDENCE[1:2], PLACES[3:]),
    "co-occurred or similar text, ranked 11-100": (EVIDENCE[1:3], PLACES[3:]),
    "any link to the history, ranked 11-100": (EVIDENCE[1:4], PLACES[3:]),
    "any link to the history, retrieved": (EVIDENCE[1:4], PLACES[2:]),
    "any link to the history, wherever": (EVIDENCE[1:4], PLACES),
}
"""Kinds of misses that are taken as solved: evidence and places."""


@dataclass(frozen=True)
class Linked:
    """Whether a history is linked to a target, and how common such a link is.

    found: bool, shape (n_targets,). share: of the items that the target's user has not had, those that are linked as
    well: float64, shape (n_targets,).
    """

    found: BoolArray
    share: Float64Array


def ranks_of(ranked: Ragged, targets: Ragged, n_items: int) -> IntArray:
    """Rank of each target in its row's list, from 1; 0 where it is not there: int64, shape (n_targets,)."""
    keys = ranked.row_of_value * n_items + ranked.values
    order = np.argsort(keys)
    wanted = targets.row_of_value * n_items + targets.values
    at = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    return np.where(keys[at] == wanted, positions_in_row(ranked)[at] + 1, 0).astype(np.int64)


def classify(rules: Mapping[str, BoolArray], names: Sequence[str]) -> IntArray:
    """Position in ``names`` of the first rule that holds; the last name, which needs no rule, where none does.

    rules: bool, shape (n,) each, for all names but the last. Returns int64, shape (n,).
    """
    held = np.stack([rules[name] for name in names[:-1]])
    return np.where(held.any(axis=0), held.argmax(axis=0), len(names) - 1).astype(np.int64)


def relations(
    items: Items, counts: csr_matrix, encoder: Encoder | None, encoder_cosine: float, word_cosine: float
) -> dict[str, FloatArray]:
    """Tell which items are linked with which: float32 of 0 and 1, shape (n_items, n_items), diagonal 0, by name.

    counts: how often two items were taken by one user. Without an encoder there is no relation by its vectors.
    """
    known = has_text(items.texts)
    found = {"co-occurred": (counts > 0).toarray(), OFTEN: (counts >= 3).toarray()}
    if encoder is not None:
        vectors = encoder.encode(list(items.texts))
        found["encoder"] = vectors @ vectors.T >= encoder_cosine
    words = np.zeros((len(items), len(items)), dtype=np.float32)
    no_titles = [""] * len(items)  # of which the letters, not read here, would be taken
    add_similarities(words, TextFeatures.fit(list(items.texts), no_titles, None).words)
    found["words"] = words >= word_cosine
    for name in ("encoder", "words"):
        if name in found:
            found[name] &= known & known[:, None]
    found["brand"] = same_value(items.frame["brand"])
    found["category"] = same_value(items.frame["categories"])
    for links in found.values():
        np.fill_diagonal(links, False)
    found["similar text"] = found["words"] | found.get("encoder", found["words"])
    found["same brand or category"] = found["brand"] | found["category"]
    return {name: links.astype(np.float32) for name, links in found.items()}


def same_value(values: pd.Series) -> BoolArray:
    """Tell which rows have the same value, case ignored; an empty one equals none: bool, shape (n, n)."""
    codes = pd.factorize(values.str.strip().str.casefold().replace("", None))[0]
    return (codes == codes[:, None]) & (codes >= 0)


def linked(history: csr_matrix, relation: FloatArray, targets: Ragged, seen: Ragged) -> Linked:
    """Tell whether any history item is linked to each target, and to what share of the items not seen.

    history: shape (n_cases, n_items), above 0 where the item is in the history. relation: of ``relations``.
    """
    found = np.zeros(len(targets.values), dtype=np.bool_)
    share = np.zeros(len(targets.values))
    for start in range(0, len(targets), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(targets)), dtype=np.int64)
        reached = (history[rows] @ relation) > 0
        at, some = targets.value_positions(rows), targets.take(rows)
        found[at] = reached[some.row_of_value, some.values]
        had = seen.take(rows)
        reached[had.row_of_value, had.values] = False
        share[at] = (reached.sum(axis=1) / (reached.shape[1] - had.lengths))[some.row_of_value]
    return Linked(found, share)


def share_interval(rows: IntArray, chosen: BoolArray, n_cases: int, seed: int, n_resamples: int = 1_000) -> list[float]:
    """95 % bootstrap interval of the share of misses that are chosen; users are drawn, with all their misses.

    rows: user of each miss, int64. chosen: bool. Both shape (n_misses,).
    """
    wholes = np.bincount(rows, minlength=n_cases)
    parts = np.bincount(rows, weights=chosen, minlength=n_cases)
    users = np.flatnonzero(wholes)
    draws = np.random.default_rng(seed).multinomial(len(users), np.full(len(users), 1 / len(users)), size=n_resamples)
    return np.quantile(draws @ parts[users] / (draws @ wholes[users]), [0.025, 0.975]).tolist()


def solved_hits(hits: BoolArray, n_solved: IntArray, *, first: bool) -> BoolArray:
    """Hits of lists into which solved targets were put: bool, shape (n_cases, k) as ``hits``.

    n_solved: shape (n_cases,). first: they open the list and push the rest down; else they take the last places that
    hold no hit.
    """
    if first:
        before = np.arange(hits.shape[1]) - n_solved[:, None]
        return (before < 0) | np.take_along_axis(hits, np.maximum(before, 0), axis=1)
    free_from_below = np.cumsum(~hits[:, ::-1], axis=1)[:, ::-1]
    return hits | (free_from_below <= n_solved[:, None])


def counted(kinds: IntArray, names: Sequence[str], rows: IntArray, n_cases: int, seed: int) -> dict[str, Any]:
    """Count each kind of miss, with its share and the share's interval."""
    return {
        name: {
            "n": int((kinds == kind).sum()),
            "share": float((kinds == kind).mean()),
            "interval": share_interval(rows, kinds == kind, n_cases, seed),
        }
        for kind, name in enumerate(names)
    }


def oracles(ranked: Ragged, targets: Ragged, missed: BoolArray, places: IntArray, evidence: IntArray) -> dict[str, Any]:
    """NDCG@10 and HR@10 as they are, and with the misses of each of ``ORACLES`` solved."""

    def worth(hits: BoolArray) -> list[float]:
        return [
            float(ndcg_at_k(hits, targets.lengths, SHOWN).mean()),
            float(hit_rate_at_k(hits, targets.lengths, SHOWN).mean()),
        ]

    hits = hit_matrix(ranked, targets, SHOWN)
    ndcg, hit_rate = worth(hits)
    found: dict[str, Any] = {"as it is": {"ndcg@10": ndcg, "hr@10": hit_rate}}
    for name, (kinds, where) in ORACLES.items():
        solved = missed & np.isin(evidence, [EVIDENCE.index(kind) for kind in kinds])
        solved &= np.isin(places, [PLACES.index(place) for place in where])
        n_solved = np.bincount(targets.row_of_value[solved], minlength=len(targets)).astype(np.int64)
        ndcg, hit_rate = worth(solved_hits(hits, n_solved, first=True))
        last, _ = worth(solved_hits(hits, n_solved, first=False))
        found[name] = {"n": int(solved.sum()), "ndcg@10 at the top": ndcg, "ndcg@10 at the end": last}
        found[name]["hr@10"] = hit_rate
    return found


def show(trial: Trial, drawn: IntArray, ranks: IntArray, places: IntArray, evidence: IntArray) -> None:
    """Print drawn misses: what the user had, oldest first, and what they took. To the terminal only."""
    frame, targets = trial.items.frame, trial.cases.targets
    lines = (frame["title"] + " [" + frame["brand"] + "]").to_numpy()
    for number, at in enumerate(drawn, 1):
        print(f"\n{number}. {PLACES[places[at]]} ({ranks[at]}), {EVIDENCE[evidence[at]]}")
        print("\n".join(f"   had  {lines[code]}" for code in trial.cases.history[targets.row_of_value[at]][-12:]))
        print(f"   TOOK {lines[targets.values[at]]}")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = trial_parser("missed_targets", __doc__)
    parser.add_argument("--encoder-cosine", type=float, default=0.5, help="from which texts count as similar")
    parser.add_argument("--word-cosine", type=float, default=0.5, help="the same for word TF-IDF")
    parser.add_argument("--show", type=int, default=0, help="print so many drawn misses; they are not in the report")
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    trial = hold_out(load_dataset(options.dataset, options.data_dir), None, options.split)
    print(trial.describe(), flush=True)
    config = RerankerConfig(cache_folder=options.cache, cross_encoder="off", seed=options.seed)
    reranker = fitted_on(trial, config, options.model)
    ranked = ranking_from_frame(reranker.recommend(list(trial.user_ids), at=trial.moments, k=None), trial)
    targets, n_items, past = trial.cases.targets, len(trial.items), trial.past

    ranks = ranks_of(ranked, targets, n_items)
    missed = (ranks == 0) | (ranks > SHOWN)
    n_events = np.bincount(past.items[past.items >= 0], minlength=n_items)[targets.values]
    places = classify({"new": n_events == 0, "not retrieved": ranks == 0, "ranked beyond 100": ranks > NEAR}, PLACES)
    links = {
        name: linked(history_matrix(trial.cases, n_items), relation, targets, trial.seen)
        for name, relation in relations(
            trial.items,
            co_occurrence(past, 0.0)[0],
            make_encoder(reranker.config),
            options.encoder_cosine,
            options.word_cosine,
        ).items()
    }
    popular = trial.item_support >= max(np.quantile(trial.item_support, POPULAR_QUANTILE), 1)
    links["popular"] = Linked(popular[targets.values], np.full(len(missed), popular.mean()))
    repeat = is_member(targets, trial.seen, n_items)
    evidence = classify({"repeat": repeat, **{name: link.found for name, link in links.items()}}, EVIDENCE)

    rows, n_cases = targets.row_of_value[missed], len(targets)
    cross = np.zeros((len(EVIDENCE), len(PLACES)), dtype=np.int64)
    np.add.at(cross, (evidence[missed], places[missed]), 1)
    report = {
        "dataset": options.dataset,
        "split": options.split,
        "n_cases": n_cases,
        "n_targets": len(missed),
        "n_missed": int(missed.sum()),
        "n_that_fit_no_list": int(np.maximum(targets.lengths - SHOWN, 0).sum()),
        "thresholds": {"encoder cosine": options.encoder_cosine, "word cosine": options.word_cosine},
        "places": counted(places[missed], PLACES, rows, n_cases, options.seed),
        "evidence": counted(evidence[missed], EVIDENCE, rows, n_cases, options.seed),
        "each alone": {
            name: {
                "of missed": float(link.found[missed].mean()),
                "of found": float(link.found[~missed].mean()),
                "of items drawn": float(link.share[missed].mean()),
            }
            for name, link in links.items()
        },
        "needed": {name: dict(zip(PLACES, cross[kind].tolist(), strict=True)) for kind, name in enumerate(EVIDENCE)},
        "oracle": oracles(ranked, targets, missed, places, evidence),
        **information,
    }
    write_report(options.out, report)
    print_report(report)
    if options.show:
        drawn = np.random.default_rng(options.seed).choice(np.flatnonzero(missed), options.show, replace=False)
        show(trial, drawn, ranks, places, evidence)
    return report


def print_report(report: Mapping[str, Any]) -> None:
    """Print evidence by place, each evidence alone, and the oracle."""
    n = report["n_missed"]
    print(f"{n:,} of {report['n_targets']:,} targets missed, {report['n_that_fit_no_list']:,} beyond ten a user")
    cells = [
        [name, *(f"{count:,}" for count in row.values()), f"{report['evidence'][name]['share']:.1%}"]
        for name, row in report["needed"].items()
    ]
    cells.append(["all", *(f"{place['n']:,}" for place in report["places"].values()), "100%"])
    print(table(["evidence", *PLACES, "share"], cells))
    cells = [[name, *(f"{share:.1%}" for share in row.values())] for name, row in report["each alone"].items()]
    print(table(["each alone", "of missed", "of found", "of items drawn"], cells))
    for name, row in report["oracle"].items():
        print(name, {key: round(value, 4) for key, value in row.items()})


if __name__ == "__main__":
    main()
