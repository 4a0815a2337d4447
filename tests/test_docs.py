"""The Python blocks of docs/ run as they stand, one after another, on two tables of the sample shop."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from llm_rerank import Reranker, RerankerConfig, load_dataset
from llm_rerank.types import StorageError
from tests.tiny_media import save_tiny_clap, save_tiny_clip

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
    # the component of one's own is blended, and comes back where its spec is given, for no file can name it
    own = [component for component in found.reranker.components if component.name == "same_category"]
    assert len(own) == 1 and own[0].blends and own[0].settings["decay"] in (0.2, 0.05)
    with pytest.raises(StorageError, match=r"'same_category' is none of the library's.*load\(folder, components="):
        Reranker.load("shop")
    fitted = Reranker(found.config, components=found.components, verbose=False).fit("orders.csv", "items.csv")
    asked = found.users.tolist()
    pd.testing.assert_frame_equal(found.reranker.recommend(asked, k=5), fitted.recommend(asked, k=5))
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


def test_media(tables, tmp_path):
    """Three pictures, two sounds, one talk; the items without have no vector, and a fit reads all of it."""
    image = pytest.importorskip("PIL.Image")
    from scipy.io import wavfile

    save_tiny_clip(tmp_path / "clip", 12)
    save_tiny_clap(tmp_path / "clap", 10)
    rng = np.random.default_rng(0)
    items = pd.read_csv("items.csv").assign(image=None, audio=None)
    for row in range(3):
        image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(f"{row}.png")
        items.loc[row, "image"] = f"{row}.png"
    for row in (5, 7):
        wavfile.write(f"{row}.wav", 48_000, rng.integers(-8_000, 8_000, 24_000).astype(np.int16))
        items.loc[row, "audio"] = f"{row}.wav"
    (tmp_path / "said").mkdir()
    (tmp_path / "said" / f"{items['item_id'][4]}.txt").write_text("quiet as\na whisper\n")
    items.to_json("items.jsonl", orient="records", lines=True)

    assert len(blocks("media.md")) == 3
    found = run("media.md").items
    assert [len(vector) for vector in found["image_vector"]] == [12] * len(items)
    assert [row for row, vector in enumerate(found["image_vector"]) if vector.any()] == [0, 1, 2]
    assert [row for row, vector in enumerate(found["audio_vector"]) if vector is not None] == [5, 7]
    assert {len(found["audio_vector"][row]) for row in (5, 7)} == {10} and "audio" not in found
    assert found["description"][4] == f"{items['description'][4]} quiet as a whisper"
    assert found["description"][3] == items["description"][3]
    config = RerankerConfig(encoder=None, sequence="off", vectors="always", refit=False)
    reranker = Reranker(config, verbose=False).fit("orders.csv", found)
    assert {"image_vector", "audio_vector"} <= {component.name for component in reranker.components}
    assert "whisper" in reranker.saved.fitted.items.texts[4]
    assert "column image" not in str(reranker.report())
    assert pd.read_parquet("items.parquet")["image_vector"].map(len).eq(12).all()
