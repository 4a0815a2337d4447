"""Micro-batching: rankings that wait are answered by one call on the one scoring thread; the queue has an end.

Nothing waits on purpose: while a batch is scored the next one gathers. What cannot be answered in time is refused at
once, or at its time limit, and told when to come again. Long jobs go step by step and have a line of their own: one
step of one of them, then a batch of rankings, and so on, so that however many there are, none holds up a ranking for
longer than a step.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Generic, TypeVar

from llm_rerank.service.failures import ServiceError, describe
from llm_rerank.service.metrics import Metrics
from llm_rerank.steps import Steps

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")

LEARNING_RATE = 0.2
"""Weight of the newest call in the running means of seconds."""

_MORE = object()  # a step's result where others follow

logger = logging.getLogger(__name__)


class _Kind(Enum):
    QUESTION = auto()
    JOB = auto()
    STEPS = auto()


@dataclass
class _Waiting:
    work: Any  # a question, or a function without arguments; that of steps gives _MORE until they are done
    kind: _Kind
    future: asyncio.Future[Any]
    deadline: float


class ScoringQueue(Generic[Q, A]):
    """Work for one thread: questions and short jobs in one line, long jobs in another, and the lines take turns.

    answer: answers a batch; an exception in the place of an answer is raised to whoever asked that question.
    length: greatest number that may wait, in each line. batch_size: most questions of one call. All methods but
    ``answer`` run on the event loop.
    """

    def __init__(
        self, answer: Callable[[list[Q]], Sequence[A | Exception]], *, length: int, batch_size: int, metrics: Metrics
    ) -> None:
        self._answer = answer
        self._length = length
        self._batch_size = batch_size
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._short: deque[_Waiting] = deque()  # questions and short jobs
        self._long: deque[_Waiting] = deque()  # each with its next step
        self._long_is_next = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._running: list[_Waiting] = []
        self._running_since: float | None = None
        self._seconds_each = dict.fromkeys(_Kind, 0.0)  # one long job says nothing of questions

    def start(self) -> None:
        """Begin to work; needs a running event loop."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Finish what is being scored; refuse what waits."""
        self._stopping = True
        for line in (self._short, self._long):
            while line:
                waiting = line.popleft()
                if not waiting.future.done():
                    waiting.future.set_exception(_stopping())
        self._wake.set()
        if self._task is not None:
            await self._task
        await asyncio.to_thread(self._thread.shutdown)

    def stuck_for_s(self) -> float:
        """Seconds that the present call has taken; 0 where there is none."""
        return 0.0 if self._running_since is None else time.monotonic() - self._running_since

    def is_working(self) -> bool:
        """Tell whether what is asked will be worked on: started, and not stopped by anything."""
        return self._task is not None and not self._task.done() and not self._stopping

    def _expected_wait_s(self, kind: _Kind) -> float:
        """Seconds until what comes now would be done, of a long job its first step, as far as the last calls tell."""
        seconds = self._seconds_each
        before = sum(seconds[one.kind] for one in (*self._running, *self._short) if one.kind is not _Kind.STEPS)
        n_steps = len(self._long) + sum(one.kind is _Kind.STEPS for one in self._running)
        if kind is not _Kind.STEPS and n_steps:
            n_steps = math.ceil((len(self._short) + 1) / self._batch_size)  # one before each batch up to its own
        return before + n_steps * seconds[_Kind.STEPS] + seconds[kind]

    async def ask(self, question: Q, time_limit_s: float) -> A:
        """Answer a question, together with others that wait. Raises what ``answer`` gave, or ServiceError (503)."""
        answer: A = await self._wait_for(question, _Kind.QUESTION, time_limit_s)
        return answer

    async def run(self, job: Callable[[], T], time_limit_s: float) -> T:
        """Run a short job on the scoring thread, in its turn among the questions. Raises as ``ask`` does."""
        result: T = await self._wait_for(job, _Kind.JOB, time_limit_s)
        return result

    async def run_steps(self, steps: Steps[T], time_limit_s: float) -> T:
        """Run a long job a step at a time; questions run between its steps. One that is late is not gone on with.

        Raises as ``ask`` does.
        """

        def step() -> Any:
            try:
                next(steps)
            except StopIteration as end:
                return end.value
            return _MORE

        result: T = await self._wait_for(step, _Kind.STEPS, time_limit_s)
        return result

    async def _wait_for(self, work: Any, kind: _Kind, time_limit_s: float) -> Any:
        if self._stopping:
            raise _stopping()
        line = self._long if kind is _Kind.STEPS else self._short
        expected = self._expected_wait_s(kind)
        # one of a kind is always tried, however slow the last was: else one slow batch would end the service
        late = expected > time_limit_s and any(one.kind is kind for one in (*self._running, *line))
        if len(line) >= self._length or late:
            self._metrics.refused.labels("queue_full").inc()
            raise ServiceError(503, "too many requests wait; come again", code="busy", retry_after_s=max(expected, 1))
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        line.append(_Waiting(work, kind, future, time.monotonic() + time_limit_s))
        self._metrics.queue_depth.set(len(self._short) + len(self._long))
        self._wake.set()
        try:
            return await asyncio.wait_for(future, time_limit_s)
        except TimeoutError:
            self._metrics.refused.labels("late").inc()
            raise ServiceError(
                503, "no answer within the time limit; come again", code="late", retry_after_s=max(expected, 1)
            ) from None

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            batch = self._take()
            if not batch:
                self._wake.clear()
                await self._wake.wait()
                continue
            started = time.monotonic()
            self._running, self._running_since = batch, started
            try:
                results = await loop.run_in_executor(self._thread, self._results, batch)
                for waiting, result in zip(batch, results, strict=True):
                    if waiting.future.done():  # late, and told so
                        continue
                    if result is _MORE:
                        self._go_on(waiting)
                    elif isinstance(result, Exception):
                        waiting.future.set_exception(result)
                    else:
                        waiting.future.set_result(result)
            finally:
                self._running, self._running_since = [], None
            each, kind = (time.monotonic() - started) / len(batch), batch[0].kind
            rate = LEARNING_RATE if self._seconds_each[kind] else 1.0
            self._seconds_each[kind] += rate * (each - self._seconds_each[kind])

    def _go_on(self, waiting: _Waiting) -> None:
        """Put a job that has further steps behind the other long ones."""
        if self._stopping:
            waiting.future.set_exception(_stopping())
        else:
            self._long.append(waiting)

    def _take(self) -> list[_Waiting]:
        """Take from the line whose turn it is, or from the other one where nobody there has time left."""
        lines = (self._long, self._short) if self._long_is_next else (self._short, self._long)
        batch = self._first_of(lines[0]) or self._first_of(lines[1])
        if batch:
            self._long_is_next = batch[0].kind is not _Kind.STEPS
        self._metrics.queue_depth.set(len(self._short) + len(self._long))
        return batch

    def _first_of(self, line: deque[_Waiting]) -> list[_Waiting]:
        """Take the first of a line that still has time, and questions that follow it."""
        batch: list[_Waiting] = []
        now = time.monotonic()
        while line and len(batch) < self._batch_size:
            if batch and not batch[0].kind is line[0].kind is _Kind.QUESTION:
                break
            waiting = line.popleft()
            if not waiting.future.done() and waiting.deadline > now:
                batch.append(waiting)
        return batch

    def _results(self, batch: list[_Waiting]) -> Sequence[Any]:
        """Do the work of a batch, on the scoring thread; never raises."""
        try:
            if batch[0].kind is not _Kind.QUESTION:
                return [batch[0].work()]
            with self._metrics.batch_seconds.time():
                results = self._answer([waiting.work for waiting in batch])
            self._metrics.batch_questions.observe(len(batch))
            assert len(results) == len(batch), f"{len(results)} answers to {len(batch)} questions"
            return results
        except BaseException as error:  # a panic of a library in Rust is no Exception, and must not end the work
            if len(batch) == 1:
                return [error if isinstance(error, Exception) else RuntimeError(type(error).__name__)]
            logger.error("a batch of %d failed: %s; each is asked alone", len(batch), describe(error))
            return [self._results([waiting])[0] for waiting in batch]


def _stopping() -> ServiceError:
    return ServiceError(503, "the service is stopping", code="stopping", retry_after_s=5)


class Workers:
    """A few threads for what is not scoring, the event log or erasures for one; with an end to what may wait."""

    def __init__(self, n_threads: int, *, length: int, metrics: Metrics) -> None:
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="work")
        self._most = n_threads + length
        self._metrics = metrics
        self._n = 0

    async def run(self, job: Callable[[], T], time_limit_s: float) -> T:
        """Run a job; its result, or ServiceError (503) where too many wait or it takes too long.

        A job that is late before it has begun is not begun. Later, it goes on to its end: what it writes is written
        whole.
        """
        if self._n >= self._most:
            self._metrics.refused.labels("queue_full").inc()
            raise ServiceError(503, "too many requests wait; come again", code="busy", retry_after_s=1)
        self._n += 1
        submitted = self._threads.submit(job)
        future = asyncio.wrap_future(submitted)
        future.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.shield(future), time_limit_s)
        except TimeoutError:
            if future.done() and not future.cancelled():  # the job's own TimeoutError
                raise
            submitted.cancel()  # where it has not begun: an event is not stored after its sender was refused
            self._metrics.refused.labels("late").inc()
            raise ServiceError(
                503, "no answer within the time limit; come again", code="late", retry_after_s=1
            ) from None

    async def stop(self) -> None:
        """Finish what was begun."""
        await asyncio.to_thread(self._threads.shutdown)

    def _done(self, future: asyncio.Future[Any]) -> None:
        self._n -= 1
        if not future.cancelled():
            future.exception()  # looked at: nobody may be waiting for it any more, and asyncio would log its message
