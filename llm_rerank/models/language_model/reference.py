"""The slow twin of ``causal.py``: each text is read after the whole beginning, alone, without anything kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


@torch.inference_mode()
def log_likelihood_alone(network: Any, beginning: Sequence[int], text: Sequence[int]) -> float:
    """Sum of log P(token | all tokens before it) over a text's tokens, in nats.

    network: a causal language model of transformers. beginning: at least one token id.
    """
    ids = torch.tensor([[*beginning, *text]], device=network.device)
    logits = network(ids, use_cache=False).logits[0].float()
    total = 0.0
    for place in range(len(beginning), ids.shape[1]):
        before = torch.log_softmax(logits[place - 1], dim=0)
        total += float(before[ids[0, place]])
    return total
