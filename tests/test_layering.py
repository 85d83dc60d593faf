"""The floors of the house (docs/structure.md): an arrow may only go down."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "swa_attn"
STANDARD = sys.stdlib_module_names

# Room -> what it may import: rooms of this package (a leading dot) and third-party packages. A room may always import
# itself and the standard library. `attention` means attention.py, `kvcache` the whole folder.
MAY_IMPORT = {
    "reference": {"torch"},
    "triton": {"torch", "triton"},
    "_memory": {"torch"},
    "_checks": {"torch", "._memory"},
    "backends": {"torch"},  # loads the backend modules by name
    "native": {"torch"},
    "_check_values": {"torch", "._checks"},
    "reference_backend": {"torch", ".reference", "._check_values"},
    "ops": {"torch", "._checks", "._check_values", ".backends"},
    "attention": {"torch", "numpy", ".ops"},
    "kvcache": {"torch", "numpy", "xxhash", "redis", ".ops"},  # the last two third-party ones are optional extras
    "runner": {"torch", "numpy", "safetensors", ".attention", ".kvcache", ".ops"},
    "replay": {"torch", ".kvcache", ".runner"},
    "testing": {"torch", "numpy", ".reference", ".ops", ".backends", ".native"},  # whose roundings a comparison allows
    "info": {"torch", "numpy", "triton", "._check_values", ".backends", ".native", ".version"},
    "version": set(),
    "__init__": {"._check_values", ".ops", ".backends", ".attention", ".version"},
}


def imports_of(file: Path) -> set[str]:
    """First-level names a file imports: `torch`, or `.ops` for this package's own rooms; strings are not followed."""
    depth = len(file.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, _, rest = alias.name.partition(".")
                found.add("." + rest.partition(".")[0] if first == "swa_attn" else first)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                first, _, rest = node.module.partition(".")
                found |= _own(rest, node) if first == "swa_attn" else {first}
            elif node.level == depth:
                found |= _own(node.module or "", node)
    return {name for name in found if name not in STANDARD}


def _own(module: str, node: ast.ImportFrom) -> set[str]:
    if module:
        return {"." + module.partition(".")[0]}
    return {"." + alias.name for alias in node.names}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


ROOMS = sorted({room_of(f) for f in PACKAGE.rglob("*.py")})


@pytest.mark.parametrize("room", [r for r in ROOMS if r != "__main__"])
def test_a_room_imports_only_what_lies_below(room):
    allowed = MAY_IMPORT[room] | {"." + room}
    wrong = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in PACKAGE.rglob("*.py")
        if room_of(file) == room
        for name in imports_of(file) - allowed
    }
    assert not wrong, sorted(wrong)


def test_the_checker_sees_an_upward_arrow(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "kvcache").mkdir()
    bad = tmp_path / "kvcache" / "bad.py"
    bad.write_text("import os, torch\nfrom ..runner import engine\nfrom .pool import x\nfrom swa_attn import testing\n")
    assert imports_of(bad) == {"torch", ".runner", ".testing"}


TORCH_HEADER = re.compile(r'#include\s*[<"](torch|ATen|c10)/')
INCLUDE = re.compile(r'#include\s*"([^"]+)"')


def sources():
    return [f for f in (ROOT / "csrc").rglob("*") if f.suffix in {".cpp", ".h", ".hpp", ".cu", ".cuh"}]


def test_torch_headers_stop_at_csrc_ops():
    files = sources()
    assert files
    wrong = [
        str(f.relative_to(ROOT))
        for f in files
        if f.relative_to(ROOT / "csrc").parts[0] != "ops" and TORCH_HEADER.search(f.read_text())
    ]
    assert not wrong


def test_kernels_do_not_include_ops():
    wrong = [
        f"{f.relative_to(ROOT)} includes {include}"
        for f in sources()
        if f.relative_to(ROOT / "csrc").parts[0] != "ops"
        for include in INCLUDE.findall(f.read_text())
        if include.startswith(("ops/", "../ops/", "../../ops/"))
    ]
    assert not wrong


CUDA_FLOORS = ("ptx", "tile", "attention", "kernels", "emulated")  # each may include those before it, and itself


def test_cuda_includes_go_down():
    wrong = []
    for file in (ROOT / "csrc" / "cuda").rglob("*.cu*"):
        floor = CUDA_FLOORS.index(file.relative_to(ROOT / "csrc" / "cuda").parts[0])
        for include in INCLUDE.findall(file.read_text()):
            parts = include.split("/")
            if parts[0] == "cuda" and parts[1] in CUDA_FLOORS[floor + 1 :]:
                wrong.append(f"{file.relative_to(ROOT)} includes {include}")
    assert not wrong
