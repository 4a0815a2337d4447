"""A look at a shop's files: everything is said, nothing is changed."""

import hashlib
import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.data.schema import validate_interactions, validate_items
from llm_rerank.models.semantic.cache import CachedEncoder
from llm_rerank.recommendation import estimate
from llm_rerank.recommendation.checking import MULTILINGUAL_ENCODER, check_shop
from llm_rerank.recommendation.estimate import measure_encoder, sample_of_texts, seconds_in_words
from llm_rerank.recommendation.judging import few_held_out
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.types import DataError
from tests.shops import make_shop

NO_ENCODER = RerankerConfig(encoder=None)


def write_shop(folder: Path) -> tuple[Path, Path]:
    """A shop's files with names of its own and known dirt: 2 events of nobody, 3 of an unknown item, 1 item twice."""
    events, items = make_shop(n_users=60)
    events = events.rename(columns={"user_id": "customer"}).drop(columns="rating")
    events.loc[[0, 1], "customer"] = None
    events.loc[[5, 6, 7], "item_id"] = "gone"
    items = pd.concat([items, items.head(1)]).drop(columns="price")
    events.to_csv(folder / "orders.csv", index=False)
    items.to_csv(folder / "items.csv", index=False)
    return folder / "orders.csv", folder / "items.csv"


def fingerprints(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in folder.iterdir()
    }


@pytest.fixture
def shop(tmp_path):
    return write_shop(tmp_path)


def test_a_description_of_any_length_is_read(shop):
    items = pd.read_csv(shop[1])
    items["description"] = ""
    items.loc[3, "description"] = "long, " * 25_000
    items.to_csv(shop[1], index=False)
    assert check_shop(*shop, columns={"customer": "user_id"}, config=NO_ENCODER).counts["items"] == 144


def test_pictures_that_nothing_reads_are_said(shop):
    items = pd.read_csv(shop[1])
    said = "column image of items is kept but read by no scorer: give vectors (docs/media.md)"
    for image, times in (("lamp.jpg", 1), ("", 0)):
        items.assign(image=image).to_csv(shop[1], index=False)
        understood = check_shop(*shop, columns={"customer": "user_id"}, config=NO_ENCODER).understood
        assert list(understood).count(said) == times


def test_everything_is_said_and_nothing_is_changed(shop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = fingerprints(tmp_path)
    check = check_shop(*shop, columns={"customer": "user_id"}, config=NO_ENCODER)
    assert fingerprints(tmp_path) == before
    assert check.tables[0].startswith("interactions: ")
    assert "customer → user_id" in check.tables[0]
    assert "joined to the text or passed through: theme" in check.tables[1]
    assert check.dropped == {
        "interactions: user_id is missing": 2,
        "interactions: item is absent from items": 3,
        "items: item_id is repeated (the first row is kept)": 1,
    }
    absent = {line.split(":")[0] for line in check.missing}
    assert {"interactions has no rating", "items has no price", "items has no categories"} <= absent
    assert not absent & {"interactions has no review", "interactions has no event", "items has no brand"}
    assert any("read as seconds since 1970" in line for line in check.understood)
    assert check.protocol.startswith("protocol positions")  # 60 users are too few for a window of time


def test_counts_are_those_of_the_files(shop):
    check = check_shop(*shop, columns={"customer": "user_id"}, config=NO_ENCODER)
    events = pd.read_csv(shop[0]).dropna(subset="customer")
    events = events[events["item_id"] != "gone"]
    n_items = pd.read_csv(shop[1])["item_id"].nunique()
    assert check.counts == {
        "events": len(events),
        "events that are targets": int((events["event"] == "purchase").sum()),
        "users": events["customer"].nunique(),
        "items": n_items,
        "items with an event": events["item_id"].nunique(),
        "events with a review": int(events["review"].notna().sum()),
        "searches": 0,
    }
    n_never = n_items - events[events["event"] == "purchase"]["item_id"].nunique()
    assert f"{n_never:,} of {n_items:,} items were never a target: only their text speaks for them" in check.missing


def test_text_and_json_say_the_same(shop):
    check = check_shop(*shop, columns={"customer": "user_id"}, config=NO_ENCODER)
    values = json.loads(json.dumps(check.to_dict()))
    assert values["dropped"] == check.dropped
    told = str(check)
    for line in [*check.tables, *check.understood, *check.missing, check.protocol]:
        assert f"  {line}" in told.splitlines()
    assert "  3 rows: interactions: item is absent from items" in told.splitlines()


def test_what_fit_would_refuse_is_refused(shop):
    with pytest.raises(DataError, match="customer"):
        check_shop(*shop, config=NO_ENCODER)


def test_events_without_real_time_are_told(shop, tmp_path):
    events = pd.read_csv(shop[0])
    events["timestamp"] = np.arange(len(events))
    check = check_shop(events, shop[1], columns={"customer": "user_id"}, config=NO_ENCODER)
    assert any("read as plain positions" in line for line in check.understood)


def test_published_layouts_are_recognised():
    reviews = pd.DataFrame(
        {
            "reviewerID": ["a", "a", "b", "b"],
            "asin": ["x", "y", "x", "y"],
            "overall": [5.0, 4.0, 5.0, 1.0],
            "reviewText": ["good", "fine", "well", "bad"],
            "summary": ["", "", "", ""],
            "unixReviewTime": [1_400_000_000, 1_400_100_000, 1_400_200_000, 1_400_300_000],
        }
    )
    items = pd.DataFrame({"asin": ["x", "y"], "title": ["drum", "flute"]})
    check = check_shop(reviews, items, config=NO_ENCODER)
    assert "user_id, item_id" in check.tables[0]


@pytest.mark.parametrize(("share_of_titles", "readable"), [(0.0, True), (0.4, False), (1.0, False)])
def test_a_language_that_the_encoder_cannot_read_is_named(shop, share_of_titles, readable):
    events, items = pd.read_csv(shop[0]), pd.read_csv(shop[1])
    items = items[["item_id", "title"]].drop_duplicates("item_id").reset_index(drop=True)
    # 14 signs that the tokenizer knows none of stand beside titles of two or three words
    rare = "".join(chr(0x9F00 + sign) for sign in range(14))
    items.loc[: share_of_titles * len(items) - 1, "title"] = rare
    check = check_shop(events.drop(columns="review"), items, columns={"customer": "user_id"})
    if readable:
        assert check.unknown_share < 0.02
        assert f"tokens of the items' texts: {check.unknown_share:.1%} unknown to the encoder" in str(check)
        assert not any("encoder" in line for line in check.advice)
    else:
        assert 0.3 < check.unknown_share < 0.9 or share_of_titles == 1.0
        assert MULTILINGUAL_ENCODER in check.advice[-1]
        assert f"cannot read {check.unknown_share:.0%}" in check.advice[-1]


def test_texts_of_a_large_catalogue_are_spread_and_carry_their_reviews(monkeypatch):
    events_frame, items_frame = make_shop(n_users=60)
    items = validate_items(items_frame)
    events_frame["review"] = "about " + events_frame["item_id"]
    events = validate_interactions(events_frame, items)
    monkeypatch.setattr(estimate, "MOST_TEXTS_RENDERED", 3)
    texts = sample_of_texts(events, items)
    asked = [0, (len(items) - 1) // 2, len(items) - 1]
    assert len(texts) == 3
    taken = set(events_frame["item_id"])
    for text, row in zip(texts, asked, strict=True):
        assert items_frame["title"][row] in text
        assert (f"about {items_frame['item_id'][row]}" in text) == (items_frame["item_id"][row] in taken)
    assert sum("about" in text for text in texts) == 2  # the last item is never taken


def test_thin_data_are_counted_by_hand():
    events = pd.DataFrame(
        {
            "user_id": ["u", "u", "v", "w", "w"],
            "item_id": ["a", "b", "a", None, "a"],
            "timestamp": [1_600_000_000 + step for step in range(5)],
            "event": ["purchase", "purchase", "purchase", "search", "view"],
            "query": [None, None, None, "bee", None],
        }
    )
    items = pd.DataFrame({"item_id": ["a", "b", "c"], "title": ["bee", "bee", "cat"]})
    users = pd.DataFrame({"user_id": ["u"], "age": [30]})
    check = check_shop(events, items, users=users, config=NO_ENCODER)
    assert check.counts == {
        "events": 5,
        "events that are targets": 3,
        "users": 3,
        "items": 3,
        "items with an event": 2,  # a search is of no item
        "events with a review": 0,
        "searches": 1,
    }
    # u has two targets, which are enough; v one and w none
    assert "2 of 3 users have fewer than two targets: nothing to learn from" in check.missing
    assert "1 of 3 items were never a target: only their text speaks for them" in check.missing
    assert "1 of 3 items share their title with another: the text cannot tell them apart" in check.missing
    assert "users: 1 rows; read: user_id; attributes: age" in check.tables
    assert not any(line.startswith("impressions") for line in check.missing)  # there is no such table
    assert check.protocol.startswith(
        "protocol positions: the last target of 0 of 0 users with at least 3 targets, and "
    )
    assert check.advice == [
        "no user can be held out: there will be no blend, no probabilities and no cut; give more events, with their "
        "real times"
    ]
    assert "tokens of the items' texts: not counted: no encoder" in str(check)


def test_advice_on_the_data_comes_before_a_fit_and_in_it():
    events, items = make_shop(n_users=40)
    own = events.assign(event=events["event"].map({"view": "ansicht", "purchase": "kauf"}))
    check = check_shop(own, items, config=NO_ENCODER)
    (advice,) = (line for line in check.advice if "count as successes" in line)
    assert "(ansicht, kauf)" in advice and "--target-event NAME" in advice and f"  {advice}" in str(check).splitlines()
    model = Reranker(RerankerConfig(encoder=None, sequence="off", refit=False), verbose=False).fit(own, items)
    assert f"warning: {advice}" in str(model.report()).splitlines()
    named = check_shop(own, items, config=replace(NO_ENCODER, target_events=("kauf",)))
    assert not any("count as successes" in line for line in named.advice)


def test_few_users_to_hold_out_are_told_before_a_fit_and_in_it():
    config = replace(NO_ENCODER, sequence="off", refit=False)
    for n_users, n_held_out in ((40, 24), (250, 150)):  # 60 % of the users of a young shop
        events, items = make_shop(n_users=n_users)
        check = check_shop(events, items, config=config)
        assert f"the last target of {n_held_out} of " in check.protocol
        advice = [line for line in check.advice if "held out" in line]
        assert len(advice) == (n_users == 40)
        lines = str(Reranker(config, verbose=False).fit(events, items).report()).splitlines()
        assert [line for line in lines if "can be held out" in line] == [f"warning: {line}" for line in advice]
    assert "only 24 users can be held out, and half of them teach: a blend needs 50" in few_held_out(24)
    assert few_held_out(0).startswith("no user can be held out: there will be no blend, no probabilities and no cut")
    assert few_held_out(99) and not few_held_out(100)


def test_items_without_a_title_do_not_share_it():
    events, items = make_shop(n_users=40)
    items.loc[[0, 1, 2], "title"] = ["", None, items["title"][3]]
    missing = check_shop(events, items, config=NO_ENCODER).missing
    assert f"1 of {len(items)} items share their title with another: the text cannot tell them apart" in missing


def test_a_refit_is_in_the_estimate_of_time(shop):
    seconds = [
        check_shop(
            *shop, columns={"customer": "user_id"}, config=RerankerConfig(encoder=None, sequence="off", refit=refit)
        ).fit_seconds
        for refit in (False, True)
    ]
    assert seconds[1] > seconds[0]


def test_long_reviews_are_in_the_estimate_of_time(shop):
    events = pd.read_csv(shop[0])
    seconds = [
        check_shop(
            events.assign(review=review),
            shop[1],
            columns={"customer": "user_id"},
            config=RerankerConfig(cross_encoder="off"),
        ).fit_seconds
        for review in ("good", "a good thing to have " * 200, "good")  # twice: a busy moment makes short ones dear
    ]
    # hundreds of reviews, each as long as the encoder reads: two seconds where bfloat16 is fast, else more
    assert seconds[1] > min(seconds[0], seconds[2]) + 0.5


class SlowEncoder:
    """An encoder of known speed: a tenth of a millisecond a character."""

    embedding_size, fingerprint = 2, "slow"

    def __init__(self) -> None:
        self.n_texts = 0

    def encode(self, inputs):
        self.n_texts += len(inputs)
        time.sleep(1e-4 * sum(len(text) for text in inputs))
        return np.ones((len(inputs), 2), dtype=np.float32)


def test_encoder_is_measured_on_few_texts():
    encoder = SlowEncoder()
    assert 12e-4 <= measure_encoder(encoder, ["a dozen text"] * 5_000) < 40e-4  # 12 characters at 1e-4 s
    assert encoder.n_texts <= 1 + 48
    assert measure_encoder(encoder, []) == 0
    assert measure_encoder(encoder, ["", ""]) == 0


class Recording(SlowEncoder):
    """Keeps what it was asked; its first call loads weights, its third is slow: the machine does something else."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def encode(self, inputs):
        self.calls.append(list(inputs))
        time.sleep(0.2 * (len(self.calls) in (1, 3)))
        return super().encode(inputs)


def test_measured_texts_are_spread_and_the_faster_half_counts():
    encoder = Recording()
    texts = [f"text number {row:04d}" for row in range(1_000)]  # 16 characters each
    assert 16e-4 <= measure_encoder(encoder, texts) < 90e-4  # a slow half has 0.2 s / 24 more, 99e-4
    asked = [int(text[-4:]) for call in encoder.calls[1:] for text in call]
    assert len(asked) == len(set(asked)) == 48
    assert {0, 999} <= set(asked)
    assert np.diff(sorted(asked)).max() < 30
    assert measure_encoder(SlowEncoder(), texts[:6]) >= 16e-4  # a text, of six as of a thousand


def test_an_encoder_that_remembers_is_not_taken_for_a_fast_one():
    encoder = CachedEncoder(SlowEncoder())
    texts = [f"text number {row:04d}" for row in range(1_000)]  # 16 characters each
    assert measure_encoder(encoder, texts) >= 16e-4


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "10 seconds"),
        (89, "90 seconds"),
        (90, "2 minutes"),
        (5399, "90 minutes"),
        (5400, "1.5 hours"),
        (43, "40 seconds"),
        (100, "2 minutes"),
        (3000, "50 minutes"),
        (9000, "2.5 hours"),
    ],
)
def test_seconds_in_words(seconds, words):
    assert seconds_in_words(seconds) == words


@pytest.mark.real_data
def test_scientific_is_understood():
    folder = Path(os.environ.get("LLM_RERANK_DATA", Path(__file__).parents[2] / "shared" / "data"))
    files = [folder / "amazon_scientific" / name for name in ("interactions.csv.gz", "items.jsonl.gz")]
    if not files[0].exists():
        pytest.skip("the data set is not beside the project")
    check = check_shop(*files, config=NO_ENCODER)
    assert check.counts["events"] == 59_384
    assert check.counts["users"] == 8_442
    assert check.counts["items"] == 4_385
    assert check.dropped == {}
    assert any("plain positions" in line for line in check.understood)
    assert math.isnan(check.unknown_share)
    # measured on two cores: minutes, not seconds and not hours
    assert 20 < check.fit_seconds < 1_500


def test_what_is_too_old_to_be_kept_is_dropped_as_a_fit_would():
    events, items = make_shop(n_users=60)
    events["timestamp"] += int(time.time()) - events["timestamp"].max()
    old = events["timestamp"] < time.time() - 30 * 86_400
    check = check_shop(events, items, config=replace(NO_ENCODER, retention_days=30))
    assert check.dropped["interactions: older than retention_days (30)"] == old.sum() > 100
    assert check.counts["events"] == (~old).sum()
    earlier = events.assign(timestamp=events["timestamp"] - 10**7)
    newest = str(pd.to_datetime(earlier["timestamp"].max(), unit="s").date())
    with pytest.raises(DataError) as error:
        check_shop(earlier, items, config=replace(NO_ENCODER, retention_days=30))
    assert str(error.value) == (
        f"there is nothing to learn from: none of 0 events is a target, and {len(events):,} others are older than "
        f"retention_days (30; the newest event of all is of {newest}); give newer events, or lengthen it "
        "(--retention-days on the command line)"
    )
