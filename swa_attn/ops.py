"""The five ops: `torch.ops.swa_attn.{append_kv, prefill, decode, merge_states, copy_pages}`.

The schemas live here, so the ops, their fakes and their docs exist without any compiled library; `backends.py` decides
who executes a call. The functions below are the typed way to call them. None of them synchronises with the host, reads
a tensor's values to decide anything, or has a backward.

Shapes: `page_size` token slots per page; a page id below `k_cache.shape[0]` is a device page, the ids after that are the
pages of the host caches, a negative id is absent. A kernel touches a block-table entry only if its page holds a visible
key: every other entry, and everything invisible inside a page, may be garbage.
"""

import math

import torch
from torch import Tensor
from torch import library as torch_library
from torch._ops import OpOverload

from . import _check_values, _checks, backends

_CACHE = "Tensor? k_scale=None, Tensor? v_scale=None, "
_READ_CACHE = _CACHE + "Tensor? k_host_cache=None, Tensor? v_host_cache=None"
_OPTIONS = f"*, float softmax_scale, int window=-1, float softcap=0.0, Tensor? sinks=None, {_READ_CACHE}"
_PREFILL = "Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor seqlens_k, Tensor cu_seqlens_q"
_DECODE = "Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor seqlens_k"

SCHEMAS = (
    "append_kv(Tensor key, Tensor value, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slot_mapping, *, "
    f"{_CACHE}Tensor(c!)? k_host_cache=None, Tensor(d!)? v_host_cache=None) -> ()",
    f"prefill({_PREFILL}, {_OPTIONS}) -> (Tensor out, Tensor lse)",
    f"prefill.out({_PREFILL}, {_OPTIONS}, Tensor(a!) out, Tensor(b!) lse) -> ()",
    f"decode({_DECODE}, {_OPTIONS}) -> (Tensor out, Tensor lse)",
    f"decode.out({_DECODE}, {_OPTIONS}, Tensor(a!) out, Tensor(b!) lse) -> ()",
    "merge_states(Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b, *, Tensor? sinks=None) "
    "-> (Tensor out, Tensor lse)",
    "copy_pages(Tensor src, Tensor(a!) dst, Tensor src_pages, Tensor dst_pages, *, Tensor? src_scale=None, "
    "Tensor(b!)? dst_scale=None) -> ()",
)

_library = torch_library.Library("swa_attn", "DEF")  # the ops live as long as this object
for _schema in SCHEMAS:
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


def _run(op: str, x: Tensor, cache: Tensor | None, *args: Tensor, **options: object) -> None:
    """Give checked arguments to the backend that x and cache decide."""
    if _check_values.enabled():
        getattr(_check_values, op)(*args, **options)
    backends.run(op, x, cache, *args, **options)


def _empty_outputs(q: Tensor, v_cache: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty(*q.shape[:-1], v_cache.shape[3], dtype=q.dtype, device=q.device)
    return out, torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)


def _check_host_caches(op, x, k_host_cache=None, v_host_cache=None, **_):
    _checks.check_pinned(op, x.device, k_host_cache=k_host_cache, v_host_cache=v_host_cache)


# Tensors in the order in which `check_written` takes them: what is written comes first.
_APPEND_NAMES = [
    "k_cache",
    "v_cache",
    "k_host_cache",
    "v_host_cache",
    "key",
    "value",
    "slot_mapping",
    "k_scale",
    "v_scale",
]
_CACHE_NAMES = "k_scale", "v_scale", "k_host_cache", "v_host_cache"


def _append_kv(key, value, k_cache, v_cache, slot_mapping, **options):
    _checks.check_append_kv(key, value, k_cache, v_cache, slot_mapping, **options)
    _check_host_caches("append_kv", key, **options)
    pools = k_cache, v_cache, options.get("k_host_cache"), options.get("v_host_cache")
    read = key, value, slot_mapping, options.get("k_scale"), options.get("v_scale")
    _checks.check_written("append_kv", _APPEND_NAMES, (*pools, *read), 4)
    _run("append_kv", key, k_cache, key, value, k_cache, v_cache, slot_mapping, **options)


def _attention(name, check):
    """The implementations of an attention op's two overloads, by name (prefill or decode) and argument check."""
    where_names = ["block_table", "seqlens_k", "cu_seqlens_q"][: 3 if name == "prefill" else 2]
    names = ["out", "lse", "q", "k_cache", "v_cache", *where_names, "sinks", *_CACHE_NAMES]

    def run(q, k_cache, v_cache, *where, **options):
        options["window"] = min(options.get("window", -1), _checks.MAX_WINDOW)
        _run(name, q, k_cache, q, k_cache, v_cache, *where, **options)

    def into(q, k_cache, v_cache, *where, out, lse, **options):
        check(q, k_cache, v_cache, *where, **options, out=out, lse=lse)
        _check_host_caches(name, q, **options)
        rest = (options.get(key) for key in ("sinks", *_CACHE_NAMES))
        _checks.check_written(name, names, (out, lse, q, k_cache, v_cache, *where, *rest), 2)
        run(q, k_cache, v_cache, *where, **options, out=out, lse=lse)

    def functional(q, k_cache, v_cache, *where, **options):
        check(q, k_cache, v_cache, *where, **options)
        _check_host_caches(name, q, **options)
        out, lse = _empty_outputs(q, v_cache)
        run(q, k_cache, v_cache, *where, **options, out=out, lse=lse)
        return out, lse

    def fake_into(q, k_cache, v_cache, *where, out, lse, **options):
        check(q, k_cache, v_cache, *where, **options, out=out, lse=lse)

    def fake_functional(q, k_cache, v_cache, *where, **options):
        check(q, k_cache, v_cache, *where, **options)
        return _empty_outputs(q, v_cache)

    return {name: (functional, fake_functional), f"{name}.out": (into, fake_into)}


def _rows(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """`[..., heads, dim]` and `[..., heads]` as `[rows, heads, dim]` and `[rows, heads]`, without a copy if one stride
    can tell the rows apart; out's last dimension becomes contiguous."""
    *leading, heads, dim = out.shape
    if dim > 1 and out.stride(-1) != 1:
        out = out.contiguous()
    rows = math.prod(leading)
    return out.reshape(rows, heads, dim), lse.reshape(rows, heads)


def _empty_merged(out_a, lse_a):
    return (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (out_a, lse_a))


def _merge_states(out_a, lse_a, out_b, lse_b, *, sinks=None):
    _checks.check_merge_states(out_a, lse_a, out_b, lse_b, sinks)
    out, lse = _empty_merged(out_a, lse_a)
    out_rows, lse_rows = _rows(out, lse)
    partials = *_rows(out_a, lse_a), *_rows(out_b, lse_b)
    _run("merge_states", out_a, None, *partials, sinks=sinks, out=out_rows, lse=lse_rows)
    return out, lse


def _fake_merge_states(out_a, lse_a, out_b, lse_b, *, sinks=None):
    _checks.check_merge_states(out_a, lse_a, out_b, lse_b, sinks)
    return tuple(_empty_merged(out_a, lse_a))


def _copy_pages(src, dst, src_pages, dst_pages, **scales):
    _checks.check_copy_pages(src, dst, src_pages, dst_pages, **scales)
    where = src if src.device.type != "cpu" else dst  # a transfer to or from a GPU is the GPU's work
    _checks.check_pinned("copy_pages", where.device, src=src, dst=dst)
    _checks.check_copy_written(src, dst, src_pages, dst_pages, **scales)
    _run("copy_pages", where, None, src, dst, src_pages, dst_pages, **scales)


def _fake_copy_pages(src, dst, src_pages, dst_pages, **scales):
    _checks.check_copy_pages(src, dst, src_pages, dst_pages, **scales)
    _checks.check_no_mixed_meta("copy_pages", src=src, dst=dst, src_pages=src_pages, dst_pages=dst_pages)


_IMPLEMENTATIONS = {
    "append_kv": (_append_kv, _checks.check_append_kv),
    **_attention("prefill", _checks.check_prefill),
    **_attention("decode", _checks.check_decode),
    "merge_states": (_merge_states, _fake_merge_states),
    "copy_pages": (_copy_pages, _fake_copy_pages),
}


def _refuse_odd_tensors(name: str):
    """An implementation for tensors that no kernel can read: it names the argument."""
    op = name.partition(".")[0]
    schema = getattr(getattr(torch.ops.swa_attn, op), name.partition(".")[2] or "default")._schema
    names = [argument.name for argument in schema.arguments]
    return lambda *args, **options: _checks.refuse_odd_tensors(op, dict(zip(names, args)) | options)


for _name, (_implementation, _fake) in _IMPLEMENTATIONS.items():
    _library.impl(_name, _implementation, "CPU")
    _library.impl(_name, _implementation, "CUDA")
    torch_library.register_fake(f"swa_attn::{_name}", _fake, lib=_library)
    for _key in _checks.ODD_KEYS:
        _library.impl(_name, _refuse_odd_tensors(_name), _key)


_NUMBERS, _WINDOWS = (float, type(None)), (int, type(None))


def append_kv(
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_host_cache: Tensor | None = None,
    v_host_cache: Tensor | None = None,
) -> None:
    """Scatter new keys and values into their page slots, casting to the cache's dtype, in place.

    Args:
        key: `[num_tokens, num_kv_heads, head_dim]`, float32, bfloat16 or float16.
        value: `[num_tokens, num_kv_heads, v_head_dim]`, key's dtype.
        k_cache, v_cache: `[num_device_pages, page_size, num_kv_heads, head_dim | v_head_dim]`, float32, bfloat16,
            float16 or float8_e4m3fn; any page, slot and head strides, but no element shared, not with an input either.
            Written.
        slot_mapping: int64 `[num_tokens]`, `page_id * page_size + offset`; a negative slot skips its token. Two tokens
            must not share a slot.
        k_scale, v_scale: float32 `[num_device_pages + num_host_pages, num_kv_heads]`, only for a float8 cache: what is
            stored is `x / scale`, clamped to +-448. None means 1.
        k_host_cache, v_host_cache: the host pages, shaped like the caches; pinned when the op runs on a GPU. Written.

    Raises:
        ValueError, TypeError: an argument's shape, stride, device or dtype is wrong; the message names it.
        NotImplementedError: an argument requires grad.
        IndexError: (reference and CPU backend, every one under `check_values`) a slot lies outside the pools; nothing
            has been written.
    """
    _call(
        torch.ops.swa_attn.append_kv.default,
        key,
        value,
        k_cache,
        v_cache,
        slot_mapping,
        k_scale=k_scale,
        v_scale=v_scale,
        k_host_cache=k_host_cache,
        v_host_cache=v_host_cache,
    )


def prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seqlens_k: Tensor,
    cu_seqlens_q: Tensor,
    *,
    softmax_scale: float | None = None,
    window: int | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_host_cache: Tensor | None = None,
    v_host_cache: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention of a ragged batch of queries over paged keys and values; any mix of lengths in one launch.

    Sequence s has the query rows `cu_seqlens_q[s]:cu_seqlens_q[s+1]`, which are the last ones of its `seqlens_k[s]`
    tokens. The query at position p sees the keys k with `0 <= p - k < window`. A row that sees none is empty: out 0,
    lse -inf, with or without a sink. Rows of q beyond `cu_seqlens_q[-1]` get unspecified values.

    Args:
        q: `[total_q, num_q_heads, head_dim]`, float32, bfloat16 or float16.
        k_cache, v_cache: `[num_device_pages, page_size, num_kv_heads, head_dim | v_head_dim]` in q's dtype or
            float8_e4m3fn; any page, slot and head strides. num_kv_heads divides num_q_heads.
        block_table: int32 `[num_seqs, max_pages]`, logical page -> page id.
        seqlens_k: int32 `[num_seqs]`, context length including the new tokens, which are already in the cache.
        cu_seqlens_q: int32 `[num_seqs + 1]`, prefix sums of the new tokens, starting at 0.
        softmax_scale: factor on q.k; None means `head_dim ** -0.5`. It, softcap and their quotient are 0 or of a magnitude
            from 2**-126 to 2**127.
        window: visible keys, the query's own included, up to 2**63 - 1; None means all (FlashAttention's
            `window_left + 1`).
        softcap: scores become `softcap * tanh(score / softcap)` after scaling (Gemma 2); 0 is off.
        sinks: `[num_q_heads]`, logits added to the softmax denominator, unscaled and uncapped (gpt-oss, MiMo-V2).
        k_scale, v_scale: float32 `[num_device_pages + num_host_pages, num_kv_heads]`, factors of a float8 cache.
        k_host_cache, v_host_cache: the host pages, shaped like the caches; pinned when the op runs on a GPU.
        out, lse: where to write, given together or not at all; they share memory with nothing else.

    Returns:
        out `[total_q, num_q_heads, v_head_dim]` in q's dtype and lse float32 `[total_q, num_q_heads]`: the natural
        log-sum-exp of the scores, without the sink.

    Raises:
        ValueError, TypeError: an argument's shape, stride, device, dtype or value is wrong; the message names it.
        NotImplementedError: an argument requires grad, or the one backend asked for lacks this case.
        IndexError: (reference and CPU backend, every one under `check_values`) a length is negative or longer than the
            block table, cu_seqlens_q does not rise from 0 to at most total_q, or the block table points outside the
            pools for a page that holds a visible key.
    """
    if not (type(softmax_scale) in _NUMBERS and type(softcap) is float and type(window) in _WINDOWS):
        _checks.require_numbers("prefill", softmax_scale, softcap, window)
    options = dict(
        softmax_scale=softmax_scale,
        window=-1 if window is None else window,
        softcap=softcap,
        sinks=sinks,
        k_scale=k_scale,
        v_scale=v_scale,
        k_host_cache=k_host_cache,
        v_host_cache=v_host_cache,
    )
    where = q, k_cache, v_cache, block_table, seqlens_k, cu_seqlens_q
    return _call_attention(torch.ops.swa_attn.prefill, where, options, out, lse)


def decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seqlens_k: Tensor,
    *,
    softmax_scale: float | None = None,
    window: int | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_host_cache: Tensor | None = None,
    v_host_cache: Tensor | None = None,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`prefill` for a rectangular batch of a few queries each: decoding (q_len 1) and speculative verify (2 to 8).

    Token t of a sequence sits at position `seqlens_k - q_len + t`; one whose position is negative (a padding sequence
    of a CUDA graph has `seqlens_k = 0`) gets an empty row.

    Args:
        q: `[num_seqs, q_len, num_q_heads, head_dim]`, q_len 1 to 8.
        Everything else: as in `prefill`.

    Returns:
        out `[num_seqs, q_len, num_q_heads, v_head_dim]`, lse float32 `[num_seqs, q_len, num_q_heads]`.

    Raises:
        As `prefill`.
    """
    if not (type(softmax_scale) in _NUMBERS and type(softcap) is float and type(window) in _WINDOWS):
        _checks.require_numbers("decode", softmax_scale, softcap, window)
    options = dict(
        softmax_scale=softmax_scale,
        window=-1 if window is None else window,
        softcap=softcap,
        sinks=sinks,
        k_scale=k_scale,
        v_scale=v_scale,
        k_host_cache=k_host_cache,
        v_host_cache=v_host_cache,
    )
    return _call_attention(torch.ops.swa_attn.decode, (q, k_cache, v_cache, block_table, seqlens_k), options, out, lse)


def _call(op: OpOverload, *args: Tensor, **options: object):
    """`op`; what torch refuses without naming an argument is refused by its name."""
    try:
        return op(*args, **options)
    except Exception:
        _checks.explain(op._schema, args, options)
        raise


def _call_attention(op, where, options, out: Tensor | None, lse: Tensor | None) -> tuple[Tensor, Tensor]:
    if (out is None) != (lse is None):
        missing = "out" if out is None else "lse"
        raise ValueError(f"swa_attn.{op.__name__}: {missing} must be given together with the other output, got None")
    if options["softmax_scale"] is None:
        options["softmax_scale"] = _checks.default_scale(op.__name__, where[0])
    if out is None or lse is None:
        return _call(op.default, *where, **options)
    _call(op.out, *where, **options, out=out, lse=lse)
    return out, lse


def merge_states(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, *, sinks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Merge two partial attentions over disjoint sets of keys, weighting each by `exp(lse)`.

    The partials must have been computed without sinks; give `sinks` to the last merge, so that they count once.

    Args:
        out_a, out_b: `[..., num_q_heads, v_head_dim]`, float32, bfloat16 or float16, any strides.
        lse_a, lse_b: float32 `[..., num_q_heads]`, any strides (FlashAttention's `[num_q_heads, total_q]`, transposed).
            -inf marks a partial that saw no key, and so does +inf, which FlashAttention writes there; its out is not
            read. NaN makes the row NaN.
        sinks: `[num_q_heads]` or None.

    Returns:
        out in out_a's dtype and lse float32 (without the sink), both contiguous; an empty row is out 0, lse -inf.

    Raises:
        ValueError, TypeError, NotImplementedError: as in `prefill`.
    """
    return _call(torch.ops.swa_attn.merge_states.default, out_a, lse_a, out_b, lse_b, sinks=sinks)


def copy_pages(
    src: Tensor,
    dst: Tensor,
    src_pages: Tensor,
    dst_pages: Tensor,
    *,
    src_scale: Tensor | None = None,
    dst_scale: Tensor | None = None,
) -> None:
    """Copy many pages of many layers from one pool to another, in place in `dst`, in one call.

    The pools may be of different tiers (device, pinned host) and laid out differently (layer-major on the device,
    page-major on the host: pass a permuted view). A layer range is a slice of both. Equal dtypes copy bits; to
    float8_e4m3fn every (layer, page, head) is scaled by its largest magnitude / 448, and back; NaN, which an unused slot
    may hold, stays NaN and does not count.

    Args:
        src: `[num_layers, num_src_pages, page_size, num_kv_heads, dim]`, any strides but the last.
        dst: `[num_layers, num_dst_pages, page_size, num_kv_heads, dim]`, src's dtype, or float8_e4m3fn on one side. It
            shares memory with nothing else, unless both are views of one pool, whole layers or pages apart.
        src_pages, dst_pages: int64 `[num_pairs]`, indices within src and dst; a pair with a negative index is skipped.
            A dst page must not occur twice, nor be a src page too where src and dst are one pool.
        src_scale: float32 `[num_layers, num_src_pages, num_kv_heads]`, read when src is float8.
        dst_scale: float32 `[num_layers, num_dst_pages, num_kv_heads]`, written when dst is float8.

    Raises:
        ValueError, TypeError, NotImplementedError: as in `prefill`.
        IndexError: (reference and CPU backend, every one under `check_values`) a page index lies outside its pool;
            nothing has been written.
    """
    scales = {"src_scale": src_scale, "dst_scale": dst_scale}
    _call(torch.ops.swa_attn.copy_pages.default, src, dst, src_pages, dst_pages, **scales)
