"""What a cross-encoder is fine-tuned over and judged by: everything else, fitted once, and the lists that it leaves.

Everything lies inside a validation trial. Training lists come from the past of the fit's own hold-out. Judged are the
trial's cases, later ones of all its users, scored by the components of that past: no refit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks._halves import fold_of_trial
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.data.rendering import Renderer
from llm_rerank.evaluation.protocols import PROTOCOLS, LastOut, Trial, hold_out, item_support
from llm_rerank.models.cross_encoder.lists import TrainingLists
from llm_rerank.recommendation.held_out import fit_and_score_holdout
from llm_rerank.recommendation.holdout import Holdout, plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.parts import fit_fusion_stage
from llm_rerank.recommendation.planning import make_encoder, sentiment_of
from llm_rerank.recommendation.specs import specs_for
from llm_rerank.recommendation.training_lists import Lists, as_lists, build_training_lists, list_targets, peel
from llm_rerank.types import IntArray, Interactions, Items


@dataclass(frozen=True)
class Rest:
    """What all variants share.

    lists: of each list user's last item before the hold-out; earlier: of the item before that one, for training only.
    past, items: of the hold-out, what the judged scores may read. peeled: past without the lists' items and what came
    after them, what training may read. judged: the trial's cases whose target is among the blend's first 100, its
    score the offset; of several targets the best ranked. user_support: events of each judged case's history;
    item_support: users of each item of the trial's past. n_users: the trial's cases, judged or not. said: by the fit.
    """

    lists: Lists
    earlier: Lists
    past: Interactions
    items: Items
    peeled: Interactions
    judged: TrainingLists
    user_support: IntArray
    item_support: IntArray
    n_users: int
    said: tuple[str, ...]

    def drawn(self, n_judged: int, seed: int) -> Rest:
        """Judge so many lists at most, drawn evenly; users without a list become as many fewer."""
        n = len(self.judged)
        if n <= n_judged:
            return self
        rows = np.sort(np.random.default_rng(seed).permutation(n)[:n_judged])
        return replace(
            self,
            judged=self.judged.take(rows),
            user_support=self.user_support[rows],
            n_users=round(self.n_users * n_judged / n),
        )


def load_rest(dataset: str, data_dir: Path | None, *, seed: int = 0, cache: str | None = None) -> Rest:
    """Fit everything but the cross-encoder on a data set's validation trial."""
    trial = hold_out(load_dataset(dataset, data_dir), PROTOCOLS.get(dataset, LastOut()), "validation")
    return fit_rest(trial, RerankerConfig(seed=seed, cache_folder=cache))


def fit_rest(trial: Trial, config: RerankerConfig) -> Rest:
    """Fit all components and the blend on the hold-out's past; build the training lists and the judged ones."""
    encoder, log = make_encoder(config), FitLog(verbose=True)
    data = FitData(trial.past, trial.items, None, None, sentiment_of(trial.past, encoder))
    tools = FitTools(config, encoder, specs_for(config, trial.past, encoder), PAIR_FEATURES, Renderer())
    holdout = plan_holdout(data.events, config.seed, log)
    components, items, fold_f, _ = fit_and_score_holdout(data, tools, holdout, log)
    stage = fit_fusion_stage(fold_f, components, tools, len(trial.items), None).stage
    log.step("lists")
    lists = build_training_lists(data, tools, holdout, components, stage, log)
    peeled, kept = peel(holdout.past, list_targets(holdout, config.seed))  # as ``build_training_lists`` does
    before = Holdout(holdout.protocol, peeled, holdout.past_rows[kept], holdout.as_of, holdout.targets, "")
    earlier = build_training_lists(data, tools, before, components, stage, log)
    log.step("judged lists")
    fold = fold_of_trial(trial, trial.items, components, config, data.sentiment)
    judged = as_lists(fold, stage.score(fold).astype(np.float32), items)[0]
    log.finish()
    return Rest(
        lists=lists,
        earlier=earlier,
        past=holdout.past,
        items=items,
        peeled=peeled,
        judged=judged,
        user_support=judged.cases.history.lengths,
        item_support=item_support(trial.past),
        n_users=len(trial.cases),
        said=tuple(log.lines),
    )
