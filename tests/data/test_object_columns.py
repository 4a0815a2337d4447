"""Object columns made fit for files and other tables, the rest of a frame left as it is."""

import pandas as pd
import pytest

from llm_rerank.data.object_columns import texts_without_halves, with_typed_whole_numbers

MIXED = [1, "a", None, ["half \ud83d"]]


@pytest.mark.parametrize("change", [texts_without_halves, with_typed_whole_numbers])
def test_a_frame_without_such_cells_is_returned_as_it_is(change):
    frame = pd.DataFrame({"mixed": pd.Series(MIXED, dtype=object), "n": [1, 2, 3, None], "text": list("abcd")})
    assert change(frame) is frame


@pytest.mark.parametrize(
    ("change", "cells", "changed"),
    [
        (texts_without_halves, [1, None, "half \ud83d"], [1, None, "half \ufffd"]),
        (with_typed_whole_numbers, [1, 2, 2**63], [1, 2, 2**63]),
        (with_typed_whole_numbers, [1, 2, 2**64], ["1", "2", str(2**64)]),
    ],
)
def test_a_changed_column_keeps_its_place_and_the_input_its_cells(change, cells, changed):
    frame = pd.concat([pd.Series(column, dtype=object, index=[7, 7, 8]) for column in (cells, MIXED[:3])], axis=1)
    frame.columns = pd.Index(["same", "same"])
    result = change(frame)
    assert result.columns.tolist() == ["same", "same"] and result.index.tolist() == [7, 7, 8]
    assert result.iloc[:, 0].tolist() == changed and result.iloc[:, 1].tolist() == MIXED[:3]
    assert frame.iloc[:, 0].tolist() == cells
