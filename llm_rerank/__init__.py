"""The second selection: rerank a recommender's candidates with what items say and what users did.

The names below are loaded when first used, so that ``import llm_rerank`` takes milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_rerank.config import DiversityConfig as DiversityConfig
    from llm_rerank.config import RerankerConfig as RerankerConfig
    from llm_rerank.config import ThresholdConfig as ThresholdConfig
    from llm_rerank.data.datasets import load_dataset as load_dataset
    from llm_rerank.data.readers import read_interactions as read_interactions
    from llm_rerank.data.readers import read_items as read_items
    from llm_rerank.evaluation.systems import evaluate_shop as evaluate_shop
    from llm_rerank.models.cross_encoder.pairwise import PairwiseCrossEncoder as PairwiseCrossEncoder
    from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder as HistoryCrossEncoder
    from llm_rerank.models.language_model.chat import ChatRanker as ChatRanker
    from llm_rerank.models.language_model.scorer import LanguageModelScorer as LanguageModelScorer
    from llm_rerank.models.semantic.images import encode_images as encode_images
    from llm_rerank.recommendation.fine_tuning import fine_tune_on_shop as fine_tune_on_shop
    from llm_rerank.recommendation.live import LiveShop as LiveShop
    from llm_rerank.recommendation.reranker import Reranker as Reranker
    from llm_rerank.recommendation.specs import ComponentSpec as ComponentSpec
    from llm_rerank.types import DataError as DataError
    from llm_rerank.types import DriftWarning as DriftWarning
    from llm_rerank.types import DroppedRowsWarning as DroppedRowsWarning
    from llm_rerank.types import NotFittedError as NotFittedError
    from llm_rerank.types import RerankError as RerankError
    from llm_rerank.types import StorageError as StorageError

__version__ = "0.1.0"

_HOMES = {
    "ChatRanker": "llm_rerank.models.language_model.chat",
    "ComponentSpec": "llm_rerank.recommendation.specs",
    "DataError": "llm_rerank.types",
    "DiversityConfig": "llm_rerank.config",
    "DriftWarning": "llm_rerank.types",
    "DroppedRowsWarning": "llm_rerank.types",
    "HistoryCrossEncoder": "llm_rerank.models.cross_encoder.scorer",
    "LanguageModelScorer": "llm_rerank.models.language_model.scorer",
    "LiveShop": "llm_rerank.recommendation.live",
    "NotFittedError": "llm_rerank.types",
    "PairwiseCrossEncoder": "llm_rerank.models.cross_encoder.pairwise",
    "RerankError": "llm_rerank.types",
    "Reranker": "llm_rerank.recommendation.reranker",
    "RerankerConfig": "llm_rerank.config",
    "StorageError": "llm_rerank.types",
    "ThresholdConfig": "llm_rerank.config",
    "encode_images": "llm_rerank.models.semantic.images",
    "evaluate_shop": "llm_rerank.evaluation.systems",
    "fine_tune_on_shop": "llm_rerank.recommendation.fine_tuning",
    "load_dataset": "llm_rerank.data.datasets",
    "read_interactions": "llm_rerank.data.readers",
    "read_items": "llm_rerank.data.readers",
}

__all__ = [
    "ChatRanker",
    "ComponentSpec",
    "DataError",
    "DiversityConfig",
    "DriftWarning",
    "DroppedRowsWarning",
    "HistoryCrossEncoder",
    "LanguageModelScorer",
    "LiveShop",
    "NotFittedError",
    "PairwiseCrossEncoder",
    "RerankError",
    "Reranker",
    "RerankerConfig",
    "StorageError",
    "ThresholdConfig",
    "__version__",
    "encode_images",
    "evaluate_shop",
    "fine_tune_on_shop",
    "load_dataset",
    "read_interactions",
    "read_items",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llm_rerank' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
