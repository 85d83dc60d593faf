"""float8_e4m3fn in and out of registers. Where the hardware lacks it (below sm_89), and in the interpreter, which
rounds it wrongly, the pools are passed as uint8 and the bits are converted with integers."""

import triton
import triton.language as tl
from torch import Tensor, float8_e4m3fn, uint8

from .interpreter import INTERPRETED

FP8_MAX: tl.constexpr = tl.constexpr(448.0)  # the largest finite value
NATIVE_FROM_ARCH = 89


def as_kernel_sees(x: Tensor | None, arch: int) -> Tensor | None:
    """The same memory, in the dtype that a kernel for `arch` converts."""
    native = arch >= NATIVE_FROM_ARCH and not INTERPRETED.value
    return x if x is None or x.dtype != float8_e4m3fn or native else x.view(uint8)


@triton.jit
def from_fp8(x):
    """e4m3 values (or their bytes) as float32, exactly."""
    if x.dtype.is_uint8():
        bits = x.to(tl.int16)
        # The same exponent and mantissa bits read as float16 are the value times 2^-8 (the biases are 7 and 15).
        half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
        value = half.to(tl.float32) * 256.0
        return tl.where((bits & 0x7F) == 0x7F, float("nan"), value)
    return x.to(tl.float32)


@triton.jit
def to_fp8(x, DTYPE: tl.constexpr):
    """float32 to e4m3 (DTYPE float8e4nv, or uint8 for its bytes), clamped to the finite range; NaN stays NaN."""
    b_finite = tl.where(x > FP8_MAX, FP8_MAX, tl.where(x < -FP8_MAX, -FP8_MAX, x))
    if DTYPE.is_uint8():
        magnitude = tl.abs(b_finite)
        bits = magnitude.to(tl.int32, bitcast=True)
        # Normal results: round the mantissa to 3 bits, half to even, and move the exponent's bias from 127 to 7.
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
        # Below 2^-6 the step is 2^-9, which is float32's step at 2^14: the addition rounds.
        subnormal = (magnitude + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
        code = tl.where(magnitude < 0.015625, subnormal, normal)
        code = tl.where(x != x, 0x7F, code)
        sign = (b_finite.to(tl.int32, bitcast=True) >> 24) & 0x80
        return (code | sign).to(tl.uint8)
    return b_finite.to(DTYPE)
