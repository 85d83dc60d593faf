"""The reference against an independent dense computation: a full score matrix and a mask, in float64."""

import pytest
import torch

from swa_attn import reference
from swa_attn.testing import AttentionCase, build, oracle


def dense(inputs):
    """Attention over a dense [q, k] score matrix per sequence and head, from the pages laid out flat."""
    case, options = inputs.case, inputs.options
    outs, lses = [], []
    for seq, (q_len, seqlen_k) in enumerate(case.seqs):
        first = int(inputs.cu_seqlens_q[seq])
        q = inputs.q[first : first + q_len].double()
        k = torch.zeros(seqlen_k, case.num_kv_heads, case.head_dim, dtype=torch.float64)
        v = torch.zeros(seqlen_k, case.num_kv_heads, case.v_head_dim, dtype=torch.float64)
        for position in range(seqlen_k):
            page = int(inputs.block_table[seq, position // case.page_size])
            if 0 <= page < inputs.k_cache.shape[0]:
                k[position] = inputs.k_cache[page, position % case.page_size].double().nan_to_num()
                v[position] = inputs.v_cache[page, position % case.page_size].double().nan_to_num()
        group = case.num_q_heads // case.num_kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * options["softmax_scale"]
        if case.softcap:
            scores = case.softcap * torch.tanh(scores / case.softcap)
        distance = torch.arange(seqlen_k - q_len, seqlen_k)[:, None] - torch.arange(seqlen_k)[None, :]
        visible = distance >= 0
        if case.window is not None:
            visible &= distance < case.window
        scores = scores.masked_fill(~visible, float("-inf"))
        lses.append(torch.logsumexp(scores, -1).T)
        if case.sinks:
            column = options["sinks"].double()[:, None, None].expand(-1, q_len, 1)
            scores = torch.cat([scores, column], -1)
        weights = scores.softmax(-1)[..., :seqlen_k]
        outs.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(outs), torch.cat(lses)


@pytest.mark.parametrize("window", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("sinks, softcap", [(False, 0.0), (True, 0.0), (True, 5.0)])
def test_reference_equals_dense_attention(window, sinks, softcap):
    inputs = build(AttentionCase(seqs=((5, 21), (1, 9), (12, 12)), window=window, sinks=sinks, softcap=softcap))
    out, lse = oracle(inputs)
    expected_out, expected_lse = dense(inputs)
    torch.testing.assert_close(out, expected_out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-12, atol=1e-12)


def test_window_counts_the_query_itself():
    assert list(reference.visible_range(5, 10, 1)) == [5]
    assert list(reference.visible_range(5, 10, 3)) == [3, 4, 5]
    assert list(reference.visible_range(5, 10, -1)) == [0, 1, 2, 3, 4, 5]
    assert list(reference.visible_range(-1, 10, 3)) == []


def test_locate_page():
    assert reference.locate_page(0, 3, 2) == (False, 0)
    assert reference.locate_page(2, 3, 2) == (False, 2)
    assert reference.locate_page(3, 3, 2) == (True, 0)
    assert reference.locate_page(4, 3, 2) == (True, 1)
    for absent in (-1, 5, 2**31 - 1):
        with pytest.raises(IndexError, match=f"page id {absent} "):
            reference.locate_page(absent, 3, 2)
