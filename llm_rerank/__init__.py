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
    from llm_rerank.models.semantic.images import encode_images as encode_images
    from llm_rerank.recommendation.fine_tuning import fine_tune_on_shop as fine_tune_on_shop
    from llm_rerank.recommendation.reranker import Reranker as Reranker
    from llm_rerank.types import DriftWarning as DriftWarning
    from llm_rerank.types import DroppedRowsWarning as DroppedRowsWarning

__version__ = "0.1.0"

_HOMES = {
    "DiversityConfig": "llm_rerank.config",
    "DriftWarning": "llm_rerank.types",
    "DroppedRowsWarning": "llm_rerank.types",
    "HistoryCrossEncoder": "llm_rerank.models.cross_encoder.scorer",
    "PairwiseCrossEncoder": "llm_rerank.models.cross_encoder.pairwise",
    "Reranker": "llm_rerank.recommendation.reranker",
    "RerankerConfig": "llm_rerank.config",
    "ThresholdConfig": "llm_rerank.config",
    "encode_images": "llm_rerank.models.semantic.images",
    "fine_tune_on_shop": "llm_rerank.recommendation.fine_tuning",
    "load_dataset": "llm_rerank.data.datasets",
    "read_interactions": "llm_rerank.data.readers",
    "read_items": "llm_rerank.data.readers",
}

__all__ = [
    "DiversityConfig",
    "DriftWarning",
    "DroppedRowsWarning",
    "HistoryCrossEncoder",
    "PairwiseCrossEncoder",
    "Reranker",
    "RerankerConfig",
    "ThresholdConfig",
    "__version__",
    "encode_images",
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
