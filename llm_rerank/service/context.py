"""What all routes share: the shop, the settings, the queue, the counts, and the answers that can be cut anew."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from typing import Any

from llm_rerank.recommendation.answering import Answer, Question, answer_each
from llm_rerank.recommendation.answers import watched
from llm_rerank.recommendation.drift import DriftWatch
from llm_rerank.recommendation.live import LiveShop
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.service.batching import ScoringQueue, Workers
from llm_rerank.service.catalogue import Catalogue
from llm_rerank.service.failures import describe
from llm_rerank.service.metrics import Metrics
from llm_rerank.service.settings import ServiceSettings

EVENT_LOG = "event_log"
"""Named in ``degraded`` where the log could not be read and the newest events may be missing from an answer."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A model as of now, for one piece of work. degraded: what is missing from it.

    position: of the log, which the model has read at least so far.
    """

    version: str
    reranker: Reranker
    catalogue: Catalogue
    position: int
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True)
class KeptAnswer:
    """An answer that can be cut anew, with the version of the model that scored it, and which fit that was of."""

    answer: Answer
    version: str
    origin: str
    user_id: Any
    until: float


class Context:
    """Built once by ``create_app``. ``queue`` is set by it too, for its work is that of ``ranking.py``.

    quick: threads for what takes milliseconds, events and searches. slow: for what reads or writes much, or waits for
    who does: erasures, new items, exports, tables, loading a reader of texts. However many of these there are, an event
    waits for none.
    """

    queue: ScoringQueue[Any, Any]

    def __init__(self, shop: LiveShop, settings: ServiceSettings, metrics: Metrics) -> None:
        self.shop = shop
        self.settings = settings
        self.metrics = metrics
        self.quick = Workers(4, length=settings.queue_length, metrics=metrics)
        self.slow = Workers(2, length=settings.queue_length, metrics=metrics)
        self._catalogue: Catalogue | None = None
        self._last: Snapshot | None = None
        self._answers: OrderedDict[str, KeptAnswer] = OrderedDict()
        self._erased: dict[str, int] = {}  # digest of a user to the position of the erasure
        self._erased_through = shop.log.last_position()
        self._lock = threading.Lock()
        self._watches: deque[DriftWatch] = deque(maxlen=4)

    # ------------------------------------------------------------- the model

    def snapshot(self) -> Snapshot:
        """Return the model with every acknowledged event; answers of users who were erased, by any process, are gone.

        Where the log cannot be read, the last snapshot is returned, and says so; raises what went wrong only where
        there is none yet.
        """
        try:
            position = self.shop.log.last_position()
            self._forget_answers(position)
            version = self.shop.version
            reranker = self.shop.reranker()
            if self.shop.version != version:  # replaced in between: the second look is of the new one
                version, reranker = self.shop.version, self.shop.reranker()
            snapshot = Snapshot(version, reranker, self._catalogue_of(reranker), position)
        except Exception as error:
            if self._last is None:
                raise
            logger.error("the model's newest state cannot be read: %s; the last one is used", describe(error))
            return replace(self._last, degraded=(EVENT_LOG,))
        self._last = snapshot
        return snapshot

    def warm_up(self, reranker: Reranker) -> None:
        """Answer a newcomer and a known user, so that what is made at the first use is made before anybody waits."""
        items, users = reranker.saved.fitted.items.ids, reranker.saved.events.user_ids
        questions = [Question(None, None, k=1), Question(users[0], list(items[:10]))] if len(users) else []
        failed = [answer for answer in answer_each(reranker, questions) if isinstance(answer, Exception)]
        if failed:
            logger.error("a first question was not answered: %s", describe(failed[0]))

    def last_snapshot(self) -> Snapshot | None:
        """Return the last snapshot without a look at the log; None where there was none."""
        return self._last

    def _catalogue_of(self, reranker: Reranker) -> Catalogue:
        items = reranker.saved.fitted.items
        with self._lock:
            if self._catalogue is None or self._catalogue.items.frame is not items.frame:
                self._catalogue = Catalogue(items)
            return self._catalogue

    def watched(self, answer: Answer) -> Answer:
        """Compare the answer's list, with the last ones before it, to those of the fit (``DriftWatch``)."""
        batch = answer.scored.batch
        profile = None if batch is None else batch.stage.profile
        if profile is None:
            return answer
        with self._lock:
            watch = next((watch for watch in self._watches if watch.profile is profile), None)
            if watch is None:  # of a model, its own lists and an upstream recommender's are watched apart
                watch = DriftWatch(profile)
                self._watches.append(watch)
        return watched(answer, watch)

    # ------------------------------------------------------------- kept answers

    def keep(self, request_id: str, answer: Answer, snapshot: Snapshot, user_id: Any) -> None:
        """Keep an answer for a while, so that it can be cut anew; not if its user was forgotten meanwhile."""
        with self._lock:
            if self._erased.get(self.shop.log.user_digest(user_id), 0) > snapshot.position:
                return
            until = (now := time.monotonic()) + self.settings.answer_lifetime_s
            origin = snapshot.reranker.saved.origin
            self._answers[request_id] = KeptAnswer(answer, snapshot.version, origin, user_id, until)
            self._answers.move_to_end(request_id)
            while len(self._answers) > self.settings.most_answers or next(iter(self._answers.values())).until < now:
                self._answers.popitem(last=False)

    def kept(self, request_id: str) -> KeptAnswer | None:
        """Return an answer that is still kept; after ``snapshot``, none of a user who was erased before that."""
        with self._lock:
            kept = self._answers.get(request_id)
        return kept if kept is not None and kept.until >= time.monotonic() else None

    def _forget_answers(self, position: int) -> None:
        """Drop the answers of users whose erasure stands in the log up to a position."""
        if position <= self._erased_through:
            return
        erasures = self.shop.log.erasures(self._erased_through, position)
        with self._lock:
            self._erased |= erasures
            self._erased_through = max(self._erased_through, position)
            digest = self.shop.log.user_digest
            for request_id in [name for name, kept in self._answers.items() if digest(kept.user_id) in erasures]:
                del self._answers[request_id]
