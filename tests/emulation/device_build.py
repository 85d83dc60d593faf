"""nvcc, and what it made, for the tests of the device half."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
CSRC, KERNELS = ROOT / "csrc", Path(__file__).resolve().parent / "kernels"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_nvcc() -> str | None:
    return load(CSRC / "build.py").find_nvcc()


def compile_source(nvcc: str, source: Path, output: Path, arch: str, *flags: str) -> str:
    """What nvcc printed; AssertionError, with that, if it refused or warned."""
    command = [nvcc, "-std=c++17", "-O3", "-Werror", "all-warnings", f"-I{CSRC}", f"-I{KERNELS}", f"-arch={arch}"]
    result = subprocess.run([*command, *flags, str(source), "-o", str(output)], capture_output=True, text=True)
    text = result.stdout + result.stderr
    assert result.returncode == 0, text
    return text


def find_disassembler() -> str | None:
    """CUDA's, or the one that Triton brings."""
    found = shutil.which("nvdisasm")
    triton = importlib.util.find_spec("triton")
    if found or triton is None:
        return found
    brought = Path(triton.submodule_search_locations[0]) / "backends" / "nvidia" / "bin" / "nvdisasm"
    return str(brought) if brought.exists() else None


def disassemble(cubin: Path) -> str:
    return subprocess.run([find_disassembler(), str(cubin)], capture_output=True, text=True, check=True).stdout


def functions(sass: str) -> dict[str, list[str]]:
    """Mangled name -> instructions, with their modifiers and operands."""
    parts = re.split(r"\n\s*\.section\s+\.text\.", sass)[1:]
    instruction = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][^;]*);")
    return {part.split(",")[0]: [m[1].strip() for m in instruction.finditer(part)] for part in parts}
