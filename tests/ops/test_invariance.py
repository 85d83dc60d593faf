"""What a row's bits may depend on: its query, its visible keys and the configuration; and agreement between paths."""

from dataclasses import replace

import pytest
import torch
from fitting import fit

import swa_attn
from swa_attn.testing import AttentionCase, assert_close_to_oracle, build
from swa_attn.testing.compare import oracle

CASE = AttentionCase(
    seqs=((12, 60), (3, 25), (1, 41)), window=10, page_size=4, num_q_heads=6, num_kv_heads=2, sinks=True
)
LONG = replace(CASE, seqs=((6, 400), (2, 131)), window=None, page_size=16)
both = pytest.mark.parametrize("case", [CASE, replace(CASE, window=None), LONG], ids=str)


def run(inputs, rows=slice(None)):
    """prefill of a subset of the sequences of a batch."""
    seqs = range(len(inputs.case.seqs))[rows]
    bounds = inputs.cu_seqlens_q.tolist()
    q = torch.cat([inputs.q[bounds[s] : bounds[s + 1]] for s in seqs])
    lengths = torch.tensor([bounds[s + 1] - bounds[s] for s in seqs])
    cu = torch.tensor([0, *lengths.cumsum(0).tolist()], dtype=torch.int32)
    table, seqlens = inputs.block_table[list(seqs)], inputs.seqlens_k[list(seqs)]
    return swa_attn.prefill(q, inputs.k_cache, inputs.v_cache, table, seqlens, cu, **inputs.options)


def single_tokens(inputs, seq, op):
    """Every new token of one sequence as a call of its own, by prefill or decode."""
    first, last = inputs.cu_seqlens_q.tolist()[seq : seq + 2]
    num_new, seqlen = last - first, int(inputs.seqlens_k[seq])
    table = inputs.block_table[seq : seq + 1]
    outs = []
    for i in range(num_new):
        length = torch.tensor([seqlen - num_new + i + 1], dtype=torch.int32)
        q = inputs.q[first + i : first + i + 1]
        if op == "decode":
            out, lse = swa_attn.decode(q[None], inputs.k_cache, inputs.v_cache, table, length, **inputs.options)
            outs.append((out[0], lse[0]))
        else:
            cu = torch.tensor([0, 1], dtype=torch.int32)
            outs.append(swa_attn.prefill(q, inputs.k_cache, inputs.v_cache, table, length, cu, **inputs.options))
    return torch.cat([o for o, _ in outs]), torch.cat([x for _, x in outs])


@both
def test_batch_does_not_change_a_row(backend, case):
    case = fit(case, backend)
    inputs = build(case)
    out, lse = run(inputs)
    bounds = inputs.cu_seqlens_q.tolist()
    for seq in range(len(case.seqs)):
        alone = run(inputs, slice(seq, seq + 1))
        assert torch.equal(alone[0], out[bounds[seq] : bounds[seq + 1]])
        assert torch.equal(alone[1], lse[bounds[seq] : bounds[seq + 1]])


NAN, INF = float("nan"), float("inf")
FP8 = torch.float8_e4m3fn
# The rows of a sequence share a tile, and only one token sees the first, and one the last of its keys.
NARROW = AttentionCase(seqs=((8, 21), (8, 30)), window=4, page_size=4, sinks=True)
SPLIT = replace(NARROW, seqs=((4, 520),), window=514, page_size=16)
FEW = replace(NARROW, seqs=((4, 21), (4, 30)), head_dim=64, v_head_dim=64)  # eight rows: the CPU reads K where it lies
ways = pytest.mark.parametrize(
    "op, case",
    [("prefill", NARROW), ("decode", NARROW), ("decode", SPLIT), ("decode", FEW)],
    ids=["prefill", "decode", "split", "few"],
)
specials = pytest.mark.parametrize(
    "dtype, cache_dtype, value",
    [(dtype, dtype, x) for dtype in (torch.float32, torch.float16, torch.bfloat16) for x in (NAN, INF, -INF)]
    + [(torch.float16, FP8, NAN), (torch.bfloat16, FP8, NAN)],  # float8_e4m3fn has no infinity
    ids=lambda x: str(x).removeprefix("torch."),
)


def attend(inputs, op):
    """out [tokens, Hq, Dv] and lse [tokens, Hq] by prefill or decode."""
    if op == "prefill":
        return swa_attn.prefill(*inputs.prefill_args, **inputs.options)
    out, lse = swa_attn.decode(*inputs.decode_args, **inputs.options)
    return out.flatten(0, 1), lse.flatten(0, 1)


def slot(inputs, position):
    """Where a key of the first sequence lies."""
    page_size = inputs.case.page_size
    return int(inputs.block_table[0, position // page_size]), position % page_size


def who_sees(case, position):
    """Which query tokens see a key of the first sequence, bool [tokens]."""
    q_len, seqlen = case.seqs[0]
    distance = torch.arange(seqlen - q_len, seqlen) - position
    others = torch.zeros(sum(q for q, _ in case.seqs[1:]), dtype=torch.bool)
    return torch.cat([(distance >= 0) & (distance < case.window), others])


def edges(case):
    """The oldest key that a token of the first sequence sees, one in the middle, and the newest."""
    q_len, seqlen = case.seqs[0]
    return seqlen - q_len - case.window + 1, seqlen - q_len // 2, seqlen - 1


@ways
@specials
def test_a_special_value_reaches_only_the_element_of_the_rows_that_see_it(backend, op, case, dtype, cache_dtype, value):
    case = fit(replace(case, dtype=dtype, cache_dtype=cache_dtype), backend)
    before = attend(build(case), op)
    assert all(torch.isfinite(x).all() for x in before)
    for position in edges(case):
        inputs = build(case)
        inputs.v_cache[slot(inputs, position)][1, 3] = value
        out, lse = attend(inputs, op)
        reached = torch.zeros(out.shape, dtype=torch.bool)
        reached[who_sees(case, position), case.num_q_heads // case.num_kv_heads :, 3] = True
        assert reached.any() and not reached[..., 3].all()
        assert torch.equal(out[~reached], before[0][~reached]) and torch.equal(lse, before[1])
        assert (torch.isnan(out[reached]) if value != value else out[reached] == value).all()


@ways
@specials
def test_a_special_key_reaches_only_the_rows_that_see_it(backend, op, case, dtype, cache_dtype, value):
    case = fit(replace(case, dtype=dtype, cache_dtype=cache_dtype), backend)
    before = attend(build(case), op)
    for position in edges(case):
        inputs = build(case)
        inputs.k_cache[slot(inputs, position)] = value
        sees = who_sees(case, position)
        for got, expected in zip(attend(inputs, op), before, strict=True):
            assert torch.equal(got[~sees], expected[~sees])
            assert torch.isnan(got[sees]).all()


@ways
def test_rows_see_their_own_special_values(backend, op, case):
    """Of one element: the first token sees infinity, the last one NaN; neither sees the other's."""
    case = fit(case, backend)
    inputs = build(case)
    expected = attend(inputs, op)[0]
    oldest, _, newest = edges(case)
    inputs.v_cache[slot(inputs, oldest)][..., 3] = INF
    inputs.v_cache[slot(inputs, newest)][..., 3] = NAN
    q_len = case.seqs[0][0]
    expected[0, :, 3] = INF
    expected[q_len - 1, :, 3] = NAN
    assert torch.allclose(attend(inputs, op)[0], expected, rtol=0, atol=0, equal_nan=True)


@ways
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_special_query_reaches_only_its_own_row(backend, op, case, value):
    case = fit(case, backend)
    inputs = build(case)
    before = attend(inputs, op)
    inputs.q[3, 1] = value
    for got, expected in zip(attend(inputs, op), before, strict=True):
        assert torch.isnan(got[3, 1]).all()
        expected[3, 1] = got[3, 1] = 0
        assert torch.equal(got, expected)


@both
def test_chunking_does_not_change_a_row(backend, case):
    case = fit(case, backend)
    inputs = build(case)
    out, lse = run(inputs, slice(0, 1))
    pieces = single_tokens(inputs, 0, "prefill")
    assert torch.equal(pieces[0], out)
    assert torch.equal(pieces[1], lse)


@both
def test_page_ids_do_not_change_a_row(backend, case):
    case = fit(case, backend)
    assert torch.equal(run(build(case, page_order_seed=1))[0], run(build(case, page_order_seed=2))[0])


@both
def test_tier_does_not_change_a_row(backend, case):
    case = fit(case, backend)
    expected = run(build(case))
    for host in (0.4, 1.0):
        got = run(build(replace(case, host=host)))
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@both
def test_garbage_columns_do_not_change_a_row(backend, case):
    case = fit(case, backend)
    assert torch.equal(run(build(case, tight=True))[0], run(build(case, tight=False))[0])


@pytest.mark.parametrize("window, dim", [(1, 16), (7, 16), (8, 16), (9, 16), (None, 16), (8, 64), (None, 64)])
def test_prefill_equals_decode_token_by_token(backend, window, dim):
    """Across the window's edge: contexts from below W to beyond it. One token's rows may go another way than twelve's."""
    inputs = build(fit(replace(CASE, seqs=((12, 14),), window=window, head_dim=dim, v_head_dim=dim), backend))
    out, lse = run(inputs)
    got = single_tokens(inputs, 0, "decode")
    if backend in ("triton", "cuda", "emulated"):  # their decode splits the keys, so the sums are ordered differently
        assert_close_to_oracle(inputs, *got)
    else:
        assert torch.equal(got[0], out) and torch.equal(got[1], lse)


@pytest.mark.parametrize("q_len", range(1, 9))
def test_verify_tokens_equal_single_decodes(backend, q_len):
    """Each of q_len speculative tokens has its own window and position."""
    inputs = build(fit(replace(CASE, seqs=((q_len, 14),), window=8), backend))
    out, lse = swa_attn.decode(*inputs.decode_args, **inputs.options)
    got = single_tokens(inputs, 0, "decode")
    assert torch.equal(got[0], out[0]) and torch.equal(got[1], lse[0])


@pytest.mark.parametrize("sinks", [False, True])
def test_halves_merge_to_the_whole(backend, sinks):
    """Keys cut in two at a position, attended apart, merged: equal to attending to all of them."""
    inputs = build(fit(replace(CASE, seqs=((1, 48),), window=None, page_size=8, sinks=sinks), backend))
    options = {**inputs.options, "sinks": None}
    q, k, v, table, _ = inputs.decode_args
    first = swa_attn.decode(q, k, v, table, torch.tensor([24], dtype=torch.int32), **options)
    second = swa_attn.decode(q, k, v, table[:, 3:].contiguous(), torch.tensor([24], dtype=torch.int32), **options)
    out, lse = swa_attn.merge_states(*first, *second, sinks=inputs.options.get("sinks"))
    assert_close_to_oracle(inputs, out.flatten(0, 1), lse.flatten(0, 1))


def test_window_at_least_the_context_equals_no_window(backend):
    inputs = build(fit(replace(CASE, window=None), backend))
    assert_close_to_oracle(inputs, *run(inputs))
    exact = oracle(inputs)
    inputs.options["window"] = 60
    assert_close_to_oracle(inputs, *run(inputs))
    assert all(torch.equal(a, b) for a, b in zip(exact, oracle(inputs)))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_a_row(threads):
    """Only the CPU backend is threaded; one thread is the expectation."""
    before = torch.get_num_threads()
    inputs = build(LONG)
    try:
        torch.set_num_threads(1)
        expected = run(inputs)
        torch.set_num_threads(threads)
        assert torch.equal(run(inputs)[0], expected[0])
    finally:
        torch.set_num_threads(before)
