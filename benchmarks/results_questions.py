"""Sections of the page of results on single questions, one small function a folder of reports.

Each takes the reports and returns its markdown, or "" where its folder is absent; ``QUESTIONS`` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.results_reports import METRIC, Results, figure, load, with_interval


def cross_encoder_gain(results: Results) -> str:
    """Say what the cross-encoder knows beside all the rest, in nats and in NDCG."""
    lines = []
    for dataset, report in load(results.folder, "cross_encoder_gain").items():
        split = report["trial"].split(", ")[1]
        rare = [f"{name} {_nats(found)}" for name, found in report["log_likelihood_gain_by_support"].items()]
        lines += [
            f"- {dataset} ({split}, at {report['commit'].removesuffix('-dirty')}; "
            f"{report['n_users_with_target_in_first_100']:,} users whose target is among the first 100): "
            f"log-likelihood {_nats(report['log_likelihood_gain'])} nats; {'; '.join(rare)}. "
            f"NDCG@10 of these users {_nats(report['ndcg@10_difference_over_these_users'])}"
        ]
    return _section("What does the cross-encoder know that the rest does not?", lines)


def _nats(found: dict[str, Any]) -> str:
    return with_interval(found["mean"], *found["ci95"])


def fine_tunings(results: Results) -> str:
    """Say what each way of fine-tuning a cross-encoder adds to the whole rest, the conventional one among them.

    A way all of whose fine-tunings kept their untrained start was not tested. Of a way that an earlier report has,
    judged by as many users, p says nothing: it was chosen from there.
    """
    lines: list[str] = []
    known: set[tuple[Any, ...]] = set()
    for report in load(results.folder, "fine_tuning_ablation").values():
        tested = report["n_judged"], report["n_users"]
        for way, found in report["variants"].items():
            steps = [tuning["best_step"] for tuning in found["fine_tunings"]]
            told = "no step beat the untrained start, which is kept"
            if any(steps):
                is_again = (report["dataset"], *tested, way) in known
                p = "chosen from the report above" if is_again else f"p = {found['p of gain, adjusted']:.3f} (Holm)"
                told = (
                    f"{_nats(found['gain'])} nats on {tested[0]:,} users whose target is among the first 100, {p}; "
                    f"NDCG@10 of all {tested[1]:,} {_nats(found['ndcg@10 of all users'])} (steps kept, one a seed: "
                    f"{', '.join(map(str, steps))})"
                )
            known.add((report["dataset"], *tested, way))
            lines.append(f"- {report['dataset']} ({report['split']}), {way}: {told}")
    return _section("Which way of fine-tuning a cross-encoder adds to the rest?", lines)


def language_model(results: Results) -> str:
    """Say what a causal language model that was trained on nothing of the shop adds to the whole rest."""
    lines = []
    for report in load(results.folder, "language_model").values():
        young = "" if report["fraction"] >= 1 else f" with the events of {report['fraction']:.0%} of the users"
        found = report["readers"]
        alone = ", ".join(f"{name} {entry['share above']['mean']:.3f}" for name, entry in found.items())
        gains = "; ".join(
            f"{name} {_nats(entry['gain'])} nats, NDCG@10 {_nats(entry['ndcg@10 of all users'])}"
            for name, entry in found.items()
        )
        cost = report["cost"]
        lines.append(
            f"- {report['dataset']} ({report['split']}){young}, {report['n_judged']:,} users whose target is among the "
            f"first 100: the target stands above this share of the others by the blend "
            f"{report['share above, blend']:.3f}, by {alone}. Beside the blend: {gains}. "
            f"{cost['pairs_per_second']['packed']:.0f} pairs a second ({cost['dtype']}, {cost['device']}), "
            f"{cost['ratio']:.1f} × one at a time"
        )
    return _section("Does a GPT-like model know what the rest does not?", lines)


def tuned_encoder(results: Results) -> str:
    """Say what an encoder tuned on the shop's own purchases gains over the untuned one in the same form."""
    lines = []
    for dataset, report in load(results.folder, "tuned_encoder").items():
        best = min(report["log"], key=lambda entry: entry["loss"])
        for form, found in report["forms"].items():
            lines.append(
                f"- {dataset} ({report['split']}), {form}: NDCG@10 untuned {figure(found['untuned'])}, tuned "
                f"{with_interval(found['mean'], found['low'], found['high'])} over it (step {best['step']:.0f} of "
                f"{report['settings']['steps']} is kept)"
            )
    return _section("An encoder tuned on the shop's own purchases?", lines)


def calibration(results: Results) -> str:
    """Say whether probabilities hold on later users, on validation and on the test."""
    lines = []
    for folder in ("calibration_validation", "calibration"):
        for report in load(results.folder, folder).values():
            split = report["trial"].split(", ")[1]
            refit = ", without a refit" if "--no-refit" in report["command"] else ""
            for lists, found in report["calibration"].items():
                mean = found["mean_probability_top_10"]
                lines.append(
                    f"- {report['dataset']} ({split}{refit}), {lists}: slope {found['slope']:.2f} "
                    f"[{found['slope_ci95'][0]:.2f}, {found['slope_ci95'][1]:.2f}]; of the first ten the mean "
                    f"probability is {mean / found['rate_top_10']:.2f} of the share taken, the calibration error "
                    f"{found['ece_top_10'] / mean:.1%} of it ({found['ece_top_10_if_perfect'] / mean:.1%} if perfect); "
                    f"Brier skill {with_interval(found['brier_skill'], *found['brier_skill_ci95'])}"
                )
    return _section("Do the probabilities hold on later users?", lines)


def start_from(results: Results) -> str:
    """Say what a start from another shop's reranker gains a young shop."""
    lines = []
    for report in load(results.folder, "start_from").values():
        for size, found in report["sizes"].items():
            gains = [
                f"{name} {with_interval(gain['mean'], gain['low'], gain['high'])}"
                if any(gain[key] for key in ("mean", "low", "high"))
                else f"{name.split(' over ')[0]} ranks as {name.split(' over ')[1]} does"
                for name, gain in found["differences"].items()
            ]
            draws = found.get("draws", 1)
            lines.append(
                f"- {report['dataset']} with the events of {size} users ({draws} draw{'s' * (draws > 1)}), from "
                f"{report['old']} ({report['split']}, at {report['commit']}): alone NDCG@10 "
                f"{figure(found['ndcg@10']['alone'])}; {'; '.join(gains)}"
            )
    return _section("Does a start from another shop help a young one?", lines)


def brought_vectors(results: Results) -> str:
    """Say what vectors that a shop brings in a column gain, beside the encoder itself."""
    lines = []
    for dataset, report in load(results.folder, "brought_vectors").items():
        fits = ", ".join(f"{name} {figure(fit['ndcg@10'])}" for name, fit in report["fits"].items())
        gains = "; ".join(
            f"{name} {with_interval(gain['mean'], gain['low'], gain['high'])}"
            for name, gain in report["differences"].items()
        )
        lines.append(f"- {dataset} ({report['split']}): NDCG@10 of {fits}; {gains}")
    return _section("Do vectors that a shop brings join the blend as the encoder's do?", lines)


def short_histories(results: Results) -> str:
    """Say what histories cut short teach a blend, by how much a user has done."""
    lines = []
    for dataset, report in load(results.folder, "short_histories").items():
        for length, row in report["lengths"].items():
            ndcg = row["ndcg@10"]
            lines.append(
                f"- {dataset} (validation), {'whole histories' if length == 'whole' else f'newest {length}'}: NDCG@10 "
                f"taught by whole histories alone {figure(ndcg['whole histories alone'])}, by short ones too "
                f"{with_interval(*row['over_whole_alone'])} over it; the most popular items "
                f"{figure(ndcg[row['most_popular']])}"
            )
    return _section("Does the blend know what to do with users who have done little?", lines)


def own_lists(results: Results) -> str:
    """Say whether lists that a recommender showed are ordered better than it did."""
    lines = []
    for dataset, report in load(results.folder, "own_lists").items():
        before, after = (report["systems"][name][METRIC]["mean"] for name in ("upstream", "fused"))
        test = report["test"]
        lines.append(
            f"- {dataset} ({report['trial'].split(', ')[2].split('T')[0]}; {report['n_cases']:,} lists of best sellers "
            f"from which something was taken): NDCG@10 {figure(before)} in that order, {figure(after)} reranked, "
            f"{with_interval(test['difference'], *test['ci95'])}"
        )
    return _section("Are a recommender's own lists ordered better?", lines)


def sequence_gain(results: Results) -> str:
    """Say what small nets over text and id add to text-aware EASE."""
    lines = []
    for dataset, report in load(results.folder, "sequence_gain").items():
        for run in report["runs"]:
            gain = run["gain"]
            lines.append(
                f"- {dataset} ({report['split']}), texts read by {run['texts']}, seed {run['seed']}: alone NDCG@10 "
                f"{figure(run['nets'][METRIC])}; in a plain sum with `text_ease` "
                f"{with_interval(gain['mean'], gain['low'], gain['high'])} over it"
            )
    return _section("What do small sequence nets add to text-aware EASE?", lines)


def missed_targets(results: Results) -> str:
    """Say where missed targets stand, what points to them, and what solving some would be worth."""
    lines = []
    for dataset, report in load(results.folder, "missed_targets").items():
        places = ", ".join(f"{name} {found['share']:.0%}" for name, found in report["places"].items())
        evidence = ", ".join(f"{name} {found['share']:.0%}" for name, found in report["evidence"].items())
        now, solved = (report["oracle"][name] for name in ("as it is", "any link to the history, ranked 11-100"))
        lines.append(
            f"- {dataset} ({report['split']}): {report['n_missed']:,} of {report['n_targets']:,} targets are not among "
            f"the first ten: {places}. What points to them, the first that holds: {evidence}. With those ranked 11-100 "
            f"to which something of the history points moved into the first ten, NDCG@10 would be "
            f"{figure(solved['ndcg@10 at the end'])} (in its last places) to {figure(solved['ndcg@10 at the top'])}, "
            f"now {figure(now['ndcg@10'])}"
        )
    return _section("Why are targets missed?", lines)


def candidates(results: Results) -> str:
    """Say what unions of retrievers find at equal length, beside equal quotas a source."""
    lines = []
    for dataset, report in load(results.folder, "candidates").items():
        for length, unions in report["lengths"].items():
            gains = [
                f"{name} {with_interval(found['d_mean'], found['d_low'], found['d_high'])}"
                for name, found in ((label, unions[union]["recall"]) for union, label in UNIONS.items())
            ]
            lines.append(
                f"- {dataset} ({report['split']}), {length} candidates: recall of equal quotas "
                f"{figure(unions['equal']['recall']['mean'])}; over it {'; '.join(gains)}"
            )
    return _section("Better candidates at equal length?", lines)


def ablations(results: Results) -> str:
    """Say whether a gain is the reading: what is left of it with permuted texts and with another user's history."""
    lines = []
    for dataset, report in load(results.folder, "ablations").items():
        for found in report["comparisons"]:
            if found["label"].startswith("gain of"):
                lines.append(
                    f"- {dataset} ({report['split']}), {found['label']}: "
                    f"{with_interval(found['mean'], found['low'], found['high'])}"
                )
    return _section("Is a gain the reading?", lines)


def left_out(results: Results) -> str:
    """Say what the blend loses without each component and each feature, where each was left out."""
    lines = []
    for dataset, report in load(results.folder, "ablations").items():
        lost = [
            f"{found['label'].removeprefix('whole over no ')} "
            f"{with_interval(found['mean'], found['low'], found['high'])}"
            for found in report["comparisons"]
            if found["label"].startswith("whole over no ")
        ]
        if lost:
            lines.append(f"- {dataset} ({report['split']}), NDCG@10 of the whole over that without: {'; '.join(lost)}")
    return _section("What is lost without each thing?", lines)


def query_regime(results: Results) -> str:
    """Say what an encoder adds to word counts where a search phrase is all that is known; simulated searches."""
    lines = []
    for dataset, report in load(results.folder, "query_regime").items():
        for regime in report["regimes"]:
            gains = [
                f"{name} {with_interval(gain['mean'], gain['low'], gain['high'])} ({gain['relative']:+.0%})"
                for name, gain in regime["gains"].items()
            ]
            lines.append(
                f"- {dataset} ({report['split']}), {regime['regime']}, {regime['n']:,} cases: NDCG@10 of the best word "
                f"count {figure(regime['judged']['words'][METRIC])}; {'; '.join(gains)}"
            )
    return _section("A search phrase and nothing else (simulated)", lines)


def _section(heading: str, lines: Sequence[str]) -> str:
    return "\n".join([f"### {heading}\n", *lines, ""]) if lines else ""


UNIONS = {"learned": "learned quotas", "blend": "the blend's own first ones"}

QUESTIONS: tuple[Callable[[Results], str], ...] = (
    ablations,
    left_out,
    missed_targets,
    candidates,
    query_regime,
    cross_encoder_gain,
    fine_tunings,
    language_model,
    tuned_encoder,
    sequence_gain,
    short_histories,
    own_lists,
    brought_vectors,
    start_from,
    calibration,
)


def further(results: Results) -> str:
    """Show the experiments on single questions whose reports are there."""
    parts = [text for text in (question(results) for question in QUESTIONS) if text]
    return "\n".join(["## Single questions\n", *parts]) if parts else ""
