"""Registers, shared memory and instruction counts of every Triton kernel, compiled ahead of time: no GPU is needed.

The backend's own launchers run on meta tensors under a driver that only names an architecture, and every launch is
turned into a compilation. What is measured is therefore what a launch would get, specialisations included.

    python bench/triton_resources.py                         # the table, for sm_80, sm_90 and sm_100
    python bench/triton_resources.py --arch 90 --match decode --json resources.json
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import triton
from triton.backends.compiler import GPUTarget

from swa_attn import triton as backend

FP8 = torch.float8_e4m3fn
ARCHS = (80, 90, 100)
SHARED_LIMIT = {80: 166912, 90: 232448, 100: 232448}  # bytes a CTA may opt in to
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTIONS = ("HMMA", "HGMMA", "UTCHMMA", "LDGSTS", "LDL", "STL")


@dataclass(frozen=True)
class Build:
    """One call to compile. `slow` ones are left out of the default test run."""

    op: str
    head_dim: int = 128
    v_head_dim: int = 128
    dtype: torch.dtype = torch.bfloat16
    cache_dtype: torch.dtype | None = None
    group_size: int = 8
    page_size: int = 64
    window: int = 128
    softcap: float = 0.0
    host: bool = False
    slow: bool = True

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.") + (" fp8 cache" if self.cache_dtype == FP8 else "")
        extras = (
            (" softcap" if self.softcap else "") + (" host" if self.host else "") + (" full" if self.window < 0 else "")
        )
        return f"{self.op} {self.head_dim}/{self.v_head_dim} G{self.group_size} p{self.page_size} {kind}{extras}"


@dataclass
class Resources:
    """What one compiled kernel needs."""

    build: str
    kernel: str
    arch: int
    triton: str
    slow: bool
    num_warps: int
    num_stages: int
    registers: int
    stack: int
    shared: int
    shared_limit: int
    instructions: dict[str, int]


def builds() -> list[Build]:
    """The head-dim table with every op and cache dtype, and one of each variant that changes the code."""
    dims = [(64, 64), (128, 128), (192, 128), (256, 256)]
    found = [
        Build(op, dk, dv, cache_dtype=cache, group_size=g, window=w, slow=cache is not None or w < 0)
        for op in ("prefill", "decode")
        for dk, dv in dims
        for cache in (None, FP8)
        for w, g in ((128, 8), (-1, 16))
        if not (op == "prefill" and w < 0)  # prefill's code does not depend on it
    ]
    variants = [
        replace(b, **change)
        for b in (Build("prefill", 192, 128), Build("decode", 192, 128))
        for change in (
            {"host": True},
            {"softcap": 50.0},
            {"page_size": 48},
            {"cache_dtype": FP8, "host": True, "softcap": 50.0, "page_size": 48},
            {"dtype": torch.float16},
            {"dtype": torch.float16, "cache_dtype": FP8},
            {"dtype": torch.float32},
            {"dtype": torch.float32, "head_dim": 256, "v_head_dim": 256},
            {"group_size": 5},
            {"group_size": 64},
            {"head_dim": 80, "v_head_dim": 80},
        )
    ]
    small = [
        Build("append_kv", 192, 128, slow=False),
        Build("append_kv", 192, 128, cache_dtype=FP8),
        Build("merge_states", slow=False),
        Build("copy_pages", slow=False),
        Build("copy_pages_to_fp8"),
        Build("copy_pages_from_fp8"),
    ]
    return found + variants + small


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def call(build: Build) -> None:
    """Call the launcher with tensors of MiMo-like sizes that have shapes and strides but no memory."""
    num_kv_heads, num_seqs, num_pages, num_tokens = 4, 64, 4096, 512
    num_q_heads = num_kv_heads * build.group_size
    cache_dtype = build.cache_dtype or build.dtype

    def pools(pages: int) -> list[torch.Tensor]:
        dims = build.head_dim, build.v_head_dim
        return [_empty(pages, build.page_size, num_kv_heads, d, dtype=cache_dtype) for d in dims]

    tier = dict(zip(("k_host_cache", "v_host_cache"), pools(1024), strict=True)) if build.host else {}
    scales = {}
    if cache_dtype == FP8:
        scales = {n: _empty(num_pages + 1024, num_kv_heads, dtype=torch.float32) for n in ("k_scale", "v_scale")}
    if build.op in ("prefill", "decode"):
        rows = (num_tokens,) if build.op == "prefill" else (num_seqs, 2)
        q = _empty(*rows, num_q_heads, build.head_dim, dtype=build.dtype)
        where = [_empty(num_seqs, 256, dtype=torch.int32), _empty(num_seqs, dtype=torch.int32)]
        if build.op == "prefill":
            where.append(_empty(num_seqs + 1, dtype=torch.int32))
        getattr(backend, build.op)(
            q,
            *pools(num_pages),
            *where,
            softmax_scale=0.1,
            window=build.window,
            softcap=build.softcap,
            sinks=_empty(num_q_heads, dtype=torch.float32),
            **scales,
            **tier,
            out=_empty(*rows, num_q_heads, build.v_head_dim, dtype=build.dtype),
            lse=_empty(*rows, num_q_heads, dtype=torch.float32),
        )
    elif build.op == "append_kv":
        new = [_empty(num_tokens, num_kv_heads, d, dtype=build.dtype) for d in (build.head_dim, build.v_head_dim)]
        backend.append_kv(*new, *pools(num_pages), _empty(num_tokens, dtype=torch.int64), **scales, **tier)
    elif build.op == "merge_states":
        out = _empty(num_tokens, num_q_heads, build.v_head_dim, dtype=build.dtype)
        lse = _empty(num_tokens, num_q_heads, dtype=torch.float32)
        backend.merge_states(out, lse, out, lse, sinks=_empty(num_q_heads, dtype=torch.float32), out=out, lse=lse)
    else:
        shape = (48, num_pages, build.page_size, num_kv_heads, build.head_dim)
        wide, narrow = _empty(*shape, dtype=build.dtype), _empty(*shape, dtype=FP8)
        scale, pages = _empty(48, num_pages, num_kv_heads, dtype=torch.float32), _empty(64, dtype=torch.int64)
        if build.op == "copy_pages":
            backend.copy_pages(wide, wide, pages, pages)
        elif build.op == "copy_pages_to_fp8":
            backend.copy_pages(wide, narrow, pages, pages, dst_scale=scale)
        else:
            backend.copy_pages(narrow, wide, pages, pages, src_scale=scale)


class CompileOnlyDriver:
    """As much of a driver as compiling needs."""

    def __init__(self, arch: int):
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # compiled kernels are kept per device: one device per architecture

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def compile_instead_of_launching(arch: int) -> Iterator[list]:
    """Inside, a kernel launch only compiles; the list collects the compiled kernels. The driver stays afterwards, so
    this is for a process of its own."""
    compiled: list = []
    run: Callable = triton.JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        compiled.append((self, run(self, *args, grid=grid, warmup=True, **options)))

    triton.runtime.driver.set_active(CompileOnlyDriver(arch))
    triton.JITFunction.run = compile_only
    try:
        yield compiled
    finally:
        triton.JITFunction.run = run


def inspect(cubin: bytes) -> tuple[int, int, dict[str, int]]:
    """Registers per thread, stack bytes per thread (more than 0 means spills) and instruction counts of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.check_output(
            [TOOLS / "cuobjdump", "-res-usage", file.name], text=True, stderr=subprocess.STDOUT
        )
        sass = subprocess.check_output([TOOLS / "nvdisasm", "-c", file.name], text=True)
    opcodes = Counter(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][A-Z0-9]*)", sass, re.MULTILINE))
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage).group(1)) for name in ("REG", "STACK"))
    return registers, stack, {name: opcodes[name] for name in INSTRUCTIONS}


def measure(build: Build, arch: int) -> list[Resources]:
    """Every kernel that one call launches."""
    with compile_instead_of_launching(arch) as compiled:
        call(build)
    found = []
    for kernel, binary in compiled:
        registers, stack, instructions = inspect(binary.asm["cubin"])
        meta = binary.metadata
        found.append(
            Resources(
                str(build),
                kernel.__name__,
                arch,
                triton.__version__,
                build.slow,
                meta.num_warps,
                meta.num_stages,
                registers,
                stack,
                meta.shared,
                SHARED_LIMIT[arch],
                instructions,
            )
        )
    return found


def _measure(work: tuple[Build, int]) -> list[Resources]:
    return measure(*work)


def table(rows: list[Resources]) -> str:
    head = f"{'call':52} {'kernel':22} {'arch':>6} {'warps':>5} {'stages':>6} {'REG':>4} {'STACK':>5} {'shared':>7} "
    lines = [head + " ".join(f"{i:>7}" for i in INSTRUCTIONS)]
    for r in rows:
        counts = " ".join(f"{r.instructions[i]:7}" for i in INSTRUCTIONS)
        lines.append(
            f"{r.build:52} {r.kernel:22} sm_{r.arch:<3} {r.num_warps:5} {r.num_stages:6} {r.registers:4} {r.stack:5} "
            f"{r.shared:7} {counts}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHS, choices=ARCHS)
    parser.add_argument("--match", default="", help="only calls whose name contains this")
    parser.add_argument("--fast", action="store_true", help="only the head-dim table in bfloat16 and the small kernels")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    work = [(b, a) for b in builds() if args.match in str(b) and not (args.fast and b.slow) for a in args.arch]
    if args.jobs == 1:
        rows = [row for item in work for row in _measure(item)]
    else:
        with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:  # torch's threads do not survive a fork
            rows = [row for found in pool.map(_measure, work) for row in found]
    print(f"Triton {triton.__version__}\n{table(rows)}")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
