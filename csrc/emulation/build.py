"""Builds emulated kernels into a Python module. Standard library only; needs a C++17 compiler, ninja and pybind11.

    module = build([Path("tests/emulation/kernels/register_attention.cpp")], [Path("tests/emulation/kernels")])

Everything lies in build/emulation, in folders named by the content of what they were made from: nothing is compiled
twice, and a stale object cannot be picked up. The emulator does not depend on the kernels and is compiled once.

Environment: CXX, SWA_ATTN_EMULATOR_FLAGS (more compiler flags, for example -fsanitize=address).
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

EMULATION = Path(__file__).resolve().parent
SOURCE = EMULATION.parent
CACHE = SOURCE.parent / "build" / "emulation"
MODULE_NAME = "swa_emulator"  # of the Python module; several may be loaded, from different files
KEPT_FOLDERS = 8
COMPLETE = "complete"  # file in a folder whose build went through
HEADERS = ("*.hpp", "*.h", "*.cuh", "*.inc")

# -fno-gnu-unique: inline variables of several such modules in one process must not be merged.
FLAGS = ["-std=c++17", "-fPIC", "-pthread", "-fvisibility=hidden", "-fno-gnu-unique", "-Wall", "-Wextra"]
FLAGS += ["-Wno-psabi", "-Wno-unknown-pragmas"]
CORE_FLAGS = ["-O3"]  # where the time goes: matrix arithmetic, shadow memory, switching
KERNEL_FLAGS = ["-O2"]


def _package_build() -> ModuleType:
    """csrc/build.py, which knows how to find tools."""
    spec = importlib.util.spec_from_file_location("swa_attn_build", SOURCE / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


tools = _package_build()


def _pybind11_include() -> Path:
    spec = importlib.util.find_spec("pybind11")
    if not spec or not spec.submodule_search_locations:
        raise tools.BuildError("pybind11 was not found: `pip install pybind11`")
    return Path(spec.submodule_search_locations[0]) / "include"


def _files(folders: Iterable[Path], patterns: Iterable[str]) -> list[Path]:
    return sorted({f for folder in folders for pattern in patterns for f in folder.rglob(pattern)})


def _digest(files: Iterable[Path], words: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for word in words:
        digest.update(word.encode() + b"\0")
    for file in files:
        digest.update(str(file).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _quote(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _run_ninja(ninja: str, folder: Path, edges: Sequence[tuple[Path, str, Sequence[Path]]]) -> None:
    """Runs (target, command with $in and $out, inputs) edges, two at a time."""
    lines = ["ninja_required_version = 1.5"]
    for i, (target, command, inputs) in enumerate(edges):
        lines += [f"rule r{i}", f"  command = {command}", f"  description = {target.name}"]
        lines.append(f"build {_quote(target)}: r{i} {' '.join(map(_quote, inputs))}")
    (folder / "build.ninja").write_text("\n".join([*lines, ""]))
    result = subprocess.run([ninja, "-C", str(folder), "-j2"], capture_output=True, text=True)
    if result.returncode:
        raise tools.BuildError("the emulated kernels did not build:\n" + (result.stdout + result.stderr).strip())


def _prune() -> None:
    """Forgets the folders that were not used for longest."""
    folders = sorted((f for f in CACHE.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime, reverse=True)
    for folder in folders[KEPT_FOLDERS:]:
        shutil.rmtree(folder, ignore_errors=True)


def build(sources: Sequence[Path], include: Sequence[Path]) -> Path:
    """The module with the kernels of `sources` (C++ files that register them), which may include headers of `include`.

    Raises BuildError when a tool is missing or the compiler refuses.
    """
    cxx = tools.find_tool("CXX", "g++", "c++", "clang++")
    if not cxx:
        raise tools.BuildError("no C++ compiler was found: install g++ or clang++, or set CXX")
    ninja, pybind11 = tools.find_ninja(), _pybind11_include()
    extra = os.environ.get("SWA_ATTN_EMULATOR_FLAGS", "").split()
    compile_ = " ".join([cxx, *FLAGS, *extra, f"-I{SOURCE}"])
    compiler = subprocess.run([cxx, "--version"], capture_output=True, text=True).stdout
    words = [compiler, sys.version, compile_, *CORE_FLAGS, *KERNEL_FLAGS]
    words += [(pybind11 / "pybind11/detail/common.h").read_text()]  # holds pybind11's version
    core_hash = _digest(_files([EMULATION], ["*.cpp", *HEADERS]), words)
    kernel_hash = _digest([*sources, *_files([SOURCE / "cuda", *include], HEADERS)], [core_hash])
    core, folder = CACHE / f"core-{core_hash}", CACHE / f"kernels-{kernel_hash}"
    core_objects = [core / "emulator.o", core / "bindings.o"]
    module = folder / f"{MODULE_NAME}.so"

    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:  # several test processes may want the same module
        fcntl.flock(lock, fcntl.LOCK_EX)
        for f in (core, folder):
            f.mkdir(exist_ok=True)
            os.utime(f)
        if not (core / COMPLETE).exists():
            parts = sorted(f.name for f in EMULATION.glob("*.cpp") if f.stem != "bindings")
            unity = core / "emulator.cpp"  # one unit: the headers are read once
            unity.write_text("".join(f'#include "emulation/{name}"\n' for name in parts))
            python = f"-isystem {pybind11} -isystem {sysconfig.get_path('include')}"
            to_object = "-c $in -o $out"
            edges = [
                (core_objects[0], f"{compile_} {' '.join(CORE_FLAGS)} {to_object}", [unity]),
                (
                    core_objects[1],
                    f"{compile_} {' '.join(KERNEL_FLAGS)} {python} {to_object}",
                    [EMULATION / "bindings.cpp"],
                ),
            ]
            _run_ninja(ninja, core, edges)
            (core / COMPLETE).touch()
        if not (folder / COMPLETE).exists():
            includes = " ".join(f"-I{i}" for i in include)
            # -x: a host compiler would not take a .cu file for C++
            compile_kernel = f"{compile_} {' '.join(KERNEL_FLAGS)} {includes} -x c++ -c $in -o $out"
            objects = [folder / f"{i}-{source.stem}.o" for i, source in enumerate(sources)]
            edges = [(target, compile_kernel, [source]) for target, source in zip(objects, sources)]
            link = " ".join([cxx, *extra, "-shared -pthread $in -o $out"])
            _run_ninja(ninja, folder, [*edges, (module, link, [*objects, *core_objects])])
            (folder / COMPLETE).touch()
            _prune()
    return module
