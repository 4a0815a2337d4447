"""Cohere's shape: its own client over a real server, documents read a few at a time, and rankings in between."""

import os
import shutil
import threading
import time
from dataclasses import replace

import cohere
import httpx
import numpy as np
import pytest
from cohere.errors import UnauthorizedError, UnprocessableEntityError

from llm_rerank.config import RerankerConfig
from llm_rerank.recommendation.live import LiveShop
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.service import cohere as our_cohere
from llm_rerank.service.cohere import TextRelevance
from llm_rerank.service.settings import ServiceSettings
from llm_rerank.steps import in_one_go
from tests.service.asking import listening, serving
from tests.tiny_encoder import save_tiny_encoder

KEY = "a-key-of-the-shop-0123456789"
HISTORY = ["classic bike pump", "premium bike lock"]
DOCUMENTS = ["premium watering can", "classic bike saddle", "classic tea pot", "premium bike pump"]


@pytest.fixture(scope="module")
def tiny_models(tables, tmp_path_factory):
    """Folders of a shop with a small encoder: without and with the cross-encoder."""
    folder = tmp_path_factory.mktemp("tiny")
    encoder = save_tiny_encoder(folder)
    events, items = tables
    events = events[events["user_id"].isin([f"u{number}" for number in range(210)])]
    for name, choice in (("plain", "off"), ("cross", "always")):
        config = RerankerConfig(encoder=encoder, candidates_per_source=30, cross_encoder=choice, fine_tune_steps=20)
        Reranker(config, verbose=False).fit(events, items).save(folder / name)
    return folder


def ask(base: str, documents, *, key: str = KEY, **settings):
    client = cohere.ClientV2(api_key=key, base_url=base)
    return client.rerank(model="any", query="\n".join(HISTORY), documents=documents, **settings)


@pytest.mark.parametrize("name", ["plain", "cross"])
def test_coheres_own_client_gets_documents_in_the_order_of_the_models_scores(tiny_models, name):
    with LiveShop(tiny_models / name, device="cpu") as shop, listening(shop, ServiceSettings(api_key=KEY)) as base:
        answer = ask(base, DOCUMENTS)
        scorers = {component.name: component.scorer for component in shop.reranker().components}
        if name == "cross":
            (expected,) = scorers["cross_encoder"].predict([HISTORY], [DOCUMENTS])
            expected = 1 / (1 + np.exp(-expected.astype(np.float64)))
        else:
            from llm_rerank.models.semantic.encoder import SentenceEncoder

            vectors = SentenceEncoder(shop.reranker().config.encoder, device="cpu").encode([*HISTORY, *DOCUMENTS])
            user = np.exp(-0.2) * vectors[0] + vectors[1]
            expected = (1 + vectors[2:] @ user / np.linalg.norm(user)) / 2
        assert [result.index for result in answer.results] == np.argsort(-expected, kind="stable").tolist()
        np.testing.assert_allclose(
            [result.relevance_score for result in answer.results], np.sort(expected)[::-1], rtol=2e-3, atol=1e-5
        )
        assert answer.id
        assert answer.meta.warnings is None
        assert [result.index for result in ask(base, DOCUMENTS, top_n=2).results] == [
            r.index for r in answer.results[:2]
        ]
        # objects, as Cohere's first client sends them
        old = cohere.Client(api_key=KEY, base_url=base)
        objects = [{"title": text, "stock": 3} for text in DOCUMENTS]
        answer = old.rerank(model="any", query="\n".join(HISTORY), documents=objects, return_documents=True)
        assert sorted(result.index for result in answer.results) == [0, 1, 2, 3]
        for result in answer.results:
            assert result.document.text == f"title: {DOCUMENTS[result.index]}\nstock: 3"


def test_coheres_own_client_understands_our_refusals(tiny_models):
    with LiveShop(tiny_models / "plain", device="cpu") as shop, listening(shop, ServiceSettings(api_key=KEY)) as base:
        with pytest.raises(UnauthorizedError) as caught:
            ask(base, DOCUMENTS, key="another-key-0123456789")
        assert "API key" in caught.value.body["message"]
        with pytest.raises(UnprocessableEntityError) as caught:
            ask(base, [])
        assert caught.value.body["message"].startswith("documents:")
        with pytest.raises(UnprocessableEntityError, match="top_n"):
            ask(base, DOCUMENTS, top_n=0)
        with pytest.raises(UnprocessableEntityError, match="query"):
            cohere.ClientV2(api_key=KEY, base_url=base).rerank(model="any", query=" \n ", documents=DOCUMENTS)
        answer = httpx.post(
            f"{base}/v2/rerank", content=b"{", headers={"X-API-Key": KEY, "content-type": "application/json"}
        )
        assert (answer.status_code, set(answer.json())) == (400, {"id", "message"})


def test_where_texts_cannot_be_scored_documents_come_back_as_given_and_it_is_said(tiny_models, tmp_path):
    folder = shutil.copytree(tiny_models / "plain", tmp_path / "shop")
    with LiveShop(folder, device="cpu") as shop:
        shop.reranker().config  # noqa: B018  # loaded; now its encoder goes away
        encoder = shop.reranker().config.encoder
        away = f"{encoder}-away"
        os.rename(encoder, away)
        try:
            with listening(shop, ServiceSettings(api_key=KEY)) as base:
                answer = ask(base, DOCUMENTS)
                counts = httpx.get(f"{base}/metrics", headers={"X-API-Key": KEY}).text
        finally:
            os.rename(away, encoder)
    assert [(result.index, result.relevance_score) for result in answer.results] == [(n, 0.0) for n in range(4)]
    assert "order given" in answer.meta.warnings[0]
    assert 'llm_rerank_fallbacks_total{kind="order_given"} 1.0' in counts


# ------------------------------------------------------------------ a few documents a step


def many_documents(n: int, words: int = 1) -> list[str]:
    """Different texts of different lengths."""
    return [f"{DOCUMENTS[number % 4]} {number} {'tea ' * (words * (number % 7))}" for number in range(n)]


@pytest.mark.parametrize("name", ["plain", "cross"])
def test_documents_read_a_few_at_a_time_score_as_in_one_go(tiny_models, name, monkeypatch):
    reranker = Reranker.load(tiny_models / name, device="cpu", verbose=False)
    reader = TextRelevance(reranker)
    documents = many_documents(50)
    steps = reader.scores(HISTORY, documents, 4_096)
    assert sum(1 for _ in steps) == 1 + 25  # two lines of the history, and the documents by twos
    in_steps = in_one_go(reader.scores(HISTORY, documents, 4_096))
    monkeypatch.setattr(our_cohere, "TEXTS_A_STEP", 1_000)
    whole = in_one_go(TextRelevance(reranker).scores(HISTORY, documents, 4_096))
    np.testing.assert_allclose(in_steps, whole, atol=1e-5)
    alone = [in_one_go(reader.scores(HISTORY, [document], 4_096))[0] for document in documents[:12]]
    np.testing.assert_allclose(in_steps[:12], alone, atol=1e-5)
    assert len(np.unique(whole.round(4))) > 20


def test_a_list_that_is_asked_for_during_a_long_rerank_is_answered_before_it_ends(tiny_models, tmp_path):
    with serving(shutil.copytree(tiny_models / "plain", tmp_path / "shop")) as client:
        client.post("/v2/rerank", json={"query": "tea", "documents": ["pot"]})  # its encoder is loaded now
        answered = {}

        def rerank():
            body = {"query": "\n".join(HISTORY), "documents": many_documents(1_000, words=20)}
            answered["long"] = client.post("/v2/rerank", json=body)

        thread = threading.Thread(target=rerank)
        thread.start()
        while client.context.queue.stuck_for_s() == 0.0:
            time.sleep(0.001)
        short = client.post("/recommend", json={"user_id": "u7"})
        assert short.status_code == 200
        assert "long" not in answered
        thread.join()
    assert answered["long"].status_code == 200
    assert len(answered["long"].json()["results"]) == 1_000
    assert "warnings" not in answered["long"].json()["meta"]


@pytest.mark.parametrize("name", ["plain", "cross"])
def test_no_step_reads_more_than_a_few_texts_and_none_reads_one_twice(tiny_models, name, monkeypatch):
    reranker = Reranker.load(tiny_models / name, device="cpu", verbose=False)
    reader = TextRelevance(reranker)
    read: list[str] = []
    encode = reader._encoder.encode
    monkeypatch.setattr(reader._encoder, "encode", lambda texts: read.extend(texts) or encode(texts), raising=False)
    monkeypatch.setattr(our_cohere, "MOST_TEXTS_KEPT", 60)
    history, n_most = [f"line {number}" for number in range(21)], 0
    for documents in (many_documents(50), [f"again {text}" for text in many_documents(50)]):
        n_before = len(read)
        for _ in reader.scores(history, documents, 4_096):
            n_most = max(n_most, len(read) - n_before)
            n_before = len(read)
    of_history = 20 if name == "cross" else 21  # what the model looks back
    assert len(read) == 2 * (of_history + 50)  # the second request passed the limit: all anew, once
    assert n_most == our_cohere.TEXTS_A_STEP


def test_the_time_limit_grows_with_the_documents(tiny_models, tmp_path):
    body = {"query": "tea", "documents": many_documents(1_000, words=20)}
    with serving(shutil.copytree(tiny_models / "plain", tmp_path / "shop")) as client:
        assert client.post("/v2/rerank", json={"query": "tea", "documents": ["pot"]}).status_code == 200
        hasty = replace(client.context.settings, long_time_limit_s=0.1, document_time_limit_s=1e-6)
        client.context.settings = hasty
        late = client.post("/v2/rerank", json=body)
        assert (late.status_code, late.json()["message"]) == (503, "no answer within the time limit; come again")
        client.context.settings = replace(hasty, document_time_limit_s=0.1)
        answer = client.post("/v2/rerank", json=body)
    assert answer.status_code == 200
    assert len(answer.json()["results"]) == 1_000


# ------------------------------------------------------------------ versions, tokens


def test_each_version_is_answered_with_its_own_number(tiny_models):
    with LiveShop(tiny_models / "plain", device="cpu") as shop, listening(shop, ServiceSettings(api_key=KEY)) as base:
        old = cohere.Client(api_key=KEY, base_url=base).rerank(model="any", query="tea", documents=DOCUMENTS)
        assert (old.meta.api_version.version, ask(base, DOCUMENTS).meta.api_version.version) == ("1", "2")


def test_the_first_version_reads_the_fields_that_are_named_else_the_text_and_gives_objects_back_whole(tiny_models):
    objects = [{"id": f"B0{n}", "title": text, "text": DOCUMENTS[-1 - n]} for n, text in enumerate(DOCUMENTS)]
    titles = [f"title: {text}\nid: B0{n}" for n, text in enumerate(DOCUMENTS)]
    lines = [f"id: B0{n}\ntitle: {text}\ntext: {DOCUMENTS[-1 - n]}" for n, text in enumerate(DOCUMENTS)]
    with LiveShop(tiny_models / "plain", device="cpu") as shop, listening(shop, ServiceSettings(api_key=KEY)) as base:
        old = cohere.Client(api_key=KEY, base_url=base)

        def scored(documents, **settings):
            answer = old.rerank(model="any", query="\n".join(HISTORY), documents=documents, **settings)
            return {result.index: result.relevance_score for result in answer.results}, answer.results

        assert scored(objects)[0] == pytest.approx(scored(DOCUMENTS[::-1])[0], rel=1e-5)
        given, results = scored(objects, rank_fields=["title", "id"], return_documents=True)
        assert given == pytest.approx(scored(titles)[0], rel=1e-5)
        assert given != pytest.approx(scored(DOCUMENTS[::-1])[0], rel=1e-3)
        assert [result.document.dict() for result in results] == [objects[result.index] for result in results]
        with pytest.raises(UnprocessableEntityError, match="rank_fields"):
            scored(objects, rank_fields=["heading"])
        # the second version has texts alone; objects are read as lines
        sent = {"query": "\n".join(HISTORY), "rank_fields": ["title"], "return_documents": True}
        whole = httpx.post(f"{base}/v2/rerank", json={**sent, "documents": objects}, headers={"X-API-Key": KEY}).json()
        assert {one["index"]: one["relevance_score"] for one in whole["results"]} == pytest.approx(
            scored(lines)[0], rel=1e-5
        )
        assert [one["document"] for one in whole["results"]] == [{"text": lines[n["index"]]} for n in whole["results"]]


@pytest.mark.parametrize("name", ["plain", "cross"])
def test_of_each_document_the_first_tokens_are_read(tiny_models, name):
    with LiveShop(tiny_models / name, device="cpu") as shop, listening(shop, ServiceSettings(api_key=KEY)) as base:

        def scores(documents, **settings):
            results = ask(base, documents, **settings).results
            return [one.relevance_score for one in sorted(results, key=lambda one: one.index)]

        starts = [" ".join(document.split()[:2]) for document in DOCUMENTS]
        np.testing.assert_allclose(scores(DOCUMENTS, max_tokens_per_doc=2), scores(starts), rtol=1e-5)
        assert not np.allclose(scores(DOCUMENTS, max_tokens_per_doc=2), scores(DOCUMENTS), rtol=1e-3)
        assert scores(DOCUMENTS, max_tokens_per_doc=100) == pytest.approx(scores(DOCUMENTS), rel=1e-5)
        with pytest.raises(UnprocessableEntityError, match="max_tokens_per_doc.*greater than or equal to 1"):
            ask(base, DOCUMENTS, max_tokens_per_doc=0)
