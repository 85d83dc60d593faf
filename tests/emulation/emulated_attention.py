"""Cases for the attention test kernels: poisoned paged inputs, a dense reference, launching."""

import math
from dataclasses import dataclass

import torch

from swa_attn.testing.emulator import Emulator, Options, Run, reads, writes

HEAD_DIM, PAGE_SIZE = 64, 16
GARBAGE_PAGE = 0x3FFFFFFF

# (asynchrony, order)
SOME_POLICIES = [("lazy", "forward"), ("eager", "reverse"), ("random", "random")]
ALL_POLICIES = [(a, o) for a in ("lazy", "eager", "random") for o in ("forward", "reverse", "random")]


@dataclass(frozen=True)
class Case:
    sequences: tuple[tuple[int, int], ...]  # (q_len, seqlen_k)
    num_q_heads: int
    num_kv_heads: int
    window: int  # visible keys including the query's own; 0: all

    @property
    def total_q(self) -> int:
        return sum(q_len for q_len, _ in self.sequences)

    def visible_pairs(self) -> int:
        """(query, key) pairs of one head that the mask lets through."""
        span = self.window or 1 << 30
        return sum(min(k_len - q_len + i + 1, span) for q_len, k_len in self.sequences for i in range(q_len))


class Inputs:
    """Unused pages and page tails hold NaN, unused table entries a huge id."""

    def __init__(self, case: Case, seed: int = 0, first_page: int = 0, num_pages: int | None = None):
        g = torch.Generator().manual_seed(seed)
        needed = [-(-k_len // PAGE_SIZE) for _, k_len in case.sequences]
        spare = 3
        total = sum(needed) + spare
        shape = (num_pages or total, PAGE_SIZE, case.num_kv_heads, HEAD_DIM)
        self.case = case
        self.q = torch.randn(case.total_q, case.num_q_heads, HEAD_DIM, generator=g).bfloat16()
        self.k_pages, self.v_pages = (_unwritten(shape) for _ in "kv")
        for pages in (self.k_pages, self.v_pages):
            pages[first_page : first_page + total] = float("nan")
        self.block_table = torch.full((len(needed), max(needed) + 2), GARBAGE_PAGE, dtype=torch.int32)
        self.keys, self.values = [], []
        free = (torch.randperm(total, generator=g) + first_page).tolist()
        for s, (_, k_len) in enumerate(case.sequences):
            k, v = (torch.randn(k_len, case.num_kv_heads, HEAD_DIM, generator=g).bfloat16() for _ in "kv")
            self.keys.append(k)
            self.values.append(v)
            for i in range(needed[s]):
                page = self.block_table[s, i] = free.pop()
                chunk = slice(i * PAGE_SIZE, min((i + 1) * PAGE_SIZE, k_len))
                self.k_pages[page, : chunk.stop - chunk.start] = k[chunk]
                self.v_pages[page, : chunk.stop - chunk.start] = v[chunk]
        lengths = torch.tensor([0] + [q_len for q_len, _ in case.sequences])
        self.cu_seqlens_q = lengths.cumsum(0).to(torch.int32)
        self.seqlens_k = torch.tensor([k_len for _, k_len in case.sequences], dtype=torch.int32)

    def attention(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Dense attention in `dtype`: [total_q, num_q_heads, 64]."""
        parts = []
        repeat = self.case.num_q_heads // self.case.num_kv_heads
        for s, (q_len, k_len) in enumerate(self.case.sequences):
            start = int(self.cu_seqlens_q[s])
            q = self.q[start : start + q_len].to(dtype)
            k, v = (x[s].to(dtype).repeat_interleave(repeat, 1) for x in (self.keys, self.values))
            distance = torch.arange(q_len)[:, None] + k_len - q_len - torch.arange(k_len)[None]
            visible = (distance >= 0) & (distance < (self.case.window or 1 << 30))
            scores = (torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(HEAD_DIM)).masked_fill(~visible, float("-inf"))
            parts.append(torch.einsum("hqk,khd->qhd", torch.softmax(scores, -1), v))
        return torch.cat(parts)

    def is_close(self, out: torch.Tensor) -> bool:
        """Within twice the error of PyTorch in bf16, as far as that is measurable."""
        exact = self.attention()
        bf16_error = (self.attention(torch.bfloat16).double() - exact).abs().max()
        rounding = exact.abs().max() * 2**-8  # of the output alone; a short row may come out exact in PyTorch
        return bool((out.double() - exact).abs().max() <= 2 * torch.maximum(bf16_error, rounding))


def _unwritten(shape: tuple[int, ...]) -> torch.Tensor:
    """Memory that is only committed where it is touched, whatever torch is told to fill fresh tensors with."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        return torch.empty(shape, dtype=torch.bfloat16)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled


def run_attention(emulator: Emulator, kernel: str, inputs: Inputs, options: Options) -> tuple[Run, torch.Tensor]:
    case = inputs.case
    out = torch.full((case.total_q, case.num_q_heads, HEAD_DIM), float("nan"), dtype=torch.bfloat16)
    run = emulator.launch(
        kernel,
        options,
        q=reads(inputs.q, "queries"),
        k_pages=reads(inputs.k_pages, "device_pages"),
        v_pages=reads(inputs.v_pages, "device_pages"),
        out=writes(out),
        block_table=reads(inputs.block_table, "tables"),
        cu_seqlens_q=reads(inputs.cu_seqlens_q, "tables"),
        seqlens_k=reads(inputs.seqlens_k, "tables"),
        num_seqs=len(case.sequences),
        total_q=case.total_q,
        max_q_len=max(q_len for q_len, _ in case.sequences),
        num_q_heads=case.num_q_heads,
        num_kv_heads=case.num_kv_heads,
        max_pages=inputs.block_table.shape[1],
        num_pages=inputs.k_pages.shape[0],
        window=case.window,
        scale_log2=math.log2(math.e) / math.sqrt(HEAD_DIM),
    )
    return run, out


@dataclass(frozen=True)
class Gemm:
    m: int
    n: int
    k: int

    def run(self, emulator: Emulator, options: Options) -> tuple[Run, bool]:
        """The run, and whether the result is right."""
        g = torch.Generator().manual_seed(0)
        a, b = (torch.randn(rows, self.k, generator=g).bfloat16() for rows in (self.m, self.n))
        out = torch.full((self.m, self.n), float("nan"))
        run = emulator.launch(
            "gemm_sm90", options, a=reads(a, "a"), b=reads(b, "b"), out=writes(out), m=self.m, n=self.n, k=self.k
        )
        exact = a.double() @ b.double().T
        fp32_error = (a.float() @ b.float().T - exact).abs().max()
        return run, bool((out - exact).abs().max() <= 8 * fp32_error)  # the emulator sums one by one, BLAS in blocks
