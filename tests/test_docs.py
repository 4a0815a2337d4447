"""The Python blocks of docs/ run as they stand, one after another, on two tables of the sample shop."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llm_rerank import load_dataset
from llm_rerank.types import StorageError

PROJECT = Path(__file__).parents[1]
N_USERS = 300


def blocks(page):
    """Python blocks of a page of docs/, in order."""
    return re.findall(r"^```python\n(.*?)^```$", (PROJECT / "docs" / page).read_text(encoding="utf-8"), re.M | re.S)


def run(page, names=None):
    """Execute a page's blocks in one namespace and return it."""
    names = {} if names is None else names
    for number, block in enumerate(blocks(page), start=1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    return SimpleNamespace(**names)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """orders.csv and items.csv in the working folder."""
    monkeypatch.chdir(tmp_path)
    shop = load_dataset("sample")
    users = shop.interactions["user_id"].unique()[:N_USERS]
    events = shop.interactions[shop.interactions["user_id"].isin(users)]
    events.to_csv("orders.csv", index=False)
    shop.items.to_csv("items.csv", index=False)
    return events


def test_scorers(tables, capsys):
    assert len(blocks("scorers.md")) == 4
    found = run("scorers.md")
    printed = capsys.readouterr().out
    # the first user's ten of the whole catalogue, best first, nothing among them that they bought before
    user = found.users[0]
    scores = found.scorer.score_catalogue(found.next_cases(found.past, [user])[0])[0]
    bought = tables[(tables["user_id"] == user) & (tables["event"] == "purchase")]["item_id"]
    best = np.argsort(np.where(np.isin(found.items.ids, bought), np.inf, -scores), kind="stable")[:10]
    assert f"{user} {found.items.frame['title'][best].tolist()}" in printed
    # the component of one's own is blended, and no file can name it
    own = [component for component in found.reranker.components if component.name == "same_category"]
    assert len(own) == 1 and own[0].blends and own[0].settings["decay"] in (0.2, 0.05)
    with pytest.raises(StorageError, match="component 'same_category' cannot be saved"):
        found.reranker.save("shop")
    assert "[0.63092975 0.91972079] [1. 1.]" in printed
    assert 0 < found.ndcg_at_k(found.hits, found.n_targets, 10).mean() < 1


def test_seconds_of_scorers_are_the_reports():
    systems = json.loads((PROJECT / "benchmarks/results/ranking/amazon_scientific.json").read_text())["systems"]
    page = (PROJECT / "docs" / "scorers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`, .* \| ([\d.]+) \| ([\d.]+) \|$", page, re.M)
    assert len(rows) == 11
    for name, fit, rank in rows:
        seconds = systems[name]["seconds_fit"], systems[name]["seconds_score"]
        assert [fit, rank] == [f"{value:.1f}".removeprefix("0") for value in seconds], name
