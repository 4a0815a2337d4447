"""The demo: a shop fitted, one user's list before and after with the reasons for the biggest moves, a table of systems.

Everything shown is computed from the data set at hand. The user is taken by a rule that is said, not for a nice list.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import Dataset
from llm_rerank.evaluation.comparison import evaluate_ranking
from llm_rerank.evaluation.protocols import Trial, hold_out, rank_catalogue, ranking_from_frame
from llm_rerank.evaluation.scales import number_words
from llm_rerank.evaluation.systems import SystemTable, compare_systems
from llm_rerank.models.collaborative.item_item import ItemKNN
from llm_rerank.recommendation.explanation import Explanation
from llm_rerank.recommendation.reranker import Reranker
from llm_rerank.types import DriftWarning, Items, Ragged

CANDIDATES = 100
LEAST_HISTORY = 5
SHOWN = 10
MOVES = 2  # up and down each
TITLE_WIDTH = 46
SEEN = 0.005  # smaller parts round to 0.00

Say = Callable[[str], Any]
Float64Array = npt.NDArray[np.float64]


def demonstrate(dataset: Dataset, *, config: RerankerConfig | None = None, say: Say = print) -> SystemTable:
    """Fit on a data set's past, show one user's list before and after, and compare systems on its future.

    say: takes the lines to show. Returns the table that it showed last.
    """
    config = config or RerankerConfig()
    # the made-up sample has nothing to protect; of published sets the test part is kept for benchmarks
    trial = hold_out(
        dataset,
        split="test" if dataset.name == "sample" else "validation",
        target_events=config.target_events,
        min_rating=config.min_rating,
    )
    say("\n".join([*dataset.notes, f"held out: {trial.describe()}", ""]))
    reranker = Reranker(config).fit(trial.interactions, trial.item_frame, users=trial.user_frame)
    second = second_selection(reranker, trial, seed=config.seed)
    say("\n".join(["", second.sentence(), *one_list(reranker, second, *second.typical_gainer())]))
    table = compare_systems(reranker, trial, seed=config.seed)
    say("\n".join(["", "Systems, each with the settings that the fit chose on its own hold-out", str(table)]))
    say(worth_of_text(table))
    return table


@dataclass(frozen=True)
class SecondSelection:
    """One simple recommender's candidates, as it ordered them and reranked: the same items before and after.

    before, after: item codes, one row a case of the trial. ndcg_before, ndcg_after: NDCG@10, shape (n_cases,).
    """

    trial: Trial
    before: Ragged
    after: Ragged
    ndcg_before: Float64Array
    ndcg_after: Float64Array

    def sentence(self) -> str:
        """Say what reranking did to all users."""
        gains = self.ndcg_after - self.ndcg_before
        length = number_words(float(self.before.lengths.mean()))
        return (
            f"The same candidates, {length} a user, from 'others also took' (item_knn), before and after: NDCG@10 "
            f"{self.ndcg_before.mean():.4f} → {self.ndcg_after.mean():.4f}; {(gains > 0).sum():,} users gain, "
            f"{(gains < 0).sum():,} lose, {(gains == 0).sum():,} stay (mostly: what they took is not in the first ten)"
        )

    def typical_gainer(self) -> tuple[int, str]:
        """Pick the case of median gain among those that gain and have LEAST_HISTORY items; also who that is, in words.

        The first case where there is none.
        """
        gains = self.ndcg_after - self.ndcg_before
        gainers = np.flatnonzero((gains > 0) & (self.trial.seen.lengths >= LEAST_HISTORY))
        if not len(gainers):
            return 0, f"Nobody gains who has had at least {LEAST_HISTORY} items, so the first user"
        middle = gainers[np.argsort(gains[gainers], kind="stable")][len(gainers) // 2]
        return int(middle), f"The user of median gain among those who gain and have had at least {LEAST_HISTORY} items"


def second_selection(reranker: Reranker, trial: Trial, *, seed: int = 0) -> SecondSelection:
    """Let item_knn retrieve, and the reranker put the same candidates in order."""
    before = rank_catalogue(ItemKNN().fit(trial.past, trial.items, seed=seed), trial, CANDIDATES)
    candidates = pd.DataFrame(
        {"user_id": trial.user_ids[before.row_of_value], "item_id": trial.items.ids[before.values]}
    )
    with warnings.catch_warnings():
        # item_knn's lists differ from those of the fit, which bears on probabilities; only the order is read here
        warnings.simplefilter("ignore", DriftWarning)
        after = ranking_from_frame(reranker.rerank(candidates, at=trial.moments), trial)
    ndcg = [evaluate_ranking(ranked, trial, depth=CANDIDATES).per_case["ndcg@10"] for ranked in (before, after)]
    return SecondSelection(trial, before, after, *ndcg)


def one_list(reranker: Reranker, second: SecondSelection, case: int, who: str) -> list[str]:
    """Show one case's first ten before and after, and the reasons for the biggest moves, as lines. who: in words."""
    trial = second.trial
    user, ids = trial.user_ids[case], trial.items.ids
    titles = shown_titles(trial.items)
    before, after = second.before[case].tolist(), second.after[case].tolist()
    taken = set(trial.cases.targets[case].tolist())
    had = list(dict.fromkeys(trial.cases.history[case][::-1].tolist()))
    lines = [
        f"{who}: {user}",
        f"looked at or had before, newest first: {'; '.join(titles[item] for item in had[:LEAST_HISTORY])}",
        "",
        f"     {'before':<{TITLE_WIDTH}}    after (place before); * = taken later",
    ]
    for place, (old, new) in enumerate(zip(before[:SHOWN], after[:SHOWN], strict=True), start=1):
        left, right = (f"{'*' if item in taken else ' '}{_short(titles[item], TITLE_WIDTH)}" for item in (old, new))
        lines.append(f"{place:>3} {left:<{TITLE_WIDTH + 1}}   {right} ({before.index(new) + 1})")
    lines += ["", "Why the biggest moves: parts of the score, against the mean of the first ten before"]
    usual = _mean_parts([reranker.explain(user, ids[item], at=trial.moments) for item in before[:SHOWN]])
    for item, old_place, new_place in biggest_moves(before, after):
        explanation = reranker.explain(user, ids[item], at=trial.moments)
        lines += [f"  {old_place} → {new_place}  {titles[item]}", *_reasons(explanation, usual)]
    return lines


def shown_titles(items: Items) -> list[str]:
    """Give each item's title, or its id where it has none."""
    titles = items.frame["title"].fillna("").astype(str).str.strip()
    return [title or str(item_id) for title, item_id in zip(titles, items.ids, strict=True)]


def biggest_moves(before: Sequence[int], after: Sequence[int]) -> list[tuple[int, int, int]]:
    """Pick the items that rose most into the first ten, and those that fell most from it.

    before, after: the same items, best first. Returns (item, place before, place after), places from 1: at most MOVES
    risers, the farthest first, then fallers.
    """
    old = {item: place for place, item in enumerate(before, start=1)}
    new = {item: place for place, item in enumerate(after, start=1)}
    risers = sorted((item for item in after[:SHOWN] if old[item] > new[item]), key=lambda item: new[item] - old[item])
    fallers = sorted((item for item in before[:SHOWN] if new[item] > old[item]), key=lambda item: old[item] - new[item])
    return [(item, old[item], new[item]) for item in (*risers[:MOVES], *fallers[:MOVES])]


def worth_of_text(table: SystemTable) -> str:
    """Say what text alone is worth here beside popularity: on groceries little, among a craftsman's tools much."""
    if "semantic" not in table.results:
        return "text: no encoder was used"
    text, sales = (table.results[name].intervals["ndcg@10"].mean for name in ("semantic", "popularity"))
    verdict = (
        "what items say tells users apart here"
        if text > sales
        else "what items say tells little here: behaviour, recent sales and the guard decide"
    )
    return f"text: similarity of texts alone has NDCG@10 {text:.4f}, popularity {sales:.4f}; {verdict}"


def _mean_parts(explanations: Sequence[Explanation]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for explanation in explanations:
        for part in explanation.contributions:
            sums[part.name] = sums.get(part.name, 0.0) + part.value / len(explanations)
    return sums


def _reasons(explanation: Explanation, usual: dict[str, float]) -> list[str]:
    apart = {part.name: part.value - usual[part.name] for part in explanation.contributions}
    strongest = [name for name in sorted(apart, key=lambda name: -abs(apart[name]))[:4] if abs(apart[name]) >= SEEN]
    lines = ["      " + (", ".join(f"{name} {apart[name]:+.2f}" for name in strongest) or "hardly any difference")]
    effects = [effect for effect in explanation.history[:2] if abs(effect.effect) >= SEEN]
    if effects:
        through = "; ".join(
            f"{_short(str(effect.title or effect.item_id), 40)} {effect.effect:+.2f}" for effect in effects
        )
        lines.append(f"      what the history did to it: {through}")
    return lines


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
