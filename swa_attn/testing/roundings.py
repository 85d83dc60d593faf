"""What each backend rounds on its way from queries, keys and values to a result: the constants of `bounds.py`.

docs/numerics.md derives them and says where each comes from.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import native

FLOAT32 = 2.0**-24  # unit roundoff: the largest relative error of one rounding to nearest
EXP = 2.0**-22  # relative error of e^x or 2^x: 2 ulp, what PTX grants ex2.approx; the others are held to it by tests
LOG = 2.0**-22  # of log2(x): absolute up to |log2 x| = 1, relative beyond it, what PTX grants lg2.approx
ACCURATE_TANH = 2.0**-20  # relative error of a tanh made of float32 operations
TANH_BY_EXP = 2.0**-19  # absolute error of 1 - 2 / (e^2x + 1) made of ex2.approx and lg2.approx
SMALLEST = 2.0**-124  # what is smaller may become 0: subnormals, and the exponentials that the CPU kernels cut off
NORMAL = 2.0**-126  # the smallest float32 that every unit keeps

_UNIT = {torch.float32: FLOAT32, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
_SUBNORMAL = {torch.float32: 0.0, torch.bfloat16: 0.0, torch.float16: 2.0**-25}


@dataclass(frozen=True)
class Rounding:
    """To a type, once: relative error `unit` and, below the normal range, absolute error `subnormal`; numbers beyond
    `largest` become infinite."""

    unit: float = 0.0
    subnormal: float = 0.0
    largest: float = math.inf

    @staticmethod
    def to(dtype: torch.dtype) -> "Rounding":
        return Rounding(_UNIT[dtype], _SUBNORMAL[dtype], torch.finfo(dtype).max)


@dataclass(frozen=True)
class Roundings:
    """Of one backend for one pair of dtypes.

    Args:
        weights: the rounding of a softmax weight before it meets V; none where weights stay float32.
        values: the rounding of a dequantised value before a weight meets it.
        tensor_cores: products of 16-bit operands are summed by tensor cores, which cut digits off.
        tanh_absolute, tanh_relative: error of the softcap's tanh.
        joins_by_lse: partial results of a long range meet through their log-sum-exp in float32.
        out: the rounding of the result.
    """

    out: Rounding
    weights: Rounding = Rounding()
    values: Rounding = Rounding()
    tensor_cores: bool = False
    tanh_absolute: float = 0.0
    tanh_relative: float = ACCURATE_TANH
    joins_by_lse: bool = False

    def sum_error(self, count: int | Tensor) -> float | Tensor:
        """Error of a sum of `count` products, relative to (sum of magnitudes + magnitude of the sum) / 2, in any order.

        Each of at most `count` additions errs by at most the unit roundoff of a partial sum, and the sum of any part of
        the terms is no larger than those of its positive or of its negative terms. A tensor core adds up to 16 products
        and the sum so far in one step: it cuts every term at 2^-23 of the largest, and then the result. Kernels give it
        keys in blocks of 16 that begin anywhere, and sm_80 takes 8 products a step: 20 cuts in 16 products.
        """
        error = (count // 16 + 2) * 20 * 2 * FLOAT32 if self.tensor_cores else count * FLOAT32
        return error / (1 - error)


def roundings_of(backend: str, dtype: torch.dtype, cache_dtype: torch.dtype | None = None) -> Roundings:
    """Of the backend by that name, for queries of `dtype`; of cuda for everything that runs its kernels."""
    cache_dtype = cache_dtype or dtype
    out, half = Rounding.to(dtype), dtype != torch.float32
    if backend == "reference":
        return Roundings(out)
    if backend == "cpu":
        pairs = native.cpu_level() == "avx512_bf16" and dtype == cache_dtype == torch.bfloat16
        return Roundings(out, weights=out if pairs else Rounding())
    if backend == "triton":
        scaled = half and cache_dtype == torch.float8_e4m3fn and dtype == torch.float16
        return Roundings(
            out, weights=out if half else Rounding(), values=out if scaled else Rounding(), tensor_cores=half
        )
    if backend in ("cuda", "emulated"):
        return Roundings(
            out, weights=out, tensor_cores=True, tanh_absolute=TANH_BY_EXP, tanh_relative=0.0, joins_by_lse=True
        )
    raise ValueError(f"backend must be reference, cpu, triton, cuda or emulated, got {backend!r}")


def log_error(relative: float) -> float:
    """How far off the logarithm of a number may be that has this relative error."""
    return -math.log1p(-relative)
