"""What an event says of a liking: its weight, whether it is a target, its rating and quantity.

Leaves out who, what and when (``schema.py``).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from llm_rerank.data.values import factorized
from llm_rerank.data.whole_numbers import numbers_or_nan
from llm_rerank.types import BoolArray, DataError, DataReport, FloatArray, IntArray

EVENT_WEIGHTS = {
    "search": 0.1,
    "view": 0.2,
    "click": 0.3,
    "favourite": 0.6,
    "cart": 0.7,
    "rating": 1.0,
    "purchase": 1.0,
    "interaction": 1.0,
}
"""Strength of evidence for a liking by kind of event; "interaction" is a row whose kind is not given."""

EVENT_ALIASES = {
    "add_to_cart": "cart",
    "add_to_basket": "cart",
    "addtocart": "cart",
    "add_payment_info": "cart",
    "add_shipping_info": "cart",
    "basket": "cart",
    "begin_checkout": "cart",
    "cart_addition": "cart",
    "checkout": "cart",
    "initiate_checkout": "cart",
    "initiatecheckout": "cart",
    "product_added": "cart",
    "view_cart": "cart",
    "product_clicked": "click",
    "select_content": "click",
    "select_item": "click",
    "select_promotion": "click",
    "add_to_favorites": "favourite",
    "add_to_favourites": "favourite",
    "add_to_wishlist": "favourite",
    "addtowishlist": "favourite",
    "bookmark": "favourite",
    "favorite": "favourite",
    "like": "favourite",
    "product_added_to_wishlist": "favourite",
    "wishlist": "favourite",
    "buy": "purchase",
    "order": "purchase",
    "order_completed": "purchase",
    "purchase_complete": "purchase",
    "transaction": "purchase",
    "rate": "rating",
    "review": "rating",
    "products_searched": "search",
    "view_search_results": "search",
    "detail_page_view": "view",
    "detail_view": "view",
    "impression": "view",
    "page_view": "view",
    "pageview": "view",
    "product_list_viewed": "view",
    "product_view": "view",
    "product_viewed": "view",
    "remove_from_cart": "view",
    "view_content": "view",
    "view_item": "view",
    "view_item_list": "view",
    "view_promotion": "view",
    "viewcontent": "view",
}
"""Other names of some kinds, those of web analytics among them; ``event_kind`` gives the one.

What was taken out of a cart was looked at, and says no more.
"""

GREATEST_WEIGHT = 1_000.0
"""Of a single event, where a purchase counts 1: far beyond it a factorisation's equations cannot be solved."""

WEAK_EVENTS = ("view", "search")
"""Never targets unless ``target_events`` names them."""


def event_kind(name: object) -> str:
    """Give a kind of event as kinds are compared: without blanks around it and capitals, by one of its names.

    Of those names "Add to cart" and "add-to-cart" are "add_to_cart" too.
    """
    lowered = str(name).strip().lower()
    return EVENT_ALIASES.get(lowered.replace(" ", "_").replace("-", "_"), lowered)


@dataclass(frozen=True)
class EventValues:
    """Arrays of equal length, one entry an event; their meaning as in ``Interactions``."""

    weights: FloatArray
    positive: BoolArray
    ratings: FloatArray
    quantities: FloatArray
    returned: BoolArray  # a purchase of nothing or less: no evidence of a liking
    targets: tuple[str, ...]  # kinds that count as positive
    kinds: IntArray  # a number for each kind


def read_events(
    frame: pd.DataFrame,
    *,
    has_item: BoolArray,
    target_events: Sequence[str] | None,
    min_rating: float | None,
    require_targets: bool,
    report: DataReport,
) -> EventValues:
    """Read the optional columns event, rating, quantity and weight.

    has_item: bool, shape (n_events,); an event without an item (a search) is never a target.
    target_events: kinds that are targets; None: purchases where there are any, else all but views and searches.
    min_rating: a rated event below it is a dislike: its weight is negative, and it is no target.
    require_targets: False where events are only read as histories: then neither setting need fit the data.
    A column ``weight`` replaces the weight of the event's kind; a negative one marks a dislike.
    Raises DataError where target_events or min_rating do not fit the data, a weight is beyond ``GREATEST_WEIGHT``, or
    nothing is left as a target.
    """
    ratings = _numbers(frame, "rating", report)
    kinds, names = _kinds(frame, ratings, has_item, report)
    report.event_kinds = tuple(names)
    targets = _target_names(names, target_events, require_targets)
    values = judge_events(
        names,
        kinds,
        has_item=has_item,
        ratings=ratings,
        weights_given=_numbers(frame, "weight", report),
        quantities=_numbers(frame, "quantity", report),
        targets=targets,
        min_rating=min_rating,
    )
    positive = values.positive
    if min_rating is not None:
        rated = ~np.isnan(ratings)
        if require_targets and not rated.any():
            raise DataError(f"min_rating is {min_rating:g}, but no event has a rating; leave it out or map a column")
        rated &= ~values.returned
        n_disliked = int((rated & (ratings < min_rating)).sum())
        report.notes.append(f"{n_disliked:,} of {rated.sum():,} rated events are dislikes, below {min_rating:g}")
    elif require_targets:
        _note_low_ratings(ratings, ~values.returned & (values.weights > 0), report)
    n_returned = int(values.returned.sum())
    if require_targets and not positive.any():
        if n_returned:
            raise DataError(
                f"no event is a target: {n_returned:,} of {len(frame):,} events are purchases of a quantity of 0 or "
                "less, which are returns; correct the column quantity or leave it out, or name other target_events"
            )
        if target_events is None and not targets:
            of_items = [names[kind] for kind in np.unique(kinds[has_item])]
            raise DataError(
                f"no event is a target: the data has only {', '.join(names)}, and views and searches are no successes "
                f"unless they are named: {named_targets(of_items)}"
            )
        raise DataError(
            f"no event is a target: target_events are {', '.join(targets) or 'none'}, min_rating is {min_rating}; "
            f"the data has the events {', '.join(names)}{_range(ratings)}, so name others in target_events or lower "
            "min_rating"
        )
    if require_targets and target_events is None:
        _advise_on_unknown_kinds(targets, report)
    n_events = len(frame) - n_returned
    report.notes.append(
        f"targets are events of kind {', '.join(targets) or '(none)'}: {positive.sum():,} of {n_events:,}"
    )
    return values


def named_targets(kinds: Sequence[str]) -> str:
    """Write how kinds of event are named as successes, in Python and on the command line."""
    given = ", ".join(map(repr, kinds)) + ("," if len(kinds) == 1 else "")
    options = " ".join(f"--target-event {shlex.quote(kind)}" for kind in kinds)
    return f"target_events=({given}), or {options} on the command line"


def _advise_on_unknown_kinds(targets: Sequence[str], report: DataReport) -> None:
    """Advise where kinds are successes beside others only because their names say nothing here."""
    unknown = [kind for kind in targets if kind not in EVENT_WEIGHTS]
    if unknown and len(targets) > 1:
        report.advice.append(
            f"events of {len(targets)} kinds count as successes ({', '.join(targets)}), for {', '.join(unknown)} are "
            f"no names known here and none is purchase; name those that are successes: {named_targets(['NAME'])}"
        )


def _note_low_ratings(ratings: FloatArray, liked: BoolArray, report: DataReport) -> None:
    """Say how many events count as liked though they are rated in the lower half of the scale, which begins at 1."""
    known = ~np.isnan(ratings)
    if not known.any():
        return
    low, high = min(float(ratings[known].min()), 1.0), float(ratings[known].max())
    middle = (low + high) / 2
    n_low = int((liked & (ratings < middle)).sum())
    if n_low:
        report.notes.append(
            f"{n_low:,} of {known.sum():,} rated events are below the middle of their scale ({low:g} to {high:g}) and "
            f"count as liked; min_rating={middle:g} makes them dislikes"
        )


def judge_events(
    names: Sequence[str],
    kinds: IntArray,
    *,
    has_item: BoolArray,
    ratings: FloatArray,
    weights_given: FloatArray,
    quantities: FloatArray,
    targets: Sequence[str],
    min_rating: float | None,
) -> EventValues:
    """Say what events mean. names: kinds of event. kinds: of each event, a position in the names.

    has_item: bool; ratings, weights_given, quantities: float32, NaN where unknown; all shape (n_events,). targets:
    names of the kinds that are targets. Raises DataError for a weight beyond ``GREATEST_WEIGHT``.
    """
    beyond = np.abs(weights_given) > GREATEST_WEIGHT  # False where NaN
    if beyond.any():
        raise DataError(
            f"{beyond.sum():,} of {len(beyond):,} events have a weight beyond {GREATEST_WEIGHT:,.0f} (first: "
            f"{weights_given[beyond][0]:g}); a weight says how much an event tells of a liking, a purchase counts 1: "
            "divide the column, or bring amounts as quantity"
        )
    weights = np.array([EVENT_WEIGHTS.get(name, 1.0) for name in names], dtype=np.float32)[kinds]
    weights = np.where(np.isnan(weights_given), weights, weights_given).astype(np.float32)
    weights[~has_item] = np.minimum(weights[~has_item], EVENT_WEIGHTS["search"])
    positive = np.isin(names, targets)[kinds] & has_item & (weights > 0)
    if min_rating is not None:
        disliked = ~np.isnan(ratings) & (ratings < min_rating)
        weights[disliked] = -np.abs(weights[disliked])
        positive &= ~disliked
    returned = np.isin(names, ("purchase", "interaction"))[kinds] & (quantities <= 0)
    positive &= ~returned
    quantities = np.where(np.isnan(quantities) | (quantities <= 0), np.float32(1), quantities)
    return EventValues(weights, positive, ratings, quantities, returned, tuple(targets), _numbered(names)[kinds])


def _numbered(names: Sequence[str]) -> IntArray:
    """Give each name a number, equal ones the same: int64, shape (n_names,)."""
    return pd.factorize(np.array(names, dtype=object))[0].astype(np.int64)


def implied_kinds(has_item: BoolArray, ratings: FloatArray) -> np.ndarray:
    """Name the kind of events that do not say theirs: a search without an item, a rating with one, else plain."""
    return np.where(has_item, np.where(np.isnan(ratings), "interaction", "rating"), "search")


def _kinds(
    frame: pd.DataFrame, ratings: FloatArray, has_item: BoolArray, report: DataReport
) -> tuple[np.ndarray, list[str]]:
    """Give each row's kind of event as a position in a list of names."""
    implied = implied_kinds(has_item, ratings)
    if "event" not in frame.columns:
        kinds, names = pd.factorize(implied)
        return kinds, [str(name) for name in names]
    codes, spellings = factorized(frame["event"])
    own = [event_kind(spelling) for spelling in spellings]
    unsaid = np.append(np.isin(own, [""]), True)[codes]  # code -1, a missing kind, finds the last
    if unsaid.any():
        report.notes.append(f"{unsaid.sum():,} events have no kind; taken as rating, search or plain interaction")
    unknown = sorted({name for name in own if name and name not in EVENT_WEIGHTS})
    if unknown:
        report.notes.append(
            f"events of kind {', '.join(unknown)} are not among {', '.join(EVENT_WEIGHTS)}; each weighs 1, "
            "rename them or give a column weight"
        )
    implied_codes, implied_names = pd.factorize(implied)
    all_names = np.array([*own, *implied_names], dtype=object)
    kinds, names = pd.factorize(all_names)  # two spellings of one kind, one code
    own_kinds, codes_of_implied = kinds[: len(own)], kinds[len(own) :]
    rows = np.where(unsaid, codes_of_implied[implied_codes], own_kinds[codes] if len(own) else 0)
    present, rows = np.unique(rows, return_inverse=True)
    return rows, [str(names[kind]) for kind in present]


def _target_names(names: list[str], target_events: Sequence[str] | None, require_targets: bool) -> list[str]:
    if target_events is None:
        return ["purchase"] if "purchase" in names else [name for name in names if name not in WEAK_EVENTS]
    wanted = [event_kind(name) for name in target_events]
    absent = [name for name in wanted if name not in names]
    if require_targets and (absent or not wanted):
        raise DataError(
            f"target_events names {', '.join(map(repr, absent)) or 'no event'}, but the data has the events "
            f"{', '.join(names)}; name some of these"
        )
    return wanted


def _range(ratings: FloatArray) -> str:
    rated = ratings[~np.isnan(ratings)]
    return f", rated {rated.min():g} to {rated.max():g}" if len(rated) else ""


def _numbers(frame: pd.DataFrame, column: str, report: DataReport) -> FloatArray:
    """Read a numeric column as float32, NaN where missing or unreadable; the unreadable ones are noted."""
    if column not in frame.columns:
        return np.full(len(frame), np.nan, dtype=np.float32)
    given = frame[column]
    numbers = numbers_or_nan(given).to_numpy(dtype=np.float64, na_value=np.nan).copy()
    numbers[~np.isfinite(numbers)] = np.nan
    in_doubt = given[np.isnan(numbers) & given.notna().to_numpy(dtype=bool)]  # few: texts of all rows would be dear
    unreadable = int((in_doubt.astype(str) != "").sum())
    if unreadable:
        report.notes.append(f"{unreadable:,} values of {column} are no numbers; taken as unknown")
    return numbers.astype(np.float32)
