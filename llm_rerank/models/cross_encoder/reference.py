"""The slow twin of the history cross-encoder: one candidate at a time, one sequence, an explicit mask, plain loops.

It imports nothing of the fast path. It exists to be read beside the paper and to be compared with: the tests hold the
two within 1e-4 of each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Weights = Mapping[str, Tensor]


def own_mask(lengths: Sequence[int]) -> Tensor:
    """Who attends to whom in the sequence [candidate | history items | reader]: bool, (n, n), True attends.

    lengths: tokens of the candidate, then of each history item. A token attends to its own text; the reader, the last
    place of the sequence, to the candidate's text.
    """
    text = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    text = torch.cat([text, torch.zeros(1, dtype=torch.long)])
    mask = text[:, None] == text[None, :]
    mask[:, -1] = False  # nothing reads the reader
    return mask


def history_mask(lengths: Sequence[int]) -> Tensor:
    """Second attention: the reader, and nothing else, attends to every token of the history: bool, (n, n)."""
    n = sum(lengths) + 1
    mask = torch.zeros(n, n, dtype=torch.bool)
    mask[-1, lengths[0] : n - 1] = True
    return mask


def upper_states(
    weights: Weights,
    n_heads: int,
    n_upper: int,
    epsilon: float,
    candidate: Tensor,
    history: Sequence[Tensor],
    ages: Sequence[int],
    history_weights: Sequence[float],
    *,
    cross_attention: bool,
) -> Tensor:
    """Run one candidate with one history through the upper layers as one sequence: float32, (n_tokens + 1, size).

    candidate: lower states (length, size), [CLS] first. history: the same for each item, oldest first.
    """
    lengths = [len(candidate), *(len(item) for item in history)]
    sequence = torch.cat([candidate, *history, candidate[:1]])
    own, cross = own_mask(lengths), history_mask(lengths)
    for number in range(n_upper):
        prefix = f"layers.{number}"
        first = _attention(weights, prefix, n_heads, sequence, own, None)
        if cross_attention and history:
            ages_of_tokens = torch.tensor([age for age, item in zip(ages, history, strict=True) for _ in item])
            n_ages = weights["token_ages"].shape[2]
            bias = torch.zeros(n_heads, len(sequence))
            log_weights = torch.tensor(
                [w for w, item in zip(history_weights, history, strict=True) for _ in item]
            ).log()
            bias[:, lengths[0] : -1] = weights["token_ages"][number][:, ages_of_tokens.clamp(max=n_ages - 1)]
            bias[:, lengths[0] : -1] += log_weights
            second = _attention(weights, prefix, n_heads, sequence, cross, bias)
            gate = torch.tanh(weights["gates"][number]).repeat_interleave(sequence.shape[1] // n_heads)
            first = first + second * gate
        sequence = _layer_norm(
            weights, f"{prefix}.attention_norm", epsilon, sequence + _linear(weights, f"{prefix}.attended", first)
        )
        expanded = functional.gelu(_linear(weights, f"{prefix}.expand", sequence))
        sequence = _layer_norm(
            weights, f"{prefix}.output_norm", epsilon, sequence + _linear(weights, f"{prefix}.contract", expanded)
        )
    return sequence


def reference_score(
    weights: Weights,
    n_heads: int,
    n_upper: int,
    epsilon: float,
    candidate: Tensor,
    history: Sequence[Tensor],
    ages: Sequence[int],
    history_weights: Sequence[float],
    candidate_vector: Tensor,
    history_vectors: Sequence[Tensor],
    *,
    cross_attention: bool,
) -> float:
    """Score of one candidate for one history.

    weights: the network's state dict in float32. ages: visits back from the newest, one a history item.
    candidate_vector, history_vectors: the frozen encoder's unit vectors.
    """
    states = upper_states(
        weights, n_heads, n_upper, epsilon, candidate, history, ages, history_weights, cross_attention=cross_attention
    )
    length = len(candidate)
    mean = states[:length].mean(dim=0)
    first = states[-1]
    value = _linear(weights, "value", mean)
    seen = torch.zeros_like(value)
    if history:
        query = _linear(weights, "query", mean)
        logits, values, start = [], [], length
        for item, age, weight in zip(history, ages, history_weights, strict=True):
            item_mean = states[start : start + len(item)].mean(dim=0)
            start += len(item)
            n_ages = len(weights["item_ages"])
            logit = query @ _linear(weights, "key", item_mean) / math.sqrt(len(query))
            logits.append(logit + weights["item_ages"][min(age, n_ages - 1)] + math.log(weight))
            values.append(_linear(weights, "value", item_mean))
        attention = torch.softmax(torch.stack([*logits, torch.tensor(0.0)]), dim=0)
        for part, item_value in zip(attention, values, strict=False):
            seen = seen + part * item_value
    hidden = _linear(weights, "head_mean", mean) + weights["head_first.weight"] @ first
    hidden = hidden + weights["head_history.weight"] @ seen + weights["head_match.weight"] @ (seen * value)
    score = float(_linear(weights, "output", functional.gelu(hidden)))
    if history:
        cosines = [float(candidate_vector @ vector) for vector in history_vectors]
        decay = float(weights["decay"])
        recency = [weight * math.exp(-decay * age) for weight, age in zip(history_weights, ages, strict=True)]
        mean_cosine = sum(w * c for w, c in zip(recency, cosines, strict=True)) / sum(recency)
        score += float(weights["temperature"]) * mean_cosine + float(weights["greatest"]) * max(cosines)
    return score


def _attention(
    weights: Weights, prefix: str, n_heads: int, states: Tensor, mask: Tensor, bias: Tensor | None
) -> Tensor:
    """Multi-head attention with a boolean mask, head by head; a row that attends to nothing gives zero."""
    query, key, value = (_linear(weights, f"{prefix}.{name}", states) for name in ("query", "key", "value"))
    size = states.shape[1] // n_heads
    heads = []
    for head in range(n_heads):
        part = slice(head * size, (head + 1) * size)
        logits = query[:, part] @ key[:, part].T / math.sqrt(size)
        if bias is not None:
            logits = logits + bias[head]
        attention = torch.softmax(logits.masked_fill(~mask, float("-inf")), dim=-1)
        heads.append(torch.nan_to_num(attention) @ value[:, part])
    return torch.cat(heads, dim=1)


def _linear(weights: Weights, name: str, states: Tensor) -> Tensor:
    return states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _layer_norm(weights: Weights, name: str, epsilon: float, states: Tensor) -> Tensor:
    mean = states.mean(dim=-1, keepdim=True)
    variance = states.var(dim=-1, unbiased=False, keepdim=True)
    return (states - mean) / torch.sqrt(variance + epsilon) * weights[f"{name}.weight"] + weights[f"{name}.bias"]
