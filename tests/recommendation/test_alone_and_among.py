"""A pair's score does not hang on its company or on the process: encoder, nets and cross-encoder all at work."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.recommendation.reranker import Reranker
from tests.shops import make_shop
from tests.tiny_encoder import save_tiny_encoder

AMONG = 500
KINDS = ("second-hand", "refurbished", "discontinued")


@pytest.fixture(scope="module")
def shop():
    """144 items with events and three further editions of each, which nobody took: only their texts speak."""
    events, items = make_shop()
    others = [
        items.assign(item_id=f"{kind}-" + items["item_id"], title=f"{kind} " + items["title"], description="")
        for kind in KINDS
    ]
    return events, pd.concat([items, *others], ignore_index=True)


@pytest.fixture(scope="module")
def everything(shop, tmp_path_factory):
    """Every part at work, and the cross-encoder reading every candidate."""
    config = RerankerConfig(
        encoder=save_tiny_encoder(tmp_path_factory.mktemp("tiny")),
        candidates_per_source=30,
        sequence="always",
        semantic="always",
        cross_encoder="always",
        cross_encoder_depth=None,
        fine_tune_steps=10,
        device="cpu",
    )
    fitted = Reranker(config, verbose=False).fit(*shop)
    assert {"text_ease", "als", "sequence", "semantic", "cross_encoder"} <= {c.name for c in fitted.components}
    return fitted


@pytest.fixture(scope="module")
def asked(shop):
    """500 candidates for two known users and a newcomer, one for another, and a text-only item for one more."""
    items = shop[1]["item_id"]
    many = [pd.DataFrame({"user_id": user, "item_id": items[:AMONG]}) for user in ("u0", "u1", "newcomer")]
    one = pd.DataFrame({"user_id": ["u3", "u4"], "item_id": [items[5], items.iloc[-1]]})
    return pd.concat([*many, one], ignore_index=True)


def test_a_pair_scores_alone_as_among_five_hundred(everything, asked):
    among = everything.rerank(asked).set_index(["user_id", "item_id"])
    assert len(among.loc["u0"]) == AMONG
    rows = np.random.default_rng(0).permutation(len(asked))[:12]
    for row in asked.iloc[[*rows, -2, -1]].itertuples():
        pair = pd.DataFrame({"user_id": [row.user_id], "item_id": [row.item_id]})
        alone, expected = everything.rerank(pair).iloc[0], among.loc[(row.user_id, row.item_id)]
        for column in ("score", "probability", "score_semantic", "score_collaborative", "score_cross_encoder"):
            assert alone[column] == pytest.approx(expected[column], abs=1e-6), (row, column)


def test_in_a_new_process_everything_answers_alike(everything, asked, shop, tmp_path):
    everything.save(tmp_path / "shop")
    asked.to_parquet(tmp_path / "asked.parquet")
    last = shop[1]["item_id"].iloc[-1]
    view = {"user_id": ["viewer"], "item_id": [last], "timestamp": [1_620_000_000], "event": ["view"]}
    histories = pd.DataFrame(view)  # a history of a text-only item
    histories.to_parquet(tmp_path / "histories.parquet")
    code = (
        "import sys, pandas as pd; from llm_rerank.recommendation.reranker import Reranker\n"
        "folder = sys.argv[1]\n"
        "loaded = Reranker.load(folder + '/shop')\n"
        "loaded.rerank(folder + '/asked.parquet').to_parquet(folder + '/reranked.parquet')\n"
        "histories = pd.read_parquet(folder + '/histories.parquet')\n"
        "loaded.recommend(['viewer'], histories=histories, k=7).to_parquet(folder + '/recommended.parquet')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=600)
    here = {
        "reranked": everything.rerank(asked),
        "recommended": everything.recommend(["viewer"], histories=histories, k=7),
    }
    for name, expected in here.items():
        there = pd.read_parquet(tmp_path / f"{name}.parquet")
        assert list(there["item_id"]) == list(expected["item_id"])
        for column in [name for name in expected if name == "probability" or name.startswith("score")]:
            np.testing.assert_allclose(there[column], expected[column], atol=1e-6, equal_nan=True)
    alone = here["reranked"].groupby("user_id").size()
    assert alone["u3"] == alone["u4"] == 1
