import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_rerank.models.cross_encoder.packing import length_groups, list_blocks, newest, one_block, pack, padded
from llm_rerank.models.cross_encoder.scoring import READER_ON_CPU, READER_ON_GPU, WITHOUT_READER
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


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(1, 60), st.integers(1, 80), st.integers(1, 15)
)
@settings(max_examples=100, deadline=None)
def test_blocks_hold_every_candidate_once_within_their_bounds(lengths, most_pairs, least_pairs, most_candidates):
    most_history = 1 + most_pairs % 12
    candidates = Ragged.from_lengths(np.arange(sum(lengths)), np.array(lengths))
    sizes = np.arange(len(lengths)) % 3
    blocks = list_blocks(
        candidates, sizes, most_pairs=most_pairs, most_history=most_history, least_pairs=least_pairs,
        most_candidates=most_candidates,
    )  # fmt: skip
    seen = []
    for block in blocks:
        real = block.candidates >= 0
        seen += block.candidates[real].tolist()
        rows = np.broadcast_to(block.rows[:, None], block.candidates.shape)[real]
        np.testing.assert_array_equal(candidates.row_of_value[block.candidates[real]], rows)
        assert block.candidates.shape[1] <= most_candidates
        assert len(block.rows) == 1 or len(block.rows) * sizes[block.rows].max() <= most_history
        assert block.candidates.size <= max(most_pairs, block.candidates.shape[1])  # one list always fits
    assert sorted(seen) == list(range(sum(lengths)))


def padding(lengths, histories, **bounds):
    """Share of padding among the cells pair × history of what is real, and the number of blocks."""
    candidates = Ragged.from_lengths(np.zeros(lengths.sum(), dtype=np.int64), lengths)
    blocks = list_blocks(candidates, histories, **bounds)
    cells = sum(block.candidates.size * histories[block.rows].max() for block in blocks)
    real = sum(((block.candidates >= 0).sum(axis=1) * histories[block.rows]).sum() for block in blocks)
    assert real == (lengths * histories).sum()
    return cells / real - 1, len(blocks)


@given(lengths=st.lists(st.integers(1, 12), max_size=60), least=st.integers(1, 20))
def test_groups_hold_texts_of_like_length(lengths, least):
    lengths = np.array(lengths, dtype=np.int64)
    groups = length_groups(lengths, least)
    assert sorted(np.concatenate([np.empty(0, np.int64), *groups]).tolist()) == list(range(len(lengths)))
    for group, following in zip(groups[:-1], groups[1:], strict=True):
        assert len(group) >= least
        assert lengths[group].max() < lengths[following].min()
    if least == 1:
        assert all(len(set(lengths[group])) == 1 for group in groups)


@pytest.mark.parametrize("batching", [WITHOUT_READER, READER_ON_CPU, READER_ON_GPU], ids=["none", "cpu", "gpu"])
def test_next_to_nothing_is_computed_for_padding(batching):
    """Histories as shops have them, most of a few items and some of the longest that is read; lists of many lengths."""
    rng = np.random.default_rng(0)
    n_users = 4_000
    items = np.minimum(rng.geometric(0.12, n_users), 20)
    tokens = np.array([rng.integers(18, 33, n).sum() for n in items])
    histories = items if batching is WITHOUT_READER else tokens
    for low, high in ((100, 101), (200, 320), (80, 120)):
        lengths = rng.integers(low, high, n_users)
        share, n_blocks = padding(lengths, histories, **batching.bounds)
        assert share < (0.1 if batching is READER_ON_GPU else 0.03)  # its blocks may not be small
        # small blocks cost more than they save
        assert lengths.sum() / n_blocks > (400 if batching is READER_ON_CPU else 1_200)
    few, _ = padding(np.full(32, 100), histories[:32], **batching.bounds)
    assert few < (0.03 if batching is READER_ON_CPU else 0.6)
    if batching is READER_ON_CPU:  # short lists of some users are not filled with each other's histories
        assert padding(np.full(64, 4), histories[:64], **batching.bounds)[0] < 0.03
        assert padding(np.full(64, 1), histories[:64], **batching.bounds)[0] < 0.2


def test_lists_of_one_candidate_do_not_bring_the_histories_of_all_users_at_once():
    """40,000 of them with 640 tokens each: as one block of pairs their states would take 30 GB."""
    one_each = Ragged.from_lengths(np.arange(40_000), np.ones(40_000, dtype=np.int64))
    for batching in (READER_ON_CPU, READER_ON_GPU):
        blocks = list_blocks(one_each, np.full(40_000, 640), **batching.bounds)
        assert max(len(block.rows) for block in blocks) * 640 <= batching.most_history


def test_one_block_is_all_lists_short_ones_first():
    block = one_block(Ragged.from_lists([[7, 8], [], [9], [5]]), np.array([1, 1, 3, 2]))
    assert block.rows.tolist() == [1, 3, 2, 0]
    assert block.candidates.tolist() == [[-1, -1], [3, -1], [2, -1], [0, 1]]


def test_padded_marks_what_is_not_there():
    rows = Ragged.from_lists([[7, 8], [], [9]])
    assert padded(rows).tolist() == [[0, 1], [-1, -1], [2, -1]]
    assert padded(Ragged.empty(2)).shape == (2, 0)
