"""Histories cut short for the blend: who is cut to what, how they teach, and that nothing is judged on them."""

from dataclasses import replace

import numpy as np
import pytest

from llm_rerank.config import RerankerConfig
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.data.rendering import Renderer
from llm_rerank.recommendation.blend_columns import LINEAR, column_label, shortness, with_short_columns
from llm_rerank.recommendation.calibration import fit_calibrator
from llm_rerank.recommendation.candidates import is_member, ndcg_of
from llm_rerank.recommendation.components import ScoredCases
from llm_rerank.recommendation.cross_fitting import Lists
from llm_rerank.recommendation.fusion import Chosen, fit_fusion, shares_of_rungs
from llm_rerank.recommendation.guard import LEAST_CASES_FOR_BLEND, RUNGS
from llm_rerank.recommendation.held_out import SHORT, HeldOutCases, short_lengths
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools, Fold, ShortHistories
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.planning import read_shop
from llm_rerank.recommendation.short_histories import fading_into, knows_short_histories, taught_by_both
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
    by_hand = fit_calibrator(without.out_of_fold, *supports(whole.pair_values), positive)
    assert without.stage.calibrator.to_dict() == by_hand.to_dict()
    # newcomers' probabilities are told by newcomers' lists
    short = whole.short.fold
    taken = is_member(short.candidates, short.targets, len(cases.items)).mean()
    means = [fit.stage.probability(fit.stage.score(short), short.pair_values).mean() for fit in (with_short, without)]
    assert with_short.stage.calibrator.newcomers is not None and without.stage.calibrator.newcomers is None
    assert means[0] == pytest.approx(taken, rel=0.05) and means[1] != pytest.approx(taken, rel=0.1)
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


NAMES = ("taste", f"taste{LINEAR}", "sells")
CHOICE = {"start": None, "seed": 0}


def support_of(lists, n_events):
    """Log support of the candidates' users: of whole histories so many events, of short ones none."""
    return np.where(lists.short_candidates, 0, np.log1p(n_events)).astype(np.float32)


def lists_of(n_cases, *, short=True):
    """The lists of ``two_worlds``; short: those of newcomers too."""
    design, rows, targets, case_of = two_worlds(n_cases)
    lists = Lists(design, NAMES, ["taste"], rows, is_member(rows, targets, 20), targets, case_of)
    if short:
        return lists
    design, rows, positive = lists.part(lists.whole)
    return Lists.of_cases(design, NAMES, ["taste"], rows, positive, targets.take(np.arange(n_cases)))


def newcomers_ndcg(lists, weights):
    """NDCG@10 of the lists of newcomers by weights that others have taught."""
    return lists.ndcg(lists.design @ weights)[~lists.whole].mean()


def test_short_histories_teach_what_to_do_with_newcomers():
    lists = lists_of(300)
    alone = fit_fusion(lists, default=None, **CHOICE)
    weights, scores = taught_by_both(alone, lists, support_of(lists, 10), **CHOICE)
    assert newcomers_ndcg(lists, alone.blend.weights) < 0.15  # whole histories speak against what sells
    assert newcomers_ndcg(lists, weights) > 0.5
    assert len(scores) == len(lists.design)
    assert lists.ndcg(scores)[~lists.whole].mean() == pytest.approx(newcomers_ndcg(lists, weights), abs=0.03)


def test_a_second_fit_takes_rungs_and_penalties_over():
    lists = lists_of(300)
    alone = fit_fusion(lists, default=None, **CHOICE)
    support = support_of(lists, 10)

    def by(*rungs):
        return taught_by_both(replace(alone, chosen=replace(alone.chosen, rungs=rungs)), lists, support, **CHOICE)

    prior = lists.priors(np.ones(len(lists.rows), dtype=bool), alone.blend.default, None)[-1]
    (loose, scores), (stiff, _), (bare, of_prior) = by((7, 0)), by((7, 2)), by((0, 0))
    assert np.abs(stiff - prior).sum() < 0.8 * np.abs(loose - prior).sum()
    # shares are told by all lists as they are served: of ten events, at their share of both
    part = np.where(lists.short_candidates, 1.0, 1 - np.log(11) / np.log(41))
    served = [part * found + (1 - part) * alone.out_of_fold for found in (of_prior, scores)]
    share = shares_of_rungs(np.stack([lists.ndcg(values) for values in served]))
    assert share[1] > 0.99 > 0.5 > share[0]  # the prior, of which newcomers' lists hold nothing, ranks them by chance
    together, of_both = by((0, 0), (7, 0))
    np.testing.assert_allclose(together, share @ np.stack([bare, loose]), atol=1e-9)
    np.testing.assert_allclose(of_both, share @ np.stack([of_prior, scores]), atol=1e-9)
    rungs = alone.chosen.rungs
    assert [rung for rung, _ in rungs] == list(range(len(RUNGS)))


def faded(n_events=10):
    """The blend of whole histories, and the one that goes over to what short ones have taught."""
    lists = lists_of(300)
    alone = fit_fusion(lists, default=None, **CHOICE)
    return lists, alone, fading_into(alone, lists, support_of(lists, n_events), **CHOICE)


def test_weights_fade_from_short_to_long_histories():
    lists, alone, joined = faded()
    weights, scores = taught_by_both(alone, lists, support_of(lists, 10), **CHOICE)
    assert shortness(np.log1p(np.array([0, 40, 400.0]))).tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    x = lists.design[:50]
    for n_events, share in ((0, 1.0), (40, 0.0), (2, 1 - np.log(3) / np.log(41))):
        served = joined.blend.score(with_short_columns(x, np.full(50, np.log1p(n_events), dtype=np.float32)))
        expected = share * (x @ weights) + (1 - share) * alone.blend.score(x)
        np.testing.assert_allclose(served, expected, atol=1e-5)
    assert {column_label(name) for name in joined.blend.names} == {"taste", "sells"}
    # the guard judges whole histories as they are served: of ten events, at their share of both
    share = np.where(lists.short_candidates, 1.0, 1 - np.log(11) / np.log(41))
    served = share * scores + (1 - share) * alone.out_of_fold
    np.testing.assert_allclose(joined.out_of_fold, served, atol=1e-5)
    assert joined.verdict.blend_ndcg == pytest.approx(lists.ndcg(served)[lists.judged].mean())
    assert joined.verdict.blend_ndcg < alone.verdict.blend_ndcg - 0.01
    lists, alone, long = faded(n_events=40)
    whole, scores = ~lists.short_candidates, taught_by_both(alone, lists, support_of(lists, 40), **CHOICE)[1]
    np.testing.assert_allclose(long.out_of_fold[whole], alone.out_of_fold[whole], atol=1e-6)
    np.testing.assert_allclose(long.out_of_fold[~whole], scores[~whole], atol=1e-6)
    assert long.verdict.blend_ndcg == pytest.approx(alone.verdict.blend_ndcg)


def test_what_short_histories_teach_is_kept_only_where_it_ranks_them_better():
    lists, alone, joined = faded()
    assert joined.blend is not alone.blend
    # no history is short: what was learned from the others changes nothing, and is not kept
    forty = np.full(len(lists.design), np.log1p(40), dtype=np.float32)
    assert fading_into(alone, lists, forty, **CHOICE) is alone
    # short lists that say what whole ones say, and less clearly: nothing to gain
    design, rows, targets, case_of = two_worlds(300)
    half = len(design) // 2
    noise = np.random.default_rng(0).normal(size=(half, 3)).astype(np.float32)
    design = np.concatenate([design[:half], noise])
    same = Lists(design, NAMES, ["taste"], rows, is_member(rows, targets, 20), targets, case_of)
    perfect = replace(alone, out_of_fold=same.positive.astype(float))
    found = fading_into(perfect, same, np.zeros(len(design), np.float32), **CHOICE)
    assert found.blend is alone.blend


def test_a_refused_blend_is_not_fitted_again():
    lists, alone, _ = faded()
    refused = replace(alone, chosen=None, default_ndcg=None)
    assert fading_into(refused, lists, np.zeros(len(lists.design), np.float32), **CHOICE) is refused
    whole = lists_of(300, short=False)
    assert fading_into(alone, whole, np.zeros(len(whole.design), np.float32), **CHOICE) is alone


def test_lists_that_do_not_teach_are_scored_by_what_the_others_taught():
    lists, whole = lists_of(300), lists_of(300, short=False)
    scored, alone = (fit_fusion(of, default=None, **CHOICE) for of in (lists, whole))
    half = len(whole.design)
    np.testing.assert_array_equal(scored.blend.weights, alone.blend.weights)
    assert scored.verdict == alone.verdict
    np.testing.assert_array_equal(scored.out_of_fold[:half], alone.out_of_fold)
    # near what the whole fit says of them, though none of its folds is all of it
    assert np.corrcoef(scored.out_of_fold[half:], alone.blend.score(lists.design[half:]))[0, 1] > 0.99


def test_short_histories_do_not_make_few_cases_many():
    few = fit_fusion(lists_of(LEAST_CASES_FOR_BLEND - 1), default=None, **CHOICE)
    assert few.verdict.difference is None and few.verdict.n_cases == LEAST_CASES_FOR_BLEND - 1
    assert few.chosen is None
    assert fit_fusion(lists_of(LEAST_CASES_FOR_BLEND), default=None, **CHOICE).verdict.difference is not None


def test_a_short_history_never_teaches_the_fold_that_its_case_is_judged_in():
    # noise in many columns on few cases: whoever has seen a case's list ranks it far better than chance
    rng = np.random.default_rng(0)
    n, n_candidates, n_columns = 80, 20, 60
    design = rng.normal(size=(n * n_candidates, n_columns)).astype(np.float32)
    rows = Ragged.from_lengths(np.tile(np.arange(n_candidates), n), np.full(n, n_candidates, dtype=np.int64))
    targets = Ragged.from_lengths(rng.integers(n_candidates, size=n), np.ones(n, dtype=np.int64))
    names = ("c", f"c{LINEAR}", *(f"feature {column}" for column in range(n_columns - 2)))
    once = Lists.of_cases(design, names, ["c"], rows, is_member(rows, targets, n_candidates), targets)
    rung = len(RUNGS) - 1  # with every column
    alone = fit_fusion(once, default="c", **CHOICE)
    alone = replace(alone, chosen=Chosen(((rung, 0),), ("c",) * 5), out_of_fold=np.tile(alone.out_of_fold, 2))

    def judged(case_of):
        twice = once.followed_by(once.design, once.rows, once.positive, once.targets, case_of)
        scores = taught_by_both(alone, twice, support_of(twice, 10), **CHOICE)[1]
        return ndcg_of(scores[: len(design)], rows, targets).mean()

    chance = float(np.mean(1 / np.log2(np.arange(10) + 2)) / 2)
    honest = judged(np.arange(n))
    leaked = judged(np.roll(np.arange(n), 1))
    assert abs(honest - chance) < 0.06 and leaked > honest + 0.05
