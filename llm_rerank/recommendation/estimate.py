"""How long a fit will take, from counts and one quick measurement of the encoder: right within a factor of about two.

Rates are seconds of one CPU core, read off the fits whose steps are in the committed reports of ``benchmarks.ranking``
(a test holds them to those); the encoder's rates are measured where the estimate is made, on the texts at hand. Not
counted on: a fine-tuning that an earlier fit left in the cache folder, and states that it kept there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llm_rerank.data.rendering import Renderer
from llm_rerank.recommendation.guard import LEAST_CASES_FOR_BLEND
from llm_rerank.recommendation.holdout import plan_holdout
from llm_rerank.recommendation.log import FitLog
from llm_rerank.recommendation.specs import PARTS, ComponentSpec, in_use
from llm_rerank.recommendation.training_lists import list_targets
from llm_rerank.types import UNKNOWN, Encoder, Interactions, Items

MOST_REVIEWS_READ = 20_000
"""Newest reviews whose sentiment is read with the encoder; older ones count through their ratings only."""

MOST_TEXTS_RENDERED = 2_000
TEXTS_MEASURED = 48
WARM_UP = "a text to load the weights with"
SHORT_CHARACTERS = 140
"""About the 32 tokens of an item that the cross-encoder reads."""

START_S = 2.0  # imports and reading
SECONDS_PER_EVENT = 2e-6  # sorting, histories, features
SECONDS_PER_SQUARED_ITEM = 5e-8  # text kernel and Gram matrix
SECONDS_PER_CUBED_ITEM = 1.4e-11  # one inverse of items × items
SECONDS_PER_PAIR_OF_EASE, SECONDS_PER_PAIR_OF_KNN = 2.8e-8, 7e-8  # two events of one user
ALS_S, ALS_SECONDS_PER_EVENT, ALS_SECONDS_PER_ROW = 0.4, 7e-6, 1e-4  # a row: of the users or of the items
NETS_S, SECONDS_PER_CELL_OF_NETS = 1.0, 1.4e-7  # an event against an item: three nets, three epochs, both directions
MOST_CELLS = 2e8  # of an epoch; nets draw rows above that
COMPONENT_S = 0.2  # whatever else one is
SECONDS_PER_SCORE = 8e-8  # one score of one item for one user by one component, ranking included
MOST_CASES_FOR_TUNING = 1_000
FUSION_S, FUSION_SECONDS_PER_USER = 2.7, 3e-3  # the first blend, cross-validated; half of the held-out users are in it
HELD_OUT_A_CASE = 2.5  # one half chooses, and not every target is retrieved
FUSION_GROWTH = 1.4  # each further part is tried with all columns of those before it

LEAST_LIST_USERS = 100  # fewer leave too few lists to fine-tune on
USUAL_STEPS = 150  # early stopping seldom goes on for longer
FEW_LIST_USERS, STEPS_ON_FEW = 500, 90  # on a hundred lists it overfits sooner
STEP_S, TEXTS_A_STEP = 0.2, 400  # items of a step, drawn with repeats
STEP_READS = 0.65  # a reading's time for each of them: upper layers only, there and back
KEPT_SHARE = 0.5  # of a reading's time: the lower layers, read once for all items


@dataclass(frozen=True)
class FitWork:
    """What a fit has to do. n_held_out: users whose targets are held out. n_steps: of fine-tuning at most; 0: none.

    n_list_users: whose last item in the past may make a list to fine-tune on. encode_s: seconds of encoding whatever
    texts are new. read_s: seconds of reading one shortened text.
    """

    specs: Sequence[ComponentSpec]
    n_events: int
    n_users: int
    n_items: int
    n_held_out: int
    n_list_users: int
    refit: bool
    encode_s: float = 0.0
    read_s: float = 0.0
    n_steps: int = 0

    def step_seconds(self) -> dict[str, float]:
        """Estimate the seconds of each step of the fit."""
        always, everything = in_use(self.specs, ()), in_use(self.specs, PARTS)
        added = [spec for spec in everything if spec not in always]
        fine_tuned = self.n_steps > 0 and self.n_list_users >= LEAST_LIST_USERS
        n_parts = len({spec.part for spec in added})
        scores = self.n_held_out * self.n_items * SECONDS_PER_SCORE
        # the components once more, on other events: for the lists to fine-tune on, and on all rows
        again = sum(map(self._fit_once, everything)) + len(everything) * scores / 2
        tuned = [*always, *(spec for spec in added if spec.name not in {one.name for one in always})]
        known = [spec for spec in added if spec not in tuned]  # in the place of another, with its settings
        tuning = min(self.n_held_out / 2, MOST_CASES_FOR_TUNING) * self.n_items * SECONDS_PER_SCORE
        n_blends = 1 + n_parts + fine_tuned
        last_blend = n_blends**FUSION_GROWTH - (n_blends - 1) ** FUSION_GROWTH
        steps = {
            "read": START_S + SECONDS_PER_EVENT * self.n_events,
            "encode": self.encode_s,
            "components": sum(len(spec.grid) * self._fit_once(spec) for spec in tuned)
            + sum(map(self._fit_once, known))
            + sum(spec.n_settings for spec in tuned if spec.n_settings > 1) * tuning,
            "score held-out cases": scores * sum(len(always) + part for part in range(n_parts + 1)),
            "fusion": self._first_blend() * n_blends**FUSION_GROWTH,
            # the last blend once more, on both halves of the held-out users
            "refit on all rows": (again + 2 * self._first_blend() * last_blend) * self.refit,
        }
        if fine_tuned:
            read_all = KEPT_SHARE * self.read_s * self.n_items
            steps["refit on all rows"] += read_all * self.refit
            steps["cross-encoder lists"] = again
            steps["cross-encoder scores"] = read_all
            usual = USUAL_STEPS if self.n_list_users >= FEW_LIST_USERS else STEPS_ON_FEW
            steps["cross-encoder fine-tuning"] = min(self.n_steps, usual) * (
                STEP_S + STEP_READS * self.read_s * self.n_items * -np.expm1(-TEXTS_A_STEP / self.n_items)
            )
        return steps

    def seconds(self) -> float:
        """Estimate the seconds of the fit."""
        return sum(self.step_seconds().values())

    def _first_blend(self) -> float:
        """Seconds of the blend before any part, which too few cases do not get."""
        if self.n_held_out < HELD_OUT_A_CASE * LEAST_CASES_FOR_BLEND:
            return COMPONENT_S
        return FUSION_S + FUSION_SECONDS_PER_USER * self.n_held_out

    def _fit_once(self, spec: ComponentSpec) -> float:
        """Seconds of one fit of a component with one setting."""
        pairs = self.n_events**2 / max(self.n_users, 1)
        if "ease" in spec.name:
            of_items = SECONDS_PER_SQUARED_ITEM * self.n_items**2 + SECONDS_PER_CUBED_ITEM * self.n_items**3
            return COMPONENT_S + of_items + SECONDS_PER_PAIR_OF_EASE * pairs
        if spec.name == "als":
            return ALS_S + ALS_SECONDS_PER_EVENT * self.n_events + ALS_SECONDS_PER_ROW * (self.n_users + self.n_items)
        if spec.name == "item_knn":
            return COMPONENT_S + SECONDS_PER_PAIR_OF_KNN * pairs
        if spec.part == "sequence":
            return NETS_S + SECONDS_PER_CELL_OF_NETS * min(float(self.n_events) * self.n_items, MOST_CELLS)
        return COMPONENT_S


def estimate_fit_seconds(
    events: Interactions,
    items: Items,
    specs: Sequence[ComponentSpec],
    encoder: Encoder | None,
    *,
    refit: bool,
    fine_tune_steps: int,
    seed: int,
) -> float:
    """Estimate the seconds of a fit; texts whose vectors the encoder remembers are not encoded again.

    fine_tune_steps: most steps of the cross-encoder; 0: none is trained. seed: of the hold-out.
    """
    holdout = plan_holdout(events, seed, FitLog(verbose=False))
    work = FitWork(
        specs,
        n_events=len(events),
        n_users=len(np.unique(events.users)),
        n_items=len(items),
        n_held_out=len(holdout.targets),
        n_list_users=len(list_targets(holdout, seed)),
        refit=refit,
    )
    if encoder is None:
        return work.seconds()
    began = time.perf_counter()
    texts = sample_of_texts(events, items)
    knows = getattr(encoder, "knows", None)
    share_new = 1.0 if knows is None or not texts else 1.0 - float(np.mean(knows(texts)))
    encoder = getattr(encoder, "encoder", encoder)  # what remembers cannot be timed
    reviewed = len(np.unique(events.items[events.reviews.astype(bool)]))
    n_texts = len(items) + (int(refit) + (fine_tune_steps > 0)) * reviewed  # later reviews make other texts
    n_reviews = min(int(events.reviews.astype(bool).sum()), MOST_REVIEWS_READ)
    newest = list(events.reviews[events.reviews.astype(bool)][-n_reviews:]) if n_reviews else []
    encode_s = n_texts * measure_encoder(encoder, texts) + n_reviews * measure_encoder(encoder, newest)
    read_s = measure_encoder(encoder, [text[:SHORT_CHARACTERS] for text in texts]) if fine_tune_steps else 0.0
    measuring_s = time.perf_counter() - began  # is part of the fit
    return replace(work, encode_s=share_new * encode_s + measuring_s, read_s=read_s, n_steps=fine_tune_steps).seconds()


def sample_of_texts(events: Interactions, items: Items) -> list[str]:
    """Texts of at most MOST_TEXTS_RENDERED items, evenly spread, with all reviews, as a fit on all rows reads them."""
    rows = np.unique(np.linspace(0, len(items) - 1, MOST_TEXTS_RENDERED).astype(np.int64))
    place = np.full(len(items) + 1, UNKNOWN, dtype=np.int64)  # the last entry is for code -1, a search without item
    place[rows] = np.arange(len(rows))
    sample = Items(items.ids[rows], items.frame.iloc[rows].reset_index(drop=True), items.texts[rows])
    theirs = events.take(place[events.items] != UNKNOWN)
    theirs = replace(theirs, items=place[theirs.items], n_items=len(rows))
    return [str(text) for text in Renderer().render_items(sample, theirs).texts]


def measure_encoder(encoder: Encoder, texts: Sequence[str]) -> float:
    """Seconds a text, on at most TEXTS_MEASURED of the texts, evenly spread; 0 without any character."""
    rows = np.unique(np.linspace(0, max(len(texts) - 1, 0), TEXTS_MEASURED).astype(np.int64))
    sample = [texts[row] for row in rows if row < len(texts) and texts[row]]
    if not sample:
        return 0.0
    encoder.encode([WARM_UP])
    rates = []
    # different texts, because an encoder may remember; the faster half: what else the machine does only slows
    for half in filter(None, (sample[::2], sample[1::2])):
        started = time.perf_counter()
        encoder.encode(half)
        rates.append((time.perf_counter() - started) / max(sum(map(len, half)), 1))
    return min(rates) * sum(map(len, sample)) / len(sample)


def seconds_in_words(seconds: float) -> str:
    """Round to what an estimate deserves: "40 seconds", "3 minutes", "2.5 hours"."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
