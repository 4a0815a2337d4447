"""``LanguageModelScorer``: how much likelier a language model finds an item's text after a user's history.

Nothing is trained. How texts are read is in ``causal.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from tqdm.auto import tqdm

from llm_rerank.data.rendering import read_template
from llm_rerank.models.changes import codes_to_read, longer
from llm_rerank.models.cross_encoder.pairwise_texts import PairTexts, history_texts
from llm_rerank.models.language_model.causal import CausalLanguageModel
from llm_rerank.models.scoring import require_texts
from llm_rerank.models.semantic.weights import DEFAULT_MODEL, Dtype
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
    Ragged,
    StorageError,
)

TEMPLATE = "next_item"
MOST_TEXTS_KEPT = 2**20
"""Texts whose log-likelihood on their own is kept: some 100 MB. Then they are read anew."""


class LanguageModelScorer:
    """Pointwise mutual information of a user's history and a candidate's text, by a causal language model.

        score = log P(text | history) − log P(text | no history)

    in nats, both sums over the tokens of the text and of the line's end (Holtzman et al., 2021, "Surface form
    competition": a short or common text is likely after anything). The prompt is ``prompts/next_item.jinja``; the
    history's ``history_length`` newest distinct items stand in it, oldest first, each text cut to ``item_tokens``. The
    history is read once for all candidates, and each text once without it. Disliked items (weight below 0) are left
    out. NaN where the candidate has no text, or where the case has no history with text.
    In bfloat16 a score depends, by up to a nat, on the texts that are read together; in float32 by its last digits.

    Zero-shot: nothing is learned of the shop, and a pair takes milliseconds (docs/language-models.md says what it was
    worth on real data).

    model: a ``CausalLanguageModel``, or what names one: "default", a .gguf file, a folder, a hub name.
    Raises DataError for impossible settings, StorageError where the weights are missing, unreachable or damaged.
    """

    name = "language_model"
    depends_on_list = False

    def __init__(
        self,
        model: str | CausalLanguageModel = DEFAULT_MODEL,
        *,
        history_length: int = 10,
        item_tokens: int = 24,
        device: str = "auto",
        dtype: Dtype = "auto",
    ) -> None:
        for name, value in (("history_length", history_length), ("item_tokens", item_tokens)):
            if value < 1:
                raise DataError(f"{name} is {value}; it must be at least 1 (the defaults are 10 and 24)")
        self.history_length = history_length
        self.item_tokens = item_tokens
        if isinstance(model, CausalLanguageModel):
            self.model = model
        else:
            self.model = CausalLanguageModel(model, device=device, dtype=dtype)
        self._template = read_template(TEMPLATE, {"history": ["a", "b"]})
        self._cutter = PairTexts(self.model.tokenizer, history_length * item_tokens, item_tokens)
        self._alone: dict[str, float] = {}
        self._texts: ObjectArray | None = None
        longest = len(self._beginning([])) + (history_length + 1) * (item_tokens + 2)
        if longest > self.model.most_tokens:
            raise DataError(
                f"history_length {history_length} and item_tokens {item_tokens} make up to {longest} tokens, but "
                f"{self.model.model!r} reads at most {self.model.most_tokens}; lower history_length"
            )

    def predict(
        self,
        histories: Sequence[Sequence[str]],
        candidates: Sequence[Sequence[str]],
        *,
        show_progress_bar: bool = False,
    ) -> list[FloatArray]:
        """Score each user's candidates.

        histories: texts of each user's items, oldest first; may be empty. candidates: texts, one row a user.
        Returns one float32 array a user, shape (n_candidates_of_user,); NaN for a blank text, and for all candidates of
        a user without a text in the history.

        Raises DataError where the two differ in length or hold something else than strings.
        """
        if len(histories) != len(candidates):
            raise DataError(f"histories has {len(histories)} rows, candidates {len(candidates)}; give one row a user")
        cut = [self._cutter.items(row) for row in histories]
        pairs = zip(cut, (self._cutter.items(row) for row in candidates), strict=True)
        with tqdm(
            pairs, total=len(cut), desc="reading", unit="user", disable=None if show_progress_bar else True
        ) as bar:
            return [self._information(history, texts) for history, texts in bar]

    def fit(self, past: Interactions, items: Items, *, seed: int) -> Self:
        """Take the items' texts. Nothing is trained, the events are not read.

        Raises DataError where no item has a text.
        """
        require_texts(items, "language model")
        self._texts = self._cut(items.texts)
        return self

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue with the changed texts; both share one model."""
        texts = self._fitted()
        codes = codes_to_read(len(texts), items, changed)
        grown = copy.copy(self)
        grown._texts = longer(texts, len(items), "")
        grown._texts[codes] = self._cut(items.texts[codes])
        return grown

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,); NaN: no text, no history, or unknown to the catalogue."""
        known = self._fitted()
        texts = np.append(known, "")  # the last: whatever the catalogue does not know
        codes = cases.candidates.values
        codes = np.where((codes >= 0) & (codes < len(known)), codes, len(known))
        scores = np.full(len(codes), np.nan, dtype=np.float32)
        histories = enumerate(history_texts(cases, known))
        for row, history in tqdm(histories, total=len(cases), desc="reading", unit="user", disable=None):
            span = slice(*cases.candidates.offsets[row : row + 2])
            scores[span] = self._information(history, texts[codes[span]].tolist())
        return scores

    def save(self, folder: str | Path) -> None:
        """Write the settings, the model's name and fingerprint, and the catalogue's texts; not the weights."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {name: getattr(self, name) for name in ("history_length", "item_tokens")}
        reference = {"model": self.model.model, "dtype": self.model.dtype, "fingerprint": self.model.fingerprint}
        write_json(folder / "language_model.json", {"settings": settings, **reference})
        write_strings(folder / "texts.parquet", self._fitted())

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> Self:
        """Read what ``save`` wrote, and the weights from where they came.

        Raises StorageError where something is missing or damaged, or where the model is not the one of then.
        """
        folder = Path(folder)
        stored = read_json(folder / "language_model.json")
        scorer = cls(stored["model"], device=device, dtype=stored["dtype"], **stored["settings"])
        if scorer.model.fingerprint != stored["fingerprint"]:
            raise StorageError(
                f"language model {stored['model']!r} has other weights, another tokenizer or number format than the "
                "one that was saved; its scores would not compare: use the files of then, or fit again"
            )
        scorer._texts = read_strings(folder / "texts.parquet")
        return scorer

    def _information(self, history: Iterable[str], candidates: Sequence[str]) -> FloatArray:
        """Score the candidates of one user, texts that are cut; "" is none."""
        scores = np.full(len(candidates), np.nan, dtype=np.float32)
        # of an item that comes again the newest stays; a dict keeps the order in which keys came
        newest = list(dict.fromkeys(reversed([text for text in history if text])))[: self.history_length]
        texts = list(dict.fromkeys(text for text in candidates if text))
        if newest and texts:
            after = dict(zip(texts, self._log_likelihoods(newest[::-1], texts), strict=True))
            alone = self._on_their_own(texts)
            for place, text in enumerate(candidates):
                if text:
                    scores[place] = after[text] - alone[text]
        return scores

    def _on_their_own(self, texts: Sequence[str]) -> dict[str, float]:
        """Log-likelihoods without a history; what was read before is not read again."""
        kept = self._alone
        found = {text: kept[text] for text in texts if text in kept}
        fresh = [text for text in texts if text not in found]
        if fresh:
            found.update(zip(fresh, self._log_likelihoods([], fresh).tolist(), strict=True))
            if len(kept) + len(fresh) > MOST_TEXTS_KEPT:
                self._alone = kept = {}  # a new one: another thread may be reading the old
            kept.update({text: found[text] for text in fresh})
        return found

    def _log_likelihoods(self, history: Sequence[str], texts: Sequence[str]) -> FloatArray:
        ids = self.model.continuation_ids([f" {text}\n" for text in texts])
        return self.model.log_likelihoods(self._beginning(history), Ragged.from_lists(ids))

    def _beginning(self, history: Sequence[str]) -> list[int]:
        return self.model.beginning_ids(self._template.render(history=history))

    def _cut(self, texts: Iterable[str]) -> ObjectArray:
        rows = self._cutter.items(texts)
        cut = np.empty(len(rows), dtype=object)
        cut[:] = rows
        return cut

    def _fitted(self) -> ObjectArray:
        if self._texts is None:
            raise NotFittedError("LanguageModelScorer has no item texts; call fit or load first")
        return self._texts
