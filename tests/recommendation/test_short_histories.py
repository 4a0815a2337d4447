"""Histories cut short for the blend: who is cut to what, how they teach, and that nothing is judged on them."""

from dataclasses import replace

import numpy as np
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.data.rendering import Renderer
from llm_rerank.recommendation.calibration import fit_calibrator
from llm_rerank.recommendation.candidates import is_member, ndcg_of
from llm_rerank.recommendation.components import ScoredCases
from llm_rerank.recommendation.fusion import fit_fusion
from llm_rerank.recommendation.guard import LEAST_CASES_FOR_BLEND
from llm_rerank.recommendation.held_out import SHORT, HeldOutCases, short_lengths
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools, Fold, ShortHistories
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.planning import read_shop
from llm_rerank.recommendation.priors import LINEAR
from llm_rerank.recommendation.specs import default_specs
from llm_rerank.recommendation.stage import fit_stage, supports
from llm_rerank.types import DataReport, Ragged
from tests.planted import cases_of

CONFIG = RerankerConfig(encoder=None, sequence="off", candidates_per_source=30, refit=False)


def fold_of(candidates, *, short=None, column=0.0):
    """A fold of cases with these candidates, the first of them the target; scores and pair values tell them apart."""
    cases = cases_of([[0]] * len(candidates), candidates)
    cases = replace(cases, targets=Ragged.from_lists([row[:1] for row in candidates]))
    values = column + cases.candidates.values.astype(np.float32)
    pairs = np.repeat(values[:, None], len(PAIR_FEATURES), axis=1)
    return Fold(ScoredCases(cases, values[:, None], values[:, None]), Ragged.empty(len(cases)), pairs, None, short)


def test_short_histories_follow_the_cases_that_are_taken():
    short = ShortHistories(fold_of([[7, 8], [9]], column=100), np.array([0, 2]))
    fold = fold_of([[1, 2], [3], [4, 5]], short=short)
    taught = fold.taught()
    assert taught.case_of.tolist() == [0, 1, 2, 0, 2]
    assert taught.candidates.values.tolist() == [1, 2, 3, 4, 5, 7, 8, 9]
    assert taught.targets.values.tolist() == [1, 3, 4, 7, 9]
    assert taught.scores[:, 0].tolist() == taught.pair_values[:, 3].tolist() == [1, 2, 3, 4, 5, 107, 108, 109]
    some = fold.take(np.array([2, 1])).taught()  # in another order, and without the first
    assert some.candidates.values.tolist() == [4, 5, 3, 9] and some.case_of.tolist() == [0, 1, 0]
    again = fold.take(np.array([0, 0])).taught()
    assert again.candidates.values.tolist() == [1, 2, 1, 2, 7, 8, 7, 8] and again.case_of.tolist() == [0, 1, 0, 1]
    alone = fold.take(np.array([1])).taught()
    assert alone.candidates.values.tolist() == [3] and alone.case_of.tolist() == [0]


def test_scores_of_a_later_component_stay_with_whole_histories():
    short = ShortHistories(fold_of([[7]]), np.array([0]))
    fold = fold_of([[1, 2]], short=short)
    wider = replace(fold, scored=replace(fold.scored, scores=np.array([[1, 50], [2, 60]], dtype=np.float32)))
    assert wider.taught().scores.tolist() == [[1], [2], [7]]


def test_each_history_is_cut_to_something_shorter():
    lengths = np.repeat([1, 2, 3, 6, 50], 400)
    drawn = short_lengths(lengths, seed=0)
    assert (drawn < lengths).all()
    for length in np.unique(lengths):
        possible = [n for n in SHORT if n < length]
        found, counts = np.unique(drawn[lengths == length], return_counts=True)
        assert found.tolist() == possible
        assert counts.min() > 0.7 * 400 / len(possible)  # evenly
    np.testing.assert_array_equal(short_lengths(lengths, seed=0), drawn)


@pytest.fixture(scope="module")
def held_out(shop):
    events, items, _, _ = read_shop(CONFIG, *shop, None, None, None, "auto", DataReport())
    data = FitData(events, items, None, None, np.full(len(events), np.nan, dtype=np.float32))
    specs = [replace(spec, grid=spec.grid[:1], decays=()) for spec in default_specs(len(items), encoder=None)]
    tools = FitTools(CONFIG, None, specs, PAIR_FEATURES, Renderer())
    log = FitLog(verbose=False)
    cases = HeldOutCases.of(data, tools, plan_holdout(data.events, 0, log))
    return cases, tools, cases.score(cases.fit_components(specs, tools, log, {}), tools, log).whole


def test_held_out_cases_are_scored_once_more_by_a_short_history(held_out):
    cases, _, whole = held_out
    short = whole.short
    assert len(short.case_of) == (cases.cases.history.lengths > 0).sum()  # fewer than the most, so all that have any
    shortened = short.fold.scored.cases
    for row, case in enumerate(short.case_of):
        kept = shortened.history[row].tolist()
        history = whole.scored.cases.history[case].tolist()
        assert len(kept) < len(history) and kept == history[len(history) - len(kept) :]
        # what the user had is left out of the list, though the short history does not tell
        assert not set(short.fold.candidates[row]) & set(whole.seen[case])
    assert (shortened.targets.values == whole.targets.take(short.case_of).values).all()
    newcomers = shortened.history.lengths == 0
    supports = short.fold.pair_values[:, PAIR_FEATURES.index("user_support")]
    np.testing.assert_allclose(supports, np.log1p(shortened.history.lengths)[short.fold.candidates.row_of_value])
    assert len({tuple(short.fold.candidates[row][:3]) for row in np.flatnonzero(newcomers)}) < newcomers.sum() / 2


def test_what_a_stage_says_of_its_cases_is_said_of_whole_histories(held_out):
    cases, tools, whole = held_out
    names = [spec.name for spec in tools.specs if spec.blends]
    fits = {
        name: fit_stage(fold, names, features=PAIR_FEATURES, n_items=len(cases.items), start=None, seed=0)
        for name, fold in (("with", whole), ("without", replace(whole, short=None)))
    }
    with_short, without = fits["with"], fits["without"]
    assert with_short.out_of_fold.shape == without.out_of_fold.shape == (len(whole.candidates.values),)
    assert with_short.stage.verdict.n_cases == without.stage.verdict.n_cases == int((whole.targets.lengths > 0).sum())
    assert len(with_short.ndcg) == len(without.ndcg)
    positive = is_member(whole.candidates, whole.targets, len(cases.items))
    by_hand = fit_calibrator(with_short.out_of_fold, *supports(whole.pair_values), positive)
    assert with_short.stage.calibrator.to_dict() == by_hand.to_dict()
    # the guard compares with the same component, cases taken one by one
    assert with_short.stage.verdict.default_ndcg == pytest.approx(without.stage.verdict.default_ndcg)
    assert with_short.stage.blend.to_dict() != without.stage.blend.to_dict()


def two_worlds(n_cases, seed=0, n_candidates=20):
    """Whole histories whose target is told by "taste", against "sells"; newcomers', by what sells."""
    rng = np.random.default_rng(seed)
    taste, sells = rng.normal(size=(2, 2, n_cases, n_candidates))  # of whole lists, and of short ones
    taste[1] = 0  # no history, no opinion
    utility = np.stack([2 * taste[0] - sells[0], 2 * sells[1]]) + rng.gumbel(size=(2, n_cases, n_candidates))
    design = np.stack([taste, taste, sells], axis=-1).reshape(-1, 3).astype(np.float32)
    lists = np.tile(np.arange(n_candidates), 2 * n_cases)
    rows = Ragged.from_lengths(lists, np.full(2 * n_cases, n_candidates, dtype=np.int64))
    best = utility.argmax(axis=-1).ravel()
    targets = Ragged.from_lengths(best, np.ones(2 * n_cases, dtype=np.int64))
    return design, rows, targets, np.tile(np.arange(n_cases), 2)


def fused(design, rows, targets, **options):
    names = ("taste", f"taste{LINEAR}", "sells")
    positive = is_member(rows, targets, 20)
    return fit_fusion(design, names, ["taste"], rows, positive, targets, default=None, start=None, seed=0, **options)


def test_short_histories_teach_what_to_do_with_newcomers():
    n = 300
    design, rows, targets, case_of = two_worlds(n)
    both = fused(design, rows, targets, case_of=case_of)
    whole = np.arange(n)
    half = len(design) // 2
    alone = fused(design[:half], rows.take(whole), targets.take(whole))
    newcomers = rows.take(whole + n), targets.take(whole + n)
    by_both = ndcg_of(both.blend.score(design[half:]), *newcomers).mean()
    by_alone = ndcg_of(alone.blend.score(design[half:]), *newcomers).mean()
    assert by_alone < 0.15 < 0.5 < by_both  # whole histories speak against what sells
    assert both.verdict.n_cases == n and len(both.out_of_fold) == len(design)
    judged = ndcg_of(both.out_of_fold[:half], rows.take(whole), targets.take(whole)).mean()
    assert both.verdict.blend_ndcg == pytest.approx(judged)


def test_short_histories_do_not_make_few_cases_many():
    n = LEAST_CASES_FOR_BLEND - 1
    design, rows, targets, case_of = two_worlds(n)
    few = fused(design, rows, targets, case_of=case_of).verdict
    assert few.difference is None and few.n_cases == n
    design, rows, targets, case_of = two_worlds(n + 1)
    assert fused(design, rows, targets, case_of=case_of).verdict.difference is not None


def test_a_short_history_never_teaches_the_fold_that_its_case_is_judged_in():
    # noise in many columns on few cases: whoever has seen a case's list ranks it far better than chance
    rng = np.random.default_rng(0)
    n, n_candidates, n_columns = 80, 20, 60
    design = rng.normal(size=(n * n_candidates, n_columns)).astype(np.float32)
    rows = Ragged.from_lengths(np.tile(np.arange(n_candidates), n), np.full(n, n_candidates, dtype=np.int64))
    targets = Ragged.from_lengths(rng.integers(n_candidates, size=n), np.ones(n, dtype=np.int64))
    twice = np.concatenate([design, design]), rows.followed_by(rows), targets.followed_by(targets)
    names = ("c", f"c{LINEAR}", *(f"feature {column}" for column in range(n_columns - 2)))
    positive = is_member(twice[1], twice[2], n_candidates)

    def judged(case_of):
        options = {"default": None, "start": None, "seed": 0, "case_of": case_of}
        fit = fit_fusion(twice[0], names, ["c"], twice[1], positive, twice[2], **options)
        return ndcg_of(fit.out_of_fold[: len(design)], rows, targets).mean()

    chance = float(np.mean(1 / np.log2(np.arange(10) + 2)) / 2)
    honest = judged(np.tile(np.arange(n), 2))
    leaked = judged(np.arange(2 * n))
    assert abs(honest - chance) < 0.06 and leaked > honest + 0.05
