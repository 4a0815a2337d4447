"""When something fails: the list without it, the order given, or a refusal; with a flag, a count, and no silence."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llm_rerank.recommendation import live
from tests.service.asking import counted, serving


def break_component(client, name: str) -> None:
    """Let a scorer of the model in use raise, as one does whose file or device went away."""

    def gone(*_, **__):
        raise OSError("the disk with secret-user went away")

    (scorer,) = [c.scorer for c in client.shop.reranker().components if c.name == name]
    scorer.score = scorer.score_catalogue = gone


def names_of(client) -> list[str]:
    return [component.name for component in client.shop.reranker().components]


def candidates_of(client, n: int = 20) -> list[dict]:
    ids = client.shop.reranker().saved.fitted.items.ids.tolist()
    return [{"item_id": item, "upstream_score": float((7 * place) % n)} for place, item in enumerate(ids[:n])]


def test_one_component_failing_gives_the_list_without_it(client, caplog):
    question = {"user_id": "u1", "candidates": candidates_of(client)}
    whole = client.post("/recommend/rerank", json=question).json()
    break_component(client, "als")
    for path, body in (("/recommend/rerank", question), ("/recommend", {"user_id": "u1"})):
        response = client.post(path, json=body)
        assert response.status_code == 200
        said = response.json()
        assert (said["degraded"], said["fallback"]) == (["als"], "")
        assert all(item["score"] is not None for item in said["items"])
        assert said["cut"]["guarantee"] is None
    assert said["request_id"] != whole["request_id"]
    assert counted(client, "llm_rerank_degraded_total", component="als") == 2
    assert counted(client, "llm_rerank_fallbacks_total", kind="upstream_order") == 0
    assert "secret" not in caplog.text


def test_one_component_failing_gives_the_explanation_without_it(client, caplog):
    ids = client.shop.reranker().saved.fitted.items.ids
    asked = {"user_id": "u1", "item_id": ids[0], "versus": ids[1]}
    whole = client.post("/explain", json=asked).json()
    assert whole["degraded"] == []
    break_component(client, "als")
    candidates = [{"item_id": item} for item in ids[:2]]
    ranked = client.post("/recommend/rerank", json={"user_id": "u1", "candidates": candidates}).json()
    of_list = {item["item_id"]: item["score"] for item in ranked["items"]}
    response = client.post("/explain", json=asked)
    assert response.status_code == 200, response.text
    said = response.json()
    assert said["degraded"] == ["als"]
    assert said["score"] == pytest.approx(of_list[ids[0]], rel=1e-5) != pytest.approx(whole["score"], rel=1e-5)
    assert said["versus"]["score"] == pytest.approx(of_list[ids[1]], rel=1e-5)
    for part in (said, said["versus"]):
        whole_of_it = part["score"] if part is said else part["difference"]
        assert sum(one["value"] for one in part["contributions"]) == pytest.approx(whole_of_it)
        assert "als" not in {one["name"] for one in part["contributions"]}
    assert counted(client, "llm_rerank_degraded_total", component="als") == 2
    assert "secret" not in caplog.text


def test_a_component_that_fails_now_and_then_is_in_none_of_the_scores_that_are_compared(client):
    asked = {"user_id": "u1", "item_id": client.shop.reranker().saved.fitted.items.ids[0]}
    (scorer,) = [c.scorer for c in client.shop.reranker().components if c.name == "als"]
    score, n_calls = scorer.score_catalogue, []

    def at_times(cases):
        n_calls.append(1)
        if len(n_calls) % 2:
            raise OSError("now it does not work")
        return score(cases)

    scorer.score_catalogue = at_times
    said = client.post("/explain", json=asked).json()
    break_component(client, "als")
    assert client.post("/explain", json=asked).json() == said
    assert said["degraded"] == ["als"]


def test_where_all_fail_there_is_nothing_to_explain(client):
    asked = {"user_id": "u1", "item_id": client.shop.reranker().saved.fitted.items.ids[0]}
    for name in names_of(client):
        break_component(client, name)
    refused = client.post("/explain", json=asked)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert "every component" in refused.json()["error"]["message"]


def test_all_failing_gives_the_order_given(client):
    question = {"user_id": "u1", "candidates": candidates_of(client), "k": 5}
    for name in names_of(client):
        break_component(client, name)
    response = client.post("/recommend/rerank", json=question)
    assert response.status_code == 200
    said = response.json()
    assert said["fallback"] == "upstream_order"
    given = sorted(question["candidates"], key=lambda candidate: -candidate["upstream_score"])[:5]
    assert [item["item_id"] for item in said["items"]] == [candidate["item_id"] for candidate in given]
    assert [item["score"] for item in said["items"]] == [None] * 5
    assert counted(client, "llm_rerank_fallbacks_total", kind="upstream_order") == 1
    anew = client.post("/recommend/recut", json={"request_id": said["request_id"], "k": 3}).json()
    assert anew["fallback"] == "upstream_order"
    assert anew["items"] == said["items"][:3]
    best_sellers = client.post("/recommend", json={"user_id": "u1"})
    assert (best_sellers.status_code, best_sellers.json()["fallback"]) == (200, "popularity")


def test_without_room_for_an_answer_the_order_given_comes_back_and_a_list_of_ours_is_refused(client, caplog):
    def no_room(*_, **__):
        raise MemoryError("secret-user")

    question = {"user_id": "u1", "candidates": [*candidates_of(client), "nowhere"]}
    for component in client.shop.reranker().components:  # the one error that the library does not bear
        component.scorer.score_catalogue = no_room
    said = client.post("/recommend/rerank", json=question).json()
    assert said["fallback"] == "upstream_order"
    given = sorted(question["candidates"][:-1], key=lambda candidate: -candidate["upstream_score"])
    assert [item["item_id"] for item in said["items"]] == [*(c["item_id"] for c in given), "nowhere"]
    assert said["items"][0]["title"] != ""
    assert counted(client, "llm_rerank_fallbacks_total", kind="upstream_order") == 1
    assert counted(client, "llm_rerank_unexpected_errors_total", route="scoring") == 1
    refused = client.post("/recommend", json={"user_id": "u1"})
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert "MemoryError" in caplog.text
    assert "secret" not in caplog.text


def test_it_is_not_ready_where_nothing_works_on_questions_any_more(client):
    assert client.get("/readyz").status_code == 200
    client.portal.call(client.context.queue.stop)
    refused = client.get("/readyz")
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert client.get("/healthz").status_code == 200


def test_without_the_event_log_lists_go_on_and_say_so_and_events_are_refused(client, caplog):
    question = {"user_id": "u1", "candidates": candidates_of(client)}
    before = client.post("/recommend/rerank", json=question).json()
    client.shop.log.close()  # every later use of it raises StorageError
    said = client.post("/recommend/rerank", json=question)
    assert said.status_code == 200
    assert said.json()["degraded"] == ["event_log"]
    assert said.json()["items"] == before["items"]
    assert counted(client, "llm_rerank_degraded_total", component="event_log") == 1
    assert counted(client, "llm_rerank_unexpected_errors_total", route="feedback") == 1
    for path, body in (("/events", {"user_id": "u1", "item_id": question["candidates"][0]["item_id"]}),
                       ("/items", {"items": [{"item_id": "new", "title": "New"}]})):  # fmt: skip
        refused = client.post(path, json=body)
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
        assert str(client.shop.folder) not in refused.text
    assert client.get("/healthz").status_code == 200


def test_concurrent_requests_get_the_answers_that_they_get_alone(client):
    ids = client.shop.reranker().saved.fitted.items.ids.tolist()
    questions = [
        {"user_id": f"u{number}", "candidates": ids[number : number + 30], "k": 1 + number % 20} for number in range(60)
    ]
    alone = [client.post("/recommend/rerank", json=question).json() for question in questions]
    n_before = counted(client, "llm_rerank_batch_questions_count")
    with ThreadPoolExecutor(20) as threads:
        together = list(threads.map(lambda q: client.post("/recommend/rerank", json=q).json(), questions))
    for one, other, question in zip(alone, together, questions, strict=True):
        assert one["user_id"] == other["user_id"] == question["user_id"]
        assert [item["item_id"] for item in one["items"]] == [item["item_id"] for item in other["items"]]
        assert [item["kept"] for item in one["items"]] == [item["kept"] for item in other["items"]]
        scores = [item["score"] for item in one["items"]]
        assert [item["score"] for item in other["items"]] == pytest.approx(scores, rel=1e-5, abs=1e-4)
    assert len({said["request_id"] for said in together}) == 60
    n_calls = counted(client, "llm_rerank_batch_questions_count") - n_before
    assert n_calls < 50  # they were not answered one by one


def test_more_than_can_be_answered_gets_refusals_with_a_time_to_come_again(model):
    with serving(model, queue_length=4, batch_size=2, time_limit_s=0.5) as client:
        for component in client.shop.reranker().components:
            if component.name == "als":
                score = component.scorer.score_catalogue

                def slowly(cases, score=score):
                    time.sleep(0.05)
                    return score(cases)

                component.scorer.score_catalogue = slowly
        with ThreadPoolExecutor(30) as threads:
            responses = list(
                threads.map(lambda n: client.post("/recommend", json={"user_id": f"u{n % 9}"}), range(120))
            )
        statuses = [response.status_code for response in responses]
        assert set(statuses) == {200, 503}
        assert all(int(r.headers["Retry-After"]) >= 1 for r in responses if r.status_code == 503)
        assert {r.json()["error"]["code"] for r in responses if r.status_code == 503} <= {"busy", "late"}
        refused = sum(counted(client, "llm_rerank_refused_total", reason=reason) for reason in ("queue_full", "late"))
        assert refused == statuses.count(503)
        assert client.post("/recommend", json={"user_id": "u1"}).status_code == 200
        assert counted(client, "llm_rerank_queue_depth") == 0


def test_events_are_taken_in_time_while_many_erasures_wait_for_a_slow_disk(model, monkeypatch):
    writing = threading.Event()
    write = live.write_reranker

    def slowly(*given, **named):
        writing.set()
        time.sleep(0.5)
        write(*given, **named)

    monkeypatch.setattr(live, "write_reranker", slowly)
    with serving(model, time_limit_s=1.0) as client, ThreadPoolExecutor(5) as threads:
        item = candidates_of(client)[0]["item_id"]
        erasures = [threads.submit(client.delete, f"/users/u{number}") for number in range(5)]
        assert writing.wait(10)
        taken = [client.post("/events", json={"user_id": "n1", "item_id": item, "event": "view"}) for _ in range(4)]
        assert [response.status_code for response in taken] == [200] * 4
        assert len(client.get("/users/n1/history").json()["events"]) == 4
        assert not all(erasure.done() for erasure in erasures)
        assert [erasure.result().status_code for erasure in erasures] == [200] * 5
