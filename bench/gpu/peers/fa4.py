"""FlashAttention-4 (CuTe DSL): pages, windows, sinks, any of our head dimensions."""

from ..cases import Case
from ..inputs import Call, table_without_holes
from .peer import Peer, lacks_tier_or_dtype, longest, not_importable, window_left


class Fa4(Peer):
    name = "fa4"
    counts_sinks = True

    def lacks(self, case: Case) -> str | None:
        return lacks_tier_or_dtype(case) or not_importable("flash_attn.cute.interface")

    def prepare(self, call: Call):
        from flash_attn.cute.interface import flash_attn_varlen_func

        max_q, _ = longest(call.case)
        table, left = table_without_holes(call), window_left(call.case)
        sinks = None if call.sinks is None else call.sinks.to(call.q.dtype)

        def run():
            result = flash_attn_varlen_func(
                call.q,
                call.k_cache,
                call.v_cache,
                cu_seqlens_q=call.cu_seqlens_q,
                seqused_k=call.seqlens_k,
                max_seqlen_q=max_q,
                page_table=table,
                softmax_scale=call.softmax_scale,
                causal=True,
                window_size=(left, 0) if left >= 0 else (None, None),
                learnable_sink=sinks,
                num_splits=1,
                return_lse=True,
            )
            return result[0]

        return run
