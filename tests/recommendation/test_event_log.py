"""The log on disk: order, once each, nothing half written, nothing left of what was erased."""

import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from llm_rerank.recommendation.event_log import DAYS_KEPT, WAIT_S, EventLog
from llm_rerank.types import StorageError

DAY_S = 86_400


@pytest.fixture
def log(tmp_path):
    log = EventLog(tmp_path / "live.sqlite")
    yield log
    log.close()


def write(log, *bodies, user=None, now=0.0):
    with log.writing():
        return log.append("event", list(bodies), [user] * len(bodies), now)


def test_entries_come_back_in_order_and_in_another_process(log):
    assert log.last_position() == 0 and log.after(0) == []
    assert write(log, {"n": 1}, {"n": 2}) == 2
    with log.writing():
        log.append("items", [[{"item_id": "x"}]], [None], 0.0)
    assert [(entry.position, entry.kind, entry.body) for entry in log.after(1)] == [
        (2, "event", {"n": 2}),
        (3, "items", [{"item_id": "x"}]),
    ]
    script = (
        "import sys; from pathlib import Path; from llm_rerank.recommendation.event_log import EventLog; "
        "log = EventLog(Path(sys.argv[1])); print(log.name, log.last_position(), log.after(2)[0].body)"
    )
    said = subprocess.run([sys.executable, "-c", script, log.path], capture_output=True, text=True, check=True).stdout
    assert said.strip() == f"{log.name} 3 [{{'item_id': 'x'}}]"


def test_a_body_that_raises_leaves_nothing(log):
    write(log, {"n": 1})
    with pytest.raises(ZeroDivisionError), log.writing():
        log.append("event", [{"n": 2}], ["ann"], 0.0)
        log.remember_ids(["e2"], 0.0)
        1 / 0  # noqa: B018
    assert [entry.body for entry in log.after(0)] == [{"n": 1}]
    assert log.known_ids(["e2"]) == set()
    assert write(log, {"n": 3}) > 1


def test_who_reads_does_not_see_what_is_not_committed_and_does_not_wait(log):
    seen = []
    with log.writing():
        log.append("event", [{"n": 1}], [None], 0.0)
        thread = threading.Thread(target=lambda: seen.append((log.last_position(), len(log.after(0)))))
        thread.start()
        thread.join(timeout=2)
        assert seen == [(0, 0)]
    assert log.last_position() == 1


def test_event_ids_are_known_once_written_and_only_as_hashes(log):
    with log.writing():
        log.remember_ids(["order-of-ann-17"], 0.0)
    assert log.known_ids(["order-of-ann-17", "order-18"]) == {"order-of-ann-17"}
    assert b"order-of-ann" not in b"".join(path.read_bytes() for path in log.path.parent.iterdir())


def test_answers_come_back_by_request_and_by_user(log):
    log.remember_answer("r1", "ann", {"item_ids": ["a", 7]}, 5.0)
    log.remember_answer("r2", 7, {"item_ids": []}, 6.0)
    assert log.answer("r1") == {"item_ids": ["a", 7]} and log.answer("r3") is None
    assert log.answers(7) == [{"request_id": "r2", "recorded": 6.0, "item_ids": []}]
    assert log.answers("7") == []
    assert [answer["request_id"] for answer in log.answers()] == ["r1", "r2"]


def test_an_answer_does_not_wait_for_who_writes_and_is_there_at_once(log):
    writing, done = threading.Event(), threading.Event()

    def write_for_long():
        with log.writing():
            writing.set()
            done.wait(20)

    writer = threading.Thread(target=write_for_long)
    writer.start()
    assert writing.wait(5)
    started = time.monotonic()
    for number in range(20):
        log.remember_answer(f"r{number}", "ann" if number % 2 else 7, {"n": number}, float(number))
    assert time.monotonic() - started < 0.5
    assert log.answer("r3") == {"n": 3}
    assert [answer["n"] for answer in log.answers("ann")] == list(range(1, 20, 2))
    done.set()
    writer.join(5)
    rows = sqlite3.connect(log.path).execute("SELECT request_id FROM answers ORDER BY number").fetchall()
    assert [row[0] for row in rows] == [f"r{number}" for number in range(20)]
    assert [answer["n"] for answer in log.answers()] == list(range(20))


def test_an_answer_that_was_being_made_while_its_user_was_forgotten_is_not_kept(log):
    before = log.last_position()
    with log.writing():
        log.erase(["ann"], 1.0)
    for name, user in (("r1", "ann"), ("r2", "bob"), ("r3", None)):
        log.remember_answer(name, user, {}, 2.0, position=before)
    log.remember_answer("r4", "ann", {}, 3.0, position=log.last_position())  # who comes back is a newcomer
    assert [answer["request_id"] for answer in log.answers()] == ["r2", "r3", "r4"]


def test_an_answer_does_not_wait_for_another_process_and_goes_with_its_user(log):
    other = sqlite3.connect(log.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    log.remember_answer("r1", "ann", {}, 1.0)
    log.remember_answer("r2", "bob", {}, 2.0)
    assert time.monotonic() - started < 0.5
    assert [answer["request_id"] for answer in log.answers()] == ["r1", "r2"]
    other.execute("ROLLBACK")
    with log.writing():
        log.erase(["ann"], 3.0)
    assert [row[0] for row in other.execute("SELECT request_id FROM answers")] == ["r2"]
    assert log.answer("r1") is None
    other.close()


def test_pruning_keeps_what_the_folder_has_not_held_for_long_and_never_reuses_a_position(log):
    late = (DAYS_KEPT + 1) * DAY_S

    def left_after(position, now):
        log.prune(position, now)
        return [entry.body["n"] for entry in log.after(0)]

    write(log, {"n": 1}, {"n": 2}, {"n": 3}, now=0.0)
    assert left_after(1, late) == [1, 2, 3]  # old as they are: the folder has had the first from now on
    assert left_after(3, 2 * late) == [2, 3]
    assert left_after(0, 3 * late) == [2, 3]  # a model that has nothing of the log
    assert left_after(3, 3 * late) == [] and log.last_position() == 3
    assert write(log, {"n": 4}) == 4


def test_a_checkpoint_brings_what_was_written_into_the_main_file_while_another_writes(log, tmp_path):
    for number in range(300):
        with log.writing():
            log.append("event", [{"number": number, "review": "x" * 500}], ["u1"], 0.0)
        if number % 20 == 0:
            log.checkpoint()
    write_ahead = log.path.with_name(f"{log.path.name}-wal")
    assert write_ahead.stat().st_size < 1_000_000  # at 4 MB a commit would do it, and whoever writes would wait
    with log.writing():
        log.append("event", [{"number": 300}], ["u1"], 0.0)
        started = time.monotonic()
        log.checkpoint()
        assert time.monotonic() - started < WAIT_S / 2  # it did not wait for the writer
    alone = Path(shutil.copy(log.path, tmp_path / "alone.sqlite"))
    connection = sqlite3.connect(alone)
    assert connection.execute("SELECT count(*) FROM entries").fetchone()[0] == 300
    connection.close()


def test_old_answers_go_with_time(log):
    log.remember_answer("old", "ann", {}, 0.0)
    log.remember_answer("new", "ann", {}, 8.0 * DAY_S)
    log.prune(0, 8.0 * DAY_S)
    assert log.answer("old") is None and log.answer("new") == {}


def test_nothing_of_an_erased_user_is_left_in_any_file(log):
    write(log, {"user_id": "ann-of-elm-street", "review": "what a lovely lamp"}, user="ann-of-elm-street")
    write(log, {"user_id": "bob", "review": "too dim"}, user="bob")
    log.remember_answer("r1", "ann-of-elm-street", {"item_ids": ["lamp-of-ann"]}, 0.0)
    everything = lambda: b"".join(path.read_bytes() for path in log.path.parent.iterdir())  # noqa: E731
    assert b"ann-of-elm-street" in everything() and b"lovely lamp" in everything()
    with log.writing():
        position = log.erase(["ann-of-elm-street"], 1.0)
    log.prune(0, 1.0)
    for trace in (b"ann-of-elm-street", b"lovely lamp", b"lamp-of-ann"):
        assert trace not in everything()
    assert b"too dim" in everything()
    (erasure,) = log.after(position - 1)
    assert (erasure.kind, erasure.body) == ("forget", [log.user_digest("ann-of-elm-street")])
    assert log.user_digest("ann-of-elm-street") != log.user_digest("bob")


def test_two_logs_hash_a_user_differently(tmp_path):
    one, two = EventLog(tmp_path / "one.sqlite"), EventLog(tmp_path / "two.sqlite")
    assert one.name != two.name and one.user_digest("ann") != two.user_digest("ann")
    one.close(), two.close()


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "live.sqlite"
    path.write_bytes(b"this is no database, and long enough to be sure of it" * 50)
    with pytest.raises(StorageError, match=r"live\.sqlite cannot be used .* move it away"):
        EventLog(path)


def test_two_processes_write_in_turns(log, tmp_path):
    script = (
        "import sys; from pathlib import Path; from llm_rerank.recommendation.event_log import EventLog\n"
        "log = EventLog(Path(sys.argv[1]))\n"
        "for n in range(100):\n"
        "    with log.writing():\n"
        "        log.append('event', [{'n': n, 'from': sys.argv[2]}], [None], 0.0)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, log.path, name]) for name in "ab"]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    entries = log.after(0)
    assert [entry.position for entry in entries] == list(range(1, 201))
    for name in "ab":
        assert [entry.body["n"] for entry in entries if entry.body["from"] == name] == list(range(100))
    assert sqlite3.connect(log.path).execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("own", [True, False], ids=["one log", "two processes' logs"])
def test_an_erasure_does_not_fail_on_a_checkpoint_beside_it(tmp_path, own):
    """SQLite refuses a second checkpoint at once, whatever it was told to wait."""
    with closing(EventLog(tmp_path / "log")) as log, closing(EventLog(tmp_path / "log")) as other:
        ended = threading.Event()

        def keep_checking():
            while not ended.is_set():
                (log if own else other).checkpoint()

        beside = threading.Thread(target=keep_checking)
        beside.start()
        try:
            for number in range(30):
                with log.writing():
                    position = log.append("event", [{"timestamp": number}], [f"u{number}"], float(number))
                log.prune(position, float(number))
        finally:
            ended.set()
            beside.join()
        assert not (tmp_path / "log-wal").stat().st_size
