"""One id among many: the same codes as the slow look-up, for arrays that stay, grow, shrink and branch."""

import gc

import numpy as np
import pytest

from llm_rerank.data import id_index
from llm_rerank.data.frames import id_codes
from llm_rerank.data.id_index import code_of, codes_by_id


def ids_of(values):
    ids = np.empty(len(values), dtype=object)
    ids[:] = values
    return ids


@pytest.fixture(autouse=True)
def forgotten():
    id_index._kept.clear()


@pytest.mark.parametrize("known", [["a", "7", "-3", "b"], [7, 12, -3]])
def test_agrees_with_the_look_up_through_frames(known):
    ids = ids_of(known)
    codes = codes_by_id(ids)
    for asked in ("a", "7", "12", "-3", "07", "7.0", "", "c", 7, 12, -3, 99, np.int64(7)):
        (expected,) = id_codes(ids_of([asked]), ids)
        assert code_of(asked, codes) == expected, asked


def test_where_both_are_known_each_is_itself():
    codes = codes_by_id(ids_of(["7", 7]))
    assert (code_of("7", codes), code_of(7, codes)) == (0, 1)


def test_truth_is_no_number():
    codes = codes_by_id(ids_of([0, 1]))
    assert [code_of(value, codes) for value in (True, False, np.True_)] == [-1, -1, -1]


def test_a_number_too_long_for_int_is_unknown():
    assert code_of("9" * 10_000, codes_by_id(ids_of([1]))) == -1


def test_the_same_array_has_the_same_dictionary():
    ids = ids_of(["a", "b"])
    assert codes_by_id(ids) is codes_by_id(ids)


def test_a_longer_array_leaves_the_dictionary_of_the_shorter_alone():
    first = ids_of([f"user {number}" for number in range(50)])
    before = codes_by_id(first)
    one, other = (np.append(first, ids_of(more)) for more in (["x"], ["y", "x"]))
    assert (codes_by_id(one)["x"], codes_by_id(other)["y"], codes_by_id(other)["x"]) == (50, 50, 51)
    assert codes_by_id(one)["x"] == 50
    assert "x" not in before
    assert len(before) == 50
    assert [codes_by_id(other)[value] for value in other] == list(range(52))


def test_an_array_without_one_id_is_numbered_anew():
    """Its first and last ids are those of before; one in the middle is another."""
    first = ids_of([f"user {number}" for number in range(9)])
    codes_by_id(first)
    fewer = np.append(np.delete(first, 4), ids_of(["new"]))
    swapped = first.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    for ids in (fewer, swapped):
        assert codes_by_id(ids) == {value: code for code, value in enumerate(ids)}


def test_the_greatest_number_of_a_table_is_found_by_its_digits():
    assert code_of(str(2**64 - 1), codes_by_id(ids_of([7, 2**64 - 1]))) == 1


def test_what_is_gone_is_not_kept():
    for number in range(30):
        codes_by_id(ids_of([f"{number}"]))
    gc.collect()
    codes_by_id(kept := ids_of(["a"]))
    assert len(id_index._kept) == 1
    many = [ids_of([f"{number}"]) for number in range(30)]
    for ids in many:
        codes_by_id(ids)
    assert len(id_index._kept) == id_index._MOST_KEPT
    assert codes_by_id(kept) == {"a": 0}
