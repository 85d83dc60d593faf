"""Registers, spills and local memory of every CUDA kernel, as ptxas reports them; no GPU needed.

    python bench/cuda_resources.py [--archs 80;90a;100;120] [--jobs 2] [--json bench/results/cuda_resources_13.0.json]

Exits with an error if nvcc warns or serializes wgmma, or if a kernel spills or uses local memory.
"""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "csrc" / "cuda" / "kernels"
HALVES = ("bf16", "fp16")  # in the order of ptx::Half


@dataclass(frozen=True)
class Kernel:
    name: str
    arch: str
    registers: int
    stack: int
    spill_bytes: int


def build_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("swa_attn_build", ROOT / "csrc" / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def readable(symbol: str) -> str:
    """sm80_prefill 192/128 bf16 float8 from a mangled kernel name; (2) for further template arguments."""
    name = re.search(r"(sm(?:80|90|xx)_[a-z_]+?)(?=\d|E)", symbol)
    traits = re.search(r"AttentionTraitsILi(\d+)ELi(\d+)E.*?E(\d)ELb([01])EEE?(?:Li(\d)E)?", symbol)
    if not traits:
        return f"{name.group(1) if name else symbol} {symbol[-24:]}"
    head_dim, value_dim, half, float8, more = traits.groups()
    return (
        f"{name.group(1)} {head_dim}/{value_dim} {HALVES[int(half)]}"
        f"{' float8' if float8 == '1' else ''}{f' ({more})' if more else ''}"
    )


def compile_one(nvcc: str, source: Path, arch: str) -> list[Kernel]:
    """Raises RuntimeError with nvcc's words when it refuses, warns or serializes wgmma."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernel.cubin"
        flags = ["-std=c++17", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v,-Werror", f"-arch=sm_{arch}", "-cubin"]
        command = [nvcc, *flags, f"-I{ROOT / 'csrc'}", str(source), "-o", str(target)]
        result = subprocess.run(command, capture_output=True, text=True)
    log = result.stdout + result.stderr
    if result.returncode or "serialized" in log:  # wgmma that ptxas could not keep asynchronous
        raise RuntimeError(f"{source.name} for sm_{arch}:\n{log}")
    pattern = (
        r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers"
    )
    return [
        Kernel(readable(symbol), f"sm_{arch}", int(registers), int(stack), int(stores) + int(loads))
        for symbol, stack, stores, loads, registers in re.findall(pattern, log, re.DOTALL)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", default="80;90a;100;120")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    nvcc = build_module().find_nvcc()
    if not nvcc:
        parser.error("nvcc was not found: put it on PATH or set CUDA_HOME")
    sources, archs = sorted(KERNELS.glob("*.cu")), arguments.archs.split(";")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = [pool.submit(compile_one, nvcc, source, arch) for source in sources for arch in archs]
        kernels = [kernel for job in jobs for kernel in job.result()]
    table: dict[str, dict[str, Kernel]] = {}
    for kernel in kernels:
        table.setdefault(kernel.name, {})[kernel.arch] = kernel
    print(f"{'registers':44}" + "".join(f"{'sm_' + arch:>8}" for arch in archs))
    for name in sorted(table):
        print(f"{name:44}" + "".join(f"{table[name]['sm_' + arch].registers:8}" for arch in archs))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(k) for k in kernels], indent=1) + "\n")
    bad = [k for k in kernels if k.stack or k.spill_bytes]
    for kernel in bad:
        print(f"SPILLS {kernel.name} {kernel.arch}: {kernel.spill_bytes} bytes, stack {kernel.stack}")
    print(f"{len(kernels)} kernels, {len(bad)} with spills or local memory")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
