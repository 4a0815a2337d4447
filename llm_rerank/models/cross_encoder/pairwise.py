"""The conventional cross-encoder: a BERT that reads history and candidate as one text, each pair from the beginning.

The baseline of quality and of cost: sentence-transformers' ``CrossEncoder`` as it is, fine-tuned on the lists that the
history cross-encoder is tuned on. Nothing is shared between pairs, and that is what makes it slow.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from llm_rerank.models.changes import codes_to_read, longer
from llm_rerank.models.cross_encoder.lists import TrainingLists
from llm_rerank.models.cross_encoder.pairwise_network import half_copy, load_pair_network
from llm_rerank.models.cross_encoder.pairwise_texts import PairTexts, history_texts
from llm_rerank.models.scoring import require_texts
from llm_rerank.models.semantic.weights import (
    DEFAULT_MODEL,
    Dtype,
    DTypeName,
    network_fingerprint,
    quiet,
    settled,
)
from llm_rerank.storage import read_json, read_strings, write_json, write_strings
from llm_rerank.types import (
    Cases,
    DataError,
    FloatArray,
    IntArray,
    Interactions,
    Items,
    NotFittedError,
    ObjectArray,
    StorageError,
)

if TYPE_CHECKING:
    from llm_rerank.models.cross_encoder.pairwise_training import FineTuning

BLOCK_SIZE = 256
"""Cases handed to ``CrossEncoder.predict`` at once: it sorts what it gets by length, and keeps it all in memory."""


class PairwiseCrossEncoder:
    """Score of a history's text and a candidate's text, read together with full attention.

    Built by ``from_encoder``, tuned on lists by ``fine_tune``; ``fit`` takes the catalogue's texts and trains nothing.
    The history is rendered newest first, so that what exceeds ``history_tokens`` falls off its oldest end; each item's
    text is cut to ``item_tokens``, in the history as well. Disliked items (weight below 0) are left out: a text does
    not say how an item was taken. Without a history a candidate is read alone; without a text it has no score.
    In bfloat16 the third digit of a score depends on the batch that the pair is computed in.
    """

    name = "pairwise_cross_encoder"
    depends_on_list = False

    def __init__(
        self, network: Any, *, history_tokens: int, item_tokens: int, dtype: DTypeName, new_weights: list[str]
    ) -> None:
        self.history_tokens = history_tokens
        self.item_tokens = item_tokens
        self.dtype: DTypeName = dtype
        self._asked_dtype: Dtype = dtype  # what is saved: another machine's "auto" may be another format
        self.device = str(network.device)
        self.offset_weight = 1.0  # λ of the last fine-tuning
        self._network = network  # always float32; 16 bits are a copy
        self._half_network: Any = None
        self._new_weights = new_weights
        self._pair_texts = PairTexts(network.tokenizer, history_tokens, item_tokens)
        self._texts: ObjectArray | None = None

    @classmethod
    def from_encoder(
        cls,
        model: str = DEFAULT_MODEL,
        *,
        history_tokens: int = 200,
        item_tokens: int = 32,
        device: str = "auto",
        dtype: Dtype = "auto",
    ) -> Self:
        """Start from a sentence encoder's weights, or from a trained cross-encoder.

        model: "default" is the embedded MiniLM, else a folder, else a hub name. A cross-encoder of one output keeps its
        trained head, read before its activation. A body without a head gets one whose last layer is zero: every pair
        scores 0 until it is tuned, so that tuning starts from the offset alone.
        dtype: of ``predict``. The weights stay float32; where it is bfloat16 they are tuned under autocast.

        Raises DataError for impossible settings, StorageError where the weights are missing, unreachable, damaged or of
        a kind that does not score pairs.
        """
        for name, value in (("history_tokens", history_tokens), ("item_tokens", item_tokens)):
            if value < 1:
                raise DataError(f"{name} is {value}; it must be at least 1 (the defaults are 200 and 32)")
        device, number_format = settled(device, dtype)
        network, new_weights = load_pair_network(model, device)
        longest = history_tokens + item_tokens + network.tokenizer.num_special_tokens_to_add(pair=True)
        if longest > network.max_seq_length:
            raise DataError(
                f"history_tokens {history_tokens} and item_tokens {item_tokens} make pairs of {longest} tokens, but "
                f"{model!r} reads at most {network.max_seq_length}; lower history_tokens"
            )
        network.max_seq_length = longest
        scorer = cls(
            network,
            history_tokens=history_tokens,
            item_tokens=item_tokens,
            dtype=number_format,
            new_weights=new_weights,
        )
        scorer._asked_dtype = dtype
        return scorer

    def predict(
        self,
        histories: Sequence[Sequence[str]],
        candidates: Sequence[Sequence[str]],
        *,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> list[FloatArray]:
        """Score each user's candidates with ``CrossEncoder.predict``.

        histories: texts of each user's items, oldest first; may be empty. candidates: texts, one row a user.
        Returns one float32 array a user, shape (n_candidates_of_user,).

        Raises DataError where the two differ in length or hold something else than strings.
        """
        if len(histories) != len(candidates):
            raise DataError(f"histories has {len(histories)} rows, candidates {len(candidates)}; give one row a user")
        texts = iter(self._pair_texts.items(text for row in candidates for text in row))
        rendered = self._pair_texts.histories(histories)
        pairs = [(history, next(texts)) for history, row in zip(rendered, candidates, strict=True) for _ in row]
        if not pairs:
            return [np.empty(0, dtype=np.float32) for _ in candidates]
        from torch import nn

        if self.dtype != "float32" and self._half_network is None:
            self._half_network = half_copy(self._network, self.dtype)
        network = self._network if self.dtype == "float32" else self._half_network
        scores = network.predict(
            pairs,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            activation_fn=nn.Identity(),  # a sigmoid would round high scores to equal ones
        )
        return np.split(scores.astype(np.float32), np.cumsum([len(row) for row in candidates])[:-1])

    def fine_tune(
        self,
        lists: TrainingLists,
        texts: ObjectArray,
        *,
        validation: TrainingLists | None = None,
        steps: int = 100,
        lists_per_step: int = 8,
        learning_rate: float = 2e-5,
        head_learning_rate: float = 1e-3,
        evaluate_every: int = 10,
        patience: int = 3,
        seed: int = 0,
    ) -> FineTuning:
        """Tune all weights on −log softmax(λ × offset + score) of each list's positive; λ is learned, from 1.

        AdamW, a tenth of the steps to warm up, then a line down to 0; gradients clipped at 1. Memory grows with the
        longest list: draw negatives first (``sample_negatives``).

        texts: object, shape (n_items,), by item code.
        validation: lists of other users. Each ``evaluate_every`` steps they are scored; the weights with the least loss
        are kept, the untrained ones if none beats them, and after ``patience`` scorings without a new least the
        training ends. None: the last weights are kept.
        head_learning_rate: of weights that were never trained (a new head). learning_rate: of all others.

        Raises DataError for impossible settings, for codes beyond ``texts``, and where the loss is no longer finite;
        the model is then as it was.
        """
        from llm_rerank.models.cross_encoder.pairwise_training import TuningSettings, tune

        settings = TuningSettings(
            steps=steps,
            lists_per_step=lists_per_step,
            learning_rate=learning_rate,
            head_learning_rate=head_learning_rate,
            evaluate_every=evaluate_every,
            patience=patience,
        )
        record = tune(
            self._network,
            self._pair_texts.lists(lists, texts),
            None if validation is None else self._pair_texts.lists(validation, texts),
            settings,
            new_weights=set(self._new_weights),
            dtype=self.dtype,
            seed=seed,
        )
        self._half_network = None
        self.offset_weight = record.offset_weight
        self._new_weights = [] if record.kept_step else self._new_weights
        return record

    def fit(self, past: Interactions, items: Items, *, seed: int) -> Self:
        """Take the items' texts. Nothing is trained here, the events are not read.

        Raises DataError where no item has a text.
        """
        require_texts(items, "pairwise cross-encoder")
        self._texts = np.empty(len(items), dtype=object)
        self._texts[:] = self._pair_texts.items(items.texts)
        return self

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue with the changed texts; both share one network."""
        if self._texts is None:
            raise NotFittedError("PairwiseCrossEncoder has no item texts; call fit or load first")
        codes = codes_to_read(len(self._texts), items, changed)
        grown = copy.copy(self)
        grown._texts = longer(self._texts, len(items), "")
        grown._texts[codes] = self._pair_texts.items(items.texts[codes])
        return grown

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,); NaN: no text, or unknown to the catalogue."""
        if self._texts is None:
            raise NotFittedError("PairwiseCrossEncoder has no item texts; call fit or load first")
        texts = np.append(self._texts, "")  # the last: whatever the catalogue does not know
        codes, rows = cases.candidates.values, cases.candidates.row_of_value
        codes = np.where((codes >= 0) & (codes < len(self._texts)), codes, len(self._texts))
        scores = np.full(len(codes), np.nan, dtype=np.float32)
        readable = np.flatnonzero(texts[codes] != "")
        histories = history_texts(cases, self._texts)
        for start in range(0, len(cases), BLOCK_SIZE):
            stop = min(start + BLOCK_SIZE, len(cases))
            first, *edges = np.searchsorted(rows[readable], np.arange(start, stop + 1))
            block = readable[first : edges[-1]]
            candidates = [row.tolist() for row in np.split(texts[codes[block]], np.subtract(edges[:-1], first))]
            scores[block] = np.concatenate(self.predict(histories[start:stop], candidates))
        return scores

    def save(self, folder: str | Path) -> None:
        """Write the settings, the catalogue's texts where there are any, and the network as ``CrossEncoder`` does.

        ``<folder>/network`` is a model of sentence-transformers, which reads it without this library.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {name: getattr(self, name) for name in ("history_tokens", "item_tokens")}
        state = {
            "offset_weight": self.offset_weight,
            "new_weights": self._new_weights,
            "fingerprint": self._fingerprint(),
            "has_texts": self._texts is not None,
        }
        write_json(folder / "pairwise.json", {"settings": settings | {"dtype": self._asked_dtype}, "state": state})
        if self._texts is not None:
            write_strings(folder / "texts.parquet", self._texts)
        with quiet():
            self._network.save_pretrained(str(folder / "network"), create_model_card=False, safe_serialization=True)
        for weights in (folder / "network").glob("*.safetensors"):  # written for their owner alone
            weights.chmod((folder / "pairwise.json").stat().st_mode & 0o777)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> Self:
        """Read what ``save`` wrote.

        Raises StorageError where a file is missing or damaged, or where the network is not the one that was saved.
        """
        folder = Path(folder)
        stored = read_json(folder / "pairwise.json")
        path = folder / "network"
        if not path.is_dir():
            raise StorageError(f"{path} is missing; save the model again or restore the folder")
        scorer = cls.from_encoder(str(path), device=device, **stored["settings"])
        state = stored["state"]
        if scorer._fingerprint() != state["fingerprint"]:
            raise StorageError(f"{path} is not the network that was saved here; save the model again")
        scorer.offset_weight, scorer._new_weights = state["offset_weight"], state["new_weights"]
        if state["has_texts"]:
            scorer._texts = read_strings(folder / "texts.parquet")
        return scorer

    def _fingerprint(self) -> str:
        dtype = cast("DTypeName", self._asked_dtype)  # also where it is "auto"
        return network_fingerprint(self._network, self._network.max_seq_length, dtype, None)
