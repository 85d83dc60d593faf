"""The CUDA kernels as a backend for CPU tensors: every call launches the real kernels of csrc/cuda in the emulator.

    backends.register("emulated", emulated_backend)
    with use_backend("emulated"), emulated_backend.settings(asynchrony="random", seed=3):
        swa_attn.append_kv(...)                        # EmulationError, with every report, if a kernel does something wrong
    emulated_backend.last_run.counters.bytes_read("device_pages")

Tags in the counters: `queries`, `device_pages`, `host_pages`, `tables`, `scales`, `outputs`, `workspace`; `new_tokens` of
append_kv; `source_pages` and `target_pages` of copy_pages; `partials` of merge_states.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .emulator import Buffer, Emulator, Options, Run, reads, writes

CUDA = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)  # in the order of DType in params.h


@dataclass(frozen=True)
class Settings:
    """How calls are emulated, and the card that the kernels are told they run on."""

    options: Options = field(default_factory=Options)
    num_sms: int = 132
    max_smem_bytes: int = 227 << 10
    compute_capability: int = 80  # 10 major + minor: 90 takes the kernels for Hopper where they fit


current = Settings()
last_run: Run | None = None  # of the latest call that launched


@contextlib.contextmanager
def settings(
    *,
    num_sms: int | None = None,
    max_smem_bytes: int | None = None,
    compute_capability: int | None = None,
    **options: str | int | bool,
) -> Iterator[None]:
    """Changes the card or fields of `Options` for the calls inside the block."""
    global current
    previous = current
    current = Settings(
        dataclasses.replace(previous.options, **options),
        previous.num_sms if num_sms is None else num_sms,
        previous.max_smem_bytes if max_smem_bytes is None else max_smem_bytes,
        previous.compute_capability if compute_capability is None else compute_capability,
    )
    try:
        yield
    finally:
        current = previous


def unavailable() -> str | None:
    """Why kernels cannot be emulated here, or None."""
    if not CUDA.exists():
        return "the emulator needs a checkout of the project"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    if importlib.util.find_spec("ninja") is None and not shutil.which("ninja"):
        return "ninja was not found"
    if not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        return "there is no C++ compiler"
    return None


@functools.cache
def page_kernels() -> Emulator:
    kernels = CUDA / "kernels"
    names = ("smxx_append_kv.cu", "smxx_copy_pages.cu", "smxx_merge_states.cu")
    return Emulator([CUDA / "emulated" / "pages.cpp", *(kernels / name for name in names)])


@functools.cache
def attention_kernels() -> Emulator:
    kernels = CUDA / "kernels"
    sources = [kernels / "attention.cu", *sorted(kernels.glob("prefill_*.cu")), *sorted(kernels.glob("decode_*.cu"))]
    return Emulator([CUDA / "emulated" / "attention.cpp", *sources])


def lacks(case: object) -> str | None:
    """See backends.py."""
    if case.device != "cpu":
        return f"the emulator takes cpu tensors, got {case.device}"
    reason = unavailable() or case.lacks_in_cuda()
    if reason is None and case.op in ("prefill", "decode"):
        return _attention_lacks(case)
    return reason


def _attention_lacks(case: object) -> str | None:
    reason = torch.zeros(200, dtype=torch.uint8)
    attention_kernels().launch(
        "attention_lacks",
        group_size=case.group_size,
        head_dim=case.head_dim,
        v_head_dim=case.v_head_dim,
        dtype=DTYPES.index(case.dtype),
        kv_dtype=DTYPES.index(case.cache_dtype),
        reason=writes(reason),
        capacity=len(reason),
    )
    return bytes(reason.tolist()).rstrip(b"\0").decode() or None


def _described(name: str, buffer: Buffer | None) -> dict[str, Buffer | int | None]:
    """The arguments from which csrc/cuda/emulated/arguments.h makes a view."""
    if buffer is None:
        return {f"{name}.dims": -1}
    x = buffer.tensor
    found = {name: buffer, f"{name}.dims": x.dim(), f"{name}.dtype": DTYPES.index(x.dtype) if x.dtype in DTYPES else -1}
    for i, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        found |= {f"{name}.size{i}": size, f"{name}.stride{i}": stride}
    return found


def _launch(emulator: Emulator, op: str, buffers: dict[str, Buffer | None], **numbers: int | float) -> None:
    global last_run
    card = {name: getattr(current, name) for name in ("num_sms", "max_smem_bytes", "compute_capability")}
    arguments: dict = {**numbers, **card}
    for name, buffer in buffers.items():
        arguments |= _described(name, buffer)
    last_run = emulator.launch(op, current.options, **arguments)
    last_run.check()


def _optional(tensor: Tensor | None, tag: str) -> Buffer | None:
    return None if tensor is None else reads(tensor, tag)


def _pools(
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    k_host_cache: Tensor | None,
    v_host_cache: Tensor | None,
    writable: bool,
) -> dict[str, Buffer | None]:
    pools: dict[str, Buffer | None] = {"k_scale": _optional(k_scale, "scales"), "v_scale": _optional(v_scale, "scales")}
    for name, cache, host_cache in (("k", k_cache, k_host_cache), ("v", v_cache, v_host_cache)):
        pools[f"{name}_cache"] = Buffer(cache, "device_pages", writable)
        pools[f"{name}_host_cache"] = None if host_cache is None else Buffer(host_cache, "host_pages", writable)
    return pools


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
    buffers = {
        "key": reads(key, "new_tokens"),
        "value": reads(value, "new_tokens"),
        "slot_mapping": reads(slot_mapping, "tables"),
        **_pools(k_cache, v_cache, k_scale, v_scale, k_host_cache, v_host_cache, writable=True),
    }
    _launch(page_kernels(), "append_kv", buffers)


def _attention(
    op: str,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
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
    names = ("block_table", "seqlens_k", "cu_seqlens_q")
    buffers = {
        "q": reads(q, "queries"),
        "out": writes(out),
        "lse": writes(lse),
        "sinks": _optional(None if sinks is None else sinks.float(), "tables"),
        **{name: reads(tensor, "tables") for name, tensor in zip(names, where)},
        **_pools(k_cache, v_cache, k_scale, v_scale, k_host_cache, v_host_cache, writable=False),
    }
    options = {"softmax_scale": float(softmax_scale), "window": window, "softcap": float(softcap)}
    _launch(attention_kernels(), op, buffers, **options)


def prefill(*where: Tensor, **options: object) -> None:
    _attention("prefill", *where, **options)


def decode(*where: Tensor, **options: object) -> None:
    _attention("decode", *where, **options)


def merge_states(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, *, sinks: Tensor | None, out: Tensor, lse: Tensor
) -> None:
    buffers = {
        "out_a": reads(out_a, "partials"),
        "lse_a": reads(lse_a, "partials"),
        "out_b": reads(out_b, "partials"),
        "lse_b": reads(lse_b, "partials"),
        "sinks": _optional(None if sinks is None else sinks.float(), "tables"),
        "out": writes(out),
        "lse": writes(lse),
    }
    _launch(page_kernels(), "merge_states", buffers)


def copy_pages(
    src: Tensor,
    dst: Tensor,
    src_pages: Tensor,
    dst_pages: Tensor,
    *,
    src_scale: Tensor | None = None,
    dst_scale: Tensor | None = None,
) -> None:
    def is_written(x: Tensor | None, target: Tensor | None) -> bool:
        """Pages may move inside one pool."""
        return None not in (x, target) and x.untyped_storage().data_ptr() == target.untyped_storage().data_ptr()

    buffers = {
        "src": Buffer(src, "source_pages", is_written(src, dst)),
        "dst": writes(dst, "target_pages"),
        "src_pages": reads(src_pages, "tables"),
        "dst_pages": reads(dst_pages, "tables"),
        "src_scale": None if src_scale is None else Buffer(src_scale, "scales", is_written(src_scale, dst_scale)),
        "dst_scale": None if dst_scale is None else writes(dst_scale, "scales"),
    }
    _launch(page_kernels(), "copy_pages", buffers)
