"""The CPU kernels' exponential and tanh err by no more than the error bounds of attention assume."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from swa_attn.testing.roundings import ACCURATE_TANH, EXP

ROOT = Path(__file__).resolve().parents[2]
COMPILER = next((c for c in ("g++", "c++", "clang++") if shutil.which(c)), None)


def build_script():
    spec = importlib.util.spec_from_file_location("swa_attn_build_script", ROOT / "csrc" / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_exponential_and_tanh(level, tmp_path):
    script, program = build_script(), tmp_path / "accuracy"
    flags = [*script.CPU_FLAGS, *script.X86_LEVELS[level], "-std=c++17", f"-DSWA_ISA={level}", f"-I{ROOT / 'csrc'}"]
    command = [COMPILER, *flags, str(Path(__file__).with_name("accuracy.cpp")), "-o", str(program)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip(f"this compiler or machine has no {level}")
    result = subprocess.run([str(program)], capture_output=True, text=True)
    if result.returncode < 0:
        pytest.skip(f"this machine has no {level}")
    exponential, tanh = map(float, result.stdout.split())
    assert 0 < exponential < EXP
    assert 0 < tanh < ACCURATE_TANH
