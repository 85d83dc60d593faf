"""A mistake to plant in the Triton kernels: weights are scaled, rounded, scaled back and rounded again."""

import triton
import triton.language as tl

from swa_attn.triton.interpreter import rounded


@triton.jit
def rounded_twice(x, DTYPE: tl.constexpr):
    return rounded(rounded(x * 1.5, DTYPE).to(tl.float32) / 1.5, DTYPE)
