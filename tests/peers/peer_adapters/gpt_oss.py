"""gpt-oss's attention function on our ops; its test sits beside its kernel, in the same module."""

import torch

from . import OutsideContract, Pages, attend


def attention(q, k, v, sinks, sm_scale, bandwidth, start_q):
    """`q` `[num_seqs, q_len, Hkv, group, D]`, queries from position `start_q` on; k and v `[num_seqs, seqlen, Hkv, D]`."""
    count, q_len = q.shape[:2]
    length = int(start_q) + q_len
    if length > k.shape[1]:
        raise OutsideContract("queries at positions beyond the last key")
    pages = Pages.dense(k, v, torch.full((count,), length))
    rows = torch.arange(count + 1) * q_len
    out, _ = attend(q.flatten(2, 3).flatten(0, 1), rows, pages, window=bandwidth or None, scale=sm_scale, sinks=sinks)
    return out.unflatten(0, (count, q_len)).flatten(2)


def install(module, checkout) -> None:
    """Nothing is imported from elsewhere; `replace_in` puts `attention` into the module of its test."""


REPLACED = {"attention": attention}
