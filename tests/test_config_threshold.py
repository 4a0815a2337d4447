"""Threshold rules from the outside: what may be given, what is refused and how, JSON, and the words of the command."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest

from llm_rerank.config import RerankerConfig, ThresholdConfig
from llm_rerank.options import threshold_rule
from llm_rerank.types import DataError

GOOD = {
    "probability=0.02": ThresholdConfig("probability", 0.02),
    "f_beta=2": ThresholdConfig("f_beta", 2.0),
    "recall=0.8": ThresholdConfig("recall", 0.8),
    "precision=0.1": ThresholdConfig("precision", value=0.1),
    "expected_value,gain=30,cost=0.5": ThresholdConfig("expected_value", gain=30, cost=0.5),
    "expected_value,gain=30,cost=0.5,take_rate=0.1": ThresholdConfig(
        "expected_value", gain=30, cost=0.5, take_rate=0.1
    ),
    "expected_value,cost=0": ThresholdConfig("expected_value", cost=0.0),
    "risk": ThresholdConfig("risk"),
    "risk=false_positives, alpha=0.05, delta=0.2": ThresholdConfig(
        "risk", risk="false_positives", alpha=0.05, delta=0.2
    ),
    "risk,risk=false_discovery": ThresholdConfig("risk", risk="false_discovery"),
}


@pytest.mark.parametrize(("words", "config"), GOOD.items(), ids=GOOD)
def test_rules_are_read_from_the_command_and_survive_json(words, config):
    assert threshold_rule(words) == config
    settings = RerankerConfig(threshold=config)
    assert RerankerConfig.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_any_real_number_is_a_number_and_survives_json():
    for number in (np.float32(0.5), np.float64(0.5), Fraction(1, 2)):
        config = ThresholdConfig("recall", number)
        assert config == ThresholdConfig("recall", 0.5)
        assert json.loads(json.dumps(RerankerConfig(threshold=config).to_dict()))["threshold"]["value"] == 0.5
    assert ThresholdConfig("f_beta", np.int64(2)).value == 2
    assert ThresholdConfig("risk", alpha=np.float32(0.25)).alpha == 0.25
    with pytest.raises(DataError, match="must be a number in"):
        ThresholdConfig("recall", np.float32("nan"))


def test_no_words_are_no_rule():
    assert threshold_rule(None) is None


def test_settings_saved_before_there_were_more_rules_are_read():
    old = {"threshold": {"rule": "recall", "value": 0.9}}
    assert RerankerConfig.from_dict(old).threshold == ThresholdConfig("recall", 0.9)


BAD = {
    "unknown rule": (("top", 0.1), {}, "'top'; it must be one of probability, "),
    "no number": (("recall",), {}, r"'recall' has value None; it must be a number in \(0, 1\]"),
    "recall above 1": (("recall", 1.5), {}, "value 1.5"),
    "probability 0": (("probability", 0.0), {}, r"value 0.0; it must be a number in \(0, 1\]"),
    "precision 0": (("precision", 0), {}, "'precision' has value 0"),
    "precision NaN": (("precision", math.nan), {}, "value nan"),
    "beta 0": (("f_beta", 0.0), {}, "value 0.0; it must be a number above 0"),
    "beta infinite": (("f_beta", math.inf), {}, "value inf"),
    "words for a number": (("recall", "0.8"), {}, "value '0.8'"),
    "a truth for a number": (("recall", True), {}, "value True"),
    "alpha 0": (("risk",), {"alpha": 0}, "alpha 0; it must be a number strictly between 0 and 1"),
    "alpha 1": (("risk",), {"alpha": 1.0}, "alpha 1.0"),
    "alpha NaN": (("risk",), {"alpha": math.nan}, "alpha nan"),
    "delta below 0": (("risk",), {"delta": -0.1}, "delta -0.1; it must be a number strictly between 0 and 1"),
    "delta 1": (("risk",), {"delta": 1}, "delta 1"),
    "unknown risk": (("risk",), {"risk": "regret"}, "risk is 'regret'; it must be one of missed_target, "),
    "no cost": (("expected_value",), {"gain": 3.0}, "'expected_value' has cost None"),
    "cost below 0": (("expected_value",), {"cost": -1}, "cost -1"),
    "cost NaN": (("expected_value",), {"cost": math.nan}, "cost nan"),
    "gain 0": (("expected_value",), {"gain": 0, "cost": 0}, "gain 0; it must be a number above 0"),
    "gain infinite": (("expected_value",), {"gain": math.inf, "cost": 1}, "gain inf"),
    "cost of the gain": (("expected_value",), {"gain": 2, "cost": 2}, "gain 2 and cost 2.*cost must be below gain"),
    "take rate above 1": (("expected_value",), {"cost": 0.1, "take_rate": 10}, r"take_rate 10; .*in \(0, 1\]"),
    "cost of the rare gain": (
        ("expected_value",),
        {"gain": 30, "cost": 0.5, "take_rate": 0.01},
        "gain 30 × take_rate 0.01 and cost 0.5",
    ),
    "take rate of another rule": (("recall", 0.8), {"take_rate": 0.2}, "has take_rate 0.2, which it does not read"),
    "alpha of another rule": (("recall", 0.8), {"alpha": 0.2}, "'recall' has alpha 0.2, which it does not read"),
    "cost of another rule": (("risk",), {"cost": 0.0}, "has cost 0.0, which it does not read; give only risk, alpha,"),
    "value of another rule": (("risk", 0.1), {}, "has value 0.1, which it does not read"),
    "value NaN of another rule": (("expected_value", math.nan), {"cost": 0.1}, "has value nan, which"),
    "risk of another rule": (("precision", 0.1), {"risk": "false_discovery"}, "has risk 'false_discovery', which"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused_with_value_and_rule(name):
    positional, named, words = BAD[name]
    with pytest.raises(DataError, match=words):
        ThresholdConfig(*positional, **named)


@pytest.mark.parametrize(
    ("words", "said"),
    {
        "recall": "--threshold is 'recall': .*has value None",
        "recall=most": "--threshold is 'recall=most': write a rule and its numbers",
        "median=1": "must be one of probability, f_beta, recall, precision, expected_value, risk",
        "risk,alpha=1": "has alpha 1.0",
        "risk,beta=1": "there is no 'beta'; known: gain, cost, take_rate, risk, alpha, delta",
        "risk=regret": "risk is 'regret'",
        "recall=0.8,alpha=0.2": "'recall' has alpha 0.2, which it does not read",
        "": "--threshold is ''",
    }.items(),
)
def test_words_that_make_no_rule_are_quoted(words, said):
    with pytest.raises(DataError, match=said):
        threshold_rule(words)


WRONG_KINDS = {
    "a rule as text": ({"threshold": "recall"}, "threshold is 'recall'; it must be a ThresholdConfig"),
    "a number as text": ({"max_items": "3"}, "max_items is '3'; it must be a whole number of at least 1"),
    "half an item": ({"max_items": 2.5}, "max_items is 2.5; it must be a whole number"),
    "no number": ({"max_items": math.nan}, "max_items is nan; it must be a whole number"),
    "a seed below 0": ({"seed": -1}, "seed is -1; it must be a whole number of at least 0"),
    "no seed": ({"seed": None}, "seed is None; it must be a whole number"),
    "a rating as text": ({"min_rating": "x"}, "min_rating is 'x'; it must be a number, or None"),
    "an endless rating": ({"min_rating": math.inf}, "min_rating is inf; it must be a finite number"),
    "a word for a truth value": ({"refit": "no"}, "refit is 'no'; it must be True or False"),
    "an encoder by number": ({"encoder": 5}, "encoder is 5; it must be a folder or hub name"),
    "one kind of event": ({"target_events": "purchase"}, "target_events is 'purchase'; it must be a tuple"),
}


@pytest.mark.parametrize("name", WRONG_KINDS)
def test_settings_of_a_wrong_kind_are_refused_before_the_fit(name):
    settings, message = WRONG_KINDS[name]
    with pytest.raises(DataError) as error:
        RerankerConfig(**settings)
    assert message in str(error.value)


def test_numbers_that_floats_cannot_multiply_are_refused():
    for arguments in (("f_beta", 1e200), ("expected_value",)):
        with pytest.raises(DataError, match="it must be a number above"):
            ThresholdConfig(*arguments, **({} if arguments[1:] else {"gain": 1e-320, "cost": 0}))
