"""Split-KV decode, second launch: the splits of a row become its output; the sink is counted here, once."""

import triton
import triton.language as tl

from .interpreter import rounded
from .scores import finite_max, softmax_finish
from .splits import split_range


@triton.jit(do_not_specialize=["num_seqs", "q_len", "window"])
def swa_decode_combine(
    partial_out,  # float32 [num_splits, num_seqs, q_len, num_q_heads, DV], unnormalised
    partial_max,  # float32 [num_splits, num_seqs, q_len, num_q_heads], in log2 units; -inf: saw no key
    partial_sum,  # float32 [num_splits, num_seqs, q_len, num_q_heads]
    seqlens_k,  # [num_seqs]
    sinks,  # [num_q_heads] or None
    out,  # [num_seqs, q_len, num_q_heads, DV]
    stride_out_seq,
    stride_out_token,
    stride_out_head,
    lse,  # [num_seqs, q_len, num_q_heads], contiguous
    num_seqs,
    q_len,
    num_q_heads,
    window,
    SPLIT: tl.constexpr,
    DV: tl.constexpr,
    DV_TILE: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One program: one row. Splits are added BLOCK_S at a time, at absolute multiples of BLOCK_S, so that the order of
    the additions does not depend on which empty splits come before the row's first one."""
    i_row = tl.program_id(0)
    i_head = i_row % num_q_heads
    i_token = i_row // num_q_heads % q_len
    i_seq = (i_row // num_q_heads // q_len).to(tl.int64)
    context = tl.load(seqlens_k + i_seq) - q_len
    first_split, end_split = split_range(context, q_len, window, SPLIT)
    first_block = first_split // BLOCK_S * BLOCK_S
    stride_split = num_seqs.to(tl.int64) * q_len * num_q_heads

    b_max = tl.full([BLOCK_S], float("-inf"), tl.float32)
    for i in range(first_block, end_split, BLOCK_S):
        o_split = i + tl.arange(0, BLOCK_S)
        m_split = (o_split >= first_split) & (o_split < end_split)
        p_max = partial_max + (o_split - first_split) * stride_split + i_row
        b_max = tl.maximum(b_max, tl.load(p_max, mask=m_split, other=float("-inf")))
    row_max = tl.max(b_max, 0)

    o_dim = tl.arange(0, DV_TILE)
    b_sum = tl.zeros([1], tl.float32)
    b_acc = tl.zeros([DV_TILE], tl.float32)
    for i in range(first_block, end_split, BLOCK_S):
        o_split = i + tl.arange(0, BLOCK_S)
        m_split = (o_split >= first_split) & (o_split < end_split)
        o_partial = (o_split - first_split) * stride_split + i_row
        b_weight = tl.exp2(tl.load(partial_max + o_partial, mask=m_split, other=float("-inf")) - finite_max(row_max))
        b_sum += tl.sum(b_weight * tl.load(partial_sum + o_partial, mask=m_split, other=0.0), 0)
        p_out = partial_out + o_partial[:, None] * DV + o_dim[None, :]
        b_out = tl.load(p_out, mask=m_split[:, None] & (o_dim < DV)[None, :], other=0.0)
        b_acc += tl.sum(b_weight[:, None] * b_out, 0)

    o_head = i_head + tl.arange(0, 1)
    b_max = row_max + tl.zeros([1], tl.float32)
    b_result, b_lse = softmax_finish(b_acc[None, :], b_max, b_sum, sinks, o_head, o_head < num_q_heads)
    p_out = out + i_seq * stride_out_seq + i_token.to(tl.int64) * stride_out_token + i_head * stride_out_head
    tl.store(p_out + o_dim[None, :], rounded(b_result, out.dtype.element_ty), mask=(o_dim < DV)[None, :])
    tl.store(lse + i_row + tl.arange(0, 1), b_lse)
