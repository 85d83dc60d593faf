"""The Triton backend: the five ops on NVIDIA GPUs from sm_80 on, and in the interpreter (`TRITON_INTERPRET=1`)."""

from typing import Any

import torch

from .interpreter import INTERPRETED
from .swa_append_kv import append_kv
from .swa_copy_pages import copy_pages
from .swa_decode import decode
from .swa_merge_states import merge_states
from .swa_prefill import prefill

__all__ = ["append_kv", "copy_pages", "decode", "lacks", "merge_states", "prefill"]

MAX_HEAD_DIM = 256  # of the tile table


def lacks(case: Any) -> str | None:
    """Why this backend cannot run a case (a `swa_attn.backends.Case`), or None."""
    if case.device not in ("cuda", "cpu"):
        return f"no Triton kernels for device {case.device}"
    if case.device == "cpu" and not INTERPRETED.value:
        return "Triton needs a CUDA device (or its interpreter: TRITON_INTERPRET=1 before the first import)"
    if case.device == "cuda" and torch.version.hip is not None:
        return "the tiles are for NVIDIA GPUs"
    if case.many_rows:
        return "its kernels count fewer than 2**30 rows"
    if case.op in ("prefill", "decode") and max(case.head_dim, case.v_head_dim) > MAX_HEAD_DIM:
        return f"head_dim {case.head_dim} and v_head_dim {case.v_head_dim} must be at most {MAX_HEAD_DIM}"
    return None
