"""The benchmark of long and short requests together: its sums by hand, and the requests that it sends."""

import json

import numpy as np
import pytest

from benchmarks.serving_together import long_requests, overlapping, told
from llm_rerank.config import RerankerConfig
from llm_rerank.recommendation.reranker import Reranker
from tests.shops import make_shop


def test_only_what_was_due_during_a_long_request_counts():
    sent = [(0.5, 0.1, 200), (1.0, 0.2, 503), (1.9, 0.3, 200), (2.0, 0.4, 200), (5.5, 0.5, 200)]
    found = overlapping(sent, [(1.0, 2.0), (5.0, 6.0)])
    assert [at for at, _, _ in found] == [1.0, 1.9, 5.5]
    summed = told(found)
    assert summed["statuses"] == {"503": 1, "200": 2}
    assert (summed["p50_ms"], summed["max_ms"]) == (pytest.approx(400), pytest.approx(500))  # a refusal is no answer


def test_long_requests_are_for_things_never_read_and_the_longest_history():
    config = RerankerConfig(encoder=None, sequence="off", candidates_per_source=20, refit=False)
    saved = Reranker(config, verbose=False).fit(*make_shop(n_users=120)).saved
    requests = long_requests(saved, n_each=2, n_documents=30, seed=0)
    reranks, previews, explanations = requests.values()
    bodies = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in reranks]
    documents = [text for body in bodies for text in body["documents"]]
    assert len(set(documents)) == len(documents) == 60
    rows = previews[0].partition(b"\r\n\r\n")[2].decode().splitlines()
    assert len({row.split(",")[0] for row in rows[1:]}) == 5
    asked = json.loads(explanations[0].partition(b"\r\n\r\n")[2])
    longest = np.bincount(saved.events.users).max()
    assert int((saved.events.user_ids[saved.events.users] == asked["user_id"]).sum()) == longest
