"""The CUDA attention kernels beyond the op suite: every schedule, every way to cut the work, bit for bit the same."""

from dataclasses import replace

import pytest
import torch
from oracle import assert_close_to_oracle

import swa_attn
from swa_attn.testing import AttentionCase, build, emulated_backend
from swa_attn.testing.emulated_backend import settings

pytestmark = pytest.mark.skipif(emulated_backend.unavailable() is not None, reason="the emulator cannot be built here")

FP8 = torch.float8_e4m3fn
KIB = 1024
SMALL, LARGE = 99 * KIB, 227 * KIB  # shared memory of a block: sm_86 and sm_89, sm_90
GPT_OSS = AttentionCase(
    head_dim=64,
    v_head_dim=64,
    num_q_heads=8,
    num_kv_heads=1,
    window=128,
    page_size=16,
    sinks=True,
    dtype=torch.bfloat16,
)
MIMO = replace(GPT_OSS, head_dim=192, v_head_dim=128)
GEMMA = replace(GPT_OSS, head_dim=256, v_head_dim=256, num_q_heads=2, window=40, sinks=False)
# Several steps of a ring, its slots used more than once; prompts from the start, from inside the window, from beyond it.
PREFILLS = [
    replace(GPT_OSS, seqs=((70, 70), (40, 150), (33, 300))),
    replace(MIMO, seqs=((50, 190),)),
    replace(GPT_OSS, window=None, seqs=((20, 200),)),
    replace(GEMMA, seqs=((70, 90),)),
    replace(MIMO, seqs=((35, 180),), cache_dtype=FP8, host=0.5),
    replace(GPT_OSS, seqs=((35, 180),), dtype=torch.float16, cache_dtype=FP8),
]
DECODES = [
    replace(GPT_OSS, seqs=((1, 400), (1, 128), (1, 129), (1, 3), (1, 0))),
    replace(MIMO, seqs=((3, 200), (3, 2))),
    replace(GPT_OSS, window=None, seqs=((2, 1500), (2, 1024), (2, 1025))),
    replace(GEMMA, seqs=((8, 90),), num_q_heads=12),
    replace(MIMO, seqs=((2, 180),), cache_dtype=FP8, host=0.5),
]
POLICIES = [("lazy", "forward", 1), ("eager", "reverse", 1), ("random", "random", 7)]
ALL_POLICIES = [
    (a, o, s) for a in ("lazy", "eager", "random") for o in ("forward", "reverse", "random") for s in (1, 2, 3)
]
cases = pytest.mark.parametrize(
    "op, case", [("prefill", c) for c in PREFILLS] + [("decode", c) for c in DECODES], ids=str
)


def attend(op, inputs):
    """out [tokens, Hq, Dv] and lse [tokens, Hq], run by the emulated kernels."""
    with swa_attn.use_backend("emulated"):
        if op == "prefill":
            return swa_attn.prefill(*inputs.prefill_args, **inputs.options)
        out, lse = swa_attn.decode(*inputs.decode_args, **inputs.options)
        return out.flatten(0, 1), lse.flatten(0, 1)


def assert_equal(got, expected):
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@cases
def test_results_do_not_depend_on_the_schedule(op, case):
    inputs = build(case)
    expected = attend(op, inputs)
    assert_close_to_oracle(inputs, *expected)
    for asynchrony, order, seed in POLICIES[1:]:
        with settings(asynchrony=asynchrony, order=order, seed=seed):
            assert_equal(attend(op, inputs), expected)


@pytest.mark.slow
@cases
@pytest.mark.parametrize("asynchrony, order, seed", ALL_POLICIES)
@pytest.mark.parametrize("smem", [SMALL, LARGE])
def test_every_schedule(op, case, asynchrony, order, seed, smem):
    inputs = build(case)
    with settings(asynchrony=asynchrony, order=order, seed=seed, max_smem_bytes=smem):
        assert_close_to_oracle(inputs, *attend(op, inputs))


@cases
def test_results_do_not_depend_on_the_card(op, case):
    """Not on the number of SMs, which cuts segments, nor on shared memory, which chooses kernels and stages."""
    inputs = build(case)
    expected = attend(op, inputs)
    for num_sms, smem in ((1, LARGE), (3, SMALL), (132, 163 * KIB), (500, SMALL)):
        with settings(num_sms=num_sms, max_smem_bytes=smem):
            assert_equal(attend(op, inputs), expected)


@cases
def test_host_pages_give_the_bits_of_device_pages(op, case):
    expected = attend(op, build(replace(case, host=0.0)))
    for host in (0.5, 1.0):
        assert_equal(attend(op, build(replace(case, host=host), page_order_seed=5)), expected)


@pytest.mark.parametrize("window", [15, 16, 17, 127, 128, 129, 300])
@pytest.mark.parametrize("group_size", [1, 5, 8, 64])
def test_windows_and_groups_around_a_slice_and_the_ring(window, group_size):
    tokens = min(70, 300 // group_size)
    case = replace(
        GPT_OSS, num_q_heads=group_size, window=window, seqs=((tokens, 250 + tokens), (1, window), (2, window + 1))
    )
    inputs = build(case)
    with settings(num_sms=1):
        assert_close_to_oracle(inputs, *attend("prefill", inputs))


@pytest.mark.parametrize("window", [16, None], ids=["ring", "stages"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_special_value_inside_a_segment_reaches_only_the_rows_that_see_it(window, value):
    """Far from the first step or tile; tokens of one warp see it and do not."""
    case = replace(GPT_OSS, window=window, seqs=((90, 120),))
    inputs = build(case)
    with settings(num_sms=1):
        before = attend("prefill", inputs)
        position = 81
        page = int(inputs.block_table[0, position // case.page_size])
        inputs.v_cache[page, position % case.page_size, 0, 5] = value
        out, lse = attend("prefill", inputs)
    reached = torch.zeros(out.shape, dtype=torch.bool)
    reached[51 : 51 + (window or 90), :, 5] = True  # token 0 is at position 30
    assert torch.equal(out[~reached], before[0][~reached]) and torch.equal(lse, before[1])
    assert not torch.isfinite(out[reached]).any()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"head_dim": 80, "v_head_dim": 80}, "head dims 64/64, 128/128, 192/128 and 256/256"),
        ({"num_q_heads": 129}, "at most 128 query heads per KV head"),
        ({"dtype": torch.float32}, "bfloat16 and float16 queries"),
    ],
)
def test_what_no_kernel_has_is_refused_by_name(changes, message):
    inputs = build(replace(GPT_OSS, seqs=((1, 20),), **changes))
    for op in ("prefill", "decode"):
        with pytest.raises(NotImplementedError, match=message):
            attend(op, inputs)


def test_the_largest_group():
    inputs = build(replace(GPT_OSS, num_q_heads=128, seqs=((3, 150), (3, 2))))
    for op in ("prefill", "decode"):
        assert_close_to_oracle(inputs, *attend(op, inputs))


@pytest.mark.parametrize("sink", [-80.0, 8.0, 80.0, float("-inf")])
def test_splits_count_the_sink_once(sink):
    """8 is about the mass of 3000 keys: it would show if no split, or every split, counted it."""
    inputs = build(replace(GPT_OSS, window=None, seqs=((1, 3000), (1, 1025), (1, 10))))
    inputs.options["sinks"] = torch.full((GPT_OSS.num_q_heads,), sink)
    assert_close_to_oracle(inputs, *attend("decode", inputs))


def test_a_launch_is_one_kernel_for_windows_and_the_splits_are_combined():
    """Decode of a windowed layer needs no workspace; a long range does, and reads only what it wrote."""
    attend("decode", build(replace(GPT_OSS, window=1024, seqs=((1, 3000),))))
    assert emulated_backend.last_run.counters.bytes_written("workspace") == 0
    attend("decode", build(replace(GPT_OSS, window=None, seqs=((1, 3000), (1, 10)))))
    workspace = emulated_backend.last_run.counters
    assert workspace.bytes_written("workspace") == (3 + 1) * GPT_OSS.num_q_heads * (64 + 1) * 4
