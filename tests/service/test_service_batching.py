"""The queue before the scoring thread: batches, an end to what waits, a limit to the time, and failures alone."""

import asyncio
import threading
import time

import pytest

from llm_rerank.service.batching import ScoringQueue, Workers
from llm_rerank.service.failures import ServiceError
from llm_rerank.service.metrics import Metrics


class Doubler:
    """Work that takes a while, one call at a time; knows the batches that it was given."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list] = []
        self.threads: set[str] = set()
        self.busy = threading.Lock()

    def __call__(self, batch: list) -> list:
        assert self.busy.acquire(blocking=False), "two calls at once"
        self.batches.append(batch)
        self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        self.busy.release()
        if "bad" in batch:
            raise RuntimeError("one spoils all")
        return [ValueError(question) if question == "wrong" else 2 * question for question in batch]


def metric(metrics: Metrics, name: str, **labels) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def with_queue(work, test, *, length=100, batch_size=8):
    """Run a coroutine function beside a queue."""
    metrics = Metrics()

    async def run():
        queue = ScoringQueue(work, length=length, batch_size=batch_size, metrics=metrics)
        queue.start()
        try:
            return await asyncio.wait_for(test(queue), 20)
        finally:
            await queue.stop()

    return asyncio.run(run()), metrics


def test_what_waits_is_answered_by_one_call_each_with_its_own_answer():
    work = Doubler(0.02)

    async def test(queue):
        return await asyncio.gather(*(queue.ask(number, 5) for number in range(21)))

    answers, metrics = with_queue(work, test)
    assert answers == [2 * number for number in range(21)]
    # the first goes at once, alone or with those of the same turn; the others gather meanwhile
    assert [number for batch in work.batches for number in batch] == list(range(21))
    assert max(map(len, work.batches)) == 8
    assert len(work.batches) <= 4
    assert len(work.threads) == 1
    assert metric(metrics, "llm_rerank_batch_questions_sum") == 21
    assert metric(metrics, "llm_rerank_queue_depth") == 0


def test_a_lone_question_does_not_wait_for_company():
    async def test(queue):
        started = time.monotonic()
        await queue.ask(1, 5)
        return time.monotonic() - started

    seconds, _ = with_queue(Doubler(), test)
    assert seconds < 0.2


def test_one_wrong_question_fails_alone_and_one_that_spoils_the_call_too():
    work = Doubler(0.01)

    async def test(queue):
        return await asyncio.gather(*(queue.ask(q, 5) for q in (1, "wrong", 2, "bad", 3)), return_exceptions=True)

    (one, wrong, two, bad, three), _ = with_queue(work, test)
    assert (one, two, three) == (2, 4, 6)
    assert isinstance(wrong, ValueError)
    assert isinstance(bad, RuntimeError)


def test_when_the_queue_is_full_the_next_is_refused_at_once_and_the_others_are_answered():
    work = Doubler(0.2)

    async def test(queue):
        first = asyncio.create_task(queue.ask(0, 5))
        await asyncio.sleep(0.05)  # it is being scored
        others = [asyncio.create_task(queue.ask(number, 5)) for number in range(1, 4)]
        await asyncio.sleep(0)
        started = time.monotonic()
        with pytest.raises(ServiceError) as caught:
            await queue.ask(4, 5)
        refused_after = time.monotonic() - started
        return caught.value, refused_after, await asyncio.gather(first, *others)

    (error, refused_after, answers), metrics = with_queue(work, test, length=3)
    assert (error.status_code, error.code) == (503, "busy")
    assert int(error.headers["Retry-After"]) >= 1
    assert refused_after < 0.05
    assert answers == [0, 2, 4, 6]
    assert metric(metrics, "llm_rerank_refused_total", reason="queue_full") == 1


def test_what_is_late_is_refused_and_not_scored_any_more():
    work = Doubler(0.3)

    async def test(queue):
        first = asyncio.create_task(queue.ask(0, 5))
        await asyncio.sleep(0.05)
        started = time.monotonic()
        with pytest.raises(ServiceError) as caught:
            await queue.ask(1, 0.1)
        late_after = time.monotonic() - started
        return caught.value, late_after, await first, await queue.ask(2, 5)

    (error, late_after, first, last), metrics = with_queue(work, test)
    assert (error.status_code, error.code, error.headers["Retry-After"]) == (503, "late", "1")
    assert 0.09 < late_after < 0.25
    assert (first, last) == (0, 4)
    assert work.batches == [[0], [2]]
    assert metric(metrics, "llm_rerank_refused_total", reason="late") == 1


def test_what_cannot_be_in_time_is_refused_before_it_waits():
    work = Doubler(0.2)

    async def test(queue):
        await queue.ask(0, 5)  # 0.2 s each, it has learned
        waiting = [asyncio.create_task(queue.ask(number, 5)) for number in range(1, 4)]
        await asyncio.sleep(0.01)
        with pytest.raises(ServiceError) as caught:
            await queue.ask(9, 0.5)  # three and itself would take 0.8 s
        await asyncio.gather(*waiting)
        return caught.value

    error, _ = with_queue(work, test, batch_size=1)
    assert error.code == "busy"


def test_a_long_job_does_not_make_questions_look_late():
    work = Doubler(0.01)

    async def test(queue):
        await queue.ask(0, 5)
        await queue.run(lambda: time.sleep(0.5), 5)
        first = asyncio.create_task(queue.ask(1, 5))
        await asyncio.sleep(0.005)  # it is being scored
        second = await queue.ask(2, 0.1)
        return await first, second

    answers, _ = with_queue(work, test)
    assert answers == (2, 4)


@pytest.mark.parametrize("error", [KeyboardInterrupt, type("PanicException", (BaseException,), {})])
def test_what_is_no_exception_fails_alone_and_the_work_goes_on(error):
    def work(batch):
        if "panic" in batch:
            raise error("of user secret-7")
        return batch

    async def test(queue):
        answers = await asyncio.gather(*(queue.ask(one, 5) for one in (1, "panic", 2)), return_exceptions=True)
        return answers, await queue.ask(3, 1), queue.is_working()

    (answers, last, working), _ = with_queue(work, test)
    assert (answers[0], answers[2], last, working) == (1, 2, 3, True)
    assert isinstance(answers[1], RuntimeError)
    assert "secret" not in str(answers[1])


def test_after_a_slow_call_an_idle_queue_tries_again():
    work = Doubler(0.3)

    async def test(queue):
        await queue.ask(0, 5)
        work.seconds = 0.0
        return await queue.ask(1, 0.2)  # less than the last one took

    answer, _ = with_queue(work, test)
    assert answer == 2


def test_jobs_of_another_kind_run_in_their_turn_on_the_same_thread():
    work = Doubler(0.05)
    names = []

    def job():
        assert work.busy.acquire(blocking=False)
        names.append(threading.current_thread().name)
        work.busy.release()
        return "done"

    async def test(queue):
        return await asyncio.gather(queue.ask(1, 5), queue.ask(2, 5), queue.run(job, 5), queue.ask(3, 5))

    answers, _ = with_queue(work, test)
    assert answers == [2, 4, "done", 6]
    assert set(names) == work.threads
    assert work.batches[-1] == [3]


def counting(n_steps, seconds=0.0, seen=None):
    """A job of some steps; their number is its result."""
    for number in range(n_steps):
        time.sleep(seconds)
        if seen is not None:
            seen.append(number)
        yield
    return n_steps


async def given_up(jobs):
    """What jobs gave that nobody waits for any more; CancelledError where they were not done."""
    for job in jobs:
        job.cancel()
    return await asyncio.gather(*jobs, return_exceptions=True)


def test_a_question_that_comes_during_a_long_job_is_answered_before_the_job_ends():
    work = Doubler()

    async def test(queue):
        job = asyncio.create_task(queue.run_steps(counting(20, 0.02), 10))
        await asyncio.sleep(0.05)  # it is under way
        answers = [await queue.ask(number, 1) for number in range(3)]
        done_before = job.done()
        return answers, done_before, await job

    (answers, done_before, result), _ = with_queue(work, test)
    assert (answers, done_before, result) == ([0, 2, 4], False, 20)


def test_however_many_long_jobs_wait_a_question_is_answered_within_two_steps():
    seen: list[int] = []

    async def test(queue):
        await queue.ask(0, 5)
        jobs = [asyncio.create_task(queue.run_steps(counting(50, 0.03, seen), 20)) for _ in range(30)]
        await asyncio.sleep(0.1)  # it has learned how long a step takes
        answers, steps = [], []
        for number in range(1, 9):
            before = len(seen)
            # 30 steps before it would take 0.9 s
            answers.append(await (queue.run(lambda: "cut", 0.5) if number % 4 == 0 else queue.ask(number, 0.5)))
            steps.append(len(seen) - before)
        return answers, steps, await given_up(jobs)

    (answers, steps, results), metrics = with_queue(Doubler(), test)
    assert answers == [2, 4, 6, "cut", 10, 12, 14, "cut"]
    assert max(steps) <= 2
    assert [type(result) for result in results] == [asyncio.CancelledError] * 30  # none was done before
    assert metric(metrics, "llm_rerank_refused_total", reason="queue_full") == 0


def test_however_many_questions_wait_long_jobs_go_on():
    """One step after each batch: of 20 batches of one question, the 10 steps of two jobs need 10."""
    work = Doubler(0.01)

    async def test(queue):
        questions = [asyncio.create_task(queue.ask(number, 10)) for number in range(20)]
        jobs = await asyncio.gather(*(queue.run_steps(counting(4), 10) for _ in range(2)))
        n_answered = len(work.batches)
        return jobs, n_answered, await asyncio.gather(*questions)

    (jobs, n_answered, answers), _ = with_queue(work, test, batch_size=1)
    assert jobs == [4, 4]
    assert 9 <= n_answered <= 11  # a job of 4 steps takes a fifth turn to end
    assert answers == [2 * number for number in range(20)]


def test_long_jobs_fill_their_own_line_alone():
    async def test(queue):
        jobs = [asyncio.create_task(queue.run_steps(counting(50, 0.02), 20))]
        await asyncio.sleep(0.01)  # it runs, and three wait
        jobs += [asyncio.create_task(queue.run_steps(counting(50, 0.02), 20)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ServiceError) as caught:
            await queue.run_steps(counting(1), 20)
        answer = await queue.ask(1, 1)
        await given_up(jobs)
        return caught.value, answer

    (error, answer), _ = with_queue(Doubler(), test, length=3)
    assert (error.code, answer) == ("busy", 2)


def test_slow_questions_are_tried_again_while_long_jobs_go_on():
    work = Doubler(0.3)

    async def test(queue):
        await queue.ask(0, 5)
        work.seconds = 0.0
        job = asyncio.create_task(queue.run_steps(counting(100, 0.02), 20))
        await asyncio.sleep(0.03)
        answer = await queue.ask(1, 0.2)  # less than the last one took
        await given_up([job])
        return answer

    answer, _ = with_queue(work, test)
    assert answer == 2


def test_long_jobs_share_the_thread_and_their_failures_are_their_own():
    order: list = []

    def failing():
        yield
        raise ValueError("a step went wrong")

    def named(name, n_steps):
        for _ in range(n_steps):
            order.append(name)
            yield
        return name

    async def test(queue):
        jobs = (queue.run_steps(named("a", 3), 5), queue.run_steps(named("b", 2), 5), queue.run_steps(failing(), 5))
        return await asyncio.gather(*jobs, return_exceptions=True)

    (first, second, error), _ = with_queue(Doubler(), test)
    assert (first, second, str(error)) == ("a", "b", "a step went wrong")
    assert order == ["a", "b", "a", "b", "a"]


def test_a_long_job_that_is_late_is_not_gone_on_with():
    seen: list[int] = []

    async def test(queue):
        with pytest.raises(ServiceError) as caught:
            await queue.run_steps(counting(1_000, 0.02, seen), 0.1)
        n_steps = len(seen)
        await asyncio.sleep(0.1)
        return caught.value, n_steps, await queue.ask(1, 1)

    (error, n_steps, answer), _ = with_queue(Doubler(), test)
    assert (error.code, answer) == ("late", 2)
    assert len(seen) <= n_steps + 1


def test_a_queue_that_stops_refuses_the_rest_of_a_long_job():
    async def run():
        queue = ScoringQueue(Doubler(), length=10, batch_size=1, metrics=Metrics())
        queue.start()
        job = asyncio.create_task(queue.run_steps(counting(1_000, 0.02), 60))
        await asyncio.sleep(0.05)
        await queue.stop()
        with pytest.raises(ServiceError) as caught:
            await job
        return caught.value

    assert asyncio.run(asyncio.wait_for(run(), 10)).code == "stopping"


def test_a_queue_that_stops_answers_what_is_scored_and_refuses_what_waits():
    work = Doubler(0.2)

    async def run():
        queue = ScoringQueue(work, length=10, batch_size=1, metrics=Metrics())
        queue.start()
        asked = [asyncio.create_task(queue.ask(number, 5)) for number in range(3)]
        await asyncio.sleep(0.05)
        await queue.stop()
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(run())
    assert answers[0] == 0
    assert all(isinstance(answer, ServiceError) and answer.status_code == 503 for answer in answers[1:])


def test_workers_have_an_end_and_a_limit_and_pass_errors_on():
    metrics = Metrics()

    async def run():
        workers = Workers(1, length=1, metrics=metrics)
        slow = [asyncio.create_task(workers.run(lambda: time.sleep(0.2) or "slow", 5)) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(ServiceError) as full:
            await workers.run(lambda: None, 5)
        answers = await asyncio.gather(*slow)
        with pytest.raises(ServiceError) as late:
            await workers.run(lambda: time.sleep(0.2), 0.05)
        with pytest.raises(KeyError):
            await workers.run(lambda: {}["absent"], 5)
        await workers.stop()
        return full.value, late.value, answers

    full, late, answers = asyncio.run(run())
    assert (full.status_code, full.code) == (503, "busy")
    assert (late.status_code, late.code) == (503, "late")
    assert answers == ["slow", "slow"]


def test_a_job_of_the_workers_that_is_late_before_it_has_begun_is_not_begun():
    done: list[str] = []

    async def run():
        workers = Workers(1, length=1, metrics=Metrics())
        first = asyncio.create_task(workers.run(lambda: time.sleep(0.2) or done.append("first"), 5))
        await asyncio.sleep(0.05)
        with pytest.raises(ServiceError) as late:
            await workers.run(lambda: done.append("refused"), 0.05)
        await first
        # begun, and late: it goes on to its end
        with pytest.raises(ServiceError):
            await workers.run(lambda: time.sleep(0.1) or done.append("begun"), 0.02)
        # there is room for one beside the one that runs, and no more: what was given up takes none
        await workers.run(lambda: done.append("last"), 5)
        await workers.stop()
        return late.value

    assert asyncio.run(run()).code == "late"
    assert done == ["first", "begun", "last"]
