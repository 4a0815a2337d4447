"""One fitted shop for all tests that only ask it questions."""

import pytest

from llm_rerank.config import RerankerConfig, ThresholdConfig
from llm_rerank.recommendation.reranker import Reranker
from tests.shops import make_shop


@pytest.fixture(scope="session")
def shop():
    return make_shop()


@pytest.fixture(scope="session")
def fitted(shop):
    """Without an encoder: what is tested here is not the language model, and fits in seconds."""
    config = RerankerConfig(
        encoder=None, sequence="off", candidates_per_source=40, threshold=ThresholdConfig("recall", 0.9)
    )
    return Reranker(config, verbose=False).fit(*shop)
