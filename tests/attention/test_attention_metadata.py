"""`AttentionMetadata.build` against plain loops, at its boundaries, and its errors."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swa_attn.attention import AttentionMetadata


def expected(tables, seqlens_k, query_lens, page_size):
    """Slots, cut tables and prefix sums, token by token."""
    slots, bounds = [], [0]
    for table, length, new in zip(tables, seqlens_k, query_lens, strict=True):
        bounds.append(bounds[-1] + new)
        for position in range(length - new, length):
            page, offset = divmod(position, page_size)
            slots.append(table[page] * page_size + offset if position >= 0 else -1)
    return slots, bounds


@st.composite
def steps(draw):
    page_size = draw(st.sampled_from([1, 3, 16]))
    seqs = []
    for _ in range(draw(st.integers(0, 5))):
        new = draw(st.integers(0, 12))
        length = 0 if draw(st.booleans()) and draw(st.booleans()) else new + draw(st.integers(0, 40))
        spare = draw(st.integers(0, 2))
        pages = draw(st.lists(st.integers(0, 999), min_size=(n := -(-length // page_size) + spare), max_size=n))
        seqs.append((pages, length, new))
    return seqs, page_size


@settings(max_examples=150, deadline=None)
@given(steps())
def test_it_equals_plain_loops(step):
    seqs, page_size = step
    tables, lengths, new = ([s[i] for s in seqs] for i in range(3))
    m = AttentionMetadata.build(tables, lengths, new, page_size)
    slots, bounds = expected(tables, lengths, new, page_size)
    assert (m.slot_mapping.dtype, m.slot_mapping.tolist()) == (torch.int64, slots)
    assert (m.cu_seqlens_q.dtype, m.cu_seqlens_q.tolist()) == (torch.int32, bounds)
    assert (m.seqlens_k.dtype, m.seqlens_k.tolist()) == (torch.int32, lengths)
    assert m.block_table.dtype == torch.int32 and m.block_table.shape[0] == len(seqs)
    for row, (pages, length, _) in zip(m.block_table.tolist(), seqs, strict=True):
        used = -(-length // page_size)
        assert row == pages[:used] + [-1] * (len(row) - used)
    assert all(x.is_contiguous() and x.data_ptr() % 16 == 0 for x in (m.slot_mapping, m.block_table, m.seqlens_k))


@pytest.mark.parametrize(
    ("query_lens", "q_len"),
    [([1, 1, 1], 1), ([8, 8], 8), ([9, 9], None), ([1, 2], None), ([0, 0], None), ([4], 4), ([], None), ([0, 1], None)],
    ids=str,
)
def test_which_op_runs(query_lens, q_len):
    tables = [[0, 1, 2]] * len(query_lens)
    assert AttentionMetadata.build(tables, [20] * len(query_lens), query_lens, 8).q_len == q_len


def test_pages_the_window_has_left_may_be_absent():
    """Query at position 9 with window 4 sees keys 6..9: pages 3 and 4 of 2 slots each."""
    tables, lengths = [[-1, -1, -1, 5, 6]], [10]
    m = AttentionMetadata.build(tables, lengths, [1], 2, window=4)
    assert m.block_table.tolist() == tables and m.slot_mapping.tolist() == [13]
    AttentionMetadata.build(tables, lengths, [2], 2, window=3)
    for new, window in ((1, 5), (2, 4), (1, None)):
        with pytest.raises(
            ValueError, match=r"block_tables\[0\]\[.\] must be a page: its keys are visible with window"
        ):
            AttentionMetadata.build(tables, lengths, [new], 2, window=window)


def test_padding_sequences_store_nothing():
    m = AttentionMetadata.build([[3], [], []], [2, 0, 0], [1, 1, 1], 4)
    assert m.q_len == 1 and m.slot_mapping.tolist() == [13, -1, -1]
    assert m.seqlens_k.tolist() == [2, 0, 0] and m.block_table.tolist() == [[3], [-1], [-1]]


def test_arrays_are_as_good_as_lists():
    lists = [[4, 2, 7], [1, 0, 9]], [33, 40], [3, 1]
    arrays = np.array(lists[0], dtype=np.int32), np.array(lists[1]), torch.tensor(lists[2])
    a, b = (AttentionMetadata.build(*args, 16) for args in (lists, arrays))
    assert all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("slot_mapping", "block_table", "cu_seqlens_q"))


def test_it_is_frozen():
    m = AttentionMetadata.build([[0]], [1], [1], 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        m.q_len = 2


GOOD = {"block_tables": [[0, 1], [2]], "seqlens_k": [6, 3], "query_lens": [2, 3], "page_size": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"page_size": 0}, "page_size must be at least 1, got 0"),
        ({"window": 0}, "window must be at least 1 .* or None, got 0"),
        ({"seqlens_k": [6]}, "seqlens_k must be of length 2 like block_tables, got 1"),
        ({"query_lens": [2, 3, 1]}, "query_lens must be of length 2 like block_tables, got 3"),
        ({"query_lens": [2, -1]}, r"query_lens\[1\] and seqlens_k\[1\] must be at least 0, got -1 and 3"),
        ({"seqlens_k": [6, 2]}, r"seqlens_k\[1\] must be 0 \(padding\) or at least query_lens\[1\] = 3, got 2"),
        ({"seqlens_k": [9, 3]}, r"block_tables\[0\] must be of at least 3 pages for 9 tokens, got 2"),
        ({"block_tables": [[0, 1], [-1]]}, r"block_tables\[1\]\[0\] must be a page: .* window=None, got -1"),
        ({"query_lens": [1.5, 2.0]}, "query_lens must be one integer per sequence, on the host, got torch.float32"),
        ({"query_lens": [[1], [2]]}, r"query_lens must be one integer per sequence.* of shape \[2, 1\]"),
        ({"seqlens_k": torch.tensor([6, 3], device="meta")}, "seqlens_k must be .* on the host, got .* on meta"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_errors_name_the_argument(changes, message):
    AttentionMetadata.build(**GOOD)
    with pytest.raises(ValueError, match=f"AttentionMetadata.build: {message}"):
        AttentionMetadata.build(**{**GOOD, **changes})


@pytest.mark.parametrize("window", [2**31 - 1, 2**62, 2**63 - 1, 2**70])
def test_windows_longer_than_any_sequence_see_all_pages(window):
    """Beside a padding sequence, whose queries start before position 0."""
    step = [[5, 6], []], [7, 0], [2, 3], 4
    AttentionMetadata.build(*step, window=window)
    with pytest.raises(ValueError, match=r"block_tables\[0\]\[0\] must be a page: its keys are visible"):
        AttentionMetadata.build([[-1, 6], []], *step[1:], window=window)


def test_what_an_int32_does_not_hold_is_refused():
    with pytest.raises(ValueError, match=r"seqlens_k\[0\] must be at most 2\*\*31 - 1, got 2147483648"):
        AttentionMetadata.build([range(2**15)], [2**31], [1], 2**16)
    with pytest.raises(ValueError, match=r"block_tables\[0\]\[1\] must be at most 2\*\*31 - 1, got 2147483648"):
        AttentionMetadata.build([[0, 2**31]], [5], [1], 4)
