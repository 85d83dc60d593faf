"""torch.nn.attention.varlen: FlashAttention-2 over contiguous keys, which are gathered untimed; no sinks."""

import inspect

import torch
import torch.nn.functional as F

from ..cases import Case
from ..inputs import Call, gathered
from .peer import Peer, lacks_tier_or_dtype, longest, not_importable, window_left


class Varlen(Peer):
    name = "torch varlen"
    counts_sinks = False

    def lacks(self, case: Case) -> str | None:
        missing = lacks_tier_or_dtype(case) or not_importable("torch.nn.attention.varlen")
        if missing:
            return missing
        from torch.nn.attention.varlen import varlen_attn

        if "window_size" not in inspect.signature(varlen_attn).parameters:
            return "varlen_attn of this torch has no windows"
        return None

    def prepare(self, call: Call):
        from torch.nn.attention.varlen import varlen_attn

        layer, (max_q, _) = call.case.layer, longest(call.case)
        k, v, spans = gathered(call)
        v = F.pad(v, (0, layer.head_dim - layer.v_head_dim))  # it wants equal head dimensions
        lengths = torch.tensor([0, *(len(span) for span in spans)], dtype=torch.int32, device=k.device)
        cu_k, max_k = lengths.cumsum(0).int(), max(len(span) for span in spans)
        more = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
        window = (window_left(call.case), 0)

        def run():
            out = varlen_attn(
                *(call.q, k, v, call.cu_seqlens_q, cu_k, max_q, max_k),
                scale=call.softmax_scale,
                window_size=window,
                **more,
            )
            return out[..., : layer.v_head_dim]

        return run
