"""Tensors of a benchmark case, in enough copies that a run over all of them does not fit into the card's L2.

Pages lie in random order; block-table entries left of the window are -1, as an engine leaves them that has freed those
pages. Only pages with a visible key exist.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from .cases import Case, first_visible

FP8 = torch.float8_e4m3fn
L2_MULTIPLE = 3  # copies together are at least this many times the L2
MIN_COPIES, MAX_COPIES = 3, 256


@dataclass
class Call:
    """One copy of a case's inputs, and where its results go."""

    case: Case
    q: Tensor  # [num_tokens, Hq, Dk]
    k_cache: Tensor  # [num_device_pages, page_size, Hkv, Dk]
    v_cache: Tensor
    block_table: Tensor  # int32 [num_seqs, max_pages]
    seqlens_k: Tensor
    cu_seqlens_q: Tensor
    out: Tensor  # [num_tokens, Hq, Dv]
    lse: Tensor  # [num_tokens, Hq]
    sinks: Tensor | None
    scales: tuple[Tensor, Tensor] | None
    host_caches: tuple[Tensor, Tensor] | None

    @property
    def softmax_scale(self) -> float:
        return self.case.layer.head_dim**-0.5

    @property
    def options(self) -> dict:
        """Keyword arguments of the ops."""
        found: dict = {"softmax_scale": self.softmax_scale, "window": self.case.layer.window, "sinks": self.sinks}
        if self.scales:
            found |= dict(zip(("k_scale", "v_scale"), self.scales))
        if self.host_caches:
            found |= dict(zip(("k_host_cache", "v_host_cache"), self.host_caches))
        return found

    @property
    def q_len(self) -> int:
        """New tokens of every sequence; only where all bring the same number."""
        (q_len,) = {q_len for q_len, _ in self.case.seqs}
        return q_len


def copies_for(case: Case, l2_bytes: int) -> int:
    return min(MAX_COPIES, max(MIN_COPIES, -(-L2_MULTIPLE * l2_bytes // case.bytes)))


def build(case: Case, copies: int, device: torch.device, seed: int = 0) -> list[Call]:
    """`copies` calls over one pool; nothing in them is equal but the lengths."""
    generator = torch.Generator(device).manual_seed(seed)
    layer = case.layer
    pages = [_visible_pages(case, q_len, context) for q_len, context in case.seqs]
    host_pages, device_pages = (sum(map(len, part)) for part in (pages[: case.host_seqs], pages[case.host_seqs :]))
    num_device_pages = max(1, copies * device_pages)
    order = torch.Generator().manual_seed(seed)

    def page_ids(count: int, first: int) -> Tensor:
        """`count` ids for each copy, in random order."""
        return (torch.randperm(copies * count, generator=order) + first).int().view(copies, count)

    ids = torch.cat([page_ids(host_pages, num_device_pages), page_ids(device_pages, 0)], dim=1)
    tables = torch.full((copies, len(case.seqs), max(p.stop for p in pages)), -1, dtype=torch.int32)
    first = 0
    for seq, logical in enumerate(pages):
        tables[:, seq, logical.start : logical.stop] = ids[:, first : first + len(logical)]
        first += len(logical)
    tables = tables.to(device)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.bfloat16)

    def pools(num_pages: int) -> list[Tensor]:
        shape = num_pages, case.page_size, layer.num_kv_heads
        found = [randn(*shape, layer.head_dim), randn(*shape, layer.v_head_dim)]
        return [x.to(FP8) for x in found] if case.kv_bytes == 1 else found

    k_pool, v_pool = pools(num_device_pages)
    host_caches = tuple(map(_to_host, pools(copies * host_pages))) if host_pages else None
    scales = None
    if case.kv_bytes == 1:
        num_pages = num_device_pages + copies * host_pages
        scales = tuple(
            torch.rand(num_pages, layer.num_kv_heads, generator=generator, device=device) + 0.5 for _ in "kv"
        )
    shape = (copies, case.num_tokens, layer.num_q_heads)
    q = randn(*shape, layer.head_dim)
    out = torch.empty(*shape, layer.v_head_dim, dtype=torch.bfloat16, device=device)
    lse = torch.empty(shape, dtype=torch.float32, device=device)
    sinks = randn(layer.num_q_heads).float() if layer.sinks else None
    seqlens_k = torch.tensor([context for _, context in case.seqs], dtype=torch.int32, device=device)
    bounds = [0, *accumulate(q_len for q_len, _ in case.seqs)]
    cu_seqlens_q = torch.tensor(bounds, dtype=torch.int32, device=device)
    shared = (seqlens_k, cu_seqlens_q)
    return [
        Call(case, q[i], k_pool, v_pool, tables[i], *shared, out[i], lse[i], sinks, scales, host_caches)
        for i in range(copies)
    ]


def _visible_pages(case: Case, q_len: int, context: int) -> range:
    return range(first_visible(q_len, context, case.layer.window) // case.page_size, -(-context // case.page_size))


def _to_host(x: Tensor) -> Tensor:
    """A copy in host memory, pinned where there is a card."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=torch.cuda.is_available()).copy_(x)


def gathered(call: Call) -> tuple[Tensor, Tensor, list[range]]:
    """K and V of the visible pages, sequence after sequence, `[tokens, Hkv, dim]`, and each sequence's positions.

    For peers without a paged cache: what they are given is contiguous, and the copy is not timed.
    """
    case = call.case
    spans, rows = [], []
    table = call.block_table.tolist()
    for seq, (q_len, context) in enumerate(case.seqs):
        pages = _visible_pages(case, q_len, context)
        spans.append(range(pages.start * case.page_size, context))
        ids = torch.tensor([table[seq][page] for page in pages], dtype=torch.int64, device=call.q.device)
        slots = ids[:, None] * case.page_size + torch.arange(case.page_size, device=call.q.device)
        rows.append(slots.flatten()[: len(spans[-1])])
    index = torch.cat(rows)
    return (*(pool.flatten(0, 1)[index] for pool in (call.k_cache, call.v_cache)), spans)


def table_without_holes(call: Call) -> Tensor:
    """The block table with page 0 where ours says -1: some peers read entries left of the window."""
    return call.block_table.clamp_min(0)
