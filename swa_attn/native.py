"""The compiled library: loads `_C.so`, and is the backend module of both `cpu` and `cuda`.

The C++ implements internal ops (`torch.ops.swa_attn._native_*`), one per public op, which write into given outputs. Their
schemas are defined here; the library only registers implementations.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch import library as torch_library

# Another build than the one beside this file, such as one with sanitizers: see csrc/build.py.
LIBRARY = Path(os.environ.get("SWA_ATTN_LIBRARY") or Path(__file__).with_name("_C.so"))
RECORD = LIBRARY.with_name("_build_info.json")

_OPTIONS = (
    "float softmax_scale, int window, float softcap, Tensor? sinks, Tensor? k_scale, Tensor? v_scale, "
    "Tensor? k_host_cache, Tensor? v_host_cache, Tensor(a!) out, Tensor(b!) lse"
)
_SCHEMAS = (
    "_native_append_kv(Tensor key, Tensor value, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slot_mapping, "
    "Tensor? k_scale, Tensor? v_scale, Tensor(c!)? k_host_cache, Tensor(d!)? v_host_cache) -> ()",
    "_native_prefill(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor seqlens_k, "
    f"Tensor cu_seqlens_q, {_OPTIONS}) -> ()",
    f"_native_decode(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor seqlens_k, {_OPTIONS}) -> ()",
    "_native_merge_states(Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b, Tensor? sinks, Tensor(a!) out, "
    "Tensor(b!) lse) -> ()",
    "_native_copy_pages(Tensor src, Tensor(a!) dst, Tensor src_pages, Tensor dst_pages, Tensor? src_scale, "
    "Tensor(b!)? dst_scale) -> ()",
    "_native_cpu_level() -> str",
    "_native_cuda_attention_lacks(int group_size, int head_dim, int v_head_dim, int dtype, int kv_dtype) -> str",
)

_CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)  # in the order of csrc/cuda/params.h

_library = torch_library.Library("swa_attn", "FRAGMENT")
for _schema in _SCHEMAS:
    _library.define(_schema)


def build_record() -> dict | None:
    """What the build wrote down about itself, or None if none ran."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else None


def _load() -> str | None:
    """Load the library; returns why it is not there, or None."""
    if os.environ.get("SWA_ATTN_NO_NATIVE"):
        return "disabled by SWA_ATTN_NO_NATIVE"
    if not LIBRARY.exists():
        record = build_record()
        reason = record.get("reason") if record else "nothing was built; in a checkout run `python csrc/build.py`"
        return f"no compiled library: {reason}"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"the compiled library does not load: {error}"
    return None


_load_error = _load()


def unavailable(key: str = "CPU") -> str | None:
    """Why the library has no kernels for a dispatch key (CPU or CUDA), or None when it has."""
    if _load_error:
        return _load_error
    if not torch._C._dispatch_has_kernel_for_dispatch_key("swa_attn::_native_prefill", key):
        return f"the compiled library has no {key} kernels"
    return None


def cpu_level() -> str | None:
    """The instruction-set level whose CPU kernels run here, or None without the library."""
    return None if _load_error else torch.ops.swa_attn._native_cpu_level()


def lacks(case: object) -> str | None:
    """See backends.py. `case.backend` is the device type that the kernels run on."""
    if case.device != case.backend:
        return f"its kernels take {case.backend} tensors, got {case.device}"
    reason = unavailable(case.backend.upper())
    if reason is None and case.backend == "cuda":
        reason = case.lacks_in_cuda()
    if reason is None and case.backend == "cuda" and case.op in ("prefill", "decode"):
        dtypes = _CUDA_DTYPES.index(case.dtype), _CUDA_DTYPES.index(case.cache_dtype)
        shape = case.group_size, case.head_dim, case.v_head_dim
        return torch.ops.swa_attn._native_cuda_attention_lacks(*shape, *dtypes) or None
    return reason


def _call(op: Callable, *args: object) -> None:
    try:
        op(*args)
    except RuntimeError as error:
        _, marker, rest = str(error).partition("IndexError: ")
        if marker:  # C++ has one exception type; a value out of range is an IndexError in Python
            raise IndexError(rest.partition("\n")[0]) from None
        raise


def _float32(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()


def append_kv(
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_host_cache: Tensor | None = None,
    v_host_cache: Tensor | None = None,
) -> None:
    scales = k_scale, v_scale
    op = torch.ops.swa_attn._native_append_kv.default
    _call(op, key, value, k_cache, v_cache, slot_mapping, *scales, k_host_cache, v_host_cache)


def _attention(
    op: Callable,
    *where: Tensor,
    softmax_scale: float,
    window: int = -1,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_host_cache: Tensor | None = None,
    v_host_cache: Tensor | None = None,
    out: Tensor,
    lse: Tensor,
) -> None:
    options = softmax_scale, window, softcap, _float32(sinks), k_scale, v_scale, k_host_cache, v_host_cache
    _call(op, *where, *options, out, lse)


def prefill(*where: Tensor, **options: object) -> None:
    _attention(torch.ops.swa_attn._native_prefill.default, *where, **options)


def decode(*where: Tensor, **options: object) -> None:
    _attention(torch.ops.swa_attn._native_decode.default, *where, **options)


def merge_states(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, *, sinks: Tensor | None, out: Tensor, lse: Tensor
) -> None:
    _call(torch.ops.swa_attn._native_merge_states.default, out_a, lse_a, out_b, lse_b, _float32(sinks), out, lse)


def copy_pages(
    src: Tensor,
    dst: Tensor,
    src_pages: Tensor,
    dst_pages: Tensor,
    *,
    src_scale: Tensor | None = None,
    dst_scale: Tensor | None = None,
) -> None:
    _call(torch.ops.swa_attn._native_copy_pages.default, src, dst, src_pages, dst_pages, src_scale, dst_scale)
