"""Packs the Python package and, through csrc/build.py, the native library.

SWA_ATTN_BUILD: auto (native if it can be built; an install never fails for lack of it) | cuda | cpu | none.
"""

import importlib.util
import os
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
MODE = os.environ.get("SWA_ATTN_BUILD", "auto")


def load_build_module():
    """csrc/build.py by path: importing the package would import torch, which an isolated environment does not have."""
    spec = importlib.util.spec_from_file_location("swa_attn_native_build", HERE / "csrc" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_native(command):
    """Build beside the Python files that `command` installs, or in place for an editable install."""
    native = load_build_module()
    in_place = getattr(command, "inplace", False) or command.editable_mode
    package = HERE / "swa_attn" if in_place else Path(command.build_lib).resolve() / "swa_attn"
    record = native.build(MODE, package / native.LIBRARY_NAME, HERE / "build" / "native")
    print("swa_attn: native library", "built" if record["built"] else f"not built: {record['reason']}")


class BuildNative(build_ext):
    def run(self):
        build_native(self)

    def get_source_files(self):
        return []

    def get_outputs(self):
        return []


class BuildPython(build_py):
    """Leaves out what a checkout's own build has put into the package folder: the install makes its own."""

    def run(self):
        super().run()
        if MODE == "none":  # there is no extension then, only the record that says so
            build_native(self)

    def find_data_files(self, package, src_dir):
        return [
            f for f in super().find_data_files(package, src_dir) if Path(f).name not in ("_C.so", "_build_info.json")
        ]


class Wheel(bdist_wheel):
    def get_tag(self):
        # Neither Python's C API nor unstable libtorch symbols are used: one wheel for every Python and torch >= 2.10.
        return ("py3", "none", "any" if MODE == "none" else super().get_tag()[2])


# setuptools would pack a library that an earlier build left there.
for stale in (HERE / "build").glob("lib*"):
    shutil.rmtree(stale, ignore_errors=True)

setup(
    ext_modules=[] if MODE == "none" else [Extension("swa_attn._C", [])],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython, "bdist_wheel": Wheel},
)
