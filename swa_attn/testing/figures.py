"""What the CUDA kernels would ask of a card, counted in the emulator, beside the least that the case needs."""

from dataclasses import dataclass

import torch

from . import emulated_backend
from .cases import AttentionCase, Inputs, build
from .emulator import Counters

PAGES = ("device_pages", "host_pages")


@dataclass(frozen=True)
class Figures:
    """Of one launch. Bytes are counted once per request of a warp, as the memory system is asked for them."""

    case: AttentionCase
    op: str
    counters: Counters

    @property
    def pairs(self) -> int:
        """(query, key) pairs of one head that the mask lets through."""
        span = self.case.window or 1 << 30
        return sum(min(k - q + i + 1, span) for q, k in self.case.seqs for i in range(q))

    @property
    def least_kv_bytes(self) -> int:
        """Every visible key and value once."""
        c = self.case
        keys = sum(min(k, (c.window or 1 << 30) + q - 1) for q, k in c.seqs if q)
        element = (c.cache_dtype or c.dtype).itemsize
        return keys * c.num_kv_heads * (c.head_dim + c.v_head_dim) * element

    @property
    def kv_bytes(self) -> int:
        return sum(self.counters.bytes_read(tag) for tag in PAGES)

    @property
    def kv_ratio(self) -> float:
        """K and V bytes read over the least."""
        return self.kv_bytes / self.least_kv_bytes

    @property
    def kv_sector_ratio(self) -> float:
        """32-byte sectors that the requests for K and V touch, over the least for their bytes."""
        traffic = [self.counters.traffic(tag=tag) for tag in PAGES]
        return sum(t.sectors for t in traffic) / sum(t.min_sectors for t in traffic)

    @property
    def visible_share(self) -> float:
        """Which part of the multiply-adds given to tensor cores belongs to visible pairs."""
        c = self.case
        return self.counters.useful_mma_share(self.pairs * c.num_q_heads * (c.head_dim + c.v_head_dim))

    @property
    def query_ratio(self) -> float:
        """Bytes of q read over its size."""
        c = self.case
        rows = sum(q for q, _ in c.seqs) * c.num_q_heads
        return self.counters.bytes_read("queries") / (rows * c.head_dim * c.dtype.itemsize)

    @property
    def output_ratio(self) -> float:
        """Bytes of out and lse written over their size."""
        c = self.case
        rows = sum(q for q, _ in c.seqs) * c.num_q_heads
        return self.counters.bytes_written("outputs") / (rows * (c.v_head_dim * c.dtype.itemsize + 4))


def measure(op: str, case: AttentionCase, *, num_sms: int = 132) -> Figures:
    """Launch `op` ("prefill" or "decode") for `case` in the emulator, told that the card has num_sms SMs."""
    inputs: Inputs = build(case)
    options = dict(inputs.options)
    options["window"] = -1 if case.window is None else case.window
    args = inputs.prefill_args if op == "prefill" else inputs.decode_args
    out = args[0].new_empty(*args[0].shape[:-1], case.v_head_dim)
    lse = torch.empty(out.shape[:-1])
    with emulated_backend.settings(num_sms=num_sms):
        getattr(emulated_backend, op)(*args, **options, out=out, lse=lse)
    return Figures(case, op, emulated_backend.last_run.counters)
