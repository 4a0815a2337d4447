"""Two lists of the same users compared: what moved, how far, and which part of the score moved it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from llm_rerank.data.frames import as_objects, clean_ids, id_codes, like_input, named_columns
from llm_rerank.data.values import is_missing
from llm_rerank.recommendation.candidates import ranks_in_row
from llm_rerank.types import BoolArray, DataError, DataReport, IntArray, Items, ObjectArray, Ragged

TOP = 10
SHOWN = 5
PREFIX = "score_"
TRUTHS = {"true": True, "false": False, "": None}
SMALLEST_CHANGE = 1e-9  # smaller ones are rounding

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """What moved between two lists, one row a user and item of either.

    frame: in the kind of table that ``after`` was: user_id, item_id, title, rank_before, rank_after (unknown where the
    item was not in that list), move (places risen, below 0 fallen), change ("rose", "fell", "stayed", "entered",
    "left"), kept_before, kept_after, why (a group of the score, "" where none explains it) and why_change.

    Where both lists have score_<group> columns, ``why`` is the group whose part changed most in the direction of the
    move, against its mean change in the user's list: a part that rose for all moves none. Where only ``after`` has
    them, and for what entered, it is the group that stands out most from its mean in the user's list. What left has
    no parts after, and "" for a reason. table: the frame in pandas.
    """

    frame: Any
    table: pd.DataFrame

    def summary(self) -> dict[str, float]:
        """Count and average.

        n_users, n_pairs, and n_rose, n_fell, n_stayed, n_entered, n_left of the pairs; of the n_users_in_both:
        share_changed_top_10 (other items or another order), mean_overlap_top_10 (items in both first tens over the
        longer of them); mean_absolute_move of the pairs in both lists; kept_rate_before, kept_rate_after. NaN: unknown.
        """
        table = self.table
        before, after = (table[name].to_numpy(np.float64, na_value=np.inf) for name in ("rank_before", "rank_after"))
        users = pd.factorize(table["user_id"])[0]
        n_users = int(users.max(initial=-1)) + 1

        def count(rows: BoolArray) -> IntArray:
            return np.bincount(users[rows], minlength=n_users).astype(np.int64)

        both = (count(np.isfinite(before)) > 0) & (count(np.isfinite(after)) > 0)
        changed = count((before != after) & (np.minimum(before, after) <= TOP))[both] > 0
        longer = np.maximum(count(before <= TOP), count(after <= TOP))[both]
        overlap = count((before <= TOP) & (after <= TOP))[both] / np.maximum(longer, 1)
        moves = table["move"].dropna().to_numpy(np.float64)
        counts = table["change"].value_counts()
        return {
            "n_users": n_users,
            "n_users_in_both": int(both.sum()),
            "n_pairs": len(table),
            **{f"n_{change}": int(counts.get(change, 0)) for change in ("rose", "fell", "stayed", "entered", "left")},
            f"share_changed_top_{TOP}": _mean(changed),
            f"mean_overlap_top_{TOP}": _mean(overlap),
            "mean_absolute_move": _mean(np.abs(moves)),
            **{f"kept_rate_{when}": _mean(table[f"kept_{when}"].dropna()) for when in ("before", "after")},
        }

    def reasons(self) -> dict[str, dict[str, int]]:
        """Count the groups that explain what rose and what fell, the most frequent first."""
        counts = {}
        for change in ("rose", "fell"):
            why = self.table.loc[self.table["change"] == change, "why"]
            counts[change] = {str(group): int(n) for group, n in why[why != ""].value_counts().items()}
        return counts

    def farthest(self, n: int = SHOWN) -> pd.DataFrame:
        """Rows of the n farthest rises into, and n falls out of or within, the first ten: risers first."""
        in_top = self.table[self.table[["rank_before", "rank_after"]].min(axis=1) <= TOP]
        moves = in_top["move"].to_numpy(np.float64, na_value=0.0)
        order = np.argsort(-moves, kind="stable")
        risers, fallers = order[moves[order] > 0][:n], order[::-1][moves[order[::-1]] < 0][:n]
        return in_top.iloc[np.concatenate([risers, fallers])]

    def __str__(self) -> str:
        lines = self._sentences()
        far = self.farthest()
        if len(far):
            lines.append("farthest moves in the first ten")
            lines += [f"  {user}: {old} → {new}  {name} ({why})" for user, old, new, name, why in _cells(far)]
        return "\n".join(lines)

    def _sentences(self) -> list[str]:
        s = self.summary()
        lines = [
            f"{s['n_users']:,} users, {s['n_pairs']:,} items in their lists: {s['n_rose']:,} rose, {s['n_fell']:,} "
            f"fell, {s['n_stayed']:,} stayed, {s['n_entered']:,} entered, {s['n_left']:,} left"
        ]
        if s["n_users_in_both"]:
            lines.append(
                f"first {TOP}: changed for {s[f'share_changed_top_{TOP}']:.1%} of users, "
                f"{s[f'mean_overlap_top_{TOP}']:.1%} of the items the same; an item in both lists moved by "
                f"{s['mean_absolute_move']:.1f} places on average"
            )
        kept = [f"{s[f'kept_rate_{when}']:.1%} {when}" for when in ("before", "after") if s[f"kept_rate_{when}"] >= 0]
        lines += [f"kept: {', '.join(kept)}"] if kept else []
        for change, counts in self.reasons().items():
            if counts:
                lines.append(f"why they {change}: {', '.join(f'{group} {n:,}' for group, n in counts.items())}")
        return lines

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{html.escape(line)}</p>" for line in self._sentences())
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in _cells(self.farthest())
        )
        head = "<tr><th>user</th><th>before</th><th>after</th><th>item</th><th>why</th></tr>"
        return f"{said}<table>{head}{rows}</table>"


def compare_results(before: Any, after: Any, items: Items | None = None) -> Comparison:
    """Compare two lists a user.

    before: user_id, item_id and rank (as ``rerank`` gives it) or, without a rank, upstream_score. after: user_id,
    item_id, rank. Of a pair that comes twice the better place counts. items: for titles.
    Raises DataError where a column is missing or a rank is no number from 1.
    """
    old, new = _read(before, "before", or_upstream=True), _read(after, "after", or_upstream=False)
    for name in ("user", "item"):
        old[name], new[name], ids = _joint_codes(old[f"{name}_id"], new[f"{name}_id"])
        old[f"{name}_id"], new[f"{name}_id"] = ids[old[name]], ids[new[name]]
    keys = ["user", "item", "user_id", "item_id"]
    groups, sides = {}, []
    for when, side in (("before", old), ("after", new)):
        groups[when] = [column for column in side.columns if column.startswith(PREFIX)]
        side = side.sort_values("rank", kind="stable").drop_duplicates(["user", "item"])
        sides.append(side.rename(columns={name: f"{name}_{when}" for name in side.columns if name not in keys}))
    table = sides[0].merge(sides[1], on=keys, how="outer")
    table = table.sort_values(["user", "rank_after", "rank_before"], kind="stable", ignore_index=True)
    was, is_ = table["rank_before"].to_numpy(np.float64), table["rank_after"].to_numpy(np.float64)
    move = was - is_
    change = np.select(
        [np.isnan(was), np.isnan(is_), move > 0, move < 0], ["entered", "left", "rose", "fell"], "stayed"
    )
    why, why_change = _reasons(table, groups, change, np.sign(move))
    known = id_codes(as_objects(table["item_id"]), items.ids) if items is not None else np.full(len(table), -1)
    titles = np.append(items.frame["title"].to_numpy(object) if items is not None else [], [""])
    result = pd.DataFrame(
        {
            "user_id": table["user_id"].infer_objects(),
            "item_id": table["item_id"].infer_objects(),
            "title": titles[known].astype(str),
            "rank_before": table["rank_before"].astype("Int64"),
            "rank_after": table["rank_after"].astype("Int64"),
            "move": pd.Series(move).astype("Int64"),
            "change": change,
            "kept_before": table["kept_before"].astype("boolean"),
            "kept_after": table["kept_after"].astype("boolean"),
            "why": why,
            "why_change": why_change,
        }
    )
    return Comparison(like_input(result, after), result)


def _read(table: Any, name: str, *, or_upstream: bool) -> pd.DataFrame:
    """Read a list: user_id, item_id (objects), rank, kept (NA where there is none) and score_<group> columns."""
    report = DataReport()
    given = named_columns(table, name, ("user_id", "item_id"), None, report)
    users, items = (clean_ids(given[column], f"{column} of {name}", report) for column in ("user_id", "item_id"))
    known = (users.notna() & items.notna()).to_numpy(dtype=bool)
    given, users, items = given[known], users[known], items[known]
    if "rank" in given.columns:
        rank = pd.to_numeric(given["rank"], errors="coerce").to_numpy(np.float64, na_value=np.nan)
        wrong = np.flatnonzero(~(np.isfinite(rank) & (rank >= 1) & (rank == np.floor(rank))))
        if len(wrong):
            raise DataError(f"rank of {name} is {given['rank'].iloc[wrong[0]]!r}; ranks are whole numbers from 1")
    elif or_upstream and "upstream_score" in given.columns:
        rank = _ranks_by_score(users, given["upstream_score"], name)
    else:
        wanted = "a column 'rank' or 'upstream_score'" if or_upstream else "the column 'rank'"
        remedy = "give a result of rerank or recommend" + (", or a list with its order" if or_upstream else "")
        raise DataError(f"{name} lacks {wanted} (it has {', '.join(map(str, given.columns))}); {remedy}")
    result = pd.DataFrame({"user_id": as_objects(users), "item_id": as_objects(items), "rank": rank})
    result["kept"] = _truths(given["kept"], name).to_numpy() if "kept" in given.columns else None
    result["kept"] = result["kept"].astype("boolean")
    for column in given.columns:
        if str(column).startswith(PREFIX) and pd.api.types.is_numeric_dtype(given[column].dtype):
            result[column] = given[column].to_numpy(np.float64, na_value=np.nan)
    return result


def _truths(values: pd.Series, name: str) -> pd.Series:
    """Read what was kept: truth values, or the texts that a CSV file has for them; NA where nothing is said."""
    plain = values.map(lambda value: TRUTHS.get(value.strip().lower(), value) if isinstance(value, str) else value)
    try:
        return plain.astype("boolean")
    except (TypeError, ValueError):
        wrong = next(value for value in plain if value not in (True, False) and not is_missing(value))
        raise DataError(f"kept of {name} is {wrong!r}; give True, False, or nothing where it is unknown") from None


def _ranks_by_score(users: pd.Series, scores: pd.Series, name: str) -> Float64Array:
    """Rank each user's rows by falling score, ties in input order, unknown ones last."""
    values = pd.to_numeric(scores, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    if len(values) and np.isnan(values).all():
        raise DataError(
            f"upstream_score of {name} holds no number (first: {scores.iloc[0]!r}); give numbers, or a rank"
        )
    codes, distinct = pd.factorize(users)
    order = np.argsort(codes, kind="stable")
    rows = Ragged.from_lengths(order, np.bincount(codes, minlength=len(distinct)).astype(np.int64))
    ranks = np.empty(len(values), dtype=np.float64)
    ranks[order] = ranks_in_row(values[order], rows)
    return ranks


def _joint_codes(old: pd.Series, new: pd.Series) -> tuple[IntArray, IntArray, ObjectArray]:
    """Codes of the ids of two lists and the ids themselves, the new list's first; 7 and "7" of two lists are one."""
    new_codes, distinct = pd.factorize(new.to_numpy(object))
    old_ids = old.to_numpy(object)
    old_codes = id_codes(old_ids, distinct)
    fresh = old_codes < 0
    more, more_ids = pd.factorize(old_ids[fresh])
    old_codes[fresh] = len(distinct) + more
    return old_codes, new_codes.astype(np.int64), np.concatenate([distinct, more_ids])


def _reasons(
    table: pd.DataFrame, groups: Mapping[str, Sequence[str]], change: npt.NDArray[Any], sign: Float64Array
) -> tuple[ObjectArray, Float64Array]:
    """Name the group that explains each move and how much it stands out; see ``Comparison``.

    groups: score columns of the list "before" and of the list "after". sign: of each move, NaN where there is none.
    """
    why, amount = np.full(len(table), "", dtype=object), np.full(len(table), np.nan)
    columns = list(dict.fromkeys([*groups["after"], *groups["before"]]))
    if not groups["after"]:
        return why, amount
    users, in_after = table["user"].to_numpy(np.int64), change != "left"
    after = _parts(table, columns, groups["after"], "after")
    standing = _centred(after, users, in_after)
    if groups["before"]:
        in_both = in_after & (change != "entered")
        gained = after - _parts(table, columns, groups["before"], "before")
        standing[in_both] = _centred(gained, users, in_both)[in_both]
    direction = np.where(change == "entered", 1.0, np.nan_to_num(sign))[:, None]
    towards = np.where(direction == 0, np.abs(standing), standing * direction)
    towards[np.isnan(towards) | ~in_after[:, None]] = -np.inf
    best = towards.argmax(axis=1)
    rows = np.flatnonzero(towards.max(axis=1) > SMALLEST_CHANGE)
    why[rows] = np.array([column.removeprefix(PREFIX) for column in columns], dtype=object)[best[rows]]
    amount[rows] = standing[rows, best[rows]]
    return why, amount


def _parts(table: pd.DataFrame, columns: Sequence[str], present: Sequence[str], when: str) -> Float64Array:
    """Parts of the score, shape (n_pairs, n_columns); 0 for a group that the list does not have, NaN for no score."""
    parts = [
        table[f"{name}_{when}"].to_numpy(np.float64) if name in present else np.zeros(len(table)) for name in columns
    ]
    return np.column_stack(parts)


def _centred(values: Float64Array, users: IntArray, rows: BoolArray) -> Float64Array:
    """Subtract the mean of each user's rows, unknown ones left out, column by column."""
    counted = rows[:, None] & ~np.isnan(values)
    n_users = int(users.max(initial=-1)) + 1
    centred = np.empty_like(values)
    for column in range(values.shape[1]):
        inside = counted[:, column]
        sums = np.bincount(users[inside], weights=values[inside, column], minlength=n_users)
        means = sums / np.maximum(np.bincount(users[inside], minlength=n_users), 1)
        centred[:, column] = values[:, column] - means[users]
    return centred


def _cells(rows: pd.DataFrame) -> list[tuple[str, str, str, str, str]]:
    """Give what is shown of each row: user, place before, place after, item, and why."""
    names = ["user_id", "rank_before", "rank_after", "title", "item_id", "why", "why_change"]
    return [
        (str(user), str(old), str(new), str(title) or str(item), f"{why} {amount:+.3f}" if why else "others moved")
        for user, old, new, title, item, why, amount in zip(*(rows[name].tolist() for name in names), strict=True)
    ]


def _mean(values: Any) -> float:
    return float(np.mean(np.asarray(values, dtype=np.float64))) if len(values) else float("nan")
