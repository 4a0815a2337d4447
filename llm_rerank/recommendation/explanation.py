"""Why an item has its score, and why it stands above or below another: parts that add up exactly, history, words.

The words are found in ``phrases.py``; what a rerank moved is said in ``comparing.py``.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from llm_rerank.data.frames import id_codes
from llm_rerank.recommendation.blend_columns import column_label
from llm_rerank.recommendation.deciding import Decided, groups_of_columns
from llm_rerank.recommendation.fitting import Fitted
from llm_rerank.recommendation.histories import join_cases, without_each_item
from llm_rerank.recommendation.phrases import Phrases
from llm_rerank.steps import Steps, in_one_go
from llm_rerank.types import Cases, DataError, FloatArray, Items, Ragged

Hashable = Any
Decide = Callable[..., Decided]
"""Scores cases, (Cases, Ragged of the items that each has seen) and, where given, ``upstream``: float32, one a case."""

MOST_HISTORY_ITEMS = 50
CASES_A_STEP = 32
SHOWN = 5

MOST_DECIDING_PARTS = 3
DECIDING_SHARE = 0.8
"""Parts are named, strongest first, until they hold this share of all that speaks for an order; two or three."""

LEAST_CONTRARY_SHARE = 0.25
"""The strongest part against an order is named where it is at least this share of the difference."""

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #bbb}"
    "td:last-child{text-align:right;font-variant-numeric:tabular-nums}"
)


@dataclass(frozen=True)
class Contribution:
    """One column of the blend, both forms of a component in one: its name, its group, its part of the score."""

    name: str
    group: str
    value: float


@dataclass(frozen=True)
class HistoryEffect:
    """What one item of the history did: the score minus the score computed again without that item."""

    item_id: Hashable
    title: str
    effect: float


@dataclass(frozen=True)
class Versus:
    """Why one item stands above or below another for the same user.

    difference: score of the item minus score of the other. contributions sum to it (float64, up to rounding).
    history: what each history item did to the difference, by exact leave-one-item-out, strongest first: above 0 it
    spoke for the item over the other.
    """

    title: str
    other_id: Hashable
    other_title: str
    other_score: float
    difference: float
    contributions: Sequence[Contribution]
    history: Sequence[HistoryEffect]

    def by_group(self) -> dict[str, float]:
        """Sum the differences of each group."""
        return sums_by_group(self.contributions)

    def by_part(self) -> dict[str, float]:
        """Sum the differences of each component, its products with the supports included, and of each feature."""
        sums: dict[str, float] = {}
        for contribution in self.contributions:
            part = contribution.name.split(" × ")[0]
            sums[part] = sums.get(part, 0.0) + contribution.value
        return sums

    def deciding(self) -> list[tuple[str, float]]:
        """Parts that decide the order, strongest first: those that speak for it, up to most of what does, 1 to 3."""
        sign = 1.0 if self.difference > 0 else -1.0
        favour = sorted(((n, v) for n, v in self.by_part().items() if v * sign > 0), key=lambda part: -abs(part[1]))
        through = np.cumsum([abs(value) for _, value in favour])
        enough = int(np.searchsorted(through, DECIDING_SHARE * through[-1])) + 1 if len(favour) else 0
        return favour[: min(max(enough, 2), MOST_DECIDING_PARTS)]

    def sentence(self) -> str:
        """Name the parts that decide in one sentence."""
        deciding = self.deciding()
        if self.difference == 0 or not deciding:
            return f"{self.title} and {self.other_title} have the same score"
        named = [f"{name} ({value:+.3f})" for name, value in deciding]
        side = "above" if self.difference > 0 else "below"
        verb = "decide" if len(named) > 1 else "decides"
        said = f"{self.title} stands {side} {self.other_title} by {abs(self.difference):.3f}: {_listed(named)} {verb}"
        name, value = min(self.by_part().items(), key=lambda part: part[1] * np.sign(self.difference))
        if value * self.difference < 0 and abs(value) >= LEAST_CONTRARY_SHARE * abs(self.difference):
            said += f"; {name} ({value:+.3f}) speaks against it"
        return said

    def lines(self) -> list[str]:
        """Give the sentence, the groups and the history items as lines."""
        lines = [f"  {self.sentence()}", *(f"    {group:<14} {value:+.3f}" for group, value in self.by_group().items())]
        if self.history:
            lines.append("  history items, by what the difference loses without them")
            lines += _effect_lines(self.history)
        return lines

    def _repr_html_(self) -> str:
        groups = _table(("group", "difference"), [(group, f"{value:+.3f}") for group, value in self.by_group().items()])
        return f"<p>{html.escape(self.sentence())}</p>{groups}{_history_html(self.history, 'the difference')}"


@dataclass(frozen=True)
class Explanation:
    """Why one item has its score for one user.

    contributions sum to ``score`` (float64, up to rounding). history: effects by exact leave-one-item-out, strongest
    first; they need not add up, because history items work together. versus, phrases: where asked for.
    """

    user_id: Hashable
    item_id: Hashable
    title: str
    score: float
    probability: float
    contributions: Sequence[Contribution]
    history: Sequence[HistoryEffect]
    versus: Versus | None = None
    phrases: Phrases | None = None

    def by_group(self) -> dict[str, float]:
        """Sum the contributions of each group."""
        return sums_by_group(self.contributions)

    def strongest(self, n: int = 5) -> list[Contribution]:
        """Pick the n contributions of greatest size, zeros left out."""
        return sorted((c for c in self.contributions if c.value), key=lambda c: -abs(c.value))[:n]

    def __str__(self) -> str:
        lines = [self._heading(), *(f"  {group:<14} {value:+.3f}" for group, value in self.by_group().items())]
        lines.append("  strongest parts")
        lines += [f"    {part.name:<28} {part.value:+.3f}" for part in self.strongest()]
        if self.history:
            lines.append("  history items, by what the score loses without them")
            lines += _effect_lines(self.history)
        else:
            lines.append("  no history of this user is known: scored as a newcomer")
        if self.phrases is not None:
            lines.append(f"  words, by what the score loses without them ({self.phrases.note})")
            lines += [f"    {effect.effect:+.3f}  {effect.phrase}" for effect in self.phrases.effects[:SHOWN]]
        return "\n".join(lines if self.versus is None else [*lines, *self.versus.lines()])

    def _heading(self) -> str:
        chance = "" if self.probability != self.probability else f", probability {self.probability:.4f}"
        return f"{self.title or self.item_id} for {self.user_id}: score {self.score:+.3f}{chance}"

    def _repr_html_(self) -> str:
        strongest = self.strongest(10)
        parts = [(part.group, part.name, f"{part.value:+.3f}") for part in strongest]
        rest = sum(part.value for part in self.contributions) - sum(part.value for part in strongest)
        # so that the column adds up on the page too
        parts += [("", "all other parts", f"{rest:+.3f}"), ("", "score", f"{self.score:+.3f}")]
        blocks = [
            f"<p><b>{html.escape(self._heading())}</b></p>",
            _table(("group", "part", "contribution"), parts),
            _history_html(self.history, "the score"),
        ]
        if self.phrases is not None:
            words = "".join(f"<li>{e.effect:+.3f} {html.escape(e.phrase)}</li>" for e in self.phrases.effects[:10])
            note = html.escape(self.phrases.note)
            blocks.append(f"<p>Words, by what the score loses without them ({note})</p><ol>{words}</ol>")
        if self.versus is not None:
            blocks.append(self.versus._repr_html_())
        return "".join(blocks)

    def to_html(self) -> str:
        """Give a small page that needs nothing else."""
        title = html.escape(str(self.title or self.item_id))
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
            f"<body>{self._repr_html_()}</body></html>\n"
        )


def codes_to_explain(items: Items, item_id: Hashable, versus: Hashable = None) -> list[int]:
    """Codes of the item and, where there is one, of the other.

    Raises DataError where one is not in the catalogue, or where both are the same.
    """
    asked = {"item_id": item_id} if versus is None else {"item_id": item_id, "versus": versus}
    codes = []
    for argument, value in asked.items():
        one = np.empty(1, dtype=object)
        one[0] = value
        codes.append(int(id_codes(one, items.ids)[0]))
        if codes[-1] < 0:
            raise DataError(f"{argument} {value!r} is absent from items; add it to items and fit, or ask for another")
    if len(set(codes)) < len(codes):
        raise DataError(f"versus is {versus!r}, the item itself; name another item to compare with")
    return codes


def explain_item(
    user_id: Hashable,
    fitted: Fitted,
    case: Cases,
    seen: Ragged,
    decide: Decide,
    *,
    other: int | None = None,
    upstream: FloatArray | None = None,
) -> Explanation:
    """Explain the single candidate of a single case; ``decide`` scores cases with the items that each has seen.

    Effects are of the 50 newest distinct history items. other: code of an item to compare with. upstream: raw upstream
    scores of the item and of the other, NaN unknown, float32; None: as retrieved, not as an upstream recommender's.
    """
    return in_one_go(explain_in_steps(user_id, fitted, case, seen, decide, other=other, upstream=upstream))


def explain_in_steps(
    user_id: Hashable,
    fitted: Fitted,
    case: Cases,
    seen: Ragged,
    decide: Decide,
    *,
    other: int | None = None,
    upstream: FloatArray | None = None,
) -> Steps[Explanation]:
    """Explain as ``explain_item`` does, some histories a step."""
    codes = [int(case.candidates.values[0]), *([] if other is None else [other])]
    newest = pd.unique(case.history.values[::-1])[:MOST_HISTORY_ITEMS].astype(np.int64)
    histories = join_cases(case, without_each_item(case, newest))
    # every pair in a list of its own, so that none is below the depth to which the cross-encoder reads
    rows = np.tile(np.arange(len(histories), dtype=np.int64), len(codes))
    alone = Ragged.from_lengths(np.repeat(np.array(codes, dtype=np.int64), len(histories)), np.ones_like(rows))
    cases, seen_of_each = histories.take(rows).with_candidates(alone), seen.take(np.zeros_like(rows))
    said = None if upstream is None else np.repeat(upstream, len(histories))
    decided = []
    for start in range(0, len(rows), CASES_A_STEP):
        some = np.arange(start, min(start + CASES_A_STEP, len(rows)), dtype=np.int64)
        of_upstream = {} if said is None else {"upstream": said[some]}
        decided.append(decide(cases.take(some), seen_of_each.take(some), **of_upstream))
        yield
    scores = np.concatenate([part.scores for part in decided]).reshape(len(codes), len(histories))
    contributions = np.concatenate([part.contributions for part in decided])[:: len(histories)]
    effects = scores[:, :1] - scores[:, 1:]
    stage = decided[0].stage
    labels = [column_label(name) for name in stage.blend.names]
    group_of = dict(zip(labels, groups_of_columns(fitted, stage), strict=True))
    ids, titles = fitted.items.ids, fitted.items.frame["title"].to_numpy(dtype=object)

    def parts(values: np.ndarray) -> list[Contribution]:
        sums = dict.fromkeys(labels, 0.0)
        for label, value in zip(labels, values.tolist(), strict=True):
            sums[label] += value
        return [Contribution(label, group_of[label], value) for label, value in sums.items()]

    def of_history(values: np.ndarray) -> list[HistoryEffect]:
        order = np.argsort(-np.abs(values), kind="stable")
        return [HistoryEffect(ids[newest[i]], str(titles[newest[i]]), float(values[i])) for i in order]

    versus = None
    if other is not None:
        named = [str(titles[code] or ids[code]) for code in codes]
        if named[0] == named[1]:
            named = [f"{name} ({ids[code]})" for name, code in zip(named, codes, strict=True)]
        versus = Versus(
            title=named[0],
            other_id=ids[other],
            other_title=named[1],
            other_score=float(scores[1, 0]),
            difference=float(scores[0, 0] - scores[1, 0]),
            contributions=parts(contributions[0] - contributions[1]),
            history=of_history(effects[0] - effects[1]),
        )
    return Explanation(
        user_id=user_id,
        item_id=ids[codes[0]],
        title=str(titles[codes[0]]),
        score=float(scores[0, 0]),
        probability=float(decided[0].probabilities[0]),
        contributions=parts(contributions[0]),
        history=of_history(effects[0]),
        versus=versus,
    )


def sums_by_group(contributions: Sequence[Contribution]) -> dict[str, float]:
    """Sum the contributions of each group."""
    sums: dict[str, float] = {}
    for contribution in contributions:
        sums[contribution.group] = sums.get(contribution.group, 0.0) + contribution.value
    return sums


def _effect_lines(effects: Sequence[HistoryEffect]) -> list[str]:
    return [f"    {effect.effect:+.3f}  {effect.title or effect.item_id}" for effect in effects[:SHOWN]]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _history_html(effects: Sequence[HistoryEffect], what: str) -> str:
    if not effects:
        return ""
    rows = "".join(f"<li>{e.effect:+.3f} {html.escape(str(e.title or e.item_id))}</li>" for e in effects[:SHOWN])
    return f"<p>History items, by what {what} loses without them</p><ol>{rows}</ol>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return "<table><tr>" + "".join(f"<th>{name}</th>" for name in head) + f"</tr>{body}</table>"
