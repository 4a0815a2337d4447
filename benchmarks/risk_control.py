"""Does the risk-controlled cut keep its word? Exceedances over many calibration draws, known truth and real lists.

    python -m benchmarks.risk_control --out FILE.json
    python -m benchmarks.risk_control --dataset online_retail --data-dir DIR --split test --out FILE.json

A cut exceeds where its true risk is above alpha; that may happen in a share delta of draws. Without ``--dataset`` the
truth is a made-up world in closed form (``World``): 200 draws of 1,000 lists, then shifted worlds, in which the drift
watch must take the guarantee back. With ``--dataset`` a reranker is fitted without refit, the held-out users' lists are
the population, and calibration sets as large as the fit's own are drawn from it with replacement. Beside each stands
the plug-in cut (mean loss at most alpha, no test), which shows what the guarantee costs and what it is for.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from benchmarks._common import fitted_on, run_information, table, trial_parser, write_report
from benchmarks.calibration import JudgedLists
from benchmarks.simulated_lists import SHIFTED_WORLDS, World
from llm_rerank.config import RISKS, RerankerConfig, ThresholdConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.evaluation.protocols import PROTOCOLS, LastOut, TimeCut, hold_out
from llm_rerank.recommendation.drift import drift_from, profile_of
from llm_rerank.recommendation.risk_control import (
    Float64Array,
    case_losses,
    control_risk,
    last_in_sequence,
    mean_losses,
    risk_levels,
)
from llm_rerank.recommendation.thresholds import CutLevels
from llm_rerank.types import BoolArray, FloatArray, IntArray, Ragged

SIMULATED = {
    "missed_target": ((0.1, 0.1), (0.1, 0.2), (0.2, 0.05)),
    "false_positives": ((0.05, 0.1), (0.05, 0.2), (0.1, 0.05)),
    "false_discovery": ((0.5, 0.1), (0.5, 0.2), (0.7, 0.05)),
}
REAL = {
    "missed_target": ((0.05, 0.1), (0.1, 0.1), (0.2, 0.1), (0.1, 0.05)),
    "false_positives": ((0.02, 0.1), (0.05, 0.1), (0.1, 0.1), (0.05, 0.05)),
    "false_discovery": ((0.5, 0.1), (0.8, 0.1), (0.9, 0.1), (0.9, 0.05)),
}
"""Pairs of alpha and delta for each risk."""

SURE = 0.99
BLOCK_DRAWS = 200


def at_positions(values: Float64Array, positions: npt.NDArray[np.intp], otherwise: float) -> Float64Array:
    """Read values, shape (n_levels,), at positions of levels; ``otherwise`` where a position is −1 (none passed)."""
    return np.where(positions >= 0, values[positions], otherwise)


def outcome(
    risk: str,
    alpha: float,
    delta: float,
    mean_loss: Float64Array,
    n: IntArray,
    truth: Float64Array,
    kept: Float64Array,
) -> dict[str, Any]:
    """Compare cuts chosen on many calibration sets with the truth.

    mean_loss, n: shape (n_draws, n_levels), of so many counted cases. truth, kept: shape (n_levels,), true risk and
    mean number kept at each level. Where no level passes, everything is kept with "missed_target" and nothing with the
    others.
    """
    everything = risk == "missed_target"
    figures: dict[str, Any] = {
        "risk": risk,
        "alpha": alpha,
        "delta": delta,
        "n_cases": int(n[:, 0].max()),
        "n_draws": len(mean_loss),
    }
    controlled = control_risk(risk, mean_loss, n, alpha, delta)
    plug_in = last_in_sequence(risk, mean_loss <= alpha)
    for name, positions in (("controlled", controlled), ("plug_in", plug_in)):
        risks = at_positions(truth, positions, 0.0)
        sizes = at_positions(kept, positions, float(kept[0]) if everything else 0.0)
        figures[name] = {
            "exceeded": int((risks > alpha + 1e-12).sum()),
            "without_a_level": int((positions < 0).sum()),
            "mean_risk": float(risks.mean()),
            "mean_kept": float(sizes.mean()),
            "least_kept": float(sizes.min()),
            "most_kept": float(sizes.max()),
        }
    oracle = int(last_in_sequence(risk, truth <= alpha))
    figures["mean_kept_if_the_truth_were_known"] = float(
        kept[oracle] if oracle >= 0 else (kept[0] if everything else 0.0)
    )
    figures["allowed"] = int(binom.ppf(SURE, len(mean_loss), delta))
    figures["held"] = figures["controlled"]["exceeded"] <= figures["allowed"]
    figures["positions"] = controlled
    return figures


def simulate(world: World, n_cases: int, n_draws: int, seed: int) -> list[dict[str, Any]]:
    """Draw calibration sets from a world and compare every setting of ``SIMULATED`` with its truth."""
    rng, levels = np.random.default_rng(seed), risk_levels()
    means = {risk: np.empty((n_draws, len(levels))) for risk in RISKS}
    counts = {risk: np.empty((n_draws, len(levels)), dtype=np.int64) for risk in RISKS}
    for draw in range(n_draws):
        lists = world.draw(n_cases, rng)
        for risk in RISKS:
            found_here = mean_losses(risk, lists.probabilities, lists.positive, lists.rows, levels)
            means[risk][draw], counts[risk][draw] = found_here
    kept = world.mean_kept(levels)
    found = []
    for risk, settings in SIMULATED.items():
        truth = world.risk(risk, levels)
        for alpha, delta in settings:
            figures = outcome(risk, alpha, delta, means[risk], counts[risk], truth, kept)
            figures["length"] = world.length
            found.append(figures)
    return found


def watch(
    found: Sequence[Mapping[str, Any]], world: World, name: str, shifted: World, n_cases: int, seed: int
) -> dict[str, Any]:
    """Cut a shifted world's lists by the cuts of another and ask the drift watch whether the guarantee still reads.

    The same number of lists is compared from the world itself, where it should hold.
    """
    rng, levels = np.random.default_rng(seed), risk_levels()
    known, batch = world.draw(n_cases, rng), shifted.draw(n_cases, rng)
    profile = profile_of(known.scores, known.rows, known.history_lengths)
    assert profile is not None
    drift = drift_from(profile, batch.scores, batch.rows, batch.history_lengths)
    exceeded = {}
    for figures in found:
        risk, alpha = figures["risk"], figures["alpha"]
        risks = at_positions(shifted.risk(risk, levels), figures["positions"], 0.0)
        exceeded[f"{risk}, alpha {alpha:g}, delta {figures['delta']:g}"] = float((risks > alpha).mean())
    return {"world": name, "guarantee_is_none": bool(drift.shifted), "drift": drift.to_dict(), "exceeded": exceeded}


def resampled_means(
    losses: Float64Array, n: int, n_draws: int, rng: np.random.Generator
) -> tuple[Float64Array, IntArray]:
    """Mean losses of n cases drawn with replacement, many times, and how many of them count: (n_draws, n_levels) each.

    losses: shape (n_population, n_levels), NaN where a case does not count. How often each case is drawn is
    multinomial, so a draw is one row of counts.
    """
    means = np.empty((n_draws, losses.shape[1]))
    numbers = np.empty(means.shape, dtype=np.int64)
    counted = ~np.isnan(losses)
    known, counting = np.where(counted, losses, 0.0), counted.astype(np.float64)
    chances = np.full(len(losses), 1 / len(losses))
    for start in range(0, n_draws, BLOCK_DRAWS):
        drawn = rng.multinomial(n, chances, size=min(BLOCK_DRAWS, n_draws - start)).astype(np.float64)
        block, sums = slice(start, start + len(drawn)), drawn @ counting
        numbers[block] = np.rint(sums)
        means[block] = np.where(sums > 0, drawn @ known / np.maximum(sums, 1), 1.0)
    return means, numbers


@dataclass(frozen=True)
class Population:
    """Lists of all held-out users as the truth: probabilities and targets, laid out as ``rows``, one row a user."""

    probabilities: FloatArray
    positive: BoolArray
    rows: Ragged

    @classmethod
    def of(cls, lists: JudgedLists, n_users: int) -> Population:
        """Take a result's probabilities, users in order."""
        order = np.argsort(lists.cases, kind="stable")
        lengths = np.bincount(lists.cases, minlength=n_users).astype(np.int64)
        probabilities = lists.frame["probability"].to_numpy(dtype=np.float32)[order]
        return cls(probabilities, lists.positive[order], Ragged.from_lengths(order, lengths))

    def kept_and_recall(self, levels: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Mean number kept of a list and pooled recall of retrieved targets at each level: shape (n_levels,) each."""
        ordered = np.sort(self.probabilities[~np.isnan(self.probabilities)])
        hits = np.sort(self.probabilities[self.positive & ~np.isnan(self.probabilities)])
        kept = len(ordered) - np.searchsorted(ordered, levels, side="left")
        found = len(hits) - np.searchsorted(hits, levels, side="left")
        return kept / len(self.rows), found / len(hits)

    def kept_at_recall(self, recall: float) -> float:
        """Mean number kept of a list by the highest fixed probability that finds this share of targets."""
        cuts = CutLevels.of(self.probabilities, self.positive)
        place = int(np.argmax(cuts.right >= recall * cuts.right[-1] - 1e-9))
        return float(cuts.kept[place] / len(self.rows))


def judge_population(
    population: Population, n_cases: int, n_retrieved: int, n_draws: int, seed: int
) -> list[dict[str, Any]]:
    """Draw calibration sets from a population and compare every setting of ``REAL`` with its truth.

    n_cases, n_retrieved: size of a calibration set, and with "missed_target", whose lists all hold a target.
    """
    rng, levels = np.random.default_rng(seed), risk_levels()
    kept, recall = population.kept_and_recall(levels)
    found = []
    for risk, settings in REAL.items():
        losses = case_losses(risk, population.probabilities, population.positive, population.rows, levels)
        n = n_retrieved if risk == "missed_target" else n_cases
        means, numbers = resampled_means(losses, n, n_draws, rng)
        truth = mean_losses(risk, population.probabilities, population.positive, population.rows, levels)[0]
        for alpha, delta in settings:
            figures = outcome(risk, alpha, delta, means, numbers, truth, kept)
            otherwise = 1.0 if risk == "missed_target" else 0.0
            reached = float(at_positions(recall, figures["positions"], otherwise).mean())
            figures["recall"] = reached
            figures["mean_kept_by_fixed_probability_at_that_recall"] = population.kept_at_recall(reached)
            figures["length"] = len(population.probabilities) / len(population.rows)
            found.append(figures)
    return found


def say(found: Sequence[Mapping[str, Any]], title: str) -> str:
    """Lay the figures out, one row a setting."""
    heads = [title, "n", "alpha", "delta", "exceeded", "allowed", "plug-in", "risk", "kept", "if known", "of", "none"]
    fixed = all("recall" in figures for figures in found)
    rows = []
    for figures in found:
        cut, n_draws = figures["controlled"], figures["n_draws"]
        rows.append(
            [
                figures["risk"],
                f"{figures['n_cases']:,}",
                f"{figures['alpha']:g}",
                f"{figures['delta']:g}",
                f"{cut['exceeded'] / n_draws:.3f}",
                f"{figures['allowed'] / n_draws:.3f}",
                f"{figures['plug_in']['exceeded'] / n_draws:.3f}",
                f"{cut['mean_risk']:.4f}",
                f"{cut['mean_kept']:.2f}",
                f"{figures['mean_kept_if_the_truth_were_known']:.2f}",
                f"{figures['length']:.0f}",
                f"{cut['without_a_level'] / n_draws:.2f}",
            ]
        )
        if fixed:
            rows[-1] += [f"{figures['recall']:.3f}", f"{figures['mean_kept_by_fixed_probability_at_that_recall']:.2f}"]
    return table([*heads, "recall", "fixed at it"] if fixed else heads, rows)


def without_positions(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Drop the chosen levels of each draw, which a record does not need."""
    return [{name: value for name, value in figures.items() if name != "positions"} for figures in found]


def run_simulation(options: argparse.Namespace) -> dict[str, Any]:
    """Draw from the made-up world, then ask the drift watch about the shifted ones."""
    world = World()
    found = simulate(world, options.cases, options.draws or 200, options.seed)
    print(say(found, f"{options.draws or 200} draws of a known world"))
    watched = [
        watch(found, world, name, other, options.cases, options.seed + 1)
        for name, other in {"the same world": world, **SHIFTED_WORLDS}.items()
    ]
    for entry in watched:
        said = "None" if entry["guarantee_is_none"] else "given"
        print(
            f"{entry['world']}: guarantee {said}; alpha exceeded by up to {max(entry['exceeded'].values()):.0%} of cuts"
        )
    return {"simulation": without_positions(found), "shifted": watched}


def run_on_data(options: argparse.Namespace) -> dict[str, Any]:
    """Fit without refit, take the held-out users' lists as the population, and draw from it."""
    protocol = PROTOCOLS.get(options.dataset, LastOut())
    if isinstance(protocol, TimeCut):
        protocol = replace(protocol, first_visit=True)
    trial = hold_out(load_dataset(options.dataset, options.data_dir), protocol, options.split)
    rule = ThresholdConfig("risk")
    config = RerankerConfig(
        encoder=None if options.encoder == "none" else options.encoder,
        cache_folder=options.cache,
        cross_encoder=options.cross_encoder,
        threshold=rule,
        refit=False,
        seed=options.seed,
    )
    reranker = fitted_on(trial, config, options.model)
    fit = reranker.report().values
    result = reranker.recommend(list(trial.user_ids), k=None, at=trial.moments)
    population = Population.of(JudgedLists.from_result(result, trial), len(trial.user_ids))
    found = judge_population(population, fit["n_cases"], fit["n_retrieved"], options.draws or 2_000, options.seed)
    print(say(found, options.dataset))
    own: dict[str, Any] = {"cut": fit["cut"], "decision": result.attrs.get("decision")}
    if fit["cut"] is not None:
        least = np.array([fit["cut"]["least_probability"]])
        losses = case_losses(rule.risk, population.probabilities, population.positive, population.rows, least)
        own["risk_on_held_out_users"], own["n_held_out_users"] = float(losses.mean()), len(losses)
        print(f"the fit's own cut ({rule.risk}, alpha {rule.alpha:g}): risk on later users {losses.mean():.4f}")
    return {
        "dataset": options.dataset,
        "trial": trial.describe(),
        "n_users": len(trial.user_ids),
        "population": without_positions(found),
        "own_cut": own,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = trial_parser("risk_control", __doc__ or "", dataset=None)
    parser.add_argument("--draws", type=int, help="calibration sets (default: 200 simulated, 2,000 of a data set)")
    parser.add_argument("--cases", type=int, default=1_000, help="lists of a simulated calibration set")
    parser.add_argument("--encoder", default="default", help="folder or hub name; 'none'")
    parser.add_argument("--cross-encoder", choices=("auto", "always", "off"), default="off")
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    report = (run_simulation if options.dataset is None else run_on_data)(options)
    report = {**report, **information}
    write_report(options.out, report)
    return report


if __name__ == "__main__":
    main()
