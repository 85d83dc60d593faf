"""copy_pages into float8: every (layer, page, head) gets the scale that its largest magnitude needs."""

import triton
import triton.language as tl

from .fp8 import FP8_MAX, to_fp8
from .layered_pages import row_pointers, scale_pointers


@triton.jit
def swa_copy_pages_to_fp8(
    src,
    dst,
    src_pages,  # int64 [num_pairs]
    dst_pages,
    page_size,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One program: one head of one layer of one page pair, read twice: for the scale, then to store."""
    i_src = tl.load(src_pages + tl.program_id(0))
    i_dst = tl.load(dst_pages + tl.program_id(0))
    if (i_src < 0) | (i_dst < 0):
        return
    i_layer = tl.program_id(1)
    o_head = tl.program_id(2) + tl.zeros([BLOCK_R], tl.int32)
    o_dim = tl.arange(0, TILE)
    b_largest = tl.zeros([BLOCK_R], tl.float32)
    for i in range(0, page_size, BLOCK_R):
        o_slot = i + tl.arange(0, BLOCK_R)
        mask = (o_slot < page_size)[:, None] & (o_dim < DIM)[None, :]
        b_x = tl.load(row_pointers(src, i_layer, i_src, o_slot, o_head, o_dim), mask=mask, other=0.0).to(tl.float32)
        b_largest = tl.maximum(b_largest, tl.max(tl.abs(b_x), 1))
    # The floor keeps the scale of an all-zero page away from 0, which it is divided by.
    scale = tl.maximum(tl.math.div_rn(tl.max(b_largest, 0), FP8_MAX), 1e-12)
    for i in range(0, page_size, BLOCK_R):
        o_slot = i + tl.arange(0, BLOCK_R)
        mask = (o_slot < page_size)[:, None] & (o_dim < DIM)[None, :]
        b_x = tl.load(row_pointers(src, i_layer, i_src, o_slot, o_head, o_dim), mask=mask, other=0.0).to(tl.float32)
        b_x = to_fp8(tl.math.div_rn(b_x, scale), dst.pool.dtype.element_ty)
        tl.store(row_pointers(dst, i_layer, i_dst, o_slot, o_head, o_dim), b_x, mask=mask)
    tl.store(scale_pointers(dst, i_layer, i_dst, tl.program_id(2)), scale)
