"""Does any way of fine-tuning the cross-encoder tell what all the rest does not know? On the validation trial's users.

    python -m benchmarks.fine_tuning_ablation --dataset amazon_scientific --data-dir DIR --keep DIR --out FILE.json

All other components and the blend are fitted once, inside the validation trial's past; the test stays unseen. Each way
differs from the library's in one thing, or from "frozen", which trains no layer and takes seconds. It is judged on the
trial's own users: where the target is among the blend's first 100, the score joins the blend by a conditional logit
whose weights are fitted on nine tenths of these users and judged on the tenth, ten times. The gain is over the blend
with its own weight, in nats a list; NDCG@10 is over all users, 0 where the target is not in the list. With "by support"
the score may count more or less by the supports of user and item, and the item's support has a weight on both sides.
The p values of all ways are adjusted for their number (Holm).

What an earlier run of the same code and settings left in the folder of ``--keep``, each way's scores, is not computed
again. A way whose fine-tuning kept its untrained start (best step 0) is no test of that way: it has no place in Holm's
number. Ways that were chosen from an earlier report are counted with that report's (``--ways-tried``).
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import run_information, table, write_report
from benchmarks._fine_tuning_judging import Judge, Judged, as_dict, holm_of_gains
from benchmarks._fine_tuning_rest import Rest, load_rest
from benchmarks._fine_tuning_variants import FROZEN, LIBRARY, VARIANTS, fine_tuned
from benchmarks._keeping import keep_arrays, kept_arrays
from llm_rerank.config import RerankerConfig
from llm_rerank.recommendation.planning import make_encoder
from llm_rerank.types import Encoder, FloatArray


class Ablation:
    """The variants measured so far: each one's readings by seed, and its entry in the report."""

    def __init__(self, options: argparse.Namespace, rest: Rest, encoder: Encoder | None) -> None:
        self.options, self.rest, self.encoder = options, rest, encoder
        self.information = run_information(options.seed)
        self.judge = Judge(rest, options.seed)
        self.readings: dict[str, dict[int, tuple[Judged, Judged]]] = {}
        self.entries: dict[str, dict[str, Any]] = {}

    def measure(self, name: str, seeds: Collection[int]) -> None:
        """Judge a variant with these seeds and with those that are kept, the mean over them for each user."""
        found = {seed: self._scores(name, seed) for seed in sorted({*seeds, *self._kept_seeds(name)})}
        by_seed = {seed: self.judge.read(scores) for seed, (scores, _) in found.items()}
        self.readings[name] = by_seed
        readings, judge = list(by_seed.values()), self.judge
        entry: dict[str, Any] = {key: as_dict(value) for key, value in judge.entry(readings).items()}
        strata = judge.gain_by_target_support(readings)
        entry["gain by target's buyers"] = {key: as_dict(value) for key, value in strata.items()}
        entry["gain by seed"] = {seed: float((judge.alone.loss - a.loss).mean()) for seed, (a, _) in by_seed.items()}
        base = FROZEN if name.startswith(FROZEN) else LIBRARY
        shared = sorted(by_seed.keys() & self.readings.get(base, {}).keys())
        if name != base and shared:
            own, others = ([self.readings[key][seed] for seed in shared] for key in (name, base))
            entry[f"over {base}"] = as_dict(judge.against(own, others))
        self.entries[name] = {**entry, "fine_tunings": [said for _, said in found.values()]}

    def _scores(self, name: str, seed: int) -> tuple[FloatArray, dict[str, Any]]:
        """Fine-tune a variant with a seed, or read what is kept of it: scores, and what the fine-tuning said."""
        options, kept = self.options, self._path(name, str(seed))
        made_by = {
            "commit": self.information["commit"],
            "settings": [options.dataset, options.steps, options.judged, options.seed],
        }
        found = kept_arrays(kept, made_by)
        if found is not None:
            return found[0]["scores"], found[1]
        tuned = fine_tuned(VARIANTS[name], self.rest, self.encoder, steps=options.steps, seed=seed, cache=options.cache)
        said = {
            "seed": seed,
            "n_lists": tuned.n_lists,
            "best_step": tuned.best_step,
            "seconds": tuned.seconds,
            "evaluations": tuned.evaluations,
        }
        keep_arrays(kept, {"scores": tuned.scores}, said, made_by)
        return tuned.scores, said

    def _kept_seeds(self, name: str) -> list[int]:
        pattern = self._path(name, "*")
        found = [] if pattern is None else pattern.parent.glob(pattern.name)
        return [int(path.stem.rsplit("-", 1)[1]) for path in found]

    def _path(self, name: str, seed: str) -> Path | None:
        file = f"{self.options.dataset}-{name.replace(' ', '_')}-{seed}.safetensors"
        return None if self.options.keep is None else self.options.keep / file

    def report(self) -> dict[str, Any]:
        """Lay out what is known so far."""
        rest, alone = self.rest, self.judge.alone
        trained = {name: entry for name, entry in self.entries.items() if is_trained(entry)}
        adjusted = holm_of_gains(trained, self.options.ways_tried)
        return {
            "dataset": self.options.dataset,
            "split": "validation",
            "steps": self.options.steps,
            "n_users": rest.n_users,
            "n_judged": len(rest.judged),
            "n_lists": {"training": len(rest.lists.training), "early stopping": len(rest.lists.validation)},
            "blend_alone": {
                "loss": float(alone.loss.mean()),
                "ndcg@10 of all users": float(self.judge.over_all_users(alone.ndcg).mean()),
            },
            "variants": {
                name: {**entry, "p of gain, adjusted": adjusted.get(name)} for name, entry in self.entries.items()
            },
            "fit_said": rest.said,
            **self.information,
        }


def is_trained(entry: dict[str, Any]) -> bool:
    """Tell whether any fine-tuning of a way kept another step than its untrained start."""
    return any(tuning["best_step"] for tuning in entry["fine_tunings"])


def as_row(name: str, entry: dict[str, Any]) -> list[str]:
    """Lay a variant out as a row of the table."""
    cells = [
        "{:+.4f} [{:+.4f}, {:+.4f}]".format(entry[key]["mean"], *entry[key]["ci95"])
        for key in ("gain", "gain by support", "ndcg@10 of all users")
    ]
    tunings = entry["fine_tunings"]
    steps = " ".join(str(tuning["best_step"]) for tuning in tunings)
    seconds = np.mean([tuning["seconds"] for tuning in tunings])
    p = entry["p of gain, adjusted"]
    return [name, *cells, "untrained" if p is None else f"{p:.3f}", steps, f"{seconds:.0f}"]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fine_tuning_ablation", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--dataset", default="amazon_scientific")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="names, joined by commas")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--cache", help="folder that keeps vectors and states")
    parser.add_argument("--keep", type=Path, help="folder that keeps each way's scores")
    parser.add_argument("--judged", type=int, help="most lists to judge, drawn evenly: pairwise reads them for hours")
    parser.add_argument("--seed", type=int, default=0, help="of the rest and of the judging")
    parser.add_argument(
        "--ways-tried", type=int, default=0, help="Holm's number at least, where ways were chosen before"
    )
    parser.add_argument("--tuning-seeds", default="0", help="of the fine-tunings, joined by commas")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    rest = load_rest(options.dataset, options.data_dir, seed=options.seed, cache=options.cache)
    if options.judged is not None:
        rest = rest.drawn(options.judged, options.seed)
    encoder = make_encoder(RerankerConfig(seed=options.seed, cache_folder=options.cache))
    ablation = Ablation(options, rest, encoder)
    seeds = list(map(int, options.tuning_seeds.split(",")))
    for name in options.variants.split(","):
        ablation.measure(name, seeds)
        report = ablation.report()
        write_report(options.out, report)
        print("  ".join(as_row(name, report["variants"][name])), flush=True)
    heads = ["way", "gain, nats [95 %]", "by support", "NDCG@10, all users", "p, Holm", "best steps", "seconds"]
    print(table(heads, [as_row(name, entry) for name, entry in report["variants"].items()]))
    print(f"blend alone, {report['n_judged']:,} of {report['n_users']:,} users judged: {report['blend_alone']}")
    return report


if __name__ == "__main__":
    main()
