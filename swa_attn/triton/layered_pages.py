"""The pages of many layers, as the copy kernels see them."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class LayeredPages(NamedTuple):
    """One kernel argument; the fields are passed one by one, and a None is a constant."""

    pool: Any  # [num_layers, num_pages, page_size, num_kv_heads, dim]
    stride_layer: Any  # in elements
    stride_page: Any
    stride_slot: Any
    stride_head: Any
    scale: Any  # float32 [num_layers, num_pages, num_kv_heads] or None
    scale_stride_layer: Any
    scale_stride_page: Any


def describe(pool: Tensor, scale: Tensor | None) -> LayeredPages:
    return LayeredPages(pool, *pool.stride()[:4], scale, *((0, 0) if scale is None else scale.stride()[:2]))


@triton.jit
def row_pointers(pages, i_layer, i_page, o_slot, o_head, o_dim):
    """Pointers to elements o_dim of the (slot, head) rows of one page, [R, D]."""
    p_page = pages.pool + i_layer.to(tl.int64) * pages.stride_layer + i_page * pages.stride_page
    p_row = p_page + o_slot.to(tl.int64) * pages.stride_slot + o_head.to(tl.int64) * pages.stride_head
    return p_row[:, None] + o_dim[None, :]


@triton.jit
def scale_pointers(pages, i_layer, i_page, o_head):
    return pages.scale + i_layer.to(tl.int64) * pages.scale_stride_layer + i_page * pages.scale_stride_page + o_head
