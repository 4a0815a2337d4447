"""The systems of the ranking benchmark and the settings that each is tuned over: one table, equal numbers.

A *single* system is one scorer. It gets ``N_SETTINGS`` settings (popularity has none), decay of the history included,
and the best NDCG@10 on the validation split is taken. A *fused* system is a ``Reranker``, which tunes itself inside
its own fit and never sees the trial it is judged on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from llm_rerank.config import RerankerConfig
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.evaluation.protocols import Trial
from llm_rerank.models.collaborative.als import ALS
from llm_rerank.models.collaborative.ease import EASE
from llm_rerank.models.collaborative.factorization import SGDMatrixFactorization
from llm_rerank.models.collaborative.item_item import ItemKNN
from llm_rerank.models.collaborative.neighbours import UserKNN
from llm_rerank.models.collaborative.popularity import Popularity, RecentPopularity
from llm_rerank.models.collaborative.text_ease import TextAwareEASE
from llm_rerank.models.collaborative.text_kernel import TextKernel
from llm_rerank.recommendation.components import standardize_rows
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.specs import default_specs
from llm_rerank.types import Cases, CatalogueScorer, Encoder, FloatArray

Settings = Mapping[str, Any]

N_SETTINGS = 12
DECAYS = (0.0, 0.05, 0.2)
"""Fading of a history a visit: none; for histories of a hundred visits; for histories of a few."""

TEXT_FEATURES = ("brand_affinity", "category_affinity", "sentiment")
"""Pair features that read what items or reviews say."""


@dataclass
class Tools:
    """What single systems share, made when first asked for: the encoder with its memory, and the text kernel.

    cache: folder that keeps the vectors for later runs; None: in memory only.
    """

    cache: Path | None = None
    _encoder: Encoder | None = field(default=None, init=False)
    _kernel: TextKernel | None = field(default=None, init=False)

    def encoder(self) -> Encoder:
        """Return the default sentence encoder, which remembers what it has encoded."""
        if self._encoder is None:
            from llm_rerank.models.semantic.cache import CachedEncoder
            from llm_rerank.models.semantic.encoder import SentenceEncoder

            self._encoder = CachedEncoder(SentenceEncoder(), self.cache)
        return self._encoder

    def kernel(self) -> TextKernel:
        """Return one kernel for all settings of text-aware EASE; it computes itself anew where texts change."""
        if self._kernel is None:
            self._kernel = TextKernel(self.encoder())
        return self._kernel

    def forget_kernel(self) -> None:
        """Let the next fit compute the kernel, so that its seconds hold that work."""
        self._kernel = None


@dataclass(frozen=True)
class Single:
    """A scorer and its grid.

    read_when_scoring: settings that a fitted scorer takes as attributes, so that they need no fit of their own.
    drawn: a fit depends on the seed. encodes: a fit needs the encoder. needs_clock: on plain positions all settings
    are one, so only the first is run.
    """

    make: Callable[[Tools, Settings], CatalogueScorer]
    grid: Sequence[Settings]
    read_when_scoring: tuple[str, ...] = ()
    drawn: bool = False
    encodes: bool = False
    needs_clock: bool = False


def _grid(**values: Sequence[Any]) -> list[Settings]:
    return [dict(zip(values, combination, strict=True)) for combination in product(*values.values())]


def _semantic(tools: Tools, settings: Settings) -> CatalogueScorer:
    from llm_rerank.models.semantic.similarity import SemanticScorer

    return SemanticScorer(tools.encoder(), **settings)


def _sequence(tools: Tools, settings: Settings) -> CatalogueScorer:
    from llm_rerank.models.collaborative.sequence import SequenceScorer

    return SequenceScorer(**settings)


def _neural(tools: Tools, settings: Settings) -> CatalogueScorer:
    from llm_rerank.models.collaborative.neural import NeuralScorer

    return NeuralScorer(**settings)


SINGLES: dict[str, Single] = {
    "popularity": Single(lambda tools, s: Popularity(), [{}]),
    "recent_popularity": Single(
        lambda tools, s: RecentPopularity(**s),
        [{"half_life_days": days} for days in (2, 4, 7, 14, 28, 56, 112)]
        + [{"window_days": days} for days in (3, 7, 14, 28, 56)],
        needs_clock=True,
    ),
    "item_knn": Single(
        lambda tools, s: ItemKNN(**s),
        _grid(candidate_exponent=(0.1, 0.4, 0.7), pair_decay=(0.0, 0.1), decay=DECAYS[1:]),
        read_when_scoring=("decay",),
    ),
    "user_knn": Single(
        lambda tools, s: UserKNN(**s),
        _grid(n_neighbours=(100, 400, 1600), candidate_exponent=(0.1, 0.4), decay=DECAYS[1:]),
        read_when_scoring=("n_neighbours", "candidate_exponent", "decay"),
    ),
    "sgd_mf": Single(
        lambda tools, s: SGDMatrixFactorization(**s),
        _grid(embedding_size=(64, 128), negative_weight=(2.0, 8.0), decay=(0.05, 0.2, 0.6)),
        read_when_scoring=("decay",),
        drawn=True,
    ),
    "als": Single(
        lambda tools, s: ALS(**s),
        [
            {"confidence": confidence, "regularization": regularization, "decay": decay}
            for confidence, regularization in ((10.0, 30.0), (40.0, 30.0), (100.0, 100.0), (200.0, 300.0))
            for decay in (0.05, 0.2, 0.45)
        ],
        read_when_scoring=("decay",),
        drawn=True,
    ),
    "ease": Single(
        lambda tools, s: EASE(**s),
        _grid(regularization=(50.0, 200.0, 800.0, 3200.0), decay=DECAYS),
        read_when_scoring=("decay",),
    ),
    "text_ease": Single(
        lambda tools, s: TextAwareEASE(kernel=tools.kernel(), **s),
        _grid(regularization=(80.0, 250.0, 800.0), text_weight=(7.0, 30.0), decay=DECAYS[1:]),
        read_when_scoring=("decay",),
        encodes=True,
    ),
    "semantic": Single(
        _semantic,
        _grid(whiten=(True, False), greatest_weight=(0.25, 1.0), decay=(0.05, 0.2, 0.5)),
        read_when_scoring=("greatest_weight", "decay"),
        encodes=True,
    ),
    "sequence": Single(
        _sequence,
        _grid(epochs=(3, 5, 8), dropout=(0.2, 0.4), text_dropout=(0.0, 0.2)),
        drawn=True,
    ),
    "neural": Single(
        _neural,
        _grid(embedding_size=(32, 128), negative_weight=(5.0, 20.0), decay=DECAYS),
        drawn=True,  # decay is read in training too
    ),
}

Z_SUM_PARTS = ("text_ease", "als", "item_knn", "semantic")
"""The scorers that the plain sum adds: those that a reranker blended before the nets joined."""


def z_scores(scores: FloatArray) -> FloatArray:
    """Standardise each case's scores over the catalogue; unknown counts as the mean, 0. Shape (n_cases, n_items)."""
    mean, deviation = standardize_rows(scores, np.arange(scores.shape[1], dtype=np.int64))
    return np.nan_to_num((scores - mean) / deviation, nan=0.0)


@dataclass(frozen=True)
class ZSum:
    """The plainest fusion: z-scores over the catalogue, case by case, summed; unknown counts as the mean, 0."""

    scorers: Sequence[CatalogueScorer]

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items)."""
        total: FloatArray | None = None
        for scorer in self.scorers:
            known = z_scores(scorer.score_catalogue(cases))
            total = known if total is None else total + known
        assert total is not None
        return total


Fused = Callable[[Trial, int, str | None], Reranker]
"""From a trial, a seed and the folder that keeps encoded texts."""


def _fused(trial: Trial, seed: int, cache: str | None) -> Reranker:
    return Reranker(RerankerConfig(cache_folder=cache, seed=seed), verbose=False)


def _fused_without_cross_encoder(trial: Trial, seed: int, cache: str | None) -> Reranker:
    config = RerankerConfig(cache_folder=cache, semantic="always", cross_encoder="off", seed=seed)
    return Reranker(config, verbose=False)


def _fused_with_cross_encoder(trial: Trial, seed: int, cache: str | None) -> Reranker:
    config = RerankerConfig(cache_folder=cache, semantic="always", cross_encoder="always", seed=seed)
    return Reranker(config, verbose=False)


def _fused_without_nets(trial: Trial, seed: int, cache: str | None) -> Reranker:
    return Reranker(RerankerConfig(encoder=None, sequence="off", seed=seed), verbose=False)


def _fused_without_language_model(trial: Trial, seed: int, cache: str | None) -> Reranker:
    return Reranker(RerankerConfig(encoder=None, seed=seed), verbose=False)


def _fused_behaviour(trial: Trial, seed: int, cache: str | None) -> Reranker:
    return Reranker(
        RerankerConfig(encoder=None, seed=seed),
        components=default_specs(len(trial.items), encoder=None, text=False),
        features=[name for name in PAIR_FEATURES if name not in TEXT_FEATURES],
        verbose=False,
    )


def _fused_without_item_support(trial: Trial, seed: int, cache: str | None) -> Reranker:
    features = [name for name in PAIR_FEATURES if name != "item_support"]
    # beside fused_without_cross_encoder: one thing less, not two
    config = RerankerConfig(cache_folder=cache, semantic="always", cross_encoder="off", seed=seed)
    return Reranker(config, features=features, verbose=False)


FUSED: dict[str, Fused] = {
    "fused_behaviour": _fused_behaviour,
    "fused_without_nets": _fused_without_nets,
    "fused_without_language_model": _fused_without_language_model,
    "fused_without_item_support": _fused_without_item_support,
    "fused_without_cross_encoder": _fused_without_cross_encoder,
    "fused_with_cross_encoder": _fused_with_cross_encoder,
    "fused": _fused,
}

K_CORE = ("amazon_scientific", "amazon_musical_instruments", "amazon_gift_cards")
"""Data sets where every item has at least five events: an item's support in the past tells whether it is a target."""


def system_names(dataset: str) -> list[str]:
    """Return the systems that a data set is measured on; the one without item support where that leaks."""
    names = [*SINGLES, "z_sum", *FUSED]
    return names if dataset in K_CORE else [name for name in names if name != "fused_without_item_support"]
