"""This package's ops behind other libraries' functions: what every adapter shares.

The other libraries' tests call functions with their own layouts and their own words for a window. An adapter says the same
thing in ours: K and V become pages over the same memory, a window counts the query itself, a cache that starts late becomes
another block table. What the ops cannot say raises `OutsideContract` with the reason.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import swa_attn

FP8 = torch.float8_e4m3fn
QUERY_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LONGEST_DECODE = 8  # new tokens per sequence that the decode op takes
DENSE_Q_MAX = 1 << 22  # mask elements per head of the plain attention that some tests compare with


class OutsideContract(Exception):
    """The call asks for something that this package does not do; the message is the reason, worded to be counted."""


def refuse(**asked: object) -> None:
    """Raise OutsideContract for the first keyword whose value is not its neutral one (None, False, 0 or "NONE")."""
    for name, value in asked.items():
        neutral = value is None or (isinstance(value, (bool, int, float)) and not value) or value == "NONE"
        if not neutral:
            raise OutsideContract(name.replace("_", " "))


def visible_window(causal: bool, left: int | None, right: int | None, longest_q: int) -> int | None:
    """`window` of ours for a mask of theirs: the query sees `left` keys before its own and `right` after (None: all).

    One query per sequence is the last token, so nothing lies to its right and every mask is a causal one.
    """
    if (left is not None and left < 0) or (right is not None and right < 0 and not causal):
        raise OutsideContract("a window without the query's own key")
    if not causal and right != 0 and longest_q > 1:
        raise OutsideContract("attention that is not causal")
    return None if left is None else left + 1


@dataclass(frozen=True)
class Pages:
    """Keys and values of a batch of sequences as the ops read them.

    k, v: `[pages, page_size, Hkv, D]`; table: int32 `[num_seqs, max_pages]`; lengths: int32 `[num_seqs]`.
    """

    k: Tensor
    v: Tensor
    table: Tensor
    lengths: Tensor

    @classmethod
    def dense(cls, k: Tensor, v: Tensor, lengths: Tensor | None = None) -> "Pages":
        """`[num_seqs, seqlen, Hkv, D]`: a sequence is one large page, whatever the strides."""
        count, seqlen = k.shape[:2]
        if lengths is None:
            lengths = torch.full((count,), seqlen)
        table = torch.arange(count).view(-1, 1)
        if seqlen == 0:  # the ops want slots in a page; with no length none of them is looked up
            k, v = (torch.full((1, 1, *x.shape[2:]), math.nan, dtype=torch.float32).to(x.dtype) for x in (k, v))
        return cls(k, v, table.int(), lengths.int())

    @classmethod
    def ragged(cls, k: Tensor, v: Tensor, starts: Tensor, lengths: Tensor) -> "Pages":
        """`[total, Hkv, D]`: a token is a page, and sequence s has `lengths[s]` of them from `starts[s]` on."""
        offsets = torch.arange(max(1, int(lengths.max()) if len(lengths) else 0))
        if len(k) == 0:
            return cls.dense(k[None], v[None], lengths)
        table = (starts.long()[:, None] + offsets).clamp(max=len(k) - 1)
        return cls(k[:, None], v[:, None], table.int(), lengths.int())

    def rows(self, index: Tensor) -> "Pages":
        """The sequences `index`, in that order; one may occur often."""
        return replace(self, table=self.table[index.long()], lengths=self.lengths[index.long()])

    def longer_by(self, added: Tensor) -> "Pages":
        return replace(self, lengths=(self.lengths + added).int())

    def slots(self, sequence: Tensor, position: Tensor) -> Tensor:
        """int64 `page_id * page_size + offset` of tokens given by sequence and position."""
        page_size = self.k.shape[1]
        pages = self.table[sequence.long(), position.long() // page_size]
        return pages.long() * page_size + position.long() % page_size

    def spans(self, sequence: Tensor, first: Tensor, lengths: Tensor) -> "Pages":
        """New sequences, each a run of tokens of one of these; a token becomes a page, copied only if strides need it."""
        lengths = lengths.clamp(min=0)
        width = max(1, int(lengths.max()) if len(lengths) else 0)
        last = self.table.shape[1] * self.k.shape[1] - 1
        position = (first.long()[:, None] + torch.arange(width)).clamp(0, last)
        table = self.slots(sequence.long()[:, None].expand_as(position), position)
        k, v = (x.flatten(0, 1)[:, None] for x in (self.k, self.v))
        return Pages(k, v, table.int(), lengths.int())


def bounds(lengths: Tensor) -> Tensor:
    """int32 prefix sums, from 0 on."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()


def attend(
    q: Tensor,
    cu_seqlens_q: Tensor,
    pages: Pages,
    *,
    window: int | None,
    scale: float | None = None,
    softcap: float | None = 0.0,
    sinks: Tensor | None = None,
    k_factor: float = 1.0,
    v_factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Our ops on `q` `[total_q, Hq, Dk]`; `decode` where every sequence brings the same few queries, `prefill` elsewhere.

    `k_factor` and `v_factor` scale what float8 pages hold. Returns out `[total_q, Hq, Dv]` and lse `[total_q, Hq]`.
    """
    q, k, v = (_last_dim_contiguous(x.detach()) for x in (q, pages.k, pages.v))
    if q.dtype not in QUERY_DTYPES:
        raise OutsideContract(f"queries in {_name(q.dtype)}")
    if k.dtype not in (q.dtype, FP8) or v.dtype != k.dtype:
        raise OutsideContract(f"{_name(k.dtype)} keys and {_name(v.dtype)} values under {_name(q.dtype)} queries")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    options = dict(softmax_scale=scale, window=window, softcap=float(softcap or 0.0))
    if sinks is not None:
        options["sinks"] = sinks.detach()
    if k.dtype == FP8:
        factors = {"k_scale": k_factor, "v_scale": v_factor}
        options |= {name: torch.full((k.shape[0], k.shape[2]), float(factor)) for name, factor in factors.items()}
        v_factor = 1.0
    else:
        options["softmax_scale"] = scale * k_factor
    lengths = cu_seqlens_q.diff()
    where = k, v, pages.table, pages.lengths
    few = len(lengths) > 0 and 1 <= int(lengths[0]) <= LONGEST_DECODE and bool((lengths == lengths[0]).all())
    try:
        if few and int(cu_seqlens_q[-1]) == len(q):
            out, lse = swa_attn.decode(q.unflatten(0, (len(lengths), int(lengths[0]))), *where, **options)
            out, lse = out.flatten(0, 1), lse.flatten(0, 1)
        else:
            out, lse = swa_attn.prefill(q, *where, cu_seqlens_q.int(), **options)
    except IndexError as error:  # the other libraries' word for it
        raise RuntimeError(f"block_table: {error}") from error
    return (out if v_factor == 1.0 else out * v_factor), lse


def attend_in_chunks(q: Tensor, cu_seqlens_q: Tensor, pages: Pages, chunk: int, **options) -> tuple[Tensor, Tensor]:
    """`attend`, with positions cut into chunks of `chunk` that do not see each other: each is a sequence of its own."""
    lengths_q = cu_seqlens_q.diff().long()
    sequence = torch.repeat_interleave(torch.arange(len(lengths_q)), lengths_q)
    within = torch.arange(len(sequence)) - cu_seqlens_q[:-1].long()[sequence]
    position = within + (pages.lengths.long() - lengths_q)[sequence]
    which = torch.div(position, chunk, rounding_mode="floor")
    starts = torch.ones(len(sequence), dtype=torch.bool)
    starts[1:] = (sequence[1:] != sequence[:-1]) | (which[1:] != which[:-1])
    head = starts.nonzero().flatten()
    rows = torch.diff(head, append=torch.tensor([len(sequence)]))
    first = which[head] * chunk
    last = position[head] + rows
    return attend(
        q, bounds(rows), pages.spans(sequence[head], first.clamp(min=0), last - first.clamp(min=0)), **options
    )


def attend_each_alone(q: Tensor, cu_seqlens_q: Tensor, pages: Pages, **options) -> tuple[Tensor, Tensor]:
    """Every query sees all of its sequence: each is a sequence of one new token over the same pages (a shared prefix)."""
    owner = torch.repeat_interleave(torch.arange(len(pages.lengths)), cu_seqlens_q.diff().long())
    return attend(q, torch.arange(len(q) + 1).int(), pages.rows(owner), window=None, **options)


def append(key: Tensor, value: Tensor, pages: Pages, sequence: Tensor, position: Tensor) -> None:
    """Our `append_kv` of tokens given by sequence and position."""
    key, value = (_last_dim_contiguous(x.detach()) for x in (key, value))
    scales = {}
    if pages.k.dtype == FP8:
        scales = {f"{name}_scale": torch.ones(pages.k.shape[0], pages.k.shape[2]) for name in "kv"}
    swa_attn.append_kv(key, value, pages.k, pages.v, pages.slots(sequence, position), **scales)


def merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Our `merge_states` over any number of (out, lse), lse natural."""
    out, lse = parts[0][0].contiguous(), parts[0][1].float().contiguous()
    for other_out, other_lse in parts[1:]:
        out, lse = swa_attn.merge_states(out, lse, other_out.contiguous(), other_lse.float().contiguous())
    return out, lse


def _last_dim_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
