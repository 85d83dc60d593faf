"""Which sequence a tile of a ragged batch belongs to, found on the device: the host never reads a length."""

import triton
import triton.language as tl


def bound_num_tiles(num_rows: int, num_seqs: int, block_m: int) -> int:
    """No batch of `num_seqs` sequences with `num_rows` query rows together has more tile indices than this."""
    return num_rows // block_m + num_seqs


@triton.jit
def sequence_of_tile(
    cu_seqlens_q, num_seqs, i_tile, GROUP_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr
):
    """The sequence of a tile, and the tile's index within it (which may lie beyond its last one: an idle program).

    Sequence s owns the indices from `cu_seqlens_q[s] * GROUP_SIZE // BLOCK_M + s` up to where s + 1 begins: always
    enough for its rows, whatever the lengths are. The sequences that begin at or before i_tile are counted a chunk at
    a time, which is one round trip to memory for most batches where a binary search takes one per step.
    """
    count = 0
    for i in range(0, num_seqs, CHUNK):
        o_seq = i + tl.arange(0, CHUNK)
        m_seq = o_seq < num_seqs
        b_first = tl.load(cu_seqlens_q + o_seq, mask=m_seq, other=0) * GROUP_SIZE // BLOCK_M + o_seq
        count += tl.sum((m_seq & (b_first <= i_tile)).to(tl.int32), 0)
    i_seq = count - 1
    return i_seq, i_tile - (tl.load(cu_seqlens_q + i_seq) * GROUP_SIZE // BLOCK_M + i_seq)
