"""A search phrase and nothing else: does a sentence encoder find more than word counts? The whole catalogue ranked.

    python -m benchmarks.query_regime --dataset amazon_scientific --data-dir DIR --out FILE.json

A simulation, for no published set here has searches. Where items are known by reviews (musical instruments, gift
cards) the phrase is the headline that the user later wrote over the review of the target: their own words, in no item's
text (other users' later reviews may be, as this split has it). Elsewhere it is one, two or three words of the target's
own title, drawn; as they are, each with a typing error, or each in another inflection. That favours word counts, since
the words come from the title, and says nothing of phrases that mean an item without naming it. One target a user; an
item that suits the phrase as well counts as wrong.

The best of each kind (word counts; a sum of two of them; the encoder; a sum of word counts and the encoder) is chosen
on one half of the cases and judged on the other, then the halves change places. Sums are of z-scores; that of two word
methods tells what any second opinion is worth. The encoder as the library asks it competes with the encoder over
passages (``phrase_rankers.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from benchmarks._common import run_information, table, trial_parser, write_report
from benchmarks.phrase_rankers import Catalogue
from benchmarks.systems import Tools, z_scores
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.readers import read_table
from llm_rerank.evaluation.protocols import Trial, hold_out
from llm_rerank.metrics import hit_matrix, hit_rate_at_k, ndcg_at_k
from llm_rerank.models.scoring import top_k
from llm_rerank.models.semantic.text_features import texts_and_titles
from llm_rerank.statistics import holm, paired_difference
from llm_rerank.types import BoolArray, DataError, DataReport, FloatArray, IntArray, Ragged

REVIEWS = {
    "amazon_musical_instruments": "reviews_Musical_Instruments_5.json.gz",
    "amazon_gift_cards": "Gift_Cards_5.json.gz",
}
"""Files with headlines of reviews, by data set."""

N_WORDS = (1, 2, 3)
WEIGHTS = (0.25, 0.5, 1.0, 2.0)
"""Of the second one's z-scores in a sum; those of the first count 1."""

KINDS = ("words", "two words", "encoder", "sum")
"""The best word method; the best sum of two; the encoder; the best sum of a word method and the encoder."""

GAINS = (("encoder", "words"), ("sum", "words"), ("sum", "two words"))

WORTH = 0.1
"""Relative gain from which a language model is said to pay, where the difference's interval lies above 0."""

WORD = re.compile(r"[^\W_]{3,}")


def title_words(title: str, k: int, rng: np.random.Generator) -> list[str]:
    """Draw k words of a title, in its order, lower case: of 3 characters or more, no stop words; fewer if it has."""
    words = [word for word in WORD.findall(title.lower()) if word not in ENGLISH_STOP_WORDS and not word.isdigit()]
    kept = np.sort(rng.permutation(len(words))[:k])
    return [words[place] for place in kept]


def mistyped(word: str, rng: np.random.Generator) -> str:
    """Swap two neighbouring letters that differ, or drop one, by a coin; the first letter stays."""
    place = int(rng.integers(1, len(word) - 1))
    if rng.random() < 0.5 and word[place] != word[place + 1]:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return word[:place] + word[place + 1 :]


def inflected(word: str) -> str:
    """Take a plural s off, or put one on."""
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word + "s"


def measures(scores: FloatArray, targets: IntArray) -> tuple[np.ndarray, np.ndarray]:
    """NDCG@10 and HR@10 of the one target of each case (a column of the scores): float64, shape (n_cases,) each."""
    wanted = Ragged.from_lengths(targets, np.ones(len(targets), dtype=np.int64))
    hits = hit_matrix(top_k(scores, 10), wanted, 10)
    return ndcg_at_k(hits, wanted.lengths, 10), hit_rate_at_k(hits, wanted.lengths, 10)


@dataclass(frozen=True)
class Judged:
    """The best of a kind, chosen on one half and judged on the other. chosen: by half; ndcg, hr: shape (n_cases,)."""

    chosen: list[str]
    ndcg: np.ndarray
    hr: np.ndarray


def best_sum(
    pairs: Iterable[tuple[str, str]], tables: Mapping[str, FloatArray], targets: IntArray, fold: BoolArray
) -> tuple[str, FloatArray]:
    """Sum of two tables of z-scores with the best NDCG@10 on the fold: the pair is chosen, then the weight."""
    one, other = max(pairs, key=lambda pair: ndcg_on(fold, tables[pair[0]] + tables[pair[1]], targets))
    sums = {weight: tables[one] + np.float32(weight) * tables[other] for weight in WEIGHTS}
    weight = max(sums, key=lambda weight: ndcg_on(fold, sums[weight], targets))
    return f"{one} + {weight:g} x {other}", sums[weight]


def ndcg_on(fold: BoolArray, scores: FloatArray, targets: IntArray) -> float:
    """Mean NDCG@10 of the fold's cases."""
    return float(measures(scores[fold], targets[fold])[0].mean())


def judge(
    words: Mapping[str, FloatArray], encoder: Mapping[str, FloatArray], targets: IntArray, half: BoolArray
) -> dict[str, Judged]:
    """Choose and judge each of ``KINDS`` across the halves; all that is chosen is chosen by NDCG@10.

    words, encoder: scores by name, float32, shape (n_cases, n_items). half: bool, shape (n_cases,).
    """
    found = {kind: Judged([], np.empty(len(targets)), np.empty(len(targets))) for kind in KINDS}
    tables = {name: z_scores(scores) for name, scores in [*words.items(), *encoder.items()]}
    for fold in (half, ~half):
        means = {name: ndcg_on(fold, scores, targets) for name, scores in tables.items()}
        word, reader = max(words, key=means.__getitem__), max(encoder, key=means.__getitem__)
        best = {
            "words": (word, tables[word]),
            "two words": best_sum(combinations(words, 2), tables, targets, fold),
            "encoder": (reader, tables[reader]),
            "sum": best_sum(product(words, encoder), tables, targets, fold),
        }
        for kind, (name, scores) in best.items():
            found[kind].chosen.append(name)
            found[kind].ndcg[~fold], found[kind].hr[~fold] = measures(scores[~fold], targets[~fold])
    return found


def headline_phrases(name: str, data_dir: Path | None, trial: Trial, targets: IntArray) -> list[str]:
    """Headline that each case's user wrote over the review of the target, at the time held out; "" where none."""
    if data_dir is None:
        raise DataError(f"headlines of {name} are in the published file; give --data-dir")
    reviews = read_table(data_dir / name / REVIEWS[name], report=DataReport())
    keys = zip(reviews["reviewerID"], reviews["asin"], reviews["unixReviewTime"].astype(int), strict=True)
    headlines = dict(zip(keys, reviews["summary"].fillna("").astype(str), strict=True))
    asked = zip(trial.user_ids, trial.items.ids[targets], trial.cases.times.tolist(), strict=True)
    return [headlines.get(key, "").strip() for key in asked]


def title_phrases(titles: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Phrases from titles by regime, the same words in each way of writing them; "" where a title has no word."""
    phrases: dict[str, list[str]] = {}
    for k in N_WORDS:
        rng = np.random.default_rng([seed, k])
        drawn = [title_words(title, k, rng) for title in titles]
        label = f"{k} word{'s' if k > 1 else ''} of the title"
        phrases[label] = [" ".join(words) for words in drawn]
        phrases[f"{label}, mistyped"] = [" ".join(mistyped(word, rng) for word in words) for words in drawn]
        phrases[f"{label}, inflected"] = [" ".join(map(inflected, words)) for words in drawn]
    return phrases


def first_targets(trial: Trial, n: int, seed: int) -> tuple[Trial, IntArray]:
    """Draw at most n users and one target of each; their trial, and the targets' codes, int64, shape (n_cases,)."""
    rng = np.random.default_rng(seed)
    drawn = trial.take(np.sort(rng.permutation(len(trial.cases))[:n]))
    targets = drawn.cases.targets
    return drawn, targets.values[targets.offsets[:-1] + rng.integers(targets.lengths)]


def measure(label: str, catalogue: Catalogue, phrases: Sequence[str], targets: IntArray, seed: int) -> dict[str, Any]:
    """Rank the catalogue for each phrase; means of every ranker, and what was chosen across the halves."""
    place_of = np.full(int(catalogue.codes.max()) + 1, -1, dtype=np.int64)
    place_of[catalogue.codes] = np.arange(len(catalogue.codes))
    columns = place_of[targets]
    words, encoder = catalogue.word_scores(phrases), catalogue.encoder_scores(phrases)
    half = np.random.default_rng([seed, 1]).permutation(len(phrases)) % 2 == 0
    found = judge(words, encoder, columns, half)
    rankers = {}
    for name, scores in [*words.items(), *encoder.items()]:
        ndcg, hr = measures(scores, columns)
        rankers[name] = {"ndcg@10": float(ndcg.mean()), "hr@10": float(hr.mean())}
    gains: dict[str, Any] = {}
    for kind, below in GAINS:
        difference = paired_difference(found[kind].ndcg, found[below].ndcg, seed=seed)
        hits = paired_difference(found[kind].hr, found[below].hr, seed=seed)
        base = float(found[below].ndcg.mean())
        relative = difference.mean / base if base > 0 else None
        pays = relative is not None and relative >= WORTH and difference.low > 0
        gains[f"{kind} over {below}"] = {**vars(difference), "relative": relative, "pays": pays, "hr@10": vars(hits)}
    return {
        "regime": label,
        "n": len(phrases),
        "n_items": len(catalogue.codes),
        "words_a_phrase": float(np.mean([len(phrase.split()) for phrase in phrases])),
        "rankers": rankers,
        "judged": {
            kind: {"chosen": best.chosen, "ndcg@10": float(best.ndcg.mean()), "hr@10": float(best.hr.mean())}
            for kind, best in found.items()
        },
        "gains": gains,
    }


def print_regimes(report: Mapping[str, Any]) -> None:
    """Print one line a regime."""
    rows = []
    for regime in report["regimes"]:
        means = [f"{best['ndcg@10']:.4f} / {best['hr@10']:.3f}" for best in regime["judged"].values()]
        gains = [
            f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}] {gain['relative'] or 0:+.0%}"
            for gain in regime["gains"].values()
        ]
        rows.append([regime["regime"], f"{regime['n']:,}", *means, *gains])
    heads = [f"{report['dataset']}: NDCG / HR@10", "n", *KINDS, *(f"{kind} over {below}" for kind, below in GAINS)]
    print(table(heads, rows))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = trial_parser("query_regime", __doc__)
    parser.add_argument("--cases", type=int, default=2_000, help="users drawn at most")
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    trial = hold_out(load_dataset(options.dataset, options.data_dir), split=options.split)
    print(trial.describe(), flush=True)
    trial, targets = first_targets(trial, options.cases, options.seed)
    catalogue = Catalogue(trial, Tools(options.cache).encoder(), options.seed)
    if options.dataset in REVIEWS:
        phrases = headline_phrases(options.dataset, options.data_dir, trial, targets)
        regimes = {"headline of the user's later review": phrases}
    else:
        titles = texts_and_titles(trial.items, targets)[1]
        regimes = title_phrases(titles, options.seed)
    known = np.isin(targets, catalogue.codes)
    had = np.array([code in trial.seen[case] for case, code in enumerate(targets)])
    report: dict[str, Any] = {"dataset": options.dataset, "split": options.split, "simulated": True, "regimes": []}
    for label, phrases in regimes.items():
        said = np.array([any(character.isalnum() for character in phrase) for phrase in phrases])
        rows = np.flatnonzero(known & said & ~had)
        asked = [phrases[row] for row in rows]
        report["regimes"].append(measure(label, catalogue, asked, targets[rows], options.seed))
        report["regimes"][-1]["left_out"] = len(phrases) - len(rows)
        print(f"{label}: {len(rows):,} cases", flush=True)
    gains = [gain for regime in report["regimes"] for gain in regime["gains"].values()]
    for gain, adjusted in zip(gains, holm([gain["p"] for gain in gains]), strict=True):
        gain["p_holm"] = float(adjusted)
    write_report(options.out, {**report, **information})
    print_regimes(report)
    return report


if __name__ == "__main__":
    main()
