"""Our backends as the benchmark runs them."""

import torch
from torch import Tensor

import swa_attn
from swa_attn import backends

from .cases import Case
from .inputs import Call
from .peers.peer import Peer

CACHE_DTYPES = {1: torch.float8_e4m3fn, 2: torch.bfloat16}


class OurBackend(Peer):
    """One backend of the package, called through the public ops with outputs given."""

    counts_sinks = True

    def __init__(self, name: str, device: str = "cuda"):
        self.name = name
        self._device = device

    def lacks(self, case: Case) -> str | None:
        layer = case.layer
        return backends.lacks(
            self.name,
            backends.Case(
                case.op,
                self.name,
                self._device,
                torch.bfloat16,
                CACHE_DTYPES[case.kv_bytes],
                case.page_size,
                layer.group_size,
                layer.head_dim,
                layer.v_head_dim,
            ),
        )

    def prepare(self, call: Call):
        where = call.k_cache, call.v_cache, call.block_table, call.seqlens_k
        if call.case.op == "decode":
            shape = len(call.case.seqs), call.q_len
            q, out, lse = (x.unflatten(0, shape) for x in (call.q, call.out, call.lse))

            def run() -> Tensor:
                with swa_attn.use_backend(self.name):
                    return swa_attn.decode(q, *where, **call.options, out=out, lse=lse)[0].flatten(0, 1)
        else:

            def run() -> Tensor:
                with swa_attn.use_backend(self.name):
                    cu = call.cu_seqlens_q
                    return swa_attn.prefill(call.q, *where, cu, **call.options, out=call.out, lse=call.lse)[0]

        return run
