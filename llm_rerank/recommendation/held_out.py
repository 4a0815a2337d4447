"""The held-out cases of a fit: components fitted on what came before them, and their scores of the candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from llm_rerank.data.cases import build_cases, seen_items, with_newest
from llm_rerank.data.features import ItemStatistics, pair_features
from llm_rerank.data.splits import hash_users
from llm_rerank.metrics import hit_matrix, ndcg_at_k
from llm_rerank.models.scoring import retrieve
from llm_rerank.recommendation.components import Component, reference_items, retrieve_and_score, scores_catalogue
from llm_rerank.recommendation.holdout import Holdout, drawn
from llm_rerank.recommendation.inputs import FitData, FitTools, Fold, Folds, ShortHistories
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.specs import PARTS, ComponentSpec, in_use
from llm_rerank.statistics import Float64Array, first_unless_beaten
from llm_rerank.types import BoolArray, Cases, DataError, IntArray, Interactions, Items, Ragged, Scorer

MOST_CASES_FOR_TUNING = 1_000
"""More users of fold F than this are drawn from where settings are chosen."""

SHORT = (0, 1, 2, 5)
"""Events left of a history that is cut short, so that the blend learns what to do with users who have done little.

Held-out users are seldom such: who is held out has come twice at least. A blend that whole histories alone have taught
ranks newcomers worse than what sells (benchmarks/short_histories.py).
"""

MOST_SHORT_HISTORIES = 2_000
"""More held-out users than this are drawn from whose histories are cut short."""


@dataclass(frozen=True)
class HeldOutCases:
    """Cases of the held-out users as of the cut, and what may be known then: nothing outside ``past``.

    items: with the texts of then. seen: items that each user had before. in_f: cases of fold F, bool, shape (n_cases,);
    the others are fold G.
    """

    past: Interactions
    items: Items
    cases: Cases
    seen: Ragged
    statistics: ItemStatistics
    in_f: BoolArray

    @classmethod
    def of(cls, data: FitData, tools: FitTools, holdout: Holdout) -> Self:
        """Build them; users fall into the folds by a hash of their id."""
        targets, past = holdout.targets, holdout.past
        items = tools.render(data.items, past, holdout.as_of)
        cases = build_cases(past, targets.users, targets.times, targets=targets.targets)
        seen = seen_items(past, targets.users, targets.times)
        sentiment = data.sentiment[holdout.past_rows]
        statistics = ItemStatistics.from_events(past, items, holdout.as_of, sentiment=sentiment)
        in_f = hash_users(data.events.user_ids[targets.users], 2, salt=f"fold-{tools.config.seed}") == 0
        return cls(past, items, cases, seen, statistics, in_f)

    def fit_components(
        self,
        specs: Sequence[ComponentSpec],
        tools: FitTools,
        log: FitLog,
        settings: Mapping[str, Mapping[str, Any]],
    ) -> list[Component]:
        """Fit each component, its settings chosen from the grid by NDCG@10 over the catalogue on fold F.

        settings: chosen already, by component's name.
        """
        # drawn, for users are numbered as they came: the first ones are the shop's oldest customers
        rows = drawn(np.flatnonzero(self.in_f), MOST_CASES_FOR_TUNING, tools.config.seed)
        tuning, tuning_seen = self.cases.take(rows), self.seen.take(rows)
        components = []
        with log.progress(len(specs), "components") as bar:
            for spec in specs:
                log.step(spec.name)
                if spec.name in settings:
                    spec = replace(spec, grid=[settings[spec.name]], decays=())
                elif not len(tuning):
                    spec = replace(spec, grid=spec.grid[:1], decays=())
                scorer, chosen, ndcg = tune(spec, self.past, self.items, tuning, tuning_seen, tools.config.seed)
                if spec.n_settings > 1:
                    log.say(f"{spec.name}: {chosen} of {spec.n_settings} settings (NDCG@10 {ndcg:.4f} on fold F)")
                components.append(Component(scorer, spec.group, spec.retrieves, spec.blends, chosen))
                bar.update(1)
        return components

    def score(self, components: Sequence[Component], tools: FitTools, log: FitLog) -> Folds:
        """Retrieve candidates with these components and score them, for some cases by a short history too."""
        n_items, seed = len(self.items), tools.config.seed
        cut = drawn(np.flatnonzero(self.cases.history.lengths > 0), MOST_SHORT_HISTORIES, seed)
        short = with_newest(self.cases.take(cut), short_lengths(self.cases.history.lengths[cut], seed))

        def scored(cases: Cases, seen: Ragged, done: Callable[[int], None]) -> Fold:
            found = retrieve_and_score(
                components,
                cases,
                reference_items(n_items, seed),
                n_items,
                candidates_per_source=tools.config.candidates_per_source,
                seen=seen,
                progress=done,
            )
            return Fold(found, seen, pair_features(found.cases, self.statistics, self.items))

        log.step("score held-out cases")
        with log.progress(len(self.cases) + len(short), "scoring") as bar:
            whole = scored(self.cases, self.seen, bar.update)
            of_short = ShortHistories(scored(short, self.seen.take(cut), bar.update), cut)
        return Folds(replace(whole, short=of_short), self.in_f)


def short_lengths(lengths: IntArray, seed: int) -> IntArray:
    """Draw to how many of its newest events each history is cut: one of ``SHORT`` below its length, evenly.

    lengths: int64, shape (n_cases,), 1 or more. Returns int64, shape (n_cases,).
    """
    n_shorter = np.searchsorted(SHORT, lengths)
    return np.array(SHORT, dtype=np.int64)[np.random.default_rng(seed).integers(n_shorter)]


def fit_and_score_holdout(
    data: FitData, tools: FitTools, holdout: Holdout, log: FitLog
) -> tuple[list[Component], Items, Fold, Fold]:
    """Fit all components, every part among them, on the past and score the held-out cases.

    Returns the components, the items as rendered for the past, and the folds F (fusion) and G (report and cut).
    """
    held_out = HeldOutCases.of(data, tools, holdout)
    components = held_out.fit_components(in_use(tools.specs, PARTS), tools, log, {})
    folds = held_out.score(components, tools, log)
    return components, held_out.items, folds.f, folds.g


def tune(
    spec: ComponentSpec, past: Interactions, items: Items, cases: Cases, seen: Ragged, seed: int
) -> tuple[Scorer, dict[str, Any], float]:
    """Fit a spec with each of its settings; returns the chosen scorer, its settings and its NDCG@10.

    Chosen is the first, the default, unless another beats it by more than a standard error. NDCG is over the whole
    catalogue without the seen items. With a single setting nothing is scored and it is NaN.
    Raises DataError where settings cannot be compared: the scorer does not score the catalogue.
    """
    values: list[Float64Array] = []
    for settings in spec.grid:
        scorer = spec.make(**settings).fit(past, items, seed=seed)
        if spec.n_settings == 1:
            return scorer, dict(settings), float("nan")
        if not scores_catalogue(scorer):
            raise DataError(
                f"component {spec.name!r} has {spec.n_settings} settings to choose from, and its scorer no "
                "score_catalogue to compare them by; give it one, or a spec with a single setting and no decays"
            )
        for decay in spec.decays or (None,):
            if decay is not None:
                scorer.decay = decay  # type: ignore[attr-defined]  # read when scoring only
                settings = {**settings, "decay": decay}
            top = retrieve(scorer, cases, 10, exclude=seen)
            values.append(ndcg_at_k(hit_matrix(top, cases.targets, 10), cases.targets.lengths, 10))
            if first_unless_beaten(np.stack(values)) == len(values) - 1:  # only the chosen one is kept in memory
                chosen = copy(scorer), dict(settings), float(values[-1].mean())  # the arrays are shared, not the decay
    return chosen
