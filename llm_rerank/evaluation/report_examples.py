"""Lists before and after for three users who are chosen by a rule, not for nice lists."""

from __future__ import annotations

import numpy as np

from llm_rerank.evaluation.demonstration import (
    LEAST_HISTORY,
    SHOWN,
    Float64Array,
    SecondSelection,
    shown_titles,
)
from llm_rerank.evaluation.page import Section, Table
from llm_rerank.types import IntArray

RULE = (
    f"Of the users with at least {LEAST_HISTORY} items before, three are shown: the one of median gain in NDCG@10 "
    "among those who gain, the one of median loss among those who lose, and the one of median history among those "
    "whose figure stays the same. Where anyone loses, a loser is shown."
)


def chosen_users(gains: Float64Array, n_seen: IntArray) -> list[tuple[str, int]]:
    """Pick up to three cases by ``RULE``: what each stands for, and its position.

    gains: NDCG@10 after − before, shape (n_cases,). n_seen: distinct items before. Of an even number the upper median
    is taken; ties go to the first.
    """
    enough = n_seen >= LEAST_HISTORY
    kinds = (
        ("gains", enough & (gains > 0), gains),
        ("loses", enough & (gains < 0), -gains),
        ("stays", enough & (gains == 0), n_seen.astype(np.float64)),
    )
    found = []
    for name, inside, size in kinds:
        rows = np.flatnonzero(inside)
        if len(rows):
            found.append((name, int(rows[np.argsort(size[rows], kind="stable")[len(rows) // 2]])))
    return found


def examples_section(second: SecondSelection) -> Section:
    """Show the chosen users' first ten before and after."""
    trial, gains = second.trial, second.ndcg_after - second.ndcg_before
    chosen = chosen_users(gains, trial.seen.lengths)
    paragraphs = [second.sentence() + ".", RULE]
    if not chosen:
        return Section(
            "examples",
            "Lists before and after",
            [paragraphs[0], f"No user has {LEAST_HISTORY} items before the test, so no list is shown."],
        )
    paragraphs.append(
        "Both lists of a user hold the same candidates. ★ marks what the user took later; the number in brackets is "
        "the place before."
    )
    return Section(
        "examples",
        "Lists before and after",
        paragraphs,
        tables=[_lists_of(second, case, name) for name, case in chosen],
    )


def _lists_of(second: SecondSelection, case: int, kind: str) -> Table:
    trial = second.trial
    titles = shown_titles(trial.items)
    before, after = second.before[case].tolist(), second.after[case].tolist()
    taken = set(trial.cases.targets[case].tolist())
    had = list(dict.fromkeys(trial.cases.history[case][::-1].tolist()))[:LEAST_HISTORY]
    old_place = {item: place for place, item in enumerate(before, start=1)}

    def shown(item: int) -> str:
        return f"{'★ ' if item in taken else ''}{titles[item]}"

    caption = (
        f"{trial.user_ids[case]} {kind}: NDCG@10 {second.ndcg_before[case]:.3f} → {second.ndcg_after[case]:.3f}. "
        f"Had before, newest first: {'; '.join(str(titles[item]) for item in had)}"
    )
    rows = [
        [str(place), shown(old), f"{shown(new)} ({old_place[new]})"]
        for place, (old, new) in enumerate(zip(before[:SHOWN], after[:SHOWN], strict=True), start=1)
    ]
    return Table(caption, ["place", "before", "after (place before)"], rows, n_text_columns=3)
