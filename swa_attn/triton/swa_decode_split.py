"""Split-KV decode, first launch: the softmax sums of every split of a long range."""

import triton
import triton.language as tl

from .attend import attend
from .interpreter import condition
from .rows import accept_rows, tile_rows, tokens_and_heads, visible_keys
from .splits import split_range


@triton.jit(do_not_specialize=["q_len", "window"])
def swa_decode_split(
    q,  # [num_seqs, q_len, num_q_heads, DK]
    stride_q_seq,
    stride_q_token,
    stride_q_head,
    k_pages,
    v_pages,
    block_table,  # [num_seqs, max_pages]
    stride_table,
    seqlens_k,  # [num_seqs]
    partial_out,  # float32 [num_splits, num_seqs, q_len, num_q_heads, DV], unnormalised
    partial_max,  # float32 [num_splits, num_seqs, q_len, num_q_heads], in log2 units; -inf: saw no key
    partial_sum,  # float32 [num_splits, num_seqs, q_len, num_q_heads]
    q_len,
    window,
    score_factor,
    cap_log2,
    HAS_SOFTCAP: tl.constexpr,
    COMPUTE: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    DK: tl.constexpr,
    DK_HEAD: tl.constexpr,
    DK_TAIL: tl.constexpr,
    DV: tl.constexpr,
    DV_TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """One program: the rows of `swa_decode`, over every num_programs(2)-th split. Splits beyond the sequence's last one
    are not written; `swa_decode_combine` derives the same range from the length and does not read them."""
    num_kv_heads = k_pages.num_kv_heads
    i_head = tl.program_id(0) % num_kv_heads
    i_seq = tl.program_id(1).to(tl.int64)
    context = tl.load(seqlens_k + i_seq) - q_len  # negative when there are more queries than keys
    first_split, end_split = split_range(context, q_len, window, SPLIT)
    start_row, end_tile = tile_rows(tl.program_id(0) // num_kv_heads, q_len, GROUP_SIZE, BLOCK_M)
    first_row, end_row = start_row, end_tile
    i_split = first_split + tl.program_id(2)
    while condition(i_split < end_split, disable_licm=True):
        o_token, o_head, m_row = tokens_and_heads(first_row, end_row, i_head, GROUP_SIZE, BLOCK_M)
        p_q = q + i_seq * stride_q_seq + o_token.to(tl.int64) * stride_q_token + o_head * stride_q_head
        first_key, end_key = visible_keys(first_row, end_row, context, window, GROUP_SIZE)
        b_acc, b_m, b_l = attend(
            p_q,
            m_row,
            context + o_token,
            tl.maximum(first_key, i_split * SPLIT),
            i_split * SPLIT + tl.minimum(end_key - i_split * SPLIT, SPLIT),
            k_pages,
            v_pages,
            block_table + i_seq * stride_table,
            i_head,
            window,
            score_factor,
            cap_log2,
            HAS_SOFTCAP,
            COMPUTE,
            PAGE_SIZE,
            DK,
            DK_HEAD,
            DK_TAIL,
            DV,
            DV_TILE,
            BLOCK_M,
            BLOCK_N,
        )
        first_right, next_row, end_next = accept_rows(b_acc, b_l, first_row, end_row, end_tile, GROUP_SIZE)
        o_token, o_head, m_row = tokens_and_heads(first_right, end_row, i_head, GROUP_SIZE, BLOCK_M)
        i_slot = (i_split - first_split).to(tl.int64) * tl.num_programs(1) + i_seq
        o_partial = (i_slot * q_len + o_token) * (num_kv_heads * GROUP_SIZE) + o_head
        o_dim = tl.arange(0, DV_TILE)
        m_out = m_row[:, None] & (o_dim < DV)[None, :]
        tl.store(partial_out + o_partial[:, None] * DV + o_dim[None, :], b_acc, mask=m_out)
        tl.store(partial_max + o_partial, b_m, mask=m_row)
        tl.store(partial_sum + o_partial, b_l, mask=m_row)
        first_row, end_row = next_row, end_next
        if first_row >= end_tile:
            first_row, end_row = start_row, end_tile
            i_split += tl.num_programs(2)
