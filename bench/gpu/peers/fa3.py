"""FlashAttention-3 in the build that vLLM ships: pages, windows and sinks; 192/128 only without sinks."""

import importlib.util
from pathlib import Path

import torch

from ..cases import Case
from ..inputs import Call, table_without_holes
from .peer import Peer, lacks_tier_or_dtype, longest, window_left

HEAD_DIMS = {(64, 64), (128, 128), (192, 128), (192, 192), (256, 256)}


class Fa3(Peer):
    name = "fa3 (vLLM)"
    counts_sinks = False  # the speed anchor: its sinks exclude 192/128, so no case gets them

    def lacks(self, case: Case) -> str | None:
        layer = case.layer
        if (layer.head_dim, layer.v_head_dim) not in HEAD_DIMS:
            return f"no kernel for head dimensions {layer.head_dim}/{layer.v_head_dim}"
        return lacks_tier_or_dtype(case) or _load()

    def prepare(self, call: Call):
        case, (max_q, max_k) = call.case, longest(call.case)
        fwd, table, left = torch.ops._vllm_fa3_C.fwd, table_without_holes(call), window_left(case)
        nones = (None,) * 8

        def run():
            return fwd(
                call.q,
                call.k_cache,
                call.v_cache,
                *(None, None, None, call.out),  # new K and V, their q_v, out
                *(call.cu_seqlens_q, None, None, None, call.seqlens_k),
                *(max_q, max_k, table),
                *nones,  # batch index, left padding, rotary tables and their lengths, scales of q, k and v
                *(call.softmax_scale, True, left, 0, 0.0, True),  # causal, window, softcap, rotary interleaved
                *(None, 0, None, 0, None, 1, 0, None),  # schedule, splits, packing, SM margin, sinks, context parallel
            )[0]

        return run


def _load() -> str | None:
    """Loads the library beside an installed vLLM; returns why not, or None."""
    try:
        spec = importlib.util.find_spec("vllm")
        if spec is None or not spec.submodule_search_locations:
            return "vllm is not installed"
        found = sorted(Path(spec.submodule_search_locations[0]).rglob("_vllm_fa3_C*.so"))
        if not found:
            return "this vllm has no _vllm_fa3_C library"
        torch.ops.load_library(str(found[0]))
    except Exception as error:  # a library built for another torch raises anything
        return f"_vllm_fa3_C does not load: {type(error).__name__}: {error}"
    return None
