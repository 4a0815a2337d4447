"""Which class a saved component has: the library's by a fixed table, one's own by the spec that is given again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from llm_rerank.data.vectors import is_vector_name
from llm_rerank.recommendation.components import Component
from llm_rerank.recommendation.specs import ComponentSpec
from llm_rerank.types import Scorer, StorageError

SCORERS = {
    "als": ("llm_rerank.models.collaborative.als", "ALS"),
    "cross_encoder": ("llm_rerank.models.cross_encoder.scorer", "HistoryCrossEncoder"),
    "ease": ("llm_rerank.models.collaborative.ease", "EASE"),
    "item_knn": ("llm_rerank.models.collaborative.item_item", "ItemKNN"),
    "language_model": ("llm_rerank.models.language_model.scorer", "LanguageModelScorer"),
    "lexical": ("llm_rerank.models.semantic.lexical", "LexicalScorer"),
    "neural": ("llm_rerank.models.collaborative.neural", "NeuralScorer"),
    "popularity": ("llm_rerank.models.collaborative.popularity", "Popularity"),
    "recent_popularity": ("llm_rerank.models.collaborative.popularity", "RecentPopularity"),
    "semantic": ("llm_rerank.models.semantic.similarity", "SemanticScorer"),
    "sequence": ("llm_rerank.models.collaborative.sequence", "SequenceScorer"),
    "sgd_mf": ("llm_rerank.models.collaborative.factorization", "SGDMatrixFactorization"),
    "text_ease": ("llm_rerank.models.collaborative.text_ease", "TextAwareEASE"),
    "user_knn": ("llm_rerank.models.collaborative.neighbours", "UserKNN"),
}
"""Where the class of each component lives: a fixed table, so that a saved folder can name no code of its own."""

VECTOR_SCORER = ("llm_rerank.models.semantic.media", "VectorScorer")
"""Class of those that are named after a column of vectors."""

_PLAIN_NAME = re.compile(r"[\w-]+")


def library_class(name: str) -> type[Scorer] | None:
    """Class of the library's component of that name; None: there is none."""
    if name not in SCORERS and not is_vector_name(name):
        return None
    module, attribute = SCORERS.get(name, VECTOR_SCORER)
    return getattr(import_module(module), attribute)


def check_saveable(component: Component) -> None:
    """Raise StorageError for a component of one's own that has no ``save`` and ``load``, or whose name is no file's."""
    if not _PLAIN_NAME.fullmatch(component.name):
        raise StorageError(
            f"component {component.name!r} cannot be saved under its name; use letters, digits, '_' and '-'"
        )
    lacking = [name for name in ("save", "load") if not callable(getattr(component.scorer, name, None))]
    if lacking:
        raise StorageError(
            f"component {component.name!r} cannot be saved: {type(component.scorer).__name__} has no {lacking[0]}; "
            "give it save(folder) and a classmethod load(folder), as docs/scorers.md shows"
        )


def loader(entry: Mapping[str, Any], specs: Sequence[ComponentSpec]) -> Callable[[Path], Scorer]:
    """Find what loads a saved component: the library's class, or one's own as its spec makes it."""
    name = entry["name"]
    known = library_class(name)
    if known is not None and not entry.get("own"):
        return known.load
    for spec in specs:
        if spec.name == name:
            return spec.make(**entry["settings"]).load
    raise StorageError(
        f"saved component {name!r} is none of the library's, and a folder can name no code: give the specs of the fit, "
        "Reranker.load(folder, components=[…])"
    )
