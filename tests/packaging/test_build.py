"""The build module: what it finds, what it records, and what it says when something is missing."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from swa_attn import backends, native

ROOT = Path(__file__).resolve().parents[2]
READELF = shutil.which("readelf")


@pytest.fixture
def build(monkeypatch):
    """csrc/build.py, loaded by path as setup.py does, with no settings from outside."""
    for name in ("CXX", "SWA_ATTN_NVCC", "SWA_ATTN_CUDA_ARCHS", "SWA_ATTN_TORCH_INCLUDE", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("build_under_test", ROOT / "csrc" / "build.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "build_under_test", module)
    spec.loader.exec_module(module)
    return module


def record_of(library):
    return json.loads(library.with_name("_build_info.json").read_text())


def test_none_builds_nothing_and_says_so(build, tmp_path):
    build.build("none", tmp_path / "_C.so", tmp_path / "work")
    assert record_of(tmp_path / "_C.so")["reason"] == "SWA_ATTN_BUILD=none: no native library was asked for"


def test_auto_without_a_compiler_does_not_fail(build, tmp_path, monkeypatch):
    (tmp_path / "_C.so").write_text("an older build")
    monkeypatch.setenv("PATH", str(tmp_path))
    record = build.build("auto", tmp_path / "_C.so", tmp_path / "work")
    assert not record["built"] and "no C++ compiler was found" in record["reason"]
    assert record_of(tmp_path / "_C.so") == record
    assert not (tmp_path / "_C.so").exists()


def test_cpu_without_a_compiler_fails(build, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler was found: install g\+\+ or clang\+\+, or set CXX"):
        build.build("cpu", tmp_path / "_C.so", tmp_path / "work")


def test_missing_torch_is_one_sentence(build, tmp_path, monkeypatch):
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(build.sysconfig, "get_path", lambda key: str(tmp_path))
    with pytest.raises(build.BuildError, match=r"install torch first, then `pip install --no-build-isolation \.`"):
        build.find_torch_include()


def test_torch_is_found_in_the_environment_when_it_cannot_be_imported(build, tmp_path, monkeypatch):
    header = tmp_path / "torch" / "include" / "torch" / "csrc" / "stable" / "library.h"
    header.parent.mkdir(parents=True)
    header.touch()
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(build.sysconfig, "get_path", lambda key: str(tmp_path))
    assert build.find_torch_include() == tmp_path / "torch" / "include"


def test_missing_ninja_says_how_to_get_it(build, monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda *args, **kwargs: None)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(build.BuildError, match="pip install ninja"):
        build.find_ninja()


def test_unknown_mode_and_cuda_without_sources(build):
    with pytest.raises(build.BuildError, match="must be auto, cpu, cuda or none, got 'fast'"):
        build.make_plan("fast")
    if not any((ROOT / "csrc" / "cuda").rglob("*.cu")):
        with pytest.raises(build.BuildError, match="SWA_ATTN_BUILD=cuda"):
            build.make_plan("cuda")


def test_a_level_the_compiler_does_not_know_is_left_out(build, monkeypatch):
    if build.platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("only x86-64 has levels")
    monkeypatch.setattr(build, "accepts", lambda cxx, flags: "-mavx512bf16" not in flags)
    plan = build.make_plan("cpu")
    assert list(plan.levels) == ["baseline", "avx2", "avx512"]
    assert any("no avx512_bf16 CPU kernels" in note for note in plan.notes)


@pytest.fixture
def broken_tree(build, tmp_path, monkeypatch):
    """A source tree of one file that does not compile."""
    (tmp_path / "csrc" / "ops").mkdir(parents=True)
    (tmp_path / "csrc" / "ops" / "bad.cpp").write_text("int main() { return undeclared_name; }\n")
    monkeypatch.setattr(build, "SOURCE", tmp_path / "csrc")
    return tmp_path


def test_a_failing_compile_shows_the_compilers_own_words(build, broken_tree):
    with pytest.raises(build.BuildError, match=r"(?s)the native build failed:.*undeclared_name"):
        build.build("cpu", broken_tree / "_C.so", broken_tree / "work")
    record = build.build("auto", broken_tree / "_C.so", broken_tree / "work")
    assert not record["built"] and "undeclared_name" in record["reason"]


def test_cuda_sources_go_through_nvcc(build, broken_tree, monkeypatch):
    """The ninja file for a kernel, whether or not nvcc is here."""
    (broken_tree / "csrc" / "cuda" / "kernels").mkdir(parents=True)
    (broken_tree / "csrc" / "cuda" / "kernels" / "k.cu").write_text("__global__ void k() {}\n")
    (broken_tree / "csrc" / "ops" / "cuda.cpp").touch()
    monkeypatch.setattr(build, "find_nvcc", lambda: "/opt/cuda/bin/nvcc")
    monkeypatch.setenv("SWA_ATTN_CUDA_ARCHS", "80;90a")
    build.write_ninja_file(build.make_plan("cuda"), broken_tree / "work", broken_tree / "_C.so")
    text = (broken_tree / "work" / "build.ninja").read_text()
    assert "nvcc = /opt/cuda/bin/nvcc" in text and "cudart static" in text
    assert "-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a" in text
    assert "-gencode arch=compute_80,code=compute_80\n" in text  # PTX, for the GPUs that neither of the two is for
    assert "ops/cuda.cpp" in text
    build.write_ninja_file(build.make_plan("cpu"), broken_tree / "work", broken_tree / "_C.so")
    text = (broken_tree / "work" / "build.ninja").read_text()
    assert "ops/bad.cpp" in text and "ops/cuda.cpp" not in text and "k.cu" not in text


LIBRARY = ROOT / "swa_attn" / "_C.so"
built = pytest.mark.skipif(not LIBRARY.exists(), reason="the native library is not built")


@built
def test_a_second_build_compiles_nothing(build):
    ninja_file = ROOT / "build" / "native" / "build.ninja"
    if not ninja_file.exists():
        pytest.skip("the library was not built in this checkout")
    result = subprocess.run([build.find_ninja(), "-n", "-C", str(ninja_file.parent)], capture_output=True, text=True)
    assert "no work to do" in result.stdout


@built
@pytest.mark.skipif(READELF is None, reason="readelf is not installed")
def test_the_library_needs_neither_python_nor_cuda():
    dynamic = subprocess.run([READELF, "-d", str(LIBRARY)], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].split("]")[0] for line in dynamic.splitlines() if "(NEEDED)" in line}
    assert {"libtorch.so", "libtorch_cpu.so"} <= needed
    assert not [name for name in needed if "cuda" in name or "python" in name or "c10" in name]
    symbols = subprocess.run([READELF, "-Ws", "--dyn-syms", str(LIBRARY)], capture_output=True, text=True).stdout
    undefined = [line.split()[-1] for line in symbols.splitlines() if " UND " in line]
    # Only the C functions of the stable ABI come from torch, no mangled C++ names of it.
    assert not [name for name in undefined if name.startswith(("_ZN2at", "_ZN3c10", "_ZN5torch", "Py"))]


@built
def test_a_library_with_cuda_kernels_is_small_and_loads_without_a_gpu():
    if not record_of(LIBRARY).get("cuda_archs"):
        pytest.skip("the library was built without nvcc")
    assert LIBRARY.stat().st_size < 10 << 20
    assert native.unavailable("CUDA") is None

    def lacks(op, dtype, head_dim):
        return native.lacks(backends.Case(op, "cuda", "cuda", dtype, dtype, 16, 8, head_dim, 128))

    assert lacks("decode", torch.bfloat16, 192) is None
    assert "head dims" in lacks("prefill", torch.bfloat16, 96)
    assert "bfloat16 and float16 queries" in lacks("decode", torch.float32, 192)
    assert lacks("append_kv", torch.float32, 96) is None


@pytest.mark.parametrize("mode", ["none", pytest.param("cpu", marks=pytest.mark.slow)])
def test_wheels(mode, tmp_path):
    """One wheel for every Python; a stale library of the checkout is not packed."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "swa_attn", tree / "swa_attn", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copytree(ROOT / "csrc", tree / "csrc", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "swa_attn" / "_C.so").write_text("stale")
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(tmp_path)]
    environment = {**os.environ, "SWA_ATTN_BUILD": mode}
    result = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-" in wheel.name and (mode == "cpu" or wheel.name.endswith("-any.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = json.loads(archive.read("swa_attn/_build_info.json"))
        assert record["built"] == (mode == "cpu")
        assert ("swa_attn/_C.so" in names) == (mode == "cpu")
        assert mode == "none" or archive.read("swa_attn/_C.so") != b"stale"
    assert "swa_attn/runner/engine.py" in names and not [n for n in names if n.startswith(("tests", "csrc"))]
