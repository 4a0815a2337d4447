"""The network of the conventional cross-encoder: loaded for pairs, given a head where it has none, read in 16 bits.

Weights are read from safetensors only, and code that a repository brings along is never run.
"""

from __future__ import annotations

import copy
from typing import Any

from llm_rerank.models.semantic.weights import DTypeName, quiet, reading_weights, torch_dtype
from llm_rerank.types import StorageError

_HEAD_SEED = 0
"""Of weights that a file does not hold: two loads of one model must give one model."""


def load_pair_network(model: str, device: str) -> tuple[Any, list[str]]:
    """Load a ``CrossEncoder`` with one output, in float32, and name the weights that its file did not hold.

    model: "default", a folder (read without any network), or a hub name. Where the head was not in the file, its last
    layer is zero, so that every pair scores 0.

    Raises StorageError where there is no such model, where it cannot be reached, or where it does not score pairs.
    """
    with reading_weights(model, "model", "a BERT-like model") as (source, offline):
        network, missing = _load(source, device, offline=offline)
    body = network.model.base_model_prefix + "."
    lost = [name for name in missing if name.startswith(body) and not name.startswith(f"{body}pooler.")]
    if lost:
        raise StorageError(f"model {source!r} lacks {len(lost)} weights of its body (first: {lost[0]}); get it again")
    if missing:
        last = _last_layer(network)
        for parameter in last.parameters():
            parameter.data.zero_()
    return network.eval(), missing


def half_copy(network: Any, dtype: DTypeName) -> Any:
    """Copy the network in 16 bits, its last layer in float32: rounded to three digits, half of a list would tie."""
    small = copy.deepcopy(network).to(torch_dtype(dtype))
    last = _last_layer(small).float()
    last.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return small


def _load(source: str, device: str, *, offline: bool) -> tuple[Any, list[str]]:
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification

    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(_HEAD_SEED)
        network = CrossEncoder(
            source,
            device=device,
            local_files_only=offline,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},  # else a pickled file of weights would be opened
        )
        kind = type(network.model).__name__
        if network.num_labels != 1 or not kind.endswith("ForSequenceClassification"):
            raise ValueError(
                f"a {kind} of {network.num_labels} outputs; only a cross-encoder of one output or a sentence encoder "
                "scores pairs"
            )
        # read again: CrossEncoder does not tell which weights it made up, and a random head scores just as well
        _, found = AutoModelForSequenceClassification.from_pretrained(
            source, local_files_only=offline, use_safetensors=True, output_loading_info=True
        )
    return network.float(), sorted(found["missing_keys"])


def _last_layer(network: Any) -> Any:
    """Find the linear layer that gives the score: the last one outside the body."""
    from torch import nn

    body = network.model.base_model_prefix
    return [
        module
        for name, module in network.model.named_modules()
        if isinstance(module, nn.Linear) and name.partition(".")[0] != body
    ][-1]
