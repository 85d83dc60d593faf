"""Builds the benchmark's own libraries with nvcc, and calls them: test kernels by name, and the kernels of the ceilings.

Plain shared libraries behind a C interface (ctypes), without torch's headers: they build in seconds and do not depend on
the package's own library.
"""

import ctypes
import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from swa_attn.testing.emulator import Buffer

ROOT = Path(__file__).resolve().parents[2]
CSRC, KERNELS = ROOT / "csrc", ROOT / "tests" / "emulation" / "kernels"
NATIVE = Path(__file__).resolve().parent / "native"
OUTPUT = ROOT / "build" / "gpu"
FLAGS = ["-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC", "-cudart", "static", "--threads", "8"]
FLAGS += ["-Xlinker", "--exclude-libs=ALL"]  # torch brings a CUDA runtime of its own: ours must not mix with it
FLAGS += ["-Werror", "all-warnings", f"-I{CSRC}", f"-I{KERNELS}"]
SM80_KERNELS = ("register_sm80.cpp",)
SM90_KERNELS = ("register_sm90.cpp", "register_attention.cpp")
WIDE_ARCH = "90a"  # the only one with wgmma; every other builds the sm_80 kernels


def load_build_module() -> ModuleType:
    """csrc/build.py, which knows how to find nvcc and to build the package's library."""
    spec = importlib.util.spec_from_file_location("swa_attn_build", CSRC / "build.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arch_of(capability: tuple[int, int]) -> str:
    """The arch to build for, as in SWA_ATTN_CUDA_ARCHS: `90a` for a Hopper card, whose instructions need the letter."""
    return WIDE_ARCH if capability == (9, 0) else f"{capability[0]}{capability[1]}"


def compile_library(nvcc: str, arch: str, name: str, sources: list[Path]) -> Path:
    """Builds `lib<name>_<arch>.so`. Raises RuntimeError with what the compiler said."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    library = OUTPUT / f"lib{name}_{arch}.so"
    gencode = ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    command = [nvcc, *FLAGS, *gencode, "-x", "cu", *map(str, sources), "-o", str(library)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"nvcc failed on {name} for sm_{arch}:\n{result.stdout}{result.stderr}")
    return library


def build_conformance(nvcc: str, arch: str) -> Path:
    registered = [*SM80_KERNELS, *(SM90_KERNELS if arch == WIDE_ARCH else ())]
    sources = [*(KERNELS / name for name in registered), CSRC / "emulation" / "registry.cpp"]
    return compile_library(nvcc, arch, "conformance", [*sources, NATIVE / "conformance.cu"])


def build_ceilings(nvcc: str, arch: str) -> Path:
    return compile_library(nvcc, arch, "ceilings", [NATIVE / "ceilings.cu"])


class Card:
    """Launches test kernels on the card with the arguments that `Emulator.launch` takes."""

    def __init__(self, library: Path):
        self._run = ctypes.CDLL(str(library)).swa_conformance_run

    def launch(self, kernel: str, /, **arguments: Buffer | int | float | None) -> None:
        """Copies the buffers to the card, runs the kernel, copies the writable ones back.

        Raises RuntimeError with CUDA's or the registry's message.
        """
        on_card = {name: _to_card(a) for name, a in arguments.items() if isinstance(a, Buffer)}
        pointers = {name: x.data_ptr() for name, x in on_card.items()}
        pointers |= {name: 0 for name, a in arguments.items() if a is None}
        integers = {name: a for name, a in arguments.items() if isinstance(a, int)}
        numbers = {name: a for name, a in arguments.items() if isinstance(a, float)}
        torch.cuda.synchronize()  # the kernel runs on the default stream of another CUDA runtime
        message = ctypes.create_string_buffer(1024)
        failed = self._run(
            kernel.encode(),
            *_named(pointers, ctypes.c_void_p),
            *_named(integers, ctypes.c_int64),
            *_named(numbers, ctypes.c_double),
            message,
            ctypes.c_size_t(len(message)),
        )
        if failed:
            raise RuntimeError(f"{kernel}: {message.value.decode()}")
        for name, buffer in arguments.items():
            if isinstance(buffer, Buffer) and buffer.writable:
                _bytes_of(buffer).copy_(on_card[name])


def _bytes_of(buffer: Buffer) -> Tensor:
    """The memory a buffer spans, gaps included, as bytes that alias it."""
    memory = (ctypes.c_uint8 * buffer.num_bytes).from_address(buffer.tensor.data_ptr())
    return torch.frombuffer(memory, dtype=torch.uint8)


def _to_card(buffer: Buffer) -> Tensor:
    return _bytes_of(buffer).cuda()


def _named(values: Mapping[str, object], kind: type) -> tuple[int, ctypes.Array, ctypes.Array]:
    """Count, names and values as C takes them."""
    names = (ctypes.c_char_p * len(values))(*(name.encode() for name in values))
    return len(values), names, (kind * len(values))(*values.values())


class CeilingKernels:
    """The kernels of native/ceilings.cu, launched on torch's current stream."""

    def __init__(self, library: Path):
        self._library = ctypes.CDLL(str(library))
        self.exps_per_step = self._library.swa_ceilings_exps_per_step()

    def read(self, data: Tensor, out: Tensor, num_ctas: int) -> None:
        """Reads a contiguous tensor once, on the card or in pinned host memory (a multiple of 16 bytes)."""
        size = ctypes.c_long(data.numel() * data.element_size())
        self._call("read", ctypes.c_void_p(data.data_ptr()), size, ctypes.c_void_p(out.data_ptr()), num_ctas)

    def exponentials(self, num_steps: int, out: Tensor, num_ctas: int) -> None:
        """`num_ctas * num_steps * exps_per_step` exponentials."""
        self._call("exps", num_steps, ctypes.c_void_p(out.data_ptr()), num_ctas)

    def nothing(self) -> None:
        self._call("nothing")

    def _call(self, name: str, *arguments: object) -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        error = getattr(self._library, f"swa_ceilings_{name}")(*arguments, stream)
        if error:
            raise RuntimeError(f"the launch of {name} failed with CUDA error {error}")
