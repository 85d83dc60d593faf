"""What the numbers were taken on: card, driver, versions."""

import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass

import torch

from .libraries import arch_of

QUERY = "driver_version,clocks.max.sm,clocks.max.mem,power.limit,memory.total,pcie.link.gen.max,pcie.link.width.max"


@dataclass(frozen=True)
class Machine:
    """`arch` and `card` are None without a GPU that torch can use."""

    card: str | None
    arch: str | None
    num_sms: int | None
    l2_bytes: int | None
    smem_bytes: int | None  # of an SM
    smi: dict
    torch: str
    cuda: str | None
    triton: str
    python: str
    processor: str

    @property
    def compute_capability(self) -> int | None:
        """10 major + minor."""
        return int(self.arch.rstrip("a")) if self.arch else None

    @property
    def slug(self) -> str:
        """The card's name for a file: `nvidia_h200`."""
        return re.sub(r"[^a-z0-9]+", "_", (self.card or "no_gpu").lower()).strip("_")

    def lines(self) -> list[str]:
        versions = f"torch {self.torch}, CUDA {self.cuda or 'none'}, triton {self.triton}, Python {self.python}"
        if self.card is None:
            return ["There is no GPU here: the parts that need none are run.", versions]
        return [f"{self.card}, sm_{self.arch}, {self.num_sms} SMs, {self.l2_bytes >> 20} MiB L2", versions]

    def as_json(self) -> dict:
        return asdict(self)


def describe() -> Machine:
    properties = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return Machine(
        card=properties.name if properties else None,
        arch=arch_of((properties.major, properties.minor)) if properties else None,
        num_sms=properties.multi_processor_count if properties else None,
        l2_bytes=properties.L2_cache_size if properties else None,
        smem_bytes=properties.shared_memory_per_multiprocessor if properties else None,
        smi=_smi() if properties else {},
        torch=torch.__version__,
        cuda=torch.version.cuda,
        triton=_triton(),
        python=platform.python_version(),
        processor=platform.machine(),
    )


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return "not installed"
    return triton.__version__


def _smi() -> dict:
    """A few facts from nvidia-smi, by name; empty without it."""
    if not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", "-i", "0"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return {}
    values = [value.strip() for value in result.stdout.strip().split(",")]
    return dict(zip(QUERY.split(","), values)) if result.returncode == 0 else {}
