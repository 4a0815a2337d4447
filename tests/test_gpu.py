"""What a GPU must give: the CPU's scores, a fine-tuning that learns, a whole shop fitted there and served here."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.scoring_speed import as_if_trained, same_top
from llm_rerank.config import RerankerConfig
from llm_rerank.models.cross_encoder import training
from llm_rerank.models.cross_encoder.list_metrics import judge_lists
from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder
from llm_rerank.models.cross_encoder.training import fine_tune
from llm_rerank.models.semantic.encoder import SentenceEncoder
from llm_rerank.recommendation.reranker import Reranker
from tests.models.test_cross_encoder import CANDIDATES, HISTORIES, WEIGHTS, predict
from tests.models.test_cross_encoder_training import ITEMS, QUICK, planted_lists
from tests.shops import make_shop
from tests.tiny_encoder import save_tiny_encoder

GPU = "cuda"

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp("tiny"))


def on(device, folder, **settings):
    model = HistoryCrossEncoder.from_encoder(folder, device=device, item_tokens=16, history_length=8, **settings)
    as_if_trained(model, 0)
    return model


@pytest.mark.parametrize("cross_attention", [False, True])
@pytest.mark.parametrize(("dtype", "most"), [("float32", 2e-4), ("auto", 5e-3)])
def test_the_gpu_gives_the_cpus_scores(tiny, cross_attention, dtype, most):
    """Ragged lists, empty ones, texts of all lengths; "auto" reads in float16."""
    here = predict(on("cpu", tiny, cross_attention=cross_attention, dtype="float32"), weights=WEIGHTS)
    there = predict(on(GPU, tiny, cross_attention=cross_attention, dtype=dtype), HISTORIES, CANDIDATES, WEIGHTS)
    np.testing.assert_allclose(np.concatenate(there), np.concatenate(here), atol=most)


def test_float16_keeps_the_first_places():
    """The whole encoder, random weights on top: lists of 100 whose neighbours differ by thousandths."""
    rng = np.random.default_rng(0)
    words = np.array("steel glass tape meter probe cable clamp sensor filter pump valve red small heavy".split())
    texts = [" ".join(rng.choice(words, rng.integers(3, 9))) + f" {number}" for number in range(400)]
    histories = [list(rng.choice(texts, 8)) for _ in range(32)]
    candidates = [list(rng.choice(texts, 100, replace=False)) for _ in range(32)]
    scores = {
        dtype: predict(on(GPU, "default", cross_attention=True, dtype=dtype), histories, candidates)
        for dtype in ("float32", "float16")
    }
    assert same_top(scores["float16"], scores["float32"]) >= 0.98


def test_vectors_are_those_of_the_cpu():
    texts = ["a red bicycle", "", "温度计", "stainless steel water bottle " * 40]
    here = SentenceEncoder(device="cpu", dtype="float32").encode(texts)
    np.testing.assert_allclose(SentenceEncoder(device=GPU, dtype="float32").encode(texts), here, atol=1e-4)
    kept = here.any(axis=1)
    cosines = (SentenceEncoder(device=GPU).encode(texts) * here).sum(axis=1)
    assert (cosines[kept] > 0.999).all()


@pytest.mark.parametrize("cross_attention", [False, True])
def test_fine_tuned_on_the_gpu_it_learns_and_scores_the_same_on_the_cpu(tiny, tmp_path, cross_attention):
    model = HistoryCrossEncoder.from_encoder(tiny, device=GPU, item_tokens=8, cross_attention=cross_attention)
    as_by_default = replace(QUICK, precision="auto")
    result = fine_tune(
        model, planted_lists(200, 1), planted_lists(60, 2), ITEMS, as_by_default, checkpoint=tmp_path / "c"
    )
    assert result.best_step > 0
    fresh = planted_lists(100, 3)
    model.fit(None, ITEMS, seed=0)
    scores = model.score(fresh.cases)
    assert judge_lists(scores, fresh)["accuracy"] > 0.9
    model.save(tmp_path / "m")
    here = HistoryCrossEncoder.load(tmp_path / "m", device="cpu").score(fresh.cases)
    assert np.abs(here - scores).max() < 1e-2 * np.abs(scores).max()


def test_one_process_fine_tunes_on_the_gpu_and_on_the_cpu_in_turn(tiny):
    for device in (GPU, "cpu", GPU):
        model = HistoryCrossEncoder.from_encoder(tiny, device=device, item_tokens=8)
        result = fine_tune(model, planted_lists(200, 1), planted_lists(60, 2), ITEMS, replace(QUICK, steps=20))
        assert result.log[-1]["step"] == 20 and model.network.output.weight.device.type == torch.device(device).type


def test_a_fine_tuning_goes_on_from_its_checkpoint(tiny, tmp_path, monkeypatch):
    """Stopped after its checkpoint of step 20, and gone on with: the weights of one go, as far as a GPU's sums are."""
    settings = replace(QUICK, steps=40, patience=9)
    arguments = (planted_lists(200, 1), planted_lists(60, 2), ITEMS, settings)
    whole, first, again = (HistoryCrossEncoder.from_encoder(tiny, device=GPU, item_tokens=8) for _ in range(3))
    fine_tune(whole, *arguments)

    def interrupted(run, number, step=training._Run._step):
        if number == 25:
            raise KeyboardInterrupt
        return step(run, number)

    with monkeypatch.context() as patched:
        patched.setattr(training._Run, "_step", interrupted)
        assert fine_tune(first, *arguments, checkpoint=tmp_path).interrupted
    said = []
    fine_tune(again, *arguments, checkpoint=tmp_path, say=said.append)
    assert said[0] == "going on from the checkpoint after step 20"
    for name, tensor in whole.network.state_dict().items():
        torch.testing.assert_close(again.network.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("token_attention", [False, True])
def test_a_shop_fitted_on_the_gpu_is_served_on_a_cpu(tiny, tmp_path, token_attention):
    events, items = make_shop()
    config = RerankerConfig(
        encoder=tiny, candidates_per_source=30, sequence="off", semantic="always", cross_encoder="always",
        token_attention=token_attention, fine_tune_steps=20, device=GPU,
    )  # fmt: skip
    reranker = Reranker(config, verbose=False).fit(events, items)
    users = events["user_id"].unique()[:20].tolist()
    there = reranker.recommend(users)
    reranker.save(tmp_path / "m")
    here = Reranker.load(tmp_path / "m", device="cpu", verbose=False).recommend(users)
    both = there.merge(here, on=["user_id", "item_id"], suffixes=("", "_here"))
    assert len(both) >= 0.98 * len(there)
    np.testing.assert_allclose(both["score"], both["score_here"], atol=2e-2)
