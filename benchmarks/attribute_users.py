"""Measure what attributes alone say of a user: age, income or country, before the first event.

    python -m benchmarks.attribute_users --dataset completejourney --data-dir DIR --out FILE.json

The trial's users with attributes are dealt into folds; a fold's users leave the past altogether, and are then asked for
with an empty history. The whole catalogue is ranked for what they went on to buy, what they had before included, since
nothing is known of it. Each way of reading attributes is set against the better of two popularities, user by user:

    regression   share of buyers of each item by a ridge regression on attributes (``AttributeMap``)
    sgd_mf       matrix factorisation whose new users come from attributes, by the same regression on its vectors
    encoder      the attributes in words as a search phrase, read by the sentence encoder against the items' texts
    sums         z-scores of a popularity and one of these, equal weights
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._common import run_information, table, trial_parser, write_report
from benchmarks.systems import Tools, z_scores
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.schema import validate_users
from llm_rerank.evaluation.protocols import PROTOCOLS, TimeCut, Trial, hold_out
from llm_rerank.metrics import hit_matrix, hit_rate_at_k, ndcg_at_k
from llm_rerank.models.collaborative.attributes import AttributeMap
from llm_rerank.models.collaborative.factorization import SGDMatrixFactorization
from llm_rerank.models.collaborative.popularity import Popularity, RecentPopularity
from llm_rerank.models.scoring import top_k
from llm_rerank.models.semantic.similarity import SemanticScorer
from llm_rerank.statistics import holm, paired_difference
from llm_rerank.types import Cases, DataError, DataReport, FloatArray, IntArray, Interactions, Ragged

POPULARITIES = ("popularity", "recent_popularity")
READERS = ("regression", "sgd_mf", "encoder")


def one_hot(frame: pd.DataFrame) -> FloatArray:
    """One column a value of each attribute (unknown is a value): float32, shape (n_users, n_columns)."""
    attributes = frame.drop(columns="user_id").astype("object").where(frame.notna(), "unknown").astype(str)
    return pd.get_dummies(attributes).to_numpy(dtype=np.float32)


def in_words(frame: pd.DataFrame) -> list[str]:
    """Lay out each user's known attributes as "name value, name value"."""
    named = frame.drop(columns="user_id")
    return [
        ", ".join(f"{str(name).replace('_', ' ')} {value}" for name, value in row.items() if pd.notna(value))
        for row in named.to_dict("records")
    ]


def without_users(past: Interactions, users: IntArray) -> Interactions:
    """Take all events of these users (codes) out of the past."""
    return past.take(~np.isin(past.users, users))


def as_strangers(cases: Cases, queries: Sequence[str]) -> Cases:
    """Empty the histories; what is left of a user is the row of attributes, in words the query."""
    empty = np.empty(0, dtype=np.float32)
    nothing = Ragged.empty(len(cases))
    return replace(
        cases, history=nothing, history_weights=empty, history_times=empty.astype(np.int64), queries=list(queries)
    )


def buyers_by_attributes(past: Interactions, features: FloatArray, rows: IntArray) -> FloatArray:
    """Score each item by the share of users like these who took it: float32, shape (n_cases, n_items).

    features: of all users with attributes. rows: int64, row of each case's user.
    """
    taken = np.zeros((len(past.user_ids), past.n_items), dtype=np.float32)
    found = past.positive & (past.items >= 0)
    taken[past.users[found], past.items[found]] = 1.0
    active = np.flatnonzero(taken.any(axis=1))
    regression = AttributeMap.fit(features, past.user_rows[active], taken[active])
    if regression is None:
        raise DataError("no user of the past has attributes; give a data set with a table of users")
    return regression.predict(features[rows])


def folds_of(trial: Trial, n_folds: int, seed: int) -> Iterator[IntArray]:
    """Deal the cases whose user has attributes into folds: positions of cases, int64."""
    known = np.flatnonzero(trial.cases.user_rows >= 0)
    if len(known) < n_folds:
        raise DataError(
            f"{len(known)} users of {trial.dataset} have attributes; give a data set with at least {n_folds}"
        )
    order = np.random.default_rng(seed).permutation(known)
    yield from (np.sort(part) for part in np.array_split(order, n_folds))


def tables_of_fold(
    trial: Trial, cases: IntArray, frame: pd.DataFrame, tools: Tools, seed: int
) -> dict[str, FloatArray]:
    """Scores of the catalogue for a fold's users by each way, fitted without them: float32, (n_cases, n_items) each."""
    rows = trial.cases.user_rows[cases]
    users = pd.Index(trial.past.user_ids).get_indexer(pd.Index(trial.user_ids[cases]))
    past, items = without_users(trial.past, users), trial.items
    features, words = one_hot(frame), in_words(frame)
    asked = as_strangers(trial.cases.take(cases), [words[row] for row in rows])
    plain = as_strangers(asked, [""] * len(asked))
    factors = SGDMatrixFactorization(user_features=features).fit(past, items, seed=seed)
    reader = SemanticScorer(tools.encoder()).fit(past, items, seed=seed)
    return {
        "popularity": Popularity().fit(past, items).score_catalogue(plain),
        "recent_popularity": RecentPopularity().fit(past, items).score_catalogue(plain),
        "regression": buyers_by_attributes(past, features, rows),
        "sgd_mf": factors.score_catalogue(plain),
        "encoder": reader.score_catalogue(asked),
    }


def judge(scores: FloatArray, targets: Ragged) -> np.ndarray:
    """NDCG@10 and HR@10 of each case: float64, shape (n_cases, 2). Unknown scores, NaN, come last."""
    hits = hit_matrix(top_k(np.nan_to_num(scores, nan=-np.inf), 10), targets, 10)
    return np.column_stack([ndcg_at_k(hits, targets.lengths, 10), hit_rate_at_k(hits, targets.lengths, 10)])


def compare(values: Mapping[str, np.ndarray], seed: int) -> tuple[str, dict[str, Any]]:
    """Set each way against the better popularity; its name, and by way the means, difference, Holm's p."""
    base = max(POPULARITIES, key=lambda name: float(values[name][:, 0].mean()))
    others = [name for name in values if name not in POPULARITIES]
    differences = {name: paired_difference(values[name][:, 0], values[base][:, 0], seed=seed) for name in others}
    adjusted = dict(zip(others, holm([differences[name].p for name in others]), strict=True))
    ways: dict[str, Any] = {}
    for name, measured in values.items():
        ways[name] = {"ndcg@10": float(measured[:, 0].mean()), "hr@10": float(measured[:, 1].mean())}
        if name in differences:
            ways[name]["difference"] = {**vars(differences[name]), "p_holm": float(adjusted[name])}
    return base, ways


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = trial_parser("attribute_users", __doc__, dataset="completejourney")
    parser.add_argument("--folds", type=int, default=4)
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    protocol = PROTOCOLS.get(options.dataset, TimeCut())
    if not isinstance(protocol, TimeCut):
        raise DataError(f"{options.dataset} is held out by position; give a data set with real times")
    # a stranger's list holds what they had before as well, for nothing is known of it: it must be a hit, not a miss
    protocol = replace(protocol, repeats=True)
    trial = hold_out(load_dataset(options.dataset, options.data_dir), protocol, options.split)
    if trial.user_frame is None:
        raise DataError(f"{options.dataset} has no table of users; give a data set that has one")
    print(trial.describe(), flush=True)
    frame, tools = validate_users(trial.user_frame, report=DataReport()).frame, Tools(options.cache)
    parts: dict[str, list[np.ndarray]] = {}
    for cases in folds_of(trial, options.folds, options.seed):
        tables = tables_of_fold(trial, cases, frame, tools, options.seed)
        for popular in POPULARITIES:
            sums = {f"{popular} + {name}": z_scores(tables[popular]) + z_scores(tables[name]) for name in READERS}
            tables |= sums
        targets = trial.cases.targets.take(cases)
        for name, scores in tables.items():
            parts.setdefault(name, []).append(judge(scores, targets))
    values = {name: np.concatenate(found) for name, found in parts.items()}
    base, ways = compare(values, options.seed)
    n_cases = len(values[base])
    report = {"dataset": options.dataset, "split": options.split, "n": n_cases, "base": base, "ways": ways}
    write_report(options.out, {**report, **information})
    rows = []
    for name, way in ways.items():
        row = [name, f"{way['ndcg@10']:.4f}", f"{way['hr@10']:.4f}"]
        if "difference" in way:
            row.append("{mean:+.4f} [{low:+.4f}, {high:+.4f}] {p_holm:.4f}".format(**way["difference"]))
        rows.append([*row, *[""] * (4 - len(row))])
    print(f"{n_cases:,} users by their attributes alone; differences from {base}")
    print(table(["way", "NDCG@10", "HR@10", "difference, 95 %, p (Holm)"], rows))
    return report


if __name__ == "__main__":
    main()
