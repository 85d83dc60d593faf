"""The emulator with all test kernels, built once and cached in build/emulation."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from swa_attn.testing.emulator import Emulator

KERNELS = Path(__file__).resolve().parent / "kernels"


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    if importlib.util.find_spec("pybind11") is None:
        pytest.skip("pybind11 is not installed")
    if not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        pytest.skip("there is no C++ compiler")
    return Emulator(sorted(KERNELS.glob("*.cpp")), include=[KERNELS])
