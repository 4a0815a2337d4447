"""Union of retrievers and orders of lists, against slow obvious twins."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_rerank.recommendation.candidates import best_first, is_member, ranked, ranks_in_row, union
from llm_rerank.types import DataError, Ragged

N_ITEMS = 12


def lists(n_rows):
    row = st.lists(st.integers(-1, N_ITEMS - 1), max_size=6, unique=True)
    return st.lists(row, min_size=n_rows, max_size=n_rows)


def slow_union(rows_of_sources):
    """Walk rank by rank, source by source, and take what is new."""
    result = []
    for rows in zip(*rows_of_sources, strict=True):
        taken = []
        for rank in range(max(len(row) for row in rows)):
            for row in rows:
                if rank < len(row) and row[rank] >= 0 and row[rank] not in taken:
                    taken.append(row[rank])
        result.append(taken)
    return result


@given(st.integers(0, 4).flatmap(lambda n: st.lists(lists(n), min_size=1, max_size=3)))
def test_union_equals_the_walk_by_rank(rows_of_sources):
    fast = union([Ragged.from_lists(rows) for rows in rows_of_sources], N_ITEMS)
    assert [list(fast[row]) for row in range(len(fast))] == slow_union(rows_of_sources)


def test_union_refuses_nothing_and_unequal_rows():
    with pytest.raises(DataError, match="at least one"):
        union([], 3)
    with pytest.raises(DataError, match=r"\[1, 2\] rows"):
        union([Ragged.from_lists([[0]]), Ragged.from_lists([[0], [1]])], 3)


def test_best_first_keeps_input_order_of_ties_and_puts_nan_last():
    rows = Ragged.from_lists([[5, 6, 7, 8], [], [9]])
    scores = np.array([1.0, np.nan, 2.0, 1.0, 0.5])
    # row 0 by score: 7 (2.0), then 5 and 8 (both 1.0, input order), then 6 (NaN)
    assert list(rows.values[best_first(scores, rows)]) == [7, 5, 8, 6, 9]
    assert list(ranks_in_row(scores, rows)) == [2, 4, 1, 3, 1]
    top = ranked(scores, rows, 2)
    assert [list(top[i]) for i in range(3)] == [[7, 5], [], [9]]


def test_is_member_looks_in_the_same_row_only():
    rows, others = Ragged.from_lists([[1, 2], [2, -1]]), Ragged.from_lists([[2], [1]])
    assert list(is_member(rows, others, 3)) == [False, True, False, False]
