"""Ways of fine-tuning the cross-encoder, each of which differs from the library's, or from "frozen", in one thing.

"frozen" trains attention and head only, over texts that all layers of the encoder read once: seconds, not minutes, so
that many ways and several seeds can be tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks._fine_tuning_rest import Rest
from llm_rerank.data.cases import build_cases
from llm_rerank.data.splits import first_of_pair, visit_starts
from llm_rerank.models.cross_encoder.discarding import STATES_PREFIX
from llm_rerank.models.cross_encoder.history_encoder import TransformerLayer
from llm_rerank.models.cross_encoder.item_states import ItemReader
from llm_rerank.models.cross_encoder.lists import TrainingLists, sample_negatives
from llm_rerank.models.cross_encoder.pairwise import PairwiseCrossEncoder
from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder
from llm_rerank.models.cross_encoder.state_cache import StateCache, fingerprint_of
from llm_rerank.models.cross_encoder.training import fine_tune
from llm_rerank.models.cross_encoder.training_settings import TrainingSettings
from llm_rerank.recommendation.candidates import ranks_in_row
from llm_rerank.types import BoolArray, Cases, Encoder, FloatArray, Interactions, Items, Ragged

SALES_IN_WORDS = ("never sold", "rarely sold", "sold now and then", "often sold", "sold most")


@dataclass(frozen=True)
class Variant:
    """What differs from the library's own way.

    model, training: settings. with_offset: train over the blend; else as if nothing were known. texts: other texts of
    the items, from what was sold before. lists: other training lists. prepare: what is done to the model before.
    frozen: no layer is trained. pairwise: settings of the conventional cross-encoder, all layers trained on history and
    candidate as one text; the library's lists, offset and lists a step; None: another way.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    with_offset: bool = True
    texts: Callable[[Items, Interactions], Items] | None = None
    lists: Callable[[Rest, int], TrainingLists] | None = None
    prepare: Callable[[HistoryCrossEncoder, Rest, Items, TrainingSettings], None] | None = None
    frozen: bool = False
    pairwise: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Tuned:
    """Scores of the judged lists' candidates (NaN: none), how the fine-tuning went, and its seconds.

    evaluations: of each evaluation on the validation lists, its step and its loss, maybe more.
    """

    scores: FloatArray
    n_lists: int
    best_step: int
    evaluations: list[dict[str, float]]
    seconds: float


def fine_tuned(
    variant: Variant,
    rest: Rest,
    encoder: Encoder | None,
    *,
    steps: int,
    seed: int,
    cache: str | None = None,
    say: Callable[[str], None] = print,
) -> Tuned:
    """Fine-tune one way and score the judged lists."""
    if variant.pairwise is not None:
        settings = TrainingSettings(**{"steps": steps, "seed": seed, **variant.training})
        return pairwise_tuned(rest, settings, variant.pairwise, say=say)
    began = time.perf_counter()
    training = rest.lists.training if variant.lists is None else variant.lists(rest, seed)
    validation = rest.lists.validation
    if not variant.with_offset:
        training, validation = (replace(part, offsets=np.zeros_like(part.offsets)) for part in (training, validation))
    then, later = rest.lists.items, rest.items
    if variant.texts is not None:
        then, later = variant.texts(then, rest.peeled), variant.texts(later, rest.past)
    model = HistoryCrossEncoder(encoder, cache_folder=cache, seed=seed, **variant.model)
    settings = TrainingSettings(**{"steps": steps, "seed": seed, **variant.training})
    if variant.frozen:
        model._reader = WholeReader(model, cache)  # in place of the one that it would make on first use
    if variant.prepare is not None:
        variant.prepare(model, rest, then, settings)
    tuning = fine_tune(model, training, validation, then, settings, say=say)
    seconds = time.perf_counter() - began
    evaluations = [{key: entry[key] for key in ("step", "loss", "ndcg@10")} for entry in tuning.log]
    scores = model.fit(rest.past, later, seed=seed).score(rest.judged.cases)
    return Tuned(scores, tuning.n_lists, tuning.best_step, evaluations, seconds)


def pairwise_tuned(
    rest: Rest, settings: TrainingSettings, model_settings: Mapping[str, Any], *, say: Callable[[str], None] = print
) -> Tuned:
    """Fine-tune the conventional cross-encoder on the library's lists and score the judged ones.

    Its negatives are drawn once, for early stopping too: whole lists would take most of the time.
    """
    began = time.perf_counter()
    training, validation = (
        sample_negatives(part, settings.n_negatives, settings.seed)
        for part in (rest.lists.training, rest.lists.validation)
    )
    model = PairwiseCrossEncoder.from_encoder(**model_settings)
    tuning = model.fine_tune(
        training,
        rest.lists.items.texts,
        validation=validation,
        steps=settings.steps,
        lists_per_step=settings.lists_per_step,
        evaluate_every=settings.evaluate_every,
        patience=settings.patience,
        seed=settings.seed,
    )
    seconds = time.perf_counter() - began
    say(tuning.description)
    losses = zip(tuning.validation_steps.tolist(), tuning.validation_losses.tolist(), strict=True)
    evaluations = [{"step": step, "loss": loss} for step, loss in losses]
    scores = model.fit(rest.past, rest.items, seed=settings.seed).score(rest.judged.cases)
    return Tuned(scores, len(training), tuning.kept_step, evaluations, seconds)


# ------------------------------------------------------------- texts


def titles_only(items: Items, past: Interactions) -> Items:
    """Read nothing of an item but its title."""
    return items.with_texts(items.frame["title"].tolist())


def sales_first(items: Items, past: Interactions) -> Items:
    """Put how often an item was sold in front of its text, in words: by quarters of the items sold at all."""
    sold = np.bincount(past.items[past.items >= 0], minlength=len(items))
    quarters = np.quantile(sold[sold > 0], (0.25, 0.5, 0.75))
    words = np.where(sold > 0, 1 + np.searchsorted(quarters, sold, side="left"), 0)
    return items.with_texts([f"{SALES_IN_WORDS[w]}. {text}" for w, text in zip(words, items.texts, strict=True)])


# ------------------------------------------------------------- lists


def hard_targets(rest: Rest, seed: int) -> TrainingLists:
    """Keep the lists whose target the blend does not rank among its first ten."""
    lists = rest.lists.training
    return lists.take(np.flatnonzero(ranks_in_row(lists.offsets, lists.cases.candidates)[lists.positive] > 10))


def hard_negatives(rest: Rest, seed: int) -> TrainingLists:
    """Keep the target and the blend's first thirty of each list: what negatives are drawn from."""
    lists = rest.lists.training
    kept = lists.positive | (ranks_in_row(lists.offsets, lists.cases.candidates) <= 30)
    return _only(lists, kept)


def two_targets_a_user(rest: Rest, seed: int) -> TrainingLists:
    """Join the lists of the last item before the hold-out and of the one before that."""
    parts = [rest.lists.training, rest.earlier.training]
    cases = [part.cases for part in parts]
    return TrainingLists(
        Cases(
            user_rows=np.concatenate([part.user_rows for part in cases]),
            times=np.concatenate([part.times for part in cases]),
            history=_joined([part.history for part in cases]),
            history_weights=np.concatenate([part.history_weights for part in cases]),
            history_times=np.concatenate([part.history_times for part in cases]),
            queries=[query for part in cases for query in part.queries],
            candidates=_joined([part.candidates for part in cases]),
            targets=_joined([part.targets for part in cases]),
        ),
        np.concatenate([part.positive for part in parts]),
        np.concatenate([part.offsets for part in parts]),
    )


def dropped_history(rest: Rest, seed: int, share: float = 0.2) -> TrainingLists:
    """Drop each event of each history with a chance, once: a fine-tuning of 120 steps sees a list once or twice."""
    lists, cases = rest.lists.training, rest.lists.training.cases
    kept = np.random.default_rng([seed, 1]).random(len(cases.history.values)) >= share
    lengths = np.bincount(cases.history.row_of_value[kept], minlength=len(cases)).astype(np.int64)
    history = Ragged.from_lengths(cases.history.values[kept], lengths)
    weights, times = cases.history_weights[kept], cases.history_times[kept]
    return replace(lists, cases=replace(cases, history=history, history_weights=weights, history_times=times))


def _only(lists: TrainingLists, kept: BoolArray) -> TrainingLists:
    rows = lists.cases.candidates
    lengths = np.bincount(rows.row_of_value[kept], minlength=len(rows)).astype(np.int64)
    cases = lists.cases.with_candidates(Ragged.from_lengths(rows.values[kept], lengths))
    return TrainingLists(cases, lists.positive[kept], lists.offsets[kept])


def _joined(parts: list[Ragged]) -> Ragged:
    return Ragged.from_lengths(
        np.concatenate([part.values for part in parts]), np.concatenate([part.lengths for part in parts])
    )


# ------------------------------------------------------------- models


class WholeReader(ItemReader):
    """The frozen part with all layers in it: none is left above it."""

    def __init__(self, model: HistoryCrossEncoder, cache: str | None) -> None:
        super().__init__(model.model, n_upper=1, item_tokens=model.item_tokens, device=model.device)
        last = TransformerLayer(self.shape)
        last.load_state_dict(self.upper_weights.pop())
        self._lower.append(last.eval().requires_grad_(False).to(self.device))
        self.shape = replace(self.shape, n_lower=self.shape.n_lower + 1, n_upper=0)
        self.fingerprint = fingerprint_of("all layers", self.fingerprint)
        if cache is not None:
            folder = Path(cache) / f"{STATES_PREFIX}{self.fingerprint[:16]}"
            self.cache = StateCache(folder, fingerprint=self.fingerprint, state_size=self.shape.hidden_size)


class LowRank(nn.Module):
    """A weight plus a product of rank ``rank`` that starts at 0 (LoRA: Hu et al., 2022)."""

    def __init__(self, n_out: int, n_in: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, n_in) / rank)
        self.up = nn.Parameter(torch.zeros(n_out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight: shape (n_out, n_in)."""
        return weight + self.up @ self.down


def low_rank(model: HistoryCrossEncoder, rest: Rest, items: Items, settings: TrainingSettings, rank: int = 8) -> None:
    """Freeze the pretrained upper layers and train a product of low rank beside each of their matrices."""
    layers = model.network.layers.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        for module in [part for part in layers.modules() if isinstance(part, nn.Linear)]:
            shape = module.weight.shape
            parametrize.register_parametrization(module, "weight", LowRank(shape[0], shape[1], rank))


def after_all_purchases(
    model: HistoryCrossEncoder, rest: Rest, items: Items, settings: TrainingSettings, steps: int
) -> None:
    """Train first on every purchase of every user against items drawn by their sales; then the head starts at 0 again.

    Few negatives and many lists a step: what is wanted are many pairs of items bought by one user.
    """
    lists = purchase_lists(rest.peeled, settings.seed)
    order = np.random.default_rng(settings.seed).permutation(len(lists))
    n_validation = min(500, len(lists) // 5)
    first = replace(settings, steps=steps, lists_per_step=64, n_negatives=3)
    fine_tune(model, lists.take(order[n_validation:]), lists.take(order[:n_validation]), items, first)
    network = model.network
    nn.init.zeros_(network.output.weight)
    nn.init.zeros_(network.output.bias)
    nn.init.zeros_(network.greatest)
    model.training_log = []  # so that the similarity's weight is fitted anew, beside the offset


def purchase_lists(past: Interactions, seed: int, n_negatives: int = 20) -> TrainingLists:
    """Make a list for each item that a user with a history took for the first time, offset 0.

    Negatives are the items of events drawn evenly, so that an item's sales do not tell it from the positive. For data
    sets without reviews: elsewhere the positive's text may hold the user's own words.
    """
    taken = np.flatnonzero(past.positive & (past.items >= 0))
    taken = taken[first_of_pair(past.users[taken], past.items[taken], past.n_items)]
    targets = Ragged.from_lengths(past.items[taken], np.ones(len(taken), dtype=np.int64))
    decisions = visit_starts(past, past.users[taken], past.items[taken], past.times[taken])
    cases = build_cases(past, past.users[taken], decisions, targets=targets)
    cases = cases.take(np.flatnonzero(cases.history.lengths > 0))
    drawn = np.random.default_rng(seed).choice(past.items[past.items >= 0], (len(cases), n_negatives))
    rows = [[target, *np.setdiff1d(others, target)] for target, others in zip(cases.targets.values, drawn, strict=True)]
    candidates = Ragged.from_lists(rows)
    positive = np.zeros(len(candidates.values), dtype=np.bool_)
    positive[candidates.offsets[:-1]] = True
    offsets = np.zeros(len(candidates.values), dtype=np.float32)
    return TrainingLists(cases.with_candidates(candidates), positive, offsets)


LIBRARY, FROZEN = "the library's way", "frozen"
"""What the other ways differ from in one thing each: a name that begins with "frozen" from the second."""

TEXTS_AND_LISTS = {
    "sales in words": Variant(texts=sales_first),
    "titles only": Variant(texts=titles_only),
    "item_tokens 16": Variant(model={"item_tokens": 16}),
    "item_tokens 48": Variant(model={"item_tokens": 48}),
    "item_tokens 128": Variant(model={"item_tokens": 128}),
    "history_length 6": Variant(model={"history_length": 6}),
    "history_length 10": Variant(model={"history_length": 10}),
    "hard targets": Variant(lists=hard_targets),
    "hard negatives": Variant(lists=hard_negatives),
    "two targets a user": Variant(lists=two_targets_a_user),
    "history dropout .2": Variant(lists=dropped_history),
    "no offset": Variant(with_offset=False),
}
"""Ways that do not touch the layers."""

VARIANTS = {
    FROZEN: Variant(frozen=True),
    "frozen + first all purchases": Variant(prepare=partial(after_all_purchases, steps=1_000), frozen=True),
    "frozen + all purchases alone": Variant(
        lists=lambda rest, seed: purchase_lists(rest.peeled, seed),
        with_offset=False,
        training={"steps": 1_000, "lists_per_step": 64, "n_negatives": 3, "evaluate_every": 100},
        frozen=True,
    ),
    **{f"frozen + {name}": replace(variant, frozen=True) for name, variant in TEXTS_AND_LISTS.items()},
    LIBRARY: Variant(),
    "first all purchases": Variant(prepare=partial(after_all_purchases, steps=120)),
    "LoRA of rank 8": Variant(prepare=low_rank, training={"layer_learning_rate": 1e-3}),
    "n_upper 1": Variant(model={"n_upper": 1}),
    "n_upper 3": Variant(model={"n_upper": 3}),
    "token attention to the history": Variant(model={"cross_attention": True}),
    "pairwise": Variant(pairwise={}),
    "pairwise short": Variant(pairwise={"history_tokens": 120, "item_tokens": 24}, training={"n_negatives": 7}),
    "pretrained layers at rate 0": Variant(training={"layer_learning_rate": 0.0}),
    **TEXTS_AND_LISTS,
}
