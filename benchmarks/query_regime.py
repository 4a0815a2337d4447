"""A search phrase and nothing else: does a sentence encoder find more than word counts? The whole catalogue ranked.

    python -m benchmarks.query_regime --dataset amazon_scientific --data-dir DIR --out FILE.json

A simulation, for no published set here has searches. Where items are known by reviews (musical instruments, gift
cards) the phrase is the headline that the user later wrote over the review of the target: their own words, in no item's
text (other users' later reviews may be, as this split has it). Elsewhere it is one, two or three words of the target's own title, drawn; as they are, each with a
typing error, or each in another inflection. That favours word counts, since the words come from the title, and says
nothing of phrases that mean an item without naming it. One target a user; an item that suits the phrase as well counts
as wrong.

The best of each kind (word counts; encoder; their sum of z-scores, with partner and weight) is chosen on one half of
the cases and judged on the other, then the halves change places. The encoder is asked as the library asks it, by
``SemanticScorer`` for cases with a query and no history.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

from benchmarks._common import run_information, table, trial_parser, write_report
from benchmarks.systems import Tools
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.readers import read_table
from llm_rerank.data.rendering import Renderer
from llm_rerank.evaluation.protocols import Trial, hold_out
from llm_rerank.metrics import hit_matrix, hit_rate_at_k, ndcg_at_k
from llm_rerank.models.collaborative.text_kernel import TextFeatures, has_text, texts_and_titles
from llm_rerank.models.scoring import top_k
from llm_rerank.models.semantic.similarity import SemanticScorer
from llm_rerank.recommendation.components import standardize_rows
from llm_rerank.statistics import holm, paired_difference
from llm_rerank.types import BoolArray, Cases, DataError, DataReport, Encoder, FloatArray, IntArray, Ragged

REVIEWS = {
    "amazon_musical_instruments": "reviews_Musical_Instruments_5.json.gz",
    "amazon_gift_cards": "Gift_Cards_5.json.gz",
}
"""Files with headlines of reviews, by data set."""

N_WORDS = (1, 2, 3)
WEIGHTS = (0.25, 0.5, 1.0, 2.0)
"""Of the encoder's z-scores in the sum; those of the word method count 1."""

WORTH = 0.1
"""Relative gain from which a language model is said to pay, where the difference's interval lies above 0."""

LONG_TOKENS = 1024  # the encoder reads 128; an index of words has no such bound
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


@dataclass(frozen=True)
class BM25:
    """Okapi BM25 (Robertson and Zaragoza, 2009). weights: float64 CSR, shape (n_items, n_terms)."""

    vectorizer: CountVectorizer
    weights: csr_matrix

    @classmethod
    def fit(cls, texts: Sequence[str], k1: float = 1.2, b: float = 0.75) -> BM25:
        """Weigh each term of each text: idf · tf (k1 + 1) / (tf + k1 (1 − b + b length / mean length))."""
        vectorizer = CountVectorizer(dtype=np.float64)
        counts = csr_matrix(vectorizer.fit_transform(texts))
        lengths = np.asarray(counts.sum(axis=1)).ravel()
        with_term = np.bincount(counts.indices, minlength=counts.shape[1])
        idf = np.log(1 + (len(texts) - with_term + 0.5) / (with_term + 0.5))
        norms = k1 * (1 - b + b * lengths / lengths.mean())
        rows = np.repeat(np.arange(len(texts)), np.diff(counts.indptr))
        counts.data = idf[counts.indices] * counts.data * (k1 + 1) / (counts.data + norms[rows])
        return cls(vectorizer, counts)

    def score(self, phrases: Sequence[str]) -> FloatArray:
        """Scores: float32, shape (n_phrases, n_items)."""
        return (self.vectorizer.transform(phrases) @ self.weights.T).toarray().astype(np.float32)


class Catalogue:
    """The items with a text, as of the cut, in a drawn order, so that equal scores do not fall in the file's.

    codes: int64, shape (n,), of the trial's items.
    """

    def __init__(self, trial: Trial, encoder: Encoder, seed: int) -> None:
        texts, titles = texts_and_titles(trial.items)
        long = Renderer().render_items(trial.items, trial.past, max_tokens=LONG_TOKENS).texts
        self.codes: IntArray = np.random.default_rng(seed).permutation(np.flatnonzero(has_text(texts)))
        fields = {"text": texts, "title": titles, "long text": list(long)}
        self.fields = {
            name: [field[code] for code in self.codes]
            for name, field in fields.items()
            if name == "text" or field != texts
        }
        self._features = {name: TextFeatures.fit(field, field, None) for name, field in self.fields.items()}
        self._bm25 = {name: BM25.fit(field) for name, field in self.fields.items()}
        self._semantic = {
            f"{kind} of {name}": SemanticScorer(encoder, whiten=kind == "whitened").fit(
                trial.past, trial.items.with_texts(_in_place(field, self.codes, len(trial.items))), seed=seed
            )
            for name, field in self.fields.items()
            if name != "long text"
            for kind in ("plain", "whitened")
        }

    def word_scores(self, phrases: Sequence[str]) -> dict[str, FloatArray]:
        """Score every item by each word method: float32, shape (n_phrases, n), by name."""
        scores = {}
        for name, features in self._features.items():
            words = features.word_weights.vectors(phrases, "word") @ features.words.T
            characters = features.character_weights.vectors(phrases, "char_wb") @ features.characters.T
            scores[f"words of {name}"] = words.toarray()
            scores[f"characters of {name}"] = characters.toarray()
            scores[f"BM25 of {name}"] = self._bm25[name].score(phrases)
        # what the library's own kernel averages where there is no encoder
        of_title = scores.get("characters of title", scores["characters of text"])
        scores["words of text and characters of title"] = (scores["words of text"] + of_title) / 2
        return scores

    def encoder_scores(self, phrases: Sequence[str]) -> dict[str, FloatArray]:
        """Score every item by the encoder, as the library answers a search: float32, shape (n_phrases, n), by name."""
        cases = searching(phrases)
        return {name: scorer.score_catalogue(cases)[:, self.codes] for name, scorer in self._semantic.items()}


def _in_place(texts: Sequence[str], codes: IntArray, n_items: int) -> list[str]:
    placed = [""] * n_items
    for code, text in zip(codes, texts, strict=True):
        placed[code] = text
    return placed


def searching(phrases: Sequence[str]) -> Cases:
    """Build a case for each phrase: a search, no history, no candidates."""
    n = len(phrases)
    nothing = np.empty(0, dtype=np.int64)
    return Cases(
        user_rows=np.full(n, -1, dtype=np.int64),
        times=np.zeros(n, dtype=np.int64),
        history=Ragged.empty(n),
        history_weights=np.empty(0, dtype=np.float32),
        history_times=nothing,
        queries=list(phrases),
        candidates=Ragged.empty(n),
        targets=Ragged.empty(n),
    )


def measures(scores: FloatArray, targets: IntArray) -> tuple[np.ndarray, np.ndarray]:
    """NDCG@10 and HR@10 of the one target of each case (a column of the scores): float64, shape (n_cases,) each."""
    wanted = Ragged.from_lengths(targets, np.ones(len(targets), dtype=np.int64))
    hits = hit_matrix(top_k(scores, 10), wanted, 10)
    return ndcg_at_k(hits, wanted.lengths, 10), hit_rate_at_k(hits, wanted.lengths, 10)


def z_scores(scores: FloatArray) -> FloatArray:
    """Standardise each row over the catalogue; a case of which nothing is known gets 0."""
    mean, deviation = standardize_rows(scores, np.arange(scores.shape[1], dtype=np.int64))
    return np.nan_to_num((scores - mean) / deviation, nan=0.0)


@dataclass(frozen=True)
class Judged:
    """The best of a kind, chosen on one half and judged on the other. chosen: by half; ndcg, hr: shape (n_cases,)."""

    chosen: list[str]
    ndcg: np.ndarray
    hr: np.ndarray


def judge(
    words: Mapping[str, FloatArray], encoder: Mapping[str, FloatArray], targets: IntArray, half: BoolArray
) -> dict[str, Judged]:
    """Choose and judge "words", "encoder" and "sum" across the halves; all that is chosen is chosen by NDCG@10.

    words, encoder: scores by name, float32, shape (n_cases, n_items). half: bool, shape (n_cases,).
    """
    kinds = ("words", "encoder", "sum")
    found = {kind: Judged([], np.empty(len(targets)), np.empty(len(targets))) for kind in kinds}
    for fold in (half, ~half):
        means = {name: measures(s[fold], targets[fold])[0].mean() for name, s in [*words.items(), *encoder.items()]}
        word = max(words, key=lambda name: means[name])
        reader = max(encoder, key=lambda name: means[name])
        read = z_scores(encoder[reader])
        best, best_sum, best_mean = "", read, -1.0
        for partner, scores in words.items():
            standardised = z_scores(scores)
            for weight in WEIGHTS:
                both = standardised + np.float32(weight) * read
                mean = measures(both[fold], targets[fold])[0].mean()
                if mean > best_mean:
                    best, best_sum, best_mean = f"{partner} + {weight:g} x {reader}", both, mean
        for kind, name, scores in (
            ("words", word, words[word]),
            ("encoder", reader, encoder[reader]),
            ("sum", best, best_sum),
        ):
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
    base = float(found["words"].ndcg.mean())
    gains = {}
    for kind in ("encoder", "sum"):
        difference = paired_difference(found[kind].ndcg, found["words"].ndcg, seed=seed)
        hits = paired_difference(found[kind].hr, found["words"].hr, seed=seed)
        relative = difference.mean / base if base > 0 else None
        pays = relative is not None and relative >= WORTH and difference.low > 0
        gains[f"{kind} over words"] = {**vars(difference), "relative": relative, "pays": pays, "hr@10": vars(hits)}
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
    heads = [report["dataset"], "n", "words NDCG / HR@10", "encoder", "sum", "encoder over words", "sum over words"]
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
