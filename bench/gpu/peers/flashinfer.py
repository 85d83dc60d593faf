"""FlashInfer: its batch wrapper (fa2 and fa3 templates), the fmha_v2 prefill and the XQA decode.

Its modules are compiled at first use, which can take minutes: have them built before (FLASHINFER_CUDA_ARCH_LIST=9.0a).
The module of the wrapper with sinks is cached under a name that leaves the head dimensions out, so give every shape a
workspace of its own (FLASHINFER_WORKSPACE_BASE).
"""

import functools

import torch

from ..cases import Case
from ..inputs import Call, table_without_holes
from .peer import Peer, lacks_tier_or_dtype, longest, not_importable, window_left

WORKSPACE_BYTES = 256 << 20


@functools.cache
def workspace(device: torch.device) -> torch.Tensor:
    """One for all: the calls of a benchmark run one after the other."""
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


class FlashInferBatch(Peer):
    """`BatchAttentionWithAttentionSinkWrapper`; a case without sinks gets ones of -infinity, which count nothing."""

    counts_sinks = True

    def __init__(self, backend: str):
        self.name = f"flashinfer {backend}"
        self._backend = backend

    def lacks(self, case: Case) -> str | None:
        layer = case.layer
        if self._backend == "fa3" and layer.head_dim != layer.v_head_dim:
            return f"its fa3 template wants equal head dimensions, not {layer.head_dim}/{layer.v_head_dim}"
        return lacks_tier_or_dtype(case) or not_importable("flashinfer")

    def prepare(self, call: Call):
        import flashinfer

        case, layer, dtype, left = call.case, call.case.layer, call.q.dtype, window_left(call.case)
        dims = dict(head_dim_qk=layer.head_dim, head_dim_vo=layer.v_head_dim, window_left=left)
        dtypes = dict(q_data_type=dtype, kv_data_type=dtype)
        wrapper = flashinfer.BatchAttentionWithAttentionSinkWrapper(
            workspace(call.q.device), "NHD", backend=self._backend, **dtypes, **dims
        )
        table, device = table_without_holes(call), call.q.device
        pages = [-(-context // case.page_size) for _, context in case.seqs]
        indices = torch.cat([table[seq, :count] for seq, count in enumerate(pages)])
        indptr = torch.tensor([0, *pages], dtype=torch.int32, device=device).cumsum(0).int()
        last = torch.tensor([(k - 1) % case.page_size + 1 for _, k in case.seqs], dtype=torch.int32, device=device)
        wrapper.plan(
            *(call.cu_seqlens_q, indptr, indices, last),
            *(layer.num_q_heads, layer.num_kv_heads, layer.head_dim, case.page_size),
            head_dim_vo=layer.v_head_dim,
            causal=True,
            window_left=left,
            **dtypes,
        )
        sinks = call.sinks
        if sinks is None:
            sinks = torch.full((layer.num_q_heads,), float("-inf"), device=device)

        def run():
            return wrapper.run(call.q, (call.k_cache, call.v_cache), sinks, call.softmax_scale)

        return run


class FlashInferFmha(Peer):
    """`trtllm_fmha_v2_prefill`, for prefill with equal head dimensions."""

    name = "flashinfer fmha_v2"
    counts_sinks = True

    def lacks(self, case: Case) -> str | None:
        layer = case.layer
        if case.op != "prefill" or layer.head_dim != layer.v_head_dim:
            return "for prefill with equal head dimensions only"
        return lacks_tier_or_dtype(case) or not_importable("flashinfer.prefill")

    def prepare(self, call: Call):
        from flashinfer.prefill import trtllm_fmha_v2_prefill

        case, (max_q, max_k) = call.case, longest(call.case)
        space, table = workspace(call.q.device), table_without_holes(call)
        paged = torch.stack([call.k_cache, call.v_cache], dim=1)
        lengths = call.seqlens_k
        cu_k = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
        windowed = case.layer.window is not None

        def run():
            return trtllm_fmha_v2_prefill(
                *((call.q, paged), "Q_PAGED_KV_NHD", space, lengths, max_q, max_k, call.softmax_scale, 1.0),
                *(len(case.seqs), call.cu_seqlens_q, cu_k, table),
                mask_mode="sliding_window" if windowed else "causal",
                window_left=window_left(case),
                sinks=call.sinks,
            )

        return run


class FlashInferXqa(Peer):
    """`xqa_batch_decode_with_kv_cache`, for decode of one token with equal head dimensions."""

    name = "flashinfer xqa"
    counts_sinks = True

    def lacks(self, case: Case) -> str | None:
        layer = case.layer
        if case.op != "decode" or layer.head_dim != layer.v_head_dim or case.num_tokens != len(case.seqs):
            return "for decode of one token with equal head dimensions only"
        if case.page_size not in (16, 32, 64, 128):
            return f"no kernel for pages of {case.page_size}"
        return lacks_tier_or_dtype(case) or not_importable("flashinfer.decode")

    def prepare(self, call: Call):
        from flashinfer.decode import xqa_batch_decode_with_kv_cache

        space, table = workspace(call.q.device), table_without_holes(call)
        _, max_k = longest(call.case)
        lengths = call.seqlens_k.to(torch.uint32)

        def run():
            return xqa_batch_decode_with_kv_cache(
                *(call.q, (call.k_cache, call.v_cache), space, table, lengths, max_k),
                bmm1_scale=call.softmax_scale,
                window_left=window_left(call.case),
                sinks=call.sinks,
                kv_layout="NHD",
            )

        return run
