"""Held-out users of a data set, their candidates scored, in two halves: a blend is fitted on one, judged on the other.

Everything lies inside a validation trial's training data: the components are fitted on the past of the fit's own
hold-out, and the halves F and G are its held-out users. The trial's own cases, later ones of more users, are scored by
the same components, for where the halves are too few to tell.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.features import PAIR_FEATURES, ItemStatistics, pair_features
from llm_rerank.data.rendering import Renderer
from llm_rerank.evaluation.protocols import PROTOCOLS, LastOut, Trial, hold_out
from llm_rerank.recommendation.candidates import ndcg_of
from llm_rerank.recommendation.components import Component, ScoredCases, reference_items, retrieve_and_score
from llm_rerank.recommendation.held_out import HeldOutCases
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools, Fold, Folds, ShortHistories
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.planning import make_encoder, sentiment_of
from llm_rerank.recommendation.refit import fit_again
from llm_rerank.recommendation.specs import PARTS, in_use, specs_for
from llm_rerank.recommendation.stage import Stage, fit_stage
from llm_rerank.storage import read_arrays, write_arrays
from llm_rerank.types import Cases, FloatArray, Items, Ragged

SEQUENCE = "sequence"
FOLDS = ("fold_f", "fold_g", "later")


@dataclass(frozen=True)
class Halves:
    """The scored cases of a data set. names: of the blended components, columns of the folds' scores.

    later: the trial's own cases. said: what the fit of the components said. Histories are not kept.
    """

    names: tuple[str, ...]
    n_items: int
    fold_f: Fold
    fold_g: Fold
    later: Fold
    said: tuple[str, ...]

    @cached_property
    def whole(self) -> Fold:
        """The cases of both halves, F's first; histories are not kept."""
        return _joined(self.fold_f, self.fold_g)

    def turns(self) -> Iterator[tuple[Fold, Fold]]:
        """Give the half to train on and the half to judge on, both ways round."""
        yield self.fold_f, self.fold_g
        yield self.fold_g, self.fold_f

    def fitted(self, fold: Fold, *, seed: int, sharpness: float) -> Stage:
        """Fit the library's own stage on some of the cases. sharpness: see ``fusion.shares_of_rungs``."""
        return fit_stage(
            fold,
            self.names,
            features=PAIR_FEATURES,
            n_items=self.n_items,
            start=None,
            seed=seed,
            sharpness=sharpness,
        ).stage

    def without(self, name: str) -> Halves:
        """Leave out a component's score; the candidates that it brought stay."""
        kept = [column for column, other in enumerate(self.names) if other != name]
        names = tuple(self.names[column] for column in kept)
        fold_f, fold_g, later = (_with_scores(getattr(self, label), kept) for label in FOLDS)
        return replace(self, names=names, fold_f=fold_f, fold_g=fold_g, later=later)


def _with_scores(fold: Fold, columns: Sequence[int]) -> Fold:
    scored = replace(fold.scored, scores=fold.scored.scores[:, columns], raw=fold.scored.raw[:, columns])
    short = fold.short and ShortHistories(_with_scores(fold.short.fold, columns), fold.short.case_of)
    return replace(fold, scored=scored, short=short)


def judged_ndcg(scores: np.ndarray, fold: Fold) -> np.ndarray:
    """NDCG@10 of the cases that have a target: float64, shape (n_judged,). scores: shape (n_candidates,)."""
    return ndcg_of(scores, fold.candidates, fold.targets)[fold.targets.lengths > 0]


def halves_parser(name: str, description: str, *, keep: bool = True) -> argparse.ArgumentParser:
    """Start a command line of what ``load_options`` reads, with ``--out``. keep: False leaves ``--keep`` out."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description.split("\n")[0])
    parser.add_argument("--dataset", default="amazon_scientific")
    parser.add_argument("--data-dir", type=Path)
    if keep:
        parser.add_argument("--keep", type=Path, help="folder that keeps the scored candidates")
    parser.add_argument("--cache", help="folder of encoded texts")
    parser.add_argument("--without-sequence", action="store_true", help="leave the small nets out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser


def load_options(options: argparse.Namespace, *, refit: bool = False) -> Halves:
    """Load the halves that a command line of ``halves_parser`` asks for."""
    return load_halves(
        options.dataset,
        options.data_dir,
        seed=options.seed,
        cache=options.cache,
        with_sequence=not options.without_sequence,
        refit=refit,
        keep=options.keep,
    )


def load_halves(
    dataset: str,
    data_dir: Path | None,
    *,
    seed: int = 0,
    cache: str | None = None,
    with_sequence: bool = False,
    refit: bool = False,
    keep: Path | None = None,
) -> Halves:
    """Fit the components and score the halves, or read what an earlier run left in the folder ``keep``.

    cache: folder of encoded texts. with_sequence: the small nets are among the components; all other parts always are.
    refit: the later cases are scored by components fitted again on all of the past, as a fit hands them on.
    """
    of = f"{dataset}{'_with_sequence' if with_sequence else ''}{'_refit' if refit else ''}_seed_{seed}"
    path = None if keep is None else keep / f"{of}.safetensors"
    if path is not None and path.exists():
        return _read(path)
    trial = hold_out(load_dataset(dataset, data_dir), PROTOCOLS.get(dataset, LastOut()), "validation")
    halves = _score(trial, RerankerConfig(seed=seed, cache_folder=cache), with_sequence, refit)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, halves)
    return halves


@dataclass(frozen=True)
class FittedParts:
    """Components fitted on the past of a fit's own hold-out, with all parts, and its held-out cases scored by them.

    items: as the components know them. sentiment: of each event of the trial's past.
    """

    tools: FitTools
    components: Sequence[Component]
    items: Items
    folds: Folds
    sentiment: FloatArray
    log: FitLog


def fitted_components(trial: Trial, config: RerankerConfig, *, with_sequence: bool) -> FittedParts:
    """Fit every component on the past of the hold-out of a trial's training data. with_sequence: the nets too."""
    encoder, log = make_encoder(config), FitLog(verbose=True)
    specs = [s for s in specs_for(config, trial.past, encoder) if with_sequence or s.part != SEQUENCE]
    data = FitData(trial.past, trial.items, None, None, sentiment_of(trial.past, encoder))
    tools = FitTools(config, encoder, specs, PAIR_FEATURES, Renderer())
    held_out = HeldOutCases.of(data, tools, plan_holdout(data.events, config.seed, log))
    components = held_out.fit_components(in_use(specs, PARTS), tools, log, {})
    return FittedParts(tools, components, held_out.items, held_out.score(components, tools, log), data.sentiment, log)


def _score(trial: Trial, config: RerankerConfig, with_sequence: bool, refit: bool) -> Halves:
    parts = fitted_components(trial, config, with_sequence=with_sequence)
    components, items = parts.components, trial.items
    if refit:
        items = parts.tools.render(trial.items, trial.past, None)
        components = fit_again(components, parts.tools.specs, trial.past, items, config.seed, parts.log)
    later = fold_of_trial(trial, items, components, config, parts.sentiment)
    names = tuple(component.name for component in components if component.blends)
    return Halves(names, len(trial.items), parts.folds.f, parts.folds.g, later, tuple(parts.log.lines))


def fold_of_trial(
    trial: Trial, items: Items, components: Sequence[Component], config: RerankerConfig, sentiment: FloatArray
) -> Fold:
    """Retrieve and score the candidates of a trial's own cases with components fitted on its past.

    items: as the components know them. sentiment: of each event of the past.
    """
    scored = retrieve_and_score(
        components,
        trial.cases,
        reference_items(len(items), config.seed),
        len(items),
        candidates_per_source=config.candidates_per_source,
        seen=trial.seen,
    )
    as_of = trial.at if trial.at is not None else int(trial.past.times.max()) + 1
    statistics = ItemStatistics.from_events(trial.past, items, as_of, sentiment=sentiment)
    return Fold(scored, trial.seen, pair_features(scored.cases, statistics, items))


def _write(path: Path, halves: Halves) -> None:
    arrays: dict[str, np.ndarray] = {}
    for label in FOLDS:
        arrays |= _arrays(label, getattr(halves, label))
    write_arrays(path, arrays, {"names": halves.names, "n_items": halves.n_items, "said": halves.said})


def _read(path: Path) -> Halves:
    arrays, facts = read_arrays(path)
    folds = {label: _fold(arrays, label) for label in FOLDS}
    return Halves(tuple(facts["names"]), facts["n_items"], **folds, said=tuple(facts["said"]))


def _arrays(label: str, fold: Fold) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {f"{label}.scores": fold.scored.scores, f"{label}.pair_values": fold.pair_values}
    for part, rows in (("candidates", fold.candidates), ("targets", fold.targets)):
        arrays |= {f"{label}.{part}": rows.values, f"{label}.{part}.offsets": rows.offsets}
    if fold.short is not None:
        arrays |= {f"{label}.case_of": fold.short.case_of, **_arrays(f"{label}.short", fold.short.fold)}
    return arrays


def _fold(arrays: dict[str, np.ndarray], label: str) -> Fold:
    candidates, targets = (
        Ragged(arrays[f"{label}.{part}"], arrays[f"{label}.{part}.offsets"]) for part in ("candidates", "targets")
    )
    fold = as_fold(arrays[f"{label}.scores"], arrays[f"{label}.pair_values"], candidates, targets)
    case_of = arrays.get(f"{label}.case_of")
    return fold if case_of is None else replace(fold, short=ShortHistories(_fold(arrays, f"{label}.short"), case_of))


def _joined(one: Fold, other: Fold) -> Fold:
    fold = as_fold(
        np.concatenate([one.scored.scores, other.scored.scores]),
        np.concatenate([one.pair_values, other.pair_values]),
        one.candidates.followed_by(other.candidates),
        one.targets.followed_by(other.targets),
    )
    if one.short is None or other.short is None:
        return fold
    case_of = np.append(one.short.case_of, other.short.case_of + len(one.targets))
    return replace(fold, short=ShortHistories(_joined(one.short.fold, other.short.fold), case_of))


def as_fold(scores: FloatArray, pair_values: FloatArray, candidates: Ragged, targets: Ragged) -> Fold:
    """Build a fold whose cases know candidates and targets only: a blend reads nothing else of them."""
    n, nothing = len(targets), np.empty(0, dtype=np.int64)
    weights: FloatArray = np.empty(0, dtype=np.float32)
    never = np.zeros(n, dtype=np.int64)
    cases = Cases(never - 1, never, Ragged.empty(n), weights, nothing, [""] * n, candidates, targets)
    return Fold(ScoredCases(cases, scores, scores), Ragged.empty(n), pair_values)
