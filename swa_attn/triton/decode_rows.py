"""Which rows a decode program works on, which keys they see, and how those are cut into splits."""

import triton
import triton.language as tl


@triton.jit
def decode_rows(seqlens_k, i_seq, i_block, i_head, q_len, window, GROUP_SIZE: tl.constexpr, BLOCK_M: tl.constexpr):
    """Row block i_block of a sequence and KV head. A row is a (token, query head of the group) pair, tokens outermost.

    Returns o_token [M], o_head [M], m_row [M], the sequence's length before its queries (negative if there are more
    queries than keys), and the first and last + 1 key that some row of the block sees.
    """
    first_row = i_block * BLOCK_M
    end_row = tl.minimum(first_row + BLOCK_M, q_len * GROUP_SIZE)
    o_row = first_row + tl.arange(0, BLOCK_M)
    context = tl.load(seqlens_k + i_seq) - q_len
    first_key = tl.maximum(0, context + first_row // GROUP_SIZE - window + 1)
    end_key = context + (end_row - 1) // GROUP_SIZE + 1
    o_head = (i_head * GROUP_SIZE + o_row % GROUP_SIZE).to(tl.int64)
    return o_row // GROUP_SIZE, o_head, o_row < end_row, context, first_key, end_key


@triton.jit
def split_range(context, q_len, window, SPLIT: tl.constexpr):
    """First and last + 1 split that holds a key some row sees; split i is the positions from i * SPLIT on."""
    first_split = tl.maximum(0, context - window + 1) // SPLIT
    return first_split, (context + q_len + SPLIT - 1) // SPLIT
