"""The command line: files in, files out, the same answers as the library, and failures in one line."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from llm_rerank.cli import app, main
from llm_rerank.config import DiversityConfig, RerankerConfig, ThresholdConfig
from llm_rerank.folders import save_folder
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.storage import write_json
from tests.shops import make_shop

COLUMNS = ("--column", "customer=user_id", "--column", "sku=item_id")
COMMANDS = ("demo", "check", "fit", "rerank", "recommend", "explain", "evaluate")


def run(*words) -> object:
    return CliRunner().invoke(app, [str(word) for word in words])


def start(*words, **settings) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "llm_rerank", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        **settings,
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A shop's files with names of its own, and user ids that are numbers; fitted through the command line."""
    folder = tmp_path_factory.mktemp("shop")
    events, items = make_shop(n_users=150)
    events = events.assign(user_id=events["user_id"].str[1:].astype(int) + 1000)
    events = events.rename(columns={"user_id": "customer", "item_id": "sku"})
    events.to_csv(folder / "orders.csv", index=False)
    items.rename(columns={"item_id": "sku"}).to_json(folder / "items.jsonl", orient="records", lines=True)
    candidates = pd.DataFrame({"customer": 1000, "sku": items["item_id"][:12], "shelf": range(12)})
    candidates.to_csv(folder / "candidates.csv", index=False)
    result = run(
        "fit", folder / "orders.csv", folder / "items.jsonl", "--out", folder / "model", "--encoder", "none", *COLUMNS
    )
    assert result.exit_code == 0, result.output
    assert "protocol" in result.stdout
    assert "guard" in result.stdout
    return folder


@pytest.fixture(scope="module")
def reranker(shop) -> Reranker:
    return Reranker.load(shop / "model", verbose=False)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("ranked.csv", pd.read_csv),
        ("ranked.csv.gz", pd.read_csv),
        ("ranked.tsv", lambda path: pd.read_csv(path, sep="\t")),
        ("ranked.jsonl", lambda path: pd.read_json(path, lines=True)),
        ("ranked.parquet", pd.read_parquet),
    ],
)
def test_rerank_writes_what_the_library_answers(shop, reranker, tmp_path, name, read):
    result = run("rerank", shop / "model", shop / "candidates.csv", "--out", tmp_path / name, "-k", 5, *COLUMNS)
    assert result.exit_code == 0, result.output
    expected = reranker.rerank(shop / "candidates.csv", k=5, columns={"customer": "user_id", "sku": "item_id"})
    pd.testing.assert_frame_equal(read(tmp_path / name), expected, check_dtype=False, rtol=1e-6)
    assert list(expected["rank"]) == [1, 2, 3, 4, 5]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_without_out_the_table_goes_to_stdout(shop, reranker):
    result = run("rerank", shop / "model", shop / "candidates.csv", *COLUMNS)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("user_id,item_id,rank,score,probability,kept,")
    assert len(lines) == 1 + 12


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("kind", "mark"), [(io.TextIOWrapper, "山 ü".encode()), (Terminal, b"\\u5c71 \xfc")])
def test_stdout_of_another_encoding_ends_no_command(shop, tmp_path, monkeypatch, kind, mark):
    pd.read_csv(shop / "candidates.csv").assign(mark="山 ü").to_csv(tmp_path / "marked.csv", index=False)
    stdout = kind(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stdout)
    words = ("rerank", shop / "model", tmp_path / "marked.csv", *COLUMNS)
    monkeypatch.setattr(sys, "argv", ["llm-rerank", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    stdout.flush()
    assert (ended.value.code, stdout.buffer.getvalue().count(mark)) == (0, 12)


def test_user_ids_typed_on_the_command_line_are_the_numbers_of_the_file(shop, reranker):
    # 1000 buys from the first theme; a stranger's list would know nothing of it
    result = run("recommend", shop / "model", "1000", "1001", "-k", 4)
    told = [line.split(",")[:3] for line in result.stdout.splitlines()[1:]]
    answered = reranker.recommend([1000, 1001], k=4)
    expected = [[str(value) for value in row] for row in answered[["user_id", "item_id", "rank"]].to_numpy()]
    assert told == expected
    stranger = reranker.recommend(["nobody"], k=4)["item_id"].tolist()
    assert answered["item_id"].tolist()[:4] != stranger


def test_explain_shows_the_explanation(shop, reranker):
    item = reranker.recommend([1000], k=1)["item_id"].iloc[0]
    result = run("explain", shop / "model", "1000", item)
    assert result.stdout.splitlines()[1:] == str(reranker.explain(1000, item)).splitlines()[1:]
    assert "history items" in result.stdout


def test_evaluate_shows_and_writes_the_same_figures(shop, tmp_path):
    out = tmp_path / "figures.json"
    words = ("evaluate", shop / "orders.csv", shop / "items.jsonl", "--encoder", "none", "--quiet", "--out", out)
    result = run(*words, "--report", tmp_path / "report.html", "--threshold", "recall=0.8", *COLUMNS)
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())
    page = (tmp_path / "report.html").read_text()
    assert f"{figures['systems']['fused']['ndcg@10']:.4f}" in page
    assert "The rule &#39;recall&#39; (0.8) keeps a candidate" in page
    assert {"popularity", "text_ease", "als", "item_knn", "recent_popularity", "fused"} == set(figures["systems"])
    fused = figures["systems"]["fused"]
    low, high = fused["ci95"]["ndcg@10"]
    row = next(line for line in result.stdout.splitlines() if line.startswith("fused "))
    assert f"{fused['ndcg@10']:.4f} [{low:.4f}, {high:.4f}]" in row
    assert f"  {fused['map@10']:.4f}  " in row
    assert f"accuracy {figures['cut']['accuracy']:.4f} beside the {figures['cut']['base_rate']:.4f}" in result.stdout
    # tastes are planted: whoever reads histories beats who does not
    assert fused["ndcg@10"] > 1.3 * figures["systems"]["popularity"]["ndcg@10"]
    assert "time cut" in figures["trial"]


def failing(shop: Path, tmp_path: Path) -> dict[str, tuple[tuple, str]]:
    """Words that must fail, and what the one line must say."""
    orders, items = shop / "orders.csv", shop / "items.jsonl"
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "file").write_text("mine")
    damaged = tmp_path / "damaged"
    shutil.copytree(shop / "model", damaged)
    content = damaged / (damaged / "CURRENT").read_text().strip()
    (content / "config.json").write_text("{}")
    (tmp_path / "german.csv").write_bytes("user_id,item_id,timestamp,größe\n".encode("cp1252"))
    foreign = tmp_path / "foreign"
    save_folder(foreign, lambda place: write_json(place / "cross_encoder.json", {}))
    fit = ("fit", orders, items, "--encoder", "none", "--out", tmp_path / "model")
    rerank = ("rerank", shop / "model", shop / "candidates.csv", *COLUMNS)
    finetune = ("finetune", "--interactions", tmp_path / "no.csv", "--items", items, "--out")
    return {
        "no such file": (("check", tmp_path / "no.csv", items), "no.csv does not exist"),
        "empty file": (("check", tmp_path / "empty.csv", items), "empty.csv is empty"),
        "columns not mapped": (("check", orders, items), "pass --column sku=item_id"),
        "mapping of nothing": (("check", orders, items, "--column", "client=user_id"), "client"),
        "mapping without =": (("check", orders, items, "--column", "customer"), "--column is 'customer'"),
        "time unit": (("check", orders, items, *COLUMNS, "--time-unit", "weeks"), "time_unit is 'weeks'"),
        "rule": ((*fit, *COLUMNS, "--threshold", "median=1"), "median"),
        "rule without number": ((*fit, *COLUMNS, "--threshold", "recall"), "--threshold is 'recall'"),
        "model is a file": ((*fit[:-1], tmp_path / "file", *COLUMNS), "file is a file"),
        "no model": (("recommend", tmp_path / "nothing"), "nothing is not a folder"),
        "damaged model": (("recommend", damaged, "1000"), "config.json is damaged"),
        "unknown item": (("explain", shop / "model", "1000", "zzz"), "'zzz' is absent"),
        "k": (
            ("recommend", shop / "model", "1000", "-k", "0"),
            "k is 0; it must be a whole number of at least 1, or all: ",
        ),
        "suffix": (("recommend", tmp_path / "nothing", "--out", tmp_path / "list.xls"), "list.xls has no known suffix"),
        "folder of the output": (("rerank", tmp_path / "nothing", orders, "--out", tmp_path / "no" / "a.csv"), "make"),
        "cut": (("evaluate", orders, items, *COLUMNS, "--cut", "1999-01-01"), "1999-01-01"),
        "data set": (("demo", "--data", "samples"), "no data set 'samples'"),
        "moment of a list": ((*rerank, "--at", "gestern"), "at is 'gestern', which is no date"),
        "moment of advice": (("recommend", shop / "model", "1000", "--at", "nan"), "at is nan, which is no time"),
        "moment of a reason": (("explain", shop / "model", "1000", "cyc-0-cla", "--at", "1e30"), "at is 1e+30"),
        "place below a file": ((*fit[:-1], tmp_path / "file" / "model", *COLUMNS), "file is a file; a model is saved"),
        "fine-tuning into a file": ((*finetune, tmp_path / "file"), "file is a file; a model is saved as a folder"),
        "another encoding": (("check", tmp_path / "german.csv", items, "--encoding", "ascii"), "--encoding cp1252"),
        "mapping of no table": ((*rerank, "--column", "client=title"), "columns maps 'client', which no table has"),
        "device": (("recommend", shop / "model", "1000", "--device", "foo"), "device is 'foo'"),
        "threshold of no fit": (
            ("recommend", shop / "model", "1000", "--threshold", "risk=missed_target,alpha=0.1,delta=0.1"),
            "and the fit chose no cut: fit again with this threshold",
        ),
        "another model": (("recommend", foreign, "1000"), "another model than a reranker, a cross-encoder alone, wh"),
    }


FAILURES = (
    "no such file",
    "empty file",
    "columns not mapped",
    "mapping of nothing",
    "mapping without =",
    "time unit",
    "rule",
    "rule without number",
    "model is a file",
    "no model",
    "damaged model",
    "unknown item",
    "k",
    "suffix",
    "folder of the output",
    "cut",
    "data set",
    "moment of a list",
    "moment of advice",
    "moment of a reason",
    "place below a file",
    "fine-tuning into a file",
    "another encoding",
    "mapping of no table",
    "device",
    "threshold of no fit",
    "another model",
)


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_is_one_line_and_exit_code_2(shop, tmp_path, case):
    words, expected = failing(shop, tmp_path)[case]
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("llm-rerank: ")
    assert len(result.stderr.splitlines()) == 1
    assert expected in result.stderr
    assert result.stdout == ""


def test_dropped_rows_and_how_files_were_read_are_said(shop, tmp_path):
    candidates = pd.read_csv(shop / "candidates.csv").assign(grösse="süß")
    candidates.loc[len(candidates)] = [1000, "zzz", 0, "süß"]
    candidates.to_csv(tmp_path / "german.csv", index=False, encoding="cp1252")
    words = ("rerank", shop / "model", tmp_path / "german.csv", "--on-unknown", "drop", *COLUMNS)
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "dropped 1 rows: candidates: item is absent from items" in result.stderr.splitlines()
    assert "german.csv: cp1252 (a guess: where letters look wrong, name the encoding)" in result.stderr
    assert "Warning" not in result.stderr
    assert len(result.stdout.splitlines()) == 1 + 12 and "grösse" in result.stdout and "süß" in result.stdout
    told = run(*words, "--encoding", "cp1252")
    assert told.stdout == result.stdout
    assert "german.csv: cp1252, delimiter comma" in told.stderr


def test_unknown_users_and_a_threshold_that_could_not_be_chosen_are_said(tmp_path):
    events, items = make_shop(n_users=12)
    config = RerankerConfig(encoder=None, sequence="off", refit=False)
    for name, threshold in (("asked", ThresholdConfig("recall", 0.9)), ("plain", None)):
        model = Reranker(replace(config, threshold=threshold), verbose=False).fit(events, items)
        assert model.saved.fitted.stage.calibrator is None
        model.save(tmp_path / name)
    asked = pd.DataFrame({"user_id": ["U1", "u1"], "item_id": items["item_id"][:2]})
    asked.to_csv(tmp_path / "asked.csv", index=False)
    nothing_cut = "no guarantee: nothing is cut: the fit found no probabilities, and its report says why"
    for words in (
        ("recommend", tmp_path / "asked", "U1", "u1"),
        ("rerank", tmp_path / "asked", tmp_path / "asked.csv"),
    ):
        told = run(*words).stderr.splitlines()
        assert "1 of 2 users have no history here (first: 'U1'): ranked as newcomers" in told
        assert any(line.endswith(nothing_cut) for line in told)
    assert run("recommend", tmp_path / "plain", "u1").stderr == ""
    assert "nothing is cut" not in run("rerank", tmp_path / "plain", tmp_path / "asked.csv").stderr


def test_histories_under_a_shops_own_names(shop, reranker, tmp_path):
    items = reranker.saved.fitted.items.ids
    histories = pd.DataFrame({"customer": 7, "sku": items[40:44], "bought": "2024-05-31"})
    histories.to_csv(tmp_path / "histories.csv", index=False)
    ours = histories.set_axis(["user_id", "item_id", "timestamp"], axis=1)
    own = ("--histories", tmp_path / "histories.csv", *COLUMNS, "--column", "bought=timestamp")
    result = run("recommend", shop / "model", "-k", 5, *own)
    assert result.exit_code == 0, result.output
    expected = reranker.recommend(histories=ours, k=5)
    assert [line.split(",")[1] for line in result.stdout.splitlines()[1:]] == expected["item_id"].tolist()
    asked = run("rerank", shop / "model", shop / "candidates.csv", *own)
    assert asked.exit_code == 0, asked.output
    with_user = pd.DataFrame({"user_id": 7, "item_id": items[:12]})
    with_user.to_csv(tmp_path / "candidates.csv", index=False)
    asked = run("rerank", shop / "model", tmp_path / "candidates.csv", *own)
    expected = reranker.rerank(with_user, histories=ours)
    assert [line.split(",")[1] for line in asked.stdout.splitlines()[1:]] == expected["item_id"].tolist()


@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_the_cache_folder_reaches_the_fit(shop, tmp_path, command):
    """Shown by its refusal, which comes before any fit: a fit that fills a folder is in test_planning.py."""
    (tmp_path / "file").write_text("")
    words = (command, shop / "orders.csv", shop / "items.jsonl", "--quiet", "--out", tmp_path / "out", *COLUMNS)
    result = run(*words, "--cache-folder", tmp_path / "file")
    assert result.exit_code == 2
    assert f"cache folder {tmp_path / 'file'} cannot be made" in result.stderr


SETTINGS = (
    "--diversity", "max_per_group=2,group_by=brand", "--cross-encoder-depth", 7, "--history-length", 5,
    "--token-attention",
)  # fmt: skip


def test_settings_of_lists_and_cross_encoder_reach_fit_and_evaluate(shop, tmp_path):
    files = (shop / "orders.csv", shop / "items.jsonl", "--encoder", "none", "--no-refit", "--quiet", *COLUMNS)
    fitted = run("fit", *files, "--out", tmp_path / "model", *SETTINGS)
    assert fitted.exit_code == 0, fitted.output
    config = Reranker.load(tmp_path / "model", verbose=False).config
    assert config.diversity == DiversityConfig(max_per_group=2, group_by="brand")
    assert (config.cross_encoder_depth, config.history_length, config.token_attention) == (7, 5, True)
    evaluated = run("evaluate", *files, "--report", tmp_path / "report.html", *SETTINGS)
    assert evaluated.exit_code == 0, evaluated.output
    page = unescape((tmp_path / "report.html").read_text())
    for setting in ("history_length 5", "cross_encoder_depth 7", "token_attention True", "(max_per_group 2, group_by"):
        assert setting in page
    for command in ("fit", "evaluate"):
        refused = run(command, *files, "--out", tmp_path / "out", "--diversity", "2")
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "diversity strength is 2.0; it must be a number from 0" in refused.stderr


def test_a_failure_keeps_the_earlier_output(shop, tmp_path):
    out = tmp_path / "ranked.csv"
    out.write_text("earlier")
    words = ("rerank", shop / "model", shop / "candidates.csv", "--out", out, *COLUMNS)
    (tmp_path / "strange.csv").write_text("user_id,item_id\n1000,zzz\n")
    result = run("rerank", shop / "model", tmp_path / "strange.csv", "--out", out, "--on-unknown", "raise")
    assert result.exit_code == 2
    assert out.read_text() == "earlier"
    assert run(*words).exit_code == 0
    assert out.read_text() != "earlier"


def test_ctrl_c_is_exit_code_130_and_keeps_the_earlier_model(shop, tmp_path):
    shutil.copytree(shop / "model", tmp_path / "model")
    before = (tmp_path / "model" / "CURRENT").read_text()
    words = ("fit", shop / "orders.csv", shop / "items.jsonl", "--encoder", "none", "--out", tmp_path / "model")
    fitting = start(*words, "--seed", 1, *COLUMNS)
    for line in fitting.stdout:
        if line.startswith("plan"):
            break
    fitting.send_signal(signal.SIGINT)
    _, errors = fitting.communicate(timeout=60)
    assert fitting.returncode == 130
    assert errors.strip().endswith("llm-rerank: interrupted; no output file was written")
    assert "Traceback" not in errors
    assert (tmp_path / "model" / "CURRENT").read_text() == before
    assert len(Reranker.load(tmp_path / "model", verbose=False).recommend([1000], k=3)) == 3


def test_a_reader_that_goes_away_makes_no_noise(shop):
    telling = start("recommend", shop / "model", "-k", "50")
    telling.stdout.readline()
    telling.stdout.close()
    errors = telling.stderr.read()
    telling.wait(timeout=60)
    assert errors == ""


def test_help_teaches():
    result = run("--help")
    for command in COMMANDS:
        assert f"  {command} " in result.stdout
        own = run(command, "--help")
        assert own.exit_code == 0
        assert f"Usage: root {command}" in own.stdout or f"{command} [OPTIONS]" in own.stdout
        assert "\\b" not in own.stdout and "\b" not in own.stdout
    assert "llm-rerank check orders.csv items.csv" in result.stdout
    assert "customer=user_id" in result.stdout


def test_a_remedy_can_be_typed_as_it_is(tmp_path):
    (tmp_path / "orders.csv").write_text("Customer ID,item_id,timestamp\nu1,a,5\n", encoding="utf-8")
    (tmp_path / "items.csv").write_text("item_id,title\na,A\n", encoding="utf-8")
    told = run("check", str(tmp_path / "orders.csv"), str(tmp_path / "items.csv"))
    assert told.exit_code != 0
    assert "pass --column 'Customer ID=user_id'" in told.stderr
