"""Page pools as a kernel sees them: where the slots of a page lie, on the device or in pinned host memory."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Pages(NamedTuple):
    """A pool of both tiers, as one kernel argument: Triton passes the fields one by one, and a None is a constant."""

    cache: Any  # [num_device_pages, PAGE_SIZE, num_kv_heads, dim]
    stride_page: Any  # in elements, like all strides
    stride_slot: Any
    stride_head: Any
    host_cache: Any  # [num_host_pages, PAGE_SIZE, num_kv_heads, dim] or None
    host_stride_page: Any
    host_stride_slot: Any
    host_stride_head: Any
    scale: Any  # float32 [num_device_pages + num_host_pages, num_kv_heads] or None
    num_device_pages: Any
    num_kv_heads: Any


def describe(cache: Tensor, host_cache: Tensor | None, scale: Tensor | None) -> Pages:
    """The `Pages` of a pool `[pages, page_size, num_kv_heads, dim]` and of its host pages, if there are any."""
    host_strides = (0, 0, 0) if host_cache is None else host_cache.stride()[:3]
    return Pages(
        cache,
        *cache.stride()[:3],
        host_cache,
        *host_strides,
        scale,
        num_device_pages=cache.shape[0],
        num_kv_heads=cache.shape[2],
    )


@triton.jit
def page_ids(p_table, i_key, o_key, m_key, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Page ids [N] of the keys at positions o_key, which begin at i_key, a multiple of BLOCK_N, and of which at least
    one is not masked; entries of masked keys are not read."""
    if PAGE_SIZE % BLOCK_N == 0:
        # One page: what is equal for all keys costs one register, where a vector of 64-bit addresses spills.
        return tl.full([BLOCK_N], tl.load(p_table + i_key // PAGE_SIZE), tl.int32)
    else:
        return tl.load(p_table + o_key // PAGE_SIZE, mask=m_key, other=0)


@triton.jit
def slot_pointers(pages, b_page, o_slot, i_head, o_dim):
    """Pointers to elements o_dim of one head's slots, [N, D]. Offsets have 64 bits: pools may exceed 2^31 elements."""
    b_page = b_page.to(tl.int64)
    o_slot = o_slot.to(tl.int64)
    i_head = i_head.to(tl.int64)
    p_slot = pages.cache + b_page * pages.stride_page + o_slot * pages.stride_slot + i_head * pages.stride_head
    p_slot = p_slot[:, None] + o_dim[None, :]
    if pages.host_cache is not None:
        b_host_page = b_page - pages.num_device_pages
        p_host = pages.host_cache + b_host_page * pages.host_stride_page
        p_host += o_slot * pages.host_stride_slot + i_head * pages.host_stride_head
        # Chosen per element: the compiler (3.9) forgets that rows are aligned when it selects between row pointers.
        p_slot = tl.where((b_host_page >= 0)[:, None], p_host[:, None] + o_dim[None, :], p_slot)
    return p_slot


@triton.jit
def mask_slots(m_slot, o_dim, DIM: tl.constexpr, END: tl.constexpr):
    """Mask [N, D] of slots and of elements below DIM; END is the last o_dim + 1."""
    m = m_slot[:, None]
    if END > DIM:
        m = m & (o_dim < DIM)[None, :]
    return m


@triton.jit
def load_slots(pages, b_page, o_slot, m_slot, i_head, DIM: tl.constexpr, FIRST: tl.constexpr, SIZE: tl.constexpr):
    """Elements FIRST to FIRST + SIZE of one head's slots, [N, SIZE]; 0 in masked slots and beyond DIM."""
    o_dim = FIRST + tl.arange(0, SIZE)
    p_slot = slot_pointers(pages, b_page, o_slot, i_head, o_dim)
    return tl.load(p_slot, mask=mask_slots(m_slot, o_dim, DIM, FIRST + SIZE), other=0.0)


@triton.jit
def load_scales(pages, b_page, m_key, i_head):
    """Factors of the keys' pages for one head, float32 [N]; those of masked keys are not read."""
    return tl.load(pages.scale + b_page.to(tl.int64) * pages.num_kv_heads + i_head, mask=m_key, other=1.0)
