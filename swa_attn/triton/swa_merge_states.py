"""merge_states: two partial attentions over disjoint keys become one."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .interpreter import rounded
from .launch import launch
from .scores import LOG2_E, finite_max, softmax_finish
from .tiles import MERGE_ROWS


class Partial(NamedTuple):
    """One kernel argument; the fields are passed one by one."""

    out: Any  # [num_rows, num_q_heads, DV]
    stride_row: Any  # of out, in elements
    stride_head: Any
    lse: Any  # float32 [num_rows, num_q_heads]
    lse_stride_row: Any
    lse_stride_head: Any


@triton.jit
def load_part(part, i_row, i_head, m_row, o_dim, DV: tl.constexpr):
    """out [R, D] and lse [R] (log2 units) of one partial; the out of an empty row is 0 and not read. A partial that saw
    no key has lse -inf here and +inf in FlashAttention."""
    p_lse = part.lse + i_row * part.lse_stride_row + i_head * part.lse_stride_head
    b_lse = tl.load(p_lse, mask=m_row, other=float("-inf")) * LOG2_E
    b_lse = tl.where(b_lse == float("inf"), float("-inf"), b_lse)
    mask = (b_lse != float("-inf"))[:, None] & (o_dim < DV)[None, :]
    p_out = part.out + i_row * part.stride_row + i_head * part.stride_head
    return tl.load(p_out[:, None] + o_dim[None, :], mask=mask, other=0.0).to(tl.float32), b_lse


@triton.jit(do_not_specialize=["num_rows"])
def swa_merge_states(
    part_a,
    part_b,
    sinks,  # [num_q_heads] or None
    out,  # [num_rows, num_q_heads, DV], contiguous
    lse,  # float32 [num_rows, num_q_heads], contiguous
    num_rows,
    num_q_heads,
    DV: tl.constexpr,
    DV_TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One program: BLOCK_R pairs of a row and a query head."""
    i_pair = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    i_row = i_pair // num_q_heads
    i_head = i_pair % num_q_heads
    m_row = i_row < num_rows
    o_dim = tl.arange(0, DV_TILE)
    b_a, b_lse_a = load_part(part_a, i_row, i_head, m_row, o_dim, DV)
    b_b, b_lse_b = load_part(part_b, i_row, i_head, m_row, o_dim, DV)
    b_m = tl.maximum(b_lse_a, b_lse_b)
    b_weight_a = tl.exp2(b_lse_a - finite_max(b_m))
    b_weight_b = tl.exp2(b_lse_b - finite_max(b_m))
    b_acc = b_a * b_weight_a[:, None] + b_b * b_weight_b[:, None]
    b_out, b_lse = softmax_finish(b_acc, b_m, b_weight_a + b_weight_b, sinks, i_head, m_row)
    mask = m_row[:, None] & (o_dim < DV)[None, :]
    tl.store(out + i_pair[:, None] * DV + o_dim[None, :], rounded(b_out, out.dtype.element_ty), mask=mask)
    tl.store(lse + i_pair, b_lse, mask=m_row)


def merge_states(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, *, sinks: Tensor | None = None, out: Tensor, lse: Tensor
) -> None:
    """As `swa_attn.ops.merge_states`, of `[num_rows, num_q_heads, v_head_dim]`, into `out` and `lse`."""
    num_rows, num_q_heads, v_head_dim = out_a.shape
    launch(
        swa_merge_states,
        (triton.cdiv(num_rows * num_q_heads, MERGE_ROWS),),
        out_a,
        Partial(out_a, *out_a.stride()[:2], lse_a, *lse_a.stride()),
        Partial(out_b, *out_b.stride()[:2], lse_b, *lse_b.stride()),
        sinks,
        out,
        lse,
        num_rows,
        num_q_heads,
        DV=v_head_dim,
        DV_TILE=triton.next_power_of_2(v_head_dim),
        BLOCK_R=MERGE_ROWS,
        num_warps=4,
    )
