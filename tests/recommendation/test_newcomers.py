"""Users without a history in a shop too small for a blend: what sells comes first, and probabilities say the same."""

import numpy as np
import pandas as pd
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.recommendation.newcomers import POPULARITY, with_popularity
from llm_rerank.recommendation.reranker import Reranker
from tests.shops import make_shop

DAY = 86_400


@pytest.fixture(scope="module")
def thin():
    """A shop of 90 users, and the reranker fitted on it where a blend wants more cases than they are."""
    events, items = make_shop(90)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm_rerank.recommendation.fusion.LEAST_CASES_FOR_BLEND", 200)
        reranker = Reranker(RerankerConfig(encoder=None, sequence="off"), verbose=False).fit(events, items)
    assert "too few to fit a blend" in str(reranker.report())
    return events, items, reranker


def asked(items):
    return pd.DataFrame({"user_id": "newcomer", "item_id": items["item_id"]})


def test_what_sells_comes_first_in_whatever_order_it_is_given(thin):
    events, items, reranker = thin
    result = reranker.rerank(asked(items)).set_index("item_id")
    backwards = reranker.rerank(asked(items).iloc[::-1]).set_index("item_id")
    pd.testing.assert_series_equal(result["score"], backwards["score"][result.index], atol=1e-9, check_exact=False)
    alone = ~result["score"].duplicated(keep=False)  # exact ties keep the order given
    assert alone.sum() >= 20
    assert (result["rank"][alone] == backwards["rank"][result.index][alone]).all()
    bought = events[events["event"] == "purchase"]
    lately = bought[bought["timestamp"] > bought["timestamp"].max() - 28 * DAY]["item_id"].value_counts()
    sold = result["rank"].index.map(lately).fillna(0).to_numpy()
    assert lately.index[0] in result.index[:3]
    assert sold[:10].mean() > sold[10:40].mean() > sold[40:].mean()


def test_probabilities_follow_the_ranks_of_everyone(thin):
    _, items, reranker = thin
    users = [asked(items).assign(user_id=user) for user in ("newcomer", "u0", "u1", "u2")]
    for _, rows in reranker.rerank(pd.concat(users, ignore_index=True)).groupby("user_id"):
        assert (rows["probability"].diff().dropna() <= 0).all()


def test_known_users_keep_their_lists(thin):
    _, items, reranker = thin
    stage = reranker.saved.fitted.stage
    popular = np.isin(stage.blend.names, POPULARITY)
    known = reranker.rerank(asked(items).assign(user_id="u0"))
    assert known["score_context"].abs().max() < 0.05 * known["score_collaborative"].abs().max()
    assert stage.blend.weights[popular].max() == pytest.approx(1e-3 * stage.blend.weights[~popular].max())


def test_popularity_gets_a_small_weight_unless_it_has_one():
    names = ("als", "sales_28d", "price_gap", "item_support")
    assert with_popularity(np.array([2.0, 0, 0, 0]), names).tolist() == [2.0, 0.002, 0.0, 0.002]
    lent = np.array([2.0, 0, 0, 0.3])
    assert with_popularity(lent, names).tolist() == lent.tolist()
