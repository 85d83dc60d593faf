"""append_kv: scatter new keys and values into their page slots."""

import triton
import triton.language as tl
from torch import Tensor

from .fp8 import as_kernel_sees, to_fp8
from .interpreter import rounded
from .launch import arch, launch
from .pages import describe, load_scales, mask_slots, slot_pointers
from .tiles import APPEND_ROWS


@triton.jit
def store_slots(
    p_new,  # [N], pointers to the rows of new elements
    pages,
    b_page,  # [N]
    o_slot,  # [N]
    m_row,  # [N]
    o_head,  # [N]
    DIM: tl.constexpr,
    TILE: tl.constexpr,
):
    """Cast rows to the pool's dtype and store them."""
    DTYPE: tl.constexpr = pages.cache.dtype.element_ty
    o_dim = tl.arange(0, TILE)
    mask = mask_slots(m_row, o_dim, DIM, TILE)
    b_x = tl.load(p_new[:, None] + o_dim[None, :], mask=mask, other=0.0).to(tl.float32)
    if DTYPE.primitive_bitwidth == 8:
        if pages.scale is not None:
            b_x = tl.math.div_rn(b_x, load_scales(pages, b_page, m_row, o_head)[:, None])
        b_x = to_fp8(b_x, DTYPE)
    else:
        b_x = rounded(b_x, DTYPE)
    tl.store(slot_pointers(pages, b_page, o_slot, o_head, o_dim), b_x, mask=mask)


@triton.jit(do_not_specialize=["num_tokens"])
def swa_append_kv(
    key,  # [num_tokens, num_kv_heads, DK]
    stride_key_token,
    stride_key_head,
    value,  # [num_tokens, num_kv_heads, DV]
    stride_value_token,
    stride_value_head,
    slot_mapping,  # int64 [num_tokens]
    k_pages,
    v_pages,
    num_tokens,
    PAGE_SIZE: tl.constexpr,
    DK: tl.constexpr,
    DK_TILE: tl.constexpr,
    DV: tl.constexpr,
    DV_TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One program: BLOCK_R (token, KV head) rows of both tensors."""
    num_kv_heads = k_pages.num_kv_heads
    o_row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    i_token = (o_row // num_kv_heads).to(tl.int64)
    o_head = (o_row % num_kv_heads).to(tl.int64)
    b_slot = tl.load(slot_mapping + i_token, mask=i_token < num_tokens, other=-1)
    m_row = b_slot >= 0
    b_page = b_slot // PAGE_SIZE
    o_slot = b_slot % PAGE_SIZE
    p_key = key + i_token * stride_key_token + o_head * stride_key_head
    store_slots(p_key, k_pages, b_page, o_slot, m_row, o_head, DK, DK_TILE)
    p_value = value + i_token * stride_value_token + o_head * stride_value_head
    store_slots(p_value, v_pages, b_page, o_slot, m_row, o_head, DV, DV_TILE)


def append_kv(
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_host_cache: Tensor | None = None,
    v_host_cache: Tensor | None = None,
) -> None:
    """As `swa_attn.ops.append_kv`."""
    target = arch()
    num_tokens, num_kv_heads, head_dim = key.shape
    v_head_dim = value.shape[2]
    k_cache, v_cache, k_host_cache, v_host_cache = (
        as_kernel_sees(x, target) for x in (k_cache, v_cache, k_host_cache, v_host_cache)
    )
    launch(
        swa_append_kv,
        (triton.cdiv(num_tokens * num_kv_heads, APPEND_ROWS),),
        key,
        key,
        *key.stride()[:2],
        value,
        *value.stride()[:2],
        slot_mapping,
        describe(k_cache, k_host_cache, k_scale),
        describe(v_cache, v_host_cache, v_scale),
        num_tokens,
        PAGE_SIZE=k_cache.shape[1],
        DK=head_dim,
        DK_TILE=triton.next_power_of_2(head_dim),
        DV=v_head_dim,
        DV_TILE=triton.next_power_of_2(v_head_dim),
        BLOCK_R=APPEND_ROWS,
        num_warps=4,
    )
