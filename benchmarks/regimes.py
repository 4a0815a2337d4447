"""Where does a language model pay? What each step adds over the one below it, against the amount of behaviour.

    python -m benchmarks.regimes --dataset amazon_scientific --data-dir DIR --out FILE.json

Steps, each a whole reranker that tunes itself: behaviour alone; with word counts (TF-IDF, character n-grams); with a
sentence encoder; with a fine-tuned cross-encoder as well; the last two are kept whether they pay or not. "auto" is what
the fits themselves would have kept, by their held-out users: the last step whose part pays. Regimes: a shop that has
the events of 1, 3, 10, 30 or 100 % of its users (all users are then asked, histories given), one draw of them or the
mean over several (``--draws``), whose spread then widens the intervals; with all users' events,
histories cut to their newest two, one or no events, and targets by how often they were taken before; items without any
event, ranked among themselves. What an earlier run left in the folder of ``--keep``, a value a case and no ids, is not
measured again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._common import run_information, table, trial_parser, write_report
from benchmarks._keeping import keep_arrays, kept_arrays
from benchmarks._measured import Measured, chosen_step
from benchmarks.systems import FUSED
from llm_rerank.data.datasets import Dataset, load_dataset
from llm_rerank.evaluation.protocols import PROTOCOLS, TimeCut, Trial, hold_out, ranking_from_frame
from llm_rerank.metrics import hit_matrix, hit_rate_at_k, ndcg_at_k
from llm_rerank.recommendation.reranker import Reranker

STEPS = {
    "behaviour": "fused_behaviour",
    "words": "fused_without_language_model",
    "encoder": "fused_without_cross_encoder",
    "cross_encoder": "fused_with_cross_encoder",
}
"""Each step and its system in ``systems.FUSED``; each is compared with the one before it."""

FRACTIONS = (0.01, 0.03, 0.1, 0.3, 1.0)
SUPPORTS = {
    "targets nobody took": (0, 0),
    "targets taken 1-4 times": (1, 4),
    "targets taken 5 times or more": (5, None),
}
TRUNCATED = (0, 1, 2)
LEAST_WINDOW_BUYERS = 5
LEAST_CASES = 100
NEW_ITEMS, AT_RANDOM = "new items", "at random"
DRAW = ", draw "
"""Between a young shop's share of the users and the number of its draw, in the names of fits."""
SAID = ("guard", "sequence:", "semantic:", "cross_encoder:", "warning", "refit")


def young_shop(trial: Trial, fraction: float, seed: int, draw: int = 0) -> pd.DataFrame:
    """Events of a share of the users, drawn; the whole shop's order of events is kept."""
    if fraction >= 1:
        return trial.interactions
    users = pd.unique(trial.interactions["user_id"])
    of_draw = [draw] if draw else []
    drawn = np.random.default_rng([seed, round(fraction * 1000), *of_draw]).permutation(len(users))
    chosen = users[drawn[: max(round(fraction * len(users)), 1)]]
    return trial.interactions[trial.interactions["user_id"].isin(chosen)]


def newest_events(frame: pd.DataFrame, n: int) -> pd.DataFrame:
    """Each user's newest n events."""
    order = frame.sort_values("timestamp", kind="stable")
    return order.groupby("user_id", sort=False).tail(n)


def ndcg_of(
    reranker: Reranker, trial: Trial, histories: pd.DataFrame | None, *, exclude: pd.DataFrame | None
) -> np.ndarray:
    """NDCG@10 of each case, seen items removed: float64, shape (n_cases,).

    histories: None: every user is a newcomer. exclude: whole histories, where the ones given are cut: what was seen in
    them is taken out of longer lists.
    """
    k = 10 if exclude is None else 200
    if histories is None:
        stranger = {f"newcomer {row}": user for row, user in enumerate(trial.user_ids)}
        moments = trial.moments
        if isinstance(moments, dict):
            moments = {name: moments[user] for name, user in stranger.items()}
        result = reranker.recommend(list(stranger), at=moments, k=k)
        result["user_id"] = result["user_id"].map(stranger)
    else:
        result = reranker.recommend(list(trial.user_ids), histories=histories, at=trial.moments, k=k)
    if exclude is not None:
        seen = pd.MultiIndex.from_frame(exclude[["user_id", "item_id"]])
        result = result[~pd.MultiIndex.from_frame(result[["user_id", "item_id"]]).isin(seen)]
    ranked = ranking_from_frame(result, trial)
    return ndcg_at_k(hit_matrix(ranked, trial.cases.targets, 10), trial.cases.targets.lengths, 10)


def by_support(trial: Trial) -> dict[str, np.ndarray]:
    """Cases whose targets all have a support in the range: bool, shape (n_cases,), by name."""
    targets = trial.cases.targets
    supports = trial.item_support[targets.values]
    starts = targets.offsets[:-1]
    least, greatest = np.minimum.reduceat(supports, starts), np.maximum.reduceat(supports, starts)
    return {
        name: (least >= low) & (True if high is None else greatest <= high) for name, (low, high) in SUPPORTS.items()
    }


def new_item_trial(dataset: Dataset, split: str) -> tuple[Trial, np.ndarray]:
    """Hold out a data set with the items that come in after the cut; returns the trial and the codes of those items."""
    protocol = PROTOCOLS[dataset.name]
    assert isinstance(protocol, TimeCut)
    usual = hold_out(dataset, protocol, split)  # type: ignore[arg-type]
    everything = hold_out(dataset, TimeCut(protocol.cut), split)  # type: ignore[arg-type]
    without_past = np.flatnonzero(everything.item_support == 0)
    targets = everything.cases.targets
    buyers = np.bincount(targets.values, minlength=len(everything.items))
    new_ids = set(everything.items.ids[without_past[buyers[without_past] >= LEAST_WINDOW_BUYERS]])
    kept = set(usual.items.ids) | new_ids
    smaller = Dataset(
        dataset.name,
        dataset.interactions[dataset.interactions["item_id"].isin(kept)],
        dataset.items[dataset.items["item_id"].isin(kept)],
        dataset.users,
        [],
    )
    trial = hold_out(smaller, TimeCut(protocol.cut), split)  # type: ignore[arg-type]
    codes = np.flatnonzero([item in new_ids for item in trial.items.ids])
    is_new = np.zeros(len(trial.items), dtype=bool)
    is_new[codes] = True
    rows = np.flatnonzero(np.add.reduceat(is_new[trial.cases.targets.values], trial.cases.targets.offsets[:-1]) > 0)
    return trial.take(rows), codes


def hits_among_new(reranker: Reranker, trial: Trial, codes: np.ndarray) -> np.ndarray:
    """HR@10 of each case with the new items alone as candidates: float64, shape (n_cases,)."""
    n_users, new_ids = len(trial.user_ids), trial.items.ids[codes]
    shuffled = np.random.default_rng(0).permutation(new_ids)  # equal scores fall in the order given: not the file's
    candidates = pd.DataFrame({"user_id": np.repeat(trial.user_ids, len(codes)), "item_id": np.tile(shuffled, n_users)})
    ranked = ranking_from_frame(reranker.rerank(candidates, at=trial.moments, k=10), trial)
    return hit_rate_at_k(hit_matrix(ranked, trial.cases.targets, 10), trial.cases.targets.lengths, 10)


def random_hits(trial: Trial, codes: np.ndarray) -> float:
    """Compute the expected HR@10 of ten new items drawn at random."""
    targets, n = trial.cases.targets, len(codes)
    is_new = np.isin(targets.values, codes)
    n_wanted = np.bincount(targets.row_of_value[is_new], minlength=len(targets))
    left = np.ones(len(targets))
    for drawn in range(min(10, n)):
        left *= np.clip(n - n_wanted - drawn, 0, None) / (n - drawn)
    return float((1 - left).mean())


class Map:
    """The regimes of one data set, measured one after the other and written after each fit."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.dataset = load_dataset(options.dataset, options.data_dir)
        self.names = options.steps.split(",")
        self.fits: dict[str, dict[str, Any]] = {}
        self.values: dict[str, dict[str, np.ndarray]] = {}
        self.information = run_information(options.seed)

    def measure(
        self, key: str, name: str, trial: Trial, events: pd.DataFrame, measure: Callable[[Reranker], dict[str, Any]]
    ) -> None:
        """Fit a step on events and keep what ``measure`` gives: arrays of one value a case by regime."""
        key = f"{key}: {name}"
        kept = None if self.options.keep is None else self.options.keep / f"{key.replace(' ', '_')}.safetensors"
        made_by = {"commit": self.information["commit"], "trial": trial.describe(), "seed": self.options.seed}
        found = kept_arrays(kept, made_by)
        if found is not None:
            self.values[key], self.fits[key] = found
        else:
            began = time.perf_counter()
            reranker = FUSED[STEPS[name]](trial, self.options.seed, self.options.cache)
            reranker.fit(events, trial.item_frame, users=trial.user_frame)
            seconds = time.perf_counter() - began
            report = reranker.report().values
            said = [line for line in report["lines"] if line.startswith(SAID)]
            pays = {part["part"]: part["pays"] for part in report["parts"]}
            self.fits[key] = {"seconds_fit": seconds, "said": said, "pays": pays}
            self.values[key] = {regime: np.asarray(values) for regime, values in measure(reranker).items()}
            keep_arrays(kept, self.values[key], self.fits[key], made_by)
        means = ", ".join(f"{regime} {values.mean():.4f}" for regime, values in self.values[key].items())
        print(f"{key}: fit {self.fits[key]['seconds_fit']:.0f} s; {means}", flush=True)
        write_report(self.options.out, self.report())

    def run(self) -> dict[str, Any]:
        """Measure every regime that the data set has."""
        trial = hold_out(self.dataset, None, self.options.split)
        print(trial.describe(), flush=True)
        supports = by_support(trial)
        draws = [(fraction, draw) for fraction in self.options.fractions for draw in range(self.options.draws)]
        for fraction, draw in draws:
            if fraction >= 1 and draw:
                continue  # there is one whole shop
            events = young_shop(trial, fraction, self.options.seed, draw)

            def measure(reranker: Reranker, whole: bool = fraction >= 1) -> dict[str, np.ndarray]:
                ndcg = ndcg_of(reranker, trial, trial.interactions, exclude=None)
                found = {"all": ndcg}
                if whole:
                    found |= {regime: ndcg[rows] for regime, rows in supports.items() if rows.sum() >= LEAST_CASES}
                    for n in TRUNCATED:
                        cut = newest_events(trial.interactions, n) if n else None
                        found[f"newest {n} of each history"] = ndcg_of(reranker, trial, cut, exclude=trial.interactions)
                return found

            for name in self.names:
                self.measure(f"{fraction:.0%} of users{f'{DRAW}{draw}' if draw else ''}", name, trial, events, measure)
        if isinstance(PROTOCOLS[self.dataset.name], TimeCut):
            new, codes = new_item_trial(self.dataset, self.options.split)
            if len(new.cases) >= LEAST_CASES:
                chance = random_hits(new, codes)
                print(f"new items: {len(codes)}, {len(new.cases)} cases, at random {chance:.4f}", flush=True)
                for name in self.names:
                    self.measure(
                        NEW_ITEMS, name, new, new.interactions,
                        lambda r: {NEW_ITEMS: hits_among_new(r, new, codes), AT_RANDOM: np.array([chance])},
                    )  # fmt: skip
        return self.report()

    def report(self) -> dict[str, Any]:
        """Lay out what is known so far."""
        by_label: dict[str, dict[str, dict[str, np.ndarray]]] = {}
        chance: dict[str, float] = {}
        for key, found in self.values.items():
            fit, name = key.rsplit(": ", 1)
            for regime, values in found.items():
                if regime == AT_RANDOM:
                    chance[fit] = float(values[0])
                    continue
                shop = fit.split(DRAW)[0]
                label = shop if regime in ("all", NEW_ITEMS) else f"{shop}, {regime}"
                by_label.setdefault(label, {}).setdefault(fit, {})[name] = values
        regimes = {}
        for label, of_fits in by_label.items():
            metric = "hr@10" if label == NEW_ITEMS else "ndcg@10"
            most = max(len(of_steps) for of_steps in of_fits.values())
            draws, autos = [], []
            for fit, of_steps in of_fits.items():
                if len(of_steps) == most:  # a draw that is still being measured waits
                    draws.append({name: of_steps[name] for name in STEPS if name in of_steps})
                    pays = {name: self.fits[f"{fit}: {name}"]["pays"] for name in draws[-1]}
                    autos.append(chosen_step(list(draws[-1]), pays))
            regimes[label] = Measured(metric, draws, autos).to_dict(self.options.seed)
            if label in chance:
                regimes[label]["at_random"] = chance[label]
        return {
            "dataset": self.options.dataset,
            "split": self.options.split,
            "regimes": regimes,
            "fits": self.fits,
            **self.information,
        }


def print_map(report: Mapping[str, Any]) -> None:
    """Print one line a regime."""
    rows = []
    for label, regime in report["regimes"].items():
        means = [f"{regime['means'][name]:.4f}" if name in regime["means"] else "" for name in STEPS]
        gains = [f"{step['mean']:+.4f} [{step['low']:+.4f}, {step['high']:+.4f}]" for step in regime["steps"].values()]
        blanks = [""] * (len(STEPS) - 1 - len(gains))
        rows.append([label, f"{regime['n']:,}", *means, *gains, *blanks, regime["auto"]["choice"]])
    pairs = [f"{name} over {below}" for below, name in zip(STEPS, list(STEPS)[1:], strict=False)]
    print(table([report["dataset"], "n", *STEPS, *pairs, "auto"], rows))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = trial_parser("regimes", __doc__)
    parser.add_argument("--steps", default="behaviour,words,encoder", help=f"of {','.join(STEPS)}")
    parser.add_argument("--fractions", type=float, nargs="+", default=list(FRACTIONS), help="of the users")
    parser.add_argument("--draws", type=int, default=1, help="of each young shop's users")
    parser.add_argument("--keep", type=Path, help="folder that keeps what was measured, to go on after a break")
    options = parser.parse_args(arguments)
    measured = Map(options)
    report = measured.run()
    print_map(report)
    return report


if __name__ == "__main__":
    main()
