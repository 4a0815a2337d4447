"""Three small nets over text and id that say what comes next; each reads the history its own way, and they vote.

How they are trained is in ``sequence_training.py``; scoring is numpy.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np

from llm_rerank.models.changes import codes_to_read, longer
from llm_rerank.models.collaborative.sequence_rows import Events, case_context, causal_rows, leave_one_out_rows
from llm_rerank.models.collaborative.sequence_tables import SequenceTables
from llm_rerank.models.collaborative.sequence_texts import CountedTexts, EncodedTexts, Texts, texts_from_arrays
from llm_rerank.models.scoring import require_texts, score_candidates
from llm_rerank.storage import read_arrays, write_arrays
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
)

Net = Literal["average", "attention", "leave_one_out"]

ATTENTION_LENGTH = 50
"""Events that a net may attend to at most: unlike an average it takes time for each."""

_FILE = "sequence.safetensors"
_SETTINGS = (
    "text",
    "nets",
    "embedding_size",
    "epochs",
    "learning_rate",
    "batch_size",
    "dropout",
    "text_dropout",
    "history_length",
    "most_cells",
)


class SequenceScorer:
    """Score of item i = √ mean over nets of P_net(i | history), P a softmax over all items of the fit.

    Each net has unit item vectors, W·text + id, and a user vector that is a weighted average of the history's; see
    ``sequence_networks.SequenceNetwork``. They differ in what they learn from:

    "average" reads, before each visit, the history up to it, faded by a learned decay, and finds the visit's new
    items. "attention" lets that average decide once more which events count. "leave_one_out" reads the events on both
    sides of an item and finds the item, as EASE does.

    Probabilities, not logits, because a sum of standardised scores should hear a net where it is sure; the root tames
    their tail. Training reads first purchases only as targets, since seen items are not recommended.

    encoder: its whitened vectors are the text. None: word and character counts, reduced (``CountedTexts``). text:
    False: ids only, the texts are not read. nets: which ones vote; one without a
    row to learn from is left out. epochs: fixed; the learning rate falls to 0 over
    them. dropout: of the user vector; text_dropout: share of items that go without their text in a step.
    history_length: newest liked events that are read, in training and in scoring ("attention": 50 at most).
    most_cells: rows × items of an epoch, which bounds its time; above that rows are drawn at random for each epoch.
    Scores: NaN for items with neither text nor events, and for histories without a readable item. Dislikes are left
    out.

    loss_curves: by net, float32, shape (epochs,), mean loss a row in training.
    Memory: the model 3 nets × 2 × n_items × embedding_size × 4 bytes (27 MB at 4,385 items), a step of training 2 ×
    batch_size × n_items × 4 bytes besides.
    Known limits: the softmax is full, so a catalogue far above 50,000 items wants another model; a catalogue whose
    items are liked once each teaches ids nothing.
    """

    name = "sequence"
    depends_on_list = False

    def __init__(
        self,
        encoder: Encoder | None = None,
        *,
        text: bool = True,
        nets: Sequence[Net] = get_args(Net),
        embedding_size: int = 128,
        epochs: int = 3,
        learning_rate: float = 0.01,
        batch_size: int = 1024,
        dropout: float = 0.3,
        text_dropout: float = 0.0,
        history_length: int = 200,
        most_cells: int = 200_000_000,
    ) -> None:
        unknown = [net for net in nets if net not in get_args(Net)]
        if unknown or not nets or len(set(nets)) < len(nets):
            raise DataError(f"nets is {list(nets)}; give one or more of {', '.join(get_args(Net))}, each once")
        if encoder is not None and not text:
            raise DataError("encoder is given and text is False; leave one of them out")
        for name, share in (("dropout", dropout), ("text_dropout", text_dropout)):
            if not 0 <= share < 1:
                raise DataError(f"{name} is {share}; it must lie in [0, 1)")
        self.encoder = encoder
        self.text = text
        self.nets = list(nets)
        self.embedding_size = embedding_size
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.dropout = dropout
        self.text_dropout = text_dropout
        self.history_length = history_length
        self.most_cells = most_cells
        for name in _SETTINGS[2:]:
            if "dropout" not in name and not getattr(self, name) > 0:
                raise DataError(f"{name} is {getattr(self, name)}; it must be above 0")
        self.loss_curves: dict[str, FloatArray] = {}
        self._texts: Texts | None = None
        self._fitted: BoolArray = np.empty(0, dtype=np.bool_)
        self._tables: dict[str, SequenceTables] = {}

    def fit(self, past: Interactions, items: Items, *, seed: int = 0) -> Self:
        """Train; the same seed gives the same model on the same machine.

        Raises DataError where there is no history to learn from, where text is wanted and no item has one, and where
        training diverged.
        """
        from llm_rerank.models.collaborative.sequence_networks import NetworkSettings
        from llm_rerank.models.collaborative.sequence_training import TrainingSettings, train

        events = Events.of(past)
        rows = {
            net: (leave_one_out_rows if net == "leave_one_out" else causal_rows)(events, self._length_read_by(net))
            for net in self.nets
        }
        if not any(map(len, rows.values())):
            raise DataError(
                f"sequence found nothing for {', '.join(self.nets)} to learn from: no user liked a second item later "
                "on; check user_id, event, weight, rating and timestamp"
            )
        text, self._texts = self._read_texts(items, seed)
        support = np.bincount(events.histories.values, minlength=past.n_items)
        fitted = support > 0
        settings = TrainingSettings(self.epochs, self.learning_rate, self.batch_size, self.most_cells)
        tables: dict[str, SequenceTables] = {}
        curves: dict[str, FloatArray] = {}
        for net in self.nets:
            if not len(rows[net]):
                continue
            network = NetworkSettings(self.embedding_size, net == "attention", self.dropout, self.text_dropout)
            trained, curves[net] = train(rows[net], text, fitted, network, settings, seed=seed)
            tables[net] = SequenceTables.of(trained, support, text)
        self._fitted, self._tables, self.loss_curves = fitted, tables, curves
        return self

    def score_catalogue(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_cases, n_items), 0 to 1 for items of the fit."""
        tables = self._trained()
        readable = np.asarray(np.any(next(iter(tables.values())).vectors, axis=1))
        fitted = np.flatnonzero(self._fitted)
        total = np.zeros((len(cases), len(readable)), dtype=np.float32)
        for net, table in tables.items():
            context = case_context(cases, readable, self._length_read_by(net))
            total += table.probabilities(context, fitted)
        total /= np.float32(len(tables))
        np.sqrt(total, out=total)
        if not readable.all():
            total[:, ~readable] = np.nan
        return total

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,)."""
        return score_candidates(self, cases)

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue: a new item is scored by its text, an old one by its new text.

        Items of the fit keep their ids. Without text new items' scores are NaN.

        Raises StorageError where texts were read by an encoder that is not at hand.
        """
        tables = self._trained()
        codes = codes_to_read(len(self._fitted), items, changed)
        if self._texts is None:
            text = np.empty((len(codes), 0), dtype=np.float32)
        else:
            text = self._texts.vectors(items, codes, self.encoder)
        grown = copy.copy(self)
        grown._fitted = longer(self._fitted, len(items), False)
        grown._tables = {net: table.grown(len(items), codes, text) for net, table in tables.items()}
        return grown

    def save(self, folder: Path) -> None:
        """Write one file: tables, the measure of texts and the settings; the encoder by name and fingerprint only."""
        arrays: dict[str, np.ndarray] = {"fitted": self._fitted}
        for net, table in self._trained().items():
            arrays |= {**table.to_arrays(net), f"{net}.loss": self.loss_curves[net]}
        if self._texts is not None:
            arrays |= self._texts.to_arrays()
        reference = dict(self._texts.reference) if isinstance(self._texts, EncodedTexts) else None
        settings = {name: getattr(self, name) for name in _SETTINGS}
        write_arrays(folder / _FILE, arrays, {"settings": settings, "encoder": reference})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote; needs neither torch nor the encoder, before an item is new."""
        arrays, metadata = read_arrays(folder / _FILE)
        scorer = cls(**metadata["settings"])
        scorer._texts = texts_from_arrays(arrays, metadata["encoder"])
        scorer._fitted = arrays["fitted"]
        trained = [net for net in scorer.nets if f"{net}.vectors" in arrays]
        scorer._tables = {net: SequenceTables.from_arrays(arrays, net) for net in trained}
        scorer.loss_curves = {net: arrays[f"{net}.loss"] for net in trained}
        return scorer

    def _length_read_by(self, net: str) -> int:
        return min(self.history_length, ATTENTION_LENGTH) if net == "attention" else self.history_length

    def _read_texts(self, items: Items, seed: int) -> tuple[FloatArray, Texts | None]:
        """Vectors of all items' texts, shape (n_items, text_size), and how later ones are read."""
        if not self.text:
            return np.empty((len(items), 0), dtype=np.float32), None
        require_texts(items, "sequence scorer (or pass text=False)")
        if self.encoder is not None:
            encoded, text = EncodedTexts.fit(items, self.encoder)
            return text, encoded
        counted, text = CountedTexts.fit(items, seed=seed)
        return text, counted

    def _trained(self) -> dict[str, SequenceTables]:
        if not self._tables:
            raise NotFittedError("sequence has no weights yet; call fit or load first")
        return self._tables
