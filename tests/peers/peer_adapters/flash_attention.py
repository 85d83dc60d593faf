"""FlashAttention's functions, in the signatures of its generations 2, 3 (hopper/) and 4 (flash_attn/cute/), on our ops.

What only chooses a schedule there (num_splits, pack_gqa, deterministic, scheduler metadata ...) is accepted and ignored.
"""

from types import ModuleType

import torch
from torch import Tensor

from . import OutsideContract, Pages, append, attend, attend_in_chunks, bounds, merge, refuse, visible_window


def _edge(size: int | Tensor | None, unlimited: int | None) -> int | None:
    """One side of a window, None if it is their word for no limit (-1 before generation 4, None there)."""
    size = int(size) if isinstance(size, Tensor) else size
    return None if size is None or size == unlimited else size


def _mask(causal: bool, window_size, unlimited: int | None, longest_q: int) -> int | None:
    left, right = (_edge(size, unlimited) for size in window_size)
    return visible_window(causal, left, 0 if causal else right, longest_q)


def _attend(
    q: Tensor, cu_seqlens_q: Tensor, pages: Pages, attention_chunk: int = 0, **options
) -> tuple[Tensor, Tensor]:
    if attention_chunk:
        return attend_in_chunks(q, cu_seqlens_q, pages, attention_chunk, **options)
    return attend(q, cu_seqlens_q, pages, **options)


def _dense(q: Tensor, pages: Pages, **options) -> tuple[Tensor, Tensor]:
    """`q` `[num_seqs, q_len, Hq, D]`; out alike, lse `[num_seqs, Hq, q_len]`."""
    count, q_len = q.shape[:2]
    out, lse = _attend(q.flatten(0, 1), torch.arange(count + 1) * q_len, pages, **options)
    return out.unflatten(0, (count, q_len)), lse.unflatten(0, (count, q_len)).transpose(1, 2)


def _varlen(q: Tensor, cu_seqlens_q: Tensor, used_q: Tensor | None, pages: Pages, **options) -> tuple[Tensor, Tensor]:
    """Ragged rows, of which the first `used_q[s]` of a sequence count; the other rows of the results are zero."""
    if used_q is None:
        out, lse = _attend(q, cu_seqlens_q, pages, **options)
        return out, lse.transpose(0, 1)
    used = used_q.long()
    sequence = torch.repeat_interleave(torch.arange(len(used)), used)
    starts = bounds(used).long()
    rows = torch.arange(len(sequence)) - starts[sequence] + cu_seqlens_q.long()[sequence]
    out, lse = _attend(q[rows], starts.int(), pages, **options)
    all_out, all_lse = out.new_zeros(len(q), *out.shape[1:]), lse.new_zeros(len(q), lse.shape[1])
    all_out[rows], all_lse[rows] = out, lse
    return all_out, all_lse.transpose(0, 1)


def _pages_of(k: Tensor, v: Tensor, cu_seqlens_k: Tensor | None, used_k: Tensor | None, table: Tensor | None) -> Pages:
    if table is not None:
        return Pages(k, v, table.int(), (cu_seqlens_k.diff() if used_k is None else used_k).int())
    if cu_seqlens_k is None:
        return Pages.dense(k, v, used_k)
    return Pages.ragged(k, v, cu_seqlens_k[:-1], cu_seqlens_k.diff() if used_k is None else used_k)


def _kvcache(
    q, k_cache, v_cache, k, v, *, cache_seqlens, cache_batch_idx, cache_leftpad, table, cu_seqlens_q, cu_seqlens_k_new,
    causal, window_size, unlimited, longest_q, softmax_scale, softcap, attention_chunk=0,
):  # fmt: skip
    """Append k and v to a cache, then attend to it: what generations 2 and 3 do in one function."""
    count = len(cu_seqlens_q) - 1 if cu_seqlens_q is not None else len(q)
    if not isinstance(cache_seqlens, Tensor):
        cache_seqlens = torch.full((count,), k_cache.shape[1] if cache_seqlens is None else cache_seqlens)
    where = Pages.dense(k_cache, v_cache).table if table is None else table.int()
    rows = where[:count] if cache_batch_idx is None else where[cache_batch_idx.long()]
    pages = Pages(k_cache, v_cache, rows, cache_seqlens.int())
    if pages.k.dtype != q.dtype:
        raise OutsideContract(f"a {pages.k.dtype} cache under {q.dtype} queries".replace("torch.", ""))
    if k is not None:
        new = cu_seqlens_k_new.diff() if cu_seqlens_k_new is not None else torch.full((count,), k.shape[1])
        if bool((cache_seqlens + new > pages.table.shape[1] * pages.k.shape[1]).any()):
            raise RuntimeError("block_table: too short for the appended keys")
        sequence = torch.repeat_interleave(torch.arange(count), new.long())
        position = torch.arange(len(sequence)) + (cache_seqlens.long() - bounds(new)[:-1].long())[sequence]
        flat = (x if cu_seqlens_k_new is not None else x.flatten(0, 1) for x in (k, v))
        append(*flat, pages, sequence, position)
        pages = pages.longer_by(new)
    if cache_leftpad is not None:
        pages = pages.spans(torch.arange(count), cache_leftpad, pages.lengths - cache_leftpad)
    window = _mask(causal, window_size, unlimited, longest_q)
    options = dict(window=window, scale=softmax_scale, softcap=softcap, attention_chunk=attention_chunk)
    if cu_seqlens_q is None:
        return _dense(q, pages, **options)
    out, lse = _attend(q, cu_seqlens_q, pages, **options)
    return out, lse.transpose(0, 1)


# Generation 2: flash_attn


def flash2_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False,
):  # fmt: skip
    refuse(dropout=dropout_p, ALiBi=alibi_slopes)
    window = _mask(causal, window_size, -1, q.shape[1])
    out, lse = _dense(q, Pages.dense(k, v), window=window, scale=softmax_scale, softcap=softcap)
    return (out, lse, None) if return_attn_probs else out


def flash2_qkvpacked_func(qkv, *args, **options):
    return flash2_func(*qkv.unbind(2), *args, **options)


def flash2_kvpacked_func(q, kv, *args, **options):
    return flash2_func(q, *kv.unbind(2), *args, **options)


def flash2_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False, block_table=None,
):  # fmt: skip
    refuse(dropout=dropout_p, ALiBi=alibi_slopes)
    window = _mask(causal, window_size, -1, max_seqlen_q)
    pages = _pages_of(k, v, cu_seqlens_k, None, block_table)
    out, lse = _varlen(q, cu_seqlens_q, None, pages, window=window, scale=softmax_scale, softcap=softcap)
    return (out, lse, None) if return_attn_probs else out


def flash2_varlen_qkvpacked_func(qkv, cu_seqlens, max_seqlen, *args, **options):
    return flash2_varlen_func(*qkv.unbind(1), cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, *args, **options)


def flash2_varlen_kvpacked_func(q, kv, *args, **options):
    return flash2_varlen_func(q, *kv.unbind(1), *args, **options)


def flash2_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, cache_batch_idx=None,
    cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False,
):  # fmt: skip
    refuse(rotary_inside_the_op=rotary_cos, ALiBi=alibi_slopes)
    out, lse = _kvcache(
        q, k_cache, v_cache, k, v, cache_seqlens=cache_seqlens, cache_batch_idx=cache_batch_idx,
        cache_leftpad=cache_leftpad, table=block_table, cu_seqlens_q=None, cu_seqlens_k_new=None, causal=causal,
        window_size=window_size, unlimited=-1, longest_q=q.shape[1], softmax_scale=softmax_scale, softcap=softcap,
    )  # fmt: skip
    return (out, lse) if return_softmax_lse else out


# Generation 3: flash_attn_interface


def flash3_func(
    q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
    window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0,
    return_attn_probs=False,
):  # fmt: skip
    refuse(scores_from_qv=qv, scales_of_queries=q_descale)
    options = dict(scale=softmax_scale, softcap=softcap, attention_chunk=attention_chunk)
    out, lse = _dense(q, Pages.dense(k, v), window=_mask(causal, window_size, -1, q.shape[1]), **options)
    return (out, lse) if return_attn_probs else out


def flash3_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None, softmax_scale=None,
    causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1), attention_chunk=0,
    softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False,
):  # fmt: skip
    refuse(scores_from_qv=qv, scales_of_queries=q_descale)
    options = dict(scale=softmax_scale, softcap=softcap, attention_chunk=attention_chunk)
    pages = _pages_of(k, v, cu_seqlens_k, seqused_k, None)
    window = _mask(causal, window_size, -1, max_seqlen_q)
    out, lse = _varlen(q, cu_seqlens_q, seqused_q, pages, window=window, **options)
    return (out, lse) if return_attn_probs else out


def flash3_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
    cache_batch_idx=None, cache_leftpad=None, page_table=None, cu_seqlens_q=None, cu_seqlens_k_new=None,
    max_seqlen_q=None, rotary_seqlens=None, q_descale=None, k_descale=None, v_descale=None, softmax_scale=None,
    causal=False, window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True,
    scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0, return_softmax_lse=False,
):  # fmt: skip
    refuse(rotary_inside_the_op=rotary_cos, scores_from_qv=qv, scales_of_queries=q_descale)
    out, lse = _kvcache(
        q, k_cache, v_cache, k, v, cache_seqlens=cache_seqlens, cache_batch_idx=cache_batch_idx,
        cache_leftpad=cache_leftpad, table=page_table, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k_new=cu_seqlens_k_new,
        causal=causal, window_size=window_size, unlimited=-1, longest_q=max_seqlen_q or q.shape[1],
        softmax_scale=softmax_scale, softcap=softcap, attention_chunk=attention_chunk,
    )  # fmt: skip
    return (out, lse) if return_softmax_lse else out


def no_metadata(*args, **options):
    """Nothing is planned on the host here."""


def flash_combine(out_partial, lse_partial, out=None, out_dtype=None, *, return_lse=True, **ragged):
    """Partials `[num_splits, num_seqs, q_len, Hq, D]` and `[num_splits, num_seqs, q_len, Hq]` by our `merge_states`."""
    if out_partial.ndim != 5 or any(x is not None for x in ragged.values()):
        raise OutsideContract("ragged partial results")
    merged, lse = merge(list(zip(out_partial, lse_partial)))
    merged = merged.to(out_dtype or (out_partial.dtype if out is None else out.dtype))
    return (merged if out is None else out.copy_(merged)), (lse if return_lse else None)


# Generation 4: flash_attn.cute


def _flash4(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None, max_seqlen_q=None, **rest):
    options = dict(scale=rest["softmax_scale"], softcap=rest["softcap"], sinks=rest["learnable_sink"])
    pages = _pages_of(k, v, cu_seqlens_k, seqused_k, rest["page_table"])
    if cu_seqlens_q is None and seqused_q is not None:  # rectangular rows, of which only some count
        count, q_len = q.shape[:2]
        window = _mask(rest["causal"], rest["window_size"], None, q_len)
        out, lse = _varlen(q.flatten(0, 1), torch.arange(count + 1) * q_len, seqused_q, pages, window=window, **options)
        return out.unflatten(0, (count, q_len)), lse.unflatten(1, (count, q_len)).transpose(0, 1)
    if cu_seqlens_q is None:
        return _dense(q, pages, window=_mask(rest["causal"], rest["window_size"], None, q.shape[1]), **options)
    longest = int(cu_seqlens_q.diff().max()) if max_seqlen_q is None else int(max_seqlen_q)
    window = _mask(rest["causal"], rest["window_size"], None, longest)
    return _varlen(q, cu_seqlens_q, seqused_q, pages, window=window, **options)


def _refuse_flash4(qv=None, gather_kv_indices=None, score_mod=None, mask_mod=None, block_sparse_tensors=None,
                   score_mod_bwd=None, block_sparse_tensors_bwd=None, aux_tensors=None, aux_scalars=None,
                   q_descale=None, k_descale=None, v_descale=None, seqlen_k_per_split=None, **_):  # fmt: skip
    refuse(
        bits_that_change_with_a_split_size=seqlen_k_per_split,
        scores_from_qv=qv, gathered_keys=gather_kv_indices, changed_scores=score_mod, custom_masks=mask_mod,
        block_sparse_attention=block_sparse_tensors, scales_of_queries=q_descale,
    )  # fmt: skip


def flash4_func(
    q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, window_size=(None, None),
    learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, **modifiers,
):  # fmt: skip
    _refuse_flash4(qv, gather_kv_indices, **modifiers)
    return _flash4(
        q, k, v, softmax_scale=softmax_scale, causal=causal, window_size=window_size, learnable_sink=learnable_sink,
        softcap=softcap, page_table=None,
    )  # fmt: skip


def flash4_varlen_func(
    q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, min_seqlen_k=None,
    seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None, softmax_scale=None, causal=False,
    window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
    **modifiers,
):  # fmt: skip
    _refuse_flash4(qv, gather_kv_indices, **modifiers)
    return _flash4(
        q, k, v, cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q, softmax_scale=softmax_scale,
        causal=causal, window_size=window_size, learnable_sink=learnable_sink, softcap=softcap, page_table=page_table,
    )  # fmt: skip


def flash4_fwd(
    q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None, max_seqlen_q=None,
    max_seqlen_k=None, min_seqlen_k=None, page_table=None, softmax_scale=None, causal=False, softcap=None,
    window_size_left=None, window_size_right=None, learnable_sink=None, **rest,
):  # fmt: skip
    _refuse_flash4(qv, **rest)
    out, lse = _flash4(
        q, k, v, cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q, softmax_scale=softmax_scale,
        causal=causal, window_size=(window_size_left, window_size_right), learnable_sink=learnable_sink,
        softcap=softcap, page_table=page_table,
    )  # fmt: skip
    return out, lse, None, None


def no_rotary(*args, **options):
    raise OutsideContract("rotary inside the op")


def install(module: ModuleType, checkout) -> None:
    """Fill the stand-in modules `flash_attn`, `flash_attn_interface` and `flash_attn.cute`; helpers come from `checkout`."""
    module("flash_attn").provide(
        flash_attn_func=flash2_func,
        flash_attn_kvpacked_func=flash2_kvpacked_func,
        flash_attn_qkvpacked_func=flash2_qkvpacked_func,
        flash_attn_varlen_func=flash2_varlen_func,
        flash_attn_varlen_kvpacked_func=flash2_varlen_kvpacked_func,
        flash_attn_varlen_qkvpacked_func=flash2_varlen_qkvpacked_func,
        flash_attn_with_kvcache=flash2_with_kvcache,
    )
    module("flash_attn.flash_attn_interface").provide(USE_TRITON_ROCM=False)
    module("flash_attn.layers.rotary").provide(apply_rotary_emb=no_rotary)
    module("flash_attn_interface").provide(
        flash_attn_func=flash3_func,
        flash_attn_varlen_func=flash3_varlen_func,
        flash_attn_with_kvcache=flash3_with_kvcache,
        flash_attn_combine=flash_combine,
        get_scheduler_metadata=no_metadata,
    )
    generation_4 = dict(flash_attn_func=flash4_func, flash_attn_varlen_func=flash4_varlen_func)
    module("flash_attn.cute").provide(**generation_4)
    module("flash_attn.cute.interface").provide(
        **generation_4, _flash_attn_fwd=flash4_fwd, flash_attn_combine=flash_combine, get_scheduler_metadata=no_metadata
    )
    for name in ("flash_attn.bert_padding", "flash_attn.cute.testing"):
        module(name).take_from(checkout / (name.replace(".", "/") + ".py"))
