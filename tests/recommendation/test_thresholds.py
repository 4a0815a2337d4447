"""Cut-off rules: by hand, and against trying every cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_rerank.config import ThresholdConfig
from llm_rerank.recommendation.thresholds import Cut, bounded_kept, choose_cut
from llm_rerank.types import DataError, Ragged

PROBABILITIES = np.array([0.9, 0.8, 0.8, 0.4, 0.1, np.nan], dtype=np.float32)
POSITIVE = np.array([True, False, True, False, True, False])
ROWS = Ragged.from_lengths(np.arange(6), np.array([3, 3]))


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


@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=25).filter(
        lambda pairs: any(hit for _, hit in pairs)
    ),
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_best_f_beta_equals_trying_every_cut(pairs, beta):
    probabilities = np.array([level / 8 for level, _ in pairs], dtype=np.float32)
    positive = np.array([hit for _, hit in pairs])
    rows = Ragged.from_lengths(np.arange(len(pairs)), np.array([len(pairs)]))
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
    kept, ranks = np.array([False, False, True, False]), np.array([2, 1, 3, 4])
    assert bounded_kept(kept, ranks, min_items=1, max_items=None).tolist() == [False, True, True, False]
    assert bounded_kept(kept, ranks, min_items=2, max_items=2).tolist() == [True, True, False, False]


def test_bad_settings_name_value_and_rule():
    for rule, value, words in (("recall", 1.5, "1.5"), ("f_beta", 0.0, "above 0"), ("probability", 0.0, r"\(0, 1\]")):
        with pytest.raises(DataError, match=words):
            ThresholdConfig(rule, value)
    with pytest.raises(DataError, match="must be one of"):
        ThresholdConfig("top", 0.1)


def test_json_keeps_a_cut():
    cut = choose_cut(ThresholdConfig("recall", 0.5), PROBABILITIES, POSITIVE, ROWS)
    assert Cut.from_dict(cut.to_dict()) == cut
