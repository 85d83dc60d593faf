"""The emulator with all test kernels, built once and cached in build/emulation; nvcc."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from device_build import KERNELS, compile_source, find_nvcc

from swa_attn.testing.emulator import Emulator


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    if importlib.util.find_spec("pybind11") is None:
        pytest.skip("pybind11 is not installed")
    if not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        pytest.skip("there is no C++ compiler")
    return Emulator(sorted(KERNELS.glob("*.cpp")), include=[KERNELS])


@pytest.fixture(scope="session")
def nvcc(tmp_path_factory) -> Callable[..., tuple[Path, str]]:
    """nvcc(source, arch, *flags) -> (output file, what was printed). Each is compiled once."""
    tool = find_nvcc()
    if not tool:
        pytest.skip("nvcc is not installed: the device half is not compiled here")
    made: dict[tuple, tuple[Path, str]] = {}

    def compile_(source: Path, arch: str, *flags: str) -> tuple[Path, str]:
        key = source, arch, flags
        if key not in made:
            output = tmp_path_factory.mktemp("device") / f"{source.stem}.{arch}"
            made[key] = output, compile_source(tool, source, output, arch, *flags)
        return made[key]

    return compile_
