"""Decode: a few queries per sequence. Short windows take one program per sequence and KV head and one launch; longer
ranges are split at absolute positions and combined by a second launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attend import attend
from .fp8 import as_kernel_sees
from .interpreter import condition, rounded
from .launch import DTYPES, arch, cut_head_dims, launch, score_factors, window_or_all
from .pages import describe
from .rows import accept_rows, tile_rows, tokens_and_heads, visible_keys
from .scores import softmax_finish
from .swa_decode_combine import swa_decode_combine
from .swa_decode_split import swa_decode_split
from .tiles import (
    COMBINE_SPLITS,
    LONGEST_UNSPLIT_WINDOW,
    MAX_SPLIT_PROGRAMS,
    MAX_SPLIT_REGISTERS,
    SPLIT,
    decode_tile,
)


@triton.jit(do_not_specialize=["q_len", "window"])
def swa_decode(
    q,  # [num_seqs, q_len, num_q_heads, DK]
    stride_q_seq,
    stride_q_token,
    stride_q_head,
    k_pages,
    v_pages,
    block_table,  # [num_seqs, max_pages]
    stride_table,
    seqlens_k,  # [num_seqs]
    sinks,  # [num_q_heads] or None
    out,  # [num_seqs, q_len, num_q_heads, DV]
    stride_out_seq,
    stride_out_token,
    stride_out_head,
    lse,  # [num_seqs, q_len, num_q_heads], contiguous
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
):
    """One program: BLOCK_M rows (token, query head of the group) of one sequence and KV head, over all their keys."""
    num_kv_heads = k_pages.num_kv_heads
    i_head = tl.program_id(0) % num_kv_heads
    i_seq = tl.program_id(1).to(tl.int64)
    context = tl.load(seqlens_k + i_seq) - q_len  # negative when there are more queries than keys
    first_row, end_tile = tile_rows(tl.program_id(0) // num_kv_heads, q_len, GROUP_SIZE, BLOCK_M)
    end_row = end_tile
    while condition(first_row < end_tile, disable_licm=True):
        o_token, o_head, m_row = tokens_and_heads(first_row, end_row, i_head, GROUP_SIZE, BLOCK_M)
        p_q = q + i_seq * stride_q_seq + o_token.to(tl.int64) * stride_q_token + o_head * stride_q_head
        first_key, end_key = visible_keys(first_row, end_row, context, window, GROUP_SIZE)
        b_acc, b_m, b_l = attend(
            p_q,
            m_row,
            context + o_token,
            first_key,
            end_key,
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
        b_out, b_lse = softmax_finish(b_acc, b_m, b_l, sinks, o_head, m_row)
        o_dim = tl.arange(0, DV_TILE)
        p_out = out + i_seq * stride_out_seq + o_token.to(tl.int64) * stride_out_token + o_head * stride_out_head
        m_out = m_row[:, None] & (o_dim < DV)[None, :]
        tl.store(p_out[:, None] + o_dim[None, :], rounded(b_out, out.dtype.element_ty), mask=m_out)
        tl.store(lse + (i_seq * q_len + o_token) * (num_kv_heads * GROUP_SIZE) + o_head, b_lse, mask=m_row)
        first_row, end_row = next_row, end_next


def num_splits_bound(window: int, q_len: int, max_context: int) -> int:
    """How many splits the keys of one sequence can touch, from what the host knows without looking at lengths."""
    touched = triton.cdiv(max_context, SPLIT)
    return min(touched, (window + q_len - 2) // SPLIT + 2) if window > 0 else touched


def decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seqlens_k: Tensor,
    *,
    softmax_scale: float,
    window: int = -1,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_host_cache: Tensor | None = None,
    v_host_cache: Tensor | None = None,
    out: Tensor,
    lse: Tensor,
) -> None:
    """As `swa_attn.ops.decode`, into `out` and `lse`.

    Whether the keys are split depends on the window alone, so that a row's bits depend on neither the batch nor the
    width of its block table.
    """
    target = arch()
    num_seqs, q_len, num_q_heads, head_dim = q.shape
    _, page_size, num_kv_heads, v_head_dim = v_cache.shape
    group_size = num_q_heads // num_kv_heads
    tile = decode_tile(target, head_dim, v_head_dim, q.element_size(), k_cache.element_size(), group_size)
    num_row_blocks = triton.cdiv(q_len * group_size, tile.block_m)
    k_cache, v_cache, k_host_cache, v_host_cache = (
        as_kernel_sees(x, target) for x in (k_cache, v_cache, k_host_cache, v_host_cache)
    )
    head_dims = cut_head_dims(head_dim, v_head_dim)
    inputs = (
        q,
        *q.stride()[:3],
        describe(k_cache, k_host_cache, k_scale),
        describe(v_cache, v_host_cache, v_scale),
        block_table,
        block_table.stride(0),
        seqlens_k,
    )
    results = sinks, out, *out.stride()[:3], lse
    numbers = q_len, window_or_all(window), *score_factors(softmax_scale, softcap)
    meta = dict(
        HAS_SOFTCAP=softcap > 0,
        COMPUTE=DTYPES[q.dtype],
        GROUP_SIZE=group_size,
        PAGE_SIZE=page_size,
        **head_dims._asdict(),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    grid = num_kv_heads * num_row_blocks, num_seqs
    if 0 < window <= LONGEST_UNSPLIT_WINDOW:
        launch(swa_decode, grid, q, *inputs, *results, *numbers, **meta)
        return

    num_splits = num_splits_bound(window, q_len, block_table.shape[1] * page_size)
    rows = max(1, num_splits), num_seqs, q_len, num_q_heads
    partial_out = torch.empty(*rows, v_head_dim, dtype=torch.float32, device=q.device)
    partial_max, partial_sum = (torch.empty(rows, dtype=torch.float32, device=q.device) for _ in range(2))
    partials = partial_out, partial_max, partial_sum
    at_once = max(1, min(num_splits, MAX_SPLIT_PROGRAMS // max(1, grid[0] * grid[1])))
    split_meta = dict(meta, SPLIT=SPLIT, maxnreg=MAX_SPLIT_REGISTERS)
    launch(swa_decode_split, (*grid, at_once), q, *inputs, *partials, *numbers, **split_meta)
    launch(
        swa_decode_combine,
        (num_seqs * q_len * num_q_heads,),
        q,
        *partials,
        seqlens_k,
        *results,
        num_seqs,
        q_len,
        num_q_heads,
        window_or_all(window),
        SPLIT=SPLIT,
        DV=v_head_dim,
        DV_TILE=head_dims.DV_TILE,
        BLOCK_S=COMBINE_SPLITS,
        num_warps=4,
    )
