"""The loop both attention kernels share: one tile of query rows over a range of one sequence's keys."""

import triton
import triton.language as tl

from .fp8 import from_fp8
from .interpreter import dot, rounded
from .pages import load_scales, load_slots, mask_slots, page_ids
from .scores import is_visible, softmax_step, to_log2_scores


@triton.jit
def load_rows(p_row, m_row, COMPUTE: tl.constexpr, DIM: tl.constexpr, FIRST: tl.constexpr, SIZE: tl.constexpr):
    """Elements FIRST to FIRST + SIZE of query rows, [M, SIZE]."""
    o_dim = FIRST + tl.arange(0, SIZE)
    mask = mask_slots(m_row, o_dim, DIM, FIRST + SIZE)
    return tl.load(p_row[:, None] + o_dim[None, :], mask=mask, other=0.0).to(COMPUTE)


@triton.jit
def attend(
    p_q,  # [M], pointers to the query rows, [DK] each
    m_row,  # [M], which rows exist
    o_position,  # [M], position of each row's query
    first_key,  # the keys that some row sees are first_key to end_key (of this split)
    end_key,
    k_pages,
    v_pages,
    p_table,  # [max_pages], the sequence's row of the block table
    i_head,  # KV head
    window,
    score_factor,
    cap_log2,
    HAS_SOFTCAP: tl.constexpr,
    COMPUTE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    DK: tl.constexpr,
    DK_HEAD: tl.constexpr,
    DK_TAIL: tl.constexpr,
    DV: tl.constexpr,
    DV_TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Unnormalised output [M, DV_TILE], maximum [M] (log2 units) and sum [M] of the rows' softmax over their keys.

    Tiles begin at multiples of BLOCK_N and every one of them is masked: what a row computes must not depend on where
    the other rows of its tile begin, and a second, unmasked loop would be contracted differently by the compiler.
    """
    FP8: tl.constexpr = k_pages.cache.dtype.element_ty.primitive_bitwidth == 8
    b_q = load_rows(p_q, m_row, COMPUTE, DK, 0, DK_HEAD)
    if DK_TAIL > 0:
        b_q_tail = load_rows(p_q, m_row, COMPUTE, DK, DK_HEAD, DK_TAIL)
    b_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_l = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, DV_TILE], tl.float32)
    # By number: the position after the last tile need not fit an int32.
    first_tile = first_key // BLOCK_N
    num_tiles = tl.where(end_key > first_key, (end_key - 1) // BLOCK_N - first_tile + 1, 0)
    for i_tile in range(first_tile, first_tile + num_tiles):
        i_key = i_tile * BLOCK_N
        o_key = i_key + tl.arange(0, BLOCK_N)
        m_key = (o_key >= first_key) & (o_key < end_key)
        o_slot = o_key % PAGE_SIZE
        b_page = page_ids(p_table, i_key, o_key, m_key, PAGE_SIZE, BLOCK_N)

        b_k = load_slots(k_pages, b_page, o_slot, m_key, i_head, DK, 0, DK_HEAD)
        if FP8:
            b_k = from_fp8(b_k)
        b_s = dot(b_q, tl.trans(b_k.to(COMPUTE)), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
        if DK_TAIL > 0:
            b_k_tail = load_slots(k_pages, b_page, o_slot, m_key, i_head, DK, DK_HEAD, DK_TAIL)
            if FP8:
                b_k_tail = from_fp8(b_k_tail)
            b_s = dot(b_q_tail, tl.trans(b_k_tail.to(COMPUTE)), b_s)
        if k_pages.scale is not None:
            b_s = b_s * load_scales(k_pages, b_page, m_key, i_head)[None, :]
        b_s = to_log2_scores(b_s, score_factor, cap_log2, HAS_SOFTCAP)
        b_s = tl.where(is_visible(o_key, o_position, window), b_s, float("-inf"))

        b_p, b_alpha, b_m, b_l = softmax_step(b_s, b_m, b_l)

        b_v = load_slots(v_pages, b_page, o_slot, m_key, i_head, DV, 0, DV_TILE)
        if FP8:
            b_v = from_fp8(b_v)
        if v_pages.scale is not None:
            b_v_scale = load_scales(v_pages, b_page, m_key, i_head)
            if COMPUTE.is_fp16():  # a small scale would push float16 weights below their range
                b_v = b_v * b_v_scale[:, None]
            else:
                b_p = b_p * b_v_scale[None, :]
        if FP8:
            b_v = rounded(b_v, COMPUTE)
        b_acc = dot(rounded(b_p, COMPUTE), b_v, b_acc * b_alpha[:, None])
    return b_acc, b_m, b_l
