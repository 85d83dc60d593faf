"""Who executes an op: backends in order of preference, what each can do, and why a call went where it went.

A backend is a module with a function per op that writes into given outputs, and `lacks(case)`, which returns the reason
why it cannot do a case or None. The first of the device's order that lacks nothing runs. `SWA_ATTN_BACKEND` in the
environment or `use_backend(name)` fixes one instead; then a case it lacks is an error, never a silent change.
"""

import contextlib
import functools
import importlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("swa_attn")

ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
NAMES = ("cuda", "triton", "cpu", "reference")
_MODULES = {"cuda": "native", "cpu": "native", "triton": "triton", "reference": "reference_backend"}

MANY = 2**30  # of what kernels count in 32 bits: below it sums of two and rounding up have room
# The CUDA kernels' tanh errs absolutely, by up to 2^-19: beyond this cap a score would be off by more than 2^-5.
MAX_CUDA_SOFTCAP = 2**14

_registered: dict[str, ModuleType] = {}  # by `register`
_forced: str | None = os.environ.get("SWA_ATTN_BACKEND") or None


@dataclass(frozen=True)
class Case:
    """What a backend may accept or refuse: everything static about a call. `cache_dtype` is None without a cache."""

    op: str
    backend: str
    device: str
    dtype: torch.dtype
    cache_dtype: torch.dtype | None = None
    page_size: int = 0
    group_size: int = 0  # query heads per KV head
    head_dim: int = 0
    v_head_dim: int = 0
    long_context: bool = False  # the block table reaches beyond 2**30 positions
    many_rows: bool = False  # 2**30 rows (tokens x heads) or more
    softmax_scale: float = 1.0
    softcap: float = 0.0

    def lacks_in_cuda(self) -> str | None:
        """What the arithmetic of the CUDA kernels leaves out, or None."""
        if self.many_rows:
            return "its kernels count fewer than 2**30 rows"
        if self.long_context:
            return "its attention kernels count positions up to 2**30, and the block table reaches further"
        if self.softcap > MAX_CUDA_SOFTCAP:
            return f"its attention kernels take a softcap of at most {MAX_CUDA_SOFTCAP}"
        return None


def register(name: str, module: ModuleType) -> None:
    """Add a backend of your own under a name for `use_backend` and `SWA_ATTN_BACKEND`; it is never chosen by itself.

    `module` has the functions of `reference_backend.py` for the ops it does, and `lacks(case)`, which names what it does
    not. Raises ValueError when the name belongs to another backend.
    """
    if name in NAMES or _registered.get(name, module) is not module:
        raise ValueError(f"name must not be that of another backend, got {name!r}")
    _registered[name] = module


@functools.cache
def load(name: str) -> ModuleType:
    """The module of a backend. Raises ValueError for an unknown name, ImportError when it cannot be imported."""
    if name in _registered:
        return _registered[name]
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join([*NAMES, *_registered])}, got {name!r}")
    return importlib.import_module(f".{_MODULES[name]}", __package__)


def lacks(name: str, case: Case) -> str | None:
    """Why backend `name` cannot run `case`, or None."""
    try:
        return load(name).lacks(case)
    except ImportError as error:
        return f"not importable: {error}"


@functools.lru_cache(maxsize=1024)
def _choose(forced: str | None, case_of: tuple) -> str:
    op, device, *rest = case_of
    reasons: list[str] = []
    for name in (forced,) if forced else ORDER.get(device, ("reference",)):
        reason = lacks(name, Case(op, name, device, *rest))
        if reason is None:
            log.debug("%s runs on %s (%s)%s", op, name, case_of, "".join(f"; not {r}" for r in reasons))
            return name
        reasons.append(f"{name}: {reason}")
    raise NotImplementedError(f"swa_attn.{op}: no backend can run this case: " + "; ".join(reasons))


def choose_name(
    op: str,
    x: Tensor,
    cache: Tensor | None,
    v_head_dim: int = 0,
    block_table: Tensor | None = None,
    softmax_scale: float = 1.0,
    softcap: float = 0.0,
) -> str:
    """The backend that will run `op` on inputs like these; raises NotImplementedError, with reasons, if none can."""
    if cache is None:
        return _choose(_forced, (op, x.device.type, x.dtype))
    _, page_size, num_kv_heads, head_dim = cache.shape
    group_size = x.shape[-2] // num_kv_heads
    shape = page_size, group_size, head_dim, v_head_dim or head_dim
    long_context = block_table is not None and block_table.shape[1] * page_size > MANY
    many_rows = x.numel() // head_dim >= MANY
    numbers = long_context, many_rows, softmax_scale, softcap
    return _choose(_forced, (op, x.device.type, x.dtype, cache.dtype, *shape, *numbers))


def choose(op: str, x: Tensor, cache: Tensor | None, *more: Any) -> ModuleType:
    """The module of the backend that `choose_name` names for the same arguments."""
    return load(choose_name(op, x, cache, *more))


def run(op: str, x: Tensor, cache: Tensor | None, *args: Tensor, **options: Any) -> None:
    """Execute `op`; x decides device and dtype, cache (its K pool) the shape."""
    if cache is None:
        backend = choose(op, x, None)
    elif op == "append_kv":
        backend = choose(op, x, cache, args[3].shape[-1])
    else:
        numbers = options.get("softmax_scale", 1.0), options.get("softcap", 0.0)
        backend = choose(op, x, cache, args[2].shape[-1], args[3], *numbers)
    getattr(backend, op)(*args, **options)


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run every op on one backend inside the block (process-wide, not per thread); None restores the usual order."""
    global _forced
    if name is not None:
        load(name)
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous
