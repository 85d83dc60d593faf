"""sm90_decode beyond the op suite: the bits of sm80_decode, whatever the schedule, the tier and the room."""

from dataclasses import replace

import pytest
import torch
from hopper_checks import (
    assert_equal_in_all_tiers,
    assert_equal_in_some_schedules,
    assert_right,
    every_schedule,
    spread,
    used_mbarriers,
)
from oracle import assert_close_to_oracle
from test_attention_kernels import FP8, GEMMA, GPT_OSS, KIB, LARGE, MIMO, SMALL, assert_equal, attend

from swa_attn.testing import build, emulated_backend
from swa_attn.testing.emulated_backend import settings
from swa_attn.testing.figures import measure

pytestmark = pytest.mark.skipif(emulated_backend.unavailable() is not None, reason="the emulator cannot be built here")

FULL = replace(MIMO, num_q_heads=16, window=None, sinks=False)
CONTEXTS = ((1, 400), (1, 128), (1, 129), (1, 3), (1, 0))
# Resident windows of one and of several passes, rings whose slots are used often, splits, rows without keys.
DECODES = [
    replace(MIMO, seqs=CONTEXTS),
    replace(MIMO, seqs=((8, 300), (8, 5)), page_size=64, dtype=torch.float16),
    replace(GPT_OSS, num_kv_heads=2, num_q_heads=10, seqs=((3, 150), (3, 600)), window=70, softcap=20.0, host=0.4),
    replace(FULL, seqs=((1, 2100), (1, 1024), (1, 7)), host=0.3),
    replace(GEMMA, seqs=((2, 700), (2, 40)), window=600),
    replace(MIMO, seqs=((2, 180), (2, 129)), cache_dtype=FP8, host=0.5),
    replace(FULL, seqs=((1, 1300),), cache_dtype=FP8, dtype=torch.float16),
    # More rows than a warp has on rings: two row warps, and CTAs next to each other.
    replace(FULL, seqs=((2, 1100), (2, 1)), host=0.3),
    replace(FULL, seqs=((3, 1500), (3, 1025)), cache_dtype=FP8),
    replace(GEMMA, seqs=((8, 700), (8, 640)), num_q_heads=5, window=600),
]
decodes = pytest.mark.parametrize("case", DECODES, ids=str)


@pytest.fixture(autouse=True)
def hopper():
    with settings(compute_capability=90):
        yield


@decodes
def test_results_do_not_depend_on_the_schedule(case):
    assert_equal_in_some_schedules("decode", case)


@pytest.mark.slow
@decodes
@every_schedule
def test_every_schedule(case, asynchrony, order, seed):
    assert_right("decode", case, asynchrony=asynchrony, order=order, seed=seed)


@decodes
def test_it_gives_the_bits_of_sm80_decode(case):
    inputs = build(case)
    results = attend("decode", inputs)
    assert used_mbarriers()
    with settings(compute_capability=80):
        assert_equal(attend("decode", inputs), results)
    assert not used_mbarriers()


@decodes
def test_host_pages_give_the_bits_of_device_pages(case):
    assert_equal_in_all_tiers("decode", case)


@pytest.mark.parametrize("room", [LARGE, 200 * KIB, 150 * KIB, SMALL])
@decodes
def test_results_do_not_depend_on_the_room(case, room):
    """Less shared memory makes rings of resident windows, and shorter rings."""
    inputs = build(case)
    expected = attend("decode", inputs)
    with settings(max_smem_bytes=room):
        assert_equal(attend("decode", inputs), expected)


@pytest.mark.parametrize("layout", ["hnd", "packed", "padded"])
@pytest.mark.parametrize("page_size", [8, 16, 48, 64, 128])
@pytest.mark.parametrize("case", [MIMO, replace(FULL, cache_dtype=FP8)], ids=["window", "full float8"])
def test_pages_of_all_layouts(case, layout, page_size):
    assert_right("decode", replace(case, seqs=((1, 300), (1, 141), (1, 9)), layout=layout, page_size=page_size))


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 127, 128, 129, 143, 144, 145])
@pytest.mark.parametrize("q_len", [1, 2, 8])
def test_windows_that_start_and_end_around_a_slice(window, q_len):
    contexts = [1, 15, 16, 17, window, window + 1, *range(250, 267)]
    assert_right("decode", replace(GPT_OSS, window=window, seqs=tuple((q_len, context) for context in contexts)))


@pytest.mark.parametrize("group_size", [1, 5, 15, 16])
@pytest.mark.parametrize("q_len", range(1, 9))
def test_rows_are_passes_over_the_same_window(group_size, q_len):
    """Any number of rows asks for the window once; where SMs are idle, every 16 rows in a CTA of their own. The bits are
    the same."""
    case = replace(MIMO, num_q_heads=group_size, seqs=((q_len, 300), (q_len, 6)))
    results = []
    for num_sms, blocks in ((1, 1), (6, min(3, -(-group_size * q_len // 16))), (132, -(-group_size * q_len // 16))):
        assert_right("decode", case, num_sms=num_sms)
        f = measure("decode", case, num_sms=num_sms)
        assert f.kv_bytes == blocks * f.least_kv_bytes
        assert f.counters.bank_conflicts() == 0
        with settings(num_sms=num_sms):
            results.append(attend("decode", build(case)))
    assert_equal(results[1], results[0])
    assert_equal(results[2], results[0])
    on_host = measure("decode", replace(case, host=1.0))  # idle SMs or not: the link carries each byte once
    assert on_host.kv_bytes == on_host.least_kv_bytes


@pytest.mark.parametrize("group_size, q_len, blocks", [(16, 1, 1), (16, 2, 1), (11, 3, 2), (16, 4, 2), (16, 8, 4)])
def test_rows_of_long_ranges_are_ctas_next_to_each_other(group_size, q_len, blocks):
    """Of 32 rows, and each asks for the keys."""
    case = replace(FULL, num_q_heads=group_size, seqs=((q_len, 1300),), dtype=torch.float16)
    inputs = build(case)
    assert_close_to_oracle(inputs, *attend("decode", inputs))
    assert used_mbarriers()
    f = measure("decode", case)
    assert f.kv_bytes == blocks * f.least_kv_bytes
    assert f.counters.bank_conflicts() == 0


@pytest.mark.parametrize(
    "case", [replace(MIMO, seqs=((4, 340),)), replace(FULL, seqs=((1, 340),)), replace(FULL, seqs=((4, 340),))], ids=str
)
@pytest.mark.parametrize("position", [211, 230, 310, 337])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_special_value_reaches_only_the_rows_that_see_it(case, position, value):
    """In a slice at the window's start, in one that TMA brings, among the rows' own keys; two passes or a ring."""
    inputs = build(case)
    before = attend("decode", inputs)
    page, slot = int(inputs.block_table[0, position // case.page_size]), position % case.page_size
    inputs.v_cache[page, slot, 0, 5] = value
    out, lse = attend("decode", inputs)
    q_len, context = case.seqs[0]
    positions = torch.arange(context - q_len, context)
    sees = (positions >= position) & (positions < position + (case.window or 1 << 30))
    reached = torch.zeros(out.shape, dtype=torch.bool)
    reached[sees, :, 5] = True
    assert torch.equal(out[~reached], before[0][~reached]) and torch.equal(lse, before[1])
    assert not torch.isfinite(out[reached]).any()
    assert used_mbarriers()


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, FP8])
def test_strides_that_tma_cannot_describe_go_to_sm80_decode(cache_dtype):
    case = replace(MIMO, seqs=((1, 150), (1, 300)), cache_dtype=cache_dtype)
    expected = attend("decode", build(replace(case, layout="padded")))
    assert used_mbarriers()
    assert_equal(attend("decode", build(replace(case, layout="skewed"))), expected)
    assert not used_mbarriers()


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["page", "slot", "head"])
@pytest.mark.parametrize("cache", ["k_cache", "v_cache"])
def test_one_stride_that_tma_cannot_describe_goes_to_sm80_decode(cache, axis):
    inputs = build(replace(MIMO, num_q_heads=16, num_kv_heads=2, seqs=((1, 150), (1, 300))))
    expected = attend("decode", inputs)
    assert used_mbarriers()
    assert_equal(attend("decode", replace(inputs, **{cache: spread(getattr(inputs, cache), axis)})), expected)
    assert not used_mbarriers()


@pytest.mark.parametrize("changes", [{"page_size": 4}, {"page_size": 24}], ids=str)
def test_what_it_does_not_take_goes_to_sm80_decode(changes):
    inputs = build(replace(GPT_OSS, seqs=((1, 1500),), **changes))
    assert_close_to_oracle(inputs, *attend("decode", inputs))
    assert not used_mbarriers()


@pytest.mark.parametrize("compute_capability", [80, 89, 100, 120])
def test_other_cards_take_sm80_decode(compute_capability):
    inputs = build(replace(MIMO, seqs=((1, 200),)))
    with settings(compute_capability=compute_capability):
        assert_close_to_oracle(inputs, *attend("decode", inputs))
    assert not used_mbarriers()


@pytest.mark.parametrize("page_size", [8, 16, 64])
@pytest.mark.parametrize("host", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("case", [MIMO, replace(FULL, window=None), replace(MIMO, cache_dtype=FP8)], ids=str)
def test_every_visible_byte_is_asked_for_once(case, page_size, host):
    """No key beyond the window, none twice, whoever brings it."""
    contexts = (517, 129, 64, 1040)
    f = measure("decode", replace(case, seqs=tuple((1, k) for k in contexts), page_size=page_size, host=host))
    assert f.kv_bytes == f.least_kv_bytes
    assert f.kv_sector_ratio == 1
    assert f.counters.bank_conflicts() == 0
    if host == 1.0:
        assert f.counters.bytes_read("device_pages") == 0
    if host == 0.0:  # whole slices come by TMA
        firsts = [max(0, k - (case.window or k)) for k in contexts]
        slices = sum(k // 16 - -(-first // 16) for k, first in zip(contexts, firsts, strict=True))
        key_bytes = (case.head_dim + case.v_head_dim) * (case.cache_dtype or case.dtype).itemsize
        assert f.counters.traffic(ops="tma_load").bytes == slices * 16 * key_bytes


def test_windows_need_no_workspace():
    attend("decode", build(replace(GPT_OSS, window=1024, seqs=((1, 3000),))))
    assert used_mbarriers()
    assert emulated_backend.last_run.counters.bytes_written("workspace") == 0
