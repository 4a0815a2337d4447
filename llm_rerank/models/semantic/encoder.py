"""Texts to unit vectors with a sentence encoder, each different text of a call once.

Where the weights come from is said in ``weights.py``, what remembers vectors between calls and fits in ``cache.py``;
what is done with them, in ``similarity.py`` and ``sentiment.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_rerank.models.semantic.weights import (
    DEFAULT_MODEL,
    Dtype,
    load_network,
    network_fingerprint,
    settled,
    torch_dtype,
)
from llm_rerank.types import DataError, Encoder, FloatArray, IntArray, StorageError

FEWEST_TOKENS = 3  # [CLS], one token, [SEP]


class SentenceEncoder:
    """A sentence-transformers model as an ``Encoder``: texts to float32 vectors of unit length.

    A text of nothing but blanks has the *zero vector*, the one exception to unit length: it says nothing, so it is
    similar to nothing, itself included. (The model's own answer to "" is a vector like any other.)

    model: "default" is the embedded all-MiniLM-L6-v2, which needs no network; else a folder, else a hub name.
    device: "auto" takes cuda, mps or cpu. batch_size: texts at once; None: 32, which keeps a CPU's caches warm, and
    256 on a GPU.
    max_tokens: what exceeds it is cut off at the end; never more than the model can read.
    dtype: "auto", "float32", "bfloat16" or "float16": of the transformer; pooling and what follows are always float32.

    Raises DataError for impossible settings, StorageError where the weights are missing, unreachable or damaged.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        device: str = "auto",
        batch_size: int | None = None,
        max_tokens: int = 128,
        dtype: Dtype = "auto",
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; it must be at least 1")
        if max_tokens < FEWEST_TOKENS:
            raise DataError(f"max_tokens is {max_tokens}; it must be at least {FEWEST_TOKENS}, for example 128")
        self.device, self.dtype = settled(device, dtype)
        self.model = str(model)
        self.batch_size = batch_size or (256 if self.device.startswith("cuda") else 32)
        self._turn = threading.Lock()
        self._network = load_network(self.model, self.device)
        self.max_tokens = min(max_tokens, self._network.max_seq_length or max_tokens)
        if self._network.max_seq_length is not None:
            self._network.max_seq_length = self.max_tokens
        self._prompt: str | None = self._network.prompts.get(self._network.default_prompt_name)
        self.fingerprint = network_fingerprint(self._network, self.max_tokens, self.dtype, self._prompt)
        # the first module is the transformer; pooling and projection stay in float32
        next(self._network.children()).to(torch_dtype(self.dtype))
        self.embedding_size = len(self._forward(["size"])[0])

    @property
    def reference(self) -> dict[str, Any]:
        """What ``load_encoder`` needs to build this encoder again."""
        return {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "dtype": self.dtype,
            "fingerprint": self.fingerprint,
        }

    @property
    def description(self) -> str:
        """One line on what runs where, for a log."""
        import torch

        threads = f", {torch.get_num_threads()} threads" if self.device.startswith("cpu") else ""
        return (
            f"encoder {self.model!r}: {self.embedding_size} numbers a text of at most {self.max_tokens} tokens, "
            f"{self.dtype} on {self.device}{threads}"
        )

    def encode(self, inputs: Sequence[Any]) -> FloatArray:
        """Vectors of texts, in input order; equal texts are encoded once. Threads take turns at the tokenizer.

        Returns float32, shape (n_inputs, embedding_size), unit length; zero for a blank text.
        Raises DataError where an input is not a string.
        """
        with self._turn:
            return self._encode(inputs)

    def _encode(self, inputs: Sequence[Any]) -> FloatArray:
        from tqdm.auto import tqdm

        rows: dict[str, int] = {}
        row_of_input = np.array([rows.setdefault(text, len(rows)) for text in _clean(inputs)], dtype=np.int64)
        texts = list(rows)
        vectors = np.zeros((len(texts), self.embedding_size), dtype=np.float32)
        filled = np.array([row for row, text in enumerate(texts) if text], dtype=np.int64)
        lengths = np.minimum(self.count_tokens([texts[row] for row in filled]), self.max_tokens)
        # neighbours in length share a batch: next to no padding; the longest first, so that memory runs out at once
        order = filled[np.argsort(-lengths, kind="stable")]
        with tqdm(total=len(order), desc="encoding texts", unit="text", disable=None) as progress:
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                vectors[batch] = self._forward([texts[row] for row in batch])
                progress.update(len(batch))
        return vectors[row_of_input]

    def count_tokens(self, texts: Sequence[str]) -> IntArray:
        """Tokens that each text takes uncut, special tokens included: int64, shape (n_texts,)."""
        return np.array([len(tokens) for tokens in self._token_ids(_clean(texts), special=True)], dtype=np.int64)

    def first_tokens(self, texts: Sequence[str], n_tokens: int) -> list[str]:
        """Cut texts after their first tokens, special tokens not counted; a shorter text stays as it is."""
        cleaned = _clean(texts)
        with self._turn:
            rows = self._token_ids(cleaned, special=False)
            return [
                text if len(row) <= n_tokens else self._network.tokenizer.decode(row[:n_tokens])
                for text, row in zip(cleaned, rows, strict=True)
            ]

    def unknown_share(self, texts: Sequence[str]) -> float:
        """Share of the texts' tokens that the tokenizer cannot read ([UNK]), from 0 to 1; NaN without any token."""
        unknown = getattr(self._network.tokenizer, "unk_token_id", None)
        tokens = np.concatenate([np.empty(0, dtype=np.int64), *self._token_ids(_clean(texts), special=False)])
        return float(np.mean(tokens == unknown)) if len(tokens) else float("nan")

    def _token_ids(self, texts: list[str], *, special: bool) -> list[list[int]]:
        if not texts:
            return []
        tokenizer = self._network.tokenizer
        if not callable(tokenizer):  # a static model's bare tokenizer
            tokenizer.no_truncation()
            return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=special)]
        return tokenizer(texts, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]

    def _forward(self, texts: list[str]) -> FloatArray:
        """Vectors of one batch.

        Not through ``SentenceTransformer.encode``: it pools in the transformer's number format (bfloat16 has three
        digits), sorts by characters and shows its bar in pipes. In float32 the two take the same time.
        """
        import torch

        with torch.inference_mode():
            features = self._network.preprocess(texts, prompt=self._prompt)
            features = {
                name: value.to(self.device) if isinstance(value, torch.Tensor) else value
                for name, value in features.items()
            }
            for position, module in enumerate(self._network.children()):
                features = module(features)
                if position == 0 and "token_embeddings" in features:
                    features["token_embeddings"] = features["token_embeddings"].float()
            vectors = torch.nn.functional.normalize(features["sentence_embedding"].float(), dim=1)
        return vectors.cpu().numpy()


def load_encoder(reference: Mapping[str, Any], *, device: str = "auto") -> SentenceEncoder:
    """Build the encoder that a saved model was fitted with.

    reference: what ``SentenceEncoder.reference`` said then.
    Raises StorageError where it cannot be found, or where it would give other vectors.
    """
    if "model" not in reference:
        raise StorageError(
            f"the model was fitted with an encoder of your own (fingerprint {str(reference.get('fingerprint'))[:12]}); "
            "it cannot be found by name: hand it over as the loaded model's 'encoder'"
        )
    encoder = SentenceEncoder(
        reference["model"], device=device, max_tokens=reference["max_tokens"], dtype=reference["dtype"]
    )
    check_same_encoder(encoder, reference)
    return encoder


def encoder_reference(encoder: Encoder) -> dict[str, Any]:
    """Return what ``load_encoder`` needs; for an encoder without a name its fingerprint alone."""
    return dict(getattr(encoder, "reference", {"fingerprint": encoder.fingerprint}))


def check_same_encoder(encoder: Encoder, reference: Mapping[str, Any]) -> None:
    """Raise StorageError where the encoder is not the one that the reference describes."""
    if encoder.fingerprint != reference["fingerprint"]:
        raise StorageError(
            f"encoder {reference.get('model', 'given')!r} has fingerprint {encoder.fingerprint[:12]}, the model was "
            f"fitted with {str(reference['fingerprint'])[:12]}; its vectors would not match: use the weights, "
            "tokenizer and library versions of then, or fit again"
        )


def _clean(texts: Sequence[Any]) -> list[str]:
    """Texts without outer blanks and with "?" for what is no character (halves of emoji), which tokenizers refuse."""
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise DataError(
            f"texts hold {wrong[0]!r} of type {type(wrong[0]).__name__}; give strings, '' where there is no text"
        )
    return [text.strip().encode("utf-8", "replace").decode("utf-8") for text in texts]
