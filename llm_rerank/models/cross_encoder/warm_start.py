"""Before the first step: how much of the offset and of the plain text similarity the lists themselves support."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llm_rerank.models.conditional_logit import fit_conditional_logit
from llm_rerank.models.cross_encoder.history_encoder import HistoryNetwork
from llm_rerank.models.cross_encoder.lists import TrainingLists
from llm_rerank.models.cross_encoder.packing import list_blocks
from llm_rerank.models.cross_encoder.scoring import WITHOUT_READER, Histories, padded_histories
from llm_rerank.types import FloatArray, IntArray


@torch.no_grad()
def fit_warm_start(
    network: HistoryNetwork,
    offset_weight: Tensor,
    vectors: Tensor,
    row_of_item: IntArray,
    lists: TrainingLists,
    histories: Histories,
) -> None:
    """Set λ and the temperature to the conditional logit of the taken item on (offset, similarity).

    So the warm start is the best that offset and similarity can do together, and every step has to beat that.
    """
    similarity = similarities(network, vectors, row_of_item, lists, histories)
    columns = np.column_stack([lists.offsets, similarity])
    # next to no shrinkage: two weights, hundreds of lists
    weights = fit_conditional_logit(
        columns, lists.cases.candidates, lists.positive, prior=np.array([1.0, 0.0]), penalty=1e-3
    )
    offset_weight.fill_(float(weights[0]))
    network.temperature.fill_(float(weights[1]))


def similarities(
    network: HistoryNetwork, vectors: Tensor, row_of_item: IntArray, lists: TrainingLists, histories: Histories
) -> FloatArray:
    """Recency-weighted mean cosine of each candidate, at temperature 1: float32, shape (n_candidates,)."""
    network.temperature.fill_(1.0)
    candidates = lists.cases.candidates
    result = np.empty(len(candidates.values), dtype=np.float32)
    for block in list_blocks(candidates, histories.rows.lengths, **WITHOUT_READER.bounds):
        real = block.candidates >= 0
        past, ages, weights = padded_histories(histories, block.rows)
        codes = candidates.values[np.where(real, block.candidates, 0)]
        device = vectors.device
        item = vectors[torch.from_numpy(row_of_item[codes]).to(device)]
        history = vectors[torch.from_numpy(row_of_item[past]).to(device)]
        values = network.similarity(
            item @ history.transpose(1, 2), torch.from_numpy(ages).to(device), torch.from_numpy(weights).to(device)
        )
        result[block.candidates[real]] = values.cpu().numpy()[real]
    return result
