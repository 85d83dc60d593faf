"""Prefill: ragged queries over paged keys, any mix of lengths in one launch."""

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
from .sequences import bound_num_tiles, sequence_of_tile
from .tiles import prefill_tile


@triton.jit(do_not_specialize=["num_seqs", "num_tiles", "window"])
def swa_prefill(
    q,  # [total_q, num_q_heads, DK]
    stride_q_token,
    stride_q_head,
    k_pages,
    v_pages,
    block_table,  # [num_seqs, max_pages]
    stride_table,
    seqlens_k,  # [num_seqs]
    cu_seqlens_q,  # [num_seqs + 1]
    sinks,  # [num_q_heads] or None
    out,  # [total_q, num_q_heads, DV]
    stride_out_token,
    stride_out_head,
    lse,  # [total_q, num_q_heads], contiguous
    num_seqs,
    num_tiles,
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
    CHUNK: tl.constexpr,
):
    """One program: BLOCK_M rows of one sequence and KV head. A row is a (token, query head of the group) pair, tokens
    outermost, so any group size fills the tile and a group's heads share the keys that are loaded."""
    num_kv_heads = k_pages.num_kv_heads
    i_head = tl.program_id(0) % num_kv_heads
    # Last tiles first: without a window they have the most keys and should not be what the launch ends with.
    i_tile = num_tiles - 1 - tl.program_id(0) // num_kv_heads
    i_seq, i_tile = sequence_of_tile(cu_seqlens_q, num_seqs, i_tile, GROUP_SIZE, BLOCK_M, CHUNK)
    first_token = tl.load(cu_seqlens_q + i_seq)
    q_len = tl.load(cu_seqlens_q + i_seq + 1) - first_token
    context = tl.load(seqlens_k + i_seq) - q_len  # negative when there are more queries than keys
    first_row, end_tile = tile_rows(i_tile, q_len, GROUP_SIZE, BLOCK_M)
    end_row = end_tile
    while condition(first_row < end_tile, disable_licm=True):
        o_token, o_head, m_row = tokens_and_heads(first_row, end_row, i_head, GROUP_SIZE, BLOCK_M)
        i_token = (first_token + o_token).to(tl.int64)
        p_q = q + i_token * stride_q_token + o_head * stride_q_head
        first_key, end_key = visible_keys(first_row, end_row, context, window, GROUP_SIZE)
        b_acc, b_m, b_l = attend(
            p_q,
            m_row,
            context + o_token,
            first_key,
            end_key,
            k_pages,
            v_pages,
            block_table + i_seq.to(tl.int64) * stride_table,
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
        i_token = (first_token + o_token).to(tl.int64)
        b_out, b_lse = softmax_finish(b_acc, b_m, b_l, sinks, o_head, m_row)
        o_dim = tl.arange(0, DV_TILE)
        p_out = out + (i_token * stride_out_token + o_head * stride_out_head)[:, None] + o_dim[None, :]
        tl.store(p_out, rounded(b_out, out.dtype.element_ty), mask=m_row[:, None] & (o_dim < DV)[None, :])
        tl.store(lse + i_token * (num_kv_heads * GROUP_SIZE) + o_head, b_lse, mask=m_row)
        first_row, end_row = next_row, end_next


def prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seqlens_k: Tensor,
    cu_seqlens_q: Tensor,
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
    """As `swa_attn.ops.prefill`, into `out` and `lse`."""
    target = arch()
    total_q, num_q_heads, head_dim = q.shape
    num_seqs = seqlens_k.shape[0]
    _, page_size, num_kv_heads, v_head_dim = v_cache.shape
    group_size = num_q_heads // num_kv_heads
    tile = prefill_tile(target, head_dim, v_head_dim, q.element_size(), k_cache.element_size())
    num_tiles = bound_num_tiles(total_q * group_size, num_seqs, tile.block_m) if num_seqs else 0
    k_cache, v_cache, k_host_cache, v_host_cache = (
        as_kernel_sees(x, target) for x in (k_cache, v_cache, k_host_cache, v_host_cache)
    )
    launch(
        swa_prefill,
        (num_tiles * num_kv_heads,),
        q,
        q,
        *q.stride()[:2],
        describe(k_cache, k_host_cache, k_scale),
        describe(v_cache, v_host_cache, v_scale),
        block_table,
        block_table.stride(0),
        seqlens_k,
        cu_seqlens_q,
        sinks,
        out,
        *out.stride()[:2],
        lse,
        num_seqs,
        num_tiles,
        window_or_all(window),
        *score_factors(softmax_scale, softcap),
        HAS_SOFTCAP=softcap > 0,
        COMPUTE=DTYPES[q.dtype],
        GROUP_SIZE=group_size,
        PAGE_SIZE=page_size,
        **cut_head_dims(head_dim, v_head_dim)._asdict(),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        CHUNK=256,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
