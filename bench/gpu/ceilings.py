"""What this card reaches, measured in the same run as everything else: the denominators of every percentage."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from .cases import Ceilings
from .libraries import CeilingKernels
from .timing import Clock, Work, eager_work, make_work, measure

GIB = 1 << 30
COPY_BYTES = 2 * GIB
LINK_BYTES = GIB // 2
GEMM_SIZE = 8192
EXP_STEPS = 4096
EMPTY_KERNELS = 200
WARM_UP_GEMMS = 100
CTAS_PER_SM = 4  # of the reading kernels: 2048 threads
ROUNDS = 7


@dataclass(frozen=True)
class Measured:
    """Bytes, operations and seconds as the names say, per second where not said otherwise."""

    device_copy: float  # bytes read and written
    device_read: float
    gemm_bf16: float  # FLOP
    exps: float
    host_read_by_sm: float  # the best of several grids
    host_read_ctas: int  # CTAs of that grid
    host_to_device_by_copy_engine: float
    device_to_host_by_copy_engine: float
    empty_kernel_seconds: float  # a node of a CUDA graph

    def ceilings(self) -> Ceilings:
        """For the floors: the better way of each kind."""
        return Ceilings(
            bytes=max(self.device_copy, self.device_read),
            flops=self.gemm_bf16,
            exps=self.exps,
            launch_seconds=self.empty_kernel_seconds,
            link=max(self.host_read_by_sm, self.host_to_device_by_copy_engine),
        )

    def lines(self) -> list[str]:
        return [
            f"device copy (read + write)     {self.device_copy / 1e12:7.2f} TB/s",
            f"device read                    {self.device_read / 1e12:7.2f} TB/s",
            f"bf16 GEMM {GEMM_SIZE}^3               {self.gemm_bf16 / 1e12:7.0f} TFLOP/s",
            f"ex2                            {self.exps / 1e12:7.2f} T/s",
            f"pinned host read by SMs        {self.host_read_by_sm / 1e9:7.1f} GB/s ({self.host_read_ctas} CTAs)",
            f"host to device by copy engine  {self.host_to_device_by_copy_engine / 1e9:7.1f} GB/s",
            f"device to host by copy engine  {self.device_to_host_by_copy_engine / 1e9:7.1f} GB/s",
            f"empty kernel in a graph        {self.empty_kernel_seconds * 1e6:7.2f} us",
        ]

    def as_json(self) -> dict:
        return asdict(self)


def measure_ceilings(kernels: CeilingKernels, clock: Clock) -> Measured:
    """Takes about a second and 5 GiB of the card's memory."""
    device = torch.device("cuda")
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    all_ctas = num_sms * CTAS_PER_SM
    source = torch.randint(0, 255, (COPY_BYTES,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    sink = torch.zeros(4, device=device)
    pinned = torch.empty(LINK_BYTES, dtype=torch.uint8, pin_memory=True)
    pinned.copy_(source[:LINK_BYTES])
    a, b, c = (torch.randn(GEMM_SIZE, GEMM_SIZE, dtype=torch.bfloat16, device=device) for _ in "abc")

    for _ in range(WARM_UP_GEMMS):  # an idle card needs a while to reach its clocks
        torch.mm(a, b, out=c)

    def median(work: Work) -> float:
        return measure({"it": work}, clock, ROUNDS)["it"].median

    def seconds(function: Callable[[], object]) -> float:  # long enough to hide its launch
        return median(eager_work([function]))

    by_sm = {
        ctas: LINK_BYTES / seconds(lambda n=ctas: kernels.read(pinned, sink, n))
        for ctas in (8, 32, num_sms, all_ctas)  # more readers are not always faster across the link
    }
    ctas = max(by_sm, key=by_sm.__getitem__)
    return Measured(
        device_copy=2 * COPY_BYTES / seconds(lambda: target.copy_(source)),
        device_read=COPY_BYTES / seconds(lambda: kernels.read(source, sink, all_ctas)),
        gemm_bf16=2 * GEMM_SIZE**3 / seconds(lambda: torch.mm(a, b, out=c)),
        exps=all_ctas
        * EXP_STEPS
        * kernels.exps_per_step
        / seconds(lambda: kernels.exponentials(EXP_STEPS, sink, all_ctas)),
        host_read_by_sm=by_sm[ctas],
        host_read_ctas=ctas,
        host_to_device_by_copy_engine=LINK_BYTES
        / seconds(lambda: target[:LINK_BYTES].copy_(pinned, non_blocking=True)),
        device_to_host_by_copy_engine=LINK_BYTES
        / seconds(lambda: pinned.copy_(target[:LINK_BYTES], non_blocking=True)),
        empty_kernel_seconds=median(make_work([kernels.nothing] * EMPTY_KERNELS)),
    )
