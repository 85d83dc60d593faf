"""What every launcher needs to know: the architecture, the interpreter, and how the head dimensions are cut."""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .interpreter import INTERPRETED
from .scores import LOG2_E

NO_WINDOW = (
    2**31 - 1
)  # at least as many keys as any sequence has; may be subtracted from a position that is not negative
INTERPRETER_ARCH = 90  # whose tiles it runs
DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def arch() -> int:
    """Compute capability of the current device as Triton writes it: 80, 90, 100."""
    return INTERPRETER_ARCH if INTERPRETED.value else triton.runtime.driver.active.get_current_target().arch


def launch(kernel: Any, grid: tuple[int, ...], device_of: Tensor, *args: Any, **meta: Any) -> None:
    """Run a kernel on the device of `device_of`; an empty grid is no work. FMA contraction is asked for by name, since
    Triton's default is changing."""
    if math.prod(grid) == 0:
        return
    with torch.cuda.device_of(device_of):
        kernel[grid](*args, **meta, enable_fp_fusion=True)


class HeadDims(NamedTuple):
    """The pieces a kernel computes with: powers of two, so 192 is 128 + 64 and only odd sizes are padded."""

    DK: int
    DK_HEAD: int
    DK_TAIL: int  # 0: none
    DV: int
    DV_TILE: int


def cut_head_dims(head_dim: int, v_head_dim: int) -> HeadDims:
    head = max(16, 1 << (head_dim.bit_length() - 1))  # 16: the least that a dot accepts
    rest = head_dim - head
    tail = max(16, triton.next_power_of_2(rest)) if rest > 0 else 0
    return HeadDims(head_dim, head, tail, v_head_dim, max(16, triton.next_power_of_2(v_head_dim)))


def score_factors(softmax_scale: float, softcap: float) -> tuple[float, float]:
    """score_factor and cap_log2 of `scores.to_log2_scores`."""
    if softcap > 0:
        return softmax_scale / softcap, softcap * LOG2_E.value
    return softmax_scale * LOG2_E.value, 0.0


def window_or_all(window: int) -> int:
    return min(window, NO_WINDOW) if window > 0 else NO_WINDOW
