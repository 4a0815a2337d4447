import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_rerank.models.cross_encoder.packing import list_blocks, newest, pack, padded
from llm_rerank.types import Ragged


def test_texts_of_one_length_lie_side_by_side():
    packing = pack(np.array([3, 5, 3, 4]))
    assert packing.order.tolist() == [0, 2, 3, 1]
    assert packing.offsets.tolist() == [0, 3, 6, 10, 15]
    assert packing.spans == ((0, 2, 3), (6, 1, 4), (10, 1, 5))
    assert packing.place.tolist() == [0, 3, 1, 2]
    assert pack(np.empty(0, dtype=np.int64)).spans == ()


@given(st.lists(st.integers(1, 9), max_size=30))
@settings(max_examples=50, deadline=None)
def test_spans_hold_every_token_once_and_nothing_else(lengths):
    packing = pack(np.array(lengths, dtype=np.int64))
    covered = [t for start, count, length in packing.spans for t in range(start, start + count * length)]
    assert covered == list(range(sum(lengths)))  # no token twice, none left out, none of padding


def test_newest_counts_from_the_end_over_what_is_kept():
    rows = Ragged.from_lists([[10, 11, 12, 13], [], [20, 21]])
    kept = np.array([True, True, False, True, True, False])
    found = newest(rows, kept, 2)
    assert [found[row].tolist() for row in range(3)] == [[1, 3], [], [4]]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(1, 60), st.integers(1, 15))
@settings(max_examples=100, deadline=None)
def test_blocks_hold_every_candidate_once_within_their_bounds(lengths, most_pairs, most_candidates):
    candidates = Ragged.from_lengths(np.arange(sum(lengths)), np.array(lengths))
    sizes = np.arange(len(lengths)) % 3
    blocks = list_blocks(candidates, sizes, most_pairs=most_pairs, most_candidates=most_candidates)
    seen = []
    for block in blocks:
        real = block.candidates >= 0
        seen += block.candidates[real].tolist()
        rows = np.broadcast_to(block.rows[:, None], block.candidates.shape)[real]
        np.testing.assert_array_equal(candidates.row_of_value[block.candidates[real]], rows)
        assert block.candidates.shape[1] <= most_candidates
        assert block.candidates.size <= max(most_pairs, block.candidates.shape[1])  # one list always fits
    assert sorted(seen) == list(range(sum(lengths)))


def test_lists_of_like_length_share_a_block_so_that_little_is_padded():
    lengths = np.random.default_rng(0).integers(80, 120, 3_000)
    candidates = Ragged.from_lengths(np.zeros(lengths.sum(), dtype=np.int64), lengths)
    blocks = list_blocks(candidates, np.zeros(3_000, dtype=np.int64), most_pairs=16_384)
    cells = sum(block.candidates.size for block in blocks)
    assert cells / lengths.sum() < 1.03


def test_padded_marks_what_is_not_there():
    rows = Ragged.from_lists([[7, 8], [], [9]])
    assert padded(rows).tolist() == [[0, 1], [-1, -1], [2, -1]]
    assert padded(Ragged.empty(2)).shape == (2, 0)
