"""The cross-encoder inside a fit: its lists, its place in the blend, what it may not see, depth, files, the command."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from llm_rerank.cli import app
from llm_rerank.config import RerankerConfig
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.data.rendering import Renderer
from llm_rerank.models.cross_encoder.scorer import HistoryCrossEncoder
from llm_rerank.recommendation.components import ScoredCases, default_specs
from llm_rerank.recommendation.fitting import fit_and_score_holdout
from llm_rerank.recommendation.fusion import Blend, FusionFit, ndcg_of
from llm_rerank.recommendation.guard import GuardVerdict
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools, Fold
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.planning import read_shop
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.recommendation.residual import STEPS, ResidualVerdict, add_residual, residual_columns
from llm_rerank.recommendation.stage import fit_stage
from llm_rerank.recommendation.training_lists import LONGEST_LIST, as_lists, build_training_lists, peel
from llm_rerank.types import DataError, DataReport, Ragged
from tests.planted import cases_of, events_of
from tests.tiny_encoder import save_tiny_encoder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def config(tiny):
    return RerankerConfig(
        encoder=tiny, candidates_per_source=30, cross_encoder="always", fine_tune_steps=20, device="cpu"
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
    said = str(with_reader.report())
    assert "cross-encoder: joins with" in said
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


def test_off_means_off_and_without_an_encoder_there_is_none(shop, fitted):
    assert "cross_encoder" not in [component.name for component in fitted.components]
    with pytest.raises(DataError, match="cross_encoder is 'perhaps'"):
        RerankerConfig(cross_encoder="perhaps")
    with pytest.raises(DataError, match="cross_encoder_depth is 0"):
        RerankerConfig(cross_encoder_depth=0)


# ------------------------------------------------------------------- what it may not see


def lists_of(events, items, sentiment, config):
    specs = [replace(spec, grid=spec.grid[:1], decays=()) for spec in default_specs(len(items), encoder=None)]
    tools = FitTools(config, None, specs, PAIR_FEATURES, Renderer())
    data = FitData(events, items, None, None, sentiment)
    log = FitLog(verbose=False)
    holdout = plan_holdout(events, 0, log)
    components, _, fold_f, _ = fit_and_score_holdout(data, tools, holdout, log)
    names = [component.name for component in components if component.blends]
    stage = fit_stage(fold_f, names, features=PAIR_FEATURES, n_items=len(items), start=None, seed=0)
    return holdout, build_training_lists(data, tools, holdout, components, stage, log)


@pytest.fixture(scope="module")
def read(shop):
    config = RerankerConfig(encoder=None, candidates_per_source=30)
    events, items, _, _ = read_shop(config, *shop, None, None, None, "auto", DataReport())
    return config, events, items


def test_lists_hold_nothing_at_or_after_the_decision(read):
    config, events, items = read
    nothing = np.full(len(events), np.nan, dtype=np.float32)
    holdout, lists = lists_of(events, items, nothing, config)
    for part in (lists.training, lists.validation):
        cases = part.cases
        assert (cases.times < holdout.as_of).all()
        assert (cases.history_times < cases.times[cases.history.row_of_value]).all()
        taken = cases.candidates.values[part.positive]
        had = cases.history.row_of_value * len(items) + cases.history.values
        # the target is new to the user: in no history (of positive events)
        assert not np.isin(np.arange(len(taken)) * len(items) + taken, had[cases.history_weights >= 1]).any()
        assert cases.candidates.lengths.max() <= LONGEST_LIST


def test_lists_do_not_depend_on_events_after_the_cut_nor_offsets_on_the_answer(read):
    config, events, items = read
    nothing = np.full(len(events), np.nan, dtype=np.float32)
    holdout, lists = lists_of(events, items, nothing, config)
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


def test_training_and_validation_are_different_users(read):
    config, events, items = read
    _, lists = lists_of(events, items, np.full(len(events), np.nan, dtype=np.float32), config)
    keys = [
        {tuple(part.cases.history[row].tolist()) + (int(part.cases.times[row]),) for row in range(len(part))}
        for part in (lists.training, lists.validation)
    ]
    assert not keys[0] & keys[1]
    assert 0.1 < len(lists.validation) / (len(lists.training) + len(lists.validation)) < 0.3


def test_peel_takes_the_target_and_what_comes_after():
    from llm_rerank.data.splits import last_targets

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
    lists, users = as_lists(fold, offsets, 10)
    assert users.tolist() == [0, 2]
    assert lists.cases.candidates[0].tolist() == [0, 2, 3]
    assert lists.cases.candidates.values[lists.positive].tolist() == [3, 8]
    np.testing.assert_allclose(lists.offsets, [0.1, 0.9, 0.7, 0.3, 0.2, 0.1])


# ------------------------------------------------------------------- its place in the blend


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
    return fusion, columns, names, rows, positive, targets, first, residual


def effective_weights(weights):
    """Weight of the residual for items without support and for well supported ones; users have five events."""
    middle = weights["cross_encoder"] + (np.log1p(5) / np.log1p(40) - 0.5) * weights["cross_encoder × user_support"]
    by_item = 0.5 * weights["cross_encoder × item_support"]
    return middle - by_item, middle + by_item


def test_a_residual_that_tells_joins_at_its_weight():
    fusion, columns, names, rows, positive, targets, first, residual = made(800, 0.8)
    found, verdict = add_residual(fusion, columns, names, rows, positive, targets, choice="auto", seed=0)
    assert verdict.kept
    assert verdict.difference.low > 0
    weights = dict(zip(found.blend.names, found.blend.weights, strict=True))
    assert weights["first"] == pytest.approx(1.0, abs=0.1)
    thin, thick = effective_weights(weights)
    assert thin == pytest.approx(0.8, abs=0.15)
    assert thick == pytest.approx(0.8, abs=0.15)
    design = np.column_stack([first, columns]).astype(np.float32)
    inside = ndcg_of(found.blend.score(design), rows, targets).mean()
    assert inside == pytest.approx(ndcg_of(found.out_of_fold, rows, targets).mean(), abs=0.02)
    assert ResidualVerdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict


def test_a_residual_of_noise_is_left_out_unless_asked_for():
    fusion, columns, names, rows, positive, targets, *_ = made(400, 0.0, seed=3)
    found, verdict = add_residual(fusion, columns, names, rows, positive, targets, choice="auto", seed=0)
    if verdict.kept:  # by chance it may look better; then by next to nothing
        assert verdict.difference.mean < 0.005
    else:
        assert "does not pay" in verdict.sentence()
        np.testing.assert_array_equal(found.blend.weights, [1.0, 0.0, 0.0, 0.0])
        np.testing.assert_array_equal(found.out_of_fold, fusion.out_of_fold)
    _, forced = add_residual(fusion, columns, names, rows, positive, targets, choice="always", seed=0)
    assert forced.step in STEPS[1:]


def test_its_weight_follows_the_support():
    """It tells of thin items only: the products with the support must carry that."""
    fusion, columns, names, rows, positive, targets, *_ = made(1_500, 1.5, only_thin=True)
    found, verdict = add_residual(fusion, columns, names, rows, positive, targets, choice="auto", seed=0)
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
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    assert "base rate" in run.output
    log = json.loads((out / "training.json").read_text())
    assert [entry["step"] for entry in log["evaluations"]] == [0, 20]
    assert (out / "training.svg").read_text().startswith("<svg")
    model = HistoryCrossEncoder.load(out / "model", device="cpu")
    (scores,) = model.predict([["classic tent"]], [["premium tent", "piano"]])
    assert np.isfinite(scores).all()
    none = CliRunner().invoke(app, [*arguments, "--encoder", "none"])
    assert none.exit_code == 2
    assert "encoder is None" in none.output
