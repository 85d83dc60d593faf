"""Builds the native library: writes a ninja file, runs ninja, records what happened. Standard library only.

    python csrc/build.py [auto|cpu|cuda]

Used like this in a checkout, and by setup.py (which loads this file by path: importing the package would import torch,
which a build environment may not have). The library uses LibTorch's stable ABI only, so one binary, built against the
headers of any torch >= 2.10, loads in all of them. It is linked against two empty stubs with torch's sonames; the symbols
come from whatever torch the process has imported.

Environment: CXX, SWA_ATTN_NVCC, SWA_ATTN_CUDA_ARCHS (default "80;90a"), SWA_ATTN_TORCH_INCLUDE, MAX_JOBS. For another build
beside the usual one: SWA_ATTN_CXX_FLAGS, more flags for the C++ compiler (sanitizers), and SWA_ATTN_BUILD_FOLDER, where the
library and all else goes instead of swa_attn/ and build/native; SWA_ATTN_LIBRARY makes the package load it.
"""

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
CHECKOUT = SOURCE.parent
LIBRARY_NAME = "_C.so"
RECORD_NAME = "_build_info.json"
OLDEST_TORCH = "0x020a000000000000"  # 2.10
CUDA_ARCHS = "80;90a"

# Instruction-set levels that csrc/cpu/isa is compiled for, one object each; the best one that the machine has runs.
X86_LEVELS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"],
    "avx512_bf16": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mavx2", "-mfma", "-mf16c"],
}
COMMON_FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror=return-type"]
OPS_FLAGS = ["-O2", f"-DTORCH_TARGET_VERSION={OLDEST_TORCH}"]
# No -ffast-math: infinities and NaN are part of the contract. errno and traps are not; multiply-adds may be fused.
CPU_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xptxas", "-v", "--threads", "2"]
NVCC_FLAGS += ["-Xfatbin", "-compress-all"]  # unpacked when a kernel is first used


class BuildError(RuntimeError):
    """The build cannot be done; the message is one a user can act on."""


@dataclass
class Plan:
    """What will be built, and with what."""

    cxx: str
    ninja: str
    torch_include: Path
    nvcc: str | None
    levels: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)


def find_tool(variable: str, *names: str) -> str | None:
    """The first of $variable and `names` that is an executable on PATH."""
    for name in (os.environ.get(variable), *names):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return find_tool("SWA_ATTN_NVCC", "nvcc", *([os.path.join(home, "bin", "nvcc")] if home else []))


def find_ninja() -> str:
    """The ninja that the `ninja` package ships, or the one on PATH; always the same one, or it would build all anew."""
    found = None
    if importlib.util.find_spec("ninja"):
        import ninja

        found = shutil.which("ninja", path=ninja.BIN_DIR)
    found = found or shutil.which("ninja")
    if not found:
        raise BuildError("ninja was not found: `pip install ninja`, or install it with the system's package manager")
    return found


def find_torch_include() -> Path:
    """The include folder of the torch to build against, without importing it."""
    candidates = []
    if os.environ.get("SWA_ATTN_TORCH_INCLUDE"):
        candidates.append(Path(os.environ["SWA_ATTN_TORCH_INCLUDE"]))
    spec = importlib.util.find_spec("torch")
    if spec and spec.submodule_search_locations:
        candidates.append(Path(spec.submodule_search_locations[0]) / "include")
    # Under pip's build isolation torch cannot be imported, but the environment installed into may still hold it.
    for key in ("purelib", "platlib"):
        candidates.append(Path(sysconfig.get_path(key)) / "torch" / "include")
    for candidate in candidates:
        if (candidate / "torch/csrc/stable/library.h").exists():
            return candidate
    raise BuildError(
        "the headers of torch >= 2.10 were not found in this environment: install torch first, then "
        "`pip install --no-build-isolation .`"
    )


def torch_version(include: Path, name: str = "__version__") -> str:
    """The version of the torch that `include` belongs to, or another variable of its version file ("cuda")."""
    version_file = include.parent / "version.py"
    if version_file.exists():
        for line in version_file.read_text().splitlines():
            if line.partition(":")[0].partition("=")[0].strip() == name:
                return line.rpartition("=")[2].strip(" '\"")
    return "unknown"


def accepts(cxx: str, flags: list[str]) -> bool:
    """Whether the compiler knows these flags."""
    command = [cxx, *flags, "-x", "c++", "-fsyntax-only", "-"]
    return subprocess.run(command, input="", capture_output=True, text=True).returncode == 0


def make_plan(mode: str) -> Plan:
    """Find the tools for `mode`. Raises BuildError when something it needs is missing."""
    if mode not in ("auto", "cpu", "cuda"):
        raise BuildError(f"SWA_ATTN_BUILD must be auto, cpu, cuda or none, got {mode!r}")
    cxx = find_tool("CXX", "g++", "c++", "clang++")
    if not cxx:
        raise BuildError("no C++ compiler was found: install g++ or clang++, or set CXX")
    notes = []
    nvcc = find_nvcc() if mode != "cpu" else None
    if mode == "cuda" and not nvcc:
        raise BuildError("SWA_ATTN_BUILD=cuda: nvcc was not found, put it on PATH or set CUDA_HOME")
    include = find_torch_include()
    if mode == "cpu":
        notes.append("no CUDA kernels: not asked for")
    elif not nvcc:
        notes.append("no CUDA kernels: nvcc was not found")
    elif mode == "auto" and torch_version(include, "cuda") == "None":
        notes.append("no CUDA kernels: torch is a CPU build; SWA_ATTN_BUILD=cuda builds them all the same")
        nvcc = None
    levels = {"baseline": []}
    if platform.machine().lower() in ("x86_64", "amd64"):
        levels = {name: flags for name, flags in X86_LEVELS.items() if accepts(cxx, flags)}
        for name in X86_LEVELS.keys() - levels.keys():
            notes.append(f"no {name} CPU kernels: the compiler does not know {' '.join(X86_LEVELS[name])}")
    return Plan(cxx, find_ninja(), include, nvcc, levels, notes)


def write_ninja_file(plan: Plan, folder: Path, library: Path) -> None:
    """The whole build as `folder/build.ninja`."""

    def quote(path: object) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    defines = [f"-DSWA_HAVE_{name.upper()}" for name in plan.levels]
    extra = os.environ.get("SWA_ATTN_CXX_FLAGS", "").split()
    common = " ".join([*COMMON_FLAGS, *extra, *defines, f"-I{SOURCE}"])
    lines = [
        "ninja_required_version = 1.5",
        f"cxx = {plan.cxx}",
        f"nvcc = {plan.nvcc or 'nvcc'}",
        "rule cxx",
        f"  command = $cxx -MMD -MF $out.d {common} $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $in $isa",
        "rule nvcc",
        f"  command = $nvcc -MD -MF $out.d {' '.join([*NVCC_FLAGS, *defines])} $gencode -I{SOURCE} -c $in -o $out "
        "> $out.ptxas 2>&1 || (cat $out.ptxas; false)",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = nvcc $in",
        "rule stub",
        "  command = $cxx -shared -x c++ /dev/null -Wl,-soname,$name -o $out",
        "rule link",
    ]
    # --no-as-needed: torch's libtorch.so is an empty stub too, and a linker that drops it would leave the weak CUDA
    # stream symbol unresolved for ever.
    if plan.nvcc:  # nvcc knows where its static runtime lies, even when it is a wrapper script
        link = (
            "$nvcc -shared -cudart static $in $stubs -Xlinker --no-as-needed,-ltorch,-ltorch_cpu "
            "-Xlinker --exclude-libs=ALL,-s -o $out"
        )
    else:
        strip = " ".join(extra) or "-s"
        link = f"$cxx -shared {strip} $in $stubs -Wl,--no-as-needed -ltorch -ltorch_cpu -Wl,--exclude-libs=ALL -o $out"
    lines.append(f"  command = {link}")

    objects = []

    def compile_(rule: str, source: Path, suffix: str = "", **variables: str) -> None:
        target = folder / (str(source.relative_to(SOURCE)).replace(os.sep, ".") + suffix + ".o")
        objects.append(target)
        lines.append(f"build {quote(target)}: {rule} {quote(source)}")
        lines.extend(f"  {name} = {value}" for name, value in variables.items())

    for source in sorted((SOURCE / "ops").glob("*.cpp")):
        if source.stem == "cuda" and not plan.nvcc:
            continue
        compile_("cxx", source, flags=" ".join([*OPS_FLAGS, f"-isystem {quote(plan.torch_include)}"]))
    for source in sorted((SOURCE / "cpu").glob("*.cpp")):
        compile_("cxx", source, flags=" ".join(CPU_FLAGS))
    for source in sorted((SOURCE / "cpu" / "isa").glob("*.cpp")):
        for name, flags in plan.levels.items():
            compile_("cxx", source, f".{name}", flags=" ".join([*CPU_FLAGS, *flags, f"-DSWA_ISA={name}"]), isa=name)
    if plan.nvcc:
        archs = os.environ.get("SWA_ATTN_CUDA_ARCHS", CUDA_ARCHS).split(";")
        # The first one as PTX too: newer GPUs, which none of the others is for, compile it when the library loads.
        targets = [*((a, f"sm_{a}") for a in archs), (archs[0], f"compute_{archs[0]}")]
        gencode = " ".join(f"-gencode arch=compute_{a},code={code}" for a, code in targets)
        for source in sorted((SOURCE / "cuda").rglob("*.cu")):
            compile_("nvcc", source, gencode=gencode)
    stubs = []
    for name in ("libtorch.so", "libtorch_cpu.so"):
        stubs.append(folder / name)
        lines += [f"build {quote(folder / name)}: stub", f"  name = {name}"]
    inputs = " ".join(quote(o) for o in objects)
    lines += [
        f"build {quote(library)}: link {inputs} | {' '.join(quote(s) for s in stubs)}",
        f"  stubs = -L{quote(folder)}",
        f"default {quote(library)}",
        "",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text("\n".join(lines))


def run_ninja(plan: Plan, folder: Path) -> None:
    """Run the build; on failure raise with the failing command and the compiler's own words."""
    command = [plan.ninja, "-C", str(folder)]
    if os.environ.get("MAX_JOBS"):
        command += ["-j", os.environ["MAX_JOBS"]]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise BuildError("the native build failed:\n" + (result.stdout + result.stderr).strip())


def build(mode: str, library: Path, folder: Path) -> dict:
    """Build `library` and write the record beside it. Raises BuildError; in mode auto that is recorded instead."""
    start = time.time()
    record: dict = {"mode": mode, "built": False}
    try:
        if mode == "none":
            record["reason"] = "SWA_ATTN_BUILD=none: no native library was asked for"
        else:
            plan = make_plan(mode)
            record |= describe(plan)
            write_ninja_file(plan, folder, library)
            run_ninja(plan, folder)
            record |= {"built": True, "bytes": library.stat().st_size}
    except BuildError as error:
        if mode != "auto":
            raise
        record["reason"] = str(error)
        library.unlink(missing_ok=True)  # an older one would not be what the record says
    record["seconds"] = round(time.time() - start, 1)
    library.parent.mkdir(parents=True, exist_ok=True)
    library.with_name(RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n")
    return record


def describe(plan: Plan) -> dict:
    """What goes into the record about tools and flags."""

    def first_line(*command: str) -> str:
        lines = subprocess.run(command, capture_output=True, text=True).stdout.strip().splitlines()
        return lines[0] if lines else "unknown"

    return {
        "compiler": first_line(plan.cxx, "--version"),
        "nvcc": first_line(plan.nvcc, "--version") if plan.nvcc else None,
        "torch_headers": torch_version(plan.torch_include),
        "cpu_levels": list(plan.levels),
        "cuda_archs": os.environ.get("SWA_ATTN_CUDA_ARCHS", CUDA_ARCHS) if plan.nvcc else None,
        "notes": plan.notes,
    }


def main() -> int:
    mode = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SWA_ATTN_BUILD", "auto")
    elsewhere = os.environ.get("SWA_ATTN_BUILD_FOLDER")
    folder = Path(elsewhere).resolve() if elsewhere else CHECKOUT / "build" / "native"
    try:
        record = build(mode, (folder if elsewhere else CHECKOUT / "swa_attn") / LIBRARY_NAME, folder)
    except BuildError as error:
        print(f"swa_attn: {error}", file=sys.stderr)
        return 1
    print(json.dumps(record, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
