"""Cases for the CUDA kernels, which know fewer shapes, page sizes and dtypes than the other backends."""

from dataclasses import replace

import torch

from swa_attn.testing import AttentionCase, emulated_backend

SMALLEST_HOPPER_PAGE = 8  # smaller ones are for the kernels for sm_80, which have the suite to themselves anyway
HEAD_DIMS = ((64, 64), (128, 128), (192, 128), (256, 256))


def fit(case: AttentionCase, backend: str) -> AttentionCase:
    """`case` with head dims and dtypes that `backend` has: the next larger ones, bfloat16 for float32."""
    if backend not in ("cuda", "emulated"):
        return case
    dims = next((k, v) for k, v in HEAD_DIMS if k >= case.head_dim and v >= case.v_head_dim)
    hopper = backend == "emulated" and emulated_backend.current.compute_capability == 90
    return replace(
        case,
        page_size=max(case.page_size, SMALLEST_HOPPER_PAGE if hopper else 1),
        head_dim=dims[0],
        v_head_dim=dims[1],
        dtype=torch.bfloat16 if case.dtype == torch.float32 else case.dtype,
        cache_dtype=torch.bfloat16 if case.cache_dtype == torch.float32 else case.cache_dtype,
    )
