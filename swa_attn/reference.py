"""The definition of correct: naive attention over pages, in plain PyTorch.

Slow on purpose and short on purpose. Every query row is computed from exactly the keys it may see, gathered one by one
through the block table; nothing else of the cache is read, so garbage anywhere else cannot matter. It computes scores,
softmax and sums in float32 whatever the inputs are, or in float64 when asked (`compute_dtype=torch.float64`), which is
the oracle of the tests.

Words used here are defined in docs/conventions.md: `window` counts the query's own key, a page id at or above
`num_device_pages` is a host page, `lse` leaves the sink out, an empty row is `out = 0, lse = -inf`.
"""

import torch
from torch import Tensor

FP8_MAX = 448.0  # the largest finite float8_e4m3fn


def locate_page(page_id: int, num_device_pages: int, num_host_pages: int) -> tuple[bool, int]:
    """Decode a page id into (is on the host, index in that pool).

    Raises IndexError for an absent (negative) or unknown page.
    """
    if 0 <= page_id < num_device_pages:
        return False, page_id
    if num_device_pages <= page_id < num_device_pages + num_host_pages:
        return True, page_id - num_device_pages
    raise IndexError(
        f"page id {page_id} is neither a device page (0..{num_device_pages - 1}) nor one of the "
        f"{num_host_pages} host pages that follow"
    )


def visible_range(position: int, seqlen_k: int, window: int) -> range:
    """Positions of the keys that a query at `position` sees: `0 <= position - k < window`, and k exists."""
    first = 0 if window < 0 else max(0, position - window + 1)
    return range(first, max(first, min(position + 1, seqlen_k)))


def gather_keys(
    keys: range,
    table_row: Tensor,
    cache: Tensor,
    host_cache: Tensor | None,
    scale: Tensor | None,
    compute_dtype: torch.dtype,
) -> Tensor:
    """The K or V rows at positions `keys` of one sequence, `[len(keys), num_kv_heads, dim]`, dequantised.

    `table_row` is int32 `[max_pages]`; `cache` and `host_cache` are `[pages, page_size, num_kv_heads, dim]`; `scale` is
    float32 `[num_device_pages + num_host_pages, num_kv_heads]`.
    """
    num_device_pages, page_size, num_kv_heads, dim = cache.shape
    num_host_pages = 0 if host_cache is None else host_cache.shape[0]
    pieces = [torch.empty(0, num_kv_heads, dim, dtype=compute_dtype, device=cache.device)]
    start = keys.start
    while start < keys.stop:
        stop = min(keys.stop, (start // page_size + 1) * page_size)
        page_id = int(table_row[start // page_size])
        on_host, index = locate_page(page_id, num_device_pages, num_host_pages)
        offset = start % page_size
        pool = host_cache if on_host else cache
        piece = pool[index, offset : offset + stop - start].to(device=cache.device, dtype=compute_dtype)
        if scale is not None:
            piece = piece * scale[page_id].to(compute_dtype)[None, :, None]
        pieces.append(piece)
        start = stop
    return torch.cat(pieces)


def attend(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, softcap: float, sinks: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One query row over its visible keys, in the precision of q, k and v.

    q `[Hq, Dk]`, k `[n, Hkv, Dk]`, v `[n, Hkv, Dv]`, sinks `[Hq]` or None -> out `[Hq, Dv]`, lse `[Hq]`. The cap is
    `softcap * tanh(score / softcap)` on the scaled score (Gemma 2); the sink is one more softmax column that carries no
    value (gpt-oss, MiMo), neither scaled nor capped, and not part of the returned lse.
    """
    num_q_heads, num_kv_heads = q.shape[0], k.shape[1]
    if k.shape[0] == 0:
        return q.new_zeros(num_q_heads, v.shape[2]), q.new_full((num_q_heads,), float("-inf"))
    group = num_q_heads // num_kv_heads
    scores = torch.einsum("hgd,nhd->hgn", q.view(num_kv_heads, group, -1), k) * softmax_scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    largest = scores.amax(dim=-1)
    weights = torch.exp(scores - largest[..., None])
    total = weights.sum(dim=-1)
    denominator = total
    if sinks is not None:
        denominator = total + torch.exp(sinks.to(scores.dtype).view(num_kv_heads, group) - largest)
    out = torch.einsum("hgn,nhd->hgd", weights, v) / denominator[..., None]
    return out.reshape(num_q_heads, -1), (largest + torch.log(total)).reshape(num_q_heads)


def prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seqlens_k: Tensor,
    cu_seqlens_q: Tensor,
    *,
    softmax_scale: float,
    window: int = -1,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    k_host_cache: Tensor | None = None,
    v_host_cache: Tensor | None = None,
    compute_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Ragged causal attention over pages; shapes and meaning as in `swa_attn.ops.prefill`.

    Returns out `[total_q, Hq, Dv]` and lse `[total_q, Hq]`, both in `compute_dtype`: float32 or float64.
    """
    total_q, num_q_heads, _ = q.shape
    out = torch.zeros(total_q, num_q_heads, v_cache.shape[3], dtype=compute_dtype, device=q.device)
    lse = torch.full((total_q, num_q_heads), float("-inf"), dtype=compute_dtype, device=q.device)
    bounds, lengths = cu_seqlens_q.tolist(), seqlens_k.tolist()
    for seq, seqlen_k in enumerate(lengths):
        num_new = bounds[seq + 1] - bounds[seq]
        first = visible_range(max(0, seqlen_k - num_new), seqlen_k, window).start
        span = range(first, seqlen_k) if num_new else range(0)
        k = gather_keys(span, block_table[seq], k_cache, k_host_cache, k_scale, compute_dtype)
        v = gather_keys(span, block_table[seq], v_cache, v_host_cache, v_scale, compute_dtype)
        for i in range(num_new):
            keys = visible_range(seqlen_k - num_new + i, seqlen_k, window)
            here = slice(keys.start - first, keys.stop - first) if len(keys) else slice(0)
            row = bounds[seq] + i
            out[row], lse[row] = attend(q[row].to(compute_dtype), k[here], v[here], softmax_scale, softcap, sinks)
    return out, lse


def decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seqlens_k: Tensor, **options: object
) -> tuple[Tensor, Tensor]:
    """`prefill` for a rectangular batch: q `[num_seqs, q_len, Hq, Dk]`; options as in `prefill`."""
    num_seqs, q_len = q.shape[:2]
    cu_seqlens_q = torch.arange(num_seqs + 1, dtype=torch.int32, device=q.device) * q_len
    out, lse = prefill(q.flatten(0, 1), k_cache, v_cache, block_table, seqlens_k, cu_seqlens_q, **options)
    return out.unflatten(0, (num_seqs, q_len)), lse.unflatten(0, (num_seqs, q_len))


def to_cache_dtype(x: Tensor, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
    """Cast as the cache stores it; fp8 is `x / scale` clamped to the finite range (torch's own cast gives NaN above it)."""
    if dtype != torch.float8_e4m3fn:
        return x.to(dtype)
    x = x.float() if scale is None else x.float() / scale
    return x.clamp(-FP8_MAX, FP8_MAX).to(dtype)


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
    """Scatter new keys and values into their page slots, in place; as `swa_attn.ops.append_kv`."""
    page_size = k_cache.shape[1]
    num_host_pages = 0 if k_host_cache is None else k_host_cache.shape[0]
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot < 0:
            continue
        page_id, offset = divmod(slot, page_size)
        on_host, index = locate_page(page_id, k_cache.shape[0], num_host_pages)
        for new, cache, host_cache, scale in (
            (key, k_cache, k_host_cache, k_scale),
            (value, v_cache, v_host_cache, v_scale),
        ):
            pool = host_cache if on_host else cache
            factor = None if scale is None else scale[page_id, :, None]
            pool[index, offset] = to_cache_dtype(new[token], pool.dtype, factor)


def merge_states(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, sinks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Merge attention over two disjoint key sets (flash-decoding's combine); as `swa_attn.ops.merge_states`."""
    dtype = torch.float64 if out_a.dtype == torch.float64 else torch.float32
    no_key = float("-inf")  # of a partial that saw none; FlashAttention says +inf
    lse_a, lse_b = (x.to(dtype).masked_fill(x == float("inf"), no_key) for x in (lse_a, lse_b))
    lse = torch.logaddexp(lse_a, lse_b)
    denominator = lse if sinks is None else torch.logaddexp(lse, sinks.to(dtype).expand_as(lse))

    def share(out: Tensor, part: Tensor) -> Tensor:
        weight = torch.exp(part - denominator)[..., None]
        empty = (part == no_key)[..., None]
        return torch.where(empty, torch.zeros((), dtype=dtype), out.to(dtype) * weight)

    return (share(out_a, lse_a) + share(out_b, lse_b)).to(out_a.dtype), lse


def copy_pages(
    src: Tensor,
    dst: Tensor,
    src_pages: Tensor,
    dst_pages: Tensor,
    *,
    src_scale: Tensor | None = None,
    dst_scale: Tensor | None = None,
) -> None:
    """Copy whole pages of all layers, in place in `dst`; as `swa_attn.ops.copy_pages`."""
    for source, target in zip(src_pages.tolist(), dst_pages.tolist(), strict=True):
        if source < 0 or target < 0:
            continue
        page = src[:, source]  # [num_layers, page_size, num_kv_heads, dim]
        if src.dtype == dst.dtype:
            dst[:, target] = page.to(dst.device)
            if dst_scale is not None:
                dst_scale[:, target] = src_scale[:, source].to(dst.device)
        elif dst.dtype == torch.float8_e4m3fn:
            page = page.float()
            magnitude = page.abs().masked_fill(page.isnan(), 0.0)  # an unused slot may hold NaN: it must not spread
            scale = (magnitude.amax(dim=(1, 3)) / FP8_MAX).clamp_min(1e-12)
            dst_scale[:, target] = scale.to(dst.device)
            dst[:, target] = to_cache_dtype(page, dst.dtype, scale[:, None, :, None]).to(dst.device)
        else:
            factor = src_scale[:, source].float()[:, None, :, None]
            dst[:, target] = (page.float() * factor).to(device=dst.device, dtype=dst.dtype)
