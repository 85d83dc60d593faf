"""A model's attention layer, `SlidingWindowAttention`, and what it must know about a step, `AttentionMetadata`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import ops

MAX_DECODE_LEN = 8  # longest uniform query that the decode op takes
_INT32_MAX = 2**31 - 1  # of lengths and page ids on the device; a window of more keys is none
_ALIGNMENT = 16  # bytes; every tensor of a step starts at a multiple of it inside the one buffer


@dataclass(frozen=True, eq=False)
class AttentionMetadata:
    """Where the queries, keys and values of one step are: built once per step and group, shared by the group's layers.

    Args:
        block_table: int32 `[num_seqs, max_pages]`, logical page -> page id.
        seqlens_k: int32 `[num_seqs]`, context length including the new tokens.
        cu_seqlens_q: int32 `[num_seqs + 1]`, prefix sums of the new tokens.
        slot_mapping: int64 `[total_q]`, where each new token's key and value go; negative: nowhere.
        q_len: new tokens of every sequence if that is one number of at most 8 (the decode op runs), else None
            (the prefill op runs).
    """

    block_table: Tensor
    seqlens_k: Tensor
    cu_seqlens_q: Tensor
    slot_mapping: Tensor
    q_len: int | None = None

    @classmethod
    def build(
        cls,
        block_tables: Sequence[Sequence[int]],
        seqlens_k: Sequence[int],
        query_lens: Sequence[int],
        page_size: int,
        device: torch.device | str = "cpu",
        *,
        window: int | None = None,
        bidirectional_spans: Sequence[Sequence[tuple[int, int]]] | None = None,
    ) -> "AttentionMetadata":
        """From lists or arrays on the host; one pinned buffer and one asynchronous copy if `device` is a GPU.

        Args:
            block_tables: per sequence its page ids in order, at least as many as its tokens need. Pages that no new
                token sees any more may be negative (absent).
            seqlens_k: per sequence its length including the new tokens; 0 marks a padding sequence, whose queries see
                nothing and store nothing.
            query_lens: per sequence its number of new tokens, which are its last ones.
            page_size: token slots per page.
            device: where the tensors are wanted.
            window: visible keys, the query's own included, of the layers that will use this; None means all. Only
                checks that the visible pages are there.
            bidirectional_spans: per sequence the spans whose tokens would see each other both ways (a prefix-LM's
                prompt, Gemma 3's image tokens). None of the ops does that: only empty ones are taken.

        Raises:
            ValueError: an argument is inconsistent, or a visible page is absent; the message names it.
            NotImplementedError: there is a bidirectional span.
        """
        _refuse_spans(bidirectional_spans)
        lengths, new = _host_ints("seqlens_k", seqlens_k), _host_ints("query_lens", query_lens)
        _check_lengths(len(block_tables), lengths, new, page_size, window)
        table = _host_table(block_tables, lengths, page_size)
        cu_seqlens_q = torch.cat([new.new_zeros(1), new.cumsum(0)])
        first_new = lengths - new
        _check_visible_pages(table, first_new, lengths, new, page_size, window)
        sequence = torch.repeat_interleave(torch.arange(len(new)), new)
        position = torch.arange(len(sequence)) + (first_new - cu_seqlens_q[:-1])[sequence]
        page = table[sequence, (position // page_size).clamp(min=0)]
        slots = torch.where(position >= 0, page * page_size + position % page_size, -1)
        uniform = len(new) > 0 and 1 <= int(new[0]) <= MAX_DECODE_LEN and bool((new == new[0]).all())
        tensors = [slots, table.int(), lengths.int(), cu_seqlens_q.int()]
        slot_mapping, block_table, seqlens, bounds = _to_device(tensors, torch.device(device))
        return cls(block_table, seqlens, bounds, slot_mapping, int(new[0]) if uniform else None)


def _refuse_spans(spans: Sequence[Sequence[tuple[int, int]]] | None) -> None:
    for i, of_sequence in enumerate(spans or ()):
        if len(of_sequence):
            raise NotImplementedError(
                f"AttentionMetadata.build: bidirectional_spans[{i}] must be empty, got {list(of_sequence)}: attention here "
                "is causal, and tokens of a span would be computed without those that follow them"
            )


def _fail(name: str, expected: str, given: object) -> None:
    raise ValueError(f"AttentionMetadata.build: {name} must be {expected}, got {given}")


def _host_ints(name: str, values: Sequence[int]) -> Tensor:
    x = torch.as_tensor(values)
    if x.dim() != 1 or (len(x) and (x.is_floating_point() or x.dtype == torch.bool)) or x.device.type != "cpu":
        _fail(name, "one integer per sequence, on the host", f"{x.dtype} of shape {list(x.shape)} on {x.device}")
    return x.long()


def _check_lengths(num_tables: int, lengths: Tensor, new: Tensor, page_size: int, window: int | None) -> None:
    if page_size < 1:
        _fail("page_size", "at least 1", page_size)
    if window is not None and window < 1:
        _fail("window", "at least 1 (visible keys, the query's own included) or None", window)
    for name, count in (("seqlens_k", len(lengths)), ("query_lens", len(new))):
        if count != num_tables:
            _fail(name, f"of length {num_tables} like block_tables", count)
    for i in (((new < 0) | (lengths < 0)).nonzero()).flatten().tolist():
        _fail(f"query_lens[{i}] and seqlens_k[{i}]", "at least 0", f"{int(new[i])} and {int(lengths[i])}")
    for i in (lengths > _INT32_MAX).nonzero().flatten().tolist():
        _fail(f"seqlens_k[{i}]", "at most 2**31 - 1", int(lengths[i]))
    for i in ((lengths < new) & (lengths > 0)).nonzero().flatten().tolist():
        _fail(f"seqlens_k[{i}]", f"0 (padding) or at least query_lens[{i}] = {int(new[i])}", int(lengths[i]))


def _host_table(block_tables: Sequence[Sequence[int]], lengths: Tensor, page_size: int) -> Tensor:
    """int64 `[num_seqs, max_pages]`, max_pages at least 1: each row cut to the pages its length needs, -1 elsewhere."""
    counts = (-(-lengths // page_size)).tolist()
    table = torch.full((len(counts), max([1, *counts])), -1, dtype=torch.int64)
    for i, (pages, count) in enumerate(zip(block_tables, counts, strict=True)):
        if len(pages) < count:
            _fail(f"block_tables[{i}]", f"of at least {count} pages for {int(lengths[i])} tokens", len(pages))
        if count:
            table[i, :count] = torch.as_tensor(pages[:count])
    for i, j in (table > _INT32_MAX).nonzero()[:1].tolist():
        _fail(f"block_tables[{i}][{j}]", "at most 2**31 - 1", int(table[i, j]))
    return table


def _check_visible_pages(
    table: Tensor, first_new: Tensor, lengths: Tensor, new: Tensor, page_size: int, window: int | None
) -> None:
    first_key = torch.zeros_like(first_new)
    if window is not None:
        first_key = (first_new.clamp(min=0) - min(window, _INT32_MAX) + 1).clamp(min=0)
    logical = torch.arange(table.shape[1])
    sees = (logical >= (first_key // page_size)[:, None]) & (logical * page_size < lengths[:, None])
    wrong = (sees & (new > 0)[:, None] & (table < 0)).nonzero()
    if len(wrong):
        i, j = wrong[0].tolist()
        _fail(f"block_tables[{i}][{j}]", f"a page: its keys are visible with window={window}", int(table[i, j]))


def _to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors as parts of one buffer on `device`, which a GPU fetches from pinned memory without a wait."""
    starts, size = [], 0
    for x in tensors:
        starts.append(size)
        size += -(-x.numel() * x.element_size() // _ALIGNMENT) * _ALIGNMENT

    def parts(buffer: Tensor) -> list[Tensor]:
        each = zip(tensors, starts, strict=True)
        return [buffer[at : at + x.numel() * x.element_size()].view(x.dtype).view(x.shape) for x, at in each]

    host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for part, x in zip(parts(host), tensors, strict=True):
        part.copy_(x)
    return parts(host.to(device, non_blocking=True))


class SlidingWindowAttention(nn.Module):
    """Causal attention over a paged KV cache, with an optional window and sinks. Inference only.

    `forward` stores the new keys and values in the cache and attends to it. Rotary embeddings and projections are the
    caller's business, and so is anything done to V before it is cached.

    Args:
        num_q_heads, num_kv_heads: query heads, a multiple of the key/value heads.
        head_dim: of queries and keys.
        v_head_dim: of values; None means head_dim.
        window: visible keys, the query's own included; None means all.
        softmax_scale: factor on q.k; None means `head_dim ** -0.5`.
        softcap: scores become `softcap * tanh(score / softcap)`; 0 is off.
        sinks: whether there is a parameter `sinks` `[num_q_heads]`, logits added to the softmax denominator. It starts
            at zero, loads from a state dict, and has `requires_grad=False`, because the ops have no backward.
        is_causal: True. False, attention in both directions, has no op.
        dtype, device: of `sinks`.

    Raises:
        ValueError: an argument is out of its range; the message names it.
        NotImplementedError: is_causal is False.
    """

    sinks: nn.Parameter | None

    def __init__(
        self,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        v_head_dim: int | None = None,
        *,
        window: int | None = None,
        softmax_scale: float | None = None,
        softcap: float = 0.0,
        sinks: bool = False,
        is_causal: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if not is_causal:
            raise NotImplementedError(
                "SlidingWindowAttention: is_causal must be True, got False: attention here is causal, in part (spans that "
                "see both ways, as a prefix-LM's prompt and Gemma 3's image tokens do) as much as in whole"
            )
        v_head_dim = head_dim if v_head_dim is None else v_head_dim
        for name, value in (("num_kv_heads", num_kv_heads), ("head_dim", head_dim), ("v_head_dim", v_head_dim)):
            self._require(value >= 1, name, "at least 1", value)
        multiple = num_q_heads >= 1 and num_q_heads % num_kv_heads == 0
        self._require(multiple, "num_q_heads", f"a multiple of num_kv_heads = {num_kv_heads}", num_q_heads)
        counts_self = "at least 1 (visible keys, the query's own included) or None"
        self._require(window is None or window >= 1, "window", counts_self, window)
        self._require(softcap >= 0, "softcap", "0 (off) or positive", softcap)
        self.num_q_heads, self.num_kv_heads = num_q_heads, num_kv_heads
        self.head_dim, self.v_head_dim = head_dim, v_head_dim
        self.window = window
        self.softmax_scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
        self.softcap = softcap
        empty = nn.Parameter(torch.zeros(num_q_heads, dtype=dtype, device=device), requires_grad=False)
        self.register_parameter("sinks", empty if sinks else None)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        metadata: AttentionMetadata,
        *,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
        k_host_cache: Tensor | None = None,
        v_host_cache: Tensor | None = None,
    ) -> Tensor:
        """Append the new keys and values to the cache, then attend.

        Args:
            q: `[total_q, num_q_heads, head_dim]`, float32, bfloat16 or float16.
            k: `[total_q, num_kv_heads, head_dim]`, q's dtype.
            v: `[total_q, num_kv_heads, v_head_dim]`, q's dtype.
            k_cache, v_cache: `[num_pages, page_size, num_kv_heads, head_dim | v_head_dim]`, q's dtype or float8_e4m3fn.
                Written.
            metadata: of this step, on q's device.
            k_scale, v_scale, k_host_cache, v_host_cache: as in `swa_attn.prefill`.

        Returns:
            `[total_q, num_q_heads, v_head_dim]` in q's dtype.

        Raises:
            ValueError, TypeError: a shape, dtype or device is wrong; the message names the argument.
            NotImplementedError: q, k or v requires grad, or no backend can run the case.
        """
        self._check_shapes(q, k, v, metadata)
        pages = {"k_scale": k_scale, "v_scale": v_scale, "k_host_cache": k_host_cache, "v_host_cache": v_host_cache}
        ops.append_kv(k, v, k_cache, v_cache, metadata.slot_mapping, **pages)
        return self.attend(q, k_cache, v_cache, metadata, **pages)

    def attend(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, metadata: AttentionMetadata, **pages: Tensor | None
    ) -> Tensor:
        """The second half of `forward`: attention to keys and values that are in the cache already.

        Args, returns and raises as `forward`; `pages` are its k_scale, v_scale, k_host_cache and v_host_cache.
        """
        options: dict[str, Any] = {"softmax_scale": self.softmax_scale, "window": self.window, **pages}
        options |= {"softcap": self.softcap, "sinks": self.sinks}
        where = k_cache, v_cache, metadata.block_table, metadata.seqlens_k
        if metadata.q_len is None:
            return ops.prefill(q, *where, metadata.cu_seqlens_q, **options)[0]
        q = q.unflatten(0, (metadata.seqlens_k.shape[0], metadata.q_len))
        return ops.decode(q, *where, **options)[0].flatten(0, 1)

    def extra_repr(self) -> str:
        parts = [f"{self.num_q_heads}/{self.num_kv_heads} heads of {self.head_dim}/{self.v_head_dim}"]
        parts += [f"window={self.window}", f"softmax_scale={self.softmax_scale:.4g}"]
        parts += [f"softcap={self.softcap:g}"] if self.softcap else []
        return ", ".join([*parts, f"sinks={self.sinks is not None}"])

    def _check_shapes(self, q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata) -> None:
        total_q = metadata.slot_mapping.shape[0]
        for name, x, heads, dim in (
            ("q", q, self.num_q_heads, self.head_dim),
            ("k", k, self.num_kv_heads, self.head_dim),
            ("v", v, self.num_kv_heads, self.v_head_dim),
        ):
            expected = (total_q, heads, dim)
            self._require(x.shape == expected, name, f"of shape {list(expected)}", list(x.shape))

    @staticmethod
    def _require(holds: bool, name: str, expected: str, given: object) -> None:
        if not holds:
            raise ValueError(f"SlidingWindowAttention: {name} must be {expected}, got {given}")
