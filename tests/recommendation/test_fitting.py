"""The fit protocol: which targets are held out, that nothing leaks into them, and what planted leaks would earn."""

from dataclasses import replace

import numpy as np
import pytest

from llm_rerank.config import RerankerConfig, ThresholdConfig
from llm_rerank.data.cases import build_cases, seen_items
from llm_rerank.data.features import PAIR_FEATURES
from llm_rerank.data.rendering import Renderer
from llm_rerank.data.splits import hash_users
from llm_rerank.metrics import hit_matrix, ndcg_at_k
from llm_rerank.models.collaborative.popularity import Popularity
from llm_rerank.models.scoring import retrieve
from llm_rerank.recommendation.blend_columns import LINEAR
from llm_rerank.recommendation.candidates import is_member, ndcg_of
from llm_rerank.recommendation.fitting import fit_reranker
from llm_rerank.recommendation.held_out import HeldOutCases, fit_and_score_holdout, tune
from llm_rerank.recommendation.holdout import LEAST_WINDOW_USERS, plan_holdout
from llm_rerank.recommendation.inputs import FitData, FitTools
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.planning import read_shop
from llm_rerank.recommendation.specs import ComponentSpec, default_specs
from llm_rerank.recommendation.stage import fit_stage
from llm_rerank.recommendation.thresholds import choose_cut, cut_curve
from llm_rerank.types import DataError, DataReport, Ragged
from tests.planted import cases_of

CONFIG = RerankerConfig(encoder=None, sequence="off", candidates_per_source=30, refit=False)


@pytest.fixture(scope="module")
def data(shop):
    events, items, _, _ = read_shop(CONFIG, *shop, None, None, None, "auto", DataReport())
    rng = np.random.default_rng(0)
    sentiment = np.where(events.reviews.astype(bool), rng.uniform(-1, 1, len(events)), np.nan).astype(np.float32)
    return FitData(events, items, None, None, sentiment)


def tools(n_items):
    specs = [replace(spec, grid=spec.grid[:1], decays=()) for spec in default_specs(n_items, encoder=None)]
    return FitTools(CONFIG, None, specs, PAIR_FEATURES, Renderer())


def scored(data, holdout):
    return fit_and_score_holdout(data, tools(len(data.items)), holdout, FitLog(verbose=False))


@pytest.fixture(scope="module")
def holdout(data):
    return plan_holdout(data.events, 0, FitLog(verbose=False))


@pytest.fixture(scope="module")
def honest(data, holdout):
    return scored(data, holdout)


def with_future(data, holdout, **changes):
    """The same shop with some arrays of the events at or after the cut replaced by functions of them."""
    late = data.events.times >= holdout.as_of
    assert late.any()
    arrays = {}
    for name, change in changes.items():
        values = getattr(data.events, name).copy()
        values[late] = change(values[late])
        arrays[name] = values
    return replace(data, events=replace(data.events, **arrays))


def assert_same_folds(one, other):
    for first, second in zip(one[2:], other[2:], strict=True):
        assert first.candidates.values.tobytes() == second.candidates.values.tobytes()
        assert first.scored.scores.tobytes() == second.scored.scores.tobytes()
        assert first.pair_values.tobytes() == second.pair_values.tobytes()
    assert list(one[1].texts) == list(other[1].texts)


def test_time_protocol_holds_out_the_newest_fifth_where_a_tenth_holds_too_few_users(data, holdout):
    assert holdout.protocol == "time"
    assert "80%" in holdout.description
    assert (holdout.past.times < holdout.as_of).all()
    assert len(holdout.past) == pytest.approx(0.8 * len(data.events), rel=0.01)
    assert len(holdout.targets) >= LEAST_WINDOW_USERS


def test_nothing_at_or_after_the_cut_reaches_the_held_out_cases(data, holdout, honest):
    altered = with_future(
        data,
        holdout,
        ratings=lambda values: 6 - values,
        quantities=lambda values: values * 50,
        weights=lambda values: values * 9,
        reviews=lambda values: np.array(["terrible, broken"] * len(values), dtype=object),
    )
    altered = replace(altered, sentiment=np.where(data.events.times >= holdout.as_of, -1, data.sentiment))
    assert_same_folds(honest, scored(altered, plan_holdout(altered.events, 0, FitLog(verbose=False))))


def test_a_leak_planted_in_review_text_earns_nothing(data, holdout, honest):
    # every review after the cut names its own reader: text that would match user and target at once
    names = data.events.user_ids[data.events.users[data.events.times >= holdout.as_of]]
    leaky = with_future(data, holdout, reviews=lambda values: np.array([f"{n} {n} {n}" for n in names], dtype=object))
    assert_same_folds(honest, scored(leaky, holdout_of(leaky)))


def test_a_leak_planted_in_popularity_earns_nothing(data, holdout, honest):
    # after the cut every target is sold a thousand times over
    leaky = with_future(data, holdout, quantities=lambda values: values * 1000)
    late = np.flatnonzero(data.events.times >= holdout.as_of)
    repeated = np.sort(np.concatenate([np.arange(len(data.events)), np.repeat(late, 20)]), kind="stable")
    leaky = replace(leaky, events=leaky.events.take(repeated), sentiment=data.sentiment[repeated])
    # more late events would move the quantile, so the hold-out is built at the honest cut
    past_rows = np.flatnonzero(leaky.events.times < holdout.as_of)
    leaked = replace(holdout, past=leaky.events.take(past_rows), past_rows=past_rows)
    assert_same_folds(honest, scored(leaky, leaked))


def holdout_of(data):
    return plan_holdout(data.events, 0, FitLog(verbose=False))


def test_the_tests_above_would_see_a_leak(data, holdout, honest):
    # statistics, text and components that read everything: the very thing that must not happen
    rows = np.arange(len(data.events), dtype=np.int64)
    leaking = replace(holdout, past=data.events, past_rows=rows)
    leaked = scored(data, leaking)
    with pytest.raises(AssertionError):
        assert_same_folds(honest, leaked)


def names_of(components):
    return [component.name for component in components if component.blends]


def fitted_stage(fold, components, n_items):
    return fit_stage(fold, names_of(components), features=PAIR_FEATURES, n_items=n_items, start=None, seed=0).stage


def test_a_leak_planted_in_the_imputer_earns_nothing(data, honest):
    components, items, fold_f, fold_g = honest
    stage = fitted_stage(fold_f, components, len(items))
    before = stage.score(fold_g)
    # fold G's own gaps and values must not shape how G's gaps are filled: break half of G and score the other half
    price = PAIR_FEATURES.index("price_gap")
    values = fold_g.pair_values.copy()
    half = fold_g.candidates.row_of_value < len(fold_g.candidates) // 2
    values[half, price] = 1e6
    gaps = values.copy()
    gaps[~half, price] = np.nan
    broken = stage.score(replace(fold_g, pair_values=gaps))
    clean = fold_g.pair_values.copy()
    clean[~half, price] = np.nan
    np.testing.assert_array_equal(broken[~half], stage.score(replace(fold_g, pair_values=clean))[~half])
    assert fitted_stage(fold_f, components, len(items)).to_dict() == stage.to_dict()
    np.testing.assert_array_equal(before, stage.score(fold_g))


def test_a_leak_planted_in_the_cross_fit_earns_nothing(honest):
    # scores that are pure noise, but for a fit that saw its own targets: out of fold they stay at chance
    components, items, fold_f, _ = honest
    rng = np.random.default_rng(0)
    n = len(fold_f.candidates.values)
    noise = replace(
        fold_f,
        scored=replace(fold_f.scored, scores=rng.normal(size=(n, len(names_of(components)))).astype(np.float32)),
        pair_values=rng.normal(size=fold_f.pair_values.shape).astype(np.float32),
    )
    verdict = fitted_stage(noise, components, len(items)).verdict
    chance = float(np.mean([ndcg_of(rng.normal(size=n), noise.candidates, noise.targets).mean() for _ in range(20)]))
    assert max(verdict.rungs.values()) < chance + 0.05


def test_thin_data_takes_the_last_events_and_says_so(shop):
    events, items = shop
    few = events[events["user_id"].isin([f"u{i}" for i in range(120)])]
    log = FitLog(verbose=False)
    read = read_shop(CONFIG, few, items, None, None, None, "auto", DataReport())
    holdout = plan_holdout(read[0], 0, log)
    assert holdout.protocol == "positions"
    assert any(line.startswith("warning: only") for line in log.lines)
    assert "other users' futures are visible" in log.lines[-1]
    assert len(holdout.targets) == int(0.6 * 120)
    # the target and everything after it is gone from the past of its user, and of nobody else
    for user, time in zip(holdout.targets.users, holdout.targets.times, strict=True):
        assert (holdout.past.times[holdout.past.users == user] < time).all()
    others = ~np.isin(read[0].users, holdout.targets.users)
    assert others.sum() == (~np.isin(holdout.past.users, holdout.targets.users)).sum()


def test_the_sales_feature_is_worth_something_in_a_shop_with_fashions(honest):
    components, items, fold_f, fold_g = honest
    with_sales = fitted_stage(fold_f, components, len(items))
    plain = fit_stage(fold_f, names_of(components), features=(), n_items=len(items), start=None, seed=0).stage
    gain = [ndcg_of(stage.score(fold_g), fold_g.candidates, fold_g.targets).mean() for stage in (plain, with_sales)]
    assert gain[1] > 1.05 * gain[0]
    blended = ("text_ease", "als", "item_knn", "lexical", "sequence")
    both = (*blended, *(f"{name}{LINEAR}" for name in blended))
    assert plain.blend.names == (*both, *(f"{name} × user_support" for name in both))


def test_tuning_takes_the_better_decay_and_leaves_the_scorer_with_it(data, holdout, honest):
    spec = next(spec for spec in default_specs(len(data.items), encoder=None) if spec.name == "item_knn")
    spec = replace(spec, grid=spec.grid[:1])
    targets = holdout.targets
    cases = build_cases(holdout.past, targets.users, targets.times, targets=targets.targets)
    seen = seen_items(holdout.past, targets.users, targets.times)
    values = {}
    for decay in spec.decays:
        one = replace(spec, decays=(decay,), grid=[*spec.grid, *spec.grid])  # two equal settings, so that it is scored
        values[decay] = tune(one, holdout.past, honest[1], cases, seen, 0)[2]
    scorer, settings, best = tune(spec, holdout.past, honest[1], cases, seen, 0)
    assert best == pytest.approx(max(values.values()))
    assert settings["decay"] == scorer.decay == max(values, key=values.get)


def test_tuning_leaves_the_first_setting_only_for_one_that_is_better_by_more_than_an_error(data, holdout, honest):
    spec = knn(grid=3, decays=(0.2, 0.05))
    cases, seen = cases_and_seen(holdout)

    def values_of(settings, rows):
        decay = settings.pop("decay")
        scorer = spec.make(**settings, decay=decay).fit(holdout.past, honest[1], seed=0)
        top = retrieve(scorer, cases.take(rows), 10, exclude=seen.take(rows))
        targets = cases.targets.take(rows)
        return ndcg_at_k(hit_matrix(top, targets, 10), targets.lengths, 10)

    choices = [{**settings, "decay": decay} for settings in spec.grid for decay in spec.decays]
    n_by_luck = 0
    for n_cases in (3, 6, 12, 25, 50, len(cases)):
        rows = np.arange(n_cases, dtype=np.int64)
        values = np.stack([values_of(dict(choice), rows) for choice in choices])
        chosen, best_mean = 0, 0.0
        for other in range(1, len(choices)):
            gain = values[other] - values[0]
            if gain.mean() > max(gain.std(ddof=1) / np.sqrt(n_cases), best_mean):
                chosen, best_mean = other, gain.mean()
        n_by_luck += chosen != values.mean(axis=1).argmax()
        scorer, settings, ndcg = tune(spec, holdout.past, honest[1], cases.take(rows), seen.take(rows), 0)
        assert settings == choices[chosen]
        assert scorer.decay == settings["decay"]
        assert ndcg == pytest.approx(values[chosen].mean())
    assert n_by_luck  # else the plain best would do as well


def test_a_shop_too_small_to_judge_still_fits(shop):
    events, items = shop
    tiny = events[events["user_id"].isin(["u0"])]  # nobody is held out
    read = read_shop(CONFIG, tiny, items, None, None, None, "auto", DataReport())
    log = FitLog(verbose=False)
    data = FitData(read[0], read[1], None, None, np.full(len(read[0]), np.nan, np.float32))
    fitted, _ = fit_reranker(data, tools(len(read[1])), log)
    assert fitted.stage.calibrator is None
    assert "too few" in fitted.stage.verdict.sentence()
    assert np.count_nonzero(fitted.stage.blend.weights) == 1
    assert Ragged.empty(0).lengths.sum() == 0


def cases_and_seen(holdout):
    targets = holdout.targets
    cases = build_cases(holdout.past, targets.users, targets.times, targets=targets.targets)
    return cases, seen_items(holdout.past, targets.users, targets.times)


def test_a_user_is_in_one_fold_which_id_and_seed_decide(data, holdout, honest):
    ids = data.events.user_ids[holdout.targets.users]
    other = replace(tools(len(data.items)), config=replace(CONFIG, seed=1))
    others = fit_and_score_holdout(data, other, holdout, FitLog(verbose=False))
    for seed, folds in ((0, honest[2:]), (1, others[2:])):
        for half, fold in enumerate(folds):
            expected = holdout.targets.targets.take(np.flatnonzero(hash_users(ids, 2, salt=f"fold-{seed}") == half))
            np.testing.assert_array_equal(fold.targets.values, expected.values)
            np.testing.assert_array_equal(fold.targets.offsets, expected.offsets)
    assert len(honest[2].targets) + len(honest[3].targets) == len(holdout.targets)


def test_nothing_that_the_user_had_is_a_candidate(data, honest):
    for fold in honest[2:]:
        assert fold.seen.lengths.min() > 0
        assert not is_member(fold.candidates, fold.seen, len(data.items)).any()


def test_reviews_of_held_out_events_are_not_read_where_single_users_lose_their_last(shop):
    events, items = shop
    few = events[events["user_id"].isin([f"u{i}" for i in range(60)])]
    read = read_shop(CONFIG, few, items, None, None, None, "auto", DataReport())
    sentiment = np.random.default_rng(0).uniform(-1, 1, len(read[0])).astype(np.float32)
    holdout = plan_holdout(read[0], 0, FitLog(verbose=False))
    assert holdout.protocol == "positions"
    held_out = np.setdiff1d(np.arange(len(read[0])), holdout.past_rows)
    reviews, moods = read[0].reviews.copy(), sentiment.copy()
    reviews[held_out], moods[held_out] = "zebra", -1.0
    data = FitData(read[0], read[1], None, None, sentiment)
    altered = FitData(replace(read[0], reviews=reviews), read[1], None, None, moods)
    honest, other = scored(data, holdout), scored(altered, holdout)
    assert_same_folds(honest, other)
    for fold in honest[2:]:
        assert np.isfinite(fold.pair_values[:, PAIR_FEATURES.index("sentiment")]).any()


def test_settings_are_judged_over_the_catalogue_without_seen_items(data, holdout, honest):
    cases, seen = cases_and_seen(holdout)
    spec = ComponentSpec("popularity", "collaborative", Popularity, grid=[{}, {}])
    scorer, _, value = tune(spec, holdout.past, honest[1], cases, seen, 0)

    def mean_ndcg(hidden):
        ndcg = []
        for case, scores in enumerate(scorer.score_catalogue(cases)):
            order = [code for code in np.argsort(-scores, kind="stable") if code not in hidden[case]][:10]
            gains = [1 / np.log2(2 + place) for place, code in enumerate(order) if code in cases.targets[case]]
            ndcg.append(sum(gains) / sum(1 / np.log2(2 + place) for place in range(min(10, len(cases.targets[case])))))
        return np.mean(ndcg)

    assert value == pytest.approx(mean_ndcg(seen), abs=1e-9)
    assert value > 1.001 * mean_ndcg(Ragged.empty(len(cases)))


def knn(grid=1, decays=(0.05, 0.2)):
    spec = next(spec for spec in default_specs(144, encoder=None) if spec.name == "item_knn")
    return replace(spec, grid=spec.grid[:grid], decays=decays)


def test_settings_are_chosen_on_fold_f_alone(data, holdout, honest):
    cases, seen = cases_and_seen(holdout)
    in_f = hash_users(data.events.user_ids[holdout.targets.users], 2, salt="fold-0") == 0
    values = [
        tune(knn(), holdout.past, honest[1], cases.take(rows), seen.take(rows), 0)[2]
        for rows in (np.flatnonzero(in_f), np.flatnonzero(~in_f))
    ]
    log = FitLog(verbose=False)
    one = replace(tools(len(data.items)), specs=[knn()])
    fit_and_score_holdout(data, one, holdout, log)
    assert f"{values[0]:.4f}" != f"{values[1]:.4f}"
    assert any("item_knn: " in line and f"(NDCG@10 {values[0]:.4f} on fold F)" in line for line in log.lines)


def test_of_a_large_fold_settings_are_chosen_on_users_of_every_age(data, holdout, honest, monkeypatch):
    monkeypatch.setattr("llm_rerank.recommendation.held_out.MOST_CASES_FOR_TUNING", 60)
    cases, seen = cases_and_seen(holdout)
    in_f = np.flatnonzero(hash_users(data.events.user_ids[holdout.targets.users], 2, salt="fold-0") == 0)
    assert len(in_f) > 200
    some = np.sort(np.random.default_rng(0).permutation(in_f)[:60])
    assert some.max() > in_f[180]
    values = [tune(knn(), holdout.past, honest[1], cases.take(r), seen.take(r), 0)[2] for r in (some, in_f[:60])]
    assert f"{values[0]:.4f}" != f"{values[1]:.4f}"
    log = FitLog(verbose=False)
    fit_and_score_holdout(data, replace(tools(len(data.items)), specs=[knn()]), holdout, log)
    assert any(f"(NDCG@10 {values[0]:.4f} on fold F)" in line for line in log.lines)


def test_of_equal_settings_the_first_is_taken(data, holdout, honest):
    # histories of one item: fading changes nothing
    cases = cases_of([[code] for code in range(20)], [[]] * 20, [[code + 1] for code in range(20)])
    _, settings, _ = tune(knn(), holdout.past, honest[1], cases, cases.history, 0)
    assert settings["decay"] == 0.05


def test_settings_of_a_scorer_that_cannot_score_the_catalogue_are_refused(data, holdout, honest):
    class Pairwise:
        def fit(self, past, items, *, seed):
            return self

    cases, seen = cases_and_seen(holdout)
    one = ComponentSpec("pairwise", "semantic", Pairwise)
    assert np.isnan(tune(one, holdout.past, honest[1], cases, seen, 0)[2])  # a single setting needs no comparison
    with pytest.raises(DataError, match="component 'pairwise' has 2 settings to choose from, and its scorer no score_"):
        tune(replace(one, decays=(0.2, 0.05)), holdout.past, honest[1], cases, seen, 0)


def test_the_refit_reads_every_event_and_every_review(data, holdout):
    late = with_future(data, holdout, reviews=lambda values: np.array(["zebra"] * len(values), dtype=object))
    fits = {}
    for refit in (False, True):
        one = replace(tools(len(data.items)), specs=[knn(decays=())], config=replace(CONFIG, refit=refit))
        fits[refit], in_fit = fit_reranker(late, one, FitLog(verbose=False))
        assert in_fit.all() if refit else np.array_equal(np.flatnonzero(in_fit), holdout.past_rows)
    assert not any("zebra" in text for text in fits[False].items.texts)
    assert any("zebra" in text for text in fits[True].items.texts)
    cases = cases_of([[code] for code in range(30)], [[]] * 30)
    for refit, events in ((False, holdout.past), (True, data.events)):
        expected = knn().make(**knn().grid[0]).fit(events, data.items, seed=0).score_catalogue(cases)
        np.testing.assert_allclose(
            fits[refit].components[0].scorer.score_catalogue(cases), expected, rtol=1e-5, atol=1e-7
        )


def test_the_refit_lets_both_folds_teach_what_fold_g_has_judged(data, holdout):
    n_items, fits, logs = len(data.items), {}, {}
    for refit in (False, True):
        config = replace(CONFIG, refit=refit, threshold=ThresholdConfig("recall", 0.9))
        one = replace(tools(n_items), specs=[knn(decays=())], config=config)
        logs[refit] = FitLog(verbose=False)
        fits[refit] = fit_reranker(data, one, logs[refit])[0]
    folds = HeldOutCases.of(data, one, holdout).score(fits[False].components, one, FitLog(verbose=False))
    both = fit_stage(folds.whole, ["item_knn"], features=PAIR_FEATURES, n_items=n_items, start=None, seed=0)
    for name in ("blend", "verdict", "calibrator", "standardizer", "linear"):
        assert getattr(fits[True].stage, name).to_dict() == getattr(both.stage, name).to_dict()
    assert both.stage.verdict.n_cases == len(folds.f.targets) + len(folds.g.targets)
    # its cut is chosen on what the blend says of all cases out of fold
    probabilities = both.stage.probability(both.out_of_fold, folds.whole.pair_values)
    positive = is_member(folds.whole.candidates, folds.whole.targets, n_items)
    expected = choose_cut(ThresholdConfig("recall", 0.9), probabilities, positive, folds.whole.candidates)
    assert fits[True].stage.cut == expected != fits[False].stage.cut
    # what is reported of fold G is what a blend that has not seen it makes of it
    for name in ("ranking", "calibration"):
        assert repr(fits[True].report[name]) == repr(fits[False].report[name])  # NaN is not equal to itself
    assert fits[True].report["guard"] == both.stage.verdict.to_dict() != fits[False].report["guard"]
    assert fits[True].report["cut_curve"] == cut_curve(probabilities, positive, folds.whole.candidates)
    said = f"refit: blend, guard and calibrator on all {len(folds.whole.targets):,} held-out cases"
    assert [sum(line.startswith(said) for line in logs[refit].lines) for refit in (False, True)] == [0, 1]


def test_a_refused_refit_leaves_the_rows_that_were_learned_from(data, holdout, monkeypatch):
    monkeypatch.setattr("llm_rerank.recommendation.refit.LEAST_SPEARMAN", 1.01)
    one = replace(tools(len(data.items)), specs=[knn(decays=())], config=replace(CONFIG, refit=True))
    log = FitLog(verbose=False)
    fitted, in_fit = fit_reranker(data, one, log)
    assert any("the components that were judged stay in use" in line for line in log.lines)
    np.testing.assert_array_equal(np.flatnonzero(in_fit), holdout.past_rows)
    judged = fit_reranker(data, replace(one, config=CONFIG), FitLog(verbose=False))[0]
    assert fitted.stage.to_dict() == judged.stage.to_dict()  # the blend too
    # the components that stay have read the texts as of the hold-out, and later reviews made others
    assert list(fitted.items.texts) == list(judged.items.texts)
    assert list(fitted.items.texts) != list(one.render(data.items, data.events, None).texts)


def test_the_seed_of_the_settings_draws_the_folds_of_the_blend(data):
    seeded = replace(tools(len(data.items)), specs=[knn(decays=())], config=replace(CONFIG, seed=5))
    fitted, _ = fit_reranker(data, seeded, FitLog(verbose=False))
    holdout = plan_holdout(data.events, 5, FitLog(verbose=False))
    fold_f = fit_and_score_holdout(data, seeded, holdout, FitLog(verbose=False))[2]
    stages = [
        fit_stage(fold_f, ["item_knn"], features=PAIR_FEATURES, n_items=len(data.items), start=None, seed=seed).stage
        for seed in (5, 0)
    ]
    judged = replace(fitted.stage, profile=None)  # the profile is taken afterwards, on fold G
    assert judged.to_dict() == stages[0].to_dict() != stages[1].to_dict()
