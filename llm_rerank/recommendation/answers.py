"""One answer, made from a scored list: cut, diversified, shortened; and made again with other settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llm_rerank.config import RerankerConfig
from llm_rerank.data.id_index import code_of, codes_by_id
from llm_rerank.recommendation.deciding import Decided, ScoredBatch, settle
from llm_rerank.recommendation.decision_facts import decision_facts
from llm_rerank.recommendation.drift import Drift, DriftWatch, Shares, shares_of
from llm_rerank.recommendation.thresholds import Cut, bounded_kept
from llm_rerank.types import BoolArray, DataError, FloatArray, IntArray, ObjectArray, Ragged

if TYPE_CHECKING:
    from llm_rerank.recommendation.fitting import Fitted

Float64Array = npt.NDArray[np.float64]

OWN_CUT = "the cut was asked for with the question; the fit did not choose it"


@dataclass(frozen=True)
class Answer:
    """One list; arrays and lists in order of rank, shape (n_items,).

    item_ids: as asked, or the catalogue's where they were retrieved. codes: int64, -1 unknown. scores: float64, NaN for
    an unknown item and in a fallback. components: part of each group in the scores, which it sums to; empty in a
    fallback. upstream_scores: as given, NaN unknown; None: none given. before_ranks: rank, in the whole list, without
    us; before: by whose order, "upstream" (its scores, or the order given), or, of a retrieved list, the component that
    the guard compares with. propensities: None where nothing is drawn at random. facts: how it was cut, and whether it
    drifted (``decision_facts``). degraded: names of what failed. fallback: "", or what stood in (``fallbacks.py``):
    then scores are NaN and all known items count as kept, up to ``max_items``. at: moment of the decision. known_user:
    there are events of the user. unknown_items: ids asked that the catalogue lacks. scored: for ``recut``. shares: for
    a ``DriftWatch``; None in a fallback, or where the fit had nothing to compare with.
    """

    item_ids: list[Any]
    ranks: IntArray
    scores: Float64Array
    probabilities: FloatArray
    kept: BoolArray
    components: dict[str, Float64Array]
    upstream_scores: FloatArray | None
    before_ranks: IntArray
    before: str
    propensities: FloatArray | None
    facts: dict[str, Any]
    degraded: tuple[str, ...]
    fallback: str
    at: int
    known_user: bool
    unknown_items: list[Any]
    codes: IntArray
    scored: ScoredList
    shares: Shares | None = None


@dataclass(frozen=True)
class ScoredList:
    """A list before it is cut and shortened: all that ``recut`` needs, and no component.

    batch: of this list alone, contributions summed by group; None: a fallback. item_ids, codes, upstream,
    before_ranks: laid out as the candidates. catalogue: the ids that the codes are of. not_as_cut: why these are not
    lists as the cut was chosen on, "" where they are.
    """

    batch: ScoredBatch | None
    groups: tuple[str, ...]
    item_ids: list[Any]
    codes: IntArray
    catalogue: ObjectArray
    upstream: FloatArray | None
    before_ranks: IntArray
    before: str
    not_as_cut: str
    degraded: tuple[str, ...]
    fallback: str
    at: int
    known_user: bool


def cut_list(
    scored: ScoredList,
    fitted: Fitted,
    config: RerankerConfig,
    least_probability: float | None,
    diversity: float | None,
    k: int | None,
) -> Answer:
    """Make the answer of a scored list; the three settings as in ``Question``.

    Raises DataError where variety is asked for and there is nothing to tell it by.
    """
    if scored.batch is None:
        return _uncut(scored, config, k)
    batch, stage = scored.batch, scored.batch.stage
    if least_probability is not None and stage.calibrator is not None:  # without probabilities nothing can be cut
        nan = float("nan")
        cut = Cut("probability", least_probability, least_probability, nan, nan, nan, 0, 0, no_guarantee=OWN_CUT)
        batch = replace(batch, stage=replace(stage, cut=cut))
    if diversity is not None:
        config = replace(config, diversity=replace(config.diversity_settings, strength=float(diversity)))
    decided = settle(batch, fitted, config)
    cases, profile, shares = batch.scored.cases, stage.profile, None
    if profile is not None and len(decided.scores):
        shares = shares_of(profile, decided.scores, decided.candidates, cases.history.lengths)
    facts = decision_facts(decided, cases, config, k, other_lists=scored.not_as_cut, shares=shares, warn=False)
    if scored.degraded:
        facts |= {"guarantee": None, "no_guarantee": scored.not_as_cut}
    return _answer(scored, decided, facts, k, shares)


def watched(answer: Answer, watch: DriftWatch) -> Answer:
    """Let an answer say of the last lists together whether they drifted, and take its guarantee back where they did."""
    return answer if answer.shares is None else _drifted(answer, watch.after(answer.shares))


def drifted_as(answer: Answer, first: Answer) -> Answer:
    """Let an answer that was cut anew say of drift what the first one said."""
    return _drifted(answer, Drift.from_dict(first.facts["drift"]))


def _drifted(answer: Answer, drift: Drift) -> Answer:
    facts = {**answer.facts, "drift": drift.to_dict()}
    if drift.shifted and facts["guarantee"] is not None:
        facts |= {"guarantee": None, "no_guarantee": drift.sentence()}
    return replace(answer, facts=facts)


def _uncut(scored: ScoredList, config: RerankerConfig, k: int | None) -> Answer:
    """Give a fallback: what is known is kept, for nothing says what should not be; ``max_items`` holds."""
    n = len(scored.codes)
    rows = Ragged.from_lists([scored.codes])
    kept = bounded_kept(scored.codes >= 0, scored.before_ranks, rows, min_items=0, max_items=config.max_items)
    shown = kept if k is None else kept & (scored.before_ranks <= k)
    facts = {
        "least_probability": None,
        "n_kept": int(shown.sum()),
        "n_added_by_min_items": 0,
        "n_removed_by_max_items": int(((scored.codes >= 0) & ~kept).sum()),
        "guarantee": None,
        "no_guarantee": scored.not_as_cut,
        "drift": Drift({}, {}, 1).to_dict(),
    }
    order = np.argsort(scored.before_ranks, kind="stable")[:k]
    unknown = np.full(len(order), np.nan)
    return Answer(
        item_ids=[scored.item_ids[place] for place in order],
        ranks=scored.before_ranks[order],
        scores=unknown,
        probabilities=unknown.astype(np.float32),
        kept=kept[order],
        components={},
        upstream_scores=None if scored.upstream is None else scored.upstream[order],
        before_ranks=scored.before_ranks[order],
        before=scored.before,
        propensities=None,
        facts=facts,
        degraded=scored.degraded,
        fallback=scored.fallback,
        at=scored.at,
        known_user=scored.known_user,
        unknown_items=[scored.item_ids[place] for place in range(n) if scored.codes[place] < 0],
        codes=scored.codes[order],
        scored=scored,
    )


def _answer(
    scored: ScoredList, decided: Decided, facts: dict[str, Any], k: int | None, shares: Shares | None
) -> Answer:
    order = np.argsort(decided.ranks, kind="stable")[:k]
    return Answer(
        item_ids=[scored.item_ids[place] for place in order],
        ranks=decided.ranks[order],
        scores=decided.scores[order],
        probabilities=decided.probabilities[order],
        kept=decided.kept[order],
        components={name: decided.contributions[order, column] for column, name in enumerate(scored.groups)},
        upstream_scores=None if scored.upstream is None else scored.upstream[order],
        before_ranks=scored.before_ranks[order],
        before=scored.before,
        propensities=None if decided.propensities is None else decided.propensities[order],
        facts=facts,
        degraded=scored.degraded,
        fallback=scored.fallback,
        at=scored.at,
        known_user=scored.known_user,
        unknown_items=[item_id for item_id, code in zip(scored.item_ids, scored.codes, strict=True) if code < 0],
        codes=scored.codes[order],
        scored=scored,
        shares=shares,
    )


def in_catalogue(scored: ScoredList, fitted: Fitted) -> ScoredList:
    """Find a list's items in the catalogue as it is now. Raises DataError where one has left it."""
    known = codes_by_id(fitted.items.ids)
    codes = scored.codes.copy()
    for place in np.flatnonzero(codes >= 0):
        codes[place] = code_of(scored.catalogue[codes[place]], known)
    if (codes < 0)[scored.codes >= 0].any():
        raise DataError("an item of this answer has left the catalogue; ask again")
    batch = scored.batch
    if batch is not None:
        cases = batch.scored.cases.with_candidates(Ragged.from_lists([codes]))
        batch = replace(batch, scored=replace(batch.scored, cases=cases))
    return replace(scored, batch=batch, codes=codes, catalogue=fitted.items.ids)
