"""FlexAttention, compiled: contiguous keys, gathered untimed; sinks are applied to its result, timed."""

import functools

import torch

from ..cases import Case
from ..inputs import Call, gathered
from .peer import Peer, lacks_tier_or_dtype, not_importable


@functools.lru_cache(maxsize=1)
def _compiled(case: Case):
    """Compiled anew for each case: dynamo gives up on a function that it had to compile too often."""
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()
    return torch.compile(flex_attention, dynamic=False)


@functools.lru_cache(maxsize=1)
def _mask(q_len: int, length: int, window: int, device: torch.device):
    """Which of `length` keys each of the last `q_len` positions sees."""
    from torch.nn.attention.flex_attention import create_block_mask

    offset = length - q_len

    def visible(batch, head, i, j):
        return (i + offset >= j) & (i + offset - j < window)

    return create_block_mask(visible, None, None, q_len, length, device=device)


class Flex(Peer):
    name = "flex"
    counts_sinks = True

    def lacks(self, case: Case) -> str | None:
        if len(set(case.seqs)) > 1:
            return "a batch of different lengths is not wired up for it here"
        return lacks_tier_or_dtype(case) or not_importable("torch.nn.attention.flex_attention")

    def prepare(self, call: Call):
        num_seqs, q_len = len(call.case.seqs), call.q_len
        k, v, spans = gathered(call)
        length = len(spans[0])
        mask = _mask(q_len, length, call.case.layer.window or length, call.q.device)

        def batched(x, tokens):  # [seqs * tokens, heads, dim] -> [seqs, heads, tokens, dim]
            return x.unflatten(0, (num_seqs, tokens)).transpose(1, 2)

        q, k, v = batched(call.q, q_len), batched(k, length).contiguous(), batched(v, length).contiguous()
        flex = _compiled(call.case)

        def run():
            options = dict(block_mask=mask, scale=call.softmax_scale, enable_gqa=True)
            if call.sinks is None:
                out = flex(q, k, v, **options)
            else:
                out, lse = flex(q, k, v, **options, return_lse=True)
                out = (out * torch.sigmoid(lse - call.sinks[None, :, None])[..., None]).to(q.dtype)
            return out.transpose(1, 2).flatten(0, 1)

        return run
