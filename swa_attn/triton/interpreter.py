"""Triton's interpreter (`TRITON_INTERPRET=1` when this package is first imported): is it on, and what it needs."""

import triton
import triton.language as tl


@triton.jit
def _probe():
    pass


INTERPRETED: tl.constexpr = tl.constexpr(not isinstance(_probe, triton.JITFunction))


def _is_true(value, disable_licm=False):
    return value


# The condition of a `while` loop; of Triton's own, the interpreter of 3.6 would take every one for true.
condition = _is_true if INTERPRETED.value else tl.condition


@triton.jit
def dot(a, b, acc):
    """acc + a @ b, [M, N] float32. float32 operands are multiplied as float32, not as tf32.

    The interpreter multiplies in float64: NumPy's float32 product rounds a row by its place in the matrix, which would
    hide whether a kernel is batch invariant, and its bfloat16 arithmetic is wrong.
    """
    if INTERPRETED:
        return acc + tl.dot(a.to(tl.float32).to(tl.float64), b.to(tl.float32).to(tl.float64)).to(tl.float32)
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """float32 x as DTYPE, to nearest even. The interpreter cuts the digits off that bfloat16 has not, so it gets a float32
    that is a bfloat16 already."""
    if INTERPRETED and DTYPE.is_bf16():
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(DTYPE)
