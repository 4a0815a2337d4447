"""Is a gain the reading? Whole rerankers, each fitted with one thing changed, against the same without the change.

    python -m benchmarks.ablations --dataset amazon_scientific --data-dir DIR --keep FOLDER --out FILE.json

Shuffled text: every item gets the text and the reviews of another item; what words add over behaviour, and an encoder
over words, should be gone. Wrong history: the fits as they are, but each user is ranked with the history of another
user who has about as many events; what is left is not personal. (There is no fit on wrong histories for the text alone:
the vectors learn from no event, so only their share in the blend would, which "no semantic" tells; and text-aware EASE
reads text and events in one matrix, of which shuffled text changes the text alone.) No reviews, no support, no sales,
and each component and each pair feature left out in turn.

The cross-encoder is off. p values are adjusted (Holm) over all comparisons of a report. One fit a variant: a difference
holds what a fit's choices happen to be. What an earlier run left in the folder of ``--keep``, a value a case and no
ids, is not measured again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._common import run_information, table, trial_parser, write_report
from benchmarks._keeping import keep_arrays, kept_arrays
from benchmarks.fresh_histories import ndcg_of_lists
from benchmarks.systems import FUSED
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.features import PAIR_FEATURES, ItemStatistics, pair_features
from llm_rerank.evaluation.protocols import Trial, hold_out
from llm_rerank.recommendation.planning import make_encoder
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.specs import specs_for
from llm_rerank.statistics import holm, paired_difference

SYSTEMS = {
    "behaviour": "fused_behaviour",
    "words": "fused_without_language_model",
    "encoder": "fused_without_cross_encoder",
}
"""What is changed, and its system in ``systems.FUSED``; a thing is left out of the last, the whole."""

WHOLE = "encoder"
SHUFFLED, NO_REVIEWS = "shuffled text", "no reviews"
NOT_TEXT = ("item_id", "price", "image")
LEFT_OUT = {
    "support": ("item_support", "user_support"),
    "sales": ("sales_7d", "sales_28d", "sales_90d"),
}
"""Pair features left out together."""

GROUPS = ("base", "text", "support", "sales", "components", "reviews", "features")
"""In the order in which they are run: a run that is cut short has the first."""

DEPTH = 100  # ranks asked for where a user's own items are taken out afterwards: as many as a source brings anyway


@dataclass(frozen=True)
class Variant:
    """A fit. system: of ``SYSTEMS``. change: of the tables, or "". without: components or pair features left out."""

    group: str
    system: str
    change: str = ""
    without: tuple[str, ...] = ()


def known_features(trial: Trial) -> list[str]:
    """Pair features that are known of any target: without a clock, for example, there are no sales of 7 days."""
    past = trial.past
    opinions = np.where(past.reviews.astype(bool), 0, np.nan).astype(np.float32)
    statistics = ItemStatistics.from_events(past, trial.items, int(past.times.max()) + 1, opinions)
    values = pair_features(trial.cases.with_candidates(trial.cases.targets), statistics, trial.items)
    known = np.asarray(~np.isnan(values).all(axis=0))
    return [name for name, is_known in zip(PAIR_FEATURES, known, strict=True) if is_known]


def plan(trial: Trial, components: Sequence[str]) -> dict[str, Variant]:
    """Name every variant that the data have, in the order of ``GROUPS``. components: names of the whole's."""
    known = known_features(trial)
    found = {name: Variant("base", name) for name in SYSTEMS}
    for name in ("words", "encoder"):
        found[f"{name}, {SHUFFLED}"] = Variant("text", name, change=SHUFFLED)
    for group, features in LEFT_OUT.items():
        if set(features) & set(known):
            found[f"no {group}"] = Variant(group, WHOLE, without=features)
    for name in components:
        found[f"no {name}"] = Variant("components", WHOLE, without=(name,))
    # where reviews are all the text there is, that is "behaviour"
    if "review" in trial.interactions and (item_texts(trial.item_frame) != "").any(axis=None):
        found[NO_REVIEWS] = Variant("reviews", WHOLE, change=NO_REVIEWS)
    for name in known:
        found[f"no {name}"] = Variant("features", WHOLE, without=(name,))
    return found


def item_texts(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of items that say something: all but id, price and image, unknown as ""."""
    return frame[[name for name in frame.columns if name not in NOT_TEXT]].fillna("")


def shuffled_text(trial: Trial, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give each item the text and the reviews of another, drawn; returns interactions and items.

    An item's reviews, by time, become the other's by time, from the start again where that has fewer. Events, times,
    ratings and prices stay where they are.
    """
    items = trial.item_frame.copy()
    source = np.random.default_rng(seed).permutation(len(items))
    for name in item_texts(items).columns:
        items[name] = trial.item_frame[name].iloc[source].array
    events = trial.interactions
    if "review" not in events:
        return events, items
    source_of = dict(zip(items["item_id"], items["item_id"].iloc[source], strict=True))
    reviewed = events[events["review"].fillna("").ne("")].sort_values("timestamp", kind="stable")
    reviews = reviewed.groupby("item_id")["review"].agg(list).to_dict()
    given = []
    for item, place in zip(reviewed["item_id"], reviewed.groupby("item_id").cumcount(), strict=True):
        others = reviews.get(source_of.get(item), [""])
        given.append(others[place % len(others)])
    events = events.copy()
    events.loc[reviewed.index, "review"] = given
    return events, items


def tables_of(variant: Variant, trial: Trial, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Interactions and items that a variant is fitted on."""
    if variant.change == SHUFFLED:
        return shuffled_text(trial, seed)
    if variant.change == NO_REVIEWS:
        return trial.interactions.drop(columns="review"), trial.item_frame
    return trial.interactions, trial.item_frame


def built(variant: Variant, trial: Trial, seed: int, cache: str | None) -> Reranker:
    """Build a variant's reranker, unfitted."""
    whole = FUSED[SYSTEMS[variant.system]](trial, seed, cache)
    if not variant.without:
        return whole
    features = [name for name in PAIR_FEATURES if name not in variant.without]
    if len(features) < len(PAIR_FEATURES):
        return Reranker(whole.config, features=features, verbose=False)
    specs = specs_for(whole.config, trial.past, make_encoder(whole.config))
    kept = [spec for spec in specs if spec.name not in variant.without]
    return Reranker(whole.config, components=kept, verbose=False)


def donors(lengths: np.ndarray, seed: int) -> np.ndarray:
    """Pair each user with the next by length of history, ties drawn: int64, shape (n_users,); two users at least.

    Each user gives to one other, the longest history's owner takes from the one before.
    """
    order = np.lexsort((np.random.default_rng(seed).random(len(lengths)), lengths))
    donor = np.empty(len(lengths), dtype=np.int64)
    donor[order] = np.append(order[1:], order[-2])
    return donor


def wrong_histories(trial: Trial, seed: int) -> pd.DataFrame:
    """Give each of the trial's users the events of another, as interactions."""
    donor = donors(trial.cases.history.lengths, seed)
    # by code: the cases' users may be numbers in one table and texts in another
    names = pd.DataFrame({"user_id": trial.user_ids[donor], "asked": trial.user_ids}).astype(object)
    events = trial.interactions.assign(user_id=trial.interactions["user_id"].astype(object))
    return names.merge(events, on="user_id").drop(columns="user_id").rename(columns={"asked": "user_id"})


def measured(reranker: Reranker, trial: Trial, wrong: pd.DataFrame | None) -> dict[str, np.ndarray]:
    """NDCG@10 of each case with its own history and, where given, with the wrong one: float64, shape (n_cases,).

    A user's own seen items are in no list; with a wrong history neither are that one's, which a list would open with.
    """
    users = list(trial.user_ids)
    own = reranker.recommend(users, histories=trial.interactions, at=trial.moments, k=10)
    found = {"own": ndcg_of_lists(own, trial)}
    if wrong is not None:
        found["wrong"] = ndcg_of_lists(reranker.recommend(users, histories=wrong, at=trial.moments, k=DEPTH), trial)
    return found


@dataclass(frozen=True)
class Comparison:
    """Values a case of two rankings, or of two gains. second_is_gain: so relative differences say nothing."""

    label: str
    first: np.ndarray
    second: np.ndarray
    second_is_gain: bool = False

    def to_dict(self, seed: int) -> dict[str, Any]:
        """Give both means and the paired difference."""
        difference = paired_difference(self.first, self.second, seed=seed)
        base = float(self.second.mean())
        relative = difference.mean / base if base > 0 and not self.second_is_gain else None
        return {
            "label": self.label,
            "first": float(self.first.mean()),
            "second": base,
            **vars(difference),
            "relative": relative,
        }


def comparisons(values: Mapping[str, Mapping[str, np.ndarray]], variants: Mapping[str, Variant]) -> list[Comparison]:
    """Lay out every comparison whose fits are there. values: by variant, "own" and "wrong"."""
    own = {name: found["own"] for name, found in values.items()}
    wrong = {name: found["wrong"] for name, found in values.items() if "wrong" in found}
    pairs = [("words", "behaviour"), ("encoder", "words"), ("encoder", "behaviour")]
    found = [Comparison(f"{a} over {b}", own[a], own[b]) for a, b in pairs if a in own and b in own]
    for a, b in pairs:
        # behaviour reads no text, so it is its own control
        of_a, of_b = f"{a}, {SHUFFLED}", b if b == "behaviour" else f"{b}, {SHUFFLED}"
        if {of_a, of_b, b} <= own.keys():
            label = f"{a} over {b}"
            found.append(Comparison(f"{label}, {SHUFFLED}", own[of_a], own[of_b]))
            gain, shuffled = own[a] - own[b], own[of_a] - own[of_b]
            found.append(Comparison(f"gain of {label}: real less {SHUFFLED}", gain, shuffled, second_is_gain=True))
    found += [Comparison(f"{name}: own history over another's", own[name], wrong[name]) for name in wrong]
    for a, b in pairs:
        if a in wrong and b in wrong:
            label = f"gain of {a} over {b}: own history less another's"
            found.append(Comparison(label, own[a] - own[b], wrong[a] - wrong[b], second_is_gain=True))
    for name, variant in variants.items():
        if name in own and WHOLE in own and (variant.without or variant.change == NO_REVIEWS):
            found.append(Comparison(f"whole over {name}", own[WHOLE], own[name]))
    return found


def report_of(
    options: argparse.Namespace,
    values: Mapping[str, Mapping[str, np.ndarray]],
    fits: Mapping[str, Any],
    variants: Mapping[str, Variant],
) -> dict[str, Any]:
    """Lay out what is known so far."""
    rows = [comparison.to_dict(options.seed) for comparison in comparisons(values, variants)]
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = float(adjusted)
    means = {name: {kind: float(ndcg.mean()) for kind, ndcg in found.items()} for name, found in values.items()}
    missing = [name for name in variants if name not in values]
    head = {"dataset": options.dataset, "split": options.split, "metric": "ndcg@10"}
    return {**head, "means": means, "comparisons": rows, "not_run": missing, "fits": dict(fits)}


def print_report(report: Mapping[str, Any]) -> None:
    """Print one line a comparison."""
    rows = []
    for row in report["comparisons"]:
        relative = "" if row["relative"] is None else f"{row['relative']:+.1%}"
        difference = f"{row['mean']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        rows.append(
            [row["label"], f"{row['first']:.4f}", f"{row['second']:.4f}", difference, relative, f"{row['p_holm']:.4f}"]
        )
    print(table([report["dataset"], "first", "second", "difference, 95 %", "relative", "p (Holm)"], rows))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = trial_parser("ablations", __doc__)
    parser.add_argument("--variants", nargs="+", default=list(GROUPS), help=f"groups ({', '.join(GROUPS)}), or names")
    parser.add_argument("--keep", type=Path, help="folder that keeps what was measured, to go on after a break")
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    trial = hold_out(load_dataset(options.dataset, options.data_dir), split=options.split)
    print(trial.describe(), flush=True)
    config = FUSED[SYSTEMS[WHOLE]](trial, options.seed, None).config
    names = dict.fromkeys(spec.name for spec in specs_for(config, trial.past, make_encoder(config)))
    variants = plan(trial, list(names))
    wanted = {name: v for name, v in variants.items() if name in options.variants or v.group in options.variants}
    wrong = wrong_histories(trial, options.seed)
    values: dict[str, dict[str, np.ndarray]] = {}
    fits: dict[str, Any] = {}
    report: dict[str, Any] = {}
    for name, variant in wanted.items():
        file = f"{name.replace(', ', '_').replace(' ', '_')}.safetensors"
        kept = None if options.keep is None else options.keep / file
        made_by = {"commit": information["commit"], "trial": trial.describe(), "seed": options.seed}
        found = kept_arrays(kept, made_by)
        if found is not None:
            values[name], fits[name] = found
        else:
            began = time.perf_counter()
            events, items = tables_of(variant, trial, options.seed)
            reranker = built(variant, trial, options.seed, options.cache)
            reranker.fit(events, items, users=trial.user_frame)
            fits[name] = {"seconds_fit": time.perf_counter() - began, "commit": information["commit"]}
            values[name] = measured(reranker, trial, wrong if variant.group == "base" else None)
            keep_arrays(kept, values[name], fits[name], made_by)
        means = ", ".join(f"{kind} {ndcg.mean():.4f}" for kind, ndcg in values[name].items())
        print(f"{name}: fit {fits[name]['seconds_fit']:.0f} s; {means}", flush=True)
        report = report_of(options, values, fits, variants)
        write_report(options.out, {**report, **information})
    print_report(report)
    return report


if __name__ == "__main__":
    main()
