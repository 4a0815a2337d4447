"""The cross-encoder inside a fit: its lists, its place in the blend, what it may not see, depth, files, the command."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from llm_rerank.cli import app
from llm_rerank.config import DiversityConfig, RerankerConfig
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.data.rendering import Renderer
from llm_rerank.data.splits import last_targets
from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder
from llm_rerank.models.semantic.encoder import SentenceEncoder
from llm_rerank.recommendation import fine_tuning, training_lists
from llm_rerank.recommendation.components import ScoredCases
from llm_rerank.recommendation.cross_fitting import Lists
from llm_rerank.recommendation.cross_reading import new_cross_encoder
from llm_rerank.recommendation.fusion import Blend, FusionFit
from llm_rerank.recommendation.guard import GuardVerdict
from llm_rerank.recommendation.held_out import fit_and_score_holdout
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools, Fold
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.planning import make_encoder, read_shop
from llm_rerank.recommendation.refit import fit_again
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.residual import CROSS_ENCODER, STEPS, ResidualVerdict, add_residual, residual_columns
from llm_rerank.recommendation.specs import default_specs
from llm_rerank.recommendation.stage import fit_stage
from llm_rerank.recommendation.training_lists import LONGEST_LIST, as_lists, build_training_lists, peel
from llm_rerank.types import DataError, DataReport, Ragged
from tests.planted import cases_of, events_of, items_of, planted_shop
from tests.tiny_encoder import save_tiny_encoder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def config(tiny):
    return RerankerConfig(
        encoder=tiny,
        candidates_per_source=30,
        sequence="off",
        semantic="always",
        cross_encoder="always",
        fine_tune_steps=20,
        device="cpu",
    )


@pytest.fixture(scope="module")
def with_reader(shop, config):
    return Reranker(config, verbose=False).fit(*shop)


@pytest.fixture(scope="module")
def asked(shop):
    events, items = shop
    users = events["user_id"].unique()[:12]
    return pd.DataFrame(
        {"user_id": np.repeat(users, 60), "item_id": np.tile(items["item_id"].to_numpy()[:60], len(users))}
    )


def test_its_part_is_a_column_and_the_parts_add_up(with_reader, asked):
    result = with_reader.rerank(asked)
    parts = [name for name in result.columns if name.startswith("score_")]
    assert "score_cross_encoder" in parts
    assert result["score_cross_encoder"].abs().max() > 0
    np.testing.assert_allclose(result[parts].sum(axis=1), result["score"], atol=1e-9)
    assert "cross_encoder" in str(with_reader.explain(asked["user_id"][0], asked["item_id"][0]))
    (reader,) = [component.scorer for component in with_reader.components if component.name == "cross_encoder"]
    assert [entry["step"] for entry in reader.training_log] == [0, 20]
    said = str(with_reader.report())
    assert "cross_encoder: " in said and ": on; leave it out with cross_encoder='off' (" in said
    assert "make a list" in said


def test_a_pair_alone_scores_as_among_sixty_and_saved_as_unsaved(with_reader, asked, tmp_path):
    result = with_reader.rerank(asked)
    chosen = result.iloc[[3]]
    alone = with_reader.rerank(chosen[["user_id", "item_id"]])
    np.testing.assert_allclose(alone["score"], chosen["score"], atol=1e-6)
    with_reader.save(tmp_path / "m")
    loaded = Reranker.load(tmp_path / "m", device="cpu", verbose=False)
    pd.testing.assert_frame_equal(loaded.rerank(asked), result, atol=1e-6)


def test_below_the_depth_the_first_stage_keeps_its_order(with_reader, asked):
    shallow = Reranker(replace(with_reader.config, cross_encoder_depth=10), verbose=False)
    shallow._adopt(replace(with_reader._data(), config=shallow.config))
    result = shallow.rerank(asked)
    without = with_reader.rerank(asked)
    without["first"] = without["score"] - without["score_cross_encoder"]
    first = without.set_index(["user_id", "item_id"])["first"]
    for user, part in result.groupby("user_id"):
        order = part.sort_values("rank")
        stage_one = first[user].reindex(order["item_id"]).to_numpy()
        assert set(order["item_id"][:10]) == set(first[user].sort_values(ascending=False, kind="stable").index[:10])
        assert (np.diff(stage_one[10:]) <= 1e-9).all()
        assert (order["score_cross_encoder"].to_numpy()[10:] == 0).all()
    deep = Reranker(replace(with_reader.config, cross_encoder_depth=60), verbose=False)
    deep._adopt(replace(with_reader._data(), config=deep.config))
    pd.testing.assert_frame_equal(deep.rerank(asked), with_reader.rerank(asked))


def test_unknown_items_take_no_place_within_the_depth(with_reader, asked):
    shallow = Reranker.from_saved(with_reader.saved)
    shallow.config = replace(
        with_reader.config, cross_encoder_depth=50, diversity=DiversityConfig(exploration_slots=2, depth=20)
    )
    few = asked[asked["user_id"] == asked["user_id"][0]]
    unknown = pd.DataFrame({"user_id": few["user_id"].iloc[0], "item_id": [f"nowhere {n}" for n in range(20)]})
    alone, among = shallow.rerank(few), shallow.rerank(pd.concat([unknown, few]))
    assert among["item_id"][60:].tolist() == unknown["item_id"].tolist()
    same = ["score", "probability", "score_cross_encoder"]
    by_item = [result.set_index("item_id").loc[few["item_id"], same] for result in (alone, among)]
    pd.testing.assert_frame_equal(*by_item, atol=1e-6)
    assert (among["propensity"] > 0).all() and (among["propensity"][60:] == 1).all()


def test_the_cross_encoder_takes_the_fits_settings(tiny, tmp_path):
    config = RerankerConfig(
        encoder=tiny,
        history_length=7,
        token_attention=True,
        dtype="bfloat16",
        seed=3,
        device="cpu",
        cache_folder=str(tmp_path),
    )
    encoder = SentenceEncoder(tiny, device="cpu")
    model = new_cross_encoder(FitTools(config, encoder, [], PAIR_FEATURES, Renderer()))
    assert (model.history_length, model.seed, model.device, model.cache_folder) == (7, 3, "cpu", tmp_path)
    assert (model.cross_attention, model.dtype) == (True, "bfloat16")
    assert model.encoder is encoder
    assert make_encoder(config).reference["dtype"] == "bfloat16"
    with pytest.raises(DataError, match="dtype is 'float8'; it must be one of auto, float32, bfloat16"):
        RerankerConfig(dtype="float8")


def test_a_shop_fitted_with_token_attention_scores_alike_when_loaded(shop, config, asked, tmp_path):
    config = replace(config, token_attention=True, dtype="float32", refit=False)
    reranker = Reranker(config, verbose=False).fit(*shop)
    (reader,) = [component.scorer for component in reranker.components if component.name == CROSS_ENCODER]
    assert reader.cross_attention
    assert reader.network.gates.abs().max() > 0  # trained: its gates have opened
    assert reader._table.states.dtype == torch.float16
    result = reranker.rerank(asked)
    assert result["score_cross_encoder"].abs().max() > 0
    reranker.save(tmp_path / "m")
    loaded = Reranker.load(tmp_path / "m", device="cpu", verbose=False)
    assert loaded.config == config
    pd.testing.assert_frame_equal(loaded.rerank(asked), result, atol=1e-6)


def test_off_means_off_and_without_an_encoder_there_is_none(shop, fitted):
    assert "cross_encoder" not in [component.name for component in fitted.components]
    with pytest.raises(DataError, match="cross_encoder is 'perhaps'"):
        RerankerConfig(cross_encoder="perhaps")
    with pytest.raises(DataError, match="cross_encoder_depth is 0"):
        RerankerConfig(cross_encoder_depth=0)


# ------------------------------------------------------------------- what it may not see


def parts_of(events, items, sentiment, config):
    """What ``build_training_lists`` takes."""
    specs = [replace(spec, grid=spec.grid[:1], decays=()) for spec in default_specs(len(items), encoder=None)]
    tools = FitTools(config, None, specs, PAIR_FEATURES, Renderer())
    data = FitData(events, items, None, None, sentiment)
    log = FitLog(verbose=False)
    holdout = plan_holdout(events, 0, log)
    components, _, fold_f, _ = fit_and_score_holdout(data, tools, holdout, log)
    names = [component.name for component in components if component.blends]
    stage = fit_stage(fold_f, names, features=PAIR_FEATURES, n_items=len(items), start=None, seed=0).stage
    return data, tools, holdout, components, stage, log


def lists_of(events, items, sentiment, config):
    parts = parts_of(events, items, sentiment, config)
    return parts[2], build_training_lists(*parts)


@pytest.fixture(scope="module")
def read(shop):
    config = RerankerConfig(encoder=None, sequence="off", candidates_per_source=30)
    events, items, _, _ = read_shop(config, *shop, None, None, None, "auto", DataReport())
    return config, events, items


@pytest.fixture(scope="module")
def built(read):
    config, events, items = read
    return lists_of(events, items, np.full(len(events), np.nan, dtype=np.float32), config)


def test_lists_hold_nothing_at_or_after_the_decision(read, built):
    (_, _, items), (holdout, lists) = read, built
    for part in (lists.training, lists.validation):
        cases = part.cases
        assert (cases.times < holdout.as_of).all()
        assert (cases.history_times < cases.times[cases.history.row_of_value]).all()
        had = cases.history.row_of_value * len(items) + cases.history.values
        # every candidate is new to the user: in no history (of positive events)
        offered = cases.candidates.row_of_value * len(items) + cases.candidates.values
        assert not np.isin(offered, had[cases.history_weights >= 1]).any()
        assert cases.candidates.lengths.max() <= LONGEST_LIST


def test_lists_do_not_depend_on_events_after_the_cut_nor_offsets_on_the_answer(read, built):
    (config, events, items), (holdout, lists) = read, built
    nothing = np.full(len(events), np.nan, dtype=np.float32)
    late = events.times >= holdout.as_of
    reviews = events.reviews.copy()
    reviews[late] = "the answer"
    ratings = np.where(late, 5, events.ratings).astype(np.float32)
    # the stage is fitted on late targets, so those stay; all else that late events carry may change
    changed = replace(events, reviews=reviews, ratings=ratings)
    _, again = lists_of(changed, items, np.where(late, 1.0, nothing).astype(np.float32), config)
    np.testing.assert_array_equal(again.training.offsets, lists.training.offsets)
    np.testing.assert_array_equal(again.training.cases.candidates.values, lists.training.cases.candidates.values)
    assert list(again.items.texts) == list(lists.items.texts)
    # an offset from models that had seen the answer would put it first nearly always
    ranks = [
        (
            lists.training.offsets[slice(*lists.training.cases.candidates.offsets[row : row + 2])]
            > lists.training.offsets[lists.training.positive][row]
        ).sum()
        for row in range(len(lists.training))
    ]
    assert np.mean(np.array(ranks) == 0) < 0.5


@pytest.fixture(scope="module")
def planted_parts():
    shop = planted_shop(n_users=120)
    opinion = np.random.default_rng(0).uniform(-1, 1, len(shop.past)).astype(np.float32)
    config = RerankerConfig(encoder=None, sequence="off", candidates_per_source=30)
    return parts_of(shop.past, shop.items, opinion, config)


def test_lists_do_not_depend_on_what_was_peeled_off(planted_parts):
    """What the peeled events say changes, and the components given know the answers: nothing of that comes through."""
    data, tools, holdout, components, stage, log = planted_parts
    events = data.events
    weights = np.where(np.array(stage.blend.names) == "sentiment", 1.0, stage.blend.weights)
    stage = replace(stage, blend=replace(stage.blend, weights=weights))
    lists = build_training_lists(data, tools, holdout, components, stage, log)
    last = last_targets(holdout.past)
    _, kept = peel(holdout.past, last.take(np.flatnonzero(~np.isin(last.users, holdout.targets.users))))
    gone = np.ones(len(events), dtype=bool)
    gone[holdout.past_rows[kept]] = False
    changed = replace(
        events,
        reviews=np.where(gone, "the answer", events.reviews),
        ratings=np.where(gone, 5, events.ratings).astype(np.float32),
    )
    again = build_training_lists(
        replace(data, events=changed, sentiment=np.where(gone, 1.0, data.sentiment).astype(np.float32)),
        tools,
        replace(holdout, past=changed.take(holdout.past_rows)),
        fit_again(components, tools.specs, events, data.items, 0, log),
        stage,
        log,
    )
    np.testing.assert_array_equal(again.training.offsets, lists.training.offsets)
    np.testing.assert_array_equal(again.training.cases.candidates.values, lists.training.cases.candidates.values)
    assert list(again.items.texts) == list(lists.items.texts)


def test_no_held_out_user_of_positions_has_a_list_and_lists_are_drawn(planted_parts, monkeypatch):
    events, holdout = planted_parts[0].events, planted_parts[2]
    assert holdout.protocol == "positions"
    lists = build_training_lists(*planted_parts)
    of_user = [events.items[events.users == user].tolist() for user in range(120)]
    held_out = {tuple(of_user[user][:length]) for user in holdout.targets.users for length in range(10)}
    histories = [
        tuple(part.cases.history[row].tolist())
        for part in (lists.training, lists.validation)
        for row in range(len(part))
    ]
    assert len(histories) > 30
    assert not held_out & set(histories)
    monkeypatch.setattr(training_lists, "MOST_LIST_USERS", 20)
    few = build_training_lists(*planted_parts)
    assert 0 < len(few.training) + len(few.validation) <= 20


def test_training_and_validation_are_different_users(built):
    _, lists = built
    keys = [
        {tuple(part.cases.history[row].tolist()) + (int(part.cases.times[row]),) for row in range(len(part))}
        for part in (lists.training, lists.validation)
    ]
    assert not keys[0] & keys[1]
    assert 0.1 < len(lists.validation) / (len(lists.training) + len(lists.validation)) < 0.3


def test_peel_takes_the_target_and_what_comes_after():
    past = events_of([(0, 1, 10), (0, 2, 20), (0, 1, 30), (1, 3, 5), (1, 2, 8)], n_items=4)
    targets = last_targets(past)
    left, kept = peel(past, targets)
    assert kept.tolist() == [i for i in range(5) if (past.users[i], past.times[i]) in {(0, 10), (1, 5)}]
    assert len(left) == 2


def test_a_list_has_one_positive_near_the_top():
    # case 0: two targets, the better one stays, the other leaves; case 1: target not retrieved; case 2: one target
    rows = Ragged.from_lists([[0, 1, 2, 3], [4, 5], [6, 7, 8]])
    cases = replace(cases_of([[9], [9], [9]], [r for r in ([0, 1, 2, 3], [4, 5], [6, 7, 8])]), candidates=rows)
    cases = replace(cases, targets=Ragged.from_lists([[1, 3], [9], [8]]))
    offsets = np.array([0.1, 0.5, 0.9, 0.7, 0.0, 0.0, 0.3, 0.2, 0.1], dtype=np.float32)
    nothing = np.zeros((9, 0), dtype=np.float32)
    fold = Fold(ScoredCases(cases, nothing, nothing), Ragged.empty(3), np.zeros((9, len(PAIR_FEATURES)), np.float32))
    lists, users = as_lists(fold, offsets, items_of(["a text"] * 10))
    assert users.tolist() == [0, 2]
    assert lists.cases.candidates[0].tolist() == [0, 2, 3]
    assert lists.cases.candidates.values[lists.positive].tolist() == [3, 8]
    np.testing.assert_allclose(lists.offsets, [0.1, 0.9, 0.7, 0.3, 0.2, 0.1])


def test_what_has_no_text_is_in_no_list():
    # case 0: the better target has no text, the other stays; case 1: its only one has none; case 2: another lacks one
    rows = [[0, 1, 2, 3], [4, 5], [6, 7, 8]]
    cases = cases_of([[9], [9], [9]], rows, [[1, 3], [4], [8]])
    offsets = np.array([0.1, 0.9, 0.3, 0.7, 0.5, 0.0, 0.3, 0.2, 0.1], dtype=np.float32)
    nothing = np.zeros((9, 0), dtype=np.float32)
    fold = Fold(ScoredCases(cases, nothing, nothing), Ragged.empty(3), np.zeros((9, len(PAIR_FEATURES)), np.float32))
    texts = ["" if code in (1, 4) else " " if code == 6 else "a text" for code in range(10)]
    lists, users = as_lists(fold, offsets, items_of(texts))
    assert users.tolist() == [0, 2]
    assert [lists.cases.candidates[row].tolist() for row in range(2)] == [[0, 2, 3], [7, 8]]
    assert lists.cases.candidates.values[lists.positive].tolist() == [3, 8]
    np.testing.assert_allclose(lists.offsets, [0.1, 0.3, 0.7, 0.2, 0.1])


def test_a_list_holds_the_best_hundred_by_offset():
    rng = np.random.default_rng(0)
    offsets = rng.permutation(300).astype(np.float32)
    codes = [np.arange(150), np.arange(150)]
    place = np.argsort(-offsets.reshape(2, 150), axis=1)
    cases = cases_of([[9], [9]], codes, [[place[0, 99]], [place[1, 100]]])  # the hundredth is in, the next is not
    nothing = np.zeros((300, 0), dtype=np.float32)
    fold = Fold(ScoredCases(cases, nothing, nothing), Ragged.empty(2), np.zeros((300, len(PAIR_FEATURES)), np.float32))
    lists, users = as_lists(fold, offsets, items_of(["a text"] * 150))
    assert users.tolist() == [0]
    assert sorted(lists.cases.candidates[0]) == sorted(place[0, :LONGEST_LIST])


# ------------------------------------------------------------------- its place in the blend


def test_no_opinion_counts_as_none():
    residual = np.array([2.0, np.nan], dtype=np.float32)
    cap = np.log1p(40.0)
    columns, names = residual_columns(residual, np.array([0.0, cap]), np.array([cap, cap]))
    assert names == ("cross_encoder", "cross_encoder × user_support", "cross_encoder × item_support")
    np.testing.assert_allclose(columns, [[2.0, -1.0, 1.0], [0.0, 0.0, 0.0]], atol=1e-6)
    assert residual_columns(residual, np.zeros(2), None)[1] == names[:2]


def test_lists_from_which_nothing_was_taken_change_no_verdict():
    fusion, columns, names, lists, *_ = made(300, 0.8)
    _, verdict = add_residual(fusion, columns, names, lists, choice="auto", seed=0)
    more = Ragged.from_lengths(np.tile(np.arange(20), 350), np.full(350, 20))
    _, with_empty = add_residual(
        replace(fusion, out_of_fold=np.append(fusion.out_of_fold, np.zeros(1_000))),
        np.concatenate([columns, np.ones((1_000, 3), np.float32)]),
        names,
        bare_lists(
            more,
            np.append(lists.positive, np.zeros(1_000, bool)),
            Ragged.from_lengths(lists.targets.values, np.append(lists.targets.lengths, np.zeros(50, np.int64))),
        ),
        choice="auto",
        seed=0,
    )
    assert with_empty.n_cases == 300
    assert with_empty.kept
    assert with_empty.ndcg["none"] == pytest.approx(verdict.ndcg["none"])


def test_a_blend_that_says_too_little_is_scaled_up_with_the_residual():
    fusion, columns, names, lists, first, _ = made(800, 0.8)
    faint = FusionFit(replace(fusion.blend, weights=np.array([0.5])), fusion.verdict, 0.5 * first)
    found, _ = add_residual(faint, columns, names, lists, choice="auto", seed=0)
    assert found.blend.weights[0] == pytest.approx(1.0, abs=0.1)
    # one case that says the opposite of the rest is not enough to leave the prior weight of 1
    alone = add_residual(
        FusionFit(fusion.blend, fusion.verdict, np.zeros(20)),
        columns[:20],
        names,
        bare_lists(lists.rows.take(np.arange(1)), lists.positive[:20], lists.targets.take(np.arange(1))),
        choice="always",
        seed=0,
        n_folds=1 + 1,
    )[0]
    assert alone.blend.weights[0] == pytest.approx(1.0)


def bare_lists(rows, positive, targets):
    """Lists whose columns are not asked for."""
    return Lists.of_cases(np.empty((len(positive), 0), np.float32), (), (), rows, positive, targets)


def made(n_cases, strength, *, only_thin=False, seed=0):
    """First-stage scores of strength 1 and a residual of the given strength; 20 candidates, one taken."""
    rng = np.random.default_rng(seed)
    rows = Ragged.from_lengths(np.tile(np.arange(20), n_cases), np.full(n_cases, 20))
    first, residual = rng.normal(size=20 * n_cases), rng.normal(size=20 * n_cases)
    support = np.tile(np.log1p(np.where(np.arange(20) < 10, 0, 100)), n_cases).astype(np.float32)
    effect = strength * residual * (np.where(support == 0, 1.0, 0.0) if only_thin else 1.0)
    noise = rng.gumbel(size=20 * n_cases)
    taken = (first + effect + noise).reshape(n_cases, 20).argmax(axis=1)
    targets = Ragged.from_lengths(taken.astype(np.int64), np.ones(n_cases, dtype=np.int64))
    positive = np.zeros(20 * n_cases, dtype=bool)
    positive[np.arange(n_cases) * 20 + taken] = True
    verdict = GuardVerdict("first", 0.0, 0.0, None, 0.0, n_cases, True, False, {}, {})
    fusion = FusionFit(Blend(("first",), np.array([1.0]), "first", 3.0), verdict, first)
    user = np.full(20 * n_cases, np.log1p(5), dtype=np.float32)
    columns, names = residual_columns(residual.astype(np.float32), user, support)
    return fusion, columns, names, bare_lists(rows, positive, targets), first, residual


def test_lists_of_short_histories_are_scored_and_teach_nothing():
    fusion, columns, names, lists, first, _ = made(400, 0.8)
    backwards = -columns  # there the residual says the opposite
    both = lists.followed_by(lists.design, lists.rows, lists.positive, lists.targets, lists.case_of)
    twice = replace(fusion, out_of_fold=np.append(first, first))
    alone, of_alone = add_residual(fusion, columns, names, lists, choice="auto", seed=0)
    found, verdict = add_residual(twice, np.concatenate([columns, backwards]), names, both, choice="auto", seed=0)
    assert verdict == of_alone
    np.testing.assert_array_equal(found.blend.weights, alone.blend.weights)
    n = len(first)
    np.testing.assert_array_equal(found.out_of_fold[:n], alone.out_of_fold)
    design = np.column_stack([first, backwards]).astype(np.float32)
    np.testing.assert_allclose(found.out_of_fold[n:], alone.blend.score(design), atol=0.6)
    assert np.corrcoef(found.out_of_fold[n:], alone.blend.score(design))[0, 1] > 0.99


def effective_weights(weights):
    """Weight of the residual for items without support and for well supported ones; users have five events."""
    middle = weights["cross_encoder"] + (np.log1p(5) / np.log1p(40) - 0.5) * weights["cross_encoder × user_support"]
    by_item = 0.5 * weights["cross_encoder × item_support"]
    return middle - by_item, middle + by_item


def test_a_residual_that_tells_joins_at_its_weight():
    fusion, columns, names, lists, first, residual = made(800, 0.8)
    found, verdict = add_residual(fusion, columns, names, lists, choice="auto", seed=0)
    assert verdict.kept
    assert verdict.difference.low > 0
    weights = dict(zip(found.blend.names, found.blend.weights, strict=True))
    assert weights["first"] == pytest.approx(1.0, abs=0.1)
    thin, thick = effective_weights(weights)
    assert thin == pytest.approx(0.8, abs=0.15)
    assert thick == pytest.approx(0.8, abs=0.15)
    design = np.column_stack([first, columns]).astype(np.float32)
    inside = lists.ndcg(found.blend.score(design)).mean()
    assert inside == pytest.approx(lists.ndcg(found.out_of_fold).mean(), abs=0.02)
    assert ResidualVerdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict


def test_a_residual_of_noise_is_left_out_unless_asked_for():
    fusion, columns, names, lists, *_ = made(400, 0.0, seed=3)
    found, verdict = add_residual(fusion, columns, names, lists, choice="auto", seed=0)
    if verdict.kept:  # by chance it may look better; then by next to nothing
        assert verdict.difference.mean < 0.005
    else:
        np.testing.assert_array_equal(found.blend.weights, [1.0, 0.0, 0.0, 0.0])
        np.testing.assert_array_equal(found.out_of_fold, fusion.out_of_fold)
    _, forced = add_residual(fusion, columns, names, lists, choice="always", seed=0)
    assert forced.step in STEPS[1:]


def test_a_gain_no_greater_than_its_standard_error_is_not_worth_the_reading():
    within, beyond = 0, 0
    for seed in range(12):
        fusion, columns, names, lists, *_ = made(150, 0.2, seed=seed)
        _, verdict = add_residual(fusion, columns, names, lists, choice="auto", seed=0)
        gain, error = verdict.difference.mean, (verdict.difference.high - verdict.difference.low) / 3.92
        if abs(gain / error - 1) < 0.1:  # the interval is a bootstrap's, its error is not the rule's to the last digit
            continue
        assert verdict.kept == verdict.pays == (gain > error)
        within += 0 < gain < error
        beyond += gain > error
        _, forced = add_residual(fusion, columns, names, lists, choice="always", seed=0)
        assert forced.kept
        assert forced.pays == verdict.pays
    assert within > 0
    assert beyond > 0


def test_auto_leaves_noise_out_and_judges_out_of_fold():
    """Fifteen columns of noise on sixty cases: in sample they look like a find, on other folds they are none."""
    for seed in range(3):
        fusion, _, _, lists, *_ = made(60, 0.0, seed=seed)
        columns = np.random.default_rng(seed).normal(size=(1_200, 15)).astype(np.float32)
        names = tuple(f"noise{number}" for number in range(15))
        found, verdict = add_residual(fusion, columns, names, lists, choice="auto", seed=0)
        assert verdict.ndcg[STEPS[2]] < verdict.ndcg[STEPS[0]]
        if not verdict.kept:
            np.testing.assert_array_equal(found.blend.weights, [1.0, *np.zeros(15)])
            return
    raise AssertionError("noise was kept three times of three")


def test_its_weight_follows_the_support():
    """It tells of thin items only: the products with the support must carry that."""
    fusion, columns, names, lists, *_ = made(1_500, 1.5, only_thin=True)
    found, verdict = add_residual(fusion, columns, names, lists, choice="auto", seed=0)
    assert verdict.step == "weights by support"
    weights = dict(zip(found.blend.names, found.blend.weights, strict=True))
    thin, thick = effective_weights(weights)
    assert thin == pytest.approx(1.5, abs=0.25)
    assert thick == pytest.approx(0.0, abs=0.25)


# ------------------------------------------------------------------- the command


def test_finetune_writes_a_model_its_log_and_its_picture(shop, tiny, tmp_path):
    events, items = shop
    events.to_csv(tmp_path / "e.csv", index=False)
    items.to_csv(tmp_path / "i.csv", index=False)
    out = tmp_path / "tuned"
    arguments = ["finetune", "--interactions", str(tmp_path / "e.csv"), "--items", str(tmp_path / "i.csv")]
    arguments += ["--out", str(out), "--encoder", tiny, "--fine-tune-steps", "20", "--device", "cpu"]
    arguments += ["--token-attention", "--dtype", "float32"]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    assert "base rate" in run.output
    log = json.loads((out / "training.json").read_text())
    assert [entry["step"] for entry in log["evaluations"]] == [0, 20]
    assert (out / "training.svg").read_text().startswith("<svg")
    model = HistoryCrossEncoder.load(out / "model", device="cpu")
    assert f"HistoryCrossEncoder.load({str(out / 'model')!r}) reads the model" in run.output.replace("\n", "")
    assert HistoryCrossEncoder.load(out, device="cpu").training_log == model.training_log == log["evaluations"]
    assert "texts are longer than 32 tokens, of each the first 32 are read\n" in run.output
    assert "item_tokens" not in run.output  # which neither finetune nor a fit takes
    assert (model.cross_attention, model.dtype, log["settings"]["precision"]) == (True, "float32", "float32")
    (scores,) = model.predict([["classic tent"]], [["premium tent", "piano"]])
    assert np.isfinite(scores).all()
    with pytest.warns(UserWarning, match="1 of 1 texts are longer than 32 tokens, of each the first 32 are read$"):
        model.predict([["classic tent"]], [["premium tent", "piano " * 40]])  # trained so: nothing is to be raised
    fit = ["fit", str(tmp_path / "e.csv"), str(tmp_path / "i.csv"), "--out", str(tmp_path / "shop")]
    for command in (["recommend", str(out), "u1"], [*fit, "--start-from", str(out)]):
        refused = CliRunner().invoke(app, command)
        assert refused.exit_code == 2
        told = f"wrote it, a cross-encoder alone, which HistoryCrossEncoder.load({str(out / 'model')!r}) reads"
        assert told in refused.output
    none = CliRunner().invoke(app, [*arguments, "--encoder", "none"])
    assert none.exit_code == 2
    assert "encoder is None" in none.output


def test_finetune_learns_nothing_from_events_beyond_their_time(shop, tiny, tmp_path):
    """The shop's events are years old."""
    config = RerankerConfig(encoder=tiny, retention_days=30, fine_tune_steps=1, device="cpu")
    with pytest.raises(
        DataError, match=r"none of 0 events is a target, and .* than retention_days \(30; .*lengthen it"
    ):
        fine_tuning.fine_tune_on_shop(*shop, tmp_path / "tuned", config=config, verbose=False)


def test_each_process_has_its_device_and_the_first_one_writes():
    def place(number, n_processes=2):
        processes = SimpleNamespace(
            num_processes=n_processes, device=torch.device("cuda", number), is_main_process=number == 0
        )
        return fine_tuning._place_of(processes, "cuda")

    assert [place(0), place(1)] == [("cuda:0", True), ("cuda:1", False)]
    assert place(0, n_processes=1) == ("cuda", True)


def test_two_processes_finetune_and_one_of_them_writes(shop, tiny, tmp_path):
    events, items = shop
    events.to_csv(tmp_path / "e.csv", index=False)
    items.to_csv(tmp_path / "i.csv", index=False)
    script = tmp_path / "share.py"
    script.write_text(
        "import os, sys\nfrom pathlib import Path\n"
        "from llm_rerank import RerankerConfig, fine_tune_on_shop\n"
        "from llm_rerank.recommendation import fine_tuning\n"
        "saved = fine_tuning.save_folder\n"
        "def noted(*arguments):\n"
        "    Path('writer' + os.environ['RANK']).touch()\n"
        "    return saved(*arguments)\n"
        "fine_tuning.save_folder = noted\n"
        "config = RerankerConfig(encoder=sys.argv[1], candidates_per_source=30, sequence='off', semantic='off',\n"
        "                        fine_tune_steps=4, device='cpu')\n"
        "tuning = fine_tune_on_shop('e.csv', 'i.csv', 'tuned', config=config)\n"
        "Path('loss' + os.environ['RANK']).write_text(str(tuning.log[-1]['loss']))\n"
    )
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": root}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
        tiny,
    ]
    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.glob("writer*")) == ["writer0"]
    assert run.stdout.count("step 0: validation loss") == 1  # and one of them speaks
    assert (tmp_path / "loss0").read_text() == (tmp_path / "loss1").read_text()
    log = json.loads((tmp_path / "tuned" / "training.json").read_text())
    assert [entry["step"] for entry in log["evaluations"]] == [0, 4]
    assert HistoryCrossEncoder.load(tmp_path / "tuned" / "model", device="cpu").training_log == log["evaluations"]


# ------------------------------------------------------------------- another shop's


@pytest.fixture(scope="module")
def old_shop(with_reader, tmp_path_factory):
    folder = tmp_path_factory.mktemp("old") / "shop"
    with_reader.save(folder)
    return folder


def network_of(reranker):
    (model,) = [c.scorer for c in reranker.components if c.name == CROSS_ENCODER]
    return {name: tensor.numpy() for name, tensor in model.network.state_dict().items()}


def test_a_young_shop_uses_the_lent_cross_encoder_as_it_is(shop, config, with_reader, old_shop):
    events, items = shop
    young = events[events["user_id"].isin([f"u{n}" for n in range(90)])]
    alone = Reranker(config, verbose=False).fit(young, items)
    assert "cross_encoder" not in [component.name for component in alone.components]
    started = Reranker(config, verbose=False).fit(young, items, start_from=old_shop)
    assert any("the other shop's is used as it is" in line for line in started.report().values["lines"])
    lent = network_of(with_reader)
    for name, values in network_of(started).items():
        np.testing.assert_array_equal(values, lent[name])
    assert "fine_tuning" not in started.report().values
    assert started.recommend(["u1"], k=5)["score_cross_encoder"].abs().sum() > 0


def test_a_shop_with_lists_of_its_own_goes_on_from_the_lent_one(shop, config, with_reader, old_shop):
    started = Reranker(config, verbose=False).fit(*shop, start_from=old_shop)
    fresh, further = (r.report().values["fine_tuning"]["log"] for r in (with_reader, started))
    assert fresh[0]["step"] == further[0]["step"] == 0
    assert fresh[0]["loss"] != further[0]["loss"]
    assert not any("used as it is" in line for line in started.report().values["lines"])


def test_a_cross_encoder_of_another_encoder_is_not_taken(shop, config, old_shop, tmp_path):
    other = replace(config, encoder=save_tiny_encoder(tmp_path, seed=5))
    started = Reranker(other, verbose=False).fit(*shop, start_from=old_shop)
    assert any("the other shop's cannot be used" in line for line in started.report().values["lines"])
