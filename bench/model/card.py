"""Ceilings of a card, as the model takes them: assumed, or measured in a run of the benchmark."""

from dataclasses import dataclass

from bench.gpu.cases import Ceilings

RESERVED_SMEM_BYTES = 1024  # per CTA, by the system


@dataclass(frozen=True)
class Card:
    """Assumed where not given. `bytes`, `l2_bytes` and `link` are bytes per second; `macs` to `smem_port` are counted per SM
    and clock."""

    name: str
    bytes: float
    link: float | None = 50e9  # of pinned host memory; None: not known
    l2_bytes: float = 5.5e12
    launch_us: float = 1.35  # a node of a CUDA graph
    num_sms: int = 132
    hertz: float = 1.7e9
    macs: float = 2048
    mma_sync_share: float = 0.6  # of the products that wgmma reaches
    ex2: int = 16
    lanes: int = 128
    l2_port: int = 64  # bytes from L2
    smem_port: int = 128  # bytes from shared memory
    smem_bytes: int = 228 << 10  # of an SM
    compute_capability: int = 90

    @property
    def is_hopper(self) -> bool:
        return self.compute_capability // 10 == 9


CARDS = (Card("H100", bytes=3.0e12), Card("H200", bytes=4.3e12))


def measured_card(name: str, ceilings: Ceilings, num_sms: int, smem_bytes: int, compute_capability: int) -> Card:
    """A card with the ceilings of a run: memory, link, launch, GEMM and ex2; the rest stays assumed.

    The clock is the one at which 16 ex2 per SM make the measured rate. A GEMM is made of wgmma on Hopper and of mma.sync on
    the cards before; after Hopper, where tcgen05 makes it, what mma.sync reaches is overestimated.
    """
    hertz = ceilings.exps / (num_sms * Card.ex2)
    return Card(
        name,
        bytes=ceilings.bytes,
        link=ceilings.link,
        launch_us=ceilings.launch_seconds * 1e6,
        num_sms=num_sms,
        hertz=hertz,
        macs=ceilings.flops / 2 / (num_sms * hertz),
        mma_sync_share=Card.mma_sync_share if compute_capability // 10 == 9 else 1.0,
        smem_bytes=smem_bytes,
        compute_capability=compute_capability,
    )
