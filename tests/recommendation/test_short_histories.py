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
from llm_rerank.recommendation.fusion import column_label, fit_fusion
from llm_rerank.recommendation.guard import LEAST_CASES_FOR_BLEND
from llm_rerank.recommendation.held_out import SHORT, HeldOutCases, short_lengths
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools, Fold, ShortHistories
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.planning import read_shop
from llm_rerank.recommendation.priors import LINEAR
from llm_rerank.recommendation.short_histories import (
    fading_into,
    knows_short_histories,
    shortness,
    with_short_columns,
)
from llm_rerank.recommendation.specs import default_specs
from llm_rerank.recommendation.stage import Stage, fit_stage, supports
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

    def taken(*rows):
        found = fold.take(np.array(rows)).short
        assert (found.fold.scored.scores[:, 0] == found.fold.pair_values[:, 3]).all()
        return found.fold.candidates.values.tolist(), found.fold.targets.values.tolist(), found.case_of.tolist()

    assert taken(0, 1, 2) == ([7, 8, 9], [7, 9], [0, 2])
    assert taken(2, 1) == ([9], [9], [0])  # in another order, and without the first
    assert taken(0, 0) == ([7, 8, 7, 8], [7, 7], [0, 1])
    assert taken(1) == ([], [], [])


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
    # the guard compares with the same component, and judges what is served
    default = with_short.stage.verdict.default_ndcg
    assert knows_short_histories(with_short.stage.blend) and not knows_short_histories(without.stage.blend)
    judged = ndcg_of(with_short.out_of_fold, whole.candidates, whole.targets)[whole.targets.lengths > 0]
    assert with_short.stage.verdict.blend_ndcg == pytest.approx(judged.mean())
    assert with_short.stage.verdict.difference.mean == pytest.approx(judged.mean() - default)
    assert with_short.stage.verdict.default_ndcg == pytest.approx(without.stage.verdict.default_ndcg)
    # whose history is long is ranked as ever; a stage comes back from its file
    half = len(without.stage.blend.weights)
    np.testing.assert_array_equal(with_short.stage.blend.weights[:half], without.stage.blend.weights)
    long = replace(whole, pair_values=whole.pair_values.copy())
    long.pair_values[:, PAIR_FEATURES.index("user_support")] = np.log1p(41)
    np.testing.assert_allclose(with_short.stage.score(long), without.stage.score(long), atol=1e-12)
    again = Stage.from_dict(with_short.stage.to_dict())
    np.testing.assert_array_equal(again.score(whole), with_short.stage.score(whole))
    newcomers = whole.short.fold.take(np.flatnonzero(whole.short.fold.scored.cases.history.lengths == 0))
    ndcg = [ndcg_of(fit.stage.score(newcomers), newcomers.candidates, newcomers.targets) for fit in fits.values()]
    assert np.nanmean(ndcg[0]) > np.nanmean(ndcg[1])


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


def whole_lists(n):
    _, rows, targets, _ = two_worlds(n)
    return rows.take(np.arange(n)), targets.take(np.arange(n))


def short_lists(n):
    _, rows, targets, _ = two_worlds(n)
    return rows.take(np.arange(n, 2 * n)), targets.take(np.arange(n, 2 * n))


def faded(n=300, n_events=0):
    """Both fits of ``two_worlds``, and the blend that goes from the one to the other."""
    design, rows, targets, case_of = two_worlds(n)
    half, lists, short = len(design) // 2, whole_lists(n), short_lists(n)
    alone, both = (fused(design, rows, targets, case_of=case_of, short_teach=teach) for teach in (False, True))
    support = np.full(half, np.log1p(n_events), dtype=np.float32)
    joined = fading_into(alone, both, *short, *lists, support, seed=0)
    return design, lists, alone, both, joined


def test_weights_fade_from_short_to_long_histories():
    design, lists, alone, both, joined = faded()
    assert shortness(np.log1p(np.array([0, 40, 400.0]))).tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    x = design[:50]
    for n_events, share in ((0, 1.0), (40, 0.0), (2, 1 - np.log(3) / np.log(41))):
        scores = joined.blend.score(with_short_columns(x, np.full(50, np.log1p(n_events), dtype=np.float32)))
        expected = share * both.blend.score(x) + (1 - share) * alone.blend.score(x)
        np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert {column_label(name) for name in joined.blend.names} == {"taste", "sells"}
    # whole histories without events would be ranked by the other blend, and are judged so
    half = len(joined.out_of_fold)
    np.testing.assert_allclose(joined.out_of_fold, both.out_of_fold[:half], atol=1e-12)
    assert joined.verdict.blend_ndcg == pytest.approx(ndcg_of(both.out_of_fold[:half], *lists).mean())
    long = faded(n_events=40)[4]
    np.testing.assert_allclose(long.out_of_fold, alone.out_of_fold[:half], atol=1e-6)
    assert long.verdict.blend_ndcg == pytest.approx(alone.verdict.blend_ndcg)


def test_what_short_histories_teach_is_kept_only_where_it_ranks_them_better():
    *_, alone, both, joined = faded()
    short_worse = fading_into(both, alone, *short_lists(300), *whole_lists(300), np.zeros(300 * 20, np.float32), seed=0)
    assert short_worse.blend is both.blend and len(short_worse.out_of_fold) == 300 * 20
    assert joined.blend is not alone.blend


def test_lists_that_do_not_teach_are_scored_by_what_the_others_taught():
    design, rows, targets, case_of = two_worlds(300)
    half, n = len(design) // 2, np.arange(300)
    scored = fused(design, rows, targets, case_of=case_of, short_teach=False)
    alone = fused(design[:half], rows.take(n), targets.take(n))
    np.testing.assert_array_equal(scored.blend.weights, alone.blend.weights)
    assert scored.verdict == alone.verdict
    np.testing.assert_array_equal(scored.out_of_fold[:half], alone.out_of_fold)
    # near what the whole fit says of them, though none of its folds is all of it
    assert np.corrcoef(scored.out_of_fold[half:], alone.blend.score(design[half:]))[0, 1] > 0.99


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
