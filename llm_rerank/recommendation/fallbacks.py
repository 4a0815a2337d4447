"""What an answer is when components fail: which failures it can bear, and what stands in for a list.

One component failing costs its opinion, and the rest ranks. Where every component that carries weight has failed, what
is left of the blend was never judged as a ranking of its own, so the list comes back in the order that it would have
had without us. Each is named in the answer, and warned of in the log.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from llm_rerank.data.item_statistics import ItemStatistics
from llm_rerank.recommendation.blend_columns import column_label
from llm_rerank.recommendation.candidates import ranks_in_row
from llm_rerank.recommendation.components import Component
from llm_rerank.recommendation.stage import Stage
from llm_rerank.types import FloatArray, IntArray, Ragged

UPSTREAM_ORDER, POPULARITY, NOTHING = "upstream_order", "popularity", "nothing"
"""Values of ``Answer.fallback``: the order given comes back; the best sellers, because nothing else could be retrieved;
an empty list, because not even those could be told."""

_LAST_TIME = np.iinfo(np.int64).max


def can_rank(stage: Stage, failed: Collection[str]) -> bool:
    """Tell whether the blend still ranks without these components: one that has a weight other than 0 is left."""
    weighted = {
        column_label(name).split(" × ")[0]
        for name, weight in zip(stage.blend.names, stage.blend.weights, strict=True)
        if weight != 0
    }
    carrying = weighted & set(stage.component_names)
    return not carrying or not carrying <= set(failed)


def can_retrieve(components: Sequence[Component], failed: Collection[str]) -> bool:
    """Tell whether there is a source of candidates left that is not text alone."""
    return any(c.retrieves and c.group != "semantic" and c.name not in failed for c in components)


def popular_items(statistics: ItemStatistics, at: int, n: int, exclude: IntArray) -> IntArray:
    """Find the n items that most users took before a time, best first, ties by code: int64, shape (at most n,).

    exclude: codes left out. Items that nobody took are never among them.
    """
    items = np.arange(statistics.n_items, dtype=np.int64)
    times = np.full(len(items), at if statistics.time_kind == "time" else _LAST_TIME, dtype=np.int64)
    counts = statistics.series["buyers"].count(items, times)
    counts[exclude[(exclude >= 0) & (exclude < len(items))]] = 0
    best = np.argsort(-counts, kind="stable")[:n]
    return best[counts[best] > 0].astype(np.int64)


def order_without_us(upstream: FloatArray | None, n_candidates: int) -> IntArray:
    """Rank of each candidate, from 1, by the upstream score, unknown ones last, else as given: int64."""
    if upstream is None:
        return np.arange(1, n_candidates + 1, dtype=np.int64)
    return ranks_in_row(upstream, Ragged(np.zeros(n_candidates, dtype=np.int64), np.array([0, n_candidates])))
