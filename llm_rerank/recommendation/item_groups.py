"""What diversity compares items by: the vector of each, and the group each is in (a cluster, or a column's value)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np

from llm_rerank.config import DiversityConfig
from llm_rerank.recommendation.components import Component
from llm_rerank.types import DataError, FloatArray, IntArray, Items

CLUSTERS = "clusters"

SOURCES = ("semantic", "als")
"""Components with a vector of each item, the first that is there is used: what items say before who took them."""

MOST_ITEMS_FOR_CLUSTERS = 20_000
"""Above this the clusters are found on a drawn sample, and every item joins the nearest."""


@runtime_checkable
class VectorSource(Protocol):
    """A scorer that has a vector of each item."""

    def item_vectors(self, codes: IntArray) -> FloatArray:
        """Vectors of these items: float32, shape (n_codes, size)."""
        ...


# by scorer, because clusters are found once a fit or load, not once a request; nothing is kept alive by it
_clusters_of: WeakKeyDictionary[VectorSource, dict[tuple[int, int, int], IntArray]] = WeakKeyDictionary()


def item_vectors(components: Sequence[Component], codes: IntArray) -> FloatArray:
    """Vectors of these items: float32, shape (n_codes, size); zeros or NaN where nothing is known of an item.

    Raises DataError where no component has them.
    """
    return vector_source(components).item_vectors(codes)


def item_groups(
    components: Sequence[Component], items: Items, config: DiversityConfig, codes: IntArray, seed: int
) -> IntArray:
    """Tell the group of each item: int64, shape (n_codes,); -1: its own, because its value or vector is unknown.

    seed: of the clusters, which are the same after a load.

    Raises DataError where the column is not there, or where there are no vectors to cluster.
    """
    if config.group_by == CLUSTERS:
        return _clusters(vector_source(components), len(items), config.n_clusters, seed)[codes]
    import pandas as pd

    values = items.frame[group_column(items, config)].iloc[codes]
    unknown = values.isna() | (values.astype(str).str.strip() == "")
    return pd.factorize(values.where(~unknown), use_na_sentinel=True)[0].astype(np.int64)


def group_column(items: Items, config: DiversityConfig) -> str:
    """Name of the items' column that ``group_by`` means; raises DataError where there is none."""
    column = "categories" if config.group_by == "category" and "category" not in items.frame else config.group_by
    if column not in items.frame:
        known = ", ".join(str(name) for name in items.frame.columns if name != "item_id")
        raise DataError(
            f"diversity group_by is {config.group_by!r}, which is no column of items; use 'clusters' or one of {known}"
        )
    return column


def cluster_items(vectors: FloatArray, n_clusters: int, seed: int) -> IntArray:
    """k-means of the vectors scaled to unit length (Euclid there orders as cosine does): int64, shape (n_items,).

    A row of zeros or NaN gets -1. There are never more clusters than items with a vector. One thread, so that sums run
    in one order and the same vectors always give the same clusters.
    """
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    norms = np.linalg.norm(vectors, axis=1)
    says = np.flatnonzero(norms > 1e-6)  # not where NaN
    groups = np.full(len(vectors), -1, dtype=np.int64)
    if not len(says):
        return groups
    unit = vectors[says] / norms[says, None]
    rng = np.random.default_rng(seed)
    sample = unit
    if len(unit) > MOST_ITEMS_FOR_CLUSTERS:
        sample = unit[np.sort(rng.choice(len(unit), MOST_ITEMS_FOR_CLUSTERS, replace=False))]
    model = KMeans(min(n_clusters, len(says)), n_init=1, max_iter=100, random_state=seed)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct vectors than clusters: some stay empty
        groups[says] = model.fit(sample).predict(unit)
    return groups


def vector_source(components: Sequence[Component]) -> VectorSource:
    """Scorer whose vectors are read, by ``SOURCES``; raises DataError where there is none."""
    for name in SOURCES:
        for component in components:
            if component.name == name and isinstance(component.scorer, VectorSource):
                return component.scorer
    raise DataError(
        f"diversity compares items by vectors and no component has them (there are "
        f"{', '.join(component.name for component in components) or 'none'}); fit with an encoder or with als, or cap "
        "by a column: DiversityConfig(max_per_group=2, group_by='brand')"
    )


def _clusters(source: VectorSource, n_items: int, n_clusters: int, seed: int) -> IntArray:
    """Clusters of the whole catalogue: int64, shape (n_items,); found once for each fitted or loaded scorer."""
    kept = _clusters_of.setdefault(source, {})
    settings = (n_items, n_clusters, seed)
    if settings not in kept:
        kept[settings] = cluster_items(source.item_vectors(np.arange(n_items, dtype=np.int64)), n_clusters, seed)
    return kept[settings]
