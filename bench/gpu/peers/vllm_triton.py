"""vLLM's unified Triton kernel: pages, windows, sinks; a variant of it takes different K and V dimensions."""

import importlib

from ..cases import Case
from ..inputs import Call, table_without_holes
from .peer import Peer, lacks_tier_or_dtype, longest, not_importable, window_left

MODULE = "vllm.v1.attention.ops.triton_unified_attention"
DIFFKV_MODULE = "vllm.v1.attention.ops.triton_unified_attention_diffkv"


class VllmTriton(Peer):
    name = "vLLM Triton"
    counts_sinks = True

    def lacks(self, case: Case) -> str | None:
        return lacks_tier_or_dtype(case) or not_importable(_module(case))

    def prepare(self, call: Call):
        case, (max_q, max_k) = call.case, longest(call.case)
        module = importlib.import_module(_module(case))
        left = window_left(case)
        window = (left, 0) if left >= 0 else (-1, -1)
        sinks = None if call.sinks is None else call.sinks.to(call.q.dtype)
        common = (call.q, call.k_cache, call.v_cache, call.out, call.cu_seqlens_q)
        table = table_without_holes(call)
        if module.__name__ == DIFFKV_MODULE:

            def run():
                module.unified_attention_diffkv(
                    *common,
                    *(call.seqlens_k, call.softmax_scale, True, window, table, 0.0),
                    max_seqlen_q=max_q,
                    sinks=sinks,
                )
                return call.out
        else:

            def run():
                module.unified_attention(
                    *common,
                    max_seqlen_q=max_q,
                    seqused_k=call.seqlens_k,
                    max_seqlen_k=max_k,
                    softmax_scale=call.softmax_scale,
                    causal=True,
                    window_size=window,
                    block_table=table,
                    softcap=0.0,
                    q_descale=None,
                    k_descale=None,
                    v_descale=None,
                    sinks=sinks,
                )
                return call.out

        return run


def _module(case: Case) -> str:
    return MODULE if case.layer.head_dim == case.layer.v_head_dim else DIFFKV_MODULE
