"""Does a killed service lose an event that it acknowledged, or count one twice? Twenty kills under write load.

    python -m benchmarks.durability --model shop --kills 20 --out FILE.json

A copy of the model is served; writers post events without a pause, each again with the same id until it is
acknowledged; the service is killed (signal 9) at random moments, while it folds its log into the model folder as well,
and started again. At the end each event must be in the shop exactly once.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks._common import run_information, write_report
from benchmarks._service import RunningService
from llm_rerank.recommendation.live import LiveShop
from llm_rerank.recommendation.reranker import Reranker

WRITERS = 4
PAUSE_S = 0.05


class Writer(threading.Thread):
    """Posts events of its own until told to stop; knows which were acknowledged."""

    def __init__(self, number: int, url: str, users: Sequence[Any], items: Sequence[Any], first_moment: int) -> None:
        super().__init__(daemon=True)
        self.number, self.url, self.first_moment = number, url, first_moment
        self.users, self.items = users, items
        self.acknowledged: list[tuple[Any, Any, int]] = []
        self.unanswered = 0
        self.stopping = threading.Event()

    def run(self) -> None:
        """Post one event after another; one that was not acknowledged is posted again under its id."""
        rng = np.random.default_rng(self.number)
        with httpx.Client(base_url=self.url, timeout=10.0) as client:
            count = 0
            while not self.stopping.is_set():
                user, item = (list_[int(rng.integers(len(list_)))] for list_ in (self.users, self.items))
                moment = self.first_moment + WRITERS * count + self.number  # a time of its own: no two are alike
                event = {"event_id": f"{self.number}-{count}", "user_id": user, "item_id": item, "timestamp": moment}
                while not self.stopping.is_set():
                    try:
                        if client.post("/events", json=event).status_code == 200:
                            self.acknowledged.append((user, item, moment))
                            break
                    except httpx.HTTPError:
                        pass
                    self.unanswered += 1
                    time.sleep(PAUSE_S)
                count += 1


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durability", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of a saved reranker; a copy of it is served")
    add("--kills", type=int, default=20)
    add("--compact-every", type=float, default=1.0, help="seconds between foldings of the log into the model folder")
    add("--seed", type=int, default=0)
    add("--out", type=Path)
    options = parser.parse_args(arguments)
    information = run_information(options.seed)
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "shop"
        shutil.copytree(options.model, model)
        saved = Reranker.load(model, verbose=False).saved
        users, items = saved.events.user_ids.tolist(), saved.fitted.items.ids.tolist()
        n_before, first_moment = len(saved.events), int(saved.events.times.max()) + 1
        service = RunningService(model, ["--compact-every", str(options.compact_every)])
        writers = [Writer(number, service.url, users, items, first_moment) for number in range(WRITERS)]
        for writer in writers:
            writer.start()
        for kill in range(options.kills):
            time.sleep(float(rng.uniform(0.2, 4.0)))
            service.kill()
            print(f"kill {kill + 1}: {sum(len(w.acknowledged) for w in writers):,} acknowledged so far", flush=True)
            service.restart()
        time.sleep(1.0)
        for writer in writers:
            writer.stopping.set()
        for writer in writers:
            writer.join()
        service.kill()
        with LiveShop(model) as shop:
            after = shop.reranker().saved
    events, item_ids = after.events, after.fitted.items.ids
    held = Counter(
        (events.user_ids[user], item_ids[item], time_)
        for user, item, time_ in zip(events.users.tolist(), events.items.tolist(), events.times.tolist(), strict=True)
        if item >= 0
    )
    known = Counter(
        (saved.events.user_ids[user], item_ids[item], time_)
        for user, item, time_ in zip(
            saved.events.users.tolist(), saved.events.items.tolist(), saved.events.times.tolist(), strict=True
        )
        if item >= 0
    )
    acknowledged = [event for writer in writers for event in writer.acknowledged]
    if not acknowledged:
        raise RuntimeError("no event was acknowledged; the log of the service above says why")
    counts = [held[event] - known[event] for event in acknowledged]
    report = {
        "kills": options.kills,
        "acknowledged": len(acknowledged),
        "posted_again": sum(writer.unanswered for writer in writers),
        "lost": sum(count < 1 for count in counts),
        "doubled": sum(count > 1 for count in counts),
        "beyond_the_acknowledged": len(events) - n_before - len(acknowledged),
        **information,
    }
    print(
        f"{report['kills']} kills: {report['acknowledged']:,} events acknowledged, {report['lost']} lost, "
        f"{report['doubled']} doubled; {report['beyond_the_acknowledged']} more were taken but not acknowledged"
    )
    write_report(options.out, report)
    return report


if __name__ == "__main__":
    main()
