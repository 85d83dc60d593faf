"""The emulator without Python: under sanitizers, and on the other architecture if its compiler and qemu are there."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC, KERNELS = HERE.parents[1] / "csrc", HERE / "kernels"
FLAGS = ["-std=c++17", "-O1", "-pthread", "-ffp-contract=off", "-Wno-psabi", "-Wno-unknown-pragmas"]

pytestmark = pytest.mark.slow


def build_and_run(folder: Path, compiler: str, *flags: str, runner: tuple[str, ...] = (), env=None) -> str:
    """What native/driver.cpp prints."""
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    emulator = folder / "emulator.cpp"
    parts = [f for f in CSRC.glob("emulation/*.cpp") if f.stem != "bindings"]
    emulator.write_text("".join(f'#include "{part}"\n' for part in sorted(parts)))
    sources = [emulator, *KERNELS.glob("*.cpp"), HERE / "native" / "driver.cpp"]
    command = [compiler, *FLAGS, *flags, f"-I{CSRC}", f"-I{KERNELS}", *map(str, sources), "-o", str(folder / "driver")]
    subprocess.run(command, check=True)
    result = subprocess.run([*runner, str(folder / "driver")], capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return build_and_run(tmp_path_factory.mktemp("plain"), "g++")


def test_the_driver_agrees_with_the_other_tests(plain):
    lines = plain.splitlines()
    assert sum(line.startswith("detector/") for line in lines) > 300
    results = {line.split(" result ")[1].split()[0] for line in lines if line.startswith("fa_sm")}
    assert len(results) == 1  # both kernels, every schedule: the inputs are such that no sum is rounded differently
    assert any(line.startswith("detector/two_warps_write_one_word: write-after-write@") for line in lines)


def test_address_and_undefined_behaviour_sanitizers(tmp_path, plain):
    flags = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    # Fibers that a report abandons are not unwound, so what they own is not freed.
    env = {"ASAN_OPTIONS": "detect_leaks=0:handle_segv=0"}
    assert build_and_run(tmp_path, "g++", *flags, env=env) == plain


def test_aarch64(tmp_path, plain):
    if not shutil.which("qemu-aarch64"):
        pytest.skip("qemu-aarch64 is not installed")
    cross = "aarch64-linux-gnu-g++"
    assert build_and_run(tmp_path, cross, "-static", runner=("qemu-aarch64",)) == plain
