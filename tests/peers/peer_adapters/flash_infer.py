"""FlashInfer's functions and wrapper classes on our ops. A wrapper's plan only remembers what it was told."""

import math

import torch
from torch import Tensor

from . import (
    DENSE_Q_MAX,
    OutsideContract,
    Pages,
    append,
    attend,
    attend_each_alone,
    merge,
    refuse,
    visible_window,
)

LOG2_E = math.log2(math.e)  # its log-sum-exp is to base 2


def _edge(window_left: int) -> int | None:
    return None if window_left < 0 else window_left


def _nhd(x: Tensor, layout: str) -> Tensor:
    """`[..., page_size, Hkv, D]` whatever the layout is; a view."""
    return x.transpose(-2, -3) if layout == "HND" else x


def _split_cache(cache, layout: str) -> tuple[Tensor, Tensor]:
    k, v = cache if isinstance(cache, tuple) else cache.unbind(1)
    if torch.uint8 in (k.dtype, v.dtype):
        raise OutsideContract("float4 keys and values")
    return tuple(_nhd(x if x.ndim == 4 else x[:, None], layout) for x in (k, v))


def _sequence_lengths(indptr: Tensor, last_page_len: Tensor, page_size: int) -> Tensor:
    pages = indptr.diff()
    return torch.where(pages > 0, (pages - 1) * page_size + last_page_len, 0).int()


def _table(indptr: Tensor, indices: Tensor) -> Tensor:
    """The rectangular block table of a compressed one; what lies beyond a row's pages is absent."""
    counts = indptr.diff()
    columns = torch.arange(max(1, int(counts.max()) if len(counts) else 0))
    at = indptr[:-1, None].long() + columns
    used = columns < counts[:, None]
    return torch.where(used, indices[at.clamp(max=max(0, len(indices) - 1))] if len(indices) else -1, -1).int()


def _result(out: Tensor, lse: Tensor, return_lse: bool, into: Tensor | None = None, lse_into: Tensor | None = None):
    lse = lse * LOG2_E
    out = out if into is None else into.copy_(out)
    lse = lse if lse_into is None else lse_into.copy_(lse)
    return (out, lse) if return_lse else out


def single_prefill_with_kv_cache(
    q, k, v, scale_q=None, scale_k=None, scale_v=None, o_dtype=None, custom_mask=None, packed_custom_mask=None,
    causal=False, kv_layout="NHD", pos_encoding_mode="NONE", use_fp16_qk_reduction=False, sm_scale=None, window_left=-1,
    logits_soft_cap=None, rope_scale=None, rope_theta=None, backend="auto", return_lse=False, k_scale=None,
    v_scale=None, kv_cache_sf=None, **rest,
):  # fmt: skip
    refuse(rotary_inside_the_op=pos_encoding_mode, scales_of_queries=scale_q, packed_masks=packed_custom_mask,
           float4_keys_and_values=kv_cache_sf)  # fmt: skip
    k, v = (_nhd(x, kv_layout) for x in (k, v))
    if custom_mask is not None:  # the plain side of a comparison with a window: no op of ours takes a mask
        return _masked(q, k, v, custom_mask, sm_scale)
    window = visible_window(causal, _edge(window_left), None, len(q))
    options = dict(window=window, scale=sm_scale, softcap=logits_soft_cap)
    options |= dict(k_factor=_scalar(k_scale, scale_k), v_factor=_scalar(v_scale, scale_v))
    out, lse = attend(q, torch.tensor([0, len(q)]), Pages.dense(k[None], v[None]), **options)
    return _result(out if o_dtype is None else out.to(o_dtype), lse, return_lse)


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """PyTorch's attention under a mask."""
    if mask.numel() > DENSE_Q_MAX:
        raise OutsideContract("a comparison with a dense mask that is too large for a CPU")
    heads = (x.float().transpose(0, 1) for x in (q, k, v))
    options = dict(attn_mask=mask, scale=scale, enable_gqa=True)
    return torch.nn.functional.scaled_dot_product_attention(*heads, **options).transpose(0, 1).to(q.dtype)


def _scalar(*given) -> float:
    factors = [float(x) for x in given if x is not None and (not isinstance(x, Tensor) or x.numel() == 1)]
    if any(isinstance(x, Tensor) and x.numel() > 1 for x in given):
        raise OutsideContract("a scale per head of an unpaged cache")
    return math.prod(factors, start=1.0)


def single_prefill_with_kv_cache_return_lse(*args, **options):
    return single_prefill_with_kv_cache(*args, **options, return_lse=True)


def single_decode_with_kv_cache(
    q, k, v, kv_layout="NHD", pos_encoding_mode="NONE", use_tensor_cores=False, q_scale=None, k_scale=None, v_scale=None,
    window_left=-1, logits_soft_cap=None, sm_scale=None, rope_scale=None, rope_theta=None, return_lse=False, **rest,
):  # fmt: skip
    refuse(rotary_inside_the_op=pos_encoding_mode, **rest)
    k, v = (_nhd(x, kv_layout)[None] for x in (k, v))
    window = visible_window(False, _edge(window_left), None, 1)
    options = dict(
        scale=sm_scale, softcap=logits_soft_cap, k_factor=_scalar(q_scale, k_scale), v_factor=_scalar(v_scale)
    )
    out, lse = attend(q[None], torch.tensor([0, 1]), Pages.dense(k, v), window=window, **options)
    out, lse = _result(out[0], lse[0], True)
    return (out, lse) if return_lse else out


class _Wrapper:
    """What all wrappers share: a layout, what plan was told, and one way to run it."""

    sinks_are_an_argument = False

    def __init__(self, float_workspace_buffer=None, kv_layout="NHD", use_cuda_graph=False, **rest):
        refuse(CUDA_graphs=use_cuda_graph)
        jit_args = rest.pop("jit_args", None)
        if jit_args is not None:
            if not any(x == "AttentionSink" for x in jit_args if isinstance(x, str)):
                raise OutsideContract("attention compiled from the caller's source")
            self.sinks_are_an_argument = True
        self.layout = kv_layout
        self.default_window = rest.pop("window_left", None)

    def _remember(self, q_bounds, pages_of, causal, page_options):
        self.q_bounds = None if q_bounds is None else q_bounds.cpu()
        self.pages_of, self.causal = pages_of, causal
        self.options = {"scale": page_options.get("sm_scale"), "softcap": page_options.get("logits_soft_cap")}
        window_left = page_options.get("window_left", -1)
        self.left = _edge(self.default_window if window_left == -1 and self.default_window is not None else window_left)
        refuse(
            rotary_inside_the_op=page_options.get("pos_encoding_mode"),
            custom_masks=page_options.get("custom_mask"),
            packed_masks=page_options.get("packed_custom_mask"),
            scoring_of_several_items_at_once=page_options.get("prefix_len_ptr"),
        )

    def _run(self, q, *cache, sinks=None, sm_scale=None, return_lse=False, out=None, lse=None, **factors):
        q_bounds = torch.arange(len(q) + 1) if self.q_bounds is None else self.q_bounds
        longest = int(q_bounds.diff().max()) if len(q_bounds) > 1 else 0
        options = dict(self.options, window=visible_window(self.causal, self.left, None, longest))
        if sm_scale is not None:
            options["scale"] = sm_scale
        options["k_factor"] = _scalar(factors.pop("q_scale", None), factors.pop("k_scale", None))
        options["v_factor"] = _scalar(factors.pop("v_scale", None))
        refuse(float4_keys_and_values=factors.pop("kv_cache_sf", None))
        soft_cap = factors.pop("logits_soft_cap", None)
        if soft_cap:
            options["softcap"] = soft_cap
        result = attend(q, q_bounds, self.pages_of(*cache), sinks=sinks, **options)
        return _result(*result, return_lse, out, lse)

    def run(self, q, cache, *extra, **options):
        if self.sinks_are_an_argument:
            options |= dict(sinks=extra[0], sm_scale=extra[1])
        elif extra:
            raise OutsideContract("attention compiled from the caller's source")
        return self._run(q, *(cache if isinstance(self, BatchPrefillWithRaggedKVCacheWrapper) else (cache,)), **options)

    forward = run

    def run_return_lse(self, *args, **options):
        return self.run(*args, **options, return_lse=True)

    forward_return_lse = run_return_lse

    def __getattr__(self, name):
        raise OutsideContract("the insides of its wrappers")

    def end_forward(self):
        """Nothing was taken that had to be given back."""

    def _paged(self, indptr, indices, lengths):
        table = _table(indptr.cpu(), indices.cpu())
        return lambda cache: Pages(*_split_cache(cache, self.layout), table, lengths)


class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
    def plan(
        self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, pos_encoding_mode="NONE",
        window_left=-1, logits_soft_cap=None, q_data_type=None, kv_data_type=None, o_data_type=None, data_type=None,
        sm_scale=None, q_len_per_req=None, **rest,
    ):  # fmt: skip
        refuse(several_queries_per_request_in_its_decode=(q_len_per_req or 1) - 1)
        lengths = _sequence_lengths(indptr, last_page_len, page_size)
        told = dict(pos_encoding_mode=pos_encoding_mode, window_left=window_left, sm_scale=sm_scale)
        self._remember(None, self._paged(indptr, indices, lengths), False, told | dict(logits_soft_cap=logits_soft_cap))

    begin_forward = plan


class BatchPrefillWithPagedKVCacheWrapper(_Wrapper):
    def plan(
        self, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads, num_kv_heads,
        head_dim_qk, page_size, head_dim_vo=None, custom_mask=None, packed_custom_mask=None, causal=False, **told,
    ):  # fmt: skip
        lengths = _sequence_lengths(paged_kv_indptr, paged_kv_last_page_len, page_size)
        told |= dict(custom_mask=custom_mask, packed_custom_mask=packed_custom_mask)
        self._remember(qo_indptr, self._paged(paged_kv_indptr, paged_kv_indices, lengths), causal, told)

    begin_forward = plan


class BatchAttentionWithAttentionSinkWrapper(BatchPrefillWithPagedKVCacheWrapper):
    sinks_are_an_argument = True


class BatchPrefillWithRaggedKVCacheWrapper(_Wrapper):
    def plan(
        self, qo_indptr, kv_indptr, num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo=None, custom_mask=None,
        packed_custom_mask=None, causal=False, pos_encoding_mode="NONE", **told,
    ):  # fmt: skip
        starts, lengths = kv_indptr.cpu()[:-1], kv_indptr.cpu().diff()
        told |= dict(
            custom_mask=custom_mask, packed_custom_mask=packed_custom_mask, pos_encoding_mode=pos_encoding_mode
        )
        self._remember(qo_indptr, lambda k, v: Pages.ragged(k, v, starts, lengths), causal, told)

    begin_forward = plan

    def run(self, q, k, v, *extra, **options):
        return super().run(q, (k, v), *extra, **options)

    forward = run


class BatchAttention(_Wrapper):
    def plan(
        self, qo_indptr, kv_indptr, kv_indices, kv_len_arr, num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo,
        page_size, causal=False, sm_scale=None, logits_soft_cap=None, **rest,
    ):  # fmt: skip
        pages_of = self._paged(kv_indptr, kv_indices, kv_len_arr.int())
        self._remember(qo_indptr, pages_of, causal, dict(sm_scale=sm_scale, logits_soft_cap=logits_soft_cap))

    def run(self, q, cache, **options):
        return super().run(q, cache, **options, return_lse=True)


class _Shared:
    """Attention to pages that many sequences share, then to each one's own, merged."""

    def __init__(self, float_workspace_buffer, kv_layout="NHD"):
        self.own = self.OWN(float_workspace_buffer, kv_layout)

    def begin_forward(self, *args, **options):
        self.own.plan(*args, **options)

    def forward(self, q, k_shared, v_shared, own_cache, causal=False, **rest):
        self.own.causal = causal
        own = self.own.run(q, own_cache, return_lse=True)
        everyone = torch.tensor([0, len(q)])
        shared = attend_each_alone(q, everyone, Pages.dense(k_shared[None], v_shared[None]))
        return merge([shared, (own[0], own[1] / LOG2_E)])[0]


class BatchDecodeWithSharedPrefixPagedKVCacheWrapper(_Shared):
    OWN = BatchDecodeWithPagedKVCacheWrapper


class BatchPrefillWithSharedPrefixPagedKVCacheWrapper(_Shared):
    OWN = BatchPrefillWithPagedKVCacheWrapper


class MultiLevelCascadeAttentionWrapper:
    def __init__(self, num_levels, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, **rest):
        refuse(CUDA_graphs=use_cuda_graph)
        self.layout = kv_layout

    def plan(self, q_bounds, indptrs, indices, last_page_lens, num_qo_heads, num_kv_heads, head_dim, page_size, **told):
        self.levels = []
        for q_bound, indptr, index, last in zip(q_bounds, indptrs, indices, last_page_lens):
            lengths = _sequence_lengths(indptr, last, page_size)
            self.levels.append((q_bound, _table(indptr, index), lengths))
        self.causal = told.pop("causal", False)
        refuse(rotary_inside_the_op=told.get("pos_encoding_mode"))

    def run(self, q, cache):
        k, v = _split_cache(cache, self.layout)
        *shared, (q_bounds, table, lengths) = self.levels
        own = Pages(k, v, table, lengths)
        window = visible_window(self.causal, None, None, int(q_bounds.diff().max()))
        parts = [attend_each_alone(q, bound, Pages(k, v, *where)) for bound, *where in shared]
        return merge([*parts, attend(q, q_bounds, own, window=window)])[0]


def merge_state(v_a, s_a, v_b, s_b):
    out, lse = merge([(v_a, s_a / LOG2_E), (v_b, s_b / LOG2_E)])
    return out, lse * LOG2_E


def merge_state_in_place(v, s, v_other, s_other, mask=None):
    out, lse = merge_state(v, s, v_other, s_other)
    keep = slice(None) if mask is None else mask
    v[keep], s[keep] = out[keep], lse[keep]


def merge_states(v, s):
    out, lse = merge(list(zip(v.unbind(1), (s / LOG2_E).unbind(1))))
    return out, lse * LOG2_E


def get_seq_lens(kv_indptr, kv_last_page_len, page_size):
    return _sequence_lengths(kv_indptr, kv_last_page_len, page_size)


def get_batch_indices_positions(append_indptr, seq_lens, nnz):
    lengths = append_indptr.diff().long()
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    first = seq_lens.long() - append_indptr[1:].long()
    return sequence.int(), (torch.arange(len(sequence)) + first[sequence]).int()


def append_paged_kv_cache(
    append_key, append_value, batch_indices, positions, paged_kv_cache, kv_indices, kv_indptr, kv_last_page_len,
    kv_layout="NHD",
):  # fmt: skip
    k, v = _split_cache(paged_kv_cache, kv_layout)
    lengths = _sequence_lengths(kv_indptr, kv_last_page_len, k.shape[1])
    append(append_key, append_value, Pages(k, v, _table(kv_indptr, kv_indices), lengths), batch_indices, positions)


def no_cuda_graphs(*args, **options):
    raise OutsideContract("CUDA graphs")


def fast_decode_plan(wrapper, *args, **options):
    options.pop("global_override_indptr_cpu", None)
    type(wrapper).plan(wrapper, *args, **options)


class GPUArchitectureError(RuntimeError):
    """Named by its tests' helpers; never raised here."""


def install(module, checkout) -> None:
    """Fill the stand-in modules of `flashinfer`; what it compiles, and asks of a card, is answered without one."""
    single = (single_prefill_with_kv_cache, single_prefill_with_kv_cache_return_lse, single_decode_with_kv_cache)
    wrappers = (
        BatchDecodeWithPagedKVCacheWrapper,
        BatchPrefillWithPagedKVCacheWrapper,
        BatchPrefillWithRaggedKVCacheWrapper,
        BatchAttentionWithAttentionSinkWrapper,
        BatchAttention,
        BatchDecodeWithSharedPrefixPagedKVCacheWrapper,
        BatchPrefillWithSharedPrefixPagedKVCacheWrapper,
        MultiLevelCascadeAttentionWrapper,
    )
    pages = (append_paged_kv_cache, get_seq_lens, get_batch_indices_positions, fast_decode_plan)
    everything = {x.__name__: x for x in (*single, *wrappers, *pages, merge_state, merge_state_in_place, merge_states)}
    everything["CUDAGraphBatchDecodeWithPagedKVCacheWrapper"] = no_cuda_graphs
    for name in ("flashinfer", "flashinfer.prefill", "flashinfer.decode", "flashinfer.cascade", "flashinfer.page"):
        module(name).provide(**everything)
    module("flashinfer.utils").provide(
        get_compute_capability=lambda device: torch.cuda.get_device_capability(device),
        has_flashinfer_jit_cache=lambda: True,  # nothing is compiled before a test
        is_sm90a_supported=lambda device: True,
        GPUArchitectureError=GPUArchitectureError,
    )
