"""copy_pages without quantising: pages as they are, or float8 pages back to a wider dtype."""

import triton
import triton.language as tl
from torch import Tensor, float8_e4m3fn, uint8

from .fp8 import as_kernel_sees, from_fp8
from .interpreter import rounded
from .launch import arch, launch
from .layered_pages import describe, row_pointers, scale_pointers
from .swa_copy_pages_to_fp8 import swa_copy_pages_to_fp8
from .tiles import COPY_ELEMENTS


@triton.jit
def swa_copy_pages(
    src,
    dst,
    src_pages,  # int64 [num_pairs]
    dst_pages,
    page_size,
    num_kv_heads,
    DEQUANTISE: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One program: BLOCK_R (slot, head) rows of one layer of one page pair."""
    i_src = tl.load(src_pages + tl.program_id(0))
    i_dst = tl.load(dst_pages + tl.program_id(0))
    if (i_src < 0) | (i_dst < 0):
        return
    i_layer = tl.program_id(1)
    o_row = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_slot = o_row // num_kv_heads
    o_head = o_row % num_kv_heads
    o_dim = tl.arange(0, TILE)
    m_row = o_slot < page_size
    mask = m_row[:, None] & (o_dim < DIM)[None, :]
    b_x = tl.load(row_pointers(src, i_layer, i_src, o_slot, o_head, o_dim), mask=mask)
    if DEQUANTISE:
        b_scale = tl.load(scale_pointers(src, i_layer, i_src, o_head), mask=m_row, other=1.0)
        b_x = rounded(from_fp8(b_x) * b_scale[:, None], dst.pool.dtype.element_ty)
    tl.store(row_pointers(dst, i_layer, i_dst, o_slot, o_head, o_dim), b_x, mask=mask)
    if dst.scale is not None:
        o_head = tl.arange(0, BLOCK_H)
        m_head = o_head < tl.where(tl.program_id(2) == 0, num_kv_heads, 0)
        b_scale = tl.load(scale_pointers(src, i_layer, i_src, o_head), mask=m_head)
        tl.store(scale_pointers(dst, i_layer, i_dst, o_head), b_scale, mask=m_head)


def copy_pages(
    src: Tensor,
    dst: Tensor,
    src_pages: Tensor,
    dst_pages: Tensor,
    *,
    src_scale: Tensor | None = None,
    dst_scale: Tensor | None = None,
) -> None:
    """As `swa_attn.ops.copy_pages`."""
    num_layers, _, page_size, num_kv_heads, dim = src.shape
    on_gpu = src if src.device.type != "cpu" else dst
    src_pages, dst_pages = (x.to(on_gpu.device, non_blocking=True) for x in (src_pages, dst_pages))
    num_pairs, tile = src_pages.shape[0], triton.next_power_of_2(dim)
    block_r = max(1, COPY_ELEMENTS // tile)
    sizes = {"DIM": dim, "TILE": tile, "BLOCK_R": block_r}
    if src.dtype == dst.dtype and src.dtype == float8_e4m3fn:
        src, dst = src.view(uint8), dst.view(uint8)  # bits, not numbers
    quantise = src.dtype != dst.dtype and dst.dtype == float8_e4m3fn
    dequantise = src.dtype != dst.dtype and src.dtype == float8_e4m3fn
    pools = [describe(as_kernel_sees(x, arch()), scale) for x, scale in ((src, src_scale), (dst, dst_scale))]
    if quantise:
        grid = num_pairs, num_layers, num_kv_heads
        launch(swa_copy_pages_to_fp8, grid, on_gpu, *pools, src_pages, dst_pages, page_size, **sizes, num_warps=4)
        return
    launch(
        swa_copy_pages,
        (num_pairs, num_layers, triton.cdiv(page_size * num_kv_heads, block_r)),
        on_gpu,
        *pools,
        src_pages,
        dst_pages,
        page_size,
        num_kv_heads,
        DEQUANTISE=dequantise,
        **sizes,
        BLOCK_H=triton.next_power_of_2(num_kv_heads),
        num_warps=4,
    )
