"""Kinds of cases that other libraries' tests have: shared and broadcast pages, odd head dims, far more queries than keys."""

from dataclasses import replace

import pytest
import torch
from fitting import fit

import swa_attn
from swa_attn.testing import AttentionCase, assert_close_to_oracle, build

BASE = AttentionCase()
NEG_INF = float("-inf")


def check(inputs):
    out, lse = swa_attn.prefill(*inputs.prefill_args, **inputs.options)
    assert_close_to_oracle(inputs, out, lse)
    return out, lse


@pytest.mark.parametrize("seqs", [((70, 1),), ((36, 3), (2, 9))], ids=str)
@pytest.mark.parametrize("window, sinks", [(2, True), (None, False)])
def test_far_more_queries_than_keys(backend, seqs, window, sinks):
    """Whole tiles of queries see nothing, and the last rows of the same sequence see a few keys."""
    inputs = build(fit(replace(BASE, seqs=seqs, window=window, sinks=sinks), backend))
    out, lse = check(inputs)
    empty = seqs[0][0] - seqs[0][1]
    assert (out[:empty] == 0).all() and (lse[:empty] == NEG_INF).all()
    assert lse[empty : seqs[0][0]].isfinite().all()


@pytest.mark.parametrize("dim", [1, 59, 111])
def test_odd_head_dims(backend, dim):
    """No vector width divides them, and rows start at any alignment."""
    case = replace(BASE, head_dim=dim, v_head_dim=dim, seqs=((3, 21), (3, 9)), dtype=torch.float16)
    inputs = build(fit(case, backend))
    check(inputs)
    out, lse = swa_attn.decode(*inputs.decode_args, **inputs.options)
    assert_close_to_oracle(inputs, out.flatten(0, 1), lse.flatten(0, 1))


@pytest.mark.parametrize("window", [5, None])
def test_a_table_of_a_thousand_pages_of_one_token(backend, window):
    check(build(fit(replace(BASE, seqs=((2, 1000), (1, 3)), window=window, page_size=1), backend)))


def test_a_page_that_is_longer_than_every_sequence(backend):
    """Keys that are not paged at all: each sequence is one page, and the table has one column."""
    inputs = build(fit(replace(BASE, seqs=((5, 200), (1, 1), (9, 64)), window=70, page_size=256), backend))
    assert inputs.block_table.shape[1] == 1
    check(inputs)


@pytest.mark.parametrize("window", [6, None])
def test_sequences_that_share_their_pages(backend, window):
    """A shared prefix: three tables point at the same pages, at different lengths of it."""
    inputs = build(fit(replace(BASE, seqs=((21, 21), (3, 3), (2, 2)), window=window), backend))
    lengths = torch.tensor([21, 14, 9], dtype=torch.int32)
    inputs.block_table = inputs.block_table[:1].expand(3, -1).contiguous()
    inputs.seqlens_k = lengths
    check(inputs)


def test_keys_and_values_broadcast_over_heads(backend):
    """One KV head, expanded: the head stride is 0."""
    inputs = build(fit(replace(BASE, seqs=((5, 21),), num_kv_heads=1), backend))
    alone = swa_attn.prefill(*inputs.prefill_args, **inputs.options)
    inputs.k_cache, inputs.v_cache = (x.expand(-1, -1, 4, -1) for x in (inputs.k_cache, inputs.v_cache))
    assert inputs.k_cache.stride(2) == 0
    out, _ = check(inputs)
    torch.testing.assert_close(out, alone[0])


def test_decode_of_queries_inside_a_fused_projection(backend):
    inputs = build(fit(replace(BASE, seqs=((1, 21), (1, 9), (1, 30))), backend))
    case = inputs.case
    fused = torch.full((3, 1, 8, case.head_dim), float("nan"), dtype=case.dtype)
    fused[:, 0, :4] = inputs.q
    out, lse = swa_attn.decode(fused[:, :, :4], *inputs.decode_args[1:], **inputs.options)
    assert_close_to_oracle(inputs, out.flatten(0, 1), lse.flatten(0, 1))


@pytest.mark.parametrize("magnitude", [1e2, 1e4, 3e5])
def test_scores_that_are_all_far_below_zero(backend, magnitude):
    """A running maximum that starts at any finite number, or a mask of one, would take the weight of every real key."""
    inputs = build(fit(replace(BASE, seqs=((5, 21), (1, 1)), window=8), backend))
    dim = inputs.case.head_dim
    inputs.q = torch.full_like(inputs.q, (magnitude / dim) ** 0.5)
    visible = ~inputs.k_cache.isnan()
    inputs.k_cache = torch.where(visible, -inputs.q.flatten()[0], inputs.k_cache)
    inputs.options["softmax_scale"] = 1.0
    _, lse = check(inputs)
    assert (lse < -magnitude * 0.9).all()


@pytest.mark.parametrize("parts", [17, 133])
def test_merging_many_partials(backend, parts):
    """Folded one by one, with empty ones among them: as the log-sum-exp over all of them at once."""
    generator = torch.Generator().manual_seed(0)
    outs = torch.randn(parts, 3, 2, 16, generator=generator)
    lses = torch.randn(parts, 3, 2, generator=generator) * 4
    lses[::3, 0], lses[:, 1, 1] = NEG_INF, NEG_INF
    out, lse = outs[0], lses[0]
    for other_out, other_lse in zip(outs[1:], lses[1:]):
        out, lse = swa_attn.merge_states(out, lse, other_out, other_lse)
    exact = lses.double().logsumexp(0)
    weights = torch.exp(lses.double() - torch.where(exact == NEG_INF, 0.0, exact))
    torch.testing.assert_close(lse.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.double(), (weights[..., None] * outs).sum(0), rtol=1e-5, atol=1e-5)
