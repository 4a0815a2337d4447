"""Which form of learned blend? On held-out users: fitted on one half, judged on the other, then the reverse.

    LLM_RERANK_DATA=DIR python -m benchmarks.blend_forms --dataset amazon_scientific sample --out FILE.json

Every form is compared with the library's present blend, case by case, Holm over the forms; "kept" is the simplest form
within one standard error of the best. "Later" are the validation trial's own cases, judged by both fits and averaged:
more users, but not the hold-out's. What an earlier run left in the folder of ``--keep``, scores of candidates and a
value a case by form, no ids, is not computed again. The form "lambdamart" needs ``pip install lightgbm``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._blend_forms import FORMS
from benchmarks._blend_half import Half
from benchmarks._common import run_information, table, write_report
from benchmarks._halves import SEQUENCE, Halves, judged_ndcg, load_halves
from benchmarks._keeping import keep_arrays, kept_arrays
from llm_rerank.statistics import holm, paired_difference

PRESENT = "present blend"
JUDGED = ("halves", "later")


@dataclass(frozen=True)
class Measured:
    """One form on one data set. halves, later: NDCG@10, a value a case; "halves": those of G, then those of F."""

    halves: np.ndarray
    later: np.ndarray
    said: Mapping[str, Any]


def measure(name: str, halves: Halves, turns: Sequence[Half]) -> Measured:
    """Fit a form on each half; judge it on the other half, and on the later cases."""
    judged, later, said = [], [], []
    for half, (_, other) in zip(turns, halves.turns(), strict=True):
        fitted = FORMS[name](half)
        judged.append(judged_ndcg(fitted.score(other), other))
        later.append(judged_ndcg(fitted.score(halves.later), halves.later))
        said.append(fitted.said)
    return Measured(np.concatenate(judged), np.mean(later, axis=0), {"halves": said})


def compare(measured: Mapping[str, Measured], seed: int) -> dict[str, Any]:
    """Set each form against the present blend, on the halves and later.

    measured: by form, simplest first, the present blend among them.
    """
    report: dict[str, Any] = {}
    for judged in JUDGED:
        values = {name: getattr(form, judged) for name, form in measured.items()}
        base = values[PRESENT]
        others = [name for name in values if name != PRESENT]
        differences = {name: paired_difference(values[name], base, seed=seed) for name in others}
        adjusted = dict(zip(others, holm([differences[name].p for name in others]), strict=True))
        forms: dict[str, Any] = {}
        for name in values:
            forms[name] = {"ndcg@10": float(values[name].mean())}
            if name != PRESENT:
                difference = differences[name]
                forms[name] |= {
                    "difference": {**vars(difference), "p_holm": float(adjusted[name])},
                    "relative": difference.mean / float(base.mean()),
                    "relative_error": _error(values[name] - base) / float(base.mean()),
                }
        report[judged] = {"n": len(base), "forms": forms, **choose(values)}
    return report


def choose(values: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Name the best form, and the simplest one within one standard error of it (the error of their difference).

    values: by form, simplest first; one value a case.
    """
    best = max(values, key=lambda name: float(values[name].mean()))
    for name, ndcg in values.items():
        loss = values[best] - ndcg
        if float(loss.mean()) <= _error(loss):
            return {"best": best, "kept": name}
    raise AssertionError("the best form is within any error of itself")


def overall(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean gain over the data sets relative to the present blend, by form that was tried on all of them.

    Gains are of the halves. worse_on: where the form is significantly worse (Holm), the later cases included.
    would_change: better on average, nowhere worse.
    """
    tried = [set(found["halves"]["forms"]) for found in sets.values()]
    report = {}
    for name in FORMS:
        if name == PRESENT or not all(name in forms for forms in tried):
            continue
        forms = {
            (dataset, judged): found[judged]["forms"][name] for dataset, found in sets.items() for judged in JUDGED
        }
        of_halves = [form for (_, judged), form in forms.items() if judged == "halves"]
        gain = float(np.mean([form["relative"] for form in of_halves]))
        error = float(np.sqrt(np.sum([form["relative_error"] ** 2 for form in of_halves]))) / len(of_halves)
        worse = [
            f"{place}, {judged}"
            for (place, judged), form in forms.items()
            if form["difference"]["mean"] < 0 and form["difference"]["p_holm"] < 0.05
        ]
        report[name] = {
            "mean_relative_gain": gain,
            "low": gain - 1.96 * error,
            "high": gain + 1.96 * error,
            "mean_relative_gain_later": float(np.mean([f["relative"] for (_, j), f in forms.items() if j == "later"])),
            "worse_on": worse,
            "would_change": gain > 0 and not worse,
        }
    return report


def gains(measured: Mapping[str, Measured], without: Mapping[str, Measured], seed: int) -> dict[str, Any]:
    """Say what a component adds to each form: with it and without it, on the halves and later."""
    return {
        judged: {
            name: vars(paired_difference(getattr(form, judged), getattr(without[name], judged), seed=seed))
            for name, form in measured.items()
        }
        for judged in JUDGED
    }


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / len(values) ** 0.5


def measure_forms(label: str, halves: Halves, options: argparse.Namespace, commit: str | None) -> dict[str, Measured]:
    """Measure the forms asked for; those that an earlier run kept are read."""
    turns = [Half(train, halves.names, halves.n_items, options.seed) for train, _ in halves.turns()]
    found: dict[str, Measured] = {}
    for name in options.forms:
        path = None if options.keep is None else options.keep / label / f"{name.replace(' ', '_')}.safetensors"
        made_by = {"commit": commit, "seed": options.seed}
        earlier = kept_arrays(path, made_by)
        if earlier is not None:
            arrays, said = earlier
            found[name] = Measured(arrays["halves"], arrays["later"], said)
        else:
            try:
                found[name] = measure(name, halves, turns)
            except ModuleNotFoundError as error:
                print(f"{label}: {name} not tried: {error}", flush=True)
                continue
            keep_arrays(path, {j: getattr(found[name], j) for j in JUDGED}, found[name].said, made_by)
        form = found[name]
        print(f"{label}: {name}: halves {form.halves.mean():.4f}, later {form.later.mean():.4f}", flush=True)
    return found


def print_set(label: str, report: Mapping[str, Any]) -> None:
    """Print one line a form."""
    rows = []
    for name in report["halves"]["forms"]:
        row = [name]
        for judged in JUDGED:
            form = report[judged]["forms"][name]
            row += [f"{form['ndcg@10']:.4f}", _cell(form["difference"]) if "difference" in form else ""]
        if "gains" in report:
            row += [_cell(report["gains"][judged][name]) for judged in JUDGED]
        rows.append(row)
    heads = [label]
    for judged in JUDGED:
        heads += [f"{judged}, n {report[judged]['n']:,}", "difference, 95 %, p"]
    if "gains" in report:
        heads += [f"gain of {SEQUENCE}, {judged}" for judged in JUDGED]
    print(table(heads, rows))
    for judged in JUDGED:
        print(f"{judged}: best {report[judged]['best']}; kept {report[judged]['kept']}", flush=True)


def _cell(difference: Mapping[str, float]) -> str:
    p = difference.get("p_holm", difference["p"])
    return f"{difference['mean']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}] {p:.3f}"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blend_forms", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", nargs="+", default=["amazon_scientific"])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--with-sequence", action="store_true", help="also fit the small nets, and say what they add")
    parser.add_argument("--cache", help="folder that keeps encoded texts between runs")
    parser.add_argument("--keep", type=Path, help="folder that keeps scored candidates and what was measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    options.forms = [name for name in FORMS if name in {PRESENT, *options.forms}]  # simplest first
    information = run_information(options.seed)
    sets: dict[str, dict[str, Any]] = {}
    report: dict[str, Any] = {}
    for dataset in options.dataset:
        halves = load_halves(
            dataset,
            options.data_dir,
            seed=options.seed,
            cache=options.cache,
            with_sequence=options.with_sequence,
            keep=options.keep,
        )
        label = f"{dataset} with {SEQUENCE}" if options.with_sequence else dataset
        measured = measure_forms(label, halves, options, information["commit"])
        found = compare(measured, options.seed)
        if options.with_sequence:
            left = halves.without(SEQUENCE)
            without = measure_forms(f"{label} left out", left, options, information["commit"])
            found["gains"] = gains(measured, without, options.seed)
        found["fits"] = {name: form.said["halves"] for name, form in measured.items()}
        sets[dataset] = {"components": halves.names, **found, "fit_said": halves.said}
        print_set(label, found)
        report = {"sets": sets, "overall": overall(sets), **information}
        write_report(options.out, report)
    rows = [
        [
            name,
            f"{form['mean_relative_gain']:+.2%} [{form['low']:+.2%}, {form['high']:+.2%}]",
            f"{form['mean_relative_gain_later']:+.2%}",
            "; ".join(form["worse_on"]) or "none",
            "yes" if form["would_change"] else "no",
        ]
        for name, form in report["overall"].items()
    ]
    print(table(["form", "mean gain, relative, 95 %", "later", "worse on", "better and nowhere worse"], rows))
    return report


if __name__ == "__main__":
    main()
