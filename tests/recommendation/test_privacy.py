"""Users forgotten: not a byte of them in any file, scorers as if fitted without them, and what stays is said."""

import copy
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from llm_rerank.config import RerankerConfig
from llm_rerank.data.item_statistics import ItemStatistics
from llm_rerank.models.collaborative.ease import EASE
from llm_rerank.models.collaborative.item_item import ItemKNN
from llm_rerank.models.collaborative.neighbours import UserKNN
from llm_rerank.models.collaborative.popularity import Popularity, RecentPopularity
from llm_rerank.models.collaborative.text_ease import TextAwareEASE
from llm_rerank.models.cross_encoder.discarding import state_key
from llm_rerank.models.cross_encoder.state_cache import _digest
from llm_rerank.models.semantic.cache import CachedEncoder, _key
from llm_rerank.models.semantic.encoder import SentenceEncoder
from llm_rerank.recommendation.erasing import SOMEONE, without_mentions
from llm_rerank.recommendation.exporting import exported
from llm_rerank.recommendation.privacy import EVENT_LOG, expired, forgotten
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.specs import ComponentSpec
from llm_rerank.recommendation.state import END_OF_TIME
from llm_rerank.recommendation.updating import updated
from llm_rerank.types import DataError
from tests.data.test_merging import assert_same_statistics
from tests.planted import CLOCK_START, DAY, cases_of
from tests.recommendation.test_updating import event, scorer, with_guarantee
from tests.shops import make_shop, with_searches
from tests.tiny_encoder import save_tiny_encoder

ERIKA = "erika.mustermann@shop.example"
SENTENCE = "my neighbour Zbigniew swears by this zebra-striped thing"


@pytest.fixture(scope="module")
def tables():
    """A shop in which one user has an id that is found in no other text, writes reviews, and has attributes."""
    events, items = make_shop(240)
    events["user_id"] = events["user_id"].replace({"u3": ERIKA})
    hers = events.index[(events["user_id"] == ERIKA) & (events["event"] == "purchase")]
    events.loc[hers, "review"] = [f"{SENTENCE}, number {place}" for place in range(len(hers))]
    users = pd.DataFrame({"user_id": [ERIKA, "u4"], "city": ["Zwiesel-Rabenstein", "Ulm"], "age": [57.0, np.nan]})
    return with_searches(events), items, users


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def whole(tables, tiny, tmp_path_factory):
    """Everything that a fit has: encoder, cross-encoder, caches, attributes."""
    cache = tmp_path_factory.mktemp("cache")
    config = RerankerConfig(
        encoder=tiny, candidates_per_source=30, sequence="always", semantic="always",
        cross_encoder="always", fine_tune_steps=10, device="cpu", dtype="float32",
        cache_folder=str(cache),
    )  # fmt: skip
    events, items, users = tables
    return Reranker(config, verbose=False).fit(events, items, users=users), cache


SPECS = [
    ComponentSpec("ease", "collaborative", EASE),
    ComponentSpec("text_ease", "collaborative", TextAwareEASE),
    ComponentSpec("item_knn", "collaborative", ItemKNN),
    ComponentSpec("user_knn", "collaborative", UserKNN),
    ComponentSpec("popularity", "collaborative", Popularity),
    ComponentSpec("recent_popularity", "collaborative", RecentPopularity, blends=False),
]


@pytest.fixture(scope="module")
def exact(tables):
    """Scorers that can take users out; nothing is quoted of a review, so texts stay."""
    events, items, _ = tables
    config = RerankerConfig(encoder=None, sequence="off", candidates_per_source=30)
    return Reranker(config, components=SPECS, verbose=False).fit(events.drop(columns="review"), items)


def traces(folder, *needles):
    """Files below a folder that hold one of the byte strings, as they lie or in the values of a table."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            table = parquet.ParquetFile(path).read()
            content += b"".join(
                value if isinstance(value, bytes) else str(value).encode()
                for column in table.columns
                for value in column.to_pylist()
            )
        if any(needle in content for needle in needles):
            found.append(path.relative_to(folder).as_posix())
    return found


def assert_as_if_fitted(saved, names):
    """Scorers score as those fitted on the events of now do."""
    items, events = saved.fitted.items, saved.events
    cases = cases_of([[code] for code in range(len(items))], [[]] * len(items))
    for component in saved.fitted.components:
        if component.name in names:
            spec = next(spec for spec in SPECS if spec.name == component.name)
            anew = spec.make(**component.settings).fit(events, items, seed=0)
            np.testing.assert_allclose(
                component.scorer.score_catalogue(cases), anew.score_catalogue(cases), atol=1e-6, err_msg=component.name
            )


def test_no_file_holds_the_id_or_a_sentence_of_a_forgotten_user(whole, tables, tmp_path):
    model, cache = copy.copy(whole[0]), whole[1]
    texts = list(model.saved.fitted.items.texts)
    quoting = [code for code, text in enumerate(texts) if SENTENCE in text]
    assert quoting
    reviews = tables[0]["review"][tables[0]["user_id"] == ERIKA]
    hashes = [_key(text) for text in [*reviews, *(texts[code] for code in quoting)]]
    states = [_digest(state_key(texts[code])) for code in quoting]
    needles = [ERIKA.encode(), SENTENCE.encode(), b"Zwiesel"]
    folder = tmp_path / "model"
    model.save(folder)
    assert len(traces(folder, *needles)) >= 4  # events, ids, attributes, texts
    assert traces(cache, *hashes)
    assert traces(cache, *states)
    assert (cache / "fine-tuning").is_dir()
    report = model.forget([ERIKA], cache_folder=cache)
    assert report.forgotten == [ERIKA]
    assert set(report.texts_rewritten) >= {model.saved.fitted.items.ids[code] for code in quoting}
    assert {"events and user ids", "attributes", "item statistics", "text_ease", "item_knn"} <= set(report.rewritten)
    assert f"the cache folder {cache}" in report.rewritten
    assert {"als", "fine-tuned weights of the cross-encoder", "weights of the fusion", "calibrator"} <= set(
        report.influence
    )
    # what reads texts alone knew of the user by the review alone
    assert {"lexical (texts)", "semantic (texts)"} <= set(report.rewritten)
    assert {"lexical: rarity of words", "semantic: whitening"} <= set(report.influence)
    assert not {"lexical", "semantic"} & set(report.influence)
    assert ERIKA not in str(report)
    assert not any(SENTENCE in text for text in model.saved.fitted.items.texts)
    for encoder in (component.scorer.__dict__.get("encoder") for component in model.components):
        if isinstance(encoder, CachedEncoder):
            assert not {*hashes} & encoder._rows.keys()
            encoder.flush()
    model.save(folder)
    assert traces(folder, *needles) == []
    assert traces(cache, *needles, *hashes, *states) == []
    assert not (cache / "fine-tuning").exists()
    again = Reranker.load(folder, device="cpu", verbose=False)
    with pytest.raises(DataError, match="nothing is held"):
        again.export(ERIKA)
    asked = pd.DataFrame({"user_id": "u4", "item_id": tables[1]["item_id"][:40]})
    assert again.rerank(asked)["score"].notna().all()
    pd.testing.assert_frame_equal(again.rerank(asked), model.rerank(asked), atol=1e-5)
    # the encoder's vectors and states are made again when they are needed
    assert again.update(items=[{"item_id": "new", "title": "a new thing"}]).new_items == ["new"]


def test_a_scorer_that_cannot_lose_a_user_is_named_as_shaped_by_them(exact):
    """One user's events weigh a thousand times as much: EASE's inverse holds next to nothing of the others any more."""
    saved = exact.saved
    events, items = saved.events, saved.fitted.items
    code = int(np.flatnonzero(events.user_ids == ERIKA)[0])
    weights = np.where(events.users == code, 1000 * events.weights, events.weights).astype(np.float32)
    heavy = replace(events, weights=weights)
    components = [
        replace(component, scorer=type(component.scorer)().fit(heavy, items, seed=0))
        for component in saved.fitted.components
    ]
    heavy_fit = replace(saved.fitted, components=tuple(components))
    heavy_saved = replace(saved, events=heavy, fitted=heavy_fit, in_fit=np.ones(len(events), dtype=bool))
    left, report = forgotten(heavy_saved, [ERIKA])
    assert {"ease", "text_ease"} <= set(report.influence)
    assert not {"ease", "text_ease"} & set(report.rewritten)
    assert scorer(left, "ease") is scorer(heavy_saved, "ease")
    assert {"item_knn", "user_knn", "popularity"} <= set(report.rewritten)
    assert not {"item_knn", "user_knn", "popularity"} & set(report.influence)
    times = events.times[events.users == code]
    assert len(np.unique(times)) > 1
    partly, said = expired(replace(heavy_saved, config=replace(saved.config, retention_days=1)), times[-1] + DAY)
    assert {"ease", "text_ease"} <= set(said.influence)
    assert partly.torn[partly.events.users == np.flatnonzero(partly.events.user_ids == ERIKA)[0]].all()
    later, said = forgotten(partly, [ERIKA])  # what is left of them is not taken for all that was in the fit
    assert {"ease", "text_ease"} <= set(said.influence)


def test_rewritten_texts_are_those_of_a_catalogue_without_the_review(whole, tables):
    saved, _ = forgotten(whole[0].saved, [ERIKA])
    events, items, _ = tables
    encoder = SentenceEncoder(whole[0].config.encoder, device="cpu", dtype="float32")
    anew = saved.renderer.render_items(
        saved.fitted.items, saved.events, None, max_tokens=128, count_tokens=encoder.count_tokens
    )
    assert list(saved.fitted.items.texts) == list(anew.texts)
    assert any("good" in text for text in anew.texts)  # others' reviews stay
    vectors = scorer(saved, "semantic").item_vectors(np.arange(len(items)))
    np.testing.assert_allclose(vectors, encoder.encode(list(anew.texts)), atol=1e-4)
    assert SENTENCE in " ".join(whole[0].saved.fitted.items.texts)  # the state before is as it was


def test_scorers_equal_a_fit_without_the_users(exact):
    gone = [ERIKA, "u0", "u5", "u17", "u18"]
    before = exact.saved
    assert before.item_statistics is before.item_statistics
    saved, report = forgotten(before, gone)
    anew = ItemStatistics.from_events(saved.events, saved.fitted.items, END_OF_TIME, saved.sentiment)
    assert_same_statistics(saved.item_statistics, anew)
    assert report.n_events == int(np.isin(before.events.user_ids[before.events.users], gone).sum()) > 20
    assert not set(gone) & set(saved.events.user_ids)
    assert saved.events.n_users == before.events.n_users - len(gone)
    names = {spec.name for spec in SPECS}
    assert names <= set(report.rewritten)
    assert set(report.influence) == {"weights of the fusion", "calibrator"}
    assert_as_if_fitted(saved, names)
    # and what is counted now is not what was counted before
    cases = cases_of([[code] for code in range(30)], [[]] * 30)
    for name in names - {"popularity", "recent_popularity"}:
        scores = [scorer(state, name).score_catalogue(cases) for state in (before, saved)]
        assert np.nanmax(np.abs(scores[0] - scores[1])) > 1e-4


def test_a_user_who_came_after_the_fit_has_shaped_counts_alone(exact, tables):
    item = tables[1]["item_id"]
    saved, _ = updated(exact.saved, [event("late", item[k], review="fine") for k in range(5)])
    left, report = forgotten(saved, ["late"])
    assert report.influence == ()
    assert {"item_knn", "popularity", "recent_popularity"} <= set(report.rewritten)
    assert not {"ease", "text_ease", "user_knn"} & set(report.rewritten)
    assert_as_if_fitted(left, {spec.name for spec in SPECS})
    # a user of the fit with later events too: what each scorer has seen is taken out of it, no more
    mixed, _ = updated(exact.saved, [event("u7", item[k]) for k in range(5)])
    assert_as_if_fitted(forgotten(mixed, ["u7"])[0], {spec.name for spec in SPECS})


def test_the_only_taker_of_an_item_and_everyone_can_be_forgotten(exact, tables):
    lonely = tables[1]["item_id"].iloc[-1]
    saved, _ = updated(exact.saved, [event("hermit", lonely)])
    assert (scorer(saved, "popularity").score_catalogue(cases_of([[0]], [[]]))[0, -1]) > 0
    left, _ = forgotten(saved, ["hermit"])
    assert_as_if_fitted(left, {spec.name for spec in SPECS})
    nobody, report = forgotten(exact.saved, list(exact.saved.events.user_ids))
    assert (len(nobody.events), nobody.events.n_users) == (0, 0)
    assert report.n_events == len(exact.saved.events)
    assert_as_if_fitted(nobody, {"item_knn", "popularity", "recent_popularity"})
    model = Reranker.from_saved(nobody)
    assert len(model.recommend(["anyone"])) <= 10
    with pytest.raises(DataError, match="nothing to learn from"):
        model.refit()


def test_unknown_ids_are_told_and_twice_is_once(exact):
    saved, report = forgotten(exact.saved, ["no one", ERIKA, ERIKA, 7])
    assert (report.forgotten, report.unknown) == ([ERIKA], ["no one", 7])
    again, second = forgotten(saved, [ERIKA])
    assert again is saved
    assert (second.forgotten, second.unknown, second.rewritten, second.n_events) == ([], [ERIKA], (), 0)
    assert "1 user ids are unknown" in str(second)
    with pytest.raises(DataError, match="user_ids is the text"):
        forgotten(exact.saved, ERIKA)


def test_a_text_finds_the_number(exact):
    events = exact.saved.events
    ids = np.array([*range(events.n_users)], dtype=object)
    saved = replace(exact.saved, events=replace(events, user_ids=ids))
    left, report = forgotten(saved, ["7", "07"])
    assert (report.forgotten, report.unknown) == (["7"], ["07"])
    assert 7 not in set(left.events.user_ids)
    assert exported(saved, "7")["user_id"] == 7


def test_a_users_attributes_go_with_the_rows_that_scorers_hold(whole):
    saved = whole[0].saved

    class WithFeatures:
        name = "neural"
        user_features = np.array([[1.0], [2.0]], dtype=np.float32)

    component = replace(saved.fitted.components[0], scorer=WithFeatures())
    saved = replace(saved, fitted=replace(saved.fitted, components=(component,)))
    left, _ = forgotten(saved, [ERIKA])
    assert left.users.ids.tolist() == ["u4"]
    assert left.users.frame["city"].tolist() == ["Ulm"]
    assert left.events.user_rows[left.events.user_ids == "u4"].tolist() == [0]
    assert (left.events.user_rows == 0).sum() == 1
    assert left.fitted.components[0].scorer.user_features.tolist() == [[2.0]]
    assert WithFeatures.user_features.tolist() == [[1.0], [2.0]]
    # known by attributes alone
    bare = replace(whole[0].saved, users=replace(saved.users, ids=np.array([ERIKA, "silent"], dtype=object)))
    bare, report = forgotten(bare, ["silent"])
    assert (report.forgotten, report.rewritten, bare.users.ids.tolist()) == (
        ["silent"], ("events and user ids", "attributes"), [ERIKA],
    )  # fmt: skip


def test_the_report_of_the_fit_names_no_forgotten_user(exact):
    lines = [f"first user is {ERIKA}, then u1", "7 of 8 settings; user '7' and u70"]
    report = {"lines": lines, "holdout": f"({ERIKA})", "n": 7, "parts": {"cut": {"at": [f"{ERIKA}'s"]}}}
    clean = without_mentions(report, [ERIKA, 7, "u7"])
    assert clean["parts"] == {"cut": {"at": [f"{SOMEONE}'s"]}}
    assert clean["lines"] == [f"first user is {SOMEONE}, then u1", f"7 of 8 settings; user {SOMEONE} and u70"]
    assert clean["n"] == 7
    assert ERIKA not in json.dumps(clean)
    saved = exact.saved
    told = replace(saved, fitted=replace(saved.fitted, report={**saved.fitted.report, "lines": lines}))
    left, said = forgotten(told, [ERIKA])
    assert "the report of the fit" in said.rewritten
    assert ERIKA not in json.dumps(left.fitted.report)
    assert left.fitted.report["lines"][1].startswith("7 of 8 settings")


def test_users_named_as_the_words_of_a_report_leave_it_readable(exact):
    """Ids such as "lines", a key, and "a", a word, are taken out where they are quoted; "abc" wherever it is a word."""
    said = ["a cut of 'a' by abc: lines 'cut' and \"lines\", abcd"]
    report = {"lines": said, "cut": {"lines": 3}, "upstream": [{"cut": "lines"}]}
    assert without_mentions(report, ["lines", "a", "cut", "abc"]) == {
        "lines": [f"a cut of {SOMEONE} by {SOMEONE}: lines {SOMEONE} and {SOMEONE}, abcd"],
        "cut": {"lines": 3},
        "upstream": [{"cut": "lines"}],
    }
    reranker = Reranker.from_saved(exact.saved)
    item = exact.saved.fitted.items.ids[0]
    reranker.update([{"user_id": name, "item_id": item, "timestamp": 1_630_000_000} for name in ("lines", "a")])
    reranker.forget(["lines", "a"])
    assert str(reranker.report()) == str(exact.report())


def test_the_log_of_a_served_folder_is_said_to_be_out_of_reach(exact):
    report = Reranker.from_saved(exact.saved).forget([ERIKA])
    assert [place for place in report.not_reached if "llm-rerank forget FOLDER" in place] == [EVENT_LOG]
    assert Reranker.from_saved(exact.saved).forget(["no one"]).not_reached == ()


def test_a_guarantee_goes_when_a_component_changes(exact, tables):
    saved = with_guarantee(Reranker.from_saved(with_cut(exact.saved)).saved)
    left, _ = forgotten(saved, [ERIKA])
    assert left.fitted.stage.cut.guarantee is None
    assert "were forgotten" in left.fitted.stage.cut.no_guarantee
    assert forgotten(saved, ["no one"])[0].fitted.stage.cut.guarantee is not None
    recent = replace(saved, config=replace(saved.config, retention_days=100))
    kept, _ = expired(recent, saved.events.times[-1])
    assert kept.fitted.stage.cut.guarantee is None


def with_cut(saved):
    """The same state with some cut."""
    from llm_rerank.recommendation.thresholds import Cut

    cut = Cut("risk", 0.1, 0.05, 0.2, 0.9, 5.0, 500, 500)
    return replace(saved, fitted=replace(saved.fitted, stage=replace(saved.fitted.stage, cut=cut)))


def test_export_gives_all_of_a_user_and_nothing_of_others(whole, tables):
    events, items, _ = tables
    given = whole[0].export(ERIKA)
    hers = events[events["user_id"] == ERIKA].sort_values("timestamp", kind="stable")
    assert json.loads(json.dumps(given)) == given
    assert (given["user_id"], given["attributes"]) == (ERIKA, {"city": "Zwiesel-Rabenstein", "age": 57.0})
    assert [one["item_id"] for one in given["events"]] == hers["item_id"].tolist()
    assert [one["timestamp"] for one in given["events"]] == hers["timestamp"].tolist()
    assert [one["review"] for one in given["events"]] == hers["review"].tolist()
    titles = items.set_index("item_id")["title"]
    assert [one["title"] for one in given["events"]] == titles[hers["item_id"]].tolist()
    assert [one["rating"] for one in given["events"]] == [None if r != r else r for r in hers["rating"]]
    sentiments = [one["review_sentiment"] for one in given["events"]]
    assert [value is None for value in sentiments] == (hers["review"] == "").tolist()
    assert [one["counts_as_target"] for one in given["events"]] == (hers["event"] == "purchase").tolist()
    others = json.dumps(whole[0].export("u4"))
    assert ERIKA not in others
    assert "Zwiesel" not in others
    assert whole[0].export("u4")["attributes"] == {"city": "Ulm", "age": None}
    assert whole[0].export("u0")["attributes"] == {}
    with pytest.raises(DataError, match="nothing is held of user 'no one'"):
        whole[0].export("no one")


def test_old_events_go_as_a_users_do(exact, tmp_path):
    saved = replace(exact.saved, config=replace(exact.saved.config, retention_days=120))
    now = CLOCK_START + 300 * DAY
    left, report = expired(saved, now)
    assert left.events.times.min() >= now - 120 * DAY
    assert len(left.events) == (saved.events.times >= now - 120 * DAY).sum() < len(saved.events)
    assert report.n_events == len(saved.events) - len(left.events)
    assert set(left.events.user_ids) == set(
        saved.events.user_ids[saved.events.users[saved.events.times >= now - 120 * DAY]]
    )
    assert set(report.forgotten) == set(saved.events.user_ids) - set(left.events.user_ids)
    # too many users for a matrix of all pairs of items; those that count are exact
    assert {"ease", "text_ease", "user_knn"} <= set(report.influence)
    assert_as_if_fitted(left, {"item_knn", "popularity", "recent_popularity"})
    # of users whose old events the others kept, the rest cannot be taken out of them exactly: it is said, not tried
    torn = left.events.user_ids[left.events.users[left.torn]]
    assert len(torn) > 100
    later, said = forgotten(left, [torn[0]])
    assert {"ease", "text_ease", "user_knn"} <= set(said.influence)
    assert {"item_knn", "popularity", "recent_popularity"} <= set(said.rewritten)
    assert_as_if_fitted(later, {"item_knn", "popularity", "recent_popularity"})
    assert expired(left, now)[0] is left
    assert expired(left, now + DAY / 2, slack_s=DAY)[0] is left
    assert len(expired(left, now + 40 * DAY, slack_s=DAY)[0].events) < len(left.events)
    # a few old events of a few users are taken out of every scorer
    early = np.sort(saved.events.times)[12]
    few = replace(saved, config=replace(saved.config, retention_days=(now - early) / DAY))
    left, report = expired(few, now)
    assert 0 < report.n_events <= 12
    assert {spec.name for spec in SPECS} <= set(report.rewritten)
    assert_as_if_fitted(left, {spec.name for spec in SPECS})
    assert not left.torn.any()


def test_retention_is_kept_by_save_and_within_a_day_by_update(exact, tables, tmp_path):
    import time

    days = (time.time() - CLOCK_START) / DAY - 250.5  # half a day after the 250th of the shop's 300 days
    model = Reranker.from_saved(exact.saved)
    model.config = replace(model.config, retention_days=days)
    snapshot = copy.copy(model)
    item = tables[1]["item_id"][0]
    model.update([event("u0", item, int(time.time()))])
    least = CLOCK_START + 250 * DAY
    assert model.saved.events.times[0] >= least
    n_events = len(model.saved.events)
    model.update([event("u0", item, int(time.time()))])
    assert len(model.saved.events) == n_events + 1
    snapshot.save(tmp_path / "m")
    assert Reranker.load(tmp_path / "m", verbose=False).saved.events.times[0] >= least
    assert snapshot.saved.events.times[0] >= least
    assert exact.saved.events.times[0] < least
    report = snapshot.expire(CLOCK_START + days * DAY + 290 * DAY)
    assert "events gone" in str(report)
    assert snapshot.saved.events.times[0] >= CLOCK_START + 290 * DAY


def test_positions_have_no_age(tables):
    events, items, _ = tables
    numbered = events.head(600).assign(timestamp=range(600))
    config = RerankerConfig(encoder=None, sequence="off", candidates_per_source=20, retention_days=30)
    with pytest.raises(DataError, match="retention_days is 30 and the events' times are positions"):
        Reranker(config, components=SPECS[2:3], verbose=False).fit(numbered, items)
    for days in (0, -3, "30", True, float("inf"), float("nan")):
        with pytest.raises(DataError, match="retention_days is"):
            RerankerConfig(retention_days=days)


def test_a_state_without_histories_holds_no_user(exact, tmp_path):
    exact.save(tmp_path / "m", histories=False)
    anonymous = Reranker.load(tmp_path / "m", verbose=False)
    assert anonymous.forget([ERIKA]).unknown == [ERIKA]
    assert traces(tmp_path / "m", ERIKA.encode()) == []
    with pytest.raises(DataError, match="nothing is held"):
        anonymous.export(ERIKA)
    with pytest.raises(DataError, match="saved without histories"):
        anonymous.refit()
