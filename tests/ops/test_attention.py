"""prefill and decode of every backend against the float64 oracle, on poisoned inputs."""

from dataclasses import replace

import pytest
import torch
from fitting import fit

import swa_attn
from swa_attn.testing import AttentionCase, assert_close_to_oracle, build

FP8 = torch.float8_e4m3fn
NAN = float("nan")
BASE = AttentionCase()
WINDOW_EDGES = [1, 2, 3, 4, 5, 7, 8, 9, 20, 21, 22, None]  # page_size 4, context 21: page, window and length edges


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


def check_prefill(backend, case):
    case = fit(case, backend)
    inputs = build(case)
    out, lse = swa_attn.prefill(*inputs.prefill_args, **inputs.options)
    assert out.dtype == case.dtype and lse.dtype == torch.float32
    assert_close_to_oracle(inputs, out, lse)


def check_decode(backend, case):
    inputs = build(fit(case, backend))
    out, lse = swa_attn.decode(*inputs.decode_args, **inputs.options)
    assert_close_to_oracle(inputs, out.flatten(0, 1), lse.flatten(0, 1))


@named([replace(BASE, window=w) for w in WINDOW_EDGES])
def test_prefill_window_edges(backend, case):
    check_prefill(backend, case)


@named([replace(BASE, seqs=((5, 21), (1, 1), (21, 21), (1, 30), (9, 9), (3, 17)), window=w) for w in (1, 8, 9, None)])
def test_prefill_ragged_batch_with_decodes_in_it(backend, case):
    check_prefill(backend, case)


@named([replace(BASE, seqs=((7, k),), window=8) for k in (7, 8, 9, 11, 12, 13, 16, 40)])
def test_prefill_lengths_around_pages_and_window(backend, case):
    check_prefill(backend, case)


@named([replace(BASE, seqs=((6, 90),), window=w, page_size=p) for p in (1, 3, 16, 64, 100) for w in (5, 70, None)])
def test_prefill_page_sizes(backend, case):
    check_prefill(backend, case)


@named(
    [
        replace(BASE, num_q_heads=q, num_kv_heads=kv, window=w)
        for (q, kv), w in zip(
            [(1, 1), (3, 1), (5, 1), (10, 2), (12, 2), (7, 1), (16, 1), (8, 8), (64, 1)], [8, None] * 5
        )
    ]
)
def test_prefill_group_sizes(backend, case):
    check_prefill(backend, case)


@named(
    [
        replace(BASE, head_dim=k, v_head_dim=v, num_q_heads=2, num_kv_heads=1, seqs=((3, 40),), window=17, sinks=True)
        for k, v in [(64, 64), (128, 128), (192, 128), (256, 256), (80, 80), (96, 32), (24, 112), (8, 8)]
    ]
)
def test_prefill_head_dims(backend, case):
    check_prefill(backend, case)


@named(
    [
        replace(BASE, dtype=d, cache_dtype=c, sinks=True, window=9, seqs=((6, 30), (1, 13)))
        for d, c in [
            (torch.float16, None),
            (torch.bfloat16, None),
            (torch.float32, FP8),
            (torch.float16, FP8),
            (torch.bfloat16, FP8),
        ]
    ]
)
def test_prefill_dtypes(backend, case):
    check_prefill(backend, case)


@named([replace(BASE, layout=x, host=h, window=9) for x in ("hnd", "packed", "padded", "skewed") for h in (0.0, 0.5)])
def test_prefill_layouts(backend, case):
    check_prefill(backend, case)


@named([replace(BASE, host=h, window=w, cache_dtype=c) for h in (0.5, 1.0) for w in (9, None) for c in (None, FP8)])
def test_prefill_host_pages(backend, case):
    check_prefill(backend, replace(case, seqs=((5, 21), (4, 33))))


@named(
    [replace(BASE, softcap=c, score_scale=s, sinks=k) for c in (2.0, 50.0) for s in (1.0, 1e4) for k in (False, True)]
)
def test_prefill_softcap_does_not_overflow(backend, case):
    check_prefill(backend, case)


@named([replace(BASE, score_scale=300.0, sinks=k) for k in (False, True)])
def test_prefill_peaked_softmax(backend, case):
    check_prefill(backend, case)


@named([replace(BASE, seqs=s) for s in [((0, 0),), ((0, 5),), ((0, 0), (3, 3), (0, 9), (2, 11)), ((1, 0), (2, 7))]])
def test_prefill_empty_sequences(backend, case):
    check_prefill(backend, case)


def test_no_sequences_and_no_tokens(backend):
    inputs = build(fit(replace(BASE, seqs=((2, 9),)), backend))
    none = torch.zeros(0, dtype=torch.int32)
    table = torch.zeros(0, 3, dtype=torch.int32)
    start = torch.zeros(1, dtype=torch.int32)
    out, lse = swa_attn.prefill(inputs.q[:0], inputs.k_cache, inputs.v_cache, table, none, start, window=8)
    assert out.shape == (0, 4, inputs.case.v_head_dim) and lse.shape == (0, 4)
    out, lse = swa_attn.decode(inputs.q[:0, None], inputs.k_cache, inputs.v_cache, table, none, window=8)
    assert out.shape == (0, 1, 4, inputs.case.v_head_dim) and lse.shape == (0, 1, 4)


@pytest.mark.parametrize("sinks, window", [(False, 8), (True, 8), (True, None)])
def test_empty_rows_are_zero_with_lse_minus_infinity(backend, sinks, window):
    """More queries than context: the first ones sit at negative positions and see nothing."""
    case = replace(BASE, seqs=((4, 2), (4, 0)), sinks=sinks, window=window)
    inputs = build(fit(case, backend))
    for out, lse in (
        swa_attn.prefill(*inputs.prefill_args, **inputs.options),
        [x.flatten(0, 1) for x in swa_attn.decode(*inputs.decode_args, **inputs.options)],
    ):
        empty = [0, 1, 4, 5, 6, 7]
        assert (out[empty] == 0).all()
        assert (lse[empty] == float("-inf")).all()
        assert torch.isfinite(lse[[2, 3]]).all()
        assert_close_to_oracle(inputs, out, lse)


@named(
    [replace(BASE, seqs=((t, k), (t, 40)), window=w) for t in (1, 2, 8) for k in (8, 9, 10) for w in (1, 8, 9, None)]
)
def test_decode(backend, case):
    check_decode(backend, case)


@named(
    [
        replace(BASE, seqs=((1, 700), (1, 256), (1, 257), (1, 3)), page_size=p, window=w, sinks=s)
        for p, w, s in [(16, None, True), (16, 600, False), (48, None, False), (128, 300, True)]
    ]
)
def test_decode_long_ranges_are_split(backend, case):
    check_decode(backend, case)


@named(
    [
        replace(BASE, head_dim=k, v_head_dim=v, num_q_heads=q, num_kv_heads=1, seqs=((2, 40),), window=17, sinks=True)
        for k, v, q in [(64, 64, 8), (128, 128, 5), (192, 128, 8), (256, 256, 2), (80, 80, 3)]
    ]
)
def test_decode_head_dims(backend, case):
    check_decode(backend, case)


@named(
    [
        replace(BASE, seqs=((1, 21), (1, 33)), layout=x, host=0.5, cache_dtype=c)
        for x in ("hnd", "packed")
        for c in (None, FP8)
    ]
)
def test_decode_layouts_tiers_and_fp8(backend, case):
    check_decode(backend, case)


@pytest.mark.parametrize("tight", [True, False], ids=["tight", "garbage-columns"])
@pytest.mark.parametrize("sink", [-80.0, 0.0, 80.0, float("-inf")])
def test_sinks_are_counted_once(backend, sink, tight):
    """A sink of -inf is no sink; one of +80 takes all the mass. Long enough for splits and several tiles."""
    inputs = build(fit(replace(BASE, seqs=((1, 600), (1, 5)), window=None, page_size=16), backend), tight=tight)
    inputs.options["sinks"] = torch.full((4,), sink)
    out, lse = swa_attn.decode(*inputs.decode_args, **inputs.options)
    assert_close_to_oracle(inputs, out.flatten(0, 1), lse.flatten(0, 1))
    out, lse = swa_attn.prefill(*inputs.prefill_args, **inputs.options)
    assert_close_to_oracle(inputs, out, lse)
    if sink == float("-inf"):
        bare, _ = swa_attn.prefill(*inputs.prefill_args, **{**inputs.options, "sinks": None})
        assert torch.equal(bare, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sinks_of_any_float_type(backend, dtype):
    inputs = build(fit(replace(BASE, sinks=True), backend))
    inputs.options["sinks"] = inputs.options["sinks"].to(dtype)
    out, lse = swa_attn.prefill(*inputs.prefill_args, **inputs.options)
    assert_close_to_oracle(inputs, out, lse)


def test_out_variant_writes_in_place_and_returns_it(backend):
    inputs = build(fit(BASE, backend))
    case = inputs.case
    out, lse = torch.full((5, 4, case.v_head_dim), NAN, dtype=case.dtype), torch.full((5, 4), NAN)
    got = swa_attn.prefill(*inputs.prefill_args, **inputs.options, out=out, lse=lse)
    assert got[0] is out and got[1] is lse
    assert_close_to_oracle(inputs, out, lse)


def test_strided_queries_and_outputs(backend):
    """q as a slice of a fused qkv projection, out as a slice of a wider buffer."""
    inputs = build(fit(BASE, backend))
    case = inputs.case
    wide = torch.full((5, 9, case.head_dim), NAN, dtype=case.dtype)
    wide[:, 2:6] = inputs.q
    inputs.q = wide[:, 2:6]
    dim = case.v_head_dim
    out = torch.full((5, 4, dim + 8), NAN, dtype=case.dtype)
    _, lse = swa_attn.prefill(*inputs.prefill_args, **inputs.options, out=out[..., :dim], lse=torch.empty(5, 4))
    assert_close_to_oracle(inputs, out[..., :dim], lse)
    assert out[..., dim:].isnan().all()


@pytest.mark.parametrize("cache_dtype", [torch.float16, FP8], ids=str)
def test_pools_beyond_two_to_the_31_elements(backend, cache_dtype):
    """The last pages of a pool whose element offsets do not fit 32 bits (the memory is reserved, hardly touched)."""
    torch.utils.deterministic.fill_uninitialized_memory = False  # filling it would really take 4 GiB
    page_size, heads, dim = 64, 2, 64
    num_pages = 2**31 // (page_size * heads * dim) + 8
    case = replace(BASE, seqs=((3, 150),), window=100, page_size=64, head_dim=64, v_head_dim=64, dtype=torch.float16)
    inputs = build(replace(case, cache_dtype=None if cache_dtype == torch.float16 else cache_dtype))
    low = inputs.k_cache.shape[0]
    for name in ("k_cache", "v_cache"):
        pool = torch.empty(num_pages, page_size, heads, dim, dtype=cache_dtype)
        pool[-low:] = getattr(inputs, name)
        setattr(inputs, name, pool)
    used = (inputs.block_table >= 0) & (inputs.block_table < low)
    inputs.block_table[used] += num_pages - low
    for name in ("k_scale", "v_scale"):
        if name in inputs.options:
            scale = torch.full((num_pages, heads), float("nan"))
            scale[-low:] = inputs.options[name]
            inputs.options[name] = scale
    out, lse = swa_attn.prefill(*inputs.prefill_args, **inputs.options)
    assert_close_to_oracle(inputs, out, lse)


@pytest.mark.parametrize("entry", ["negative", "too large"])
def test_a_page_outside_the_pools_is_an_error_on_the_cpu(backend, entry):
    if backend in ("triton", "cuda", "emulated"):
        pytest.skip("a GPU kernel does not look at values to report them")
    inputs = build(BASE)
    bad = -1 if entry == "negative" else inputs.k_cache.shape[0]
    inputs.block_table[0, 4] = bad
    with pytest.raises(IndexError, match=str(bad)):
        swa_attn.prefill(*inputs.prefill_args, **inputs.options)
