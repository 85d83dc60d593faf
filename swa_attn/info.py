"""`python -m swa_attn info`: what is installed, what was built, and which backend will run which op here and why."""

import argparse
import importlib.metadata
import json
import os
import platform

import torch

from . import _check_values, backends, native
from .version import __version__

OPS = ("append_kv", "prefill", "decode", "merge_states", "copy_pages")
# The shapes the table answers for: MiMo-V2's windowed layers, bfloat16.
DTYPE, PAGE_SIZE, GROUP_SIZE, HEAD_DIM, V_HEAD_DIM = torch.bfloat16, 64, 8, 192, 128


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m swa_attn info", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    facts = collect()
    print(json.dumps(facts, indent=2) if args.json else format_facts(facts))
    return 0


def collect() -> dict:
    """Everything the command says, as plain data."""
    return {
        "versions": {
            "swa_attn": __version__,
            "python": platform.python_version(),
            **_versions("torch", "triton", "numpy"),
        },
        "build": native.build_record() or {"built": native.LIBRARY.exists(), "reason": "no build has been recorded"},
        "library": native.unavailable() or f"loaded, CPU kernels for {native.cpu_level()}",
        "devices": _devices(),
        "check_values": _check_values.enabled(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("SWA_ATTN_", "TRITON_INTERPRET"))},
        "backends": {device: {op: explain(op, device) for op in OPS} for device in backends.ORDER},
    }


def explain(op: str, device: str) -> dict:
    """The backend that would run `op` on `device` tensors, and why the ones before it would not."""
    forced = os.environ.get("SWA_ATTN_BACKEND")
    refused = {}
    for name in (forced,) if forced else backends.ORDER[device]:
        reason = backends.lacks(name, _case(op, name, device))
        if reason is None:
            return {"runs": name, "not": refused}
        refused[name] = reason
    return {"runs": None, "not": refused}


def _case(op: str, backend: str, device: str) -> backends.Case:
    if op in ("merge_states", "copy_pages"):
        return backends.Case(op, backend, device, DTYPE)
    return backends.Case(op, backend, device, DTYPE, DTYPE, PAGE_SIZE, GROUP_SIZE, HEAD_DIM, V_HEAD_DIM)


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _devices() -> list[str]:
    cpu = f"cpu: {platform.machine()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        return [cpu]
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        cpu,
        *(f"cuda:{i}: {g.name}, sm_{g.major}{g.minor}, {g.total_memory >> 30} GiB" for i, g in enumerate(gpus)),
    ]


def format_facts(facts: dict) -> str:
    lines = ["  ".join(f"{name} {version}" for name, version in facts["versions"].items()), ""]
    build = facts["build"]
    lines.append(f"native library: {facts['library']}")
    lines.append("build: " + ("done" if build["built"] else f"not done: {build['reason']}"))
    for key in ("mode", "compiler", "nvcc", "torch_headers", "cpu_levels", "cuda_archs", "bytes", "seconds"):
        if build.get(key):
            value = build[key]
            lines.append(f"  {key.replace('_', ' ')}: {', '.join(value) if isinstance(value, list) else value}")
    lines += [f"  {note}" for note in build.get("notes", [])]
    lines += ["", *facts["devices"]]
    lines += [f"{name}={value}" for name, value in facts["environment"].items()]
    looked_at = "before every call" if facts["check_values"] else "by the CPU backend and the reference alone"
    lines.append(f"page ids, slots and lengths are looked at {looked_at} ({_check_values.VARIABLE}=1: every backend)")
    lines += ["", "who runs what (MiMo-V2 windowed layer, bfloat16):"]
    for device, ops in facts["backends"].items():
        for op, answer in ops.items():
            why = "".join(f"; not {name}: {reason}" for name, reason in answer["not"].items())
            lines.append(f"  {device:<5} {op:<13} {answer['runs'] or 'nothing'}{why}")
    return "\n".join(lines)
