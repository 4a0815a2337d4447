"""Answers to single requests: equal to the slow way through frames, whatever is asked; what stays when parts fail."""

import copy
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from llm_rerank.config import DiversityConfig, RerankerConfig, ThresholdConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.schema import validate_interactions
from llm_rerank.recommendation import failures
from llm_rerank.recommendation.answering import (
    Question,
    QuestionError,
    answer_each,
    answer_questions,
    recut,
)
from llm_rerank.recommendation.live_events import EventError
from llm_rerank.recommendation.questions import cases_of_questions, prepare
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.types import DataError, DataReport
from tests.recommendation.test_upstream import shown
from tests.tiny_encoder import save_tiny_encoder

NEWCOMER = "nobody of this name"


@pytest.fixture(scope="module")
def sample():
    """The sample shop's events of 1,500 users, its items, its users."""
    shop = load_dataset("sample")
    chosen = set(shop.interactions["user_id"].drop_duplicates()[:1500])
    return shop.interactions[shop.interactions["user_id"].isin(chosen)].reset_index(drop=True), shop.items, shop.users


@pytest.fixture(scope="module")
def reader(sample, tmp_path_factory):
    """Everything there is: text, searches, a cross-encoder, lists of an upstream recommender, a cut."""
    events, items, users = sample
    config = RerankerConfig(
        encoder=save_tiny_encoder(tmp_path_factory.mktemp("tiny")),
        candidates_per_source=30,
        sequence="always",
        semantic="always",
        cross_encoder="always",
        fine_tune_steps=5,
        target_events=("purchase",),
        min_rating=3,
        threshold=ThresholdConfig("recall", 0.9),
        device="cpu",
    )
    fitted = Reranker(config, verbose=False).fit(events, items, users=users, impressions=shown((events, items)))
    assert fitted._saved.fitted.upstream_stage is not None
    return fitted


def changed(reranker, *, least=None, components=None, **settings):
    """Return the reranker with other settings, another cut, or other components; the one given stays as it is."""
    other = copy.copy(reranker)
    other.config = replace(reranker.config, **settings)
    fitted = reranker._saved.fitted
    if least is not None:
        stages = [
            None if stage is None else replace(stage, cut=replace(stage.cut, least_probability=least))
            for stage in (fitted.stage, fitted.upstream_stage)
        ]
        fitted = replace(fitted, stage=stages[0], upstream_stage=stages[1])
    if components is not None:
        fitted = replace(fitted, components=tuple(components))
    other._saved = replace(reranker._saved, fitted=fitted)
    return other


def slowly(reranker, events, question):
    """Answer through frames: ``rerank`` and ``recommend``, with all events of the user as their history."""
    user = NEWCOMER if question.user_id is None else question.user_id
    histories = None
    if question.events:
        fresh = pd.DataFrame(
            [{"timestamp": reranker._saved.events.times[-1] + 1, **event} for event in question.events]
        )
        histories = pd.concat([events[events["user_id"] == user], fresh.assign(user_id=user)], ignore_index=True)
    if question.diversity is not None:
        spread = replace(reranker.config.diversity_settings, strength=question.diversity)
        reranker = changed(reranker, diversity=spread)
    if question.least_probability is not None:
        reranker = changed(reranker, least=question.least_probability)
    if question.item_ids is None:
        return reranker.recommend(
            [user], histories=histories, at=question.at, k=question.k, exclude_seen=question.exclude_seen
        )
    frame = pd.DataFrame({"user_id": user, "item_id": pd.Series(question.item_ids, dtype=object)})
    if question.upstream_scores is not None:
        frame["upstream_score"] = pd.Series(question.upstream_scores, dtype=np.float64)
    return reranker.rerank(frame, histories=histories, at=question.at, k=question.k)


def assert_same(answer, frame, atol=1e-6):
    assert answer.item_ids == frame["item_id"].tolist()
    assert answer.ranks.tolist() == frame["rank"].tolist()
    assert answer.kept.tolist() == frame["kept"].tolist()
    np.testing.assert_allclose(answer.scores, frame["score"], atol=atol)
    np.testing.assert_allclose(answer.probabilities, frame["probability"], atol=atol)
    groups = [name for name in frame if name.startswith("score_")]
    assert [f"score_{name}" for name in answer.components] == groups
    for name in groups:
        np.testing.assert_allclose(answer.components[name.removeprefix("score_")], frame[name], atol=atol)
    np.testing.assert_allclose(sum(answer.components.values()), answer.scores, atol=1e-9)
    if answer.upstream_scores is not None:
        np.testing.assert_allclose(answer.upstream_scores, frame["upstream_score"].astype(np.float32))
    if "propensity" in frame:
        np.testing.assert_allclose(answer.propensities, frame["propensity"])
    facts = frame.attrs["decision"]
    assert answer.facts["n_kept"] == facts["n_kept"]
    assert answer.facts["drift"].keys() == facts["drift"].keys()
    assert (answer.degraded, answer.fallback) == ((), "")


def questions_of(events, items):
    """One question of each kind; which user, candidates and scores are drawn."""
    rng = np.random.default_rng(3)
    ids, times = items["item_id"].tolist(), events["timestamp"]
    searching = events["user_id"][events["query"].fillna("") != ""].unique().tolist()
    users = events["user_id"].unique().tolist()

    def drawn(n=40):
        return [ids[code] for code in rng.choice(len(ids), n, replace=False)]

    def scores(n=40):
        return rng.normal(0, 1, n).tolist()

    middle, last = int(times.quantile(0.7)), int(times.max())
    fresh = [
        {"item_id": ids[5], "event": "purchase"},
        {"query": "  running   shoes ", "timestamp": last - 5},
        {"item_id": ids[9], "event": "view", "timestamp": last - 40},
        {"item_id": ids[11], "rating": 1, "review": "broke", "timestamp": last - 60},
        {"item_id": ids[12], "rating": 5},
        {"item_id": ids[13], "weight": 0.4, "event": "addtocart"},
        {"item_id": ids[5], "event": "purchase", "quantity": 3},
    ]
    partial = scores()
    partial[3] = partial[17] = float("nan")
    return {
        "candidates": Question(users[0], drawn()),
        "one candidate": Question(users[1], drawn(1)),
        "every item": Question(searching[0], ids),
        "upstream": Question(users[2], drawn(), scores()),
        "upstream in part": Question(searching[1], drawn(), partial),
        "upstream unknown": Question(users[2], drawn(), [float("nan")] * 40),
        "upstream, a newcomer": Question(None, drawn(), scores()),
        "unknown items": Question(users[3], ["gone", *drawn(), "nowhere"]),
        "unknown items alone": Question(users[3], ["gone", "nowhere"]),
        "twice the same": Question(users[4], (same := drawn(10)) + same[:4]),
        "a newcomer": Question(None, drawn()),
        "an unknown user": Question(NEWCOMER, drawn()),
        "k": Question(users[5], drawn(), k=7),
        "k and variety": Question(users[6], drawn(), diversity=0.6, k=12),
        "own cut": Question(users[7], drawn(), least_probability=0.02),
        "own cut with upstream": Question(users[7], drawn(), scores(), least_probability=0.1, diversity=0.3),
        "earlier": Question(searching[2], drawn(), at=middle),
        "at a date": Question(searching[2], drawn(), at=pd.Timestamp(middle, unit="s").isoformat()),
        "before all": Question(users[0], drawn(), at=int(times.min())),
        "fresh": Question(searching[3], drawn(), events=fresh),
        "fresh with upstream": Question(users[8], drawn(), scores(), events=fresh[:3]),
        "fresh of a newcomer": Question(None, drawn(), events=fresh),
        "fresh, earlier": Question(users[9], drawn(), events=[{**fresh[0], "timestamp": middle - 5}], at=middle),
        "retrieved": Question(users[10], None, k=10),
        "retrieved, all": Question(searching[4], None),
        "retrieved, seen ones too": Question(users[11], None, exclude_seen=False, k=20),
        "retrieved, many": Question(users[12], None, k=60),
        "retrieved, fresh": Question(users[13], None, events=fresh, k=15),
        "retrieved, for a newcomer": Question(None, None, k=10),
        "retrieved, varied": Question(users[14], None, diversity=0.5, k=10),
        "the same user again": Question(users[0], drawn(), events=fresh[:1]),
    }


@pytest.fixture(scope="module")
def asked(reader, sample):
    """All questions, and their answers as one micro-batch."""
    questions = questions_of(*sample[:2])
    answers = answer_each(reader, list(questions.values()))
    return questions, dict(zip(questions, answers, strict=True))


@pytest.mark.filterwarnings("ignore::llm_rerank.types.DriftWarning")
def test_answers_agree_with_the_slow_way(reader, sample, asked):
    questions, answers = asked
    for name, question in questions.items():
        (answer,) = answer_questions(reader, [question])
        try:
            assert_same(answer, slowly(reader, sample[0], question))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    fitted = reader._saved.fitted
    for name, answer in answers.items():
        with_scores = "upstream" in name and name != "upstream unknown"
        stage = fitted.upstream_stage if with_scores else fitted.stage
        assert answer.scored.batch.stage.blend is stage.blend, name


def test_a_micro_batch_agrees_with_each_alone(reader, asked):
    """But for rounding: BLAS sums in another order, and the root of a component's score is steep near 0."""
    questions, answers = asked
    for name, question in questions.items():
        (alone,) = answer_questions(reader, [question])
        places = [alone.item_ids.index(item) for item in answers[name].item_ids]
        np.testing.assert_allclose(answers[name].scores, alone.scores[places], rtol=1e-5, atol=1e-4, err_msg=name)
        assert answers[name].facts["n_kept"] == alone.facts["n_kept"]
        assert (answers[name].at, answers[name].before) == (alone.at, alone.before)


@pytest.mark.filterwarnings("ignore::llm_rerank.types.DriftWarning")
def test_bounds_depth_caps_and_random_slots_agree_too(reader, sample, asked):
    diverse = DiversityConfig(0.2, max_per_group=3, group_by="brand", exploration_slots=2, depth=15)
    bounded = changed(reader, min_items=3, max_items=6, cross_encoder_depth=8, diversity=diverse)
    chosen = [asked[0][name] for name in ("candidates", "upstream", "fresh", "retrieved, all", "unknown items")]
    for question in chosen:
        (answer,) = answer_questions(bounded, [question])
        assert answer.propensities.min() < 1
        assert_same(answer, slowly(bounded, sample[0], question))


def test_what_is_said_beside_the_list(reader, sample, asked):
    questions, answers = asked
    last = reader._saved.events.times[-1]
    assert answers["unknown items"].unknown_items == ["gone", "nowhere"]
    assert answers["unknown items"].item_ids[-2:] == ["gone", "nowhere"]
    assert answers["unknown items"].codes[-2:].tolist() == [-1, -1]
    known = answers["candidates"]
    assert reader._saved.fitted.items.ids[known.codes].tolist() == known.item_ids
    assert [answers[name].known_user for name in ("candidates", "a newcomer", "an unknown user")] == [
        True,
        False,
        False,
    ]
    # one fresh event comes without a time: it is the last thing that happened
    assert [answers[name].at for name in ("candidates", "fresh", "earlier")] == [
        last + 1,
        last + 2,
        questions["earlier"].at,
    ]
    assert answers["own cut"].facts["least_probability"] == 0.02
    assert "asked for with the question" in answers["own cut"].facts["no_guarantee"]
    assert answers["k"].scored.codes.shape == (40,)


def test_ranks_before_us(reader, asked):
    questions, answers = asked
    plain = answers["twice the same"]
    assert plain.before == "upstream"
    given = questions["twice the same"].item_ids
    assert [given[rank - 1] for rank in plain.before_ranks] == plain.item_ids
    assert sorted(plain.before_ranks.tolist()) == list(range(1, 15))
    partial = answers["upstream in part"]
    by_rank = np.argsort(partial.before_ranks)
    ordered = partial.upstream_scores[by_rank]
    assert (np.diff(ordered[:-2]) <= 0).all()
    assert np.isnan(ordered[-2:]).all()
    # of a retrieved list: the component that the guard compared with, here asked by itself
    found = answers["retrieved, all"]
    stage = reader._saved.fitted.stage
    assert found.before == stage.verdict.default
    (component,) = [c for c in reader.components if c.name == found.before]
    one = prepare(questions["retrieved, all"], reader._saved)
    cases, _ = cases_of_questions([one], reader._saved)
    raw = component.scorer.score_catalogue(cases)[0][found.codes]
    raw = raw[np.argsort(found.before_ranks)]
    known = ~np.isnan(raw)  # als knows nothing of items that nobody took: they come last
    assert (np.diff(raw[known]) <= 0).all()
    assert not known[known.sum() :].any()
    assert sorted(found.before_ranks.tolist()) == list(range(1, len(found.item_ids) + 1))
    assert found.before_ranks.tolist() != found.ranks.tolist()


def test_fresh_events_mean_what_they_mean_in_a_table(reader, sample):
    events, items, _ = sample
    question = questions_of(events, items)["fresh"]
    saved = reader._saved
    one = prepare(question, saved)
    cases, seen = cases_of_questions([one], saved)
    own = events[events["user_id"] == question.user_id]
    table = pd.DataFrame([{**event, "timestamp": event.get("timestamp", one.at - 1)} for event in question.events])
    joined = pd.concat([own, table.assign(user_id=question.user_id)], ignore_index=True)
    read = validate_interactions(
        joined, saved.fitted.items, target_events=("purchase",), min_rating=3, report=DataReport()
    )
    with_item = read.items >= 0
    assert cases.history.values.tolist() == read.items[with_item].tolist()
    np.testing.assert_allclose(cases.history_weights, read.weights[with_item])
    assert cases.history_times.tolist() == read.times[with_item].tolist()
    assert cases.queries[0] == "; ".join(text for text in read.queries if text)
    assert "running shoes" in cases.queries[0]
    assert seen[0].tolist() == np.unique(read.items[read.positive]).tolist()
    assert (cases.history_weights < 0).any()  # the rating of 1


@pytest.mark.filterwarnings("ignore::llm_rerank.types.DriftWarning")
def test_an_update_is_in_the_next_answer(reader, sample):
    """Of a newcomer as of a known user: new events are new arrays, and nothing of the old ones is remembered."""
    events, items, _ = sample
    ids = items["item_id"].tolist()
    questions = [Question(user, ids[:30]) for user in (NEWCOMER, events["user_id"][0])]
    before = answer_questions(reader, questions)
    other = copy.copy(reader)
    for step in (1, 2):
        moment = int(reader.saved.events.times[-1]) + step
        new = {"user_id": [one.user_id for one in questions], "item_id": ids[step], "timestamp": moment}
        other.update(pd.DataFrame(new | {"event": "purchase"}))
        after = [answer_questions(other, [question])[0] for question in questions]
        for question, old, answer in zip(questions, before, after, strict=True):
            assert answer.known_user
            assert answer.at == moment + 1
            assert not np.allclose(np.sort(answer.scores), np.sort(old.scores), atol=1e-3)
            assert_same(answer, slowly(other, events, question))
        before = after
    assert not answer_questions(reader, questions)[0].known_user


# ------------------------------------------------------------------- recut


@pytest.mark.parametrize("name", ["candidates", "upstream", "fresh", "retrieved, all", "k and variety", "own cut"])
def test_recut_is_as_if_asked_so(reader, asked, name, monkeypatch):
    questions, answers = asked
    wanted = [
        {"least_probability": 0.05},
        {"diversity": 0.8},
        {"k": 3},
        {"least_probability": 0.01, "diversity": 0.4, "k": 9},
        {},
    ]
    blank = {"least_probability": None, "diversity": None, "k": None}
    again = answer_questions(reader, [replace(questions[name], **{**blank, **settings}) for settings in wanted])
    for component in reader.components:  # not one of them is asked
        monkeypatch.setattr(component.scorer, "score", broken_call)
        if hasattr(component.scorer, "score_catalogue"):
            monkeypatch.setattr(component.scorer, "score_catalogue", broken_call)
    for settings, expected in zip(wanted, again, strict=True):
        cut = recut(reader, answers[name], **settings)
        assert cut.item_ids == expected.item_ids
        assert cut.ranks.tolist() == expected.ranks.tolist()
        assert cut.kept.tolist() == expected.kept.tolist()
        assert cut.before_ranks.tolist() == expected.before_ranks.tolist()
        np.testing.assert_allclose(cut.scores, expected.scores, atol=1e-6)
        assert cut.components.keys() == expected.components.keys()
        assert cut.facts["least_probability"] == expected.facts["least_probability"]
        assert cut.facts["n_kept"] == expected.facts["n_kept"]
    assert recut(reader, recut(reader, answers[name], k=1)).item_ids == again[-1].item_ids


def test_recut_finds_the_items_again_when_the_catalogue_was_replaced(reader, asked):
    answer = asked[1]["candidates"]
    items = reader._saved.fitted.items
    expected = recut(reader, answer, diversity=0.7)
    order = np.random.default_rng(0).permutation(len(items))
    moved = changed(reader)
    mixed = replace(items, ids=items.ids[order], frame=items.frame.iloc[order], texts=items.texts[order])
    vectors = [c.scorer for c in reader.components if c.name == "semantic"][0]
    turned = copy.copy(vectors)
    turned._vectors = vectors._vectors[order]
    components = [replace(c, scorer=turned) if c.name == "semantic" else c for c in reader.components]
    moved._saved = replace(moved._saved, fitted=replace(moved._saved.fitted, items=mixed, components=tuple(components)))
    found = recut(moved, answer, diversity=0.7)
    assert found.item_ids == expected.item_ids
    assert found.item_ids != recut(reader, answer).item_ids
    shorter = np.flatnonzero(items.ids != answer.item_ids[0])
    fewer = replace(items, ids=items.ids[shorter], frame=items.frame.iloc[shorter], texts=items.texts[shorter])
    moved._saved = replace(moved._saved, fitted=replace(moved._saved.fitted, items=fewer))
    with pytest.raises(DataError, match="left the catalogue"):
        recut(moved, answer)


# --------------------------------------------------------------------- ids


def test_ids_are_found_as_number_or_text(shop):
    events, items = shop
    numbers = {item: 100 + place for place, item in enumerate(items["item_id"])}
    events = events.assign(item_id=events["item_id"].map(numbers), user_id=events["user_id"].str[1:].astype(int))
    items = items.assign(item_id=items["item_id"].map(numbers))
    config = RerankerConfig(encoder=None, sequence="off", candidates_per_source=20, refit=False)
    reranker = Reranker(config, verbose=False).fit(events, items)
    as_numbers, as_texts, mixed = answer_questions(
        reranker,
        [Question(7, [100, 150, 230]), Question("7", ["100", "150", "230"]), Question(7, ["100", 150, "0230"])],
    )
    assert as_texts.known_user
    assert as_texts.item_ids == [str(item) for item in as_numbers.item_ids]
    np.testing.assert_array_equal(as_texts.scores, as_numbers.scores)
    assert mixed.unknown_items == ["0230"]
    fresh = [Question(None, [100, 150], events=[{"item_id": item}]) for item in (120, "120")]
    one, other = answer_questions(reranker, fresh)
    np.testing.assert_array_equal(one.scores, other.scores)
    assert not np.allclose(one.scores, answer_questions(reranker, [Question(None, [100, 150])])[0].scores)


# ---------------------------------------------------------------- bad input

BAD = [
    ({"k": 0}, "k", "k is 0"),
    ({"k": True}, "k", "k is True"),
    ({"diversity": 1.5}, "diversity", "from 0 to 1"),
    ({"least_probability": float("nan")}, "least_probability", "from 0 to 1"),
    ({"user_id": True}, "user_id", "an id is a text or a number"),
    ({"user_id": ["u0"]}, "user_id", "of type list"),
    ({"item_ids": "B07"}, "item_ids", "give a list"),
    ({"item_ids": ["a", None]}, "item_ids[1]", "is missing"),
    ({"item_ids": ["a", {}]}, "item_ids[1]", "of type dict"),
    ({"upstream_scores": [1.0]}, "upstream_scores", "1 values for 2 candidates"),
    ({"upstream_scores": [1.0, "much"]}, "upstream_scores[1]", "'much'"),
    ({"item_ids": None, "upstream_scores": [1.0]}, "upstream_scores", "without item_ids"),
    ({"at": "yesterday"}, "at", "is no date"),
    ({"at": float("inf")}, "at", "is inf"),
    ({"at": 1_700_000_000_000}, "at", "between 1900 and 2200"),
    ({"at": 20240531}, "at", "too small for a time of a shop"),
    ({"events": [{"event": "view"}]}, "events[0].item_id", "is missing"),
    ({"events": [{"item_id": "no such item"}]}, "events[0].item_id", "absent from items"),
    ({"events": [{"query": "x", "timestamp": 4_000_000_000}]}, "events[0].timestamp", "in the future"),
    ({"events": [{"query": "x"}, {"query": "x", "user_id": "u9"}]}, "events[1].user_id", "another than"),
    ({"events": [{"query": "x", "colour": "red"}]}, "events[0].colour", "is unknown"),
]


def test_a_bad_question_fails_alone_and_names_its_field(fitted, shop):
    ids = shop[1]["item_id"].tolist()
    good = Question("u0", ids[:20])
    questions = [good]
    for change, _, _ in BAD:
        questions += [replace(Question("u1", ids[:2]), **change), good]
    answers = answer_each(fitted, questions)
    for (_, field, words), error in zip(BAD, answers[1::2], strict=True):
        assert isinstance(error, QuestionError | EventError), error
        assert error.field == field
        assert words in str(error)
    (alone,) = answer_questions(fitted, [good])
    assert all(answer.item_ids == alone.item_ids for answer in answers[::2])
    with pytest.raises(DataError, match="question 1: k is 0"):
        answer_questions(fitted, questions)
    with pytest.raises(QuestionError, match="diversity is 2"):
        recut(fitted, alone, diversity=2)


def test_nothing_to_rank_is_an_answer(fitted):
    (answer,) = answer_questions(fitted, [Question("u0", [])])
    assert answer.item_ids == []
    assert answer.scores.shape == (0,)
    assert recut(fitted, answer, k=3).item_ids == []
    assert answer_each(fitted, []) == []


def test_variety_without_vectors_is_the_questions_mistake(fitted, shop):
    only = [c for c in fitted.components if c.name in ("text_ease", "recent_popularity")]
    plain = changed(fitted, components=only)
    ids = shop[1]["item_id"].tolist()
    error, answer = answer_each(plain, [Question("u0", ids[:9], diversity=0.5), Question("u0", ids[:9])])
    assert isinstance(error, DataError)
    assert len(answer.item_ids) == 9


# ------------------------------------------------------------------ failing


def broken_call(*_):
    raise RuntimeError("the history of Jane Roe cannot be read")


class Broken:
    """A scorer that fails: always, or for cases whose history holds an item."""

    depends_on_list = False

    def __init__(self, scorer, when=None, error=RuntimeError):
        self.scorer, self.name, self.when, self.error = scorer, scorer.name, when, error
        self.calls = 0

    def score_catalogue(self, cases):
        self.calls += 1
        if self.when is None or (cases.history.values == self.when).any():
            raise self.error("the history of Jane Roe cannot be read")
        return self.scorer.score_catalogue(cases)

    def score(self, cases):
        raise AssertionError("not asked")


class Silent(Broken):
    """A scorer that has no opinion: what a failing one should amount to."""

    def score_catalogue(self, cases):
        return np.full((len(cases), self.scorer.score_catalogue(cases).shape[1]), np.nan, dtype=np.float32)


def with_scorers(reranker, kind, names, **settings):
    return changed(
        reranker,
        components=[
            replace(c, scorer=kind(c.scorer, **settings)) if c.name in names else c for c in reranker.components
        ],
    )


@pytest.fixture(autouse=True)
def unwarned():
    failures._warned.clear()


@pytest.mark.parametrize("name", ["als", "text_ease", "item_knn"])
def test_a_failing_component_costs_its_opinion_and_is_named(fitted, shop, name, caplog):
    ids = shop[1]["item_id"].tolist()
    questions = [Question("u3", ids[:50]), Question("u4", None, k=20), Question("u5", ids[10:70])]
    broken, silent = (with_scorers(fitted, kind, [name]) for kind in (Broken, Silent))
    with caplog.at_level(logging.WARNING):
        answers = answer_questions(broken, questions)
    for answer, expected, whole in zip(
        answers, answer_questions(silent, questions), answer_questions(fitted, questions), strict=True
    ):
        assert answer.degraded == (name,)
        assert answer.fallback == ""
        assert answer.item_ids == expected.item_ids
        np.testing.assert_allclose(answer.scores, expected.scores, atol=1e-6)
        assert not np.array_equal(answer.scores, whole.scores)
        assert f"{name} failed" in answer.facts["no_guarantee"]
        assert whole.degraded == ()
    assert [record.getMessage().split()[0] for record in caplog.records] == [name]  # once, not once a question
    assert "RuntimeError" in caplog.text
    assert "Jane" not in caplog.text
    frame = pd.DataFrame({"user_id": "u3", "item_id": ids[:5]})
    with pytest.raises(RuntimeError):
        broken.rerank(frame)


def test_warnings_come_again_after_a_minute(fitted, shop, caplog, monkeypatch):
    broken = with_scorers(fitted, Broken, ["als"])
    question = Question("u0", shop[1]["item_id"].tolist()[:5])
    moments = iter([0.0, 59.0, 61.0])
    # a clock of its own: another thread may ask the module's
    monkeypatch.setattr(failures, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    for n in (1, 1, 2):
        answer_questions(broken, [question])
        assert len(caplog.records) == n


def test_one_odd_history_costs_its_own_answer_only(fitted, shop):
    known = fitted._saved.events
    odd = int(known.items[known.users == 0][0])
    others = [user for user in range(1, 60) if odd not in known.items[known.users == user]][:3]
    broken = with_scorers(fitted, Broken, ["als"], when=odd)
    ids = shop[1]["item_id"].tolist()
    questions = [Question(known.user_ids[user], ids[:40]) for user in (others[0], 0, *others[1:])]
    answers = answer_questions(broken, questions)
    assert [answer.degraded for answer in answers] == [(), ("als",), (), ()]
    for place in (0, 2, 3):
        (expected,) = answer_questions(fitted, [questions[place]])
        np.testing.assert_allclose(answers[place].scores, expected.scores, atol=1e-6)


def every(reranker):
    return [c.name for c in reranker.components]


def test_when_all_fails_the_order_given_comes_back(fitted, shop):
    broken = with_scorers(changed(fitted, max_items=4), Broken, every(fitted))
    ids = shop[1]["item_id"].tolist()
    given = [ids[4], "gone", ids[2], ids[8], ids[6], ids[1]]
    scores = [0.1, 0.9, None, 0.5, 0.7, 0.5]
    plain, scored, short = answer_questions(
        broken, [Question("u1", given), Question("u1", given, scores), Question("u1", given, scores, k=2)]
    )
    assert plain.fallback == scored.fallback == "upstream_order"
    assert plain.item_ids == given
    assert scored.item_ids == ["gone", ids[6], ids[8], ids[1], ids[4], ids[2]]
    assert short.item_ids == ["gone", ids[6]]
    assert short.facts["n_kept"] == 1
    assert plain.ranks.tolist() == plain.before_ranks.tolist() == [1, 2, 3, 4, 5, 6]
    assert np.isnan(scored.scores).all()
    assert np.isnan(scored.probabilities).all()
    assert scored.kept.tolist() == [False, True, True, True, True, False]  # unknown; beyond max_items
    assert set(plain.degraded) == {c.name for c in fitted.components if c.blends}
    assert plain.components == {}
    assert "failed" in plain.facts["no_guarantee"]
    assert plain.unknown_items == ["gone"]
    assert recut(broken, scored, k=3, least_probability=0.9).item_ids == scored.item_ids[:3]


def test_when_no_source_is_left_the_best_sellers_are_candidates(fitted, shop):
    """Ranked by what is left; as a list by themselves where nothing is."""
    events, _ = shop
    sources = [c.name for c in fitted.components if c.retrieves]
    broken = with_scorers(fitted, Broken, sources)
    at = int(events["timestamp"].quantile(0.5))
    bought = events[(events["event"] == "purchase") & (events["timestamp"] < at)].drop_duplicates(
        ["user_id", "item_id"]
    )
    counts = bought["item_id"].value_counts()
    user = bought["user_id"][bought["item_id"] == counts.index[0]].iloc[0]  # who has had the best seller of all
    seen = set(bought["item_id"][bought["user_id"] == user])
    for exclude_seen in (True, False):
        (answer,) = answer_questions(broken, [Question(user, None, at=at, k=10, exclude_seen=exclude_seen)])
        assert answer.fallback == "popularity"
        assert answer.before == "popularity"
        wanted = counts[~counts.index.isin(seen)] if exclude_seen else counts
        assert counts[answer.item_ids].tolist() == wanted.tolist()[:10]
        assert not (exclude_seen and seen & set(answer.item_ids))
        assert answer.kept.all()
        assert "als" in answer.degraded


def test_a_scorer_that_retrieves_nothing_still_ranks_the_best_sellers(fitted):
    """Sources fail, one component that is no source does not: it ranks what the statistics bring."""
    components = [
        replace(c, retrieves=False) if c.name == "als" else replace(c, scorer=Broken(c.scorer))
        for c in fitted.components
    ]
    (answer,) = answer_questions(changed(fitted, components=components), [Question("u2", None, k=10)])
    assert (answer.fallback, answer.before) == ("", "popularity")
    assert len(answer.item_ids) == 10
    assert np.isfinite(answer.scores).all()
    assert "als" not in answer.degraded
    assert "recent_popularity" in answer.degraded


def test_when_not_even_statistics_can_be_read_the_list_is_empty(fitted, shop, monkeypatch):
    broken = with_scorers(fitted, Broken, every(fitted))
    monkeypatch.setattr(type(broken._saved.item_statistics.series["buyers"]), "count", broken_call)
    ids = shop[1]["item_id"].tolist()
    retrieved, given = answer_questions(broken, [Question("u0", None, k=5), Question("u0", ids[:5])])
    assert (retrieved.item_ids, retrieved.fallback) == ([], "nothing")
    assert "popularity" in retrieved.degraded
    assert (given.item_ids, given.fallback) == (ids[:5], "upstream_order")


def test_a_failure_beside_the_components_gives_the_order_too(fitted, shop, monkeypatch, caplog):
    """Here the pair features cannot be computed, for one of three questions."""
    from llm_rerank.recommendation import deciding

    ids = shop[1]["item_id"].tolist()
    real = deciding.pair_features

    def features(cases, *rest):
        if (cases.candidates.values == 77).any():
            raise ValueError("Jane Roe")
        return real(cases, *rest)

    monkeypatch.setattr(deciding, "pair_features", features)
    questions = [Question("u0", ids[:9]), Question("u0", ids[70:80]), Question("u1", ids[:9])]
    answers = answer_questions(fitted, questions)
    assert [answer.fallback for answer in answers] == ["", "upstream_order", ""]
    assert answers[1].degraded == ("decision",)
    assert "ValueError" in caplog.text
    assert "Jane" not in caplog.text


def test_variety_that_fails_is_left_out(reader, sample, monkeypatch):
    question = Question(sample[0]["user_id"][0], sample[1]["item_id"].tolist()[:30])
    (expected,) = answer_questions(reader, [question])
    (semantic,) = [c.scorer for c in reader.components if c.name == "semantic"]
    monkeypatch.setattr(semantic, "item_vectors", broken_call)
    (answer,) = answer_questions(reader, [replace(question, diversity=0.9)])
    assert answer.degraded == ("diversity",)
    assert answer.item_ids == expected.item_ids


def test_a_cross_encoder_that_fails_costs_its_part(reader, sample, monkeypatch):
    question = Question(sample[0]["user_id"][0], sample[1]["item_id"].tolist()[:30])
    (cross,) = [c.scorer for c in reader.components if c.name == "cross_encoder"]
    monkeypatch.setattr(cross, "score", broken_call)
    for depth in (None, 5):
        (answer,) = answer_questions(changed(reader, cross_encoder_depth=depth), [question])
        assert answer.degraded == ("cross_encoder",)
        assert (answer.components["cross_encoder"] == 0).all()
        assert np.isfinite(answer.scores).all()


def test_memory_and_interrupts_are_not_swallowed(fitted, shop):
    question = Question("u0", shop[1]["item_id"].tolist()[:5])
    for error in (MemoryError, KeyboardInterrupt):
        with pytest.raises(error):
            answer_questions(with_scorers(fitted, Broken, ["als"], error=error), [question, question])


def test_a_micro_batch_asks_each_component_once_a_kind(fitted, shop):
    counting = with_scorers(fitted, Broken, every(fitted), when=-5)  # never fails, counts its calls
    ids = shop[1]["item_id"].tolist()
    answer_questions(counting, [Question(f"u{user}", ids[:30]) for user in range(16)])
    assert {c.name: c.scorer.calls for c in counting.components} == {c.name: int(c.blends) for c in fitted.components}
    answer_questions(counting, [Question(f"u{user}", None, k=user + 1) for user in range(16)])
    assert {c.scorer.calls - int(c.blends) for c in counting.components} == {1}
