"""Texts to the states of the frozen lower layers: each text read once, alone, and kept on disk where a folder is given.

What the states are used for is said in ``history_encoder.py``; the files, in ``state_cache.py``.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from llm_rerank.models.cross_encoder.discarding import STATES_PREFIX, state_key
from llm_rerank.models.cross_encoder.history_encoder import HistoryNetwork, NetworkShape, TransformerLayer
from llm_rerank.models.cross_encoder.packing import Packing, pack
from llm_rerank.models.cross_encoder.state_cache import StateCache, StateType, bytes_needed, fingerprint_of
from llm_rerank.models.semantic.weights import load_network, tokenizer_json
from llm_rerank.types import DataError, IntArray, Ragged, StorageError

TOKENS_AT_ONCE = 16_384
TEXTS_MEASURED = 128
CHARACTERS_PER_TOKEN = 32
"""Of a text so many characters a token are looked at, white space apart: hardly more could be read."""


def cut_in_words(n_cut: int, n_read: int, item_tokens: int) -> str:
    """Say how many texts were too long to be read whole; empty where none was."""
    if not n_cut:
        return ""
    texts = f"{n_cut:,} of {n_read:,} texts"
    return f"{texts} are longer than {item_tokens} tokens, of each the first {item_tokens} are read"


class ItemReader:
    """The frozen part: tokenizer, embeddings and lower layers of a BERT or (XLM-)RoBERTa sentence encoder.

    model: "default", a folder, or a hub name (``semantic/weights.py``). n_upper: layers left to the trained part.
    item_tokens: tokens of a text that are read, special ones included. device: a torch device. cache_folder: where
    states are kept between runs; None: nowhere. States are float32: a text is read once, its rounding would stay.

    Raises DataError for another architecture or impossible sizes, StorageError where the weights are missing.
    """

    def __init__(
        self,
        model: str,
        *,
        n_upper: int,
        item_tokens: int,
        device: str,
        cache_folder: Path | None = None,
        cache_type: StateType = "float16",
    ) -> None:
        network = load_network(model, "cpu")
        bert = getattr(network[0], "auto_model", None)
        kind = getattr(getattr(bert, "config", None), "model_type", type(bert).__name__)
        if kind not in ("bert", "roberta", "xlm-roberta"):
            raise DataError(
                f"encoder {model!r} is a {kind!r} model; the history cross-encoder is built from BERT, RoBERTa or "
                "XLM-RoBERTa layers: name such an encoder, for example 'default'"
            )
        assert bert is not None
        config = bert.config
        if config.hidden_act not in ("gelu", "gelu_python"):
            raise DataError(
                f"encoder {model!r} computes {config.hidden_act!r} between its layers; the history cross-encoder knows "
                "'gelu' alone: name such an encoder, for example 'default'"
            )
        if not 1 <= n_upper < config.num_hidden_layers:
            raise DataError(f"n_upper is {n_upper}; {model!r} has {config.num_hidden_layers} layers, so 1 to one less")
        most = config.max_position_embeddings - (0 if kind == "bert" else config.pad_token_id + 1)
        if not 3 <= item_tokens <= most:
            raise DataError(f"item_tokens is {item_tokens}; {model!r} reads from 3 to {most}")
        self.model = model
        self.item_tokens = item_tokens
        self.device = device
        self._first_position = 0 if kind == "bert" else config.pad_token_id + 1
        self._tokenizer = network.tokenizer
        self.shape = NetworkShape(
            hidden_size=config.hidden_size,
            n_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            norm_epsilon=config.layer_norm_eps,
            n_lower=config.num_hidden_layers - n_upper,
            n_upper=n_upper,
        )
        layers = [TransformerLayer(self.shape) for _ in bert.encoder.layer]
        with torch.no_grad():
            for own, given in zip(layers, bert.encoder.layer, strict=True):
                own.load_bert(given)
        # the embedding's own dropout and the layers' are off in eval mode, and gradients are never needed below
        self._embeddings = bert.embeddings.eval().requires_grad_(False).to(device)
        self._lower = nn.ModuleList(layers[: self.shape.n_lower]).eval().requires_grad_(False).to(device)
        self.upper_weights = [layer.state_dict() for layer in layers[self.shape.n_lower :]]
        """State dicts of the pretrained upper layers, float32 on the CPU: where training starts."""
        self.fingerprint = fingerprint_of(
            "lower states 1",
            _weights_digest(self._embeddings, self._lower),
            tokenizer_json(self._tokenizer),
            str(item_tokens),
        )
        self.n_cut = 0
        """Texts of the last reading that were longer than ``item_tokens``."""
        self.n_read = 0
        """All texts of the last reading."""
        self._cache_type: StateType = cache_type
        self.cache = None
        if cache_folder is not None:
            suffix = (
                "" if cache_type == "float16" else f"-{cache_type}"
            )  # in one folder the last type removes the other's
            folder = Path(cache_folder) / f"{STATES_PREFIX}{self.fingerprint[:16]}{suffix}"
            self.cache = StateCache(
                folder, fingerprint=self.fingerprint, state_size=self.shape.hidden_size, dtype=cache_type
            )

    def check(self, fingerprint: str | None) -> None:
        """Raise StorageError where a saved model was made with other layers or another tokenizer."""
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise StorageError(
                f"the frozen layers of {self.model!r} have fingerprint {self.fingerprint[:12]}, the saved model was "
                f"made with {fingerprint[:12]}; use the encoder, number format and tokenizer of then, or train again"
            )

    def token_ids(self, texts: Sequence[str]) -> tuple[Ragged, int]:
        """Tokens of each text, [CLS] and [SEP] included, cut at the end; and how many texts were cut."""
        if not texts:
            return Ragged.empty(0), 0
        most = CHARACTERS_PER_TOKEN * self.item_tokens
        # white space says nothing to a tokenizer, and would take the place of words
        shown = [" ".join(text.split()) for text in texts]
        cut = [text[:most].encode("utf-8", "replace").decode("utf-8") for text in shown]
        rows = self._tokenizer(cut, add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
        n_cut = sum(len(row) > self.item_tokens or len(text) > most for row, text in zip(rows, shown, strict=True))
        kept = [row if len(row) <= self.item_tokens else [*row[: self.item_tokens - 1], row[-1]] for row in rows]
        return Ragged.from_lists(kept), n_cut

    def notes(self) -> list[str]:
        """Say what the last reading cut, and what of the cache could not be used."""
        cut = cut_in_words(self.n_cut, self.n_read, self.item_tokens)
        dropped = [] if self.cache is None else [f"kept states: {note}" for note in self.cache.notes]
        return [*([cut] if cut else []), *dropped]

    def cost_in_words(self, texts: Sequence[str]) -> str:
        """Say what keeping and reading the states of these texts takes, measured on the first of them."""
        n_kept = 0
        if self.cache is not None:
            missing = self.cache.missing([state_key(text) for text in texts])
            n_kept, texts = len(texts) - len(missing), [texts[position] for position in missing]
        tokens, _ = self.token_ids(list(texts[:TEXTS_MEASURED]))
        kept = f"; those of {n_kept:,} more are kept" if n_kept else ""
        if not len(tokens):
            return f"states of 0 texts{kept}"
        packing = pack(tokens.lengths)
        began = time.perf_counter()
        self._read(tokens.take(packing.order), packing)
        seconds = (time.perf_counter() - began) * len(texts) / len(tokens)
        mean = float(tokens.lengths.mean())
        size = bytes_needed(int(mean * len(texts)), self.shape.hidden_size, self._cache_type) / 2**20
        return (
            f"states of {len(texts):,} texts of about {mean:.0f} tokens: {size:,.0f} MiB in {self._cache_type}, about "
            f"{max(seconds, 1):,.0f} s to read{kept}"
        )

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[IntArray, Packing, Tensor]]:
        """Lower states of distinct texts, some thousand tokens at a time, neighbours in length together.

        Yields (positions in ``texts`` in the order of the packing's places, packing, states (n_tokens, hidden_size)).
        """
        tokens, self.n_cut = self.token_ids(texts)
        self.n_read = len(texts)
        by_length = np.argsort(-tokens.lengths, kind="stable")  # longest first: memory runs out at once or never
        through = np.cumsum(tokens.lengths[by_length])
        batch = (through - 1) // TOKENS_AT_ONCE
        for start, stop in _runs(batch):
            rows = by_length[start:stop]
            packing = pack(tokens.lengths[rows])
            ordered = rows[packing.order]
            yield ordered, packing, self._states([texts[row] for row in ordered], tokens.take(ordered), packing)

    def no_states(self) -> tuple[Tensor, Packing]:
        """States of no text: shape (0, hidden_size), and their packing."""
        none = torch.empty((0, self.shape.hidden_size), device=self.device)
        return none, pack(np.empty(0, dtype=np.int64))

    def _states(self, texts: list[str], tokens: Ragged, packing: Packing) -> Tensor:
        """States of packed texts, from the cache where it has all of them."""
        if self.cache is None:
            return self._read(tokens, packing)
        keys = [state_key(text) for text in texts]
        if len(self.cache.missing(keys)):
            states = self._read(tokens, packing)
            fresh = self.cache.missing(keys)
            taken = torch.from_numpy(tokens.value_positions(fresh)).to(states.device)
            rows = states[taken].cpu().numpy()
            self.cache.add([keys[position] for position in fresh], rows, tokens.lengths[fresh])
        # also what was just computed comes from the cache, so that a run's states do not depend on what was there
        held, _ = self.cache.read(keys)
        return torch.from_numpy(held).to(self.device)

    @torch.inference_mode()
    def _read(self, tokens: Ragged, packing: Packing) -> Tensor:
        positions = np.arange(len(tokens.values)) - np.repeat(tokens.offsets[:-1], tokens.lengths)
        ids = torch.from_numpy(tokens.values)[None].to(self.device)
        places = torch.from_numpy(positions + self._first_position)[None].to(self.device)
        states = self._embeddings(input_ids=ids, position_ids=places)[0]
        for layer in cast("list[TransformerLayer]", list(self._lower)):
            states = layer.read_alone(states, packing)
        return states


def fresh_network(reader: ItemReader, history_length: int, cross_attention: bool, seed: int) -> HistoryNetwork:
    """Build a network whose upper layers are the encoder's own and whose head gives zero."""
    shape = replace(reader.shape, cross_attention=cross_attention, n_ages=history_length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = HistoryNetwork(shape)
    for layer, weights in zip(network.layers, reader.upper_weights, strict=True):
        layer.load_state_dict(weights)
    return network.to(reader.device).eval()


def _runs(values: IntArray) -> Iterator[tuple[int, int]]:
    """Start and end of each run of equal values."""
    edges = np.flatnonzero(np.diff(values)) + 1
    bounds = [0, *edges.tolist(), len(values)] if len(values) else [0]
    yield from zip(bounds[:-1], bounds[1:], strict=True)


def _weights_digest(*modules: nn.Module) -> str:
    """SHA-256 over the weights and their number format."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
