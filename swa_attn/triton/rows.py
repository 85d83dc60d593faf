"""Query rows: which token and head they are, which keys they see, and which rows are attended to together.

A row is a (token, query head of the KV head's group) pair of one sequence, tokens outermost. A tile's rows are attended
to together, and once more token by token if a value reached a row that does not see it. Kernels repeat the same code
for that, in a loop: a copy of it might be compiled to other additions.
"""

import triton
import triton.language as tl


@triton.jit
def tile_rows(i_tile, q_len, GROUP_SIZE: tl.constexpr, BLOCK_M: tl.constexpr):
    """First and last + 1 row of a sequence's tile; the first is not below the second where there are none."""
    return i_tile * BLOCK_M, tl.minimum((i_tile + 1) * BLOCK_M, q_len * GROUP_SIZE)


@triton.jit
def tokens_and_heads(first_row, end_row, i_head, GROUP_SIZE: tl.constexpr, BLOCK_M: tl.constexpr):
    """Token, query head and existence of the rows first_row to end_row, each [M]."""
    o_row = first_row + tl.arange(0, BLOCK_M)
    o_head = (i_head * GROUP_SIZE + o_row % GROUP_SIZE).to(tl.int64)
    return o_row // GROUP_SIZE, o_head, o_row < end_row


@triton.jit
def visible_keys(first_row, end_row, context, window, GROUP_SIZE: tl.constexpr):
    """First and last + 1 key that some row of first_row to end_row sees; `context` is the sequence's length before its
    queries, negative if there are more queries than keys."""
    first_position = tl.maximum(0, context + first_row // GROUP_SIZE)
    return tl.maximum(0, first_position - window + 1), context + (end_row - 1) // GROUP_SIZE + 1


@triton.jit
def accept_rows(b_acc, b_l, first_row, end_row, end_tile, GROUP_SIZE: tl.constexpr):
    """Decide from the sums [M, D] and [M] of the rows first_row to end_row whether they are right.

    Returns the first row to store (end_row for none of them) and the range of rows to attend to next. Kernels locate
    the rows anew from the former: kept through the loop over keys, pointers and masks would cost registers.

    A key that some of the rows do not see has weight 0 there, and 0 x NaN and 0 x infinity are NaN. Rows of one token
    see the same keys, so what they sum up is theirs. Looking at the sums, once per tile, is cheaper than looking at
    every V. A row whose scores are NaN is NaN whatever V holds.
    """
    m_leak = ((tl.abs(b_acc) < float("inf")) == 0) & (b_l == b_l)[:, None]
    is_one_token = first_row // GROUP_SIZE == (end_row - 1) // GROUP_SIZE
    is_right = is_one_token | (tl.max(m_leak.to(tl.int32)) == 0)
    next_row = tl.where(is_right, end_row, first_row)
    end_next = tl.minimum((next_row // GROUP_SIZE + 1) * GROUP_SIZE, end_tile)
    return tl.where(is_right, first_row, end_row), next_row, end_next
