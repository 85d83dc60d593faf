"""Runs CUDA kernels on the CPU, in the emulator of csrc/emulation: results, reports, and what a GPU would have to do.

    emulator = Emulator([kernels / "register_attention.cpp"], include=[kernels])
    run = emulator.launch("fa_sm80", q=reads(q, "queries"), out=writes(out), window=128, ...)
    run.check()                                  # raises EmulationError with every report
    run.counters.bytes_read("device_pages")

Works in a checkout with a C++ compiler, ninja and pybind11; docs/emulation.md explains the checks and the counters.
"""

import dataclasses
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

_BUILD_SCRIPT = Path(__file__).resolve().parents[2] / "csrc" / "emulation" / "build.py"


class EmulationError(AssertionError):
    """The emulator found something wrong with a kernel; the message holds every report."""


@dataclass(frozen=True)
class Buffer:
    """A tensor that a kernel may touch, and how. `tag` groups buffers in the counters."""

    tensor: torch.Tensor
    tag: str
    writable: bool

    @property
    def num_bytes(self) -> int:
        """From the first element to the end of the last, gaps included."""
        if self.tensor.numel() == 0:
            return 0
        last = sum((size - 1) * stride for size, stride in zip(self.tensor.shape, self.tensor.stride()))
        return (last + 1) * self.tensor.element_size()


def reads(tensor: torch.Tensor, tag: str) -> Buffer:
    return Buffer(tensor, tag, writable=False)


def writes(tensor: torch.Tensor, tag: str = "outputs") -> Buffer:
    return Buffer(tensor, tag, writable=True)


@dataclass(frozen=True)
class Options:
    """How a launch is emulated."""

    asynchrony: str = "lazy"  # when copies and wgmma land: "lazy" as late as allowed, "eager" at issue, "random"
    order: str = "forward"  # who runs next: "forward", "reverse", "random"
    seed: int = 1
    race: bool = True  # races, missing waits and fences on shared memory
    cp_async_proxy: bool = True  # cp.async counts as a generic write in the proxy check
    poison: bool = True  # NaN in fresh shared memory and under copies in flight
    counters: bool = True
    workers: int = 1  # host threads
    bug: int = 0  # which planted mistake a test kernel makes
    # Of ex2, lg2 and tanh: "exact", or as wrong as they may be: "above", "below", "edges" (by turns). With "above" and
    # "below" tensor cores cut sums off, too.
    arithmetic: str = "exact"


@dataclass(frozen=True)
class Report:
    kind: str
    text: str
    file: str  # of the access that showed the problem; "" when there is none
    line: int
    other_file: str  # of the access it conflicts with
    other_line: int
    block: tuple[int, int, int]
    thread: int  # in the block; -1: not a thread


@dataclass(frozen=True)
class Traffic:
    """What one source line asked of memory, or a sum of such. See docs/emulation.md for the units."""

    requests: int = 0  # of a warp; of a thread for bulk copies and TMA
    lanes: int = 0
    bytes: int = 0  # distinct bytes of global memory per request
    sectors: int = 0  # of 32 bytes
    min_sectors: int = 0  # enough for the bytes
    wavefronts: int = 0  # passes over the shared-memory banks
    min_wavefronts: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))

    @property
    def bank_conflicts(self) -> int:
        return self.wavefronts - self.min_wavefronts


@dataclass(frozen=True)
class Site:
    file: str
    line: int
    op: str
    tag: str  # "" for shared memory
    traffic: Traffic


GLOBAL_READS = ("global_load", "cp_async", "bulk_load", "tma_load")
GLOBAL_WRITES = ("global_store", "bulk_store", "tma_store")


@dataclass(frozen=True)
class Counters:
    """Exact and independent of the schedule: equal for every Options that does not change `counters`."""

    sites: tuple[Site, ...]
    tallies: Mapping[str, int]  # mma, mma_macs, wgmma, ex2, barriers, warp_syncs, shuffles, mbarrier_phases ...

    def traffic(self, *, ops: Sequence[str] | str | None = None, tag: str | None = None) -> Traffic:
        """The sum over the sites of these ops (one, several or all) and this tag."""
        wanted = (ops,) if isinstance(ops, str) else ops
        chosen = (s.traffic for s in self.sites if (wanted is None or s.op in wanted) and (tag is None or s.tag == tag))
        return sum(chosen, Traffic())

    def bytes_read(self, tag: str | None = None) -> int:
        return self.traffic(ops=GLOBAL_READS, tag=tag).bytes

    def bytes_written(self, tag: str | None = None) -> int:
        return self.traffic(ops=GLOBAL_WRITES, tag=tag).bytes

    def bank_conflicts(self, op: str | None = None) -> int:
        """Wavefronts beyond the minimum: 0 is perfect."""
        return self.traffic(ops=op).bank_conflicts

    def useful_mma_share(self, useful_macs: int) -> float:
        """Which part of the multiply-adds issued to tensor cores was asked for.

        Attention asks for `visible (query, key) pairs * num_q_heads * (head_dim_k + head_dim_v)`.
        """
        return useful_macs / self.tallies["mma_macs"] if self.tallies["mma_macs"] else 0.0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Run:
    reports: tuple[Report, ...]
    num_distinct_reports: int  # more than len(reports) when the list was cut
    counters: Counters

    def check(self) -> "Run":
        """Raises EmulationError if anything was reported."""
        if self.reports:
            raise EmulationError(f"{self.num_distinct_reports} reports\n" + "\n".join(r.text for r in self.reports))
        return self

    @property
    def kinds(self) -> set[str]:
        return {r.kind for r in self.reports}


def _load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Emulator:
    """The kernels of some C++ files, built and loaded.

    Raises RuntimeError outside a checkout, BuildError (a RuntimeError) when the build cannot be done.
    """

    def __init__(self, sources: Sequence[Path], include: Sequence[Path] = ()):
        if not _BUILD_SCRIPT.exists():
            raise RuntimeError("the emulator needs a checkout of the project: csrc/emulation was not found")
        self.module_path: Path = _load(_BUILD_SCRIPT, "swa_attn_emulation_build").build(list(sources), list(include))
        # pybind11 keeps one module per full name, and several of ours may be loaded.
        self._module = _load(self.module_path, f"{self.module_path.parent.name}.swa_emulator")

    @property
    def kernels(self) -> list[str]:
        return self._module.kernel_names()

    def launch(self, kernel: str, options: Options | None = None, /, **arguments: Buffer | int | float | None) -> Run:
        """Runs a kernel by name. CPU tensors are passed as reads(...) or writes(...), None is a null pointer.

        Raises ValueError for an unknown kernel or a missing argument, TypeError for an argument of another type.
        """
        buffers, integers, numbers = [], {}, {}
        for name, value in arguments.items():
            if isinstance(value, Buffer):
                if value.tensor.device.type != "cpu":
                    raise ValueError(f"{name}: expected a CPU tensor, got one on {value.tensor.device}")
                buffers.append((name, value.tensor.data_ptr(), value.num_bytes, value.tag, value.writable))
            elif value is None:
                buffers.append((name, 0, 0, "", False))
            elif isinstance(value, int):
                integers[name] = int(value)
            elif isinstance(value, float):
                numbers[name] = value
            else:
                raise TypeError(
                    f"{name}: expected reads(...), writes(...), int, float or None, got {type(value).__name__}"
                )
        settings = dataclasses.asdict(options or Options())
        reports, num_distinct, sites, tallies = self._module.run(kernel, buffers, integers, numbers, settings)
        return Run(
            tuple(
                Report(kind, text, _base(f), line, _base(g), other, block, thread)
                for kind, text, f, line, g, other, block, thread in reports
            ),
            num_distinct,
            Counters(tuple(Site(_base(f), line, op, tag, Traffic(*n)) for f, line, op, tag, *n in sites), tallies),
        )


def _base(file: str) -> str:
    return os.path.basename(file)
