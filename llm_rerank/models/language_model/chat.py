"""A chat model that is asked to put a user's candidates in order, on any server that speaks OpenAI's protocol.

It learns nothing and reads no user ids. What is sent is redacted first (``data/redaction.py``, whose limits hold here
too); how the server is asked stands in ``chat_server.py``, how its answers are read in ``answers.py``.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Self

import numpy as np
from tqdm.auto import tqdm

from llm_rerank.data.cases import QUERY_SEPARATOR
from llm_rerank.models.changes import codes_to_read, longer, texts_of
from llm_rerank.models.language_model.chat_questions import (
    DISLIKED,
    INTERESTED,
    TOOK,
    Cleaner,
    Prompts,
    Question,
    check_texts,
)
from llm_rerank.models.language_model.chat_server import ChatServer, ServerSettings, Unanswered, Usage
from llm_rerank.models.language_model.windows import windows_from_back
from llm_rerank.models.scoring import require_texts
from llm_rerank.storage import read_json, read_strings, write_json, write_strings
from llm_rerank.types import Cases, DataError, FloatArray, IntArray, Interactions, Items, NotFittedError, ObjectArray


class ChatRanker:
    """Puts candidates in the order in which a chat model names them: score = 1 / place, from 1 for the first.

    Candidates that the answer leaves out come last, in the order given; equal texts share a place. A case that got no
    order in all attempts is NaN, as is one without history and search; what failed is counted in one warning. Lists
    longer than ``window`` are put in order window by window from the back (``windows.py``), so give the best
    candidates first. The scores say nothing beyond the order and are no probabilities.

    model: its name on the server. base_url: such as "http://localhost:8000/v1"; None: OpenAI's own, or OPENAI_BASE_URL.
    api_key: None: OPENAI_API_KEY. history_length: newest events and newest searches that are told. text_tokens: longer
    texts are cut. window, step: 1 ≤ step ≤ window, 2 ≤ window. n_parallel: requests at once; the answers do not
    depend on it. temperature, seed, timeout_s, retries, backoff_s, max_requests: ``ServerSettings``. cache_folder:
    keeps answers for later runs: numbers only, under a hash. redact_terms: names, user ids, … that must not be sent.
    """

    name = "chat"
    depends_on_list = True

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        history_length: int = 20,
        text_tokens: int = 64,
        window: int = 20,
        step: int = 10,
        n_parallel: int = 4,
        temperature: float | None = 0.0,
        seed: int | None = 0,
        timeout_s: float = 60.0,
        retries: int = 3,
        backoff_s: float = 1.0,
        max_requests: int | None = None,
        cache_folder: str | Path | None = None,
        redact_terms: Iterable[str] = (),
    ) -> None:
        counts = {"history_length": history_length, "text_tokens": text_tokens, "step": step, "n_parallel": n_parallel}
        for name, value in counts.items():
            if value < 1:
                raise DataError(f"{name} is {value}; it must be at least 1")
        if window < max(step, 2):
            raise DataError(f"window is {window} and step {step}; a window holds at least 2, and a step at most it")
        settings = ServerSettings(model, base_url, temperature, seed, timeout_s, retries, backoff_s, max_requests)
        self.history_length = history_length
        self.text_tokens = text_tokens
        self.window = window
        self.step = step
        self.n_parallel = n_parallel
        self._server = ChatServer(settings, api_key=api_key, cache_folder=cache_folder)
        self._cleaner = Cleaner(redact_terms, text_tokens=text_tokens)
        self._prompts = Prompts()
        self._n_terms_missing = 0
        self._texts: ObjectArray | None = None

    @property
    def settings(self) -> ServerSettings:
        """How the server is asked; the key is not among it."""
        return self._server.settings

    @property
    def usage(self) -> Usage:
        """Requests and tokens so far; ``usage.sentence()`` says it."""
        return self._server.usage

    # ------------------------------------------------------------- over texts

    def predict(
        self,
        histories: Sequence[Sequence[str]],
        candidates: Sequence[Sequence[str]],
        *,
        actions: Sequence[Sequence[str]] | None = None,
        searches: Sequence[Sequence[str]] | None = None,
    ) -> list[FloatArray]:
        """Score each user's candidate texts for the user's history of texts.

        histories, searches: one list a user, oldest first. candidates: one list a user. actions: what was done with
        each text of the history, such as "viewed" or "returned"; None: it was taken.
        Returns one float32 array a user, shape (n_candidates of the user,), in the order given; NaN: not answered, or
        a blank text.
        Raises DataError where the lists do not match, ServerError where every request would fail, BudgetError before
        more than ``max_requests`` are sent. Warns once, with counts, where cases got no order.
        """
        actions = [[TOOK] * len(row) for row in histories] if actions is None else actions
        searches = [[] for _ in histories] if searches is None else searches
        given = {"candidates": candidates, "actions": actions, "searches": searches}
        for name, rows in ({"histories": histories} | given).items():
            check_texts(rows, name)
            if len(rows) != len(histories):
                raise DataError(f"histories has {len(histories)} rows and {name} {len(rows)}; give one of each a user")
        for texts, done in zip(histories, actions, strict=True):
            if len(texts) != len(done):
                raise DataError(f"a history has {len(texts)} texts and {len(done)} actions; give one for each")
        clean = self._cleaner.by_text(text for rows in (histories, *given.values()) for row in rows for text in row)
        rows = [[clean[text] for text in row] for row in candidates]
        questions = [
            Question.of(
                [(clean[action], clean[text]) for action, text in zip(done, texts, strict=True)],
                [clean[text] for text in searched],
                row,
                newest=self.history_length,
            )
            for texts, done, searched, row in zip(histories, actions, searches, rows, strict=True)
        ]
        return self._scores(questions, rows)

    def rank(
        self,
        histories: Sequence[Sequence[str]],
        candidates: Sequence[Sequence[str]],
        *,
        actions: Sequence[Sequence[str]] | None = None,
        searches: Sequence[Sequence[str]] | None = None,
    ) -> list[IntArray]:
        """Places of each user's candidates, best first: int64, shape (n_candidates of the user,).

        As ``predict``; what has no score comes last, in the order given, so that a case without an answer stays as it
        was.
        """
        scores = self.predict(histories, candidates, actions=actions, searches=searches)
        return [np.argsort(-row, kind="stable").astype(np.int64) for row in scores]  # NaN comes last

    # ------------------------------------------------------------- as a scorer

    def fit(self, past: Interactions, items: Items, *, seed: int) -> Self:
        """Redact and keep the items' texts; nothing is sent. seed: sent with each request, unless that is off.

        Raises DataError where no item has a text.
        """
        require_texts(items, "chat model")
        if self.settings.seed is not None:
            self._server.settings = replace(self.settings, seed=seed)
        self._texts = self._cleaner.rows(list(items.texts))
        return self

    def grown(self, items: Items, changed: IntArray) -> Self:
        """Return a scorer over a longer catalogue, whose changed texts are read anew; memory and usage are shared."""
        before = self._fitted()
        codes = codes_to_read(len(before), items, changed)
        texts = longer(before, len(items), "")
        texts[codes] = self._cleaner.rows(texts_of(items, codes))
        grown = copy.copy(self)
        grown._texts = texts
        return grown

    def score(self, cases: Cases) -> FloatArray:
        """Scores: float32, shape (n_candidates,); NaN: not answered, nothing to go by, no text, or unknown."""
        texts = self._fitted()
        searches = [query.split(QUERY_SEPARATOR) if query else [] for query in cases.queries]
        clean = self._cleaner.by_text(text for row in searches for text in row)
        questions, rows = [], []
        for case in range(len(cases)):
            codes = cases.history[case]
            weights = cases.history_weights[slice(*cases.history.offsets[case : case + 2])]
            known = (codes >= 0) & (codes < len(texts)) & (weights != 0)
            past = [
                (DISLIKED if weight < 0 else TOOK if weight >= 1 else INTERESTED, texts[code])
                for code, weight in zip(codes[known], weights[known], strict=True)
            ]
            row = [texts[code] if 0 <= code < len(texts) else "" for code in cases.candidates[case]]
            searched = [clean[text] for text in searches[case]]
            questions.append(Question.of(past, searched, row, newest=self.history_length))
            rows.append(row)
        return np.concatenate([np.empty(0, dtype=np.float32), *self._scores(questions, rows)])

    def save(self, folder: Path) -> None:
        """Write the settings and the items' redacted texts; neither the key, nor the terms, nor the cache's folder."""
        settings = {name: getattr(self, name) for name in ("history_length", "text_tokens", "window", "step")}
        settings |= {"n_parallel": self.n_parallel} | asdict(self.settings)
        n_terms = len(self._cleaner.terms) or self._n_terms_missing
        write_json(folder / "chat.json", {"settings": settings, "n_redact_terms": n_terms})
        write_strings(folder / "texts.parquet", self._fitted())

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        api_key: str | None = None,
        cache_folder: str | Path | None = None,
        redact_terms: Iterable[str] = (),
    ) -> Self:
        """Read what ``save`` wrote. Where there were terms to redact, they are to be given again before it is asked."""
        stored = read_json(folder / "chat.json")
        ranker = cls(**stored["settings"], api_key=api_key, cache_folder=cache_folder, redact_terms=redact_terms)
        ranker._texts = read_strings(folder / "texts.parquet")
        if not ranker._cleaner.terms:
            ranker._n_terms_missing = stored["n_redact_terms"]
        return ranker

    # ------------------------------------------------------------- asking

    def _scores(self, questions: Sequence[Question], rows: Sequence[Sequence[str]]) -> list[FloatArray]:
        """Score candidate texts by the orders of the questions: 1 / place, NaN for "" and where there is no order."""
        orders = self._orders(list(dict.fromkeys(question for question in questions if question.can_be_asked)))
        scores = []
        for question, row in zip(questions, rows, strict=True):
            score_of: dict[str, float] = {}
            if question in orders:
                score_of = {question.candidates[at]: 1 / (place + 1) for place, at in enumerate(orders[question])}
            scores.append(np.array([score_of.get(text, np.nan) for text in row], dtype=np.float32))
        return scores

    def _orders(self, questions: list[Question]) -> dict[Question, IntArray]:
        """Ask; questions without an order are missing from the result, and counted in a warning."""
        if self._n_terms_missing:
            raise DataError(
                f"this ranker was saved with {self._n_terms_missing} redact_terms, which no file keeps; "
                "load it with redact_terms=, so that they are not sent"
            )
        if not questions:
            return {}
        self._server.connect()
        if self.settings.max_requests is not None:
            self._server.check_budget(sum(map(self._n_requests, questions)))
        orders: dict[Question, IntArray] = {}
        failures: list[Unanswered] = []
        stop = threading.Event()
        with ThreadPoolExecutor(min(self.n_parallel, len(questions))) as pool:
            asked = {pool.submit(self._order, question, stop): question for question in questions}
            try:
                for future in tqdm(as_completed(asked), total=len(asked), desc="asking", unit="list", disable=None):
                    error = future.exception()
                    if isinstance(error, Unanswered):
                        failures.append(error)
                    elif error is not None:
                        raise error
                    else:
                        orders[asked[future]] = future.result()
            finally:  # after an error that concerns all, and after Ctrl-C, nothing more is sent
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
        if failures:
            reasons = Counter(error.reason for error in failures).most_common()
            warnings.warn(
                f"{len(failures):,} of {len(questions):,} lists got no order and have NaN as score ("
                f"{', '.join(f'{count:,} × {reason}' for reason, count in reasons)}; one of them: {failures[0]}); what "
                "was answered is remembered, so that asking again asks for these alone",
                stacklevel=4,
            )
        return orders

    def _order(self, question: Question, stop: threading.Event) -> IntArray:
        """Put one list in order, window by window: places of its candidates, best first."""
        order = np.arange(len(question.candidates), dtype=np.int64)
        if len(order) == 1:
            return order
        for first, end in windows_from_back(len(order), self.window, self.step):
            part = order[first:end].copy()
            order[first:end] = part[self._server.order(self._prompts.text(question, part), len(part), stop)]
        return order

    def _n_requests(self, question: Question) -> int:
        """Count the requests that a list needs: those from its first window on that is not remembered."""
        order = np.arange(len(question.candidates), dtype=np.int64)
        windows = windows_from_back(len(order), self.window, self.step) if len(order) > 1 else []
        for n_done, (first, end) in enumerate(windows):
            part = order[first:end].copy()
            known = self._server.remembered(self._prompts.text(question, part), len(part))
            if known is None:
                return len(windows) - n_done
            order[first:end] = part[known]
        return 0

    def _fitted(self) -> ObjectArray:
        if self._texts is None:
            raise NotFittedError("the chat ranker has no items; call fit or load first, or use predict over texts")
        return self._texts
