"""Ten lines on one's own files: ``python quickstart.py orders.csv items.csv``; without any, the sample shop."""

import sys
from pathlib import Path

from llm_rerank import Reranker, read_interactions

SAMPLE = Path(__file__).parents[1] / "data"
orders, items = sys.argv[1:3] if len(sys.argv) > 2 else (SAMPLE / "interactions.csv.gz", SAMPLE / "items.jsonl")

reranker = Reranker().fit(orders, items)  # prints its plan, its estimate of time and what it decided
user_id = read_interactions(orders)["user_id"].iloc[-1]
shortlist = reranker.recommend([user_id], k=5)
print(shortlist)
print(reranker.explain(user_id, shortlist["item_id"].iloc[0]))
reranker.save("shop")
print(Reranker.load("shop").recommend([user_id], k=5))
