"""Positions, rows and numbers at the ends of what 32 bits hold: right, or refused."""

import pytest
import torch

import swa_attn
from swa_attn import backends
from swa_attn.testing import AttentionCase, Inputs, assert_close_to_oracle

LAST = 2**31 - 1  # the longest sequence whose length is an int32
PAGE_SIZE = 1 << 16


def far_inputs(length, tokens, window, page_size=PAGE_SIZE, softcap=0.0):
    """A sequence whose last two pages are there, with numbers in the slots around their ends."""
    generator = torch.Generator().manual_seed(length % 1000 + tokens)
    pools = torch.zeros(2, 3, page_size, 1, 64, dtype=torch.bfloat16)
    for slots in (slice(0, 1300), slice(-1300, None)):
        x = pools[:, :, slots]
        x.copy_(torch.randn(x.shape, generator=generator))
    table = torch.full((1, -(-length // page_size)), -1, dtype=torch.int32)
    table[0, -1], table[0, -2] = 0, 2
    case = AttentionCase(seqs=((tokens, length),), window=window, page_size=page_size, num_q_heads=2, num_kv_heads=1)
    q = torch.randn(tokens, 2, 64, generator=generator).bfloat16()
    where = torch.tensor([length], dtype=torch.int32), torch.tensor([0, tokens], dtype=torch.int32)
    options = {"softmax_scale": 0.125, "window": window, "softcap": softcap}
    return Inputs(case, q, *pools, table, *where, options)


@pytest.mark.parametrize(
    "length, tokens, window",
    [
        (LAST, 5, 17),
        (LAST, 1, 520),  # decoded in splits
        (LAST - 1, 1, 128),
        (LAST - PAGE_SIZE, 3, 1),
        (LAST - PAGE_SIZE + 3, 2, 70),
        (2**30 + 1, 2, 70),
        (2**30, 2, 70),
    ],
)
def test_positions_up_to_the_last_one(backend, length, tokens, window):
    inputs = far_inputs(length, tokens, window)
    if backend in ("cuda", "emulated") and length > 2**30:
        with pytest.raises(NotImplementedError, match=r"positions up to 2\*\*30"):
            swa_attn.prefill(*inputs.prefill_args, **inputs.options)
        return
    assert_close_to_oracle(inputs, *swa_attn.prefill(*inputs.prefill_args, **inputs.options))
    out, lse = swa_attn.decode(*inputs.decode_args, **inputs.options)
    assert_close_to_oracle(inputs, out[0], lse[0])


def test_a_block_table_may_reach_beyond_the_last_position(backend):
    """Pages x page size has more bits than an int32; the lengths say what is there."""
    inputs = far_inputs(3 * PAGE_SIZE, 2, 100)
    inputs.block_table = torch.nn.functional.pad(inputs.block_table, (0, 2**16 - 3), value=-1)
    assert inputs.block_table.shape[1] * PAGE_SIZE == 2**32
    if backend in ("cuda", "emulated"):
        with pytest.raises(NotImplementedError, match=r"positions up to 2\*\*30"):
            swa_attn.decode(*inputs.decode_args, **inputs.options)
        return
    out, lse = swa_attn.decode(*inputs.decode_args, **inputs.options)
    assert_close_to_oracle(inputs, out[0], lse[0])
    assert_close_to_oracle(inputs, *swa_attn.prefill(*inputs.prefill_args, **inputs.options))


@pytest.mark.parametrize("scale", [0.0, -0.125])
def test_scales_that_are_not_positive(backend, scale):
    """0 weighs all keys alike, a negative one turns the order around."""
    inputs = far_inputs(3 * PAGE_SIZE, 3, 70)
    inputs.options["softmax_scale"] = scale
    assert_close_to_oracle(inputs, *swa_attn.prefill(*inputs.prefill_args, **inputs.options))
    out, lse = swa_attn.decode(*inputs.decode_args, **inputs.options)
    assert_close_to_oracle(inputs, out.flatten(0, 1), lse.flatten(0, 1))


@pytest.mark.parametrize("softcap", [2.0**14, 2.0**20])
def test_softcaps_far_above_the_scores(backend, softcap):
    inputs = far_inputs(3 * PAGE_SIZE, 3, 70, softcap=softcap)
    if backend in ("cuda", "emulated") and softcap > backends.MAX_CUDA_SOFTCAP:
        with pytest.raises(NotImplementedError, match="softcap of at most 16384"):
            swa_attn.prefill(*inputs.prefill_args, **inputs.options)
        return
    assert_close_to_oracle(inputs, *swa_attn.prefill(*inputs.prefill_args, **inputs.options))


def test_many_rows_are_refused_where_they_are_counted_in_32_bits():
    case = backends.Case("prefill", "triton", "cuda", torch.bfloat16, torch.bfloat16, 16, 8, 128, 128, many_rows=True)
    assert "2**30 rows" in case.lacks_in_cuda()
    pytest.importorskip("triton")
    assert "2**30 rows" in backends.lacks("triton", case)
    x = torch.zeros(1, 1, 1, 64).expand(2**27, 2, 8, 64)  # decode of 2**28 rows x 8 heads, without the memory
    pool = torch.zeros(1, 16, 2, 64)
    with swa_attn.use_backend("triton"), pytest.raises(NotImplementedError, match=r"2\*\*30 rows"):
        backends.choose("decode", x, pool)


def test_pools_of_more_pages_than_page_ids_are_refused():
    pool = torch.zeros(1, 1, 1, 8).expand(2**31, 1, 1, 8)
    table, length = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"swa_attn.decode: k_cache must be of fewer than 2\*\*31 pages"):
        swa_attn.decode(torch.zeros(1, 1, 1, 8), pool, pool, table, length)
