"""Building emulated kernels: caching by content, and errors a user can act on."""

import shutil

import pytest
import torch

from swa_attn.testing.emulator import Emulator, writes

SOURCE = """
#include "answer.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/ld_st.cuh"
#include "emulation/registry.hpp"

static void kernel(uint32_t* out) { swa::ptx::stg(out, uint32_t(kAnswer)); }
static const swa::emu::Registration answer("answer", [](const swa::emu::Args& a) {
  swa::ptx::launch({1, 1, 0}, kernel, a.pointer<uint32_t>("out"));
});
"""


@pytest.fixture
def project(tmp_path, emulator):  # the shared fixture skips where nothing can be built
    (tmp_path / "answer.cuh").write_text("constexpr int kAnswer = 42;\n")
    (tmp_path / "answer.cpp").write_text(SOURCE)
    built = []

    def load() -> Emulator:
        built.append(Emulator([tmp_path / "answer.cpp"], include=[tmp_path]))
        return built[-1]

    yield tmp_path, load
    for e in built:
        shutil.rmtree(e.module_path.parent, ignore_errors=True)


def ask(emulator: Emulator) -> int:
    out = torch.zeros(1, dtype=torch.int32)
    emulator.launch("answer", out=writes(out)).check()
    return out.item()


def test_nothing_is_built_twice_and_changes_are_seen(project):
    folder, load = project
    first = load()
    written = first.module_path.stat().st_mtime_ns
    again = load()
    assert again.module_path == first.module_path and again.module_path.stat().st_mtime_ns == written
    assert ask(first) == ask(again) == 42
    # A header's new content gives another module, whatever its time says; the old one is still there.
    (folder / "answer.cuh").write_text("constexpr int kAnswer = 43;\n")
    second = load()
    assert second.module_path != first.module_path and ask(second) == 43
    (folder / "answer.cuh").write_text("constexpr int kAnswer = 42;\n")
    assert load().module_path == first.module_path
    assert ask(first) == 42  # several modules live in one process


def test_a_compiler_error_is_shown(project):
    folder, load = project
    (folder / "answer.cuh").write_text("constexpr int kAnswer = nonsense;\n")
    with pytest.raises(RuntimeError, match=r"(?s)did not build.*nonsense"):
        load()


def test_missing_tools_are_named(project, monkeypatch):
    _, load = project
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler was found: install"):
        load()
