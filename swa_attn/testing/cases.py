"""Attention cases by name, and poisoned inputs for them.

Everything a kernel must not read is poison: NaN in every slot of K and V that no query of its sequence sees (in the same
page as visible ones, too), NaN in the scales of pages nobody sees, and garbage in every block-table entry whose page
holds no visible key. A kernel that reads one of them gives NaN, crashes, or reports a page that does not exist.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
GARBAGE_PAGE_IDS = (-1, 2**31 - 1, -(2**31), 1 << 30)


@dataclass(frozen=True)
class AttentionCase:
    """`seqs` are (new tokens, context length including them) per sequence; `layout` is how K and V lie in memory."""

    seqs: tuple[tuple[int, int], ...] = ((5, 21),)
    window: int | None = 8
    page_size: int = 4
    num_q_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    v_head_dim: int = 16
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype | None = None  # None: dtype
    sinks: bool = False
    softcap: float = 0.0
    host: float = 0.0  # share of the pages that lie on the host
    layout: str = "nhd"  # nhd | hnd | packed (K|V in one tensor) | padded, skewed (gaps, see empty_pool)
    score_scale: float = 1.0  # multiplies q: large values make peaked softmaxes
    seed: int = 0

    def __str__(self) -> str:
        seqs = "+".join(f"{q}of{k}" for q, k in self.seqs)
        heads = f"h{self.num_q_heads}x{self.num_kv_heads}d{self.head_dim}x{self.v_head_dim}"
        kind = str(self.dtype).removeprefix("torch.")
        if self.cache_dtype is not None:
            kind += "-" + str(self.cache_dtype).removeprefix("torch.")
        flags = [f"w{self.window}", f"p{self.page_size}", heads, kind]
        flags += ["sinks"] if self.sinks else []
        flags += [f"cap{self.softcap:g}"] if self.softcap else []
        flags += [f"host{self.host:g}"] if self.host else []
        flags += [self.layout] if self.layout != "nhd" else []
        return "-".join([seqs, *flags])


@dataclass
class Inputs:
    """Tensors of one case: `where` and `options` are what the ops take after q."""

    case: AttentionCase
    q: Tensor  # [total_q, Hq, Dk]
    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    seqlens_k: Tensor
    cu_seqlens_q: Tensor
    options: dict = field(default_factory=dict)

    @property
    def prefill_args(self) -> tuple[Tensor, ...]:
        return self.q, self.k_cache, self.v_cache, self.block_table, self.seqlens_k, self.cu_seqlens_q

    @property
    def decode_args(self) -> tuple[Tensor, ...]:
        """The same call as a rectangular batch; every sequence must have the same number of new tokens."""
        (q_len,) = {q for q, _ in self.case.seqs}
        q = self.q.unflatten(0, (len(self.case.seqs), q_len))
        return q, self.k_cache, self.v_cache, self.block_table, self.seqlens_k


def visible_span(q_len: int, seqlen_k: int, window: int | None) -> range:
    """Positions that at least one of the last `q_len` queries of a sequence sees."""
    if q_len == 0:
        return range(0)
    first_query = max(0, seqlen_k - q_len)
    first = 0 if window is None else max(0, first_query - window + 1)
    return range(first, max(first, seqlen_k))


def empty_pool(shape: tuple[int, int, int, int], v_head_dim: int, layout: str, dtype: torch.dtype, fill: float):
    """A K pool `[pages, page_size, Hkv, Dk]` and a V pool of width `v_head_dim`, in the layout's memory order.

    `padded` and `skewed` have gaps between pages, slots and heads: strides are multiples of 16 bytes, or of an element only.
    """
    pages, page_size, heads, head_dim = shape

    def make(*sizes: int) -> Tensor:
        return torch.full(sizes, fill, dtype=torch.float32).to(dtype)

    if layout == "packed":
        both = make(pages, page_size, heads, head_dim + v_head_dim)
        return both[..., :head_dim], both[..., head_dim:]
    if layout == "hnd":
        return tuple(make(pages, heads, page_size, d).transpose(1, 2) for d in (head_dim, v_head_dim))
    if layout in ("padded", "skewed"):
        gap = 16 // dtype.itemsize if layout == "padded" else 3
        return tuple(
            make(pages, page_size + 1, heads + 1, d + gap)[:, :page_size, :heads, :d] for d in (head_dim, v_head_dim)
        )
    return make(pages, page_size, heads, head_dim), make(pages, page_size, heads, v_head_dim)


def build(case: AttentionCase, *, tight: bool = True, page_order_seed: int | None = None) -> Inputs:
    """Inputs of `case`. Contents depend on `case.seed` only, so another page order holds the same keys elsewhere.

    `tight` ends the block table at the last page that any sequence uses; otherwise three garbage columns follow.
    """
    generator = torch.Generator().manual_seed(case.seed)
    order = torch.Generator().manual_seed(case.seed + 1 if page_order_seed is None else page_order_seed)
    cache_dtype = case.cache_dtype or case.dtype
    pages_of = [-(-k // case.page_size) for _, k in case.seqs]
    num_pages = sum(pages_of) + 3
    num_host = round(num_pages * case.host)
    num_device = num_pages - num_host
    shape = (case.page_size, case.num_kv_heads, case.head_dim)
    nan = float("nan")
    pools = [empty_pool((num_device, *shape), case.v_head_dim, case.layout, cache_dtype, nan)]
    if num_host:  # laid out unlike the device pool, so that neither's strides can stand in for the other's
        other = "nhd" if case.layout == "padded" else "padded"
        pools.append(empty_pool((num_host, *shape), case.v_head_dim, other, cache_dtype, nan))
    scales = [torch.full((num_pages, case.num_kv_heads), nan) for _ in range(2)] if cache_dtype == FP8 else None

    ids = torch.randperm(num_pages, generator=order).tolist()
    width = max([*pages_of, 1]) + (0 if tight else 3)
    garbage = torch.tensor(GARBAGE_PAGE_IDS, dtype=torch.int64)
    table = garbage[torch.randint(len(garbage), (len(case.seqs), width), generator=order)].to(torch.int32)
    for seq, (q_len, seqlen_k) in enumerate(case.seqs):
        keys = torch.randn(seqlen_k, case.num_kv_heads, case.head_dim, generator=generator)
        values = torch.randn(seqlen_k, case.num_kv_heads, case.v_head_dim, generator=generator)
        factors = torch.rand(2, pages_of[seq], case.num_kv_heads, generator=generator) + 0.5
        for position in visible_span(q_len, seqlen_k, case.window):
            logical, offset = divmod(position, case.page_size)
            if table[seq, logical] in GARBAGE_PAGE_IDS:
                table[seq, logical] = ids.pop()
            page = int(table[seq, logical])
            pool, index = (pools[0], page) if page < num_device else (pools[1], page - num_device)
            pool[0][index, offset] = keys[position].to(cache_dtype)
            pool[1][index, offset] = values[position].to(cache_dtype)
            if scales is not None:
                scales[0][page], scales[1][page] = factors[0, logical], factors[1, logical]

    lengths = [q for q, _ in case.seqs]
    q = torch.randn(sum(lengths), case.num_q_heads, case.head_dim, generator=generator) * case.score_scale
    options = {"softmax_scale": case.head_dim**-0.5, "window": case.window, "softcap": case.softcap}
    if case.sinks:
        options["sinks"] = torch.randn(case.num_q_heads, generator=generator) * 2
    if scales is not None:
        options["k_scale"], options["v_scale"] = scales
    if num_host:
        options["k_host_cache"], options["v_host_cache"] = pools[1]
    return Inputs(
        case,
        q.to(case.dtype),
        *pools[0],
        table,
        torch.tensor([k for _, k in case.seqs], dtype=torch.int32),
        torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()], dtype=torch.int32),
        options,
    )
