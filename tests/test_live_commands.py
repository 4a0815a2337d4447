"""The commands that change a model folder: update, forget, export, refit; alone, and beside a service's log."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from llm_rerank import live_commands
from llm_rerank.cli import app
from llm_rerank.folders import current_name
from llm_rerank.recommendation.event_log import LOG_FILE
from llm_rerank.recommendation.live import LiveShop
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.types import ReplacedError
from tests.planted import CLOCK_START, DAY
from tests.recommendation.test_privacy import traces
from tests.shops import make_shop

LATER = CLOCK_START + 400 * DAY


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A fitted shop whose users are numbers; one wrote a sentence that nobody else did."""
    folder = tmp_path_factory.mktemp("source")
    events, items = make_shop(n_users=120)
    events = events.assign(user_id=events["user_id"].str[1:].astype(int) + 700_001_000)
    bought = events.index[(events["user_id"] == 700_001_007) & (events["event"] == "purchase")]
    events.loc[bought, "review"] = "quite a plucky contraption"
    events.to_csv(folder / "orders.csv", index=False)
    items.to_csv(folder / "items.csv", index=False)
    result = run(
        "fit", folder / "orders.csv", folder / "items.csv", "--out", folder / "model", "--encoder", "none", "-q"
    )
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def model(source, tmp_path):
    folder = tmp_path / "model"
    Reranker.load(source / "model", verbose=False).save(folder)
    return folder


def test_update_takes_files_in_and_writes_back(model, source, tmp_path):
    item = pd.read_csv(source / "items.csv")["item_id"][0]
    pd.DataFrame({"who": [700_001_003, 5], "item_id": ["brandnew", item], "timestamp": LATER}).to_csv(
        tmp_path / "today.csv", index=False
    )
    pd.DataFrame({"item_id": ["brandnew"], "title": ["premium trowel"]}).to_csv(tmp_path / "items.csv", index=False)
    before = current_name(model)
    words = ("update", model, "--interactions", tmp_path / "today.csv", "--items", tmp_path / "items.csv")
    result = run(*words, "--column", "who=user_id")
    assert result.exit_code == 0, result.output
    assert "2 events taken in, 1 users are new" in result.stderr
    assert "until a refit: " in result.stderr
    assert current_name(model) != before
    saved = Reranker.load(model, verbose=False).saved
    assert saved.fitted.items.ids[-1] == "brandnew"
    assert saved.events.times[-2:].tolist() == [LATER, LATER]
    result = run("update", model)
    assert result.exit_code == 2
    assert "neither interactions nor items" in result.stderr


def test_forget_leaves_no_trace_and_tells_what_stays(model):
    sentence = b"quite a plucky contraption"
    assert traces(model, sentence)
    assert traces(model, b"700001007")
    result = run("forget", model, "700001007", "12")
    assert result.exit_code == 0, result.output
    assert "1 users forgotten" in result.stdout
    assert "1 user ids are unknown" in result.stdout
    assert "until a refit: als" in result.stdout
    assert "event log" not in result.stdout  # there is none
    assert traces(model, sentence) == traces(model, b"700001007") == []
    before = current_name(model)
    assert run("forget", model, "700001007").exit_code == 0
    assert current_name(model) == before


def test_forget_reaches_the_log_of_a_service(model, source):
    item = pd.read_csv(source / "items.csv")["item_id"][0]
    with LiveShop(model) as shop:
        shop.record([{"user_id": 700_001_007, "item_id": item, "review": "a later plucky word"}])
    assert (model / LOG_FILE).exists()
    exported = json.loads(run("export", model, "700001007").stdout)
    assert exported["events"][-1]["review"] == "a later plucky word"
    assert run("forget", model, "700001007").exit_code == 0
    assert traces(model, b"plucky", b"700001007") == []
    assert run("export", model, "700001007").exit_code == 2


def test_forget_names_an_earlier_content_that_cannot_be_removed(model, monkeypatch):
    remove = shutil.rmtree

    def refuse(path, **more):
        if (Path(path) / "manifest.json").exists():
            raise PermissionError(13, "Permission denied", str(path))
        remove(path, **more)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    result = run("forget", model, "700001007")
    (left,) = [path for path in model.iterdir() if traces(path, b"700001007")]
    assert result.exit_code == 0, result.output
    assert f"not reached: {left}, an earlier content, cannot be removed now" in result.stdout
    monkeypatch.undo()
    assert "an earlier content" not in run("forget", model, "700001007").stdout
    assert traces(model, b"700001007") == []


def test_what_the_log_of_a_service_holds_beyond_its_time_goes_with_an_update(model, source, tmp_path):
    item = pd.read_csv(source / "items.csv")["item_id"][0]
    saved = Reranker.load(model, verbose=False).saved
    Reranker.from_saved(replace(saved, config=replace(saved.config, retention_days=30.0))).save(model)
    with LiveShop(model, clock=lambda: time.time() - 40 * DAY) as shop:
        shop.record([{"user_id": 700_001_999, "item_id": item, "review": "a later plucky word"}])
        shop.remember_answer("r1", 700_001_999, [item])
    assert traces(model, b"plucky") == [LOG_FILE]
    pd.DataFrame({"item_id": ["brandnew"], "title": ["premium trowel"]}).to_csv(tmp_path / "items.csv", index=False)
    assert run("update", model, "--items", tmp_path / "items.csv").exit_code == 0
    assert traces(model, b"plucky", b"700001999") == []


def test_what_a_service_was_told_before_does_not_undo_an_update(model, source, tmp_path):
    """A price of ten o'clock in the log, one of half past ten in a file."""
    item = pd.read_csv(source / "items.csv")["item_id"][3]

    def price(reranker):
        return float(reranker.saved.fitted.items.frame["price"].iloc[3])

    with LiveShop(model) as shop:
        shop.add_items([{"item_id": item, "price": 5.0}])
        pd.DataFrame({"item_id": [item], "price": [4.0]}).to_csv(tmp_path / "items.csv", index=False)
        assert run("update", model, "--items", tmp_path / "items.csv").exit_code == 0
        assert price(Reranker.load(model, verbose=False)) == 4.0
        assert shop.reload_if_replaced()
        assert price(shop.reranker()) == 4.0
        shop.add_items([{"item_id": item, "price": 3.0}])
        shop.compact()
    assert price(Reranker.load(model, verbose=False)) == 3.0


def test_export_writes_what_is_held(model, tmp_path):
    result = run("export", model, "700001007", "--out", tmp_path / "held.json")
    assert result.exit_code == 0, result.output
    held = json.loads((tmp_path / "held.json").read_text())
    assert held == json.loads(run("export", model, "700001007").stdout)
    assert held == Reranker.load(model, verbose=False).export(700_001_007)
    assert {one["review"] for one in held["events"]} == {"", "quite a plucky contraption"}
    for out, said in ((tmp_path, "is a folder; give the name of a file"), (tmp_path / "no" / "held.json", "make")):
        refused = run("export", tmp_path / "nothing", "700001007", "--out", out)  # before anything is loaded
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert f"output {out} " in refused.stderr and said in refused.stderr
    result = run("export", model, "12")
    assert result.exit_code == 2
    assert "nothing is held of user '12'" in result.stderr


def test_refit_learns_from_what_came_since(model, source):
    item = pd.read_csv(source / "items.csv")["item_id"][0]
    reranker = Reranker.load(model, verbose=False)
    reranker.update([{"user_id": 700_001_003, "item_id": item, "timestamp": LATER, "event": "purchase"}])
    assert not reranker.saved.in_fit.all()
    reranker.save(model)
    result = run("refit", model)
    assert result.exit_code == 0, result.output
    assert "refit: the whole fit again on the " in result.stdout
    saved = Reranker.load(model, verbose=False).saved
    assert len(saved.events) == len(reranker.saved.events)
    assert saved.in_fit.all()
    assert saved.target_events == ("purchase",)
    days = (time.time() - CLOCK_START) / DAY - 100
    assert run("refit", model, "--retention-days", f"{days}", "-q").exit_code == 0
    saved = Reranker.load(model, verbose=False).saved
    assert saved.config.retention_days == pytest.approx(days)
    assert saved.events.times[0] >= CLOCK_START + 99.9 * DAY
    assert len(saved.events) < len(reranker.saved.events)


def test_what_another_saved_meanwhile_is_not_written_over(model, source):
    version = current_name(model)
    reranker = Reranker.load(model, verbose=False)
    Reranker.load(model, verbose=False).save(model, histories=False)
    with pytest.raises(ReplacedError, match="given another content meanwhile"):
        live_commands._write_back(reranker, model, version)
    assert not Reranker.load(model, verbose=False).saved.has_histories


def test_a_refit_of_the_same_events_decides_the_same(source):
    first = Reranker.load(source / "model", verbose=False)
    again = Reranker.from_saved(first.saved).refit()
    asked = first.recommend(None, k=3)
    np.testing.assert_array_equal(again.recommend(None, k=3)["item_id"], asked["item_id"])
    assert again.saved.fitted.stage.to_dict() == first.saved.fitted.stage.to_dict()
