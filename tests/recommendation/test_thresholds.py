"""Cut-off rules: by hand, and against trying every cut."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_rerank.config import ThresholdConfig
from llm_rerank.recommendation.risk_control import control_risk, mean_losses, risk_levels
from llm_rerank.recommendation.thresholds import (
    Cut,
    bounded_kept,
    choose_cut,
    cut_as_set,
    cut_curve,
    least_profitable,
)
from llm_rerank.types import DataError, Ragged

PROBABILITIES = np.array([0.9, 0.8, 0.8, 0.4, 0.1, np.nan], dtype=np.float32)
POSITIVE = np.array([True, False, True, False, True, False])
ROWS = Ragged.from_lengths(np.arange(6), np.array([3, 3]))

some_lists = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=25).filter(
    lambda pairs: any(hit for _, hit in pairs)
)


def _packed(pairs):
    """One list of (level of eight, target)."""
    probabilities = np.array([level / 8 for level, _ in pairs], dtype=np.float32)
    rows = Ragged.from_lengths(np.arange(len(pairs)), np.array([len(pairs)]))
    return probabilities, np.array([hit for _, hit in pairs]), rows


def test_fixed_probability_by_hand():
    cut = choose_cut(ThresholdConfig("probability", 0.5), PROBABILITIES, POSITIVE, ROWS)
    assert cut.least_probability == 0.5
    # kept: .9 .8 .8, of which two are right; three targets; two cases
    assert (cut.precision, cut.recall, cut.mean_kept) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 1.5)


def test_a_probability_at_the_cut_is_kept():
    cut = choose_cut(ThresholdConfig("recall", 0.5), PROBABILITIES, POSITIVE, ROWS)
    # kept from .8 on: .9 .8 .8, as by hand above
    assert (cut.precision, cut.recall, cut.mean_kept) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 1.5)
    assert (cut.n_cases, cut.n_targets) == (2, 3)


def test_a_cut_says_its_figures_in_its_sentence():
    # kept: .9 .8 .8 .4, two of four are right, two of three are found, in two cases
    sentence = choose_cut(ThresholdConfig("probability", 0.4), PROBABILITIES, POSITIVE, ROWS).sentence()
    assert "on 2 held-out cases precision 0.500, recall of retrieved targets 0.667, 2.0 kept a case" in sentence


def test_a_target_without_a_probability_was_not_retrieved():
    positive = POSITIVE.copy()
    positive[-1] = True  # its probability is NaN
    cut = choose_cut(ThresholdConfig("recall", 1.0), PROBABILITIES, positive, ROWS)
    assert (cut.n_targets, cut.recall, cut.least_probability) == (3, 1.0, np.float32(0.1))


def test_a_share_that_floats_cannot_hold_is_met_exactly():
    # 0.55 × 100 is 55.00000000000001: the 55th target reaches it all the same
    probabilities = np.linspace(1, 0.01, 100).astype(np.float32)
    rows = Ragged.from_lengths(np.arange(100), np.array([100]))
    cut = choose_cut(ThresholdConfig("recall", 0.55), probabilities, np.ones(100, dtype=bool), rows)
    assert (cut.recall, cut.mean_kept) == (0.55, 55.0)


def test_where_nothing_is_kept_precision_is_unknown():
    cut = choose_cut(ThresholdConfig("probability", 1.0), PROBABILITIES, POSITIVE, ROWS)
    assert np.isnan(cut.precision)
    assert (cut.recall, cut.mean_kept) == (0.0, 0.0)


def test_target_recall_takes_the_highest_cut_that_reaches_it():
    # recall 1/3 at .9, 2/3 at .8, 1 at .1
    assert choose_cut(ThresholdConfig("recall", 0.3), PROBABILITIES, POSITIVE, ROWS).least_probability == np.float32(
        0.9
    )
    assert choose_cut(ThresholdConfig("recall", 0.5), PROBABILITIES, POSITIVE, ROWS).least_probability == np.float32(
        0.8
    )
    assert choose_cut(ThresholdConfig("recall", 1.0), PROBABILITIES, POSITIVE, ROWS).least_probability == np.float32(
        0.1
    )


@given(some_lists, st.sampled_from([0.5, 1.0, 2.0]))
def test_best_f_beta_equals_trying_every_cut(pairs, beta):
    probabilities, positive, rows = _packed(pairs)
    cut = choose_cut(ThresholdConfig("f_beta", beta), probabilities, positive, rows)

    def score(least):
        kept = probabilities >= least
        right = (kept & positive).sum()
        if not right:
            return 0.0
        precision, recall = right / kept.sum(), right / positive.sum()
        return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)

    assert score(cut.least_probability) == pytest.approx(max(score(level) for level in probabilities))


def test_rules_that_need_targets_say_so():
    nothing = np.zeros(6, dtype=bool)
    with pytest.raises(DataError, match="there are 0"):
        choose_cut(ThresholdConfig("recall", 0.9), PROBABILITIES, nothing, ROWS)
    assert choose_cut(ThresholdConfig("probability", 0.5), PROBABILITIES, nothing, ROWS).precision == 0.0


def test_bounds_add_by_rank_and_cut_by_rank():
    kept, ranks, rows = np.array([False, False, True, True]), np.array([2, 1, 3, 4]), Ragged.from_lists([range(4)])
    assert bounded_kept(kept, ranks, rows, min_items=1, max_items=None).tolist() == [False, False, True, True]
    assert bounded_kept(kept, ranks, rows, min_items=3, max_items=None).tolist() == [False, True, True, True]
    assert bounded_kept(kept, ranks, rows, min_items=0, max_items=1).tolist() == [False, False, True, False]


@given(
    st.lists(st.lists(st.booleans(), max_size=12), max_size=4),
    st.integers(0, 6),
    st.none() | st.integers(1, 6),
    st.data(),
)
def test_how_many_are_kept_depends_on_the_bounds_and_not_on_the_ranks(lists, least, most, data):
    least = least if most is None else min(least, most)
    ranks = [data.draw(st.permutations(range(1, len(kept) + 1))) for kept in lists]
    rows = Ragged.from_lists([range(len(kept)) for kept in lists])
    flat, places = np.array(sum(lists, []), dtype=bool), np.array(sum(ranks, []), dtype=np.int64)
    found = bounded_kept(flat, places, rows, min_items=least, max_items=most)
    for row, kept in enumerate(lists):
        part, of_row = found[rows.offsets[row] : rows.offsets[row + 1]], np.array(ranks[row])
        n_above, cut = sum(kept), np.array(kept, dtype=bool)
        assert part.sum() == min(max(n_above, least), len(kept) if most is None else most, len(kept))
        for inside, outside in ((part & cut, ~part & cut), (part & ~cut, ~part & ~cut)):  # by rank in both parts
            assert max(of_row[inside], default=0) < min(of_row[outside], default=99)
        assert not (part & ~cut).any() or part[cut].all()  # none is added while a kept one is out


# ------------------------------------------------------------ target precision


def _repeated(probabilities, positive, times):
    """The same cuts with so many times the candidates, all of one case."""
    rows = Ragged.from_lengths(np.arange(len(positive) * times), np.array([len(positive) * times]))
    return np.repeat(probabilities, times), np.repeat(positive, times), rows


def test_target_precision_takes_the_lowest_cut_that_reaches_it():
    # precision 1 at .9, 2/3 at .8 (both .8 together), 1/2 at .4, 3/5 at .1
    shop = _repeated(PROBABILITIES, POSITIVE, 30)
    cuts = {value: choose_cut(ThresholdConfig("precision", value), *shop) for value in (1.0, 0.65, 0.6, 0.5)}
    least = {value: cut.least_probability for value, cut in cuts.items()}
    assert least == {1.0: np.float32(0.9), 0.65: np.float32(0.8), 0.6: np.float32(0.1), 0.5: np.float32(0.1)}
    assert cuts[0.6].precision == pytest.approx(3 / 5)
    assert not any(cut.misses_its_target for cut in cuts.values())


def test_a_lucky_handful_does_not_reach_a_precision():
    # one candidate fewer at each level: the cut at .9, all right, keeps 29, so the highest that can tell is 2/3 at .8
    cut = choose_cut(ThresholdConfig("precision", 1.0), *_repeated(PROBABILITIES, POSITIVE, 29))
    assert (cut.least_probability, cut.precision) == (np.float32(0.8), pytest.approx(2 / 3))
    assert cut.misses_its_target
    assert "no cut reaches it that keeps 30 candidates or more of the 1 held-out cases" in cut.no_guarantee


def test_a_precision_that_no_cut_has_takes_the_highest_there_is_and_says_so():
    # from .9: 0 of 1; .8: 1 of 2; .7: 1 of 3; .6: 2 of 4, the lowest with 1/2, and the only target is one of 3 found
    probabilities = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], dtype=np.float32)
    positive = np.array([False, True, False, True, False, False, True])
    rows = Ragged.from_lengths(np.arange(7), np.array([4, 3]))
    # seven candidates say too little, so all of them are counted on: 3 of 7
    few = choose_cut(ThresholdConfig("precision", 0.5), probabilities, positive, rows)
    assert (few.least_probability, few.precision) == (np.float32(0.3), pytest.approx(3 / 7))
    assert "no cut reaches it that keeps 7 candidates or more of the 2 held-out cases" in few.no_guarantee
    reachable = choose_cut(ThresholdConfig("precision", 0.4), probabilities, positive, rows)
    assert (reachable.mean_kept, reachable.misses_its_target) == (3.5, False)
    # of a hundred times as many the cut that keeps half the candidates at 1/2
    many = Ragged.from_lengths(np.arange(700), np.array([400, 300]))
    asked = choose_cut(
        ThresholdConfig("precision", 0.75), np.repeat(probabilities, 100), np.repeat(positive, 100), many
    )
    assert asked.misses_its_target
    assert (asked.least_probability, asked.precision) == (np.float32(0.6), 0.5)
    said = "0.75 was asked for, and no cut reaches it that keeps 30 candidates or more of the 2 held-out cases: the "
    assert f"{said}highest that can be told is 0.5, at " in asked.sentence()
    assert said in asked.no_guarantee


@given(some_lists, st.floats(0.01, 1), st.sampled_from([1, 4, 30]))
def test_target_precision_equals_trying_every_cut_that_can_tell(pairs, target, times):
    probabilities, positive, rows = _repeated(*_packed(pairs)[:2], times)
    kept = {level: probabilities >= level for level in probabilities}
    telling = [level for level in kept if kept[level].sum() >= min(30, len(probabilities))]
    precision = {level: positive[kept[level]].mean() for level in telling}
    reaching = [level for level, value in precision.items() if value >= target - 1e-12]
    cut = choose_cut(ThresholdConfig("precision", target), probabilities, positive, rows)
    if reaching:
        assert cut.least_probability == min(reaching)
    else:
        assert cut.misses_its_target
        best = max(precision.values())
        assert cut.least_probability == min(level for level in telling if precision[level] >= best - 1e-9)


# ------------------------------------------------------------- expected value


def test_expected_value_needs_no_targets():
    cut = choose_cut(ThresholdConfig("expected_value", gain=10, cost=4), PROBABILITIES, np.zeros(6, dtype=bool), ROWS)
    assert cut.mean_kept == 2.0  # .9 .8 .8 .4 in two cases: .4 is a hair above in float32
    assert cut.value == 0.4
    exact = np.where(PROBABILITIES == np.float32(0.4), np.float32(0.5), PROBABILITIES)  # .5 × 10 is 5, no more
    assert choose_cut(ThresholdConfig("expected_value", gain=10, cost=5), exact, POSITIVE, ROWS).mean_kept == 1.5


def test_what_is_earned_from_a_share_of_lists_alone_must_pay_for_all_of_them():
    # .8 × 10 × .5 = 4 is less than the cost, which all lists pay: .9 alone is kept, in one of two lists
    rule = ThresholdConfig("expected_value", gain=10, cost=4.2, take_rate=0.5)
    cut = choose_cut(rule, PROBABILITIES, POSITIVE, ROWS)
    assert (cut.mean_kept, cut.value) == (0.5, pytest.approx(0.84))
    assert cut_as_set(None, rule, None).least_probability == cut.least_probability
    assert choose_cut(replace(rule, take_rate=1.0), PROBABILITIES, POSITIVE, ROWS).mean_kept == 1.5


@given(st.floats(1e-3, 1e6), st.floats(0, 1, exclude_max=True), st.floats(0, 1, width=32))
def test_what_is_kept_is_worth_more_than_it_costs(gain, share, probability):
    cost = share * gain
    if cost < gain:
        for p in (np.float32(probability), np.float32(share), np.nextafter(np.float32(share), np.float32(2))):
            assert (p >= np.float32(least_profitable(gain, cost))) == (float(p) * gain > cost)


# ------------------------------------------------------------------ risk


def shop(n_cases, seed=0, length=20, skill=3.0):
    """Lists with one target each and probabilities that tell it apart."""
    rng = np.random.default_rng(seed)
    positive = np.zeros((n_cases, length), dtype=bool)
    positive[np.arange(n_cases), rng.integers(0, length, n_cases)] = True
    odds = np.exp(rng.normal(-4, 1, positive.shape) + skill * positive)
    rows = Ragged.from_lengths(np.arange(positive.size), np.full(n_cases, length))
    return (odds / (1 + odds)).ravel().astype(np.float32), positive.ravel(), rows


@pytest.mark.parametrize(
    ("risk", "alpha"), [("missed_target", 0.1), ("false_positives", 0.1), ("false_discovery", 0.5)]
)
def test_the_risk_rule_takes_the_last_level_that_passes(risk, alpha):
    probabilities, positive, rows = shop(800)
    cut = choose_cut(ThresholdConfig("risk", risk=risk, alpha=alpha, delta=0.05), probabilities, positive, rows)
    levels = risk_levels()
    losses, n = mean_losses(risk, probabilities, positive, rows, levels)
    place = int(control_risk(risk, losses, n, alpha, 0.05))
    assert cut.least_probability == levels[place]
    assert 0 < cut.mean_kept < 20
    guarantee = cut.guarantee
    assert (guarantee.risk, guarantee.alpha, guarantee.delta) == (risk, alpha, 0.05)
    # the loss on these very cases, from what is kept
    kept = (probabilities >= np.float32(cut.least_probability)).reshape(800, 20)
    hit = positive.reshape(800, 20)
    wrong = (kept & ~hit).sum(axis=1)
    loss = {
        "missed_target": ~(kept & hit).any(axis=1),
        "false_positives": wrong / 20,
        "false_discovery": (wrong / np.maximum(kept.sum(axis=1), 1))[kept.any(axis=1)],  # of lists that show some
    }[risk]
    assert guarantee.n_cases == len(loss)
    assert guarantee.observed_risk == pytest.approx(loss.mean())
    assert loss.mean() < alpha
    assert cut.no_guarantee == ""
    assert "guaranteed: with probability at least 0.95" in cut.sentence()


def test_a_stricter_delta_or_alpha_never_cuts_deeper():
    probabilities, positive, rows = shop(600)

    def cut(risk, alpha, delta):
        rule = ThresholdConfig("risk", risk=risk, alpha=alpha, delta=delta)
        return choose_cut(rule, probabilities, positive, rows).least_probability

    assert cut("missed_target", 0.1, 0.01) < cut("missed_target", 0.1, 0.2) < cut("missed_target", 0.2, 0.2)
    assert cut("false_positives", 0.1, 0.01) > cut("false_positives", 0.1, 0.2) > cut("false_positives", 0.2, 0.2)


def test_twenty_cases_are_too_few_and_it_is_said():
    probabilities, positive, rows = shop(20)
    # .9^20 = .12 > .1: not even keeping everything can be shown to miss at most a tenth
    cut = choose_cut(ThresholdConfig("risk"), probabilities, positive, rows)
    assert (cut.guarantee, cut.least_probability, cut.mean_kept) == (None, 0.0, 20.0)
    assert "on 20 cases, so everything is kept" in cut.no_guarantee
    assert cut.no_guarantee in cut.sentence()
    cut = choose_cut(ThresholdConfig("risk", risk="false_positives"), probabilities, positive, rows)
    assert (cut.guarantee, cut.mean_kept, cut.recall) == (None, 0.0, 0.0)
    assert np.isnan(cut.precision)
    assert "so nothing is kept" in cut.no_guarantee
    # a looser alpha finds a cut, but no promise
    cut = choose_cut(ThresholdConfig("risk", alpha=0.4), probabilities, positive, rows)
    assert cut.guarantee is None
    assert 0 < cut.least_probability
    assert "chosen on 20 cases with a retrieved target, fewer than the 300" in cut.no_guarantee
    kept = (probabilities >= np.float32(cut.least_probability)) & positive
    missed = 1 - kept.sum() / 20  # each list has one target
    assert f"on these, the share of lists of which no retrieved target is kept is {missed:.4g}" in cut.no_guarantee
    for rule, value in (("recall", 0.9), ("precision", 0.05), ("f_beta", 1.0), ("probability", 0.1)):
        assert choose_cut(ThresholdConfig(rule, value), probabilities, positive, rows).n_cases == 20


def test_three_hundred_retrieved_cases_are_enough_and_one_fewer_is_not():
    probabilities, positive, rows = shop(301)
    last = np.arange(300 * 20, 301 * 20)
    for n_lost, given_one in ((1, True), (2, False)):
        lost = probabilities.copy()
        lost[last[-20 * n_lost :] if n_lost == 1 else np.arange(299 * 20, 301 * 20)] = np.nan
        cut = choose_cut(ThresholdConfig("risk", alpha=0.2), lost, positive, rows)
        assert (cut.guarantee is not None) == given_one
    assert choose_cut(ThresholdConfig("risk", alpha=0.2), probabilities, positive, rows).guarantee.n_cases == 301


# ------------------------------------------------------- odd probabilities


RULES = (
    ThresholdConfig("probability", 0.3),
    ThresholdConfig("f_beta", 1.0),
    ThresholdConfig("recall", 0.8),
    ThresholdConfig("precision", 0.05),
    ThresholdConfig("expected_value", gain=2, cost=0.5),
    ThresholdConfig("risk", alpha=0.2),
    ThresholdConfig("risk", risk="false_positives", alpha=0.2),
    ThresholdConfig("risk", risk="false_discovery", alpha=0.6),
)


def _name(rule):
    return f"{rule.rule} {rule.risk}" if rule.rule == "risk" else rule.rule


@pytest.mark.parametrize("rule", RULES, ids=_name)
def test_constant_probabilities_are_kept_or_cut_together(rule):
    _, positive, rows = shop(400)
    constant = np.full(len(positive), 0.4, dtype=np.float32)
    cut = choose_cut(rule, constant, positive, rows)
    kept = constant >= np.float32(cut.least_probability)
    # one wrong in 20 each: only what bounds the wrong ones keeps nothing
    assert kept.all() != (_name(rule) in ("risk false_positives", "risk false_discovery"))
    assert kept.any() == kept.all()


@pytest.mark.parametrize("rule", RULES, ids=_name)
def test_targets_alone(rule):
    probabilities, _, rows = shop(400)
    cut = choose_cut(rule, probabilities, np.ones(len(probabilities), dtype=bool), rows)
    assert cut.precision == 1.0
    if _name(rule) in ("precision", "risk false_positives", "risk false_discovery"):
        assert cut.recall > 0.999  # nothing can go wrong; the risk's lowest level is 1e-6


@pytest.mark.parametrize("rule", RULES, ids=_name)
def test_no_target_at_all(rule):
    probabilities, positive, rows = shop(400)
    needs = rule.rule in ("f_beta", "recall", "precision") or _name(rule) == "risk missed_target"
    nothing = np.zeros_like(positive)
    if needs:
        with pytest.raises(DataError, match="needs retrieved targets among the held-out cases and there are 0"):
            choose_cut(rule, probabilities, nothing, rows)
        with pytest.raises(DataError, match="there are 0"):  # the targets' probabilities are unknown
            choose_cut(rule, np.where(positive, np.nan, probabilities).astype(np.float32), positive, rows)
        with pytest.raises(DataError, match="there are 0"):
            choose_cut(rule, np.full(len(positive), np.nan, dtype=np.float32), positive, rows)
    else:
        cut = choose_cut(rule, probabilities, nothing, rows)
        assert cut.guarantee is None
        assert np.isnan(cut.recall)


@pytest.mark.parametrize("rule", RULES, ids=_name)
def test_unknown_probabilities_change_nothing_but_the_lists_lengths(rule):
    probabilities, positive, rows = shop(400)
    cut = choose_cut(rule, probabilities, positive, rows)
    wide = np.full((400, 40), np.nan, dtype=np.float32)
    wide[:, :20] = probabilities.reshape(400, 20)
    targets = np.zeros((400, 40), dtype=bool)
    targets[:, :20] = positive.reshape(400, 20)
    lists = Ragged.from_lengths(np.arange(16_000), np.full(400, 40))
    padded = choose_cut(rule, wide.ravel(), targets.ravel(), lists)
    if _name(rule) == "risk false_positives":  # a share of the list, which is twice as long
        assert padded.least_probability < cut.least_probability
    else:
        assert padded == cut


# ----------------------------------------------------------------- together


@settings(deadline=None)
@given(some_lists, st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_a_raised_threshold_never_lets_more_in(pairs, one, other):
    probabilities, positive, rows = _packed(pairs)
    low, high = sorted((max(one, 1e-6), max(other, 1e-6)))
    loose, tight = (
        choose_cut(ThresholdConfig("probability", value), probabilities, positive, rows) for value in (low, high)
    )
    kept_loose, kept_tight = (probabilities >= np.float32(cut.least_probability) for cut in (loose, tight))
    assert (kept_tight <= kept_loose).all()
    assert tight.mean_kept <= loose.mean_kept
    # dearer items: fewer of them
    dear, cheap = (least_profitable(1.0, cost) for cost in (high * 0.99, low * 0.99))
    assert ((probabilities >= np.float32(dear)) <= (probabilities >= np.float32(cheap))).all()
    # a greater share of targets found: more items
    wanted = sorted((low, high))
    few, many = (
        choose_cut(ThresholdConfig("recall", share), probabilities, positive, rows).least_probability
        for share in wanted
    )
    assert many <= few


@settings(deadline=None)
@given(some_lists, st.integers(1, 12))
def test_the_curve_holds_what_a_fixed_probability_would_do(pairs, n_points):
    probabilities, positive, rows = _packed(pairs)
    curve = cut_curve(probabilities, positive, rows, n_points)
    assert {len(values) for values in curve.values()} == {len(curve["recall"])}
    assert 1 <= len(curve["recall"]) <= n_points
    for least, *values in zip(*curve.values(), strict=True):
        kept = probabilities >= np.float32(least)
        expected = [positive[kept].mean(), positive[kept].sum() / positive.sum(), kept.sum() / len(rows)]
        assert values == pytest.approx(expected)
    assert (np.diff(curve["mean_kept"]) > 0).all()
    if n_points > 1:
        assert (curve["recall"][-1], curve["mean_kept"][-1]) == (1.0, len(probabilities) / len(rows))
    assert json.loads(json.dumps(curve)) == curve


def test_without_targets_there_is_no_curve():
    empty = {"least_probability": [], "precision": [], "recall": [], "mean_kept": []}
    assert cut_curve(PROBABILITIES, np.zeros(6, dtype=bool), ROWS) == empty
    assert cut_curve(np.full(6, np.nan, dtype=np.float32), POSITIVE, ROWS) == empty


@pytest.mark.parametrize("rule", RULES, ids=_name)
def test_json_keeps_a_cut(rule):
    cut = choose_cut(rule, *shop(400))
    assert Cut.from_dict(json.loads(json.dumps(cut.to_dict()))) == cut
    assert (cut.guarantee is None) == (rule.rule != "risk")


def test_a_cut_saved_before_there_were_guarantees_has_none():
    cut = choose_cut(ThresholdConfig("recall", 0.5), PROBABILITIES, POSITIVE, ROWS)
    old = {name: value for name, value in cut.to_dict().items() if name not in ("guarantee", "no_guarantee")}
    assert Cut.from_dict(old) == cut
    assert cut.guarantee is None
    assert "an estimate" in cut.no_guarantee


def test_a_guarantee_of_false_discovery_as_it_was_defined_before_is_taken_back():
    cut = choose_cut(ThresholdConfig("risk", risk="false_discovery", alpha=0.6), *shop(800))
    assert cut.guarantee is not None and Cut.from_dict(cut.to_dict()) == cut
    before = cut.to_dict()
    before["guarantee"]["conditional_on"] = "lists exchangeable with the held-out ones (users, candidates and targets)"
    old = Cut.from_dict(before)
    assert (old.guarantee, old.least_probability) == (None, cut.least_probability)
    assert "counted lists of which nothing is kept as right; fit again" in old.no_guarantee


@pytest.mark.parametrize("n_cases", [20, 400])
def test_another_risk_or_delta_than_the_fits_is_another_rule_with_a_guarantee_or_without(n_cases):
    rule = ThresholdConfig("risk", risk="false_positives", alpha=0.2, delta=0.1)
    cut = choose_cut(rule, *shop(n_cases))
    assert (cut.guarantee is not None) == (n_cases == 400)
    assert cut_as_set(cut, rule, rule) is cut
    for other in (replace(rule, risk="false_discovery"), replace(rule, delta=0.01)):
        with pytest.raises(DataError, match=r"the fit's cut .*'risk' \(false_positives, alpha 0.2, delta 0.1\): fit"):
            cut_as_set(cut, other, rule)


def useless_lists():
    """800 lists of ten with one target each, which the probabilities do not tell apart."""
    rng = np.random.default_rng(0)
    rows = Ragged.from_lengths(np.zeros(8_000, dtype=np.int64), np.full(800, 10))
    positive = np.zeros(8_000, dtype=np.bool_)
    positive[np.arange(800) * 10 + rng.integers(0, 10, 800)] = True
    return rng.uniform(0.001, 0.02, 8_000).astype(np.float32), positive, rows


def test_a_guarantee_that_holds_because_nothing_is_kept_says_so():
    # nine in ten are wrong: a list of ten may keep none of them
    rule = ThresholdConfig("risk", risk="false_positives", alpha=1e-3, delta=0.5)
    cut = choose_cut(rule, *useless_lists())
    assert (cut.mean_kept, cut.guarantee is not None) == (0, True)
    assert "only because nothing is kept" in cut.sentence()
    some = choose_cut(ThresholdConfig("risk", alpha=0.4, delta=0.1), *useless_lists())
    assert some.mean_kept > 0
    assert some.vacuous == ""


def test_empty_lists_do_not_make_the_shown_ones_look_right():
    # no cut has a tenth of its items wrong, however few lists it leaves anything of
    cut = choose_cut(ThresholdConfig("risk", risk="false_discovery", alpha=0.1, delta=0.1), *useless_lists())
    assert (cut.mean_kept, cut.guarantee) == (0, None)
    assert "no cut could be shown to hold alpha 0.1 at delta 0.1 on 800 cases, so nothing is kept" in cut.no_guarantee
    loose = choose_cut(ThresholdConfig("risk", risk="false_discovery", alpha=0.95, delta=0.1), *useless_lists())
    assert loose.guarantee.observed_risk == pytest.approx(0.9, abs=0.02)
