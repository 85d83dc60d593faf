"""merge_states: two partial attentions over disjoint keys become one."""

import triton
import triton.language as tl
from torch import Tensor

from .interpreter import rounded
from .launch import launch
from .scores import LOG2_E, finite_max, softmax_finish
from .tiles import MERGE_ROWS


@triton.jit
def load_part(part_out, part_lse, i_row, m_row, o_dim, DV: tl.constexpr):
    """out [R, D] and lse [R] (log2 units) of one partial; the out of an empty row is 0 and not read."""
    b_lse = tl.load(part_lse + i_row, mask=m_row, other=float("-inf")) * LOG2_E
    mask = (b_lse != float("-inf"))[:, None] & (o_dim < DV)[None, :]
    return tl.load(part_out + i_row[:, None] * DV + o_dim[None, :], mask=mask, other=0.0).to(tl.float32), b_lse


@triton.jit(do_not_specialize=["num_rows"])
def swa_merge_states(
    out_a,  # [num_rows, DV], a row is a (..., query head)
    lse_a,  # float32 [num_rows]
    out_b,
    lse_b,
    sinks,  # [num_q_heads] or None
    out,  # [num_rows, DV]
    lse,  # float32 [num_rows]
    num_rows,
    num_q_heads,
    DV: tl.constexpr,
    DV_TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One program: BLOCK_R rows."""
    i_row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_row = i_row < num_rows
    o_dim = tl.arange(0, DV_TILE)
    b_a, b_lse_a = load_part(out_a, lse_a, i_row, m_row, o_dim, DV)
    b_b, b_lse_b = load_part(out_b, lse_b, i_row, m_row, o_dim, DV)
    b_m = tl.maximum(b_lse_a, b_lse_b)
    b_weight_a = tl.exp2(b_lse_a - finite_max(b_m))
    b_weight_b = tl.exp2(b_lse_b - finite_max(b_m))
    b_acc = b_a * b_weight_a[:, None] + b_b * b_weight_b[:, None]
    b_out, b_lse = softmax_finish(b_acc, b_m, b_weight_a + b_weight_b, sinks, i_row % num_q_heads, m_row)
    mask = m_row[:, None] & (o_dim < DV)[None, :]
    tl.store(out + i_row[:, None] * DV + o_dim[None, :], rounded(b_out, out.dtype.element_ty), mask=mask)
    tl.store(lse + i_row, b_lse, mask=m_row)


def merge_states(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, *, sinks: Tensor | None = None, out: Tensor, lse: Tensor
) -> None:
    """As `swa_attn.ops.merge_states`, into `out` and `lse`."""
    num_q_heads, v_head_dim = out_a.shape[-2:]
    num_rows = lse_a.numel()
    launch(
        swa_merge_states,
        (triton.cdiv(num_rows, MERGE_ROWS),),
        out_a,
        out_a,
        lse_a,
        out_b,
        lse_b,
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
