"""The estimate of a fit's time, held to the fits whose steps are in the committed reports; nothing is fitted here."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from llm_rerank.data.schema import validate_interactions, validate_items
from llm_rerank.models.semantic.cache import CachedEncoder
from llm_rerank.recommendation.estimate import (
    LEAST_LIST_USERS,
    FitWork,
    estimate_fit_seconds,
    sample_of_texts,
)
from llm_rerank.recommendation.specs import default_specs
from tests.shops import make_shop

REPORTS = sorted((Path(__file__).parents[2] / "benchmarks" / "results" / "ranking").glob("*.json"))
FINE_TUNING = "cross-encoder fine-tuning"
CROWDED = ("e00e489",)
"""Reports of runs that shared two cores with three other jobs and do not tell: README has the seconds of both."""

LEAST_SAID = 10.0  # seconds; nothing shorter is said


class AnyEncoder:
    """Stands where only the presence of an encoder counts."""


def number(pattern, text):
    return int(re.search(pattern, text).group(1).replace(",", ""))


def recorded(said):
    """One fit's work and the seconds of its steps, from what it said; None where a step was left by an earlier fit."""
    text = "\n".join(said)
    plan = next(line for line in said if line.startswith("plan: ") and "components" in line)
    steps = {name: float(s) for name, s in re.findall(r"([a-z][a-z_ -]*) ([\d.]+)[,)]", said[-1].split("(", 1)[1])}
    if steps.get(FINE_TUNING, 100.0) < 20.0:  # a checkpoint in the cache folder
        return None
    if "states of 0 texts" in text:  # all kept by an earlier fit: how fast this machine reads is not said
        return None
    n_items = number(r"on ([\d,]+) items", plan)
    parts = {part for part in ("sequence", "semantic") if f"{part} where it pays" in plan}
    specs = default_specs(n_items, encoder=AnyEncoder(), text="text_ease" in plan)
    specs = [spec for spec in specs if spec.name != "lexical" and (spec.part is None or spec.part in parts)]
    peeled = re.search(r"cross-encoder: ([\d,]+) users' last items", text)
    reading = re.search(r"about (\d+) s to read", text)
    work = FitWork(
        specs,
        n_events=number(r"plan: ([\d,]+) events", plan),
        n_users=number(r"of ([\d,]+) users on", plan),
        n_items=n_items,
        n_held_out=number(r"protocol \w+: .*?([\d,]+) (?:users|of [\d,]+ users)", text),
        n_list_users=int(peeled.group(1).replace(",", "")) if peeled else 0,
        refit="then a refit" in plan,
        # what is said is the lower layers alone, half of it; older reports do not say it
        read_s=2 * int(reading.group(1)) / n_items if reading else 0.016,
        n_steps=300 if "a cross-encoder" in plan else 0,
    )
    return work, steps


def is_crowded(report):
    """Whether the machine had much else to do: the seconds tell of the crowd."""
    hardware = report["hardware"]
    loads = [hardware.get(f"load_at_{time}") or 0 for time in ("start", "end")]  # the end is told by later reports
    return max(loads) > 1.5 * hardware["cores"] or report["commit"] in CROWDED


def fits():
    for path in REPORTS:
        report = json.loads(path.read_text())
        if is_crowded(report):
            continue
        for name, system in report["systems"].items():
            found = recorded(system["fit_said"]) if "fit_said" in system else None
            if found is not None:
                yield pytest.param(*found, id=f"{path.stem}-{name}")


@pytest.mark.parametrize(("work", "steps"), list(fits()))
def test_every_recorded_fit_took_within_a_factor_of_two_of_the_estimate(work, steps):
    """Without reading and encoding: the encoder is measured then, and these fits had their vectors in a cache."""
    estimated = {name: value for name, value in work.step_seconds().items() if name not in ("read", "encode")}
    taken = max(sum(value for name, value in steps.items() if name != "read"), LEAST_SAID)
    said = max(sum(estimated.values()), LEAST_SAID)
    assert taken / 2 <= said <= taken * 2, (said, taken, estimated, steps)


@pytest.mark.parametrize(("work", "steps"), list(fits()))
def test_the_dear_steps_are_estimated_one_by_one(work, steps):
    """A step that took at least half a minute lies within a factor of three, so that no error hides another."""
    estimated = work.step_seconds()
    estimated["components"] += estimated["encode"]
    single = ("ease", "text_ease", "als", "item_knn", "sequence", "semantic", "recent_popularity")
    taken = {"components": sum(steps.get(name, 0.0) for name in single)}
    taken |= {name: value for name, value in steps.items() if name in estimated and name not in ("read", *single)}
    for name, value in taken.items():
        if value >= 30:
            assert value / 3 <= estimated[name] <= value * 3, (name, value, estimated[name])


def test_there_are_fits_of_every_size_to_hold_it_to():
    assert len(list(fits())) >= 10


def work_of(**changes):
    given = {
        "n_events": 50_000,
        "n_users": 5_000,
        "n_items": 3_000,
        "n_held_out": 1_500,
        "n_list_users": 900,
        "refit": False,
    }
    return FitWork(**{"specs": default_specs(3_000, encoder=None), **given, **changes})


def test_more_work_takes_longer():
    plain = work_of().seconds()
    assert work_of(refit=True).seconds() > plain
    assert work_of(n_events=500_000).seconds() > plain
    assert work_of(specs=default_specs(3_000, encoder=AnyEncoder())).seconds() > plain
    assert work_of(encode_s=100.0).seconds() == pytest.approx(plain + 100)


def test_fine_tuning_stops_by_itself_and_needs_lists():
    plain = work_of().seconds()
    few, usual, most = (work_of(read_s=0.01, n_steps=n).step_seconds()[FINE_TUNING] for n in (15, 150, 300))
    assert usual == most == pytest.approx(10 * few)
    assert work_of(read_s=0.01, n_steps=300).seconds() > plain + most
    thin = {"n_list_users": LEAST_LIST_USERS - 1}
    assert work_of(read_s=0.01, n_steps=300, **thin).seconds() == work_of(**thin).seconds()


class SlowEncoder:
    """Half a millisecond a character, and two seconds for the first text."""

    embedding_size, fingerprint, description = 2, "slow", "slow encoder"

    def __init__(self):
        self.cold = True

    def encode(self, inputs):
        time.sleep(2.0 * self.cold + 5e-4 * sum(map(len, inputs)))
        self.cold = False
        return np.ones((len(inputs), 2), dtype=np.float32)


def estimated(encoder, steps=0):
    events_frame, items_frame = make_shop(n_users=60)
    items = validate_items(items_frame)
    events = validate_interactions(events_frame.assign(review=""), items)
    specs = default_specs(len(items), encoder=None)
    seconds = estimate_fit_seconds(events, items, specs, encoder, refit=True, fine_tune_steps=steps, seed=0)
    return seconds, sample_of_texts(events, items)


def test_texts_are_encoded_once_and_not_again_where_they_are_remembered():
    without, _ = estimated(None)
    cold, texts = estimated(SlowEncoder())
    encoded = 5e-4 * sum(map(len, texts))  # without reviews a refit reads the same texts
    measured = 2.0 + encoded * 48 / len(texts)  # to take the measure takes time too
    assert without + measured + 0.9 * encoded < cold < without + measured + 1.3 * encoded + 0.5
    encoder = CachedEncoder(SlowEncoder())
    encoder.encode(texts)
    assert estimated(encoder)[0] < without + measured - 2.0 + 0.3 * encoded  # its weights are loaded
    half = CachedEncoder(SlowEncoder())
    half.encode(texts[::2])
    least = without + measured - 2.0 + 0.4 * encoded
    assert least < estimated(half)[0] < least + 0.4 * encoded + 0.5
