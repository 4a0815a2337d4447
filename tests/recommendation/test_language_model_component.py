"""A language model as one more component of a reranker: measured in the blend, saved with it, and read again."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.metrics import hit_matrix, ndcg_at_k
from llm_rerank.models.language_model.causal import CausalLanguageModel
from llm_rerank.models.language_model.scorer import LanguageModelScorer
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.specs import ComponentSpec, default_specs
from llm_rerank.types import Ragged
from tests.planted import planted_shop
from tests.planted_language_model import written_model


@pytest.fixture(scope="module")
def shop():
    return planted_shop(n_users=160, events_a_user=3, items_a_theme=40)


@pytest.fixture(scope="module")
def tables(shop):
    past = shop.past
    events = pd.DataFrame(
        {"user_id": past.user_ids[past.users], "item_id": shop.items.ids[past.items], "timestamp": past.times}
    )
    items = pd.DataFrame({"item_id": shop.items.ids, "title": [str(text) for text in shop.items.texts]})
    return events, items


def fitted(shop, tables, components=()):
    behaviour = [spec for spec in default_specs(len(shop.items), encoder=None, text=False) if spec.part is None]
    config = RerankerConfig(encoder=None, refit=False, candidates_per_source=30)
    return Reranker(config, components=[*behaviour, *components], verbose=False).fit(*tables)


def ndcg(result, shop):
    """NDCG@10 of the shop's cases, whose candidates were reranked."""
    code = {item: place for place, item in enumerate(shop.items.ids)}
    ranked = result.sort_values(["user_id", "rank"], kind="stable").groupby("user_id", sort=False)["item_id"]
    rows = {user: [code[item] for item in items] for user, items in ranked}
    ranking = Ragged.from_lists([rows[user][:10] for user in shop.past.user_ids[: len(shop.cases)]])
    return ndcg_at_k(hit_matrix(ranking, shop.cases.targets, 10), shop.cases.targets.lengths, 10)


def test_it_joins_the_blend_helps_where_behaviour_is_thin_and_is_saved_with_it(shop, tables, tmp_path):
    folder = written_model(tmp_path / "model", steps=120)
    model = CausalLanguageModel(str(folder), device="cpu", dtype="float32")
    spec = ComponentSpec(
        "language_model", "semantic", partial(LanguageModelScorer, model, history_length=4), retrieves=False
    )
    candidates = pd.DataFrame(
        {
            "user_id": shop.past.user_ids[shop.cases.candidates.row_of_value],
            "item_id": shop.items.ids[shop.cases.candidates.values],
        }
    )
    with_model = fitted(shop, tables, [spec])
    result = with_model.rerank(candidates)
    without = ndcg(fitted(shop, tables).rerank(candidates), shop)
    gain = ndcg(result, shop) - without
    assert gain.mean() > 3 * gain.std(ddof=1) / np.sqrt(len(gain)) > 0

    with_model.save(tmp_path / "shop")
    again = Reranker.load(tmp_path / "shop").rerank(candidates)
    # what a text is on its own was read beside others: the last digits differ
    pd.testing.assert_frame_equal(again, result, rtol=1e-3, atol=1e-4)
