"""``HistoryCrossEncoder``: a BERT that reads a user's history once for all candidates; over texts, and as a scorer.

The network is in ``history_encoder.py``, its fine-tuning in ``training.py``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from llm_rerank.folders import CROSS_ENCODER_FILE, CURRENT, open_folder, tuned_model
from llm_rerank.models.changes import codes_to_read, texts_of, with_rows
from llm_rerank.models.cross_encoder.history_encoder import HistoryNetwork, NetworkShape, scoring_copy
from llm_rerank.models.cross_encoder.item_states import ItemReader, fresh_network
from llm_rerank.models.cross_encoder.item_table import ItemTable, build_table, read_table, write_table
from llm_rerank.models.cross_encoder.scoring import cases_of_visits, readable_histories, score_lists
from llm_rerank.models.cross_encoder.state_cache import StateType
from llm_rerank.models.cross_encoder.text_table import TextTable, check_texts, check_weights, pieces, what_was_cut
from llm_rerank.models.scoring import require_texts
from llm_rerank.models.semantic.encoder import SentenceEncoder, check_same_encoder, encoder_reference, load_encoder
from llm_rerank.models.semantic.weights import DEFAULT_MODEL, Dtype, settled, torch_dtype
from llm_rerank.storage import read_arrays, read_json, write_arrays, write_json
from llm_rerank.types import (
    BoolArray,
    Cases,
    DataError,
    Encoder,
    FloatArray,
    IntArray,
    Interactions,
    Items,
    NotFittedError,
    Ragged,
)


class HistoryCrossEncoder:
    """A cross-encoder over (history, candidate) whose every text is read once.

    score = temperature × recency-weighted cosine of the frozen encoder's vectors + head(candidate, history)

    The head starts at zero, so untrained it ranks as the sentence encoder does. Items are read alone by the lower
    layers and by trained copies of the upper ones; with ``cross_attention`` a candidate's [CLS] also reads the tokens
    of the history, through gates that start closed.

    encoder: whose vectors are the warm start; None: the encoder of ``model``. model: where the layers come from:
    "default", a folder, or a hub name (BERT, RoBERTa, XLM-RoBERTa). history_length: newest events that are read.
    item_tokens: tokens of a text that are read. n_upper: layers that are trained. cross_attention: see above.
    cache_folder: where token states are kept between runs; None: nowhere. cache_type: "float16" or "int8" (a scale for
    every 32 values). device: "auto", "cpu", "cuda", … dtype: "auto", "float32", "bfloat16" or "float16", of the reader
    of ``cross_attention``, which works anew for each pair; items are read in float32. "float32" holds for an encoder
    that is read here as well; else that one chooses. seed: of the new weights.

    Raises DataError for impossible settings, StorageError where weights are missing.
    """

    name = "cross_encoder"
    depends_on_list = False

    def __init__(
        self,
        encoder: Encoder | None = None,
        *,
        model: str | None = None,
        history_length: int = 20,
        item_tokens: int = 32,
        n_upper: int = 2,
        cross_attention: bool = False,
        cache_folder: str | Path | None = None,
        cache_type: StateType = "float16",
        device: str = "auto",
        dtype: Dtype = "auto",
        seed: int = 0,
    ) -> None:
        if history_length < 1:
            raise DataError(f"history_length is {history_length}; it must be at least 1, for example 20")
        # on a GPU as fast as bfloat16, with three more bits; the token states are kept in it anyway
        self.device, self.dtype = settled(device, dtype, on_gpu="float16")
        self._asked_dtype = dtype  # what is saved: another machine's "auto" may be another format
        self.model = model or str(getattr(encoder, "model", DEFAULT_MODEL))
        self.history_length, self.item_tokens, self.n_upper = history_length, item_tokens, n_upper
        self.cross_attention = cross_attention
        self.cache_folder = None if cache_folder is None else Path(cache_folder)
        self.cache_type: StateType = cache_type
        self.seed = seed
        self.training_log: list[dict[str, Any]] = []
        """One entry an evaluation of the last fine-tuning; empty: untrained."""
        self._encoder = encoder
        self._stored: Mapping[str, Any] = {}  # fingerprints of a loaded model, checked when its encoder is needed
        self._reader: ItemReader | None = None
        self._network: HistoryNetwork | None = None
        self._scoring: HistoryNetwork | None = None
        self._texts = TextTable()
        self._table: ItemTable | None = None
        self._has_text: BoolArray = np.empty(0, dtype=np.bool_)

    @classmethod
    def from_encoder(cls, model: str = DEFAULT_MODEL, **settings: Any) -> Self:
        """Build an untrained cross-encoder from a sentence encoder's weights; further settings as for the class."""
        return cls(model=model, **settings)

    @property
    def reader(self) -> ItemReader:
        """The frozen layers, read on first use; a loaded model that only scores never needs them."""
        if self._reader is None:
            reader = ItemReader(
                self.model,
                n_upper=self.n_upper,
                item_tokens=self.item_tokens,
                device=self.device,
                cache_folder=self.cache_folder,
                cache_type=self.cache_type,
            )
            reader.check(self._stored.get("reader"))
            self._reader = reader
        return self._reader

    @property
    def encoder(self) -> Encoder:
        """The frozen sentence encoder, read on first use."""
        if self._encoder is None:
            reference = self._stored.get("encoder")
            if reference is None:
                dtype: Dtype = "float32" if self._asked_dtype == "float32" else "auto"
                self._encoder = SentenceEncoder(
                    self.model, device=self.device, max_tokens=self.item_tokens, dtype=dtype
                )
            else:
                self._encoder = load_encoder(reference, device=self.device)
        return self._encoder

    @property
    def network(self) -> HistoryNetwork:
        """The trained part, in float32 on the device."""
        if self._network is None:
            self._network = fresh_network(self.reader, self.history_length, self.cross_attention, self.seed)
        return self._network

    @network.setter
    def network(self, network: HistoryNetwork) -> None:
        """Take over a trained network; what was computed with the old one is forgotten."""
        self._network, self._scoring = network, None
        self._texts, self._table = TextTable(), None

    # ------------------------------------------------------------- over texts

    def predict(
        self,
        histories: Sequence[Sequence[str]],
        candidates: Sequence[Sequence[str]],
        *,
        weights: Sequence[Sequence[float]] | None = None,
        show_progress_bar: bool = False,
    ) -> list[FloatArray]:
        """Score each user's candidate texts for the user's history of texts.

        histories: one list a user, oldest first; each text is one visit. candidates: one list a user. weights: above
        0, one a history text, None: all 1. A text that was read in an earlier call is not read again; many distinct
        texts are read and scored in pieces (``TEXTS_AT_ONCE``).

        Returns one float32 array a user, shape (n_candidates of the user,), in the order given. An empty history is
        scored by the head alone, an empty candidate text by the head and a similarity of 0.
        Raises DataError where the lists do not match, a list of texts is one text, or a weight is no number above 0.
        Warns once, with counts, where something had to be cut.
        """
        check_texts(histories, "histories")
        check_texts(candidates, "candidates")
        if len(histories) != len(candidates):
            raise DataError(
                f"histories has {len(histories)} rows and candidates {len(candidates)}; give one of each a user"
            )
        kept = [list(row)[-self.history_length :] for row in histories]
        kept_weights = [[1.0] * len(row) for row in kept]
        if weights is not None:
            check_weights(weights, histories)
            kept_weights = [list(row)[-self.history_length :] for row in weights]
        n_read = n_cut = 0

        def read(texts: list[str]) -> ItemTable:
            nonlocal n_read, n_cut
            table = build_table(
                self.network, self.reader, texts, self.encoder.encode(texts), progress=show_progress_bar
            )
            n_read, n_cut = n_read + len(texts), n_cut + self.reader.n_cut
            return table

        flat = [text for row in candidates for text in row]
        bounds = np.cumsum([0, *map(len, candidates)])
        scores = np.empty(len(flat), dtype=np.float32)
        for first, last in pieces(kept, candidates):
            users = np.flatnonzero((bounds[1:] > first) & (bounds[:-1] < last))
            ends = np.clip(np.append(bounds[users], last), first, last)
            lists = [flat[start:stop] for start, stop in zip(ends[:-1], ends[1:], strict=True)]
            table, rows = self._texts.take([*(kept[user] for user in users), *lists], read)
            scores[first:last] = self._score_rows(
                table, rows[: len(users)], [kept_weights[user] for user in users], rows[len(users) :]
            )
        settable = not self.training_log and not self._stored
        cut = what_was_cut(histories, self.history_length, n_cut, n_read, self.item_tokens, settable=settable)
        if cut:
            warnings.warn(cut, stacklevel=2)
        return np.split(scores, bounds[1:-1]) if len(candidates) else []

    def _score_rows(
        self,
        table: ItemTable,
        histories: Sequence[Sequence[int]],
        weights: Sequence[Sequence[float]],
        candidates: Sequence[Sequence[int]],
    ) -> FloatArray:
        """Score rows of a table, one list a user: float32, shape (n_candidates,)."""
        history, items = Ragged.from_lists(histories), Ragged.from_lists(candidates)
        has_text = (table.vectors != 0).any(dim=1).cpu().numpy()
        cases = cases_of_visits(history, np.array([w for row in weights for w in row], dtype=np.float32), items)
        found = readable_histories(cases, has_text, self.history_length)
        return score_lists(self._for_scoring(), table, found, items)

    # ------------------------------------------------------------- as a scorer

    def fit(self, past: Interactions, items: Items, *, seed: int) -> Self:
        """Read the items' texts with the network as it is; training is ``fine_tune``'s.

        Raises DataError where no item has a text.
        """
        require_texts(items, "cross-encoder")
        texts = list(items.texts)
        vectors = self.encoder.encode(texts)
        self._table = build_table(self.network, self.reader, texts, vectors, progress=True)
        self._has_text = np.array([bool(text.strip()) for text in texts], dtype=np.bool_)
        return self

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue, whose changed texts are read by the network as it is."""
        table = self._fitted()
        codes = codes_to_read(len(table), items, changed)
        texts = texts_of(items, codes)
        if len(codes):
            fresh = build_table(self.network, self.reader, texts, self.encoder.encode(texts))
            table = table.with_rows(codes, fresh)
        grown = copy.copy(self)
        grown._table, grown._texts = table, TextTable()  # ``predict`` writes into the latter
        grown._has_text = with_rows(self._has_text, len(items), codes, [bool(text.strip()) for text in texts])
        return grown

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,); NaN: no text, no history with text, or unknown to the catalogue."""
        table = self._fitted()
        codes = cases.candidates.values
        histories = readable_histories(cases, self._has_text, self.history_length)
        known = (codes >= 0) & (codes < len(table))
        known[known] = self._has_text[codes[known]]
        known &= (histories.rows.lengths > 0)[cases.candidates.row_of_value]
        lengths = np.bincount(cases.candidates.row_of_value[known], minlength=len(cases))
        scores = np.full(len(codes), np.nan, dtype=np.float32)
        scores[known] = score_lists(self._for_scoring(), table, histories, Ragged.from_lengths(codes[known], lengths))
        return scores

    def score_texts(self, cases: Cases, texts: Sequence[str]) -> FloatArray:
        """Score as if these texts were the candidates', read anew by the network as it is.

        texts: one a candidate, laid out as ``cases.candidates.values``, whose codes are not read.
        Returns float32, shape (n_candidates,); NaN for a blank text and where a case has no history with text.
        Raises StorageError where the frozen layers or the encoder of the fit cannot be loaded.
        """
        table, texts = self._fitted(), list(texts)
        histories = readable_histories(cases, self._has_text, self.history_length)
        # only what the histories hold: joining all of the catalogue would copy it
        used, places = np.unique(histories.rows.values, return_inverse=True)
        histories = replace(histories, rows=Ragged(places.astype(np.int64), histories.rows.offsets))
        fresh = build_table(self.network, self.reader, texts, self.encoder.encode(texts))
        known = np.array([bool(text.strip()) for text in texts], dtype=np.bool_)
        known &= (histories.rows.lengths > 0)[cases.candidates.row_of_value]
        lengths = np.bincount(cases.candidates.row_of_value[known], minlength=len(cases))
        rows = Ragged.from_lengths(len(used) + np.flatnonzero(known), lengths)
        scores = np.full(len(texts), np.nan, dtype=np.float32)
        scores[known] = score_lists(self._for_scoring(), ItemTable.joined([table.take(used), fresh]), histories, rows)
        return scores

    # ------------------------------------------------------------- on disk

    def save(self, folder: str | Path) -> None:
        """Write the trained part, settings, and the table of the items it was fitted on, into a folder.

        The frozen layers are not written: they are named, with a fingerprint, and read again when they are needed.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.float().cpu().numpy() for name, tensor in self.network.state_dict().items()}
        write_arrays(folder / "network.safetensors", weights)
        names = ("model", "history_length", "item_tokens", "n_upper", "cross_attention", "seed")
        stored = {
            "settings": {name: getattr(self, name) for name in names} | {"dtype": self._asked_dtype},
            "shape": self.network.shape.to_dict(),
            "reader": self._stored.get("reader") if self._reader is None else self._reader.fingerprint,
            "encoder": self._stored.get("encoder") if self._encoder is None else encoder_reference(self._encoder),
            "training_log": self.training_log,
        }
        write_json(folder / CROSS_ENCODER_FILE, stored)
        table = folder / "items.safetensors"
        if self._table is not None:
            write_table(table, self._table, self._has_text)
        else:
            table.unlink(missing_ok=True)  # one of an earlier save was read by other weights

    @classmethod
    def load(
        cls, folder: str | Path, *, encoder: Encoder | None = None, device: str = "auto", dtype: Dtype | None = None
    ) -> Self:
        """Read what ``save`` or ``llm-rerank finetune`` wrote; frozen layers are not loaded before a new text comes.

        folder: of finetune, what it was told to write to, or ``model`` in there.

        encoder: the encoder of then, where it cannot be found by its name. dtype: None: as was asked for then.
        Raises StorageError where the encoder given is another one.
        """
        folder = tuned_model(Path(folder)) or Path(folder)
        if (folder / CURRENT).exists():
            folder = open_folder(folder)
        stored = read_json(folder / CROSS_ENCODER_FILE)
        if encoder is not None and stored["encoder"] is not None:  # None: saved before it had read anything
            check_same_encoder(encoder, stored["encoder"])
        model = cls(encoder, device=device, **stored["settings"] | ({} if dtype is None else {"dtype": dtype}))
        model._stored = stored
        model.training_log = stored["training_log"]
        arrays, _ = read_arrays(folder / "network.safetensors")
        network = HistoryNetwork(NetworkShape(**stored["shape"]))
        network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        model.network = network.to(model.device).eval()
        if (folder / "items.safetensors").exists():
            model._table, model._has_text = read_table(folder / "items.safetensors", model.device)
        return model

    def _for_scoring(self) -> HistoryNetwork:
        """Return the network with its reader in the number format of scoring."""
        if self._scoring is None:
            self._scoring = scoring_copy(self.network, torch_dtype(self.dtype))
        return self._scoring

    def _fitted(self) -> ItemTable:
        if self._table is None:
            raise NotFittedError("HistoryCrossEncoder has no items; call fit or load first, or predict over texts")
        return self._table
