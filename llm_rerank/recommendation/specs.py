"""Which components a fit makes and what it tries of each, by the size of the catalogue, encoder and settings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from llm_rerank.config import RerankerConfig
from llm_rerank.recommendation.components import Group
from llm_rerank.types import Encoder, Interactions, Scorer

MOST_ITEMS_FOR_EASE = 20_000
"""Above this EASE's dense inverse (n² × 4 bytes, n³ time) gives way to sparse co-occurrence."""

MOST_ITEMS_FOR_NETS = 50_000
"""Above this the full softmax of the sequence nets is too dear."""

DECAYS = (0.2, 0.05)
"""A visit: for histories of a few visits, and of a hundred."""

WHITENED_OR_NOT: Sequence[Mapping[str, Any]] = ({}, {"whiten": False})
"""Whitening tells near texts apart in a large catalogue, and hurts where there are only a few themes."""

PARTS = ("sequence", "vectors", "semantic")
"""Components that are not taken on trust, in the order in which they are tried; each has its setting in
``RerankerConfig``, and the cross-encoder comes after them."""


@dataclass(frozen=True)
class ComponentSpec:
    """How one component is made and tuned.

    make: builds an unfitted scorer from settings. grid: settings tried in a fit, the first is the default. decays:
    values of the scorer's ``decay`` tried with each, which needs no other fit; empty: its own default only.
    retrieves: its best items join the candidates. blends: its score enters the fusion.
    part: one of ``PARTS``, which is measured before it joins; None: always there. A part's spec takes the place of one
    of the same name, and keeps the settings that were chosen for that one.
    """

    name: str
    group: Group
    make: Callable[..., Scorer]
    grid: Sequence[Mapping[str, Any]] = field(default_factory=lambda: [{}])
    decays: Sequence[float] = ()
    retrieves: bool = True
    blends: bool = True
    part: str | None = None

    @property
    def n_settings(self) -> int:
        """Number of settings that tuning tries."""
        return len(self.grid) * max(len(self.decays), 1)


def default_specs(n_items: int, *, encoder: Encoder | None, text: bool = True) -> list[ComponentSpec]:
    """Components of a fit, by the size of the catalogue; those of ``PARTS`` last.

    encoder: None: no language model. text: False: behaviour only, nothing reads what the items say.
    """
    from llm_rerank.models.collaborative.als import ALS
    from llm_rerank.models.collaborative.item_item import ItemKNN
    from llm_rerank.models.collaborative.popularity import RecentPopularity
    from llm_rerank.models.collaborative.sequence import SequenceScorer
    from llm_rerank.models.semantic.lexical import LexicalScorer
    from llm_rerank.models.semantic.similarity import SemanticScorer

    specs: list[ComponentSpec] = []
    if n_items <= MOST_ITEMS_FOR_EASE:
        specs.append(_text_ease(None, DECAYS) if text else _ease(DECAYS))
    settings = settings_grid(("confidence", "regularization"), [(200, 300), (40, 30), (10, 30)])
    specs.append(ComponentSpec("als", "collaborative", ALS, settings, DECAYS))
    settings = settings_grid(("candidate_exponent",), [(0.1,), (0.4,), (0.7,)])
    specs.append(ComponentSpec("item_knn", "collaborative", ItemKNN, settings, DECAYS))
    if text:
        specs.append(ComponentSpec("lexical", "semantic", LexicalScorer, decays=DECAYS))
    # popularity enters the fusion through the sales features; here it only brings candidates
    specs.append(ComponentSpec("recent_popularity", "collaborative", RecentPopularity, blends=False))
    if n_items <= MOST_ITEMS_FOR_NETS:
        # words or ids, never the encoder: its vectors gave the nets nothing (benchmarks/sequence_gain.py)
        specs.append(ComponentSpec("sequence", "collaborative", partial(SequenceScorer, text=text), part="sequence"))
    if text and encoder is not None:
        if n_items <= MOST_ITEMS_FOR_EASE:
            specs.append(replace(_text_ease(encoder, DECAYS), part="semantic"))
        make_semantic = partial(SemanticScorer, encoder=encoder)
        specs.append(ComponentSpec("semantic", "semantic", make_semantic, WHITENED_OR_NOT, DECAYS, part="semantic"))
    return specs


def specs_for(
    config: RerankerConfig,
    events: Interactions,
    encoder: Encoder | None,
    vectors: Iterable[str] = (),
    *,
    text: bool = True,
) -> list[ComponentSpec]:
    """Leave out of the default components what a shop has no use for, and the parts that the settings switch off.

    Histories are read by their words in text-aware EASE already, where the catalogue is not too large for it; there
    "lexical" is for searches, where there are any. vectors: names of those that the shop brings (``Items.vectors``).
    text: whether any item has a text to read.
    """
    specs = [*default_specs(events.n_items, encoder=encoder, text=text), *map(_vector_spec, vectors)]
    if events.n_items <= MOST_ITEMS_FOR_EASE and not events.queries.astype(bool).any():
        specs = [spec for spec in specs if spec.name != "lexical"]
    return [spec for spec in specs if spec.part is None or getattr(config, spec.part) != "off"]


def in_use(specs: Sequence[ComponentSpec], parts: Collection[str]) -> list[ComponentSpec]:
    """Specs of a fit with these parts: one a name, a part's in the place of the one without."""
    by_name: dict[str, ComponentSpec] = {}
    for spec in specs:
        if spec.part is None or spec.part in parts:
            by_name[spec.name] = spec
    return list(by_name.values())


def settings_grid(names: Sequence[str], rows: Sequence[Sequence[float]]) -> list[dict[str, float]]:
    """Name each row's values: one mapping of settings a row."""
    return [dict(zip(names, map(float, row), strict=True)) for row in rows]


def _text_ease(encoder: Encoder | None, decays: Sequence[float]) -> ComponentSpec:
    from llm_rerank.models.collaborative.text_ease import TextAwareEASE
    from llm_rerank.models.collaborative.text_kernel import TextKernel

    # the last row suits dense baskets, where neither order nor rarity tells: completejourney .050 → .054
    settings = settings_grid(
        ("regularization", "text_weight", "pair_decay", "support_exponent"),
        [(80, 7, 0.1, 0.1), (250, 30, 0.1, 0.1), (800, 30, 0.1, 0.1), (800, 7, 0, 0)],
    )
    make = partial(TextAwareEASE, kernel=TextKernel(encoder=encoder))
    return ComponentSpec("text_ease", "collaborative", make, settings, decays)


def _vector_spec(name: str) -> ComponentSpec:
    from llm_rerank.models.semantic.media import VectorScorer

    make = partial(VectorScorer, name)
    return ComponentSpec(name, "semantic", make, WHITENED_OR_NOT, DECAYS, part="vectors")


def _ease(decays: Sequence[float]) -> ComponentSpec:
    from llm_rerank.models.collaborative.ease import EASE

    settings = settings_grid(("regularization",), [(200,), (50,), (800,), (3200,)])
    return ComponentSpec("ease", "collaborative", EASE, settings, decays)
